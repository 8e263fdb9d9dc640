"""What a person writes for a model or a preference set, and what it stands for.

A field that names a model takes the folder of one, the name of a run that saved one, or a Hugging Face id.
"""

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

from annotate.models import Project
from training.alignment.config import CONFIGS, ConfigError, split_names
from training.models import PreferenceSet, TrainingRun, TrainingRunQuerySet

User = AbstractBaseUser | AnonymousUser | None
Kind = TrainingRun.Kind

POLICY_KINDS = (Kind.SFT, Kind.REJECTION_SAMPLING)
REWARD_KINDS = (Kind.REWARD_MODEL,)
MODEL_FIELDS = {
    "backbone": POLICY_KINDS,
    "policy": POLICY_KINDS,
    "reward_model": REWARD_KINDS,
    "held_out_reward_model": REWARD_KINDS,
    "other_reward_model": REWARD_KINDS,
    "reward_models": REWARD_KINDS,
}
OPTIONAL_FIELDS = {"held_out_reward_model", "other_reward_model"}
ENSEMBLE_FIELDS = {"reward_models"}
MIN_MEMBERS = 2  # one model disagrees with nobody
NEW_TINY = "new:tiny"
HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def runs_of(user: User) -> TrainingRunQuerySet:
    """All runs at the command line, where nobody is logged in; else what this user may see."""
    return TrainingRun.objects.all() if user is None else TrainingRun.objects.for_user(user)


def usable_runs(field: str, user: User = None) -> TrainingRunQuerySet:
    """Runs whose model the field takes, newest first."""
    return runs_of(user).filter(kind__in=MODEL_FIELDS[field], status=TrainingRun.Status.SUCCEEDED).order_by("-pk")


def usable_names(field: str, user: User = None) -> list[str]:
    return list(dict.fromkeys(usable_runs(field, user).values_list("name", flat=True)[:200]))


def resolve_models(kind: str, values: dict[str, Any], user: User = None) -> dict[str, Any]:
    """`values` with each model replaced by its folder or Hugging Face id.

    Raises:
        ConfigError: a value names no model that the field takes.
    """
    names = [item.name for item in fields(CONFIGS[kind]) if item.name in MODEL_FIELDS]
    return {**values, **{name: resolve_model(kind, name, values.get(name, ""), user) for name in names}}


def resolve_model(kind: str, field: str, value: Any, user: User = None) -> str:
    """The folder or Hugging Face id that `value` stands for; of an ensemble, those of its members.

    Raises:
        ConfigError: it stands for none that the field takes; the message names the field.
    """
    value = str(value).strip()
    if field in ENSEMBLE_FIELDS:
        return _resolve_members(field, value, user)
    if (not value and field in OPTIONAL_FIELDS) or (value == NEW_TINY and (kind, field) == (Kind.SFT, "policy")):
        return value
    if not value:
        raise ConfigError(f"{field}: name a model")
    return _folder(field, value) or _saved_by_run(field, value, user) or _hugging_face_id(field, value)


def _resolve_members(field: str, value: str, user: User) -> str:
    names = split_names(value)
    members = [
        _folder(field, name) or _saved_by_run(field, name, user) or _hugging_face_id(field, name) for name in names
    ]
    if len(set(members)) < MIN_MEMBERS:
        raise ConfigError(f"{field}: name {MIN_MEMBERS} different models or more, separated by commas")
    if any("," in member for member in members):
        raise ConfigError(f"{field}: a model's folder has a comma in its path")
    return ", ".join(dict.fromkeys(members))


def _folder(field: str, value: str) -> str | None:
    folder = os.path.expanduser(value)  # Path raises for an unknown ~name
    if os.path.isfile(os.path.join(folder, "config.json")):  # false, too, for what is no path
        return str(Path(folder).resolve())
    if value.startswith(("/", ".", "~")):
        raise ConfigError(f"{field}: {value} is not the folder of a model (there is no config.json in it)")
    return None


def _saved_by_run(field: str, value: str, user: User) -> str | None:
    if run := usable_runs(field, user).filter(name=value).first():
        return str(run.model_dir.resolve())
    other = runs_of(user).filter(name=value).order_by("-pk").first()
    if other is None:
        return None
    if other.kind not in MODEL_FIELDS[field]:
        wanted = " or ".join(TrainingRun.Kind(kind).label.lower() for kind in MODEL_FIELDS[field])
        raise ConfigError(f"{field}: run {value} is of kind {other.get_kind_display().lower()}, not {wanted}")
    raise ConfigError(f"{field}: run {value} has saved no model; it is {other.status}")


def _hugging_face_id(field: str, value: str) -> str:
    if not HUGGING_FACE_ID.fullmatch(value) or ".." in value or "--" in value:
        raise ConfigError(f"{field}: {value!r} is neither a folder, nor a run's name, nor a Hugging Face id")
    return value


def resolve_preference_set(value: str) -> PreferenceSet:
    """The preference set written as PROJECT/NAME, or as NAME where only one project has it.

    Raises:
        ConfigError: there is none, or more than one.
    """
    project, _, name = value.rpartition("/")
    found = PreferenceSet.objects.filter(name=name, **({"project__name": project} if project else {}))
    named = found if found else PreferenceSet.objects.all()
    names = ", ".join(str(one) for one in named.select_related("project")[:20])
    if not found:
        raise ConfigError(f"preference_set: there is no {value!r}; there are: {names or 'none'}")
    if len(found) > 1:
        raise ConfigError(f"preference_set: {value!r} stands for several: {names}")
    return found[0]


def resolve_project(name: str) -> Project:
    """The project of that name.

    Raises:
        ConfigError: there is none.
    """
    if found := Project.objects.filter(name=name).first():
        return found
    raise ConfigError(f"project: there is no {name!r}")
