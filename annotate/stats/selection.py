"""Which comparisons to ask for next: those whose answers would teach a reward model most.

What a comparison is worth is told by how far the models that the judgments so far allow disagree about it: an
ensemble's members, or a logistic model's Laplace posterior. Closeness to a coin-flip says something else: two equally
good responses stay a coin-flip however often they are asked. `closeness` is here as a benchmark's control.

Worth alone picks the same question many times over. So the first comparisons of an order are chosen one after the
other, each by the share of its uncertainty that the answers to those before it will leave (the greedy choice of a
determinant, as in D-optimal designs).

Letters besides those of the house: P pairs of K responses, K (K - 1) / 2 of them in the order of `pairs_of`; D
dimensions in which differences of scores are written. Scores are in nats: sigmoid(difference) is a probability.

Sources: N. Houlsby, F. Huszár, Z. Ghahramani and M. Lengyel, "Bayesian active learning for classification and
preference learning", 2011 (BALD); A. Kirsch, J. van Amersfoort and Y. Gal, "BatchBALD", 2019 (why batches need
diversity); D. J. C. MacKay, "Information-based objective functions for active data selection", Neural Computation 4,
1992.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit

BALD, POSTERIOR_VARIANCE = "bald", "posterior_variance"
STRATEGIES = (BALD, POSTERIOR_VARIANCE)
NUM_DIVERSE = 1000  # more are hardly asked before the models are trained anew
NUM_CONSIDERED = 4096  # candidates looked at together; their number doubles where it does not do
MAX_NEWTON_STEPS = 100
TOLERANCE = 1e-9

Array = NDArray[np.float64]


# What one comparison is worth


def bald(differences: Array) -> Array:
    """What an answer tells about which member is right: H[mean of p] - mean of H[p], with p = sigmoid(difference).

    Args:
        differences: (M, ...) the score of one response less that of the other, in nats, by each member.

    Returns:
        (...) in nats, 0 where the members agree to log 2 where half of them are sure of the one and half of the other.

    Raises:
        ValueError: fewer than two members.
    """
    probabilities = expit(_members(differences))
    information = _entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)
    return np.maximum(information, 0.0)  # rounding may leave less than nothing


def difference_variance(differences: Array) -> Array:
    """The variance of a score difference over members, in nats squared: (M, ...) to (...).

    Raises:
        ValueError: fewer than two members.
    """
    return _members(differences).var(axis=0, ddof=1)


def closeness(differences: Array) -> Array:
    """How near the mean probability is to a coin-flip, 0 to 1/2: (M, ...) to (...). A control; see the module."""
    probability = expit(np.asarray(differences, dtype=float)).mean(0)
    return np.minimum(probability, 1 - probability)


def _entropy(probability: Array) -> Array:
    return entr(probability) + entr(1 - probability)


def _members(differences: Array) -> Array:
    differences = np.asarray(differences, dtype=float)
    if differences.ndim < 1 or len(differences) < 2:
        raise ValueError(f"differences: shape {differences.shape} has fewer than two members")
    return differences


@dataclass(frozen=True)
class Posterior:
    """The Laplace approximation of a Bradley-Terry model linear in features."""

    mean: Array
    """(D,) weights."""
    covariance: Array
    """(D, D) of the weights."""

    def variance(self, features: Array) -> Array:
        """The variance of the score difference, (..., D) differences of features to (...), in nats squared."""
        return np.einsum("...i,ij,...j->...", features, self.covariance, features)


def laplace(features: Array, prior_precision: float = 1.0) -> Posterior:
    """Weights that make the chosen responses win, and how sure they are.

    Args:
        features: (N, D) of each judged pair, those of the chosen response less those of the rejected one; N may be 0.
        prior_precision: of the normal prior with mean zero on each weight.

    Raises:
        ValueError: `features` has no two dimensions, or the prior's precision is not above zero.
        RuntimeError: Newton's method did not converge.
    """
    if features.ndim != 2:
        raise ValueError(f"features: shape {features.shape} is not (N, D)")
    if prior_precision <= 0:
        raise ValueError(f"prior_precision: {prior_precision} is not above 0")
    prior = prior_precision * np.eye(features.shape[1])
    weights = np.zeros(features.shape[1])
    for _ in range(MAX_NEWTON_STEPS):
        missing = expit(-features @ weights)
        hessian = (features * (missing * (1 - missing))[:, None]).T @ features + prior
        step = np.linalg.solve(hessian, features.T @ missing - prior_precision * weights)
        weights = weights + step
        if np.abs(step).max(initial=0.0) < TOLERANCE:
            return Posterior(weights, np.linalg.inv(hessian))
    raise RuntimeError(f"Newton's method did not converge in {MAX_NEWTON_STEPS} steps")


# All comparisons


def pairs_of(num_responses: int) -> NDArray[np.intp]:
    """(P, 2) places of the two responses of each pair: (0, 1), (0, 2), …"""
    return np.array(list(combinations(range(num_responses), 2)), dtype=np.intp).reshape(-1, 2)


@dataclass(frozen=True)
class Candidates:
    """What is known about N comparisons. A list stands in a batch for its most valuable pair."""

    values: NDArray[np.float32]
    """(N,) what a comparison is worth by itself: the mean over its pairs, so that a list does not win by its length."""
    vectors: NDArray[np.float32]
    """(N, D) its pair's score difference; vectors' inner products are the differences' covariances."""
    weights: NDArray[np.float32]
    """(N,) p (1 - p): how much one answer tells about that difference, by Fisher's information."""

    @classmethod
    def from_scores(cls, scores: Array, strategy: str) -> Self:
        """Comparisons of the same length K, scored by an ensemble.

        Args:
            scores: (M, N, K) in nats. Only a member's differences within a comparison matter.
            strategy: "bald" or "posterior_variance".

        Raises:
            ValueError: another strategy, another number of dimensions, fewer than two members or two responses, or
                a score that is no finite number.
        """
        scores = np.asarray(scores, dtype=float)
        if scores.ndim != 3 or scores.shape[0] < 2 or scores.shape[2] < 2:
            raise ValueError(f"scores: shape {scores.shape} is not (M, N, K) with M and K at least 2")
        if not np.isfinite(scores).all():
            raise ValueError("scores: not all are finite numbers")
        pairs = pairs_of(scores.shape[2])
        differences = scores[:, :, pairs[:, 0]] - scores[:, :, pairs[:, 1]]
        values = _VALUES[_known(strategy)](differences)
        best = _best_pair(values)
        chosen = np.take_along_axis(differences, best[None, :, None], axis=2)[:, :, 0]
        probability = expit(chosen).mean(0)
        return cls._of(
            values.mean(1), (chosen - chosen.mean(0)).T / np.sqrt(len(scores) - 1), probability * (1 - probability)
        )

    @classmethod
    def from_features(cls, features: Array, posterior: Posterior) -> Self:
        """Comparisons whose responses have (N, K, D) features; worth is the posterior variance of the difference.

        Raises:
            ValueError: `features` has another shape, or fewer than two responses.
        """
        if features.ndim != 3 or features.shape[1] < 2 or features.shape[2] != len(posterior.mean):
            raise ValueError(f"features: shape {features.shape} is not (N, K, {len(posterior.mean)}) with K at least 2")
        pairs = pairs_of(features.shape[1])
        differences = features[:, pairs[:, 0]] - features[:, pairs[:, 1]]
        values = posterior.variance(differences)
        chosen = np.take_along_axis(differences, _best_pair(values)[:, None, None], axis=1)[:, 0]
        probability = expit(chosen @ posterior.mean)
        return cls._of(
            values.mean(1), chosen @ np.linalg.cholesky(posterior.covariance), probability * (1 - probability)
        )

    @classmethod
    def joined(cls, parts: Sequence["Candidates"]) -> Self:
        """Comparisons of different lengths, one part after the other."""
        fields = ("values", "vectors", "weights")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))

    @classmethod
    def _of(cls, values: Array, vectors: Array, weights: Array) -> Self:
        return cls(values.astype(np.float32), vectors.astype(np.float32), weights.astype(np.float32))

    def __len__(self) -> int:
        return len(self.values)


