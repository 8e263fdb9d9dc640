"""Optimise a policy against a reward, with KL to a reference policy: reinforcement learning by TRL's trainers.

At each step the policy answers some prompts K times each, the responses are scored, and their log-probabilities are
moved by their advantages, once for each sample, so that the gradient is that of the policy that has answered.

    rloo    the advantage is the reward less the mean of the other K - 1 to the same prompt, and it stands before the
            log-probability of the whole response: in the mean, the true gradient
    grpo    the reward less the mean of all K, (K - 1) / K of the true gradient; dividing by a group's deviation turns
            it away from that, the more so the smaller the group

The KL is taken off the reward as the log-ratio of the whole response (k1), which follows the true gradient; with
kl_placement "loss" TRL's estimate by token (k3) is added to GRPO's loss instead, times the token's ratio
(`use_bias_correction_kl`), without which it follows KL(reference || policy) rather; see `kl`.

What is TRL's, and what not. The losses, the advantages and the loop are TRL's. Of its loss types "dr_grpo" is taken:
"grpo" divides each response's loss by its length, which favours short responses among the good and long ones among the
bad; "dapo" and "bnpo" by the number of tokens of all, which depends on what was sampled; "dr_grpo" by a constant. Ours
are: prompts as tokens (text that spells a special token stays text); sampling, which follows from the seed and the
step, so that a resumed run samples the same; rewards, of which one that is missing is nan, and its response has no part
in the baselines of the others nor an advantage of its own; the KL in the reward; and checkpoints.

    baseline.json    what the reference policy's responses are like: see `objectives.Baseline`
    best/            the policy as it was at the check with the highest held-out reward, where that is not the result

Sources: A. Ahmadian et al., "Back to basics: revisiting REINFORCE-style optimization for learning from human feedback
in LLMs", 2024; Z. Shao et al., "DeepSeekMath", 2024 (GRPO); Z. Liu et al., "Understanding R1-Zero-like training: a
critical perspective", 2025 (Dr. GRPO).
"""

import hashlib
import importlib.metadata
import json
import math
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.models import prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, pad

from training.alignment.config import ConfigError, RlhfConfig
from training.alignment.generation import Generated, Generator, texts
from training.alignment.held_out_reward import held_out_reward
from training.alignment.implicit_reward import require_same_tokens
from training.alignment.kl import AdaptiveKl, response_log_ratio
from training.alignment.objectives import Baseline, Floats, Objectives
from training.alignment.policies import load_policy, policy_card, prepare, save_policy, trainer_arguments
from training.alignment.preferences import (
    Messages,
    PromptedResponses,
    distinct_prompts,
    encode_prompt,
    prompt_key,
)
from training.alignment.reward import load_reward, score_cache
from training.alignment.reward_model import agree, join_processes
from training.alignment.reward_net import fit_length
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, file_digest, replace_folder, write_json
from training.alignment.tracking import Tracker, held_out_prompts
from training.alignment.trainers import Report, RunDirTrainer, Stage
from training.alignment.vllm_engine import has_vllm

MAX_TOKENS = 16384  # in one forward pass, padding included; more responses than fit are accumulated
WARMUP_RATIO = 0.05
NUM_BASELINE = 256  # of the reference policy's responses, by which rewards are normalised
BASELINE_SAMPLES = 4  # to each prompt
VLLM_MEMORY_SHARE = 0.3  # of the GPU's: the policy trains beside it
HELD_OUT, BEGIN, TRAIN = Stage("held-out reward", 0.0, 0.15), Stage("begin", 0.15, 0.2), Stage("train", 0.2, 1.0)
SHARES = ("reward_share", "generation_share")


