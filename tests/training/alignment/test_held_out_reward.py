import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.alignment.material import StopAt, write_rankings
from training.alignment.combiner import Combiner, Recipe
from training.alignment.config import (
    AverageWeightsConfig,
    ComparePoliciesConfig,
    ConfigError,
    DpoConfig,
    RewardModelConfig,
    RlhfConfig,
)
from training.alignment.ensemble import Standardisation
from training.alignment.held_out_reward import HeldOut, divided, held_out_reward, part_of, parts
from training.alignment.member_config import ImplicitRewardMember, RewardModelMember, write_member
from training.alignment.preferences import PromptedResponses, read_rankings
from training.alignment.reward import Scored, load_reward
from training.alignment.reward_model import RewardModel, join_processes
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.sft import Stage

STAGE = Stage("held-out reward", 0.2, 0.6)
ASKED = PromptedResponses([{"role": "user", "content": "What do I put into dish 3?"}], ("eggs eggs", "salt salt"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def relabelled(path: Path, new: Path, splits: dict[str, str]) -> Path:
    rows = read(path)
    new.write_text("".join(json.dumps(row | {"split": splits.get(row["split"], row["split"])}) + "\n" for row in rows))
    return new


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """32 training prompts, 20 for the guard, 20 for the test, two rankings each."""
    folder = tmp_path_factory.mktemp("preferences")
    path = write_rankings(folder / "drawn.jsonl", num_train=64, num_validation=40, num_test=40)
    return relabelled(path, folder / "preferences.jsonl", {"validation": "guard"})


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> Path:
    """A rule, which has learned from nobody."""
    return member(tmp_path_factory.mktemp("proxy"), target=30)


def member(folder: Path, target: int) -> Path:
    """A rule that takes off for more words than so many."""
    folder.mkdir(exist_ok=True)
    (folder / "member.json").write_text(json.dumps({"kind": "length", "target": target, "tolerance": 0}))
    return folder


@pytest.fixture(scope="module")
def accelerator():
    return join_processes()


@pytest.fixture
def told_to_run(preferences, proxy, llama_folder):
    return {
        "preferences": str(preferences),
        "reward_model": str(proxy),
        "policy": str(llama_folder),
        "num_guards": 2,
        "max_length": 64,
    }


@pytest.fixture
def prepare(tmp_path, told_to_run):
    def make(**values) -> tuple[RlhfConfig, RunDir]:
        config = RlhfConfig(**told_to_run | values)
        return config, RunDir.create(tmp_path / "run", config)

    return make


@pytest.fixture(scope="module")
def trained(tmp_path_factory, preferences, proxy, llama_folder, accelerator) -> tuple[RunDir, HeldOut]:
    config = RlhfConfig(
        preferences=str(preferences),
        reward_model=str(proxy),
        policy=str(llama_folder),
        num_guards=2,
        max_length=64,
        seed=5,
    )
    run_dir = RunDir.create(tmp_path_factory.mktemp("run"), config)
    return run_dir, held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)


def test_trains_on_the_votes_set_aside_and_on_no_others(trained, preferences):
    run_dir, held_out = trained

    rows = read(run_dir.path / "held_out" / "preferences.jsonl")
    given = [row for row in read(preferences) if row["split"] == "guard"]
    assert [row | {"split": "guard"} for row in rows if row["split"] != "test"] == given
    assert [row for row in rows if row["split"] == "test"] == [
        row for row in read(preferences) if row["split"] == "test"
    ]
    splits = {row["prompt"][0]["content"]: row["split"] for row in rows if row["split"] != "test"}
    assert sorted(splits.values()) == ["train"] * 17 + ["validation"] * 3
    configs = [RunDir(run_dir.path / "held_out" / name).config() for name in ("1", "2")]
    assert all(isinstance(config, RewardModelConfig) for config in configs)
    assert [config.seed for config in configs] == [6, 7]
    assert held_out.votes == "guard"
    assert held_out.num_rankings == sum(len(row["ranking"]) > 1 for row in given)


def test_grades_by_the_mean_of_its_members_and_tells_how_they_deviate(trained):
    run_dir, held_out = trained

    (scored,) = held_out.score_prompts([ASKED])

    one, other = (
        RewardModel.load(run_dir.path / "held_out" / name / "model").score_prompts([ASKED])[0].scores
        for name in ("1", "2")
    )
    pairs = list(zip(one, other, strict=True))
    assert scored == Scored(
        [pytest.approx((a + b) / 2) for a, b in pairs], 0, [pytest.approx(abs(a - b) / 2) for a, b in pairs]
    )


def test_tells_its_accuracy_and_the_usual_spread(trained, preferences):
    run_dir, held_out = trained
    told = json.loads((run_dir.path / "held_out" / "held_out.json").read_text(encoding="utf-8"))

    rows = list(read_rankings(preferences, "train"))
    scored = held_out.score_prompts([PromptedResponses(row.prompt, row.responses) for row in rows[1::2]])
    spreads = [value for one in scored for value in one.spread]
    assert held_out.reference_spread == pytest.approx(sum(spreads) / len(spreads))
    assert 1 < held_out.spread_limit < 10
    assert told == {
        "votes": "guard",
        "num_rankings": held_out.num_rankings,
        "accuracy": held_out.accuracy,
        "reference_spread": held_out.reference_spread,
        "spread_limit": held_out.spread_limit,
        "note": "",
    }
    low, high = held_out.accuracy["interval"]
    assert 0 <= low <= held_out.accuracy["value"] <= high <= 1
    assert held_out.told() == {
        "held_out_votes": "guard",
        "held_out_num_rankings": held_out.num_rankings,
        "held_out_accuracy": held_out.accuracy["value"],
        "held_out_accuracy_interval": [low, high],
    }


def test_progress_shows_in_the_outer_run(trained):
    run_dir, _ = trained

    progress = [line["progress"] for line in run_dir.read_metrics()]
    assert {line["phase"] for line in run_dir.read_metrics()} == {"held-out reward"}
    assert progress == sorted(progress)
    assert 0.2 < progress[0] < 0.25
    assert 0.55 < progress[-1] <= 0.6


def test_what_is_trained_is_not_trained_again(trained, accelerator):
    run_dir, held_out = trained
    before = run_dir.metrics.read_bytes()

    again = held_out_reward(run_dir.config(), run_dir, accelerator, StopFlag(), STAGE)

    assert run_dir.metrics.read_bytes() == before
    assert again.told() == held_out.told()
    assert again.spread_limit == held_out.spread_limit
    assert again.score_prompts([ASKED]) == held_out.score_prompts([ASKED])


def test_stopped_and_started_again_it_ends_the_same(prepare, trained, accelerator):
    config, run_dir = prepare(seed=5)

    with pytest.raises(Interrupted):
        held_out_reward(config, run_dir, accelerator, StopAt(3), STAGE)
    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.score_prompts([ASKED]) == trained[1].score_prompts([ASKED])


def untrained(path: Path, **values) -> RunDir:
    """The run of a reward model that is still to be trained."""
    run_dir = RunDir.create(path, RewardModelConfig(**values))
    run_dir.model.mkdir()
    return run_dir


def test_trains_as_the_optimised_reward_model_was_trained(prepare, llama_folder, tmp_path, accelerator, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "training.alignment.held_out_reward.train_reward_model",
        lambda config, run_dir, stop: seen.append(config) or (_ for _ in ()).throw(Interrupted("seen")),
    )
    (tmp_path / "backbone").symlink_to(llama_folder)
    proxy = untrained(tmp_path / "proxy", backbone="../backbone", num_epochs=7.5, learning_rate=3e-3, seed=10)
    config, run_dir = prepare(reward_model=str(proxy.model), seed=3, save_minutes=2.0)

    with pytest.raises(Interrupted):
        held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert seen == [
        RewardModelConfig(
            preferences="../preferences.jsonl",
            backbone=str(llama_folder.resolve()),
            num_epochs=7.5,
            learning_rate=3e-3,
            seed=14,
            save_minutes=2.0,
        )
    ]


def test_notes_that_the_optimised_reward_knows_the_prompts(prepare, preferences, tmp_path, accelerator, llama_folder):
    path = relabelled(preferences, tmp_path / "all.jsonl", {"guard": "train"})
    proxy = untrained(tmp_path / "proxy", preferences=str(path), backbone=str(llama_folder), num_epochs=0.1)
    config, run_dir = prepare(reward_model=str(proxy.model), num_guards=1)

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.note == (
        "The optimised reward has learned from 20 of the prompts whose judgments the held-out reward has learned "
        "from: they may share errors."
    )
    assert (held_out.reference_spread, held_out.told()["held_out_note"]) == (None, held_out.note)


def test_older_set_without_a_guard_split_serves_by_its_validation_split(
    prepare, preferences, tmp_path, accelerator, told_to_run
):
    path = relabelled(preferences, tmp_path / "old.jsonl", {"guard": "validation", "test": "train"})
    config, run_dir = prepare(preferences=str(path), num_guards=1)

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.votes == "validation"
    rows = read(run_dir.path / "held_out" / "preferences.jsonl")
    assert len({row["prompt"][0]["content"] for row in rows if row["split"] == "test"}) == 3


def test_too_few_votes_are_refused_in_words(prepare, tmp_path, accelerator):
    path = write_rankings(tmp_path / "few.jsonl", num_train=40, num_validation=8, num_test=8)
    config, run_dir = prepare(preferences=str(path))

    with pytest.raises(ConfigError, match=r"held_out_reward_model: none is given, and [5-8] judgments of overall on 4"):
        held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)


