import json

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from annotate import gold, services
from annotate.errors import BadRanking, BadRow, NotGold
from annotate.models import GOLD_PLACES, Comparison, Gold, Judgment, Lease, Project, Standing
from annotate.queries import judgment_rows
from tests.factories import (
    make_annotator,
    make_comparison,
    make_judgment,
    make_lease,
    make_project,
    response_ids,
)

pytestmark = pytest.mark.django_db

MIXED, QUALIFICATION, EXAMPLE = Gold.Use.MIXED, Gold.Use.QUALIFICATION, Gold.Use.EXAMPLE


def known(comparison):
    """The order of the source is right."""
    return [[pk] for pk in response_ids(comparison)]


def make_gold(comparison, use=MIXED, **values):
    return gold.make_gold(comparison=comparison, ranking=known(comparison), use=use, **values)


def places(comparison):
    comparison.refresh_from_db()
    return comparison.is_gold, comparison.num_taken, comparison.num_wanted


def judge_next(project, annotator):
    lease = services.lease_next(project=project, annotator=annotator)
    if lease is not None:
        services.record_judgment(
            comparison=lease.comparison,
            annotator=annotator,
            ranking=known(lease.comparison),
            key=lease.key,
            source="browser",
        )
    return lease and lease.comparison


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**values):
    return {"prompt": "Eggs?", "responses": ["Fry.", "Boil.", "Poach."], "ranking": [[1], [0, 2]], **values}


# Making


@pytest.mark.parametrize("use", Gold.Use.values)
def test_make_gold_takes_a_fresh_comparison_out_of_the_queue(use):
    comparison = make_comparison(k=3)

    made = make_gold(comparison, use, explanation="The first is true.")

    assert Gold.objects.values().get() == {
        "id": made.pk,
        "comparison_id": comparison.pk,
        "project_id": comparison.project_id,
        "ranking": known(comparison),
        "explanation": "The first is true.",
        "use": use,
    }
    assert places(comparison) == (True, 0, GOLD_PLACES)
    assert services.lease_next(project=comparison.project, annotator=make_annotator()) is None  # gold_rate is 0


def test_everybody_can_judge_gold():
    project = make_project(gold_rate=1)
    comparison = make_gold(make_comparison(project=project)).comparison

    asked = [judge_next(project, make_annotator()) for _ in range(3)]

    assert asked == [comparison] * 3
    assert places(comparison) == (True, 3, GOLD_PLACES)


def test_make_gold_of_one_that_was_judged_goes_on_counting_its_judgments():
    project = make_project(gold_rate=1, overlap=2)
    comparison, annotator = make_comparison(project=project), make_annotator()
    make_judgment(comparison=comparison, annotator=annotator)

    make_gold(comparison)

    assert judge_next(project, annotator) is None  # who has judged it is not asked again
    assert judge_next(project, make_annotator()) == comparison
    assert places(comparison) == (True, 2, GOLD_PLACES)


def test_a_worked_example_from_the_queue_keeps_its_judgments_and_asks_for_no_more():
    project = make_project(overlap=3)
    comparison = make_comparison(project=project)
    make_judgment(comparison=comparison)

    make_gold(comparison, EXAMPLE)

    assert places(comparison) == (False, 1, 1)
    assert services.lease_next(project=project, annotator=make_annotator()) is None
    assert len(list(judgment_rows(project))) == 1
    services.set_overlap(project=project, overlap=5)
    assert places(comparison) == (False, 1, 1)


def test_make_gold_waits_for_whoever_is_judging():
    lease = make_lease(comparison=make_comparison(num_wanted=2))

    with pytest.raises(NotGold, match="just now"):
        make_gold(lease.comparison)

    assert (places(lease.comparison), Gold.objects.count()) == ((False, 1, 2), 0)
    Lease.objects.update(expires_at=timezone.now())
    make_gold(lease.comparison)
    assert places(lease.comparison) == (True, 0, GOLD_PLACES)


def test_make_gold_refuses_what_is_no_answer():
    comparison = make_comparison()
    first, second = response_ids(comparison)

    with pytest.raises(BadRanking):
        gold.make_gold(comparison=comparison, ranking=[[first]])
    with pytest.raises(NotGold, match="one response before another"):
        gold.make_gold(comparison=comparison, ranking=[[first, second]])
    gold.make_gold(comparison=comparison, ranking=[[first, second]], use=EXAMPLE)

    assert Gold.objects.get().ranking == [[first, second]]


def test_change_gold_to_an_example_asks_it_no_more():
    project = make_project(gold_rate=1)
    made = make_gold(make_comparison(project=project))
    judge_next(project, make_annotator())

    gold.change_gold(gold=made, use=EXAMPLE, explanation="See the first line.")

    assert services.lease_next(project=project, annotator=make_annotator()) is None
    assert Gold.objects.values_list("use", "explanation").get() == ("example", "See the first line.")
    assert list(judgment_rows(project)) == []  # what was judged as gold stays gold


def test_remove_gold_puts_it_back_into_the_queue():
    project = make_project(overlap=2)
    made = make_gold(make_comparison(project=project))

    gold.remove_gold(gold=made)

    assert (places(made.comparison), Gold.objects.count()) == ((False, 0, 2), 0)
    assert judge_next(project, make_annotator()) == made.comparison


