import dataclasses
import json
import math

import numpy as np
import pytest

from tests.training.alignment.material import StopAt
from training.alignment.calibration import fit_temperature
from training.alignment.config import ConfigError, EvaluateConfig
from training.alignment.evaluation import (
    OtherModel,
    clustered_interval,
    evaluate,
    headlines,
    leave_out_missing,
    measure,
    pairwise_accuracy,
    report,
)
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


# The report


def simulate(
    num_prompts: int, *, spread: float = 2.0, length_weight: float = 0.0, seed: int = 0, num_responses: int = 2
):
    """Rankings of responses by their qualities, in log-odds, plus `length_weight` for each hundred characters.

    Returns them with the qualities and the lengths.
    """
    draw = np.random.default_rng(seed)
    qualities = draw.normal(scale=spread / np.sqrt(2), size=(num_prompts, num_responses))
    lengths = draw.integers(20, 400, size=qualities.shape)
    order = np.argsort(-(qualities + length_weight * lengths / 100 + draw.gumbel(size=qualities.shape)))
    rankings = [
        dataclasses.replace(ranked(str(number), *((int(place),) for place in places)), responses=texts)
        for number, (places, texts) in enumerate(zip(order, [["x" * n for n in own] for own in lengths], strict=True))
    ]
    return [dataclasses.replace(one, responses=tuple(one.responses)) for one in rankings], qualities, lengths


def test_a_report_worked_by_hand():
    rankings = [
        dataclasses.replace(ranked("a", (0,), (1,)), responses=("long one", "short"), annotator="ann", strength=2),
        dataclasses.replace(ranked("b", (1,), (0, 2)), responses=("aa", "a", "aa"), source="book"),
        dataclasses.replace(ranked("a", (0, 1)), responses=("long one", "short")),
    ]
    scores = [[2.0, 0.0], [0.0, 1.0, 1.0], [2.0, 0.0]]  # right; right and equal; a tie

    found = report(rankings, scores, temperature=2.0, num_truncated=3)

    values = {name: figure["value"] for name, figure in found["figures"].items()}
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(-0.5)), math.log(2)]
    chances = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5)), 0.5]
    assert values == {
        "accuracy": pytest.approx(2.5 / 3),
        "accuracy_with_ties": pytest.approx(2 / 5),  # no threshold gets more: each tie won loses an order
        "kendall_tau": pytest.approx((1 + 1 / 2) / 2),  # 1 / sqrt(2 ordered * 2 scored apart)
        "top_1": pytest.approx((1 + 1 / 2) / 2),
        "log_loss": pytest.approx(sum(losses) / 3),
        "brier": pytest.approx(sum((1 - chance) ** 2 for chance in chances) / 3),
        "ece": pytest.approx((sum(chances) - 2.5) / -3),  # one bin of so few
    }
    counts = ("num_rankings", "num_pairs", "num_prompts", "num_tied_pairs", "num_truncated", "temperature")
    assert [found[name] for name in counts] == [3, 3, 2, 2, 3, 2.0]
    assert found["tie_threshold"] == 0.0
    sizes = {kind: [(part["name"], part["num_pairs"]) for part in parts] for kind, parts in found["slices"].items()}
    assert sizes == {
        "aspect": [("overall", 3)],
        "source": [("book", 2), ("not told", 1)],
        "annotator": [("not told", 2), ("ann", 1)],
        "num_responses": [("2", 1), ("3", 2)],
        "strength": [("strongly", 1), ("not told", 2)],
        "length_difference": [("25 to 50 %", 3)],
    }
    for part in found["slices"]["num_responses"]:
        assert part["ece_if_calibrated"] > 0
    two, three = found["slices"]["num_responses"]
    assert (two["kendall_tau"]["value"], three["kendall_tau"]["value"]) == (1, pytest.approx(1 / 2))
    assert (two["top_1"]["value"], three["top_1"]["value"]) == (1, pytest.approx(1 / 2))
    assert three["brier"]["value"] == pytest.approx(sum((1 - chance) ** 2 for chance in chances[1:]) / 2)
    assert "kendall_tau" not in found["slices"]["length_difference"][0]  # a list falls into several
    (whole,) = found["slices"]["aspect"]
    assert {name: whole[name] for name in found["figures"] if name in whole} == {
        name: figure for name, figure in found["figures"].items() if name != "accuracy_with_ties"
    }
    assert whole["ece_if_calibrated"] == found["ece_if_calibrated"]
    assert found["length"]["accuracy_shorter_preferred"]["value"] == 0.75
    assert found["length"]["accuracy_longer_preferred"]["value"] == 1.0
    assert found["length"]["longer_wins"]["value"] == pytest.approx(1 / 3)
    assert (found["ceiling"], found["comparison"]) == (None, None)


