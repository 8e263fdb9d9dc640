"""How far annotators concur beyond chance, for pairs and lists alike.

A judgment of K responses is K(K-1)/2 verdicts, one for each pair of responses: the first is better (1), neither (0),
or the second is (-1). What annotators say of the same pair is compared; a tie is a verdict. Whoever judged is
exchangeable in all measures but Cohen's. Intervals are percentiles of a bootstrap over comparisons, so that the pairs
of one list, which go together, stay together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Level = Literal["nominal", "ordinal", "interval"]

VERDICTS = np.array([-1.0, 0.0, 1.0])
MIN_SHARED = 5  # units that two annotators must share for a kappa of their own


@dataclass(frozen=True)
class Measure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Every measure, or None where it is not defined: nothing is shared, or nobody ever disagrees with chance.

    `num_comparisons` and `num_annotators` count what at least two annotators judged and who they were;
    `num_pairs` counts pairs of verdicts compared.
    """

    num_comparisons: int
    num_annotators: int
    num_pairs: int
    raw: Measure | None = None
    cohen_kappa: Measure | None = None
    fleiss_kappa: Measure | None = None
    alpha_nominal: Measure | None = None
    alpha_ordinal: Measure | None = None
    alpha_interval: Measure | None = None
    tau_b: Measure | None = None
    w: Measure | None = None


# Coefficients of a table


def coincidences(values: Floats) -> tuple[Floats, Floats]:
    """Which values annotators give to the same unit.

    Args:
        values: (A, N) one row an annotator, one column a unit, NaN where a cell is missing.

    Returns:
        The distinct values, (C,), ascending, and the coincidence matrix, (C, C): each unit with n >= 2 values adds
        its n(n-1) ordered pairs, each of weight 1/(n-1).

    Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
    """
    domain = np.unique(values[~np.isnan(values)])
    counts = np.stack([(values == value).sum(axis=0) for value in domain], axis=-1).astype(float)
    return domain, _coincidences(counts).sum(axis=0)


def krippendorff_alpha(values: Floats, level: Level) -> float | None:
    """Krippendorff's alpha, 1 - observed over expected disagreement.

    Args:
        values: (A, N) one row an annotator, one column a unit, NaN where a cell is missing.
        level: how two values differ: at all (nominal), by what lies between them (ordinal), or by the square of
            their difference (interval).

    Returns:
        At most 1; None where no unit has two values, or all values are the same.

    Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.
    """
    return _alpha(*coincidences(values), level)


def fleiss_kappa(counts: Floats | Ints) -> float | None:
    """Fleiss' kappa, (P - Pe) / (1 - Pe).

    Args:
        counts: (N, C) how many annotators put a unit into a category. Units may have different numbers of
            annotators; those with fewer than two are left out.

    Returns:
        At most 1; None where nothing is left, or everything is in one category.

    Source: J. L. Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 1971.
    """
    several = np.asarray(counts[counts.sum(axis=1) >= 2], dtype=float)
    return _fleiss(_unit_agreement(several).sum(), len(several), several.sum(axis=0))


