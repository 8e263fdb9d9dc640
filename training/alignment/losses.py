"""The loss of reward models: how unlikely a judgment is, given the rewards of what was judged.

**Rankings.** The Plackett-Luce model draws responses without replacement, each time with probabilities in proportion to
exp(reward), and ranks them in the order drawn. For two responses that is the Bradley-Terry model, and the loss
softplus(-margin). Only differences of rewards within a ranking count.

**Ties.** Tied responses stand for all their orders: a group's probability is that its members are drawn before
everything below it, in whatever order. So a ranking that ties everything has probability 1, loss 0 and gradient 0: it
says nothing, and a tied pair teaches nothing. A last group costs nothing either, so "these two best, the rest unsorted"
and "these are good, those in the bad tray" are rankings whose last group holds the rest. The models of Davidson and of
Rao and Kupper take a tie for what it may be as well: evidence that the tied are about equal. So they must be told which
last groups nobody sorted (`Judged.is_unsorted`): in these too no two are tied, and to draw them last costs nothing.

**Not ranked** (-1) is not last: such a response takes no part, as if it had not been shown.

**Noise.** A judgment may be the wrong way round with a probability, the flip rate. For lists that is a judgment made
blindly with twice the probability, all orders alike: for two responses both are the same, as half of the blind
judgments are right.

**Length.** People may put a response ahead for being long. Where length is controlled, judgments are taken to follow
the reward and, by a weight that is learned, the length, and what a response is worth is the reward alone. That alone
does not tell one from the other, as a reward can hold length as well; so it pays for each nat that varies with length
within prompts, over all prompts taken together. A single prompt's better response may be the longer one as it likes.

Rewards are computed in at least single precision: a log-sum-exp in bfloat16 loses most of a small margin.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

MAX_EXACT_TIES = 10
MAX_TIE_ODDS = 10  # larger groups share the odds of ten
TIE_RATE = 0.2  # of two equal responses, before anything is learned
TIE_DECAY = 4.0  # by which each further member lowers a group's odds, before anything is learned
FLIP_RATE = 0.05  # before anything is learned, where none is told
FLIP_RATES = (0.001, 0.499)  # what is learned stays between: at neither end is there a gradient to come back by
TEMPERATURE_SPREAD = 0.5  # of log-temperatures in the prior: two annotators in three within a factor of 1.65
FLIP_SPREAD = 1.5  # of flip rates' log-odds in the prior: 19 annotators in 20 between 0.3 and 33 % around 5 %
ASSUMED_JUDGMENTS = 50  # of each annotator, where nobody tells
LENGTH_PENALTY = 0.3  # from 1 on, rewards swing with its price in short runs; below, more length stays in them longer
TIE_MODELS = ("davidson", "rao_kupper")
LN_2 = math.log(2)
NEVER = -1e30  # as a logarithm: that of zero has no gradient


@dataclass(frozen=True)
class Judged:
    """What annotators said about the rewards of a batch; tensors on the CPU, to spare waiting for a GPU."""

    groups: Tensor
    """(B, K) int64, the number of each response's group as in `plackett_luce_loss`."""
    strength: Tensor | None = None
    """(B,) float: 1 slightly, 2 strongly, 0 where not told."""
    annotator: Tensor | None = None
    """(B,) int64: who judged; -1 unknown."""
    lengths: Tensor | None = None
    """(B, K) float: each response's length in doublings, the logarithm to base 2."""
    aspect: Tensor | None = None
    """(B,) int64: the number of the aspect that was judged; the first, where not told."""
    is_unsorted: Tensor | None = None
    """(B, K) bool: whether each response is in a last group that nobody sorted, which is no tie; none, where not told.
    """


