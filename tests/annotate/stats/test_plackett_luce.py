from itertools import pairwise, permutations

import choix
import numpy as np
import pytest

from annotate.stats import plackett_luce as module
from annotate.stats.bradley_terry import FIRST, DisconnectedError, NotConvergedError, bradley_terry
from annotate.stats.plackett_luce import log_likelihood, padded, plackett_luce


def by_enumeration(utilities, places):
    """The probability summed over all orders that agree with the places."""
    total = 0.0
    for order in permutations(range(len(places))):
        if all(places[one] <= places[other] for one, other in pairwise(order)):
            weights = np.exp(utilities[list(order)])
            total += np.prod(weights / weights[::-1].cumsum()[::-1])
    return total


def drawn(strengths, num_rankings, length, seed):
    generator = np.random.default_rng(seed)
    rankings = []
    for _ in range(num_rankings):
        shown = generator.choice(len(strengths), length, replace=False)
        rankings.append(shown[np.argsort(-(strengths[shown] + generator.gumbel(size=length)))].tolist())
    return rankings


def in_groups(order):
    return [[item] for item in order]


def test_equal_items_come_in_every_order_alike():
    # log 4! = 3.1780538, log 9! = 12.8018275
    for num_items, expected in ((4, -3.1780538303479458), (9, -12.801827480081469)):
        value, _ = log_likelihood(np.zeros((1, num_items)), np.arange(num_items)[None])
        np.testing.assert_allclose(value, [expected], atol=1e-12)


def test_the_first_of_two_comes_first_by_the_sigmoid():
    value, gradient = log_likelihood(np.array([[1.0, -1.0]]), np.array([[0, 1]]))
    np.testing.assert_allclose(np.exp(value), [0.8807970779778823], atol=1e-12)
    np.testing.assert_allclose(gradient, [[0.1192029220221176, -0.1192029220221176]], atol=1e-12)


def test_a_tied_group_by_hand():
    # three equal items, two of them first: 2! of 3! orders
    value, gradient = log_likelihood(np.zeros((1, 3)), np.array([[0, 0, 1]]))
    np.testing.assert_allclose(np.exp(value), [1 / 3], atol=1e-12)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-12)


def test_where_everything_ties_nothing_is_said():
    value, gradient = log_likelihood(np.array([[3.0, -2.0, 0.5]]), np.zeros((1, 3), dtype=int))
    assert (value.tolist(), gradient.tolist()) == ([0.0], [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("places", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 2, 3], [2, 1, 1, 0, 0, 0]])
def test_ties_are_the_sum_over_all_orders(places, spread):
    utilities = spread * np.random.default_rng(0).normal(size=6)
    value, gradient = log_likelihood(utilities[None], np.array([places]))
    np.testing.assert_allclose(np.exp(value), [by_enumeration(utilities, places)], rtol=1e-10)

    def at(nudge):
        return log_likelihood((utilities + nudge)[None], np.array([places]))[0][0]

    differences = [(at(nudge) - at(-nudge)) / 2e-5 for nudge in 1e-5 * np.eye(6)]
    np.testing.assert_allclose(gradient[0], differences, atol=1e-8)


def test_a_group_that_is_sure_to_come_first_or_hopeless_stays_finite():
    utilities = np.array([[900.0, 900.0, -900.0], [-40.0, -40.0, 0.0]])
    value, gradient = log_likelihood(utilities, np.array([[0, 0, 1], [0, 0, 1]]))
    # two hopeless clocks at rate r = exp(-40) against one at rate 1: 2 r r to first order
    np.testing.assert_allclose(value, [0.0, np.log(2) - 80], atol=1e-9)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [1, 1, -2]], atol=1e-9)


def test_padding_changes_nothing():
    bare, gradient = log_likelihood(np.array([[0.3, -1.0, 0.8]]), np.array([[1, 0, 1]]))
    value, with_padding = log_likelihood(np.array([[0.3, 99.0, -1.0, 0.8]]), np.array([[1, -1, 0, 1]]))
    np.testing.assert_allclose(value, bare, atol=1e-14)
    np.testing.assert_allclose(with_padding[0, [0, 2, 3]], gradient[0], atol=1e-14)
    assert with_padding[0, 1] == 0.0


