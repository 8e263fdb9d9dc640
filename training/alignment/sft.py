"""Supervised fine-tuning of a policy on example responses, by TRL's SFTTrainer.

The loss counts the tokens of the response only. Examples are rendered by `preferences.encode`, as everywhere, so
that text which looks like a special token never becomes one. A run that was stopped goes on from the newest checkpoint
and ends with the same weights (on a CPU, with one process).

Packed, the examples of a forward pass stand side by side in one row instead of below each other in padded ones. Which
examples are in a step does not change, and so, but for rounding, neither does its loss: positions start again with each
example, and attention is told by them where one ends. A model that does not heed them is found out and refused.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from training.alignment.config import ConfigError, RejectionSamplingConfig, SftConfig
from training.alignment.policies import Policy, load_policy, policy_card, prepare, save_policy, trainer_arguments
from training.alignment.preferences import Messages, contents, encode, prompt_of, read_objects, read_rankings
from training.alignment.reward_model import join_processes
from training.alignment.reward_net import fit_length
from training.alignment.run_dir import RunDir, StopFlag, file_digest, replace_folder
from training.alignment.tiny_lm import build_tiny_lm
from training.alignment.trainers import WHOLE_RUN, Report, RunDirTrainer, Stage, order_of_training

NEW_TINY = "new:tiny"
MAX_TOKENS = 16384  # in one forward pass, padding included; more examples than fit are accumulated
MAX_PACKED_TOKENS = 4096  # in one row: attention may compute what packed examples must not see, before leaving it out
SAME = 1e-3  # of the largest logit, where a model heeds which examples are others: 1e-6 in single precision
WARMUP_RATIO = 0.05
Settings = SftConfig | RejectionSamplingConfig


@dataclass(frozen=True)
class Example:
    prompt: Messages
    completion: str


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
    digest = file_digest(run_dir.resolve(config.examples or config.preferences))
    return fine_tune(config, policy=policy, train=train, held_out=held_out, run_dir=run_dir, stop=stop, digest=digest)


def fine_tune(
    config: Settings,
    *,
    policy: str,
    train: Sequence[Example],
    held_out: Sequence[Example],
    run_dir: RunDir,
    stop: StopFlag,
    stage: Stage = WHOLE_RUN,
    digest: str = "",
) -> dict[str, Any]:
    """Fine-tune the model in the folder or of the id `policy` on `train` and save it in `run_dir.model`, with a card.

    Args:
        digest: SHA-256 of what the examples are from.

    Raises:
        ConfigError: the model cannot be packed, or adapters cannot be saved as they are asked for.
        Interrupted: `stop` became true; a checkpoint is left.

    Returns:
        {"model", "loss", "num_examples", "num_steps", "num_truncated"}, and "held_out_loss" where there are held-out
        examples. Losses are in nats per token of the response; "loss" is the mean over the last tenth of the steps.
    """
    model, tokenizer = load_policy(policy)
    max_length = fit_length(config.max_length, model, tokenizer)
    dataset, num_truncated = _encode_all(train, tokenizer, max_length)
    if _is_packed(config):
        require_packing(model)
    num_drawn = math.ceil(config.num_epochs * len(dataset))
    lengths = [len(ids) for ids in dataset["input_ids"]]
    dataset = dataset.select(order_of_training(lengths, num_drawn, config.batch_size, config.seed))
    prepared = prepare(model, config)
    trainer = _Trainer(
        run_dir=run_dir,
        model=prepared,
        args=_arguments(config, prepared, run_dir, [len(ids) for ids in dataset["input_ids"]]),
        train_dataset=dataset,
        processing_class=tokenizer,
        tokens_per_example=sum(label != -100 for labels in dataset["labels"] for label in labels) / len(dataset),
    )
    trainer.add_callback(Report(trainer, stop, stage, config.save_minutes))
    trainer.train_from_newest(stage.phase)
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
    save_policy(
        trainer.policy,
        tokenizer,
        run_dir.model,
        saved=config.saved,
        card=policy_card(config, result, digest=digest),
        accelerator=trainer.accelerator,
    )
    return result


def require_packing(model: PreTrainedModel) -> None:
    """Two sequences side by side must give what each gives by itself.

    Raises:
        ConfigError: one sees the other.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(3, 43).remainder(vocabulary)[None]  # two sequences of twenty tokens
    positions = torch.arange(20).repeat(2)[None]
    is_training = model.training
    model.eval()
    with torch.inference_mode():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 20:]
        alone = model(input_ids=ids[:, 20:], use_cache=False).logits
    model.train(is_training)
    if not torch.allclose(packed, alone, atol=SAME * alone.abs().max().item(), rtol=0):
        raise ConfigError("packing: this model lets packed examples see each other; leave it off")


