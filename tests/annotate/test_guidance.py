import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from annotate import guidance
from annotate.guidance import Asked, Pair, ScoredPrompt, accept_scores, ask_first, prompts_to_score, propose_pairs
from annotate.models import OPEN, Comparison, Option, Project
from tests.factories import make_comparison, make_judgment, make_lease, make_project, make_prompt, response_ids

pytestmark = pytest.mark.django_db


def scored(comparison, *members):
    """A prompt's scores, given for each member in the order of the comparison's options."""
    return ScoredPrompt(
        comparison.prompt_id, dict(zip(response_ids(comparison), zip(*members, strict=True), strict=True))
    )


def ranked(project):
    """Open comparisons, the first to ask first."""
    return list(Comparison.objects.filter(project=project, priority__gt=0).order_by("-priority"))


def pairs_asked(project):
    """The responses of each pair, with their positions."""
    return {
        tuple(options)
        for comparison in Comparison.objects.filter(project=project, num_responses=2)
        if (options := comparison.options.values_list("response_id", "position"))
    }


# What is scored


def test_prompts_to_score_have_an_open_comparison_and_all_their_responses():
    project = make_project()
    comparison = make_comparison(project=project, contents=("yes", "no"))
    make_comparison(prompt=comparison.prompt, contents=("perhaps", "never"))
    make_judgment(comparison=make_comparison(project=project))
    make_comparison(project=project, is_gold=True)
    make_comparison()
    responses = comparison.prompt.responses.order_by("pk")

    assert list(prompts_to_score(project)) == [
        {
            "id": comparison.prompt.pk,
            "prompt": comparison.prompt.messages,
            "responses": [{"id": response.pk, "content": response.content} for response in responses],
        }
    ]
    assert [response.content for response in responses] == ["yes", "no", "perhaps", "never"]


def test_prompts_to_score_for_new_pairs_have_two_responses():
    project = make_project()
    judged = make_judgment(comparison=make_comparison(project=project)).comparison
    make_prompt(project=project)

    assert [row["id"] for row in prompts_to_score(project, is_only_open=False)] == [judged.prompt_id]


def test_prompts_to_score_takes_as_many_queries_for_many_prompts_as_for_one():
    project = make_project()
    make_comparison(project=project)
    with CaptureQueriesContext(
        connection,
    ) as one:
        assert len(list(prompts_to_score(project))) == 1
    for _ in range(3):
        make_comparison(project=project)
    with CaptureQueriesContext(connection) as four:
        assert len(list(prompts_to_score(project))) == 4

    assert len(one) == len(four) == 2


# Priorities


@pytest.mark.parametrize("strategy", ["bald", "posterior_variance"])
def test_accept_scores_puts_first_what_members_contradict_each_other_about(strategy):
    project = make_project()
    agreed, doubtful, contested = (make_comparison(project=project) for _ in range(3))

    num = accept_scores(
        project=project,
        scores=[
            scored(agreed, [1, 0], [1, 0]),
            scored(doubtful, [0.5, 0], [-0.5, 0]),
            scored(contested, [0, 3], [3, 0]),
        ],
        strategy=strategy,
    )

    assert num == 3
    assert ranked(project) == [contested, doubtful, agreed]
    assert sorted(Comparison.objects.values_list("priority", flat=True)) == pytest.approx([1 / 3, 2 / 3, 1])


def test_accept_scores_ranks_pairs_and_lists_together():
    project = make_project()
    pair = make_comparison(project=project)
    contested = make_comparison(project=project, k=3)

    accept_scores(project=project, scores=[scored(pair, [1, 0], [0, 0]), scored(contested, [4, 0, -4], [-4, 0, 4])])

    assert ranked(project) == [contested, pair]


def test_accept_scores_leaves_alone_what_is_judged_taken_gold_elsewhere_or_has_no_scores():
    project = make_project()
    judged = make_judgment(comparison=make_comparison(project=project)).comparison
    taken = make_lease(comparison=make_comparison(project=project)).comparison
    unscored = make_comparison(project=project)
    half = make_comparison(project=project)
    gold = make_comparison(project=project, is_gold=True)
    elsewhere, there = make_comparison(), make_comparison(project=project)
    everything = [scored(one, [2, 0], [0, 2]) for one in (judged, taken, gold, elsewhere, there)]
    first, _ = response_ids(half)

    num = accept_scores(project=project, scores=[*everything, ScoredPrompt(half.prompt_id, {first: (1.0, 2.0)})])

    assert num == 1
    assert dict(Comparison.objects.values_list("pk", "priority")) == {
        **{one.pk: 0.0 for one in (judged, taken, unscored, half, gold, elsewhere)},
        there.pk: 1.0,
    }


