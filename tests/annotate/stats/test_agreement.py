import numpy as np
import pytest
from krippendorff import alpha as reference_alpha
from scipy.stats import kendalltau, spearmanr

from annotate.stats.agreement import (
    Agreement,
    Measure,
    agreement,
    cohen_kappa,
    fleiss_kappa,
    kendall_tau_b,
    kendall_w,
    krippendorff_alpha,
)

NAN = np.nan
# Krippendorff 2011, section C: four observers, twelve units, some missing
TEXTBOOK = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
# Fleiss 1971: six of ten units by fourteen raters into five categories, as Wikipedia's worked example has them
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ],
    dtype=float,
)


def rng():
    return np.random.default_rng(0)


def simulated(num_comparisons=120, num_annotators=6, k=4, noise=1.0, seed=0):
    """Everybody ranks everything by a quality seen with noise."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=(num_comparisons, k))
    comparison = np.repeat(np.arange(num_comparisons), num_annotators)
    annotator = np.tile(np.arange(num_annotators), num_comparisons)
    seen = quality[comparison] + noise * draw.normal(size=(len(comparison), k))
    return comparison, annotator, (-seen).argsort(axis=1).argsort(axis=1) + 1.0


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_the_textbook(level, published):
    assert krippendorff_alpha(TEXTBOOK, level) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_library(level, seed):
    draw = np.random.default_rng(seed)
    values = draw.integers(-1, 2, size=(7, 40)).astype(float)
    values[draw.random(values.shape) < 0.4] = NAN

    expected = reference_alpha(reliability_data=values, level_of_measurement=level)

    assert krippendorff_alpha(values, level) == pytest.approx(expected, abs=1e-6)


def test_fleiss_kappa_is_that_of_the_published_example():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.20993070442195522, abs=1e-12)


def test_cohen_kappa_by_hand():
    # 20 both yes, 15 both no, 5 and 10 differ: observed 0.7, by chance 0.5
    first = np.array([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15)
    second = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-12)
    with pytest.raises(ValueError, match=r"^first \(50,\) and second \(49,\) must have the same shape$"):
        cohen_kappa(first, second[1:])


def test_kendall_w_is_a_mean_of_rank_correlations():
    places = np.array([[1.0, 2, 3, 4, 5], [2, 1, 3, 5, 4], [1, 3, 2, 4, 5]])
    rho = np.mean([spearmanr(places[i], places[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))])
    assert kendall_w(places) == pytest.approx((2 * rho + 1) / 3, abs=1e-12)
    assert kendall_w(np.array([[1.0, 2, 2, 4]] * 3)) == pytest.approx(1, abs=1e-12)  # ties do not count against it


def test_kendall_tau_b_is_scipys():
    draw = np.random.default_rng(1)
    for _ in range(20):
        first, second = draw.integers(1, 5, size=(2, 6)).astype(float)
        expected = kendalltau(first, second).statistic
        assert kendall_tau_b(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "value",
    [
        krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]]), "nominal"),
        krippendorff_alpha(np.ones((3, 4)), "ordinal"),
        fleiss_kappa(np.array([[3.0, 0], [4, 0]])),
        fleiss_kappa(np.array([[1.0, 0]])),
        cohen_kappa(np.ones(4, dtype=int), np.ones(4, dtype=int)),
        kendall_w(np.ones((3, 4))),
        kendall_w(np.array([[1.0, 2.0]])),
        kendall_tau_b(np.ones(3), np.arange(3.0)),
    ],
)
def test_what_is_not_defined_is_none(value):
    assert value is None


def test_agreement_of_pairs_is_that_of_their_verdicts():
    comparison, annotator, places = simulated(k=2)
    values = np.sign(places[:, 1] - places[:, 0]).reshape(-1, 6).T

    found = agreement(comparison, annotator, places, rng=rng())

    assert (found.num_comparisons, found.num_annotators, found.num_pairs) == (120, 6, 120 * 15)
    assert found.alpha_nominal.value == pytest.approx(krippendorff_alpha(values, "nominal"), abs=1e-12)
    assert found.alpha_ordinal.value == pytest.approx(krippendorff_alpha(values, "ordinal"), abs=1e-12)
    assert found.fleiss_kappa.value == pytest.approx(
        fleiss_kappa(np.stack([(values == v).sum(axis=0) for v in (-1, 1)], axis=1)), abs=1e-12
    )
    kappas = [cohen_kappa(values[i].astype(int), values[j].astype(int)) for i in range(6) for j in range(i)]
    assert found.cohen_kappa.value == pytest.approx(np.mean(kappas), abs=1e-12)
    same = [np.mean(values[i] == values[j]) for i in range(6) for j in range(i)]
    assert found.raw.value == pytest.approx(np.mean(same), abs=1e-12)
    assert (found.tau_b, found.w) == (None, None)


def test_agreement_of_lists_is_the_mean_over_lists_and_pairs_of_annotators():
    comparison, annotator, places = simulated()
    found = agreement(comparison, annotator, places, rng=rng())

    by_list = places.reshape(120, 6, 4)
    taus = [kendall_tau_b(rows[i], rows[j]) for rows in by_list for i in range(6) for j in range(i)]
    assert found.tau_b.value == pytest.approx(np.mean(taus), abs=1e-12)
    assert found.w.value == pytest.approx(np.mean([kendall_w(rows) for rows in by_list]), abs=1e-12)


def test_intervals_hold_the_truth():
    truth = agreement(*simulated(num_comparisons=4000, seed=99), rng=rng(), num_replicates=2)
    names = ("raw", "alpha_nominal", "fleiss_kappa", "cohen_kappa", "tau_b", "w")
    num_held = dict.fromkeys(names, 0)
    for seed in range(40):
        found = agreement(*simulated(num_comparisons=60, seed=seed), rng=rng(), num_replicates=100)
        for name in names:
            measure = getattr(found, name)
            num_held[name] += measure.low <= getattr(truth, name).value <= measure.high

    assert min(num_held.values()) >= 33  # 38 expected


def test_random_votes_agree_by_chance_and_equal_ones_wholly():
    draw = np.random.default_rng(3)
    comparison, annotator = np.repeat(np.arange(800), 4), np.tile(np.arange(4), 800)
    places = draw.permuted(np.tile([1.0, 2.0, 3.0], (3200, 1)), axis=1)

    by_chance = agreement(comparison, annotator, places, rng=rng())
    wholly = agreement(comparison, annotator, np.repeat(places[::4], 4, axis=0), rng=rng())

    for name in ("alpha_nominal", "fleiss_kappa", "cohen_kappa", "tau_b"):
        assert getattr(by_chance, name).low < 0 < getattr(by_chance, name).high
        assert getattr(wholly, name).value == pytest.approx(1, abs=1e-12)


def test_neither_the_order_of_judgments_nor_the_names_matter():
    comparison, annotator, places = simulated()
    order = np.random.default_rng(5).permutation(len(comparison))

    first = agreement(comparison, annotator, places, rng=rng(), num_replicates=5)
    second = agreement(comparison[order] + 7, 10 - annotator[order], places[order], rng=rng(), num_replicates=5)

    for name in ("raw", "cohen_kappa", "alpha_ordinal", "tau_b", "w"):
        assert getattr(first, name).value == pytest.approx(getattr(second, name).value, abs=1e-12)


def test_lists_of_different_length_stand_together():
    comparison, annotator, places = simulated(num_comparisons=30)
    places[comparison % 2 == 0, 2:] = NAN

    found = agreement(comparison, annotator, places, rng=rng())

    assert found.num_pairs == 15 * 15 * (1 + 6)
    assert 0 < found.tau_b.value < 1


def test_w_of_lists_with_ties_and_gaps_is_that_of_each_list():
    draw = np.random.default_rng(2)
    comparison = np.repeat(np.arange(40), draw.integers(2, 5, size=40))
    annotator = np.arange(len(comparison)) % 7
    places = draw.integers(1, 4, size=(len(comparison), 5)).astype(float)
    places[comparison % 3 == 0, 1] = NAN  # four responses, the gap in the middle

    found = agreement(comparison, annotator, places, rng=rng(), num_replicates=5)

    lists = [places[comparison == number] for number in range(40)]
    assert found.w.value == pytest.approx(
        np.mean([kendall_w(rows[:, ~np.isnan(rows[0])]) for rows in lists]), abs=1e-12
    )


def test_nothing_shared_is_no_agreement():
    assert agreement(np.arange(3), np.zeros(3, dtype=int), np.ones((3, 2)), rng=rng()) == Agreement(0, 0, 0)


def test_a_measure_that_no_draw_of_the_comparisons_has_is_none():
    comparison, annotator = np.repeat([0, 1], 2), np.tile([0, 1], 2)
    places = np.array([[1.0, 2], [1, 2], [2, 1], [2, 1]])  # a draw of one comparison alone has one category only

    class OneComparison:
        def multinomial(self, num, probabilities, size):
            return np.tile([2, 0], (size, 1))

    found = agreement(comparison, annotator, places, rng=OneComparison())

    assert (found.raw.value, found.alpha_nominal, found.fleiss_kappa) == (1, None, None)


def test_agreement_of_a_handful_of_judgments_is_finite_or_none():
    for seed in range(60):
        draw = np.random.default_rng(seed)
        comparison, annotator = np.divmod(np.flatnonzero(draw.random(15) < 0.7), 3)
        places = draw.integers(1, 3, size=(len(comparison), 3)).astype(float)
        places[comparison % 2 == 0, 2] = NAN

        found = agreement(comparison, annotator, places, rng=draw, num_replicates=20)

        measures = [measure for measure in vars(found).values() if isinstance(measure, Measure)]
        assert np.isfinite([(each.value, each.low, each.high) for each in measures]).all()


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"^shapes differ: \(3,\), \(3,\), \(2, 2\)$"):
        agreement(np.arange(3), np.arange(3), np.ones((2, 2)), rng=rng())
