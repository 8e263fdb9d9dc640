import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.special import betaln, expit, log_softmax

from tests.training.alignment import worlds
from tests.training.alignment.worlds import World, accuracy
from training.alignment import bayesian_averaging
from training.alignment.bayesian_averaging import (
    averaged_reward,
    describe_collapse,
    effective_number,
    held_out_losses,
    log_likelihoods,
    log_posterior,
    mixture,
    posterior,
    posterior_of,
    preference,
    pseudo_bma_plus,
    shared_prior,
    stacking_weights,
)
from training.alignment.ensemble import Floats, JudgedScores, log_likelihood, mean, weighted_mean
from training.alignment.member_checks import temperatures

WORLDS = {
    "contextual": worlds.contextual,
    "redundant": worlds.redundant,
    "homogeneous": worlds.homogeneous,
    "unequal": worlds.unequal,
    "one_right": worlds.one_right,
}


@cache
def draw(name: str, num_prompts: int, seed: int, num_responses: int = 2) -> World:
    return WORLDS[name](np.random.default_rng(seed), num_prompts, num_responses=num_responses)


def rewards(world: World, log_odds: Floats) -> Floats:
    return log_odds.sum() * weighted_mean(world.judged.scores, log_odds)


def loss(world: World, given: Floats) -> float:
    return -log_likelihood(given, world.judged).mean()


def selected(judged: JudgedScores) -> Floats:
    """(M,) log-odds a unit of each score, by posterior weights."""
    own = temperatures(judged)
    return posterior_of(judged, own) / own


def of_mean(judged: JudgedScores) -> Floats:
    """(M,) the same for the mean, at its best temperature."""
    own = temperatures(replace(judged, scores=mean(judged.scores)[..., None]))
    return np.full(judged.num_members, 1 / (judged.num_members * own[0]))


# Posterior weights


def test_log_weights_differ_by_the_prior_and_the_sum_of_the_log_likelihood_ratios():
    told = np.log(np.random.default_rng(0).random((5000, 4)))
    prior = np.log([0.1, 0.2, 0.3, 0.4])

    found = log_posterior(told, prior)

    for one in range(4):
        ratio = math.fsum([*told[:, one], prior[one], *-told[:, 0], -prior[0]])
        assert found[one] - found[0] == pytest.approx(ratio, abs=1e-10)
    assert np.exp(found).sum() == pytest.approx(1)


def test_judgments_may_come_in_parts_and_in_any_order():
    told = np.log(np.random.default_rng(0).random((300, 4)))
    told[::7, 2] = np.nan
    prior = np.log(np.full(4, 0.25))

    one_by_one = prior
    for number in np.random.default_rng(1).permutation(300):
        one_by_one = log_posterior(told[[number]], one_by_one)

    assert one_by_one == pytest.approx(log_posterior(told, prior), abs=1e-10)


def test_without_judgments_the_prior_stands():
    prior = [0.5, 0.3, 0.2]

    assert posterior(np.empty((0, 3)), np.log(prior)) == pytest.approx(prior)
    assert posterior(np.empty((0, 3)), np.log(prior) + 7) == pytest.approx(prior)


def test_the_weight_of_a_fair_coin_against_one_of_unknown_bias_is_that_of_their_evidence():
    # the evidence of a flat prior on the bias, after k heads in n, is B(k + 1, n - k + 1); of the fair coin, 2^-n. By
    # Laplace's rule the first one predicts each toss with (heads so far + 1) / (tosses so far + 2).
    tosses = np.random.default_rng(0).random(40) < 0.7
    heads, so_far = np.cumsum(tosses) - tosses, np.arange(40)
    chance = (heads + 1) / (so_far + 2)
    told = np.stack([np.log(np.where(tosses, chance, 1 - chance)), np.full(40, -math.log(2))], axis=1)
    evidence = np.array([betaln(tosses.sum() + 1, 41 - tosses.sum()), -40 * math.log(2)])

    found = log_posterior(told, np.log([0.5, 0.5]))

    assert found == pytest.approx(log_softmax(evidence), abs=1e-10)


