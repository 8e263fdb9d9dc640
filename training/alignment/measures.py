"""Measures of agreement between rewards and judgments, as functions of arrays, and their intervals by prompt.

Judgments on one prompt resemble each other, and a list of K makes K (K - 1) / 2 pairs that share responses, so the
prompts, not the pairs, are what an interval counts as independent. Every measure here is a function of sums over
pairs or rankings; so the sums of each prompt are made once, and a replicate of the bootstrap only weighs them.

A figure is {"value", "interval"}: the interval is [low, high], or nothing where there is one prompt, or all are alike,
and the measure has no bounds of its own. A measure of nothing is None.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri, stdtrit
from scipy.stats import binomtest, rankdata

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Figure = dict[str, Any] | None
Statistic = Callable[[Floats], Floats]
"""(…, F) sums of the columns -> (…,) values."""

CONFIDENCE = 0.95
NUM_REPLICATES = 1000
MAX_CLUSTERS = 2000
FEW = 20  # prompts; with fewer the bootstrap's intervals of a share are too narrow
ALIKE = 1e-9  # by what means of clusters differ that are the same but for rounding
NUM_BINS, MIN_PAIRS_PER_BIN = 15, 10


class Clustered:
    """Figures of N units that come in independent clusters, with 95 % bootstrap intervals: pairs, by prompt.

    The interval is the expanded percentile one: its quantiles are Student's, so that few clusters make it no narrower
    than an interval of a mean would be. More than 2,000 clusters are thrown together into 2,000 by chance, which
    estimates the same variance to 2 %, in little time and memory.

    Args:
        clusters: (N,) the number of each unit's cluster.
        seed: of the replicates.

    Source: T. C. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69(4), 2015.
    """

    def __init__(self, clusters: Ints, seed: int = 0) -> None:
        distinct, places = np.unique(clusters, return_inverse=True)
        self.num_clusters = len(distinct)
        self._num_groups = min(self.num_clusters, MAX_CLUSTERS)
        self._seed = seed
        shuffled = np.random.default_rng(seed).permutation(self.num_clusters)
        self._group = shuffled[places] % MAX_CLUSTERS

    def estimate(self, statistic: Statistic, *columns: NDArray[Any], is_biased: bool = False) -> Figure:
        """The figure that `statistic` makes of the sums of F columns, (N,) each.

        Args:
            is_biased: the noise of a sample raises the statistic, and that of a replicate raises it once more, by about
                as much; the interval is moved down by that.
        """
        if not self.num_clusters:
            return None
        sums = self._sums(columns)
        value = float(statistic(sums.sum(0)))
        if not math.isfinite(value):
            return None
        return {"value": value, "interval": self._interval(statistic, sums, value if is_biased else None)}

    def share(self, successes: NDArray[Any], trials: NDArray[Any] | None = None) -> Figure:
        """The share of successes; where clusters are few or all alike, with the interval of `clustered_interval`."""
        if not self.num_clusters:
            return None
        sums = self._sums([successes, np.ones(len(successes)) if trials is None else trials])
        each = _ratio(sums)
        value = float(_ratio(sums.sum(0)))
        if self.num_clusters < FEW or np.ptp(each) == 0:
            return {"value": value, "interval": list(clustered_interval(sums.tolist()))}
        return {"value": value, "interval": self._interval(_ratio, sums, None)}

    def mean(self, values: NDArray[Any], bounds: tuple[float, float] | None = None) -> Figure:
        """The mean of (N,) values.

        Where clusters are all alike a bootstrap knows no spread. The interval is then that of a share, of the way from
        the lower to the upper of the `bounds` that no value can exceed; without bounds there is none.
        """
        if not self.num_clusters:
            return None
        sums = self._sums([values, np.ones(len(values))])
        if np.ptp(_ratio(sums)) > ALIKE:
            return self.estimate(_ratio, values, np.ones(len(values)))
        return {"value": float(_ratio(sums.sum(0))), "interval": _interval_within(bounds, sums) if bounds else None}

    def _sums(self, columns: Sequence[NDArray[Any]]) -> Floats:
        """(G, F) sums of each group of clusters."""
        return np.stack([np.bincount(self._group, column, self._num_groups) for column in columns], axis=-1)

    def _interval(self, statistic: Statistic, sums: Floats, value: float | None) -> list[float] | None:
        if self.num_clusters < 2:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = statistic(self._weights @ sums)
        replicates = replicates[np.isfinite(replicates)]
        tail = ndtr(stdtrit(self._num_groups - 1, (1 - CONFIDENCE) / 2) * _expansion(self._num_groups))
        low, high = np.quantile(replicates, [tail, 1 - tail])
        if value is not None:
            bias = replicates.mean() - value
            low, high = max(0.0, low - bias), max(0.0, high - bias)
        return [float(low), float(high)]

    @cached_property
    def _weights(self) -> Floats:
        """(R, G) how often each group is drawn in each replicate."""
        shape = (NUM_REPLICATES, self._num_groups)
        drawn = np.random.default_rng([self._seed, 1]).integers(self._num_groups, size=shape)
        drawn += self._num_groups * np.arange(NUM_REPLICATES)[:, None]
        return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape).astype(np.float64)


def numbered(keys: Iterable[str]) -> Ints:
    """(N,) a number for each key, from 0, the same for equal ones."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def clustered_interval(counts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of a share, from (successes, trials) of each cluster; clusters are independent, trials are not.

    Wilson's interval at an effective number of trials: their number divided by the design effect, which is the
    variance between clusters (linearised, of a ratio) over that of independent trials, and by the squared ratio of
    Student's quantile at G - 1 degrees of freedom to the normal one. Two clusters of mean size, one all successes and
    one all failures, are added before the design effect is estimated, as Agresti and Coull add two of each to the
    trials: so few clusters, or clusters that are all alike, give a cautious interval instead of a degenerate one.
    In simulations with 5 to 100 clusters of 1 to 28 trials it covers the truth in 94 to 100 % of cases, 91 % in the
    worst (10 clusters of very unequal size whose trials nearly all agree).

    Sources: E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", Survey Methodology 24(2), 1998; A. Agresti and B. A. Coull,
    "Approximate is better than exact for interval estimation of binomial proportions", 1998.
    """
    num_clusters, num_trials = len(counts), sum(trials for _, trials in counts)
    if num_clusters < 2:
        return (0.0, 1.0)
    quantile = float(ndtri(0.5 + CONFIDENCE / 2))
    shrink = quantile / float(stdtrit(num_clusters - 1, 0.5 + CONFIDENCE / 2))
    mean_size = num_trials / num_clusters
    design_effect = _design_effect([*counts, (mean_size, mean_size), (0.0, mean_size)])
    effective = min(num_trials, num_trials / design_effect) * shrink**2
    return _wilson(sum(successes for successes, _ in counts) / num_trials, effective, quantile)


# Pairs and rankings


def judged_pairs(groups: Sequence[Sequence[int]], values: Sequence[Floats]) -> tuple[Ints, Bools, Floats, Floats]:
    """All pairs of responses that were ranked together, the better one first.

    Args:
        groups: for each ranking the group of each of its K responses: 0 the best, equal tied, -1 not ranked.
        values: (K, V) for each ranking, what is to be known of its responses.

    Returns:
        (N,) the number of the pair's ranking; (N,) whether the two are tied, and then either may stand first;
        (N, V) the values of the better one, and of the worse one.
    """
    found = [(np.empty(0, np.int64), np.empty(0, np.bool_), *(np.empty((0, values[0].shape[1] if values else 0)),) * 2)]
    for rows, group, value in _by_size(groups, values):
        one, other = np.triu_indices(group.shape[1], 1)
        first, second = group[:, one], group[:, other]
        row, pair = np.nonzero((first >= 0) & (second >= 0))
        one, other, first, second = one[pair], other[pair], first[row, pair], second[row, pair]
        is_swapped = second < first
        better, worse = np.where(is_swapped, other, one), np.where(is_swapped, one, other)
        found.append((rows[row], first == second, value[row, better], value[row, worse]))
    ranking, is_tied, better, worse = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ranking, is_tied, better, worse


def top_1(groups: Sequence[Sequence[int]], scores: Sequence[Floats]) -> Floats:
    """(B,) whether the highest score is in the best group; where several are highest, the share of them that are.

    Responses that were not ranked do not count, and a ranking that puts nothing above anything is nan.
    """
    found = np.full(len(groups), np.nan)
    for rows, group, value in _by_size(groups, [np.asarray(own)[:, None] for own in scores]):
        score = np.where(group >= 0, value[..., 0], -np.inf)
        is_highest = score == score.max(1, keepdims=True)
        share = (is_highest & (group == 0)).sum(1) / is_highest.sum(1)
        found[rows] = np.where(group.max(1) > 0, share, np.nan)
    return found


def kendall_tau_b(ranking: Ints, is_tied: Bools, margins: Floats, num_rankings: int) -> Floats:
    """(B,) Kendall's tau-b of each ranking from its pairs, as `judged_pairs` gives them.

    Nothing is known (nan) of a ranking that only ties; equal scores throughout agree with nothing, which is 0.

    Source: M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33(3), 1945.
    """
    concordant = np.bincount(ranking, np.where(is_tied, 0.0, np.sign(margins)), num_rankings)
    num_ordered = np.bincount(ranking, ~is_tied, num_rankings)
    num_scored_apart = np.bincount(ranking, margins != 0, num_rankings)
    tau = concordant / np.sqrt(np.maximum(1, num_ordered * num_scored_apart))
    return np.where(num_ordered > 0, tau, np.nan)


def spearman(xs: Sequence[Floats], ys: Sequence[Floats]) -> Floats:
    """(B,) rank correlation of each x with its y, (K,) both; 0 where x is constant, nan where y is."""
    found = np.full(len(xs), np.nan)
    groups = [[0] * len(x) for x in xs]
    for rows, _, value in _by_size(groups, [np.stack([x, y], axis=-1) for x, y in zip(xs, ys, strict=True)]):
        ranks = rankdata(value, axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        squares = (ranks**2).sum(1)
        products = ranks.prod(-1).sum(1)
        correlation = products / np.sqrt(np.where(squares > 0, squares, 1.0).prod(-1))
        found[rows] = np.where(squares[:, 1] > 0, correlation, np.nan)
    return found


def right(margins: Floats) -> Floats:
    """(N,) 1 where the better response has the higher reward, one half where rewards are equal."""
    return np.heaviside(margins, 0.5)


def right_with_ties(margins: Floats, is_tied: Bools) -> tuple[Floats, float]:
    """(N,) whether each judged pair got its verdict, and the margin up to which the model is taken to call a tie.

    That margin is the one that makes most verdicts right here; among several the least. Without tied pairs it is 0.

    Source: D. Deutsch, G. Foster and M. Freitag, "Ties matter: meta-evaluating modern metrics with pairwise accuracy
    and tie calibration", EMNLP 2023.
    """
    sizes, place = np.unique(np.append(np.abs(margins), 0.0), return_inverse=True)
    place = place[:-1]
    gain = np.bincount(place, is_tied, len(sizes)) - np.bincount(place, ~is_tied & (margins > 0), len(sizes))
    threshold = sizes[np.argmax(np.cumsum(gain))]
    is_called_tie = np.abs(margins) <= threshold
    return np.where(is_tied, is_called_tie, ~is_called_tie & (margins > 0)).astype(np.float64), float(threshold)


# Calibration


def log_losses(margins: Floats) -> Floats:
    """(N,) nats, of margins in log-odds."""
    return np.logaddexp(0.0, -margins)


def brier_scores(margins: Floats) -> Floats:
    """(N,) squared distances of the better response's probability from one."""
    return expit(-margins) ** 2


