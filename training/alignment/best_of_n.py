"""Best of n as mathematics: which law the best of n samples follows, how far that is from the law sampled from, what
n samples would have given had they been fewer, and which responses to keep.

Of n responses drawn from a policy the one with the highest reward is kept; of several with the same reward, one at
random. Only the order of the rewards counts. A reward that could not be computed is nan: such a response is left out,
and is neither the best nor the worst. Numpy only: nothing here knows of models or files.

Sources: A. Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", 2024 (the bound of the KL, and
that it is loose where single outputs are likely); the unbiased curve is a U-statistic, as in T. Coste et al., "Reward
model ensembles help mitigate overoptimization", 2023.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What is known exactly


def law(probs: ArrayLike, rewards: ArrayLike, n: int) -> Floats:
    """The probability of each of N responses to be the best of n.

    F(y)^n - F(y-)^n is the probability of a level of reward, where F is the distribution of the reward; those who
    share a level share it as they share the level under the policy.

    Args:
        probs: (N,) the policy's, which sum to 1.
        rewards: (N,) finite.

    Returns:
        (N,).

    Raises:
        ValueError: shapes differ, n is below 1, a probability is negative, or they do not sum to 1.
    """
    p, levels, masses = _levels(probs, rewards, n)
    shares = np.divide(p, masses[levels], out=np.zeros_like(p), where=p > 0)
    return shares * _best(masses, n)[levels]


def kl(probs: ArrayLike, rewards: ArrayLike, n: int) -> float:
    """The divergence of the best of n from the law that is sampled from, in nats. Arguments as of `law`."""
    _, _, masses = _levels(probs, rewards, n)
    masses = masses[masses > 0]
    best = _best(masses, n)
    best, masses = best[best > 0], masses[best > 0]
    return float((best * np.log(best / masses)).sum())


def expected_win_rate(probs: ArrayLike, rewards: ArrayLike, n: int) -> float:
    """How often the best of n has a higher reward than one more response; ties count half. Arguments as of `law`."""
    _, _, masses = _levels(probs, rewards, n)
    return float((_best(masses, n) * (masses.cumsum() - masses / 2)).sum())


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: what `kl` is where no two responses share a reward, and below which it is elsewhere.

    Source: Beirami et al. 2024, theorem 3.
    """
    return math.log(n) - (n - 1) / n


def win_rate(n: int) -> float:
    """n / (n + 1): what `expected_win_rate` is where no two responses share a reward."""
    return n / (n + 1)


def _levels(probs: ArrayLike, rewards: ArrayLike, n: int) -> tuple[Floats, Ints, Floats]:
    """(N,) probabilities, (N,) each response's level of reward, and (L,) the levels' probabilities in rising order."""
    p, r = np.asarray(probs, float), np.asarray(rewards, float)
    if p.ndim != 1 or p.shape != r.shape:
        raise ValueError(f"probs {p.shape} and rewards {r.shape} must both be (N,)")
    if n < 1:
        raise ValueError(f"n: {n} is below 1")
    if not np.isfinite(r).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise ValueError("probs must be probabilities that sum to 1, and rewards finite")
    levels: Ints = np.unique(r, return_inverse=True)[1]
    return p, levels, np.bincount(levels, weights=p).astype(float)


def _best(masses: Floats, n: int) -> Floats:
    """(L,) the probability that the best of n is in each level; exact also where a level's mass is tiny."""
    above = np.minimum(masses.cumsum(), 1.0)
    below = above - masses
    share = np.divide(masses, above, out=np.zeros_like(masses), where=above > 0)
    with np.errstate(divide="ignore"):  # the lowest level has nothing below it
        return above**n * -np.expm1(n * np.log1p(-np.where(below > 0, share, 1.0)))


# What samples tell


