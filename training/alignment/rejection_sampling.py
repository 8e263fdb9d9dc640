"""Best of n: sample responses to each prompt, keep the one that a reward model likes best, fine-tune on those.

The selecting reward model's own verdict on the outcome is biased upwards, for the policy learned its errors too; so
a second one, which never selects, grades as well. Before and after are compared on prompts of the test split, by
several responses each; the interval counts prompts, not responses, as independent.

Files, each a stage that a restarted run does not repeat:

    samples.jsonl                 {"prompt", "responses"}: n responses to each training prompt
    winners.jsonl                 {"prompt", "completion", "reward"}: the best of the different ones
    fine_tuning.json              how the fine-tuning ended
    model/                        the policy after fine-tuning on the winners
    held_out_reward_model/        the run directory of the grading reward model, where it is trained here
    responses_before.jsonl        {"prompt", "responses"} to held-out prompts; so responses_after.jsonl
    samples_before.jsonl          {"prompt", "response", "reward", "held_out_reward"}; so samples_after.jsonl

Rewards are those of `RewardModel.score`: 0 is the mean and 1 the deviation on the responses that it was trained on.
"""

import dataclasses
import json
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.special import stdtrit

from training.alignment.config import ConfigError, RejectionSamplingConfig, RewardModelConfig
from training.alignment.generation import sample
from training.alignment.preferences import Messages, PromptedResponses, prompt_key, read_rankings
from training.alignment.reward import Reward, as_json, load_reward, score_cache
from training.alignment.reward_model import agree, join_processes
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, write_whole
from training.alignment.scoring import disagreeing
from training.alignment.sft import Example, Stage, fine_tune, load_policy, read_examples

NUM_COMPARED = 256  # responses of each policy to held-out prompts, at least 4 for each prompt and at most 16
SCORED_TOGETHER = 512  # responses scored between two looks at the stop flag
GENERATE, SCORE = Stage("generate", 0.0, 0.35), Stage("score", 0.35, 0.4)
FINE_TUNE = Stage("fine-tune", 0.4, 0.6)
HELD_OUT, COMPARE = Stage("compare", 0.6, 0.8), Stage("compare", 0.8, 1.0)


@dataclass(frozen=True)
class Sampled:
    """Responses to one prompt, in the order of sampling."""

    prompt: Messages
    responses: list[str]


@dataclass(frozen=True)
class Graded:
    """Responses to one prompt with the rewards of the selecting and of the held-out reward model."""

    prompt: Messages
    responses: list[str]
    rewards: list[float]
    held_out_rewards: list[float]


