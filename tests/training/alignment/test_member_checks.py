from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.training.alignment import worlds
from training.alignment import ensemble
from training.alignment.bayesian_averaging import log_likelihoods, posterior_of, pseudo_bma_plus, stacking_weights
from training.alignment.ensemble import Floats, JudgedScores
from training.alignment.member_checks import problems, temperatures

KINDS = ["constant", "flipped", "missing"]


def single(scores: object, groups: object, prompts: object = None, weights: object = None) -> JudgedScores:
    """One member's scores (B, K)."""
    given, ranks = np.array(scores, dtype=np.float64), np.array(groups, dtype=np.int64)
    numbers = np.arange(len(ranks)) if prompts is None else np.array(prompts)
    return JudgedScores(given[..., None], ranks, numbers, np.ones(len(ranks)) if weights is None else np.array(weights))


def pairs(leads: object, prompts: object = None) -> JudgedScores:
    """One member's leads (B,) of the better response of each pair."""
    given = np.array(leads, dtype=np.float64)
    return single(np.stack([given, np.zeros(len(given))], 1), [[0, 1]] * len(given), prompts)


# Problems


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", [0, 4])
@pytest.mark.parametrize("num_responses", [2, 4])
def test_a_broken_member_is_told_and_no_other(kind, member, num_responses):
    judged = worlds.homogeneous(np.random.default_rng(0), 200, num_responses=num_responses).judged

    found = problems(worlds.broken(judged, kind, member))

    assert found == [kind if place == member else None for place in range(5)]
    assert problems(judged) == [None] * 5


def test_a_member_that_tells_prompts_apart_but_no_responses_is_constant():
    by_prompt = 1000 + np.random.default_rng(0).normal(size=(40, 1))

    def leading_by(lead: float) -> JudgedScores:
        return single(np.hstack([by_prompt + lead, by_prompt]), [[0, 1]] * 40)

    assert problems(leading_by(0.0)) == ["constant"]
    assert problems(leading_by(1e-7)) == ["constant"]
    assert problems(leading_by(1e-3)) == [None]


@pytest.mark.parametrize(("num_missing", "problem"), [(0, None), (10, None), (11, "missing"), (20, "missing")])
def test_missing_is_more_than_half_of_what_was_ranked(num_missing, problem):
    scores = np.random.default_rng(0).normal(size=(10, 3))
    groups = np.array([[0, 1, -1]] * 10)  # the third of each is not ranked, or padding
    scores[:, 2] = np.nan
    scores.reshape(-1)[np.flatnonzero(groups.reshape(-1) >= 0)[:num_missing]] = np.nan

    assert problems(single(scores, groups)) == [problem]


def test_who_knows_nothing_is_seldom_called_flipped():
    leads = np.random.default_rng(0).normal(size=(400, 60))

    found = [problems(pairs(own)) for own in leads]

    assert {tuple(own) for own in found} == {(None,), ("flipped",)}
    assert found.count(["flipped"]) < 0.045 * 400  # 2.5 % are expected; three deviations more are 4.8 %


def test_a_member_that_is_wrong_more_often_than_right_is_called_flipped_when_that_is_sure():
    def share_right(share: float, number: int) -> JudgedScores:
        return pairs(np.where(np.arange(number) < share * number, 1.0, -1.0))

    assert problems(share_right(0.45, 100)) == [None]
    assert problems(share_right(0.45, 1000)) == ["flipped"]
    assert problems(share_right(0.55, 1000)) == [None]


def test_many_judgments_on_one_prompt_are_not_many_prompts():
    leads = np.repeat(np.random.default_rng(3).normal(size=20) - 0.2, 100)

    assert problems(pairs(leads)) == ["flipped"]
    assert problems(pairs(leads, np.repeat(np.arange(20), 100))) == [None]


@pytest.mark.parametrize(("num_prompts", "problem"), [(1, None), (6, None), (7, "flipped")])
def test_flipped_takes_seven_prompts(num_prompts, problem):
    assert problems(pairs([-1.0] * num_prompts)) == [problem]


def test_where_nothing_is_ordered_nothing_is_said():
    assert problems(single(np.ones((3, 2)), [[0, 0]] * 3)) == [None]
    assert problems(single(np.ones((0, 2)), np.empty((0, 2)))) == [None]


# Temperatures


def test_temperatures_are_in_each_members_own_unit():
    judged = worlds.homogeneous(np.random.default_rng(0), 4000).judged
    scaled = replace(judged, scores=judged.scores * [1.0, 2.5, 1.0, 0.01, 1.0])

    assert temperatures(scaled) == pytest.approx(temperatures(judged) * [1.0, 2.5, 1.0, 0.01, 1.0], rel=1e-9)


