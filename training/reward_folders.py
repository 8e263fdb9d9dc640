"""What lies in a reward's folder, as far as the web and worker processes need to know: descriptions, never weights."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

from training.alignment.config import ConfigError, RunConfig, split_names
from training.alignment.member_config import MEMBER, ServedJudgeMember, read_member

MODEL, ADAPTER, COMBINER = "config.json", "adapter_config.json", "combiner.json"
REWARD_FIELDS = (
    *("reward_model", "held_out_reward_model", "other_reward_model", "reward_models", "members", "incumbent"),
    "member",
)  # of configurations: they name one reward, or several separated by commas


def is_judge_key(name: str) -> bool:
    """Whether an environment variable may be sent to a judge's server: whoever runs Plumbline says which, since
    whoever registers a judge says where its server is."""
    return name in settings.JUDGE_KEYS


def rewards_of(config: RunConfig) -> list[str]:
    """All rewards that a run's configuration names."""
    named = (str(getattr(config, name, "")) for name in REWARD_FIELDS)
    return [one for value in named for one in split_names(value)]


def key_variables(rewards: Iterable[str], folder: Path) -> set[str]:
    """Environment variables that judges among these rewards, and among what those combine, take their keys from.

    Args:
        folder: what paths are relative to.
    """
    members = (_described(path) for path in _with_parts(rewards, folder))
    names = {member.key_variable for member in members if isinstance(member, ServedJudgeMember)}
    return {name for name in names if is_judge_key(name)}


def parts_of(folder: Path) -> list[str]:
    """What the combiner in a folder combines; nothing where there is none."""
    try:
        told = json.loads((folder / COMBINER).read_text(encoding="utf-8"))
        return [_joined(folder, str(member["path"])) for member in told["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _with_parts(rewards: Iterable[str], folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    left = [_joined(folder, reward) for reward in rewards]
    while left:
        reward = left.pop()
        if reward not in seen:
            seen.add(reward)
            yield Path(reward)
            left += parts_of(Path(reward))


def _described(folder: Path) -> Any:
    """The member in a folder; nothing where there is none, or none that can be read: the trainer says why."""
    try:
        return read_member(folder) if os.path.isfile(folder / MEMBER) else None
    except (ConfigError, OSError):
        return None


def _joined(folder: Path, name: str) -> str:
    return os.path.normpath(folder / name)