def test_dpo_learns_of_the_aspect_that_it_optimises(tmp_path, told_to_run, accelerator):
    del told_to_run["reward_model"]
    config = DpoConfig(**told_to_run, aspect="style")

    with pytest.raises(ConfigError, match="0 judgments of style on 0 prompts"):
        held_out_reward(config, RunDir.create(tmp_path, config), accelerator, StopFlag(), STAGE)


def test_given_reward_is_taken_as_it_is(prepare, tmp_path, accelerator):
    config, run_dir = prepare(held_out_reward_model=str(member(tmp_path / "given", target=9)))

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.score_prompts([ASKED]) == [Scored([0.0, 0.0])]
    assert held_out.told() == {
        "held_out_votes": "given",
        "held_out_num_rankings": None,
        "held_out_accuracy": None,
        "held_out_accuracy_interval": None,
    }
    assert (held_out.reference_spread, held_out.spread_limit) == (None, float("inf"))


def test_given_reward_of_a_run_comes_with_the_accuracy_that_it_found(prepare, trained, accelerator):
    run_dir = RunDir(trained[0].path / "held_out" / "1")
    config, outer = prepare(held_out_reward_model=str(run_dir.model))

    held_out = held_out_reward(config, outer, accelerator, StopFlag(), STAGE)

    found = run_dir.read_result()
    assert held_out.accuracy == {"value": found["accuracy"], "interval": found["interval"]}


