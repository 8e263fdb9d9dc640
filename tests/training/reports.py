"""Reports as `training.alignment.evaluation.report` writes them. The figures are invented for tests."""

import json
from typing import Any

from training.models import TrainingRun

Figure = dict[str, Any]


def figure(value: float, margin: float = 0.03) -> Figure:
    return {"value": value, "interval": [value - margin, value + margin]}


def make_slice(name: str, accuracy: float, num_pairs: int = 120) -> dict[str, Any]:
    return {
        "name": name,
        "num_pairs": num_pairs,
        "num_prompts": num_pairs // 3,
        "accuracy": figure(accuracy, 0.05),
        "log_loss": figure(0.58, 0.04),
        "ece": figure(0.04, 0.02),
    }


def make_report(**values: Any) -> dict[str, Any]:
    """A whole report; `values` replace its parts."""
    named = {"accuracy": 0.712, "accuracy_with_ties": 0.66, "kendall_tau": 0.44, "top_1": 0.58}
    named |= {"log_loss": 0.566, "brier": 0.191, "ece": 0.031}
    report = {
        "figures": {name: figure(value) for name, value in named.items()},
        "num_rankings": 640,
        "num_pairs": 812,
        "num_prompts": 212,
        "num_tied_pairs": 37,
        "num_truncated": 4,
        "temperature": 1.214,
        "tie_threshold": 0.07,
        "ece_if_calibrated": 0.022,
        "reliability": [
            {
                "confidence": 0.53 + step,
                "accuracy": 0.55 + step,
                "interval": [0.49 + step, 0.61 + step],
                "num_pairs": 162,
            }
            for step in (0.0, 0.08, 0.16, 0.24, 0.32)
        ],
        "slices": {
            "aspect": [make_slice("overall", 0.712)],
            "source": [make_slice("browser", 0.72, 700), make_slice("import", 0.69)],
            "annotator": [make_slice(f"annotator {number}", 0.64 + 0.01 * number) for number in range(14)],
            "num_responses": [make_slice("2", 0.70), make_slice("4", 0.73)],
            "strength": [make_slice("slightly", 0.62), make_slice("strongly", 0.86)],
            "length_difference": [make_slice("up to 10 %", 0.6), make_slice("over 50 %", 0.79)],
        },
        "length": {
            "correlation": figure(0.31),
            "partial_correlation": figure(0.12),
            "accuracy_shorter_preferred": figure(0.61),
            "accuracy_longer_preferred": figure(0.78),
            "longer_wins": figure(0.583),
        },
        "ceiling": {
            "leave_one_out": figure(0.76),
            "agreement": figure(0.68),
            "low": 0.738,
            "high": 0.805,
            "num_items": 402,
            "accuracy": figure(0.72),
        },
        "comparison": {
            "name_first": "helmsman",
            "name_second": "baseline",
            "accuracy_first": figure(0.712),
            "accuracy_second": figure(0.691),
            "accuracy_gain": {"value": 0.021, "interval": [0.004, 0.038]},
            "log_loss_gain": figure(0.015, 0.01),
            "mcnemar_p": 0.0132,
            "num_both": 520,
            "num_only_first": 58,
            "num_only_second": 41,
            "num_neither": 193,
        },
    }
    return {**report, **values}


def make_curve(num_points: int = 5) -> dict[str, Any]:
    rows = [
        {
            "num_judgments": 250 * 2**number,
            "num_prompts": 100 * 2**number,
            "seed": seed,
            "accuracy": figure(0.58 + 0.03 * number + 0.005 * seed),
            "log_loss": figure(0.68 - 0.02 * number),
        }
        for number in range(num_points)
        for seed in range(2)
    ]
    return {"points": rows, "longer_wins": figure(0.583)}


def leave(run: TrainingRun, name: str, told: Any) -> TrainingRun:
    """Write a file into the run's directory, as its trainer would."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / name).write_text(told if isinstance(told, str) else json.dumps(told))
    return run
