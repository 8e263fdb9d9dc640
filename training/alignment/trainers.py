"""What the trainers of transformers and TRL are taught: the run directory's checkpoints and metrics, and to stop.

A checkpoint holds what is trained, whole, whichever way it is held: adapters alone where the rest is frozen, and the
weights of all processes where each has a part. It is whole or absent, and without pickle. A run that was stopped goes
on from the newest one and ends with the same weights (on a CPU, with one process).
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from training.alignment.checkpoint import load_random_state, read_optimizer_state, read_schedule, save_training_state
from training.alignment.policies import Policy
from training.alignment.reward_model import agree
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.weights import load_training_state, training_state

WEIGHTS, VALIDATION = "model.safetensors", "validation"
POOL = 16  # optimizer steps whose examples are sorted by length together
LOGGED = ("loss", "learning_rate", "accuracy", "margin")


@dataclass(frozen=True)
class Stage:
    """How a part of a run shows in the metrics: its phase, and which share of the run's progress it covers."""

    phase: str = "train"
    start: float = 0.0
    end: float = 1.0

    def progress(self, done: float) -> float:
        return self.start + (self.end - self.start) * done


WHOLE_RUN = Stage()


def order_of_training(lengths: Sequence[int], num_drawn: int, batch_size: int, seed: int) -> list[int]:
    """Places of N examples in the order of training, all epochs in a row.

    Laid out beforehand, so that going on from a checkpoint needs no generator's state. Examples in one optimizer step
    are of similar length, for less padding; the steps come in random order, one that is not full last.

    Args:
        lengths: (N,) of the examples.
        num_drawn: how many of them in all; each is drawn once before one is drawn again.
    """
    rng = random.Random(seed)
    n = len(lengths)
    shuffled = [place for _ in range(math.ceil(num_drawn / n)) for place in rng.sample(range(n), n)][:num_drawn]
    order: list[int] = []
    for start in range(0, num_drawn, POOL * batch_size):
        pool = sorted(shuffled[start : start + POOL * batch_size], key=lengths.__getitem__)
        steps = [pool[begin : begin + batch_size] for begin in range(0, len(pool), batch_size)]
        full = [step for step in steps if len(step) == batch_size]
        order += [place for step in rng.sample(full, len(full)) + steps[len(full) :] for place in step]
    return order


class RunDirTrainer(Trainer):
    """Put before a trainer among the bases of a class: its checkpoints are then those of the run directory."""

    def __init__(self, *, run_dir: RunDir, **arguments: Any) -> None:
        self.run_dir = run_dir
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)

    def train_from_newest(self, phase: str) -> None:
        """From the newest checkpoint, or from the beginning; lines of `phase` that are to be written again are gone."""
        newest = self.run_dir.latest_checkpoint()
        if self.is_world_process_zero():
            for one in (phase, VALIDATION):
                self.run_dir.truncate_metrics(newest[1]["step"] if newest else 0, one)
        self.accelerator.wait_for_everyone()  # all have read before one writes
        self.train(resume_from_checkpoint=str(newest[0]) if newest else None)

    def more_state(self) -> dict[str, Any]:
        """What a trainer adds to a checkpoint's state.json."""
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        optimizer, scheduler = self._loop()
        weights, state = training_state(self.policy, optimizer)  # all processes must ask

        def write(folder: Path) -> None:
            save_file({name: one.contiguous() for name, one in weights.items()}, folder / WEIGHTS)
            self.state.save_to_json(str(folder / "trainer_state.json"))
            save_training_state(folder, optimizer, scheduler, state)

        if self.args.should_save:
            self.run_dir.save_checkpoint(self.state.global_step, write, self.more_state())
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing yet: weights come with the optimizer, once both are where they belong."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint:
            optimizer, scheduler = self._loop()
            folder = Path(checkpoint)
            load_training_state(self.policy, optimizer, load_file(folder / WEIGHTS), read_optimizer_state(folder))
            scheduler.load_state_dict(read_schedule(folder))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint:
            load_random_state(Path(checkpoint))

    @property
    def policy(self) -> Policy:
        """As it stands, whatever it is wrapped into."""
        return cast(Policy, self.accelerator.unwrap_model(self.model))

    def _loop(self) -> tuple[Optimizer, LRScheduler]:
        if self.optimizer is None or self.lr_scheduler is None:
            raise RuntimeError("the trainer has not begun")
        return getattr(self.optimizer, "optimizer", self.optimizer), self.lr_scheduler


class Report(TrainerCallback):
    """Writes metrics, asks for checkpoints, and leaves when told to stop, or when the loss is no longer a number.

    Args:
        after_step: is called with the number of each step that is done, before a checkpoint; true ends the training.
    """

    def __init__(
        self,
        trainer: RunDirTrainer,
        stop: StopFlag,
        stage: Stage,
        save_minutes: float,
        after_step: Callable[[int], bool] | None = None,
    ) -> None:
        self.accelerator, self.run_dir = trainer.accelerator, trainer.run_dir
        self.stop, self.stage = stop, stage
        self.save_seconds, self.saved_at = 60 * save_minutes, time.monotonic()
        self.after_step = after_step
        self.is_stopped = False

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """
        Raises:
            FloatingPointError: the loss, which is that of all processes, is infinite or no number.
        """
        logs = kwargs["logs"]
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss of step {state.global_step} is {logs['loss']}; try a lower learning_rate"
            )
        if not state.is_world_process_zero:
            return
        progress = self.stage.progress(state.global_step / state.max_steps)
        if "loss" in logs:
            self.run_dir.log(step=state.global_step, phase=self.stage.phase, progress=progress, **self.values(logs))
        elif "eval_loss" in logs:
            self.run_dir.log(step=state.global_step, phase=VALIDATION, progress=progress, loss=logs["eval_loss"])

    def values(self, logs: dict[str, float]) -> dict[str, float]:
        """What is written of a step."""
        return {name: logs[name] for name in LOGGED if name in logs}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        if self.after_step is not None and self.after_step(state.global_step):
            control.should_training_stop = True
        self.is_stopped = agree(self.accelerator, self.stop()) and not control.should_training_stop
        is_due = agree(self.accelerator, time.monotonic() - self.saved_at >= self.save_seconds)
        control.should_save = self.is_stopped or is_due
        return control

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved_at = time.monotonic()
        if self.is_stopped:
            raise Interrupted(f"stopped after step {state.global_step} of {state.max_steps}")
