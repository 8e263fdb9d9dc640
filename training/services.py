"""Writes of this app: freezing preference sets, and the life of a run.

    queued -> running -> succeeded, failed, cancelled
      ^---------'  interrupted: its trainer or its worker was killed, or stopped for a new start
      ^--------- waiting: for its shards, runs of their own that write what it goes on with

A run's row is the truth; a message only wakes a worker. A worker takes a run by a conditional update that counts
the fencing token up, and each of its later writes names that token: a worker that was taken for dead can change
nothing any more. `sweep` sends lost messages again and takes runs back from dead workers.

A run that divides its work ends its process and waits, so that its worker, too, may take shards. When the last of them
has succeeded it is queued again; a shard that fails fails it, and one that is cancelled cancels it: without that part
it cannot go on, and the others would work for nothing. Its own end is that of its shards.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, InterfaceError, OperationalError, close_old_connections, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now

from annotate.models import Endpoint, Project
from annotate.queries import judgment_rows, judgment_weights
from training import export, guidance, launch, previews, queries, references, tasks
from training.alignment.config import ConfigError, RunConfig, config_from_dict, config_to_dict
from training.alignment.run_dir import RunDir
from training.models import Metric, PreferenceSet, RunEvent, TrainingRun

logger = logging.getLogger(__name__)
Status = TrainingRun.Status

POLL_SECONDS = 0.3
WRITE_SECONDS = 1.0  # between two writes of new metrics
SHUTDOWN_GRACE_SECONDS = 3  # the process manager allows five
NUM_ERROR_LINES = 20
MAX_WAITING_MESSAGES = 100
FRACTIONS = (0.65, 0.1, 0.1, 0.15)
DATABASE_AWAY = (OperationalError, InterfaceError)
NEEDS_PREFERENCES = {
    TrainingRun.Kind.REWARD_MODEL,
    TrainingRun.Kind.LEARNING_CURVE,
    TrainingRun.Kind.EVALUATE,
    TrainingRun.Kind.REJECTION_SAMPLING,
    TrainingRun.Kind.RLHF,
    TrainingRun.Kind.DPO,
    TrainingRun.Kind.COMPARE_POLICIES,
    TrainingRun.Kind.COMBINE,
    TrainingRun.Kind.AVERAGE_WEIGHTS,
}
NEEDS_FILE: dict[str, str] = {TrainingRun.Kind.SCORE: "responses", TrainingRun.Kind.SAMPLE: "prompts"}
NEEDS_PROJECT = {TrainingRun.Kind.SCORE_COMPARISONS, TrainingRun.Kind.PREVIEW_JUDGE}
SOURCES = {
    Status.QUEUED: {Status.RUNNING, Status.WAITING},
    Status.RUNNING: {Status.QUEUED},
    Status.WAITING: {Status.RUNNING},
    Status.SUCCEEDED: {Status.RUNNING},
    Status.FAILED: {Status.RUNNING, Status.WAITING},
    Status.CANCELLED: {Status.QUEUED, Status.RUNNING, Status.WAITING},
}


class CannotFreeze(Exception):
    """No preference set can be made of this; the message says why."""


class CannotServe(Exception):
    """Nothing here answers for such a policy."""


class ClaimLost(Exception):
    """Another worker holds the run now, or nobody: this one must stop and write nothing more."""


# Preference sets


def freeze(
    *,
    project: Project,
    name: str,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    is_weighted: bool = False,
    user: User | None = None,
) -> PreferenceSet:
    """Snapshot the project's judgments. The file is written before the row, so that every row has its file.

    Args:
        fractions: shares of train, validation and test, and of guard where some votes are set aside; see `export`.
        is_weighted: each judgment is told how reliable its annotator is, for runs that count by it.

    Raises:
        CannotFreeze: the name is taken or unfit, the fractions are no shares, there are no judgments, or nothing is
            known of annotators that could be told.
    """
    _check_freeze(project, name, fractions)
    digest, counts = export.write_preferences(
        _weighted_rows(project) if is_weighted else judgment_rows(project),
        settings.PREFERENCE_SETS_DIR,
        seed=seed,
        fractions=fractions,
    )
    if not any(split["judgments"] for split in counts.values()):
        raise CannotFreeze(f"Project {project} has no judgments yet.")
    try:
        with transaction.atomic():
            return PreferenceSet.objects.create(
                project=project,
                name=name,
                seed=seed,
                fractions=list(fractions),
                digest=digest,
                counts=counts,
                created_by=user,
            )
    except IntegrityError as error:
        raise CannotFreeze(_name_taken(project, name)) from error


def _weighted_rows(project: Project) -> Iterator[dict[str, Any]]:
    weights = judgment_weights(project)
    if not weights:
        raise CannotFreeze("How reliable annotators are is not known yet: too few have judged the same comparisons.")
    return ({**row, "weight": weights.get(row["annotator"], 1.0)} for row in judgment_rows(project))


def _check_freeze(project: Project, name: str, fractions: Sequence[float]) -> None:
    if not name.strip() or "/" in name or len(name) > 100:
        raise CannotFreeze("A preference set's name has 1 to 100 characters, none of them a slash.")
    is_unfit = any(not 0 <= share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-6
    if len(fractions) not in {3, 4} or is_unfit:
        raise CannotFreeze("Fractions are the shares of train, validation, test and maybe guard; they add up to 1.")
    if PreferenceSet.objects.filter(project=project, name=name).exists():
        raise CannotFreeze(_name_taken(project, name))


def _name_taken(project: Project, name: str) -> str:
    return f"Project {project} already has a preference set {name}."


# Starting a run


def create_run(
    *,
    kind: str,
    name: str,
    values: dict[str, Any],
    preference_set: PreferenceSet | None = None,
    project: Project | None = None,
    user: User | None = None,
    key: uuid.UUID | None = None,
) -> TrainingRun:
    """Queue a run; the same key again gives the same run. Its project is its preference set's, where it has one.

    Raises:
        ConfigError: a value that the run cannot work with; the message names the field.
    """
    key = key or uuid.uuid4()
    if existing := TrainingRun.objects.filter(key=key).first():
        return existing
    if not name.strip() or len(name) > 100:
        raise ConfigError("name: has 1 to 100 characters")
    if kind in NEEDS_PROJECT and project is None:
        raise ConfigError("project: name the project whose comparisons are scored")
    config = _config(kind, values, preference_set, user)
    fields = {"kind": kind, "name": name, "config": config, "preference_set": preference_set, "created_by": user}
    project = preference_set.project if preference_set else project
    with transaction.atomic():
        run, is_new = TrainingRun.objects.get_or_create(key=key, defaults={**fields, "project": project})
        if is_new:
            RunEvent.objects.create(run=run, status=Status.QUEUED, token=0, note=f"started by {user}" if user else "")
            start_run(run_id=run.pk)
    return run


def _config(
    kind: str, values: dict[str, Any], preference_set: PreferenceSet | None, user: User | None
) -> dict[str, Any]:
    """What goes into run.json: references resolved, everything checked."""
    config_from_dict(kind, values)
    values = references.resolve_models(kind, values, user)
    if preference_set is not None:
        values["preferences"] = launch.PREFERENCES
    elif values.get("preferences") or kind in NEEDS_PREFERENCES:
        values["preferences"] = _existing_file("preferences", values.get("preferences", ""))
    if kind in NEEDS_FILE:
        values[NEEDS_FILE[kind]] = _existing_file(NEEDS_FILE[kind], values.get(NEEDS_FILE[kind], ""))
    if values.get("examples"):
        values["examples"] = _existing_file("examples", values["examples"])
    elif kind == TrainingRun.Kind.SFT and preference_set is None and not values.get("preferences"):
        raise ConfigError("examples: name a file of examples, or a preference set")
    return config_to_dict(config_from_dict(kind, values))


def _existing_file(field: str, value: str) -> str:
    path = Path(value).resolve()
    if not path.is_file():
        wanted = "name a preference set" if field == "preferences" and not value else f"there is no file {value!r}"
        raise ConfigError(f"{field}: {wanted}")
    return str(path)


def start_run(*, run_id: int) -> None:
    """Wake a worker once the row is there to be seen; a message that cannot be sent is the sweeper's to send."""
    transaction.on_commit(lambda: _wake(run_id))


