import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.alignment import worlds
from training.alignment import ensemble
from training.alignment.ensemble import JudgedScores
from training.alignment.fusion import FusionConfig, FusionNetwork, fit_fusion, gate_groups, load_fusion, save_fusion

M, D = 4, 3
NO_GATE = FusionConfig(has_gate=False)


def random_network(seed: int = 0, *, num_features: int = D, is_monotone: bool = True) -> FusionNetwork:
    network = FusionNetwork(M, num_features, is_monotone=is_monotone)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def draw(world: str, num_prompts: int, seed: int = 0) -> worlds.World:
    return getattr(worlds, world)(np.random.default_rng(100 + seed), num_prompts)


def fused(network: FusionNetwork, judged: JudgedScores) -> np.ndarray:
    return network.score(judged.scores, judged.features[:, None])


def gain(network: FusionNetwork, world: worlds.World) -> float:
    """Over the mean, in accuracy."""
    found = worlds.accuracy(fused(network, world.judged), world.truth)
    return found - worlds.accuracy(world.judged.scores.mean(-1), world.truth)


def log_loss(rewards: np.ndarray, judged: JudgedScores) -> float:
    return -ensemble.log_likelihood(rewards, judged).mean()


# The network


@pytest.mark.parametrize("is_monotone", [True, False])
@pytest.mark.parametrize("num_features", [0, D])
def test_a_new_network_is_the_mean(num_features, is_monotone):
    rng = np.random.default_rng(0)
    scores, features = rng.normal(size=(50, M)), rng.normal(size=(50, num_features))
    scores[3, 1] = scores[4, :3] = scores[5] = np.nan
    found = FusionNetwork(M, num_features, is_monotone=is_monotone).score(scores, features)
    np.testing.assert_allclose(found, ensemble.mean(scores), atol=1e-12)
    assert np.isnan(found[5])


def test_score_of_a_case_worked_by_hand():
    network = FusionNetwork(2, 1, is_monotone=False)
    network.trust.data[:] = torch.tensor([math.log(3), 0.0], dtype=torch.float64)
    network.gate.data[:] = torch.tensor([[1.0], [0.0]])
    network.feature_means[:], network.feature_stds[:] = 5.0, 2.0
    network.corrections.data[:] = torch.tensor([0.0, -1.0])
    network.doubt.data.fill_(0.5)
    # at x = 5 the weights are 3/4 and 1/4, and at 5 - 2 ln 3 they are 1/2; the spread of 1 and 3 is 1
    plain = 0.75 * 1 + 0.25 * 3 - 3 / 2 - 0.5
    gated = 0.5 * 1 + 0.5 * 3 - 3 / 2 - 0.5
    found = network.score([[1.0, 3.0], [1.0, 3.0], [1.0, np.nan]], [[5.0], [5 - 2 * math.log(3)], [5.0]])
    np.testing.assert_allclose(found, [plain, gated, 1.0], atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_score_never_falls_as_a_member_likes_the_response_better(seed):
    rng = np.random.default_rng(seed)  # 50 times 50 times 4 members: 10,000 cases
    scores, features = 3 * rng.normal(size=(50, M)), 3 * rng.normal(size=(50, D))
    scores[rng.random(scores.shape) < 0.1] = np.nan
    network = random_network(seed)
    before = network.score(scores, features)
    for member in range(M):
        raised = scores.copy()
        raised[:, member] += rng.exponential(2, size=50)
        is_known = ~np.isnan(before)
        assert (network.score(raised, features)[is_known] >= before[is_known] - 1e-12).all()


def test_a_network_that_need_not_be_monotone_is_not():
    assert random_network(is_monotone=False, num_features=0).corrections.min() < 0


def test_weights_depend_on_the_prompt_alone_and_sum_to_one():
    network, rng = random_network(), np.random.default_rng(0)
    features = rng.normal(size=(20, D))
    weights = network.weights(torch.tensor(features)).detach().numpy()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1)
    for scores in rng.normal(size=(5, 20, M)):
        np.testing.assert_allclose(network.score(scores, features), (weights * scores).sum(1))


@pytest.mark.parametrize("is_monotone", [True, False])
def test_members_in_another_order_score_the_same(is_monotone):
    network, order = random_network(is_monotone=is_monotone), [2, 0, 3, 1]
    permuted = random_network(is_monotone=is_monotone)
    for name in ("trust", "gate", "corrections"):
        if (parameter := getattr(permuted, name)) is not None:
            parameter.data = parameter.data[order]
    rng = np.random.default_rng(0)
    scores, features = rng.normal(size=(30, M)), rng.normal(size=(30, D))
    scores[:5, 2] = np.nan
    np.testing.assert_allclose(permuted.score(scores[:, order], features), network.score(scores, features))


