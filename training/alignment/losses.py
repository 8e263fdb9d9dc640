"""The loss of reward models: how unlikely a ranking is under the Plackett-Luce model, ties included.

The model draws responses without replacement, each time with probabilities in proportion to exp(reward), and ranks
them in the order drawn. For two responses that is the Bradley-Terry model, and the loss softplus(-margin). Only
differences of rewards within a ranking count.

Tied responses stand for all their orders: a group's probability is that its members are drawn before everything
below it, in whatever order. So a ranking that ties everything has probability 1, loss 0 and gradient 0: it says
nothing, and a tied pair teaches nothing. A last group costs nothing either, so "these two best, the rest unsorted"
is the ranking of two groups and one of the rest.

Rewards are computed in at least single precision: a log-sum-exp in bfloat16 loses most of a small margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

MAX_EXACT_TIES = 10


@dataclass(frozen=True)
class Judged:
    """What annotators said about the rewards of a batch; tensors on the CPU, to spare waiting for a GPU."""

    groups: Tensor
    """(B, K) int64, the number of each response's group as in `plackett_luce_loss`."""
    strength: Tensor | None = None
    """(B,) float: 1 slightly, 2 strongly, 0 where not told."""
    annotator: Tensor | None = None
    """(B,) int64: who judged; -1 unknown."""


class Likelihood(nn.Module):
    """What rewards are trained on: how unlikely the judgments of a batch are."""

    def __init__(
        self,
        *,
        loss: str = "plackett_luce",
        ties: str = "exact",
        margin: float = 0.0,
        label_smoothing: float = 0.0,
        flip_rate: float = 0.0,
        learn_flip_rate: bool = False,
        annotators: str = "equal",
        num_annotators: int = 0,
        centring: float = 0.0,
    ) -> None:
        super().__init__()

    def forward(self, rewards: Tensor, judged: Judged) -> Tensor:
        """(B,) the loss of each ranking in nats per choice: each has one voice, whatever its length."""
        return ranking_loss(rewards, judged.groups)

    def teaches(self, groups: Sequence[int]) -> bool:
        """Whether a ranking of these groups (K,) has any gradient."""
        return len(set(groups) - {-1}) > 1

    def learned(self) -> dict[str, Any]:
        """What was learned along with the rewards, by name, as plain numbers."""
        return {}


def ranking_loss(rewards: Tensor, groups: Tensor) -> Tensor:
    """(B,) the loss of each ranking in nats per choice: what reward models are trained on.

    Each ranking has one voice, whatever its length: a sum over choices would let one list of nine outweigh eight pairs,
    though its choices come from one look at one prompt. InstructGPT averages within a prompt for the same reason
    (L. Ouyang et al., "Training language models to follow instructions with human feedback", 2022, section 3.5).
    Arguments as in `plackett_luce_loss`.
    """
    loss = plackett_luce_loss(rewards, groups)
    return loss / num_choices(groups).clamp(min=1).to(loss)


def plackett_luce_loss(rewards: Tensor, groups: Tensor) -> Tensor:
    """(B,) the negative log-likelihood of each ranking, in nats: of K equal rewards in strict order, ln K!.

    Args:
        rewards: (B, K) float. Only differences within a row matter.
        groups: (B, K) int64, the number of each response's group, 0 for the best; equal numbers are tied; -1 where no
            response stands or where it was not ranked. On the CPU, to spare waiting for a GPU.

    Ties of up to ten are summed over all orders, by way of their subsets; larger ones take Efron's approximation.

    Raises:
        ValueError: shapes differ or are not (B, K).

    Source: R. L. Plackett, "The analysis of permutations", Applied Statistics 24(2), 1975; for large ties B. Efron,
    "The efficiency of Cox's likelihood function for censored data", JASA 72(359), 1977, times the number of orders.
    """
    if rewards.ndim != 2 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be (B, K)")
    if rewards.dtype not in {torch.float32, torch.float64}:
        rewards = rewards.float()
    is_ranked = (groups >= 0).to(rewards.device)
    rewards = rewards.where(is_ranked, 0)
    rewards = rewards - rewards.detach().masked_fill(~is_ranked, -math.inf).amax(1, keepdim=True).nan_to_num(neginf=0)
    loss = (rewards * 0).sum(1)  # a ranking without any choice stays part of the graph
    for rows, members, below in _draws(groups):
        lower = rewards[rows].masked_fill(~below.to(rewards.device), -math.inf).logsumexp(1)
        tied = rewards[rows[:, None], members]
        loss = loss.index_add(0, rows.to(rewards.device), -_log_drawn_first(tied, lower))
    return loss


def num_choices(groups: Tensor) -> Tensor:
    """(B,) how many responses were put above at least one other: K - 1 for a strict order, 0 where all tie."""
    last = groups.amax(1, keepdim=True)
    return ((groups >= 0) & (groups < last)).sum(1)


def _draws(groups: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Groups with something below them, N of each size t: (N,) rows, (N, t) members, (N, K) what is below them."""
    by_size: dict[int, list[tuple[int, list[int], list[bool]]]] = {}
    for row, numbers in enumerate(groups.tolist()):
        for group in sorted(set(numbers) - {-1, max(numbers)}):
            members = [place for place, number in enumerate(numbers) if number == group]
            below = [number > group for number in numbers]
            by_size.setdefault(len(members), []).append((row, members, below))
    return [
        (torch.tensor(rows), torch.tensor(members), torch.tensor(below))
        for rows, members, below in (zip(*draws, strict=True) for draws in by_size.values())
    ]


def _log_drawn_first(tied: Tensor, below: Tensor) -> Tensor:
    """(N,) log-probability that the (N, t) tied are drawn, in any order, before what weighs exp(`below`), (N,)."""
    size = tied.shape[1]
    if size == 1:
        return -softplus(below - tied[:, 0])
    if size > MAX_EXACT_TIES:
        shares = torch.arange(size).to(tied) / size
        weights = torch.logaddexp(tied.logsumexp(1, keepdim=True) + torch.log1p(-shares), below[:, None])
        return tied.sum(1) - weights.sum(1) + math.lgamma(size + 1)
    log_drawn = tied.new_zeros(len(tied), 1)
    for members, without in _subsets(size):
        weights = tied[:, members]
        left = torch.logaddexp(weights.logsumexp(2), below[:, None])
        log_drawn = (weights + log_drawn[:, without]).logsumexp(2) - left
    return log_drawn[:, 0]


@cache
def _subsets(size: int) -> list[tuple[Tensor, Tensor]]:
    """Subsets of `size` things, by number of members m: their members, and the places of the subsets without each."""
    layers = []
    for m in range(1, size + 1):
        place = {subset: number for number, subset in enumerate(combinations(range(size), m - 1))}
        subsets = list(combinations(range(size), m))
        without = [[place[subset[:one] + subset[one + 1 :]] for one in range(m)] for subset in subsets]
        layers.append((torch.tensor(subsets), torch.tensor(without)))
    return layers
