"""Promoting a reward model: it becomes the current one of its project if it is not worse, or if a person says why."""

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from annotate.models import Project
from training import promotion_queries
from training.models import Promotion, TrainingRun
from training.promotion_queries import Gate

MAX_REASON = 2000


class CannotPromote(Exception):
    """The run's reward model does not become the current one; the message says why."""


def promote(*, run: TrainingRun, previous: int | None, user: User | None = None, reason: str = "") -> Promotion:
    """Make a run's reward model the current one of its project; a second press finds it promoted.

    Args:
        previous: the promotion that the person saw as the newest one, if there was any.
        reason: why the gate is to be overruled; it is kept only where it was.

    Raises:
        CannotPromote: it made no reward model of a project, somebody else promoted meanwhile, or the gate is closed and
            no reason is given.
    """
    if run.project is None or not promotion_queries.is_promotable(run):
        raise CannotPromote(f"{run} has made no reward model for a project.")
    try:
        with transaction.atomic():
            Project.objects.select_for_update(no_key=True).get(pk=run.project.pk)  # two people may promote at once
            return _promote(run, run.project, previous, user, reason.strip())
    except IntegrityError as error:
        raise CannotPromote(f"Somebody else has just promoted another reward model of {run.project}.") from error


def _promote(run: TrainingRun, project: Project, previous: int | None, user: User | None, reason: str) -> Promotion:
    gate = promotion_queries.gate(run)
    if gate.current and gate.current.run_id == run.pk:
        return gate.current
    if (gate.current.pk if gate.current else None) != previous:
        raise CannotPromote(f"The current reward model of {project} is another one by now: look at it first.")
    _check_reason(gate, reason)
    return Promotion.objects.create(
        project=project,
        run=run,
        previous=gate.current,
        preference_set_id=gate.test.preference_set if gate.test else None,
        test=gate.test.as_json() if gate.test else {},
        is_overruled=not gate.is_open,
        reason="" if gate.is_open else reason,
        created_by=user,
    )


def _check_reason(gate: Gate, reason: str) -> None:
    if len(reason) > MAX_REASON:
        raise CannotPromote(f"A reason has up to {MAX_REASON} characters.")
    if gate.is_open or reason:
        return
    if gate.test is None:
        raise CannotPromote("Nothing shows yet what it is worth on held-out judgments. To promote it, say why.")
    raise CannotPromote("It did not pass the test on held-out judgments. To promote it all the same, say why.")
