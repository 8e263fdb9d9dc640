import math
from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from scipy.special import ndtri

from tests.training.alignment import worlds
from training.alignment.ensemble import (
    JudgedScores,
    Standardisation,
    aspect_weighted,
    chebyshev,
    constrained,
    falls_when_raised,
    log_likelihood,
    mean,
    median,
    rank_aggregate,
    spread,
    uncertainty_weighted,
    weighted_mean,
    worst_case,
)

EQUAL = np.sort(np.random.default_rng(98).normal(size=500))


def by_rank(scores: np.ndarray) -> np.ndarray:
    return rank_aggregate(scores, np.repeat(EQUAL[:, None], scores.shape[-1], axis=1))


SYMMETRIC: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean,
    "weighted_mean": lambda scores: weighted_mean(scores, np.full(scores.shape[-1], 0.7)),
    "median": median,
    "worst_case": worst_case,
    "variance": lambda scores: uncertainty_weighted(scores, 0.5),
    "deviation": lambda scores: uncertainty_weighted(scores, 0.5, "deviation"),
    "ranks": by_rank,
    "aspects": lambda scores: aspect_weighted(scores, np.full(scores.shape[-1], 0.7)),
    "chebyshev": lambda scores: chebyshev(scores, np.ones(scores.shape[-1])),
}
LINEAR_IN_SHIFTS = sorted(set(SYMMETRIC) - {"ranks"})
every = pytest.mark.parametrize("combine", SYMMETRIC.values(), ids=SYMMETRIC)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def judged(scores: object, groups: object, weights: object = None) -> JudgedScores:
    ranks = np.array(groups, dtype=np.int64)
    each = np.ones(len(ranks)) if weights is None else np.array(weights)
    return JudgedScores(np.array(scores, dtype=np.float64), ranks, np.arange(len(ranks)), each)


# Rules of combining


def test_spread_is_unknown_where_fewer_than_two_members_have_a_score():
    nan = float("nan")

    assert spread([[1.0, 3.0, nan], [1.0, nan, nan], [nan, nan, nan]]).tolist() == pytest.approx(
        [1.0, nan, nan], nan_ok=True
    )
    assert spread([[2.0]]).tolist() == pytest.approx([nan], nan_ok=True)
    assert uncertainty_weighted([[1.0, nan], [nan, nan]], 0.5).tolist() == pytest.approx([1.0, nan], nan_ok=True)


def test_each_rule_by_hand():
    scores = [[1.0, 2.0, 6.0], [0.0, -1.0, 1.0]]  # variances 14 / 3 and 2 / 3

    assert mean(scores).tolist() == [3.0, 0.0]
    assert weighted_mean(scores, [2, 1, 1]).tolist() == [2.5, 0.0]
    assert median(scores).tolist() == [2.0, 0.0]
    assert median([[1.0, 2.0, 6.0, 3.0]]).tolist() == [2.5]
    assert worst_case(scores).tolist() == [1.0, -1.0]
    assert spread(scores) == pytest.approx([math.sqrt(14 / 3), math.sqrt(2 / 3)])
    assert uncertainty_weighted(scores, 0.5) == pytest.approx([3 - 7 / 3, -1 / 3])
    assert uncertainty_weighted(scores, 0.5, "deviation") == pytest.approx(
        [3 - math.sqrt(14 / 3) / 2, -math.sqrt(2 / 3) / 2]
    )


@pytest.mark.parametrize("name", LINEAR_IN_SHIFTS)
def test_one_member_is_its_own_combination(name):
    scores = draw(20, 1)

    assert SYMMETRIC[name](scores) == pytest.approx(scores[:, 0], abs=1e-15)


def test_of_one_member_ranks_keep_the_order():
    scores = draw(20, 1)

    assert np.argsort(by_rank(scores)).tolist() == np.argsort(scores[:, 0]).tolist()


@pytest.mark.parametrize("kind", ["variance", "deviation"])
def test_uncertainty_that_costs_nothing_leaves_the_mean(kind):
    scores = draw(20, 5)

    assert uncertainty_weighted(scores, 0.0, kind).tolist() == mean(scores).tolist()


