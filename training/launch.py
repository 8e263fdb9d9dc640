"""The process boundary: write a run directory, start the trainer, follow its metrics, stop it.

The trainer runs in a session of its own with a scrubbed environment and one argument, its run directory. Nothing
here touches the database or loads torch; a crash over there ends a run, not a worker.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from django.conf import settings

from training.alignment.config import config_from_dict
from training.alignment.run_dir import RunDir, file_digest
from training.models import PreferenceSet, TrainingRun
from training.reward_folders import key_variables, rewards_of

PREFERENCES, EXAMPLES, LOG = "preferences.jsonl", "examples.jsonl", "log.txt"
EXIT_INTERRUPTED = 75  # the trainer stopped at a checkpoint because it was told to
START_TIME_TOLERANCE = 2.0  # seconds by which the system's idea of a process's start may drift
LOG_TAIL_BYTES = 64 * 1024
READ_BYTES = 8 * 1024 * 1024

ENVIRONMENT = {
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PATH",
    "PYTHONPATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "VIRTUAL_ENV",
}
ENVIRONMENT_PREFIXES = ("CUDA_", "LC_", "NCCL_", "NVIDIA_")

shutdown = threading.Event()  # set when this worker is told to stop


class CannotPrepare(Exception):
    """The run directory cannot be written as the run wants it; the message says why."""


def worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


# The run directory


def prepare(run: TrainingRun) -> RunDir:
    """Write the run directory; on a later attempt, check it and keep its checkpoints.

    Raises:
        CannotPrepare: the preference set's or the examples' file is missing or altered, or the disk is full.
        ConfigError: the run's configuration no longer fits.
    """
    config = dict(run.config)
    folder = run.run_dir
    try:
        if run.token == 1 and folder.exists():  # left by another database in the same home
            folder.rename(folder.with_name(f"{folder.name}.old-{secrets.token_hex(4)}"))
        folder.mkdir(parents=True, exist_ok=True)
        if run.preference_set is not None:
            _place_preferences(run.preference_set, folder / PREFERENCES)
        if config.get("examples"):
            _place_examples(Path(config["examples"]), folder / EXAMPLES)
            config["examples"] = EXAMPLES
        for told_before in ("error.json", "shards.json"):
            (folder / told_before).unlink(missing_ok=True)
        return RunDir.create(folder, config_from_dict(run.kind, config))
    except OSError as error:
        raise CannotPrepare(f"The run directory could not be written: {error}") from error


def _place_preferences(preference_set: PreferenceSet, path: Path) -> None:
    if not path.exists():
        if not preference_set.path.exists():
            raise CannotPrepare(f"The records of preference set {preference_set} are missing: {preference_set.path}")
        _link(preference_set.path, path)
    if file_digest(path) != preference_set.digest:
        raise CannotPrepare(f"The records of preference set {preference_set} have been altered: {path}")


def _place_examples(source: Path, path: Path) -> None:
    if not path.exists():
        if not source.is_file():
            raise CannotPrepare(f"examples: there is no file {source}")
        scratch = path.with_name(f"{path.name}.partial")
        shutil.copyfile(source, scratch)
        scratch.replace(path)


def _link(source: Path, path: Path) -> None:
    scratch = path.with_name(f"{path.name}.partial")
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, scratch)
    scratch.replace(path)


# The process


def command(run_dir: RunDir) -> list[str]:
    """What starts the trainer: by itself, or once for each process of a distributed run."""
    trainer = ["-m", settings.RUN_TRAINER, str(run_dir.path)]
    num_processes = str(run_dir.config().num_processes)
    if num_processes == "1":
        return [sys.executable, *trainer]
    if Path("/dev/nvidia0").exists():
        options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher = ["accelerate.commands.launch", *options, "--num_processes", num_processes]
    else:  # on CPUs accelerate's launcher starts one process, whatever it is told
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    return [sys.executable, "-m", *launcher, *trainer]


def environment(run_dir: RunDir) -> dict[str, str]:
    """What of this process's environment a trainer may see: no password and no address of ours.

    Of keys it sees those that judges among its rewards name, and no other.
    """
    keys = key_variables(rewards_of(run_dir.config()), run_dir.path)
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name in keys or name.startswith(ENVIRONMENT_PREFIXES)
    }
    ours = {"PLUMBLINE_SCORE_CACHE": str(settings.SCORE_CACHE), "PLUMBLINE_SUPERVISED": "1"}
    return {**passed, **ours, "PYTHONUNBUFFERED": "1"}


class Trainer:
    """The process behind a run, the leader of a session of its own; it dies when this process does."""

    def __init__(self, run_dir: RunDir) -> None:
        tether = [sys.executable, str(settings.BASE_DIR / "config" / "tether.py"), str(os.getpid())]
        with (run_dir.path / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [*tether, *command(run_dir)],
                cwd=settings.BASE_DIR,
                env=environment(run_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.started_at = psutil.Process(self.pid).create_time()

    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; nothing while it runs. What is left of its session is killed."""
        if self._process.returncode is None and psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE:
            self.kill()
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint at the next step and an end."""
        _signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole session, and reap its leader: only then is the number free for another process."""
        if self._process.returncode is None:
            _kill_session(self.pid, self.started_at)
            self._process.wait()


