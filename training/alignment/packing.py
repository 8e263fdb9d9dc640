"""Rankings -> rows of tokens in which a prompt stands once for all its responses, and nothing is padding.

A row is one sequence of tokens for the model, and holds the sequences of whole rankings:

    prompt A | response A1 | response A2 | prompt B | response B1 | response B2 | response B3

Each token has the position that it has in its own sequence, so positions start again after the prompt for each
response, and attends to its own sequence only (see `attention`). What a causal model computes for the prompt does not
depend on what follows, so the rewards are those of the sequences alone, and so are their gradients: the prompt's is
the sum over its responses. Nothing is special about prompts: sequences share whatever tokens they begin with.

Bidirectional encoders read the prompt in the light of the response, so there nothing can be shared; their sequences
stand side by side, whole. A model that cannot be told which tokens belong together gets them padded to equal length, in
batches of similar length; and one that reads padding as well gets each alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.alignment.batching import batches, pad

Tokens = NDArray[np.int32]
MAX_FAMILY = 64
"""Sequences that share a beginning at the most: more would save next to nothing."""
CUDA_BLOCK = 128  # of FlexAttention


class Packing(StrEnum):
    """How sequences are put before a model."""

    SHARED = "shared"
    SEPARATE = "separate"
    PADDED = "padded"
    ALONE = "alone"

    @property
    def is_packed(self) -> bool:
        return self in {Packing.SHARED, Packing.SEPARATE}


@dataclass(frozen=True)
class Group:
    """Sequences that begin alike: their common beginning once, and how each goes on, by at least one token."""

    prefix: Tokens
    endings: tuple[Tokens, ...]
    places: tuple[int, ...]
    """The number of each ending's sequence in the bundle."""


@dataclass(frozen=True)
class Bundle:
    """N sequences that stay together, such as those of one ranking."""

    groups: tuple[Group, ...]

    @cached_property
    def num_sequences(self) -> int:
        return sum(len(group.endings) for group in self.groups)

    @cached_property
    def num_tokens(self) -> int:
        return sum(len(group.prefix) + sum(map(len, group.endings)) for group in self.groups)

    @cached_property
    def longest(self) -> int:
        return max(len(group.prefix) + max(map(len, group.endings)) for group in self.groups)

    def sequences(self) -> list[Tokens]:
        """The sequences as they were given."""
        found: list[Tokens] = [np.empty(0, dtype=np.int32)] * self.num_sequences
        for group in self.groups:
            for place, ending in zip(group.places, group.endings, strict=True):
                found[place] = np.concatenate([group.prefix, ending])
        return found


def bundle(sequences: Sequence[Sequence[int] | Tokens], packing: Packing) -> Bundle:
    """Put N sequences together, sharing what they begin with where the packing allows it.

    Raises:
        ValueError: a sequence is empty.
    """
    tokens = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
    if not all(map(len, tokens)):
        raise ValueError(f"sequence {[len(sequence) for sequence in tokens].index(0)} is empty")
    if packing != Packing.SHARED:
        return Bundle(tuple(_group(tokens, [place], 0) for place in range(len(tokens))))
    return Bundle(tuple(_group(tokens, places, shared) for places, shared in _families(tokens)))


def parts(texts: Sequence[Sequence[int] | Tokens], packing: Packing, max_tokens: int) -> list[tuple[Bundle, list[int]]]:
    """Sequences that need not stay together: bundles of at most `max_tokens` tokens, with the sequences' numbers."""
    found: list[tuple[Bundle, list[int]]] = []
    for group in bundle(texts, packing).groups:
        for some in _divide([len(ending) for ending in group.endings], max_tokens - len(group.prefix)):
            endings = tuple(group.endings[number] for number in some)
            part = Group(group.prefix, endings, tuple(range(len(some))))
            found.append((Bundle((part,)), [group.places[number] for number in some]))
    return found


