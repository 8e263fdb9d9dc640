import math
from functools import partial

import numpy as np
import pytest
from scipy.special import expit

from annotate.stats.selection import (
    BALD,
    POSTERIOR_VARIANCE,
    STRATEGIES,
    Candidates,
    asking_order,
    bald,
    choose_pairs,
    closeness,
    difference_variance,
    laplace,
    pairs_of,
    priorities,
)


def generator(seed=0):
    return np.random.default_rng(seed)


def scores_of(num_members=8, num_comparisons=40, num_responses=2, seed=0):
    return generator(seed).normal(size=(num_members, num_comparisons, num_responses))


# What one comparison is worth


def test_bald_is_zero_where_members_agree_and_log_two_where_they_contradict_each_other():
    assert bald(np.array([[3.0, 0.0, 50.0], [3.0, 0.0, -50.0]])) == pytest.approx([0, 0, math.log(2)])


def test_bald_by_hand():
    # members say 0.9 and 0.5: H(0.7) - (H(0.9) + H(0.5)) / 2
    def entropy(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    differences = np.array([math.log(9), 0.0])

    assert bald(differences) == pytest.approx(entropy(0.7) - (entropy(0.9) + entropy(0.5)) / 2)


def test_difference_variance_by_hand():
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 over 2
    assert difference_variance(np.array([[1.0], [2.0], [6.0]])) == pytest.approx([7.0])


def test_closeness_is_highest_at_a_coin_flip_even_where_nothing_is_to_be_learnt():
    agreed = np.array([[0.0, math.log(9)], [0.0, math.log(9)]])

    assert closeness(agreed) == pytest.approx([0.5, 0.1])
    assert bald(agreed) == pytest.approx([0, 0])


@pytest.mark.parametrize("value", [bald, difference_variance])
def test_one_member_disagrees_with_nobody(value):
    with pytest.raises(ValueError, match=r"shape \(1, 5\) has fewer than two members"):
        value(np.zeros((1, 5)))


def test_laplace_by_hand():
    # one feature, no answers: the prior N(0, 1/4); a pair that differs by 3 has variance 9/4
    assert laplace(np.zeros((0, 1)), 4.0).variance(np.array([[3.0]])) == pytest.approx([9 / 4])


def test_laplace_has_no_gradient_at_its_mean_and_the_inverse_hessian_as_covariance():
    features = generator().normal(size=(30, 4))
    posterior = laplace(features, 0.5)

    def loss(weights):
        return np.logaddexp(0, -features @ weights).sum() + 0.25 * weights @ weights

    steps = 1e-4 * np.eye(4)
    mean = posterior.mean
    gradient = [(loss(mean + step) - loss(mean - step)) / 2e-4 for step in steps]
    hessian = [
        [(loss(mean + a + b) - loss(mean + a - b) - loss(mean - a + b) + loss(mean - a - b)) / 4e-8 for a in steps]
        for b in steps
    ]

    assert gradient == pytest.approx([0] * 4, abs=1e-6)
    assert np.linalg.inv(posterior.covariance) == pytest.approx(np.array(hessian), abs=1e-5)


def test_laplace_refuses_what_it_cannot_fit():
    with pytest.raises(ValueError, match=r"features: shape \(3,\)"):
        laplace(np.zeros(3))
    with pytest.raises(ValueError, match="prior_precision: 0"):
        laplace(np.zeros((3, 2)), 0)
    with pytest.raises(RuntimeError, match="did not converge"):
        laplace(np.full((3, 1), np.nan))


def test_a_lists_value_is_the_mean_over_its_pairs():
    scores = scores_of(num_comparisons=5, num_responses=4)
    pairs = pairs_of(4)
    by_pair = [bald(scores[:, :, better] - scores[:, :, worse]) for better, worse in pairs]

    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert Candidates.from_scores(scores, BALD).values == pytest.approx(np.mean(by_pair, axis=0), rel=1e-5)


def test_vectors_hold_the_covariances_of_score_differences():
    scores = scores_of(num_comparisons=6)
    candidates = Candidates.from_scores(scores, POSTERIOR_VARIANCE)

    assert candidates.vectors @ candidates.vectors.T == pytest.approx(
        np.cov((scores[:, :, 0] - scores[:, :, 1]).T), rel=1e-4, abs=1e-5
    )


def test_features_and_many_samples_of_their_posterior_say_the_same():
    features = generator(1).normal(size=(10, 3, 4))
    posterior = laplace(generator(2).normal(size=(20, 4)))
    samples = generator(3).multivariate_normal(posterior.mean, posterior.covariance, size=40_000)
    scores = np.einsum("md,nkd->mnk", samples, features)

    exact = Candidates.from_features(features, posterior)
    sampled = Candidates.from_scores(scores, POSTERIOR_VARIANCE)

    assert sampled.values == pytest.approx(exact.values, rel=0.05)
    assert sampled.vectors @ sampled.vectors.T == pytest.approx(exact.vectors @ exact.vectors.T, abs=0.15)


# Invariances


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_responses", [2, 3])
def test_the_order_of_members_and_of_responses_and_each_members_origin_do_not_matter(strategy, num_responses):
    scores = scores_of(num_responses=num_responses)
    moved = scores + generator(1).normal(size=(8, 40, 1))

    orders = [
        asking_order(Candidates.from_scores(changed, strategy), generator(5)).tolist()
        for changed in (scores, scores[::-1], moved, scores[:, :, ::-1])
    ]

    assert orders == [orders[0]] * 4
    assert sorted(orders[0]) == list(range(40))


@pytest.mark.parametrize("random_share", [0.0, 0.3])
def test_the_same_generator_gives_the_same_order(random_share):
    candidates = Candidates.from_scores(scores_of(), BALD)
    first, second, other = (
        asking_order(candidates, generator(seed), random_share=random_share).tolist() for seed in (1, 1, 2)
    )

    assert first == second
    assert (first == other) == (random_share == 0)


def test_equal_comparisons_come_in_an_order_by_chance():
    candidates = Candidates.from_scores(np.zeros((3, 30, 2)), BALD)
    first, second = (asking_order(candidates, generator(seed)).tolist() for seed in (1, 2))

    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((1, 3, 2)), r"shape \(1, 3, 2\)"),
        (np.zeros((2, 3, 1)), r"shape \(2, 3, 1\)"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.full((2, 3, 2), np.inf), "finite"),
    ],
)
def test_scores_that_cannot_serve_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        Candidates.from_scores(scores, BALD)


