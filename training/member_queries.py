"""Reads for the registry of rewards: all that scores, what it is worth, and what uses it.

The number of queries does not grow with the rows: evaluations and users are looked up by the folders that runs name.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, NamedTuple

from django.urls import reverse

from training import plots, queries, references
from training.alignment.config import split_names
from training.alignment.member_config import MEMBER_CONFIGS
from training.models import Member, Promotion, TrainingRun
from training.plots import Range, Scale, Tick
from training.references import REWARD_KINDS, WEIGHT_KINDS
from training.report_figures import Row, is_number, share_row
from training.report_queries import ACCURACY_HELP
from training.reward_folders import REWARD_FIELDS

Kind = TrainingRun.Kind
SUCCEEDED = TrainingRun.Status.SUCCEEDED
MAX_LISTED = 1000
MAX_LOOKED_AT = 5000  # newest runs that may have evaluated or used a reward
NUM_USES_TOLD = 3
HELD_OUT = "test"
USER_FIELDS = (*REWARD_FIELDS, "models")
USER_KINDS = (
    *(Kind.COMBINE, Kind.AVERAGE_WEIGHTS, Kind.SCORE_COMPARISONS, Kind.SCORE),
    *(Kind.REJECTION_SAMPLING, Kind.RLHF, Kind.DPO, Kind.COMPARE_POLICIES),
)
STATES = {"active": "Active", "retired": "Retired", "all": "Active and retired"}


class Use(NamedTuple):
    """What a reward is used by."""

    text: str
    url: str


class Measured(NamedTuple):
    """Held-out accuracy, and the run that measured it."""

    accuracy: dict[str, Any]
    run: int
    name: str
    basis: str


@dataclass(frozen=True)
class Reward:
    """Something that scores: a registered member, or what a run has saved."""

    name: str
    kind: str
    label: str
    path: str
    url: str
    project: str
    aspect: str
    is_active: bool
    created_at: datetime
    member: Member | None = None
    run: TrainingRun | None = None

    @property
    def can_be_member(self) -> bool:
        return self.run is not None and self.run.kind in WEIGHT_KINDS


@dataclass(frozen=True)
class Entry:
    """A reward as the registry shows it."""

    reward: Reward
    reference: str
    """What a form that asks for a reward takes."""
    accuracy: Row
    measured: Measured | None
    uses: list[Use]
    num_further_uses: int


@dataclass(frozen=True)
class Registry:
    entries: list[Entry]
    ticks: list[Tick] = field(default_factory=list)


def rewards(user: Any, *, kind: str = "", state: str = "active") -> list[Reward]:
    """All that scores and this user may see, the newest first."""
    members = Member.objects.for_user(user).select_related("project")
    if state != "all":
        members = members.filter(is_active=state != "retired")
    runs = TrainingRun.objects.for_user(user).filter(kind__in=REWARD_KINDS, status=SUCCEEDED).select_related("project")
    if state == "retired":
        runs = runs.none()
    if kind:
        members, runs = members.filter(kind=kind), runs.filter(kind=kind)
    found = [_of_member(member) for member in members[:MAX_LISTED]] + [_of_run(run) for run in runs[:MAX_LISTED]]
    return sorted(found, key=lambda reward: reward.created_at, reverse=True)


def _of_member(member: Member) -> Reward:
    return Reward(
        name=member.name,
        kind=member.kind,
        label=member.get_kind_display(),
        path=str(member.path.resolve()),
        url=reverse("admin:training_member_change", args=[member.pk]),
        project=str(member.project or ""),
        aspect=member.aspect,
        is_active=member.is_active,
        created_at=member.created_at,
        member=member,
    )


def _of_run(run: TrainingRun) -> Reward:
    return Reward(
        name=run.name,
        kind=run.kind,
        label=run.get_kind_display(),
        path=str(run.model_dir.resolve()),
        url=reverse("admin:training_trainingrun_change", args=[run.pk]),
        project=str(run.project or ""),
        aspect=str(run.config.get("aspect", "")),
        is_active=True,
        created_at=run.created_at,
        run=run,
    )


def registry(user: Any, shown: Sequence[Reward], everything: Sequence[Reward]) -> Registry:
    """Rewards with what they are worth and what uses them.

    Args:
        everything: all rewards that names are told apart in.
    """
    measured, uses = measurements(user), uses_of(user)
    found = {reward.path: _measured(reward, measured) for reward in shown}
    known = [_range(one.accuracy) for one in found.values() if one]
    scale = plots.scale_around([one for one in known if one])
    names = Counter(reward.name for reward in everything if reward.is_active)
    entries = [
        _entry(reward, _reference(reward, names), found[reward.path], uses.get(reward.path, []), scale)
        for reward in shown
    ]
    return Registry(entries, plots.strip_ticks(scale))


def _entry(reward: Reward, reference: str, measured: Measured | None, uses: list[Use], scale: Scale) -> Entry:
    return Entry(
        reward,
        reference=reference,
        accuracy=share_row("Accuracy", measured.accuracy if measured else None, ACCURACY_HELP, scale),
        measured=measured,
        uses=uses[:NUM_USES_TOLD],
        num_further_uses=max(0, len(uses) - NUM_USES_TOLD),
    )


def _reference(reward: Reward, names: Mapping[str, int]) -> str:
    """What a form takes for it: its name where that stands for it alone, in a list of names too; else its folder."""
    is_only = names[reward.name] == 1 or bool(reward.project and reward.member)
    written = str(reward.member) if reward.member else reward.name
    return written if is_only and "," not in written else reward.path


def _range(told: dict[str, Any]) -> Range | None:
    value, interval = told["value"], told["interval"]
    return Range(value, *interval) if interval else Range(value)


def _measured(reward: Reward, measured: dict[str, Measured]) -> Measured | None:
    """By the newest evaluation; of a run that none has evaluated, by what it measured itself."""
    if reward.path in measured or reward.run is None:
        return measured.get(reward.path)
    return _measurement(reward.run.pk, "its own run", reward.run.result)


def measurements(user: Any) -> dict[str, Measured]:
    """By a reward's folder, its newest accuracy on a test split of whose prompts it learned from none, where told."""
    runs = TrainingRun.objects.for_user(user).filter(kind=Kind.EVALUATE, status=SUCCEEDED).order_by("-pk")
    found: dict[str, Measured] = {}
    for pk, name, config, result in runs.values_list("pk", "name", "config", "result")[:MAX_LOOKED_AT]:
        path = config.get("reward_model", "")
        is_held_out = config.get("split", HELD_OUT) == HELD_OUT and not (result or {}).get("num_learned_prompts")
        if is_held_out and path not in found:
            one = _measurement(pk, name, result)
            found |= {path: one} if one else {}
    return found