def _divide(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Neighbours together, as many as fit, at least one."""
    found: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not found or room < size:
            found.append([])
            room = budget
        found[-1].append(number)
        room -= size
    return found


def _families(tokens: Sequence[Tokens]) -> list[tuple[list[int], int]]:
    """Which sequences share their beginning, and how much of it, so that the fewest tokens are left.

    In sorted order those that share most stand together. A family of m that begins with c tokens in common saves
    (m - 1) c of them; the best division into families follows from the best ones of what comes before.
    """
    order = sorted(range(len(tokens)), key=lambda place: tokens[place].tolist())
    shared = [_common(tokens[one], tokens[other]) for one, other in pairwise(order)]
    saved, starts = [0], [0]
    for stop in range(1, len(order) + 1):
        best, best_start, common = saved[stop - 1], stop - 1, 0
        for start in range(stop - 2, max(-1, stop - 1 - MAX_FAMILY), -1):
            common = min(common, shared[start]) if common else shared[start]
            if common == 0:
                break
            if saved[start] + (stop - 1 - start) * common >= best:
                best, best_start = saved[start] + (stop - 1 - start) * common, start
        saved.append(best)
        starts.append(best_start)
    found: list[tuple[list[int], int]] = []
    stop = len(order)
    while stop > 0:
        start = starts[stop]
        found.append((order[start:stop], min(shared[start : stop - 1], default=0)))
        stop = start
    return found[::-1]


def _group(tokens: Sequence[Tokens], places: Sequence[int], shared: int) -> Group:
    endings = tuple(tokens[place][shared:] for place in places)
    return Group(tokens[places[0]][:shared], endings, tuple(places))


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with, leaving each at least one of its own."""
    size = min(len(one), len(other)) - 1
    differs = np.flatnonzero(one[:size] != other[:size])
    return int(differs[0]) if len(differs) else size


@dataclass(frozen=True)
class Span:
    """Where a group stands in a row: its common beginning is [start, stops[0]), its endings lie between the stops."""

    start: int
    stops: tuple[int, ...]


class Layout:
    """Which tokens of a row belong together.

    Attributes:
        spans: of each group, in order; they cover the row.
        num_tokens: T.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self.num_tokens = self.spans[-1].stops[-1]
        self.masks: dict[Any, Any] = {}
        """What the attention has built for this row: layers share it."""

    def positions(self) -> NDArray[np.int64]:
        """(T,) the place of each token in its own sequence."""
        found = np.empty(self.num_tokens, dtype=np.int64)
        for span in self.spans:
            found[span.start : span.stops[0]] = np.arange(span.stops[0] - span.start)
            for start, stop in pairwise(span.stops):
                found[start:stop] = np.arange(stop - start) + span.stops[0] - span.start
        return found

    def owners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(T,) the group of each token; (T,) its ending, numbered through the row from 1, 0 in common beginnings."""
        groups, endings = np.zeros((2, self.num_tokens), dtype=np.int64)
        number = 0
        for group, span in enumerate(self.spans):
            groups[span.start : span.stops[-1]] = group
            for start, stop in pairwise(span.stops):
                number += 1
                endings[start:stop] = number
        return groups, endings


@dataclass(frozen=True)
class Row:
    """The input of one forward pass, for N sequences.

    Attributes:
        input_ids, position_ids: (1, T), or (N, T) where sequences are padded.
        layout: which tokens belong together; none where sequences are padded.
        attention_mask: (N, T), where sequences are padded.
        firsts, lasts: (N,) where each sequence's first and last token stand among the flattened tokens. A first token
            may be that of several sequences.
        num_tokens: how many of the tokens are real.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout | None
    attention_mask: Tensor | None
    firsts: Tensor
    lasts: Tensor
    num_tokens: int

    def only(self, places: Sequence[int]) -> "Row":
        """Some of the sequences, where they are padded."""
        assert self.attention_mask is not None
        sizes = self.attention_mask[list(places)].sum(1)
        width = int(sizes.max())
        firsts = torch.arange(len(places), device=sizes.device) * width
        return Row(
            input_ids=self.input_ids[list(places), :width],
            position_ids=self.position_ids[list(places), :width],
            layout=None,
            attention_mask=self.attention_mask[list(places), :width],
            firsts=firsts,
            lasts=firsts + sizes - 1,
            num_tokens=int(sizes.sum()),
        )


def plan(bundles: Sequence[Bundle], packing: Packing, max_tokens: int) -> list[list[int]]:
    """Which bundles go into one forward pass of at most `max_tokens` tokens, the largest first.

    Best-fit decreasing: each bundle goes where it leaves the least room. One larger than the budget has a row for
    itself. The largest come first, so that memory runs out at once or not at all.
    """
    if not packing.is_packed:
        return batches([one.longest for one in bundles], [one.num_sequences for one in bundles], max_tokens)
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(bundles)), key=lambda place: -bundles[place].num_tokens):
        size = bundles[place].num_tokens
        fitting = [row for row in range(len(rows)) if room[row] >= size]
        if fitting:
            row = min(fitting, key=lambda row: room[row])
            rows[row].append(place)
            room[row] -= size
        else:
            rows.append([place])
            room.append(max_tokens - size)
    return rows


def build_row(bundles: Iterable[Bundle], packing: Packing, device: torch.device) -> Row:
    """The row of some bundles; its sequences are numbered through, bundle by bundle."""
    if not packing.is_packed:
        return _padded([sequence for one in bundles for sequence in one.sequences()], device)
    pieces: list[Tokens] = []
    spans: list[Span] = []
    firsts: list[int] = []
    lasts: list[int] = []
    place = num_before = 0
    for one in bundles:
        firsts += [0] * one.num_sequences
        lasts += [0] * one.num_sequences
        for group in one.groups:
            pieces += [group.prefix, *group.endings]
            stops = np.cumsum([place + len(group.prefix), *map(len, group.endings)]).tolist()
            spans.append(Span(place, tuple(stops)))
            for number, stop in zip(group.places, stops[1:], strict=True):
                firsts[num_before + number], lasts[num_before + number] = place, stop - 1
            place = stops[-1]
        num_before += one.num_sequences
    num_tokens = place
    if device.type == "cuda" and (filling := max(-place % CUDA_BLOCK, 2 * CUDA_BLOCK - place)):  # one is a case apart
        pieces.append(np.zeros(filling, dtype=np.int32))
        spans.append(Span(place, (place, place + filling)))
    layout = Layout(spans)
    return Row(
        input_ids=torch.from_numpy(np.concatenate(pieces).astype(np.int64))[None].to(device),
        position_ids=torch.from_numpy(layout.positions())[None].to(device),
        layout=layout,
        attention_mask=None,
        firsts=torch.tensor(firsts, device=device),
        lasts=torch.tensor(lasts, device=device),
        num_tokens=num_tokens,
    )


def _padded(sequences: Sequence[Tokens], device: torch.device) -> Row:
    ids, mask = pad(sequences, device)
    firsts = torch.arange(len(sequences), device=device) * ids.shape[1]
    return Row(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1], device=device).expand_as(ids),
        layout=None,
        attention_mask=mask,
        firsts=firsts,
        lasts=firsts + mask.sum(1) - 1,
        num_tokens=sum(map(len, sequences)),
    )