def _wake(run_id: int) -> None:
    try:
        tasks.wake(run_id)
    except tasks.NoBroker as error:
        logger.warning("Run %s waits for the sweeper: no broker (%s)", run_id, error)


# A run's states


@transaction.atomic
def _transition(run_id: int, status: Status, when: Q, note: str = "", **changes: Any) -> bool:
    """The one way a run changes its state: a conditional update, whose row count decides, and an audit row."""
    run = TrainingRun.objects.filter(when, pk=run_id, status__in=SOURCES[status])
    if not run.update(status=status, **changes):
        return False
    token = TrainingRun.objects.values_list("token", flat=True).get(pk=run_id)
    RunEvent.objects.create(run_id=run_id, status=status, token=token, note=note)
    if status not in TrainingRun.ACTIVE:
        transaction.on_commit(lambda: _tell_family(run_id), robust=True)  # what is lost here the sweeper tells
    return True


def _held(run: TrainingRun) -> Q:
    return Q(status=Status.RUNNING, token=run.token)


def claim_run(*, run_id: int, worker: str) -> TrainingRun | None:
    """Take a queued run; nothing if it is not to be had, because another worker was first or it was cancelled."""
    is_claimed = _transition(
        run_id,
        Status.RUNNING,
        Q(is_cancel_requested=False),
        note=f"claimed by {worker}",
        worker=worker,
        attempts=F("attempts") + 1,
        token=F("token") + 1,
        started_at=Coalesce("started_at", Now()),
        heartbeat_at=Now(),
    )
    if not is_claimed:
        return None
    return TrainingRun.objects.select_related("preference_set__project", "project").get(pk=run_id)


