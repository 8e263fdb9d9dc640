"""One number to optimise out of one or several rewards of a response.

Each reward is put on the scale of the reference policy's responses, which is measured once, before training: the mean
taken off, divided by the deviation, and then clipped. So weights say how much a deviation of one counts against one of
another. What the number is made of:

    weighted      sum_k w_k r_k
    adaptive      the same, with weights that rise for what lags behind: after each step w_k <- w_k exp(-rate g_k),
                  where g_k is by how many deviations the mean of r_k has risen, and the weights keep their sum
    constrained   (1 - m) sum_k w_k r_k + m r_c, where the share m of the constrained reward rises to 1 while its mean
                  is below the floor and falls to 0 while it is above: m <- clip(m + rate (floor - mean r_c), 0, 1)

A share of the whole stands for a Lagrange multiplier m / (1 - m): what is optimised stays on one scale beside the KL,
and a floor out of reach leaves no tower of multipliers to be taken down again. The constrained reward is not clipped
there, for a clip would hide the way to a floor that is far.

Length and a missing end are taken off. A response of which one reward is missing has no number at all: it is nan here,
and takes no part in training.

Sources: S. Sagawa et al., "Distributionally robust neural networks", 2019 (the adaptive weights: exponentiated
gradient on the worst group); T. Moskovitz et al., "Confronting reward model overoptimization with constrained RLHF",
2023 (a multiplier that is adapted, and is bounded).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.alignment.config import ConfigError, RlhfConfig

WEIGHT_RATE = 0.05  # a deviation of lead over the others takes about 5 % off an objective's weight at each step
MULTIPLIER_RATE = 0.05  # a deviation below the floor adds as much to the constrained reward's share at each step

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """What the reference policy's responses are like.

    Attributes:
        means, deviations: one for each of O rewards.
        length: tokens a response, the end included.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    length: float

    @classmethod
    def none(cls, num_objectives: int) -> "Baseline":
        """For a run that asks for nothing that depends on it."""
        return cls((0.0,) * num_objectives, (1.0,) * num_objectives, 1.0)

    @classmethod
    def measure(cls, rewards: ArrayLike, lengths: ArrayLike) -> "Baseline":
        """The baseline of N responses.

        Args:
            rewards: (N, O), nan where one is missing.
            lengths: (N,) tokens.

        Raises:
            ConfigError: a reward is missing everywhere.
        """
        found = np.asarray(rewards, dtype=np.float64)
        if found.ndim != 2:
            raise ValueError(f"rewards: {found.shape} is not (responses, objectives)")
        silent = np.isnan(found).all(axis=0)
        if silent.any():
            raise ConfigError(f"reward_model: objective {int(silent.argmax()) + 1} could score no response")
        deviations = np.nanstd(found, axis=0)
        constant = deviations <= 1e-9 * np.maximum(1.0, np.nanmax(np.abs(found), axis=0))
        return cls(
            means=tuple(np.nanmean(found, axis=0).tolist()),
            deviations=tuple(np.where(constant, 1.0, deviations).tolist()),
            length=float(np.mean(np.asarray(lengths, dtype=np.float64))),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"means": list(self.means), "deviations": list(self.deviations), "length": self.length}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Baseline":
        return cls(tuple(told["means"]), tuple(told["deviations"]), told["length"])


class Objectives:
    """The rewards of a run as one, and what of it changes from step to step.

    Args:
        config: which rewards count for how much.
        baseline: of the reference policy.
    """

    def __init__(self, config: RlhfConfig, baseline: Baseline) -> None:
        self.config, self.baseline = config, baseline
        self.first_weights: Floats = np.asarray(config.objective_weights, dtype=np.float64)
        self.weights = self.first_weights.copy()
        """(O,) of now."""
        self.multiplier = 0.0
        """The share of the constrained reward, of now: from 0 to 1."""

    def combine(self, rewards: ArrayLike, lengths: ArrayLike, is_ended: ArrayLike) -> Floats:
        """(N,) what is optimised, before the KL; nan where a reward is missing.

        Args:
            rewards: (N, O), nan where one is missing.
            lengths: (N,) tokens of each response, the end included.
            is_ended: (N,) whether the response ended by itself.

        Raises:
            ValueError: the shapes do not go together.
        """
        scaled = self.scaled(rewards)
        lengths, is_ended = np.asarray(lengths, dtype=np.float64), np.asarray(is_ended, dtype=bool)
        if not scaled.shape[:1] == lengths.shape == is_ended.shape:
            raise ValueError(f"rewards {scaled.shape}, lengths {lengths.shape} and is_ended {is_ended.shape} differ")
        clip = self.config.reward_clip or np.inf
        whole = np.clip(scaled, -clip, clip) @ self.weights
        if self.config.objective == "constrained":
            whole = (1 - self.multiplier) * whole + self.multiplier * scaled[:, self.config.constraint - 1]
        excess = np.maximum(0.0, lengths / self.baseline.length - 1) if self.config.length_penalty else 0.0
        found: Floats = (
            whole
            - self.config.length_penalty * excess
            - self.config.end_penalty * ~is_ended
            + np.where(np.isnan(scaled).any(axis=1), np.nan, 0.0)  # whatever its weight
        )
        return found

    def proxy(self, rewards: ArrayLike) -> Floats:
        """(N,) what the policy is reported to gain: a single reward as it is; of several, the sum by first weights."""
        found = np.asarray(rewards, dtype=np.float64)
        if found.shape[1] == 1:
            return found[:, 0]
        own: Floats = self.scaled(found) @ self.first_weights + np.where(np.isnan(found).any(axis=1), np.nan, 0.0)
        return own

    def scaled(self, rewards: ArrayLike) -> Floats:
        """(N, O) rewards on the scale of the reference policy's responses, where the run normalises."""
        found = np.asarray(rewards, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != len(self.first_weights):
            raise ValueError(f"rewards: {found.shape} is not (responses, {len(self.first_weights)})")
        if not self.config.normalise:
            return found
        normalised: Floats = (found - np.asarray(self.baseline.means)) / np.asarray(self.baseline.deviations)
        return normalised

    def update(self, rewards: ArrayLike) -> None:
        """Take in the rewards of one step's responses of all processes, (N, O), nan where one is missing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of none
            means = np.nanmean(np.asarray(rewards, dtype=np.float64), axis=0)
        gains = (means - np.asarray(self.baseline.means)) / np.asarray(self.baseline.deviations)
        if self.config.objective == "adaptive" and np.isfinite(gains).all():
            risen = self.weights * np.exp(-WEIGHT_RATE * gains)
            self.weights = risen * self.first_weights.sum() / risen.sum()
        place = self.config.constraint - 1
        if self.config.objective == "constrained" and math.isfinite(means[place]):
            shortfall = (self.config.floor - means[place]) / self.baseline.deviations[place]
            self.multiplier = min(1.0, max(0.0, self.multiplier + MULTIPLIER_RATE * float(shortfall)))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what changes, and the baseline, which must not."""
        return {
            "weights": self.weights.tolist(),
            "multiplier": self.multiplier,
            "baseline": self.baseline.to_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = np.asarray(state["weights"], dtype=np.float64)
        self.multiplier = state["multiplier"]
        self.baseline = Baseline.from_dict(state["baseline"])
