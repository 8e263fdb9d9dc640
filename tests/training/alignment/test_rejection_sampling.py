import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForCausalLM

from tests.training.alignment.enumerable import (
    MAX_NEW_TOKENS,
    PROMPTS,
    RESPONSES,
    enumerable_lm,
    law,
    total_variation,
)
from tests.training.alignment.material import StopAt
from tests.training.alignment.processes import run_by_two
from training.alignment import best_of_n
from training.alignment.config import ConfigError, RejectionSamplingConfig, RewardModelConfig, SftConfig
from training.alignment.generation import sample
from training.alignment.member_config import FormatRule, LengthRule, write_member
from training.alignment.policies import is_adapter, load_policy
from training.alignment.rejection_sampling import (
    best_rows,
    curve_of,
    distinct_prompts,
    paired_gain,
    random_rows,
    run_rejection_sampling,
)
from training.alignment.reward_model import RewardModel
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, Waiting
from training.alignment.sampling import run_sampling
from training.alignment.sft import Example, fine_tune, train_sft

DISHES = ("eggs", "rice", "water", "salt", "patience")
GUARD_DISHES = ("boil", "four eggs", "rinse", "simmer", "minutes", "twelve", "cool", "ask", "little", "twice")
LONG, SHORT = "Simmer for eight minutes, then rinse.", "I do not know."
SPLITS = ("train", "train", "train", "test", "test", *["guard"] * 10)


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
        for dish, split in zip(DISHES + GUARD_DISHES, SPLITS, strict=True)
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
def rules(tmp_path_factory) -> Path:
    """A reward that differs between most responses, and one to grade by."""
    folder = tmp_path_factory.mktemp("rules")
    write_member(folder / "about_twenty", LengthRule(unit="characters", target=20, tolerance=0, is_one_sided=False))
    write_member(folder / "has_an_e", FormatRule(pattern="e"))
    return folder


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
def prepare(preferences, rules, llama_folder):
    def make(path: Path, **values) -> tuple[RejectionSamplingConfig, RunDir]:
        settings = {
            "preferences": str(preferences),
            "policy": str(llama_folder),
            "reward_model": str(rules / "about_twenty"),
            "held_out_reward_model": str(rules / "has_an_e"),
            "num_samples": 6,
            "num_checked": 8,
            "max_new_tokens": 12,
            "generation_batch_size": 2,  # chunks of one prompt
            "num_epochs": 4.0,
            "learning_rate": 1e-2,
            "batch_size": 2,
            "guard": "alarm",
        }
        config = RejectionSamplingConfig(**settings | values)
        return config, RunDir.create(path, config)

    return make


def run(prepare, path: Path, **values) -> dict:
    return run_rejection_sampling(*prepare(path, **values), StopFlag())


def weights(folder: Path) -> dict:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def files(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}


def untimed(result: dict) -> dict:
    return {name: value for name, value in result.items() if not name.startswith("seconds_")}


def test_paired_gain_by_hand():
    # gains 1, 2, 3: mean 2, deviation 1; Student's 97.5 % quantile at 2 degrees of freedom is 4.302653
    mean, interval = paired_gain([0.0, 5.0, 1.0], [1.0, 7.0, 4.0])

    assert mean == 2.0
    assert interval == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-6)
    assert paired_gain([1.0], [1.5]) == (0.5, None)


def test_paired_gain_covers_the_truth_in_19_of_20_cases():
    rng = Random(1)
    covered = 0
    for _ in range(2000):
        before = [rng.gauss(0, 1) for _ in range(12)]
        _, interval = paired_gain(before, [value + 0.3 + rng.gauss(0, 0.5) for value in before])
        covered += interval[0] <= 0.3 <= interval[1]

    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_distinct_prompts_holds_each_prompt_of_a_split_once(preferences):
    assert distinct_prompts(preferences, "train") == [ask("eggs"), ask("rice"), ask("water")]
    assert distinct_prompts(preferences, "validation") == []


# What is kept


def row(*rewards: float, texts: str = "abcdef") -> dict:
    return {"prompt": ask("eggs"), "responses": list(texts[: len(rewards)]), "rewards": list(rewards)}