class Likelihood(nn.Module):
    """What rewards are trained on: how unlikely the judgments of a batch are, by the options of `RewardModelConfig`.

    Its parameters are learned with the rewards: how often ties occur, how often judgments are the wrong way round, what
    length counts for, and how sharply or how reliably each annotator judges. All are to lower the loss, except
    `opponents`. Adam should remember their gradients for long (a second beta of 0.999): an annotator's come rarely, and
    where it forgets their size between, it goes by their sign alone and finds what most judgments say, "no flip",
    instead of how often they say so.

    Args:
        loss: plackett_luce, the likelihood of the whole ranking; all_pairs, the mean over its pairs.
        ties: exact or efron, any order of the tied; davidson or rao_kupper, that they are about equal. The model of Rao
            and Kupper is one of pairs: lists then count by the mean over their pairs, whichever `loss`.
        margin: nats by which a strongly preferred response should lead. Of a pair with strength s told, the margin is
            taken as smaller by margin * (s - 1), so "slightly" asks for nothing; for lists it is ignored, as nobody
            tells strengths within them. The optimum moves away from log-odds: see `bradley_terry_loss`.
        label_smoothing: weight of the opposite ranking's loss; of a pair, differences end at ln((1 - e) / e). Of lists
            under davidson it takes rankings without an unsorted group only: see `can_smooth`.
        flip_rate: share of the judgments that are the wrong way round.
        learn_flip_rate: it is learned, from `flip_rate` onwards.
        annotators: equal; temperatures, rewards are divided by a temperature of each annotator's own; flip_rates, each
            annotator has one, as in Crowd-BT, but below one half, which says which way is up. An unknown annotator
            judges at temperature 1, or with the common flip rate. (weights are the caller's, and equal here.)
        num_annotators: A.
        num_judgments: (A,) that each annotator made, over which the prior of the annotator's own number is spread, so
            that an epoch holds it once, and those who judged little stay near the usual. Priors are normal: of
            log-temperatures about 0, of log-odds of flip rates about those of `flip_rate`, or of 5 % where that is 0.
        centring: weight of the squared sum of a pair's rewards, (2 * mean)^2 of a list's: J. Eisenstein et al.,
            "Helping or herding?", 2023. It fixes rewards' origin, but shrinks differences between prompts' means.
        aspects: whose rewards these are; each has a weight of length of its own.
        length_spread: the usual deviation of lengths within a prompt, in doublings; length is controlled if above 0.
        length_penalty: weight of the squared covariance, within prompts, of rewards and lengths in units of that
            spread: of the part of the rewards' variance, in squared nats, that length accounts for. See `opponents`.

    Raises:
        ValueError: no such option, a rate that is not in [0, 0.5), or a negative number.

    Source of Crowd-BT: X. Chen, P. N. Bennett, K. Collins-Thompson and E. Horvitz, "Pairwise ranking aggregation in a
    crowdsourced setting", WSDM 2013; of a length term that is left out at use: Y. Dubois et al., "Length-controlled
    AlpacaEval", 2024; of rewards kept uncorrelated with length: L. Chen et al., "ODIN", 2024.
    """

    prior_share: Tensor

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
        num_judgments: Sequence[int] | None = None,
        centring: float = 0.0,
        aspects: Sequence[str] = ("overall",),
        length_spread: float = 0.0,
        length_penalty: float = LENGTH_PENALTY,
    ) -> None:
        super().__init__()
        _check_choice("loss", loss, ("plackett_luce", "all_pairs"))
        _check_choice("ties", ties, ("exact", "efron", "davidson", "rao_kupper"))
        _check_choice("annotators", annotators, ("equal", "weights", "temperatures", "flip_rates"))
        _check_rate("label_smoothing", label_smoothing)
        _check_rate("flip_rate", flip_rate)
        if min(margin, centring, num_annotators) < 0:
            raise ValueError("margin, centring and num_annotators must not be negative")
        if min(length_spread, length_penalty) < 0:
            raise ValueError("length_spread and length_penalty must not be negative")
        counts = [ASSUMED_JUDGMENTS] * num_annotators if num_judgments is None else list(num_judgments)
        if len(counts) != num_annotators or any(count < 1 for count in counts):
            raise ValueError(f"num_judgments must be {num_annotators} positive numbers, one for each annotator")
        self.loss, self.ties, self.margin, self.centring = loss, ties, margin, centring
        self.label_smoothing, self.flip_rate, self.annotators = label_smoothing, flip_rate, annotators
        self.aspects, self.length_spread, self.length_penalty = list(aspects), length_spread, length_penalty
        self.usual_flips = _to_log_odds(flip_rate or FLIP_RATE)
        self.register_buffer("prior_share", 1 / torch.tensor(counts, dtype=torch.float32), persistent=False)
        self.log_tie_odds = self.log_log_theta = self.flips = None
        self.log_temperatures = self.annotator_flips = None
        self.length_weights = self.length_prices = None
        if ties == "davidson":
            self.log_tie_odds = nn.Parameter(_usual_odds_of_ties())
        elif ties == "rao_kupper":
            self.log_log_theta = nn.Parameter(torch.tensor(math.log(math.log((1 + TIE_RATE) / (1 - TIE_RATE)))))
        if learn_flip_rate:
            self.flips = nn.Parameter(torch.tensor(self.usual_flips))
        if annotators == "temperatures" and num_annotators:
            self.log_temperatures = nn.Parameter(torch.zeros(num_annotators))
        elif annotators == "flip_rates" and num_annotators:
            self.annotator_flips = nn.Parameter(torch.full((num_annotators,), self.usual_flips))
        if length_spread:
            self.length_weights = nn.Parameter(torch.zeros(len(self.aspects)))
        if length_spread and length_penalty:
            self.length_prices = nn.Parameter(torch.zeros(len(self.aspects)))

    def forward(self, rewards: Tensor, judged: Judged) -> Tensor:
        """(B,) the loss of each ranking in nats per choice: each has one voice, whatever its length.

        The prior of an annotator's number, and the penalties, are in the losses of the rankings they belong to.

        Args:
            rewards: (B, K) float, on whatever device.

        Raises:
            ValueError: shapes differ, an annotator has no number below A, an aspect none of its own, or a ranking
                cannot be smoothed.
        """
        self._check(rewards, judged)
        rewards, is_ranked = _prepared(rewards, judged.groups)
        lengths = self._lengths(judged, is_ranked).to(rewards)
        seen = rewards + _of_aspect(self.length_weights, judged.aspect, rewards)[:, None] * lengths
        told = self._tempered(seen, judged.annotator) - self._lead(judged).to(rewards)
        flip_rate = self._flip_rate(rewards, judged.annotator)
        loss = self._loss(told, judged.groups, judged.is_unsorted, flip_rate)
        if self.label_smoothing:
            opposite = self._loss(told, _reversed(judged.groups), judged.is_unsorted, flip_rate)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * opposite
        if self.centring:
            loss = loss + self.centring * (2 * rewards.sum(1) / is_ranked.sum(1).clamp(min=1)) ** 2
        if judged.annotator is not None:
            loss = loss + self._prior(rewards, judged.annotator)
        if self.length_prices is not None:
            price = _of_aspect(self.length_prices, judged.aspect, rewards)
            covariance = (rewards * lengths).sum(1) / is_ranked.sum(1).clamp(min=1)
            loss = loss + price * covariance - price**2 / (4 * self.length_penalty)
        return loss + sum((0 * parameter.sum() for parameter in self.parameters()), start=loss.new_zeros(()))

    def teaches(self, groups: Sequence[int], is_unsorted: Sequence[bool] = ()) -> bool:
        """Whether a ranking of these groups (K,) has any gradient: where all are tied, under a tie model only."""
        ranked = [group for group in groups if group >= 0]
        return len(set(ranked)) > 1 or (len(ranked) > 1 and self.ties in TIE_MODELS and not any(is_unsorted))

    def can_smooth(self, is_unsorted: Sequence[bool]) -> bool:
        """Whether labels can be smoothed of a ranking whose last group is this (K,), or nobody wants to.

        The opposite ranking draws that group first, without telling in which order, singly or tied: under the list
        model of Davidson a sum over all partitions of it.
        """
        is_listed = self.ties == "davidson" and self.loss == "plackett_luce"
        return not (self.label_smoothing and is_listed) or sum(is_unsorted) < 2

    @property
    def opponents(self) -> list[nn.Parameter]:
        """Parameters that are to raise the loss, while the others and the rewards lower it.

        The penalty on length is a square of a mean over all rankings, and a batch's own mean would have the noise of
        the batch squared into it: with 16 pairs that shrinks rewards wherever lengths differ. So it is put as the most
        that a price p can make of what it asks: penalty * c^2 = max over p of (p c - p^2 / (4 penalty)). That is linear
        in the covariance c, so it sums over rankings, rows and processes, and the price is as good as a running mean.
        """
        return [] if self.length_prices is None else [self.length_prices]

    @property
    def nats_per_doubling(self) -> dict[str, float]:
        """By how much a response twice as long leads in each aspect's judgments, rewards being equal; or nothing."""
        if self.length_weights is None:
            return {}
        weights = (self.length_weights.detach() / self.length_spread).tolist()
        return dict(zip(self.aspects, weights, strict=True))

    def learned(self) -> dict[str, Any]:
        """What was learned along with the rewards, by name, as plain numbers; what annotators have is a list (A,).

        "davidson_odds" are the odds of a tied group against one response, where all are equal, by the group's size;
        "nats_per_doubling_of_length" is by aspect.
        """
        told: dict[str, Any] = {}
        if self.log_tie_odds is not None:
            odds = self.log_tie_odds.detach().exp().tolist()
            told["davidson_odds"] = {str(size): value for size, value in enumerate(odds, start=2)}
        if self.log_log_theta is not None:
            told["rao_kupper_theta"] = self.log_log_theta.detach().exp().exp().item()
        if self.flips is not None:
            told["flip_rate"] = _to_rate(self.flips.detach()).item()
        if self.log_temperatures is not None:
            told["temperatures"] = self.log_temperatures.detach().exp().tolist()
        if self.annotator_flips is not None:
            told["flip_rates"] = _to_rate(self.annotator_flips.detach()).tolist()
        if self.nats_per_doubling:
            told["nats_per_doubling_of_length"] = self.nats_per_doubling
        return told

    def _check(self, rewards: Tensor, judged: Judged) -> None:
        for name, given in (
            ("strength", judged.strength),
            ("annotator", judged.annotator),
            ("aspect", judged.aspect),
        ):
            if given is not None and given.shape != rewards.shape[:1]:
                raise ValueError(f"{name} {tuple(given.shape)} must be (B,) for rewards {tuple(rewards.shape)}")
        for name, given in (("lengths", judged.lengths), ("is_unsorted", judged.is_unsorted)):
            if given is not None and given.shape != rewards.shape:
                raise ValueError(f"{name} {tuple(given.shape)} must be as rewards {tuple(rewards.shape)}")
        if judged.is_unsorted is not None and not all(map(self.can_smooth, judged.is_unsorted.tolist())):
            raise ValueError("label_smoothing takes no unsorted groups under davidson")
        num_annotators = len(self.prior_share)
        is_used = self.log_temperatures is not None or self.annotator_flips is not None
        if is_used and judged.annotator is not None and int(judged.annotator.max()) >= num_annotators:
            raise ValueError(f"annotator {int(judged.annotator.max())} is not one of {num_annotators}")
        is_used = self.length_weights is not None
        if is_used and judged.aspect is not None and int(judged.aspect.max()) >= len(self.aspects):
            raise ValueError(f"aspect {int(judged.aspect.max())} is not one of {len(self.aspects)}")

    def _loss(self, rewards: Tensor, groups: Tensor, is_unsorted: Tensor | None, flip_rate: Tensor | None) -> Tensor:
        """(B,) in nats per choice."""
        if self.loss == "all_pairs" or self.ties == "rao_kupper":
            return all_pairs_loss(
                rewards, groups, flip_rate=flip_rate, outcomes=self._pair_outcomes, is_unsorted=is_unsorted
            )
        loss = self._list_loss(rewards, groups, is_unsorted)
        if flip_rate is not None:
            loss = _partly_blind(loss, self._list_loss(torch.zeros_like(rewards), groups, is_unsorted), flip_rate)
        return loss / self._num_choices(groups, is_unsorted).clamp(min=1).to(loss)

    def _list_loss(self, rewards: Tensor, groups: Tensor, is_unsorted: Tensor | None) -> Tensor:
        if self.log_tie_odds is not None:
            return davidson_loss(rewards, groups, self.log_tie_odds, is_unsorted)
        return plackett_luce_loss(rewards, groups, ties=self.ties)

    def _num_choices(self, groups: Tensor, is_unsorted: Tensor | None) -> Tensor:
        """(B,) how many responses were drawn; under a tie model also those of a sorted last group, but for one."""
        if self.ties not in TIE_MODELS:
            return num_choices(groups)
        num_free = 1 if is_unsorted is None else (is_unsorted & (groups >= 0)).sum(1).clamp(min=1)
        return (groups >= 0).sum(1) - num_free

    @property
    def _pair_outcomes(self) -> Callable[[Tensor], Tensor] | None:
        if self.log_log_theta is not None:
            return partial(rao_kupper, log_theta=self.log_log_theta.exp())
        if self.log_tie_odds is not None:
            return partial(davidson, log_odds=self.log_tie_odds[0])
        return None

    def _tempered(self, rewards: Tensor, annotator: Tensor | None) -> Tensor:
        if self.log_temperatures is None or annotator is None:
            return rewards
        return rewards * (-_own(self.log_temperatures, annotator, rewards.new_zeros(()))).exp()[:, None]

    def _lengths(self, judged: Judged, is_ranked: Tensor) -> Tensor:
        """(B, K) lengths in units of their spread, about the mean of their ranking; 0 where not ranked or not told."""
        if judged.lengths is None or not self.length_spread:
            return torch.zeros(is_ranked.shape, device=is_ranked.device)
        lengths = judged.lengths.to(is_ranked.device).where(is_ranked, 0)
        mean = lengths.sum(1, keepdim=True) / is_ranked.sum(1, keepdim=True).clamp(min=1)
        return ((lengths - mean) / self.length_spread).where(is_ranked, 0)

    def _lead(self, judged: Judged) -> Tensor:
        """(B, K) what is taken off the better of a pair, as the margin by which it should lead."""
        groups = judged.groups
        if not self.margin or judged.strength is None:
            return torch.zeros(())
        is_pair = ((groups >= 0).sum(1) == 2) & (num_choices(groups) == 1)
        lead = self.margin * (judged.strength.double() - 1).clamp(min=0) * is_pair
        return lead[:, None] * (groups == 0)

    def _flip_rate(self, rewards: Tensor, annotator: Tensor | None) -> Tensor | None:
        """(B,) of whoever judged; nothing where nobody is taken to err."""
        if self.flips is None and self.annotator_flips is None and not self.flip_rate:
            return None
        common = rewards.new_tensor(self.flip_rate) if self.flips is None else _to_rate(self.flips)
        if self.annotator_flips is None or annotator is None:
            return common.expand(len(rewards))
        return _own(_to_rate(self.annotator_flips), annotator, common)

    def _prior(self, rewards: Tensor, annotator: Tensor) -> Tensor:
        """(B,) each ranking's share in the negative log-prior of its annotator's number."""
        if self.log_temperatures is not None:
            prior = (self.log_temperatures / TEMPERATURE_SPREAD) ** 2 / 2
        elif self.annotator_flips is not None:
            prior = ((self.annotator_flips - self.usual_flips) / FLIP_SPREAD) ** 2 / 2
        else:
            return rewards.new_zeros(len(rewards))
        return _own(prior * self.prior_share, annotator, prior.new_zeros(()))


