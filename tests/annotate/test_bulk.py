from dataclasses import astuple

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from annotate import bulk
from annotate.formats import read_row
from annotate.models import Annotator, Comparison, Judgment, Prompt, Response
from annotate.queries import judgment_rows
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, response_ids

pytestmark = pytest.mark.django_db


def row(**values):
    return {"prompt": "Tea?", "responses": ["Yes.", "No."], **values}


def store(project, *rows):
    """What was read, then the new prompts, responses, comparisons and judgments, then what was there already."""
    return astuple(bulk.store_rows(project, [read_row(line, values) for line, values in enumerate(rows, start=1)]))


def judged(project):
    """Each judgment in words: whose, on which aspect, for which time, and contents best first."""
    contents = dict(Response.objects.values_list("pk", "content"))
    return [
        (
            judgment.annotator.name,
            judgment.aspect,
            judgment.repeat,
            [[contents[pk] for pk in group] for group in judgment.ranking],
        )
        for judgment in Judgment.objects.filter(project=project).select_related("annotator")
    ]


def places(project):
    return list(Comparison.objects.filter(project=project).values_list("num_taken", "num_wanted"))


def test_store_rows_makes_a_finished_judgment():
    project = make_project()
    values = row(
        id="row-1",
        ranking=[[1], [0]],
        annotator="anna",
        strength=2,
        all_bad=True,
        shown_order=[1, 0],
        seconds=4,
        meta={"models": ["small", "large"], "item": 7},
    )

    assert store(project, values) == (1, 1, 2, 1, 1, 0)

    judgment = Judgment.objects.get()
    yes, no = response_ids(judgment.comparison)
    assert list(Response.objects.order_by("pk").values_list("content", "model")) == [
        ("Yes.", "small"),
        ("No.", "large"),
    ]
    assert Prompt.objects.get().messages == [{"role": "user", "content": "Tea?"}]
    assert (judgment.annotator.name, judgment.annotator.kind, judgment.annotator.project) == (
        "anna",
        "imported",
        project,
    )
    assert (judgment.ranking, judgment.shown_order) == ([[no], [yes]], [no, yes])
    assert (judgment.strength, judgment.is_all_bad, judgment.seconds) == (2, True, 4.0)
    assert (judgment.row_id, judgment.source, judgment.is_extra) == ("row-1", "import", False)
    assert judgment.meta == values["meta"]


def test_store_rows_without_ranking_makes_open_comparisons():
    project = make_project(overlap=3)
    assert store(project, row(), row(responses=["Yes.", "No.", "Maybe."])) == (2, 1, 3, 2, 0, 0)
    assert places(project) == [(0, 3), (0, 3)]
    assert list(Comparison.objects.values_list("num_responses", flat=True)) == [2, 3]


def test_store_rows_marks_answers_that_name_their_model():
    project = make_project()
    answers = [{"content": "As ChatGPT, I say yes.", "model": "m"}, {"content": "No.", "model": "n"}]

    store(project, row(responses=answers))

    told = Response.objects.order_by("pk").values_list("giveaway", flat=True)
    assert [bool(words) for words in told] == [True, False]


def test_store_rows_twice_adds_nothing():
    project = make_project()
    rows = [
        row(),
        row(ranking=[[0], [1]]),
        row(ranking=[[1], [0]]),
        row(prompt="Coffee?", chosen="Yes.", rejected="No."),
    ]
    del rows[3]["responses"]
    assert store(project, *rows) == (4, 2, 4, 2, 3, 0)
    assert store(project, *rows) == (4, 0, 0, 0, 0, 4)
    assert len(judged(project)) == 3


def test_store_rows_counts_equal_rows_once_and_rows_with_ids_of_their_own_each():
    project = make_project()
    same = row(ranking=[[0], [1]], annotator="anna")
    assert store(project, same, same, {**same, "id": "1"}, {**same, "id": "2"}) == (4, 1, 2, 1, 3, 1)
    assert [(name, repeat) for name, _, repeat, _ in judged(project)] == [("anna", 0), ("anna", 1), ("anna", 2)]


def test_store_rows_numbers_repeats_over_several_files():
    project = make_project()
    first, second, third = (row(id=str(n), ranking=[[n % 2], [1 - n % 2]], annotator="anna") for n in range(3))
    store(project, first)
    store(project, second, third)
    assert judged(project) == [
        ("anna", "overall", 0, [["Yes."], ["No."]]),
        ("anna", "overall", 1, [["No."], ["Yes."]]),
        ("anna", "overall", 2, [["Yes."], ["No."]]),
    ]
    assert places(project) == [(1, 1)]


