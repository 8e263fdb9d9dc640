import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from tests.training.alignment.enumerable import LETTERS, MAX_NEW_TOKENS, enumerable_lm, law
from tests.training.alignment.material import StopAt
from tests.training.alignment.processes import run_by_two
from training.alignment.config import ComparePoliciesConfig, ConfigError, DpoConfig, RlhfConfig
from training.alignment.policies import load_policy, prepare, save_policy
from training.alignment.policy_comparison import (
    Answers,
    Scores,
    against_first,
    by_prompt,
    called,
    compare_policies,
    length_controlled_win_rate,
    prompts_to_compare_on,
    shown,
)
from training.alignment.run_dir import Interrupted, RunDir, StopFlag


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ask(letter: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": letter}]


def member(folder: Path, **settings) -> str:
    """A rule that likes one length in letters."""
    folder.mkdir(parents=True, exist_ok=True)
    settings |= {"kind": "length", "unit": "characters", "tolerance": 0, "is_one_sided": False}
    (folder / "member.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    rows = [
        {
            "prompt": ask(letter),
            "responses": [{"content": "a"}, {"content": "b"}],
            "ranking": [[0], [1]],
            "split": split,
        }
        for letter in LETTERS
        for split in ("test", "test", "train")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> list[Path]:
    return [enumerable_lm(tmp_path_factory.mktemp(f"policy{seed}"), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def compare(preferences, tmp_path_factory):
    def make(policies, stop: StopFlag | None = None, path: Path | None = None, **values) -> tuple[dict, RunDir]:
        path = path or tmp_path_factory.mktemp("run")
        settings = {
            "preferences": str(preferences),
            "policies": ", ".join(map(str, policies)),
            "held_out_reward_model": member(path / "held_out_rule", target=4),
            "reward_model": member(path / "rule", target=1),
            "num_samples": 6,
            "max_new_tokens": MAX_NEW_TOKENS,
            "max_length": 64,
            "generation_batch_size": 12,
        }
        config = ComparePoliciesConfig(**settings | values)
        run_dir = RunDir.create(path, config)
        return compare_policies(config, run_dir, stop or StopFlag()), run_dir

    return make


@pytest.fixture(scope="module")
def compared(compare, policies) -> tuple[dict, RunDir, dict]:
    result, run_dir = compare(policies, num_samples=32, generation_batch_size=64)
    return result, run_dir, json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))


def test_report_tells_what_each_policy_is_like(compared, policies):
    _, run_dir, report = compared

    for number, (told, path) in enumerate(zip(report["policies"], policies, strict=True)):
        rows = read(run_dir.path / f"policy_{number + 1}.jsonl")
        texts = [text for row in rows for text in row["responses"]]
        grades = [[-abs(len(text) - 4) / 4 for text in row["responses"]] for row in rows]
        rewards = [[-min(1.0, abs(len(text) - 1)) for text in row["responses"]] for row in rows]
        assert [row["prompt"] for row in rows] == [ask(letter) for letter in LETTERS]
        assert told == {
            "name": path.name,
            "path": str(path),
            "reward": by_prompt(np.mean(rewards, axis=1)),
            "held_out": by_prompt(np.mean(grades, axis=1)),
            "kl": told["kl"],
            "length": pytest.approx(np.mean([len(text) + 1 for text in texts])),  # the end is a token too
            "num_tokens": sum(len(text) + 1 for text in texts),
            "seconds": pytest.approx(sum(row["seconds"] for row in rows)),
            "diversity": 0.0,  # one word a response
            "repetition": 0.0,
            "against_first": told["against_first"],
        }
        assert told["seconds"] > 0
    assert {name: report[name] for name in ("kind", "num_prompts", "num_samples", "held_out_votes", "backend")} == {
        "kind": "compare_policies",
        "num_prompts": 4,
        "num_samples": 32,
        "held_out_votes": "given",
        "backend": "transformers, generate",
    }


def test_prompt_with_half_a_character_is_told_with_a_question_mark(compare, policies, tmp_path):
    ranked = {"prompt": ask("a\ud83c"), "responses": [{"content": "a"}, {"content": "b"}], "ranking": [[0], [1]]}
    path = tmp_path / "preferences.jsonl"
    path.write_text(json.dumps(ranked | {"split": "test"}) + "\n")

    _, run_dir = compare(policies[:2], preferences=str(path), num_samples=1)

    report = json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))
    assert [one["prompt"] for one in report["samples"]] == [ask("a?")]


