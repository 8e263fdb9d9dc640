"""A run by two processes, as launchers start them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training.alignment.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
COMMAND = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    *("-m", "training.alignment"),
]
PATIENCE = 120  # seconds


def run_by_two(run_dir: RunDir, stop_at: int | None = None) -> int:
    """The exit code of a run; with `stop_at`, it is asked to stop once a training step of that number is done."""
    with (run_dir.path / "log.txt").open("w") as log:
        trainers = subprocess.Popen([*COMMAND, str(run_dir.path)], cwd=ROOT, env=ENVIRONMENT, stderr=log)
    try:
        if stop_at is not None:
            _wait_for_step(run_dir, stop_at)
            trainers.send_signal(signal.SIGTERM)
        return trainers.wait(PATIENCE)
    finally:
        trainers.kill()


def _wait_for_step(run_dir: RunDir, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(line["phase"] == "train" and line["step"] >= step for line in run_dir.read_metrics()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"step {step} does not come")
        time.sleep(0.02)
