"""Judgments as the training loop sees them: prompts with their responses, packed, and what was said about them.

All judgments of the same responses to the same prompt, by whatever annotators and of whatever aspects, make one item:
its texts go through the model once. Several people who differ about two responses so teach a soft label.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.alignment.losses import Judged, Likelihood
from training.alignment.packing import Bundle, Packing, Tokens, bundle
from training.alignment.preferences import RankedResponses, Scorable, encode_to_score, prompt_key

NUM_TO_START_WITH = 2000


@dataclass(frozen=True)
class Judgment:
    """One annotator's ranking of an item's texts, by their places in its bundle."""

    places: tuple[int, ...]
    groups: tuple[int, ...]
    is_unsorted: tuple[bool, ...]
    head: int
    strength: float
    annotator: int
    weight: float


@dataclass(frozen=True)
class Item:
    """A prompt with its distinct responses, and the judgments of them."""

    bundle: Bundle
    judgments: tuple[Judgment, ...]
    lengths: tuple[float, ...]
    """Of each text, in doublings."""

    @cached_property
    def weight(self) -> float:
        return sum(judgment.weight for judgment in self.judgments)


@dataclass(frozen=True)
class Items:
    """All there is to train on."""

    items: list[Item]
    annotators: list[str]
    num_rankings: int
    num_silent: int
    """Rankings that teach nothing: those that tie everything, unless ties tell something, or weigh nothing."""
    num_too_long: int
    """Rankings left out because a response by itself is longer than the model may read."""
    num_truncated: int
    """Responses whose prompt has lost its beginning."""

    def has_order(self, head: int) -> bool:
        """Whether a judgment of that head's aspect puts one response above another; else its rewards stay random."""
        judgments = (judgment for item in self.items for judgment in item.judgments if judgment.head == head)
        return any(max(judgment.groups) > 0 for judgment in judgments)


def annotators_of(rankings: Sequence[RankedResponses]) -> list[str]:
    return sorted({ranked.annotator for ranked in rankings if ranked.annotator is not None})


def log_length(response: str) -> float:
    """How many times a single character must be doubled to get the response's length.

    Characters are what annotators see, the same for every tokenizer, and what reports measure bias by. Ratios count,
    not differences: a hundred characters more are much to an answer of one line and nothing to one of a page.
    """
    return math.log2(max(1, len(response)))


def length_spread(rankings: Sequence[RankedResponses]) -> float:
    """The usual deviation of the lengths of responses to one prompt, in doublings: the root of their mean variance."""
    lengths = [
        [log_length(ranked.responses[place]) for group in ranked.ranking for place in group] for ranked in rankings
    ]
    variances = [float(np.var(own)) if len(set(own)) > 1 else 0.0 for own in lengths]
    return math.sqrt(math.fsum(variances) / max(1, len(variances)))


def build_items(
    rankings: Sequence[RankedResponses],
    *,
    aspects: Sequence[str],
    likelihood: Likelihood,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    packing: Packing,
    is_weighted: bool,
) -> Items:
    """Encode rankings and put those of the same responses together, in the order in which each first comes.

    Args:
        aspects: of the heads, in order; rankings are of these.
        is_weighted: judgments count by their own weight, not all alike.
    """
    annotators = {name: number for number, name in enumerate(annotators_of(rankings))}
    taught = [
        ranked
        for ranked in rankings
        if (ranked.weight > 0 or not is_weighted) and likelihood.teaches(ranked.groups, ranked.is_unsorted)
    ]
    together: dict[str, list[RankedResponses]] = {}
    for ranked in taught:
        together.setdefault(_key(ranked), []).append(ranked)
    items: list[Item] = []
    num_too_long = num_truncated = 0
    for same in together.values():
        texts = list(dict.fromkeys(same[0].responses))
        encoded = [encode_to_score(tokenizer, same[0].prompt, text, max_length) for text in texts]
        if any(one.is_cut for one in encoded):
            num_too_long += len(same)
            continue
        num_truncated += sum(one.is_truncated for one in encoded)
        judgments = [
            Judgment(
                places=tuple(texts.index(text) for text in ranked.responses),
                groups=ranked.groups,
                is_unsorted=ranked.is_unsorted,
                head=aspects.index(ranked.aspect),
                strength=float(ranked.strength or 0),
                annotator=-1 if ranked.annotator is None else annotators[ranked.annotator],
                weight=ranked.weight if is_weighted else 1.0,
            )
            for ranked in same
        ]
        lengths = tuple(map(log_length, texts))
        items.append(Item(bundle(_tokens(encoded), packing), tuple(judgments), lengths))
    return Items(
        items=items,
        annotators=list(annotators),
        num_rankings=len(taught) - num_too_long,
        num_silent=len(rankings) - len(taught),
        num_too_long=num_too_long,
        num_truncated=num_truncated,
    )


