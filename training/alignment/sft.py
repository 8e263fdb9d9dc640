"""Supervised fine-tuning of a policy on example responses, by TRL's SFTTrainer.

The loss counts the tokens of the response only. Examples are rendered by `preferences.encode`, as everywhere, so
that text which looks like a special token never becomes one. Checkpoints are those of the run directory: whole or
absent, without pickle; a run that was stopped goes on from the newest one and ends with the same weights (on a CPU,
with one process).
"""

import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from training.alignment.checkpoint import load_random_state, load_training_state, save_training_state
from training.alignment.config import ConfigError, RejectionSamplingConfig, SftConfig
from training.alignment.preferences import ROLES, Messages, encode, read_rankings
from training.alignment.reward_model import agree, join_processes
from training.alignment.reward_net import fit_length
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, replace_folder
from training.alignment.tiny_lm import build_tiny_lm

NEW_TINY = "new:tiny"
MAX_TOKENS = 16384  # in one forward pass, padding included; more examples than fit are accumulated
WARMUP_RATIO = 0.05
POOL = 16  # optimizer steps whose examples are sorted by length together
Settings = SftConfig | RejectionSamplingConfig


@dataclass(frozen=True)
class Example:
    prompt: Messages
    completion: str


@dataclass(frozen=True)
class Stage:
    """How a fine-tuning shows in the metrics: its phase, and which share of the run's progress it covers."""

    phase: str = "train"
    start: float = 0.0
    end: float = 1.0

    def progress(self, done: float) -> float:
        return self.start + (self.end - self.start) * done


WHOLE_RUN = Stage()


