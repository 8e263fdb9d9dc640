"""Train one reward model on rankings.

The training loop is written out over accelerate instead of being a `transformers.Trainer`. That one counts examples of
fixed shape; here a step is over whole rankings of varying K, packed so that each prompt and each response go through
the model once (see `packing`), all judgments of the same responses are in the same step, and each ranking weighs the
same, however its step is cut into rows and over processes. Checkpoints are those of the run directory, without pickle,
and what is random in a step follows from the seed and its number, so a run that was killed goes on and ends as if it
had not been.

Several processes each hold the whole model, or, sharded, a part of it (PyTorch's FSDP2). Weights are in single
precision; products are in bfloat16 where the hardware multiplies in it.
"""

import dataclasses
import gc
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training.alignment.batching import budget
from training.alignment.calibration import fit_temperature
from training.alignment.checkpoint import read_optimizer_state, read_schedule, save_training_state
from training.alignment.config import ConfigError, RewardModelConfig
from training.alignment.evaluation import measure, report
from training.alignment.items import (
    Item,
    annotators_of,
    build_items,
    judge,
    length_spread,
    log_length,
    start_with_length,
)
from training.alignment.losses import Likelihood
from training.alignment.model_card import model_card
from training.alignment.noise import NotIdentifiedError, estimate_flip_rate
from training.alignment.packing import Packing, build_row, plan
from training.alignment.preferences import RankedResponses, prompt_key, read_rankings
from training.alignment.products import round_products
from training.alignment.reward import Scored
from training.alignment.reward_model import RewardModel, agree, join_processes, normalisation, score_rankings
from training.alignment.reward_net import RewardNet, fit_length, load_backbone, silence_dropout
from training.alignment.run_dir import (
    Interrupted,
    RunDir,
    StopFlag,
    file_digest,
    replace_folder,
    write_json,
    write_whole,
)
from training.alignment.weights import add_adapters, classifier_state, load_training_state, shard, training_state

TRAINING_SHARE = 0.95  # of the progress; the rest is the final scoring
VALIDATIONS_PER_EPOCH = 5
NUM_REFERENCE_RANKINGS = 1000  # on whose responses scores are normalised
MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.95)  # as in OpenRLHF; runs are too short for the usual memory of a thousand steps
JUDGING_LEARNING_RATE = 0.05  # of a tie parameter and the like: few numbers, of the order of one
JUDGING_BETAS = (0.9, 0.999)  # an annotator is met in few steps: with a shorter memory each would count as much
FINAL_LEARNING_RATE = 0.1  # of the peak; the way there is a cosine
MAX_FLIP_RATE = 0.49
PAIR = 2
SPLITS = ("train", "validation", "test")
STATE = ("validated_step", "best_step", "best_loss", "num_worse", "num_real", "num_computed", "learned")


