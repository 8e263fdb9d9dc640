"""The reward that watches: it grades a policy and is never optimised.

What a policy learns to exploit are the errors of the reward that it is optimised against, so its grade must come from
one that does not share them. Errors come with votes: reward models that learned from the same votes are wrong about the
same responses, however their seeds differ. A frozen preference set therefore sets votes aside, the split "guard", which
no reward that selects learns from; several reward models are trained on them here, and their mean grades. The deviation
between them tells where they guess.

    held_out/preferences.jsonl   those votes, their prompts divided anew: 15 % for validation, the others for
                                 training; and the test split's as they are, or, where there are none, another 15 %
    held_out/1/ …                a run directory for each of the reward models
    held_out/held_out.json       what is known of them, see `HeldOut`

A reward that is given instead is taken as it is, unless it has a part in common with what is optimised, under whatever
name.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from training.alignment import ensemble
from training.alignment.combiner import member_paths
from training.alignment.config import (
    AverageWeightsConfig,
    ComparePoliciesConfig,
    ConfigError,
    DpoConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    RlhfConfig,
    RunConfig,
    SftConfig,
    split_names,
)
from training.alignment.evaluation import pairwise_accuracy
from training.alignment.learning_curve import in_hash_order
from training.alignment.measures import Figure
from training.alignment.member_config import ImplicitRewardMember, RewardModelMember, is_member, read_member
from training.alignment.policies import is_adapter, load_policy, save_policy
from training.alignment.preferences import PromptedResponses, RankedResponses, prompt_key, read_lines, read_rankings
from training.alignment.provenance import prompt_digest, trained_on
from training.alignment.reward import COMBINER, Reward, Scored, load_reward, placed, score_cache
from training.alignment.reward_model import agree
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, write_json, write_whole
from training.alignment.scoring import disagreeing
from training.alignment.sft import Stage

GUARD, TRAIN, VALIDATION, TEST = "guard", "train", "validation", "test"
GIVEN = "given"
FOLDER, PREFERENCES, TOLD = "held_out", "preferences.jsonl", "held_out.json"
MIN_RANKINGS, MIN_PROMPTS = 20, 3
SHARE = 0.15  # of the prompts, for validation and, where it takes them, for the test
NUM_REFERENCE_PROMPTS = 128  # on whose responses the usual spread is measured
QUANTILE = 0.99

Config = RejectionSamplingConfig | RlhfConfig | DpoConfig | ComparePoliciesConfig


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A reward to grade with, and what is known of it."""

    rewards: tuple[Reward, ...]
    """Their mean grades."""
    votes: str
    """From which votes it has learned: GUARD, VALIDATION, or those that a GIVEN one came with."""
    num_rankings: int | None = None
    """How many of these put something above something."""
    accuracy: Figure = None
    """Of the mean, on votes that none has learned from; of a given one, as the run that trained it found."""
    reference_spread: float | None = None
    """The mean deviation between members on usual responses; none where there is nothing to deviate."""
    spread_limit: float = math.inf
    """The 99 % quantile of that deviation over its mean."""
    note: str = ""
    """What a reader of its grades should be warned of."""

    def score_prompts(self, prompts: Sequence[PromptedResponses]) -> list[Scored]:
        """Grades of all prompts' responses, with the deviation between members where there are several.

        A combination that is given has its own members.
        """
        by_member = [reward.score_prompts(prompts) for reward in self.rewards]
        if len(by_member) == 1:
            return by_member[0]
        found = []
        for scored in zip(*by_member, strict=True):
            scores = np.array([one.scores for one in scored]).T
            means, spreads = ensemble.mean(scores).tolist(), ensemble.spread(scores).tolist()
            found.append(Scored(means, max(one.num_truncated for one in scored), spreads))
        return found

    def told(self) -> dict[str, Any]:
        """What a run's result says of it."""
        return {
            "held_out_votes": self.votes,
            "held_out_num_rankings": self.num_rankings,
            "held_out_accuracy": self.accuracy["value"] if self.accuracy else None,
            "held_out_accuracy_interval": self.accuracy["interval"] if self.accuracy else None,
            **({"held_out_note": self.note} if self.note else {}),
        }


@dataclass(frozen=True)
class InnerRunDir(RunDir):
    """The run directory of a training within another run, whose progress shows in the outer one."""

    outer: RunDir
    stage: Stage

    def log(self, *, step: int, phase: str, progress: float, **values: float) -> None:
        super().log(step=step, phase=phase, progress=progress, **values)
        self.outer.log(step=step, phase=self.stage.phase, progress=self.stage.progress(progress))

    def truncate_metrics(self, step: int, phase: str, after: float | None = None) -> None:
        super().truncate_metrics(step, phase, after)
        self.outer.truncate_metrics(step, self.stage.phase, self.stage.progress(after or 0.0))