def _key(ranked: RankedResponses) -> str:
    return json.dumps([prompt_key(ranked.prompt), sorted(set(ranked.responses))])


def _tokens(encoded: Sequence[Scorable]) -> list[Tokens]:
    return [np.array(one.ids, dtype=np.int32) for one in encoded]


def judge(likelihood: Likelihood, rewards: Tensor, items: Sequence[Item]) -> Tensor:
    """Scalar, the weighted sum over all judgments of the items of their losses.

    Args:
        rewards: (N, H) of the items' texts, item by item.
    """
    judgments: list[Judgment] = []
    firsts: list[int] = []
    first = 0
    for item in items:
        judgments += item.judgments
        firsts += [first] * len(item.judgments)
        first += item.bundle.num_sequences
    width = max(len(judgment.places) for judgment in judgments)
    texts = torch.zeros(len(judgments), width, dtype=torch.int64)
    groups = torch.full((len(judgments), width), -1)
    is_unsorted = torch.zeros(len(judgments), width, dtype=torch.bool)
    for row, (judgment, start) in enumerate(zip(judgments, firsts, strict=True)):
        size = len(judgment.places)
        texts[row, :size] = torch.tensor(judgment.places) + start
        groups[row, :size] = torch.tensor(judgment.groups)
        is_unsorted[row, :size] = torch.tensor(judgment.is_unsorted)
    heads = torch.tensor([judgment.head for judgment in judgments])
    judged = Judged(
        groups=groups,
        strength=torch.tensor([judgment.strength for judgment in judgments]),
        annotator=torch.tensor([judgment.annotator for judgment in judgments]),
        lengths=torch.tensor([length for item in items for length in item.lengths])[texts],
        aspect=heads,
        is_unsorted=is_unsorted,
    )
    weights = torch.tensor([judgment.weight for judgment in judgments], device=rewards.device)
    losses = likelihood(rewards[texts.to(rewards.device), heads[:, None].to(rewards.device)], judged)
    return (losses * weights).sum()


def start_with_length(likelihood: Likelihood, items: Sequence[Item]) -> None:
    """Put the weights of length where they explain the judgments best by themselves, all rewards being equal.

    So training begins with nothing left for rewards to learn from length, and a model that is the best after few steps
    has its weights too. Up to two thousand items tell enough; a normal prior, of deviation 1 in units of the spread,
    keeps the weights finite where the longer response always wins.
    """
    if likelihood.length_weights is None:
        return
    some, weights = items[:: math.ceil(len(items) / NUM_TO_START_WITH)], likelihood.length_weights
    rewards = weights.new_zeros(sum(item.bundle.num_sequences for item in some), len(weights))
    optimizer = torch.optim.LBFGS([weights], line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        likelihood.zero_grad()
        total = (judge(likelihood, rewards, some) + weights.square().sum() / 2) / len(some)
        total.backward()
        return total

    optimizer.step(loss)
    likelihood.zero_grad()
