import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.enumerable import PROMPTS, enumerable_lm, optimum, reward_of_each, token_logprobs
from training.alignment.kl import AdaptiveKl, k1, k2, k3, response_log_ratio

PROMPT = PROMPTS[0]


class World:
    """A policy and its reference in double precision, with what each road's gradient is, by enumeration."""

    def __init__(self, folder) -> None:
        tokenizer = AutoTokenizer.from_pretrained(enumerable_lm(folder / "policy", seed=1))
        policy, reference = (
            AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64)
            for where in (folder / "policy", enumerable_lm(folder / "reference", seed=2))
        )
        with torch.no_grad():  # not too far apart
            reference.model.table.copy_(policy.model.table + 0.5 * reference.model.table)
        self.parameter = policy.model.table
        self.tokens = token_logprobs(policy, tokenizer, PROMPT)
        self.reference_tokens = token_logprobs(reference, tokenizer, PROMPT).detach()
        self.law, self.reference_law = self.tokens.detach().sum(-1).exp(), self.reference_tokens.sum(-1).exp()
        self.log_ratio = (self.tokens - self.reference_tokens).sum(-1)
        self.forward = self.gradient((self.tokens.sum(-1).exp() * self.log_ratio).sum())
        self.backward = self.gradient(-(self.reference_law * self.log_ratio).sum())

    def gradient(self, scalar: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(scalar, self.parameter, retain_graph=True)
        return found.flatten()

    def mean(self, values: Tensor) -> Tensor:
        """Over responses sampled from the policy, whose own law is not differentiated."""
        return (self.law * values).sum()

    def in_reward(self, estimate) -> Tensor:
        """What a policy gradient follows that takes the estimate off the reward."""
        return self.gradient(self.mean(estimate(self.log_ratio).detach() * self.tokens.sum(-1)))

    def in_loss(self, estimate) -> Tensor:
        return self.gradient(self.mean(estimate(self.log_ratio)))

    def in_loss_by_token(self, estimate) -> Tensor:
        return self.gradient(self.mean(estimate(self.tokens - self.reference_tokens).sum(-1)))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def cosine(found: Tensor, wanted: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found, wanted, dim=0))


def test_estimates_by_hand():
    log_ratio = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)

    assert k1(log_ratio).tolist() == [0, 1, -2]
    assert k2(log_ratio).tolist() == [0, 0.5, 2]
    # exp(-1) - 1 + 1 and exp(2) - 1 - 2
    assert k3(log_ratio).tolist() == pytest.approx([0, 0.36787944117144233, 4.38905609893065])


def test_log_ratio_of_a_response_counts_its_own_tokens_only():
    logprobs, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -4.0, -1.0]])

    assert response_log_ratio(logprobs, reference, torch.tensor([[1, 1, 0]])).tolist() == [2.5]


def test_log_ratio_does_not_look_at_padding():
    logprobs = torch.tensor([[-1.0, -torch.inf], [-1.0, torch.nan]])

    found = response_log_ratio(logprobs, torch.full((2, 2), -3.0), torch.tensor([[1, 0], [1, 0]]))

    assert found.tolist() == [2.0, 2.0]


def test_log_ratio_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"differ in shape: \(1, 3\), \(1, 3\), \(3,\)"):
        response_log_ratio(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(3))


def test_k1_and_k3_have_the_kl_as_their_mean(world):
    kl = float((world.law * (world.law / world.reference_law).log()).sum())

    assert kl > 0.2
    assert float(world.mean(k1(world.log_ratio.detach()))) == pytest.approx(kl, abs=1e-12)
    assert float(world.mean(k3(world.log_ratio.detach()))) == pytest.approx(kl, abs=1e-12)
    assert float(world.mean(k2(world.log_ratio.detach()))) != pytest.approx(kl, rel=0.01)


def test_k1_in_the_reward_and_k2_of_the_response_in_the_loss_follow_the_true_gradient(world):
    assert error(world.in_reward(k1), world.forward) < 1e-10
    assert error(world.in_loss(k2), world.forward) < 1e-10


def test_k1_in_the_loss_teaches_nothing(world):
    assert float(world.in_loss(k1).norm() / world.forward.norm()) < 1e-10


def test_k3_in_the_reward_follows_the_difference_of_both_divergences(world):
    assert error(world.in_reward(k3), world.forward - world.backward) < 1e-10
    assert error(world.in_reward(k3), world.forward) > 0.3


