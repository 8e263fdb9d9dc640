"""Reward models side by side: the headlines of the reports that runs left on one preference set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from training import plots, queries, references
from training.models import PreferenceSet, TrainingRun
from training.plots import Scale, Tick
from training.report_figures import Row, as_dict, figure, number, read_json, share, share_row
from training.report_queries import ACCURACY_HELP, REPORT

Kind = TrainingRun.Kind
REPORTING_KINDS = (Kind.REWARD_MODEL, Kind.EVALUATE)
MAX_COMPARED = 200


@dataclass(frozen=True)
class Compared:
    """A run's headline figures beside those of others."""

    run: TrainingRun
    model: str
    is_chosen: bool
    measured_on: str
    accuracy: Row
    longer_wins: str
    top_1: str
    log_loss: str
    ece: str


@dataclass(frozen=True)
class SideBySide:
    """Runs with a report on one preference set, and those of them that are shown beside each other."""

    offered: list[Compared]
    shown: list[Compared]
    ticks: list[Tick]
    is_same_basis: bool
    paired_query: str


def side_by_side(user: Any, preference_set: PreferenceSet | None, chosen: set[int]) -> SideBySide:
    """Reports on that preference set; all of them where none is chosen."""
    runs = TrainingRun.objects.for_user(user).filter(
        kind__in=REPORTING_KINDS, status=TrainingRun.Status.SUCCEEDED, preference_set=preference_set
    )
    told = {run: found for run in runs[:MAX_COMPARED] if (found := read_json(run.run_dir / REPORT))}
    models = {run: str(_evaluated(run)) for run in told}
    saved = queries.saving_runs(list(models.values()), user)
    accuracies = (figure(as_dict(one.get("figures")).get("accuracy")) for one in told.values())
    scale = plots.scale_around([accuracy for accuracy in accuracies if accuracy])
    offered = [
        _compared(run, one, saved[models[run]].name if models[run] in saved else models[run], run.pk in chosen, scale)
        for run, one in told.items()
    ]
    shown = [one for one in offered if one.is_chosen] or offered
    return SideBySide(
        offered,
        shown,
        ticks=plots.strip_ticks(scale),
        is_same_basis=len({one.measured_on for one in shown}) < 2,
        paired_query=_paired_query(user, [one.run for one in shown]) if len(shown) == 2 else "",
    )


def _measured_on(run: TrainingRun, told: dict[str, Any]) -> str:
    """Reports can be held against each other where this is the same; what trains a reward model measures it on test."""
    return f"{run.config.get('split', 'test')}, {run.config.get('aspect', 'overall')}, {told.get('num_pairs', 0)} pairs"


def _evaluated(run: TrainingRun) -> Any:
    """The model that a run's report is about."""
    return run.config.get("reward_model", "") if run.kind == Kind.EVALUATE else run.model_dir.resolve()


def _compared(run: TrainingRun, told: dict[str, Any], model: str, is_chosen: bool, scale: Scale) -> Compared:
    figures = as_dict(told.get("figures"))
    return Compared(
        run,
        model,
        is_chosen,
        measured_on=_measured_on(run, told),
        accuracy=share_row("Accuracy", figures.get("accuracy"), ACCURACY_HELP, scale),
        longer_wins=share(figure(as_dict(told.get("length")).get("longer_wins"))),
        top_1=share(figure(figures.get("top_1"))),
        log_loss=number(figure(figures.get("log_loss"))),
        ece=share(figure(figures.get("ece"))),
    )


def _paired_query(user: Any, runs: Sequence[TrainingRun]) -> str:
    """What starts an evaluation of two models on the same pairs, as the start page's parameters."""
    models = [str(_evaluated(run)) for run in runs]
    if models[0] == models[1]:
        return ""
    first, second = as_a_person_writes(user, models)
    asked = {"preference_set": runs[0].preference_set_id, "reward_model": first, "other_reward_model": second}
    return urlencode(asked)


def as_a_person_writes(user: Any, models: Sequence[str]) -> list[str]:
    """Models by the names of the runs that saved them, where such a name stands for that run."""
    saved = queries.saving_runs(models)
    names = [run.name for run in saved.values()]
    members = references.members_of(user).active().filter(name__in=names).values("name")  # they come before runs
    named = references.usable_runs("reward_model", user).filter(name__in=names).exclude(name__in=members)
    meant = dict(named.order_by("pk").values_list("name", "pk"))  # of runs of one name the newest
    return [
        saved[model].name if model in saved and meant.get(saved[model].name) == saved[model].pk else model
        for model in models
    ]


def reported_sets(user: Any) -> list[PreferenceSet]:
    """Preference sets on which some run of this user's may have left a report, the newest first."""
    runs = TrainingRun.objects.for_user(user).filter(kind__in=REPORTING_KINDS, status=TrainingRun.Status.SUCCEEDED)
    sets = PreferenceSet.objects.for_user(user).filter(pk__in=runs.values("preference_set"))
    return list(sets.select_related("project"))
