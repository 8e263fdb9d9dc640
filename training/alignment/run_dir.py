"""The run directory: all that a run is told and all that it leaves, as files.

    run.json            {"kind", "config"}, written by whoever starts the run
    preferences.jsonl   the frozen preference set (or examples.jsonl), copied in
    versions.json       Python and package versions
    metrics.jsonl       one line a step: {"step", "phase", "progress", "time", …}
    checkpoints/        step-000100/ …, each whole or absent; COMPLETE.json lists sizes and digests
    model/              what was trained: `save_pretrained`, safetensors
    result.json         written last; its presence means success
    error.json          {"type", "message"}, where the run failed in words
    shards.json         runs that this one waits for, as run.json tells them, where it does

Standard library only: the worker reads these files without torch. A file that matters is written beside its
place, flushed to disk and renamed into it, so that a kill at any point leaves the old one or the new one.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.alignment.config import ConfigError, RunConfig, config_from_dict, config_to_dict

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)
NUM_CHECKPOINTS_KEPT = 2


class Interrupted(Exception):
    """The run was asked to stop and has left a checkpoint; started again, it continues from there."""


class Waiting(Exception):
    """The run can go on once other runs have written their output."""

    def __init__(self, shards: Sequence[RunConfig]) -> None:
        super().__init__(f"{len(shards)} shards are to be done")
        self.shards = shards


class StopFlag:
    """Whether a run was asked to stop: false until `set`, which also serves as a signal handler.

    A run looks at it between steps, saves a checkpoint when it is true, and raises `Interrupted`.
    """

    def __init__(self) -> None:
        self._is_set = False

    def __call__(self) -> bool:
        return self._is_set

    def set(self, *_: object) -> None:
        self._is_set = True


@dataclass(frozen=True)
class RunDir:
    """One run's files, under `path`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> "RunDir":
        """Make the folder and write run.json; a folder that is already there keeps its checkpoints."""
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "run.json", {"kind": config.kind, "config": config_to_dict(config)})
        return cls(path)

    def config(self) -> RunConfig:
        """The configuration in run.json.

        Raises:
            FileNotFoundError: there is none.
            ConfigError: it is damaged, names an unknown kind or field, or holds a value that the field does not take.
        """
        try:
            told = _read_json(self.path / "run.json")
        except ValueError as error:
            raise ConfigError(f"run.json: {error}") from error
        if told is None:
            raise FileNotFoundError(f"there is no {self.path / 'run.json'}")
        if not (isinstance(told, dict) and isinstance(told.get("kind"), str) and isinstance(told.get("config"), dict)):
            raise ConfigError('run.json: must hold {"kind": text, "config": object}')
        return config_from_dict(told["kind"], told["config"])

    def resolve(self, name: str) -> Path:
        """A path from the configuration: absolute, or relative to the run directory."""
        return self.path / name

    def locate(self, name: str) -> str:
        """A model to load: the folder that the configuration names, where there is one, else a Hugging Face id."""
        return str(self.resolve(name)) if name and self.resolve(name).is_dir() else name

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def write_shards(self, shards: Sequence[RunConfig]) -> None:
        told = [{"kind": shard.kind, "config": config_to_dict(shard)} for shard in shards]
        write_json(self.path / "shards.json", told)

    def read_shards(self) -> list[RunConfig]:
        """The runs that this one waits for."""
        return [config_from_dict(told["kind"], told["config"]) for told in _read_json(self.path / "shards.json") or []]

    def write_versions(self) -> None:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(self.path / "versions.json", {"python": platform.python_version(), **versions})

    def log(self, *, step: int, phase: str, progress: float, **values: float) -> None:
        """Append one line to metrics.jsonl; `progress` is the share of the whole run, 0 to 1."""
        line = {"step": step, "phase": phase, "progress": progress, "time": time.time(), **values}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Whole lines of metrics.jsonl after the first `skip`; a half-written last line is left for later."""
        if not self.metrics.exists():
            return
        with self.metrics.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number >= skip and line.endswith("\n"):
                    yield json.loads(line)

    def truncate_metrics(self, step: int, phase: str, after: float | None = None) -> None:
        """Before a resume: drop the lines of `phase` beyond `step`, which are about to be written again.

        Args:
            after: the progress of the whole run beyond which lines are meant, where several parts of it log `phase`.
        """
        if not self.metrics.exists():
            return
        kept = [
            line
            for line in self.read_metrics()
            if line["phase"] != phase or line["step"] <= step or (after is not None and line["progress"] <= after)
        ]
        write_whole(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.path / "result.json", result)

    def read_result(self) -> dict[str, Any] | None:
        return _read_json(self.path / "result.json")

    def write_error(self, error: BaseException) -> None:
        write_json(self.path / "error.json", {"type": type(error).__name__, "message": str(error)})

    def read_error(self) -> dict[str, Any] | None:
        return _read_json(self.path / "error.json")

    def save_checkpoint(self, step: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
        """Make one whole checkpoint: `write` fills a scratch folder, which is sealed and renamed into place."""
        folder = self.path / "checkpoints" / f"step-{step:06d}"
        scratch = folder.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write(scratch)
        write_json(scratch / "state.json", {"step": step, **state})
        seal(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        _sync(folder.parent)
        for old in self.checkpoints()[NUM_CHECKPOINTS_KEPT:]:
            shutil.rmtree(old)
        return folder

    def remove_checkpoints(self) -> None:
        """A run that has succeeded needs none."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, newest first; what does not match its COMPLETE.json does not count."""
        found = (self.path / "checkpoints").glob("step-*[0-9]")
        folders = sorted(found, key=lambda folder: (len(folder.name), folder.name), reverse=True)  # by their numbers
        return [folder for folder in folders if is_sealed(folder)]

    def latest_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its state, if there is one."""
        for folder in self.checkpoints():
            return folder, json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return None


def name_to_show(model: str) -> str:
    """An id as it is; of a folder its last two names, as where it lies is nobody's business."""
    path = Path(model)
    return "/".join(path.parts[-2:]) if path.is_absolute() else model


def require_model(name: str) -> None:
    """
    Raises:
        FileNotFoundError: it is no folder, and written as no Hugging Face id is.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"there is no model at {name}")


def seal(folder: Path) -> None:
    """Write COMPLETE.json, which lists every file's size and SHA-256, after flushing them to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        _sync(path)
        entries[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": file_digest(path)}
    write_json(folder / "COMPLETE.json", entries)


def is_sealed(folder: Path) -> bool:
    entries = _read_json(folder / "COMPLETE.json")
    if entries is None:
        return False
    return all(
        (folder / name).is_file()
        and (folder / name).stat().st_size == entry["size"]
        and file_digest(folder / name) == entry["sha256"]
        for name, entry in entries.items()
    )


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Put what `write` makes of an empty folder into the place of `folder`, as a whole."""
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write(scratch)
    for path in scratch.rglob("*"):
        _sync(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    scratch.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def whole_lines(path: Path, num_together: int, num_all: int = -1) -> tuple[int, int]:
    """Lines that stand in whole chunks of so many in a file, and their size in bytes; `num_all` lines are whole too."""
    if not path.exists():
        return 0, 0
    num_lines = size = num_kept = size_kept = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            num_lines, size = num_lines + 1, size + len(line)
            if num_lines % num_together == 0 or num_lines == num_all:
                num_kept, size_kept = num_lines, size
    return num_kept, size_kept


def append_lines(path: Path, rows: Iterable[Any]) -> None:
    """Add rows to a JSONL file; a kill may leave a half, which `whole_lines` does not count."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".partial")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    _sync(path.parent)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
