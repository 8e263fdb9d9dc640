"""The demonstration, aligned: a small policy that writes recipes, a reward model trained on rankings of recipes, and
both ways to make the policy better, each through the trainer's own process. The rewards on prompts that nobody has
trained on go up, and so does the recipes' true quality. The policy has half the layers of the demonstration's own.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from annotate.demonstration.annotator import judge
from annotate.demonstration.quality import quality
from annotate.demonstration.recipes import demonstration_rows, sft_examples
from training.alignment.config import RejectionSamplingConfig, RewardModelConfig, RlhfConfig, RunConfig, SftConfig
from training.alignment.run_dir import RunDir
from training.alignment.tiny_lm import build_tiny_lm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SPLITS = (*("train",) * 6, "validation", "test", "guard", "guard")
NUM_EXAMPLES = 10000


def trained(run_dir: RunDir) -> dict[str, Any]:
    """The result of a run, by the process that the workers start too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "training.alignment", str(run_dir.path)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    result = run_dir.read_result()
    assert result is not None, ended.stderr
    return result


def write_rankings(path: Path) -> Path:
    """The demonstration's listwise comparisons, judged by a careful simulated annotator."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(demonstration_rows(seed=0)):
            texts = [response["content"] for response in row["responses"]]
            verdict = judge([quality(row["prompt"], text) for text in texts], 0.05, rng)
            record = {
                "id": f"{number:04}",
                "prompt": row["prompt"],
                "responses": [{"role": "assistant", "content": text} for text in texts],
                "ranking": verdict.ranking,
                "annotator": None,
                "aspect": "overall",
                "split": SPLITS[number // 2 % len(SPLITS)],  # both comparisons of a prompt in one
            }
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rankings, a policy `base` that writes recipes of mixed quality, and the reward model `taste`."""
    folder = tmp_path_factory.mktemp("kitchen")
    write_rankings(folder / "preferences.jsonl")
    rows = list(sft_examples(seed=0, n=NUM_EXAMPLES))
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = (text for row in rows for text in (*(message["content"] for message in row["prompt"]), row["completion"]))
    build_tiny_lm(texts, folder / "untrained", num_layers=2)
    trained(make(folder, "base", SftConfig(policy="../untrained", examples="../examples.jsonl", learning_rate=4e-3)))
    trained(
        make(
            folder,
            "taste",
            RewardModelConfig(
                preferences="../preferences.jsonl", backbone="../base/model", num_epochs=3, learning_rate=1e-3
            ),
        )
    )
    return folder


def make(folder: Path, name: str, config: RunConfig) -> RunDir:
    return RunDir.create(folder / name, config)


ALIGNED = {
    "preferences": "../preferences.jsonl",
    "policy": "../base/model",
    "reward_model": "../taste/model",
    "max_new_tokens": 200,
    "num_held_out_prompts": 12,
    "num_checked": 8,
    "num_guards": 1,
    "max_length": 512,
}


@pytest.mark.parametrize(
    "config",
    [
        RejectionSamplingConfig(**ALIGNED, num_samples=8, num_epochs=2, learning_rate=5e-4),
        RlhfConfig(**ALIGNED, algorithm="grpo", num_steps=24, learning_rate=3e-4, check_steps=12),
    ],
    ids=lambda config: config.kind,
)
def test_rewards_and_quality_go_up_on_held_out_prompts(kitchen, config):
    run_dir = make(kitchen, config.kind, config)

    result = trained(run_dir)

    assert result["reward_gain_interval"][0] > 0
    assert result["held_out_reward_gain"] > 0
    assert result["held_out_votes"] == "guard"
    assert mean_quality(run_dir, "after") > mean_quality(run_dir, "before")


def mean_quality(run_dir: RunDir, when: str) -> float:
    lines = (run_dir.path / f"samples_{when}.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    return sum(quality(sample["prompt"], sample["response"]) for sample in samples) / len(samples)