def test_kl_is_measured_by_as_much_of_a_prompt_as_both_policies_can_hold(compare, gpt2_folder, tmp_path):
    short, tokenizer = load_policy(gpt2_folder)
    embedding = short.transformer.wpe
    embedding.weight.data, short.config.n_positions = embedding.weight.data[:32].clone(), 32
    save_policy(short, tokenizer, tmp_path / "short")
    path = tmp_path / "preferences.jsonl"
    ranked = {"prompt": ask("eggs " * 40), "responses": [{"content": "a"}, {"content": "b"}], "ranking": [[0], [1]]}
    path.write_text(json.dumps(ranked | {"split": "test"}) + "\n")
    for places in range(2):
        order = [tmp_path / "short", gpt2_folder][:: -1 if places else 1]

        _, run_dir = compare(order, preferences=str(path), num_samples=2, max_length=200, max_new_tokens=8)

        report = json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))
        assert report["policies"][1]["kl"]["value"] >= 0


def test_kl_is_that_from_the_first_policy(compared, policies):
    _, _, report = compared
    models = [load_policy(path) for path in policies]

    exact = []
    for model, tokenizer in models[1:]:
        laws = [(law(model, tokenizer, ask(one)), law(models[0][0], tokenizer, ask(one))) for one in LETTERS]
        exact.append(sum(float((own * (own / first).log()).sum()) for own, first in laws) / 4)

    assert report["policies"][0]["kl"] is None
    assert [one["kl"]["value"] for one in report["policies"][1:]] == [pytest.approx(kl, rel=0.1) for kl in exact]


def test_win_rate_counts_all_pairs_of_responses_to_a_prompt(compared):
    _, run_dir, report = compared
    own, first = (read(run_dir.path / f"policy_{number}.jsonl") for number in (2, 1))

    wins = [
        0.5 if len(one) == len(other) else float(len(one) > len(other))  # no response is longer than the target of 4
        for ours, theirs in zip(own, first, strict=True)
        for one in ours["responses"]
        for other in theirs["responses"]
    ]

    told = report["policies"][1]["against_first"]
    low, high = told["win_rate"]["interval"]
    assert told["win_rate"]["value"] == pytest.approx(np.mean(wins))
    assert 0 <= low < told["win_rate"]["value"] < high <= 1
    held_out = [one["held_out"]["value"] for one in report["policies"]]
    rewards = [one["reward"]["value"] for one in report["policies"]]
    assert told["held_out_gain"]["value"] == pytest.approx(held_out[1] - held_out[0])
    assert told["reward_gain"]["value"] == pytest.approx(rewards[1] - rewards[0])
    assert report["policies"][0]["against_first"] is None


def test_result_sums_the_report_up(compared):
    result, _, report = compared

    told = report["policies"][1]["against_first"]
    assert result == {
        "num_policies": 3,
        "num_prompts": 4,
        "num_samples": 32,
        "held_out_votes": "given",
        "held_out_num_rankings": None,
        "held_out_accuracy": None,
        "held_out_accuracy_interval": None,
        "best": max(report["policies"], key=lambda one: one["held_out"]["value"])["name"],
        "win_rate": told["win_rate"]["value"],
        "win_rate_interval": told["win_rate"]["interval"],
        "length_controlled_win_rate": told["length_controlled_win_rate"]["value"],
    }


def test_responses_are_written_for_people_to_judge(compared):
    _, run_dir, report = compared
    rows = read(run_dir.path / "responses.jsonl")

    sampled = [read(run_dir.path / f"policy_{number}.jsonl") for number in (1, 2, 3)]
    names = [one["name"] for one in report["policies"]]
    assert rows == [
        {
            "prompt": own[0]["prompt"],
            "responses": {name: one["responses"] for name, one in zip(names, own, strict=True)},
        }
        for own in zip(*sampled, strict=True)
    ]
    assert sorted(one["prompt"][0]["content"] for one in report["samples"]) == list(LETTERS)
    for one in report["samples"]:
        place = LETTERS.index(one["prompt"][0]["content"])
        assert one["responses"] == [own[place]["responses"][0] for own in sampled]
        assert one["held_out"] == [-abs(len(text) - 4) / 4 for text in one["responses"]]


def test_policy_is_no_better_than_itself(compare, policies):
    _, run_dir = compare([policies[0], policies[0]])

    one, other = json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))["policies"]
    nothing = {"value": 0.0, "interval": None}  # all prompts are alike, which tells no spread
    assert [one["name"], other["name"]] == [f"{policies[0].name} (1)", f"{policies[0].name} (2)"]
    assert other["kl"] == nothing
    assert other["held_out"] == one["held_out"]
    found = other["against_first"]
    assert (found["win_rate"]["value"], found["length_controlled_win_rate"]["value"]) == (0.5, pytest.approx(0.5))
    assert (found["held_out_gain"], found["reward_gain"]) == (nothing, nothing)


