"""What training tells of its data: prompts that stand in several splits, and flips, by judgments of the same pair."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from training.alignment.config import RewardModelConfig
from training.alignment.noise import estimate_flip_rate
from training.alignment.preferences import RankedResponses, read_rankings
from training.alignment.reward_training import JUDGING_LEARNING_RATE, flip_rate_of_repeats, train_reward_model
from training.alignment.run_dir import RunDir, StopFlag

RATE = 0.15


def ask(dish: object) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What do I put into dish {dish}?"}]


def write(path: Path, rows: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(path: Path, backbone: Path, preferences: Path, **values) -> tuple[RunDir, dict]:
    """After the first step."""
    told = {"backbone": str(backbone), "preferences": str(preferences), "num_epochs": 0.01, "batch_size": 8, **values}
    config = RewardModelConfig(**told)
    run_dir = RunDir.create(path, config)
    return run_dir, train_reward_model(config, run_dir, StopFlag())


# Prompts on both sides of a split


def judged(split: str, *dishes: object, **values) -> list[dict]:
    """Two judgments of each prompt, of responses that are the split's own."""
    return [
        {"prompt": ask(dish), "responses": [f"eggs, {split}", other], "ranking": [[0], [1]], "split": split, **values}
        for dish in dishes
        for other in ("salt", "rice")
    ]


@pytest.mark.parametrize(
    ("held_out", "num_shared"),
    [
        ([*judged("validation", 20, 21), *judged("test", 22, 23)], 0),
        ([*judged("validation", 20, 1, 2, 3), *judged("test", 22, 23)], 3),
        ([*judged("validation", 20, 21), *judged("test", 0, 23)], 1),
        ([*judged("validation", 20, 1, 2, 3), *judged("test", 3, 4, 22)], 4),  # the one in all three counts once
        ([*judged("validation", 20, 20), *judged("test", 20)], 0),  # held out twice
        ([*judged("validation", 20), *judged("test", 1, 2, aspect="style")], 0),  # not learned about here
        ([*judged("validation", 20), {**judged("test", 1)[0], "prompt": ask(1)[0]["content"]}], 1),  # as a text
    ],
)
def test_training_tells_how_many_of_its_prompts_are_in_other_splits_too(tmp_path, llama_folder, held_out, num_shared):
    preferences = write(tmp_path / "preferences.jsonl", [*judged("train", *range(8)), *held_out])

    run_dir, result = trained(tmp_path / "run", llama_folder, preferences)

    assert result["num_shared_prompts"] == num_shared
    told = f"prompts of the training split that are in validation or test too: {num_shared}\n"
    assert told in (run_dir.model / "README.md").read_text(encoding="utf-8")


# Judgments of the same pair


