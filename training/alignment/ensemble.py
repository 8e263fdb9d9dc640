"""Several members' scores of a response -> one score, by rules that nothing has to be learned for.

Scores are combined after `Standardisation`: a member whose numbers are ten times as wide would otherwise be the mean,
the minimum and the variance all by itself. Every rule is a function of one response's scores (..., M) -> (...,), so a
combined score depends on the response alone, and never on what it is compared with.

**Missing.** A score that is nan is missing, not 0: the member is left out and the others make up for it; where all are
missing, so is the combination. A member that is silent takes its doubts with it: the worst case of the others is no
lower, and their spread may be less, so a member that a policy could make silent is no guard.

**Which rule.** What all members overrate, each of these overrates; what some overrate, the mean overrates by their
share, and the median, the worst case and the uncertainty-weighted mean by less. That is what they are for: a policy
that is trained on a score looks for exactly those responses. They pay with what the boldest member is right about.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from training.alignment.losses import num_choices, plackett_luce_loss

NEGLIGIBLE = 1e-9  # of a member's scores: a smaller deviation is rounding
SPREADS = ("variance", "deviation")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class OrderedPairs(NamedTuple):
    """The N pairs of responses that judgments put one above the other."""

    margins: Floats
    """(N, M) each member's score of the better response less that of the worse; nan where one is missing."""
    rankings: Ints
    """(N,) the place of the ranking that the pair is from."""
    weights: Floats
    """(N,) the pairs of a ranking share its weight equally."""


@dataclass(frozen=True, eq=False)
class JudgedScores:
    """Members' scores of responses that people ranked: B rankings of up to K responses, by M members.

    Attributes:
        scores: (B, K, M) float64; nan where a member has no score, and in padding.
        groups: (B, K) int64, the number of each response's group: 0 the best, equal tied, -1 not ranked or padding.
        prompts: (B,) int64, the number of each ranking's prompt: what is split and resampled by.
        weights: (B,) float64, how much each ranking counts; not negative.
        features: (B, D) float64 of each ranking's prompt, for gates.

    Raises:
        ValueError: shapes differ, or a score is infinite, or a weight or feature is not what it has to be.
    """

    scores: Floats
    groups: Ints
    prompts: Ints
    weights: Floats
    features: Floats | None = None

    def __post_init__(self) -> None:
        scores, num_rankings = self.scores, len(self.groups)
        if scores.ndim != 3 or not scores.shape[2] or self.groups.shape != scores.shape[:2]:
            raise ValueError(f"scores {scores.shape} must be (B, K, M), M > 0, and groups {self.groups.shape} (B, K)")
        for name, given in (("prompts", self.prompts), ("weights", self.weights)):
            if given.shape != (num_rankings,):
                raise ValueError(f"{name} {given.shape} must be (B,) for groups {self.groups.shape}")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != num_rankings):
            raise ValueError(f"features {self.features.shape} must be (B, D) for groups {self.groups.shape}")
        if np.isinf(scores).any():
            raise ValueError("a score is infinite; one that is missing must be nan")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError("weights must be finite, and none negative")
        if self.features is not None and not np.isfinite(self.features).all():
            raise ValueError("features must be finite")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def num_members(self) -> int:
        return self.scores.shape[2]

    def select(self, which: Bools | Ints) -> Self:
        """Some of the rankings, by a mask (B,) or by their places."""
        features = None if self.features is None else self.features[which]
        return type(self)(self.scores[which], self.groups[which], self.prompts[which], self.weights[which], features)

    def with_members(self, which: Bools | Ints) -> Self:
        """The same rankings with some of the members, by a mask (M,) or by their places."""
        return replace(self, scores=self.scores[:, :, which])

    def ordered_pairs(self) -> OrderedPairs:
        one, other = np.triu_indices(self.groups.shape[1], 1)
        order = self.groups[:, other] - self.groups[:, one]
        is_ordered = (self.groups[:, one] >= 0) & (self.groups[:, other] >= 0) & (order != 0)
        rankings, pairs = np.nonzero(is_ordered)
        leads = self.scores[rankings, one[pairs]] - self.scores[rankings, other[pairs]]
        weights = self.weights / np.maximum(is_ordered.sum(1), 1)
        return OrderedPairs(np.sign(order[rankings, pairs])[:, None] * leads, rankings, weights[rankings])


