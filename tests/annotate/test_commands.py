"""The commands, and what goes in and comes out by them."""

import gzip
import io
import json

import pytest
from django.core.management import CommandError, call_command

from annotate.models import Judgment, Project
from annotate.services import seed_demonstration
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user

pytestmark = pytest.mark.django_db

QUESTION = [{"role": "user", "content": "Tea?"}]


def run(*arguments, **options):
    """What the command printed."""
    out = io.StringIO()
    call_command(*map(str, arguments), stdout=out, stderr=io.StringIO(), **options)
    return out.getvalue()


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def every_kind_of_judgment():
    """A project with judgments made in the browser, imported, and simulated."""
    project = make_project(name="tea", overlap=4)
    pair = make_comparison(project=project, contents=("Ja\u2028 é 🍵", ""), models=("small", ""))
    triple = make_comparison(project=project, contents=("same", "same", "other"), models=("", "", "large"))
    anna = make_annotator(user=make_user(username="anna"))
    make_judgment(comparison=pair, annotator=anna, order=[[1], [0]], strength=2, seconds=7.25)
    make_judgment(comparison=pair, order=[[0, 1]], is_all_bad=True, seconds=None)
    make_judgment(comparison=triple, annotator=anna, order=[[2], [0, 1]])
    make_judgment(comparison=triple, source=Judgment.Source.SIMULATION)
    return project


IMPORTED = [
    {
        "id": "row-1",
        "prompt": "Tea?",
        "responses": ["a", {"content": "b", "model": "m"}],
        "ranking": [[0], [1]],
        "annotator": "w1",
        "strength": 1,
        "meta": {"scores": [1.5, None], "models": [None, "m"], "nested": {"b": [True], "a": "é"}},
        "source": "some_data_set",
    },
    {"id": "row-2", "prompt": "Tea?", "responses": ["a", "b"], "ranking": [[0, 1]], "annotator": None},
    {"id": "row-3", "prompt": "Tea?", "responses": ["a", "b"], "ranking": [[0, 1]], "annotator": None},
    {"id": "row-4", "prompt": "Tea?", "responses": ["a", "b"], "ranking": [[1], [0]], "annotator": "w1"},
    {"id": "row-5", "prompt": "Tea?", "responses": ["a", "b"], "ranking": [[0], [1]], "annotator": "w1"},
    {"id": "row-6", "prompt": "Tea?", "responses": ["b", "a"], "ranking": [[0], [1]], "aspect": "brevity"},
    {"prompt": QUESTION, "chosen": "a", "rejected": "c"},
]


# import_data


