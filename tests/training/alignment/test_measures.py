import itertools
import math

import numpy as np
import pytest
from scipy import stats

from training.alignment import measures
from training.alignment.measures import Clustered

# Intervals


def test_a_share_has_the_clustered_interval_where_prompts_are_few_or_alike():
    few = Clustered(np.arange(5)).share(np.array([1, 1, 0, 1, 1.0]))
    alike = Clustered(np.arange(100)).share(np.ones(100))

    assert few == {"value": 0.8, "interval": list(measures.clustered_interval([(n, 1) for n in (1, 1, 0, 1, 1)]))}
    assert alike == {"value": 1.0, "interval": list(measures.clustered_interval([(1, 1)] * 100))}


def test_bootstrap_and_clustered_interval_agree_where_prompts_are_many():
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(500), 6)
    hits = (draw.random(3000) < np.repeat(draw.beta(2, 1, 500), 6)).astype(float)

    found = Clustered(prompts).share(hits)

    counts = [(own.sum(), 6) for own in hits.reshape(500, 6)]
    assert found["interval"] == pytest.approx(measures.clustered_interval(counts), abs=0.003)


def test_copies_of_a_pair_do_not_narrow_the_interval():
    draw = np.random.default_rng(0)
    values = draw.normal(size=100)

    once = Clustered(np.arange(100)).mean(values)
    often = Clustered(np.repeat(np.arange(100), 7)).mean(np.repeat(values, 7))

    assert often == {"value": pytest.approx(once["value"]), "interval": pytest.approx(once["interval"])}


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(3).normal(size=12)

    low, high = Clustered(np.arange(12)).mean(values)["interval"]

    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / math.sqrt(12)
    assert high - low == pytest.approx(2 * half, rel=0.12)


def test_the_mean_of_prompts_that_are_alike_has_the_interval_that_its_bounds_allow():
    clustered = Clustered(np.repeat(np.arange(5), 2))
    values = np.tile([0.1 + 0.2, 0.3], 5)

    low, high = clustered.share(np.ones(10))["interval"]
    assert (low > 0.3, high) == (True, 1.0)
    assert clustered.mean(np.ones(10), (-1, 1)) == {"value": 1.0, "interval": [pytest.approx(2 * low - 1), 1.0]}
    centre = clustered.mean(np.tile([1.0, -1.0], 5), (-1, 1))
    assert centre["value"] == 0
    assert centre["interval"] == [pytest.approx(-centre["interval"][1]), pytest.approx(0.7, abs=0.2)]
    assert clustered.mean(values) == {"value": pytest.approx(0.3), "interval": None}
    assert Clustered(np.zeros(3)).mean(np.array([0.0, 1.0, 1.0]), (-1, 1))["interval"] == [-1, 1]


@pytest.mark.parametrize("num_prompts", [8, 60])
def test_intervals_of_a_mean_cover_the_truth(num_prompts):
    draw = np.random.default_rng(1)
    prompts = np.repeat(np.arange(num_prompts), 3)
    covered = 0
    for seed in range(150):
        values = np.repeat(draw.gamma(2, size=num_prompts), 3) + draw.normal(size=3 * num_prompts)
        low, high = Clustered(prompts, seed).mean(values)["interval"]
        covered += low <= 2 <= high

    assert covered / 150 > 0.88


def test_many_prompts_are_thrown_together_without_changing_the_interval():
    values = np.random.default_rng(0).exponential(size=6000)
    together = Clustered(np.arange(6000)).mean(values)

    half = 1.96 * values.std() / math.sqrt(6000)

    assert together["value"] == pytest.approx(values.mean())
    assert together["interval"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.15 * half)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)

    assert Clustered(np.arange(50), 3).mean(values) == Clustered(np.arange(50), 3).mean(values)
    assert Clustered(np.arange(50), 3).mean(values) != Clustered(np.arange(50), 4).mean(values)


# Pairs and rankings


def test_pairs_stand_with_the_better_first_and_leave_out_what_was_not_ranked():
    ranking, is_tied, better, worse = measures.judged_pairs(
        [[1, 0], [0, -1, 0, 1]], [np.array([[10.0], [11.0]]), np.array([[20.0], [21.0], [22.0], [23.0]])]
    )

    found = sorted(zip(ranking.tolist(), is_tied.tolist(), better[:, 0].tolist(), worse[:, 0].tolist(), strict=True))
    assert found == [(0, False, 11.0, 10.0), (1, False, 20.0, 23.0), (1, False, 22.0, 23.0), (1, True, 20.0, 22.0)]