def held_out_reward(config: Config, run_dir: RunDir, accelerator: Accelerator, stop: StopFlag, stage: Stage) -> HeldOut:
    """The reward that grades the policies of a run: the one that is given, or one that is trained on votes set aside.

    All processes call it. What is trained already is not trained again.

    Args:
        stage: of the run's progress, which training takes.

    Raises:
        ConfigError: the given one is optimised; or there are too few votes to learn from.
        Interrupted: `stop` became true.
    """
    if config.held_out_reward_model:
        return _given(config, run_dir, accelerator)
    return _Training(config, run_dir, accelerator, stop, stage).held_out()


def optimised(config: Config, run_dir: RunDir) -> list[str]:
    """Paths and ids of the rewards that a run, or a policy that it compares, has optimised; DPO has none."""
    if isinstance(config, DpoConfig):
        return []
    found = [run_dir.locate(name) for name in split_names(config.reward_model)]
    if isinstance(config, ComparePoliciesConfig):
        for path in _policies(config, run_dir):
            told = _run_config(path)
            if isinstance(told, RejectionSamplingConfig | RlhfConfig):
                found += optimised(told, RunDir(path.parent))
    return list(dict.fromkeys(found))


def parts(run_dir: RunDir, name: str) -> set[str]:
    """A reward's path, and those of all that it is made of: what it combines, averages, or is another name of."""
    found = set[str]()
    waiting = [run_dir.locate(name)] if name else []
    while waiting:
        path = waiting.pop()
        own = os.path.realpath(path) if Path(path).is_dir() else path
        if own not in found:
            found.add(own)
            waiting += _made_of(Path(own)) if Path(own).is_dir() else []
    return found


def _made_of(folder: Path) -> list[str]:
    """Paths and ids of the rewards, or the policy, whose errors one in a folder has."""
    if is_member(folder):
        member = read_member(folder)
        if isinstance(member, RewardModelMember):
            return [placed(folder, member.model)]
        return [placed(folder, member.policy)] if isinstance(member, ImplicitRewardMember) else []
    if (folder / COMBINER).is_file():
        return member_paths(folder, is_used=True)
    config = _run_config(folder)
    if isinstance(config, AverageWeightsConfig):
        return [RunDir(folder.parent).locate(name) for name in split_names(config.models)]
    return []


def _run_config(folder: Path) -> RunConfig | None:
    """Of the run that has made a model, where one of ours has."""
    run_dir = RunDir(folder.parent)
    return run_dir.config() if (run_dir.path / "run.json").is_file() else None


def part_of(stage: Stage, number: int, of: int) -> Stage:
    """One of several equal parts of a stage, counted from 0."""
    width = (stage.end - stage.start) / of
    return Stage(stage.phase, stage.start + number * width, stage.start + (number + 1) * width)


def _given(config: Config, run_dir: RunDir, accelerator: Accelerator) -> HeldOut:
    names = optimised(config, run_dir)
    if parts(run_dir, config.held_out_reward_model) & set[str]().union(*(parts(run_dir, name) for name in names)):
        raise ConfigError("held_out_reward_model: is the one that is optimised, or a part of it")
    path = run_dir.locate(config.held_out_reward_model)
    reward = load_reward(path, accelerator.device, cache=score_cache())
    held_out = HeldOut((reward,), GIVEN, accuracy=_accuracy_of(path))
    num_shared = len(trained_on(Path(path)) & _learned_from(config, run_dir))
    if num_shared:
        note = (
            f"The held-out reward has learned from judgments on {num_shared} of the prompts that the "
            f"{_learner(config, run_dir)} has learned from: it may share its errors."
        )
        held_out = dataclasses.replace(held_out, note=note)
    return _with_spread(held_out, run_dir.resolve(config.preferences))


def _accuracy_of(path: str) -> Figure:
    """On the test split of the run whose folder the reward is in, where one of ours has made it."""
    found = RunDir(Path(path).parent).read_result() or {}
    value = found.get("accuracy")
    return None if value is None else {"value": value, "interval": found.get("interval")}


def _learned_from(config: Config, run_dir: RunDir) -> set[str]:
    """Digests of the prompts from whose judgments what is graded has learned: by a reward, or, as DPO does, without."""
    found = set[str]().union(*(trained_on(Path(path)) for path in optimised(config, run_dir)))
    if isinstance(config, DpoConfig):
        found |= {prompt_digest(ranked) for ranked in read_rankings(run_dir.resolve(config.preferences), TRAIN)}
    if isinstance(config, ComparePoliciesConfig):
        for path in _policies(config, run_dir):
            if isinstance(_run_config(path), DpoConfig | SftConfig):
                found |= trained_on(path)
    return found