@pytest.mark.parametrize("told", [{"is_best_only": True}, {"bad": (1, 2, 3)}, {"all_bad": True}])
def test_what_nobody_sorted_is_no_tie(told):
    best = ranked("a", (0,), (1, 2, 3))
    scores = [[4.0, 1.0, 2.0, 3.0], [0.0, 1.0]]

    tied, untied = (report([one, ranked("b", (1,), (0,))], scores) for one in (best, dataclasses.replace(best, **told)))

    names = ("accuracy", "accuracy_with_ties", "kendall_tau")
    assert (tied["num_tied_pairs"], untied["num_tied_pairs"]) == (3, 0)
    assert [untied["figures"][name]["value"] for name in names] == [1.0, 1.0, 1.0]
    assert [tied["figures"][name]["value"] < 1 for name in names] == [False, True, True]
    assert tied["num_pairs"] == untied["num_pairs"] == 4


def test_every_figure_of_a_report_is_within_its_interval():
    rankings, qualities, _ = simulate(300, num_responses=4)
    other = qualities + np.random.default_rng(5).normal(size=qualities.shape)

    found = report(rankings, qualities.tolist(), other=OtherModel("other", other.tolist()))

    figures = [one for one in leaves(found) if one]
    assert len(figures) > 40
    for figure in figures:
        low, high = figure["interval"]
        assert low <= figure["value"] <= high


def leaves(part) -> list[dict]:
    """The figures in a report."""
    if isinstance(part, dict) and set(part) == {"value", "interval"}:
        return [part]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [figure for one in parts for figure in leaves(one)]


@pytest.mark.parametrize("rankings", [[], [ranked("a", (0, 1))], [ranked("a", (0,), num_responses=2)]])
def test_a_report_of_nothing_has_no_figures(rankings):
    found = report(rankings, [[1.0, 2.0]] * len(rankings), other=OtherModel("other", [[1.0, 2.0]] * len(rankings)))

    figures = {**found["figures"], **found["length"]}
    told = {name for name, figure in figures.items() if figure}
    assert told <= {"accuracy_with_ties"}
    assert (found["num_pairs"], found["reliability"], found["ceiling"], found["comparison"]) == (0, [], None, None)
    assert not any(found["slices"].values())
    assert headlines(found)["accuracy"] is None
    json.dumps(found, allow_nan=False)


def test_where_all_prompts_are_alike_intervals_are_no_points():
    rankings = [ranked(str(number), (0,), (1,)) for number in range(5)]
    scores = [[1.0, 0.0]] * 5

    found = report(rankings, scores, other=OtherModel("other", scores))

    low, high = found["figures"]["kendall_tau"]["interval"]
    assert (low < 0.2, high) == (True, 1.0)
    low, high = found["comparison"]["accuracy_gain"]["interval"]
    assert (low < -0.5, high > 0.5) == (True, True)
    assert found["figures"]["log_loss"]["interval"] is None


def test_one_prompt_has_figures_but_tells_nothing_about_others():
    found = report([ranked("a", (0,), (1,))], [[1.0, 0.0]])

    assert found["figures"]["accuracy"] == {"value": 1.0, "interval": [0.0, 1.0]}
    assert found["figures"]["log_loss"] == {"value": pytest.approx(math.log1p(math.exp(-1))), "interval": None}


def test_a_report_does_not_depend_on_the_order_of_rankings_or_responses():
    rankings, qualities, _ = simulate(40, num_responses=3)
    backwards = [
        dataclasses.replace(
            one,
            responses=one.responses[::-1],
            ranking=tuple((len(one.responses) - 1 - place,) for (place,) in one.ranking),
        )
        for one in reversed(rankings)
    ]

    found = report(rankings, qualities.tolist())
    again = report(backwards, qualities[::-1, ::-1].tolist())

    assert [one["value"] for one in leaves(again)] == pytest.approx([one["value"] for one in leaves(found)])


def test_adding_to_all_rewards_of_a_prompt_changes_nothing():
    rankings, qualities, _ = simulate(40, num_responses=3)

    moved = qualities + np.arange(40)[:, None]

    found, again = report(rankings, qualities.tolist()), report(rankings, moved.tolist())
    assert [one["value"] for one in leaves(again)] == pytest.approx([one["value"] for one in leaves(found)])