def test_inflated_scores_of_a_calibrated_member_have_the_inflation_as_temperature():
    world = worlds.homogeneous(np.random.default_rng(0), 20_000)
    truth = replace(world.judged, scores=2.5 * worlds.SHARPNESS * world.truth[..., None])

    assert temperatures(truth) == pytest.approx([2.5], rel=0.03)


def test_a_ranking_has_one_voice_and_its_weight():
    # 3 pairs right and 1 wrong: sigmoid(1 / T) = 3 / 4
    expected = 1 / np.log(3)
    listwise = single([[1.0, 0.0, 0.0], [0.0, 1.0, np.nan]], [[0, 1, 1], [0, 1, -1]], weights=[3.0, 1.0])

    assert temperatures(single([[1.0, 0.0]] * 3 + [[0.0, 1.0]], [[0, 1]] * 4)) == pytest.approx([expected])
    assert temperatures(single([[1.0, 0.0], [0.0, 1.0]], [[0, 1]] * 2, weights=[3.0, 1.0])) == pytest.approx([expected])
    assert temperatures(listwise) == pytest.approx([expected])


@pytest.mark.parametrize("kind", ["constant", "missing"])
def test_who_tells_no_response_from_another_has_a_temperature_of_one(kind):
    judged = worlds.homogeneous(np.random.default_rng(0), 50).judged

    found = temperatures(worlds.broken(judged, kind))

    assert found.tolist() == [1.0, *temperatures(judged)[1:]]


# A broken member sinks no combiner


def fitted(name: str, judged: JudgedScores) -> Callable[[Floats], Floats]:
    """A way of combining scores (..., M), learned from judgments where there is something to learn."""
    own = temperatures(judged)
    told = log_likelihoods(judged, own)
    learned = {
        "posterior": lambda: posterior_of(judged, own) / own,
        "pseudo_bma_plus": lambda: pseudo_bma_plus(told, judged.prompts, np.random.default_rng(0)) / own,
        "stacking": lambda: stacking_weights(judged),
    }
    if name in learned:
        return partial(ensemble.weighted_mean, weights=learned[name]())
    reference = np.sort(judged.scores.reshape(-1, judged.num_members), axis=0)
    options = {
        "uncertainty_weighted": {"penalty": 0.5},
        "rank_aggregate": {"reference": reference},
        **{rule: {"weights": 1.0 + np.arange(len(own))} for rule in ("weighted_mean", "aspect_weighted", "chebyshev")},
    }
    return partial(getattr(ensemble, name), **options.get(name, {}))


COMBINERS = [
    *("mean", "weighted_mean", "median", "worst_case", "uncertainty_weighted", "rank_aggregate"),
    *("aspect_weighted", "chebyshev", "posterior", "pseudo_bma_plus", "stacking"),
]
LEARNED = ["posterior", "pseudo_bma_plus", "stacking"]


def accuracies(name: str, fit: JudgedScores, test: JudgedScores, truth: Floats) -> float:
    return worlds.accuracy(fitted(name, fit)(test.scores), truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMBINERS)
def test_without_the_broken_members_every_combiner_is_that_of_the_others(name, kind):
    fit, test = (worlds.unequal(np.random.default_rng(seed), size) for seed, size in ((1, 200), (2, 500)))
    whole = np.array([False, True, True, True, True])
    harmed_fit, harmed_test = (worlds.broken(world.judged, kind) for world in (fit, test))
    is_used = np.array([problem is None for problem in problems(harmed_fit)])

    harmed = fitted(name, harmed_fit.with_members(is_used))(harmed_test.with_members(is_used).scores)

    expected = fitted(name, fit.judged.with_members(whole))(test.judged.with_members(whole).scores)
    assert is_used.tolist() == whole.tolist()
    assert harmed.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_gives_a_broken_member_no_say_even_where_nobody_leaves_it_out(name, kind):
    fit, test = (worlds.unequal(np.random.default_rng(seed), size) for seed, size in ((1, 1000), (2, 10_000)))
    without = np.array([True, True, True, False, True])

    harmed = accuracies(name, worlds.broken(fit.judged, kind, 3), worlds.broken(test.judged, kind, 3), test.truth)
    others = accuracies(name, fit.judged.with_members(without), test.judged.with_members(without), test.truth)

    assert harmed > others - 0.005


@pytest.mark.parametrize("name", COMBINERS)
def test_a_member_that_fails_later_costs_what_it_knew_and_no_more(name):
    fit, test = (worlds.homogeneous(np.random.default_rng(seed), size) for seed, size in ((1, 300), (2, 4000)))
    combine = fitted(name, fit.judged)

    for member in range(5):
        scores = worlds.broken(test.judged, "missing", member).scores
        assert worlds.accuracy(combine(scores), test.truth) > 0.74  # of one member alone, 0.75
    half = test.judged.scores.copy()
    half[np.random.default_rng(0).random(half.shape) < 0.3] = np.nan
    half[..., 2] = test.judged.scores[..., 2]
    assert np.isfinite(combine(half)).all()
