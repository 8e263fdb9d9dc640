import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from training.alignment.config import ConfigError, RewardModelConfig
from training.alignment.member_config import LengthRule, RewardModelMember, write_member
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Reward, load_reward, score_cache, told_by
from training.alignment.reward_model import RewardModel
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import RunDir, StopFlag
from training.alignment.score_cache import ScoreCache

PROMPT = ({"role": "user", "content": "What do I put into dish 1?"},)
PROMPTS = [PromptedResponses(PROMPT, ("eggs eggs", "salt", "")), PromptedResponses(PROMPT, ("salt salt eggs",))]


@pytest.fixture(scope="module")
def two_headed(tmp_path_factory, llama_folder, rankings_path) -> RunDir:
    """A model that judges eggs, and the lack of them, by a head each."""
    rows = [json.loads(line) for line in rankings_path.read_text(encoding="utf-8").splitlines()]
    turned = [{**row, "aspect": "salty", "ranking": row["ranking"][::-1], "id": row["id"] + "s"} for row in rows]
    path = tmp_path_factory.mktemp("aspects") / "preferences.jsonl"
    path.write_text("".join(json.dumps({**row}) + "\n" for row in [*rows, *turned]), encoding="utf-8")
    config = RewardModelConfig(
        preferences=str(path), backbone=str(llama_folder), aspect="overall, salty", num_epochs=2, learning_rate=3e-3
    )
    run_dir = RunDir.create(tmp_path_factory.mktemp("run"), config)
    train_reward_model(config, run_dir, StopFlag())
    return run_dir


def test_a_trained_model_is_a_reward(reward_model_folder):
    reward: Reward = load_reward(reward_model_folder)
    model = RewardModel.load(reward_model_folder)

    found = reward.score_prompts(PROMPTS)

    assert [one.scores for one in found] == [
        pytest.approx(model.score([(one.prompt, text) for text in one.responses]), abs=1e-6) for one in PROMPTS
    ]
    assert reward.log_odds() == model.std / model.temperature
    assert (reward.aspects, reward.is_listwise) == (("overall",), False)


def test_a_member_of_one_aspect_scores_by_its_own_head(two_headed, tmp_path):
    member = load_reward(write_member(tmp_path / "m", RewardModelMember(model=str(two_headed.model), aspect="salty")))
    model = RewardModel.load(two_headed.model)

    expected = model.score_prompts(PROMPTS, "salty")

    assert member.score_prompts(PROMPTS, "overall") == member.score_prompts(PROMPTS) == expected
    assert member.aspects == ("salty",)
    assert member.digest != load_reward(two_headed.model).digest
    assert member.log_odds("overall") == model.log_odds("salty")


def test_a_member_finds_its_model_beside_it(reward_model_folder, tmp_path):
    (tmp_path / "model").symlink_to(reward_model_folder)
    folder = write_member(tmp_path / "member", RewardModelMember(model="../model"))

    assert load_reward(folder).digest == load_reward(reward_model_folder).digest


def test_a_digest_tells_models_apart_and_knows_one_wherever_it_lies(reward_model_folder, two_headed, tmp_path):
    (tmp_path / "elsewhere").symlink_to(reward_model_folder)
    digests = [load_reward(folder).digest for folder in (reward_model_folder, tmp_path / "elsewhere", two_headed.model)]

    assert digests[0] == digests[1] != digests[2]
    assert load_reward(reward_model_folder, max_length=64).digest != digests[0]


def test_a_rule_is_loaded_from_its_folder(tmp_path):
    reward = load_reward(write_member(tmp_path / "short", LengthRule(target=2, tolerance=0)))

    assert [one.scores for one in reward.score_prompts(PROMPTS)] == [[0.0, 0.0, 0.0], [-0.5]]


def test_what_is_cached_is_not_computed_again(reward_model_folder, tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path / "scores.sqlite3")
    before = load_reward(reward_model_folder, cache=cache).score_prompts(PROMPTS)
    monkeypatch.setattr(RewardModel, "rewards", None)

    assert load_reward(reward_model_folder, cache=cache).score_prompts(PROMPTS) == before


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("PLUMBLINE_SCORE_CACHE", raising=False)
    assert score_cache() is None
    monkeypatch.setenv("PLUMBLINE_SCORE_CACHE", str(tmp_path / "scores.sqlite3"))
    assert score_cache().path == tmp_path / "scores.sqlite3"


def test_what_is_no_reward_is_an_error(tmp_path, llama_folder):
    with pytest.raises(ConfigError, match="is not a reward model"):
        load_reward(llama_folder)
    with pytest.raises(OSError, match="nowhere"):
        load_reward(tmp_path / "nowhere")


def test_a_reward_says_by_itself_what_it_depends_on(reward_model_folder):
    model = RewardModel.load(reward_model_folder)
    digests = {
        model.digest,
        dataclasses.replace(model, max_length=7).digest,
        dataclasses.replace(model, means=(0.5,)).digest,
    }

    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_a_judge_tells_of_its_work_and_a_rule_has_nothing_to_tell(tmp_path):
    rule = load_reward(write_member(tmp_path / "short", LengthRule(target=2, tolerance=0)))
    usage = SimpleNamespace(cost=0.5, num_requests=3)
    bias = SimpleNamespace(as_dict=lambda: {"num_pairs": 4, "mean": 0.1, "deviation": 0.2})
    judge = SimpleNamespace(
        failures=Counter({"cost limit": 2}), usage=usage, judging=SimpleNamespace(bias=bias), is_listwise=True
    )

    assert told_by(rule) == {}
    assert told_by(judge) == {
        "unanswered": {"cost limit": 2},
        "cost": 0.5,
        "num_requests": 3,
        "position_bias": {"num_pairs": 4, "mean": 0.1, "deviation": 0.2},
    }