@transaction.atomic
def record_progress(*, run: TrainingRun, news: launch.News | None) -> bool:
    """Heartbeat, new metrics and the progress they tell; returns whether somebody asked to cancel.

    Raises:
        ClaimLost: the run is no longer held under this token.
    """
    lines = news.lines if news else []
    _write_held(run, heartbeat_at=Now(), **_progress(lines))
    if news is not None:
        if news.first == 0:  # a first look, or a resumed trainer took lines back
            Metric.objects.filter(run=run).delete()
        numbered = enumerate(lines, start=news.first)
        Metric.objects.bulk_create([Metric(run=run, line=line, values=values) for line, values in numbered], 500)
    return TrainingRun.objects.values_list("is_cancel_requested", flat=True).get(pk=run.pk)


def _write_held(run: TrainingRun, **changes: Any) -> None:
    if not TrainingRun.objects.filter(_held(run), pk=run.pk).update(**changes):
        raise ClaimLost(f"run {run.pk}, token {run.token}")


def _progress(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Progress and phase as the newest line tells them."""
    last = lines[-1] if lines else {}
    changes: dict[str, Any] = {}
    if isinstance(last.get("progress"), int | float):
        changes["progress"] = min(max(float(last["progress"]), 0.0), 1.0)
    if isinstance(last.get("phase"), str):
        changes["phase"] = last["phase"][:100]
    return changes


def finish_run(*, run: TrainingRun, result: dict[str, Any]) -> bool:
    """Success; for the demonstration, whose texts have a known quality, with that quality before and after."""
    result = launch.finite({**result, **queries.oracle_quality(run)})
    return _transition(run.pk, Status.SUCCEEDED, _held(run), result=result, progress=1.0, error="", finished_at=Now())


def fail_run(*, run: TrainingRun, error: str) -> bool:
    """The end of a run that another attempt would not help."""
    error = launch.plain_text(error)
    return _transition(run.pk, Status.FAILED, _held(run), note=error.partition("\n")[0], error=error, finished_at=Now())


@transaction.atomic
def requeue_run(*, run: TrainingRun, note: str, is_counted: bool = True) -> bool:
    """Hand an interrupted run back, to be resumed from its checkpoint, and wake a worker for it."""
    attempts = F("attempts") if is_counted else F("attempts") - 1
    is_back = _transition(run.pk, Status.QUEUED, _held(run), note=note, attempts=attempts)
    if is_back and not _cancel_idle(run.pk):
        start_run(run_id=run.pk)
    return is_back


def _crashed(run: TrainingRun, error: str) -> None:
    """The trainer or its worker died: again from the checkpoint, unless that has been tried often enough."""
    attempt = f" (attempt {run.attempts} of {settings.RUN_MAX_ATTEMPTS})"
    if run.attempts < settings.RUN_MAX_ATTEMPTS:
        requeue_run(run=run, note=error + attempt)
    else:
        fail_run(run=run, error=f"{error}{attempt}" + _last_lines(run))


def cancel_run(*, run: TrainingRun, user: User | AnonymousUser | None = None) -> None:
    """Ask for an end: at once where no worker has the run, by its worker where one has. An ended run stays as it is."""
    _cancel(run.pk, note=f"cancelled by {user}" if user else "")


def _cancel(run_id: int, note: str) -> None:
    TrainingRun.objects.active().filter(pk=run_id).update(is_cancel_requested=True)
    _cancel_idle(run_id, note)


def answer_live(*, run: TrainingRun, project: Project) -> Endpoint:
    """Let a run's policy answer the prompts that a project's annotators write.

    Raises:
        CannotServe: it was saved as adapters alone, which `transformers serve` does not load.
    """
    if (run.model_dir / "adapter_config.json").is_file():
        raise CannotServe(f"{run.name} was saved as an adapter; a policy that is served live has to be saved merged.")
    name, model = f"{run.name} (run {run.pk})", str(run.model_dir)
    values = {"kind": Endpoint.Kind.POLICY, "model": model, "is_active": True}
    return Endpoint.objects.update_or_create(project=project, name=name, defaults=values)[0]


def _is_idle_and_cancelled() -> Q:
    return Q(status__in=(Status.QUEUED, Status.WAITING), is_cancel_requested=True)


def _cancel_idle(run_id: int, note: str = "") -> bool:
    return _transition(run_id, Status.CANCELLED, _is_idle_and_cancelled(), note=note, finished_at=Now())


def _last_lines(run: TrainingRun) -> str:
    lines = launch.log_tail(run.run_dir, NUM_ERROR_LINES)
    return "\n\nThe end of its log:\n" + "\n".join(lines) if lines else ""


# Shards


@transaction.atomic
def wait_for_shards(*, run: TrainingRun, shards: Sequence[RunConfig]) -> bool:
    """Let a run wait for others that do parts of its work, and queue these; false if it is no longer held.

    Raises:
        ConfigError: it waits for a part that has been done: what that wrote does not reach it.
    """
    attempts = F("attempts") - 1  # this one has come to no harm
    if not _transition(run.pk, Status.WAITING, _held(run), note=f"waits for {len(shards)} shards", attempts=attempts):
        return False
    if not _cancel_idle(run.pk):
        queued = _queue_shards(run, shards)
        transaction.on_commit(lambda: _wake_all(queued))
    return True


def _queue_shards(run: TrainingRun, shards: Sequence[RunConfig]) -> list[int]:
    """One run for each part. Its key tells the part, so that none is ever queued twice."""
    parts = {_shard_key(run, config): config for config in shards}
    if done := run.shards.filter(key__in=parts).first():
        raise ConfigError(
            f"{done} has {done.status}, but what it wrote is not there: do all workers share {settings.RUNS_DIR}?"
        )
    same = {"parent": run, "project": run.project, "created_by": run.created_by}
    made = TrainingRun.objects.bulk_create(
        TrainingRun(
            key=key, kind=config.kind, name=f"{run.name[:80]}, shard {number}", config=config_to_dict(config), **same
        )
        for number, (key, config) in enumerate(parts.items(), start=run.shards.count() + 1)
    )
    note = f"a part of run {run.pk}"
    RunEvent.objects.bulk_create(RunEvent(run=shard, status=Status.QUEUED, token=0, note=note) for shard in made)
    return [shard.pk for shard in made]


def _shard_key(run: TrainingRun, config: RunConfig) -> uuid.UUID:
    return uuid.uuid5(run.key, json.dumps([config.kind, config_to_dict(config)], sort_keys=True))


def _tell_family(run_id: int) -> None:
    """After a run's end: the run that waits for it may go on or has to end, and no other works for it any more."""
    parent_id = TrainingRun.objects.values_list("parent_id", flat=True).get(pk=run_id)
    if parent_id is not None:
        _look_at_shards(parent_id)
    for shard_id in TrainingRun.objects.active().filter(parent=run_id).values_list("pk", flat=True):
        _cancel(shard_id, note=f"run {run_id} has ended")


def _look_at_shards(run_id: int) -> None:
    """Let a waiting run go on when its shards are done, or end as the first of them that did not succeed.

    The update names the token as it was before the shards were looked at: a run that went on meanwhile, and waits for
    others by now, is left alone.
    """
    run = TrainingRun.objects.filter(pk=run_id, status=Status.WAITING).first()
    if run is None:
        return
    still_waiting = Q(status=Status.WAITING, token=run.token)
    left = run.shards.exclude(status=Status.SUCCEEDED).order_by("finished_at")
    if failed := left.filter(status=Status.FAILED).first():
        error = f"{failed}: {failed.error}"
        note = error.partition("\n")[0]
        _transition(run_id, Status.FAILED, still_waiting, note=note, error=error, finished_at=Now())
    elif cancelled := left.filter(status=Status.CANCELLED).first():
        note = f"{cancelled} was cancelled"
        _transition(run_id, Status.CANCELLED, still_waiting, note=note, finished_at=Now())
    elif not left.exists() and _transition(run_id, Status.QUEUED, still_waiting, note="its shards are done"):
        start_run(run_id=run_id)


# The work of one worker


def execute_run(*, run_id: int, should_stop: Callable[[], bool] = launch.shutdown.is_set) -> bool:
    """Claim a run and see its trainer through; false if the run was not to be had."""
    if should_stop():
        return False
    run = claim_run(run_id=run_id, worker=launch.worker_name())
    if run is None:
        return False
    try:
        launch.kill_survivor(run)
        run_dir = launch.prepare(run)
        if run.kind == TrainingRun.Kind.SCORE_COMPARISONS:
            guidance.place_prompts(run, run_dir, _heartbeat(run))
        elif run.kind == TrainingRun.Kind.PREVIEW_JUDGE:
            previews.place_comparisons(run, run_dir)
        _Attempt(run, run_dir, should_stop).see_through()
    except (launch.CannotPrepare, guidance.CannotGuide, ConfigError, OSError) as error:
        fail_run(run=run, error=str(error))
    except ClaimLost as error:
        logger.warning("Stopped working on %s", error)
    return True


def _heartbeat(run: TrainingRun) -> Callable[[], None]:
    """What long work calls again and again, so that the run is not taken for dead meanwhile.

    It raises `ClaimLost` where another worker holds the run by now.
    """
    beaten_at = time.monotonic()

    def beat() -> None:
        nonlocal beaten_at
        if time.monotonic() - beaten_at >= settings.RUN_HEARTBEAT_SECONDS:
            _write_held(run, heartbeat_at=Now())
            beaten_at = time.monotonic()

    return beat


class _Stop(StrEnum):
    """Why a trainer was told to stop."""

    CANCELLED = "cancelled"
    SHUTDOWN = "its worker was told to stop"
    SILENT = "silent"


class _Attempt:
    """One attempt at a claimed run: follows its trainer and tells the database, until it ends or has to end."""

    def __init__(self, run: TrainingRun, run_dir: RunDir, should_stop: Callable[[], bool]) -> None:
        self.run = run
        self.run_dir = run_dir
        self.should_stop = should_stop
        self.follower = launch.MetricsFollower(run_dir.metrics)
        self.news: launch.News | None = None
        self.written_at = time.monotonic()
        self.started_at = time.time()
        self.stop: _Stop | None = None
        self.kill_at = float("inf")
        self.is_database_away = False

    def see_through(self) -> None:
        """Run the trainer, unless an earlier attempt left its result and died before noting it."""
        try:
            exit_code = 0 if self.run_dir.read_result() is not None else self._run_trainer()
            self._collect()
            self._end(exit_code)
        finally:
            self.follower.close()

    def _run_trainer(self) -> int:
        """Whatever happens in here, the trainer does not outlive it."""
        trainer = launch.Trainer(self.run_dir)
        try:
            _write_held(self.run, pid=trainer.pid, pid_started_at=trainer.started_at)
            while (exit_code := trainer.exit_code()) is None:
                self._tick(trainer)
                time.sleep(POLL_SECONDS)
            return exit_code
        except (KeyboardInterrupt, SystemExit):
            trainer.kill()
            requeue_run(run=self.run, note="interrupted", is_counted=False)
            raise
        finally:
            trainer.kill()

    def _tick(self, trainer: launch.Trainer) -> None:
        self._collect()
        since_write = time.monotonic() - self.written_at
        if since_write >= (WRITE_SECONDS if self.news else settings.RUN_HEARTBEAT_SECONDS) and self._write():
            self._ask_to_stop(trainer, _Stop.CANCELLED, settings.RUN_STOP_SECONDS)
        if self.should_stop():
            self._ask_to_stop(trainer, _Stop.SHUTDOWN, SHUTDOWN_GRACE_SECONDS)
        if time.time() - max(self.started_at, launch.last_sign(self.run_dir.path)) > settings.RUN_SILENT_SECONDS:
            self._ask_to_stop(trainer, _Stop.SILENT, settings.RUN_STOP_SECONDS)
        if time.monotonic() > self.kill_at:
            trainer.kill()

    def _collect(self) -> None:
        """Keep what is new until it is written."""
        news = self.follower.read()
        if news is not None and self.news is not None and news.first > 0:
            news = launch.News(self.news.first, self.news.lines + news.lines)
        self.news = news or self.news

    def _write(self) -> bool:
        """Heartbeat and news; true if somebody asked to cancel."""
        try:
            is_cancel_requested = record_progress(run=self.run, news=self.news)
        except DATABASE_AWAY as error:
            self._bear(error)
            return False
        self.news, self.written_at, self.is_database_away = None, time.monotonic(), False
        return is_cancel_requested

    def _bear(self, error: Exception) -> None:
        """The database may be away for a moment, but not so long that the run may be another worker's by now."""
        if not self.is_database_away:
            logger.warning("Run %s: the database is away (%s)", self.run.pk, error)
        self.is_database_away = True
        close_old_connections()
        if time.monotonic() - self.written_at > settings.RUN_STALE_SECONDS * 0.8:
            raise ClaimLost(f"run {self.run.pk}: the database stays away") from error

    def _ask_to_stop(self, trainer: launch.Trainer, why: _Stop, seconds: float) -> None:
        """Ask once; a later reason may only shorten the time to the kill."""
        if self.stop is None:
            self.stop = why
            trainer.ask_to_stop()
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)

    def _end(self, exit_code: int) -> None:
        """Write the last news and what they come to."""
        while True:
            try:
                record_progress(run=self.run, news=self.news)
                return self._conclude(exit_code)
            except DATABASE_AWAY as error:
                self._bear(error)
                time.sleep(POLL_SECONDS)

    def _conclude(self, exit_code: int) -> None:
        result, error, shards = self.run_dir.read_result(), self.run_dir.read_error(), self.run_dir.read_shards()
        if result is not None and exit_code == 0:
            if self.run.kind == TrainingRun.Kind.SCORE_COMPARISONS:
                result |= guidance.hand_over(self.run, self.run_dir, _heartbeat(self.run))
            finish_run(run=self.run, result=result)
        elif self.stop == _Stop.CANCELLED:
            _transition(self.run.pk, Status.CANCELLED, _held(self.run), finished_at=Now())
        elif shards:  # the exit code of several processes together does not say so
            wait_for_shards(run=self.run, shards=shards)
        elif self.stop == _Stop.SHUTDOWN:
            requeue_run(run=self.run, note=f"interrupted: {self.stop}", is_counted=False)
        elif self.stop == _Stop.SILENT:
            minutes = settings.RUN_SILENT_SECONDS / 60
            fail_run(run=self.run, error=f"Stopped: no sign of life for {minutes:g} minutes.{_last_lines(self.run)}")
        elif error is not None:
            fail_run(run=self.run, error=f"{error['message']}{_last_lines(self.run)}")
        elif exit_code == launch.EXIT_INTERRUPTED:
            _crashed(self.run, "The training process was told to stop, not by its worker.")
        elif exit_code >= 0 and self.run.config.get("num_processes", 1) == 1:
            fail_run(run=self.run, error=f"{launch.describe_exit(exit_code)}{_last_lines(self.run)}")
        else:
            _crashed(self.run, launch.describe_exit(exit_code))