def ranking_loss(rewards: Tensor, groups: Tensor) -> Tensor:
    """(B,) the loss of each ranking in nats per choice: what reward models are trained on unless told otherwise.

    Each ranking has one voice, whatever its length: a sum over choices would let one list of nine outweigh eight pairs,
    though its choices come from one look at one prompt. InstructGPT averages within a prompt for the same reason
    (L. Ouyang et al., "Training language models to follow instructions with human feedback", 2022, section 3.5).
    Arguments as in `plackett_luce_loss`.
    """
    loss = plackett_luce_loss(rewards, groups)
    return loss / num_choices(groups).clamp(min=1).to(loss)


def bradley_terry_loss(
    margins: Tensor,
    *,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
    flip_rate: float | Tensor = 0.0,
    target: float | Tensor = 1.0,
) -> Tensor:
    """The negative log-likelihood of pairs, in nats: softplus(-margins), and ln 2 where rewards are equal.

    With z = margins - margin, the loss of a judgment is (1 - e) f(z) + e f(-z) for a label smoothing of e, and
    f(z) = -ln((1 - rho) sigmoid(z) + rho sigmoid(-z)) for a flip rate of rho. A target of p stands for judgments of
    which the share p is this way and the rest the other way, each with its margin.

    Smoothing ends at z = ln((1 - e) / e), whatever the data; a flip rate ends nowhere, and as z falls it stops pulling:
    the judgment was wrong then. A margin makes differences larger than log-odds.

    Args:
        margins: (N,) float, reward of the better response less that of the worse.
        margin: (N,) or one for all, by which the better should lead (Llama 2).
        label_smoothing: of the opposite judgment, in [0, 0.5).
        flip_rate: (N,) or one for all, in [0, 0.5).
        target: (N,) or one for all, in [0, 1]: of several annotators, the share that put this one first.

    Returns:
        (N,).
    """
    margins = _in_single(margins)
    loss = _pair_loss(margins - margin, label_smoothing, flip_rate)
    if isinstance(target, float) and target == 1:
        return loss
    return target * loss + (1 - target) * _pair_loss(-margins - margin, label_smoothing, flip_rate)