def test_inflated_rewards_are_calibrated_by_their_temperature_and_keep_their_ranks():
    rankings, qualities, _ = simulate(20_000)
    inflated = (2.5 * qualities).tolist()
    margins = [
        own[places[0]] - own[places[1]]
        for own, one in zip(inflated, rankings, strict=True)
        for places in one.ordered_places()
    ]
    temperature = fit_temperature(margins)

    before, after = report(rankings, inflated), report(rankings, inflated, temperature=temperature)

    assert temperature == pytest.approx(2.5, abs=0.1)
    assert before["figures"]["ece"]["value"] == pytest.approx(0.12, abs=0.02)
    assert after["figures"]["ece"]["value"] < 0.01
    assert before["ece_if_calibrated"] < 0.01
    for name in ("accuracy", "accuracy_with_ties", "kendall_tau", "top_1"):
        assert after["figures"][name] == before["figures"][name]


def test_each_ranking_may_have_its_heads_temperature():
    rankings, qualities, _ = simulate(60)
    stretched = qualities * np.where(np.arange(60) % 2, 3.0, 1.0)[:, None]

    found = report(rankings, stretched.tolist(), temperature=[3.0 if number % 2 else 1.0 for number in range(60)])

    expected = report(rankings, qualities.tolist())
    assert found["figures"]["log_loss"]["value"] == pytest.approx(expected["figures"]["log_loss"]["value"])
    assert (found["temperature"], expected["temperature"]) == (None, 1.0)


def test_a_model_that_only_likes_length_is_seen_to():
    rankings, _, lengths = simulate(2000)

    found = report(rankings, lengths.tolist())["length"]

    assert found["correlation"]["value"] == 1.0
    assert found["partial_correlation"]["value"] == pytest.approx(1.0)
    assert found["accuracy_shorter_preferred"]["value"] == 0.0
    assert found["accuracy_longer_preferred"]["value"] == 1.0
    assert found["longer_wins"]["value"] == pytest.approx(0.5, abs=0.04)


def test_a_model_that_does_not_look_at_length_is_not_blamed():
    rankings, qualities, _ = simulate(4000)

    found = report(rankings, qualities.tolist())["length"]

    assert found["correlation"]["value"] == pytest.approx(0, abs=0.05)
    assert found["partial_correlation"]["value"] == pytest.approx(0, abs=0.05)
    gap = found["accuracy_longer_preferred"]["value"] - found["accuracy_shorter_preferred"]["value"]
    assert gap == pytest.approx(0, abs=0.04)


def judged(prompt: str, texts: tuple[str, str], annotator: str | None) -> RankedResponses:
    """The first text is better."""
    return dataclasses.replace(ranked(prompt, (0,), (1,)), responses=texts, annotator=annotator)


def test_the_human_ceiling_is_how_annotators_agree_on_the_same_items():
    rankings = [
        judged("a", ("good", "bad"), "ann"),
        judged("a", ("good", "bad"), "bob"),
        judged("a", ("bad", "good"), "cid"),
        judged("b", ("good", "bad"), "ann"),
        judged("b", ("good", "bad"), None),
        judged("c", ("good", "bad"), "ann"),  # alone
        judged("d", ("good", "bad"), "ann"),
        judged("d", ("bad", "good"), "ann"),  # the same person again
    ]
    scores = [[1.0, 0.0] if one.responses[0] == "good" else [0.0, 1.0] for one in rankings]

    found = report(rankings, scores)["ceiling"]

    # a: ann and bob have the others split, cid is against both; one of three pairs agrees. b: all agree
    assert found["leave_one_out"]["value"] == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)
    assert found["agreement"]["value"] == pytest.approx((3 * 1 / 3 + 2 * 1) / 5)
    low, high = found["agreement"]["interval"]
    assert low < 0.6 < high
    assert found["low"] == pytest.approx(max(low, 0.5))
    assert found["high"] == pytest.approx(0.5 + math.sqrt((high - 0.5) / 2))
    assert (found["num_items"], found["accuracy"]["value"]) == (2, pytest.approx(4 / 5))


def test_who_chose_another_best_one_says_nothing_of_the_rest():
    rankings = [
        dataclasses.replace(
            ranked("Eggs?", (best,), tuple({0, 1, 2} - {best})),
            responses=("a", "b", "c"),
            annotator=annotator,
            is_best_only=True,
        )
        for annotator, best in (("ann", 0), ("bob", 0), ("cid", 1))
    ]

    found = report(rankings, [[2.0, 1.0, 0.0]] * 3)["ceiling"]

    # a and b: ann and bob have the others split, cid is against both; a and c: ann and bob agree; b and c: cid alone
    assert found["leave_one_out"]["value"] == pytest.approx((0.5 + 0.5 + 0 + 2) / 5)


