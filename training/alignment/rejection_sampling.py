"""Rejection sampling: answer each prompt several times, keep the best answers by a reward, fine-tune on those; again.

Each round samples from the policy of the round before (RAFT). The policy is watched on held-out prompts after every
round, by a reward that never selects: the selecting one's own verdict on the outcome is biased upwards, for the policy
learned its errors too. When that alarm is raised, the policy of the best round is kept.

    round_1/prompts.jsonl       {"prompt"} in the order of sampling, drawn anew for each round
    round_1/shard_000.jsonl     parts of the samples, where several runs make them, and what these tell: shard_000.json
    round_1/samples.jsonl       {"prompt", "responses", "rewards"}: n responses to each prompt
    round_1/winners.jsonl       {"prompt", "completion", "reward"}, or {"prompt", "chosen", "rejected", "reward",
                                "rejected_reward"}: what is kept
    round_1/round.json          what the round's figures are; written last
    model/                      the policy of the last round, or of the best one; each round's is in its folder before
    curve.json                  what the best of 1, 2, … n samples are worth, from those of the first round
    random_twin/                the same for a policy trained on random choices, where that is asked for
    checks.jsonl, held_out/     of the guard: `tracking` and `held_out_reward`
    samples_before.jsonl        {"prompt", "response", "reward", "held_out_reward"}; so samples_after.jsonl

Each is a stage that a restarted run does not repeat. With several shards, each of them is a run of its own if there is
a supervisor to start it (PLUMBLINE_SUPERVISED=1), and otherwise a part of this one.

Rewards are those of `RewardModel.score`: 0 is the mean and 1 the deviation on the responses that it was trained on.

Sources: H. Dong et al., "RAFT: reward ranked finetuning for generative foundation model alignment", 2023; the random
twin is the control without which a gain may be fine-tuning's alone.
"""

import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.alignment import best_of_n
from training.alignment.config import ConfigError, RejectionSamplingConfig, SampleConfig
from training.alignment.dpo import fine_tune_on_pairs
from training.alignment.guard import mean_interval
from training.alignment.held_out_reward import GIVEN, HeldOut, held_out_reward, part_of, parts
from training.alignment.policies import load_policy, move_policy, policy_card, save_policy
from training.alignment.preferences import (
    Messages,
    Preference,
    distinct_prompts,
    drawn,
    pairs,
    prompt_key,
    read_rankings,
)
from training.alignment.reward import Reward, as_json, load_reward, score_cache
from training.alignment.reward_model import agree, join_processes
from training.alignment.run_dir import (
    Interrupted,
    RunDir,
    StopFlag,
    Waiting,
    append_lines,
    file_digest,
    write_json,
    write_whole,
)
from training.alignment.sampling import chunk_size, read_samples, run_sampling, score, shards, told_beside
from training.alignment.sft import Example, Stage, best_responses, fine_tune
from training.alignment.tracking import Tracker, held_out_prompts

CURVE_RESPONSES = 4096  # at most so many are graded for the curve
GRADED_TOGETHER = 512  # responses graded between two looks at the stop flag
HELD_OUT, CURVE = Stage("held-out", 0.0, 0.1), Stage("curve", 0.95, 1.0)
ROUNDS, TWIN = Stage("round", 0.1, 0.95), Stage("twin", 0.6, 0.95)
ROUNDS_BESIDE_TWIN = Stage("round", 0.1, 0.6)
SUMS = ("num_responses", "num_tokens", "num_missing", "num_winners", "num_steps")
SECONDS = ("seconds_generating", "seconds_scoring")

Row = dict[str, Any]