def test_k3_of_the_response_in_the_loss_follows_the_other_divergence(world):
    assert error(world.in_loss(k3), world.backward) < 1e-10
    assert error(world.in_loss(k3), world.forward) > 0.3


def test_estimates_are_off_by_as_much_as_the_form_of_a_run_tells(world):
    """In percent of the true gradient; templates/admin/training/trainingrun/explained/rlhf.html has the table."""
    found = {
        "k1 in the reward": world.in_reward(k1),
        "k2 in the loss, whole response": world.in_loss(k2),
        "k1 in the loss": world.in_loss(k1),
        "k3 in the reward": world.in_reward(k3),
        "k3 in the loss, whole response": world.in_loss(k3),
        "k3 in the loss, token by token": world.in_loss_by_token(k3),
    }

    assert {name: round(100 * error(gradient, world.forward)) for name, gradient in found.items()} == {
        "k1 in the reward": 0,
        "k2 in the loss, whole response": 0,
        "k1 in the loss": 100,
        "k3 in the reward": 153,
        "k3 in the loss, whole response": 63,
        "k3 in the loss, token by token": 54,
    }


@pytest.mark.parametrize("estimate", [k2, k3])
def test_estimates_of_tokens_in_the_loss_follow_neither_divergence(world, estimate):
    found = world.in_loss_by_token(estimate)

    assert error(found, world.forward) > 0.1
    assert error(found, world.backward) > 0.1
    assert 0.5 < cosine(found, world.forward) < 0.999


def test_k3_of_tokens_times_their_ratio_follows_each_token_s_own_kl_and_leaves_out_the_later_ones(world):
    """What TRL's use_bias_correction_kl does."""
    ratio = (world.tokens - world.tokens.detach()).exp()
    found = world.gradient(world.mean((ratio * k3(world.tokens - world.reference_tokens)).sum(-1)))
    # k1 with the same ratio has the same gradient: per prefix, the mean over the next token of ratio * log-ratio
    of_tokens = world.gradient(world.mean((ratio * (world.tokens - world.reference_tokens)).sum(-1)))
    uncorrected = world.in_loss_by_token(k3)

    assert error(found, of_tokens) < 1e-10
    assert error(found, world.in_loss_by_token(k2)) < 1e-10
    assert error(found, world.forward) > 0.05
    assert error(found, world.forward) < error(uncorrected, world.forward)
    assert cosine(found, world.forward) > cosine(uncorrected, world.forward)


def test_controller_moves_beta_by_the_clipped_error():
    controller = AdaptiveKl(beta=0.1, target=2.0)
    betas = []
    for kl in (2.2, 20.0, 0.0, float("nan"), 2.0):
        controller.update(kl)
        betas.append(controller.beta)

    # 1 + 0.1 * 0.1, then 1 + 0.1 * 0.2, then 1 - 0.1 * 0.2, then nothing twice
    assert betas == pytest.approx([0.101, 0.10302, 0.1009596, 0.1009596, 0.1009596])


def test_controller_goes_on_from_its_state():
    controller, other = AdaptiveKl(beta=0.1, target=2.0), AdaptiveKl(beta=0.1, target=2.0)
    controller.update(9.0)
    other.load_state(controller.state())

    assert other == controller


def test_controller_without_a_target_keeps_beta():
    controller = AdaptiveKl(beta=0.1)
    controller.update(9.0)

    assert controller == AdaptiveKl(beta=0.1)


def test_controller_refuses_a_beta_that_it_cannot_move():
    with pytest.raises(ValueError, match="beta: 0 cannot be adapted"):
        AdaptiveKl(beta=0, target=1.0)


@pytest.mark.parametrize("beta", [0.02, 5.0])
def test_controller_settles_within_a_tenth_of_the_target(world, beta):
    """The policy is at each step on its way to the optimum of that step's beta, whose KL is known by enumeration."""
    rewards = reward_of_each(lambda text: text.count("a") - 0.5 * text.count("b"))
    reference = world.reference_law
    controller, logits = AdaptiveKl(beta, target=0.8), reference.log()
    kls = []
    for _ in range(600):
        logits = 0.9 * logits + 0.1 * optimum(reference, rewards, controller.beta).log()
        law = logits.softmax(0)
        kls.append(float((law * (law / reference).log()).sum()))
        controller.update(kls[-1])

    assert all(kl == pytest.approx(0.8, rel=0.1) for kl in kls[-200:])