def test_store_rows_keeps_annotators_apart_who_are_not_told():
    project = make_project()
    store(project, row(id="1", ranking=[[0], [1]]), row(id="2", ranking=[[0], [1]]))
    store(
        project,
        row(id="3", ranking=[[1], [0]]),
        row(id="4", ranking=[[0, 1]], aspect="brevity"),
        row(id="5", ranking=[[0], [1]], prompt="Coffee?"),
    )
    assert [(name, aspect, repeat) for name, aspect, repeat, _ in judged(project)] == [
        ("not told 1", "overall", 0),
        ("not told 2", "overall", 0),
        ("not told 3", "overall", 0),
        ("not told 1", "brevity", 0),
        ("not told 1", "overall", 0),
    ]
    assert places(project) == [(3, 3), (1, 1)]
    assert {values["annotator"] for values in judgment_rows(project)} == {None}


def test_store_rows_recognises_responses_in_another_order():
    project = make_project()
    store(project, row(ranking=[[0], [1]], annotator="anna"))
    counts = store(project, row(responses=["No.", "Yes."], ranking=[[0], [1]], annotator="boris"))
    assert counts == (1, 0, 0, 0, 1, 0)
    assert judged(project) == [
        ("anna", "overall", 0, [["Yes."], ["No."]]),
        ("boris", "overall", 0, [["No."], ["Yes."]]),
    ]


def test_store_rows_tells_equal_responses_apart():
    project = make_project()
    store(project, row(responses=["Yes.", "Yes.", "No."], ranking=[[1], [2], [0]]))
    assert list(Response.objects.order_by("pk").values_list("content", "copy")) == [
        ("Yes.", 0),
        ("Yes.", 1),
        ("No.", 0),
    ]
    assert [values["ranking"] for values in judgment_rows(project)] == [[[1], [2], [0]]]


def test_store_rows_gives_each_annotator_one_place_whatever_they_judged():
    project = make_project(overlap=2)
    aspects = [row(ranking=[[0], [1]], annotator="anna", aspect=aspect) for aspect in ("overall", "brevity")]
    store(project, *aspects)
    assert places(project) == [(1, 2)]
    store(project, *(row(ranking=[[0], [1]], annotator=name) for name in ("boris", "clara")))
    assert places(project) == [(3, 3)]


def test_store_rows_takes_free_places_beside_people():
    comparison = make_comparison(contents=("Yes.", "No."), models=("", ""), num_wanted=2)
    make_judgment(comparison=comparison, annotator=make_annotator())
    messages = comparison.prompt.messages
    store(comparison.project, row(prompt=messages, ranking=[[0], [1]], annotator="anna"))
    assert places(comparison.project) == [(2, 2)]
    store(comparison.project, row(prompt=messages, ranking=[[0], [1]], annotator="boris"))
    assert places(comparison.project) == [(3, 3)]


def test_store_rows_keeps_simulated_judgments_marked():
    project = make_project()
    store(project, row(ranking=[[0], [1]], annotator="s", source="simulation"), row(ranking=[[0], [1]], annotator="s"))
    assert list(Annotator.objects.values_list("name", "kind")) == [("s", "simulated"), ("s", "imported")]
    assert [judgment.source for judgment in Judgment.objects.all()] == ["simulation", "import"]


def test_store_rows_keeps_projects_apart():
    one, other = make_project(), make_project()
    store(one, row(ranking=[[0], [1]], annotator="anna"))
    assert store(other, row(ranking=[[0], [1]], annotator="anna")) == (1, 1, 2, 1, 1, 0)


def test_store_rows_gives_the_same_however_the_rows_fall_into_batches(monkeypatch):
    rows = [
        row(id=str(n), prompt=f"{n % 3}?", ranking=[[n % 2], [1 - n % 2]], annotator=("anna", None)[n % 2])
        for n in range(12)
    ]
    whole, pieces, small = make_project(), make_project(), make_project()
    store(whole, *rows)
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 5)
    store(pieces, *rows)
    monkeypatch.setattr(bulk, "CHARACTERS_AT_ONCE", 1)
    store(small, *rows)
    assert judged(whole) == judged(pieces) == judged(small)
    assert places(whole) == places(pieces) == places(small) == [(3, 3)] * 3


def test_store_rows_asks_as_many_queries_for_many_rows_as_for_few():
    def num_queries(number):
        project = make_project()
        rows = [row(prompt=f"{n}?", ranking=[[0], [1]], annotator=f"a{n % 3}") for n in range(number)]
        with CaptureQueriesContext(connection) as queries:
            store(project, *rows)
        return len(queries)

    assert num_queries(2) == num_queries(20) == 12
