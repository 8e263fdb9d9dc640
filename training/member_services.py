"""Writes of the registry of rewards: members are made, tried and retired; what one is never changes."""

import hashlib
import json
import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import IntegrityError, transaction

from annotate.models import Project
from training import references, services
from training.alignment.config import ConfigError
from training.alignment.member_config import (
    MemberConfig,
    ServedJudgeMember,
    member_from_dict,
    member_to_dict,
    write_member,
)
from training.models import Member, TrainingRun
from training.references import POLICY, WEIGHTS
from training.reward_folders import is_judge_key

User = AbstractBaseUser | AnonymousUser | None
MODELS = {
    Member.Kind.REWARD_MODEL: {"model": WEIGHTS},
    Member.Kind.JUDGE: {"model": POLICY},
    Member.Kind.IMPLICIT: {"policy": POLICY, "reference_policy": POLICY},
}
"""Fields of a member that name a model, by its kind."""
JUDGES = (Member.Kind.JUDGE, Member.Kind.SERVED_JUDGE)
MADE_BY_FORMS = tuple(kind for kind in Member.Kind if kind != Member.Kind.WORDS)
"""The weights of words are trained; no form holds them."""
NUM_PREVIEWED = 3


def create_member(
    *, kind: str, name: str, values: dict[str, Any], project: Project | None = None, user: Any = None
) -> Member:
    """Register a reward; asked for the same again, give the one there is.

    Its folder is written before its row, so that every row has its folder.

    Raises:
        ConfigError: the name is taken or unfit, or a value that the member cannot work with; the message names the
            field.
    """
    name = name.strip()
    _check_name(name)
    config = member_config(kind=kind, values=values, user=user)
    try:
        own = {"name": name, "project": project, "digest": place_member(config).name}
        with transaction.atomic():
            return Member.objects.create(
                **own, kind=kind, aspect=config.aspect, config=_fields(config), created_by=user
            )
    except IntegrityError as error:
        if there := Member.objects.active().filter(**own).first():  # the button was pressed twice
            return there
        raise ConfigError(_name_taken(name, project)) from error
    except OSError as error:
        raise ConfigError(f"name: the member's folder could not be written: {error}") from error


def member_config(*, kind: str, values: dict[str, Any], user: User = None) -> MemberConfig:
    """What a member is told: checked, and every model that it names found.

    Raises:
        ConfigError: a value that the member cannot work with; the message names the field.
    """
    config = member_from_dict({**values, "kind": kind})
    if len(config.aspect) > 100:
        raise ConfigError("aspect: has 1 to 100 characters")
    if isinstance(config, ServedJudgeMember) and not is_judge_key(config.key_variable):
        raise ConfigError(
            "key_variable: is the name of an environment variable that PLUMBLINE_JUDGE_KEYS names; never the key itself"
        )
    models = {
        field: references.resolve_name(field, str(getattr(config, field)).strip(), taken, user)
        for field, taken in MODELS.get(Member.Kind(kind), {}).items()
    }
    return replace(config, **models)


def place_member(config: MemberConfig) -> Path:
    """Write a member's folder, whose name is the digest of what it says; equal members share one."""
    told = json.dumps(member_to_dict(config), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(told.encode()).hexdigest()
    return write_member(Path(settings.MEMBERS_DIR) / digest, config)


def retire_member(*, member: Member, is_active: bool = False) -> None:
    """Offer a member no more, or again; runs that use it keep it, for its folder stays."""
    Member.objects.filter(pk=member.pk).update(is_active=is_active)


def preview_judge(
    *, kind: str, name: str, values: dict[str, Any], project: Project, user: Any = None, key: uuid.UUID | None = None
) -> TrainingRun:
    """Start a small run in which a judge, registered or not, is asked about comparisons of a project.

    The same key again gives the same run, unless the judge or the project is another.

    Raises:
        ConfigError: as `create_member`, or the project has no comparison.
    """
    if not project.comparisons.exists():
        raise ConfigError(f"preview_project: {project} has no comparison yet")
    folder = place_member(member_config(kind=kind, values=values, user=user))
    return services.create_run(
        kind=TrainingRun.Kind.PREVIEW_JUDGE,
        name=f"Preview of {name.strip() or 'a judge'}"[:100],
        values={"member": str(folder), "num_comparisons": NUM_PREVIEWED},
        project=project,
        user=user,
        key=uuid.uuid5(key, f"{folder.name} {project.pk}") if key else None,
    )


def _fields(config: MemberConfig) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in fields(config)}


def _check_name(name: str) -> None:
    if not name or len(name) > 100 or "/" in name or "," in name:
        raise ConfigError("name: has 1 to 100 characters, no slash and no comma among them")


def _name_taken(name: str, project: Project | None) -> str:
    where = f"Project {project} has a member" if project else "There is a member without a project"
    return f"name: {where[0].lower()}{where[1:]} {name} already"