def read_examples(path: Path) -> Iterator[Example]:
    """Examples from lines {"prompt": messages or text, "completion": text or one message}.

    Raises:
        ConfigError: a line is not an example; the message tells the line and the field.
    """
    return read_objects(path, "examples", _example)


def _example(row: dict[str, Any]) -> Example:
    told = row["completion"]
    completions = contents([told] if isinstance(told, str) else told, "completion")
    if len(completions) > 1:
        raise ValueError(f"completion: is one message, not {len(completions)}")
    if not completions[0].strip():
        raise ValueError("completion: is empty")
    return Example(prompt_of(row), completions[0])


def best_responses(path: Path, split: str) -> list[Example]:
    """The best responses of each ranking of `split`, each once; none of a ranking whose responses are all bad."""
    found: dict[str, Example] = {}
    for ranked in read_rankings(path, split=split):
        if not ranked.all_bad:
            for index in ranked.ranking[0]:
                example = Example(ranked.prompt, ranked.responses[index])
                found.setdefault(json.dumps([example.prompt, example.completion]), example)
    return list(found.values())


def edited_responses(path: Path, split: str) -> list[Example]:
    """Responses of `split` as people have rewritten them, each once."""
    found: dict[str, Example] = {}
    for ranked in read_rankings(path, split=split):
        if ranked.edited:
            example = Example(ranked.prompt, ranked.edited)
            found.setdefault(json.dumps([example.prompt, example.completion]), example)
    return list(found.values())


def _read(config: SftConfig, run_dir: RunDir) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples."""
    if config.examples:
        train, held_out = list(read_examples(run_dir.resolve(config.examples))), []
    elif config.preferences:
        path = run_dir.resolve(config.preferences)
        responses = edited_responses if config.responses == "edited" else best_responses
        train, held_out = responses(path, "train"), responses(path, "validation")
    else:
        raise ConfigError("examples: neither examples nor preferences are given")
    if not train and config.preferences and config.responses == "edited":
        raise ConfigError("responses: nobody has edited a response to a training prompt of this preference set")
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


def _arguments(config: Settings, model: Policy, run_dir: RunDir, lengths: Sequence[int]) -> TrlConfig:
    """
    Args:
        lengths: of the examples in the order of training.
    """
    batch_size = max(1, config.batch_size // PartialState().num_processes)
    fits = max(size for size in range(1, batch_size + 1) if batch_size % size == 0 and _fits(size, lengths, config))
    return TrlConfig(
        **trainer_arguments(config, model),
        output_dir=str(run_dir.path / "checkpoints"),
        num_train_epochs=1,  # order_of_training has laid out all of them
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP_RATIO,
        per_device_train_batch_size=fits,
        per_device_eval_batch_size=fits,
        gradient_accumulation_steps=batch_size // fits,
        max_length=None,
        padding_free=_is_packed(config),
        dataset_kwargs={"skip_prepare_dataset": True},  # already encoded and truncated
    )


def _is_packed(config: Settings) -> bool:
    return isinstance(config, SftConfig) and config.packing


def _fits(size: int, lengths: Sequence[int], config: Settings) -> bool:
    """Whether so many neighbours always go into one forward pass; one alone must."""
    parts = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    if _is_packed(config):
        return size == 1 or max(map(sum, parts)) <= MAX_PACKED_TOKENS
    return size == 1 or max(map(max, parts)) * size <= MAX_TOKENS


class _Trainer(RunDirTrainer, SFTTrainer):
    """Each token of a response counts the same in all steps.

    A step's examples are of similar length, so the mean over its own tokens, which the trainer would take, counts those
    of short responses for more, and the policy learns to be short: on a model whose responses can be listed it ended at
    a total variation of 0.17 from the law of its examples, and so 0.01 or less.

    Args:
        tokens_per_example: of the response, on average over the training examples.
    """

    def __init__(self, *, tokens_per_example: float, **arguments: Any) -> None:
        self.tokens_per_example = tokens_per_example
        self.num_tokens = 0
        """Of responses, in the step so far."""
        super().__init__(**arguments)

    @property
    def tokens_per_step(self) -> float:
        num_examples = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self.tokens_per_example * num_examples

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        if self.is_in_train:
            self.num_tokens += int((inputs["labels"][..., 1:] != -100).sum())
        return super().compute_loss(model, inputs, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Of a step, the mean over its own tokens."""
        if "loss" in logs:
            num_tokens = self.accelerator.reduce(torch.tensor(float(self.num_tokens), device=self.accelerator.device))
            logs["loss"] *= self.tokens_per_step / num_tokens.item()
            self.num_tokens = 0
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return self.tokens_per_step if self.is_in_train else super()._get_num_items_in_batch(batch_samples, device)
