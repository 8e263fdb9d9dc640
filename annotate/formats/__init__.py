"""File formats: one module for each, streams of plain records, no Django."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from annotate.formats import jsonl, rankings, trl, trl_pairwise
from annotate.formats.rows import Record, Row

FORMATS: dict[str, Callable[[Iterable[dict[str, Any]]], Iterator[str]]] = {
    "rankings": rankings.write,
    "trl-pairwise": trl_pairwise.write,
}


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a file, each in whichever format it has.

    Raises:
        BadRow: a row cannot be imported; the message names its line and field.
        BadFile: the file cannot be read.
    """
    for line, values in jsonl.read_objects(path):
        yield read_row(line, values)


def read_row(line: int, values: dict[str, Any]) -> Row:
    """
    Raises:
        BadRow: it is in no known format, or a field is wrong.
    """
    record = Record(line, values)
    if "responses" in values:
        return rankings.read(record)
    if "chosen" in values or "rejected" in values:
        return trl.read(record)
    record.refuse("responses", "is missing (and so are chosen and rejected)")