def test_the_ceilings_bounds_hold_the_best_possible_accuracy():
    draw = np.random.default_rng(0)
    rankings, scores = [], []
    for number, chance in enumerate(draw.beta(0.5, 0.5, size=1500)):  # U-shaped: 0.818 at best, agreement 0.75
        for annotator in range(3):
            texts = ("one", "other") if draw.random() < chance else ("other", "one")
            rankings.append(judged(str(number), texts, str(annotator)))
            scores.append([chance - 0.5 if text == "one" else 0.5 - chance for text in texts])

    found = report(rankings, scores)

    assert found["ceiling"]["agreement"]["value"] == pytest.approx(0.75, abs=0.02)
    assert found["ceiling"]["low"] < 0.818 < found["ceiling"]["high"]
    assert found["figures"]["accuracy"]["value"] == pytest.approx(0.818, abs=0.02)
    assert found["ceiling"]["accuracy"] == found["figures"]["accuracy"]


def test_two_models_are_compared_on_the_same_pairs():
    rankings = [ranked(str(number), (0,), (1,)) for number in range(10)]
    first = [[1.0, 0.0]] * 8 + [[0.0, 1.0]] + [[0.0, 0.0]]
    second = [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 6 + [[1.0, 0.0]] + [[0.0, 1.0]]

    found = report(rankings, first, name="new", other=OtherModel("old", second))["comparison"]

    numbers = {name: found[name] for name in found if name.startswith(("num", "name", "mcnemar"))}
    assert numbers == {
        "name_first": "new",
        "name_second": "old",
        "num_both": 2,
        "num_only_first": 6,
        "num_only_second": 1,
        "num_neither": 1,
        "mcnemar_p": pytest.approx(2 * (1 + 7) / 2**7),
    }
    assert found["accuracy_first"]["value"] == 0.85
    assert found["accuracy_second"]["value"] == 0.3
    assert found["accuracy_gain"]["value"] == pytest.approx(0.55)
    loss = (
        report(rankings, second)["figures"]["log_loss"]["value"]
        - report(rankings, first)["figures"]["log_loss"]["value"]
    )
    assert found["log_loss_gain"]["value"] == pytest.approx(loss)


def test_comparing_the_other_way_round_turns_the_gains():
    rankings, qualities, _ = simulate(100)
    other = (qualities + np.random.default_rng(2).normal(size=qualities.shape)).tolist()
    qualities = qualities.tolist()

    one = report(rankings, qualities, other=OtherModel("b", other))["comparison"]
    turned = report(rankings, other, other=OtherModel("b", qualities))["comparison"]

    assert turned["mcnemar_p"] == one["mcnemar_p"]
    for name in ("accuracy_gain", "log_loss_gain"):
        low, high = one[name]["interval"]
        assert turned[name] == {
            "value": pytest.approx(-one[name]["value"]),
            "interval": pytest.approx([-high, -low]),
        }


def test_of_many_annotators_the_busiest_are_told():
    rankings = [
        dataclasses.replace(ranked(str(n), (0,), (1,)), annotator=f"a{n % 60 if n < 120 else 7}") for n in range(130)
    ]

    found = report(rankings, [[1.0, 0.0]] * 130)["slices"]["annotator"]

    assert (len(found), found[0]["name"], found[0]["num_pairs"]) == (51, "a7", 12)
    assert (found[50]["name"], found[50]["num_pairs"]) == ("10 others", 20)
    assert sum(part["num_pairs"] for part in found) == 130


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, 2.0, 3.0]], [[1.0, math.nan]], [[1.0, math.inf]], []])
def test_a_report_refuses_scores_that_are_none(scores):
    with pytest.raises(ValueError, match=r"inhomogeneous|not a finite number|shorter|shape"):
        report([ranked("a", (0,), (1,))], scores)


# The run


@pytest.fixture
def run_dir(tmp_path, reward_model_folder, rankings_path) -> RunDir:
    config = EvaluateConfig(preferences=str(rankings_path), reward_model=str(reward_model_folder), split="all")
    return RunDir.create(tmp_path / "run", config)