def kept(config: RejectionSamplingConfig, *rows: dict) -> list[tuple]:
    return [tuple(found.values())[1:] for found in best_rows(config, rows, 0)]


def test_winners_are_kept_as_it_is_told():
    samples = row(1.0, 3.0, math.nan, 2.0), row(0.0, 0.25, 0.0, 0.0)

    assert kept(RejectionSamplingConfig(), *samples) == [("b", 3.0), ("b", 0.25)]
    assert kept(RejectionSamplingConfig(num_kept=2, minimum_reward="1.5"), *samples) == [("b", 3.0), ("d", 2.0)]
    assert kept(RejectionSamplingConfig(minimum_margin=0.5), *samples) == [("b", 3.0)]
    assert kept(RejectionSamplingConfig(num_kept=3), row(2.0, 2.0, 1.0, texts="aab")) == [("a", 2.0), ("b", 1.0)]
    assert kept(RejectionSamplingConfig(num_kept=3, deduplicate=False), row(2.0, 2.0, 1.0, texts="aab")) == [
        ("a", 2.0),
        ("a", 2.0),
        ("b", 1.0),
    ]


def test_pairs_are_kept_as_it_is_told():
    samples = row(1.0, 3.0, math.nan, 2.0), row(0.0, 0.0), row(0.0, 0.5)

    assert kept(RejectionSamplingConfig(keep="pairs"), *samples) == [("b", "a", 3.0, 1.0), ("b", "a", 0.5, 0.0)]
    assert kept(RejectionSamplingConfig(keep="pairs", minimum_margin=1.0), *samples) == [("b", "a", 3.0, 1.0)]


def shifted_samples() -> tuple[list[dict], list[dict]]:
    """Rewards by the 1024th, some equal and some missing; and with a number added to all rewards of each prompt."""
    draw = np.random.default_rng(4)
    samples, shifted = [], []
    for number in range(40):
        rewards = draw.integers(-3, 4, 9) + draw.integers(0, 3, 9) / 1024
        rewards[number % 9] = math.nan  # the mean of the other eight is exact too
        one = row(*rewards.tolist(), texts="abcdeefgh") | {"prompt": ask(str(number))}
        samples.append(one)
        shifted.append(one | {"rewards": (rewards + int(draw.integers(-500, 500))).tolist()})
    return samples, shifted


@pytest.mark.parametrize(
    "values",
    [{}, {"num_kept": 3}, {"num_kept": 3, "deduplicate": False}, {"minimum_margin": 2.5}, {"keep": "pairs"}],
    ids=str,
)
def test_what_is_added_to_all_rewards_of_a_prompt_changes_no_choice(values):
    def texts(samples: list[dict]) -> list[tuple]:
        """Without the rewards."""
        found = best_rows(RejectionSamplingConfig(**values), samples, 0)
        return [tuple(text for text in one.values() if not isinstance(text, float)) for one in found]

    samples, shifted = shifted_samples()

    assert texts(shifted) == texts(samples)
    assert len(samples) / 4 < len(texts(samples))


def test_what_is_added_to_all_rewards_of_a_prompt_counts_for_a_minimum():
    config = RejectionSamplingConfig(minimum_reward="2")

    assert kept(config, row(1.0, 3.0), row(1.0, 0.0)) == [("b", 3.0)]
    assert kept(config, row(1.0 - 2, 3.0 - 2), row(1.0 + 2, 0.0 + 2)) == [("a", 3.0)]


def test_the_choice_among_equals_follows_from_seed_and_prompt():
    samples = [row(*[1.0] * 6) | {"prompt": ask(str(number))} for number in range(60)]

    found = list(best_rows(RejectionSamplingConfig(), samples, 3))

    assert found == list(reversed(list(best_rows(RejectionSamplingConfig(), reversed(samples), 3))))
    assert found != list(best_rows(RejectionSamplingConfig(), samples, 4))
    assert set(Counter(one["completion"] for one in found)) == set("abcdef")


