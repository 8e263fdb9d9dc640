import hashlib
import json
from pathlib import Path

import pytest

from training.alignment.config import (
    DpoConfig,
    RejectionSamplingConfig,
    RewardModelConfig,
    RlhfConfig,
    RunConfig,
    SftConfig,
)
from training.alignment.preferences import prompt_key
from training.alignment.provenance import trained_on
from training.alignment.run_dir import RunDir

SPLITS = ("train", "validation", "test", "guard")


def make_run(path: Path, config: RunConfig, subject: str = "soup") -> Path:
    """The model of a run on judgments of one prompt in each split."""
    run_dir = RunDir.create(path, config)
    rows = [
        {
            "prompt": messages(subject, split),
            "responses": [{"content": "a"}, {"content": "b"}],
            "ranking": [[0], [1]],
            "split": split,
        }
        for split in SPLITS
    ]
    (path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir.model


def messages(subject: str, split: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{split} {subject}"}]


def digests(subject: str, *splits: str) -> set[str]:
    keys = (prompt_key(messages(subject, split)) for split in splits)
    return {hashlib.sha256(key.encode()).hexdigest() for key in keys}


@pytest.mark.parametrize("config", [RewardModelConfig(), DpoConfig(), SftConfig(preferences="preferences.jsonl")])
def test_a_model_has_learned_from_the_training_split(config, tmp_path):
    assert trained_on(make_run(tmp_path / "run", config)) == digests("soup", "train")


def test_a_policy_that_was_tuned_on_a_file_has_learned_from_no_judgments(tmp_path):
    config = SftConfig(preferences="preferences.jsonl", examples="examples.jsonl")
    assert trained_on(make_run(tmp_path / "run", config)) == set()


@pytest.mark.parametrize("kind", [RejectionSamplingConfig, RlhfConfig])
def test_a_policy_has_learned_what_its_reward_has(kind, tmp_path):
    reward = make_run(tmp_path / "reward", RewardModelConfig(), "bread")
    reward.mkdir()
    model = make_run(tmp_path / "run", kind(policy="base", reward_model=str(reward)))
    assert trained_on(model) == digests("soup", "train") | digests("bread", "train")


def test_a_policy_has_learned_what_each_of_its_objectives_has(tmp_path):
    rewards = [make_run(tmp_path / subject, RewardModelConfig(), subject) for subject in ("bread", "cake")]
    for reward in rewards:
        reward.mkdir()
    model = make_run(tmp_path / "run", RlhfConfig(policy="base", reward_model=", ".join(map(str, rewards))))
    assert trained_on(model) == set().union(*(digests(subject, "train") for subject in ("soup", "bread", "cake")))


def test_of_a_model_from_elsewhere_nothing_is_known(tmp_path):
    assert trained_on(tmp_path / "model") == set()
