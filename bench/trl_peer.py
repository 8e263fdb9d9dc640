"""The peer: TRL's RewardTrainer on the pairs of our rankings, from the same weights, with its best settings.

It gets the token ids that we read, so that neither side's preparation counts, and our optimizer, learning rates and
number of steps. What its users can turn for speed is tried out: the number of pairs in a forward pass, grouping by
length, and bfloat16; recomputing activations, which is its default, is off.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import peak_memory, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.alignment.preferences import RankedResponses

Pair = dict[str, Any]
"""chosen_ids, rejected_ids, and length: of the longer one."""
BATCH_SIZES = (1, 2, 4, 8, 16)
TOKENS_TO_TRY = 8_000


@dataclass(frozen=True)
class Settings:
    """How TRL goes through its pairs."""

    batch_size: int = 8
    """Pairs in a forward pass."""
    is_grouped: bool = True
    """Pairs of similar length go together."""
    is_bf16: bool = False

    def __str__(self) -> str:
        kind = "bf16" if self.is_bf16 else "fp32"
        return f"{self.batch_size} pairs a batch, {'grouped by length' if self.is_grouped else 'shuffled'}, {kind}"


@dataclass(frozen=True)
class Task:
    """What to train."""

    backbone: Path
    pairs: Sequence[Pair]
    num_steps: int
    """In an epoch."""
    learning_rate: float
    num_epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """One training, however it was done."""

    seconds: float
    """From the first to the last step, the first taken to have been as fast as the others."""
    num_tokens: int
    """That went through the model, padding included."""
    num_steps: int
    cpu_seconds: float
    """The same of its processor time, which others on the machine do not lengthen."""
    memory: float
    """MiB at most beyond those that the imported packages take."""


def encode_pairs(
    rankings: "Sequence[RankedResponses]", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Pair]:
    """Every decided pair, as the token ids that our own training reads."""
    from training.alignment.preferences import encode_to_score

    found = []
    for ranked in rankings:
        ids = [encode_to_score(tokenizer, ranked.prompt, text, max_length).ids for text in ranked.responses]
        found += [
            {"chosen_ids": ids[better], "rejected_ids": ids[worse], "length": max(len(ids[better]), len(ids[worse]))}
            for better, worse in ranked.ordered_places()
        ]
    return found


def padded_tokens(lengths: Sequence[int], batch_size: int) -> int:
    """Tokens of pairs that are padded to the longest of their batch, in the order given."""
    return sum(
        2 * len(batch) * max(batch)
        for batch in (lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size))
    )


def train(task: Task, settings: Settings, folder: Path | None = None) -> Measured:
    """Train with TRL; to be called in a process of its own. The model is left in `folder`, if one is named."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    prepare()
    held = peak_memory()
    times: list[tuple[float, float]] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append((time.time(), time.process_time()))

    class Counter(DataCollatorForPreference):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super().torch_call(examples)
            tokens.append(batch["input_ids"].numel())
            return batch

    tokenizer = AutoTokenizer.from_pretrained(task.backbone)
    model = AutoModelForSequenceClassification.from_pretrained(task.backbone, num_labels=1, dtype=torch.float32)
    num_batches = math.ceil(len(task.pairs) / settings.batch_size)
    accumulation = math.ceil(num_batches / task.num_steps)
    with tempfile.TemporaryDirectory() as scratch:
        told = RewardConfig(
            output_dir=scratch,
            num_train_epochs=task.num_epochs,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="group_by_length" if settings.is_grouped else "random",
            remove_unused_columns=False,  # it would take the lengths away before it groups by them
            learning_rate=task.learning_rate,
            lr_scheduler_type="cosine_warmup_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=math.ceil(0.05 * task.num_steps * task.num_epochs),
            optim="adamw_torch_fused",
            adam_beta2=0.95,
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_length=None,
            activation_checkpointing=False,
            bf16=settings.is_bf16,
            use_cpu=True,
            seed=task.seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model=model,
            args=told,
            data_collator=Counter(pad_token_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(list(task.pairs)),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    memory = peak_memory() - held
    if folder:
        trainer.save_model(str(folder))
    by_step = [sum(tokens[start : start + accumulation]) for start in range(0, len(tokens), accumulation)]
    return measured(times, by_step, memory)


def measured(times: Sequence[tuple[float, float]], tokens: Sequence[int], memory: float) -> Measured:
    """From wall and processor time at which each step ended, and its tokens: before the first, things still start."""
    first_too = sum(tokens) / sum(tokens[1:])
    seconds, cpu_seconds = ((last - first) * first_too for first, last in zip(times[0], times[-1], strict=True))
    return Measured(seconds, sum(tokens), len(times), cpu_seconds, memory)


def best_settings(task: Task) -> tuple[Settings, str]:
    """The settings with which a few of the pairs are trained on the fastest, and what all were like.

    To be called in a process of its own. One thing is turned at a time: batch size, grouping, precision. Rates are by
    processor time: on a machine with other work, chance would choose.
    """
    count = max(4, TOKENS_TO_TRY // max(1, sum(2 * pair["length"] for pair in task.pairs) // len(task.pairs)))
    few = task.pairs[:: max(1, len(task.pairs) // count)][:count]
    rates: dict[Settings, float] = {}

    def rate(settings: Settings) -> float:
        if settings not in rates:
            num_steps = max(2, math.ceil(len(few) / max(settings.batch_size, 4)))
            rates[settings] = len(few) / train(replace(task, pairs=few, num_steps=num_steps), settings).cpu_seconds
        return rates[settings]

    sizes = [size for size in BATCH_SIZES if 2 * size <= len(few)]
    best = max((Settings(size) for size in sizes), key=rate)
    best = max((best, replace(best, is_grouped=False)), key=rate)
    best = max((best, replace(best, is_bf16=True)), key=rate)
    return best, "; ".join(f"{settings}: {found:.2f} pairs/s" for settings, found in rates.items())
