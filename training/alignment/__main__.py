"""`python -m training.alignment RUN_DIR`: do what run.json in the run directory says, and leave the result there.

Exit codes: 0, result.json is written; 1, error.json says in words what was wrong; 75, the run was asked to stop by
SIGTERM or SIGINT and left a checkpoint: started again, it goes on; 76, it waits for the runs in shards.json, whose
output it will find when it is started again. Behind `accelerate launch` each process runs this
module, and only the main one writes files. With PLUMBLINE_SUPERVISED=1 the process dies with its parent.
"""

import ctypes
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from training.alignment.config import ConfigError, RunConfig
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, Waiting

PROGRAMS = {
    "reward_model": ("reward_training", "train_reward_model"),
    "learning_curve": ("learning_curve", "learning_curve"),
    "evaluate": ("evaluation", "evaluate"),
    "score": ("score_responses", "score_responses"),
    "sft": ("sft", "train_sft"),
    "sample": ("sampling", "run_sampling"),
    "rejection_sampling": ("rejection_sampling", "run_rejection_sampling"),
    "rlhf": ("policy", "train_policy"),
    "dpo": ("dpo", "train_dpo"),
    "compare_policies": ("policy_comparison", "compare_policies"),
    "score_comparisons": ("scoring", "score_comparisons"),
    "combine": ("combining", "combine"),
    "average_weights": ("weight_averaging", "average_weights"),
    "preview_judge": ("preview", "preview_judge"),
}
"""Which module has the function (config, run_dir, stop) -> result for a kind of run."""
EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WAITING = 1, 75, 76
PR_SET_PDEATHSIG = 1
USAGE = "usage: python -m training.alignment RUN_DIR"
OUT_OF_MEMORY = "Memory ran out; lower max_tokens, max_length or the batch size, or take a smaller model."


def main() -> int:
    if os.environ.get("PLUMBLINE_SUPERVISED") == "1":
        die_with_parent()
    if len(sys.argv) != 2:
        print(USAGE, file=sys.stderr)  # noqa: T201 -- a command line
        return EXIT_FAILED
    stop = StopFlag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.set)
    return run(RunDir(Path(sys.argv[1]).resolve()), stop)


def run(run_dir: RunDir, stop: StopFlag) -> int:
    """Do a run, write its result or its error, and return the exit code; a run that is done stays as it is."""
    if run_dir.read_result() is not None:
        return 0
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        config = run_dir.config()
        if is_main:
            (run_dir.path / "error.json").unlink(missing_ok=True)
            run_dir.write_versions()
        _quieten()
        result = dispatch(config, run_dir, stop)
        if is_main:
            run_dir.write_result(result)
            run_dir.remove_checkpoints()
        _part()
        return 0
    except Waiting as waiting:
        if is_main:
            run_dir.write_shards(waiting.shards)
        return EXIT_WAITING
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)  # noqa: T201 -- the run's log
        return EXIT_INTERRUPTED
    except Exception as error:
        if not isinstance(error, ConfigError | OSError | FloatingPointError):
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 -- the run's log
        if is_main and run_dir.path.is_dir():
            run_dir.write_error(in_words(error))
        return EXIT_FAILED


def dispatch(config: RunConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """The result of a run of any kind. Each kind loads only the packages it needs."""
    if config.kind not in PROGRAMS:
        raise ConfigError(f"kind: {config.kind} has no program")
    module, function = PROGRAMS[config.kind]
    program = getattr(importlib.import_module(f"training.alignment.{module}"), function)
    result: dict[str, Any] = program(config, run_dir, stop)
    return result


def in_words(error: Exception) -> Exception:
    """The error to show: a plain sentence where memory ran out, which each allocator says in its own way."""
    is_memory = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return MemoryError(OUT_OF_MEMORY) if is_memory or isinstance(error, MemoryError) else error


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, which nothing else would tell it.

    A launcher that died before leaves its processes to process 1. A process without a launcher is not judged by that:
    in a container process 1 may well be its supervisor, which sees to that moment itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if "RANK" in os.environ and os.getppid() == 1:
        sys.exit(EXIT_FAILED)


def _part() -> None:
    """Leave the group of processes: a thread of it that is still running would abort the interpreter's end."""
    if "RANK" in os.environ:
        from torch import distributed  # noqa: PLC0415 -- loaded by then

        if distributed.is_initialized():
            distributed.destroy_process_group()


def _quieten() -> None:
    """Leave the log to what matters: no bars and no reports on weights that are meant to be new."""
    import transformers  # noqa: PLC0415 -- torch loads with it, and a wrong run.json should not wait for that

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
