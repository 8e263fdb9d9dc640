import json
import random
from pathlib import Path

import pytest

from annotate.formats import rankings
from annotate.identity import digest, messages_digest
from training import export
from training.alignment.preferences import read_rankings

ALL_TRAIN = (1.0, 0.0, 0.0)
THREE = [{"role": "assistant", "content": text} for text in ("Two.", "Nine minutes.", "A while.")]


def row(prompt: str = "How long do I boil an egg?", **values) -> dict:
    fields = {
        "id": "x1",
        "prompt": [{"role": "user", "content": prompt}],
        "responses": [{"role": "assistant", "content": "Two."}, {"role": "assistant", "content": "Nine minutes."}],
        "ranking": [[1], [0]],
        "annotator": "ann",
        "aspect": "overall",
        "source": "browser",
        "shown_order": [0, 1],
        "seconds": 3.5,
    }
    return fields | values


def write(rows: list[dict], folder: Path, *, seed: int = 0, fractions=(0.6, 0.2, 0.2)) -> tuple[str, export.Counts]:
    return export.write_preferences(iter(rows), folder, seed=seed, fractions=fractions)


def test_frozen_record_orders_responses_by_text_and_keeps_content_only():
    content = {
        "prompt": [{"role": "user", "content": "How long do I boil an egg?"}],
        "responses": [{"role": "assistant", "content": "Nine minutes."}, {"role": "assistant", "content": "Two."}],
        "ranking": [[0], [1]],
        "annotator": "ann",
        "aspect": "overall",
        "source": "browser",
        "shown_order": [1, 0],
        "split": "train",
    }
    record = export.frozen_record(row(), seed=0, fractions=ALL_TRAIN)
    assert record == {"id": digest(content)[:16], **content}


def test_frozen_record_is_the_same_for_responses_listed_in_another_order():
    responses = row()["responses"]
    swapped = row(id="another", seconds=1, responses=responses[::-1], ranking=[[0], [1]], shown_order=[1, 0])
    assert export.frozen_record(swapped, seed=0, fractions=ALL_TRAIN) == export.frozen_record(
        row(), seed=0, fractions=ALL_TRAIN
    )


def test_frozen_record_names_responses_by_their_places_in_it_and_tells_the_edited_text():
    told = {
        "bad": [0],
        "ratings": {"0": 2, "2": 7},
        "highlights": [{"response": 0, "start": 0, "end": 3, "text": "Two", "reason": "wrong"}],
        "edited_response": 2,
        "rationale": "Too short.",
    }
    edit = {"role": "assistant", "content": "About nine minutes."}
    responses = [*row()["responses"], edit]  # by their text: About …, Nine …, Two …

    record = export.frozen_record(
        row(responses=responses, ranking=[[2], [1], [0]], meta=told), seed=0, fractions=ALL_TRAIN
    )

    assert record["ranking"] == [[0], [1], [2]]
    assert record["edited"] == "About nine minutes."
    assert record["meta"] == {
        "bad": [2],
        "ratings": {"2": 2, "0": 7},
        "highlights": [{"response": 2, "start": 0, "end": 3, "text": "Two", "reason": "wrong"}],
        "edited_response": 0,
        "rationale": "Too short.",
    }


def test_frozen_record_leaves_alone_what_an_import_calls_by_the_same_names():
    for edited in ("mine", ["mine"], 7):
        told = {"bad": "no", "ratings": [3], "highlights": {"all": 1}, "edited_response": edited, "rationale": ""}

        record = export.frozen_record(row(meta=told), seed=0, fractions=ALL_TRAIN)

        assert record["meta"] == told
        assert "edited" not in record


def test_frozen_record_tells_equal_responses_apart_by_their_rank():
    twice = [{"role": "assistant", "content": "Same."}] * 2
    records = [
        export.frozen_record(row(responses=twice, ranking=ranking, shown_order=None), seed=0, fractions=ALL_TRAIN)
        for ranking in ([[0], [1]], [[1], [0]])
    ]
    assert records[0] == records[1]


def test_write_preferences_gives_equal_bytes_for_rows_in_any_order(tmp_path, monkeypatch):
    rows = [row(f"Question {number}?") for number in range(30)]
    first, counts = write(rows, tmp_path / "a")
    random.Random(1).shuffle(rows)
    monkeypatch.setattr(export, "LINES_IN_MEMORY", 7)  # sorted through five files
    assert write(rows, tmp_path / "b") == (first, counts)
    assert (tmp_path / "a" / f"{first}.jsonl").read_bytes() == (tmp_path / "b" / f"{first}.jsonl").read_bytes()