def test_accept_scores_scores_a_response_once_for_all_its_comparisons():
    project = make_project()
    first = make_comparison(project=project, contents=("a", "b", "c"))
    a, b, c = response_ids(first)
    for pair in ((a, b), (b, c)):
        comparison = Comparison.objects.create(project=project, prompt=first.prompt, digest=str(pair), num_responses=2)
        for position, response in enumerate(pair):
            Option.objects.create(comparison=comparison, response_id=response, position=position)

    assert accept_scores(project=project, scores=[scored(first, [0, 0, 3], [0, 0, -3])]) == 3
    assert [one.digest for one in ranked(project)] == [str((b, c)), first.digest, str((a, b))]


def test_accept_scores_in_small_batches_gives_the_same_priorities(monkeypatch):
    project = make_project()
    comparisons = [make_comparison(project=project) for _ in range(7)]
    scores = [scored(one, [number, 0], [0, number]) for number, one in enumerate(comparisons)]
    heard = []
    accept_scores(project=project, scores=iter(scores), seed=3)
    at_once = ranked(project)
    monkeypatch.setattr(guidance, "PROMPTS_AT_ONCE", 2)
    monkeypatch.setattr(guidance, "ROWS_AT_ONCE", 2)

    accept_scores(project=project, scores=iter(scores), seed=3, progress=lambda: heard.append(1))

    assert ranked(project) == at_once
    assert len(heard) == 4


def test_accept_scores_of_nothing_changes_nothing():
    assert accept_scores(project=make_project(), scores=[]) == 0


def test_accept_scores_refuses_a_single_member():
    comparison = make_comparison()
    with pytest.raises(ValueError, match=r"M and K at least 2"):
        accept_scores(project=comparison.project, scores=[scored(comparison, [1, 0])])
    assert ranked(comparison.project) == []


def test_the_queue_gives_out_the_most_informative_first():
    project = make_project(strategy=Project.Strategy.INFORMATIVE, random_share=0.0)
    dull, telling = (make_comparison(project=project) for _ in range(2))

    accept_scores(project=project, scores=[scored(dull, [1, 0], [1, 0]), scored(telling, [1, 0], [0, 1])])

    assert make_lease(comparison=dull).comparison == telling


# Pairs


def test_propose_pairs_asks_the_pair_that_members_contradict_each_other_about():
    project = make_project(overlap=3)
    listed = make_comparison(project=project, k=4)
    _, second, _, last = response_ids(listed)

    num = propose_pairs(project=project, scores=[scored(listed, [1, 5, 1, -5], [1, -5, 1, 5])], number=1)

    assert num == 1
    assert pairs_asked(project) == {((second, 0), (last, 1))}
    new = Comparison.objects.get(num_responses=2)
    assert (new.prompt, new.num_wanted, new.num_taken, new.priority) == (listed.prompt, 3, 0, 0.0)
    assert len(new.digest) == 64


def test_propose_pairs_leaves_out_pairs_that_are_compared_already():
    project = make_project()
    pair = make_comparison(project=project)
    listed = make_comparison(project=project, k=3)
    scores = [scored(pair, [9, 0], [0, 9]), scored(listed, [1, 2, 3], [3, 2, 1])]

    assert propose_pairs(project=project, scores=scores, number=2) == 2
    assert propose_pairs(project=project, scores=scores, number=10) == 1
    assert propose_pairs(project=project, scores=scores, number=10) == 0
    assert Comparison.objects.filter(project=project).count() == 5


def test_propose_pairs_spreads_over_prompts_where_one_answer_tells_the_others():
    project = make_project()
    first, second = (make_comparison(project=project, k=3) for _ in range(2))
    # in each list, members quarrel over one response only: its two pairs tell the same
    scores = [
        scored(first, [4, 0, 0], [4, 0, 0], [-4, 0, 0], [-4, 0, 0]),
        scored(second, [4, 0, 0], [-4, 0, 0], [4, 0, 0], [-4, 0, 0]),
    ]

    assert propose_pairs(project=project, scores=scores, number=2, strategy="posterior_variance") == 2
    assert set(Comparison.objects.filter(num_responses=2).values_list("prompt", flat=True)) == {
        first.prompt_id,
        second.prompt_id,
    }


def test_propose_pairs_keeps_the_best_of_many_prompts(monkeypatch):
    monkeypatch.setattr(guidance, "PROMPTS_AT_ONCE", 1)
    monkeypatch.setattr(guidance, "CONSIDERED_PER_PAIR", 1)
    project = make_project()
    lists = [make_comparison(project=project, k=3) for _ in range(4)]
    scores = [scored(one, [0, 0, worth], [0, 0, -worth]) for one, worth in zip(lists, (1, 4, 2, 3), strict=True)]

    assert propose_pairs(project=project, scores=iter(scores), number=2) == 2
    assert set(Comparison.objects.filter(num_responses=2).values_list("prompt", flat=True)) == {lists[1].prompt_id}
    assert propose_pairs(project=project, scores=iter([]), number=2) == 0