_VALUES = {BALD: bald, POSTERIOR_VARIANCE: difference_variance}


def _known(strategy: str) -> str:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    return strategy


def _best_pair(values: Array) -> NDArray[np.intp]:
    """(N,) the most valuable of each comparison's pairs, from (N, P); of equal ones the first."""
    return values.argmax(1)


# Their order


def asking_order(
    candidates: Candidates,
    generator: np.random.Generator,
    *,
    num_diverse: int = NUM_DIVERSE,
    random_share: float = 0.0,
) -> NDArray[np.intp]:
    """All comparisons, the one to ask first at the beginning.

    Args:
        generator: decides between equals, and draws the random share; the same one gives the same order.
        num_diverse: how many at the beginning are chosen as a diverse batch; the others follow by their value alone.
        random_share: of every stretch of the order, the share drawn evenly from all comparisons instead.

    Returns:
        (N,) places in `candidates`.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share: {random_share} is not between 0 and 1")
    shuffled = generator.permutation(len(candidates))  # equal ones come in this order
    by_value = shuffled[np.argsort(-candidates.values[shuffled], kind="stable")]
    batch = by_value[_diverse(candidates, by_value, num_diverse)]
    is_left = np.ones(len(candidates), dtype=bool)
    is_left[batch] = False
    informed = np.concatenate([batch, by_value[is_left[by_value]]])
    return _with_random_share(informed, generator.permutation(len(candidates)), random_share)


def priorities(order: NDArray[np.intp]) -> Array:
    """(N,) a number for each comparison, above 0 and up to 1: the earlier it stands in `order`, the higher."""
    found = np.empty(len(order))
    found[order] = np.arange(len(order), 0, -1) / len(order)
    return found


def choose_pairs(scores: Array, number: int, generator: np.random.Generator, strategy: str = BALD) -> NDArray[np.intp]:
    """Which pairs of one prompt's K responses to ask.

    Args:
        scores: (M, K) in nats.
        number: of pairs; all of them where there are no more.

    Returns:
        (number, 2) places of two responses each, the pair to ask first at the beginning.

    Raises:
        ValueError: as `Candidates.from_scores`.
    """
    pairs = pairs_of(scores.shape[1])
    order = asking_order(Candidates.from_scores(scores[:, pairs], strategy), generator, num_diverse=number)
    return pairs[order[:number]]


class _Considered:
    """The candidates looked at so far, those of highest value, and the variance that the batch leaves of each.

    What a candidate still brings is its value times the share of its variance that is left. That never grows, so one
    that was not looked at brings no more than its value, and only where this could win is it looked at.
    """

    def __init__(self, candidates: Candidates, by_value: NDArray[np.intp]) -> None:
        self.candidates, self.by_value = candidates, by_value
        self.posterior = np.eye(candidates.vectors.shape[1], dtype=np.float32)
        self.take_in(NUM_CONSIDERED)

    def take_in(self, number: int) -> None:
        places = self.by_value[:number]
        self.vectors, self.weights = self.candidates.vectors[places], self.candidates.weights[places]
        before = np.einsum("nd,nd->n", self.vectors, self.vectors)
        self.left = np.einsum("nd,nd->n", self.vectors @ self.posterior, self.vectors)
        self.worth = self.candidates.values[places] / np.where(before > 0, before, 1)

    def gains(self) -> NDArray[np.float32]:
        return self.worth * self.left

    def next_value(self) -> float:
        """The most that a candidate which was not looked at could bring."""
        number = len(self.left)
        return float(self.candidates.values[self.by_value[number]]) if number < len(self.by_value) else -1.0

    def choose(self, place: int) -> None:
        """Take an answer to this candidate as given: a rank-one update of the posterior."""
        if self.weights[place] > 0 and self.left[place] > 0:
            direction = self.posterior @ self.vectors[place]
            scale = 1 / self.weights[place] + self.left[place]
            self.posterior -= np.outer(direction, direction) / scale
            self.left = np.maximum(self.left - (self.vectors @ direction) ** 2 / scale, 0)


def _diverse(candidates: Candidates, by_value: NDArray[np.intp], number: int) -> list[int]:
    """Places in `by_value` of the greedy batch, in the order of choice.

    In blocks: the cost is that of `number` passes over a few thousand candidates, however many there are.
    """
    considered = _Considered(candidates, by_value)
    chosen: list[int] = []
    is_chosen = np.zeros(len(by_value), dtype=bool)
    while len(chosen) < min(number, len(by_value)):
        gains = np.where(is_chosen[: len(considered.left)], -1, considered.gains())
        best = int(gains.argmax())
        if gains[best] < considered.next_value():
            considered.take_in(2 * len(gains))
            continue
        is_chosen[best] = True
        chosen.append(best)
        considered.choose(best)
    return chosen


def _with_random_share(
    informed: NDArray[np.intp], by_chance: NDArray[np.intp], random_share: float
) -> NDArray[np.intp]:
    """Both orders merged, each comparison once: of the first n, n times the share (rounded down) are by chance."""
    if random_share == 0:
        return informed
    is_taken = np.zeros(len(informed), dtype=bool)
    merged = np.empty_like(informed)
    sources = (iter(informed), iter(by_chance))
    for number in range(len(informed)):
        is_random = int((number + 1) * random_share) > int(number * random_share)
        place = next(place for place in sources[is_random] if not is_taken[place])
        is_taken[place] = True
        merged[number] = place
    return merged