def run_rejection_sampling(config: RejectionSamplingConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Sample, select, fine-tune and check, round by round; the new policy is in `run_dir.model`.

    Returns:
        What `Tracker.result` tells of the policy before and after; "model"; "held_out_reward_model", "given" or
        "trained here"; "num_rounds"; of the first round "num_prompts", "num_samples" a prompt, "num_distinct" (the mean
        number of different responses to a prompt), "kl_best_of_n" (estimated, in nats) with its interval, and
        "kl_bound"; of the last round "loss" and "backend"; of all rounds "num_winners", "num_steps" of the
        fine-tuning, "num_responses" and "num_tokens" sampled, "num_missing" rewards, "seconds_generating" and
        "seconds_scoring". With a random twin: "reward_after_random", "reward_gain_over_random",
        "reward_gain_over_random_interval", and the same of "held_out_reward".

    Raises:
        ConfigError: there is no prompt to sample or to compare on, nothing can be kept, or a model cannot serve.
        Interrupted: `stop` became true; what is finished is left.
        Waiting: shards are to be done by others.
    """
    if not config.reward_model:
        raise ConfigError("reward_model: none is given")
    if parts(run_dir, config.reward_model) & parts(run_dir, config.held_out_reward_model):
        raise ConfigError("held_out_reward_model: is the one that selects, or a part of it")
    return _Run(config, run_dir, stop, join_processes()).result()


def paired_gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean of `after` - `before` over prompts and its 95 % interval by Student's t; none from fewer than two."""
    mean, half = mean_interval([new - old for old, new in zip(before, after, strict=True)])
    return mean, None if half is None else [mean - half, mean + half]


@dataclass(frozen=True)
class _Part(RunDir):
    """The run directory of a part of this run, whose metrics show in the outer one as well."""

    outer: RunDir
    stage: Stage

    def log(self, *, step: int, phase: str, progress: float, **values: float) -> None:
        super().log(step=step, phase=phase, progress=progress, **values)
        self.outer.log(step=step, phase=phase, progress=self.stage.progress(progress), **values)

    def truncate_metrics(self, step: int, phase: str, after: float | None = None) -> None:
        super().truncate_metrics(step, phase, after)
        self.outer.truncate_metrics(step, phase, self.stage.progress(after or 0.0))


class _Run:
    """The whole: rounds and their checks, the policy that is kept, its twin and the curve."""

    def __init__(self, config: RejectionSamplingConfig, run_dir: RunDir, stop: StopFlag, accelerator: Accelerator):
        self.config, self.run_dir, self.stop, self.accelerator = config, run_dir, stop, accelerator
        self.preferences = run_dir.resolve(config.preferences)
        self.held_out_prompts = held_out_prompts(config, self.preferences)
        if not distinct_prompts(self.preferences, "train"):
            raise ConfigError("preferences: the train split has no prompt to sample")

    def result(self) -> dict[str, Any]:
        config, tracker = self.config, self.tracker
        self._check(tracker, 0, self.run_dir.locate(config.policy), ROUNDS.start)
        rounds = self._rounds(tracker)
        is_stopped = tracker.alarm is not None and config.guard == "stop"
        step = tracker.best_step if is_stopped else len(rounds)
        self._keep(step)
        twin = self._twin(tracker, step) if config.has_random_twin and step else {}
        curve = self._curve()
        found = {
            **tracker.result(step),
            **twin,
            "held_out_reward_model": "given" if self.held_out.votes == GIVEN else "trained here",
            "model": self.run_dir.model.name,
            "num_rounds": len(rounds),
            "num_prompts": rounds[0]["num_prompts"],
            "num_samples": config.num_samples,
            "num_distinct": rounds[0]["num_distinct"],
            "loss": rounds[-1]["loss"],
            "backend": rounds[-1]["backend"],
            **{name: sum(told[name] for told in rounds) for name in (*SUMS, *SECONDS)},
            **curve,
        }
        self._write_card(found)
        return found

    @cached_property
    def held_out(self) -> HeldOut:
        return held_out_reward(self.config, self.run_dir, self.accelerator, self.stop, HELD_OUT)

    @cached_property
    def tracker(self) -> Tracker:
        return self._tracker(self.run_dir)

    @cached_property
    def reward(self) -> Reward:
        return load_reward(self.run_dir.locate(self.config.reward_model), self.accelerator.device, cache=score_cache())

    def _tracker(self, run_dir: RunDir) -> Tracker:
        return Tracker(
            self.config,
            run_dir=run_dir,
            accelerator=self.accelerator,
            reference=self.run_dir.locate(self.config.policy),
            prompts=self.held_out_prompts,
            proxy=lambda prompts: [scored.scores for scored in self.reward.score_prompts(prompts)],
            held_out=self.held_out,
        )

    def _rounds(self, tracker: Tracker) -> list[Row]:
        """What each round tells; the first one that finds nothing to keep is the end."""
        line = _Line(self, self.run_dir.path)
        stage = ROUNDS_BESIDE_TWIN if self.config.has_random_twin else ROUNDS
        rounds: list[Row] = []
        for number in range(1, self.config.num_rounds + 1):
            part = part_of(stage, number - 1, self.config.num_rounds)
            told = line.round(number, part)
            if told is None:
                break
            rounds.append(told)
            self._check(tracker, number, str(line.folder(number) / "model"), part.end)
            if self.accelerator.is_main_process:
                line.remove_models(before=number, but=tracker.best_step)
            self.accelerator.wait_for_everyone()
            if tracker.alarm is not None and tracker.alarm.step <= number and self.config.guard == "stop":
                break
        return rounds

    def _check(self, tracker: Tracker, step: int, policy: str, progress: float) -> None:
        self.leave_if_asked()
        if all(check.step != step for check in tracker.checks):
            model, tokenizer = load_policy(policy)
            model.to(self.accelerator.device)
            tracker.check(step, model, tokenizer)
            if self.accelerator.is_main_process:
                self.run_dir.log(step=step, phase="check", progress=progress)

    def _keep(self, step: int) -> None:
        """Put the policy of a round into its place; before the first one it is the policy as it began."""
        line, is_main = _Line(self, self.run_dir.path), self.accelerator.is_main_process
        if is_main and not self.run_dir.model.exists():
            if step:
                move_policy(line.folder(step) / "model", self.run_dir.model)
            else:
                save_policy(*load_policy(self.run_dir.locate(self.config.policy)), self.run_dir.model)
        if is_main:
            line.remove_models(before=self.config.num_rounds + 1)
        self.accelerator.wait_for_everyone()

    def _twin(self, tracker: Tracker, num_rounds: int) -> dict[str, Any]:
        """Train the random twin for as many rounds; what the policy gained over it."""
        folder = self.run_dir.path / "random_twin"
        if self.accelerator.is_main_process:
            folder.mkdir(exist_ok=True)
        self.accelerator.wait_for_everyone()
        line, own = _Line(self, folder, is_random=True), self._tracker(_Part(folder, self.run_dir, TWIN))
        model = folder / "model"
        for number in range(1, num_rounds + 1):
            if line.round(number, part_of(TWIN, number - 1, num_rounds)) is None:
                raise ConfigError(f"has_random_twin: nothing can be kept of the twin's responses in round {number}")
            if self.accelerator.is_main_process:
                line.remove_models(before=number)
            self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not model.exists():
            move_policy(line.folder(num_rounds) / "model", model)
        self.accelerator.wait_for_everyone()
        self._check(own, num_rounds, str(model), TWIN.end)
        policy = next(check for check in tracker.checks if check.step == num_rounds)
        return {
            **_over_random("reward", own.checks[-1].reward_by_prompt, policy.reward_by_prompt),
            **_over_random("held_out_reward", own.checks[-1].held_out_by_prompt, policy.held_out_by_prompt),
        }

    def _curve(self) -> dict[str, Any]:
        """Write curve.json, and tell how far the best of n is from the policy that was sampled."""
        path, n = self.run_dir.path / "curve.json", self.config.num_samples
        rows = _selectable(self.run_dir.path / "round_1" / "samples.jsonl")
        wanted = max(1, CURVE_RESPONSES // n)
        chosen = random.Random(self.config.seed).sample(rows, wanted) if wanted < len(rows) else rows
        if self.is_missing(path):
            graded = self._graded(chosen)
            if self.accelerator.is_main_process:
                write_json(path, curve_of(chosen, graded))
        self.accelerator.wait_for_everyone()
        numbers = [int(np.isfinite(row["rewards"]).sum()) for row in rows]  # the best is of those that have a reward
        kl, interval = best_of_n.mean_over_prompts(
            [[best_of_n.estimate_kl(row["rewards"], known)] for row, known in zip(rows, numbers, strict=True)]
        )
        return {
            "kl_best_of_n": _json(kl)[0],
            "kl_best_of_n_interval": None if np.isnan(interval[0, 0]) else interval[0].tolist(),
            "kl_bound": best_of_n.kl_bound(n),
        }

    def _graded(self, rows: Sequence[Row]) -> list[list[float | None]]:
        """The held-out rewards of samples; some at a time, and none of those that are in the file already."""
        path = self.run_dir.path / "round_1" / "held_out_rewards.jsonl"
        found = [line["rewards"] for line in _read_lines(path)]
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _write_lines(path, ({"rewards": own} for own in found))  # without what a kill left half written
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        at_once = max(1, GRADED_TOGETHER // self.config.num_samples) * size
        for start in range(len(found), len(rows), at_once):
            self.leave_if_asked()
            some = rows[start : start + at_once]
            mine = some[rank::size]
            own = score(self.held_out, [row["prompt"] for row in mine], [row["responses"] for row in mine])
            shares = gather_object([own]) if size > 1 else [own]
            found += (new := [shares[place % size][place // size] for place in range(len(some))])
            if self.accelerator.is_main_process:
                append_lines(path, ({"rewards": one} for one in new))
                self.run_dir.log(step=len(found), phase="curve", progress=CURVE.progress(len(found) / len(rows)))
        return found

    def _write_card(self, result: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            card = policy_card(self.config, result, digest=file_digest(self.preferences))
            write_whole(self.run_dir.model / "README.md", card)
        self.accelerator.wait_for_everyone()

    def is_missing(self, path: Path) -> bool:
        """All processes have looked before one of them goes on to write it."""
        found = not path.exists()
        self.accelerator.wait_for_everyone()
        return found

    def leave_if_asked(self) -> None:
        if agree(self.accelerator, self.stop()):
            raise Interrupted("stopped between two stages")


@dataclass(frozen=True)
class _Line:
    """Rounds of one policy, each from the policy of the one before; all files of a round are in a folder of its own.

    The random twin keeps as many responses to each prompt as the policy in the same round, drawn at random: in the
    first round from the same samples, later from those of its own policy.
    """

    run: _Run
    path: Path
    is_random: bool = False

    def folder(self, number: int) -> Path:
        return self.path / f"round_{number}"

    def remove_models(self, before: int, but: int = 0) -> None:
        """Of the rounds before one: a run that goes on comes past them again, and needs the last one's."""
        for number in range(1, before):
            if number != but:
                shutil.rmtree(self.folder(number) / "model", ignore_errors=True)

    def round(self, number: int, stage: Stage) -> Row | None:
        """Sample, keep and fine-tune; nothing where nothing can be kept, which in the first round is an error.

        Raises:
            ConfigError: nothing can be kept in the first round; the message tells why.
        """
        path = self.folder(number) / "round.json"
        if self.run.is_missing(path):
            if self.run.accelerator.is_main_process:
                path.parent.mkdir(exist_ok=True)
            self.run.accelerator.wait_for_everyone()
            told = self._samples(number, part_of(stage, 0, 2))
            kept = self._kept(number)
            if kept:
                told |= self._fine_tune(number, kept, part_of(stage, 1, 2))
            if self.run.accelerator.is_main_process:
                write_json(path, told | {"num_winners": len(kept)})
                RunDir(path.parent).remove_checkpoints()
            self.run.accelerator.wait_for_everyone()
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        return found if found["num_winners"] else None

    # Samples

    def _samples(self, number: int, stage: Stage) -> Row:
        """Have the samples of a round made, and tell of them."""
        folder = self.folder(number)
        if self.is_random and number == 1:
            return {**dict.fromkeys((*SUMS, *SECONDS), 0), "backend": ""}
        if self.run.is_missing(folder / "samples.jsonl"):
            self._write_prompts(number)
            self._make(self._shards(number), stage)
            if self.run.accelerator.is_main_process:
                self._join(number)
            self.run.accelerator.wait_for_everyone()
        rows = list(read_samples(folder / "samples.jsonl"))
        told: Row = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        return told | {
            "num_prompts": len(rows),
            "num_responses": sum(len(row["responses"]) for row in rows),
            "num_distinct": fmean(len(set(row["responses"])) for row in rows),
        }

    def _write_prompts(self, number: int) -> None:
        config = self.run.config
        prompts = distinct_prompts(self.run.preferences, "train")
        chosen = drawn(prompts, config.num_prompts, random.Random(config.seed + number - 1))
        if self.run.accelerator.is_main_process:
            _write_lines(self.folder(number) / "prompts.jsonl", ({"prompt": prompt} for prompt in chosen))
        self.run.accelerator.wait_for_everyone()

    def _shards(self, number: int) -> list[SampleConfig]:
        config, folder = self.run.config, self.folder(number).resolve()
        whole = SampleConfig(
            prompts=str(folder / "prompts.jsonl"),
            policy=self._policy(number),
            reward_model="" if self.is_random else self.run.run_dir.locate(config.reward_model),
            num_samples=config.num_samples,
            max_length=config.max_length,
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            generation_batch_size=config.generation_batch_size,
            backend=config.backend,
            seed=config.seed + number - 1,
            num_processes=config.num_processes,
            save_minutes=config.save_minutes,
        )
        num_prompts = len(_read_lines(folder / "prompts.jsonl"))
        return [
            _replace(whole, first=lines.start, num_prompts=len(lines), output=str(folder / f"shard_{place:03d}.jsonl"))
            for place, lines in enumerate(shards(num_prompts, config.num_shards, chunk_size(whole, num_prompts)))
        ]

    def _make(self, wanted: Sequence[SampleConfig], stage: Stage) -> None:
        """Have the shards made that are not there yet.

        Raises:
            Waiting: others can make them.
        """
        missing = [shard for shard in wanted if not Path(shard.output).exists()]
        if missing and len(wanted) > 1 and os.environ.get("PLUMBLINE_SUPERVISED") == "1":
            raise Waiting(missing)
        for place, shard in enumerate(wanted):
            if shard in missing:
                folder = Path(shard.output).with_suffix("")
                part = _Part(folder, self.run.run_dir, part_of(stage, place, len(wanted)))
                if self.run.accelerator.is_main_process:
                    RunDir.create(folder, shard)
                self.run.accelerator.wait_for_everyone()
                run_sampling(shard, part, self.run.stop)

    def _join(self, number: int) -> None:
        """Make one file of all shards' samples, and one of what they tell."""
        outputs = [Path(shard.output) for shard in self._shards(number)]
        told = [json.loads(told_beside(path).read_text(encoding="utf-8")) for path in outputs]
        folder = self.folder(number)
        sums = {name: sum(one[name] for one in told) for name in ("num_tokens", "num_missing", *SECONDS)}
        write_json(folder / "samples.json", sums | {"backend": ", ".join(sorted({one["backend"] for one in told}))})
        write_whole(folder / "samples.jsonl", "".join(path.read_text(encoding="utf-8") for path in outputs))
        for path in outputs:
            path.unlink()
            told_beside(path).unlink()
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _policy(self, number: int) -> str:
        """What a round samples from and trains."""
        if number == 1:
            return self.run.run_dir.locate(self.run.config.policy)
        return str((self.folder(number - 1) / "model").resolve())

    # What is kept

    def _kept(self, number: int) -> list[Row]:
        """The lines of winners.jsonl, which is written where it is not there yet."""
        path = self.folder(number) / "winners.jsonl"
        if self.run.is_missing(path):
            rows = list(self._kept_at_random(number) if self.is_random else self._kept_best(number))
            if self.run.accelerator.is_main_process:
                _write_lines(path, rows)
            self.run.accelerator.wait_for_everyone()
        return _read_lines(path)

    def _kept_best(self, number: int) -> Iterator[Row]:
        config = self.run.config
        samples = _selectable(self.folder(number) / "samples.jsonl")
        found = list(best_rows(config, samples, config.seed + number - 1))
        if not found and number == 1:
            raise ConfigError(_why_none(samples))
        yield from found

    def _kept_at_random(self, number: int) -> Iterator[Row]:
        config, beside = self.run.config, _Line(self.run, self.run.run_dir.path).folder(number)
        wanted = Counter(prompt_key(row["prompt"]) for row in _read_lines(beside / "winners.jsonl"))
        folder = beside if number == 1 else self.folder(number)
        samples = [row for row in _selectable(folder / "samples.jsonl") if wanted[prompt_key(row["prompt"])]]
        if number > 1:  # not scored: whatever can be trained on may be drawn
            samples = [row | {"rewards": [0.0 if text else math.nan for text in row["responses"]]} for row in samples]
        for row in samples:
            yield from random_rows(config, row, wanted[prompt_key(row["prompt"])], config.seed + number - 1)

    # Fine-tuning

    def _fine_tune(self, number: int, kept: Sequence[Row], stage: Stage) -> Row:
        run, config = self.run, self.run.config
        phase = "fine-tune" if number == 1 else f"fine-tune {number}"
        told: dict[str, Any] = {
            "policy": self._policy(number),
            "run_dir": _Part(self.folder(number), run.run_dir, stage),
            "stop": run.stop,
            "stage": Stage(f"{phase} at random" if self.is_random else phase),
        }
        num_mixed_in, rng = round(config.mixed_in * len(kept)), random.Random(config.seed + number - 1)
        if config.keep == "pairs":
            preferences = [Preference(row["prompt"], row["chosen"], row["rejected"]) for row in kept]
            judged = [pair for ranked in read_rankings(run.preferences, "train") for pair in pairs(ranked)]
            result = fine_tune_on_pairs(config, pairs=[*preferences, *_some(judged, num_mixed_in, rng)], **told)
        else:
            examples = [Example(row["prompt"], row["completion"]) for row in kept]
            train = [*examples, *_some(best_responses(run.preferences, "train"), num_mixed_in, rng)]
            result = fine_tune(config, train=train, held_out=[], **told)
        return {name: result[name] for name in ("loss", "num_steps")}


def best_rows(config: RejectionSamplingConfig, samples: Iterable[Row], seed: int) -> Iterator[Row]:
    """What is kept of samples, as lines of winners.jsonl. The choice among equals follows from seed and prompt."""
    for row in samples:
        rng, texts, rewards = _rng(seed, row["prompt"]), row["responses"], row["rewards"]
        limits = {"floor": config.reward_floor, "margin": config.minimum_margin}
        if config.keep == "pairs":
            pair = best_of_n.keep_pair(texts, rewards, rng, **limits)
            yield from [_pair(row, *pair)] if pair else []
        else:
            places = best_of_n.keep_best(
                texts, rewards, rng, num_kept=config.num_kept, is_distinct=config.deduplicate, **limits
            )
            yield from (_winner(row, place) for place in places)


def random_rows(config: RejectionSamplingConfig, row: Row, num_kept: int, seed: int) -> Iterator[Row]:
    """As many lines of winners.jsonl of one prompt, its samples drawn at random instead."""
    rng, is_pair = _rng(seed, row["prompt"]), config.keep == "pairs"
    places = best_of_n.keep_random(
        row["responses"],
        row["rewards"],
        rng,
        num_kept=2 if is_pair else num_kept,
        is_distinct=is_pair or config.deduplicate,
    )
    if not is_pair:
        yield from (_winner(row, place) for place in places)
    elif len(places) == 2:
        yield _pair(row, *places)


def curve_of(rows: Sequence[Row], graded: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The lines of a plot of what the best of n is worth, for n from 1 to N.

    Args:
        rows: samples of B prompts, N of each.
        graded: (B, N) their held-out rewards.

    Returns:
        {"n", "kl_bound", "kl", "reward", "reward_interval", "held_out", "held_out_interval"}, lists of N; None where
        there is nothing to tell.
    """
    rewards = np.array([row["rewards"] for row in rows], float)
    grades = np.array(graded, float)  # None becomes nan
    numbers = range(1, rewards.shape[1] + 1)
    found: dict[str, Any] = {"n": list(numbers), "kl_bound": [best_of_n.kl_bound(n) for n in numbers]}
    kl, _ = best_of_n.mean_over_prompts([[best_of_n.estimate_kl(own, n) for n in numbers] for own in rewards])
    found["kl"] = _json(kl)
    for name, told in (("reward", rewards), ("held_out", grades)):
        curves = [best_of_n.curve(own, one) for own, one in zip(rewards, told, strict=True)]
        means, intervals = best_of_n.mean_over_prompts(curves)
        found[name] = _json(means)
        found[f"{name}_interval"] = [None if np.isnan(one).any() else one.tolist() for one in intervals]
    return found


def _selectable(path: Path) -> list[Row]:
    """Samples to select from: an empty response has no reward to be selected by."""
    return [
        row
        | {"rewards": [own if text else math.nan for own, text in zip(row["rewards"], row["responses"], strict=True)]}
        for row in read_samples(path)
    ]


def _winner(row: Row, place: int) -> Row:
    return {"prompt": row["prompt"], "completion": row["responses"][place], "reward": _json([row["rewards"][place]])[0]}


def _pair(row: Row, best: int, worst: int) -> Row:
    reward, rejected_reward = _json([row["rewards"][best], row["rewards"][worst]])
    return {
        "prompt": row["prompt"],
        "chosen": row["responses"][best],
        "rejected": row["responses"][worst],
        "reward": reward,
        "rejected_reward": rejected_reward,
    }


def _why_none(samples: Sequence[Row]) -> str:
    if not any(text for row in samples for text in row["responses"]):
        return "policy: every response that it gives is empty"
    if not any(math.isfinite(reward) for row in samples for reward in row["rewards"]):
        return "reward_model: it could score none of the responses"
    return "minimum_reward: no response is good enough, or leads by minimum_margin, to be kept"


def _over_random(name: str, random_twin: Sequence[float | None], policy: Sequence[float | None]) -> dict[str, Any]:
    """What the policy gained over its random twin, over the prompts that both have."""
    both = [(old, new) for old, new in zip(random_twin, policy, strict=True) if old is not None and new is not None]
    if not both:
        raise ConfigError(f"{name}_model: could score no prompt of the policy and of its random twin")
    twins, policies = map(list, zip(*both, strict=True))
    gain, interval = paired_gain(twins, policies)
    return {
        f"{name}_after_random": fmean(twins),
        f"{name}_gain_over_random": gain,
        f"{name}_gain_over_random_interval": interval,
    }


def _some(items: Sequence[Any], wanted: int, rng: random.Random) -> list[Any]:
    """So many of them drawn at random, or all."""
    return rng.sample(items, min(wanted, len(items)))


def _rng(seed: int, prompt: Messages) -> random.Random:
    return random.Random(f"{seed} {prompt_key(prompt)}")


def _replace(config: SampleConfig, **values: Any) -> SampleConfig:
    return SampleConfig(**{**vars(config), **values})


def _json(values: Iterable[float]) -> list[float | None]:
    return as_json([float(value) for value in values])


def _read_lines(path: Path) -> list[Row]:
    """Whole lines; one that a kill left half written is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