# Pairs that somebody wants judged


def pair_of(comparison, *places):
    ids = response_ids(comparison)
    return Pair(comparison.prompt_id, (ids[places[0]], ids[places[1]]))


def asked_first(project):
    """Comparisons with a free place in the order in which they are asked, by the texts of their responses."""
    in_order = Comparison.objects.filter(OPEN, project=project).order_by("-priority", "pk")
    return [tuple(one.options.values_list("response__content", flat=True)) for one in in_order]


def test_ask_first_makes_pairs_takes_further_judgments_and_puts_them_before_all_others():
    project = make_project()
    make_comparison(project=project, contents=("most", "informative"), priority=0.9)
    judged = make_judgment(comparison=make_comparison(project=project, contents=("judged", "before"))).comparison
    listed = make_judgment(comparison=make_comparison(project=project, contents=("a", "b", "c"))).comparison
    waiting = make_comparison(project=project, contents=("still", "waiting"))
    pairs = [pair_of(judged, 1, 0), pair_of(listed, 0, 2), pair_of(waiting, 0, 1)]

    asked = ask_first(project=project, pairs=pairs)

    assert asked == Asked(num_new=1, num_further=1, num_open=1)
    assert asked_first(project) == [("judged", "before"), ("a", "c"), ("still", "waiting"), ("most", "informative")]
    judged.refresh_from_db()
    assert (judged.num_taken, judged.num_wanted) == (1, 2)


def test_ask_first_asked_twice_adds_nothing():
    project = make_project()
    judged = make_judgment(comparison=make_comparison(project=project)).comparison
    listed = make_judgment(comparison=make_comparison(project=project, k=3)).comparison
    pairs = [pair_of(judged, 0, 1), pair_of(listed, 0, 2)]
    ask_first(project=project, pairs=pairs)
    before = asked_first(project)

    again = ask_first(project=project, pairs=pairs)

    assert again == Asked(num_new=0, num_further=0, num_open=2)
    assert asked_first(project) == before
    judged.refresh_from_db()
    assert (judged.num_wanted, Comparison.objects.count()) == (2, 3)


def test_ask_first_leaves_known_answers_and_other_projects_alone():
    project = make_project()
    gold = make_comparison(project=project, is_gold=True, num_wanted=1000)

    assert ask_first(project=project, pairs=[pair_of(gold, 0, 1)]) == Asked(0, 0, 0)
    assert ask_first(project=project, pairs=[]) == Asked(0, 0, 0)
    gold.refresh_from_db()
    assert (gold.priority, gold.num_wanted) == (0, 1000)


def test_ask_first_asks_the_database_no_more_for_three_pairs():
    project = make_project()
    pairs = [pair_of(make_judgment(comparison=make_comparison(project=project)).comparison, 0, 1) for _ in range(4)]

    numbers = []
    for some in (pairs[:1], pairs[1:]):
        with CaptureQueriesContext(connection) as queries:
            ask_first(project=project, pairs=some)
        numbers.append(len(queries))

    assert numbers[0] == numbers[1]


# Trials


def test_a_trial_keeps_its_order_whatever_models_make_of_it():
    project = make_project()
    trial, other = (make_comparison(project=project, contents=("yes", "no")) for _ in range(2))
    pair = Pair(trial.prompt_id, tuple(response_ids(trial)))
    assert ask_first(project=project, pairs=[pair], is_trial=True) == Asked(0, 0, 1)
    placed = Comparison.objects.get(pk=trial.pk)
    assert (placed.is_trial, placed.priority) == (True, 1.0)
    scores = [scored(trial, [9.0, -9.0], [-9.0, 9.0]), scored(other, [1.0, 0.0], [0.0, 1.0])]
    assert accept_scores(project=project, scores=scores) == 1
    assert Comparison.objects.get(pk=trial.pk).priority == 1.0


def test_a_trials_pair_is_for_the_trial_alone_to_ask():
    trial = make_comparison()
    pairs = [Pair(trial.prompt_id, tuple(response_ids(trial)))]
    ask_first(project=trial.project, pairs=pairs, is_trial=True)
    make_judgment(comparison=trial)
    assert ask_first(project=trial.project, pairs=pairs) == Asked(0, 0, 0)
    trial.refresh_from_db()
    assert (trial.num_wanted, trial.num_taken) == (1, 1)
