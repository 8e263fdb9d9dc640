import json

import pytest

from tests.training.alignment.material import StopAt
from tests.training.alignment.processes import run_by_two
from training.alignment.__main__ import dispatch
from training.alignment.config import ConfigError, ScoreConfig
from training.alignment.preferences import read_rankings
from training.alignment.reward_model import CHUNK, RewardModel
from training.alignment.reward_net import load_backbone
from training.alignment.run_dir import Interrupted, RunDir, StopFlag


@pytest.fixture
def run_dir(tmp_path, reward_model_folder, long_rankings_path):
    config = ScoreConfig(responses=str(long_rankings_path), reward_model=str(reward_model_folder))
    return RunDir.create(tmp_path / "run", config)


def score(run_dir: RunDir, stop: StopFlag) -> dict:
    return dispatch(run_dir.config(), run_dir, stop)


def lines(run_dir: RunDir) -> list[dict]:
    return [json.loads(line) for line in (run_dir.path / "scores.jsonl").read_text().splitlines()]


def test_every_response_gets_the_score_it_gets_alone(run_dir, reward_model_folder, long_rankings_path):
    result = score(run_dir, StopFlag())

    rankings = list(read_rankings(long_rankings_path))
    model = RewardModel.load(reward_model_folder)
    assert result == {
        "num_prompts": 300,
        "num_responses": sum(len(ranked.responses) for ranked in rankings),
        "num_truncated": 0,
    }
    for ranked, told in zip(rankings, lines(run_dir), strict=True):
        scores = [model.score([(ranked.prompt, text)])[0] for text in ranked.responses[:1]]
        assert told == {"id": ranked.id, "scores": told["scores"], "num_truncated": 0}
        assert told["scores"][:1] == pytest.approx(scores, abs=1e-5)


def test_a_run_that_was_stopped_goes_on(run_dir):
    with pytest.raises(Interrupted, match=f"stopped after scoring {CHUNK} of 300 prompts"):
        score(run_dir, StopAt(2))
    with (run_dir.path / "scores.jsonl").open("a") as file:
        file.write('{"half a li')

    score(run_dir, StopFlag())

    assert [line["id"] for line in lines(run_dir)] == [f"{number:04}" for number in range(300)]


def test_one_response_a_line_and_prompts_as_text(run_dir, tmp_path, reward_model_folder):
    path = tmp_path / "responses.jsonl"
    path.write_text('{"prompt": "Eggs?", "response": "Eight."}\n{"prompt": "Eggs?", "responses": ["Eight.", "No."]}\n')
    config = ScoreConfig(responses=str(path), reward_model=str(reward_model_folder))

    score(RunDir.create(run_dir.path, config), StopFlag())

    one, two = (line["scores"] for line in lines(run_dir))
    assert one == pytest.approx(two[:1], abs=1e-6)
    assert len(two) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "Eggs?"}', "responses: line 2: responses is missing"),
        ('{"prompt": "Eggs?", "responses": []}', "responses: line 2: responses: is empty"),
        ('{"prompt": [], "response": "No."}', "responses: line 2: prompt: is empty"),
        ('{"prompt": "Eggs?", "response": 8}', "responses: line 2: responses: must be text, not 8"),
    ],
)
def test_a_line_without_responses_is_named(run_dir, tmp_path, reward_model_folder, text, message):
    path = tmp_path / "responses.jsonl"
    path.write_text(f'{{"prompt": "Eggs?", "response": "Eight."}}\n{text}\n')
    config = ScoreConfig(responses=str(path), reward_model=str(reward_model_folder))

    with pytest.raises(ConfigError) as refused:
        score(RunDir.create(run_dir.path, config), StopFlag())

    assert str(refused.value) == message


def two_headed(tmp_path, llama_folder) -> str:
    model, tokenizer = load_backbone(str(llama_folder), num_heads=2)
    model.config.update({"reward_aspects": ["overall", "style"], "reward_mean": [0.0, 1.0], "reward_std": [1.0, 2.0]})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_heads_of_several_aspects_are_all_told(tmp_path, long_rankings_path, llama_folder):
    config = ScoreConfig(responses=str(long_rankings_path), reward_model=two_headed(tmp_path, llama_folder))
    run_dir = RunDir.create(tmp_path / "run", config)

    score(run_dir, StopFlag())

    told = lines(run_dir)[0]
    assert told["aspects"].keys() == {"overall", "style"}
    assert told["aspects"]["overall"] == told["scores"] != told["aspects"]["style"]


def test_a_process_may_have_no_line_of_the_last_chunk(tmp_path, llama_folder):
    rows = [{"id": str(number), "prompt": "Eggs?", "response": "No."} for number in range(CHUNK + 1)]
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ScoreConfig(responses=str(path), reward_model=two_headed(tmp_path, llama_folder), num_processes=2)
    run_dir = RunDir.create(tmp_path / "run", config)

    assert run_by_two(run_dir) == 0

    told = lines(run_dir)
    assert [line["id"] for line in told] == [row["id"] for row in rows]
    assert told[-1]["aspects"].keys() == {"overall", "style"}