def test_the_worst_case_is_never_above_the_other_rules():
    scores = draw(1000, 5)
    lowest = worst_case(scores)

    assert (lowest <= median(scores)).all()
    assert (lowest <= mean(scores)).all()
    assert (lowest <= weighted_mean(scores, [0.1, 0.5, 0.0, 0.2, 0.2]) + 1e-12).all()


@every
def test_the_order_of_members_does_not_matter(combine):
    scores = draw(50, 4)

    for order in permutations(range(4)):
        assert combine(scores[:, order]) == pytest.approx(combine(scores), abs=1e-12)


@pytest.mark.parametrize("name", LINEAR_IN_SHIFTS)
def test_what_is_added_to_all_members_is_added_to_the_combination(name):
    scores = draw(50, 4)

    assert SYMMETRIC[name](scores + 2.5) == pytest.approx(SYMMETRIC[name](scores) + 2.5, abs=1e-12)


def judged_by_the_1024th(num_prompts: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """(B, 4, 4) scores of four responses by four members, which no sum of theirs rounds, and (B, 1, 4) numbers."""
    generator = np.random.default_rng(7)
    scores = generator.integers(-2000, 2000, size=(num_prompts, 4, 4)) / 1024
    return scores, generator.integers(-8, 9, size=(num_prompts, 1, 4)).astype(np.float64)


def orders(scores: np.ndarray) -> list[list[int]]:
    """Each prompt's responses, best first."""
    return np.argsort(-scores, axis=1, kind="stable").tolist()


def test_what_a_member_adds_to_all_its_scores_of_a_prompt_leaves_the_means_ranks():
    scores, added = judged_by_the_1024th()

    assert orders(mean(scores + added)) == orders(mean(scores))


@pytest.mark.parametrize("name", ["worst_case", "variance", "deviation", "median", "ranks", "chebyshev"])
def test_what_a_member_adds_to_all_its_scores_of_a_prompt_changes_the_other_rules_ranks(name):
    """Unless all add the same, or scores are standardised within the prompt."""
    scores, added = judged_by_the_1024th()
    combine = SYMMETRIC[name]
    found = orders(combine(scores))

    def within_prompts(values: np.ndarray) -> np.ndarray:
        return np.stack([Standardisation.fit(own).apply(own) for own in values])

    changed = [one != other for one, other in zip(orders(combine(scores + added)), found, strict=True)]
    assert np.mean(changed) > 0.3
    if name != "ranks":  # which are those among other prompts' responses
        assert orders(combine(scores + added[..., :1])) == found
    assert orders(combine(within_prompts(scores + added))) == orders(combine(within_prompts(scores)))


@every
def test_a_missing_member_is_left_out_and_nothing_is_made_of_nothing(combine):
    scores = draw(30, 5)
    without = np.delete(scores, 2, axis=1)
    scores[:, 2] = np.nan
    scores[7] = np.nan

    found = combine(scores)

    assert np.isnan(found).nonzero()[0].tolist() == [7]
    assert np.delete(found, 7).tolist() == pytest.approx(np.delete(combine(without), 7).tolist(), abs=1e-12)


@every
def test_leading_axes_are_kept(combine):
    scores = draw(2, 3, 5)

    assert combine(scores).tolist() == [combine(one).tolist() for one in scores]
    assert combine(scores[0, 0]).shape == ()


def test_where_all_that_weighs_is_missing_the_weighted_mean_is_too():
    scores = [[math.nan, 3.0], [1.0, 3.0]]

    np.testing.assert_equal(weighted_mean(scores, [1.0, 0.0]), [math.nan, 1.0])


@every
@pytest.mark.parametrize("scores", [[[1.0, math.inf]], [[]], 1.0], ids=["infinite", "no members", "no axis"])
def test_what_is_no_score_is_refused(combine, scores):
    with pytest.raises(ValueError, match=r"infinite|must be \(\.\.\., M\)|tuple index"):
        combine(np.array(scores)) if np.ndim(scores) else mean(scores)


@pytest.mark.parametrize("rule", [weighted_mean, aspect_weighted, chebyshev])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"weights \(1,\) must be \(2,\) for scores \(3, 2\)"),
        ([0.0, 0.0], "not all zero"),
        ([1.0, math.nan], "finite"),
    ],
)
def test_weights_that_cannot_be_are_refused(rule, weights, message):
    with pytest.raises(ValueError, match=message):
        rule(draw(3, 2), weights)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_mean(draw(3, 2), [1, -1]), "weights must not be negative"),
        (lambda: chebyshev(draw(3, 2), [1, 0]), "weights must be above zero"),
        (lambda: chebyshev(draw(3, 2), [1, 1], [1, 2, 3]), r"ideal \(3,\)"),
        (lambda: uncertainty_weighted(draw(3, 2), -1), "penalty -1 must not be negative"),
        (lambda: uncertainty_weighted(draw(3, 2), 1, "range"), "kind 'range' is not one of variance, deviation"),
        (lambda: falls_when_raised(draw(3, 2), 1, "range"), "kind 'range' is not one of variance, deviation"),
        (lambda: constrained(draw(3), draw(4), 0, 1), r"objective \(3,\) and constraint \(4,\)"),
        (lambda: constrained(draw(3), draw(3), math.nan, 1), "floor nan must be finite"),
        (lambda: constrained(draw(3), draw(3), 0, -1), "slope -1 not negative"),
        (lambda: rank_aggregate(draw(3, 2), draw(9)), r"reference \(9,\) must be \(N, M\)"),
        (lambda: rank_aggregate(draw(3, 2), [[1, 2], [0, 3]]), "in ascending order"),
        (lambda: rank_aggregate(draw(3, 2), [[1, math.nan], [2, math.nan]]), "scores of every member"),
    ],
)
def test_arguments_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Uncertainty is not monotone


