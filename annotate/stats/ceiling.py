"""The human ceiling: between what bounds the best possible accuracy on a fresh human vote lies.

Let p be the chance that a random annotator prefers the first response of a pair. Two annotators agree with
probability a = E[p² + (1-p)²] = 1/2 + 2 E[d²] with d = p - 1/2; the best possible accuracy is
c = E[max(p, 1-p)] = 1/2 + E|d|. Since |d| <= 1/2, and by Jensen's inequality, a <= c <= 1/2 + sqrt((a - 1/2) / 2).
Four or more votes an item also tell E[d⁴]: how small and how large E|d| can be with both moments is a linear
programme over distributions on [0, 1/2], and narrows the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Floats = NDArray[np.float64]

MIN_ITEMS = 10
MIN_ITEMS_TIGHTENED = 100  # below, the fourth moment is mostly noise
GRID = np.linspace(0.0, 0.5, 501)


@dataclass(frozen=True)
class Ceiling:
    """The interval [low, high] in which the best possible accuracy lies.

    Attributes:
        low, high: from the agreement as measured.
        agreement: how often two annotators of an item agree, 1/2 to 1, with its 95 % interval.
        widest: low and high where the agreement is anywhere in its interval.
        num_items: items with at least two votes.
        is_tightened: whether the fourth moment narrowed the interval.
    """

    low: float
    high: float
    agreement: float
    agreement_interval: tuple[float, float]
    widest: tuple[float, float]
    num_items: int
    is_tightened: bool


def ceiling_of_agreement(agreement: float) -> tuple[float, float]:
    """Bounds on the best possible accuracy, from the rate (1/2 to 1) at which two annotators agree.

    Less than 1/2 can only be chance, and counts as 1/2.
    """
    excess = max(agreement - 0.5, 0.0)
    return 0.5 + excess, min(0.5 + float(np.sqrt(excess / 2)), 1.0)


def ceiling_of_moments(second: float, fourth: float) -> tuple[float, float] | None:
    """Bounds on the best possible accuracy from E[d²] and E[d⁴], d in [-1/2, 1/2].

    Returns:
        None where no distribution on the grid has these moments (sampling noise can make such).
    """
    equal = np.stack([np.ones_like(GRID), GRID**2, GRID**4])
    bounds = []
    for sign in (1.0, -1.0):
        found = linprog(sign * GRID, A_eq=equal, b_eq=[1.0, second, fourth], bounds=(0, None), method="highs")
        if not found.success:
            return None
        bounds.append(0.5 + sign * float(found.fun))
    return bounds[0], bounds[1]


def human_ceiling(
    num_first: Sequence[int] | NDArray[np.int64],
    num_votes: Sequence[int] | NDArray[np.int64],
    *,
    rng: np.random.Generator,
    num_replicates: int = 1000,
) -> Ceiling | None:
    """The ceiling from the votes on each item.

    Args:
        num_first, num_votes: (N,) decided votes for the first response, and all decided votes. Items with fewer than
            two votes say nothing and are left out.
        rng: draws the bootstrap over items.

    Returns:
        None for fewer than MIN_ITEMS items with two votes.

    Raises:
        ValueError: the shapes differ, or an item has more votes for the first response than votes.

    Source: the derivation above; moments by unbiased estimates from binomial counts.
    """
    first, votes = np.asarray(num_first, dtype=float), np.asarray(num_votes, dtype=float)
    if first.shape != votes.shape or (first > votes).any():
        raise ValueError(f"num_first {first.shape} must count part of num_votes {votes.shape}")
    first, votes = first[votes >= 2], votes[votes >= 2]
    if len(votes) < MIN_ITEMS:
        return None
    same = (first * (first - 1) + (votes - first) * (votes - first - 1)) / (votes * (votes - 1))
    agreement = float(same.mean())
    weights = rng.multinomial(len(same), np.full(len(same), 1 / len(same)), size=num_replicates)
    low, high = (float(end) for end in np.percentile(weights @ same / len(same), [2.5, 97.5]))
    tightened = _tightened(first, votes, same)
    bounds = tightened or ceiling_of_agreement(agreement)
    return Ceiling(
        low=bounds[0],
        high=bounds[1],
        agreement=agreement,
        agreement_interval=(low, high),
        widest=(ceiling_of_agreement(low)[0], ceiling_of_agreement(high)[1]),
        num_items=len(same),
        is_tightened=tightened is not None,
    )


def _tightened(first: Floats, votes: Floats, same: Floats) -> tuple[float, float] | None:
    """Items with four votes by both their moments, the others by their agreement, together by their shares.

    Both moments must be those of the same items: which items get more votes may depend on how far people agree.
    """
    has_four = votes >= 4
    if has_four.sum() < max(MIN_ITEMS_TIGHTENED, 0.5 * len(votes)) or same[has_four].mean() <= 0.5:
        return None
    second = (float(same[has_four].mean()) - 0.5) / 2
    bounds = ceiling_of_moments(second, _fourth_moment(first[has_four], votes[has_four]))
    if bounds is None or has_four.all():
        return bounds
    others = ceiling_of_agreement(float(same[~has_four].mean()))
    low, high = (has_four.mean() * np.array(bounds) + (~has_four).mean() * np.array(others)).tolist()
    return low, high


def _fourth_moment(first: Floats, votes: Floats) -> float:
    """Unbiased E[(p - 1/2)⁴] from binomial counts: each power of p is estimated by falling factorials."""
    powers = [np.ones_like(first)]
    for k in range(4):
        powers.append(powers[-1] * (first - k) / (votes - k))
    return float(np.mean(powers[4] - 2 * powers[3] + 1.5 * powers[2] - 0.5 * powers[1] + 1 / 16))