def run_rejection_sampling(config: RejectionSamplingConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Sample, select, fine-tune, compare; the new policy is in `run_dir.model`.

    Returns:
        {"model", "reward_before", "reward_after", "reward_gain", "reward_gain_interval"}, the same four of the
        held-out reward model as "held_out_reward_before" and so on, "held_out_reward_model" ("given" or "trained
        here", then with its "held_out_accuracy"), "num_prompts", "num_samples", "num_winners",
        "num_distinct" (mean number of different responses to a prompt), "num_held_out_prompts",
        "num_held_out_responses" to each of them, "loss" and "num_steps" of the fine-tuning.

    Raises:
        ConfigError: there is no prompt to sample or to compare on, or a model cannot serve.
        Interrupted: `stop` became true; what is finished is left.
    """
    if not config.reward_model:
        raise ConfigError("reward_model: none is given")
    if _parts(run_dir, config.reward_model) & _parts(run_dir, config.held_out_reward_model):
        raise ConfigError("held_out_reward_model: is the one that selects, or a part of it")
    return _Run(config, run_dir, stop, join_processes()).result()


def _parts(run_dir: RunDir, name: str) -> set[str]:
    """A reward's path, and those of all that it combines."""
    if not name:
        return set()
    path = run_dir.locate(name)
    own = {os.path.realpath(path) if Path(path).is_dir() else path}
    return own.union(*(_parts(run_dir, part) for part in disagreeing([path]) if part != path))


def best_of(rewards: Sequence[float], rng: random.Random) -> int | None:
    """The place of the highest reward, of several one at random; what has no reward cannot win, nor lose.

    Args:
        rewards: (K,), nan where a response could not be scored.
    """
    highest = max((reward for reward in rewards if math.isfinite(reward)), default=None)
    if highest is None:
        return None
    return rng.choice([place for place, reward in enumerate(rewards) if reward == highest])


def paired_gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean of `after` - `before` over prompts and its 95 % interval by Student's t; none from fewer than two."""
    gains = [new - old for old, new in zip(before, after, strict=True)]
    mean = fmean(gains)
    if len(gains) < 2:
        return mean, None
    margin = float(stdtrit(len(gains) - 1, 0.975)) * stdev(gains) / math.sqrt(len(gains))
    return mean, [mean - margin, mean + margin]


def distinct_prompts(path: Path, split: str) -> list[Messages]:
    """The prompts of one split of a preference set, each once, in order."""
    prompts = {prompt_key(ranked.prompt): ranked.prompt for ranked in read_rankings(path, split=split)}
    return list(prompts.values())


@dataclass(frozen=True)
class _InnerRunDir(RunDir):
    """The run directory of a training within this run, whose progress shows in the outer one."""

    outer: RunDir
    stage: Stage

    def log(self, *, step: int, phase: str, progress: float, **values: float) -> None:
        super().log(step=step, phase=phase, progress=progress, **values)
        self.outer.log(step=step, phase=self.stage.phase, progress=self.stage.progress(progress))


class _Run:
    """The stages of one run, each of which finds its file written or writes it."""

    def __init__(self, config: RejectionSamplingConfig, run_dir: RunDir, stop: StopFlag, accelerator: Accelerator):
        self.config, self.run_dir, self.stop, self.accelerator = config, run_dir, stop, accelerator
        path = run_dir.resolve(config.preferences)
        rng = random.Random(config.seed)
        self.prompts = _drawn(distinct_prompts(path, "train"), config.num_prompts, rng)
        self.held_out_prompts = _drawn(distinct_prompts(path, "test"), config.num_held_out_prompts, rng)
        if not self.prompts:
            raise ConfigError("preferences: the train split has no prompt to sample")
        if not self.held_out_prompts:
            raise ConfigError("preferences: the test split has no prompt to compare on")
        self.num_compared = min(16, max(4, NUM_COMPARED // len(self.held_out_prompts)))

    def result(self) -> dict[str, Any]:
        config = self.config
        sampled = self._sample(config.policy, self.prompts, config.num_samples, "samples.jsonl", GENERATE)
        winners = self._winners(sampled)
        fine_tuned = self._fine_tune(winners)
        held_out_folder, held_out = self._held_out_reward_model()
        responses = self._compared()
        before, after = self._grade(responses, held_out_folder)
        return {
            **_comparison("reward", [item.rewards for item in before], [item.rewards for item in after]),
            **_comparison(
                "held_out_reward", [item.held_out_rewards for item in before], [item.held_out_rewards for item in after]
            ),
            **held_out,
            "num_prompts": len(self.prompts),
            "num_samples": config.num_samples,
            "num_winners": len(winners),
            "num_distinct": fmean(len(set(item.responses)) for item in sampled),
            "num_held_out_prompts": len(self.held_out_prompts),
            "num_held_out_responses": self.num_compared,
            **{name: fine_tuned[name] for name in ("model", "loss", "num_steps")},
        }

    def _sample(
        self, policy: str, prompts: Sequence[Messages], num_samples: int, name: str, stage: Stage
    ) -> list[Sampled]:
        """Responses to all prompts, some prompts at a time: what is in the file already is not sampled again."""
        path = self.run_dir.path / name
        done = list(_read_lines(path))
        self.accelerator.wait_for_everyone()
        if len(done) < len(prompts):
            if self.accelerator.is_main_process:
                _write_lines(path, done)  # without what a kill left half written
            at_once = max(1, self.config.generation_batch_size // num_samples) * self.accelerator.num_processes
            model, tokenizer = load_policy(self.run_dir.locate(policy))
            model = model.to(self.accelerator.device, _sampling_dtype(self.accelerator.device))
            for start in range(len(done), len(prompts), at_once):
                self._leave_if_asked()
                rows = self._sample_some(model, tokenizer, prompts[start : start + at_once], num_samples)
                if self.accelerator.is_main_process:
                    _append_lines(path, rows)
                self._log(stage, min(start + at_once, len(prompts)) / len(prompts), start + len(rows))
            self.accelerator.wait_for_everyone()
        return [Sampled(row["prompt"], row["responses"]) for row in _read_lines(path)]

    def _sample_some(
        self, model: Any, tokenizer: Any, prompts: Sequence[Messages], num_samples: int
    ) -> list[dict[str, Any]]:
        """Each process samples its share of the prompts; all get all."""
        rank, size, config = self.accelerator.process_index, self.accelerator.num_processes, self.config
        texts = sample(
            model,
            tokenizer,
            prompts[rank::size],
            num_samples,
            seed=config.seed,
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            max_length=config.max_length,
            batch_size=config.generation_batch_size,
        )
        shares = gather_object([texts]) if size > 1 else [texts]
        rows = [shares[place % size][place // size] for place in range(len(prompts))]
        return [{"prompt": prompt, "responses": responses} for prompt, responses in zip(prompts, rows, strict=True)]

    def _winners(self, sampled: Sequence[Sampled]) -> list[Example]:
        """The best of the different responses to each prompt; a prompt whose responses are all empty has none."""
        path = self.run_dir.path / "winners.jsonl"
        if not path.exists():
            candidates = [(item.prompt, [text for text in dict.fromkeys(item.responses) if text]) for item in sampled]
            candidates = [(prompt, responses) for prompt, responses in candidates if responses]
            if not candidates:
                raise ConfigError("policy: every response that it gives is empty")
            rewards = self._score(self.run_dir.locate(self.config.reward_model), candidates, SCORE)
            if not any(_known(own) for own in rewards):
                raise ConfigError("reward_model: it could score none of the responses")
            if self.accelerator.is_main_process:
                _write_lines(path, self._best(candidates, rewards))
            self.accelerator.wait_for_everyone()
        return list(read_examples(path))

    def _best(
        self, candidates: Sequence[tuple[Messages, list[str]]], rewards: Sequence[list[float]]
    ) -> Iterator[dict[str, Any]]:
        for (prompt, responses), own in zip(candidates, rewards, strict=True):
            place = best_of(own, random.Random(f"{self.config.seed} {prompt_key(prompt)}"))
            if place is not None:
                yield {"prompt": prompt, "completion": responses[place], "reward": own[place]}

    def _score(self, folder: str, candidates: Sequence[tuple[Messages, list[str]]], stage: Stage) -> list[list[float]]:
        """The rewards of each prompt's responses; nan where there is none to be had."""
        reward = load_reward(folder, self.accelerator.device, cache=score_cache())
        prompts = [PromptedResponses(prompt, tuple(responses)) for prompt, responses in candidates]
        found: list[list[float]] = []
        at_once = max(1, SCORED_TOGETHER // max(1, self.config.num_samples))
        for start in range(0, len(prompts), at_once):
            self._leave_if_asked()
            found += self._score_some(reward, prompts[start : start + at_once])
            self._log(stage, len(found) / len(prompts), len(found))
        return found

    def _score_some(self, reward: Reward, prompts: Sequence[PromptedResponses]) -> list[list[float]]:
        """Each process scores its share of the prompts; all get all."""
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        mine = [scored.scores for scored in reward.score_prompts(prompts[rank::size])]
        shares = gather_object([mine]) if size > 1 else [mine]
        return [shares[place % size][place // size] for place in range(len(prompts))]

    def _fine_tune(self, winners: Sequence[Example]) -> dict[str, Any]:
        path = self.run_dir.path / "fine_tuning.json"
        if not path.exists():
            policy = self.run_dir.locate(self.config.policy)
            result = fine_tune(
                self.config,
                policy=policy,
                train=winners,
                held_out=[],
                run_dir=self.run_dir,
                stop=self.stop,
                stage=FINE_TUNE,
            )
            if self.accelerator.is_main_process:
                write_whole(path, json.dumps(result))
            self.accelerator.wait_for_everyone()
        fine_tuned: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return fine_tuned

    def _held_out_reward_model(self) -> tuple[str, dict[str, Any]]:
        """The folder of the model that grades, and what the result says of it."""
        if self.config.held_out_reward_model:
            return self.run_dir.locate(self.config.held_out_reward_model), {"held_out_reward_model": "given"}
        config = self._held_out_config()
        run_dir = _InnerRunDir(self.run_dir.path / "held_out_reward_model", self.run_dir, HELD_OUT)
        if self.accelerator.is_main_process:
            RunDir.create(run_dir.path, config)
        self.accelerator.wait_for_everyone()
        found = run_dir.read_result()
        if found is None:
            found = train_reward_model(config, run_dir, self.stop)
            if self.accelerator.is_main_process:
                run_dir.write_result(found)
                run_dir.remove_checkpoints()
        return str(run_dir.model), {"held_out_reward_model": "trained here", "held_out_accuracy": found["accuracy"]}

    def _held_out_config(self) -> RewardModelConfig:
        """Another seed and the selecting model's settings; ours are in the run directory that its folder is in."""
        told = Path(self.run_dir.locate(self.config.reward_model)).parent
        settings = RewardModelConfig(
            backbone=self.run_dir.locate(self.config.policy), max_length=self.config.max_length
        )
        if (told / "run.json").exists():
            selecting = RunDir(told).config()
            if isinstance(selecting, RewardModelConfig):
                settings = dataclasses.replace(selecting, backbone=RunDir(told).locate(selecting.backbone))
        return dataclasses.replace(
            settings,
            preferences=str(self.run_dir.resolve(self.config.preferences).resolve()),
            seed=settings.seed + self.config.seed + 1,
            num_processes=self.config.num_processes,
            save_minutes=self.config.save_minutes,
        )

    def _compared(self) -> list[list[Sampled]]:
        """Responses to held-out prompts before and after."""
        return [
            self._sample(policy, self.held_out_prompts, self.num_compared, f"responses_{name}.jsonl", stage)
            for name, policy, stage in (
                ("before", self.config.policy, _part(COMPARE, 0, 4)),
                ("after", self.run_dir.model.name, _part(COMPARE, 1, 4)),
            )
        ]

    def _grade(self, responses: Sequence[Sequence[Sampled]], held_out_folder: str) -> list[list[Graded]]:
        """Both rewards' verdicts on both policies' responses, which are also written for people to read.

        Responses to a prompt are scored together, before beside after, as rewards that compare them must.
        """
        before, after = responses
        pairs = [(old.prompt, old.responses + new.responses) for old, new in zip(before, after, strict=True)]
        rewards = self._score(self.run_dir.locate(self.config.reward_model), pairs, _part(COMPARE, 2, 4))
        held_out = self._score(held_out_folder, pairs, _part(COMPARE, 3, 4))
        graded: list[list[Graded]] = [[], []]
        for (prompt, texts), own, other in zip(pairs, rewards, held_out, strict=True):
            half = self.num_compared
            graded[0].append(Graded(prompt, texts[:half], own[:half], other[:half]))
            graded[1].append(Graded(prompt, texts[half:], own[half:], other[half:]))
        if self.accelerator.is_main_process:
            for name, items in zip(("before", "after"), graded, strict=True):
                _write_lines(self.run_dir.path / f"samples_{name}.jsonl", _rows(items))
        return graded

    def _leave_if_asked(self) -> None:
        if agree(self.accelerator, self.stop()):
            raise Interrupted("stopped between two batches")

    def _log(self, stage: Stage, done: float, step: int) -> None:
        if self.accelerator.is_main_process:
            self.run_dir.log(step=step, phase=stage.phase, progress=stage.progress(done))


def _comparison(name: str, before: Sequence[list[float]], after: Sequence[list[float]]) -> dict[str, Any]:
    """Means over prompts, of those that have rewards before and after."""
    means = [
        (fmean(old), fmean(new))
        for old, new in ((_known(old), _known(new)) for old, new in zip(before, after, strict=True))
        if old and new
    ]
    if not means:
        raise ConfigError(f"{name}_model: could score none of the responses that are compared")
    means_before, means_after = map(list, zip(*means, strict=True))
    gain, interval = paired_gain(means_before, means_after)
    return {
        f"{name}_before": fmean(means_before),
        f"{name}_after": fmean(means_after),
        f"{name}_gain": gain,
        f"{name}_gain_interval": interval,
    }


def _known(rewards: Sequence[float]) -> list[float]:
    return [reward for reward in rewards if math.isfinite(reward)]


def _rows(items: Iterable[Graded]) -> Iterator[dict[str, Any]]:
    for item in items:
        rewards = zip(item.responses, as_json(item.rewards), as_json(item.held_out_rewards), strict=True)
        for response, reward, other in rewards:
            yield {"prompt": item.prompt, "response": response, "reward": reward, "held_out_reward": other}


def _drawn(prompts: list[Messages], wanted: int, rng: random.Random) -> list[Messages]:
    """All prompts, or `wanted` of them drawn at random; the longest first, so that batches are of similar length."""
    drawn = rng.sample(prompts, wanted) if 0 < wanted < len(prompts) else prompts
    return sorted(drawn, key=lambda prompt: -sum(len(message["content"]) for message in prompt))


def _part(stage: Stage, number: int, of: int) -> Stage:
    width = (stage.end - stage.start) / of
    return Stage(stage.phase, stage.start + number * width, stage.start + (number + 1) * width)


def _sampling_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; one that a kill left half written is not there."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