def test_a_random_choice_keeps_as_many_whatever_their_reward():
    drawn = Counter(
        tuple(one["completion"] for one in random_rows(RejectionSamplingConfig(), row(9.0, 1.0, math.nan), 1, seed))
        for seed in range(200)
    )
    pairs = [
        (one["chosen"], one["rejected"], one["reward"], one["rejected_reward"])
        for seed in range(200)
        for one in random_rows(RejectionSamplingConfig(keep="pairs"), row(9.0, 1.0, math.nan), 1, seed)
    ]

    assert set(drawn) == {("a",), ("b",)}
    assert abs(drawn["a",] - 100) < 30
    assert set(pairs) == {("a", "b", 9.0, 1.0), ("b", "a", 1.0, 9.0)}
    assert len(pairs) == 200


def test_the_curve_tells_what_fewer_samples_would_have_given():
    draw = np.random.default_rng(0)
    rewards = draw.normal(size=(5, 4))
    rows = [row(*own) for own in rewards]

    found = curve_of(rows, (-rewards).tolist())

    by_prompt = [best_of_n.curve(own) for own in rewards]
    means, intervals = best_of_n.mean_over_prompts(by_prompt)
    assert found == {
        "n": [1, 2, 3, 4],
        "kl_bound": [best_of_n.kl_bound(n) for n in (1, 2, 3, 4)],
        "kl": pytest.approx([best_of_n.kl_bound(n) for n in (1, 2, 3, 4)]),
        "reward": means.tolist(),
        "reward_interval": intervals.tolist(),
        "held_out": pytest.approx((-means).tolist()),
        "held_out_interval": [pytest.approx([-high, -low]) for low, high in intervals],
    }


def test_the_curve_of_one_prompt_with_missing_grades_has_no_interval():
    found = curve_of([row(1.0, 2.0)], [[None, 3.0]])

    assert (found["reward"], found["reward_interval"]) == ([1.5, 2.0], [None, None])
    assert (found["held_out"], found["held_out_interval"]) == ([3.0, None], [None, None])


# A run


def test_the_best_responses_are_kept_and_the_policy_learns_them(prepare, policy, reward_run, tmp_path):
    result = run(
        prepare,
        tmp_path,
        **{"policy": str(policy), "reward_model": str(reward_run.model), "held_out_reward_model": "", "num_guards": 1},
        **{"max_new_tokens": 32, "num_epochs": 10.0, "has_random_twin": True, "num_checked": 16},
    )

    samples, winners = read(tmp_path / "round_1/samples.jsonl"), read(tmp_path / "round_1/winners.jsonl")
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
    assert result["reward_gain_over_random"] > 0
    assert set(result) == {
        *("model", "loss", "num_steps", "backend", "stopped_by", "best_step"),
        *(
            f"{name}_{what}"
            for name in ("reward", "held_out_reward")
            for what in (
                *("before", "after", "gain", "gain_interval"),
                *("after_random", "gain_over_random", "gain_over_random_interval"),
            )
        ),
        *("kl", "kl_interval", "kl_best_of_n", "kl_best_of_n_interval", "kl_bound"),
        *("held_out_reward_model", "held_out_votes", "held_out_num_rankings"),
        *("held_out_accuracy", "held_out_accuracy_interval"),
        *("num_rounds", "num_prompts", "num_samples", "num_winners", "num_distinct", "num_responses", "num_tokens"),
        *("num_missing", "num_checks", "num_held_out_prompts", "num_held_out_responses"),
        *("seconds_generating", "seconds_scoring"),
    }
    counts = {name: value for name, value in result.items() if name.startswith("num_")}
    assert counts == {
        "num_steps": 15,
        "num_rounds": 1,
        "num_prompts": 3,
        "num_samples": 6,
        "num_responses": 18,
        "num_winners": 3,
        "num_missing": 0,
        "num_tokens": result["num_tokens"],
        "num_distinct": np.mean([len(set(sampled["responses"])) for sampled in samples]),
        "num_checks": 2,
        "num_held_out_prompts": 2,
        "num_held_out_responses": 16,
    }
    learned_from = {row["prompt"][0]["content"] for row in read(tmp_path / "held_out" / "preferences.jsonl")}
    assert learned_from >= {ask(dish)[0]["content"] for dish in GUARD_DISHES}
    assert learned_from.isdisjoint(ask(dish)[0]["content"] for dish in DISHES[:3])
    assert (result["held_out_reward_model"], result["held_out_votes"]) == ("trained here", "guard")
    assert result["held_out_num_rankings"] == 20
    assert RunDir(tmp_path / "held_out" / "1").config().backbone == reward_run.config().backbone
    assert result["kl_bound"] == best_of_n.kl_bound(6)
    assert result["kl_best_of_n"] == pytest.approx(
        np.mean([best_of_n.estimate_kl(sampled["rewards"], 6) for sampled in samples])
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / result["model"]).num_parameters() > 0
    assert "rejection_sampling" in (tmp_path / "model" / "README.md").read_text()


