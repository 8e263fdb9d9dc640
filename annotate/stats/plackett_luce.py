"""Strengths of items from rankings, with ties and partial orders: the Plackett-Luce model.

A tied group says that its items come next, in an order that the annotator did not tell: its probability is the sum over
all its orders. So what was shown but not ranked is simply the last group, and a ranking in which everything ties tells
nothing (for pairs in which a tie means "equal", see `bradley_terry`).

The sum over t! orders is the chance that, of exponential clocks running at rates exp(strength), all of the group ring
before any of the rest: an integral over one variable, whatever t is, which the trapezoid rule takes to rounding because
the integrand falls off at both ends at least exponentially.

Letters besides those of the house: J rankings, each of at most K items; Q nodes of the integral.

Sources: R. L. Plackett, "The analysis of permutations", Applied Statistics 24(2), 1975; J. D. Kalbfleisch and
R. L. Prentice, "Marginal likelihoods based on Cox's regression and life model", Biometrika 60(2), 1973 (ties).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from annotate.stats.bradley_terry import NotConvergedError, check_connected

# the logarithm of time, in units of the rest's mean: beyond these ends lie exp(-36) = 2e-16 of the whole and less
NODES = np.arange(-36.0, 4.0, 0.25)  # of so fine a step that t tied items cost 2^t exp(-pi^2 / step) = 2^t 7e-18
NUM_AT_ONCE = 1024  # rankings whose integrals are taken together: they take K times Q numbers each
MAX_STEPS = 10_000
TOLERANCE = 1e-6

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Loss = Callable[[Floats], tuple[float, Floats]]  # a function of parameters, and its gradient
Ranking = Sequence[Sequence[int]]  # items best first, ties as groups


def plackett_luce(rankings: Sequence[Ranking], num_items: int, *, l2: float = 0.0) -> Floats:
    """The most likely strengths.

    Args:
        rankings: items 0 to N - 1, best first, ties as groups; items that were shown and not ranked as the last group.
        num_items: N.
        l2: weight of a Gaussian prior, -l2/2 times the sum of squared strengths. With one, any rankings will do.

    Returns:
        (N,) in log-odds, mean zero.

    Raises:
        ValueError: a ranking names an item twice, an unknown one, or none.
        DisconnectedError: without a prior no finite strengths are the most likely.
        NotConvergedError: the maximum was not reached.
    """
    items, places = padded(rankings, num_items)
    if l2 < 0:
        raise ValueError("l2 must not be negative")
    if not l2:
        check_connected(_wins(items, places, num_items))
    kept = places >= 0

    def loss(strengths: Floats) -> tuple[float, Floats]:
        value, gradient = log_likelihood(strengths[items], places)
        per_item = np.bincount(items[kept], gradient[kept], minlength=num_items)
        return l2 / 2 * strengths @ strengths - value.sum(), l2 * strengths - per_item

    strengths = minimised(loss, np.zeros(num_items), len(rankings))
    return strengths - strengths.mean()


def log_likelihood(utilities: Floats, places: Ints) -> tuple[Floats, Floats]:
    """Log-probability of each ranking, and its gradient.

    Args:
        utilities: (J, K) strength of each item of each ranking, in log-odds; padding may hold any number.
        places: (J, K) where each stands: 0 the best group, 1 the next; -1 is padding.

    Returns:
        (J,) in nats, and (J, K), its derivatives by the utilities, 0 at padding.

    Raises:
        ValueError: the shapes differ.
    """
    if utilities.shape != places.shape or places.ndim != 2:
        raise ValueError(f"utilities {utilities.shape} and places {places.shape} must be of one shape (J, K)")
    value, gradient = np.zeros(len(places)), np.zeros(places.shape)
    for place in range(places.max(initial=0)):
        rows = np.flatnonzero((places > place).any(axis=1))  # before an empty rest a group comes for certain
        is_alone = (places[rows] == place).sum(axis=1) == 1
        for chosen, stage in ((rows[is_alone], _one_item), (rows[~is_alone], _tied_items)):
            for start in range(0, len(chosen), NUM_AT_ONCE):
                some = chosen[start : start + NUM_AT_ONCE]
                of_stage, by_utility = stage(utilities[some], places[some] == place, places[some] > place)
                value[some] += of_stage
                gradient[some] += by_utility
    return value, gradient


def padded(rankings: Sequence[Ranking], num_items: int) -> tuple[Ints, Ints]:
    """Rankings as `items` and `places`, (J, K) int64 both; padding is item 0 at place -1.

    Raises:
        ValueError: a ranking names an item twice, an unknown one, or none; or there is no ranking.
    """
    if not rankings:
        raise ValueError("there must be a ranking")
    flat = [[(item, place) for place, group in enumerate(ranking) for item in group] for ranking in rankings]
    longest = max(map(len, flat))
    items, places = np.zeros((len(flat), longest), dtype=np.int64), np.full((len(flat), longest), -1)
    for row, entries in enumerate(flat):
        named = {item for item, _ in entries}
        if not entries or len(named) < len(entries) or not named <= set(range(num_items)) or not all(rankings[row]):
            raise ValueError(
                f"ranking {row} must name items 0 to {num_items - 1}, each at most once, in groups that are not empty: "
                f"{rankings[row]}"
            )
        items[row, : len(entries)], places[row, : len(entries)] = np.array(entries).T
    return items, places


def minimised(loss: Loss, start: Floats, num_terms: int) -> Floats:
    """Where a smooth function with its gradient is least, by L-BFGS; NotConvergedError if that was not reached."""
    result = minimize(
        loss, start, jac=True, method="L-BFGS-B",
        options={"maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS, "ftol": 0.0, "gtol": TOLERANCE / 100, "maxcor": 30},
    )  # fmt: skip
    # the line search ends in rounding before it meets the strict tolerance; the gradient tells whether that matters
    if not np.abs(result.jac).max() <= TOLERANCE * max(1, num_terms) ** 0.5:
        raise NotConvergedError(f"strengths did not converge: {result.message}")
    return result.x


def _one_item(utilities: Floats, is_next: NDArray[np.bool_], is_rest: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Log of the softmax of one item among itself and the rest."""
    logits = np.where(is_next | is_rest, utilities, -np.inf)
    chosen = utilities[is_next]
    total = np.logaddexp.reduce(logits, axis=1)
    return chosen - total, is_next - np.exp(logits - total[:, None])


