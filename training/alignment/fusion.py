"""The fusion network: members' scores of a response -> one score, by weights that are learned from human judgments.

    score = sum_k w_k z_k,    w = softmax(b + V x / sqrt(D))

z (M,) are the members' standardised scores, and x (D,) are the standardised features of the prompt: different prompts
can trust different members. The judgments' loss is that of reward models, of `log_odds` times the score.

**The gate sees the prompt, never the response**, and weights are positive and sum to one: a policy that is trained on
the score cannot choose who judges it, and a response that a member likes better never scores lower for it. Where it
need not be monotone, the score has one more part, a z / M less c times the members' spread, of either sign: it uses a
member that is mostly wrong, and learns what disagreement should cost; but a response can gain by what is worse.

**It begins as the mean and is pulled towards it.** With b, V, a and c at 0 it is the mean, and pull / 2 times their
squares is a loss in nats beside the sum of the judgments'. The pull is the one that predicts judgments on left-out
prompts best, in folds, and unless some pull does so better than the mean by more than chance the mean it is. Weakening
the pull step by step does what early stopping does by its number of steps, but has one answer, whatever the optimiser
does on the way, and whatever the order of the members.

`log_odds` is fitted to what networks said of prompts that were left out: of its own it would be too sure.

The gate is linear, as judgments are few: in a world of experts like the tests', one with a hidden layer of 16 units
learned from 1,000 judgments what this one learns from 300. Everything is in double precision, which costs nothing here,
so a score does not depend on its batch.

The judgments must be on prompts that no member was trained on: what a member has learned by heart it seems to know.

Sources: H. Wang et al., "Interpretable preferences via multi-objective reward modeling and mixture-of-experts", 2024,
for the gate that sees the prompt only; L. Breiman, "Stacked regressions", 1996, for fitting on what was left out.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from training.alignment import ensemble
from training.alignment.ensemble import Floats, Ints, JudgedScores
from training.alignment.losses import ranking_loss

CONFIG, WEIGHTS = "fusion.json", "fusion.safetensors"
PULLS = tuple(10.0**power for power in np.arange(1.5, -1.1, -0.5))
NUM_FOLDS = 5
MANY = 2000  # prompts: of so many one fold tells what is best, and folds in turn would only take longer
MAX_FEATURE = 5.0  # deviations: a prompt unlike all known ones is gated as the unlikeliest of these
MIN_STRENGTH = 30.0  # of a pull times the number of judgments: folds of few cannot tell what a weaker one does
SCALE_SPREAD = 1.5  # of the prior of log_odds' logarithm about 0: two judgments must not make it infinite
SCALES = (-7.0, 7.0)
GAIN_SPREAD = 0.5  # of the same about the mean's, while fitting: what is learned by heart must not count for being sure
FLAT = 1e-9  # a smaller deviation of a feature is rounding
MAX_ROUNDS = 100  # of k-means
LBFGS = {"maxiter": 500, "ftol": 1e-7, "gtol": 1e-6}


@dataclass(frozen=True)
class FusionConfig:
    """How a fusion network is fitted.

    Attributes:
        has_gate: weights depend on the prompt, where its features are told.
        is_monotone: a member's higher score never lowers the combined one.
        pulls: towards the mean, to choose from; of few judgments, only those with `MIN_STRENGTH`.
        num_folds: of prompts, to choose the pull by.
        caution: standard errors by which a pull must predict better than the mean does, not to be the mean.
        seed: of the folds.

    Raises:
        ValueError: a pull is not above zero, there are fewer than two folds, or the caution is negative.
    """

    has_gate: bool = True
    is_monotone: bool = True
    pulls: tuple[float, ...] = PULLS
    num_folds: int = NUM_FOLDS
    caution: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.pulls or min(self.pulls) <= 0:
            raise ValueError(f"pulls {self.pulls} must be above zero")
        if self.num_folds < 2 or self.caution < 0:
            raise ValueError(f"num_folds {self.num_folds} must be at least 2, and caution {self.caution} not negative")


class FusionNetwork(nn.Module):
    """Combines M members' scores; a new one is their mean.

    Args:
        num_members: M.
        num_features: D, of the prompt; 0 for the same weights everywhere.
        is_monotone: without the part that depends on the spread.

    Raises:
        ValueError: there is no member.
    """

    feature_means: Tensor
    feature_stds: Tensor

    def __init__(self, num_members: int, num_features: int = 0, *, is_monotone: bool = True) -> None:
        super().__init__()
        if num_members < 1 or num_features < 0:
            raise ValueError(f"{num_members} members and {num_features} features: there must be a member")
        self.num_members, self.num_features, self.is_monotone = num_members, num_features, is_monotone
        self.pull = math.inf
        self.log_log_odds = _parameter(())
        self.trust = _parameter((num_members,))
        self.gate = _parameter((num_members, num_features)) if num_features else None
        self.corrections = None if is_monotone else _parameter((num_members,))
        self.doubt = None if is_monotone else _parameter(())
        self.register_buffer("feature_means", torch.zeros(num_features, dtype=torch.float64))
        self.register_buffer("feature_stds", torch.ones(num_features, dtype=torch.float64))

    @property
    def has_gate(self) -> bool:
        return self.gate is not None

    @property
    def log_odds(self) -> float:
        """What a unit of score is worth: P(one before other) = sigmoid(log_odds * (score - score'))."""
        return math.exp(self.log_log_odds.item())

    @property
    def digest(self) -> str:
        """64 hex digits: everything that a score depends on besides members' scores and features."""
        found = hashlib.sha256(json.dumps([self.num_members, self.num_features, self.is_monotone]).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode() + value.numpy().tobytes())
        return found.hexdigest()

    def forward(self, scores: Tensor, features: Tensor | None = None) -> Tensor:
        """(...,) combined scores; nan where all members' are.

        Args:
            scores: (..., M) standardised; nan where missing.
            features: (..., D) of the prompts as they are, or (B, 1, D) for scores (B, K, M).

        Raises:
            ValueError: there are not M members or D features, or a gate is given none.
        """
        if not scores.ndim or scores.shape[-1] != self.num_members:
            raise ValueError(f"scores {tuple(scores.shape)} must be (..., {self.num_members})")
        scores = scores.double()
        is_known = ~scores.isnan()
        scores = scores.where(is_known, 0)
        found = (self._shares(is_known, features) * scores).sum(-1)
        if self.corrections is not None and self.doubt is not None:
            found = found + scores @ self.corrections / self.num_members - self.doubt * _spread(scores, is_known)
        return found.where(is_known.any(-1), math.nan)

    def weights(self, features: Tensor | None = None) -> Tensor:
        """(..., M) how much each member counts for prompts of features (..., D), where none is missing."""
        shape = (self.num_members,) if features is None else (*features.shape[:-1], self.num_members)
        return self._shares(torch.ones(shape, dtype=torch.bool), features)

    @torch.no_grad()
    def score(self, scores: ArrayLike, features: ArrayLike | None = None) -> Floats:
        """What `forward` gives, of arrays.

        Raises:
            ValueError: as there, or a score is infinite, or a feature not finite.
        """
        given = np.asarray(scores, dtype=np.float64)
        prompts = None if features is None else np.asarray(features, dtype=np.float64)
        if np.isinf(given).any():
            raise ValueError("a score is infinite; one that is missing must be nan")
        if prompts is not None and not np.isfinite(prompts).all():
            raise ValueError("features must be finite")
        found: Floats = self(torch.tensor(given), None if prompts is None else torch.tensor(prompts)).numpy()
        return found

    def penalty(self) -> Tensor:
        """How far it is from the mean: half the sum of squares of all that makes the difference."""
        parts = (self.trust - self.trust.mean(), self.gate, self.corrections, self.doubt)
        return sum(((part**2).sum() for part in parts if part is not None), start=self.trust.new_zeros(())) / 2

    def _shares(self, is_known: Tensor, features: Tensor | None) -> Tensor:
        """(..., M) weights that sum to one over what is known (..., M); where nothing is, over all."""
        logits: Tensor = self.trust
        if self.gate is not None:
            if features is None or features.shape[-1] != self.num_features:
                shape = None if features is None else tuple(features.shape)
                raise ValueError(f"features {shape} must be (..., {self.num_features})")
            own = (features.double() - self.feature_means) / self.feature_stds
            logits = logits + own.clamp(-MAX_FEATURE, MAX_FEATURE) @ self.gate.T / math.sqrt(self.num_features)
        is_counted = is_known | ~is_known.any(-1, keepdim=True)
        return logits.expand(is_counted.shape).masked_fill(~is_counted, -math.inf).softmax(-1)


def fit_fusion(judged: JudgedScores, config: FusionConfig = FusionConfig()) -> FusionNetwork:
    """The likeliest network under the best pull towards the mean; see the module.

    Args:
        judged: standardised scores, on prompts that no member was trained on. A member that is constant, or missing
            throughout, does no harm.

    Raises:
        ValueError: no ranking puts one response above another that has a score too.
        RuntimeError: it did not converge.
    """
    data = _Data.of(judged)
    if not data.is_decided:
        raise ValueError("no ranking puts one response above another")
    chosen, log_odds = _choose(judged, config)
    *_, (_, network) = _fits(judged, data, config, chosen)
    with torch.no_grad():
        network.log_log_odds.fill_(log_odds)
    network.pull = chosen.pull
    return network


def save_fusion(network: FusionNetwork, folder: Path) -> None:
    """Write fusion.json and fusion.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "num_members": network.num_members,
        "num_features": network.num_features,
        "is_monotone": network.is_monotone,
        "log_odds": network.log_odds,
        "pull": network.pull if math.isfinite(network.pull) else None,
    }
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)


def load_fusion(folder: Path) -> FusionNetwork:
    """The network that `save_fusion` wrote.

    Raises:
        OSError: there is none.
    """
    told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    network = FusionNetwork(told["num_members"], told["num_features"], is_monotone=told["is_monotone"])
    network.load_state_dict(load_file(folder / WEIGHTS))
    network.pull = math.inf if told["pull"] is None else told["pull"]
    return network


def gate_groups(
    network: FusionNetwork,
    features: Floats,
    texts: Sequence[str],
    names: Sequence[str],
    *,
    max_groups: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Whom the gate trusts on which prompts, for a report: groups of prompts that it treats alike, the largest first.

    They are k-means clusters of the weights, not of the features: prompts that trust the same members belong together
    here, whatever they are about.

    Args:
        features: (N, D) of the prompts; equal ones are one prompt.
        texts: (N,) the prompts.
        names: (M,) of the members.

    Returns:
        For each group {"prompts": how many, "example": the text of the one nearest to its mean, "weights": mean weight
        by name}.
    """
    _, places = np.unique(features, axis=0, return_index=True)
    with torch.no_grad():
        weights: Floats = network.weights(torch.tensor(features[np.sort(places)])).numpy()
    kept = [texts[place] for place in np.sort(places)]
    group_of = _k_means(weights, max_groups, np.random.default_rng(seed))
    found = []
    for group in range(group_of.max() + 1):
        inside = np.flatnonzero(group_of == group)
        centre = weights[inside].mean(0)
        nearest = inside[((weights[inside] - centre) ** 2).sum(1).argmin()]
        shares = dict(zip(names, centre.tolist(), strict=True))
        found.append({"prompts": len(inside), "example": kept[nearest], "weights": shares})
    return sorted(found, key=lambda one: -one["prompts"])


class _Data(NamedTuple):
    """Rankings as tensors."""

    scores: Tensor
    features: Tensor | None
    """(B, 1, D)"""
    groups: Tensor
    """(B, K) -1 also where no member has a score: nothing can be learned about such a response."""
    weights: Tensor

    @classmethod
    def of(cls, judged: JudgedScores) -> Self:
        scores = torch.from_numpy(np.ascontiguousarray(judged.scores))
        groups = torch.from_numpy(np.asarray(judged.groups, dtype=np.int64))
        features = None if judged.features is None else torch.from_numpy(judged.features)[:, None]
        return cls(scores, features, groups.masked_fill(scores.isnan().all(-1), -1), torch.from_numpy(judged.weights))

    @property
    def is_decided(self) -> bool:
        best = self.groups.masked_fill(self.groups < 0, self.groups.shape[1]).amin(1)
        return bool((self.groups.amax(1) > best).any())

    def combined(self, network: FusionNetwork) -> Tensor:
        """(B, K) scores; 0 for what does not count."""
        return network(self.scores, self.features).where(self.groups >= 0, 0)

    def losses(self, combined: Tensor, log_log_odds: Tensor) -> Tensor:
        """(B,) nats per choice of scores (B, K), times the ranking's weight."""
        return self.weights * ranking_loss(log_log_odds.exp() * combined, self.groups)


class _Choice(NamedTuple):
    """How far to go from the mean."""

    pull: float = math.inf
    has_gate: bool = False


def _choose(judged: JudgedScores, config: FusionConfig) -> tuple[_Choice, float]:
    """The mean, then weights, then a gate: each if it predicts left-out prompts better than the one before for sure.

    Each is taken at the scale at which it predicts them best, and the logarithm of the chosen one's is told: scores of
    what a network was fitted to are more sure than they should be.
    """
    prompts, places = np.unique(judged.prompts, return_inverse=True)
    if len(prompts) < 2:
        return _Choice(), _best_scale(_Data.of(judged), torch.from_numpy(ensemble.mean(judged.scores)).nan_to_num(0))[0]
    num_folds = min(config.num_folds, len(prompts))
    folds = (np.random.default_rng([config.seed, len(prompts)]).permutation(len(prompts)) % num_folds)[places]
    if len(prompts) >= MANY:
        folds = np.where(folds == 0, 0, -1)
    data, held_out = _Data.of(judged.select(folds >= 0)), np.unique(places[folds >= 0], return_inverse=True)[1]
    scales: dict[_Choice, float] = {}
    losses: dict[_Choice, Floats] = {}
    for choice, combined in _held_out_scores(judged, folds, config).items():
        scales[choice], losses[choice] = _best_scale(data, combined[folds >= 0])
    chosen = _Choice()
    for has_gate in (False, True):
        rivals = [choice for choice in losses if choice.has_gate == has_gate]
        best = min(rivals, key=lambda choice: losses[choice].sum(), default=chosen)
        gains = np.bincount(held_out, losses[chosen] - losses[best])
        if gains.sum() > config.caution * math.sqrt(len(gains)) * gains.std():
            chosen = best
    return chosen, scales[chosen]


def _weakest_pull(judged: JudgedScores, config: FusionConfig, has_gate: bool) -> float:
    """Of those that so few prompts, or without a gate so few rankings, do not rule out."""
    number = len(np.unique(judged.prompts)) if has_gate else len(judged)
    return min((pull for pull in config.pulls if pull * number >= MIN_STRENGTH), default=max(config.pulls))


def _held_out_scores(judged: JudgedScores, folds: Ints, config: FusionConfig) -> dict[_Choice, Tensor]:
    """(B, K) each ranking's scores by networks fitted without its fold; 0 in fold -1, which is never left out."""
    found: dict[_Choice, Tensor] = {}
    for fold in range(folds.max() + 1):
        fitted, held_out = _Data.of(judged.select(folds != fold)), _Data.of(judged.select(folds == fold))
        is_held_out = torch.from_numpy(folds == fold)
        for has_gate in {False, config.has_gate and judged.features is not None}:
            last = _Choice(_weakest_pull(judged, config, has_gate), has_gate)
            for choice, network in _fits(judged, fitted, config, last):
                scores = found.setdefault(choice, torch.zeros(judged.groups.shape, dtype=torch.float64))
                with torch.no_grad():
                    scores[is_held_out] = held_out.combined(network)
    return found


def _fits(
    judged: JudgedScores, data: _Data, config: FusionConfig, last: _Choice
) -> Iterator[tuple[_Choice, FusionNetwork]]:
    """One network, from the mean by ever weaker pulls: each fit starts where the one before has ended."""
    features = judged.features if last.has_gate else None
    num_features = 0 if features is None else features.shape[1]
    network = FusionNetwork(judged.num_members, num_features, is_monotone=config.is_monotone)
    if features is not None:
        stds = features.std(0)
        network.feature_means.copy_(torch.from_numpy(features.mean(0)))
        network.feature_stds.copy_(torch.from_numpy(np.where(stds > FLAT, stds, 1.0)))
    with torch.no_grad():
        usual, _ = _best_scale(data, data.combined(network))
        network.log_log_odds.fill_(usual)
    yield _Choice(), network
    for pull in sorted(config.pulls, reverse=True):
        if pull >= last.pull:
            _fit(network, data, pull, usual)
            yield _Choice(pull, last.has_gate), network


def _best_scale(data: _Data, combined: Tensor) -> tuple[float, Floats]:
    """The logarithm of the log-odds that a unit of score is likeliest to be worth, and (B,) the losses at it."""

    def losses(log_log_odds: float) -> Tensor:
        return data.losses(combined, torch.tensor(log_log_odds, dtype=torch.float64))

    def objective(log_log_odds: float) -> float:
        return losses(log_log_odds).sum().item() + (log_log_odds / SCALE_SPREAD) ** 2 / 2

    found = minimize_scalar(objective, bounds=SCALES, method="bounded", options={"xatol": 1e-6})
    return float(found.x), losses(float(found.x)).numpy()


def _fit(network: FusionNetwork, data: _Data, pull: float, usual: float) -> None:
    """Take the network to the optimum from where it is; its scale stays near the mean's, `usual`."""
    parameters = list(network.parameters())
    total = max(float(data.weights.sum()), 1.0)

    def objective(values: Floats) -> tuple[float, Floats]:
        vector_to_parameters(torch.tensor(values), parameters)
        loss = data.losses(data.combined(network), network.log_log_odds).sum() + pull * network.penalty()
        loss = (loss + ((network.log_log_odds - usual) / GAIN_SPREAD) ** 2 / 2) / total
        gradients = torch.autograd.grad(loss, parameters)
        return loss.item(), parameters_to_vector(gradients).numpy()

    start = parameters_to_vector(parameters).detach().numpy()
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=LBFGS)
    if not found.success:
        raise RuntimeError(f"the fusion network did not converge: {found.message}")
    vector_to_parameters(torch.tensor(found.x), parameters)


def _parameter(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


def _spread(scores: Tensor, is_known: Tensor) -> Tensor:
    """(...,) population deviation between the members (..., M) that are known, with a gradient where there is none."""
    count = is_known.sum(-1, keepdim=True).clamp(min=1)
    differences = (scores - scores.sum(-1, keepdim=True) / count).where(is_known, 0)
    variance = (differences**2).sum(-1) / count[..., 0]
    return variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()


def _k_means(points: Floats, max_groups: int, rng: np.random.Generator) -> Ints:
    """(N,) the cluster of each point (N, M), from 0; fewer than `max_groups` where fewer points differ.

    Source of the start: D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """
    centres = points[[0]]
    distances = ((points[:, None] - centres) ** 2).sum(2)
    while len(centres) < max_groups and (nearest := distances.min(1)).max() > FLAT:
        centres = np.vstack([centres, points[rng.choice(len(points), p=nearest / nearest.sum())]])
        distances = ((points[:, None] - centres) ** 2).sum(2)
    group_of: Ints = distances.argmin(1)
    for _ in range(MAX_ROUNDS):
        centres = np.stack([points[group_of == group].mean(0) for group in np.unique(group_of)])
        closest = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
        if np.array_equal(closest, group_of):
            break
        group_of = closest
    return np.unique(group_of, return_inverse=True)[1]
