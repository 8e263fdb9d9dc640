import numpy as np
import pytest

from annotate.stats.bradley_terry import FIRST, TIE
from annotate.stats.consensus import UNRANKED, consensus


def test_one_judgment_is_as_certain_as_its_annotator():
    found = consensus([0], [[1, 0]], [0.8], num_comparisons=1)
    assert found.places.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.certainty, [0.8], atol=1e-12)
    np.testing.assert_allclose(found.pair_posteriors[0, 0, 1], [0.1, 0.8, 0.1], atol=1e-12)


def test_two_against_one_by_hand():
    # 0.8 0.8 0.1 : 0.1 0.1 0.8 : 0.1 0.1 0.1 = 64 : 8 : 1
    found = consensus([0, 0, 0], [[0, 1], [0, 1], [1, 0]], [0.8, 0.8, 0.8], num_comparisons=1)
    assert found.places.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.certainty, [64 / 73], atol=1e-12)


def test_one_good_annotator_outweighs_two_poor_ones():
    found = consensus([0, 0, 0], [[0, 1], [1, 0], [1, 0]], [0.95, 0.5, 0.5], num_comparisons=1)
    # 0.95 / 0.025 = 38 against (0.5 / 0.25)^2 = 4
    assert found.places.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.certainty, [38 / (38 + 4 + 1)], atol=1e-12)


def test_a_liar_speaks_for_the_opposite():
    found = consensus([0, 0], [[0, 1], [0, 1]], [0.1, 0.1], num_comparisons=1)
    # 0.1 x 0.1 for what was said, 0.45 x 0.45 for each of the two others: 4 : 81 : 81
    np.testing.assert_allclose(found.pair_posteriors[0, 0, 1], [4 / 166, 81 / 166, 81 / 166], atol=1e-12)
    assert found.places.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.certainty, [81 / 166], atol=1e-12)


def test_ties_are_stated_where_most_say_so():
    found = consensus([0, 0, 0], [[0, 0], [0, 0], [0, 1]], [0.8] * 3, num_comparisons=1)
    assert found.places.tolist() == [[0, 0]]
    np.testing.assert_allclose(found.certainty, [64 / 73], atol=1e-12)


def test_disagreement_between_equals_is_stated_as_a_tie_and_looked_at_first():
    found = consensus([0, 0, 1, 1], [[0, 1], [1, 0], [0, 1], [0, 1]], [0.8] * 4, num_comparisons=2)
    assert found.places.tolist() == [[0, 0], [0, 1]]
    np.testing.assert_allclose(found.certainty, [1 / 17, 64 / 66], atol=1e-12)
    assert found.least_certain_first().tolist() == [0, 1]


def test_a_list_is_as_certain_as_its_weakest_link():
    # all agree on who is last; two of three on who is first
    found = consensus([0, 0, 0], [[0, 1, 2], [0, 1, 2], [1, 0, 2]], [0.8] * 3, num_comparisons=1)
    assert found.places.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(found.certainty, [64 / 73], atol=1e-12)
    np.testing.assert_allclose(found.pair_posteriors[0, 0, 2, FIRST], 512 / 514, atol=1e-12)


def test_tiers_stay_tiers():
    found = consensus([0, 0], [[5, 2, 5, 9]] * 2, [0.9, 0.9], num_comparisons=1)
    assert found.places.tolist() == [[1, 0, 1, 2]]


def test_responses_not_placed_and_comparisons_not_judged():
    places = [[0, UNRANKED, 1], [UNRANKED, UNRANKED, 0], [UNRANKED, UNRANKED, UNRANKED]]
    found = consensus([0, 1, 2], places, [0.8] * 3, num_comparisons=4)
    assert found.places.tolist() == [[0, -1, 1], [-1, -1, 0], [-1, -1, -1], [-1, -1, -1]]
    np.testing.assert_allclose(found.certainty, [0.8, 0, 0, 0], atol=1e-12)
    assert found.least_certain_first().tolist() == [1, 2, 3, 0]


def test_each_comparison_stands_alone_and_order_and_names_do_not_matter():
    generator = np.random.default_rng(0)
    comparison, reliability = generator.integers(0, 50, 300), generator.uniform(0.3, 0.95, 300)
    places = generator.integers(UNRANKED, 4, (300, 5))
    found = consensus(comparison, places, reliability, num_comparisons=50)
    for number in (0, 17, 49):
        chosen = comparison == number
        alone = consensus(np.zeros(chosen.sum(), dtype=int), places[chosen], reliability[chosen], num_comparisons=1)
        assert alone.places[0].tolist() == found.places[number].tolist()
        assert alone.certainty[0] == pytest.approx(found.certainty[number], abs=1e-12)
    order, names = generator.permutation(300), generator.permutation(5)
    renamed = consensus(comparison[order], places[order][:, names], reliability[order], num_comparisons=50)
    np.testing.assert_allclose(renamed.pair_posteriors, found.pair_posteriors[:, names][:, :, names], atol=1e-12)
    np.testing.assert_allclose(found.pair_posteriors.sum(axis=3), 1, atol=1e-12)
    assert ((found.certainty >= 0) & (found.certainty <= 1)).all()


def test_the_certainty_is_how_often_the_stated_order_is_right():
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3, 4000)  # first, second, tie
    eta = np.tile([0.9, 0.7, 0.5], 4000)
    says_truth = generator.random(12_000) < eta
    said = np.where(says_truth, truth.repeat(3), (truth.repeat(3) + generator.integers(1, 3, 12_000)) % 3)
    places = np.array([[0, 1], [1, 0], [0, 0]])[said]
    found = consensus(np.arange(4000).repeat(3), places, eta, num_comparisons=4000)
    stated = np.where(found.places[:, 0] == found.places[:, 1], TIE, found.places[:, 0])
    for low, high in ((0.4, 0.75), (0.75, 0.92), (0.92, 1.0)):
        within = (found.certainty > low) & (found.certainty <= high)
        assert within.sum() > 200
        assert np.mean((stated == truth)[within]) == pytest.approx(found.certainty[within].mean(), abs=0.04)


@pytest.mark.parametrize(
    ("comparison", "places", "reliability", "message"),
    [
        ([0], [0, 1], [0.8], r"places \(2,\)"),
        ([0, 0], [[0, 1]], [0.8, 0.8], r"comparison \(2,\)"),
        ([1], [[0, 1]], [0.8], "comparison must be 0 to 0"),
        ([0], [[0, -2]], [0.8], "places must be"),
        ([0], [[0, 1]], [1.0], "reliability must be above 0"),
        ([0], [[0, 1]], [float("nan")], "reliability must be above 0"),
    ],
)
def test_judgments_that_do_not_fit_are_refused(comparison, places, reliability, message):
    with pytest.raises(ValueError, match=message):
        consensus(comparison, places, reliability, num_comparisons=1)