def test_liking_a_response_better_may_lower_its_uncertainty_weighted_score():
    # five members, four at 0: mean x / 5, variance 4 x^2 / 25
    before, after = [0.0, 0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 3.5]

    assert uncertainty_weighted(before, 0.5) == pytest.approx(0.6 - 0.72)
    assert uncertainty_weighted(after, 0.5) == pytest.approx(0.7 - 0.98)
    assert falls_when_raised(before, 0.5).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("kind", ["variance", "deviation"])
@pytest.mark.parametrize("penalty", [0.1, 0.5, 2.0])
def test_it_is_told_where_that_is_so(kind, penalty):
    scores = 2 * draw(2000, 5)
    scores[::7, 3] = np.nan
    step = 1e-6
    falls = np.zeros(scores.shape, dtype=bool)
    for member in range(5):
        raised = scores + step * np.eye(5)[member]
        change = uncertainty_weighted(raised, penalty, kind) - uncertainty_weighted(scores, penalty, kind)
        falls[:, member] = change < 0

    told = falls_when_raised(scores, penalty, kind)

    assert (told == falls).mean() > 0.9999
    assert told[np.isnan(scores)].sum() == 0


@pytest.mark.parametrize("rule", ["mean", "median", "worst_case", "ranks", "chebyshev"])
def test_the_other_rules_are_monotone_in_every_member(rule):
    scores = draw(10_000, 5)
    raised = scores + np.eye(5)[np.arange(10_000) % 5] * np.abs(draw(10_000, 1, seed=1))

    assert (SYMMETRIC[rule](raised) >= SYMMETRIC[rule](scores) - 1e-12).all()


# Ranks


def test_ranks_among_the_responses_themselves_are_in_bordas_order():
    scores = draw(12, 5)
    borda = (scores[:, None, :] > scores[None, :, :]).sum((1, 2))

    found = rank_aggregate(scores, np.sort(scores, axis=0))

    # a response's share is (number below + 1) / 13: half of itself, and a half more that keeps it from 0 and 1
    assert found == pytest.approx(ndtri((borda / 5 + 1) / 13))


def test_ranks_do_not_see_the_scale_of_a_member():
    scores, others = draw(30, 5), draw(100, 5, seed=1)
    reference = np.sort(np.concatenate([scores, others]), axis=0)

    assert rank_aggregate(np.exp(scores), np.exp(reference)).tolist() == rank_aggregate(scores, reference).tolist()
    assert rank_aggregate(5 * others + 3, 5 * reference + 3) == pytest.approx(rank_aggregate(others, reference))


