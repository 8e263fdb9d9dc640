"""Measuring each side in a process of its own, so that neither warms, slows or fills the memory of the other."""

import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from training.alignment.__main__ import die_with_parent

MIB = 2**20
P = ParamSpec("P")
R = TypeVar("R")


def num_threads() -> int:
    """What both sides compute with: OMP_NUM_THREADS, or a thread for each core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def apart(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """What a function of a module returns, called in a new process that computes with `num_threads()`.

    It dies with this one.
    """
    os.environ["OMP_NUM_THREADS"] = str(num_threads())
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=die_with_parent) as pool:
        return pool.submit(function, *arguments, **named).result()


def prepare() -> None:
    """Called in such a process before it computes: the threads it may use, and no talk."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(num_threads())
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def peak_memory() -> float:
    """MiB that this process has held at most.

    Linux counts into `ru_maxrss` what the parent held when it started this process; VmHWM is our own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / MIB if sys.platform == "darwin" else held / 1024