def test_rankings_that_are_exported_are_read_as_those_that_are_frozen(tmp_path):
    kinds = ({"bad": [0, 1]}, {"kind": "best"}, {"edited_response": 1}, {})
    rows = [
        row(responses=THREE, ranking=[[2], [0, 1]], shown_order=[1, 0, 2], strength=None, all_bad=False, meta=meta)
        for meta in kinds
    ]
    rows += [row(annotator=None, strength=2, all_bad=False, meta={})]
    exported = tmp_path / "rankings.jsonl"
    exported.write_text("".join(rankings.write(rows)))
    name, _ = write(rows, tmp_path, fractions=ALL_TRAIN)

    def told(path: Path) -> list[tuple]:
        return sorted(
            (
                sorted(zip(one.responses, one.groups, one.is_unsorted, strict=True)),
                one.annotator or "",
                one.strength or 0,
                one.edited or "",
            )
            for one in read_rankings(path)
        )

    assert told(exported) == told(tmp_path / f"{name}.jsonl")
    assert {strength for _, _, strength, _ in told(exported)} == {0, 2}
    assert {edited for *_, edited in told(exported)} == {"", "Nine minutes."}
    assert sum(any(unsorted for *_, unsorted in places) for places, *_ in told(exported)) == 2


def test_write_preferences_leaves_one_sorted_file_named_by_its_digest(tmp_path):
    name, _ = write([row("b"), row("a")], tmp_path, fractions=ALL_TRAIN)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.jsonl"]
    lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    assert lines == sorted(lines)
    assert len(lines) == 2


def test_write_preferences_counts_each_split(tmp_path):
    rows = [row("one"), row("one", annotator="bob", source="simulation"), row("two", ranking=[[0, 1]])]
    assert write(rows, tmp_path, fractions=ALL_TRAIN)[1] == {
        "train": {"judgments": 3, "pairs": 2, "simulated": 1, "prompts": 2},
        "validation": {"judgments": 0, "pairs": 0, "simulated": 0, "prompts": 0},
        "test": {"judgments": 0, "pairs": 0, "simulated": 0, "prompts": 0},
    }


def test_write_preferences_keeps_all_rows_of_a_prompt_in_one_split(tmp_path):
    rows = [row(f"Question {number}?", annotator=name) for number in range(50) for name in ("ann", "bob")]
    name, _ = write(rows, tmp_path)
    splits: dict[str, set[str]] = {}
    for line in (tmp_path / f"{name}.jsonl").read_text().splitlines():
        record = json.loads(line)
        splits.setdefault(record["prompt"][0]["content"], set()).add(record["split"])
    assert [len(found) for found in splits.values()] == [1] * 50
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_write_preferences_of_other_seed_splits_otherwise(tmp_path):
    rows = [row(f"Question {number}?") for number in range(50)]
    assert write(rows, tmp_path, seed=1)[0] != write(rows, tmp_path, seed=2)[0]


def test_write_preferences_carries_any_text(tmp_path):
    hostile = "line\u2028separator \ud800 lone surrogate \x00 nul"
    name, _ = write([row(hostile)], tmp_path)
    (line,) = (tmp_path / f"{name}.jsonl").read_bytes().splitlines()
    assert json.loads(line)["prompt"][0]["content"] == hostile


def splits_of(num_prompts: int, fractions) -> list[str]:
    digests = [messages_digest([{"role": "user", "content": str(number)}]) for number in range(num_prompts)]
    return [export.split_of(digest, seed=3, fractions=fractions) for digest in digests]


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.0, 0.0, 1.0), (0.65, 0.1, 0.1, 0.15), (0, 0, 0, 1)]
)
def test_split_of_keeps_the_fractions(fractions):
    splits = splits_of(4000, fractions)
    shares = [splits.count(split) / 4000 for split in export.SPLITS[: len(fractions)]]
    assert shares == pytest.approx(fractions, abs=0.025)  # three standard deviations


def test_split_of_takes_the_guard_off_the_training_prompts():
    before, after = splits_of(1000, (0.8, 0.1, 0.1)), splits_of(1000, (0.65, 0.1, 0.1, 0.15))
    assert set(zip(before, after, strict=True)) == {
        *(("train", "train"), ("train", "guard")),
        *(("validation", "validation"), ("test", "test")),
    }


def test_write_preferences_counts_the_guard_where_there_is_one(tmp_path):
    _, counts = write([row("one"), row("two")], tmp_path, fractions=(0, 0, 0, 1))
    assert counts["guard"] == {"judgments": 2, "pairs": 2, "simulated": 0, "prompts": 2}
    assert list(counts) == ["train", "validation", "test", "guard"]


@pytest.mark.parametrize(("ranking", "pairs"), [([[0], [1]], 1), ([[0, 1]], 0), ([[2], [0, 1], [3]], 5)])
def test_num_pairs_counts_strict_order(ranking, pairs):
    assert export.num_pairs(ranking) == pairs