@pytest.mark.parametrize(
    ("groups", "scores", "expected"),
    [
        ([0, 1, 2], [3.0, 2.0, 1.0], 1.0),
        ([0, 1, 2], [1.0, 2.0, 3.0], 0.0),
        ([0, 0, 1], [1.0, 2.0, 2.0], 0.5),
        ([0, 1, -1], [1.0, 0.0, 9.0], 1.0),
        ([0, 0, 0], [1.0, 2.0, 3.0], math.nan),
    ],
)
def test_top_1(groups, scores, expected):
    assert measures.top_1([groups], [np.array(scores)]) == pytest.approx([expected], nan_ok=True)


def test_kendalls_tau_is_scipys():
    draw = np.random.default_rng(0)
    groups = [list(stats.rankdata(draw.integers(3, size=size), "dense") - 1) for size in (4, 5, 6, 5, 4, 8)]
    scores = [draw.integers(4, size=len(own)).astype(float) for own in groups]

    ranking, is_tied, better, worse = measures.judged_pairs(groups, [own[:, None] for own in scores])
    found = measures.kendall_tau_b(ranking, is_tied, (better - worse)[:, 0], len(groups))

    assert found == pytest.approx(
        [stats.kendalltau(-np.array(own), score).statistic for own, score in zip(groups, scores, strict=True)],
        nan_ok=True,  # one of them only ties
    )


def test_kendalls_tau_of_nothing_ordered_is_unknown_and_of_equal_scores_nothing():
    found = measures.kendall_tau_b(np.array([0, 1]), np.array([True, False]), np.array([1.0, 0.0]), 3)

    assert found == pytest.approx([math.nan, 0.0, math.nan], nan_ok=True)


def test_spearmans_correlation_is_scipys():
    draw = np.random.default_rng(0)
    xs = [draw.integers(4, size=size).astype(float) for size in (5, 6, 5)]
    ys = [draw.integers(4, size=len(x)).astype(float) for x in xs]

    found = measures.spearman([*xs, np.zeros(3), np.arange(3.0)], [*ys, np.arange(3.0), np.zeros(3)])

    expected = [stats.spearmanr(x, y).statistic for x, y in zip(xs, ys, strict=True)]
    assert found == pytest.approx([*expected, 0.0, math.nan], nan_ok=True)