def test_a_response_has_its_rank_by_itself_and_no_member_lifts_it_without_end():
    found = rank_aggregate([[1e9, 0.0, 0.0], [4.0, 0.0, 0.0]], np.repeat(EQUAL[:, None], 3, axis=1))

    assert found[0] == found[1]
    assert rank_aggregate([4.0, 0.0, 0.0], np.repeat(EQUAL[:, None], 3, axis=1)) == found[1]


def test_scores_equal_to_the_references_count_half():
    # of -1, 0, 0, 0: 0 has one below and three equal: (1 + 1.5 + 0.5) / 5; -1 has one equal; between them in proportion
    reference = [[-1.0], [0.0], [0.0], [0.0]]

    assert rank_aggregate([[0.0], [-1.0], [-0.25]], reference) == pytest.approx(ndtri([0.6, 0.2, 0.5]))


def test_a_reference_that_a_member_has_not_scored_whole_counts_as_far_as_it_goes():
    assert rank_aggregate([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0], [2.0, math.nan]]) == pytest.approx(
        ndtri((1.5 / 4 + 1.5 / 3) / 2)
    )


# Aspects and constraints


def test_aspects_may_count_against_a_response_and_a_missing_one_is_not_nothing():
    found = aspect_weighted([[1.0, 3.0], [1.0, math.nan], [math.nan, 3.0]], [3.0, -1.0])

    assert found.tolist() == [0.0, 1.0, -3.0]


def test_normalised_then_summed_an_objectives_scale_does_not_matter_summed_first_it_rules():
    scores, weights = draw(50, 3), [0.5, 0.3, 0.2]
    scaled = scores * [1.0, 1.0, 100.0]

    def normalised_first(values: np.ndarray) -> list[int]:
        return np.argsort(aspect_weighted(Standardisation.fit(values).apply(values), weights)).tolist()

    assert normalised_first(scaled) == normalised_first(scores)
    assert (
        np.argsort(aspect_weighted(scaled, weights)).tolist() != np.argsort(aspect_weighted(scores, weights)).tolist()
    )
    assert np.corrcoef(aspect_weighted(scaled, weights), scores[:, 2])[0, 1] > 0.99


def test_the_mean_of_an_objective_does_not_fall_as_its_own_weight_grows():
    # the optimum against a reference policy is p exp(w r / beta); the derivative of E[r_1] by w_1 is Var(r_1) / beta
    rewards, beta = draw(40, 2), 0.5

    def moments(weight: float) -> tuple[float, float]:
        total = weight * rewards[:, 0] + 0.7 * rewards[:, 1]
        chance = np.exp(total / beta) / np.exp(total / beta).sum()
        expected = chance @ rewards[:, 0]
        return expected, chance @ (rewards[:, 0] - expected) ** 2

    slope = (moments(0.6 + 1e-5)[0] - moments(0.6 - 1e-5)[0]) / 2e-5

    assert slope == pytest.approx(moments(0.6)[1] / beta, rel=1e-7)
    assert np.diff([moments(weight)[0] for weight in np.linspace(0, 3, 30)]).min() > 0


def test_the_shortest_fall_finds_what_no_weights_of_a_sum_do():
    responses = np.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4]])  # the last lies inside of the line of the others

    assert chebyshev(responses, [1, 1], 1.0).tolist() == pytest.approx([-1, -1, -0.6])
    for weight in np.linspace(0, 1, 101):
        assert aspect_weighted(responses, [weight, 1 - weight]).argmax() != 2


def test_a_steep_slope_chooses_the_best_of_what_is_allowed():
    for seed in range(200):
        helpful, harmless = draw(2, 9, seed=seed)
        allowed = harmless >= 0.3

        chosen = constrained(helpful, harmless, floor=0.3, slope=1e6).argmax()

        assert chosen == (np.where(allowed, helpful, -np.inf).argmax() if allowed.any() else harmless.argmax())


def test_a_constraint_costs_nothing_above_its_floor_and_its_slope_below():
    assert constrained([2.0, 2.0, 2.0], [1.0, 0.5, 0.0], floor=0.5, slope=4.0).tolist() == [2.0, 2.0, 0.0]


def test_neither_objective_nor_constraint_stands_in_for_the_other():
    found = constrained([1.0, math.nan, 1.0], [math.nan, 1.0, 1.0], floor=0.0, slope=1.0)

    np.testing.assert_equal(found, [math.nan, math.nan, 1.0])


