import math

import numpy as np
import pytest

from training.alignment.config import ConfigError, RlhfConfig
from training.alignment.objectives import Baseline, Objectives

NAN = float("nan")
BASELINE = Baseline(means=(1.0, 10.0), deviations=(2.0, 5.0), length=8.0)


def objectives(**values) -> Objectives:
    told = {"reward_model": "one, two", "preferences": "p.jsonl", **values}
    return Objectives(RlhfConfig(**told), BASELINE)


def combined(found: Objectives, rewards, lengths=None, is_ended=None) -> list[float]:
    n = len(rewards)
    return found.combine(rewards, lengths or [8] * n, is_ended or [True] * n).tolist()


def test_baseline_leaves_missing_rewards_out():
    # the first objective: 1, 3, 5 have mean 3 and deviation sqrt(8/3); the second: all alike, so nothing to divide by
    found = Baseline.measure([[1, 7], [3, 7], [5, NAN], [NAN, 7]], [2, 4, 6, 8])

    assert found == Baseline((3.0, 7.0), (pytest.approx(math.sqrt(8 / 3)), 1.0), 5.0)
    assert Baseline.from_dict(found.to_dict()) == found


def test_baseline_refuses_an_objective_that_scores_nothing():
    with pytest.raises(ConfigError, match="reward_model: objective 2 could score no response"):
        Baseline.measure([[1, NAN], [2, NAN]], [1, 1])


def test_weighted_sum_of_normalised_rewards():
    # (3 - 1) / 2 = 1 and (5 - 10) / 5 = -1; (1 - 1) / 2 = 0 and (20 - 10) / 5 = 2
    assert combined(objectives(weights="2, 0.5"), [[3, 5], [1, 20]]) == [1.5, 1.0]


def test_rewards_as_they_are():
    assert combined(objectives(weights="2, 0.5", normalise=False), [[3, 5], [1, 20]]) == [8.5, 12.0]


def test_a_missing_reward_makes_the_whole_missing_whatever_its_weight():
    found = combined(objectives(weights="1, 0"), [[3, 5], [3, NAN], [NAN, 5]])

    assert found == pytest.approx([1.0, NAN, NAN], nan_ok=True)


def test_clip_follows_normalisation():
    # 1 and -1 become 0.5 and -0.5
    assert combined(objectives(weights="2, 1", reward_clip=0.5), [[3, 5]]) == [0.5]


def test_where_zero_is_decides_what_a_clip_leaves_of_a_prompt():
    found = Objectives(RlhfConfig(reward_model="one", normalise=False, reward_clip=2.0), BASELINE)

    assert combined(found, [[0.5], [-1.0], [3.0]]) == [0.5, -1.0, 2.0]
    assert combined(found, [[0.5 + 1], [-1.0 + 1], [3.0 + 1]]) == [1.5, 0.0, 2.0]  # the third leads by less
    assert combined(found, [[0.5 + 9], [-1.0 + 9], [3.0 + 9]]) == [2.0, 2.0, 2.0]


def test_what_is_added_to_the_rewards_of_all_prompts_alike_is_taken_off_before_the_clip():
    reference, rewards = np.array([[0.0], [2.0], [0.0], [2.0]]), np.array([[0.5], [-1.0], [3.0]])  # mean 1, deviation 1
    config = RlhfConfig(reward_model="one", reward_clip=1.5)

    found, shifted = (
        combined(Objectives(config, Baseline.measure(reference + added, [8] * 4)), rewards + added)
        for added in (0.0, 512.0)
    )

    assert found == shifted == [-0.5, -1.5, 1.5]


def test_a_missing_end_costs_the_same_wherever_zero_is():
    found = Objectives(RlhfConfig(reward_model="one", normalise=False, end_penalty=0.25), BASELINE)

    for added in (0.0, -512.0):
        assert combined(found, [[added + 1], [added + 1]], is_ended=[True, False]) == [added + 1, added + 0.75]


def test_length_beyond_the_reference_costs_in_proportion_and_a_missing_end_costs():
    found = objectives(weights="1, 0", length_penalty=0.4, end_penalty=0.3)

    # as long as the reference, twice, shorter; the last two without an end
    assert combined(found, [[1, 10]] * 4, [8, 16, 2, 12], [True, True, False, False]) == pytest.approx(
        [0.0, -0.4, -0.3, -0.5]
    )


def test_adaptive_weights_rise_for_what_lags_and_keep_their_sum():
    found = objectives(objective="adaptive", weights="1, 3")
    # gains of 1 and 0: weights go as 1 * exp(-0.05) and 3, and sum to 4
    found.update([[3, 10], [3, NAN]])

    first = math.exp(-0.05)
    assert found.weights.tolist() == pytest.approx([4 * first / (first + 3), 12 / (first + 3)])
    assert found.weights.sum() == pytest.approx(4)