def test_what_is_unknown_or_does_not_fit_is_refused():
    candidates = Candidates.from_scores(scores_of(), BALD)
    with pytest.raises(ValueError, match="'closeness' is not one of bald, posterior_variance"):
        Candidates.from_scores(scores_of(), "closeness")
    with pytest.raises(ValueError, match=r"random_share: 1\.5"):
        asking_order(candidates, generator(), random_share=1.5)
    with pytest.raises(ValueError, match=r"shape \(3, 2, 5\) is not \(N, K, 4\)"):
        Candidates.from_features(np.zeros((3, 2, 5)), laplace(np.zeros((0, 4))))


# Batches


def test_a_batch_asks_one_of_several_near_duplicates():
    # three families of ten near duplicates; what members say about one family is uncorrelated with the others
    signs = np.array([[1, 1, 1, 1, -1, -1, -1, -1], [1, 1, -1, -1, 1, 1, -1, -1], [1, -1, 1, -1, 1, -1, 1, -1]]).T
    differences = np.repeat(signs * np.array([1.1, 1.05, 1.0]), 10, axis=1)
    differences += 0.001 * generator(1).normal(size=(8, 30))
    scores = np.stack([differences, np.zeros_like(differences)], axis=2)
    candidates = Candidates.from_scores(scores, POSTERIOR_VARIANCE)

    alone = asking_order(candidates, generator(), num_diverse=0)[:3] // 10
    diverse = asking_order(candidates, generator(), num_diverse=3)[:3] // 10

    assert alone.tolist() == [0, 0, 0]
    assert sorted(diverse.tolist()) == [0, 1, 2]


def test_the_batch_is_the_greedy_one():
    scores = scores_of(num_comparisons=12)
    candidates = Candidates.from_scores(scores, POSTERIOR_VARIANCE)
    vectors, weights = candidates.vectors.astype(float), candidates.weights.astype(float)

    chosen, left = [], set(range(12))
    while left:  # the variance that is left given the answers so far, by the inverse of the whole precision
        precision = np.eye(8) + (vectors[chosen].T * weights[chosen]) @ vectors[chosen]
        variances = np.einsum("nd,de,ne->n", vectors, np.linalg.inv(precision), vectors)
        chosen.append(max(left, key=variances.__getitem__))
        left.remove(chosen[-1])

    assert asking_order(candidates, generator(), num_diverse=12).tolist() == chosen


def test_looking_at_a_few_candidates_at_a_time_chooses_the_same_batch(monkeypatch):
    candidates = Candidates.from_scores(scores_of(num_comparisons=500), BALD)
    whole = asking_order(candidates, generator(), num_diverse=100)

    monkeypatch.setattr("annotate.stats.selection.NUM_CONSIDERED", 2)

    assert asking_order(candidates, generator(), num_diverse=100).tolist() == whole.tolist()