def test_copies_of_a_member_share_its_weight_and_change_no_prediction():
    fit, test = draw("unequal", 60, 1), draw("unequal", 500, 2)
    with_copy = [0, 1, 2, 0, 3, 4]  # the fourth is the first again

    def predicted(places: list[int]) -> tuple[Floats, Floats, Floats, Floats]:
        judged, held_out = (world.judged.with_members(np.array(places)) for world in (fit, test))
        judged = replace(judged, scores=judged.scores * np.linspace(1, 2, len(places)))  # a scale does not matter
        own = temperatures(judged)
        weights = posterior_of(judged, own)
        scores = held_out.scores * np.linspace(1, 2, len(places))
        told = log_likelihoods(replace(held_out, scores=scores), own)
        return weights, mixture(told, weights), averaged_reward(scores, weights, own), shared_prior(judged)

    weights, mixed, averaged, prior = predicted([0, 1, 2, 3, 4])
    copied_weights, copied_mixed, copied_averaged, copied_prior = predicted(with_copy)

    assert prior == pytest.approx([0.2] * 5)
    assert copied_prior == pytest.approx([0.1, 0.2, 0.2, 0.1, 0.2, 0.2])
    assert 0.01 < weights[0] < 0.99
    assert copied_weights == pytest.approx(weights[with_copy] * [0.5, 1, 1, 0.5, 1, 1], abs=1e-7)
    assert copied_mixed == pytest.approx(mixed, abs=1e-7)
    assert copied_averaged == pytest.approx(averaged, abs=1e-6)


def test_members_that_are_alike_only_up_to_their_sign_or_noise_are_no_copies():
    judged = draw("redundant", 200, 0).judged
    flipped = replace(judged, scores=np.stack([judged.scores[..., 0], -judged.scores[..., 0]], axis=-1))
    constant = replace(judged, scores=np.zeros((200, 2, 2)))

    assert shared_prior(judged) == pytest.approx([0.2] * 5)
    assert shared_prior(flipped) == pytest.approx([0.5] * 2)
    assert shared_prior(constant) == pytest.approx([0.5] * 2)


def test_what_a_member_misses_counts_neither_for_it_nor_against_it():
    told = np.log([[0.9, 0.5, 0.5], [0.9, 0.5, 0.5], [math.nan, 0.5, 0.5]])

    found = log_posterior(told, np.zeros(3))

    assert found[0] - found[1] == pytest.approx(2 * math.log(0.9 / 0.5))


def test_log_likelihoods_are_those_of_whole_rankings_times_their_weight():
    scores = np.array([[[2.0, 1.0], [0.0, 1.0], [0.0, math.nan]]])
    judged = JudgedScores(scores, np.array([[0, 1, 2]]), np.array([0]), np.array([3.0]))
    first, second = math.e / (math.e + 2), 1 / 2  # scores of 1, 0, 0

    np.testing.assert_allclose(log_likelihoods(judged, [2.0, 1.0]), [[3 * math.log(first * second), math.nan]])


def test_a_response_that_all_who_weigh_have_missed_gets_its_score_of_the_others():
    fit = draw("one_right", 1000, 0).judged
    weights = posterior_of(fit, temperatures(fit))

    assert weights[0] == pytest.approx(1, abs=1e-6)
    assert weights.min() == pytest.approx(1e-9, rel=1e-3)
    assert weighted_mean([math.nan, 1.0, 2.0, 3.0, 6.0], weights) == pytest.approx(3)


# Two ways to use weights


def test_the_mixture_of_probabilities_is_not_the_probability_of_the_mean_reward():
    margins, own = [[math.log(99) * 2, 0.0], [math.log(3) * 2, -math.log(3)]], [2.0, 1.0]

    assert preference(margins, [0.5, 0.5], own) == pytest.approx([0.745, 0.5])
    assert expit(averaged_reward(margins, [0.5, 0.5], own)) == pytest.approx([0.9087, 0.5], abs=1e-4)