def kill_survivor(run: TrainingRun) -> None:
    """Kill what an earlier attempt at this run may have left on this machine."""
    if run.pid is not None and run.pid_started_at is not None:
        psutil.wait_procs(_kill_session(run.pid, run.pid_started_at), timeout=5)


def _kill_session(pid: int, started_at: float) -> list[psutil.Process]:
    """Kill a process, named by its number and start, and all that it started; return them.

    A number that meanwhile belongs to another process is left alone.
    """
    try:
        leader = psutil.Process(pid)
        if abs(leader.create_time() - started_at) > START_TIME_TOLERANCE:
            return []
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    family += [process for process in psutil.process_iter() if _is_in_session(process, pid, started_at)]
    for process in family:
        _kill(process)
    return family


def _is_in_session(process: psutil.Process, session: int, started_at: float) -> bool:
    try:
        return os.getsid(process.pid) == session and process.create_time() > started_at - START_TIME_TOLERANCE
    except (OSError, psutil.Error):
        return False


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def describe_exit(code: int) -> str:
    """In words: how a trainer that left no message ended."""
    if code >= 0:
        return f"The training process ended with exit code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " Often that means that memory ran out." if name == "SIGKILL" else ""
    return f"The training process was killed by {name}.{hint}"


# What it writes


@dataclass(frozen=True)
class News:
    """New lines of metrics.jsonl. `first` is the number of the first one; 0 when the file was written anew."""

    first: int
    lines: list[dict[str, Any]]


class MetricsFollower:
    """Reads metrics.jsonl as it grows; notices when a resumed trainer has put a shorter one in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] | None = None
        self.num_lines = 0

    def read(self) -> News | None:
        """What came since the last call, if there is any; the first call tells all there is."""
        if self.file is None or self._is_replaced():
            if not self._open():
                return None
            return self._news()
        news = self._news()
        return news if news.lines else None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _open(self) -> bool:
        self.close()
        try:
            self.file = self.path.open("rb")
        except FileNotFoundError:
            self.file = None
        self.num_lines = 0
        return self.file is not None

    def _is_replaced(self) -> bool:
        assert self.file is not None
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self.file.fileno())
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) or there.st_size < self.file.tell()

    def _news(self) -> News:
        assert self.file is not None
        start = self.file.tell()
        whole, newline, _ = self.file.read(READ_BYTES).rpartition(b"\n")
        self.file.seek(start + len(whole) + len(newline))
        lines = [_metric(line) for line in whole.split(b"\n")] if newline else []
        news = News(self.num_lines, lines)
        self.num_lines += len(lines)
        return news


def _metric(line: bytes) -> dict[str, Any]:
    """A line as stored; what is no JSON object is an empty one, so that numbers of lines still agree."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return finite(values) if isinstance(values, dict) else {}


def finite(value: Any) -> Any:
    """`value` without NaN and infinities, which JSON columns refuse."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return value


ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def plain_text(text: str) -> str:
    """`text` without terminal codes and invisible characters."""
    kept = (character for character in ANSI.sub("", text) if character in "\n\t" or _is_visible(character))
    return "".join(kept)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs"}


def log_tail(folder: Path, num_lines: int) -> list[str]:
    """The last lines of the run's log as plain text; of a progress bar, its last state."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = text.rstrip("\r\n").replace("\r\n", "\n").split("\n")
    return [plain_text(line.rstrip("\r").rpartition("\r")[2])[:1000] for line in lines[-num_lines:]]


def last_sign(folder: Path, names: Iterable[str] = (LOG, "metrics.jsonl")) -> float:
    """When the trainer last wrote something, in seconds since the epoch; 0 if it never did."""
    return max(((folder / name).stat().st_mtime for name in names if (folder / name).exists()), default=0.0)