@dataclass(frozen=True, eq=False)
class Standardisation:
    """Scores in deviations from each member's mean over a reference set.

    Attributes:
        means, stds: (M,) float64.

    Raises:
        ValueError: they are not both (M,), finite, and the deviations above zero.
    """

    means: Floats
    stds: Floats

    def __post_init__(self) -> None:
        if self.means.ndim != 1 or self.means.shape != self.stds.shape:
            raise ValueError(f"means {self.means.shape} and stds {self.stds.shape} must both be (M,)")
        if not (np.isfinite(self.means).all() and np.isfinite(self.stds).all() and (self.stds > 0).all()):
            raise ValueError("means and stds must be finite, and stds above zero")

    @classmethod
    def fit(cls, scores: ArrayLike) -> Self:
        """Of the scores (N, M) of a reference set; a member that is constant, or has no scores, gets a deviation of 1.

        Raises:
            ValueError: they are not (N, M), or are none, or one is infinite.
        """
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim != 2 or not given.size or np.isinf(given).any():
            raise ValueError(f"scores {given.shape} must be (N, M), N > 0 and M > 0, and none infinite")
        by_member = given.T
        means, stds = np.nan_to_num(mean(by_member)), np.nan_to_num(spread(by_member))
        size = np.max(np.abs(np.nan_to_num(by_member)), axis=1, initial=0.0)
        return cls(means, np.where(stds > NEGLIGIBLE * size, stds, 1.0))

    def apply(self, scores: ArrayLike) -> Floats:
        """(..., M) -> (..., M); missing scores stay missing.

        Raises:
            ValueError: there are not M members.
        """
        given = _checked(scores)
        if given.shape[-1] != len(self.means):
            raise ValueError(f"scores {given.shape} must be (..., {len(self.means)})")
        return (given - self.means) / self.stds


def mean(scores: ArrayLike) -> Floats:
    """(..., M) -> (...,) the members' mean."""
    given = _checked(scores)
    return _averaged(given, np.ones(given.shape[-1]))


def weighted_mean(scores: ArrayLike, weights: ArrayLike) -> Floats:
    """(..., M) -> (...,) the mean by weights (M,), which need not sum to one; nan where all that weighs is missing.

    Raises:
        ValueError: there are not M weights, one is negative or not finite, or all are zero.
    """
    given, shares = _checked(scores), np.asarray(weights, dtype=np.float64)
    _check_weights(given, shares)
    if (shares < 0).any():
        raise ValueError("weights must not be negative")
    return _averaged(given, shares)


def median(scores: ArrayLike) -> Floats:
    """(..., M) -> (...,) the members' median: of an even number, the mean of the middle two."""
    given = _checked(scores)
    in_order = np.sort(given, axis=-1)  # what is missing comes last
    count = np.isfinite(given).sum(-1, keepdims=True)
    middle = np.concatenate([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, given.shape[-1] - 1)], axis=-1)
    return np.take_along_axis(in_order, middle, axis=-1).mean(-1)


def worst_case(scores: ArrayLike) -> Floats:
    """(..., M) -> (...,) what the member that thinks least of the response gives it (WCO).

    Source: T. Coste, U. Anwar, R. Kirk and D. Krueger, "Reward model ensembles help mitigate overoptimization", 2023.
    """
    given = _checked(scores)
    lowest = np.where(np.isnan(given), np.inf, given).min(-1)
    return np.where(np.isinf(lowest), np.nan, lowest)


def spread(scores: ArrayLike) -> Floats:
    """(..., M) -> (...,) the members' population standard deviation; nan where fewer than two have a score."""
    given = _checked(scores)
    deviations = np.sqrt(mean((given - mean(given)[..., None]) ** 2))
    return np.where(np.isfinite(given).sum(-1) > 1, deviations, np.nan)


