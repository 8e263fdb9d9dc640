"""What a policy's training leaves in its run directory, as `training.alignment.tracking` writes it; invented."""

import json
import math
from collections.abc import Sequence
from typing import Any

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
