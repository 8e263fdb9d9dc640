"""Several rewards as one: a combiner scores as a reward model does, wherever one is asked for.

It is a folder with `combiner.json`: the method, its numbers, and the members, each by its path (relative to the folder
where that will do, so that both can be moved together) and by its digest, so that a member that has changed since is
noticed. `arrays.safetensors` beside it holds what is long, and `fusion/` a network. `load_reward(folder)` loads it with
its members. Every score comes with the members' spread, the deviation of their standardised scores.

    members' scores -> standardised on a reference set -> those that are broken left out -> combined -> mean 0,
    deviation 1 on the reference set

`log_odds` says what a unit of the result is worth, so that differences are calibrated probabilities of a judgment.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from training.alignment import ensemble
from training.alignment.bayesian_averaging import posterior_of, stacking_weights
from training.alignment.calibration import fit_temperature
from training.alignment.config import CombineConfig, ConfigError
from training.alignment.encodings import share_encodings
from training.alignment.ensemble import Bools, Floats, JudgedScores, Standardisation
from training.alignment.fusion import FusionConfig, FusionNetwork, fit_fusion, load_fusion, save_fusion
from training.alignment.member_checks import temperatures
from training.alignment.preferences import Messages, PromptedResponses
from training.alignment.prompt_features import PromptFeatures
from training.alignment.reward import COMBINER, OVERALL, Reward, Scored, load_reward, named, placed
from training.alignment.run_dir import file_digest, write_json
from training.alignment.score_cache import ScoreCache

ARRAYS, FUSION = "arrays.safetensors", "fusion"
NUM_QUANTILES = 1001  # of each member's scores on the reference set, for its ranks


@dataclass(frozen=True, eq=False)
class Recipe:
    """How M members' scores of a response become one."""

    method: str
    standardisation: Standardisation
    is_used: Bools
    """(M,) false for a member that is broken."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's own numbers, as JSON takes them: a penalty, a floor."""
    weights: Floats | None = None
    """(M,) of the methods that weigh, of standardised scores; 0 for a member that is not used."""
    reference: Floats | None = None
    """(N, M) standardised scores of the reference set in ascending order, for ranks."""
    network: FusionNetwork | None = None
    nats: float | None = None
    """Of what is learned: in a unit of what it combines to, before that is normalised."""
    mean: float = 0.0
    std: float = 1.0
    log_odds: float = 1.0

    def combine(self, scores: Floats, features: Floats | None = None) -> Floats:
        """(N, M) members' own scores, nan where missing, and (N, D) features of the prompts -> (N,) scores."""
        return (self._raw(self.standardisation.apply(scores), features) - self.mean) / self.std

    def spread(self, scores: Floats) -> Floats:
        """(N, M) -> (N,) the deviation between members."""
        return ensemble.spread(self.standardisation.apply(scores)[:, self.is_used])

    def normalised(self, reference: Floats, features: Floats | None, judged: JudgedScores) -> Self:
        """The same with mean 0 and deviation 1 on a reference set, and calibrated on judgments.

        What was learned from these judgments is too sure of them: it keeps the scale that it learned for others.

        Args:
            reference: (N, M) members' own scores of the reference set's responses.
            features: (N, D) of their prompts.
            judged: standardised scores.
        """
        values = self._raw(self.standardisation.apply(reference), features)
        std = float(np.nanstd(values))
        found = replace(self, mean=float(np.nanmean(values)), std=std if std > 0 else 1.0)
        if self.nats is not None:
            return replace(found, log_odds=self.nats * found.std)
        margins, weights = margins_of(found.judge(judged), judged)
        is_told = bool(np.any(margins[weights > 0]))
        return replace(found, log_odds=1 / fit_temperature(margins, weights) if is_told else 1.0)

    def judge(self, judged: JudgedScores) -> Floats:
        """(B, K) scores of the responses of rankings whose members' scores are standardised."""
        num, most, members = judged.scores.shape
        features = None if judged.features is None else np.repeat(judged.features, most, axis=0)
        raw = self._raw(judged.scores.reshape(num * most, members), features)
        return ((raw - self.mean) / self.std).reshape(num, most)

    def _raw(self, standardised: Floats, features: Floats | None) -> Floats:
        """(N, M) -> (N,) combined, with a mean and a deviation of its own."""
        scores, used = standardised[:, self.is_used], self.is_used
        if self.network is not None:
            return self.network.score(scores, features)
        if self.reference is not None:
            return ensemble.rank_aggregate(scores, self.reference[:, used])
        if self.weights is not None:
            weighted = ensemble.chebyshev if self.method == "chebyshev" else ensemble.aspect_weighted
            return weighted(scores, self.weights[used])
        if self.method == "constrained":
            place = self.settings["constraint"]
            objective = ensemble.mean(standardised[:, used & (np.arange(len(used)) != place)])
            required = standardised[:, place]
            return ensemble.constrained(objective, required, self.settings["floor"], self.settings["slope"])
        if self.method == "uncertainty_weighted":
            return ensemble.uncertainty_weighted(scores, self.settings["penalty"])
        return {"mean": ensemble.mean, "median": ensemble.median, "worst_case": ensemble.worst_case}[self.method](
            scores
        )


