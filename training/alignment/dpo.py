"""Direct preference optimisation: a policy learns from judgments, without a reward model in between.

The policy that is best under a reward r and a KL penalty of weight beta is the reference policy times exp(r / beta),
so each policy stands for a reward of its own, beta * log(policy / reference policy) of a response, up to a constant of
the prompt (see `implicit_reward`). Here that reward is fitted to people's rankings, by the same likelihoods as a reward
model's, and the policy comes with it.

TRL's DPOTrainer is for pairs of equal weight. Here rankings are of any length, with ties and with weights, so the loss
is our own, in a trainer of transformers; for pairs it is DPOTrainer's, to rounding, as a test holds. In one place ours
is another on purpose: IPO is of the log-probabilities' sums, as in its paper, not of their means, for a response's
probability is what the theory speaks of.

**Lists.** Either the mean over a ranking's ordered pairs, so that it weighs as much as a pair does, or the likelihood
of the whole ranking, per choice. Tied responses teach nothing about each other, and those that were not ranked nothing
at all. That all of a prompt's responses are bad does not say that none is better.

**Robust.** A share of the judgments is the wrong way round, and the likelihood accounts for that: a pair that the
policy contradicts clearly enough stops pulling, and where the share is right the optimum is that of judgments without
errors. The unbiased correction of S. R. Chowdhury, A. Kini and N. Natarajan, "Provably robust DPO", 2024, has the same
optimum on infinitely many judgments, but of finitely many, its loss falls without bound as each pair's margin grows.

Source: R. Rafailov et al., "Direct preference optimization: your language model is secretly a reward model", 2023; of
IPO, M. G. Azar et al., "A general theoretical paradigm to understand learning from human preferences", 2023, eq. 17.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from training.alignment.batching import budget
from training.alignment.config import ConfigError, DpoConfig, RejectionSamplingConfig
from training.alignment.evaluation import measure
from training.alignment.held_out_reward import HeldOut, held_out_reward
from training.alignment.implicit_reward import (
    MAX_TOKENS,
    Floats,
    encode_answer,
    most_tokens,
    require_same_tokens,
    response_logprobs,
    summed_logprobs,
)
from training.alignment.losses import all_pairs_loss, ranking_loss
from training.alignment.policies import (
    Policy,
    computes_in_bfloat16,
    is_sharded,
    load_policy,
    policy_card,
    prepare,
    save_policy,
    trainer_arguments,
)
from training.alignment.preferences import (
    Encoded,
    Messages,
    Preference,
    PromptedResponses,
    RankedResponses,
    read_rankings,
)
from training.alignment.reward_model import agree, join_processes
from training.alignment.reward_net import fit_length, silence_dropout
from training.alignment.run_dir import (
    Interrupted,
    RunDir,
    StopFlag,
    file_digest,
    replace_folder,
    write_json,
    write_whole,
)
from training.alignment.tracking import Tracker, held_out_prompts
from training.alignment.trainers import WHOLE_RUN, Report, RunDirTrainer, Stage, order_of_training

HELD_OUT, TRAIN = Stage("held_out", 0.0, 0.3), Stage("train", 0.3, 0.98)
WARMUP_RATIO = 0.05
SCORED_TOGETHER = 256  # responses, between two looks at whether to stop
REFERENCE, BEST = "reference_logprobs.json", "best"
Settings = DpoConfig | RejectionSamplingConfig


def preference_loss(
    rewards: Tensor,
    groups: Tensor,
    *,
    loss: str = "sigmoid",
    lists: str = "pairs",
    flip_rate: float = 0.0,
    beta: float = 0.1,
) -> Tensor:
    """(B,) the loss of each ranking under a policy; ln 2 for a pair where policy and reference policy are the same.

    Args:
        rewards: (B, K) float, beta * log(policy / reference policy) of each response.
        groups: (B, K) int64, the number of each response's group, 0 for the best; -1 where it was not ranked or none
            stands. On the CPU.
        loss: sigmoid, Bradley-Terry's likelihood; robust, the same where a share `flip_rate` of the judgments is the
            wrong way round; ipo, (margin of the log-ratios - 1 / (2 beta))^2.
        lists: pairs, the mean over the ordered pairs of a ranking; plackett_luce, its likelihood, per choice.
        beta: what log-ratios were multiplied by; of ipo only.
    """
    if loss == "ipo":
        return _ipo_loss(rewards / beta, groups, 1 / (2 * beta))
    if lists == "plackett_luce":
        return ranking_loss(rewards, groups)
    rate = rewards.new_full((len(rewards),), flip_rate) if loss == "robust" else None
    return all_pairs_loss(rewards, groups, flip_rate=rate)


def ordered_margins(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the better leads in each pair of a ranking: (B, P); and which pairs are ordered, (B, P) bool."""
    one, other = torch.triu_indices(groups.shape[1], groups.shape[1], 1)
    order = groups[:, other] - groups[:, one]
    is_ordered = (groups[:, one] >= 0) & (groups[:, other] >= 0) & (order != 0)
    return order.sign().to(rewards) * (rewards[:, one] - rewards[:, other]), is_ordered.to(rewards.device)


