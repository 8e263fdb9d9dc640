"""A run by two processes, each of which could be on another machine.

They come from a server that has loaded the packages already: starting them as launchers do, which `test_launch` tries,
takes longer than what is looked at here.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch

from training.alignment.__main__ import main
from training.alignment.run_dir import RunDir

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
PRELOADED = [f"training.alignment.{name}" for name in ("policy", "dpo", "rejection_sampling", "learning_curve")]
PATIENCE = 120  # seconds


def run_by_two(run_dir: RunDir, stop_at: int | None = None) -> int:
    """The exit code of a run; with `stop_at`, it is asked to stop once a training step of that number is done."""
    processes = start_two(_train, run_dir.path)
    try:
        if stop_at is not None:
            _wait_for_step(run_dir, stop_at)
            for process in processes:
                process.terminate()
        return wait(processes)
    finally:
        for process in processes:
            process.kill()


def start_two(function: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """Start a function of a module in two processes that find each other as those of torchrun do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[BaseProcess] = [
        context.Process(target=_join, args=(rank, port, function, *arguments)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    return processes


def wait(processes: list[BaseProcess]) -> int:
    """The exit code of one that failed, or 0."""
    for process in processes:
        process.join(PATIENCE)
        if process.exitcode is None:
            raise TimeoutError("a process does not end")
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _join(rank: int, port: int, function: Callable[..., None], *arguments: object) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {**ENVIRONMENT, **{name: str(value) for name, value in own.items()}}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    function(*arguments)


def _train(path: Path) -> None:
    with (path / "log.txt").open("a") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = ["training.alignment", str(path)]
    sys.exit(main())


def _wait_for_step(run_dir: RunDir, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(line["phase"] == "train" and line["step"] >= step for line in run_dir.read_metrics()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"step {step} does not come")
        time.sleep(0.02)