def test_strengths_are_recovered_and_are_choixs():
    strengths = np.random.default_rng(0).normal(size=20)
    rankings = drawn(strengths, 1000, 6, seed=1)
    fitted = plackett_luce([in_groups(order) for order in rankings], 20)
    assert np.sqrt(np.mean((fitted - (strengths - strengths.mean())) ** 2)) < 0.1
    np.testing.assert_allclose(fitted, choix.ilsr_rankings(20, rankings), atol=1e-6)
    tied = plackett_luce([[order[:1], order[1:3], order[3:]] for order in rankings], 20)
    assert np.sqrt(np.mean((tied - (strengths - strengths.mean())) ** 2)) < 0.15


def test_the_best_of_a_list_is_choixs_top_one():
    rankings = drawn(np.linspace(-1, 1, 6), 300, 4, seed=2)
    data = [(order[0], order[1:]) for order in rankings]
    fitted = plackett_luce([[order[:1], order[1:]] for order in rankings], 6)
    np.testing.assert_allclose(fitted, choix.ilsr_top1(6, data), atol=1e-6)


def test_pairs_are_bradley_terry():
    pairs = drawn(np.linspace(-1, 1, 6), 300, 2, seed=3)
    winners, losers = np.array(pairs).T
    expected = bradley_terry(winners, losers, [FIRST] * 300, 6).strengths
    np.testing.assert_allclose(plackett_luce([in_groups(pair) for pair in pairs], 6), expected, atol=1e-6)


def test_names_do_not_matter():
    rankings = drawn(np.linspace(-1, 1, 5), 100, 4, seed=4)
    names = np.random.default_rng(0).permutation(5)
    fitted = plackett_luce([[order[:2], order[2:]] for order in rankings], 5)
    renamed = plackett_luce([[names[order[:2]].tolist(), names[order[2:]].tolist()] for order in rankings], 5)
    np.testing.assert_allclose(renamed[names], fitted, atol=1e-6)


def test_items_that_are_always_first_are_named_unless_there_is_a_prior():
    rankings = [[[0], [1], [2]], [[0], [2], [1]]]
    with pytest.raises(DisconnectedError) as refused:
        plackett_luce(rankings, 3)
    assert refused.value.components == [[0], [1, 2]]
    held = plackett_luce(rankings, 3, l2=1.0)
    # the two others stand alike, and the gradient of the prior weighs that of two softmaxes: s = 2 (1 - p)
    assert held[0] == pytest.approx(2 * (1 - 1 / (1 + 2 * np.exp(-1.5 * held[0]))), abs=1e-6)
    np.testing.assert_allclose(held[1:], [-held[0] / 2] * 2, atol=1e-6)


@pytest.mark.parametrize("ranking", [[], [[]], [[0], [0]], [[0], [3]], [[-1], [0]], [[0], [], [1]]])
def test_rankings_that_are_none_are_refused(ranking):
    with pytest.raises(ValueError, match="ranking 1 must name items 0 to 2"):
        plackett_luce([[[0], [1]], ranking], 3)


def test_no_rankings_wrong_shapes_and_a_negative_prior_are_refused():
    with pytest.raises(ValueError, match="must be a ranking"):
        padded([], 3)
    with pytest.raises(ValueError, match="one shape"):
        log_likelihood(np.zeros((1, 2)), np.zeros((1, 3), dtype=int))
    with pytest.raises(ValueError, match="l2"):
        plackett_luce([[[0], [1]]], 2, l2=-1.0)


def test_strengths_that_did_not_converge_are_not_returned(monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 1)
    with pytest.raises(NotConvergedError):
        plackett_luce([in_groups(order) for order in drawn(np.linspace(-1, 1, 6), 100, 4, seed=5)], 6)