def plackett_luce_loss(rewards: Tensor, groups: Tensor, *, ties: str = "exact") -> Tensor:
    """(B,) the negative log-likelihood of each ranking, in nats: of K equal rewards in strict order, ln K!.

    Args:
        rewards: (B, K) float. Only differences within a row matter.
        groups: (B, K) int64, the number of each response's group, 0 for the best; equal numbers are tied; -1 where no
            response stands or where it was not ranked, which is not last: it takes no part. On the CPU, to spare
            waiting for a GPU.
        ties: exact, ties of up to ten are summed over all orders, by way of their subsets, and larger ones take Efron's
            approximation; efron, all take it. It is exact where those tied have equal rewards.

    Raises:
        ValueError: shapes differ or are not (B, K), or no such `ties`.

    Source: R. L. Plackett, "The analysis of permutations", Applied Statistics 24(2), 1975; for large ties B. Efron,
    "The efficiency of Cox's likelihood function for censored data", JASA 72(359), 1977, times the number of orders.
    """
    _check_choice("ties", ties, ("exact", "efron"))
    rewards, is_ranked = _prepared(rewards, groups)
    rewards = _below_zero(rewards, is_ranked)
    loss = (rewards * 0).sum(1)  # a ranking without any choice stays part of the graph
    max_exact = MAX_EXACT_TIES if ties == "exact" else 1
    for rows, members, below in _draws(groups):
        lower = rewards[rows].masked_fill(~below.to(rewards.device), -math.inf).logsumexp(1)
        tied = rewards[rows[:, None], members]
        loss = loss.index_add(0, rows.to(rewards.device), -_log_drawn_first(tied, lower, max_exact))
    return loss