def _learner(config: Config, run_dir: RunDir) -> str:
    return "optimised reward" if optimised(config, run_dir) else "policy"


def _policies(config: ComparePoliciesConfig, run_dir: RunDir) -> list[Path]:
    return [Path(run_dir.locate(name)) for name in split_names(config.policies)]


def _with_spread(held_out: HeldOut, path: Path) -> HeldOut:
    """The same, with the usual deviation between its members, on responses whose judgments they have not learned from.

    Those trained here have not learned from the training split; those of a given combination may have, so its spread is
    that on the test split.
    """
    prompts = {
        prompt_key(ranked.prompt): PromptedResponses(ranked.prompt, ranked.responses)
        for ranked in read_rankings(path, TEST if held_out.votes == GIVEN else TRAIN)
    }
    chosen = [prompts[key] for key in in_hash_order(list(prompts), 0)[:NUM_REFERENCE_PROMPTS]]
    has_members = len(held_out.rewards) > 1 or hasattr(held_out.rewards[0], "members")
    scored = held_out.score_prompts(chosen) if chosen and has_members else []
    spreads = np.array([value for one in scored for value in one.spread or () if math.isfinite(value)])
    if not len(spreads) or not spreads.mean() > 0:
        return held_out
    mean = float(spreads.mean())
    return dataclasses.replace(
        held_out, reference_spread=mean, spread_limit=float(np.quantile(spreads, QUANTILE)) / mean
    )