def train_reward_model(config: RewardModelConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Train on the train split, keep the best on validation in `run_dir.model`, measure it on the test split.

    Beside the model, report.json tells what it is worth on the test split (see `evaluation.report`).

    Returns:
        {"model", "accuracy", "interval", "num_pairs", "num_prompts", "loss"} of the test split (see
        `evaluation.measure`); "validation_loss" and "best_step" where there is a validation split; "num_steps";
        "num_train_rankings" that teach anything, "num_tied_rankings" that do not, "num_too_long" that were left out;
        "num_shared_prompts" of the training split that are in the others too, which should be none;
        "num_truncated" responses of both the training and the test rankings; "packing", and the share of "real_tokens"
        in its rows; "temperature"; what was "learned" about ties, flips, annotators and length until the best step; and
        what "repeated_judgments" of the same pairs tell about flips.

    Raises:
        ConfigError: an aspect is named twice, no training ranking of one puts one response above another, or the
            backbone cannot serve.
        FloatingPointError: the loss is no longer a number.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    if twice := [aspect for aspect, count in Counter(config.aspects).items() if count > 1]:
        raise ConfigError(f"aspect: {twice[0]} is named twice")
    accelerator = join_processes()
    torch.manual_seed(config.seed)
    path = run_dir.resolve(config.preferences)
    splits = [[one for one in read_rankings(path, split) if one.aspect in config.aspects] for split in SPLITS]
    train, validation, test = splits
    training = _Training(config, run_dir, accelerator, train, validation)
    training.run(stop)
    result = {**training.result(), "num_shared_prompts": _num_shared_prompts(train, [*validation, *test])}
    del training
    accelerator.free_memory()  # the model is loaded anew, as it was saved
    gc.collect()
    return _Finish(config, run_dir, accelerator, stop).measure(train, validation, test, result)


class _Training:
    """The loop: model, optimizer and schedule at some step."""

    def __init__(
        self,
        config: RewardModelConfig,
        run_dir: RunDir,
        accelerator: Accelerator,
        train: Sequence[RankedResponses],
        validation: Sequence[RankedResponses],
    ) -> None:
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.device = accelerator.device
        self.is_sharded = config.sharding != "none" and accelerator.num_processes > 1
        self.validation = [ranked for ranked in validation if ranked.is_decided]
        self._build(train)
        self.steps_per_epoch = math.ceil(len(self.items.items) / config.batch_size)
        self.num_steps = math.ceil(config.num_epochs * self.steps_per_epoch)
        self.eval_steps = config.eval_steps or max(1, self.steps_per_epoch // VALIDATIONS_PER_EPOCH)
        self.step, self.validated_step, self.best_step, self.num_worse = 0, 0, 0, 0
        self.num_real, self.num_computed = 0, 0
        self.best_loss: float | None = None
        self.learned: dict[str, Any] = {}
        self._build_optimizer()
        self.saved_step = -1
        self._resume()
        self.saved_at = time.monotonic()

    def run(self, stop: StopFlag) -> None:
        """Train to the last step, or until validation has not found a better model for long enough.

        A checkpoint comes before a validation that is due, which a resumed run makes up for: a run that is asked to
        stop does not keep its supervisor waiting.
        """
        self._validate_if_due()
        while self.step < self.num_steps and not self._has_given_up:
            self._train_step()
            self._save_if_due(stop)
            self._validate_if_due()
        self._save()
        if not self.validation:
            self._keep_model()

    def result(self) -> dict[str, Any]:
        best = {"validation_loss": self.best_loss, "best_step": self.best_step} if self.validation else {}
        repeats = {"repeated_judgments": self.repeats} if self.repeats else {}
        return {
            **best,
            "num_steps": self.step,
            "num_train_rankings": self.items.num_rankings,
            "num_tied_rankings": self.items.num_silent,
            "num_too_long": self.items.num_too_long,
            "num_truncated": self.items.num_truncated,
            "packing": self.net.packing.value,
            "real_tokens": self.num_real / max(1, self.num_computed),
            **repeats,
            **({"learned": self.learned} if self.learned else {}),
        }

    def _build(self, train: Sequence[RankedResponses]) -> None:
        config, num_processes = self.config, self.accelerator.num_processes
        model, self.tokenizer = load_backbone(self.run_dir.locate(config.backbone), len(config.aspects))
        packing = None if config.packing == "auto" else Packing(config.packing)
        self.max_length = fit_length(config.max_length, model, self.tokenizer)
        whole = model if self.is_sharded else model.to(self.device)  # shards are moved one by one
        self.net = net = RewardNet(whole, packing, self.max_length)
        self.max_tokens = budget(config.max_tokens, self.device)
        self.repeats = flip_rate_of_repeats(train)
        self.likelihood = _likelihood(config, train, self.repeats)
        if not all(self.likelihood.can_smooth(ranked.is_unsorted) for ranked in train if ranked.is_decided):
            raise ConfigError(
                "label_smoothing: under davidson lists whose last responses nobody sorted have no opposite; "
                "take the loss all_pairs, or no smoothing"
            )
        self.items = build_items(
            train,
            aspects=config.aspects,
            likelihood=self.likelihood,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            packing=net.packing,
            is_weighted=config.annotators == "weights",
        )
        if not self.items.items:
            raise ConfigError(_no_preferences(config.aspect, len(train), self.items.num_too_long))
        if untaught := [aspect for head, aspect in enumerate(config.aspects) if not self.items.has_order(head)]:
            raise ConfigError(f"aspect: no training ranking of {untaught[0]} puts one response above another")
        start_with_length(self.likelihood, self.items.items)  # on the CPU, so that all processes find the same
        self.likelihood.to(self.device)
        if not config.dropout:
            silence_dropout(model)
        if config.lora_rank:
            add_adapters(model, config.lora_rank, config.lora_alpha)
        if self.device.type == "cpu" and computes_in_bfloat16(config.precision, self.device):
            round_products(model)
        if config.gradient_checkpointing:
            try:
                model.activation_checkpointing_enable()
            except ValueError as error:
                raise ConfigError(f"gradient_checkpointing: {error}") from error
        if self.is_sharded:
            net.is_one_pass = True
            shard(net, self.device.type, num_processes)
        self.parallel_net = net if self.is_sharded else self.accelerator.prepare_model(net)
        self.mean_weight = sum(item.weight for item in self.items.items) / len(self.items.items)
        self.trained = nn.ModuleDict({"net": net, "likelihood": self.likelihood})

    def _build_optimizer(self) -> None:
        config = self.config
        groups = _parameter_groups(self.net, config.weight_decay)
        judging = {"weight_decay": 0.0, "lr": JUDGING_LEARNING_RATE, "betas": JUDGING_BETAS}
        opponents = self.likelihood.opponents
        if own := [one for one in self.likelihood.parameters() if all(one is not other for other in opponents)]:
            groups.append({"params": own, **judging})
        if opponents:
            groups.append({"params": opponents, **judging, "maximize": True})
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=BETAS, fused=None if self.is_sharded else True
        )
        self.scheduler = LambdaLR(self.optimizer, _schedule(self.num_steps, config.warmup_ratio))

    def _train_step(self) -> None:
        items = self._draw()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss = self.accelerator.reduce(self._backward(items)).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step + 1} is {loss}; try a lower learning_rate")
        self._reduce_judging()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        tokens = sum(item.bundle.num_tokens for item in items)
        self._log("train", loss=loss, learning_rate=learning_rate, tokens=tokens)

    def _draw(self) -> list[Item]:
        """The items of the next step: each epoch is in an order of its own, which follows from seed and number."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.items.items), generator=generator).tolist()
        start = place * self.config.batch_size
        return [self.items.items[index] for index in order[start : start + self.config.batch_size]]

    def _backward(self, items: Sequence[Item]) -> Tensor:
        """This process's part of the mean loss over the judgments of `items`; gradients are summed over rows."""
        accelerator = self.accelerator
        shares = [items[number :: accelerator.num_processes] for number in range(accelerator.num_processes)]
        rows = [self._rows(share or items[:1]) for share in shares]  # with nothing to do it still takes part
        mine, own = shares[accelerator.process_index], rows[accelerator.process_index]
        scale = 1 / (len(items) * self.mean_weight) if mine else 0.0  # a judgment weighs the same in every step
        if self.is_sharded:  # layers are gathered from all, so all must go through as many rows
            own = own + own[-1:] * (max(map(len, rows)) - len(own))
        total = torch.zeros((), device=self.device)
        self._set_mode(is_training=True)
        for number, part in enumerate(own):
            is_extra = number >= len(rows[accelerator.process_index])
            with self._exchange(is_last=number == len(own) - 1):
                loss = self._loss([(mine or items)[place] for place in part]) * (0.0 if is_extra else scale)
                (loss * accelerator.num_processes).backward()  # gradients are then averaged over processes
            total += loss.detach()
        self._set_mode(is_training=False)
        return total

    def _rows(self, items: Sequence[Item]) -> list[list[int]]:
        return plan([item.bundle for item in items], self.net.packing, self.max_tokens)

    def _loss(self, items: Sequence[Item]) -> Tensor:
        """The weighted sum of the losses of items that go through the model in one row."""
        row = build_row([item.bundle for item in items], self.net.packing, self.device)
        self.num_real += row.num_tokens
        self.num_computed += row.num_tokens if self.net.packing == Packing.ALONE else row.input_ids.numel()
        with self._autocast():
            rewards = self.parallel_net(row)
        return judge(self.likelihood, rewards, items)

    def _set_mode(self, *, is_training: bool) -> None:
        """Modules behave as in training only where that makes a difference: for dropout and checkpointing."""
        if self.config.gradient_checkpointing:
            for module in self.net.model.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.training = is_training  # but not what is in it: models name dropouts as they like
        if self.config.dropout:
            self.net.model.train(is_training)
            if is_training:
                place = self.step * self.accelerator.num_processes + self.accelerator.process_index
                torch.manual_seed(self.config.seed * 1_000_003 + place)

    def _exchange(self, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes with the last row of a step."""
        is_put_off = not is_last and not self.is_sharded
        return self.accelerator.no_sync(self.parallel_net) if is_put_off else nullcontext()

    def _reduce_judging(self) -> None:
        """Average the gradients of the likelihood's own parameters, which no wrapper does."""
        for parameter in self.likelihood.parameters() if self.accelerator.num_processes > 1 else ():
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is wanted; weights stay in single precision, and on a CPU all but products of weights."""
        is_used = self.device.type != "cpu" and computes_in_bfloat16(self.config.precision, self.device)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_used)

    @property
    def _has_given_up(self) -> bool:
        return 0 < self.config.patience <= self.num_worse

    def _validate_if_due(self) -> None:
        is_due = self.step == self.num_steps or (self.step > 0 and self.step % self.eval_steps == 0)
        if not self.validation or not is_due or self.validated_step == self.step:
            return
        model = RewardModel(
            self.net,
            self.tokenizer,
            self.device,
            self.max_length,
            self.config.max_tokens,
            aspects=tuple(self.config.aspects),
            means=(0.0,) * len(self.config.aspects),
            stds=(1.0,) * len(self.config.aspects),
        )
        with self._autocast():
            chunks = score_rankings(self.accelerator, model, self.validation, StopFlag(), not self.is_sharded)
            scores = [one.scores for chunk in chunks for one in chunk]
        seen = _with_length(self.validation, scores, self.likelihood.nats_per_doubling)
        found = measure(self.validation, _calibrated(self.validation, seen, self.config.aspects), "validation")
        self.validated_step = self.step
        self._log("validation", loss=found["loss"], accuracy=found["accuracy"])
        self.num_worse += 1
        if self.best_loss is None or found["loss"] < self.best_loss:
            self.best_loss, self.best_step, self.num_worse = found["loss"], self.step, 0
            self._keep_model()  # also after a resume: a kill may have come before

    def _keep_model(self) -> None:
        self.learned = self._learned()
        state = classifier_state(self.net.model)
        if self.accelerator.is_main_process:
            replace_folder(self.run_dir.model, lambda folder: self._write_model(folder, state))
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        self.net.model.config.update(
            {
                "reward_aspects": self.config.aspects,
                "reward_max_length": self.max_length,
                "id2label": dict(enumerate(self.config.aspects)),
                "label2id": {aspect: head for head, aspect in enumerate(self.config.aspects)},
            }
        )
        self.net.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)

    def _learned(self) -> dict[str, Any]:
        told = self.likelihood.learned()
        return {name: _by_annotator(value, self.items.annotators) for name, value in told.items()}

    def _log(self, phase: str, **values: float) -> None:
        if self.accelerator.is_main_process:
            progress = TRAINING_SHARE * self.step / self.num_steps
            self.run_dir.log(step=self.step, phase=phase, progress=progress, **values)

    def _save_if_due(self, stop: StopFlag) -> None:
        is_stopped = agree(self.accelerator, stop())
        if is_stopped or agree(self.accelerator, time.monotonic() - self.saved_at >= 60 * self.config.save_minutes):
            self._save()
        if is_stopped:
            raise Interrupted(f"stopped after step {self.step} of {self.num_steps}")

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        weights, state = training_state(self.trained, self.optimizer)
        if self.accelerator.is_main_process:
            own = {name: getattr(self, name) for name in STATE}
            self.run_dir.save_checkpoint(self.step, lambda folder: self._write_checkpoint(folder, weights, state), own)
        self.accelerator.wait_for_everyone()
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def _write_checkpoint(self, folder: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "weights.safetensors")
        save_training_state(folder, self.optimizer, self.scheduler, state)

    def _resume(self) -> None:
        if newest := self.run_dir.latest_checkpoint():
            folder, state = newest
            weights = load_file(folder / "weights.safetensors")
            load_training_state(self.trained, self.optimizer, weights, read_optimizer_state(folder))
            self.scheduler.load_state_dict(read_schedule(folder))
            self.step = self.saved_step = state["step"]
            for name in STATE:
                setattr(self, name, state[name])
        if self.accelerator.is_main_process:
            self.run_dir.truncate_metrics(self.step, "train")
            self.run_dir.truncate_metrics(self.validated_step, "validation")
        self.accelerator.wait_for_everyone()  # all have read before one writes


class _Finish:
    """What comes after the last step: fix origin, unit and temperature of the rewards, and measure the model."""

    def __init__(self, config: RewardModelConfig, run_dir: RunDir, accelerator: Accelerator, stop: StopFlag) -> None:
        self.config, self.run_dir, self.accelerator, self.stop = config, run_dir, accelerator, stop
        self.digest = file_digest(run_dir.resolve(config.preferences))
        loaded = RewardModel.load(run_dir.model, accelerator.device, config.max_length, config.max_tokens)
        ones, zeros = (1.0,) * len(config.aspects), (0.0,) * len(config.aspects)
        self.model = dataclasses.replace(loaded, means=zeros, stds=ones, temperatures=ones)  # until they are known

    def measure(
        self,
        train: Sequence[RankedResponses],
        validation: Sequence[RankedResponses],
        test: Sequence[RankedResponses],
        result: dict[str, Any],
    ) -> dict[str, Any]:
        temperatures = self._temperatures(validation)
        self._store(normalisation(self._reference_rewards(train), temperatures, self.digest, self.config.aspects))
        scored = self._score(test)
        num_truncated = sum(one.num_truncated for one in scored)
        own = [temperatures.get(self.model.head_of(ranked.aspect), 1.0) for ranked in test]
        scores = [one.scores for one in scored]
        found = report(test, scores, temperature=own or 1.0, num_truncated=num_truncated, seed=self.config.seed)
        result = {
            "model": self.run_dir.model.name,
            **measure(test, scores, "test"),
            **({"interval": found["figures"]["accuracy"]["interval"]} if found["figures"]["accuracy"] else {}),
            **result,
            "num_truncated": result["num_truncated"] + num_truncated,
            "temperature": temperatures.get(0),
        }
        if self.accelerator.is_main_process:
            write_json(self.run_dir.path / "report.json", found)
            card = model_card(self.config, result, found, self.digest)
            write_whole(self.run_dir.model / "README.md", card)
        self.accelerator.wait_for_everyone()
        return result

    def _score(self, rankings: Sequence[RankedResponses]) -> list[Scored]:
        chunks = score_rankings(self.accelerator, self.model, rankings, self.stop)
        return [one for chunk in chunks for one in chunk]

    def _temperatures(self, validation: Sequence[RankedResponses]) -> dict[int, float]:
        """Of each head that validation can tell about: raw differences over it are log-odds on held-out judgments."""
        margins: dict[int, list[float]] = defaultdict(list)
        for ranked, one in zip(validation, self._score(validation), strict=True):
            head = self.model.head_of(ranked.aspect)
            margins[head] += [one.scores[better] - one.scores[worse] for better, worse in ranked.ordered_places()]
        return {head: fit_temperature(np.array(own)) for head, own in margins.items() if any(own)}

    def _reference_rewards(self, train: Sequence[RankedResponses]) -> NDArray[np.float32]:
        """(N, H) raw rewards of up to a thousand training rankings' responses."""
        reference = train[:: math.ceil(len(train) / NUM_REFERENCE_RANKINGS)]
        mine = reference[self.accelerator.process_index :: self.accelerator.num_processes]
        pairs = [(ranked.prompt, text) for ranked in mine for text in ranked.responses]
        own = [row.tolist() for row in self.model.reward_stream(pairs)]
        return np.array(gather_object(own) if self.accelerator.num_processes > 1 else own)

    def _store(self, told: dict[str, Any]) -> None:
        """Beside the weights, for good."""
        if self.accelerator.is_main_process:
            path = self.run_dir.model / "config.json"
            write_json(path, json.loads(path.read_text(encoding="utf-8")) | told)
        self.accelerator.wait_for_everyone()


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether products are to be in bfloat16; by itself only where the hardware multiplies matrices in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def flip_rate_of_repeats(train: Sequence[RankedResponses]) -> dict[str, Any] | None:
    """What judgments of the same pairs by several annotators tell about flips; nothing where they are too few.

    Of two responses with the same text nobody can tell which was preferred.
    """
    wins: dict[tuple[str, str, str, str], int] = Counter()
    votes: dict[tuple[str, str, str, str], int] = Counter()
    for ranked in train:
        if len(ranked.responses) == len({*ranked.responses}) == PAIR and ranked.is_decided:
            first, second = sorted(ranked.responses)
            pair = (prompt_key(ranked.prompt), ranked.aspect, first, second)
            votes[pair] += 1
            wins[pair] += ranked.responses[ranked.ranking[0][0]] == first
    try:
        found = estimate_flip_rate([wins[pair] for pair in votes], list(votes.values()))
    except NotIdentifiedError:
        return None
    return {"flip_rate": found.rate, "interval": list(found.interval)}


def _calibrated(
    rankings: Sequence[RankedResponses], scores: Sequence[Sequence[float]], aspects: Sequence[str]
) -> list[list[float]]:
    """Scores over each aspect's best temperature on these rankings.

    Which model is best is then a question of what it knows, whatever unit its likelihood leaves its rewards in: one
    that accounts for flips has wider rewards than votes with flips bear out.
    """
    margins: dict[str, list[float]] = defaultdict(list)
    for ranked, own in zip(rankings, scores, strict=True):
        margins[ranked.aspect] += [own[better] - own[worse] for better, worse in ranked.ordered_places()]
    told = [aspect for aspect in aspects if any(margins[aspect]) and np.isfinite(margins[aspect]).all()]
    temperatures = {aspect: fit_temperature(margins[aspect]) for aspect in told}
    return [
        [score / temperatures.get(ranked.aspect, 1.0) for score in own]
        for ranked, own in zip(rankings, scores, strict=True)
    ]


def _with_length(
    rankings: Sequence[RankedResponses], scores: Sequence[Sequence[float]], nats_per_doubling: Mapping[str, float]
) -> list[list[float]]:
    """Scores as annotators are taken to have seen them: a reward that leaves length out is not to be held to it."""
    return [
        [
            score + nats_per_doubling.get(ranked.aspect, 0.0) * log_length(text)
            for score, text in zip(own, ranked.responses, strict=True)
        ]
        for ranked, own in zip(rankings, scores, strict=True)
    ]


def _num_shared_prompts(train: Sequence[RankedResponses], held_out: Sequence[RankedResponses]) -> int:
    return len({prompt_key(ranked.prompt) for ranked in train} & {prompt_key(ranked.prompt) for ranked in held_out})


def _likelihood(
    config: RewardModelConfig, train: Sequence[RankedResponses], repeats: dict[str, Any] | None
) -> Likelihood:
    """The likelihood that is asked for; a flip rate that is to be learned starts from what repeated judgments tell."""
    flip_rate = repeats["flip_rate"] if repeats and config.learn_flip_rate else config.flip_rate
    num_judgments = Counter(ranked.annotator for ranked in train)
    return Likelihood(
        loss=config.loss,
        ties=config.ties,
        margin=config.margin,
        label_smoothing=config.label_smoothing,
        flip_rate=min(flip_rate, MAX_FLIP_RATE),
        learn_flip_rate=config.learn_flip_rate,
        annotators=config.annotators,
        num_annotators=len(annotators_of(train)),
        num_judgments=[num_judgments[name] for name in annotators_of(train)],
        centring=config.centring,
        aspects=config.aspects,
        length_spread=length_spread(train) if config.length == "control" else 0.0,
        length_penalty=config.length_penalty,
    )


def _by_annotator(value: Any, annotators: Sequence[str]) -> Any:
    return dict(zip(annotators, value, strict=True)) if isinstance(value, list) else value


def _no_preferences(aspect: str, num_rankings: int, num_too_long: int) -> str:
    if num_rankings == 0:
        return f"preferences: the train split has no rankings of aspect {aspect}"
    if num_too_long:
        return f"preferences: nothing to learn: {num_too_long} training rankings have responses beyond max_length"
    return f"preferences: nothing to learn: all {num_rankings} training rankings of aspect {aspect} tie all responses"


def _parameter_groups(net: RewardNet, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: shrinking the scales of normalisations serves nothing."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    matrices = {"params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay}
    vectors = {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def _schedule(num_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """A linear rise, then a cosine down to a tenth."""
    num_warmup = math.ceil(warmup_ratio * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        done = (step - num_warmup) / max(1, num_steps - num_warmup)
        return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2

    return factor