def estimate_kl(rewards: ArrayLike, n: int) -> float:
    """The divergence of the best of n from the policy for one prompt, in nats, estimated from N samples' rewards.

    The bound holds with equality where no two responses share a reward. Each level of reward that does hold a share
    b - a of the probability, between the quantiles a and b, takes off what is lost by not telling its members apart:

        ∫ f log f - (F(b) - F(a)) log((F(b) - F(a)) / (b - a))     over a < u < b, with f = n u^(n-1) and F = u^n

    This loss, divided by b - a, is averaged over the samples; each sees its level as the other N - 1 samples show it.
    So a level seen once loses nothing, and equal rewards, of one text sampled again or of several, do. Bias: none
    where rewards are continuous; elsewhere too low, for the loss is convex in the share, by 1 % for n <= N / 4 and by a
    few for n = N (much more where the best level itself has a probability below 1 / n). It vanishes as N grows.

    Args:
        rewards: (N,), nan where one is missing, which is left out.

    Returns:
        Between 0 and `kl_bound(n)`; nan where fewer than two rewards are known, unless n is 1 too.
    """
    known = _known(rewards)
    if len(known) < 2:
        return 0.0 if n == 1 == len(known) else math.nan
    _, counts = np.unique(known, return_counts=True)
    a = ((counts.cumsum() - counts) / (len(known) - 1))[counts > 1]
    counts = counts[counts > 1]
    share = (counts - 1) / (len(known) - 1)
    b = a + share
    mass = b**n - a**n
    inside = math.log(n) * mass + (n - 1) * (_moment(b, n) - _moment(a, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.where(mass > 0, mass * np.log(mass / share), 0.0)
    loss = ((inside - between) / share * counts).sum() / len(known)
    return float(np.clip(kl_bound(n) - loss, 0.0, kl_bound(n)))


def curve(selecting: ArrayLike, graded: ArrayLike | None = None) -> Floats:
    """The mean reward of the best of n samples of one prompt, for n from 1 to N, without bias from N samples.

    Sum over i of C(i - 1, n - 1) / C(N, n) times the i-th lowest: the mean over all choices of n among the N. Where
    the selecting reward ties, the graded one is averaged over the tied: the mean over all ways of breaking the tie.

    Args:
        selecting: (N,) the rewards that choose.
        graded: (N,) the rewards to be told of the chosen; the same ones where none are given.

    Returns:
        (N,), nan from n above the number of samples that have both rewards.

    Raises:
        ValueError: shapes differ.
    """
    chooses = np.asarray(selecting, float)
    tells = chooses if graded is None else np.asarray(graded, float)
    if chooses.ndim != 1 or chooses.shape != tells.shape:
        raise ValueError(f"selecting {chooses.shape} and graded {tells.shape} must both be (N,)")
    known = np.isfinite(chooses) & np.isfinite(tells)
    _, levels = np.unique(chooses[known], return_inverse=True)
    counts = np.bincount(levels)
    means = np.bincount(levels, weights=tells[known]) / counts
    num_known = int(known.sum())
    found = np.full(len(chooses), np.nan)
    if num_known:
        found[:num_known] = _weights(num_known) @ np.repeat(means, counts)
    return found


def mean_over_prompts(values: ArrayLike) -> tuple[Floats, Floats]:
    """Means over B prompts and their 95 % intervals by Student's t: prompts, not responses, are independent.

    Args:
        values: (B, N), nan where a prompt has none, which is left out.

    Returns:
        (N,) and (N, 2); nan where there is nothing, or for an interval fewer than two prompts.
    """
    found = np.atleast_2d(np.asarray(values, float))
    is_known = np.isfinite(found)
    counts = is_known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(is_known, found, 0.0).sum(0) / counts
        squares = np.where(is_known, (found - means) ** 2, 0.0).sum(0)
        margins = stdtrit(np.maximum(counts - 1, 1), 0.975) * np.sqrt(squares / (counts - 1) / counts)
    return means, np.stack([means - margins, means + margins], axis=1)


def _known(rewards: ArrayLike) -> Floats:
    found = np.asarray(rewards, float)
    return found[np.isfinite(found)]


def _moment(u: Floats, n: int) -> Floats:
    """The integral of n v^(n-1) log v over 0 < v < u."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(u > 0, u**n * (np.log(u) - 1 / n), 0.0)


@lru_cache(maxsize=16)
def _weights(num_samples: int) -> Floats:
    """(N, N): in row n - 1 what the i-th lowest of N counts for in the best of n; by logarithms, for N in hundreds."""
    n = np.arange(1, num_samples + 1)[:, None]
    i = np.arange(1, num_samples + 1)[None, :]
    larger = np.maximum(i, n)  # where i < n there is no such choice
    logs = _log_choose(larger - 1, n - 1) - _log_choose(num_samples, n)
    return np.where(i >= n, np.exp(logs), 0.0)


def _log_choose(n: NDArray[np.int64] | int, k: Ints) -> Floats:
    found: Floats = gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)
    return found


# What is kept


def best_first(rewards: Sequence[float], rng: random.Random) -> list[int]:
    """The places of the responses that have a reward, best first, and in random order where rewards are equal.

    By chance and never by place: or else the first sample would win every tie.
    """
    places = [place for place, reward in enumerate(rewards) if math.isfinite(reward)]
    rng.shuffle(places)
    return sorted(places, key=lambda place: -rewards[place])


def best_of(rewards: Sequence[float], rng: random.Random) -> int | None:
    """The place of the highest reward, of several one at random; nothing where no response has a reward.

    Args:
        rewards: (K,), nan where a response could not be scored.
    """
    return next(iter(best_first(rewards, rng)), None)


def keep_best(
    responses: Sequence[str],
    rewards: Sequence[float],
    rng: random.Random,
    *,
    num_kept: int = 1,
    floor: float = -math.inf,
    margin: float = 0.0,
    is_distinct: bool = True,
) -> list[int]:
    """The places of the `num_kept` best responses to a prompt, best first; fewer where there are no more.

    Args:
        responses, rewards: (n,).
        floor: responses with a lower reward are not kept.
        margin: none is kept where the best reward leads the mean by less.
        is_distinct: keep each text once at the most. A text that was sampled often is likelier to win a tie by it.
    """
    places = best_first(rewards, rng)
    if not places or rewards[places[0]] - math.fsum(rewards[place] for place in places) / len(places) < margin:
        return []
    return _first([place for place in places if rewards[place] >= floor], responses, num_kept, is_distinct)


def keep_pair(
    responses: Sequence[str],
    rewards: Sequence[float],
    rng: random.Random,
    *,
    floor: float = -math.inf,
    margin: float = 0.0,
) -> tuple[int, int] | None:
    """The places of the best and of the worst response to a prompt.

    Nothing where they are equally good or the same text, where the best one is below `floor`, or where it leads the
    worst by less than `margin`.
    """
    places = best_first(rewards, rng)
    if len(places) < 2:
        return None
    best, worst = places[0], places[-1]
    lead = rewards[best] - rewards[worst]
    is_clear = lead > 0 and lead >= margin and rewards[best] >= floor and responses[best] != responses[worst]
    return (best, worst) if is_clear else None


def keep_random(
    responses: Sequence[str], rewards: Sequence[float], rng: random.Random, *, num_kept: int, is_distinct: bool = True
) -> list[int]:
    """The places of as many responses drawn at random, of those that `keep_best` chooses among.

    One of n is a draw from the policy: this is what fine-tuning on its own samples does by itself.
    """
    places = best_first(rewards, rng)
    rng.shuffle(places)
    return _first(places, responses, num_kept, is_distinct)


def _first(places: Sequence[int], responses: Sequence[str], num_kept: int, is_distinct: bool) -> list[int]:
    if not is_distinct:
        return list(places[:num_kept])
    distinct: dict[str, int] = {}
    for place in places:
        distinct.setdefault(responses[place], place)
    return list(distinct.values())[:num_kept]