def test_stopped_anywhere_and_started_again_it_ends_the_same(compare, policies, tmp_path):
    result, whole = compare(policies[:2])
    num_stops = 0
    while not (tmp_path / "report.json").exists():
        try:
            again, run_dir = compare(policies[:2], StopAt(2), tmp_path)
        except Interrupted:
            num_stops += 1

    reports = [json.loads((path / "report.json").read_text(encoding="utf-8")) for path in (whole.path, tmp_path)]
    for report in reports:
        for one in report["policies"]:
            del one["seconds"]
    assert num_stops >= 4
    assert again == result
    assert reports[0] == reports[1]
    progress = [line["progress"] for line in run_dir.read_metrics()]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_finished_stages_are_not_done_again(compare, policies, tmp_path):
    first, _ = compare(policies[:2], path=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    again, _ = compare(policies[:2], path=tmp_path)

    assert again == first
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_kl_is_that_of_the_policies_whatever_the_temperature(compare, policies):
    _, cold = compare(policies[:2], temperature=0.3, reward_model="")
    _, warm = compare(policies[:2])

    one, other = (
        json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))["policies"][1]
        for run_dir in (cold, warm)
    )
    assert one["kl"] == other["kl"]
    assert one["length"] != other["length"]
    assert (one["reward"], one["against_first"]["reward_gain"]) == (None, None)


def test_adapters_are_compared_like_any_policy(compare, policies, llama_folder, tmp_path):
    config = DpoConfig(lora_rank=2)
    model, tokenizer = load_policy(llama_folder)
    adapted = prepare(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    save_policy(adapted, tokenizer, tmp_path / "runs" / "7" / "model", saved="adapter")

    _, run_dir = compare([llama_folder, tmp_path / "runs" / "7" / "model", policies[0]])

    told = json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in told["policies"]] == [llama_folder.name, "run 7", policies[0].name]
    assert told["policies"][1]["kl"]["value"] > 0.01
    assert told["policies"][2]["kl"] is None  # of other tokens
    assert told["backend"] == "transformers, continuous batches, transformers, generate"


@pytest.mark.slow
def test_report_is_the_same_whatever_the_number_of_processes(compare, llama_folder, tmp_path):
    model, tokenizer = load_policy(llama_folder)
    with torch.no_grad():
        model.lm_head.weight.add_(
            0.02 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    save_policy(model, tokenizer, tmp_path / "other")
    _, alone = compare([llama_folder, tmp_path / "other"])
    config = dataclasses.replace(alone.config(), num_processes=2)
    together = RunDir.create(tmp_path / "together", config)

    assert run_by_two(together) == 0

    reports = [json.loads((run_dir.path / "report.json").read_text(encoding="utf-8")) for run_dir in (alone, together)]
    for report in reports:
        for one in report["policies"]:
            del one["seconds"]
    assert reports[1] == reports[0]
    assert together.read_result()["win_rate"] == reports[0]["policies"][1]["against_first"]["win_rate"]["value"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policies": ["one"]}, "policies: name two or more"),
        ({"reward_model": "one, other"}, "reward_model: name one, or none"),
    ],
)
def test_refuses(compare, policies, values, message):
    with pytest.raises(ConfigError, match=message):
        compare(values.pop("policies", policies[:2]), **values)


def test_refuses_a_set_without_test_prompts(compare, policies, tmp_path):
    (tmp_path / "preferences.jsonl").write_text("")

    with pytest.raises(ConfigError, match="the test split has no prompt"):
        compare(policies[:2], preferences=str(tmp_path / "preferences.jsonl"))


def test_refuses_to_grade_by_what_one_of_the_policies_has_optimised(compare, policies, tmp_path):
    rule = member(tmp_path / "rule", target=9)
    run = RunDir.create(tmp_path / "runs" / "3", RlhfConfig(policy=str(policies[0]), reward_model=rule))
    run.model.symlink_to(policies[1])

    with pytest.raises(ConfigError, match="held_out_reward_model: is the one that is optimised"):
        compare([policies[0], run.model], reward_model="", held_out_reward_model=rule)


def world(num_prompts: int, seed: int, *, theta: float, phi: float, lead: float) -> tuple:
    """Pairs of which one side is longer by `lead` characters on average; length by itself wins with log-odds of phi."""
    rng = np.random.default_rng(seed)
    lengths = rng.normal(lead, 60, (num_prompts, 1)) + rng.normal(0, 80, (num_prompts, 16))
    logits = theta + phi * np.tanh(lengths / lengths.std())
    wins = (rng.random(lengths.shape) < expit(logits)).astype(float)
    return wins.ravel(), lengths.ravel(), np.repeat(np.arange(num_prompts), 16)


