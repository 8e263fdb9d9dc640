"""Several judgments of one comparison as one ranking, and how certain it is.

Every pair of responses in a comparison has a right answer (the first is better, the second is, or they tie), all three
alike likely before anyone judged. An annotator of reliability eta tells it with probability eta, and each of the two
others with (1 - eta) / 2; judgments are independent given the answer. That gives each pair its posterior. Responses
are ordered by how many of the others each is expected to beat (Borda's count, of posteriors), and neighbours whose
likeliest answer is a tie share a place.

The certainty of a ranking is the posterior of the least certain thing that it says about a pair, so it can be compared
between lists of any length: for a pair it is the probability that the ranking is right, for a list the most that this
probability can be. Lowest first is the order in which reviewers should look.

Nothing here looks from one comparison to another, so a new judgment changes only its own comparison.

Letters besides those of the house: J judgments, N comparisons, K the most responses that one of them has.

Source: the posterior is that of A. P. Dawid and A. M. Skene, 1979, with known reliabilities (see `annotators`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.stats.bradley_terry import FIRST, SECOND, TIE

UNRANKED = -1  # the place of a response that a judgment does not place, and of padding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Consensus:
    """Of each comparison its consensus ranking.

    Attributes:
        places: (N, K) 0 for the best, ties share a place, no place is left out; UNRANKED where nobody placed it.
        certainty: (N,) 0 to 1; 1/3 for judgments that tell nothing, 0 where none placed two responses.
        pair_posteriors: (N, K, K, 3) that the row's response is better, that the column's is, that they tie.
    """

    places: Ints
    certainty: Floats
    pair_posteriors: Floats

    def least_certain_first(self) -> Ints:
        """(N,) comparisons in the order for reviewers; equally certain ones as they came."""
        return np.argsort(self.certainty, kind="stable")


def consensus(comparison: ArrayLike, places: ArrayLike, reliability: ArrayLike, *, num_comparisons: int) -> Consensus:
    """The consensus rankings of many comparisons at once.

    Args:
        comparison: (J,) 0 to N - 1, which comparison each judgment is of.
        places: (J, K) int, where each judgment places each response: the smaller the better, equal ones tie. Any
            numbers from 0 on will do; UNRANKED says nothing of that response, and fills up comparisons of fewer than K.
        reliability: (J,) above 0 and below 1, of the judgment's annotator: the probability of telling a pair rightly.
            1/3 tells nothing, and less speaks against what is said.
        num_comparisons: N.

    Raises:
        ValueError: shapes differ, a comparison or place is out of range, or a reliability is 0 or 1 or beyond.
    """
    of, place = np.asarray(comparison, dtype=np.int64), np.asarray(places, dtype=np.int64)
    eta = np.asarray(reliability, dtype=float)
    _check(of, place, eta, num_comparisons)
    posteriors = _pair_posteriors(of, place, eta, num_comparisons)
    is_ranked = np.zeros((num_comparisons, place.shape[1]), dtype=bool)
    np.logical_or.at(is_ranked, of, place != UNRANKED)
    stated = _stated_places(posteriors, is_ranked)
    return Consensus(stated, _certainty(stated, posteriors), posteriors)


def _check(of: Ints, place: Ints, eta: Floats, num_comparisons: int) -> None:
    if place.ndim != 2 or of.shape != place.shape[:1] or eta.shape != of.shape:
        raise ValueError(f"comparison {of.shape} and reliability {eta.shape} must be (J,), places {place.shape} (J, K)")
    if of.size and (of.min() < 0 or of.max() >= num_comparisons):
        raise ValueError(f"comparison must be 0 to {num_comparisons - 1}")
    if place.size and place.min() < UNRANKED:
        raise ValueError("places must be from 0 on, or UNRANKED")
    if not ((eta > 0) & (eta < 1)).all():
        raise ValueError("reliability must be above 0 and below 1: nobody is certain")


def _pair_posteriors(of: Ints, place: Ints, eta: Floats, num_comparisons: int) -> Floats:
    """(N, K, K, 3), even where nobody said anything."""
    num_responses = place.shape[1]
    one, other = place[:, :, None], place[:, None, :]
    said = np.where(one < other, FIRST, np.where(one > other, SECOND, TIE))
    judgment, row, column = np.nonzero((one != UNRANKED) & (other != UNRANKED))
    pair = (of[judgment] * num_responses + row) * num_responses + column
    evidence = np.log(2 * eta / (1 - eta))[judgment]  # how much likelier what was said is than each other answer
    size = num_comparisons * num_responses**2 * 3
    logits = np.bincount(pair * 3 + said[judgment, row, column], evidence, size).reshape(-1, 3)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shape = (num_comparisons, num_responses, num_responses, 3)
    return (weights / weights.sum(axis=1, keepdims=True)).reshape(shape)


def _stated_places(posteriors: Floats, is_ranked: NDArray[np.bool_]) -> Ints:
    """(N, K) by expected wins, best first; unranked responses stand last in the sorting and get no place."""
    wins = (posteriors[..., FIRST] + posteriors[..., TIE] / 2) * is_ranked[:, None, :]
    # rounded, so that equal evidence added up in another order is equal
    scores = np.where(is_ranked, np.round(wins.sum(axis=2), 9), -1.0)
    order = np.argsort(-scores, axis=1, kind="stable")
    best_first = np.take_along_axis(scores, order, axis=1)
    between = posteriors[np.arange(len(order))[:, None], order[:, :-1], order[:, 1:]]
    ties = (between[..., TIE] > between[..., FIRST]) & (between[..., TIE] > between[..., SECOND])
    is_next = ~(ties | (best_first[:, :-1] == best_first[:, 1:]))
    sorted_places = np.concatenate([np.zeros((len(order), 1), dtype=np.int64), np.cumsum(is_next, axis=1)], axis=1)
    stated = np.empty_like(sorted_places)
    np.put_along_axis(stated, order, sorted_places, axis=1)
    return np.where(is_ranked, stated, UNRANKED)


def _certainty(stated: Ints, posteriors: Floats) -> Floats:
    """(N,) the lowest posterior of what is stated about any pair."""
    one, other = stated[:, :, None], stated[:, None, :]
    says = np.where(one < other, FIRST, np.where(one > other, SECOND, TIE))
    of_stated = np.take_along_axis(posteriors, says[..., None], axis=3)[..., 0]
    is_pair = (one != UNRANKED) & (other != UNRANKED) & ~np.eye(stated.shape[1], dtype=bool)
    lowest = np.where(is_pair, of_stated, 1.0).min(axis=(1, 2), initial=1.0)
    return np.where(is_pair.any(axis=(1, 2)), lowest, 0.0)
