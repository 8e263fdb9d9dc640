"""How often judgments are the wrong way round, from judgments alone, before any reward model is trained.

Two people differ about a pair because it is close, or because one of them slipped. What tells these apart is the shape
of the disagreement. Close pairs split their votes in all proportions; slips leave the same few dissenters on every
pair, however clear. So pairs must be judged repeatedly, and by at least four people: two and three votes give only the
mean squared lead of one side, to which many closenesses with as many flip rates lead alike; the fourth power, which
tells them apart, takes four. Even then it takes many: where differences have a spread of 2 nats and one vote in ten is
a slip, 1,000 pairs of ten votes give an interval of 0.1, and 5,000 pairs of five votes one of 0.14. A tournament can do
without repeats, as the strengths of its items say how close each pair is.

The flip rate is what `losses.Likelihood` takes, and soft labels what `losses.bradley_terry_loss` takes as target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_expit, logsumexp

MIN_VOTES = 4
MIN_PAIRS = 30  # with so many votes
MIN_VOTES_PER_ITEM = 50  # of a tournament
MAX_WIDTH = 0.25  # of the interval: with a wider one, half of the possible rates are as likely
MAX_SPREAD = 10.0  # of differences in nats: hardly a pair is then close
MIN_RATE, MAX_RATE = 1e-9, 0.499
NUM_NODES = 100  # of the quadrature
NUM_RATES = 26  # tried before the best is refined
LBFGS = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-5}
CRITICAL = 1.920729  # nats, half of chi-squared's 95 % point at one degree of freedom

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NotIdentifiedError(ValueError):
    """The votes fit a wide range of flip rates."""


@dataclass(frozen=True)
class FlipRate:
    """A share of judgments that are the wrong way round.

    Attributes:
        rate: of the highest likelihood.
        interval: of 95 %, by the likelihood's profile.
        spread: standard deviation of the pairs' differences, in nats.
    """

    rate: float
    interval: tuple[float, float]
    spread: float


@dataclass(frozen=True)
class NoisyTournament:
    """Strengths of items whose pairs were judged with slips.

    Attributes:
        strengths: (N,) in log-odds, mean zero.
        rate: share of the judgments that are the wrong way round.
        interval: of 95 % for the rate, by the likelihood's profile.
    """

    strengths: Floats
    rate: float
    interval: tuple[float, float]


def estimate_flip_rate(wins: ArrayLike, votes: ArrayLike) -> FlipRate:
    """The flip rate that explains best how votes on the same pairs differ.

    A pair's difference d is normal about 0 with a spread that is estimated too, each vote on it is for the first with
    probability rho + (1 - 2 rho) sigmoid(d), and d is integrated out by Gauss-Hermite quadrature.

    Args:
        wins: (N,) votes of each pair for its first response.
        votes: (N,) all its votes; who voted does not count, so annotators should err about equally often.

    Raises:
        NotIdentifiedError: fewer than 30 pairs have four votes, or the interval is wider than 0.25.
        ValueError: shapes differ, or there are not 0 <= wins <= votes.
    """
    first, total = _checked(wins, votes)
    if (num_told := int((total >= MIN_VOTES).sum())) < MIN_PAIRS:
        raise NotIdentifiedError(
            f"{num_told} pairs have {MIN_VOTES} votes or more; {MIN_PAIRS} are needed to tell slips from close pairs"
        )
    log_likelihood = _repeats_log_likelihood(first, total)

    def profile(rate: float) -> tuple[float, float]:
        fit = minimize_scalar(lambda spread: -log_likelihood(rate, spread), bounds=(0, MAX_SPREAD), method="bounded")
        return -float(fit.fun), float(fit.x)

    rate, interval = _most_likely(profile)
    return FlipRate(rate, interval, profile(rate)[1])


def fit_noisy_tournament(winners: ArrayLike, losers: ArrayLike, num_items: int, *, l2: float = 1e-3) -> NoisyTournament:
    """Strengths and flip rate of the highest likelihood, where each judgment is wrong alike.

    Strengths are fitted to the slips too, so the fewer votes an item has, the lower the rate comes out: not noticeably
    from 50 votes an item and up to a rate of 0.3, but 0.45 comes out as 0.39 at 50 votes an item, and as 0.43 at 150.

    Args:
        winners, losers: (V,) int, items from 0 to N - 1 of each judgment.
        num_items: N.
        l2: of a weak ridge on strengths, l2 / 2 times their sum of squares in nats: an item that lost to all has a
            finite strength, and items that never met are placed by it.

    Raises:
        NotIdentifiedError: there are fewer than 50 votes an item, or the interval of the rate is wider than 0.25.
        ValueError: shapes differ, there is no judgment, an item is out of range or meets itself, or l2 is not positive.

    Source: the model of X. Chen et al. (Crowd-BT, WSDM 2013) with a single annotator.
    """
    pairs, counts = _counted(winners, losers, num_items)
    if l2 <= 0:
        raise ValueError(f"l2 {l2} must be positive")
    if counts.sum() < MIN_VOTES_PER_ITEM * num_items:
        raise NotIdentifiedError(
            f"{counts.sum():.0f} votes on {num_items} items; {MIN_VOTES_PER_ITEM} an item are needed, as strengths "
            "fitted to fewer explain slips away"
        )

    def profile(rate: float) -> tuple[float, Floats]:
        arguments = (rate, pairs, counts, l2)
        fit = minimize(_tournament, np.zeros(num_items), arguments, jac=True, method="L-BFGS-B", options=LBFGS)
        if not fit.success:
            raise RuntimeError(f"strengths did not converge: {fit.message}")
        return -float(fit.fun), fit.x

    rate, interval = _most_likely(profile)
    strengths = profile(rate)[1]
    return NoisyTournament(strengths - strengths.mean(), rate, interval)


def soft_labels(wins: ArrayLike, votes: ArrayLike, *, prior_votes: float = 1.0) -> Floats:
    """(N,) probability that the next vote on each pair is for its first response.

    It is the share of its votes together with `prior_votes` that are divided equally: one is Jeffreys' prior, none is
    the share itself. A pair without votes has one half.

    Raises:
        ValueError: shapes differ, or there are not 0 <= wins <= votes, or `prior_votes` is negative.
    """
    first, total = _checked(wins, votes)
    if prior_votes < 0:
        raise ValueError(f"prior_votes {prior_votes} must not be negative")
    share = np.full(len(total), 0.5)
    np.divide(first + prior_votes / 2, total + prior_votes, out=share, where=total + prior_votes > 0)
    return share


def _checked(wins: ArrayLike, votes: ArrayLike) -> tuple[Floats, Floats]:
    first, total = np.asarray(wins, dtype=np.float64), np.asarray(votes, dtype=np.float64)
    if first.ndim != 1 or first.shape != total.shape:
        raise ValueError(f"wins {first.shape} and votes {total.shape} must both be (N,)")
    if not ((first >= 0) & (first <= total)).all():
        raise ValueError("wins must be at least 0 and at most votes")
    return first, total


def _repeats_log_likelihood(wins: Floats, votes: Floats) -> Callable[[float, float], float]:
    """Log-likelihood of a flip rate and a spread; pairs with the same votes, or mirrored ones, are counted once."""
    fewer = np.minimum(wins, votes - wins)
    kinds, counts = np.unique(np.stack([fewer, votes], 1), axis=0, return_counts=True)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    is_used = weights > 0
    nodes, log_weights = nodes[is_used], np.log(weights[is_used] / weights.sum())

    def log_likelihood(rate: float, spread: float) -> float:
        right, wrong = log_expit(spread * nodes), log_expit(-spread * nodes)
        kept, flipped = np.log1p(-rate), np.log(max(rate, MIN_RATE))
        log_first, log_second = np.logaddexp(kept + right, flipped + wrong), np.logaddexp(kept + wrong, flipped + right)
        log_votes = kinds[:, :1] * log_first + (kinds[:, 1:] - kinds[:, :1]) * log_second
        return float(counts @ logsumexp(log_votes + log_weights, axis=1))

    return log_likelihood


def _most_likely(profile: Callable[[float], tuple[float, Any]]) -> tuple[float, tuple[float, float]]:
    """The flip rate at which `profile` is highest, and those that the ratio of likelihoods does not reject at 5 %.

    Args:
        profile: from a flip rate to the highest log-likelihood at it, and whatever gives that.
    """
    rates = np.linspace(0, MAX_RATE, NUM_RATES)
    values = [profile(rate)[0] for rate in rates]
    place = int(np.argmax(values))
    bounds = (rates[max(place - 1, 0)], rates[min(place + 1, NUM_RATES - 1)])
    fit = minimize_scalar(lambda rate: -profile(rate)[0], bounds=bounds, method="bounded")
    rate, best = (float(fit.x), -fit.fun) if -fit.fun > values[place] else (float(rates[place]), values[place])

    def surplus(at: float) -> float:
        return profile(at)[0] - best + CRITICAL

    low = 0.0 if surplus(0.0) >= 0 else float(brentq(surplus, 0.0, rate, xtol=1e-5))
    high = MAX_RATE if surplus(MAX_RATE) >= 0 else float(brentq(surplus, rate, MAX_RATE, xtol=1e-5))
    if high - low > MAX_WIDTH:
        raise NotIdentifiedError(f"flip rates between {low:.3f} and {high:.3f} fit these votes; more votes would tell")
    return rate, (low, high)


def _counted(winners: ArrayLike, losers: ArrayLike, num_items: int) -> tuple[Ints, Floats]:
    """(P, 2) the winner and loser of each outcome, and (P,) how often it came."""
    won, lost = np.asarray(winners), np.asarray(losers)
    if won.ndim != 1 or won.shape != lost.shape or not len(won):
        raise ValueError(f"winners {won.shape} and losers {lost.shape} must both be (V,), and not empty")
    if min(won.min(), lost.min()) < 0 or max(won.max(), lost.max()) >= num_items or (won == lost).any():
        raise ValueError(f"winner and loser must be two of the items 0 to {num_items - 1}")
    pairs, counts = np.unique(np.stack([won, lost], 1), axis=0, return_counts=True)
    return pairs, counts.astype(np.float64)


def _tournament(strengths: Floats, rate: float, pairs: Ints, counts: Floats, l2: float) -> tuple[float, Floats]:
    """The negative log-likelihood of strengths, ridge included, and its gradient."""
    right = expit(strengths[pairs[:, 0]] - strengths[pairs[:, 1]])
    share = np.maximum(rate + (1 - 2 * rate) * right, np.finfo(np.float64).tiny)
    pull = -counts * (1 - 2 * rate) * right * (1 - right) / share
    gradient = np.bincount(pairs[:, 0], pull, len(strengths)) - np.bincount(pairs[:, 1], pull, len(strengths))
    value = -counts @ np.log(share) + l2 / 2 * strengths @ strengths
    return float(value), gradient + l2 * strengths
