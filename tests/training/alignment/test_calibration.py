import math

import numpy as np
import pytest
from scipy.special import expit, log_expit

from training.alignment.calibration import HOTTEST, fit_temperature


def calibrated(num_pairs: int, spread: float = 2.0, seed: int = 0) -> np.ndarray:
    """Margins of pairs of which each is right with the chance that its margin tells."""
    draw = np.random.default_rng(seed)
    margins = draw.normal(scale=spread, size=num_pairs)
    return np.where(draw.random(num_pairs) < expit(margins), margins, -margins)


def test_calibrated_margins_need_no_temperature():
    assert fit_temperature(calibrated(20_000)) == pytest.approx(1, abs=0.03)


def test_inflation_is_recovered():
    assert fit_temperature(2.5 * calibrated(20_000)) == pytest.approx(2.5, abs=0.075)


def test_the_temperature_has_the_margins_unit():
    margins = calibrated(300)

    assert fit_temperature(1e-3 * margins) == pytest.approx(1e-3 * fit_temperature(margins), rel=1e-9)


def test_a_repeated_pair_has_the_temperature_of_its_share():
    # 7 of 10 right at a margin of 2: sigmoid(2 / T) = 0.7, so T = 2 / ln(7 / 3)
    assert fit_temperature([2.0] * 7 + [-2.0] * 3) == pytest.approx(2 / math.log(7 / 3), rel=1e-9)
    assert fit_temperature([2.0, -2.0], [7.0, 3.0]) == pytest.approx(2 / math.log(7 / 3), rel=1e-9)


def test_no_other_temperature_is_more_likely():
    margins = calibrated(200, seed=3)
    weights = np.random.default_rng(4).random(200)

    def likelihood(temperature: float) -> float:
        return weights @ log_expit(margins / temperature)

    best = fit_temperature(margins, weights)

    assert likelihood(best) > max(likelihood(0.99 * best), likelihood(1.01 * best))


def test_what_was_always_right_gets_the_chance_of_laplaces_rule():
    assert expit(3 / fit_temperature([3.0] * 98)) == pytest.approx(99 / 100)
    assert expit(3 / fit_temperature([3.0], [98.0])) == pytest.approx(99 / 100)


@pytest.mark.parametrize("margins", [[1.0, -1.0], [1.0, -2.0, -1.0], [-4.0], [1.0] * 500 + [-1.0] * 499])
def test_rewards_no_better_than_chance_get_probabilities_of_about_one_half(margins):
    size = math.sqrt(np.mean(np.square(margins)))

    assert fit_temperature(margins) == pytest.approx(HOTTEST * size)


def test_equal_rewards_tell_nothing():
    assert fit_temperature([1.0, 0.0, -0.5, 0.0]) == fit_temperature([1.0, -0.5])


@pytest.mark.parametrize(
    ("margins", "weights", "message"),
    [
        ([], None, "no margin differs from nothing"),
        ([0.0, 1.0], [1.0, 0.0], "no margin differs from nothing"),
        ([[1.0]], None, r"must be \(N,\), not \(1, 1\) and \(1, 1\)"),
        ([1.0, 2.0], [1.0], r"must be \(N,\), not \(2,\) and \(1,\)"),
        ([1.0, math.nan], None, "must be finite"),
        ([1.0], [-1.0], "no weight negative"),
    ],
)
def test_what_cannot_be_fitted_is_refused(margins, weights, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(margins, weights)