def train_policy(config: RlhfConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Optimise `config.policy` and save it in `run_dir.model`: the last one, or the best before an alarm.

    Returns:
        {"model", "algorithm", "num_steps" that were done, "saved_step", "beta" at the end, "backend" that generated,
        "reward_share" and "generation_share" of a typical step's seconds, "missing", the share of responses without a
        reward}, and what `Tracker.result` tells of the policy before and after.

    Raises:
        ConfigError: there is no prompt or no reward, or what is named cannot serve.
        FloatingPointError: the loss is no longer a number.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    if not config.objectives:
        raise ConfigError("reward_model: none is given")
    return _Run(config, run_dir, stop, join_processes()).result()


class Rewards:
    """All objectives' rewards, side by side."""

    def __init__(self, config: RlhfConfig, run_dir: RunDir, device: torch.device) -> None:
        cache = score_cache()
        self.rewards = [load_reward(run_dir.locate(name), device, cache=cache) for name in config.objectives]

    def score(self, prompts: Sequence[PromptedResponses]) -> Floats:
        """(N, O) of the responses to all prompts in a row, nan where one is missing."""
        columns = [[s for one in reward.score_prompts(prompts) for s in one.scores] for reward in self.rewards]
        found: Floats = np.asarray(columns, dtype=np.float64).T
        return np.where(np.isfinite(found), found, np.nan)


class _Run:
    """The stages of one run."""

    def __init__(self, config: RlhfConfig, run_dir: RunDir, stop: StopFlag, accelerator: Accelerator) -> None:
        self.config, self.run_dir, self.stop, self.accelerator = config, run_dir, stop, accelerator
        self.preferences = run_dir.resolve(config.preferences)
        self.prompts = distinct_prompts(self.preferences, "train")
        self.held_out_prompts = held_out_prompts(config, self.preferences)
        if not self.prompts:
            raise ConfigError("preferences: the train split has no prompt to answer")

    def result(self) -> dict[str, Any]:
        config = self.config
        held_out = held_out_reward(config, self.run_dir, self.accelerator, self.stop, HELD_OUT)
        rewards = Rewards(config, self.run_dir, self.accelerator.device)
        trainer, tokenizer = self._trainer(rewards)
        self._begin(trainer, rewards)
        tracker = Tracker(
            config,
            run_dir=self.run_dir,
            accelerator=self.accelerator,
            reference=(trainer.policy if trainer.reference is None else trainer.reference, tokenizer),
            prompts=self.held_out_prompts,
            proxy=lambda prompts: _by_prompt(trainer.objectives.proxy(rewards.score(prompts)), prompts),
            held_out=held_out,
        )
        watch = _Watch(self, tracker, trainer, tokenizer)
        is_over = watch.check(0)
        self._leave_if_asked()
        if not is_over:
            trainer.add_callback(_Report(trainer, self.stop, config.save_minutes, watch.after_step))
            trainer.train_from_newest(TRAIN.phase)
        return self._finish(trainer, tracker, tokenizer)

    def _trainer(self, rewards: Rewards) -> "tuple[PolicyTrainer, PreTrainedTokenizerBase]":
        config = self.config
        name = self.run_dir.locate(config.policy)
        loaded, tokenizer = load_policy(name)
        policy = prepare(loaded, config)
        reference = None
        if config.reference_policy or not config.lora_rank:
            held_to = self.run_dir.locate(config.reference_policy) if config.reference_policy else name
            held, other = load_policy(held_to)
            require_same_tokens(tokenizer, other)
            own, limit = (fit_length(config.max_length, model, tokenizer) for model in (loaded, held))
            if limit < own:
                raise ConfigError(f"max_length: the reference policy takes {limit} tokens at most")
            reference = prepare(held, replace(config, lora_rank=0)).requires_grad_(False).eval()
        kind = RlooTrainer if config.algorithm == "rloo" else GrpoTrainer
        trainer = kind(
            config=config,
            run_dir=self.run_dir,
            policy=policy,
            reference=reference,
            tokenizer=tokenizer,
            rewards=rewards,
            prompts=self.prompts,
        )
        return trainer, tokenizer

    def _begin(self, trainer: "PolicyTrainer", rewards: Rewards) -> None:
        """Measure the reference policy's responses, or read what was measured; and where a checkpoint has got to."""
        config, path = self.config, self.run_dir.path / "baseline.json"
        is_needed = config.normalise or config.length_penalty or config.objective != "weighted"
        if is_needed and not path.exists():
            found = self._baseline(trainer, rewards)
            if self.accelerator.is_main_process:
                write_json(path, found.to_dict())
            self.accelerator.wait_for_everyone()
        if is_needed:
            baseline = Baseline.from_dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            baseline = Baseline.none(len(config.objectives))
        trainer.objectives = Objectives(config, baseline)
        if newest := self.run_dir.latest_checkpoint():
            trainer.load_more_state(newest[1])

    def _baseline(self, trainer: "PolicyTrainer", rewards: Rewards) -> Baseline:
        """Each process answers some of the prompts; all get all."""
        self._leave_if_asked()
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        prompts = trainer.order.distinct(math.ceil(NUM_BASELINE / BASELINE_SAMPLES))[rank::size]
        with trainer.as_reference() as model:
            generator = Generator(model, trainer.tokenizer, trainer.plain_config, self.accelerator.device)
            generated = generator.generate_ids(prompts, BASELINE_SAMPLES, step_seed(self.config.seed, -1, 0))
        found = rewards.score(_prompted(trainer.tokenizer, prompts, generated)).tolist() if prompts else []
        lengths = [len(one.ids) + one.is_ended for own in generated for one in own]
        shares = gather_object([(found, lengths)]) if size > 1 else [(found, lengths)]
        return Baseline.measure(
            [row for share in shares for row in share[0]], [n for share in shares for n in share[1]]
        )

    def _finish(self, trainer: "PolicyTrainer", tracker: Tracker, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        config, num_steps = self.config, trainer.state.global_step
        is_stopped = tracker.alarm is not None and config.guard == "stop"
        saved_step = tracker.best_step if is_stopped else num_steps
        result = {
            **tracker.result(saved_step),
            "model": self.run_dir.model.name,
            "algorithm": config.algorithm,
            "num_steps": num_steps,
            "saved_step": saved_step,
            "beta": trainer.controller.beta,
            "backend": trainer.generation_name,
            **self._means(),
        }
        card = policy_card(config, result, digest=file_digest(self.preferences))
        best = self.run_dir.path / "best"
        if not is_stopped:
            save_policy(
                trainer.policy,
                tokenizer,
                self.run_dir.model,
                saved=config.saved,
                card=card,
                accelerator=self.accelerator,
            )
        elif self.accelerator.is_main_process and best.exists():  # a run that was killed here has been through it
            replace_folder(self.run_dir.model, lambda scratch: _copy(best, scratch, card))
        if saved_step == tracker.best_step and self.accelerator.is_main_process:
            shutil.rmtree(best, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return result

    def _means(self) -> dict[str, float]:
        """Of a typical step, and of all."""
        lines = [line for line in self.run_dir.read_metrics() if line["phase"] == TRAIN.phase]
        found = {name: [line[name] for line in lines if name in line] for name in (*SHARES, "missing")}
        typical = {name: median(found[name]) for name in SHARES if found[name]}
        return {**typical, "missing": fmean(found["missing"])} if found["missing"] else typical

    def _leave_if_asked(self) -> None:
        if agree(self.accelerator, self.stop()):
            raise Interrupted("stopped before the first step")


class _Watch:
    """Checks the policy on held-out prompts now and then, and keeps the best one."""

    def __init__(
        self, run: _Run, tracker: Tracker, trainer: "PolicyTrainer", tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.run, self.tracker, self.trainer, self.tokenizer = run, tracker, trainer, tokenizer

    def after_step(self, step: int) -> bool:
        """Whether the run ends here."""
        if step % self.run.config.check_steps and step != self.run.config.num_steps:
            return False
        return self.check(step)

    def check(self, step: int) -> bool:
        with self.trainer.whole_weights():
            alarm = self.tracker.check(step, self.trainer.policy, self.tokenizer)
        if self.tracker.best_step == step:
            folder = self.run.run_dir.path / "best"
            save_policy(
                self.trainer.policy,
                self.tokenizer,
                folder,
                saved=self.run.config.saved,
                accelerator=self.run.accelerator,
            )
        return alarm is not None and self.run.config.guard == "stop"


class _Report(Report):
    """Writes what matters of a step, with its shares of time."""

    def __init__(
        self,
        trainer: "PolicyTrainer",
        stop: StopFlag,
        save_minutes: float,
        after_step: Callable[[int], bool],
    ) -> None:
        super().__init__(trainer, stop, TRAIN, save_minutes, after_step)
        self.trainer, self.begun_at, self.seconds = trainer, time.perf_counter(), 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun_at = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        self.seconds = time.perf_counter() - self.begun_at
        return super().on_step_end(args, state, control)

    def values(self, logs: dict[str, float]) -> dict[str, float]:
        told = {
            **{name: logs.get(name) for name in ("loss", "learning_rate", "grad_norm", "entropy")},
            "clip_share": logs.get("clip_ratio/region_mean"),
            **self.trainer.told,
            **{f"{name}_share": seconds / self.seconds for name, seconds in self.trainer.spent.items()},
            "seconds": self.seconds,
        }
        return {name: value for name, value in told.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class Order:
    """Which prompts are answered at which step: pass after pass over all, each in an order of its own."""

    prompts: Sequence[Messages]
    places: Sequence[int]
    num_together: int

    @classmethod
    def draw(cls, prompts: Sequence[Messages], num_steps: int, num_together: int, seed: int) -> "Order":
        rng, needed = random.Random(seed), num_steps * num_together
        places = [
            place
            for _ in range(math.ceil(needed / len(prompts)))
            for place in rng.sample(range(len(prompts)), len(prompts))
        ]
        return cls(prompts, places[:needed], num_together)

    def all(self) -> Iterator[Messages]:
        return (self.prompts[place] for place in self.places)

    def at(self, step: int) -> list[Messages]:
        return [self.prompts[place] for place in self.places[step * self.num_together : (step + 1) * self.num_together]]

    def distinct(self, wanted: int) -> list[Messages]:
        """The first ones, each once."""
        return [self.prompts[place] for place in list(dict.fromkeys(self.places))[:wanted]]


def step_seed(seed: int, step: int, number: int) -> int:
    """What the samples of a step follow from; `number` tells apart samples of one prompt in several processes."""
    key = hashlib.sha256(json.dumps([seed, step, number]).encode()).digest()
    return int.from_bytes(key[:7], "big")


class PolicyTrainer(RunDirTrainer):
    """What the trainers of both algorithms are taught; comes before TRL's among the bases of a class.

    Args:
        policy: with adapters or without; it is trained in place.
        reference: what it is held to; none where that is the policy without its adapters.
        rewards: score(prompts) -> (N, O).
        prompts: to be answered.

    Attributes:
        objectives: to be set before the training, when the reference policy's responses have been measured.
        told: of the newest step, for the metrics.
        spent: seconds of the newest step, by what for.
    """

    objectives: Objectives
    arguments: type[Any]
    use_vllm: bool  # TRL's, as the next one
    eos_token_ids: list[int]

    def __init__(
        self,
        *,
        config: RlhfConfig,
        run_dir: RunDir,
        policy: Any,
        reference: Any,
        tokenizer: PreTrainedTokenizerBase,
        rewards: Any,
        prompts: Sequence[Messages],
    ) -> None:
        self.config, self.tokenizer, self.rewards = config, tokenizer, rewards
        self.controller = AdaptiveKl(config.beta, config.kl_target)
        self.order = Order.draw(prompts, config.num_steps, config.num_prompts, config.seed)
        self.limit = fit_length(config.max_length, policy, tokenizer) - config.max_new_tokens
        if self.limit < 1:
            raise ConfigError(f"max_new_tokens: {config.max_new_tokens} leaves no room for a prompt")
        longest = max(len(encode_prompt(tokenizer, prompt, self.limit)) for prompt in prompts)
        self.plain_config = replace(config, backend="transformers")
        self.told: dict[str, float] = {}
        self.spent = {"generation": 0.0, "reward": 0.0}
        self._asked: list[Messages] = []
        self._prompt_ids: list[list[int]] = []
        self._own_logprobs: Tensor | None = None
        super().__init__(
            run_dir=run_dir,
            model=policy,
            reward_funcs=reward,
            args=self._arguments(policy, run_dir, longest + config.max_new_tokens),
            train_dataset=Dataset.from_list([{"prompt": list(map(dict, prompt))} for prompt in self.order.all()]),
            processing_class=tokenizer,
        )
        if "ref" in getattr(self.policy, "peft_config", {}):
            self.policy.delete_adapter("ref")  # TRL's copy of the new adapters; without any, the policy is the same
        self.reference = self._prepared(reference) if reference is not None else None
        model: Any = self.policy  # under adapters too
        self.generator = Generator(model, tokenizer, self.plain_config, self.accelerator.device)
        if config.kl_placement == "loss":  # told so late because TRL would load the reference policy by itself
            self.beta, self.ref_model = self.controller.beta, self.reference

    @property
    def generation_name(self) -> str:
        return (
            f"vLLM {importlib.metadata.version('vllm')}, beside the training" if self.use_vllm else self.generator.name
        )

    def more_state(self) -> dict[str, Any]:
        return {"kl": self.controller.state(), "objectives": self.objectives.state()}

    def load_more_state(self, state: Mapping[str, Any]) -> None:
        self.controller.load_state(state["kl"])
        self.objectives.load_state(state["objectives"])

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The reference policy as a model."""
        with self._without_adapters(), self.whole_weights():
            yield self.reference if self.reference is not None else self.policy

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Where weights are divided between processes, each has them all: it may then compute as often as it likes."""
        models = [one for one in (self.policy, self.reference) if one is not None]
        parts = [part for model in models for part in model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()

    def _arguments(self, policy: Any, run_dir: RunDir, longest: int) -> Any:
        config = self.config
        arguments = trainer_arguments(config, policy)
        num_rows = config.num_prompts * config.num_samples // PartialState().num_processes
        fits = max(
            size
            for size in range(1, num_rows + 1)
            if num_rows % size == 0 and size * longest <= max(longest, MAX_TOKENS)
        )
        on_vllm = config.backend != "transformers" and has_vllm(
            torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        if config.backend == "vllm" and not on_vllm:
            raise ConfigError("backend: vLLM is not installed here, or there is no GPU")
        return self.arguments(
            output_dir=str(run_dir.path / "checkpoints"),
            max_steps=config.num_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP_RATIO,
            per_device_train_batch_size=fits,
            gradient_accumulation_steps=num_rows // fits,
            num_generations=config.num_samples,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            beta=0.0,  # the KL is ours
            shuffle_dataset=False,  # Order has
            disable_dropout=True,
            use_vllm=on_vllm,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=VLLM_MEMORY_SHARE,
            **self._own_arguments(),
            **arguments,
        )

    def _own_arguments(self) -> dict[str, Any]:
        return {}

    def _prepared(self, reference: Any) -> Any:
        """As TRL prepares its own."""
        add_fused_lm_head(reference, temperature=self.config.temperature)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # Prompts and responses

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with warnings.catch_warnings():  # TRL asks by names of transformers 4
            warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*`", FutureWarning)
            return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[Messages]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._asked = prompts
        encoded = {
            prompt_key(prompt): encode_prompt(self.tokenizer, prompt, self.limit)
            for prompt in prompts[:: self.config.num_samples]
        }
        self._prompt_ids = [encoded[prompt_key(prompt)] for prompt in prompts]
        return self._prompt_ids, None, {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[name] = time.perf_counter() - started

    def _answer(self) -> list[list[int]]:
        """The tokens of a response to each row's prompt; a row's prompt is that of K rows."""
        size, step = self.config.num_samples, int(self.state.global_step)
        own = self._asked[::size]
        first = self.accelerator.process_index * len(own)
        num_before = Counter(prompt_key(prompt) for prompt in self.order.at(step)[:first])
        num_here = Counter(prompt_key(prompt) for prompt in own)
        batches: dict[tuple[int, int], dict[str, Messages]] = {}
        for prompt in own:
            key = prompt_key(prompt)
            batches.setdefault((num_here[key], num_before[key]), {})[key] = prompt
        answers: dict[str, Iterator[Generated]] = {}
        was_training = self.policy.training
        with self.whole_weights(), self.accelerator.autocast():
            for (num_copies, before), prompts in batches.items():
                seed = step_seed(self.config.seed, step, before)
                found = self.generator.generate_ids(list(prompts.values()), num_copies * size, seed)
                answers |= {key: iter(responses) for key, responses in zip(prompts, found, strict=True)}
        self.policy.train(was_training)
        responses = [next(answers[prompt_key(prompt)]) for prompt in own for _ in range(size)]
        return [[*one.ids, *([] if one.end is None else [one.end])] for one in responses]

    # Rewards

    def _calculate_rewards(
        self, inputs: Any, prompts: list[Messages], completions: Any, completion_ids: list[list[int]]
    ) -> Tensor:
        """(N, 1) what each response of all processes is worth, less the KL; nan where a reward is missing."""
        device = self.accelerator.device
        generated = [self._generated(ids) for ids in completion_ids]
        started = time.perf_counter()
        groups = [
            generated[place : place + self.config.num_samples]
            for place in range(0, len(generated), self.config.num_samples)
        ]
        scores = self.rewards.score(_prompted(self.tokenizer, prompts[:: self.config.num_samples], groups))
        self.spent["reward"] = time.perf_counter() - started
        rows = torch.tensor(
            [
                [len(ids), one.is_ended, *own]
                for ids, one, own in zip(completion_ids, generated, scores.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        table = torch.cat([self._log_ratios(completion_ids).double()[:, None], rows.to(device)], 1)
        log_ratios, lengths, is_ended, *columns = self.accelerator.gather(table).cpu().numpy().T
        rewards = np.stack(columns, 1)
        values = self.objectives.combine(rewards, lengths, is_ended)
        self._tell(rewards, log_ratios, lengths, is_ended)
        if self.config.kl_placement == "reward":
            values = values - self.controller.beta * log_ratios
        else:
            self.beta = self.controller.beta
        self.controller.update(float(log_ratios.mean()))
        self.objectives.update(rewards)
        return torch.tensor(self._centred(values), dtype=torch.float32, device=device)[:, None]

    def _centred(self, values: Floats) -> Floats:
        """(N,) less the lowest of each prompt's, which changes no advantage but what is rounded off.

        Where all are alike the advantages are then 0, and not the rounding of a mean, which Adam would take for a
        direction like any other. A deviation among all is taken of what is less the lowest of all.
        """
        is_apart = self.config.algorithm == "rloo" or self.config.advantage_scale != "batch"
        groups = values.reshape(-1, self.config.num_samples) if is_apart else values[None]
        lowest = np.where(np.isnan(groups), np.inf, groups).min(axis=1, keepdims=True)
        centred: Floats = (groups - lowest).ravel()
        return centred

    def _generated(self, ids: list[int]) -> Generated:
        is_ended = bool(ids) and ids[-1] in self.eos_token_ids
        return Generated(ids[:-1], True, ids[-1]) if is_ended else Generated(ids, False)

    def _tell(self, rewards: Floats, log_ratios: Floats, lengths: Floats, is_ended: Floats) -> None:
        proxy = self.objectives.proxy(rewards)
        missing = float(np.isnan(proxy).mean())
        self.told = {
            "reward": float(np.nanmean(proxy)) if missing < 1 else math.nan,
            "missing": missing,
            "kl": float(log_ratios.mean()),
            "beta": self.controller.beta,
            "length": float(lengths.mean()),
            "ended": float(is_ended.mean()),
        }
        if len(self.config.objectives) > 1:
            for number, column in enumerate(rewards.T, start=1):
                known = column[~np.isnan(column)]
                self.told[f"reward_{number}"] = float(known.mean()) if len(known) else math.nan
                self.told[f"weight_{number}"] = float(self.objectives.weights[number - 1])
        if self.config.objective == "constrained":
            self.told["multiplier"] = self.objectives.multiplier

    def _log_ratios(self, completion_ids: list[list[int]]) -> Tensor:
        """(B,) log(policy / reference) of this process's responses."""
        device, fill = self.accelerator.device, self.tokenizer.pad_token_id
        asked, answers = ([torch.tensor(ids) for ids in some] for some in (self._prompt_ids, completion_ids))
        ids, mask = (
            torch.cat([pad(left, value, "left"), pad(right, value, "right")], 1).to(device)
            for left, right, value in (
                (asked, answers, fill),
                ([torch.ones_like(one) for one in asked], [torch.ones_like(one) for one in answers], 0),
            )
        )
        width = max(map(len, completion_ids))
        own, self._own_logprobs = self._own_logprobs, None
        if own is None:
            own = self._logprobs(self.model, ids, mask, width)
        if self.reference is not None:
            reference = self._logprobs(self.reference, ids, mask, width)
        else:
            with self._without_adapters():
                reference = self._logprobs(self.model, ids, mask, width)
        return response_log_ratio(own, reference, mask[:, -width:])

    @torch.no_grad()
    def _logprobs(self, model: Any, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        compute: Any = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        found: Tensor = compute(model, ids, mask, width, self.args.per_device_train_batch_size)[0]
        return found

    def _without_adapters(self) -> AbstractContextManager[Any]:
        policy: Any = self.policy
        found: AbstractContextManager[Any] = policy.disable_adapter() if self.reference is None else nullcontext()
        return found


class RlooTrainer(PolicyTrainer, RLOOTrainer):
    """REINFORCE with the mean of the others as the baseline."""

    arguments = RLOOConfig

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        """TRL's, which RLOO calls before it asks for rewards; the KL needs the same log-probabilities."""
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        if not torch.is_grad_enabled():
            self._own_logprobs = found[0]
        return found

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any) -> Any:
        with self._timed("generation"):
            return super()._generate_single_turn(prompt_ids, *rest) if self.use_vllm else self._answer()


class GrpoTrainer(PolicyTrainer, GRPOTrainer):
    """Advantages over a group's deviation, or not."""

    arguments = GRPOConfig

    def _own_arguments(self) -> dict[str, Any]:
        return {"loss_type": "dr_grpo", "scale_rewards": self.config.advantage_scale, "use_bias_correction_kl": True}

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any) -> Any:
        with self._timed("generation"):
            return super()._generate_single_turn(prompt_ids, *rest) if self.use_vllm else (self._answer(), None)


def reward(**_: Any) -> list[float]:
    """TRL wants a function by whose name it logs; `_calculate_rewards` takes its place."""
    raise NotImplementedError


def _copy(folder: Path, scratch: Path, card: str) -> None:
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    (scratch / "README.md").write_text(card, encoding="utf-8")


def _prompted(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], generated: Sequence[Sequence[Generated]]
) -> list[PromptedResponses]:
    responses = texts(tokenizer, generated)
    return [PromptedResponses(prompt, tuple(own)) for prompt, own in zip(prompts, responses, strict=True)]


def _by_prompt(scores: Floats, prompts: Sequence[PromptedResponses]) -> list[list[float]]:
    found = iter(scores.tolist())
    return [[next(found) for _ in one.responses] for one in prompts]
