"""What a person writes for a model, a reward or a preference set, and what it stands for.

A field that names a model takes the folder of one, the name of a run that saved one, or a Hugging Face id. A field that
names a reward takes whatever scores: such a model, a registered member by its name, or a combination.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

from annotate.models import Project
from training.alignment.config import CONFIGS, ConfigError, split_names
from training.alignment.member_config import MEMBER
from training.models import Member, MemberQuerySet, PreferenceSet, TrainingRun, TrainingRunQuerySet
from training.reward_folders import ADAPTER, COMBINER, MODEL

User = AbstractBaseUser | AnonymousUser | None
Kind = TrainingRun.Kind

WEIGHT_KINDS = (Kind.REWARD_MODEL, Kind.AVERAGE_WEIGHTS)
REWARD_KINDS = (*WEIGHT_KINDS, Kind.COMBINE)


@dataclass(frozen=True)
class Taken:
    """What a field takes by name, besides folders and Hugging Face ids."""

    kinds: Sequence[TrainingRun.Kind]
    files: Sequence[str] = (MODEL,)
    """One of these is in the folder."""
    has_members: bool = False

    @property
    def what(self) -> str:
        return "reward" if self.has_members else "model"


BACKBONE = Taken(TrainingRun.POLICY_KINDS)
POLICY = Taken(TrainingRun.POLICY_KINDS, files=(MODEL, ADAPTER))
WEIGHTS = Taken(WEIGHT_KINDS)
REWARD = Taken(REWARD_KINDS, files=(MODEL, MEMBER, COMBINER), has_members=True)
JUDGE = Taken((), files=(MEMBER,), has_members=True)
ENCODER = Taken(())
MODEL_FIELDS = {
    "backbone": BACKBONE,
    "policy": POLICY,
    "reference_policy": POLICY,
    "policies": POLICY,
    "reward_model": REWARD,
    "held_out_reward_model": REWARD,
    "other_reward_model": REWARD,
    "incumbent": REWARD,
    "reward_models": REWARD,
    "members": REWARD,
    "models": WEIGHTS,
    "member": JUDGE,
    "prompt_encoder": ENCODER,
}
OPTIONAL_FIELDS = {"held_out_reward_model", "other_reward_model", "incumbent", "prompt_encoder"}
OPTIONAL_FIELDS_OF_KINDS = {
    *((Kind.RLHF, "reference_policy"), (Kind.DPO, "reference_policy")),
    *((Kind.SAMPLE, "reward_model"), (Kind.COMPARE_POLICIES, "reward_model")),
}
ENSEMBLE_FIELDS = {"reward_models", "members", "models", "policies"}
OBJECTIVES = (Kind.RLHF, "reward_model")  # one is enough, but there may be several
MIN_MEMBERS = 2  # one model disagrees with nobody
NEW_TINY = "new:tiny"
HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
MAX_NAMES = 200


def is_optional(kind: str, field: str) -> bool:
    return field in OPTIONAL_FIELDS or (kind, field) in OPTIONAL_FIELDS_OF_KINDS


def names_several(kind: str, field: str) -> bool:
    return field in ENSEMBLE_FIELDS or (kind, field) == OBJECTIVES


def runs_of(user: User) -> TrainingRunQuerySet:
    """All runs at the command line, where nobody is logged in; else what this user may see."""
    return TrainingRun.objects.all() if user is None else TrainingRun.objects.for_user(user)


def members_of(user: User) -> MemberQuerySet:
    """All members at the command line, where nobody is logged in; else what this user may see."""
    return Member.objects.all() if user is None else Member.objects.for_user(user)


def usable_runs(field: str, user: User = None) -> TrainingRunQuerySet:
    """Runs whose model the field takes, newest first."""
    return _usable_runs(MODEL_FIELDS[field], user)


def _usable_runs(taken: Taken, user: User) -> TrainingRunQuerySet:
    return runs_of(user).filter(kind__in=taken.kinds, status=TrainingRun.Status.SUCCEEDED).order_by("-pk")


def usable_names(field: str, user: User = None) -> list[str]:
    """Names that the field takes: of runs, the newest first, then of members."""
    return names_taken(MODEL_FIELDS[field], user)


def names_taken(taken: Taken, user: User = None) -> list[str]:
    names = list(_usable_runs(taken, user).values_list("name", flat=True)[:MAX_NAMES])
    if taken.has_members:
        names += [str(member) for member in members_of(user).active().select_related("project")[:MAX_NAMES]]
    return list(dict.fromkeys(names))


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
    if names_several(kind, field):
        return _resolve_ensemble(kind, field, value, user)
    if (not value and is_optional(kind, field)) or (value == NEW_TINY and (kind, field) == (Kind.SFT, "policy")):
        return value
    return resolve_name(field, value, MODEL_FIELDS[field], user)


def resolve_name(field: str, value: str, taken: Taken, user: User = None) -> str:
    """The folder or Hugging Face id of one model or reward.

    Raises:
        ConfigError: it stands for none that is taken; the message names the field.
    """
    if not value:
        raise ConfigError(f"{field}: name a model")
    found = _folder(field, value, taken) or _registered(field, value, taken, user)
    return found or _saved_by_run(field, value, taken, user) or _hugging_face_id(field, value, taken)


def _resolve_ensemble(kind: str, field: str, value: str, user: User) -> str:
    members = [resolve_name(field, name, MODEL_FIELDS[field], user) for name in split_names(value)]
    is_combiner = field == "reward_models" and any(Path(member, COMBINER).is_file() for member in members)
    is_one_enough = is_combiner or (kind, field) == OBJECTIVES  # a combiner's own members may disagree
    if len(set(members)) < (1 if is_one_enough else MIN_MEMBERS):
        wanted = "a model" if is_one_enough else f"{MIN_MEMBERS} different models or more, separated by commas"
        raise ConfigError(f"{field}: name {wanted}")
    if any("," in member for member in members):
        raise ConfigError(f"{field}: a model's folder has a comma in its path")
    return ", ".join(dict.fromkeys(members))


def _folder(field: str, value: str, taken: Taken) -> str | None:
    folder = os.path.expanduser(value)  # Path raises for an unknown ~name
    if any(os.path.isfile(os.path.join(folder, name)) for name in taken.files):  # false, too, for what is no path
        return str(Path(folder).resolve())
    if value.startswith(("/", ".", "~")):
        raise ConfigError(
            f"{field}: {value} is not the folder of a {taken.what} (there is no {' or '.join(taken.files)} in it)"
        )
    return None


def _registered(field: str, value: str, taken: Taken, user: User) -> str | None:
    """The folder of the member of that name, written as NAME or PROJECT/NAME."""
    if not taken.has_members:
        return None
    project, _, name = value.rpartition("/")
    named = members_of(user).filter(name=name, **({"project__name": project} if project else {}))
    found = list(named.active().select_related("project"))
    if len(found) > 1:
        raise ConfigError(f"{field}: {value!r} stands for several members: {', '.join(map(str, found))}")
    if found:
        return _whole(field, found[0])
    if named.exists() and not _usable_runs(taken, user).filter(name=value).exists():
        raise ConfigError(f"{field}: member {value} has been retired")
    return None


def _whole(field: str, member: Member) -> str:
    if not (member.path / MEMBER).is_file():
        raise ConfigError(f"{field}: the folder of member {member} is missing: {member.path}")
    return str(member.path.resolve())


def _saved_by_run(field: str, value: str, taken: Taken, user: User) -> str | None:
    if run := _usable_runs(taken, user).filter(name=value).first():
        if ADAPTER not in taken.files and (run.model_dir / ADAPTER).is_file():
            raise ConfigError(f"{field}: run {value} has saved an adapter alone; name one that was saved merged")
        return str(run.model_dir.resolve())
    other = runs_of(user).filter(name=value).order_by("-pk").first()
    if other is None:
        return None
    if other.kind not in taken.kinds:
        wanted = " or ".join(kind.label.lower() for kind in taken.kinds) or "one that is taken here"
        raise ConfigError(f"{field}: run {value} is of kind {other.get_kind_display().lower()}, not {wanted}")
    raise ConfigError(f"{field}: run {value} has saved no model; it is {other.status}")


def _hugging_face_id(field: str, value: str, taken: Taken) -> str:
    if MODEL in taken.files and HUGGING_FACE_ID.fullmatch(value) and ".." not in value and "--" not in value:
        return value
    ways = ["neither a folder", *(["a run's name"] if taken.kinds else [])]
    ways += ["a member's name"] if taken.has_members else []
    ways += ["a Hugging Face id"] if MODEL in taken.files else []
    raise ConfigError(f"{field}: {value!r} is {', nor '.join(ways)}")


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