def all_pairs_loss(
    rewards: Tensor,
    groups: Tensor,
    *,
    flip_rate: Tensor | None = None,
    outcomes: Callable[[Tensor], Tensor] | None = None,
    is_unsorted: Tensor | None = None,
) -> Tensor:
    """(B,) the mean over each ranking's pairs of their negative log-likelihoods, in nats.

    Pairs of one ranking are not independent, so this is a composite likelihood: it finds the same rewards as
    Plackett-Luce, from lists with a larger error: 1.1 times the squared error for K = 4, 1.2 times for K = 9.

    Args:
        rewards, groups: (B, K) as in `plackett_luce_loss`.
        flip_rate: (B,) probability that a pair's judgment is the wrong way round.
        outcomes: a model of ties, from margins (B, P) to log-probabilities (B, P, 3) as `rao_kupper` and `davidson`
            give them; tied pairs then count as the ordered ones do. Without, pairs are Bradley-Terry's and tied ones
            are left out.
        is_unsorted: (B, K) bool as in `Judged`; two such are not tied, and are left out.

    Source: L. Ouyang et al., "Training language models to follow instructions with human feedback", 2022, equation 1.
    """
    rewards, _ = _prepared(rewards, groups)
    one, other = torch.triu_indices(groups.shape[1], groups.shape[1], 1)
    order = groups[:, other] - groups[:, one]
    is_tie = torch.full_like(order, outcomes is not None, dtype=torch.bool)
    if is_unsorted is not None:
        is_tie &= ~(is_unsorted[:, one] & is_unsorted[:, other])
    is_counted = (groups[:, one] >= 0) & (groups[:, other] >= 0) & ((order != 0) | is_tie)
    count = is_counted.sum(1).clamp(min=1).to(rewards)
    sign = torch.where(order < 0, -1, 1).to(rewards)
    margins = sign * (rewards[:, one] - rewards[:, other])
    rate = 0.0 if flip_rate is None else flip_rate[:, None]
    if outcomes is None:
        losses = bradley_terry_loss(margins, flip_rate=rate)
    else:
        first, second, tie = outcomes(margins).unbind(-1)
        won = first if flip_rate is None else -_partly_blind(-first, LN_2 - torch.logaddexp(first, second), rate)
        losses = -torch.where((order == 0).to(rewards.device), tie, won)
    return losses.where(is_counted.to(rewards.device), 0).sum(1) / count