def uncertainty_weighted(scores: ArrayLike, penalty: float, kind: str = "variance") -> Floats:
    """(..., M) -> (...,) the mean less `penalty` times the population variance, or deviation, between members (UWO).

    It is not monotone: a response that one member likes better, and no other less, may score lower for it. That is so
    as soon as the member is above the mean by more than 1 / (2 penalty), or by more than the deviation over `penalty`:
    see `falls_when_raised`. The variance grows with the square of the scores' unit, so a penalty means something on
    standardised scores only.

    Args:
        penalty: not negative. Released settings, of the variance: 0.5 for best-of-n, 0.1 for PPO.
        kind: variance or deviation.

    Raises:
        ValueError: the penalty is negative, or there is no such kind.

    Source: Coste et al., 2023, as in `worst_case`.
    """
    _check_penalty(penalty, kind)
    deviation = np.nan_to_num(spread(scores))  # a single member's score is taken as it is
    return mean(scores) - penalty * (deviation**2 if kind == "variance" else deviation)


def falls_when_raised(scores: ArrayLike, penalty: float, kind: str = "variance") -> Bools:
    """(..., M) whether the uncertainty-weighted score falls as this member's score rises a little.

    Arguments and errors are those of `uncertainty_weighted`.
    """
    _check_penalty(penalty, kind)
    given = _checked(scores)
    ahead = given - mean(given)[..., None]
    if kind == "variance":
        return 2 * penalty * ahead > 1
    return penalty * ahead > spread(given)[..., None]


def rank_aggregate(scores: ArrayLike, reference: ArrayLike) -> Floats:
    """(..., M) -> (...,) the mean of the members' ranks for the response among reference responses.

    Members' scales then do not matter, only their orders, and how far one member can lift a response is bounded. Ranks
    within the list at hand would do the same, but a response has to have a score by itself: in a policy's training it
    comes alone, and its reward must not depend on its neighbours. So a rank is the share of the reference that scores
    lower (half of what scores equal; in proportion between two scores that occur), and of several responses to rank,
    Borda's order results where they themselves are the reference. The mean share is given as the normal quantile of it:
    in deviations, as standardised scores are.

    Args:
        reference: (N, M) each member's scores of the reference set, in ascending order, what is missing last: as
            `np.sort(scores, axis=0)` has them.

    Raises:
        ValueError: there are not M members, or scores are not in ascending order, or a member has none.
    """
    given, sorted_scores = _checked(scores), np.asarray(reference, dtype=np.float64)
    if sorted_scores.ndim != 2 or sorted_scores.shape[1] != given.shape[-1]:
        raise ValueError(f"reference {sorted_scores.shape} must be (N, M) for scores {given.shape}")
    counts = np.isfinite(sorted_scores).sum(0)
    if not counts.all() or not np.array_equal(sorted_scores, np.sort(sorted_scores, axis=0), equal_nan=True):
        raise ValueError("reference must have scores of every member, each member's in ascending order")
    shares = np.empty(given.shape)
    for member, count in enumerate(counts):
        known = sorted_scores[:count, member]
        lower = (np.searchsorted(known, known, "left") + np.searchsorted(known, known, "right")) / 2
        shares[..., member] = np.interp(given[..., member], known, (lower + 0.5) / (count + 1))
    return ndtri(mean(shares))


def aspect_weighted(scores: ArrayLike, weights: ArrayLike) -> Floats:
    """(..., A) -> (...,) aspects' scores by hand-set weights (A,): sum of w s / sum of |w|; a weight may be negative.

    Several objectives are to be normalised, then summed, as here with `Standardisation` first: then an objective with
    a hundred times the scale has no more say, and ranks are unchanged. Where they are summed and the sum is normalised,
    the objective of the largest variance rules, whatever the weights. A missing aspect is left out, not taken as 0.

    Raises:
        ValueError: there are not A weights, one is not finite, or all are zero.
    """
    given, shares = _checked(scores), np.asarray(weights, dtype=np.float64)
    _check_weights(given, shares)
    return _averaged(given * np.sign(shares), np.abs(shares))


def chebyshev(scores: ArrayLike, weights: ArrayLike, ideal: ArrayLike = 0.0) -> Floats:
    """(..., A) -> (...,) the aspect that falls shortest of its ideal: the minimum of w (s - ideal), or min-max.

    No aspect can buy another here. Of a weighted mean the best response lies on the convex hull of what is possible;
    each that is best for no weights there is best for some here.

    Args:
        weights: (A,) above zero: what a unit short of the ideal costs.
        ideal: (A,) or one for all: what is wished for.

    Raises:
        ValueError: there are not A weights or ideals, or a weight is not above zero.
    """
    given, shares, wished = _checked(scores), np.asarray(weights, dtype=np.float64), np.asarray(ideal, dtype=np.float64)
    _check_weights(given, shares)
    if (shares <= 0).any():
        raise ValueError("weights must be above zero")
    if wished.shape not in {(), shares.shape} or not np.isfinite(wished).all():
        raise ValueError(f"ideal {wished.shape} must be (A,) or one for all, and finite")
    return worst_case(shares * (given - wished))