def confidence(margins: Floats) -> Floats:
    """(N,) the probability of the response that the model puts first."""
    return expit(np.abs(margins))


def equal_mass_bins(values: Floats) -> Ints:
    """(N,) which of 15 bins of equally many each value is in; of fewer where a bin would have fewer than ten.

    Equal values are in one bin, whatever their order.
    """
    num_bins = max(1, min(NUM_BINS, len(values) // MIN_PAIRS_PER_BIN))
    edges = np.sort(values)[np.arange(1, num_bins) * len(values) // num_bins]
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]


def calibration_error(clustered: Clustered, margins: Floats) -> Figure:
    """Expected calibration error: the mean distance of confidence from accuracy over `equal_mass_bins`.

    Noise alone makes it positive; what it makes of it is `error_if_calibrated`. The interval is of this error as it is
    measured on so many pairs, noise included: to hold it against 0 says nothing, as a perfectly calibrated model's does
    not hold 0 but, as a rule, what is to be expected of one.

    Args:
        clustered: by the prompts of the pairs.
        margins: (N,) in log-odds, each pair once.
    """
    if not len(margins):
        return None
    bins = equal_mass_bins(confidence(margins))
    excess = confidence(margins) - right(margins)
    columns = [np.where(bins == number, excess, 0.0) for number in range(bins.max() + 1)]

    def error(sums: Floats) -> Floats:
        return np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]

    return clustered.estimate(error, *columns, np.ones(len(margins)), is_biased=True)


def error_if_calibrated(margins: Floats) -> float:
    """The calibration error to be expected of perfect calibration at the same confidences, if pairs are independent.

    In a bin of confidences c the sum of the excesses is then about normal, of variance sum c (1 - c), and its absolute
    value is sqrt(2 / pi) of the deviation on average.
    """
    own = confidence(margins)
    variances = np.bincount(equal_mass_bins(own), own * (1 - own))
    return float(np.sqrt(2 / np.pi * variances).sum() / max(1, len(own)))


def reliability(margins: Floats, prompts: Ints) -> list[dict[str, Any]]:
    """Confidence and accuracy of each bin, for a diagram, with Wilson's interval (see `clustered_interval`)."""
    own, hits = confidence(margins), right(margins)
    bins = equal_mass_bins(own)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        _, cluster = np.unique(prompts[inside], return_inverse=True)
        counts = np.stack([np.bincount(cluster, hits[inside]), np.bincount(cluster)], axis=-1)
        found.append(
            {
                "confidence": float(own[inside].mean()),
                "accuracy": float(hits[inside].mean()),
                "interval": list(clustered_interval(counts.tolist())),
                "num_pairs": int(inside.sum()),
            }
        )
    return found


def correlation(sums: Floats) -> Floats:
    """Pearson's, from the sums of 1, x, y, x x, x y and y y."""
    count, x, y, xx, xy, yy = np.moveaxis(sums, -1, 0)
    spread = (count * xx - x**2) * (count * yy - y**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (count * xy - x * y) / np.sqrt(np.where(spread > 0, spread, np.nan))


def rank_correlation(clustered: Clustered, x: Floats, y: Floats) -> Figure:
    """Spearman's over all units, (N,) both; nothing where one of them is constant."""
    if not len(x):
        return None
    a, b = ((rankdata(one) - (len(one) + 1) / 2) / len(one) for one in (x, y))
    return clustered.estimate(correlation, np.ones(len(a)), a, b, a * a, a * b, b * b)


# People


def leave_one_out(num_first: Ints, num_second: Ints) -> Floats:
    """(N,) how many of the verdicts on a pair are the majority of the others'; half a one where these are split.

    Args:
        num_first: (N,) verdicts for the first response; those of a tie count in neither number.
        num_second: (N,) for the second.
    """
    lead = num_first - num_second
    return num_first * np.heaviside(lead - 1, 0.5) + num_second * np.heaviside(-lead - 1, 0.5)


def count_verdicts(
    groups: Sequence[Sequence[int]], items: Ints, is_unsorted: Sequence[Sequence[int]] | None = None
) -> tuple[Ints, Ints, Ints, Ints]:
    """What annotators said of each pair of an item's responses.

    Args:
        groups: for each judgment the group of each of its item's K responses, in the same order for all of an item.
        items: (B,) the number of each judgment's item.
        is_unsorted: of each judgment whether each response is in a last group that nobody sorted: two such are no pair.

    Returns:
        For each pair that was ranked at all: (N,) its item; (N,) verdicts for its first response, for its second
        response, and of a tie.
    """
    found = []
    untold = is_unsorted or [[0] * len(own) for own in groups]
    for rows, group, value in _by_size(groups, [np.array(own, dtype=np.float64)[:, None] for own in untold]):
        one, other = np.triu_indices(group.shape[1], 1)
        first, second = group[:, one], group[:, other]
        distinct, place = np.unique(items[rows], return_inverse=True)
        is_judged = (first >= 0) & (second >= 0) & (value[:, one, 0] * value[:, other, 0] == 0)
        counts = np.zeros((3, len(distinct), len(one)), np.int64)
        for count, said in zip(counts, (first < second, second < first, first == second), strict=True):
            np.add.at(count, place, said & is_judged)
        item, pair = np.nonzero(counts.sum(0))
        found.append((distinct[item], *counts[:, item, pair]))
    if not found:
        return (np.empty(0, np.int64),) * 4
    item, first, second, tied = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return item, first, second, tied


def agreement(num_first: Ints, num_second: Ints) -> Floats:
    """(N,) the share of pairs of decided verdicts that agree; nan where there are fewer than two."""
    total = num_first + num_second
    agreeing = num_first * (num_first - 1) + num_second * (num_second - 1)
    return np.where(total > 1, agreeing / np.maximum(1, total * (total - 1)), np.nan)


def ceiling_bounds(agreement: float) -> tuple[float, float]:
    """Between what the accuracy of the best possible reward model lies, when two people agree so often.

    Where p is the chance that a person prefers the first, two agree with a = 1/2 + 2 E[(p - 1/2)^2], and the best
    accuracy on a fresh verdict is 1/2 + E|p - 1/2|: no less than a, as |p - 1/2| is at most 1/2, and no more than
    1/2 + sqrt((a - 1/2) / 2), by Jensen.
    """
    excess = max(0.0, agreement - 0.5)
    return 0.5 + excess, 0.5 + math.sqrt(excess / 2)


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """The exact two-sided p that either is as often alone in being right.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    num_discordant = num_only_first + num_only_second
    return float(binomtest(num_only_first, num_discordant).pvalue) if num_discordant else 1.0


def _by_size(groups: Sequence[Sequence[int]], values: Sequence[Floats]) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Rankings of the same K together: (b,) their numbers, (b, K) groups, (b, K, V) values."""
    sizes = np.array([len(own) for own in groups], dtype=np.int64)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        numbers = rows.tolist()
        yield rows, np.array([groups[number] for number in numbers]), np.stack([values[number] for number in numbers])


def _interval_within(bounds: tuple[float, float], sums: Floats) -> list[float]:
    """Of a mean, from the (G, 2) sums of each cluster's values and their number."""
    low, high = bounds
    shares = np.stack([(sums[:, 0] - low * sums[:, 1]) / (high - low), sums[:, 1]], axis=-1)
    return [low + (high - low) * end for end in clustered_interval(shares.tolist())]


def _ratio(sums: Floats) -> Floats:
    return sums[..., 0] / sums[..., 1]


def _expansion(num_clusters: int) -> float:
    """A replicate's deviation is that of a sample, without Bessel's correction."""
    return math.sqrt(num_clusters / (num_clusters - 1))


def _design_effect(counts: Sequence[Sequence[float]]) -> float:
    """The variance of the share over that of as many independent trials."""
    num_clusters, num_trials = len(counts), sum(trials for _, trials in counts)
    share = sum(successes for successes, _ in counts) / num_trials
    spread = math.fsum((successes - share * trials) ** 2 for successes, trials in counts)
    return num_clusters / (num_clusters - 1) * spread / (num_trials * share * (1 - share))


def _wilson(share: float, num_trials: float, quantile: float) -> tuple[float, float]:
    """E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927."""
    square = quantile**2 / num_trials

    def lower(share: float) -> float:
        half = math.sqrt(share * (1 - share) * square + square**2 / 4)
        return max(0.0, (share + square / 2 - half) / (1 + square))

    return (lower(share), 1 - lower(1 - share))