def test_all_files_of_a_run_are_those_that_are_told_of(prepare, tmp_path):
    run(prepare, tmp_path, has_random_twin=True)

    kept = {name for name in files(tmp_path) if not name.startswith(("model/", "random_twin/model/"))}
    assert kept == {
        *("run.json", "metrics.jsonl", "curve.json", "checks.jsonl", "samples_before.jsonl", "samples_after.jsonl"),
        *("samples/step-000000.jsonl", "samples/step-000001.jsonl"),
        *(f"round_1/{name}.jsonl" for name in ("prompts", "samples", "winners", "held_out_rewards", "metrics")),
        *("round_1/samples.json", "round_1/round.json"),
        *("random_twin/checks.jsonl", "random_twin/samples/step-000001.jsonl"),
        *(f"random_twin/round_1/{name}" for name in ("winners.jsonl", "round.json", "metrics.jsonl")),
    }
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert (tmp_path / "random_twin" / "model" / "model.safetensors").exists()


def test_before_and_after_are_compared_on_the_same_held_out_prompts(prepare, tmp_path):
    result = run(prepare, tmp_path)

    held_out = {ask(dish)[0]["content"] for dish in DISHES[3:]}
    for name in ("before", "after"):
        rows = read(tmp_path / f"samples_{name}.jsonl")
        assert Counter(row["prompt"][0]["content"] for row in rows) == dict.fromkeys(held_out, 8)
        assert all(set(row) == {"prompt", "response", "reward", "held_out_reward"} for row in rows)
        for key in ("reward", "held_out_reward"):
            assert result[f"{key}_{name}"] == pytest.approx(sum(row[key] for row in rows) / len(rows))


