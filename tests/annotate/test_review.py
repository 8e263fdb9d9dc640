import pytest

from annotate import review
from annotate.errors import BadRanking
from annotate.models import OVERALL, Consensus, Judgment, Verdict
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, response_ids

pytestmark = pytest.mark.django_db


def make_consensus(comparison, *, certainty=0.5, aspect=OVERALL, **values):
    ranking = [[pk] for pk in response_ids(comparison)]
    fields = {"project": comparison.project, "ranking": ranking, "num_judgments": 2, "aspect": aspect, **values}
    return Consensus.objects.create(comparison=comparison, certainty=certainty, **fields)


def give(comparison, reviewer, *, ranking=None, note=""):
    ranking = ranking or [[pk] for pk in response_ids(comparison)]
    return review.give_verdict(comparison=comparison, reviewer=reviewer, ranking=ranking, aspect=OVERALL, note=note)


def test_the_least_certain_comes_first():
    project = make_project()
    rows = [make_consensus(make_comparison(project=project), certainty=certainty) for certainty in (0.9, 0.5, 0.7)]
    make_consensus(make_comparison(project=project), certainty=0.1, aspect="tone")
    make_consensus(make_comparison(project=project), certainty=0.2, is_decided=True)
    make_consensus(make_comparison(), certainty=0.3)

    assert list(review.queue(project, OVERALL)) == [rows[1], rows[2], rows[0]]


def test_a_page_shows_who_said_what_under_the_letters_of_the_reviewer():
    comparison = make_comparison(contents=("red", "green", "blue"))
    make_judgment(comparison=comparison, order=[[0], [1, 2]], rationale="Warm.")
    make_judgment(comparison=comparison, order=[[2], [1], [0]])
    make_consensus(comparison, certainty=0.514)
    reviewer = make_annotator()

    page = review.review_page(project=comparison.project, reviewer=reviewer, aspect=OVERALL)

    red, green, blue = ("ABC"[page.contents.index(word)] for word in ("red", "green", "blue"))
    tied = " = ".join(sorted((green, blue)))
    assert [(past.name, past.words, past.rationale) for past in page.judgments] == [
        ("annotator 1", f"{red} > {tied}", "Warm."),
        ("annotator 2", f"{blue} > {green} > {red}", ""),
    ]
    assert (page.consensus_words, page.certainty_percent, page.num_open) == (f"{red} > {green} > {blue}", 51, 1)


def test_a_verdict_stands_beside_the_judgments():
    comparison = make_comparison()
    judgment = make_judgment(comparison=comparison)
    consensus = make_consensus(comparison)
    first, second = response_ids(comparison)
    reviewer = make_annotator()

    give(comparison, reviewer, note="Hm.")
    give(comparison, reviewer, ranking=[[second], [first]], note="No: the other.")

    assert list(Verdict.objects.values_list("comparison", "reviewer", "aspect", "ranking", "note")) == [
        (comparison.pk, reviewer.pk, OVERALL, [[second], [first]], "No: the other.")
    ]
    consensus.refresh_from_db()
    assert consensus.is_decided
    assert Judgment.objects.get().ranking == judgment.ranking
    assert review.review_page(project=comparison.project, reviewer=reviewer, aspect=OVERALL) is None


def test_a_verdict_that_ranks_something_else_is_refused():
    comparison = make_comparison()

    with pytest.raises(BadRanking):
        give(comparison, make_annotator(), ranking=[[1, 2, 3]])

    assert Verdict.objects.count() == 0


def test_a_page_costs_the_same_however_many_wait(django_assert_num_queries):
    project, reviewer = make_project(), make_annotator()
    for _ in range(4):
        make_consensus(make_comparison(project=project))
    with django_assert_num_queries(5):
        review.review_page(project=project, reviewer=reviewer, aspect=OVERALL)
    Consensus.objects.exclude(pk=Consensus.objects.first().pk).delete()
    with django_assert_num_queries(5):
        review.review_page(project=project, reviewer=reviewer, aspect=OVERALL)