def _measurement(run: int, name: str, result: dict[str, Any] | None) -> Measured | None:
    told = result or {}
    if not is_number(told.get("accuracy")):
        return None
    interval = told.get("interval")
    is_whole = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
    basis = f"{told['num_pairs']} pairs" if is_number(told.get("num_pairs")) else ""
    return Measured({"value": told["accuracy"], "interval": interval if is_whole else None}, run, name, basis)


def uses_of(user: Any) -> dict[str, list[Use]]:
    """By a reward's folder, what uses it: projects whose current one it is, members made of it, and runs."""
    found: dict[str, list[Use]] = {}
    current = Promotion.objects.for_user(user).filter(next__isnull=True).select_related("project", "run")
    for promotion in current:
        url = reverse("admin:training_trainingrun_change", args=[promotion.run_id])
        text = f"current one of {promotion.project}"
        found.setdefault(str(promotion.run.model_dir.resolve()), []).append(Use(text, url))
    made = Member.objects.for_user(user).active().filter(kind=Member.Kind.REWARD_MODEL)
    for member in made.select_related("project")[:MAX_LISTED]:
        url = reverse("admin:training_member_change", args=[member.pk])
        found.setdefault(str(member.config.get("model", "")), []).append(Use(f"member {member}", url))
    runs = (
        TrainingRun.objects.for_user(user)
        .filter(kind__in=USER_KINDS)
        .exclude(status__in=(TrainingRun.Status.FAILED, TrainingRun.Status.CANCELLED))
    )
    for pk, name, config in runs.order_by("-pk").values_list("pk", "name", "config")[:MAX_LOOKED_AT]:
        use = Use(name, reverse("admin:training_trainingrun_change", args=[pk]))
        for path in _named(config):
            found.setdefault(path, []).append(use)
    return found


def _named(config: dict[str, Any]) -> list[str]:
    """Rewards that a run's configuration names, each once."""
    values = (str(config.get(name) or "") for name in USER_FIELDS)
    return list(dict.fromkeys(one for value in values for one in split_names(value)))


# One member


@dataclass(frozen=True)
class MemberPage:
    entry: Entry
    config: list[queries.Line]
    ticks: list[Tick]
    is_folder_there: bool


def member_page(user: Any, member: Member) -> MemberPage:
    reward = _of_member(member)
    found = registry(user, [reward], rewards(user, state="all"))
    return MemberPage(found.entries[0], config_lines(member, user), found.ticks, member.path.is_dir())


def config_lines(member: Member, user: Any) -> list[queries.Line]:
    """What a member is told, with each field's help; a folder that a run saved is shown as that run."""
    told = {
        item: member.config[item.name] for item in fields(MEMBER_CONFIGS[member.kind]) if item.name in member.config
    }
    saved = queries.saving_runs([value for value in told.values() if isinstance(value, str)], user)
    lines = []
    for item, value in told.items():
        run = saved.get(value) if isinstance(value, str) else None
        text = run.told if run else queries.plain(value)
        lines.append(queries.Line(queries.words(item.name), text, item.metadata["help"], run.pk if run else None))
    return lines


def kinds_to_filter() -> list[tuple[str, str]]:
    """Kinds of rewards by which the list can be narrowed, each once: a kind of member may be one of runs, too."""
    return list({**{kind.value: kind.label for kind in REWARD_KINDS}, **dict(Member.Kind.choices)}.items())


def reference_of(user: Any, run: TrainingRun) -> str:
    """What a form takes for a run's model: its name where that stands for it, else its folder."""
    newest = references.usable_runs("models", user).filter(name=run.name).first()
    return run.name if newest == run else str(run.model_dir.resolve())
