"""Judgments -> preferences.jsonl, the file behind a preference set.

The same judgments give the same bytes, whatever their database ids, the order in which they came or the time: a
record holds content only, responses stand in the order of their text, and lines are sorted. Prompts are assigned
to splits by a seeded hash, so all judgments of a prompt are in one split and stay there as more are collected.

The split `guard` is set aside: no reward that selects learns from its votes, so that others can be trained on them to
watch what a policy makes of that reward. It is taken off the training prompts: whether there is one or not, the same
prompts are held back to validate and to test with.
"""

import hashlib
import heapq
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from annotate.identity import canonical_json, digest, messages_digest

SPLITS = ("train", "validation", "test", "guard")  # in the order of their shares; the last may be missing
LINES_IN_MEMORY = 20_000
NOT_CONTENT = {"id", "seconds", "split"}

Counts = dict[str, dict[str, int]]


def write_preferences(
    rows: Iterable[dict[str, Any]], folder: Path, *, seed: int, fractions: Sequence[float]
) -> tuple[str, Counts]:
    """Freeze judgment rows into `folder/<digest>.jsonl`; return the digest and what each split holds.

    Lines are sorted through files, so memory does not grow with their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counter = _Counter(SPLITS[: len(fractions)])
    lines = (_line(counter.count(frozen_record(row, seed=seed, fractions=fractions))) for row in rows)
    with ExitStack() as files:
        chunks = [files.enter_context(chunk) for chunk in _sorted_chunks(lines, folder)]
        return _write(heapq.merge(*chunks), folder), counter.counts()


def frozen_record(row: dict[str, Any], *, seed: int, fractions: Sequence[float]) -> dict[str, Any]:
    """One judgment row as it stands in a preference set: content only, in canonical order, with its split and id."""
    order = _canonical_order(row)
    place = {old: new for new, old in enumerate(order)}
    record = {key: value for key, value in row.items() if key not in NOT_CONTENT}
    record["responses"] = [row["responses"][old] for old in order]
    record["ranking"] = [sorted(place[old] for old in group) for group in row["ranking"]]
    if row.get("shown_order") is not None:
        record["shown_order"] = [place[old] for old in row["shown_order"]]
    if row.get("meta"):
        record["meta"] = _placed(row["meta"], place)
        edited = record["meta"].get("edited_response")
        if isinstance(edited, int) and edited in place:
            record["edited"] = record["responses"][edited]["content"]
    record["split"] = split_of(messages_digest(row["prompt"]), seed=seed, fractions=fractions)
    return {"id": digest(record)[:16], **record}


def _placed(meta: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """What else was told with the judgment, responses by their places in the record.

    Of an imported judgment it may be anything; what only bears our names stays as it is.
    """
    placed = dict(meta)
    for name, move in PLACED.items():
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            placed[name] = move(meta[name], place)
    return placed


PLACED: dict[str, Callable[[Any, dict[int, int]], Any]] = {
    "bad": lambda bad, place: sorted(place[old] for old in bad),
    "ratings": lambda ratings, place: {str(place[int(old)]): rating for old, rating in ratings.items()},
    "highlights": lambda spans, place: [{**span, "response": place[span["response"]]} for span in spans],
    "edited_response": lambda edited, place: place[edited],
}


def split_of(prompt_digest: str, *, seed: int, fractions: Sequence[float]) -> str:
    """The split of a prompt: its seeded hash as a number from 0 to 1, and where that falls among the fractions.

    These are the shares of train, validation and test, and of guard where there is one, which lies next to train.
    """
    drawn = hashlib.sha256(f"{seed}:{prompt_digest}".encode()).digest()
    place = int.from_bytes(drawn[:8], "big") / 2**64
    train, validation, _, *guard = fractions
    if place < train:
        return "train"
    learned = train + sum(guard)
    if place < learned:
        return "guard"
    return "validation" if place < learned + validation else "test"


def num_pairs(ranking: Sequence[Sequence[int]]) -> int:
    """How many strictly ordered pairs a ranking holds."""
    sizes = [len(group) for group in ranking]
    return (sum(sizes) ** 2 - sum(size**2 for size in sizes)) // 2


def _canonical_order(row: dict[str, Any]) -> list[int]:
    """Places of the responses in the order of their text; equal ones in the order in which they were ranked."""
    rank = {place: position for position, group in enumerate(row["ranking"]) for place in group}
    shown = {place: position for position, place in enumerate(row.get("shown_order") or ())}

    def key(place: int) -> tuple[str, int, int]:
        return canonical_json(row["responses"][place]), rank.get(place, -1), shown.get(place, place)

    return sorted(range(len(row["responses"])), key=key)


class _Counter:
    """Counts records as they pass."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.numbers = {split: {"judgments": 0, "pairs": 0, "simulated": 0} for split in splits}
        self.prompts: dict[str, set[str]] = {split: set() for split in splits}

    def count(self, record: dict[str, Any]) -> dict[str, Any]:
        numbers = self.numbers[record["split"]]
        numbers["judgments"] += 1
        numbers["pairs"] += num_pairs(record["ranking"])
        numbers["simulated"] += record.get("source") == "simulation"
        self.prompts[record["split"]].add(messages_digest(record["prompt"]))
        return record

    def counts(self) -> Counts:
        return {split: {**numbers, "prompts": len(self.prompts[split])} for split, numbers in self.numbers.items()}


def _line(record: dict[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 cannot carry, comes out as the JSON escape that stands for it.
    return canonical_json(record).encode("utf-8", "backslashreplace") + b"\n"


def _sorted_chunks(lines: Iterator[bytes], folder: Path) -> Iterator[IO[bytes]]:
    while chunk := sorted(islice(lines, LINES_IN_MEMORY)):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- the caller closes it
        file.writelines(chunk)
        file.seek(0)
        yield file


def _write(lines: Iterable[bytes], folder: Path) -> str:
    scratch = folder / f".{secrets.token_hex(8)}.partial"
    hasher = hashlib.sha256()
    try:
        with scratch.open("xb") as file:
            for line in lines:
                hasher.update(line)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o444)
        scratch.replace(folder / f"{hasher.hexdigest()}.jsonl")
    finally:
        scratch.unlink(missing_ok=True)
    _sync_folder(folder)
    return hasher.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