def read_scores(run_dir: RunDir, name: str = "scores.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run_dir.path / name).read_text().splitlines()]


def read_report(run_dir: RunDir) -> dict:
    return json.loads((run_dir.path / "report.json").read_text())


def test_an_evaluation_scores_every_ranking(run_dir, reward_model_folder, rankings_path):
    result = evaluate(run_dir.config(), run_dir, StopFlag())

    model = RewardModel.load(reward_model_folder)
    rankings = list(read_rankings(rankings_path))
    rows = read_scores(run_dir)
    assert [row["id"] for row in rows] == [one.id for one in rankings]
    assert [row["scores"] for row in rows] == [
        pytest.approx(model.score([(one.prompt, text) for text in one.responses]), abs=1e-5) for one in rankings
    ]
    nats = [[model.std * score for score in row["scores"]] for row in rows]
    expected = report(rankings, nats, temperature=model.temperature, name=str(reward_model_folder))
    told = {"num_missing": 0, "num_learned_prompts": 48}  # the fixture takes all splits, the training one too
    assert read_report(run_dir) == {**expected, **told}
    assert result == {**measure(rankings, nats), **headlines(expected), **told}
    assert [line["progress"] for line in run_dir.read_metrics()] == [1.0]


def test_an_evaluation_compares_two_reward_models(run_dir, reward_model_folder):
    config = dataclasses.replace(run_dir.config(), other_reward_model=str(reward_model_folder))

    result = evaluate(config, run_dir, StopFlag())

    assert read_scores(run_dir, "other_scores.jsonl") == read_scores(run_dir)
    found = read_report(run_dir)["comparison"]
    assert (found["name_first"], found["name_second"]) == (str(reward_model_folder),) * 2
    assert (found["num_only_first"], found["num_only_second"], found["mcnemar_p"]) == (0, 0, 1.0)
    assert (result["accuracy_gain"], result["mcnemar_p"]) == (0.0, 1.0)
    low, high = result["accuracy_gain_interval"]
    assert low == pytest.approx(-high)
    assert 0 < high < 0.2
    assert [line["progress"] for line in run_dir.read_metrics()] == [0.5, 1.0]


def test_a_benchmark_without_splits_is_taken_whole(run_dir, tmp_path):
    rows = [
        {"prompt": "What is good?", "chosen": "eggs eggs", "rejected": "salt salt salt", "subset": "chat", "id": 1},
        {"prompt": "What is bad?", "chosen": "eggs salt", "rejected": "salt salt", "subset": "safety", "id": 2},
    ]
    path = tmp_path / "rewardbench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(run_dir.config(), preferences=str(path), split="test")

    result = evaluate(config, run_dir, StopFlag())

    assert result["num_pairs"] == 2
    slices = read_report(run_dir)["slices"]
    assert [(part["name"], part["num_pairs"]) for part in slices["source"]] == [("chat", 1), ("safety", 1)]


def test_an_evaluation_of_a_split_of_one_aspect(run_dir):
    config = dataclasses.replace(run_dir.config(), split="validation", max_length=16)

    result = evaluate(config, run_dir, StopFlag())

    assert len(read_scores(run_dir)) == 16
    assert result["num_truncated"] > 0
    with pytest.raises(ConfigError, match=r"^split: the preference set has no rankings of aspect style in validation$"):
        evaluate(dataclasses.replace(config, aspect="style"), run_dir, StopFlag())


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [("overall, style", {"overall": 1, "style": 2}), ("all", {"overall": 1, "style": 2, "fact": 1})],
)
def test_several_aspects_are_told_apart(run_dir, tmp_path, aspect, expected):
    aspects = ["overall", "style", "style", "fact"]
    rows = [
        {"prompt": str(number), "chosen": "eggs", "rejected": "salt", "aspect": one, "id": str(number)}
        for number, one in enumerate(aspects)
    ]
    path = tmp_path / "aspects.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    evaluate(dataclasses.replace(run_dir.config(), preferences=str(path), aspect=aspect), run_dir, StopFlag())

    found = read_report(run_dir)
    assert {part["name"]: part["num_pairs"] for part in found["slices"]["aspect"]} == expected
    assert found["temperature"] is not None


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


def test_what_could_not_be_scored_is_left_out_with_its_ranking_where_too_little_is_left():
    rankings = [ranked("a", (0,), (1,), (2,)), ranked("b", (0,), (1,)), ranked("c", (0,), (1,))]
    first = [[3.0, math.nan, 1.0], [1.0, math.nan], [2.0, 1.0]]
    second = [[1.0, 2.0, 3.0], [1.0, 2.0], [math.nan, math.nan]]

    numbers, kept, scores, num_missing = leave_out_missing(rankings, [first, second])

    assert numbers == [0]
    assert kept == [dataclasses.replace(rankings[0], responses=("text", "text"), ranking=((0,), (1,)))]
    assert scores == [[[3.0, 1.0]], [[1.0, 3.0]]]
    assert num_missing == 1 + 1 + 2