def rao_kupper(margins: Tensor, log_theta: float | Tensor) -> Tensor:
    """Log-probabilities that the first is put above the second, below it, and that they tie: (..., 3) from (...).

    P(first) = sigmoid(margin - ln theta): a difference below a threshold is not seen. Equal rewards tie with
    probability (theta - 1) / (theta + 1), and theta = 1 is Bradley-Terry.

    Args:
        margins: (...) float, reward of the first less that of the second.
        log_theta: not negative; a tie has no gradient where it is 0.

    Source: P. V. Rao and L. L. Kupper, "Ties in paired-comparison experiments", JASA 62(317), 1967.
    """
    margins = _in_single(margins)
    log_theta = torch.as_tensor(log_theta, dtype=margins.dtype, device=margins.device)
    first, second = logsigmoid(margins - log_theta), logsigmoid(-margins - log_theta)
    log_odds = 2 * log_theta + (-torch.expm1(-2 * log_theta)).log()  # of theta^2 - 1
    return torch.stack([first, second, first + second + log_odds], -1)


def davidson(margins: Tensor, log_odds: float | Tensor) -> Tensor:
    """Log-probabilities that the first is put above the second, below it, and that they tie: (..., 3) from (...).

    They are in proportion to exp(margin / 2), exp(-margin / 2) and nu. Equal rewards tie with probability
    nu / (2 + nu), and where they do not tie the probabilities are Bradley-Terry's.

    Args:
        margins: (...) float, reward of the first less that of the second.
        log_odds: ln nu.

    Source: R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison
    experiments", JASA 65(329), 1970.
    """
    margins = _in_single(margins)
    tie = torch.as_tensor(log_odds, dtype=margins.dtype, device=margins.device).expand(margins.shape)
    return torch.stack([margins / 2, -margins / 2, tie], -1).log_softmax(-1)