def test_a_pairs_mixture_is_its_preference():
    judged = draw("unequal", 50, 0).judged
    own, weights = temperatures(judged), np.array([0.4, 0.3, 0.1, 0.1, 0.1])

    found = mixture(log_likelihoods(judged, own), weights)

    assert np.exp(found) == pytest.approx(preference(judged.ordered_pairs().margins, weights, own))


def test_a_mixture_of_what_is_hardly_possible_is_exact():
    assert mixture([[-2000.0, -2001.0]], [0.5, 0.5])[0] == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2))


def test_who_misses_a_judgment_is_left_out_of_its_mixture():
    told = np.log([[0.9, 0.6], [math.nan, 0.6], [0.9, math.nan]])

    np.testing.assert_allclose(np.exp(mixture(told, [1.0, 3.0])), [0.675, 0.6, 0.9])
    np.testing.assert_allclose(np.exp(mixture(told, [1.0, 0.0])), [0.9, math.nan, 0.9])


# Pseudo-BMA+


def test_the_bootstrap_keeps_weight_where_prompts_do_not_tell_who_is_best():
    leads = np.random.default_rng(0).normal(0.02, 1.0, size=400)
    told = np.stack([leads, np.zeros(400)], axis=1)
    rng = np.random.default_rng(1)

    exact = posterior(told, np.zeros(2))
    averaged = pseudo_bma_plus(told, np.arange(400), rng)

    # the chance that the first is best: of a sum of 400 whose standard error is 20 times the deviation
    chance = 0.5 * math.erfc(-leads.sum() / (20 * leads.std()) / math.sqrt(2))
    assert max(exact) > 0.99
    assert averaged[0] == pytest.approx(chance, abs=0.05)
    assert averaged.sum() == pytest.approx(1)


def test_judgments_on_one_prompt_are_drawn_together():
    told = np.random.default_rng(0).normal(size=(300, 3))

    whole = pseudo_bma_plus(told, np.zeros(300, dtype=np.int64), np.random.default_rng(1))

    assert whole == pytest.approx(posterior(told, np.zeros(3)))


def test_without_judgments_the_bootstrap_tells_nobody_apart():
    assert (
        pseudo_bma_plus(np.empty((0, 4)), np.empty(0, dtype=np.int64), np.random.default_rng(0)).tolist() == [0.25] * 4
    )


# Stacking


@pytest.mark.parametrize("num_responses", [2, 4])
@pytest.mark.parametrize("pull", [0.0, 10.0])
def test_no_weights_near_by_are_likelier(num_responses, pull):
    drawn = draw("unequal", 200, 0, num_responses).judged
    judged = replace(drawn, scores=drawn.scores / bayesian_averaging._usual_margin(drawn))
    objective = bayesian_averaging._stacking_objective(judged, of_mean(judged), pull)
    weights = stacking_weights(judged, pull=pull)
    best = objective(weights)[0]

    for step in np.random.default_rng(0).normal(scale=0.02, size=(300, 5)):
        assert objective(np.maximum(weights + step, 0))[0] > best - 1e-9


@pytest.mark.parametrize("num_responses", [2, 4])
def test_gradient_and_curvature_are_those_of_the_objective(num_responses):
    judged = draw("unequal", 50, 0, num_responses).judged
    objective = bayesian_averaging._stacking_objective(judged, of_mean(judged), 3.0)
    at, step = np.array([0.3, 0.1, 0.7, 0.0, 1.2]), 1e-6

    around = [(objective(at + step * one), objective(at - step * one)) for one in np.eye(5)]

    _, gradient, curvature = objective(at)
    assert gradient == pytest.approx([(up[0] - down[0]) / (2 * step) for up, down in around], rel=1e-6, abs=1e-9)
    assert curvature == pytest.approx(np.array([(up[1] - down[1]) / (2 * step) for up, down in around]), rel=1e-6)