class _Training:
    """Reward models on votes set aside, each in a run directory of its own."""

    def __init__(self, config: Config, run_dir: RunDir, accelerator: Accelerator, stop: StopFlag, stage: Stage) -> None:
        self.config, self.run_dir, self.accelerator, self.stop = config, run_dir, accelerator, stop
        self.preferences = run_dir.resolve(config.preferences)
        self.folder = run_dir.path / FOLDER
        self.runs = [
            InnerRunDir(self.folder / str(number + 1), run_dir, part_of(stage, number, config.num_guards))
            for number in range(config.num_guards)
        ]

    def held_out(self) -> HeldOut:
        settings = self._settings()
        votes, rankings = self._votes(settings)
        if self.accelerator.is_main_process:
            self._write(votes, rankings, settings.aspects)
        self.accelerator.wait_for_everyone()
        for number, run_dir in enumerate(self.runs):
            self._train(run_dir, dataclasses.replace(settings, seed=settings.seed + number))
        if agree(self.accelerator, self.stop()):
            raise Interrupted("stopped after training the held-out reward models")
        found = HeldOut(
            tuple(load_reward(run_dir.model, self.accelerator.device) for run_dir in self.runs),
            votes,
            num_rankings=len(rankings),
            note=self._note(rankings),
        )
        if self.accelerator.is_main_process and not (self.folder / TOLD).exists():
            self._measure(found, settings.aspects)
        self.accelerator.wait_for_everyone()
        told = json.loads((self.folder / TOLD).read_text(encoding="utf-8"))
        limit = told["spread_limit"]
        return dataclasses.replace(found, **told | {"spread_limit": math.inf if limit is None else limit})

    def _settings(self) -> RewardModelConfig:
        """Those of the optimised reward model, or of the first one in a combination, where it was trained by us."""
        config = self.config
        settings = _trained_as(disagreeing(optimised(config, self.run_dir)))
        settings = settings or RewardModelConfig(
            backbone=self._policy(),
            max_length=config.max_length,
            aspect=config.aspect if isinstance(config, DpoConfig) else RewardModelConfig.aspect,
        )
        return dataclasses.replace(
            settings,
            preferences=str(Path("..") / PREFERENCES),
            seed=settings.seed + config.seed + 1,
            num_processes=config.num_processes,
            save_minutes=config.save_minutes,
        )

    def _policy(self) -> str:
        """The policy to build upon, whole."""
        config = self.config
        name = split_names(config.policies)[0] if isinstance(config, ComparePoliciesConfig) else config.policy
        path = self.run_dir.locate(name)
        if not is_adapter(path):
            return str(Path(path).resolve()) if Path(path).is_dir() else path
        folder = self.folder / "backbone"
        if not folder.is_dir() and self.accelerator.is_main_process:
            self.folder.mkdir(exist_ok=True)
            save_policy(*load_policy(path), folder)
        self.accelerator.wait_for_everyone()
        return str(folder.resolve())

    def _votes(self, settings: RewardModelConfig) -> tuple[str, list[RankedResponses]]:
        """The decided rankings to learn from, and which split they are."""
        decided = [
            ranked
            for ranked in read_rankings(self.preferences)
            if ranked.split in {GUARD, VALIDATION} and ranked.is_decided and ranked.aspect in settings.aspects
        ]
        votes = GUARD if any(ranked.split == GUARD for ranked in decided) else VALIDATION
        found = [ranked for ranked in decided if ranked.split == votes]
        num_prompts = len({prompt_key(ranked.prompt) for ranked in found})
        if len(found) < MIN_RANKINGS or num_prompts < MIN_PROMPTS:
            raise ConfigError(
                f"held_out_reward_model: none is given, and {len(found)} judgments of {settings.aspect} on "
                f"{num_prompts} prompts are set aside to train one, fewer than {MIN_RANKINGS} on {MIN_PROMPTS}: freeze "
                "the preference set anew with a share for the guard, or name a reward"
            )
        return votes, found

    def _write(self, votes: str, rankings: Sequence[RankedResponses], aspects: Sequence[str]) -> None:
        """The lines of these votes, with the splits that they have here; ties go to the training split."""
        self.folder.mkdir(exist_ok=True)
        has_test = any(one.is_decided and one.aspect in aspects for one in read_rankings(self.preferences, TEST))
        splits = divided([prompt_key(one.prompt) for one in rankings], self.config.seed, has_test=has_test)
        kept = []
        for (_, line), ranked in zip(read_lines(self.preferences), read_rankings(self.preferences), strict=True):
            if ranked.split == votes:
                row = json.loads(line) | {"split": splits.get(prompt_key(ranked.prompt), TRAIN)}
                kept.append(json.dumps(row) + "\n")
            elif ranked.split == TEST:
                kept.append(line.decode().rstrip("\n") + "\n")
        write_whole(self.folder / PREFERENCES, "".join(kept))

    def _train(self, run_dir: InnerRunDir, config: RewardModelConfig) -> None:
        if self.accelerator.is_main_process:
            RunDir.create(run_dir.path, config)
        self.accelerator.wait_for_everyone()
        if run_dir.read_result() is None:
            result = train_reward_model(config, run_dir, self.stop)
            if self.accelerator.is_main_process:
                run_dir.write_result(result)
                run_dir.remove_checkpoints()
            self.accelerator.wait_for_everyone()

    def _note(self, rankings: Sequence[RankedResponses]) -> str:
        learned_from = _learned_from(self.config, self.run_dir)
        num_shared = len(learned_from & {prompt_digest(ranked) for ranked in rankings})
        if not num_shared:
            return ""
        return (
            f"The {_learner(self.config, self.run_dir)} has learned from {num_shared} of the prompts whose judgments "
            "the held-out reward has learned from: they may share errors."
        )

    def _measure(self, held_out: HeldOut, aspects: Sequence[str]) -> None:
        """Measure the mean on its test votes, and the spread; kept in held_out.json."""
        test = [one for one in read_rankings(self.folder / PREFERENCES, TEST) if one.aspect in aspects]
        scored = held_out.score_prompts([PromptedResponses(one.prompt, one.responses) for one in test])
        found = pairwise_accuracy(test, [one.scores for one in scored])
        with_spread = _with_spread(held_out, self.preferences)
        told = {
            "votes": held_out.votes,
            "num_rankings": held_out.num_rankings,
            "accuracy": {"value": found.accuracy, "interval": list(found.interval)} if found else None,
            "reference_spread": with_spread.reference_spread,
            "spread_limit": with_spread.spread_limit if math.isfinite(with_spread.spread_limit) else None,
            "note": held_out.note,
        }
        write_json(self.folder / TOLD, told)


def divided(prompts: Sequence[str], seed: int, *, has_test: bool = False) -> dict[str, str]:
    """The split of each of several prompts: drawn by hashing, one for validation at the least, and one for the test.

    Args:
        has_test: there are votes to test on elsewhere: none is drawn.
    """
    order = in_hash_order(list(dict.fromkeys(prompts)), seed)
    share = max(1, round(SHARE * len(order)))
    names = [VALIDATION] * share + ([] if has_test else [TEST] * share)
    return dict(zip(order, names + [TRAIN] * (len(order) - len(names)), strict=True))


def _trained_as(paths: Sequence[str]) -> RewardModelConfig | None:
    """How the first of these rewards that a run of ours has trained was trained."""
    for path in paths:
        run_dir = RunDir(Path(path).parent)
        if (run_dir.path / "run.json").exists():
            config = run_dir.config()
            if isinstance(config, RewardModelConfig):
                values = {item.name: getattr(config, item.name) for item in dataclasses.fields(RewardModelConfig)}
                backbone = run_dir.locate(config.backbone)
                placed = str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone
                return RewardModelConfig(**values | {"backbone": placed})
    return None