@pytest.fixture
def combination(tmp_path) -> tuple[Path, list[Path]]:
    """Two rules as one reward, and the two."""
    rules = [member(tmp_path / name, target=target) for name, target in (("one", 1), ("two", 8))]
    recipe = Recipe("mean", Standardisation(np.zeros(2), np.ones(2)), np.array([True, True]))
    Combiner(recipe, tuple(map(load_reward, rules)), tuple(map(str, rules))).save(tmp_path / "combined")
    return tmp_path / "combined", rules


def test_given_combination_has_the_spread_of_its_members(prepare, combination, accelerator):
    config, run_dir = prepare(held_out_reward_model=str(combination[0]))

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    # two words and four are beyond the target of the one by all that it takes off, and not beyond that of the other
    assert held_out.score_prompts([ASKED]) == [Scored([-0.5, -0.5], 0, [0.5, 0.5])]
    assert (held_out.votes, held_out.reference_spread, held_out.spread_limit) == ("given", 0.5, 1.0)


@pytest.mark.parametrize("is_whole_optimised", [True, False])
def test_reward_that_shares_a_part_with_the_optimised_one_is_refused(
    prepare, combination, accelerator, is_whole_optimised
):
    whole, (part, _) = combination
    pair = (whole, part) if is_whole_optimised else (part, whole)
    config, run_dir = prepare(reward_model=str(pair[0]), held_out_reward_model=str(pair[1]))

    with pytest.raises(ConfigError, match="held_out_reward_model: is the one that is optimised, or a part of it"):
        held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)


def test_given_reward_that_is_optimised_is_refused(prepare, proxy, tmp_path, accelerator):
    (tmp_path / "link").symlink_to(proxy)
    config, run_dir = prepare(held_out_reward_model=str(tmp_path / "link"))

    with pytest.raises(ConfigError, match="held_out_reward_model: is the one that is optimised, or a part of it"):
        held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)
    assert parts(run_dir, str(tmp_path / "link")) == {str(proxy.resolve())}