# The sweeper


def sweep() -> None:
    """Finish what was cancelled, take runs back from dead workers, let runs go on whose shards are done, and wake
    workers for all that is queued."""
    for run_id in _pks(_is_idle_and_cancelled()):
        _cancel_idle(run_id)
    for run_id in _pks(_is_stale()):
        _take_back(run_id)
    for run_id in _pks(Q(status=Status.WAITING)):
        _look_at_shards(run_id)
    has_ended = ~Q(parent__status__in=TrainingRun.ACTIVE)
    for run_id in _pks(Q(parent__isnull=False, status__in=TrainingRun.ACTIVE, is_cancel_requested=False) & has_ended):
        _cancel(run_id, note="the run that it is a part of has ended")
    _wake_all(TrainingRun.objects.filter(status=Status.QUEUED).order_by("pk").values_list("pk", flat=True))


def _pks(which: Q) -> list[int]:
    return list(TrainingRun.objects.filter(which).values_list("pk", flat=True))


def _wake_all(run_ids: Iterable[int]) -> None:
    """Send the wake-ups again, lost or not; a queue that is long already has no worker, or a busy one."""
    try:
        if run_ids and tasks.num_waiting() < MAX_WAITING_MESSAGES:
            for run_id in run_ids:
                tasks.wake(run_id)
    except tasks.NoBroker as error:
        logger.warning("Queued runs wait: no broker (%s)", error)


def _is_stale() -> Q:
    """Running without a heartbeat, by the database's clock: workers' clocks may differ."""
    return Q(status=Status.RUNNING, heartbeat_at__lt=Now() - timedelta(seconds=settings.RUN_STALE_SECONDS))


@transaction.atomic
def _take_back(run_id: int) -> None:
    run = TrainingRun.objects.select_for_update().filter(_is_stale(), pk=run_id).first()
    if run is None:  # its worker has just been heard of
        return
    if run.is_cancel_requested:
        _transition(run.pk, Status.CANCELLED, _held(run), note="its worker was lost", finished_at=Now())
    else:
        _crashed(run, f"The worker {run.worker} was lost.")
