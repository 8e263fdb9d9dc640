import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit

from training.alignment.noise import (
    NotIdentifiedError,
    _repeats_log_likelihood,
    estimate_flip_rate,
    fit_noisy_tournament,
    soft_labels,
)


def repeated(num_pairs, num_votes, spread, rate, seed):
    """Wins and votes of pairs whose differences are normal, judged with flips."""
    generator = np.random.default_rng(seed)
    chance = rate + (1 - 2 * rate) * expit(generator.normal(0, spread, num_pairs))
    return generator.binomial(num_votes, chance), np.full(num_pairs, num_votes)


def tournament(num_votes, spread, rate, seed, num_items=30):
    """True strengths, winners and losers."""
    generator = np.random.default_rng(seed)
    strengths = generator.normal(0, 1, num_items)
    strengths = spread * (strengths - strengths.mean()) / strengths.std()
    first = generator.integers(0, num_items, num_votes)
    second = (first + generator.integers(1, num_items, num_votes)) % num_items
    wins = generator.random(num_votes) < rate + (1 - 2 * rate) * expit(strengths[first] - strengths[second])
    return strengths, np.where(wins, first, second), np.where(wins, second, first)


@pytest.mark.parametrize(("rate", "spread"), [(0.0, 1.5), (0.1, 1.0), (0.3, 4.0)])
def test_the_likelihood_of_repeats_is_the_integral_over_differences(rate, spread):
    def chance(wins, votes):
        def integrand(difference):
            first = rate + (1 - 2 * rate) * expit(difference)
            density = math.exp(-(difference**2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))
            return first**wins * (1 - first) ** (votes - wins) * density

        return quad(integrand, -12 * spread, 12 * spread, points=[0.0])[0]

    wins, votes = np.array([0.0, 1, 3, 5, 5, 2]), np.array([4.0, 4, 5, 5, 9, 2])
    expected = sum(math.log(chance(one, total)) for one, total in zip(wins, votes, strict=True))

    assert _repeats_log_likelihood(wins, votes)(rate, spread) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rate", "spread"), [(0.0, 2.0), (0.1, 2.0), (0.25, 2.0), (0.25, 3.0)])
def test_flips_are_told_from_close_pairs_by_repeated_votes(rate, spread):
    found = [estimate_flip_rate(*repeated(2000, 20, spread, rate, seed)) for seed in range(8)]

    assert np.mean([one.rate for one in found]) == pytest.approx(rate, abs=0.02)
    assert np.mean([one.spread for one in found]) == pytest.approx(spread, rel=0.15)
    assert sum(one.interval[0] <= rate <= one.interval[1] for one in found) >= 7
    assert all(one.interval[0] <= one.rate <= one.interval[1] for one in found)


def test_which_response_comes_first_does_not_count():
    wins, votes = repeated(500, 12, 2.0, 0.1, seed=0)
    is_mirrored = np.arange(500) % 3 == 0

    assert estimate_flip_rate(np.where(is_mirrored, votes - wins, wins), votes) == estimate_flip_rate(wins, votes)


def test_pairs_with_one_vote_change_nothing():
    wins, votes = repeated(500, 12, 2.0, 0.1, seed=0)

    more = estimate_flip_rate(np.append(wins, [1, 0, 1]), np.append(votes, [1, 1, 1]))

    assert more.rate == pytest.approx(estimate_flip_rate(wins, votes).rate, abs=1e-4)


def test_three_votes_a_pair_fit_any_flip_rate_and_are_refused():
    wins, votes = repeated(100_000, 3, 2.0, 0.1, seed=0)

    with pytest.raises(NotIdentifiedError, match="0 pairs have 4 votes or more; 30 are needed"):
        estimate_flip_rate(wins, votes)


def test_three_votes_have_the_same_likelihood_under_flips_and_under_close_pairs():
    # what the refusal rests on: unanimous or not is all that three votes tell, one number for two unknowns
    unanimous, split = (_repeats_log_likelihood(np.array([wins]), np.array([3.0])) for wins in (0.0, 1.0))

    for rate in (0.1, 0.2):
        spread = brentq(lambda spread, rate=rate: unanimous(rate, spread) - unanimous(0.0, 1.0), 1, 10)

        assert split(rate, spread) == pytest.approx(split(0.0, 1.0), abs=1e-7)


@pytest.mark.parametrize(("num_pairs", "num_votes"), [(29, 50), (100, 4), (1000, 5)])
def test_too_few_votes_are_refused(num_pairs, num_votes):
    with pytest.raises(NotIdentifiedError):
        estimate_flip_rate(*repeated(num_pairs, num_votes, 1.5, 0.25, seed=0))


