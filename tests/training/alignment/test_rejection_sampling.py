import itertools
import json
import random
import shutil
from collections import Counter
from math import nan
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from training.alignment.config import ConfigError, RejectionSamplingConfig, RewardModelConfig, SftConfig
from training.alignment.rejection_sampling import best_of, distinct_prompts, paired_gain, run_rejection_sampling
from training.alignment.reward_model import RewardModel
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.sft import train_sft

DISHES = ("eggs", "rice", "water", "salt", "patience")
LONG, SHORT = "Simmer for eight minutes, then rinse.", "I do not know."
SPLITS = ("train", "train", "train", "test", "test")


class StopAfter(StopFlag):
    """Asks to stop from the n-th time on that it is looked at."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __call__(self) -> bool:
        self.n -= 1
        return self.n <= 0


def ask(dish: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"How long does {dish} take?"}]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """Patient answers are preferred; each prompt is judged twice."""
    path = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    rows = [
        {
            "prompt": ask(dish),
            "responses": [{"role": "assistant", "content": text} for text in (LONG, SHORT, "Ask.")],
            "ranking": [[0], [2], [1]],
            "split": split,
            "annotator": annotator,
        }
        for dish, split in zip(DISHES, SPLITS, strict=True)
        for annotator in ("one", "other")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reward_run(preferences, llama_folder, tmp_path_factory) -> RunDir:
    config = RewardModelConfig(
        preferences=str(preferences),
        backbone=str(llama_folder),
        num_epochs=15.0,
        learning_rate=1e-2,
        batch_size=3,
        seed=7,
    )
    run_dir = RunDir.create(tmp_path_factory.mktemp("reward"), config)
    train_reward_model(config, run_dir, StopFlag())
    return run_dir


@pytest.fixture(scope="module")
def policy(llama_folder, tmp_path_factory) -> Path:
    """Gives the patient answer half of the time."""
    path = tmp_path_factory.mktemp("policy")
    examples = [{"prompt": ask(dish), "completion": text} for dish in DISHES for text in (LONG, SHORT)]
    (path / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    config = SftConfig(
        policy=str(llama_folder), examples="examples.jsonl", num_epochs=150.0, learning_rate=2e-2, batch_size=10
    )
    train_sft(config, RunDir.create(path, config), StopFlag())
    return path / "model"


@pytest.fixture
def prepare(preferences, reward_run, llama_folder):
    def make(path: Path, **values) -> tuple[RejectionSamplingConfig, RunDir]:
        settings = {
            "preferences": str(preferences),
            "policy": str(llama_folder),
            "reward_model": str(reward_run.model),
            "num_samples": 6,
            "max_new_tokens": 12,
            "generation_batch_size": 8,
            "num_epochs": 10.0,
            "learning_rate": 1e-2,
            "batch_size": 2,
        }
        config = RejectionSamplingConfig(**settings | values)
        return config, RunDir.create(path, config)

    return make


def test_best_of_breaks_ties_at_random():
    rng = random.Random(0)
    drawn = Counter(best_of([1.0, 2.0, 2.0, 2.0], rng) for _ in range(3000))

    assert best_of([0.5, 0.7, -3.0], rng) == 1
    assert set(drawn) == {1, 2, 3}
    assert all(abs(count - 1000) < 100 for count in drawn.values())  # four standard deviations


@pytest.mark.parametrize(("rewards", "best"), [([], None), ([nan], None), ([nan, -2.0, nan, -3.0], 1)])
def test_what_has_no_reward_is_never_the_best_nor_taken_for_zero(rewards, best):
    assert best_of(rewards, random.Random(0)) == best


def test_paired_gain_by_hand():
    # gains 1, 2, 3: mean 2, deviation 1; Student's 97.5 % quantile at 2 degrees of freedom is 4.302653
    mean, interval = paired_gain([0.0, 5.0, 1.0], [1.0, 7.0, 4.0])

    assert mean == 2.0
    assert interval == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-6)
    assert paired_gain([1.0], [1.5]) == (0.5, None)


def test_paired_gain_covers_the_truth_in_19_of_20_cases():
    rng = random.Random(1)
    covered = 0
    for _ in range(2000):
        before = [rng.gauss(0, 1) for _ in range(12)]
        _, interval = paired_gain(before, [value + 0.3 + rng.gauss(0, 0.5) for value in before])
        covered += interval[0] <= 0.3 <= interval[1]

    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_distinct_prompts_holds_each_prompt_of_a_split_once(preferences):
    assert distinct_prompts(preferences, "train") == [ask("eggs"), ask("rice"), ask("water")]
    assert distinct_prompts(preferences, "validation") == []


def test_the_best_responses_are_kept_and_the_policy_learns_them(prepare, policy, reward_run, tmp_path):
    config, run_dir = prepare(tmp_path, policy=str(policy), max_new_tokens=32)

    result = run_rejection_sampling(config, run_dir, StopFlag())

    samples, winners = read(tmp_path / "samples.jsonl"), read(tmp_path / "winners.jsonl")
    reward_model = RewardModel.load(reward_run.model)
    for sampled, winner in zip(samples, winners, strict=True):
        rewards = reward_model.score([(sampled["prompt"], response) for response in sampled["responses"] if response])
        assert winner["prompt"] == sampled["prompt"]
        assert winner["reward"] == pytest.approx(max(rewards), abs=1e-4)
        assert winner["completion"] in sampled["responses"]
    assert [len(sampled["responses"]) for sampled in samples] == [6, 6, 6]
    assert {sampled["prompt"][0]["content"] for sampled in samples} == {ask(dish)[0]["content"] for dish in DISHES[:3]}
    assert result["reward_gain_interval"][0] < result["reward_gain"] < result["reward_gain_interval"][1]
    assert result["reward_gain"] > 0.3
    assert result["held_out_reward_gain"] > 0.3
    assert set(result) == {
        "model",
        "loss",
        "num_steps",
        "reward_before",
        "reward_after",
        "reward_gain",
        "reward_gain_interval",
        "held_out_reward_before",
        "held_out_reward_after",
        "held_out_reward_gain",
        "held_out_reward_gain_interval",
        "held_out_reward_model",
        "held_out_accuracy",
        "num_prompts",
        "num_samples",
        "num_winners",
        "num_distinct",
        "num_held_out_prompts",
        "num_held_out_responses",
    }
    counts = {name: value for name, value in result.items() if name.startswith("num_")}
    assert counts == {
        "num_steps": 15,
        "num_prompts": 3,
        "num_samples": 6,
        "num_winners": 3,
        "num_distinct": result["num_distinct"],
        "num_held_out_prompts": 2,
        "num_held_out_responses": 16,
    }
    assert AutoModelForCausalLM.from_pretrained(tmp_path / result["model"]).num_parameters() > 0


def test_before_and_after_are_compared_on_the_same_held_out_prompts(prepare, tmp_path):
    config, run_dir = prepare(tmp_path)

    result = run_rejection_sampling(config, run_dir, StopFlag())

    held_out = {ask(dish)[0]["content"] for dish in DISHES[3:]}
    for name in ("before", "after"):
        rows = read(tmp_path / f"samples_{name}.jsonl")
        assert Counter(row["prompt"][0]["content"] for row in rows) == dict.fromkeys(held_out, 16)
        assert all(set(row) == {"prompt", "response", "reward", "held_out_reward"} for row in rows)
        for key in ("reward", "held_out_reward"):
            assert result[f"{key}_{name}"] == pytest.approx(sum(row[key] for row in rows) / len(rows))


def test_the_held_out_reward_model_has_another_seed_and_the_selecting_ones_settings(prepare, reward_run, tmp_path):
    config, run_dir = prepare(tmp_path, seed=2)

    result = run_rejection_sampling(config, run_dir, StopFlag())

    trained, selecting = RunDir(tmp_path / "held_out_reward_model"), reward_run.config()
    assert trained.config() == type(selecting)(
        **{**vars(selecting), "seed": 10, "preferences": str(Path(config.preferences).resolve())}
    )
    assert result["held_out_reward_model"] == "trained here"
    assert result["held_out_accuracy"] == trained.read_result()["accuracy"]
    assert not (trained.path / "checkpoints").exists()
    rows = read(tmp_path / "samples_before.jsonl")
    assert all(abs(row["reward"] - row["held_out_reward"]) > 1e-6 for row in rows)


def test_a_given_held_out_reward_model_grades(prepare, reward_run, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(reward_run.model, given)
    config, run_dir = prepare(tmp_path / "run", held_out_reward_model=str(given))

    result = run_rejection_sampling(config, run_dir, StopFlag())

    assert result["held_out_reward_model"] == "given"
    assert "held_out_accuracy" not in result
    assert result["held_out_reward_gain"] == result["reward_gain"]
    assert not (run_dir.path / "held_out_reward_model").exists()


def test_who_selects_does_not_grade_under_another_name(prepare, reward_run, tmp_path):
    (tmp_path / "alias").symlink_to(reward_run.model)
    config, run_dir = prepare(tmp_path / "run", held_out_reward_model=str(tmp_path / "alias"))

    with pytest.raises(ConfigError, match=r"^held_out_reward_model: is the one that selects, or a part of it$"):
        run_rejection_sampling(config, run_dir, StopFlag())


def test_a_foreign_reward_model_is_checked_by_one_on_the_policy(prepare, reward_run, llama_folder, tmp_path):
    foreign = tmp_path / "elsewhere" / "model"
    foreign.parent.mkdir()
    foreign.symlink_to(reward_run.model)
    config, run_dir = prepare(tmp_path / "run", reward_model=str(foreign))

    run_rejection_sampling(config, run_dir, StopFlag())

    assert RunDir(run_dir.path / "held_out_reward_model").config().backbone == str(llama_folder)


def test_phases_follow_each_other_and_progress_grows(prepare, tmp_path):
    config, run_dir = prepare(tmp_path)

    run_rejection_sampling(config, run_dir, StopFlag())

    lines = list(run_dir.read_metrics())
    assert [phase for phase, _ in itertools.groupby(line["phase"] for line in lines)] == [
        "generate",
        "score",
        "fine-tune",
        "compare",
    ]
    progress = [line["progress"] for line in lines]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(prepare, tmp_path):
    config, straight = prepare(tmp_path / "straight", num_epochs=2.0)
    expected = run_rejection_sampling(config, straight, StopFlag())
    _, stopped = prepare(tmp_path / "stopped", num_epochs=2.0)

    result, times = None, 0
    while result is None:
        try:
            result = run_rejection_sampling(config, stopped, StopAfter(4))
        except Interrupted:
            times += 1
            with (stopped.path / "samples.jsonl").open("a") as file:
                file.write('{"prompt": [{"role": "us')  # as a kill may leave it

    assert times > 5
    assert result == expected
    for name in ("winners.jsonl", "samples_before.jsonl", "samples_after.jsonl"):
        assert read(stopped.path / name) == read(straight.path / name)


def test_all_or_some_prompts_are_sampled(prepare, tmp_path):
    config, run_dir = prepare(tmp_path, num_prompts=2, num_held_out_prompts=1)

    result = run_rejection_sampling(config, run_dir, StopFlag())

    assert (result["num_prompts"], result["num_held_out_prompts"]) == (2, 1)
    assert result["reward_gain_interval"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward_model": ""}, "reward_model: none is given"),
        ({"reward_model": "one", "held_out_reward_model": "one"}, "held_out_reward_model: is the one that selects"),
    ],
)
def test_what_cannot_work_is_said_at_once(prepare, tmp_path, values, message):
    config, run_dir = prepare(tmp_path, **values)

    with pytest.raises(ConfigError, match=message):
        run_rejection_sampling(config, run_dir, StopFlag())


@pytest.mark.parametrize(
    ("missing", "message"),
    [("train", "the train split has no prompt to sample"), ("test", "the test split has no prompt to compare on")],
)
def test_a_preference_set_without_prompts_is_refused(prepare, preferences, tmp_path, missing, message):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in read(preferences) if row["split"] != missing))
    config, run_dir = prepare(tmp_path, preferences="some.jsonl")

    with pytest.raises(ConfigError, match=message):
        run_rejection_sampling(config, run_dir, StopFlag())