def test_a_missing_member_is_left_out_and_the_others_make_up_for_it():
    network, features = random_network(), np.ones(D)
    weights = network.weights(torch.tensor(features)).detach().numpy()
    found = network.score([1.0, np.nan, 2.0, 4.0], features)
    assert found == pytest.approx((weights[0] + 2 * weights[2] + 4 * weights[3]) / (1 - weights[1]))
    assert network.score([np.nan, 7.0, np.nan, np.nan], features) == pytest.approx(7.0)
    assert np.isnan(network.score([np.nan] * M, features))


def test_a_score_does_not_depend_on_its_batch():
    network, rng = random_network(is_monotone=False), np.random.default_rng(0)
    scores, features = rng.normal(size=(6, 5, M)), rng.normal(size=(6, D))
    together = network.score(scores, features[:, None])
    assert together.shape == (6, 5)
    alone = [[network.score(own, prompt) for own in row] for row, prompt in zip(scores, features, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-12)
    assert network.score(np.zeros((0, M)), np.zeros((0, D))).shape == (0,)


def test_what_is_missing_has_no_gradient_that_is_not_a_number():
    network = random_network(is_monotone=False)
    scores = torch.tensor([[1.0, math.nan, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    network(scores, torch.ones(2, D)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("scores", "features", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, D)), r"scores \(2, 3\) must be \(\.\.\., 4\)"),
        (np.zeros((2, M)), np.zeros((2, 5)), r"features \(2, 5\) must be \(\.\.\., 3\)"),
        (np.zeros((2, M)), None, r"features None must be \(\.\.\., 3\)"),
        (np.full((2, M), np.inf), np.zeros((2, D)), "a score is infinite"),
        (np.zeros((2, M)), np.full((2, D), np.nan), "features must be finite"),
    ],
)
def test_what_cannot_be_scored_is_said(scores, features, message):
    with pytest.raises(ValueError, match=message):
        random_network().score(scores, features)


@pytest.mark.parametrize("is_monotone", [True, False])
@pytest.mark.parametrize("num_features", [0, D])
def test_a_saved_network_gives_identical_scores(tmp_path, num_features, is_monotone):
    network = random_network(num_features=num_features, is_monotone=is_monotone)
    save_fusion(network, tmp_path / "made")
    loaded, rng = load_fusion(tmp_path / "made"), np.random.default_rng(0)
    scores, features = rng.normal(size=(20, M)), rng.normal(size=(20, num_features))
    assert loaded.score(scores, features).tolist() == network.score(scores, features).tolist()
    assert (loaded.digest, loaded.log_odds, loaded.pull) == (network.digest, network.log_odds, math.inf)
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["fusion.json", "fusion.safetensors"]


def test_networks_that_score_differently_have_different_digests():
    networks = [random_network(seed, is_monotone=is_monotone) for seed in (0, 1) for is_monotone in (True, False)]
    assert len({network.digest for network in networks}) == 4


# Fitting


def test_the_gate_finds_whom_to_trust_on_which_prompts():
    world, test = draw("contextual", 1000), draw("contextual", 5000, seed=1)
    network = fit_fusion(world.judged)
    assert network.has_gate
    assert gain(network, test) >= 0.08
    oracle = worlds.accuracy(test.optimal, test.truth)
    assert worlds.accuracy(fused(network, test.judged), test.truth) >= 0.95 * oracle
    groups = gate_groups(
        network, test.judged.features, [f"topic {topic}" for topic in test.topics], [f"member {m}" for m in range(5)]
    )
    assert {group["example"][-1]: max(group["weights"], key=group["weights"].get)[-1] for group in groups} == {
        str(topic): str(topic) for topic in range(5)
    }
    assert sum(group["prompts"] for group in groups) == 5000


def test_three_hundred_judgments_are_enough_for_a_gate_to_help():
    test = draw("contextual", 5000, seed=10)
    assert gain(fit_fusion(draw("contextual", 300).judged), test) >= 0.05


def test_near_copies_do_not_outvote_an_independent_member():
    world, test = draw("redundant", 600), draw("redundant", 5000, seed=1)
    network = fit_fusion(world.judged, NO_GATE)
    oracle = worlds.accuracy(test.optimal, test.truth)
    assert oracle - worlds.accuracy(fused(network, test.judged), test.truth) <= 0.005


def test_members_of_unequal_and_correlated_noise_are_combined_nearly_as_well_as_possible():
    world, test = draw("unequal", 600), draw("unequal", 5000, seed=1)
    network = fit_fusion(world.judged, NO_GATE)
    found = log_loss(network.log_odds * fused(network, test.judged), test.judged)
    assert found <= 1.02 * log_loss(test.optimal, test.judged)


@pytest.mark.parametrize("num_prompts", [20, 100])
def test_where_nothing_beats_the_mean_little_is_lost_to_it(num_prompts):
    test = draw("homogeneous", 5000, seed=10)
    gains = [gain(fit_fusion(draw("homogeneous", num_prompts, seed).judged), test) for seed in range(3)]
    assert np.mean(gains) >= -0.005


@pytest.mark.parametrize("kind", ["constant", "flipped", "missing"])
def test_a_broken_member_does_not_sink_the_others(kind):
    world, test = draw("unequal", 400), draw("unequal", 5000, seed=1)
    fitted = fit_fusion(worlds.broken(world.judged, kind), NO_GATE)
    broken = worlds.broken(test.judged, kind)
    whole = ensemble.mean(test.judged.scores[..., 1:])
    found = worlds.accuracy(fused(fitted, broken), test.truth)
    assert found >= worlds.accuracy(whole, test.truth)
    if kind == "flipped":
        assert fitted.weights()[0] < 0.02


def test_a_flipped_member_is_used_where_the_network_need_not_be_monotone():
    world, test = draw("unequal", 400), draw("unequal", 5000, seed=1)
    config = dataclasses.replace(NO_GATE, is_monotone=False)
    fitted = fit_fusion(worlds.broken(world.judged, "flipped"), config)
    without = ensemble.mean(test.judged.scores[..., 1:])
    found = fused(fitted, worlds.broken(test.judged, "flipped"))
    assert worlds.accuracy(found, test.truth) >= worlds.accuracy(without, test.truth) + 0.03


def test_disagreement_can_be_learned_to_cost():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 2, 2))
    seen = 3 * (scores.mean(-1) - 0.8 * ensemble.spread(scores)) + rng.gumbel(size=(300, 2))
    judged = JudgedScores(scores, (-seen).argsort(1).argsort(1), np.arange(300), np.ones(300))
    network = fit_fusion(judged, FusionConfig(is_monotone=False))
    assert network.doubt.item() == pytest.approx(0.8, abs=0.25)
    assert network.log_odds == pytest.approx(3, rel=0.3)


