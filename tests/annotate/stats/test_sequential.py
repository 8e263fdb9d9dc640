import math
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from annotate.stats.sequential import (
    ALPHA,
    SPREAD,
    Course,
    confidence_interval,
    course,
    decide,
    log_e_value,
    num_more,
    num_votes,
    num_votes_for_precision,
    power,
)

NUM_EXPERIMENTS, NUM_VOTES = 10_000, 500
CLAIM = -math.log(ALPHA)


@lru_cache
def experiments(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Wins and losses after each vote: (NUM_EXPERIMENTS, NUM_VOTES)."""
    won = np.random.default_rng(7).random((NUM_EXPERIMENTS, NUM_VOTES)) < rate
    wins = won.cumsum(axis=1)
    return wins, np.arange(1, NUM_VOTES + 1) - wins


def test_e_value_of_twelve_wins_worked_by_hand():
    # E = B(5 + 12, 5) / B(5, 5) * 2^12 = (16! 4! / 21!) * (9! / (4! 4!)) * 4096
    #   = 9! / 4! / (17 * 18 * 19 * 20 * 21) * 4096 = 15120 / 2441880 * 4096
    #   = 25.3624, the first one above 20
    assert math.exp(log_e_value(12, 0)) == pytest.approx(25.3624, rel=1e-5)
    assert math.exp(log_e_value(11, 0)) < 20
    known = course([1] * 12)
    assert known.p_value == pytest.approx(1 / 25.3624, rel=1e-4)
    assert decide(known, effect=0.1) == ("better", 12)
    assert decide(course([1] * 11), effect=0.1) == ("go_on", 11)


def test_e_value_is_the_mixture_of_likelihoods_over_the_likelihood():
    for wins, losses, rate in ((0, 0, 0.5), (3, 1, 0.5), (7, 12, 0.3)):
        mixed = quad(lambda p: p**wins * (1 - p) ** losses * beta.pdf(p, SPREAD, SPREAD), 0, 1)[0]  # noqa: B023 -- called at once
        assert math.exp(log_e_value(wins, losses, rate)) == pytest.approx(
            mixed / (rate**wins * (1 - rate) ** losses), rel=1e-6
        )


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_e_value_is_a_martingale_under_its_rate(rate):
    # the mean over all courses of 6 votes, each by its probability, is what it began with
    mean = sum(
        math.prod(rate if won else 1 - rate for won in votes) * math.exp(log_e_value(sum(votes), 6 - sum(votes), rate))
        for votes in product((0, 1), repeat=6)
    )
    assert mean == pytest.approx(1.0)


def test_at_most_one_claim_in_twenty_is_false_with_a_look_after_every_vote():
    wins, losses = experiments(0.5)
    claims = (log_e_value(wins, losses) >= CLAIM).any(axis=1).mean()
    num = wins + losses
    naive = (np.abs(2 * wins - num) >= 1.959964 * np.sqrt(num))[:, 9:].any(axis=1).mean()  # from the 10th vote on
    assert claims == pytest.approx(0.029, abs=0.005)
    assert naive == pytest.approx(0.42, abs=0.03)


@pytest.mark.parametrize(("rate", "found", "mean"), [(0.6, 0.95, 209), (0.65, 1.0, 94)])
def test_power_and_number_of_votes(rate, found, mean):
    wins, losses = experiments(rate)
    claims = (log_e_value(wins, losses) >= CLAIM) & (wins > losses)
    assert claims.any(axis=1).mean() == pytest.approx(found, abs=0.01)
    assert power(rate, NUM_VOTES) == pytest.approx(claims.any(axis=1).mean(), abs=0.01)
    stopped = np.where(claims.any(axis=1), claims.argmax(axis=1) + 1, NUM_VOTES)
    assert stopped.mean() == pytest.approx(mean, abs=4)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.62])
def test_confidence_sequence_covers_the_truth_at_all_times(rate):
    wins, losses = experiments(rate)
    missed = (log_e_value(wins, losses, rate) >= CLAIM).any(axis=1)
    assert missed.mean() < ALPHA
    some = slice(0, 50)
    lows, highs = confidence_interval(wins[some], losses[some])
    assert np.array_equal((lows > rate) | (highs < rate), log_e_value(wins[some], losses[some], rate) > CLAIM)


def test_ties_may_be_left_out_whatever_their_share():
    rng = np.random.default_rng(3)
    votes = rng.choice([1, 0, -1], p=[0.2, 0.6, 0.2], size=(4000, 400))  # win, tie, loss
    wins, losses = (votes == 1).cumsum(axis=1), (votes == -1).cumsum(axis=1)
    assert (log_e_value(wins, losses) >= CLAIM).any(axis=1).mean() < ALPHA


def test_further_votes_on_a_pair_would_be_no_further_evidence():
    # both policies win half of the prompts, but on each prompt people agree which is better: 5 votes on each of 60
    rng = np.random.default_rng(9)
    rates = rng.choice([0.1, 0.9], size=(2000, 60))
    votes = rng.random((2000, 60, 5)) < rates[..., None]
    for counted, at_most, at_least in ((votes[..., 0], ALPHA, 0.0), (votes.reshape(2000, -1), 1.0, 0.2)):
        wins = counted.cumsum(axis=1)
        claims = log_e_value(wins, np.arange(1, wins.shape[1] + 1) - wins) >= CLAIM
        assert at_least <= claims.any(axis=1).mean() <= at_most


def test_swapping_the_two_policies_mirrors_everything():
    votes = np.random.default_rng(5).integers(0, 2, 80)
    one, other = course(votes), course(1 - votes)
    assert np.allclose(one.e_values, other.e_values)
    assert np.allclose(one.lows, 1 - other.highs)
    assert np.allclose(one.highs, 1 - other.lows)
    assert one.p_value == other.p_value


def test_intervals_of_no_votes_and_of_wins_alone():
    lows, highs = confidence_interval([0, 40], [0, 0])
    assert lows.tolist() == [0.0, pytest.approx(0.8, abs=0.1)]
    assert highs.tolist() == [1.0, 1.0]
    nothing = course([])
    assert (nothing.p_value, decide(nothing, 0.1)) == (1.0, ("go_on", 0))


def made(lows: list[float], highs: list[float]) -> Course:
    return Course(np.zeros(len(lows)), np.ones(len(lows)), np.array(lows), np.array(highs))


def test_what_has_been_decided_stays_decided():
    assert decide(made([0.4, 0.51, 0.49], [0.9, 0.9, 0.9]), 0.1) == ("better", 2)
    assert decide(made([0.1, 0.1], [0.7, 0.49]), 0.1) == ("worse", 2)
    assert decide(made([0.4, 0.45, 0.45], [0.7, 0.59, 0.7]), 0.1) == ("not_better", 2)
    assert decide(made([0.4, 0.45, 0.51], [0.7, 0.59, 0.7]), 0.1) == ("better", 3)
    assert decide(made([0.4, 0.1], [0.59, 0.49]), 0.1) == ("worse", 2)
    assert decide(made([0.4, 0.45], [0.7, 0.61]), 0.1) == ("go_on", 2)


def test_interval_is_what_all_intervals_have_in_common():
    assert made([0.4, 0.51, 0.49], [0.9, 0.8, 0.85]).interval == (0.51, 0.8)
    assert made([0.4, 0.8, 0.1], [0.9, 0.95, 0.3]).interval == (0.1, 0.3)
    assert made([], []).interval == (0.0, 1.0)


def test_how_many_votes_more():
    assert decide(course([1] * 300 + [0] * 200), 0.1)[0] == "better"
    assert num_more(0, 0, 0.1) == pytest.approx(226, abs=10)  # until nothing as large as .6 is left
    assert num_more(60, 40, 0.1) == pytest.approx(147, abs=5)
    assert num_more(5500, 4500, 0.05) == 1
    assert num_more(55_000, 55_000, 0.0001) is None


def test_number_of_votes_reaches_its_power():
    for effect, wanted in ((0.1, 0.9), (0.2, 0.5)):
        num = num_votes(effect, wanted)
        assert power(0.5 + effect, num - 1) < wanted <= power(0.5 + effect, num)
    assert num_votes(0.1) == pytest.approx(421, abs=5)
    assert power(0.6, 0) == 0


def test_number_of_votes_reaches_its_precision():
    num = num_votes_for_precision(0.05)
    low, high = confidence_interval(num / 2, num / 2)
    assert high - low <= 0.1
    low, high = confidence_interval((num - 1) / 2, (num - 1) / 2)
    assert high - low > 0.1
    for rate in (0.1, 0.7):
        low, high = confidence_interval(num * rate, num * (1 - rate))
        assert high - low <= 0.1


@pytest.mark.parametrize("votes", [[0.5], [2], [[1, 0]], [math.nan]])
def test_votes_that_are_none(votes):
    with pytest.raises(ValueError, match="outcomes are a row of 0 and 1"):
        course(votes)


def test_effects_and_precisions_that_are_none():
    for effect in (0.0, 0.01, 0.5):
        with pytest.raises(ValueError, match="an effect is from"):
            num_votes(effect)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="a power is above 0"):
            num_votes(0.1, wrong)
    for precision in (0.0, 0.5):
        with pytest.raises(ValueError, match="a precision is from"):
            num_votes_for_precision(precision)
