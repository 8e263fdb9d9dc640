import pytest

from tests.training.factories import make_finished_run
from tests.training.reports import leave
from tests.training.trackings import make_curve
from training.best_of_n_queries import OVER_RANDOM, best_of_n
from training.plots import Strip
from training.report_figures import Row

pytestmark = pytest.mark.django_db


def make_sampled(told, **values):
    return leave(make_finished_run(kind="rejection_sampling", **values), "curve.json", told)


def test_curve_is_shown_by_powers_of_the_root_of_two_and_at_its_end():
    found = best_of_n(make_sampled(make_curve(20)))
    assert [row[0] for row in found.rows] == ["1", "2", "3", "4", "6", "8", "11", "16", "20"]
    assert found.rows[1] == ["2", "0.040", "0.050", "0.200 [0.100,\u00a00.300]", "0.176 [0.076,\u00a00.276]"]
    assert [(curve.name, bool(curve.band), len(curve.dots)) for curve in found.chart.curves] == [
        ("reward", False, 9),
        ("held_out", True, 9),
    ]
    assert found.chart.curves[1].dots[1].text == "n = 2: held-out reward 0.176 [0.076,\u00a00.276]"
    assert found.chart.levels[0].y == found.chart.curves[1].dots[0].y
    assert found.chart.about == (
        "Best of n against the square root of its KL: the held-out reward goes from 0.094 for one sample to -0.4 for "
        "20. The figures are in the table."
    )
    assert (found.over_random, found.distance) == ([], "")


def test_random_twin_and_distance_are_told():
    result = {
        "model": "model",
        "reward_gain_over_random": 0.5,
        "reward_gain_over_random_interval": [0.25, 0.75],
        "held_out_reward_gain_over_random": -0.25,
        "held_out_reward_gain_over_random_interval": None,
        "kl_best_of_n": 1.8,
        "kl_best_of_n_interval": [1.7, 1.81],
        "kl_bound": 1.835,
    }
    found = best_of_n(make_sampled(make_curve(), result=result))
    assert found.over_random == [
        Row(
            "Optimised reward",
            "+0.500 [+0.250,\u00a0+0.750]",
            OVER_RANDOM["reward"][1],
            Strip("82.67%", "66.33%", "99.00%", "50.00%"),
        ),
        Row(
            "Held-out reward",
            "-0.250",
            OVER_RANDOM["held_out_reward"][1],
            Strip("33.67%", "33.67%", "33.67%", "50.00%"),
        ),
    ]
    assert found.distance == (
        "The best of n is 1.800 [1.700,\u00a01.810] nats from the policy that was sampled, by estimate; at most 1.835."
    )


@pytest.mark.parametrize(
    "told", [{}, {"n": None}, {"n": [1, 2]}, {"n": 3, "kl": [0]}, {"n": [0, -1, "2", 1e9], "kl": [0, 0, 0, 0]}]
)
def test_a_curve_of_another_shape_is_nothing(told):
    assert best_of_n(make_sampled(told)) is None
    assert best_of_n(leave(make_finished_run(kind="rlhf"), "curve.json", make_curve())) is None


def test_a_curve_may_lack_its_rewards():
    found = best_of_n(make_sampled(make_curve(2, reward=[None, 0.2], held_out="none", kl_bound=None, kl=[0.0, -0.001])))
    assert found.rows == [
        ["1", "0.000", "", "not measured", "not measured"],
        ["2", "0.000", "", "0.200 [0.100,\u00a00.300]", "not measured"],
    ]
    assert [len(curve.dots) for curve in found.chart.curves] == [1]
    assert best_of_n(make_sampled(make_curve(2, reward=None, held_out=None))).chart is None
