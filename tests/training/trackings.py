"""What a policy's training leaves in its run directory, as `training.alignment.tracking` writes it; invented."""

import json
import math
from collections.abc import Sequence
from typing import Any

from tests.training.reports import figure
from training.models import TrainingRun


def make_check(step: int, *, kl: float, reward: float, held_out: float, **values: Any) -> dict[str, Any]:
    check = {
        "step": step,
        "reward": reward,
        "reward_interval": [reward - 0.1, reward + 0.1] if step else None,
        "held_out": held_out,
        "held_out_interval": [held_out - 0.1, held_out + 0.1] if step else None,
        "spread": 1 + kl / 10,
        "kl": kl,
        "length": 24.0 + kl,
        "entropy": 2.5 - kl / 10,
        "repetition": 0.02,
        "diversity": 0.8,
        "ended": 0.975,
        "reward_by_prompt": [reward, None],
        "time": 1_700_000_000.0,
    }
    return {**check, **values}


def exploited(num_checks: int = 9, every: int = 20) -> list[dict[str, Any]]:
    """The optimised reward rises, the held-out one rises and falls; it is best at the check in the middle."""
    distances = [0.35 * number for number in range(num_checks)]
    peak = distances[num_checks // 2]
    return [
        make_check(
            every * number,
            kl=d * d,
            reward=round(0.9 * d, 3),
            held_out=round(d * (1 - d / (2 * peak)), 3) if peak else 0.0,
        )
        for number, d in enumerate(distances)
    ]


def leave_checks(run: TrainingRun, checks: Sequence[dict[str, Any]], *, tail: str = "") -> TrainingRun:
    """Lines of checks.jsonl; `tail` is what has been written of the next one."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / "checks.jsonl").write_text("".join(json.dumps(check) + "\n" for check in checks) + tail)
    return run


def leave_samples(run: TrainingRun, step: int, *, num_prompts: int = 3, num_responses: int = 2, **values: Any) -> None:
    folder = run.run_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "response": f"Answer {place} to question {number} at {step}.",
            "reward": math.sqrt(step),
            "held_out_reward": 0.5,
            **values,
        }
        for number in range(num_prompts)
        for place in range(num_responses)
    ]
    (folder / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ALARM = {
    "step": 120,
    "reason": "held_out_falls",
    "best_step": 80,
    "words": "The reward rose while the held-out reward fell: from 0.7 at step 80 to 0.525 at step 120, beyond chance.",
}


def make_policies(*paths: str, **values: Any) -> dict[str, Any]:
    """A comparison's report: each policy goes a nat further than the one before, and wins 10 % more often."""
    policies = [
        {
            "name": path.rpartition("/")[2],
            "path": path,
            "reward": figure(0.1 + number),
            "held_out": figure(0.2 + number / 2),
            "kl": figure(float(number)) if number else None,
            "length": 20.0 + number,
            "num_tokens": 5120 + number,
            "seconds": 12.5,
            "diversity": 0.8,
            "repetition": 0.05,
            "against_first": {
                "win_rate": figure(0.5 + number / 10),
                "length_controlled_win_rate": figure(0.5 + number / 20),
                "held_out_gain": figure(number / 2),
                "reward_gain": figure(float(number)),
            }
            if number
            else None,
        }
        for number, path in enumerate(paths)
    ]
    samples = [
        {
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "responses": [f"Answer {number} of {path}" for path in paths],
            "held_out": [place / 4 for place in range(len(paths))],
        }
        for number in range(4)
    ]
    report = {
        "kind": "compare_policies",
        "num_prompts": 64,
        "num_samples": 4,
        "held_out_votes": "guard",
        "policies": policies,
        "samples": samples,
    }
    return {**report, **values}


def make_curve(num_samples: int = 16, **values: Any) -> dict[str, Any]:
    """What the best of n is worth: the held-out reward bends down from eight or so on."""
    numbers = range(1, num_samples + 1)
    held_out = [0.1 * n - 0.006 * n * n for n in numbers]
    return {
        "n": list(numbers),
        "kl": [0.04 * (n - 1) for n in numbers],
        "kl_bound": [0.05 * (n - 1) for n in numbers],
        "reward": [0.1 * n for n in numbers],
        "reward_interval": [[0.1 * n - 0.1, 0.1 * n + 0.1] for n in numbers],
        "held_out": held_out,
        "held_out_interval": [[value - 0.1, value + 0.1] for value in held_out],
        **values,
    }
