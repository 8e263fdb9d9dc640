import numpy as np
import pytest

from annotate.stats.ceiling import ceiling_of_agreement, ceiling_of_moments, human_ceiling

# how p is spread, and the best possible accuracy E[max(p, 1 - p)] in such a world
WORLDS = [((0.5, 0.5), 0.818), ((1, 1), 0.750), ((2, 2), 0.6875), ((5, 5), 0.6230), ((6, 6), 0.6128)]


def moments(a, b):
    """E[d²] and E[d⁴] of d = p - 1/2 for p ~ Beta(a, b), a = b."""
    second = 1 / (4 * (2 * a + 1))
    return second, 3 / (16 * (2 * a + 1) * (2 * a + 3))


@pytest.mark.parametrize(
    ("agreement", "low", "high"),
    [
        (0.63, 0.63, 0.755),
        (0.657, 0.657, 0.780),
        (0.726, 0.726, 0.836),
        (0.773, 0.773, 0.869),
        (0.81, 0.81, 0.894),
        (1.0, 1.0, 1.0),
        (0.5, 0.5, 0.5),
        (0.45, 0.5, 0.5),
    ],
)
def test_agreement_brackets_the_ceiling(agreement, low, high):
    assert ceiling_of_agreement(agreement) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(
    ("world", "low", "high"),
    [((0.5, 0.5), 0.789, 0.834), ((1, 1), 0.715, 0.770), ((2, 2), 0.653, 0.710), ((5, 5), 0.595, 0.644)],
)
def test_two_moments_bracket_it_tighter(world, low, high):
    found = ceiling_of_moments(*moments(*world))
    assert found == pytest.approx((low, high), abs=1e-3)
    truth = dict(WORLDS)[world]
    assert found[0] <= truth <= found[1]


def test_moments_that_cannot_be_are_none():
    assert ceiling_of_moments(0.1, 0.2) is None


@pytest.mark.parametrize(("world", "truth"), WORLDS)
@pytest.mark.parametrize("num_votes", [2, 5])
def test_the_ceiling_of_a_simulated_world_lies_in_its_interval(world, truth, num_votes):
    rng = np.random.default_rng(0)
    votes = np.full(5000, num_votes)
    found = human_ceiling(rng.binomial(votes, rng.beta(*world, size=5000)), votes, rng=rng)

    assert found.low - 0.01 <= truth <= found.high + 0.01
    assert found.agreement_interval[0] < found.agreement < found.agreement_interval[1]
    assert found.widest[0] <= found.low <= found.high <= found.widest[1] + 1e-9
    assert (found.num_items, found.is_tightened) == (5000, num_votes == 5)


def test_more_votes_make_it_tighter():
    rng = np.random.default_rng(1)
    p = rng.beta(1, 1, size=4000)
    two, five = (human_ceiling(rng.binomial(votes, p), np.full(4000, votes), rng=rng) for votes in (2, 5))
    assert five.high - five.low < 0.75 * (two.high - two.low)


def test_items_with_more_votes_may_be_other_items():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.beta(1, 1, size=12000), rng.beta(5, 5, size=8000)])
    votes = np.repeat([5, 2], [12000, 8000])

    found = human_ceiling(rng.binomial(votes, p), votes, rng=rng)

    assert found.is_tightened
    assert found.low < np.maximum(p, 1 - p).mean() < found.high


def test_items_with_one_vote_say_nothing():
    rng = np.random.default_rng(0)
    assert human_ceiling([1] * 50, [1] * 50, rng=rng) is None
    assert human_ceiling([2] * 20 + [1] * 50, [2] * 20 + [1] * 50, rng=rng).num_items == 20


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="must count part of num_votes"):
        human_ceiling([3], [2], rng=np.random.default_rng(0))