def margins_of(scores: Floats, judged: JudgedScores) -> tuple[Floats, Floats]:
    """(N,) the better response's score less the worse one's, over ordered pairs that have both, and their weights."""
    pairs = replace(judged, scores=scores[:, :, None], features=None).ordered_pairs()
    margins = pairs.margins[:, 0]
    known = np.isfinite(margins)
    return margins[known], pairs.weights[known]


def known(scores: Floats) -> Floats:
    """The same with nan for what is not finite: a member that overflows has said nothing."""
    return np.where(np.isfinite(scores), scores, np.nan)


@dataclass(frozen=True)
class Unused:
    """A member that takes no part: nothing but its digest is needed of it."""

    digest: str
    aspects: tuple[str, ...] = (OVERALL,)
    is_listwise: bool = False

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        return [Scored([math.nan] * len(one.responses)) for one in prompts]

    def log_odds(self, aspect: str | None = None) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Combiner:
    """A recipe with its members: a `Reward`."""

    recipe: Recipe
    members: tuple[Reward, ...]
    paths: tuple[str, ...]
    aspect: str = OVERALL
    prompt_features: PromptFeatures | None = None

    def __post_init__(self) -> None:
        if len(self.members) != len(self.paths) or len(self.members) != len(self.recipe.is_used):
            raise ValueError(f"{len(self.members)} members, {len(self.paths)} paths, {len(self.recipe.is_used)} used")

    @classmethod
    def load(cls, folder: Path, device: Any = None, *, cache: ScoreCache | None = None) -> Self:
        """The combiner in a folder, with its members.

        Raises:
            ConfigError: combiner.json is not one, or a member has changed since the combiner was fitted.
            OSError: a member is not where it was.
        """
        told = _read(folder)
        recipe = _read_recipe(folder, told)
        paths = tuple(member["path"] for member in told["members"])
        members = tuple(
            share_encodings(
                [load_reward(placed(folder, path), device, aspect=told["aspect"], cache=cache) for path in paths]
            )
        )
        for member, one in zip(members, told["members"], strict=True):
            if member.digest != one["digest"]:
                raise ConfigError(f"{folder}: its member {one['path']} has changed since it was fitted")
        has_features = recipe.network is not None and recipe.network.has_gate
        features = PromptFeatures.load(folder / FUSION, device) if has_features else None
        return cls(recipe, tuple(members), paths, told["aspect"], features)

    def save(self, folder: Path) -> None:
        """Write the folder; members are named, not copied."""
        folder.mkdir(parents=True, exist_ok=True)
        recipe = self.recipe
        arrays = {"reference": recipe.reference} if recipe.reference is not None else {}
        if arrays:
            save_file(arrays, folder / ARRAYS)
        if recipe.network is not None:
            save_fusion(recipe.network, folder / FUSION)
        if self.prompt_features is not None:
            self.prompt_features.save(folder / FUSION)
        members = [
            {"path": named(path, folder), "digest": member.digest}
            for path, member in zip(self.paths, self.members, strict=True)
        ]
        told = {
            "kind": "combiner",
            "method": recipe.method,
            "aspect": self.aspect,
            "members": members,
            "means": recipe.standardisation.means.tolist(),
            "stds": recipe.standardisation.stds.tolist(),
            "is_used": recipe.is_used.tolist(),
            "settings": dict(recipe.settings),
            "weights": None if recipe.weights is None else recipe.weights.tolist(),
            "mean": recipe.mean,
            "std": recipe.std,
            "log_odds": recipe.log_odds,
            "files": {str(path.relative_to(folder)): file_digest(path) for path in _files(folder)},
        }
        write_json(folder / COMBINER, told)

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.aspect,)

    @property
    def is_listwise(self) -> bool:
        return any(member.is_listwise for member in self.members)

    @cached_property
    def digest(self) -> str:
        recipe = self.recipe
        found = hashlib.sha256()
        told = [recipe.method, dict(recipe.settings), recipe.mean, recipe.std, [one.digest for one in self.members]]
        found.update(json.dumps(told, sort_keys=True).encode())
        numbers = (recipe.standardisation.means, recipe.standardisation.stds, recipe.is_used, recipe.weights)
        for array in (*numbers, recipe.reference):
            found.update(b"none" if array is None else f"{array.shape}".encode() + array.tobytes())
        if recipe.network is not None:
            features = self.prompt_features.digest if self.prompt_features else ""
            found.update(f"{recipe.network.digest} {features}".encode())
        return found.hexdigest()

    def log_odds(self, aspect: str | None = None) -> float:
        return self.recipe.log_odds

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """Scores with the members' spread; nan where no member has a score."""
        if not prompts:
            return []
        by_member = [member.score_prompts(prompts, self.aspect) for member in self.members]
        scores = known(np.array([[score for one in scored for score in one.scores] for scored in by_member]).T)
        sizes = [len(one.responses) for one in prompts]
        combined = self.recipe.combine(scores, self._features([one.prompt for one in prompts], sizes))
        ends = np.cumsum(sizes)[:-1]
        return [
            Scored(own.tolist(), max(one.num_truncated for one in scored), spread.tolist())
            for own, spread, *scored in zip(
                np.split(combined, ends), np.split(self.recipe.spread(scores), ends), *by_member, strict=True
            )
        ]

    def _features(self, prompts: Sequence[Messages], sizes: Sequence[int]) -> Floats | None:
        if self.prompt_features is None:
            return None
        return np.repeat(self.prompt_features(prompts), sizes, axis=0)