def test_pairs_and_lists_are_stacked_by_one_likelihood():
    judged = draw("unequal", 90, 0, 4).judged
    groups = judged.groups.copy()
    groups[:30, 2:] = -1  # pairs
    groups[30:50] //= 2  # lists with ties
    groups[50:55] = 0  # nothing but ties
    weights = np.linspace(0.5, 1.5, 90)
    mixed = replace(judged, groups=np.where(groups < 0, -1, groups), weights=weights)
    at = np.array([0.3, 0.1, 0.7, 0.0, 1.2])

    value, gradient, _ = bayesian_averaging._stacking_objective(mixed, at, 3.0)(at)

    def whole(values: Floats) -> float:
        return -(weights @ log_likelihood(mixed.scores @ values, mixed)) / (weights.sum() + 3)

    slopes = [(whole(at + 1e-6 * one) - whole(at - 1e-6 * one)) / 2e-6 for one in np.eye(5)]
    assert value == pytest.approx(whole(at), rel=1e-12)
    assert gradient == pytest.approx(slopes, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("ties", [[0, 0, 1], [0, 1, 1], [0, 1, -1]])
def test_ties_and_what_was_not_ranked_are_stacked_too(ties):
    judged = draw("unequal", 300, 0, 3).judged
    changed = replace(judged, groups=np.take(np.array(ties), judged.groups))

    found = stacking_weights(changed, pull=1.0)

    assert found[0] == found.max()
    assert found[0] > 2 * found[2:].max()


def test_weights_are_never_negative_and_add_up_to_log_odds():
    fit, test = draw("unequal", 3000, 1), draw("unequal", 20_000, 2)
    weights = stacking_weights(fit.judged)
    margins = replace(test.judged, scores=rewards(test, weights)[..., None])

    assert weights.min() > 0
    assert weights.min() == pytest.approx(weights.sum() * 1e-9, rel=1e-3)
    assert temperatures(margins) == pytest.approx([1.0], abs=0.06)


def test_a_strong_pull_leaves_the_mean():
    judged = draw("unequal", 200, 0).judged

    assert stacking_weights(judged, pull=1e9) == pytest.approx(of_mean(judged), rel=1e-5)


@pytest.mark.parametrize("num_prompts", [0, 1])
def test_without_prompts_to_learn_from_stacking_is_the_mean(num_prompts):
    judged = draw("homogeneous", 30, 0).judged.select(np.arange(num_prompts))

    found = stacking_weights(judged)

    assert found / found.sum() == pytest.approx([0.2] * 5, rel=0.02)


def test_members_that_are_all_wrong_are_not_turned_round():
    judged = draw("homogeneous", 200, 0).judged

    found = stacking_weights(replace(judged, scores=-judged.scores))

    assert (found > 0).all()
    assert found.sum() < 0.05


def test_a_scale_that_all_members_share_does_not_matter():
    judged = draw("unequal", 200, 0).judged

    found = stacking_weights(replace(judged, scores=1e-4 * judged.scores))

    assert 1e-4 * found == pytest.approx(stacking_weights(judged), rel=1e-6)


def test_stacking_does_not_see_the_order_of_members():
    judged, order = draw("unequal", 200, 0).judged, np.array([3, 0, 4, 2, 1])

    assert stacking_weights(judged.with_members(order)) == pytest.approx(stacking_weights(judged)[order], abs=1e-4)


def test_a_pull_the_wrong_way_is_refused():
    with pytest.raises(ValueError, match="pull -1 must not be negative"):
        stacking_weights(draw("unequal", 10, 0).judged, pull=-1)


def test_what_does_not_converge_is_no_result(monkeypatch):
    monkeypatch.setattr(bayesian_averaging, "MAX_STEPS", 1)

    with pytest.raises(RuntimeError, match="stacking weights did not converge"):
        stacking_weights(draw("unequal", 100, 0).judged, pull=0.0)


# What is reached where the best is known


@pytest.mark.parametrize("num_responses", [2, 4])
def test_stacking_recovers_the_best_combination_of_unequal_and_correlated_members(num_responses):
    fit, test = draw("unequal", 1000, 1, num_responses), draw("unequal", 20_000, 2, num_responses)
    weights = stacking_weights(fit.judged)
    best = min(loss(test, test.optimal), loss(test, rewards(test, stacking_weights(test.judged, pull=0.0))))

    assert loss(test, rewards(test, weights)) < 1.02 * best  # 1.004 and 1.003 times
    assert accuracy(rewards(test, weights), test.truth) > accuracy(test.optimal, test.truth) - 0.005


@pytest.mark.parametrize(("name", "most"), [("unequal", 1.02), ("one_right", 1.02)])
def test_posterior_weights_reach_the_best_where_one_member_is_nearly_it(name, most):
    fit, test = draw(name, 1000, 1), draw(name, 20_000, 2)

    assert loss(test, rewards(test, selected(fit.judged))) < most * loss(test, test.optimal)  # 1.011 and 1.003 times


@pytest.mark.parametrize(("name", "lost"), [("homogeneous", 1.2), ("contextual", 1.5), ("redundant", 1.08)])
def test_posterior_weights_select_and_so_miss_the_best_where_it_takes_several_members(name, lost):
    fit, test = draw(name, 3000, 1), draw(name, 20_000, 2)
    weights = posterior_of(fit.judged, temperatures(fit.judged))

    assert effective_number(weights) < 1.2
    assert loss(test, rewards(test, selected(fit.judged))) > lost * loss(test, test.optimal)  # 1.27, 1.57, 1.11 times


def test_of_members_for_one_topic_each_one_is_selected_and_worth_less_than_their_mean():
    fit, test = draw("contextual", 3000, 1), draw("contextual", 20_000, 2)

    found = [accuracy(given, test.truth) for given in (
        rewards(test, selected(fit.judged)),
        rewards(test, of_mean(fit.judged)),
        rewards(test, stacking_weights(fit.judged)),
        test.optimal,
    )]  # fmt: skip

    assert found == pytest.approx([0.70, 0.785, 0.785, 0.91], abs=0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_near_copies_and_one_independent_member_stacking_finds_the_best(seed):
    fit, test = draw("redundant", 1000, seed), draw("redundant", 20_000, 100 + seed)

    found = [accuracy(given, test.truth) for given in (
        rewards(test, of_mean(fit.judged)), rewards(test, stacking_weights(fit.judged)), test.optimal
    )]  # fmt: skip

    assert found[0] == pytest.approx(0.782, abs=0.008)
    assert found[2] == pytest.approx(0.804, abs=0.006)
    assert found[1] > found[2] - 0.005


@pytest.mark.parametrize("num_prompts", [30, 100, 300])
def test_of_like_members_stacking_loses_next_to_nothing_to_the_mean(num_prompts):
    test = draw("homogeneous", 10_000, 100)

    lost = []
    for seed in range(6):
        judged = draw("homogeneous", num_prompts, seed).judged
        given = (of_mean(judged), stacking_weights(judged))
        by_mean, by_stacking = (accuracy(rewards(test, log_odds), test.truth) for log_odds in given)
        lost.append(by_mean - by_stacking)

    assert np.mean(lost) < 0.005


# What collapsing costs


def test_the_effective_number_of_members_is_how_many_equal_ones_are_as_uncertain():
    assert effective_number([0.2] * 5) == pytest.approx(5)
    assert effective_number([3.0, 3.0, 0.0]) == pytest.approx(2)
    assert effective_number([1.0, 0.0, 0.0]) == 1


def test_held_out_losses_are_by_prompt_and_tell_what_selection_costs():
    judged = draw("redundant", 1500, 5).judged
    repeated = replace(judged, prompts=judged.prompts // 3)

    found = held_out_losses(repeated, np.random.default_rng(0))

    costs = {name: own.mean() - found["stacking"].mean() for name, own in found.items()}
    assert {name: own.shape for name, own in found.items()} == dict.fromkeys(costs, (1500,))
    assert sorted(costs, key=lambda name: costs[name]) == ["stacking", "pseudo_bma_plus", "mean", "bayesian_average"]
    assert costs["mean"] > 0.01
    assert costs["bayesian_average"] > 0.03


def test_no_prompt_is_both_learned_from_and_measured_on():
    prompts = np.random.default_rng(0).integers(20, size=200)

    folds = list(bayesian_averaging._folds(prompts, 5, np.random.default_rng(1)))

    assert np.sum(folds, axis=0).tolist() == [1] * 200
    for is_held_out in folds:
        assert not set(prompts[is_held_out]) & set(prompts[~is_held_out])


@pytest.mark.parametrize("num_folds", [1, 11])
def test_folds_that_cannot_be_are_refused(num_folds):
    with pytest.raises(ValueError, match=f"num_folds {num_folds} must be at least 2, and at most the 10 prompts"):
        held_out_losses(draw("unequal", 10, 0).judged, np.random.default_rng(0), num_folds=num_folds)


def test_a_collapse_is_announced_with_what_it_costs():
    said = (
        "Nearly all weight went to one member: the 5 count for {}. "
        "Averaging by posterior weights selects as judgments grow, and does not combine."
    )
    collapsed = [0.99, 0.0025, 0.0025, 0.0025, 0.0025]

    assert describe_collapse([0.6, 0.4], 0.5, 0.4) is None
    assert describe_collapse([1.0], 0.5, 0.4) is None
    assert describe_collapse(collapsed, 0.561, 0.503) == (
        f"{said.format('1.07')} On held-out judgments this costs 0.058 nats a judgment against stacking."
    )
    assert describe_collapse([1.0, 0, 0, 0, 0], 0.4, 0.41) == (
        f"{said.format('1.00')} On held-out judgments this gains 0.010 nats a judgment against stacking."
    )
    assert describe_collapse(collapsed, math.nan, 0.4) == said.format("1.07")


def test_the_collapse_in_a_world_where_members_differ_by_topic_is_announced():
    judged = draw("contextual", 3000, 1).judged
    losses = held_out_losses(judged, np.random.default_rng(0))
    cost = losses["bayesian_average"].mean() - losses["stacking"].mean()

    said = describe_collapse(posterior_of(judged, temperatures(judged)), *(
        losses[name].mean() for name in ("bayesian_average", "stacking")
    ))  # fmt: skip

    assert cost > 0.08
    assert said.endswith(f"this costs {cost:.3f} nats a judgment against stacking.")


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_posterior(np.zeros((3, 2)), np.zeros(3)), r"log_prior \(3,\) must be \(M,\)"),
        (lambda: log_posterior(np.zeros(3), np.zeros(3)), r"log_likelihoods \(3,\) must be \(B, M\)"),
        (lambda: mixture(np.zeros((3, 0)), []), "M > 0"),
        (lambda: mixture(np.zeros((3, 2)), [1.0]), r"weights \(1,\) must be \(M,\)"),
        (lambda: mixture(np.zeros((3, 2)), [1.0, -1.0]), "none negative"),
        (lambda: log_likelihoods(draw("unequal", 10, 0).judged, [1.0]), r"temperatures \(1,\) must be \(5,\)"),
        (lambda: preference([[1.0, 2.0]], [1, 1], [1.0, 0.0]), "finite and above zero"),
        (lambda: averaged_reward([[1.0, 2.0]], [1, 1], [1.0, math.nan]), "finite and above zero"),
    ],
)
def test_arguments_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
