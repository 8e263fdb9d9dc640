import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.training.alignment.material import StopAt, write_rankings
from tests.training.reports import gains, make_combination, names_of
from training.alignment.combiner import Combiner, Recipe
from training.alignment.combining import _rankings, combine
from training.alignment.config import COMBINING, CombineConfig, ConfigError, EvaluateConfig
from training.alignment.ensemble import Standardisation
from training.alignment.evaluation import evaluate
from training.alignment.member_config import FormatRule, LengthRule, RepetitionRule, write_member
from training.alignment.preferences import PromptedResponses, read_rankings
from training.alignment.provenance import prompt_digest, trained_on
from training.alignment.reward import load_reward
from training.alignment.reward_model import RewardModel
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

NUM_VALIDATION, NUM_TEST = 60, 60


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """On prompts of their own: dish numbers that the reward model of `reward_model_folder` was not trained on."""
    path = tmp_path_factory.mktemp("judged") / "preferences.jsonl"
    write_rankings(path, num_train=0, num_validation=NUM_VALIDATION, num_test=NUM_TEST, seed=1)
    path.write_text(path.read_text(encoding="utf-8").replace("into dish", "into bowl"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def members(tmp_path_factory, reward_model_folder) -> list[str]:
    """A trained model, a rule that finds the eggs at the beginning, one about nothing, and one that is constant."""
    root = tmp_path_factory.mktemp("members")
    return [
        str(reward_model_folder),
        str(write_member(root / "begins", FormatRule(rule="pattern", pattern="^eggs"))),
        str(write_member(root / "repeats", RepetitionRule(size=1))),
        str(write_member(root / "long", LengthRule(target=1000, tolerance=500))),
    ]


@pytest.fixture
def config(preferences, members) -> CombineConfig:
    return CombineConfig(preferences=str(preferences), members=", ".join(members), method="stacking")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, preferences, members, reward_model_folder) -> tuple[RunDir, dict]:
    config = CombineConfig(
        preferences=str(preferences), members=", ".join(members), incumbent=str(reward_model_folder), method="stacking"
    )
    run_dir = RunDir.create(tmp_path_factory.mktemp("combined"), config)
    result = combine(config, run_dir, StopFlag())
    run_dir.write_result(result)
    return run_dir, result


def read_report(run_dir: RunDir) -> dict:
    return json.loads((run_dir.path / "report.json").read_text(encoding="utf-8"))


def test_all_ways_of_combining_are_measured_on_the_same_pairs(finished, members):
    run_dir, result = finished
    found = read_report(run_dir)

    assert [one["method"] for one in found["combiners"]] == list(COMBINING)
    assert [one["path"] for one in found["members"]] == members
    assert [one["kind"] for one in found["members"]] == ["reward_model", "format", "repetition", "length"]
    assert {one["against_mean"]["num_pairs"] for one in found["combiners"]} == {found["num_test"]["pairs"]}
    chosen = next(one for one in found["combiners"] if one["method"] == "stacking")
    assert (result["accuracy"], result["log_loss"]) == (chosen["accuracy"]["value"], chosen["log_loss"]["value"])
    assert result["num_pairs"] == found["num_test"]["pairs"]
    assert found["cross_fitted"] == 0
    assert [len(row) for row in found["correlation"]] == [4] * 4
    assert found["disagreements"][0]["spread"] >= found["disagreements"][-1]["spread"] > 0


def test_the_report_that_pages_are_tested_with_looks_like_one(finished):
    found = read_report(finished[0])
    invented = make_combination(against_incumbent={"name": "", **gains(0.0, 0.0)})
    for one in invented["disagreements"]:
        one["prompt"] = [{"role": "user", "content": one["prompt"]}]
    parts = [name for name in found if name != "gate"]
    found["combiners"] = found["combiners"][
        1:
    ]  # the first is the mean, whose gain in log-loss over itself is 0 throughout

    assert {name: names_of(found[name]) for name in parts} == {name: names_of(invented[name]) for name in parts}
    assert found.keys() == invented.keys()


def test_a_constant_member_is_named_and_left_out(finished, members):
    found = read_report(finished[0])

    assert [one["problem"] for one in found["members"]] == [None, None, found["members"][2]["problem"], "constant"]
    stacking = next(one for one in found["combiners"] if one["method"] == "stacking")
    assert stacking["weights"][members[3]] == 0.0
    assert all(math.isfinite(one["log_loss"]["value"]) for one in found["combiners"])


def test_the_incumbent_is_compared_on_the_same_pairs(finished, reward_model_folder):
    against = read_report(finished[0])["against_incumbent"]

    assert against["name"] == str(reward_model_folder)
    assert against["num_pairs"] == read_report(finished[0])["num_test"]["pairs"]
    low, high = against["log_loss_gain"]["interval"]
    assert low <= against["log_loss_gain"]["value"] <= high


@pytest.mark.parametrize(("num_folds", "splits"), [(0, ["validation", "test"]), (5, ["test"])])
def test_what_the_incumbent_was_fitted_on_is_fitted_on_again_and_not_measured_on(
    finished, config, preferences, num_folds, splits
):
    """A combination that is in use was fitted on the validation split; the next one is held against it on the other."""
    model = str(finished[0].model)
    decided = Counter(ranked.split for ranked in read_rankings(preferences) if ranked.is_decided)
    members = config.members.split(", ")[1:]

    kept, num_left_out, can_compare = _rankings(
        dataclasses.replace(config, num_folds=num_folds), finished[0], members, model
    )

    assert Counter(ranked.split for ranked in kept) == {split: decided[split] for split in splits}
    assert num_left_out == decided.total() - len(kept)
    assert can_compare
    with pytest.raises(ConfigError, match=f"left in the validation split; {decided['validation']} are on prompts"):
        _rankings(config, finished[0], [*members, model], "")


def test_an_incumbent_that_learned_from_all_of_it_is_not_compared_with(finished, config, preferences, tmp_path):
    crosswise = RunDir.create(tmp_path / "crosswise", dataclasses.replace(config, num_folds=2))
    crosswise.model.mkdir()
    decided = sum(ranked.is_decided for ranked in read_rankings(preferences))

    kept, num_left_out, can_compare = _rankings(config, finished[0], config.members.split(", "), str(crosswise.model))

    assert (len(kept), num_left_out, can_compare) == (decided, 0, False)


def test_what_is_saved_scores_as_what_was_measured_and_is_calibrated(finished, preferences):
    run_dir, _ = finished
    reward = load_reward(run_dir.model)
    assert isinstance(reward, Combiner)
    validation = list(read_rankings(preferences, split="validation"))
    prompts = [PromptedResponses(one.prompt, one.responses) for one in validation]

    together = reward.score_prompts(prompts)
    alone = [reward.score_prompts([one])[0] for one in prompts]

    assert [one.scores for one in together] == [pytest.approx(one.scores, abs=1e-5) for one in alone]
    distinct = {
        (one.prompt[0]["content"], text): score
        for one, own in zip(prompts, together, strict=True)
        for text, score in zip(one.responses, own.scores, strict=True)
    }
    assert np.mean(list(distinct.values())) == pytest.approx(0, abs=1e-6)
    assert np.std(list(distinct.values())) == pytest.approx(1, abs=1e-6)
    assert all(spread >= 0 for one in together for spread in one.spread)
    assert reward.log_odds() > 0


def test_a_combiner_is_evaluated_like_any_reward(finished, preferences, tmp_path):
    run_dir, result = finished
    config = EvaluateConfig(preferences=str(preferences), reward_model=str(run_dir.model), split="test")

    found = evaluate(config, RunDir.create(tmp_path / "evaluation", config), StopFlag())

    assert found["accuracy"] == pytest.approx(result["accuracy"])
    assert found["log_loss"] == pytest.approx(result["log_loss"], abs=1e-5)


def test_the_same_seed_gives_the_same_combiner(finished, tmp_path):
    run_dir, result = finished
    again = RunDir.create(tmp_path / "again", run_dir.config())

    found = combine(again.config(), again, StopFlag())

    assert {**found, "model": None} == {**result, "model": None}
    assert load_reward(again.model).digest == load_reward(run_dir.model).digest


def test_a_stopped_run_computes_no_score_twice(config, tmp_path, monkeypatch):
    run_dir = RunDir.create(tmp_path / "stopped", config)
    with pytest.raises(Interrupted):
        combine(config, run_dir, StopAt(2))
    scored: list[int] = []
    rewards = RewardModel.rewards

    def counting(model, encoded):
        scored.append(len(encoded))
        return rewards(model, encoded)

    monkeypatch.setattr(RewardModel, "rewards", counting)
    combine(config, run_dir, StopFlag())

    assert scored == []  # the model came first and was through


def test_folds_measure_every_ranking_by_combiners_that_did_not_see_its_prompt(config, tmp_path):
    crosswise = dataclasses.replace(config, num_folds=3, method="mean")
    run_dir = RunDir.create(tmp_path / "crosswise", crosswise)

    combine(crosswise, run_dir, StopFlag())

    found = read_report(run_dir)
    assert found["cross_fitted"] == 3
    assert found["num_test"]["rankings"] == found["num_fit"]["rankings"] > NUM_TEST


def test_prompts_that_a_member_was_trained_on_are_left_out(config, tmp_path, reward_model_run, preferences):
    seen = [
        one
        for one in read_rankings(reward_model_run.resolve(reward_model_run.config().preferences))
        if one.split == "train"
    ]
    lines = preferences.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    leaked = {**rows[0], "prompt": [dict(one) for one in seen[0].prompt]}
    path = tmp_path / "leaked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [leaked, *rows]), encoding="utf-8")
    with_leak = dataclasses.replace(config, preferences=str(path), method="mean")

    result = combine(with_leak, RunDir.create(tmp_path / "run", with_leak), StopFlag())

    assert result["num_left_out"] == 1
    assert prompt_digest(seen[0]) in trained_on(reward_model_run.model)


def test_what_a_combiner_was_fitted_on_is_known_of_it(finished, preferences, reward_model_run):
    run_dir, _ = finished
    fitted = {prompt_digest(one) for one in read_rankings(preferences, split="validation")}

    assert trained_on(run_dir.model) == trained_on(reward_model_run.model) | fitted


def test_a_member_that_has_changed_since_is_noticed(finished, tmp_path):
    run_dir, _ = finished
    told = json.loads((run_dir.model / "combiner.json").read_text(encoding="utf-8"))
    told["members"][1]["digest"] = "0" * 64
    folder = tmp_path / "changed"
    folder.mkdir()
    told["members"] = [{**one, "path": str((run_dir.model / one["path"]).resolve())} for one in told["members"]]
    (folder / "combiner.json").write_text(json.dumps(told), encoding="utf-8")

    with pytest.raises(ConfigError, match="has changed since it was fitted"):
        load_reward(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": "only-one"}, r"^members: name two or more different rewards$"),
        ({"aspect": "style"}, r"^preferences: no decided judgment of aspect style is left in the test and validation"),
    ],
)
def test_what_cannot_be_combined_is_said(config, tmp_path, changes, message):
    wrong = dataclasses.replace(config, **changes)
    with pytest.raises(ConfigError, match=message):
        combine(wrong, RunDir.create(tmp_path / "run", wrong), StopFlag())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "weighted_mean", "weights": "1, 2"}, "weights: 2 numbers for 4 members"),
        ({"method": "weighted_mean", "weights": "1, 2, x, 3"}, "weights: '1, 2, x, 3' are not numbers"),
        ({"method": "weighted_mean", "weights": "0, 0, 0, 0"}, "weights: are not all finite, or are all zero"),
        ({"method": "chebyshev", "weights": "1, 2, 3, 0"}, "weights: of chebyshev are above zero"),
        ({"method": "constrained", "constraint": 5}, "constraint: 5 is none of the 4 members"),
        ({"num_folds": 1}, "num_folds: 1 leaves nothing to fit on"),
    ],
)
def test_what_is_set_by_hand_must_fit_the_members(config, changes, message):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(config, **changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "weighted_mean", "weights": "2, 1, -0.5, 0"},
        {"method": "chebyshev", "weights": "2, 1, 1, 1"},
        {"method": "constrained", "constraint": 2, "floor": 0.5},
        {"method": "rank_aggregate"},
        {"method": "fusion"},
    ],
)
def test_each_way_of_combining_is_loaded_as_it_was_saved(config, tmp_path, preferences, changes):
    chosen = dataclasses.replace(config, **changes)
    run_dir = RunDir.create(tmp_path / "run", chosen)

    result = combine(chosen, run_dir, StopFlag())

    evaluation = EvaluateConfig(preferences=str(preferences), reward_model=str(run_dir.model), split="test")
    found = evaluate(evaluation, RunDir.create(tmp_path / "evaluation", evaluation), StopFlag())
    assert found["accuracy"] == pytest.approx(result["accuracy"])
    assert found["log_loss"] == pytest.approx(result["log_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("method", "is_changed"),
    [("mean", False), ("worst_case", True), ("uncertainty_weighted", True), ("median", True)],
)
def test_a_combiner_standardises_over_prompts_so_what_a_member_adds_within_one_counts_but_for_the_mean(
    method, is_changed
):
    draw = np.random.default_rng(8)
    scores = draw.integers(-2000, 2000, size=(100, 4, 4)) / 1024
    shifted = scores + draw.integers(-8, 9, size=(100, 1, 4))
    units = Standardisation(means=np.array([3.0, 0.0, -1.0, 0.5]), stds=np.array([0.5, 1.0, 2.0, 4.0]))
    recipe = Recipe(method, units, np.ones(4, dtype=bool), {"penalty": 0.5}, mean=0.25, std=2.0)

    found, others = (
        [np.argsort(-recipe.combine(own), kind="stable").tolist() for own in values] for values in (scores, shifted)
    )

    assert (others != found) == is_changed
    if is_changed:
        assert np.mean([one != other for one, other in zip(others, found, strict=True)]) > 0.3


def test_what_cannot_be_fitted_costs_the_others_nothing(config, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("it did not converge")

    monkeypatch.setattr("training.alignment.combiner.fit_fusion", fails)
    run_dir = RunDir.create(tmp_path / "run", config)

    combine(config, run_dir, StopFlag())

    by_method = {one["method"]: one for one in read_report(run_dir)["combiners"]}
    assert (by_method["fusion"]["accuracy"], by_method["fusion"]["weights"]) == (None, None)
    assert by_method["fusion"]["warning"] == "Not fitted: it did not converge"
    assert by_method["stacking"]["accuracy"] is not None
    with pytest.raises(ConfigError, match=r"^method: fusion cannot be fitted to these judgments: it did not converge$"):
        combine(dataclasses.replace(config, method="fusion"), run_dir, StopFlag())