def test_lists_of_different_lengths_go_into_one_order():
    parts = [Candidates.from_scores(scores_of(num_responses=length, num_comparisons=5), BALD) for length in (2, 4)]
    joined = Candidates.joined(parts)

    assert len(joined) == 10
    assert joined.values.tolist() == [*parts[0].values.tolist(), *parts[1].values.tolist()]
    assert sorted(asking_order(joined, generator()).tolist()) == list(range(10))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_of_each_stretch_of_the_order_the_share_is_by_chance(share):
    """Values fall with the place, far from each other: what stands out of line was drawn by chance."""
    scale = 10.0 * 0.9 ** np.arange(200)
    scores = np.array([[[1.0, 0.0]], [[-1.0, 0.0]]]) * scale[None, :, None]
    candidates = Candidates.from_scores(scores, POSTERIOR_VARIANCE)

    order = asking_order(candidates, generator(), num_diverse=0, random_share=share).tolist()

    assert sorted(order) == list(range(200))
    is_informed = [place == min(order[number:]) for number, place in enumerate(order)]
    for number in (20, 40, 100):
        assert is_informed[:number].count(True) == pytest.approx(number * (1 - share), abs=2)


def test_comparisons_drawn_by_chance_are_an_even_sample():
    candidates = Candidates.from_scores(scores_of(num_comparisons=50), BALD)
    orders = [asking_order(candidates, generator(seed), random_share=1.0)[:10] for seed in range(2000)]
    counts = np.bincount(np.concatenate(orders), minlength=50)

    assert counts.sum() == 20_000
    assert counts == pytest.approx(np.full(50, 400), abs=100)  # five standard deviations


def test_priorities_fall_along_the_order():
    assert priorities(np.array([2, 0, 3, 1])).tolist() == [0.75, 0.25, 1.0, 0.5]


def test_choose_pairs_asks_about_the_response_on_which_members_disagree():
    # all members agree on responses 0 to 2; response 3 is good to two of them and bad to the others
    scores = np.array([[0.0, 1.0, 2.0, 6.0], [0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 2.0, -6.0], [0.0, 1.0, 2.0, -5.0]])

    chosen = choose_pairs(scores, 3, generator())

    assert sorted(chosen.tolist()) == [[0, 3], [1, 3], [2, 3]]
    assert len(choose_pairs(scores, 100, generator())) == 6


# What it buys


def accuracy(strategy, seed, *, length_of_dull, num_informative=60, num_labels=100, num_pairs=600):
    """After `num_labels` answers, twenty at a time, in a small world with a few telling pairs."""
    draw = generator(seed)
    weights = draw.normal(size=12)
    weights *= 3 / np.linalg.norm(weights)
    lengths = np.where(np.arange(num_pairs) < num_informative, 1.0, length_of_dull)
    features = draw.normal(size=(num_pairs, 12)) * lengths[:, None]
    answers = np.where(draw.random(num_pairs) < expit(features @ weights), 1.0, -1.0)
    test = draw.normal(size=(2000, 12))
    asked = draw.permutation(num_pairs)[:20]
    while len(asked) < num_labels:
        left = np.setdiff1d(np.arange(num_pairs), asked)
        asked = np.concatenate([asked, left[strategy(features[left], features[asked] * answers[asked, None], draw)]])
    posterior = laplace(features[asked] * answers[asked, None])
    return ((test @ posterior.mean > 0) == (test @ weights > 0)).mean()


def at_random(left, judged, draw):
    return draw.permutation(len(left))[:20]


def informed(left, judged, draw, strategy):
    samples = draw.integers(len(judged), size=(8, len(judged)))
    differences = np.array([laplace(judged[sample]).mean for sample in samples]) @ left.T
    candidates = Candidates.from_scores(np.stack([differences, 0 * differences], axis=2), strategy)
    return asking_order(candidates, draw, num_diverse=20, random_share=0.2)[:20]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_informed_beats_random_where_few_comparisons_tell_anything(strategy):
    gains = [
        accuracy(partial(informed, strategy=strategy), seed, length_of_dull=0.2)
        - accuracy(at_random, seed, length_of_dull=0.2)
        for seed in range(10)
    ]

    assert np.mean(gains) > 0.05


def test_informed_loses_nothing_where_every_answer_is_almost_a_coin_flip():
    gains = [
        accuracy(partial(informed, strategy=BALD), seed, length_of_dull=0.1, num_informative=0)
        - accuracy(at_random, seed, length_of_dull=0.1, num_informative=0)
        for seed in range(40)
    ]

    assert np.mean(gains) > -0.01