# Standardisation


def test_standardised_scores_have_mean_0_and_deviation_1_as_far_as_they_are_known():
    scores = draw(200, 3) * [1.0, 10.0, 0.01] + [0.0, 5.0, -3.0]
    scores[::3, 1] = np.nan

    found = Standardisation.fit(scores).apply(scores)

    assert mean(found.T) == pytest.approx([0, 0, 0], abs=1e-12)
    assert spread(found.T) == pytest.approx([1, 1, 1])
    assert np.isnan(found).tolist() == np.isnan(scores).tolist()


def test_a_member_that_is_constant_or_missing_has_a_deviation_of_one():
    found = Standardisation.fit([[0.1, math.nan, 1.0], [0.1, math.nan, 3.0], [0.1, math.nan, 5.0]])

    assert found.means == pytest.approx([0.1, 0.0, 3.0])
    assert found.stds == pytest.approx([1.0, 1.0, math.sqrt(8 / 3)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Standardisation.fit(np.empty((0, 2))), "N > 0"),
        (lambda: Standardisation.fit([1.0]), r"scores \(1,\) must be \(N, M\)"),
        (lambda: Standardisation.fit([[math.inf]]), "none infinite"),
        (lambda: Standardisation(np.zeros(2), np.ones(3)), r"means \(2,\) and stds \(3,\) must both be \(M,\)"),
        (lambda: Standardisation(np.zeros(2), np.zeros(2)), "stds above zero"),
        (lambda: Standardisation(np.zeros(2), np.ones(2)).apply([1.0]), r"scores \(1,\) must be \(\.\.\., 2\)"),
    ],
)
def test_what_cannot_be_standardised_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Judged scores


def test_ordered_pairs_share_their_rankings_weight():
    # 0 above 1 and 2, which are tied; then a pair whose second response is better; then nothing but a tie
    scores = [[[3.0, 0.0], [1.0, math.nan], [0.5, 2.0]], [[1.0, 1.0], [2.0, 5.0], [9.0, 9.0]], [[1.0, 2.0]] * 3]

    found = judged(scores, [[0, 1, 1], [1, 0, -1], [0, 0, 0]], [2.0, 3.0, 1.0]).ordered_pairs()

    np.testing.assert_equal(found.margins, [[2.0, math.nan], [2.5, -2.0], [1.0, 4.0]])
    assert found.rankings.tolist() == [0, 0, 1]
    assert found.weights.tolist() == [1.0, 1.0, 3.0]


def test_judgments_and_members_can_be_selected():
    all_of_them = worlds.contextual(np.random.default_rng(0), 6).judged
    mask = np.array([True, False, True, False, False, False])

    some = all_of_them.select(mask).with_members(np.array([4, 1]))

    assert len(some) == 2
    assert some.num_members == 2
    assert some.scores.tolist() == all_of_them.scores[[0, 2]][:, :, [4, 1]].tolist()
    assert some.groups.tolist() == all_of_them.groups[[0, 2]].tolist()
    assert some.prompts.tolist() == [0, 2]
    assert some.weights.tolist() == [1.0, 1.0]
    assert some.features.tolist() == all_of_them.features[[0, 2]].tolist()


