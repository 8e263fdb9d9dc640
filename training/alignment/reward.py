"""Everything that scores, behind one door: a trained reward model, a judge, a rule, or a combination of these.

A reward is named by one path, and what lies there says what it is:

    member.json      a member that is no trained model: `training.alignment.member_config`
    combiner.json    a combination of rewards: `training.alignment.combiner`
    otherwise        a sequence classifier: `training.alignment.reward_model`

This module loads no model by itself: each kind brings only the packages that it needs.
"""

import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training.alignment.member_config import MemberConfig, RewardModelMember, is_member, read_member
from training.alignment.preferences import PromptedResponses

if TYPE_CHECKING:
    import torch

    from training.alignment.reward_model import RewardModel
    from training.alignment.score_cache import ScoreCache

OVERALL = "overall"
COMBINER = "combiner.json"
CACHE_VARIABLE = "PLUMBLINE_SCORE_CACHE"
MODULES = {
    "judge": "judge",
    "served_judge": "served_judge",
    "implicit": "implicit_reward",
    "length": "rule_rewards",
    "repetition": "rule_rewards",
    "format": "rule_rewards",
    "words": "baselines",
}
"""Which module of training.alignment has `load(config, folder, device, cache)` for a kind of member."""
QUICK = frozenset({"length", "repetition", "format", "words"})
"""Kinds of member that compute a score sooner than it is looked up."""


@dataclass(frozen=True)
class Scored:
    """The scores of one prompt's responses."""

    scores: list[float]
    """(K,), nan where a response could not be scored: missing, and never 0."""
    num_truncated: int = 0
    """How many of these lost something to the maximum length."""
    spread: list[float] | None = None
    """(K,) deviation between the members of a combiner."""


class Reward(Protocol):
    """Scores responses to prompts."""

    @property
    def digest(self) -> str:
        """64 hex digits: everything that a score depends on besides prompt and response."""

    @property
    def aspects(self) -> tuple[str, ...]:
        """What it scores; ("overall",) where that is one thing."""

    @property
    def is_listwise(self) -> bool:
        """Whether a response's score depends on the others of its prompt."""

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses, whatever else is scored along with them."""

    def log_odds(self, aspect: str | None = None) -> float:
        """What a unit of score is worth: P(one before other) = sigmoid(log_odds * (score - score'))."""


def load_reward(
    path: str | Path,
    device: "str | torch.device | None" = None,
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    aspect: str | None = None,
    cache: "ScoreCache | None" = None,
) -> Reward:
    """The reward at a path, or a sequence classifier by its Hugging Face id.

    Args:
        device: a GPU where there is one.
        max_length: of a trained model: tokens of prompt and response; as it was trained where nothing is told.
        max_tokens: of a trained model: in one forward pass.
        aspect: whose head of a trained model to use; that of "overall" where nothing is told.
        cache: of scores, so that none is computed twice.

    Raises:
        ConfigError: what lies there is no reward, or its description is wrong.
        OSError: there is nothing.
    """
    folder = Path(path)
    if is_member(folder):
        member = read_member(folder)
        if not isinstance(member, RewardModelMember):
            return _cached(_load_member(member, folder, device, cache), None if member.kind in QUICK else cache)
        path, max_length, aspect = placed(folder, member.model), member.max_length or max_length, member.aspect
        return _cached(OneAspect(_load_model(path, device, max_length, max_tokens, aspect), aspect), cache)
    elif (folder / COMBINER).is_file():
        return importlib.import_module("training.alignment.combiner").Combiner.load(folder, device, cache=cache)
    return _cached(_load_model(path, device, max_length, max_tokens, aspect), cache)


@dataclass(frozen=True)
class OneAspect:
    """One head of a trained model as a reward of its own, whichever aspect it is asked for."""

    model: "RewardModel"
    aspect: str

    is_listwise = False

    @property
    def digest(self) -> str:
        return self.model.digest

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.aspect,)

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        return self.model.score_prompts(prompts)

    def log_odds(self, aspect: str | None = None) -> float:
        return self.model.log_odds()


def uncached(reward: Reward) -> Any:
    """What a cache stands before; a reward without one, itself."""
    return getattr(reward, "reward", reward)


def as_json(scores: Sequence[float]) -> list[float | None]:
    """Scores as JSON takes them: null where there is none."""
    return [score if math.isfinite(score) else None for score in scores]


def told_by(reward: Reward) -> dict[str, Any]:
    """What a judge tells of its work so far, in this process: nothing where there is nothing to tell.

    Returns:
        "unanswered", how many questions for which reason; "cost" and "num_requests" of a server; "position_bias" of
        pairs that were seen in both orders, in logits.
    """
    judge: Any = uncached(reward)
    found: dict[str, Any] = {}
    if failures := getattr(judge, "failures", None):
        found["unanswered"] = dict(failures)
    if usage := getattr(judge, "usage", None):
        found |= {"cost": usage.cost, "num_requests": usage.num_requests}
    if reward.is_listwise and (judging := getattr(judge, "judging", None)):
        found["position_bias"] = judging.bias.as_dict()
    return found


def score_cache() -> "ScoreCache | None":
    """The cache that the environment names, if it names one."""
    from training.alignment.score_cache import ScoreCache  # noqa: PLC0415 -- it knows rewards

    path = os.environ.get(CACHE_VARIABLE)
    return ScoreCache(Path(path)) if path else None


def _load_model(path: Any, device: Any, max_length: Any, max_tokens: int | None, aspect: str | None) -> "RewardModel":
    from training.alignment.reward_model import MAX_TOKENS, RewardModel  # noqa: PLC0415 -- torch, where it is needed

    return RewardModel.load(path, device, max_length, max_tokens or MAX_TOKENS, aspect=aspect)


def _load_member(member: MemberConfig, folder: Path, device: Any, cache: "ScoreCache | None") -> Reward:
    module = importlib.import_module(f"training.alignment.{MODULES[member.kind]}")
    found: Reward = module.load(member, folder, device, cache)
    return found


def _cached(reward: Reward, cache: "ScoreCache | None") -> Reward:
    """A pairwise judge keeps its own pairs; everything else is kept by response."""
    from training.alignment.score_cache import Cached  # noqa: PLC0415 -- as above

    return reward if cache is None or reward.is_listwise else Cached(reward, cache)


def placed(folder: Path, name: str) -> str:
    """A path that a file in `folder` names: relative to it, where there is such a folder, else a Hugging Face id."""
    return str((folder / name).resolve()) if (folder / name).is_dir() else name


def named(path: str, folder: Path) -> str:
    """How a file in `folder` names a path, so that both can be moved together; a Hugging Face id by itself."""
    return os.path.relpath(Path(path).resolve(), folder.resolve()) if Path(path).is_dir() else path