def test_the_rate_from_repeats_restores_the_strengths_of_a_tournament():
    strengths, winners, losers = tournament(40_000, 2.0, 0.25, seed=1)
    first = winners < losers
    pair = np.minimum(winners, losers) * 30 + np.maximum(winners, losers)
    kinds, place = np.unique(pair, return_inverse=True)

    rate = estimate_flip_rate(np.bincount(place, first, len(kinds)), np.bincount(place)).rate
    joint = fit_noisy_tournament(winners, losers, 30)

    assert rate == pytest.approx(0.25, abs=0.03)
    assert joint.rate == pytest.approx(rate, abs=0.03)
    assert np.polyfit(strengths, joint.strengths, 1)[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("spread", "rate"), [(1.0, 0.25), (2.0, 0.25), (2.0, 0.05)])
def test_a_tournament_tells_strengths_and_flip_rate(spread, rate):
    slopes, rates, num_inside = [], [], 0
    for seed in range(10):
        strengths, winners, losers = tournament(40_000, spread, rate, seed)
        found = fit_noisy_tournament(winners, losers, 30)
        slopes.append(np.polyfit(strengths, found.strengths, 1)[0])
        rates.append(found.rate)
        num_inside += found.interval[0] <= rate <= found.interval[1]

    assert 0.9 < np.mean(slopes) < 1.1
    assert np.mean(rates) == pytest.approx(rate, abs=0.02)
    assert num_inside >= 8
    assert found.strengths.mean() == pytest.approx(0, abs=1e-12)


def test_renaming_items_renames_strengths():
    _, winners, losers = tournament(20_000, 2.0, 0.1, seed=0, num_items=8)
    names = np.random.default_rng(1).permutation(8)

    found, renamed = (fit_noisy_tournament(*votes, 8) for votes in ((winners, losers), (names[winners], names[losers])))

    assert renamed.strengths[names].tolist() == pytest.approx(found.strengths.tolist(), abs=1e-3)
    assert renamed.rate == pytest.approx(found.rate, abs=1e-4)


@pytest.mark.parametrize(
    ("num_votes", "spread", "message"),
    [
        (499, 2.0, "499 votes on 10 items; 50 an item are needed"),
        (2000, 0.5, r"flip rates between 0\.000 and 0\.\d+ fit"),
    ],
)
def test_a_tournament_that_is_too_small_or_too_close_is_refused(num_votes, spread, message):
    _, winners, losers = tournament(num_votes, spread, 0.2, seed=0, num_items=10)

    with pytest.raises(NotIdentifiedError, match=message):
        fit_noisy_tournament(winners, losers, 10)


def test_soft_labels_are_shares_of_votes_drawn_towards_a_half():
    assert soft_labels([0, 3, 2, 0], [3, 3, 4, 0]).tolist() == pytest.approx([0.5 / 4, 3.5 / 4, 0.5, 0.5])
    assert soft_labels([0, 3, 2, 0], [3, 3, 4, 0], prior_votes=0).tolist() == [0, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("wins", "votes", "message"),
    [
        ([1, 2], [3], r"wins \(2,\) and votes \(1,\) must both be \(N,\)"),
        ([[1]], [[3]], r"must both be \(N,\)"),
        ([4], [3], "wins must be at least 0 and at most votes"),
        ([-1], [3], "wins must be at least 0 and at most votes"),
        ([math.nan], [3], "wins must be at least 0 and at most votes"),
    ],
)
def test_votes_that_cannot_be_are_refused(wins, votes, message):
    for function in (estimate_flip_rate, soft_labels):
        with pytest.raises(ValueError, match=message):
            function(wins, votes)


def test_a_negative_prior_is_refused():
    with pytest.raises(ValueError, match="prior_votes -1 must not be negative"):
        soft_labels([1], [2], prior_votes=-1)


@pytest.mark.parametrize(
    ("winners", "losers", "options", "message"),
    [
        ([0, 1], [1], {}, r"winners \(2,\) and losers \(1,\) must both be \(V,\), and not empty"),
        ([], [], {}, "not empty"),
        ([0], [2], {}, "two of the items 0 to 1"),
        ([-1], [1], {}, "two of the items 0 to 1"),
        ([1], [1], {}, "two of the items 0 to 1"),
        ([0], [1], {"l2": 0.0}, "l2 0.0 must be positive"),
    ],
)
def test_tournaments_that_cannot_be_are_refused(winners, losers, options, message):
    with pytest.raises(ValueError, match=message):
        fit_noisy_tournament(winners, losers, 2, **options)
