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
        "brier": figure(0.2, 0.02),
        "ece": figure(0.04, 0.02),
        "ece_if_calibrated": 0.05,
        "kendall_tau": figure(0.44, 0.05),
        "top_1": figure(0.58, 0.05),
    }


def make_part(name: str, accuracy: float) -> dict[str, Any]:
    """A slice of pairs, not of whole rankings."""
    return {name: value for name, value in make_slice(name, accuracy).items() if name not in {"kendall_tau", "top_1"}}


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
            "length_difference": [make_part("up to 10 %", 0.6), make_part("over 50 %", 0.79)],
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
    return {"points": rows, "longer_wins": figure(0.583), "left_out": []}


def gains(accuracy: float, log_loss: float, **values: Any) -> dict[str, Any]:
    """A paired comparison, with margins of two points and 0.01 nats."""
    figures = {"accuracy_gain": figure(accuracy, 0.02), "log_loss_gain": figure(log_loss, 0.01)}
    return {**figures, "mcnemar_p": 0.0132 if accuracy else 1.0, "num_pairs": 812, **values}


def make_combination(**values: Any) -> dict[str, Any]:
    """The report of a run that combines rewards, as `training.alignment.combining` writes it."""
    names = ["hub/backbone-one", "hub/backbone-two", "rules/length"]
    members = [
        {
            "name": name,
            "path": name,
            "kind": kind,
            "accuracy": figure(accuracy),
            "log_loss": figure(log_loss, 0.02),
            "num_missing": 0,
            "temperature": 1.21,
            "problem": problem,
        }
        for name, kind, accuracy, log_loss, problem in (
            (names[0], "reward_model", 0.712, 0.566, None),
            (names[1], "judge", 0.701, 0.588, None),
            (names[2], "length", 0.41, 0.71, "flipped"),
        )
    ]
    combiners = [
        {
            "method": method,
            "accuracy": figure(0.712 + accuracy),
            "log_loss": figure(0.566 - log_loss, 0.02),
            "against_best_member": {"name": names[0], **gains(accuracy, log_loss)},
            "against_mean": {"name": "mean", **gains(accuracy - 0.01, log_loss - 0.005)},
            "weights": weights,
            "warning": warning,
        }
        for method, accuracy, log_loss, weights, warning in (
            ("mean", 0.01, 0.005, None, None),
            ("worst_case", -0.03, -0.02, None, None),
            ("bayesian_average", 0.0, 0.0, dict(zip(names, (0.98, 0.02, 0.0), strict=True)), "It trusts one member."),
            ("stacking", 0.03, 0.02, dict(zip(names, (0.6, 0.4, 0.0), strict=True)), None),
            ("fusion", 0.04, 0.03, None, None),
        )
    ]
    report = {
        "kind": "combine",
        "method": "fusion",
        "num_fit": {"rankings": 320, "prompts": 106},
        "num_test": {"rankings": 640, "prompts": 212, "pairs": 812},
        "num_left_out": 17,
        "cross_fitted": 0,
        "incumbent": None,
        "members": members,
        "combiners": combiners,
        "correlation": [[1.0, 0.62, -0.31], [0.62, 1.0, None], [-0.31, None, 1.0]],
        "leave_one_out": [{"name": names[0], **gains(0.05, 0.04)}, {"name": names[1], **gains(0.002, 0.001)}],
        "gate": {
            "groups": [
                {
                    "prompts": 140,
                    "example": "How do I boil an egg?",
                    "weights": dict(zip(names[:2], (0.7, 0.3), strict=True)),
                },
                {"prompts": 72, "example": "Write a sonnet.", "weights": dict(zip(names[:2], (0.2, 0.8), strict=True))},
            ]
        },
        "disagreements": [
            {
                "id": f"{number:016x}",
                "prompt": f"Question {number}?",
                "responses": ["Short.", "A much longer answer."],
                "scores": {names[0]: [1.25, -0.5], names[1]: [-1.0, 0.75]},
                "spread": 1.75 - number / 10,
            }
            for number in range(3)
        ],
        "against_incumbent": None,
    }
    return {**report, **values}


def names_of(told: Any) -> Any:
    """The names in a report, one inside the other; of a list its first one's, of what members' names list one's."""
    if isinstance(told, dict):
        inside = {name: names_of(value) for name, value in told.items()}
        return {"a member": next(iter(inside.values()))} if any("/" in name for name in told) else inside
    return [names_of(value) for value in told[:1]] if isinstance(told, list) else "a value"


def leave(run: TrainingRun, name: str, told: Any) -> TrainingRun:
    """Write a file into the run's directory, as its trainer would."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / name).write_text(told if isinstance(told, str) else json.dumps(told))
    return run
