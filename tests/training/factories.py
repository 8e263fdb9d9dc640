"""Small real objects of the training app for tests."""

import itertools
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone

from annotate.models import Project
from tests.factories import make_comparison, make_judgment, make_project, make_user
from training import installation, services
from training.models import PreferenceSet, TrainingRun

_numbers = itertools.count(1)
BACKBONE = "hub/backbone"


def make_judged_project(*, num_prompts: int = 3, **values: Any) -> Project:
    project = make_project(**values)
    for _ in range(num_prompts):
        make_judgment(comparison=make_comparison(project=project))
    return project


def make_preference_set(*, project: Project | None = None, **values: Any) -> PreferenceSet:
    project = project or make_judged_project()
    return services.freeze(project=project, **{"name": f"set{next(_numbers)}", **values})


def make_run(
    *, behaviour: str = "overall", num_steps: int = 3, kind: str = "reward_model", **values: Any
) -> TrainingRun:
    """A queued run; the little trainer does what `behaviour` says."""
    fields: dict[str, Any] = {}
    if kind == "reward_model":
        fields = {"backbone": BACKBONE, "aspect": behaviour, "num_epochs": num_steps}
    if kind == "rejection_sampling":
        fields = {"policy": f"hub/{behaviour}", "reward_model": "hub/reward", "num_samples": num_steps}
    fields |= values.pop("values", {})
    if "preference_set" not in values:
        values["preference_set"] = make_preference_set()
    return services.create_run(kind=kind, **{"name": f"run{next(_numbers)}", "values": fields, **values})


def make_finished_run(
    *, kind: str = "reward_model", result: dict[str, Any] | None = None, **values: Any
) -> TrainingRun:
    """A run that succeeded and saved a model, without any work."""
    fields = {"kind": kind, "name": f"run{next(_numbers)}", "config": {}, "result": result or {"model": "model"}}
    now = timezone.now()
    run = TrainingRun.objects.create(
        **{**fields, "status": "succeeded", "progress": 1.0, "started_at": now, "finished_at": now, **values}
    )
    run.model_dir.mkdir(parents=True)
    (run.model_dir / "config.json").write_text("{}")
    return run


def make_staff(**values: Any) -> User:
    """An account of ML staff: no superuser, only the group's permissions."""
    user = make_user(is_staff=True, **values)
    user.groups.add(installation.ml_staff())
    return user
