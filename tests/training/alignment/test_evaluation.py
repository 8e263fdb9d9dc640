import dataclasses
import json
import math

import numpy as np
import pytest

from tests.training.alignment.material import StopAt
from training.alignment.config import ConfigError, EvaluateConfig
from training.alignment.evaluation import clustered_interval, evaluate, measure, pairwise_accuracy
from training.alignment.preferences import RankedResponses, read_rankings
from training.alignment.reward_model import RewardModel
from training.alignment.run_dir import Interrupted, RunDir, StopFlag


def ranked(prompt: str, *groups: tuple[int, ...], num_responses: int = 0) -> RankedResponses:
    num_responses = num_responses or sum(map(len, groups))
    return RankedResponses([{"role": "user", "content": prompt}], ("text",) * num_responses, groups)


def test_accuracy_counts_strictly_ordered_pairs_and_halves_for_equal_scores():
    rankings = [ranked("a", (0,), (1, 2)), ranked("b", (1,), (0,)), ranked("c", (0, 1)), ranked("a", (1,), (0,))]
    scores = [[2.0, 1.0, 3.0], [0.5, 0.5], [9.0, 1.0], [0.0, 1.0]]  # right and wrong, equal, no pair, right

    found = pairwise_accuracy(rankings, scores)

    assert (found.accuracy, found.num_pairs, found.num_prompts) == (2.5 / 4, 4, 2)


def test_a_response_that_was_not_ranked_makes_no_pair():
    found = pairwise_accuracy([ranked("a", (0,), (2,), num_responses=3)], [[1.0, 5.0, 0.0]])

    assert (found.accuracy, found.num_pairs) == (1.0, 1)


def test_without_an_ordered_pair_there_is_no_accuracy():
    assert pairwise_accuracy([], []) is None
    assert pairwise_accuracy([ranked("a", (0, 1))], [[1.0, 2.0]]) is None


def test_each_ranking_needs_its_scores():
    with pytest.raises(ValueError, match="shorter"):
        pairwise_accuracy([ranked("a", (0,), (1,))], [])


def test_the_accuracy_of_swapped_scores_is_what_is_missing_to_one():
    draw = np.random.default_rng(0)
    rankings = [ranked(str(number % 7), (0,), (1, 2), (3,)) for number in range(30)]
    scores = draw.normal(size=(30, 4))

    right, wrong = pairwise_accuracy(rankings, scores.tolist()), pairwise_accuracy(rankings, (-scores).tolist())

    assert wrong.accuracy == pytest.approx(1 - right.accuracy, abs=1e-12)
    assert wrong.interval == pytest.approx((1 - right.interval[1], 1 - right.interval[0]), abs=1e-12)


def test_the_interval_of_single_pairs_is_wilsons():
    # Wilson's for 63 of 100 is 0.5322 to 0.7182; Student's quantile and the variance's G / (G - 1) add 1.7 %
    assert clustered_interval([(1, 1)] * 63 + [(0, 1)] * 37) == pytest.approx((0.5305, 0.7196), abs=1e-4)


def test_pairs_that_only_repeat_their_prompt_do_not_narrow_the_interval():
    once = clustered_interval([(1, 1)] * 63 + [(0, 1)] * 37)
    often = clustered_interval([(10, 10)] * 63 + [(0, 10)] * 37)

    assert often == pytest.approx(once, abs=0.003)
    assert clustered_interval([(6.3, 10)] * 100)[1] < once[1] - 0.05  # while pairs that tell something new do


@pytest.mark.parametrize("num_clusters", [2, 10, 100])
def test_the_interval_is_never_degenerate(num_clusters):
    low, high = clustered_interval([(3, 3)] * num_clusters)

    assert high == 1.0
    assert 0 < low < 1 - 1 / num_clusters
    assert clustered_interval([(0, 3)] * num_clusters) == pytest.approx((0.0, 1 - low), abs=1e-12)