def test_missing_scores_do_not_hinder():
    world, test = draw("redundant", 400), draw("redundant", 5000, seed=1)
    scores = world.judged.scores.copy()
    scores[np.random.default_rng(0).random(scores.shape) < 0.2] = np.nan
    scores[:5] = np.nan
    network = fit_fusion(dataclasses.replace(world.judged, scores=scores), NO_GATE)
    assert gain(network, test) >= 0


def test_the_same_seed_gives_the_same_network_and_the_members_order_does_not_matter():
    judged = draw("contextual", 120).judged
    network = fit_fusion(judged)
    assert network.has_gate
    assert fit_fusion(judged).digest == network.digest
    order = [4, 2, 0, 1, 3]
    permuted = fit_fusion(judged.with_members(np.array(order)))
    found = permuted.score(judged.scores[..., order], judged.features[:, None])
    np.testing.assert_allclose(found, fused(network, judged), atol=1e-3)


def test_weights_of_rankings_count():
    world = draw("redundant", 200)
    twice = np.concatenate([np.arange(200), np.arange(100)])
    config = FusionConfig(has_gate=False, pulls=(1.0,), caution=0.0)
    weights = np.where(np.arange(200) < 100, 2.0, 1.0)
    one = fit_fusion(dataclasses.replace(world.judged, weights=weights), config)
    other = fit_fusion(world.judged.select(twice), config)
    np.testing.assert_allclose(one.weights().detach(), other.weights().detach(), atol=1e-3)


def test_lists_with_ties_and_unranked_responses_are_learned_from():
    world = worlds.redundant(np.random.default_rng(0), 200, num_responses=4)
    groups = np.minimum(world.judged.groups, 2)
    groups[:20, 3] = -1
    network = fit_fusion(dataclasses.replace(world.judged, groups=groups), NO_GATE)
    assert network.weights()[4] == network.weights().max()


def test_one_prompt_gives_the_mean():
    judged = dataclasses.replace(draw("redundant", 8).judged, prompts=np.zeros(8, dtype=np.int64))
    network = fit_fusion(judged)
    assert network.pull == math.inf
    np.testing.assert_allclose(fused(network, judged), judged.scores.mean(-1))


def test_nothing_to_learn_from_is_said():
    judged = draw("redundant", 8).judged
    with pytest.raises(ValueError, match="no ranking puts one response above another"):
        fit_fusion(dataclasses.replace(judged, groups=np.zeros((8, 2), dtype=np.int64)))
    with pytest.raises(ValueError, match="no ranking puts one response above another"):
        fit_fusion(dataclasses.replace(judged, scores=np.full_like(judged.scores, np.nan)))


@pytest.mark.parametrize("wrong", [{"pulls": ()}, {"pulls": (0.0,)}, {"num_folds": 1}, {"caution": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        FusionConfig(**wrong)


def test_a_network_without_a_gate_treats_all_prompts_alike():
    network = FusionNetwork(2)
    groups = gate_groups(network, np.random.default_rng(0).normal(size=(9, 3)), list("abcdefghi"), ["one", "other"])
    assert groups == [{"prompts": 9, "example": "a", "weights": {"one": 0.5, "other": 0.5}}]