def cohen_kappa(first: Ints, second: Ints) -> float | None:
    """Cohen's kappa of two annotators.

    Args:
        first, second: (N,) the category that each gives to the same unit.

    Returns:
        At most 1; None where both use one and the same category only, or N is 0.

    Raises:
        ValueError: the shapes differ.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    if first.shape != second.shape:
        raise ValueError(f"first {first.shape} and second {second.shape} must have the same shape")
    domain, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    table = np.zeros((len(domain), len(domain)))
    np.add.at(table, (places[: len(first)], places[len(first) :]), 1)
    (kappa,) = _cohen(table[None])
    return None if np.isnan(kappa) else float(kappa)


def kendall_w(places: Floats) -> float | None:
    """Kendall's coefficient of concordance, corrected for ties.

    Args:
        places: (m, n) the place that each of m annotators gives to n responses, equal places being ties.

    Returns:
        0 to 1; None for fewer than two annotators or responses, or where everybody ties everything.

    Source: M. G. Kendall and B. Babington Smith, "The problem of m rankings", 1939.
    """
    num_annotators, num_responses = places.shape
    if num_annotators < 2 or num_responses < 2:
        return None
    from scipy.stats import rankdata  # takes most of a second, which every command would wait for

    ranks = rankdata(places, axis=1)
    spread = ((ranks.sum(axis=0) - num_annotators * (num_responses + 1) / 2) ** 2).sum()
    largest = num_annotators**2 * (num_responses**3 - num_responses) - num_annotators * _ties(ranks).sum()
    return float(12 * spread / largest) if largest > 0 else None


def kendall_tau_b(first: Floats, second: Floats) -> float | None:
    """Kendall's tau-b of two rankings of the same responses.

    Args:
        first, second: (K,) places, equal ones being ties.

    Returns:
        -1 to 1; None where one of them ties everything.
    """
    signs = _signs(np.stack([first, second]))
    norm = np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())
    return float(signs[0] @ signs[1] / norm) if norm else None


# Everything at once


def agreement(
    comparison: Ints, annotator: Ints, places: Floats, *, rng: np.random.Generator, num_replicates: int = 200
) -> Agreement:
    """Every measure of J judgments, one of a comparison by an annotator.

    Args:
        comparison, annotator: (J,) who judged what; any whole numbers.
        places: (J, K) the place of each response in the source's order, 1 for the best, equal places for ties, NaN
            where a comparison has fewer responses.
        rng: draws the bootstrap.
        num_replicates: of the bootstrap; its cost grows with it.

    Raises:
        ValueError: the shapes differ.
    """
    if not len(comparison) == len(annotator) == len(places):
        raise ValueError(f"shapes differ: {comparison.shape}, {annotator.shape}, {places.shape}")
    order, comparison, annotator = _shared(comparison, annotator)
    if not len(order):
        return Agreement(num_comparisons=0, num_annotators=0, num_pairs=0)
    parts = _Parts(comparison, annotator, places[order])
    weights = rng.multinomial(parts.num, np.full(parts.num, 1 / parts.num), size=num_replicates).astype(float)
    measures = {name: _measure(figure, parts.num, weights) for name, figure in parts.figures().items()}
    return Agreement(
        num_comparisons=parts.num,
        num_annotators=len(np.unique(annotator)),
        num_pairs=int(parts.num_verdict_pairs.sum()),
        **measures,
    )


def _shared(comparison: Ints, annotator: Ints) -> tuple[Ints, Ints, Ints]:
    """The judgments of comparisons that several judged, sorted by comparison, which are numbered from 0."""
    _, place, num = np.unique(comparison, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    order = order[num[place[order]] >= 2]
    return order, np.unique(place[order], return_inverse=True)[1], annotator[order]


class _Parts:
    """What each comparison adds to the sums that the measures are made of: a replicate only weights them anew."""

    def __init__(self, comparison: Ints, annotator: Ints, places: Floats) -> None:
        self.num = int(comparison.max()) + 1
        self.comparison, self.annotator, self.places = comparison, annotator, places
        self.signs = _signs(places)
        num_units = self.signs.shape[1]
        counts = np.zeros((self.num, num_units, len(VERDICTS)))
        for column, verdict in enumerate(VERDICTS):
            np.add.at(counts[:, :, column], comparison, (self.signs == verdict).astype(float))
        self.counts = np.where(counts.sum(axis=2, keepdims=True) >= 2, counts, 0.0)
        num_verdicts = self.counts.sum(axis=2)
        self.num_verdict_pairs = (num_verdicts * (num_verdicts - 1) / 2).sum(axis=1)

    def figures(self) -> "dict[str, Callable[[Floats], float]]":
        """Each measure as a function of the comparisons' weights, NaN where it is not defined."""
        same = (self.counts * (self.counts - 1) / 2).sum(axis=(1, 2))
        coincidence = _coincidences(self.counts).sum(axis=1)
        is_unit = self.counts.sum(axis=2) > 0
        per_unit = np.where(is_unit, _unit_agreement(self.counts), 0.0).sum(axis=1)
        num_units, totals = is_unit.sum(axis=1), self.counts.sum(axis=1)
        levels: tuple[Level, ...] = ("nominal", "ordinal", "interval")
        figures: dict[str, Callable[[Floats], float]] = {
            "raw": lambda weights: _ratio(weights @ same, weights @ self.num_verdict_pairs),
            "fleiss_kappa": lambda weights: _or_nan(_fleiss(weights @ per_unit, weights @ num_units, weights @ totals)),
            **{f"alpha_{level}": partial(_weighted_alpha, coincidence, level) for level in levels},
            "cohen_kappa": self._cohen_kappa(),
        }
        return {**figures, **(self._list_figures() if self.places.shape[1] > 2 else {})}

    def _pairs(self) -> tuple[Ints, Ints]:
        """Every two judgments of the same comparison."""
        starts = np.searchsorted(self.comparison, np.arange(self.num + 1))
        sizes = np.diff(starts)
        firsts, seconds = [], []
        for size in np.unique(sizes):
            left, right = np.triu_indices(size, 1)
            begin = starts[:-1][sizes == size][:, None]
            firsts.append((begin + left).ravel())
            seconds.append((begin + right).ravel())
        return np.concatenate(firsts), np.concatenate(seconds)

    def _cohen_kappa(self) -> "Callable[[Floats], float]":
        """The mean of Cohen's kappa over pairs of annotators, weighted by the verdicts that they share."""
        first, second = self._pairs()
        swap = self.annotator[first] > self.annotator[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        ids = np.stack([self.annotator[first], self.annotator[second]])
        couples, couple = np.unique(ids, axis=1, return_inverse=True)
        left = [self.signs[first] == verdict for verdict in VERDICTS]
        right = [self.signs[second] == verdict for verdict in VERDICTS]
        cells = np.stack([(one & other).sum(axis=1) for one in left for other in right], axis=1)
        pair, cell = np.nonzero(cells)  # a list's many verdicts fall into nine cells
        place = (9 * couple.ravel()[pair] + cell, self.comparison[first][pair])
        by_comparison = csr_array((cells[pair, cell].astype(float), place), shape=(9 * couples.shape[1], self.num))
        has_enough = by_comparison.sum(axis=1).reshape(-1, 9).sum(axis=1) >= MIN_SHARED

        def figure(weights: Floats) -> float:
            tables = (by_comparison @ weights).reshape(-1, 3, 3)[has_enough]
            kappas = _cohen(tables)
            known = ~np.isnan(kappas)
            shared = tables.sum(axis=(1, 2))[known]
            return _ratio(shared @ kappas[known], shared.sum())

        return figure

    def _list_figures(self) -> "dict[str, Callable[[Floats], float]]":
        """Mean tau-b over pairs of annotators, and mean W, over the lists: comparisons of more than two responses."""
        first, second = self._pairs()
        is_list = (~np.isnan(self.places)).sum(axis=1) > 2
        signs = np.nan_to_num(self.signs)
        norm = np.sqrt((signs**2).sum(axis=1))
        use = is_list[first] & (norm[first] > 0) & (norm[second] > 0)
        first, second = first[use], second[use]
        taus = (signs[first] * signs[second]).sum(axis=1) / (norm[first] * norm[second])
        num_taus = np.bincount(self.comparison[first], minlength=self.num).astype(float)
        sum_taus = np.bincount(self.comparison[first], taus, minlength=self.num)
        concordance = self._concordance(is_list)
        has_w = ~np.isnan(concordance)
        sum_w = np.nan_to_num(concordance)
        return {
            "tau_b": lambda weights: _ratio(weights @ sum_taus, weights @ num_taus),
            "w": lambda weights: _ratio(weights @ sum_w, weights @ has_w),
        }

    def _concordance(self, is_list: NDArray[np.bool_]) -> Floats:
        """Kendall's W of each comparison, NaN where it has none."""
        from scipy.stats import rankdata

        found = np.full(self.num, np.nan)
        num_responses = (~np.isnan(self.places)).sum(axis=1)
        for length in np.unique(num_responses[is_list]):
            chosen = self.places[num_responses == length]
            ranks = rankdata(chosen[~np.isnan(chosen)].reshape(-1, length), axis=1)
            lists, starts, sizes = np.unique(
                self.comparison[num_responses == length], return_index=True, return_counts=True
            )
            middle = sizes * (length + 1) / 2
            spread = ((np.add.reduceat(ranks, starts) - middle[:, None]) ** 2).sum(axis=1)
            largest = sizes**2 * (length**3 - length) - sizes * np.add.reduceat(_ties(ranks), starts)
            found[lists] = np.divide(12 * spread, largest, out=np.full(len(lists), np.nan), where=largest > 0)
        return found


def _signs(places: Floats) -> Floats:
    """(J, K) places to (J, K(K-1)/2) verdicts on pairs: 1 where the first has the better place."""
    first, second = np.triu_indices(places.shape[1], 1)
    return np.sign(places[:, second] - places[:, first])


def _measure(figure: "Callable[[Floats], float]", num: int, weights: Floats) -> Measure | None:
    value = figure(np.ones(num))
    if np.isnan(value):
        return None
    replicates = np.array([figure(row) for row in weights])
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return None  # so few comparisons that hardly any draw of them has the measure
    low, high = np.percentile(defined, [2.5, 97.5])
    return Measure(float(value), float(low), float(high))


def _coincidences(counts: Floats) -> Floats:
    """(…, C) how often a unit got each value, to (…, C, C): its coincidences; zero for fewer than two values."""
    num = counts.sum(axis=-1)[..., None, None]
    pairs = counts[..., :, None] * counts[..., None, :] - counts[..., :, None] * np.eye(counts.shape[-1])
    return np.divide(pairs, num - 1, out=np.zeros_like(pairs), where=np.broadcast_to(num >= 2, pairs.shape))


def _alpha(domain: Floats, coincidence: Floats, level: Level) -> float | None:
    totals = coincidence.sum(axis=1)
    num = totals.sum()
    distance = _distances(domain, totals, level)
    expected = (totals[:, None] * totals[None, :] * distance).sum()
    if num <= 1 or expected <= 0:
        return None
    return float(1 - (num - 1) * (coincidence * distance).sum() / expected)


def _weighted_alpha(coincidence: Floats, level: Level, weights: Floats) -> float:
    return _or_nan(_alpha(VERDICTS, np.tensordot(weights, coincidence, axes=1), level))


def _distances(domain: Floats, totals: Floats, level: Level) -> Floats:
    if level == "nominal":
        return 1 - np.eye(len(domain))
    if level == "interval":
        return (domain[:, None] - domain[None, :]) ** 2
    below = np.cumsum(totals) - totals / 2  # how much lies between two values: their own halves and all in between
    return (below[:, None] - below[None, :]) ** 2


def _unit_agreement(counts: Floats) -> Floats:
    """(…, C) counts to (…) the share of pairs of annotators who agree on a unit."""
    num = counts.sum(axis=-1)
    same = (counts * (counts - 1)).sum(axis=-1)
    return np.divide(same, num * (num - 1), out=np.zeros_like(same), where=num >= 2)


def _fleiss(sum_agreement: float, num_units: float, totals: Floats) -> float | None:
    if not num_units:
        return None
    by_chance = ((totals / totals.sum()) ** 2).sum()
    return float((sum_agreement / num_units - by_chance) / (1 - by_chance)) if by_chance < 1 - 1e-12 else None


def _cohen(tables: Floats) -> Floats:
    """(T, C, C) tables of two annotators' verdicts to (T,) kappas, NaN where chance alone explains everything."""
    num = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    shape = np.full(len(tables), np.nan)
    is_known = (num > 0) & (num**2 - expected > 1e-9 * num**2)
    return np.divide(num * observed - expected, num**2 - expected, out=shape, where=is_known)


def _ties(ranks: Floats) -> Floats:
    """(m, n) ranks to (m,) the sum of t^3 - t over the groups of t equal ones."""
    equal = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2)
    return np.asarray((equal**2 - 1).sum(axis=1), dtype=float)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
