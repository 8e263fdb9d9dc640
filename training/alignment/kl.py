"""Estimates of a policy's KL from its reference policy, where they may stand, and a controller of their weight.

Let l = log(pi(y) / pi_0(y)) for a response y that was sampled from pi. Then

    k1 = l                  mean KL(pi || pi_0), exactly
    k2 = l^2 / 2            close to it while pi is close to pi_0
    k3 = exp(-l) - 1 + l    mean KL(pi || pi_0), exactly, and never negative

As *values* k1 and k3 are unbiased. What counts in training is the gradient, which depends on where the estimate stands:

    k1 taken off the reward                  follows KL(pi || pi_0)
    k2 of the whole response, in the loss    follows KL(pi || pi_0)
    k1 in the loss                           nothing: its gradient is zero on average
    k3 taken off the reward                  follows KL(pi || pi_0) - KL(pi_0 || pi)
    k3 of the whole response, in the loss    follows KL(pi_0 || pi)
    k2 or k3 of each token, in the loss      follows none of them: what a token does to the later ones is left out

TRL multiplies k3 of each token by the token's ratio (`use_bias_correction_kl`), which then follows the KL of each token
from pi's side, at prefixes that are taken as given: the right direction for the token, with the later ones still left
out. tests/training/alignment/test_kl.py holds all this by exact enumeration. So policies here are trained with k1
in the reward, unless something else is asked for.

Sources: J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html; Y. Tang and R. Munos, "On a
few pitfalls in KL divergence gradient estimation for RL", 2025 (2506.09477).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

GAIN = 0.1
LARGEST_ERROR = 0.2


def k1(log_ratio: Tensor) -> Tensor:
    """The log-ratio itself, of any shape, in nats."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half its square."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-l) - 1 + l."""
    return (-log_ratio).expm1() + log_ratio


def response_log_ratio(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """(B,) log(pi(y) / pi_0(y)) of whole responses, the tokens that end them included.

    Args:
        logprobs, reference_logprobs: (B, T) of the tokens, in nats.
        mask: (B, T) 1 or true where there is a token of the response.

    Raises:
        ValueError: the shapes differ.
    """
    if not logprobs.shape == reference_logprobs.shape == mask.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (logprobs, reference_logprobs, mask))
        raise ValueError(f"logprobs, reference_logprobs and mask differ in shape: {shapes}")
    return (logprobs - reference_logprobs).where(mask.bool(), 0.0).sum(-1)  # what is padding may be infinite


@dataclass
class AdaptiveKl:
    """The weight of the KL, and what it is to be after each step.

    beta <- beta * (1 + gain * clip(KL / target - 1, -0.2, 0.2))

    Attributes:
        beta: reward per nat, above zero where there is a target.
        target: the KL of a response wanted, in nats; 0 keeps beta as it is.
        gain: K above.

    Source: D. M. Ziegler et al., "Fine-tuning language models from human preferences", 2019, section 2.2; the clip and
    the gain are theirs.
    """

    beta: float
    target: float = 0.0
    gain: float = GAIN

    def __post_init__(self) -> None:
        if self.target and self.beta <= 0:
            raise ValueError(f"beta: {self.beta} cannot be adapted, for it is multiplied")

    def update(self, kl: float) -> None:
        """Take in the KL of the newest responses, in nats; one that is no number changes nothing."""
        if self.target and math.isfinite(kl):
            error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
            self.beta *= 1 + self.gain * error

    def state(self) -> dict[str, float]:
        """What changes, for a checkpoint."""
        return {"beta": self.beta}

    def load_state(self, state: Mapping[str, float]) -> None:
        self.beta = state["beta"]