def test_a_given_held_out_reward_model_grades(prepare, rules, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(rules / "about_twenty", given)

    result = run(prepare, tmp_path / "run", held_out_reward_model=str(given))

    assert (result["held_out_reward_model"], result["held_out_votes"]) == ("given", "given")
    assert result["held_out_accuracy"] is None
    assert result["held_out_reward_gain"] == result["reward_gain"]
    assert not (tmp_path / "run" / "held_out").exists()
    curve = json.loads((tmp_path / "run" / "curve.json").read_text())
    assert curve["held_out"] == pytest.approx(curve["reward"], abs=1e-5)
    assert curve["reward"] == sorted(curve["reward"])


def test_an_empty_response_is_never_selected_however_good_its_reward(prepare, tmp_path):
    config, run_dir = prepare(tmp_path)
    folder = tmp_path / "round_1"
    folder.mkdir()
    asked = [{"prompt": prompt} for prompt in distinct_prompts(run_dir.resolve(config.preferences), "train")[:2]]
    rows = [one | {"responses": ["", "soup"], "rewards": [9.0, 1.0]} for one in asked]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"num_tokens": 2, "num_missing": 0, "seconds_generating": 1.0, "seconds_scoring": 1.0, "backend": "by hand"}
    (folder / "samples.json").write_text(json.dumps(told))

    run_rejection_sampling(config, run_dir, StopFlag())

    kept = [json.loads(line) for line in (folder / "winners.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["reward"]) for row in kept] == [("soup", 1.0)] * 2


def test_who_selects_does_not_grade_under_another_name(prepare, rules, tmp_path):
    (tmp_path / "alias").symlink_to(rules / "about_twenty")
    config, run_dir = prepare(tmp_path / "run", held_out_reward_model=str(tmp_path / "alias"))

    with pytest.raises(ConfigError, match=r"^held_out_reward_model: is the one that selects, or a part of it$"):
        run_rejection_sampling(config, run_dir, StopFlag())


def test_phases_follow_each_other_and_progress_grows(prepare, tmp_path):
    run(prepare, tmp_path, num_rounds=2, has_random_twin=True)

    lines = list(RunDir(tmp_path).read_metrics())
    assert [phase for phase, _ in itertools.groupby(line["phase"] for line in lines)] == [
        *("check", "generate", "score", "fine-tune", "check"),
        *("generate", "score", "fine-tune 2", "check"),
        *("fine-tune at random", "generate", "fine-tune 2 at random", "check", "curve"),
    ]
    progress = [line["progress"] for line in lines]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert all("loss" in line for line in lines if line["phase"].startswith("fine-tune"))


def test_each_round_samples_from_the_policy_of_the_round_before(prepare, tmp_path):
    result = run(prepare, tmp_path, num_rounds=2, num_prompts=2)

    one = run_rejection_sampling(*prepare(tmp_path / "one", num_prompts=2), StopFlag())
    again = read(tmp_path / "round_2" / "samples.jsonl")
    model, tokenizer = load_policy(tmp_path / "one" / "model")
    sampled = sample(
        *(model, tokenizer, [row["prompt"] for row in again], 6),
        seed=1,
        max_new_tokens=12,
        max_length=1024,
        batch_size=2,
    )
    assert (result["num_rounds"], result["num_responses"], result["num_steps"]) == (2, 24, 2 * one["num_steps"])
    assert [row["responses"] for row in again] == sampled
    assert read(tmp_path / "round_1" / "samples.jsonl") == read(tmp_path / "one" / "round_1" / "samples.jsonl")
    assert len(read(tmp_path / "checks.jsonl")) == 3
    assert not (tmp_path / "round_1" / "model").exists()
    assert not (tmp_path / "round_2" / "model").exists()


def test_the_random_twin_samples_from_itself_in_later_rounds(prepare, tmp_path):
    run(prepare, tmp_path, num_rounds=2, has_random_twin=True, num_kept=2)

    for number in (1, 2):
        policy, twin = (
            read(path / f"round_{number}" / "winners.jsonl") for path in (tmp_path, tmp_path / "random_twin")
        )
        counts = [Counter(row["prompt"][0]["content"] for row in rows) for rows in (policy, twin)]
        assert counts[0] == counts[1]
    samples = {
        row["prompt"][0]["content"]: row["responses"]
        for row in read(tmp_path / "random_twin" / "round_2" / "samples.jsonl")
    }
    assert all(row["completion"] in samples[row["prompt"][0]["content"]] for row in twin)
    assert {row["reward"] for row in twin} == {0.0}
    assert read(tmp_path / "random_twin" / "checks.jsonl")[0]["step"] == 2


@pytest.mark.parametrize(
    "values", [{}, pytest.param({"num_rounds": 2, "has_random_twin": True}, marks=pytest.mark.slow)]
)
def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(prepare, tmp_path, values):
    values = {"num_epochs": 2.0, **values}
    expected = run(prepare, tmp_path / "straight", **values)
    config, stopped = prepare(tmp_path / "stopped", **values)

    result, times = None, 0
    while result is None and times < 60:
        try:
            result = run_rejection_sampling(config, stopped, StopAt(12))
        except Interrupted:
            times += 1
            for name in ("held_out_rewards.jsonl", "shard_000/responses.jsonl", "shard_000/rewards.jsonl"):
                if (path := stopped.path / "round_1" / name).exists():
                    with path.open("a") as file:
                        file.write('{"rewards": [nu')  # as a kill may leave it

    assert times > 2
    assert untimed(result) == untimed(expected)
    assert files(stopped.path) == files(tmp_path / "straight")
    for name in files(stopped.path):
        if name.endswith((".jsonl", "curve.json")) and not name.endswith(("metrics.jsonl", "checks.jsonl")):
            assert (stopped.path / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    for folder in ("model", "random_twin/model") if "num_rounds" in values else ("model",):
        assert weights(stopped.path / folder) == weights(tmp_path / "straight" / folder)


def test_all_or_some_prompts_are_sampled(prepare, tmp_path):
    result = run(prepare, tmp_path, num_prompts=2, num_held_out_prompts=1)

    assert (result["num_prompts"], result["num_held_out_prompts"]) == (2, 1)
    assert result["reward_gain_interval"] is None


def test_pairs_of_the_best_and_the_worst_teach_by_dpo(prepare, policy, tmp_path):
    result = run(
        prepare,
        tmp_path,
        **{"policy": str(policy), "keep": "pairs", "has_random_twin": True, "num_epochs": 10.0, "learning_rate": 1e-3},
        **{"reward_model": str(write_member(tmp_path / "for", FormatRule(pattern="Simmer"))), "max_new_tokens": 32},
    )

    pairs = read(tmp_path / "round_1" / "winners.jsonl")
    assert {(row["chosen"], row["reward"], row["rejected_reward"]) for row in pairs} == {(LONG, 1.0, 0.0)}
    assert all("Simmer" not in row["rejected"] for row in pairs)
    assert result["num_winners"] == len(pairs) > 0
    assert result["loss"] < math.log(2)
    assert result["reward_gain"] > 0.1
    twin = read(tmp_path / "random_twin" / "round_1" / "winners.jsonl")
    assert [row["prompt"] for row in twin] == [row["prompt"] for row in pairs]
    assert all(row["chosen"] != row["rejected"] for row in twin)


@pytest.mark.parametrize("keep", ["best", "pairs"])
def test_original_data_are_mixed_in(prepare, tmp_path, keep):
    alone = run(prepare, tmp_path / "alone", keep=keep, num_epochs=1.0, batch_size=1)

    mixed = run(prepare, tmp_path / "mixed", keep=keep, num_epochs=1.0, batch_size=1, mixed_in=0.7)

    assert alone["num_steps"] == alone["num_winners"] == mixed["num_winners"] == 3
    assert mixed["num_steps"] == 3 + 2  # 0.7 of three


@pytest.mark.slow
def test_prompts_are_drawn_anew_for_each_round(prepare, tmp_path):
    run(prepare, tmp_path, num_prompts=1, num_rounds=4, num_epochs=1.0)

    drawn = [read(tmp_path / f"round_{number}" / "prompts.jsonl")[0]["prompt"] for number in (1, 2, 3, 4)]
    assert len({json.dumps(prompt) for prompt in drawn}) > 1


def test_adapters_that_are_saved_by_themselves_can_be_loaded(prepare, tmp_path):
    run(prepare, tmp_path / "run", lora_rank=2, saved="adapter", has_random_twin=True)

    for folder in ("model", "random_twin/model"):
        assert is_adapter(tmp_path / "run" / folder)
        load_policy(tmp_path / "run" / folder)


# Shards


@pytest.mark.slow
def test_several_shards_wait_for_who_makes_them_and_are_joined(prepare, tmp_path, monkeypatch):
    """Each time the run comes past the rounds that are done, and needs the policy of the last one."""
    values = {"num_rounds": 3, "has_random_twin": True, "num_epochs": 2.0}
    expected = run(prepare, tmp_path / "alone", **values)
    monkeypatch.setenv("PLUMBLINE_SUPERVISED", "1")
    config, run_dir = prepare(tmp_path / "many", num_shards=2, **values)

    result, waited = None, []
    while result is None and len(waited) < 7:
        try:
            result = run_rejection_sampling(config, run_dir, StopFlag())
        except Waiting as waiting:
            waited.append(waiting.shards)
            for number, shard in enumerate(waiting.shards):
                run_sampling(shard, RunDir.create(tmp_path / f"child_{len(waited)}_{number}", shard), StopFlag())

    outputs = [[str(Path(shard.output).relative_to(run_dir.path)) for shard in shards] for shards in waited]
    rounds = ["round_1", "round_2", "round_3", "random_twin/round_2", "random_twin/round_3"]
    assert outputs == [[f"{name}/shard_000.jsonl", f"{name}/shard_001.jsonl"] for name in rounds]
    assert [(shard.first, shard.num_prompts) for shard in waited[0]] == [(0, 1), (1, 2)]
    assert untimed(result) == untimed(expected)
    for name in ("round_1/samples.jsonl", "round_2/samples.jsonl", "round_2/winners.jsonl", "samples_after.jsonl"):
        assert (run_dir.path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert files(run_dir.path) == files(tmp_path / "alone")


def test_only_the_shards_that_are_missing_are_waited_for(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_SUPERVISED", "1")
    config, run_dir = prepare(tmp_path / "run", num_shards=3)
    with pytest.raises(Waiting) as first:
        run_rejection_sampling(config, run_dir, StopFlag())
    one, *others = first.value.shards
    run_sampling(one, RunDir.create(tmp_path / "child", one), StopFlag())

    with pytest.raises(Waiting) as second:
        run_rejection_sampling(config, run_dir, StopFlag())

    assert second.value.shards == others
    assert len(others) == 2


def test_without_a_supervisor_a_run_makes_its_shards_itself(prepare, tmp_path, monkeypatch):
    monkeypatch.delenv("PLUMBLINE_SUPERVISED", raising=False)
    expected = run(prepare, tmp_path / "one")

    result = run(prepare, tmp_path / "three", num_shards=3)

    assert untimed(result) == untimed(expected)
    assert (tmp_path / "three/round_1/samples.jsonl").read_bytes() == (
        tmp_path / "one/round_1/samples.jsonl"
    ).read_bytes()


def test_a_whole_number_of_samples_is_one_shard_whoever_starts_it(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_SUPERVISED", "1")

    assert run(prepare, tmp_path, num_shards=5, num_prompts=1)["num_prompts"] == 1


# The guard


def test_a_run_that_is_stopped_keeps_the_policy_of_the_best_round(prepare, preferences, policy, tmp_path):
    """The held-out reward dislikes what the reward likes, so every round makes it worse."""
    rows = [row | {"split": "test" if row["split"] == "guard" else row["split"]} for row in read(preferences)]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_member(tmp_path / "against", FormatRule(pattern="Simmer", weight=-1.0))
    config, run_dir = prepare(
        tmp_path / "run",
        **{"preferences": str(tmp_path / "preferences.jsonl"), "policy": str(policy), "guard": "stop", "patience": 2},
        **{"reward_model": str(write_member(tmp_path / "for", FormatRule(pattern="Simmer")))},
        **{"held_out_reward_model": str(tmp_path / "against"), "num_rounds": 3, "num_epochs": 10.0},
        **{"max_new_tokens": 32, "num_checked": 16},
    )

    result = run_rejection_sampling(config, run_dir, StopFlag())

    assert (result["stopped_by"], result["best_step"], result["num_rounds"]) == ("held_out_falls", 0, 2)
    assert (result["held_out_reward_gain"], result["kl"]) == (0, 0)
    assert weights(run_dir.model) == weights(policy)
    assert run_rejection_sampling(config, run_dir, StopFlag()) == result  # killed before the result was written
    assert not list(run_dir.path.glob("round_*/model"))


# Exactness


def best_law(model_folder: Path, n: int) -> np.ndarray:
    """Of the 341 responses to the prompt "a", the probability to be the best of n by length; the empty one is last."""
    model, tokenizer = load_policy(model_folder)
    probs = law(model, tokenizer, PROMPTS[0]).numpy()
    found = best_of_n.law(probs, [len(text) for text in RESPONSES], n)
    found[RESPONSES.index("")] = 0.0  # cannot be trained on; it wins only where all samples are empty
    return found / found.sum()


@pytest.mark.slow
def test_fine_tuning_on_the_exact_law_of_the_best_of_n_lands_on_it(tmp_path):
    """Examples in proportion to the law, to the nearest whole number; steps are of examples of similar length."""
    wanted = best_law(enumerable_lm(tmp_path / "policy", scale=2.0), 4)
    examples = [
        Example(PROMPTS[0], text)
        for text, probability in zip(RESPONSES, wanted, strict=True)
        for _ in range(round(4000 * probability))
    ]
    config = SftConfig(num_epochs=24.0, learning_rate=0.15, batch_size=100)
    run_dir = RunDir.create(tmp_path / "run", config)

    fine_tune(config, policy=str(tmp_path / "policy"), train=examples, held_out=[], run_dir=run_dir, stop=StopFlag())

    found = law(*load_policy(run_dir.model), PROMPTS[0])
    assert total_variation(found, torch.tensor(wanted)) < 0.01


@pytest.mark.slow
def test_a_run_lands_on_the_law_of_the_best_of_n_as_near_as_its_samples_allow(tmp_path):
    """Thousands of prompts that end alike share one law: what is kept of them is a sample of its best of n."""
    num_prompts, n = 1000, 4
    policy = enumerable_lm(tmp_path / "policy", scale=2.0)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number} a"}],
            "responses": [{"content": "a"}, {"content": "b"}],
            "ranking": [[0], [1]],
            "split": "train" if number else "test",
        }
        for number in range(num_prompts + 1)
    ]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_member(tmp_path / "reward", LengthRule(unit="characters", target=4, tolerance=0, is_one_sided=False))
    write_member(tmp_path / "held_out", FormatRule(pattern="a"))
    config = RejectionSamplingConfig(
        preferences=str(tmp_path / "preferences.jsonl"),
        policy=str(policy),
        reward_model=str(tmp_path / "reward"),
        held_out_reward_model=str(tmp_path / "held_out"),
        num_samples=n,
        max_new_tokens=MAX_NEW_TOKENS,
        generation_batch_size=1000,
        num_epochs=40.0,
        learning_rate=0.25,
        batch_size=50,
    )
    run_dir = RunDir.create(tmp_path / "run", config)

    result = run_rejection_sampling(config, run_dir, StopFlag())

    wanted = best_law(policy, n)
    counts = Counter(row["completion"] for row in read(run_dir.path / "round_1" / "winners.jsonl"))
    kept = np.array([counts[text] for text in RESPONSES], float)
    is_likely = wanted * kept.sum() > 5
    observed, expected = (
        np.append(values[is_likely], values[~is_likely].sum()) for values in (kept, wanted * kept.sum())
    )
    assert stats.chisquare(observed, expected).pvalue > 0.01
    found = law(*load_policy(run_dir.model), PROMPTS[0])
    sampling_error = np.sqrt(2 * wanted / (math.pi * kept.sum())).sum() / 2  # the mean of TV, for many samples
    assert total_variation(found, torch.tensor(kept / kept.sum())) < 0.01
    assert total_variation(found, torch.tensor(wanted)) < 1.3 * sampling_error
    low, high = result["kl_best_of_n_interval"]
    assert 0 < low < result["kl_best_of_n"] < high < result["kl_bound"]


# Several processes


@pytest.mark.slow
def test_several_processes_keep_the_same_responses(prepare, tmp_path):
    values = {"num_rounds": 1, "has_random_twin": True, "num_prompts": 3}
    expected = run(prepare, tmp_path / "alone", **values)
    _, run_dir = prepare(tmp_path / "together", **values, num_processes=2)

    assert run_by_two(run_dir) == 0

    for name in ("round_1/samples.jsonl", "round_1/winners.jsonl", "random_twin/round_1/winners.jsonl", "curve.json"):
        assert (run_dir.path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    result = run_dir.read_result()
    for name in ("num_winners", "num_steps", "num_tokens", "kl_best_of_n", "reward_before", "num_distinct"):
        assert result[name] == expected[name]
    assert result["reward_after"] == pytest.approx(expected["reward_after"], abs=0.2)


# What cannot work


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
    [("train", "the train split has no prompt to sample"), ("test", "the test split has no prompt to check")],
)
def test_a_preference_set_without_prompts_is_refused(prepare, preferences, tmp_path, missing, message):
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in read(preferences) if row["split"] != missing))
    config, run_dir = prepare(tmp_path, preferences="some.jsonl")

    with pytest.raises(ConfigError, match=message):
        run_rejection_sampling(config, run_dir, StopFlag())


def test_a_minimum_that_nothing_reaches_is_said(prepare, tmp_path):
    with pytest.raises(ConfigError, match=r"^minimum_reward: no response is good enough"):
        run(prepare, tmp_path, minimum_reward="1000")
