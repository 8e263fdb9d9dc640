"""What more judgments are worth: the held-out accuracy of reward models trained on growing parts of the training split.

    points/000120-0/    a run directory for each part and seed: 120 training prompts, seed 0; its model is not kept
    curve.json          {"points": [{"num_judgments", "num_prompts", "seed", "accuracy", "log_loss"}], "longer_wins",
                        "left_out": [{"num_prompts", "seed", "why"}]}

Parts are of prompts, not of judgments, so that a part is what a smaller project would have collected. They are nested:
the prompts stand in an order drawn by hashing, and each part is a beginning of it. Every model is validated and tested
on the same rankings. A point is a whole run of its own; one that is done is not trained again. A part in which, say, an
aspect is not judged at all is left out, and told; all prompts must be enough.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.alignment.config import ConfigError, LearningCurveConfig, RewardModelConfig
from training.alignment.evaluation import REPORT
from training.alignment.preferences import prompt_key, read_lines, read_rankings
from training.alignment.reward_model import join_processes
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import RunDir, StopFlag, write_json, write_whole

CURVE, POINTS, PREFERENCES = "curve.json", "points", "preferences.jsonl"


def learning_curve(config: LearningCurveConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Train and test a reward model on each part of the training prompts, with each seed; see curve.json.

    Returns:
        {"num_points", "num_judgments", "num_prompts", "accuracy", "interval", "log_loss"}, the last ones of all
        training prompts with the first seed; "longer_wins", the accuracy of a rule that prefers longer responses.

    Raises:
        ConfigError: there is nothing to train on or nothing to test on, or training on all prompts refuses.
        Interrupted: `stop` became true.
    """
    accelerator = join_processes()
    path = run_dir.resolve(config.preferences)
    prompts = _prompts(path, "train", config)
    if not prompts or not _prompts(path, "test", config):
        raise ConfigError(f"preferences: no decided rankings of aspect {config.aspect} in train, or none in test")
    plan = [
        (num_prompts, seed)
        for num_prompts in part_sizes(len(prompts), config.num_points)
        for seed in range(config.seed, config.seed + config.num_seeds)
    ]
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for num_prompts, seed in plan:
        point = _Point(config, run_dir, accelerator, in_hash_order(prompts, seed)[:num_prompts], seed)
        try:
            points.append(point.train(stop, (len(points) + len(left_out), len(plan))))
        except ConfigError as error:
            if num_prompts == len(prompts):
                raise
            left_out.append({"num_prompts": num_prompts, "seed": seed, "why": str(error)})
            if accelerator.is_main_process:
                point.clear()
            continue
        if accelerator.is_main_process:
            write_json(run_dir.path / CURVE, {**_curve(points), "left_out": left_out})
    whole = next(point for point in points if point["num_prompts"] == len(prompts))
    return {
        "num_points": len(points),
        **{name: whole[name] for name in ("num_judgments", "num_prompts")},
        **{name: whole[name]["value"] for name in ("accuracy", "log_loss", "longer_wins")},
        "interval": whole["accuracy"]["interval"],
    }


def part_sizes(num_prompts: int, num_points: int) -> list[int]:
    """All prompts, half of them, a quarter, …, the smallest first; fewer where halves are no longer different."""
    return sorted({-(-num_prompts // 2**halvings) for halvings in range(num_points)})


def in_hash_order(prompts: Sequence[str], seed: int) -> list[str]:
    """An order that depends on the prompts and the seed alone, so that more data only puts new ones in between."""
    key = str(seed).encode()
    return sorted(prompts, key=lambda prompt: blake2b(prompt.encode("utf-8", "replace"), key=key).digest())


class _Point:
    """One reward model of the curve."""

    def __init__(
        self, config: LearningCurveConfig, run_dir: RunDir, accelerator: Accelerator, prompts: Sequence[str], seed: int
    ) -> None:
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.prompts, self.seed = set(prompts), seed
        self.own = RunDir(run_dir.path / POINTS / f"{len(prompts):06d}-{seed}")

    def train(self, stop: StopFlag, place: tuple[int, int]) -> dict[str, Any]:
        """The point, trained unless it is there; `place` is its number and how many there are."""
        found = self.own.read_result()
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if found is not None:
            if self.accelerator.is_main_process:
                self.clear()  # a kill may have come between the result and this
            return found
        config = self._own_config()
        if self.accelerator.is_main_process:
            RunDir.create(self.own.path, config)
            num_judgments = self._write_preferences()
        self.accelerator.wait_for_everyone()
        train_reward_model(config, self.own, stop)
        if self.accelerator.is_main_process:
            self._finish(num_judgments, place)
        self.accelerator.wait_for_everyone()
        return self.own.read_result() or {}

    def _own_config(self) -> RewardModelConfig:
        values = {item.name: getattr(self.config, item.name) for item in dataclasses.fields(RewardModelConfig)}
        backbone = self.run_dir.locate(self.config.backbone)
        if Path(backbone).is_dir():
            backbone = str(Path(backbone).resolve())  # it may be told relative to the whole run
        return RewardModelConfig(**{**values, "seed": self.seed, "preferences": PREFERENCES, "backbone": backbone})

    def _write_preferences(self) -> int:
        """All but the training rankings of other prompts; how many training rankings that leaves."""
        path, num_judgments, kept = self.run_dir.resolve(self.config.preferences), 0, []
        for (_, line), ranked in zip(read_lines(path), read_rankings(path), strict=True):
            if ranked.split == "train" and ranked.aspect in self.config.aspects:
                if prompt_key(ranked.prompt) not in self.prompts:
                    continue
                num_judgments += 1
            kept.append(line.decode().rstrip("\n") + "\n")
        write_whole(self.own.path / PREFERENCES, "".join(kept))
        return num_judgments

    def _finish(self, num_judgments: int, place: tuple[int, int]) -> None:
        """Keep what was measured, and neither weights nor data: there are as many of them as points."""
        report = json.loads((self.own.path / REPORT).read_text(encoding="utf-8"))
        point = {
            "num_judgments": num_judgments,
            "num_prompts": len(self.prompts),
            "seed": self.seed,
            "accuracy": report["figures"]["accuracy"],
            "log_loss": report["figures"]["log_loss"],
            "longer_wins": report["length"]["longer_wins"],
        }
        number, num_points = place
        self.run_dir.truncate_metrics(number, "point")  # a run that was killed here has logged it already
        self.run_dir.log(
            step=number + 1,
            phase="point",
            progress=(number + 1) / num_points,
            num_judgments=num_judgments,
            accuracy=point["accuracy"]["value"],
            log_loss=point["log_loss"]["value"],
        )
        self.own.write_result(point)
        self.clear()

    def clear(self) -> None:
        """Of a point only its figures are kept."""
        self.own.remove_checkpoints()
        shutil.rmtree(self.own.model, ignore_errors=True)
        (self.own.path / PREFERENCES).unlink(missing_ok=True)


def _prompts(path: Path, split: str, config: LearningCurveConfig) -> list[str]:
    """The prompts of the split's rankings that order anything, each once."""

    def keys() -> Iterator[str]:
        for ranked in read_rankings(path, split):
            if ranked.aspect in config.aspects and ranked.is_decided:
                yield prompt_key(ranked.prompt)

    return list(dict.fromkeys(keys()))


def _curve(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("num_judgments", "num_prompts", "seed", "accuracy", "log_loss")
    return {
        "points": [{name: point[name] for name in names} for point in points],
        "longer_wins": points[-1]["longer_wins"],
    }