def train_sft(config: SftConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Fine-tune `config.policy` and save it in `run_dir.model`.

    Raises:
        ConfigError: no examples, or neither examples nor preferences are named.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    join_processes()
    train, held_out = _read(config, run_dir)
    policy = run_dir.locate(config.policy)
    if config.policy == NEW_TINY:
        policy = _build_policy(train, run_dir, config.seed)
    return fine_tune(config, policy=policy, train=train, held_out=held_out, run_dir=run_dir, stop=stop)


def fine_tune(
    config: Settings,
    *,
    policy: str,
    train: Sequence[Example],
    held_out: Sequence[Example],
    run_dir: RunDir,
    stop: StopFlag,
    stage: Stage = WHOLE_RUN,
) -> dict[str, Any]:
    """Fine-tune the model in the folder or of the id `policy` on `train` and save it in `run_dir.model`.

    Returns:
        {"model", "loss", "num_examples", "num_steps", "num_truncated"}, and "held_out_loss" where there are held-out
        examples. Losses are in nats per token of the response; "loss" is the mean over the last tenth of the steps.
    """
    model, tokenizer = load_policy(policy)
    max_length = fit_length(config.max_length, model, tokenizer)
    dataset, num_truncated = _encode_all(train, tokenizer, max_length)
    longest = max(map(len, dataset["input_ids"]))
    dataset = dataset.select(_order([len(ids) for ids in dataset["input_ids"]], config))
    trainer = _Trainer(
        run_dir=run_dir,
        model=model,
        args=_arguments(config, run_dir, longest),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(trainer.accelerator, run_dir, stop, stage, config.save_minutes))
    newest = run_dir.latest_checkpoint()
    if newest and trainer.is_world_process_zero():
        run_dir.truncate_metrics(newest[1]["step"], stage.phase)
    trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    last = losses[-max(1, len(losses) // 10) :]
    result = {
        "model": run_dir.model.name,
        "loss": math.fsum(last) / len(last),
        "num_examples": len(train),
        "num_steps": trainer.state.global_step,
        "num_truncated": num_truncated,
    }
    if held_out:
        held_out_set, _ = _encode_all(held_out, tokenizer, max_length)
        result["held_out_loss"] = trainer.evaluate(held_out_set)["eval_loss"]
    if trainer.is_world_process_zero():
        save_policy(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run_dir.model)
    trainer.accelerator.wait_for_everyone()
    return result


def load_policy(policy: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in single precision and its tokenizer, from a folder or a Hugging Face id."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, use_safetensors=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained` of both into `folder`, which is replaced as a whole."""

    def write(scratch: Path) -> None:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)

    replace_folder(folder, write)


def read_examples(path: Path) -> Iterator[Example]:
    """Examples from lines {"prompt": messages or text, "completion": text or one message}.

    Raises:
        ConfigError: a line is not an example; the message tells which.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _example(json.loads(line))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"examples: line {number} is not an example: {error!r}") from error


def _example(row: dict[str, Any]) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(completion, str):
        (message,) = completion
        completion = message["content"]
    if any(message["role"] not in ROLES for message in prompt):  # a template may make a special token of it
        raise ValueError(f"a role is not one of {', '.join(ROLES)}")
    texts = [message["content"].strip() for message in prompt]
    if not texts or not completion.strip():
        raise ValueError("prompt or completion is empty")
    return Example([{"role": message["role"], "content": message["content"]} for message in prompt], completion)


def best_responses(path: Path, split: str) -> list[Example]:
    """The best responses of each ranking of `split`, each once; none of a ranking whose responses are all bad."""
    found: dict[str, Example] = {}
    for ranked in read_rankings(path, split=split):
        if not ranked.all_bad:
            for index in ranked.ranking[0]:
                example = Example(ranked.prompt, ranked.responses[index])
                found.setdefault(json.dumps([example.prompt, example.completion]), example)
    return list(found.values())


def _read(config: SftConfig, run_dir: RunDir) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples."""
    if config.examples:
        train, held_out = list(read_examples(run_dir.resolve(config.examples))), []
    elif config.preferences:
        path = run_dir.resolve(config.preferences)
        train, held_out = best_responses(path, "train"), best_responses(path, "validation")
    else:
        raise ConfigError("examples: neither examples nor preferences are given")
    if not train:
        raise ConfigError("examples: there are none to learn from")
    return train, held_out


def _build_policy(train: Iterable[Example], run_dir: RunDir, seed: int) -> str:
    """The folder of a new small model; with several processes the first one builds it."""
    folder = run_dir.path / "untrained"
    with PartialState().local_main_process_first():
        if not folder.exists():
            texts = (text for item in train for text in (*(m["content"] for m in item.prompt), item.completion))
            replace_folder(folder, lambda scratch: build_tiny_lm(texts, scratch, seed=seed))
    return str(folder)


def _encode_all(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Dataset, int]:
    """Token ids with labels (-100: not part of the loss), and how many examples had to be truncated."""
    encoded = [encode(tokenizer, item.prompt, item.completion, max_length) for item in examples]
    rows = [
        {
            "input_ids": item.ids,
            "labels": [-100] * item.num_prompt_tokens + item.ids[item.num_prompt_tokens :],
        }
        for item in encoded
    ]
    return Dataset.from_list(rows), sum(item.is_truncated for item in encoded)


def _order(lengths: Sequence[int], config: Settings) -> list[int]:
    """Places of the examples in the order of training, all epochs in a row.

    Laid out beforehand, so that going on from a checkpoint needs no generator's state. Examples in one optimizer step
    are of similar length, for less padding; the steps come in random order.
    """
    rng = random.Random(config.seed)
    n, size = len(lengths), config.batch_size
    shuffled = [place for _ in range(math.ceil(config.num_epochs)) for place in rng.sample(range(n), n)]
    shuffled = shuffled[: math.ceil(config.num_epochs * n)]
    order: list[int] = []
    for start in range(0, len(shuffled), POOL * size):
        pool = sorted(shuffled[start : start + POOL * size], key=lengths.__getitem__)
        steps = [pool[begin : begin + size] for begin in range(0, len(pool), size)]
        order += [place for step in rng.sample(steps, len(steps)) for place in step]
    return order


def _arguments(config: Settings, run_dir: RunDir, longest: int) -> TrlConfig:
    on_gpu = torch.cuda.is_available()
    batch_size = max(1, config.batch_size // PartialState().num_processes)
    fits = max(
        size
        for size in range(1, batch_size + 1)
        if batch_size % size == 0 and size * longest <= max(longest, MAX_TOKENS)
    )
    return TrlConfig(
        output_dir=str(run_dir.path / "checkpoints"),
        num_train_epochs=1,  # _order has laid out all of them
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_RATIO,
        per_device_train_batch_size=fits,
        per_device_eval_batch_size=fits,
        gradient_accumulation_steps=batch_size // fits,
        seed=config.seed,
        data_seed=config.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # already encoded and truncated
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        activation_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        save_strategy="no",  # _Report decides when
        report_to="none",
        disable_tqdm=True,
    )


class _Trainer(SFTTrainer):
    """An SFTTrainer whose checkpoints are those of the run directory."""

    def __init__(self, *, run_dir: RunDir, **arguments: Any) -> None:
        self.run_dir = run_dir
        super().__init__(**arguments)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            self.run_dir.save_checkpoint(self.state.global_step, self._write, {})

    def _write(self, folder: Path) -> None:
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        self.state.save_to_json(str(folder / "trainer_state.json"))
        save_training_state(folder, *self._loop())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint:
            load_training_state(Path(checkpoint), *self._loop())

    def _loop(self) -> tuple[Optimizer, LRScheduler]:
        if self.optimizer is None or self.lr_scheduler is None:
            raise RuntimeError("the trainer has not begun")
        return self.optimizer, self.lr_scheduler

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint:
            load_random_state(Path(checkpoint))


class _Report(TrainerCallback):
    """Writes metrics, asks for checkpoints, and leaves when told to stop."""

    def __init__(
        self, accelerator: Accelerator, run_dir: RunDir, stop: StopFlag, stage: Stage, save_minutes: float
    ) -> None:
        self.accelerator, self.run_dir, self.stop, self.stage = accelerator, run_dir, stop, stage
        self.save_seconds, self.saved_at = 60 * save_minutes, time.monotonic()
        self.is_stopped = False

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        logs = kwargs["logs"]
        progress = self.stage.progress(state.global_step / state.max_steps)
        if "loss" in logs:
            values = {name: logs[name] for name in ("loss", "learning_rate")}
            self.run_dir.log(step=state.global_step, phase=self.stage.phase, progress=progress, **values)
        elif "eval_loss" in logs:
            self.run_dir.log(step=state.global_step, phase="validation", progress=progress, loss=logs["eval_loss"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        self.is_stopped = agree(self.accelerator, self.stop())
        is_due = time.monotonic() - self.saved_at >= self.save_seconds
        control.should_save = self.is_stopped or is_due
        return control

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.saved_at = time.monotonic()
        if self.is_stopped:
            raise Interrupted(f"stopped after step {state.global_step} of {state.max_steps}")