def test_a_rank_correlation_over_all_units_is_scipys():
    draw = np.random.default_rng(0)
    x, y = draw.integers(9, size=(2, 40)).astype(float)

    found = measures.rank_correlation(Clustered(np.arange(40) // 2), x, y)

    assert found["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert measures.rank_correlation(Clustered(np.arange(40)), x, np.ones(40)) is None


def test_the_threshold_of_ties_is_the_best_there_is():
    draw = np.random.default_rng(0)
    is_tied = draw.random(200) < 0.3
    margins = np.where(is_tied, draw.normal(scale=0.5, size=200), draw.normal(1, 1, size=200)).round(1)

    found, threshold = measures.right_with_ties(margins, is_tied)

    def verdicts(threshold: float) -> float:
        called = np.abs(margins) <= threshold
        return np.where(is_tied, called, ~called & (margins > 0)).mean()

    assert found.mean() == verdicts(threshold)
    assert found.mean() == max(verdicts(size) for size in [0.0, *np.abs(margins)])
    assert threshold > 0


def test_without_ties_the_threshold_is_nothing():
    found, threshold = measures.right_with_ties(np.array([2.0, 0.0, -1.0]), np.zeros(3, bool))

    assert (found.tolist(), threshold) == ([1.0, 0.0, 0.0], 0.0)


# Calibration


def test_the_loss_is_finite_however_wrong():
    assert measures.log_losses(np.array([-1e4, 0.0, 1e4])).tolist() == [1e4, math.log(2), 0.0]


def test_bins_hold_equally_many_and_never_part_equal_values():
    values = np.random.default_rng(0).random(300)

    assert np.bincount(measures.equal_mass_bins(values)).tolist() == [20] * 15
    assert set(measures.equal_mass_bins(np.repeat([0.6, 0.9], 150)).tolist()) == {0, 1}
    assert len(np.bincount(measures.equal_mass_bins(values[:35]))) == 3


def test_the_calibration_error_by_hand():
    margins = np.log([4.0, 4.0, 4.0, 1 / 4])  # confidence 0.8, right three times of four

    found = measures.calibration_error(Clustered(np.arange(4)), margins)

    assert found["value"] == pytest.approx(0.05)
    assert measures.reliability(margins, np.arange(4)) == [
        {
            "confidence": pytest.approx(0.8),
            "accuracy": 0.75,
            "interval": list(measures.clustered_interval([(1, 1)] * 3 + [(0, 1)])),
            "num_pairs": 4,
        }
    ]


def test_to_be_sure_and_always_wrong_is_the_worst_calibration():
    margins = np.full(40, -1.0)

    assert measures.calibration_error(Clustered(np.arange(40)), margins)["value"] == pytest.approx(
        1 / (1 + math.exp(-1))
    )


def test_the_error_of_perfect_calibration_is_what_simulation_gives():
    draw = np.random.default_rng(0)
    sizes = np.abs(draw.normal(scale=2, size=600))
    chances = measures.confidence(sizes)
    worlds = [np.where(draw.random(600) < chances, sizes, -sizes) for _ in range(100)]

    simulated = np.mean([measures.calibration_error(Clustered(np.zeros(600)), world)["value"] for world in worlds])

    assert measures.error_if_calibrated(sizes) == pytest.approx(simulated, rel=0.06)


def test_the_calibration_errors_interval_does_not_count_noise_twice():
    draw = np.random.default_rng(0)
    sizes = np.abs(draw.normal(scale=2, size=600))
    margins = np.where(draw.random(600) < measures.confidence(sizes), sizes, -sizes)

    found = measures.calibration_error(Clustered(np.arange(600)), margins)

    low, high = found["interval"]
    assert low < found["value"] < high
    assert low < measures.error_if_calibrated(margins) < high


# People


def test_each_verdict_is_held_against_the_majority_of_the_others():
    def by_hand(verdicts: list[int]) -> float:
        return sum(np.heaviside(verdict * (sum(verdicts) - verdict), 0.5) for verdict in verdicts if verdict)

    for verdicts in itertools.combinations_with_replacement([-1, 0, 1], 5):
        first, second = verdicts.count(1), verdicts.count(-1)
        assert measures.leave_one_out(np.array([first]), np.array([second])) == pytest.approx([by_hand(list(verdicts))])


def test_agreement_is_the_share_of_agreeing_pairs():
    found = measures.agreement(np.array([3, 2, 1, 0]), np.array([0, 1, 1, 1]))

    assert found == pytest.approx([1.0, 1 / 3, 0.0, math.nan], nan_ok=True)


def test_verdicts_are_counted_by_item_and_pair():
    groups = [[0, 1], [1, 0], [0, 0], [0, 1, -1], [0, 1, 2]]

    found = measures.count_verdicts(groups, np.array([7, 7, 7, 8, 8]))

    rows = sorted(zip(*(column.tolist() for column in found), strict=True))
    assert rows == [(7, 1, 1, 1), (8, 1, 0, 0), (8, 1, 0, 0), (8, 2, 0, 0)]


def test_what_nobody_sorted_is_no_verdict():
    groups, is_unsorted = [[0, 1, 1], [0, 1, 1]], [[False, True, True], [False] * 3]

    found = measures.count_verdicts(groups, np.array([0, 0]), is_unsorted)

    rows = sorted(zip(*(column.tolist() for column in found), strict=True))
    assert rows == [(0, 0, 0, 1), (0, 2, 0, 0), (0, 2, 0, 0)]


@pytest.mark.parametrize(
    ("agreement", "high"), [(0.63, 0.755), (0.657, 0.780), (0.726, 0.836), (0.773, 0.869), (0.81, 0.894)]
)
def test_the_ceiling_of_published_agreements(agreement, high):
    assert measures.ceiling_bounds(agreement) == pytest.approx((agreement, high), abs=5e-4)


def test_people_who_agree_less_than_by_chance_have_a_ceiling_of_one_half():
    assert measures.ceiling_bounds(0.4) == (0.5, 0.5)


def test_mcnemars_p_is_the_exact_binomial_one():
    assert measures.mcnemar(0, 0) == 1.0
    assert measures.mcnemar(5, 5) == pytest.approx(1.0)
    assert measures.mcnemar(0, 6) == pytest.approx(2 / 2**6)
    assert measures.mcnemar(6, 1) == measures.mcnemar(1, 6) == pytest.approx(2 * 8 / 2**7)