def test_remove_gold_reopens_a_worked_example_from_the_queue():
    comparison = make_comparison(project=make_project(overlap=3))
    make_judgment(comparison=comparison)

    gold.remove_gold(gold=make_gold(comparison, EXAMPLE))

    assert places(comparison) == (False, 1, 3)


def test_remove_gold_refuses_one_that_was_judged_as_gold():
    project = make_project(gold_rate=1)
    made = make_gold(make_comparison(project=project))
    judge_next(project, make_annotator())

    with pytest.raises(NotGold, match="judged as gold"):
        gold.remove_gold(gold=made)

    assert (places(made.comparison), Gold.objects.count()) == ((True, 1, GOLD_PLACES), 1)


# What counts


def test_gold_counts_neither_as_progress_nor_for_training():
    project = make_project(gold_rate=1)
    make_gold(make_comparison(project=project))
    annotator = make_annotator()
    judge_next(project, annotator)
    ordinary = make_judgment(comparison=make_comparison(project=project), annotator=annotator)

    counted = Project.objects.with_counts().get()

    assert (counted.num_comparisons, counted.num_judgments) == (1, 1)
    assert [row["id"] for row in judgment_rows(project)] == [ordinary.key.hex[:16]]
    assert Standing.objects.values_list("num_judged", "num_gold", "gold_score").get() == (2, 1, 1.0)


def test_rows_with_gold_tell_the_known_answer():
    project = make_project(gold_rate=1)
    comparison = make_comparison(project=project, k=3)
    first, second, third = response_ids(comparison)
    gold.make_gold(comparison=comparison, ranking=[[third], [first, second]])
    judge_next(project, make_annotator())
    make_judgment(comparison=make_comparison(project=project))

    rows = list(judgment_rows(project, with_gold=True))

    assert [(row["ranking"], row["meta"]) for row in rows] == [
        ([[0], [1], [2]], {"gold": [[2], [0, 1]]}),
        ([[0], [1]], {}),
    ]


def test_export_data_leaves_gold_out_unless_asked(tmp_path):
    project = make_project(gold_rate=1)
    make_gold(make_comparison(project=project))
    judge_next(project, make_annotator())
    out = tmp_path / "out.jsonl"

    sizes = []
    for asked in ([], ["--with-gold"]):
        call_command("export_data", project.name, "rankings", str(out), *asked)
        sizes.append(len(out.read_text().splitlines()))

    assert sizes == [0, 1]


# Import


def test_import_gold_takes_rankings_for_known_answers(tmp_path):
    project = make_project()
    path = write(
        tmp_path / "gold.jsonl", row(meta={"explanation": "Boiled keep."}, annotator="expert"), row(prompt="Tea?")
    )

    assert gold.import_gold(project=project, path=path, use=QUALIFICATION) == 2

    first = Gold.objects.order_by("pk").first()
    contents = dict(first.comparison.responses.values_list("pk", "content"))
    assert [[contents[pk] for pk in group] for group in first.ranking] == [["Boil."], ["Fry.", "Poach."]]
    assert list(Gold.objects.order_by("pk").values_list("use", "explanation")) == [
        ("qualification", "Boiled keep."),
        ("qualification", ""),
    ]
    assert [places(comparison) for comparison in Comparison.objects.all()] == [(True, 0, GOLD_PLACES)] * 2
    assert not Judgment.objects.exists()


def test_import_gold_again_changes_the_answer_and_copies_stay_apart(tmp_path):
    project = make_project()
    same = {"prompt": "Eggs?", "responses": ["Boil.", "Boil.", "Fry."]}
    gold.import_gold(project=project, path=write(tmp_path / "one.jsonl", {**same, "ranking": [[0], [1], [2]]}))
    gold.import_gold(project=project, path=write(tmp_path / "two.jsonl", {**same, "ranking": [[2], [1], [0]]}))

    ids = response_ids(Comparison.objects.get())
    assert Gold.objects.get().ranking == [[ids[2]], [ids[1]], [ids[0]]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ranking": None}, "line 2, ranking: is missing: it is the known answer"),
        (
            {"ranking": [[0, 1, 2]]},
            "line 2, ranking: must put one response before another, since it is the known answer",
        ),
        ({"ranking": [[0]]}, "line 2, ranking: must place every response; 1, 2 is missing"),
    ],
)
def test_import_gold_stores_nothing_of_a_bad_file(tmp_path, values, words):
    path = write(tmp_path / "gold.jsonl", row(), row(prompt="Tea?", **values))

    with pytest.raises(BadRow) as error:
        gold.import_gold(project=make_project(), path=path)

    assert (str(error.value), Comparison.objects.count()) == (words, 0)


def test_import_gold_command(tmp_path, capsys):
    project = make_project(name="cooking")
    path = write(tmp_path / "gold.jsonl", row())

    call_command("import_gold", "cooking", str(path), "--use", "example")

    assert capsys.readouterr().out == "cooking: 1 comparisons with a known answer\n"
    assert list(project.golds.values_list("use", flat=True)) == ["example"]
    with pytest.raises(CommandError, match="There is no project 'law'; there are: cooking"):
        call_command("import_gold", "law", str(path))
    with pytest.raises(CommandError, match=r"line 1, ranking: is missing.*\nNothing was imported\."):
        call_command("import_gold", "cooking", str(write(path, row(ranking=None))))