def test_import_data_says_what_is_new(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", *IMPORTED)
    assert run("import_data", "tea", path, "--overlap", "2", "--closed") == (
        "tea: read 7 rows; new: 1 prompts, 4 responses, 3 comparisons, 7 judgments; 0 rows added nothing\n"
    )
    assert list(Project.objects.values_list("name", "overlap", "is_open")) == [("tea", 2, False)]
    assert run("import_data", "tea", path) == (
        "tea: read 7 rows; new: 0 prompts, 0 responses, 0 comparisons, 0 judgments; 7 rows added nothing\n"
    )


def test_import_data_says_where_a_row_is_bad(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", IMPORTED[0], {**IMPORTED[0], "responses": ["a", {"content": 5}]})
    with pytest.raises(CommandError) as refused:
        run("import_data", "tea", path)
    assert str(refused.value) == "line 2, responses[1].content: must be text\nNothing was imported."
    assert Project.objects.count() == 0


def test_import_data_refuses_an_overlap_of_nothing(tmp_path):
    with pytest.raises(CommandError, match="argument --overlap: must be at least 1"):
        run("import_data", "tea", tmp_path / "a.jsonl", "--overlap", "0")


# export_data


def test_rankings_come_back_as_they_went_out(tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    every_kind_of_judgment()
    run("import_data", "tea", write_rows(tmp_path / "rows.jsonl", *IMPORTED))
    run("export_data", "tea", "rankings", first)
    run("import_data", "coffee", first)
    run("export_data", "coffee", "rankings", second)

    lines = first.read_text().splitlines()
    assert len(lines) == 4 + 7
    assert second.read_text().splitlines() == lines
    assert Judgment.objects.filter(project__name="coffee", source="simulation").get().annotator.kind == "simulated"
    assert "anna" not in first.read_text()

    assert run("import_data", "coffee", first).endswith("0 judgments; 11 rows added nothing\n")


def test_export_data_writes_an_imported_row_in_full(tmp_path):
    run("import_data", "tea", write_rows(tmp_path / "rows.jsonl", IMPORTED[0]))
    run("export_data", "tea", "rankings", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "id": "row-1",
        "prompt": QUESTION,
        "responses": [
            {"role": "assistant", "content": "a", "model": ""},
            {"role": "assistant", "content": "b", "model": "m"},
        ],
        "ranking": [[0], [1]],
        "annotator": "w1",
        "aspect": "overall",
        "strength": 1,
        "all_bad": False,
        "source": "import",
        "shown_order": [-1],
        "seconds": -1.0,
        "meta": '{"models": [null, "m"], "nested": {"a": "é", "b": [true]}, '
        '"scores": [1.5, null], "source": "some_data_set"}',
    }


def test_export_data_writes_pairs_for_trl(tmp_path):
    run("import_data", "tea", write_rows(tmp_path / "rows.jsonl", IMPORTED[6], IMPORTED[1], IMPORTED[5]))
    run("export_data", "tea", "trl-pairwise", tmp_path / "all.jsonl.gz")
    run("export_data", "tea", "trl-pairwise", tmp_path / "brevity.jsonl", "--aspect", "brevity")

    def pair(chosen, rejected):
        sides = {"chosen": chosen, "rejected": rejected}
        return {"prompt": QUESTION} | {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}

    lines = gzip.decompress((tmp_path / "all.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == [pair("a", "c"), pair("b", "a")]
    assert json.loads((tmp_path / "brevity.jsonl").read_text()) == pair("b", "a")


def test_export_data_writes_to_standard_output(capfdbinary):
    make_judgment(comparison=make_comparison(project=make_project(name="tea"), contents=("é", "b")))
    run("export_data", "tea", "trl-pairwise", "-")
    assert json.loads(capfdbinary.readouterr().out)["chosen"] == [{"role": "assistant", "content": "é"}]


def test_export_data_refuses(tmp_path):
    make_project(name="tea")
    with pytest.raises(CommandError, match="There is no project 'coffee'; there are: tea"):
        run("export_data", "coffee", "rankings", tmp_path / "a")
    with pytest.raises(CommandError, match="invalid choice: 'csv'"):
        run("export_data", "tea", "csv", tmp_path / "a")
    with pytest.raises(CommandError, match="No such file or directory"):
        run("export_data", "tea", "rankings", tmp_path / "missing" / "a")
    assert list(tmp_path.iterdir()) == []


# simulate_annotators


def test_simulate_annotators_tells_its_progress_and_where_it_ended():
    project = seed_demonstration()
    assert run("simulate_annotators", "cooking", "--judgments", "60", "--noise", "0.2", "--seed", "3") == (
        "50 of 60\ncooking: made 60 simulated judgments\n"
    )
    keep = project.comparisons.filter(num_taken=0).values_list("pk", flat=True)[:1]
    project.comparisons.filter(num_taken=0).exclude(pk__in=list(keep)).delete()
    left = 2 + sum(project.comparisons.filter(num_taken=1).values_list("num_taken", flat=True))
    assert run("simulate_annotators", "cooking", "--judgments", "400") == (
        f"cooking: made {left} simulated judgments of 400: nothing else is open to 5 annotators\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tea"], "is none of them"),
        (["coffee"], "There is no project 'coffee'."),
        (["tea", "--judgments", "0"], "argument --judgments: must be at least 1"),
        (["tea", "--noise", "-1"], "argument --noise: must not be negative"),
        (["tea", "--noise", "nan"], "argument --noise: must not be negative"),
    ],
)
def test_simulate_annotators_refuses(arguments, message):
    make_comparison(project=make_project(name="tea"))
    with pytest.raises(CommandError, match=message):
        run("simulate_annotators", *arguments)
    assert Judgment.objects.count() == 0
