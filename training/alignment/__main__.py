"""`python -m training.alignment RUN_DIR`: do what run.json in the run directory says, and leave the result there.

Exit codes: 0, result.json is written; 1, error.json says in words what was wrong; 75, the run was asked to stop by
SIGTERM or SIGINT and left a checkpoint: started again, it goes on. Behind `accelerate launch` each process runs this
module, and only the main one writes files. With PLUMBLINE_SUPERVISED=1 the process dies with its parent.
"""

import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from training.alignment.config import (
    AverageWeightsConfig,
    CombineConfig,
    ConfigError,
    EvaluateConfig,
    LearningCurveConfig,
    PreviewJudgeConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    RunConfig,
    ScoreComparisonsConfig,
    ScoreConfig,
    SftConfig,
)
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

EXIT_FAILED, EXIT_INTERRUPTED = 1, 75
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


def dispatch(config: RunConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:  # noqa: PLR0911 -- one a kind
    """The result of a run of any kind. Each kind loads only the packages it needs."""
    match config:
        case LearningCurveConfig():  # first, as it is a RewardModelConfig too
            from training.alignment.learning_curve import learning_curve  # noqa: PLC0415

            return learning_curve(config, run_dir, stop)
        case RewardModelConfig():
            from training.alignment.reward_training import train_reward_model  # noqa: PLC0415

            return train_reward_model(config, run_dir, stop)
        case EvaluateConfig():
            from training.alignment.evaluation import evaluate  # noqa: PLC0415

            return evaluate(config, run_dir, stop)
        case ScoreConfig():
            from training.alignment.score_responses import score_responses  # noqa: PLC0415

            return score_responses(config, run_dir, stop)
        case SftConfig():
            from training.alignment.sft import train_sft  # noqa: PLC0415

            return train_sft(config, run_dir, stop)
        case RejectionSamplingConfig():
            from training.alignment.rejection_sampling import run_rejection_sampling  # noqa: PLC0415

            return run_rejection_sampling(config, run_dir, stop)
        case ScoreComparisonsConfig():
            from training.alignment.scoring import score_comparisons  # noqa: PLC0415

            return score_comparisons(config, run_dir, stop)
        case CombineConfig():
            from training.alignment.combining import combine  # noqa: PLC0415

            return combine(config, run_dir, stop)
        case AverageWeightsConfig():
            from training.alignment.weight_averaging import average_weights  # noqa: PLC0415

            return average_weights(config, run_dir, stop)
        case PreviewJudgeConfig():
            from training.alignment.preview import preview_judge  # noqa: PLC0415

            return preview_judge(config, run_dir, stop)
    raise ConfigError(f"kind: {config.kind} has no program")


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