def test_length_controlled_win_rate_recovers_what_length_does_not_explain():
    wins, lengths, prompts = world(2000, seed=0, theta=-0.4, phi=1.5, lead=120)

    found = length_controlled_win_rate(wins, lengths, prompts)

    assert np.mean(wins) > 0.6  # by length
    assert found["value"] == pytest.approx(expit(-0.4), abs=0.015)  # and not by anything else


def test_length_controlled_interval_covers_the_truth_in_about_19_of_20_worlds():
    intervals = [
        length_controlled_win_rate(*world(64, seed, theta=0.3, phi=1.0, lead=50))["interval"] for seed in range(300)
    ]

    covered = np.mean([low <= expit(0.3) <= high for low, high in intervals])

    assert 0.91 <= covered <= 0.98  # measured: 0.95


def test_length_controlled_win_rate_is_the_win_rate_where_lengths_are_equal():
    wins = np.array([1.0, 1.0, 0.5, 0.0, 1.0, 1.0, 0.0, 1.0])

    found = length_controlled_win_rate(wins, np.zeros(8), np.arange(8) // 2)

    assert found["value"] == pytest.approx(wins.mean(), abs=1e-4)
    assert found["interval"][0] < found["value"] < found["interval"][1]


def test_length_controlled_win_rate_turns_over_with_its_sides():
    wins, lengths, prompts = world(30, seed=1, theta=0.5, phi=1.0, lead=100)

    one = length_controlled_win_rate(wins, lengths, prompts)
    other = length_controlled_win_rate(1 - wins, -lengths, prompts)

    assert other["value"] == pytest.approx(1 - one["value"])
    assert other["interval"] == pytest.approx([1 - end for end in reversed(one["interval"])])


def test_length_controlled_win_rate_where_one_always_wins_or_length_tells_all():
    lengths, prompts = np.arange(40.0) - 10, np.arange(40) // 4

    always = length_controlled_win_rate(np.ones(40), lengths, prompts)
    longer = length_controlled_win_rate((lengths > 0).astype(float), lengths, prompts)

    assert always["value"] == 1.0
    assert always["interval"][0] < 0.9
    assert 0.2 < longer["value"] < 0.8
    assert length_controlled_win_rate([1.0, 0.0], [1.0, 2.0], [0, 0])["interval"] is None


@pytest.mark.parametrize("values", [([], [], []), ([1.0], [1.0, 2.0], [0]), ([[1.0]], [[1.0]], [[0]])])
def test_length_controlled_win_rate_refuses(values):
    with pytest.raises(ValueError, match="one shape"):
        length_controlled_win_rate(*values)


def answers(*texts: str) -> Answers:
    return Answers(list(texts), [len(text) for text in texts], 0.0, [])


def test_response_that_could_not_be_graded_takes_no_part():
    found = against_first(
        1,
        [[answers("a", "bb")], [answers("c", "dd")]],
        [Scores([np.array([1.0, math.nan]), np.array([2.0, 0.0])], [])],
        "other",
    )

    assert found["win_rate"]["value"] == 0.5  # 2 against 1, 0 against 1
    assert found["held_out_gain"] == {"value": 0.0, "interval": None}
    assert found["reward_gain"] is None
    with pytest.raises(ConfigError, match="could score no two responses of other"):
        against_first(
            1, [[answers("a")], [answers("b")]], [Scores([np.array([math.nan]), np.array([2.0])], [])], "other"
        )


def test_samples_are_half_what_tells_policies_apart_and_half_drawn():
    prompts = [ask(str(number)) for number in range(200)]
    own = [[answers(f"{policy}") for _ in prompts] for policy in "ab"]
    scores = [Scores([np.array([0.0]), np.array([float(number)])], []) for number in range(200)]
    scores[199] = Scores([np.array([math.nan]), np.array([9.0])], [])

    found = shown(prompts, own, scores, random.Random(0))

    numbers = [int(one["prompt"][0]["content"]) for one in found]
    assert numbers[:25] == list(range(198, 173, -1))
    assert len(set(numbers)) == 50
    assert found[0] == {"prompt": ask("198"), "responses": ["a", "b"], "held_out": [0.0, 198.0]}
    assert len(shown(prompts[:3], own, scores[:3], random.Random(0))) == 3


def test_policies_are_called_by_their_runs():
    paths = ["/home/runs/12/model", "Qwen/Qwen3-0.6B", "/home/runs/12/model/", "policies/old", "model"]

    assert called(paths) == ["run 12 (1)", "Qwen3-0.6B", "run 12 (2)", "old", "model"]


def test_prompts_are_drawn_by_hashing(preferences):
    assert prompts_to_compare_on(preferences, 0, seed=0) == [ask(letter) for letter in LETTERS]
    two = prompts_to_compare_on(preferences, 2, seed=0)
    assert len(two) == 2
    assert two == [one for one in prompts_to_compare_on(preferences, 3, seed=0) if one in two]
