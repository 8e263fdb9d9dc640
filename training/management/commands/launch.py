"""Start a run from the shell, and with --wait see it through.

Whoever claims the run executes it: a training worker, or this command itself where none does.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from training import queries, references, services, tasks
from training.alignment.config import CONFIGS, ConfigError
from training.models import TrainingRun

Status = TrainingRun.Status
WATCH_SECONDS = 0.5
CLAIM_SECONDS = 10.0  # how long a run may wait for an idle worker before this command takes it
SWEEP_SECONDS = 10.0


class Command(BaseCommand):
    help = (
        "Start a run: launch KIND NAME key=value…, the keys being fields of that kind's configuration and "
        "preference_set, or project where annotation is guided. With --wait the last line is the result as JSON."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", choices=sorted(CONFIGS))
        parser.add_argument("name")
        parser.add_argument("values", nargs="*", metavar="key=value")
        parser.add_argument("--wait", action="store_true", help="show progress until the run has ended")

    def handle(self, *, kind: str, name: str, values: list[str], wait: bool, **options: Any) -> None:
        try:
            run = _create(kind, name, values)
        except ConfigError as error:
            if wait:
                self._say({"status": "failed", "error": str(error)})
            raise CommandError(str(error)) from error
        self.stdout.write(f"Run {run.pk}: {run.run_dir}")
        self.stdout.flush()
        if wait:
            self._see_through(run)

    def _see_through(self, run: TrainingRun) -> None:
        watch = _Watch(run, self._show)
        try:
            watch.until_ended()
        except KeyboardInterrupt:
            watch.interrupted()
        run.refresh_from_db()
        outcome = {"run": run.pk, "status": run.status, "run_dir": str(run.run_dir)}
        if run.status == Status.SUCCEEDED:
            self._say({**outcome, **run.result})
        else:
            self._say({**outcome, "error": run.error or f"the run is {run.status}"})
            raise CommandError(run.error or f"Run {run.pk} is {run.status}.")

    def _show(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _say(self, outcome: dict[str, Any]) -> None:
        self._show(json.dumps(outcome))


def _create(kind: str, name: str, pairs: list[str]) -> TrainingRun:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"{pair}: write key=value")
        values[key] = value
    wanted = values.pop("preference_set", None)
    preference_set = references.resolve_preference_set(wanted) if wanted else None
    project = references.resolve_project(values.pop("project")) if "project" in values else None
    return services.create_run(kind=kind, name=name, values=values, preference_set=preference_set, project=project)


class _Watch:
    """Follows a run to its end, and executes it and its shards where nobody else does."""

    def __init__(self, run: TrainingRun, show: Callable[[str], None]) -> None:
        self.run = run
        self.show = show
        self.shown = ""
        self.is_executing = False
        self.queued_at = self.swept_at = time.monotonic()

    def until_ended(self) -> None:
        while not self._report():
            if left := self._left_to_us():
                self._execute(left)
            elif time.monotonic() - self.swept_at > SWEEP_SECONDS:
                self.swept_at = time.monotonic()
                services.sweep()
            time.sleep(WATCH_SECONDS)

    def interrupted(self) -> None:
        """Ctrl-C ends what this command executes; a worker goes on."""
        if self.is_executing:
            services.cancel_run(run=self.run)
        else:
            self.show(f"No longer watching; run {self.run.pk} goes on.")

    def _report(self) -> bool:
        """Show what has changed; true when the run has ended."""
        self.run.refresh_from_db()
        line = _progress_line(self.run)
        if line != self.shown:
            self.show(line)
            self.shown = line
        if self.run.status not in {Status.QUEUED, Status.WAITING}:
            self.queued_at = time.monotonic()
        return not self.run.is_active

    def _left_to_us(self) -> TrainingRun | None:
        """The run, or the next of its shards, if it is queued and nobody else takes it."""
        own = TrainingRun.objects.filter(Q(pk=self.run.pk) | Q(parent=self.run.pk))
        queued = own.filter(status=Status.QUEUED).order_by("pk").first()
        if queued is None or self.is_executing or not _has_broker():
            return queued
        is_somebody_working = TrainingRun.objects.filter(status=Status.RUNNING).exists()
        is_idle = not is_somebody_working and time.monotonic() - self.queued_at > CLAIM_SECONDS
        return queued if is_idle else None

    def _execute(self, queued: TrainingRun) -> None:
        """In this process; the service asks at each of its looks at the trainer, which is when we report."""
        if not self.is_executing:
            self.show("No worker took the run; this command executes it.")
        self.is_executing = True
        services.execute_run(run_id=queued.pk, should_stop=lambda: self._report() and False)


def _has_broker() -> bool:
    try:
        tasks.num_waiting()
    except tasks.NoBroker:
        return False
    return True


def _progress_line(run: TrainingRun) -> str:
    progress = queries.progress(run)
    is_told = run.status in {Status.RUNNING, Status.WAITING}
    words = [run.status, progress.phase, f"{progress.percent}%"] if is_told else [run.status]
    return "  ".join([*words, *(f"{line.label.lower()} {line.text}" for line in progress.latest)])