def davidson_loss(rewards: Tensor, groups: Tensor, log_odds: Tensor, is_unsorted: Tensor | None = None) -> Tensor:
    """(B,) the negative log-likelihood of each ranking, in nats, where ties are outcomes of their own.

    Of what is left, the next group is drawn among all sets: a set of t with a probability in proportion to
    delta_t (product of the exp(rewards))^(1 / t), delta_1 = 1. Two responses are Davidson's model with nu = delta_2.
    The sum over all sets of a size is an elementary symmetric polynomial, so it takes K^3 steps, not 2^K.

    Args:
        rewards, groups: (B, K) as in `plackett_luce_loss`.
        log_odds: (S,) ln delta of 2, 3, … tied; larger groups share the last.
        is_unsorted: (B, K) bool as in `Judged`, the last group's: however these are drawn, they are drawn at the end,
            and what comes before is all that the ranking tells.

    Source: H. L. Turner, J. van Etten, D. Firth and I. Kosmidis, "Modelling rankings in R: the PlackettLuce package",
    Computational Statistics 35, 2020, section 2.1.
    """
    rewards, is_ranked = _prepared(rewards, groups)
    rewards = _below_zero(rewards, is_ranked)
    num_responses = groups.shape[1]
    worst_first = groups.masked_fill(groups < 0, num_responses).argsort(1, descending=True)
    numbers = groups.gather(1, worst_first)
    is_new = torch.cat([numbers[:, 1:] != numbers[:, :-1], torch.ones_like(numbers[:, :1], dtype=torch.bool)], 1)
    is_told = groups >= 0 if is_unsorted is None else (groups >= 0) & ~is_unsorted
    is_drawn = (is_new & is_told.gather(1, worst_first)).to(rewards.device)
    left = _log_weights_left(rewards.gather(1, worst_first.to(rewards.device)), (numbers >= 0).to(rewards.device))
    log_odds = torch.cat([log_odds.new_zeros(1), log_odds]).to(rewards)
    log_odds = log_odds[torch.arange(num_responses).clamp(max=len(log_odds) - 1)]
    size = (groups[:, :, None] == groups[:, None, :]).sum(2).to(rewards.device)
    drawn = (rewards + log_odds[size - 1]) / size
    is_told = is_told.to(rewards.device)
    return (left + log_odds).logsumexp(2).where(is_drawn, 0).sum(1) - drawn.where(is_told, 0).sum(1)


def num_choices(groups: Tensor) -> Tensor:
    """(B,) how many responses were put above at least one other: K - 1 for a strict order, 0 where all tie."""
    last = groups.amax(1, keepdim=True)
    return ((groups >= 0) & (groups < last)).sum(1)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 0.5:
        raise ValueError(f"{name} {rate} must be at least 0 and below 0.5")


def _in_single(given: Tensor) -> Tensor:
    return given if given.dtype in {torch.float32, torch.float64} else given.float()