def constrained(objective: ArrayLike, constraint: ArrayLike, floor: float, slope: float) -> Floats:
    """(...,) as much of the objective as can be had with the constraint at `floor` at least.

    objective + slope * min(0, constraint - floor): above the floor the constraint counts for nothing, below it a unit
    costs `slope` units of the objective. Among given responses the best is the best of those that are allowed as soon
    as the slope is more than what a unit below the floor buys of the objective; where none is allowed, a steep slope
    takes the one that violates least. Neither stands in for the other: where one is missing, so is the score.

    Args:
        objective, constraint: (...,) of the same shape, such as helpfulness and harmlessness.
        slope: not negative.

    Raises:
        ValueError: shapes differ, the floor is not finite, or the slope is negative.

    Source: the exact penalty of a constrained optimum; J. Dai et al., "Safe RLHF", 2023, learns the slope instead.
    """
    wanted, required = np.asarray(objective, dtype=np.float64), np.asarray(constraint, dtype=np.float64)
    if wanted.shape != required.shape:
        raise ValueError(f"objective {wanted.shape} and constraint {required.shape} must have one shape")
    if not np.isfinite(floor) or not (np.isfinite(slope) and slope >= 0):
        raise ValueError(f"floor {floor} must be finite, and slope {slope} not negative")
    return wanted + slope * np.minimum(0.0, required - floor)


def log_likelihood(rewards: ArrayLike, judged: JudgedScores, *, is_per_choice: bool = True) -> Floats:
    """(B,) log-probability of each ranking under Plackett-Luce, in nats per choice, or of the whole ranking.

    Ties stand for all their orders, as in `losses.plackett_luce_loss`. A response without a reward is taken at the mean
    of the others of its ranking, and where none has a reward all orders are alike: so what gives no rewards is not told
    from what gives equal ones, and cannot gain by keeping out of the hard ones.

    Args:
        rewards: (B, K) in nats; nan where missing.

    Raises:
        ValueError: they are not of the shape of the rankings, or one is infinite.
    """
    given = np.asarray(rewards, dtype=np.float64)
    if given.shape != judged.groups.shape or np.isinf(given).any():
        raise ValueError(f"rewards {given.shape} must be as groups {judged.groups.shape}, and none infinite")
    known = np.where(judged.groups >= 0, given, np.nan)
    filled = np.where(np.isnan(known), np.nan_to_num(mean(known))[:, None], known)
    groups = torch.from_numpy(np.asarray(judged.groups, dtype=np.int64))
    loss = plackett_luce_loss(torch.from_numpy(filled), groups)
    return -(loss / num_choices(groups).clamp(min=1) if is_per_choice else loss).numpy()


def _checked(scores: ArrayLike) -> Floats:
    given = np.asarray(scores, dtype=np.float64)
    if not given.ndim or not given.shape[-1]:
        raise ValueError(f"scores {given.shape} must be (..., M), M > 0")
    if np.isinf(given).any():
        raise ValueError("a score is infinite; one that is missing must be nan")
    return given


def _check_weights(scores: Floats, weights: Floats) -> None:
    if weights.shape != scores.shape[-1:]:
        raise ValueError(f"weights {weights.shape} must be ({scores.shape[-1]},) for scores {scores.shape}")
    if not np.isfinite(weights).all() or not weights.any():
        raise ValueError("weights must be finite, and not all zero")


def _check_penalty(penalty: float, kind: str) -> None:
    if kind not in SPREADS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(SPREADS)}")
    if not (np.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty {penalty} must not be negative")


def _averaged(scores: Floats, weights: Floats) -> Floats:
    """(..., M), (M,) -> (...,) the mean over what has a score; nan where nothing that weighs has."""
    shares = np.where(np.isnan(scores), 0.0, weights)
    total = shares.sum(-1)
    found = np.full(total.shape, np.nan)
    np.divide((np.nan_to_num(scores) * shares).sum(-1), total, out=found, where=total > 0)
    return found
