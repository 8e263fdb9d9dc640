"""What two answers have in common, and where they part: word by word, line by line if they are long. Pure text.

difflib's time grows with the pairs of equal tokens and with how often it must start anew, so both are bounded; the
measure is how much work a text could make, not a clock, so that the same two answers always give the same difference.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Literal, NamedTuple

MAX_TOKENS = 6_000  # of both texts
MAX_PAIRS = 100_000  # of equal tokens, one of each text
MAX_LINES = 4_000  # of both texts
MIN_SAME = 4  # characters: a lone "the" between two changes is no common ground

# Words take the space behind them along. Chinese and Japanese have no spaces: each character is a word there
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SIGNS = (
    "!-&(-/:-@\\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u0964\u2010-\u2018\u201a-\u206f\u3000-\u303f"
    "\uff01-\uff0f\uff1a-\uff20"
)
TOKEN = re.compile(rf"(?:^\s+)?(?:[{IDEOGRAPHS}]|[{SIGNS}]|[^\s{IDEOGRAPHS}{SIGNS}]+)\s*|^\s+$")
LINE = re.compile(r"[^\n]*\n|[^\n]+")

Kind = Literal["same", "only"]


class Segment(NamedTuple):
    kind: Kind
    text: str


@dataclass(frozen=True)
class Difference:
    """Two texts in segments; the texts of a side's segments together are that side.

    `unit` is what was compared, None if the texts are too long for either. `common` is the share, from 0 to 1, of the
    characters of both texts that stand in segments of the same.
    """

    left: list[Segment]
    right: list[Segment]
    unit: Literal["words", "lines"] | None
    common: float


def difference(left: str, right: str) -> Difference:
    """How two texts differ, by the finest unit that is affordable."""
    words = TOKEN.findall(left), TOKEN.findall(right)
    if _is_affordable(*words, MAX_TOKENS):
        return _compare(*words, "words")
    lines = LINE.findall(left), LINE.findall(right)
    if _is_affordable(*lines, MAX_LINES):
        return _compare(*lines, "lines")
    return Difference([Segment("only", left)], [Segment("only", right)], None, 0.0)


def _is_affordable(left: Sequence[str], right: Sequence[str], most: int) -> bool:
    if len(left) + len(right) > most:
        return False
    counts, others = Counter(map(_key, left)), Counter(map(_key, right))
    return sum(count * others[token] for token, count in counts.items()) <= MAX_PAIRS


def _compare(left: list[str], right: list[str], unit: Literal["words", "lines"]) -> Difference:
    matcher = SequenceMatcher(None, [_key(token) for token in left], [_key(token) for token in right], autojunk=False)
    ends = ((0, 0), (len(left), len(right)))
    blocks = [
        block
        for block in matcher.get_matching_blocks()
        if (block.a, block.b) == ends[0]
        or (block.a + block.size, block.b + block.size) == ends[1]
        or sum(len(_key(token)) for token in left[block.a : block.a + block.size]) >= MIN_SAME
    ]
    sides = (
        _segments(left, [(block.a, block.size) for block in blocks]),
        _segments(right, [(block.b, block.size) for block in blocks]),
    )
    same = sum(len(text) for side in sides for kind, text in side if kind == "same")
    total = sum(map(len, left)) + sum(map(len, right))
    return Difference(*sides, unit, same / total if total else 1.0)


def _segments(tokens: list[str], blocks: list[tuple[int, int]]) -> list[Segment]:
    """The side's text, cut where a block of the same begins or ends; neighbours of one kind are one."""
    segments: list[Segment] = []
    position = 0
    for start, size in blocks:
        segments.append(Segment("only", "".join(tokens[position:start])))
        segments.append(Segment("same", "".join(tokens[start : start + size])))
        position = start + size
    segments.append(Segment("only", "".join(tokens[position:])))
    filled = [segment for segment in segments if segment.text]
    return [
        Segment(kind, "".join(segment.text for segment in group))
        for kind, group in groupby(filled, key=lambda segment: segment.kind)
    ]


def _key(token: str) -> str:
    """What is compared: other spaces and other line breaks are no difference."""
    return token.strip()
