import json
from pathlib import Path

import pytest

from training.alignment.config import RlhfConfig
from training.alignment.member_config import LengthRule, RepetitionRule, write_member
from training.alignment.policy import train_policy
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

STEPS = 3


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> dict[str, str]:
    """Rewards by rule: short responses, such as do not repeat themselves, and another one to grade by."""
    folder = tmp_path_factory.mktemp("rewards")
    rules = {
        "short": LengthRule(target=2, tolerance=0, unit="words"),
        "varied": RepetitionRule(size=1),
        "held_out": LengthRule(target=3, tolerance=1, unit="words"),
    }
    for name, rule in rules.items():
        write_member(folder / name, rule)
    return {name: str(folder / name) for name in rules}


@pytest.fixture
def configured(llama_folder, rankings_path, rewards):
    """A configuration of a few short steps."""

    def make(**values) -> RlhfConfig:
        told = {
            "preferences": str(rankings_path),
            "policy": str(llama_folder),
            "reward_model": rewards["short"],
            "held_out_reward_model": rewards["held_out"],
            "num_steps": STEPS,
            "num_prompts": 4,
            "num_samples": 4,
            "max_new_tokens": 8,
            "max_length": 128,
            "learning_rate": 1e-2,
            "check_steps": 2,
            "num_held_out_prompts": 4,
            "num_checked": 2,
            "save_minutes": 60,
            **values,
        }
        return RlhfConfig(**told)

    return make


def trained(path: Path, config: RlhfConfig, stop: StopFlag | None = None) -> tuple[RunDir, dict]:
    run_dir = RunDir.create(path, config)
    return run_dir, train_policy(config, run_dir, stop or StopFlag())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_run_trains_checks_and_tells(tmp_path, configured, algorithm):
    run_dir, result = trained(tmp_path / "run", configured(algorithm=algorithm))

    print(json.dumps(result, indent=1))
    print((run_dir.path / "metrics.jsonl").read_text())
    assert result["num_steps"] == STEPS