def test_adaptive_weights_settle_where_both_gain_alike():
    """Each objective gains in proportion to its weight; one of them is three times as easy."""
    found = objectives(objective="adaptive")
    for _ in range(400):
        gains = np.array([3.0, 1.0]) * found.weights
        found.update([np.array(BASELINE.means) + np.array(BASELINE.deviations) * gains])

    assert found.weights.tolist() == pytest.approx([0.5, 1.5], abs=1e-3)


def test_adaptive_weights_wait_while_an_objective_is_missing():
    found = objectives(objective="adaptive")
    found.update([[3, NAN], [3, NAN]])

    assert found.weights.tolist() == [1, 1]


def test_multiplier_rises_below_the_floor_and_falls_to_nothing_above():
    found = objectives(objective="constrained", constraint=2, floor=12.0)
    multipliers = []
    for mean in (7.0, 7.0, 14.0, 52.0):  # shortfalls of 1, 1, -0.4 and -8 deviations
        found.update([[0, mean]])
        multipliers.append(found.multiplier)

    assert multipliers == pytest.approx([0.05, 0.1, 0.08, 0.0])


def test_multiplier_of_a_floor_out_of_reach_is_taken_back_at_once():
    found = objectives(objective="constrained", constraint=2, floor=12.0)
    multipliers = []
    for mean in [-88.0] * 30 + [14.0] * 2:  # 20 deviations below, then 0.4 above
        found.update([[0, mean]])
        multipliers.append(found.multiplier)

    assert multipliers == pytest.approx([1.0] * 30 + [0.98, 0.96])


def test_constrained_reward_takes_its_share_of_the_whole():
    found = objectives(objective="constrained", weights="1, 2", constraint=2, floor=12.0)
    # deviations of 1 and 2
    wholes = []
    for found.multiplier in (0.0, 0.25, 1.0):
        wholes += combined(found, [[3, 20]])

    assert wholes == [5.0, 0.75 * 5 + 0.25 * 2, 2.0]


def test_clip_does_not_hide_the_way_to_the_floor():
    found = objectives(objective="constrained", constraint=2, floor=12.0, reward_clip=0.5)
    found.multiplier = 0.5

    # -8 and -10 deviations are both clipped to -0.5
    assert combined(found, [[3, -30], [3, -40]]) == [0.5 * (0.5 - 0.5) - 0.5 * 8, 0.5 * (0.5 - 0.5) - 0.5 * 10]


def test_a_floor_is_kept_where_the_rest_would_fall_through_it():
    """A policy that may give up the second reward for the first, and follows the slope of what it is told to optimise.

    Both depend on how much is given up in straight lines, so it swings around the floor, and its mean is looked at.
    """
    found = objectives(objective="constrained", weights="1, 0", constraint=2, floor=8.0)
    given_up, seconds = 0.0, []
    for _ in range(4000):
        less, more = ([1 + 4 * x, 10 - 10 * x] for x in (given_up, given_up + 1))
        slope = np.diff(combined(found, [less, more]))[0]
        given_up = min(1.0, max(0.0, given_up + 0.01 * slope))
        found.update([less])
        seconds.append(less[1])

    assert np.mean(seconds[2000:]) == pytest.approx(8.0, abs=0.1)


def test_state_goes_on_where_it_was():
    found, other = (objectives(objective="adaptive") for _ in range(2))
    found.update([[3, 10]])
    found.multiplier = 0.25
    other.load_state(found.state())

    assert other.state() == found.state()
    assert other.baseline == BASELINE


def test_proxy_is_a_single_reward_as_it_is_and_several_by_their_first_weights():
    several = objectives(objective="adaptive", weights="2, 0.5")
    several.update([[30, 10]])
    single = Objectives(RlhfConfig(reward_model="one"), Baseline((5.0,), (2.0,), 8.0))

    assert several.proxy([[3, 5], [NAN, 5]]).tolist() == pytest.approx([1.5, NAN], nan_ok=True)
    assert single.proxy([[3], [NAN]]).tolist() == pytest.approx([3, NAN], nan_ok=True)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"rewards: \(1, 3\) is not \(responses, 2\)"):
        combined(objectives(), [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"rewards \(1, 2\), lengths \(2,\) and is_ended \(1,\) differ"):
        objectives().combine([[1, 2]], [1, 1], [True])
    with pytest.raises(ValueError, match=r"rewards: \(2,\) is not \(responses, objectives\)"):
        Baseline.measure([1, 2], [1, 1])