# Fitting


def fit_recipe(
    method: str,
    judged: JudgedScores,
    standardisation: Standardisation,
    *,
    is_used: Bools,
    reference: Floats,
    config: CombineConfig,
) -> Recipe:
    """How a method combines, learned from judgments; its scale and calibration are still to be set by `normalised`.

    Args:
        judged: standardised scores of the members, on prompts that none of them was trained on.
        is_used: (M,) which members take part.
        reference: (N, M) members' own scores of the reference set.

    Raises:
        ConfigError: `method` needs something that the configuration does not give.
    """
    mine = judged.with_members(is_used)
    learned: dict[str, Any] = {}
    match method:
        case "uncertainty_weighted":
            learned["settings"] = {"penalty": config.penalty}
        case "rank_aggregate":
            learned["reference"] = _quantiles(standardisation.apply(reference))
        case "bayesian_average":
            own = temperatures(mine)
            learned["weights"] = _spread_out(posterior_of(mine, own) / own, is_used)
        case "stacking":
            own = stacking_weights(mine)
            learned |= {"weights": _spread_out(own, is_used), "nats": float(own.sum())}
        case "fusion":
            network = fit_fusion(
                mine if config.has_gate else replace(mine, features=None),
                FusionConfig(has_gate=config.has_gate, is_monotone=config.is_monotone, seed=config.seed),
            )
            learned |= {"network": network, "nats": network.log_odds}
        case "weighted_mean" | "chebyshev":
            weights = np.where(is_used, config.member_weights, 0.0)
            if not weights.any():
                raise ConfigError("weights: all that weigh are broken")
            learned["weights"] = weights
        case "constrained":
            if not is_used[config.constraint - 1] or is_used.sum() < 2:
                raise ConfigError("constraint: that member, or every other one, is broken")
            settings = {"constraint": config.constraint - 1, "floor": config.floor, "slope": config.slope}
            learned["settings"] = settings
    return Recipe(method, standardisation, is_used, **learned)


def _quantiles(scores: Floats) -> Floats:
    """(N, M) -> (Q, M) in ascending order, enough of them to tell ranks to a thousandth."""
    if len(scores) <= NUM_QUANTILES:
        return np.sort(scores, axis=0)
    found: Floats = np.nanquantile(scores, np.linspace(0, 1, NUM_QUANTILES), axis=0)
    return found


def _spread_out(weights: Floats, is_used: Bools) -> Floats:
    found = np.zeros(len(is_used))
    found[is_used] = weights
    return found


# Files


def member_paths(folder: Path, *, is_used: bool = False) -> list[str]:
    """What the combiner in a folder combines: paths and Hugging Face ids, ready to be loaded.

    Args:
        is_used: without those that were found broken.
    """
    told = _read(folder)
    takes_part = told["is_used"] if is_used else [True] * len(told["members"])
    return [placed(folder, one["path"]) for one, wanted in zip(told["members"], takes_part, strict=True) if wanted]


def _read(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / COMBINER).read_text(encoding="utf-8"))
        if told["kind"] != "combiner" or not told["members"]:
            raise ConfigError(f"{folder / COMBINER}: is no combiner")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / COMBINER}: {error}") from error
    for name, digest in told["files"].items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise ConfigError(f"{folder}: its file {name} is missing or damaged")
    found: dict[str, Any] = told
    return found


def _read_recipe(folder: Path, told: dict[str, Any]) -> Recipe:
    arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).exists() else {}
    return Recipe(
        method=told["method"],
        standardisation=Standardisation(np.array(told["means"]), np.array(told["stds"])),
        is_used=np.array(told["is_used"], dtype=bool),
        settings=told["settings"],
        weights=None if told["weights"] is None else np.array(told["weights"]),
        reference=arrays.get("reference"),
        network=load_fusion(folder / FUSION) if told["method"] == "fusion" else None,
        mean=told["mean"],
        std=told["std"],
        log_odds=told["log_odds"],
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMBINER]