def repeated(num_pairs: int, num_votes: int, *, spread: float, seed: int, rate: float = RATE) -> list[dict]:
    """Judgments of pairs whose differences are normal: as they were shown, in either order, and with flips.

    All prompts have the same two responses.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for number, difference in enumerate(draw.normal(0, spread, num_pairs)):
        for vote in range(num_votes):
            is_first = (draw.random() < expit(difference)) != (draw.random() < rate)
            texts = ("eggs", "salt") if draw.random() < 0.5 else ("salt", "eggs")
            best = texts.index("eggs" if is_first else "salt")
            rows.append(
                {
                    "prompt": ask(number),
                    "responses": list(texts),
                    "ranking": [[best], [1 - best]],
                    "annotator": f"a{vote}",
                    "split": "train",
                }
            )
    return rows


def read(rows: Iterable[dict], aspect: str = "overall") -> list[RankedResponses]:
    return [
        RankedResponses(row["prompt"], tuple(row["responses"]), tuple(map(tuple, row["ranking"])), aspect=aspect)
        for row in rows
    ]


def test_repeated_judgments_tell_the_flip_rate():
    found = flip_rate_of_repeats(read(repeated(1200, 10, spread=2.0, seed=0)))

    assert set(found) == {"flip_rate", "interval"}
    assert found["flip_rate"] == pytest.approx(RATE, abs=0.04)
    low, high = found["interval"]
    assert low <= RATE <= high
    assert low < found["flip_rate"] < high


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_flip_rate_from_repeats_follows_the_true_one(rate):
    found = flip_rate_of_repeats(read(repeated(1200, 20, spread=3.0, seed=1, rate=rate)))

    assert found["flip_rate"] == pytest.approx(rate, abs=0.04)
    assert found["interval"][0] <= rate <= found["interval"][1]


def test_repeats_are_judgments_of_one_aspect_of_the_same_two_responses_to_a_prompt():
    """By hand: 40 pairs, of which one vote in six is for the second; and what must not be counted among these."""
    votes = [{"prompt": ask(n), "responses": ["b", "a"], "ranking": [[0], [1]]} for n in range(40) for _ in range(5)]
    dissent = [{"prompt": ask(n), "responses": ["a", "b"], "ranking": [[0], [1]]} for n in range(40)]
    ties = [{**row, "ranking": [[0, 1]]} for row in votes]
    lists = [{**row, "responses": ["b", "a", "c"], "ranking": [[1], [0], [2]]} for row in votes]
    otherwise = [{**row, "ranking": [[1], [0]]} for row in votes]
    elsewhere = [{**row, "prompt": ask(row["prompt"][0]["content"])} for row in otherwise[:100]]  # 20 other prompts

    found = flip_rate_of_repeats(read([*votes, *dissent, *ties, *lists]))
    by_aspect = flip_rate_of_repeats([*read([*votes, *dissent]), *read([*otherwise, *dissent], "style")])
    by_prompt = flip_rate_of_repeats(read([*votes, *dissent, *elsewhere]))

    expected = estimate_flip_rate([1] * 40, [6] * 40)
    assert found == {"flip_rate": expected.rate, "interval": list(expected.interval)}
    expected = estimate_flip_rate([1] * 40 + [6] * 40, [6] * 80)
    assert by_aspect == {"flip_rate": expected.rate, "interval": list(expected.interval)}
    expected = estimate_flip_rate([1] * 40 + [5] * 20, [6] * 40 + [5] * 20)
    assert by_prompt == {"flip_rate": expected.rate, "interval": list(expected.interval)}


def test_a_preference_for_one_of_two_equal_texts_says_nothing_of_flips():
    rows = repeated(300, 10, spread=2.0, seed=0)
    tossed = [
        {
            **row,
            "prompt": ask(f"twice {number}"),
            "responses": ["the same"] * 2,
            "ranking": [[number % 2], [1 - number % 2]],
        }
        for number, row in enumerate(rows)
    ]

    assert flip_rate_of_repeats(read([*rows, *tossed])) == flip_rate_of_repeats(read(rows))


@pytest.mark.parametrize(("num_pairs", "num_votes"), [(0, 0), (1200, 1), (1200, 3), (29, 40), (30, 4)])
def test_without_enough_repeats_nothing_is_said_of_flips(num_pairs, num_votes):
    assert flip_rate_of_repeats(read(repeated(num_pairs, num_votes, spread=2.0, seed=0))) is None


@pytest.fixture(scope="module")
def repeats_path(tmp_path_factory) -> Path:
    """Of its test split each pair is judged otherwise: that must not count."""
    rows = repeated(200, 16, spread=3.0, seed=2)
    flipped = [{**row, "ranking": row["ranking"][::-1], "split": "test"} for row in rows[: 16 * 40 : 2]]
    return write(tmp_path_factory.mktemp("repeats") / "preferences.jsonl", [*rows, *flipped])


def test_a_run_tells_what_its_training_judgments_say_of_flips(tmp_path, llama_folder, repeats_path):
    _, result = trained(tmp_path / "run", llama_folder, repeats_path)

    assert result["repeated_judgments"] == flip_rate_of_repeats(list(read_rankings(repeats_path, "train")))
    low, high = result["repeated_judgments"]["interval"]
    assert low <= RATE <= high
    assert "learned" not in result


@pytest.mark.parametrize("told", [0.0, 0.02, 0.4])
def test_a_flip_rate_that_is_learned_starts_from_the_repeats_whatever_was_told(
    tmp_path, llama_folder, repeats_path, told
):
    """One step moves its log-odds by the learning rate at the most."""
    _, result = trained(tmp_path / "run", llama_folder, repeats_path, learn_flip_rate=True, flip_rate=told)

    start = result["repeated_judgments"]["flip_rate"]
    assert abs(logit(result["learned"]["flip_rate"]) - logit(start)) < 1.01 * JUDGING_LEARNING_RATE
    assert result["learned"]["flip_rate"] != start
    assert abs(logit(0.05) - logit(start)) > 10 * JUDGING_LEARNING_RATE  # where it starts that nothing was told of


def test_without_repeats_a_flip_rate_that_is_learned_starts_from_what_was_told(tmp_path, llama_folder):
    preferences = write(tmp_path / "preferences.jsonl", repeated(40, 1, spread=3.0, seed=0))

    _, result = trained(tmp_path / "run", llama_folder, preferences, learn_flip_rate=True, flip_rate=0.4)

    assert "repeated_judgments" not in result
    assert abs(logit(result["learned"]["flip_rate"]) - logit(0.4)) < 1.01 * JUDGING_LEARNING_RATE