@pytest.mark.parametrize("is_renamed_optimised", [True, False])
@pytest.mark.parametrize("name", ["member", "average", "combination of a member", "implicit"])
def test_reward_passes_as_held_out_under_no_other_name(prepare, tmp_path, accelerator, name, is_renamed_optimised):
    model = untrained(tmp_path / "run").model
    renamed = tmp_path / "renamed"
    if name == "average":
        config = AverageWeightsConfig(models=f"{model}, other")
        renamed = RunDir.create(tmp_path / "averaged", config).model
        renamed.mkdir()
    elif name == "implicit":
        write_member(renamed, ImplicitRewardMember(policy="../run/model", reference_policy="base", beta=0.5))
        model = write_member(tmp_path / "own", ImplicitRewardMember(policy=str(model), reference_policy="base"))
    else:
        write_member(renamed, RewardModelMember(model="../run/model"))
    if name == "combination of a member":
        rules = [renamed, member(tmp_path / "rule", target=3)]
        renamed = tmp_path / "combined"
        renamed.mkdir()
        members = [{"path": f"../{rule.name}"} for rule in rules]
        told = {"kind": "combiner", "members": members, "is_used": [True, True], "files": {}}
        (renamed / "combiner.json").write_text(json.dumps(told))
    one, other = (renamed, model) if is_renamed_optimised else (model, renamed)
    config, run_dir = prepare(reward_model=str(one), held_out_reward_model=str(other))

    with pytest.raises(ConfigError, match="held_out_reward_model: is the one that is optimised, or a part of it"):
        held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)


def test_member_that_names_itself_has_one_part(tmp_path):
    write_member(tmp_path / "own", RewardModelMember(model="."))

    assert parts(RunDir(tmp_path), "own") == {str((tmp_path / "own").resolve())}


@pytest.mark.parametrize("is_comparison", [False, True])
def test_given_reward_that_learned_from_the_votes_of_dpo_is_noted(
    preferences, trained, tmp_path, accelerator, is_comparison
):
    path = relabelled(preferences, tmp_path / "all.jsonl", {"guard": "train"})
    given = trained[0].path / "held_out" / "1" / "model"
    config = DpoConfig(preferences=str(path), policy="base", held_out_reward_model=str(given))
    run_dir = RunDir.create(tmp_path / "dpo", config)
    if is_comparison:
        config = ComparePoliciesConfig(
            preferences=str(preferences),
            policies=f"base, {run_dir.model}",
            held_out_reward_model=str(given),
        )
        run_dir = RunDir.create(tmp_path / "comparison", config)

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.note == (
        "The held-out reward has learned from judgments on 17 of the prompts that the policy has learned from: it may "
        "share its errors."
    )


def test_given_combination_is_not_measured_where_it_may_have_learned(prepare, preferences, combination, accelerator):
    found = relabelled(preferences, preferences.parent / "untested.jsonl", {"test": "train"})
    config, run_dir = prepare(preferences=str(found), held_out_reward_model=str(combination[0]))

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert (held_out.reference_spread, held_out.spread_limit) == (None, float("inf"))


def test_given_reward_that_learned_from_the_same_votes_is_noted(prepare, trained, preferences, tmp_path, accelerator):
    path = relabelled(preferences, tmp_path / "all.jsonl", {"guard": "train"})
    proxy = untrained(tmp_path / "proxy", preferences=str(path), seed=1)
    config, run_dir = prepare(
        reward_model=str(proxy.model), held_out_reward_model=str(trained[0].path / "held_out" / "1" / "model")
    )

    held_out = held_out_reward(config, run_dir, accelerator, StopFlag(), STAGE)

    assert held_out.note == (
        "The held-out reward has learned from judgments on 17 of the prompts that the optimised reward has learned "
        "from: it may share its errors."
    )


def test_prompts_are_divided_by_hashing():
    found = divided([str(number % 10) for number in range(40)], seed=0)

    assert sorted(found.values()) == ["test"] * 2 + ["train"] * 6 + ["validation"] * 2
    assert divided([str(number) for number in reversed(range(10))], seed=0) == found
    assert sorted(divided(["a", "b", "c"], 0).values()) == ["test", "train", "validation"]
    assert sorted(divided(["a", "b", "c"], 0, has_test=True).values()) == ["train", "train", "validation"]


def test_parts_of_a_stage_follow_each_other():
    assert [part_of(Stage("one", 0.2, 0.6), number, 4) for number in (0, 3)] == [
        Stage("one", 0.2, pytest.approx(0.3)),
        Stage("one", pytest.approx(0.5), pytest.approx(0.6)),
    ]