def _prepared(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards in at least single precision, 0 where not ranked, whatever stood there; and (B, K) where ranked."""
    if rewards.ndim != 2 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be (B, K)")
    is_ranked = (groups >= 0).to(rewards.device)
    return _in_single(rewards).where(is_ranked, 0), is_ranked


def _below_zero(rewards: Tensor, is_ranked: Tensor) -> Tensor:
    """Rewards less the largest of each ranking: exact however far from zero they all are."""
    return rewards - rewards.detach().masked_fill(~is_ranked, -math.inf).amax(1, keepdim=True).nan_to_num(neginf=0)


def _reversed(groups: Tensor) -> Tensor:
    """(B, K) the opposite ranking; what is not ranked stays so."""
    return torch.where(groups < 0, groups, groups.amax(1, keepdim=True) - groups)


def _pair_loss(margins: Tensor, label_smoothing: float, flip_rate: float | Tensor) -> Tensor:
    this, other = softplus(-margins), softplus(margins)
    if isinstance(flip_rate, Tensor) or flip_rate:
        this, other = (_partly_blind(loss, loss.new_tensor(LN_2), flip_rate) for loss in (this, other))
    return (1 - label_smoothing) * this + label_smoothing * other if label_smoothing else this


def _partly_blind(loss: Tensor, blind_loss: Tensor, flip_rate: float | Tensor) -> Tensor:
    """The loss of judgments that are made blindly with twice the probability of being the wrong way round."""
    blind = 2 * torch.as_tensor(flip_rate, dtype=loss.dtype, device=loss.device)
    return -torch.logaddexp(torch.log1p(-blind) - loss, blind.log() - blind_loss)


def _to_rate(log_odds: Tensor) -> Tensor:
    low, high = FLIP_RATES
    return low + (high - low) * log_odds.sigmoid()


def _to_log_odds(rate: float) -> float:
    """The opposite of `_to_rate`; a rate at either end or beyond is taken as close to it."""
    low, high = FLIP_RATES
    share = min(max((rate - low) / (high - low), 0.001), 0.999)
    return math.log(share / (1 - share))


def _usual_odds_of_ties() -> Tensor:
    """(S,) ln delta of 2, 3, … tied, such that two equal responses tie with probability `TIE_RATE`."""
    return math.log(2 * TIE_RATE / (1 - TIE_RATE)) - math.log(TIE_DECAY) * torch.arange(MAX_TIE_ODDS - 1)


def _own(values: Tensor, annotator: Tensor, unknown: Tensor) -> Tensor:
    """(B,) of each judgment the annotator's own of `values` (A,), or what holds for the unknown."""
    annotator = annotator.to(values.device)
    return torch.where(annotator < 0, unknown, values[annotator.clamp(min=0)])


def _of_aspect(values: Tensor | None, aspect: Tensor | None, rewards: Tensor) -> Tensor:
    """(B,) of each ranking its aspect's own of `values`, those of the first where not told; 0 where there are none."""
    if values is None:
        return rewards.new_zeros(len(rewards))
    return values[0].expand(len(rewards)) if aspect is None else values[aspect.to(values.device)]


def _log_weights_left(worst_first: Tensor, is_ranked: Tensor) -> Tensor:
    """(B, K, K) of each response with all worse ones, the log of the summed weights of their sets of t = 1, 2, … K.

    It is the elementary symmetric polynomial of order t in the t-th roots of the weights. By orders j up to t: with one
    root more, a product of j is one of those before, or that root times a product of j - 1.
    """
    num_responses = worst_first.shape[1]
    roots = worst_first[:, :, None] / torch.arange(1, num_responses + 1).to(worst_first)
    none = torch.zeros_like(roots[:, 0, :, None])
    products = none.new_full((*none.shape[:2], num_responses), NEVER)  # (B, t, j)
    layers = []
    for place in range(num_responses):
        with_it = torch.cat([none, products[:, :, :-1]], 2) + roots[:, place, :, None]
        products = torch.logaddexp(products, with_it).where(is_ranked[:, place, None, None], products)
        layers.append(products.diagonal(dim1=1, dim2=2))
    return torch.stack(layers, 1)


def _draws(groups: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups with something below them, N of each size t: (N,) rows, (N, t) members, (N, K) what is below them."""
    is_same = groups[:, :, None] == groups[:, None, :]
    size = is_same.sum(2)
    stands_first = ~is_same.tril(-1).any(2)  # of its group's members, as they are listed
    is_drawn = stands_first & (groups >= 0) & (groups < groups.amax(1, keepdim=True))
    for num_members in size[is_drawn].unique().tolist():
        rows, places = (is_drawn & (size == num_members)).nonzero(as_tuple=True)
        members = is_same[rows, places].nonzero()[:, 1].reshape(-1, num_members)
        yield rows, members, groups[rows] > groups[rows, places, None]


def _log_drawn_first(tied: Tensor, below: Tensor, max_exact: int) -> Tensor:
    """(N,) log-probability that the (N, t) tied are drawn, in any order, before what weighs exp(`below`), (N,)."""
    size = tied.shape[1]
    if size == 1:
        return -softplus(below - tied[:, 0])
    if size > max_exact:
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