def test_one_prompt_tells_nothing_about_others():
    assert clustered_interval([(20, 28)]) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.5, 0.65, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("num_clusters", "size"), [(10, 6), (40, 1), (40, 28)])
def test_the_interval_covers_the_truth(share, correlation, num_clusters, size):
    draw = np.random.default_rng(1)
    chances = np.full((600, num_clusters), share)
    if correlation:
        chances = draw.beta(share * (1 / correlation - 1), (1 - share) * (1 / correlation - 1), chances.shape)
    worlds = draw.binomial(size, chances)

    intervals = [clustered_interval([(float(n), size) for n in world]) for world in worlds]

    covered = np.mean([low <= share <= high for low, high in intervals])
    assert covered > 0.93


def test_measured_loss_is_in_nats_per_choice_over_rankings_that_order_anything():
    rankings = [ranked("a", (0,), (1,)), ranked("b", (0,), (1,), (2,)), ranked("c", (0, 1))]

    found = measure(rankings, [[1.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0]])

    assert found == {
        "accuracy": 0.625,
        "interval": list(clustered_interval([(1, 1), (1.5, 3)])),
        "num_pairs": 4,
        "num_prompts": 2,
        "loss": pytest.approx((math.log1p(math.exp(-1)) + math.log(6) / 2) / 2),
    }


def test_nothing_to_measure_is_told_with_its_reason():
    assert measure([ranked("a", (0, 1))], [[1.0, 0.0]], "test") == {
        "accuracy": None,
        "interval": None,
        "num_pairs": 0,
        "num_prompts": 0,
        "loss": None,
        "note": "No accuracy: no ranking of the test split puts one response above another.",
    }


# The run


@pytest.fixture
def run_dir(tmp_path, reward_model_folder, rankings_path) -> RunDir:
    config = EvaluateConfig(preferences=str(rankings_path), reward_model=str(reward_model_folder), split="all")
    return RunDir.create(tmp_path / "run", config)


def test_an_evaluation_scores_every_ranking(run_dir, reward_model_folder, rankings_path):
    result = evaluate(run_dir.config(), run_dir, StopFlag())

    model = RewardModel.load(reward_model_folder)
    rankings = list(read_rankings(rankings_path))
    scores = [model.score([(one.prompt, text) for text in one.responses]) for one in rankings]
    rewards = [[model.std * score for score in own] for own in scores]
    rows = [json.loads(line) for line in (run_dir.path / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [one.id for one in rankings]
    assert [row["scores"] for row in rows] == [pytest.approx(own, abs=1e-5) for own in scores]
    assert result == {
        **measure(rankings, rewards),
        "loss": pytest.approx(measure(rankings, rewards)["loss"], abs=1e-5),
        "num_truncated": 0,
    }
    assert [line["progress"] for line in run_dir.read_metrics()] == [1.0]


def test_an_evaluation_of_a_split_of_one_aspect(run_dir):
    config = dataclasses.replace(run_dir.config(), split="validation", max_length=16)

    result = evaluate(config, run_dir, StopFlag())

    assert len((run_dir.path / "scores.jsonl").read_text().splitlines()) == 16
    assert result["num_truncated"] > 0
    with pytest.raises(ConfigError, match=r"^split: the preference set has no rankings of aspect style in validation$"):
        evaluate(dataclasses.replace(config, aspect="style"), run_dir, StopFlag())


def test_a_stopped_evaluation_goes_on(run_dir, tmp_path, reward_model_folder, long_rankings_path):
    config = dataclasses.replace(run_dir.config(), preferences=str(long_rankings_path))
    whole = RunDir.create(tmp_path / "whole", config)
    expected = evaluate(config, whole, StopFlag())

    with pytest.raises(Interrupted, match="stopped after scoring 256 of 300 rankings"):
        evaluate(config, run_dir, StopAt(2))
    scores = run_dir.path / "scores.jsonl"
    scores.write_text(scores.read_text() + '{"id": "half a li')

    assert evaluate(config, run_dir, StopFlag()) == expected
    assert scores.read_text() == (whole.path / "scores.jsonl").read_text()