def _tied_items(utilities: Floats, is_next: NDArray[np.bool_], is_rest: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Log of the chance that all of a group come before any of the rest, by the integral over time."""
    rest = np.logaddexp.reduce(np.where(is_rest, utilities, -np.inf), axis=1)
    rates = np.exp(np.clip(np.where(is_next, utilities - rest[:, None], 0.0), -500.0, 500.0))
    exposure = rates[:, :, None] * np.exp(NODES)  # (J, K, Q)
    rung = np.where(is_next[:, :, None], np.log(-np.expm1(-exposure)), 0.0)
    log_integrand = NODES - np.exp(NODES) + rung.sum(axis=1)
    log_total = np.logaddexp.reduce(log_integrand, axis=1)
    weights = np.exp(log_integrand - log_total[:, None])
    with np.errstate(over="ignore"):  # a clock that has rung long ago: 1 over infinity is the 0 that is meant
        by_rate = np.where(is_next[:, :, None], exposure / np.expm1(exposure), 0.0)
    by_next = np.einsum("jkq,jq->jk", by_rate, weights)
    share = np.exp(np.where(is_rest, utilities - rest[:, None], -np.inf))
    return log_total + np.log(NODES[1] - NODES[0]), by_next - share * by_next.sum(axis=1, keepdims=True)


def _wins(items: Ints, places: Ints, num_items: int) -> Floats:
    """(N, N) how often the row's item was placed above the column's."""
    wins = np.zeros((num_items, num_items))
    for place in range(places.max(initial=0)):
        row, better, worse = np.nonzero((places == place)[:, :, None] & (places > place)[:, None, :])
        np.add.at(wins, (items[row, better], items[row, worse]), 1.0)
    return wins