def _ipo_loss(log_ratios: Tensor, groups: Tensor, target: float) -> Tensor:
    margins, is_ordered = ordered_margins(log_ratios, groups)
    squares = ((margins - target) ** 2).where(is_ordered, 0.0)
    return squares.sum(1) / is_ordered.sum(1).clamp(min=1)


def train_dpo(config: DpoConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Train `config.policy` on the rankings of the training split, watched on held-out prompts, and save it.

    Returns:
        {"model"}, "loss", the mean over the last tenth of the steps; "accuracy", "accuracy_interval" and "num_pairs" of
        the policy's implicit reward on the test split's judgments; "num_rankings", "num_tied_rankings" that were left
        out, "num_steps", "num_truncated" responses; "saved_step"; and what `Tracker.result` tells.

    Raises:
        ConfigError: no training ranking puts one response above another, or the reference policy reads other tokens.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    accelerator = join_processes()
    path = run_dir.resolve(config.preferences)
    train = list(read_rankings(path, "train", config.aspect))
    decided = [ranked for ranked in train if ranked.is_decided]
    if not decided:
        raise ConfigError(f"preferences: no training ranking of {config.aspect} puts one response above another")
    prompts = held_out_prompts(config, path)
    held_out = held_out_reward(config, run_dir, accelerator, stop, HELD_OUT)
    train_stage = dataclasses.replace(TRAIN, start=0.0) if config.held_out_reward_model else TRAIN
    training = _Training(config, config.policy, decided, run_dir=run_dir, stop=stop, stage=train_stage)
    watch = _Watch(config, training, prompts, held_out)
    watch.check(0)
    training.run(watch)
    policy = watch.save()
    test = [ranked for ranked in read_rankings(path, "test", config.aspect) if ranked.is_decided]
    result = {
        **training.result(),
        "num_tied_rankings": len(train) - len(decided),
        "saved_step": watch.saved_step,
        **watch.tracker.result(watch.saved_step),
        **_accuracy(training, policy, test),
    }
    if accelerator.is_main_process:
        write_whole(run_dir.model / "README.md", policy_card(config, result, digest=file_digest(path)))
    accelerator.wait_for_everyone()
    return result


def fine_tune_on_pairs(
    settings: Settings,
    *,
    policy: str,
    pairs: Sequence[Preference],
    run_dir: RunDir,
    stop: StopFlag,
    stage: Stage = WHOLE_RUN,
) -> dict[str, Any]:
    """Train the model in the folder or of the id `policy` on pairs by DPO and save it in `run_dir.model`, with a card.

    The reference policy is the policy as it begins.

    Returns:
        {"model", "loss", "num_rankings", "num_steps", "num_truncated"}, see `train_dpo`.

    Raises:
        ConfigError: there are no pairs.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    if not pairs:
        raise ConfigError("pairs: there are none to learn from")
    join_processes()
    rankings = [RankedResponses(one.prompt, (one.chosen, one.rejected), ((0,), (1,))) for one in pairs]
    training = _Training(settings, policy, rankings, run_dir=run_dir, stop=stop, stage=stage)
    training.run()
    result = training.result()
    training.save(run_dir.model, policy_card(settings, result))
    return result


@dataclass(frozen=True)
class Item:
    """One ranking as it goes through the model."""

    encoded: tuple[Encoded, ...]
    groups: tuple[int, ...]
    weight: float
    reference: tuple[float, ...] = ()
    """The reference policy's log-probabilities of the responses."""

    @property
    def longest(self) -> int:
        return max(len(one.ids) for one in self.encoded)


class _Training:
    """A policy, what it is held to, and what it learns from."""

    def __init__(
        self,
        config: Settings,
        policy: str,
        rankings: Sequence[RankedResponses],
        *,
        run_dir: RunDir,
        stop: StopFlag,
        stage: Stage,
    ) -> None:
        self.config, self.run_dir, self.stop, self.stage = config, run_dir, stop, stage
        self.accelerator = join_processes()
        self.start, self.held_to = policy, getattr(config, "reference_policy", "")
        model, self.tokenizer = load_policy(run_dir.locate(policy))
        self.max_length = fit_length(config.max_length, model, self.tokenizer)
        silence_dropout(model)  # it would blur the few differences that a ranking tells
        self.model = prepare(model, config).to(self.accelerator.device)
        self.items = self._with_reference([self._item(ranked) for ranked in rankings])
        self.trainer = self._trainer()

    def run(self, after_step: Callable[[int], bool] | None = None) -> None:
        self.trainer.add_callback(Report(self.trainer, self.stop, self.stage, self.config.save_minutes, after_step))
        self.trainer.train_from_newest(self.stage.phase)

    def result(self) -> dict[str, Any]:
        losses = [line["loss"] for line in self.trainer.state.log_history if "loss" in line]
        last = losses[-max(1, len(losses) // 10) :]
        return {
            "model": self.run_dir.model.name,
            "loss": math.fsum(last) / len(last),
            "num_rankings": len(self.items),
            "num_steps": self.trainer.state.global_step,
            "num_truncated": sum(one.is_truncated for item in self.items for one in item.encoded),
        }

    @property
    def num_steps(self) -> int:
        """How many are planned."""
        return math.ceil(self.config.num_epochs * len(self.items) / self._batch_size)

    def save(self, folder: Path, card: str) -> None:
        """The policy as it stands. All processes must call."""
        save_policy(
            self.trainer.policy,
            self.tokenizer,
            folder,
            saved=self.config.saved,
            card=card,
            accelerator=self.trainer.accelerator,
        )

    def whole_policy(self) -> Policy:
        """The policy as it stands, in one piece, as each process can use it by itself."""
        if not is_sharded(self.config) or self.trainer.state.global_step == 0:
            return self.trainer.policy
        gathered = self.run_dir.path / "gathered"
        save_policy(self.trainer.policy, self.tokenizer, gathered, accelerator=self.trainer.accelerator)
        return load_policy(gathered)[0].to(self.accelerator.device)

    # Implicit rewards

    def score(self, policy: Policy, prompts: Sequence[PromptedResponses]) -> list[list[float]]:
        """beta * log(policy / reference policy) of each prompt's responses; nan where it overflows."""
        encoded = [[self._encode(one.prompt, text) for text in one.responses] for one in prompts]
        flat = [text for texts in encoded for text in texts]
        reference, as_reference = self.reference
        own = self._logprobs(policy, flat)
        with as_reference():
            scores = self.config.beta * (own - self._logprobs(reference, flat))
        rest = iter(np.where(np.isfinite(scores), scores, math.nan).tolist())
        return [list(islice(rest, len(texts))) for texts in encoded]

    @cached_property
    def reference(self) -> tuple[Policy, Callable[[], AbstractContextManager[Any]]]:
        """What the policy is held to, and what makes it so: the policy itself without its adapters, where it can be."""
        if isinstance(self.model, PeftModel) and not self.held_to and not is_sharded(self.config):
            return self.model, self.model.disable_adapter
        model, tokenizer = load_policy(self.run_dir.locate(self.held_to or self.start))
        require_same_tokens(self.tokenizer, tokenizer)
        frozen = prepare(model, dataclasses.replace(self.config, lora_rank=0)).to(self.accelerator.device)
        return frozen.eval().requires_grad_(False), nullcontext

    def _logprobs(self, model: Policy, encoded: Sequence[Encoded]) -> Floats:
        """(N,) as they are computed in training."""
        kind = self.accelerator.device.type
        is_rounded = kind != "cpu" and computes_in_bfloat16(self.config)
        model.eval()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=is_rounded):
            return response_logprobs(model, encoded)

    def _encode(self, prompt: Messages, response: str) -> Encoded:
        return encode_answer(self.tokenizer, prompt, response, self.max_length)

    # What is learned from

    def _item(self, ranked: RankedResponses) -> Item:
        """Without responses that were not ranked."""
        ranked = ranked.only([place for place, group in enumerate(ranked.groups) if group >= 0])
        encoded = tuple(self._encode(ranked.prompt, text) for text in ranked.responses)
        return Item(encoded, ranked.groups, ranked.weight)

    def _with_reference(self, items: Sequence[Item]) -> list[Item]:
        """With the reference policy's log-probabilities, which are computed once."""
        path = self.run_dir.path / REFERENCE
        if not path.exists():
            found = self._reference_logprobs([one for item in items for one in item.encoded])
            if self.accelerator.is_main_process:
                write_json(path, found)
            self.accelerator.wait_for_everyone()
        rest = iter(json.loads(path.read_text(encoding="utf-8")))
        return [dataclasses.replace(item, reference=tuple(islice(rest, len(item.encoded)))) for item in items]

    def _reference_logprobs(self, encoded: Sequence[Encoded]) -> list[float]:
        """Each process does its share; all get all. Before it has learned anything the policy is what it is held to."""
        model = self.reference[0] if self.held_to else self.model
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        mine: list[float] = []
        share = encoded[rank::size]
        for start in range(0, math.ceil(len(encoded) / size), SCORED_TOGETHER):
            if agree(self.accelerator, self.stop()):
                raise Interrupted("stopped before the first step")
            mine += self._logprobs(model, share[start : start + SCORED_TOGETHER]).tolist()
            if self.accelerator.is_main_process:
                self.run_dir.log(step=len(mine), phase="reference", progress=self.stage.start)
        shares = gather_object([mine]) if size > 1 else [mine]
        return [shares[place % size][place // size] for place in range(len(encoded))]

    # The trainer

    def _trainer(self) -> "_Trainer":
        size = self._batch_size
        lengths = [item.longest for item in self.items]
        order = order_of_training(lengths, self.num_steps * size, size, self.config.seed)  # all steps are full
        return _Trainer(
            run_dir=self.run_dir,
            model=self.model,
            args=self._arguments([self.items[place] for place in order]),
            train_dataset=_Items([self.items[place] for place in order]),
            data_collator=_together,
            processing_class=self.tokenizer,
            loss=self._loss(),
        )

    @property
    def _batch_size(self) -> int:
        """Rankings in a step, over all processes, as many in each."""
        num_processes = self.accelerator.num_processes
        return max(1, self.config.batch_size // num_processes) * num_processes

    def _loss(self) -> "Loss":
        config = self.config
        mean_weight = math.fsum(item.weight for item in self.items) / len(self.items)
        if not mean_weight:
            raise ConfigError("preferences: all training rankings have weight 0")
        if isinstance(config, DpoConfig):
            return Loss(config.beta, mean_weight, config.loss, config.lists, config.flip_rate)
        return Loss(config.beta, mean_weight)

    def _arguments(self, items: Sequence[Item]) -> TrainingArguments:
        """
        Args:
            items: in the order of training.
        """
        own_size = self._batch_size // self.accelerator.num_processes
        max_tokens = min(budget(MAX_TOKENS, self.accelerator.device), most_tokens(self.model))
        fits = max(size for size in range(1, own_size + 1) if own_size % size == 0 and _fits(size, items, max_tokens))
        return TrainingArguments(
            **trainer_arguments(self.config, self.model),
            output_dir=str(self.run_dir.path / "checkpoints"),
            num_train_epochs=1,  # order_of_training has laid out all of them
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            learning_rate=self.config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP_RATIO,
            per_device_train_batch_size=fits,
            gradient_accumulation_steps=own_size // fits,
        )


def _fits(size: int, items: Sequence[Item], max_tokens: int) -> bool:
    """Whether the responses of so many neighbours always go into one forward pass; those of one must."""
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    tokens = (sum(len(one.encoded) for one in part) * max(one.longest for one in part) for part in parts)
    return size == 1 or max(tokens) <= max_tokens


@dataclass(frozen=True)
class Loss:
    """What a step minimises: the mean over its rankings, by their weights, of `preference_loss`."""

    beta: float
    mean_weight: float = 1.0
    loss: str = "sigmoid"
    lists: str = "pairs"
    flip_rate: float = 0.0

    def __call__(self, logprobs: Tensor, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            logprobs: (N,) of the policy, for all items' responses in a row.

        Returns:
            The loss; and (P,) the margins of all ordered pairs, in nats, with no gradient, and their number.
        """
        groups = torch.full((len(items), max(len(item.groups) for item in items)), -1)
        reference = torch.zeros(groups.shape, dtype=logprobs.dtype)
        for row, item in enumerate(items):
            groups[row, : len(item.groups)] = torch.tensor(item.groups)
            reference[row, : len(item.groups)] = torch.tensor(item.reference, dtype=logprobs.dtype)
        is_there = (groups >= 0).to(logprobs.device)
        rewards = torch.zeros(groups.shape, dtype=logprobs.dtype, device=logprobs.device)
        rewards = self.beta * (rewards.masked_scatter(is_there, logprobs) - reference.to(logprobs.device))
        losses = preference_loss(
            rewards, groups, loss=self.loss, lists=self.lists, flip_rate=self.flip_rate, beta=self.beta
        )
        weights = torch.tensor([item.weight / self.mean_weight for item in items]).to(losses)
        margins, is_ordered = ordered_margins(rewards.detach(), groups)
        return (weights * losses).mean(), margins, is_ordered


class _Items(Dataset[Item]):
    """Rankings in the order of training."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Item:
        return self.items[place]


def _together(items: list[Item]) -> dict[str, list[Item]]:
    return {"items": items}


class _Trainer(RunDirTrainer):
    """Steps on the loss of whole rankings; tells how many pairs the policy orders as they were judged."""

    loss_is_scaled_for_ga = False

    def __init__(self, *, loss: Loss, **arguments: Any) -> None:
        self.loss_of_items = loss
        self.seen = torch.zeros(3, dtype=torch.float64)
        """Of the step so far: pairs ordered rightly, the sum of all margins, pairs."""
        super().__init__(**arguments)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        items: list[Item] = inputs["items"]
        logprobs = summed_logprobs(model, [one for item in items for one in item.encoded])
        loss, margins, is_ordered = self.loss_of_items(logprobs, items)
        right, total = ((margins > 0) & is_ordered).sum(), margins.where(is_ordered, 0.0).sum()
        self.seen += torch.stack([right, total, is_ordered.sum()]).double().cpu()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            seen = self.seen.to(self.accelerator.device, torch.float32)
            right, margin, num_pairs = self.accelerator.reduce(seen).tolist()
            self.seen.zero_()
            if not math.isfinite(logs["loss"]):
                step = self.state.global_step
                raise FloatingPointError(f"the loss of step {step} is {logs['loss']}; try a lower learning_rate")
            logs |= {"accuracy": right / num_pairs, "margin": margin / num_pairs}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody asks for them."""
        return 0


class _Watch:
    """Checks at intervals; keeps the best policy so far, and says when to stop."""

    def __init__(self, config: DpoConfig, training: _Training, prompts: Sequence[Messages], held_out: HeldOut) -> None:
        self.config, self.training = config, training
        self.best = training.run_dir.path / BEST
        self.policy = training.model  # that is being checked
        self.tracker = Tracker(
            config,
            run_dir=training.run_dir,
            accelerator=training.accelerator,
            reference=(training.reference[0], training.tokenizer),
            prompts=prompts,
            proxy=lambda prompts: training.score(self.policy, prompts),
            held_out=held_out,
        )

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step."""
        is_due = step % self.config.check_steps == 0 or step == self.training.num_steps
        return is_due and self.check(step)

    def check(self, step: int) -> bool:
        self.policy = self.training.whole_policy()
        alarm = self.tracker.check(step, self.policy, self.training.tokenizer)
        if self.tracker.best_step == step:
            self.training.save(self.best, policy_card(self.config, {}))
        return alarm is not None and self.config.guard == "stop"

    @property
    def has_stopped(self) -> bool:
        return self.tracker.alarm is not None and self.config.guard == "stop"

    @property
    def saved_step(self) -> int:
        return self.tracker.best_step if self.has_stopped else self.training.trainer.state.global_step

    def save(self) -> Policy:
        """Put the policy of `saved_step` where the run's model belongs, and give it."""
        training = self.training
        if not self.has_stopped:
            training.save(training.run_dir.model, "")
            return training.whole_policy()
        if training.accelerator.is_main_process:
            replace_folder(
                training.run_dir.model, lambda folder: shutil.copytree(self.best, folder, dirs_exist_ok=True)
            )
        training.accelerator.wait_for_everyone()
        model, _ = load_policy(training.run_dir.model)
        return model.to(training.accelerator.device)


def _accuracy(training: _Training, policy: Policy, rankings: Sequence[RankedResponses]) -> dict[str, Any]:
    """How often the policy's implicit reward orders pairs as they were judged; each process scores its share."""
    rank, size = training.accelerator.process_index, training.accelerator.num_processes
    prompts = [PromptedResponses(one.prompt, one.responses) for one in rankings[rank::size]]
    mine = training.score(policy, prompts)
    shares = gather_object([mine]) if size > 1 else [mine]
    found = measure(rankings, [shares[place % size][place // size] for place in range(len(rankings))], "test")
    return {"accuracy": found["accuracy"], "accuracy_interval": found["interval"], "num_pairs": found["num_pairs"]}