def test_no_judgments_are_judged_scores_too():
    none = worlds.homogeneous(np.random.default_rng(0), 4).judged.select(np.zeros(4, dtype=bool))

    assert len(none) == 0
    assert none.ordered_pairs().margins.shape == (0, 5)
    assert log_likelihood(np.empty((0, 2)), none).tolist() == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": np.zeros((3, 2))}, r"scores \(3, 2\) must be \(B, K, M\)"),
        ({"scores": np.zeros((3, 2, 0))}, "M > 0"),
        ({"scores": np.full((3, 2, 4), np.inf)}, "a score is infinite"),
        ({"groups": np.zeros((3, 3), dtype=np.int64)}, r"groups \(3, 3\)"),
        ({"prompts": np.zeros(2, dtype=np.int64)}, r"prompts \(2,\) must be \(B,\)"),
        ({"weights": np.zeros((3, 1))}, r"weights \(3, 1\) must be \(B,\)"),
        ({"weights": -np.ones(3)}, "none negative"),
        ({"features": np.zeros((2, 4))}, r"features \(2, 4\) must be \(B, D\)"),
        ({"features": np.full((3, 4), np.nan)}, "features must be finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, message):
    given = {
        "scores": np.zeros((3, 2, 4)),
        "groups": np.zeros((3, 2), dtype=np.int64),
        "prompts": np.arange(3),
        "weights": np.ones(3),
    }

    with pytest.raises(ValueError, match=message):
        JudgedScores(**{**given, **changed})


# Likelihood


def test_a_ranking_is_as_likely_as_its_choices():
    rewards = [[2.0, 1.0, 0.0], [1.0, 0.0, 7.0], [1.0, 2.0, 3.0]]
    rankings = judged(np.zeros((3, 3, 1)), [[0, 1, 2], [1, 0, -1], [0, 0, 0]])
    first = math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))
    second = math.log(math.exp(1) / (math.exp(1) + 1))
    wrong = -math.log(1 + math.exp(1))

    assert log_likelihood(rewards, rankings, is_per_choice=False) == pytest.approx([first + second, wrong, 0])
    assert log_likelihood(rewards, rankings) == pytest.approx([(first + second) / 2, wrong, 0])


def test_a_tied_group_stands_for_all_its_orders():
    rewards = [[0.3, -0.2, 1.0]]
    either = [judged(np.zeros((1, 3, 1)), [order]) for order in ([0, 1, 2], [1, 0, 2])]
    tied = judged(np.zeros((1, 3, 1)), [[0, 0, 1]])

    expected = np.logaddexp(*(log_likelihood(rewards, one, is_per_choice=False)[0] for one in either))

    assert log_likelihood(rewards, tied, is_per_choice=False)[0] == pytest.approx(expected, rel=1e-12)


def test_without_rewards_all_orders_are_alike():
    rankings = judged(np.zeros((3, 3, 1)), [[0, 1, 2], [0, 1, -1], [0, 1, -1]])
    rewards = [[math.nan] * 3, [math.nan, 4.0, 2.0], [4.0, 4.0, math.nan]]

    assert log_likelihood(rewards, rankings, is_per_choice=False) == pytest.approx(-np.log([6, 2, 2]))


@pytest.mark.parametrize("rewards", [np.zeros((1, 2)), np.full((1, 3), np.inf)])
def test_rewards_that_cannot_be_are_refused(rewards):
    with pytest.raises(ValueError, match="must be as groups"):
        log_likelihood(rewards, judged(np.zeros((1, 3, 1)), [[0, 1, 2]]))


# What ensembles are for: choosing among many

CONSERVATIVE = {
    "mean": mean,
    "worst_case": worst_case,
    "uncertainty_weighted": lambda scores: uncertainty_weighted(scores, 0.5),
    "rank_aggregate": lambda scores: rank_aggregate(scores, np.sort(scores[:4096], axis=0)),
}


@cache
def curves(*, is_shared: bool) -> dict[str, np.ndarray]:
    """The mean worth of the best of 1, 2, … 8192 by each rule, over seeds."""
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(8):
        scores, worth = worlds.exploitable(np.random.default_rng(seed), is_shared=is_shared)
        for name, combine in {"single": lambda scores: scores[:, 0], **CONSERVATIVE}.items():
            found.setdefault(name, []).append(worlds.best_of(combine(scores), worth))
    return {name: np.mean(own, axis=0) for name, own in found.items()}


def test_best_of_many_exploits_a_single_member_and_no_ensemble():
    found = curves(is_shared=False)
    peak = {name: own.max() for name, own in found.items()}

    assert found["single"][-1] < 0.75 * peak["single"]
    for name in CONSERVATIVE:
        assert found[name][-1] > 0.98 * peak[name]
        assert found[name][-1] > 2 * peak["single"]


def test_what_members_share_no_rule_corrects_whole_but_the_cautious_ones_correct_most():
    own, shared = curves(is_shared=False), curves(is_shared=True)

    for name in CONSERVATIVE:
        assert shared[name][-1] < 0.7 * own[name][-1]
    assert shared["mean"][-1] < 0.9 * shared["mean"].max()
    assert shared["worst_case"][-1] > shared["mean"][-1] + 0.5
    assert shared["mean"][-1] > shared["single"][-1] + 1
