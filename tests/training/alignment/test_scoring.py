import json

import pytest

from tests.training.alignment.material import StopAt
from training.alignment import __main__ as program
from training.alignment.config import ConfigError, ScoreComparisonsConfig
from training.alignment.reward_model import CHUNK, RewardModel
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.scoring import disagreeing, score_comparisons


def make_run_dir(folder, members, num_prompts=3):
    """A run directory with prompts of two and three responses in turn."""
    run_dir = RunDir.create(folder, ScoreComparisonsConfig(reward_models=", ".join(map(str, members))))
    rows = [
        {
            "id": str(number),
            "prompt": [{"role": "user", "content": f"What do I put into dish {number}?"}],
            "responses": [{"id": 10 * number + k, "content": "eggs " * k + "salt"} for k in range(2 + number % 2)],
            "ranking": [],
        }
        for number in range(num_prompts)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def run(run_dir, stop=None):
    return score_comparisons(run_dir.config(), run_dir, stop or StopFlag())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory, reward_model_folder):
    """The same weights with another unit of score."""
    folder = tmp_path_factory.mktemp("other")
    for path in reward_model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "reward_std": 2 * config["reward_std"], "reward_mean": 0})
    )
    return folder


def test_scores_are_those_of_each_member_in_nats(tmp_path, reward_model_folder, other_folder):
    run_dir = make_run_dir(tmp_path, [reward_model_folder, other_folder])

    result = run(run_dir)

    assert result == {"num_members": 2, "num_prompts": 3, "num_responses": 7, "num_truncated": 0}
    scored = lines(tmp_path / "scores.jsonl")
    assert [row["id"] for row in scored] == ["0", "1", "2"]
    assert [[len(own) for own in row["scores"]] for row in scored] == [[2, 2], [3, 3], [2, 2]]
    model = RewardModel.load(reward_model_folder)
    prompt = [{"role": "user", "content": "What do I put into dish 0?"}]
    expected = [model.std * score for score in model.score([(prompt, "salt"), (prompt, "eggs salt")])]
    assert scored[0]["scores"][0] == pytest.approx(expected, abs=1e-5)
    # where a score's zero and unit are is the model's affair; differences in nats are the same
    differences = [[own[0] - own[1] for own in row["scores"]] for row in scored]
    assert [first for first, _ in differences] == pytest.approx([second for _, second in differences], abs=1e-5)


def test_progress_is_told_over_all_members(tmp_path, reward_model_folder, other_folder):
    run_dir = make_run_dir(tmp_path, [reward_model_folder, other_folder])

    run(run_dir)

    told = [(line["phase"], line["step"], line["progress"], line["member"]) for line in run_dir.read_metrics()]
    assert told == [("score", 3, 0.5, 0), ("score", 6, 1.0, 1)]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_scores(
    tmp_path, reward_model_folder, other_folder, stop_at, monkeypatch
):
    monkeypatch.setattr("training.alignment.scoring.CHUNK", 2)
    members = [reward_model_folder, other_folder]
    whole = make_run_dir(tmp_path / "whole", members)
    stopped = make_run_dir(tmp_path / "stopped", members)
    run(whole)

    with pytest.raises(Interrupted):
        run(stopped, StopAt(stop_at))
    assert not (stopped.path / "scores.jsonl").exists()
    member = stopped.path / f"member-{(stop_at - 1) // 2}.jsonl"
    with member.open("a") as file:
        file.write('{"scores": [0.0')  # what a kill may leave
    result = run(stopped)

    assert result["num_responses"] == 7
    assert (stopped.path / "scores.jsonl").read_bytes() == (whole.path / "scores.jsonl").read_bytes()
    assert [line["step"] for line in stopped.read_metrics()] == [2, 3, 5, 6]


def test_more_prompts_than_a_chunk_holds(tmp_path, reward_model_folder, other_folder):
    run_dir = make_run_dir(tmp_path, [reward_model_folder, other_folder], num_prompts=CHUNK + 1)

    assert run(run_dir)["num_prompts"] == CHUNK + 1
    assert [row["id"] for row in lines(tmp_path / "scores.jsonl")] == [str(number) for number in range(CHUNK + 1)]


def test_one_model_disagrees_with_nobody(tmp_path, reward_model_folder):
    with pytest.raises(ConfigError, match="reward_models: one model disagrees with nobody"):
        run(make_run_dir(tmp_path, [reward_model_folder]))


def test_a_model_without_a_trained_head_is_refused(tmp_path, reward_model_folder, llama_folder):
    with pytest.raises(ConfigError, match="is not a reward model"):
        run(make_run_dir(tmp_path, [reward_model_folder, llama_folder]))


def test_a_line_that_is_no_prompt_is_refused(tmp_path, reward_model_folder, other_folder):
    run_dir = make_run_dir(tmp_path, [reward_model_folder, other_folder])
    (tmp_path / "prompts.jsonl").write_text('{"id": "0", "prompt": [], "responses": [], "ranking": []}\n')

    with pytest.raises(ConfigError, match="line 1: prompt: is empty"):
        run(run_dir)


def test_the_program_knows_this_kind_of_run(tmp_path, reward_model_folder, other_folder):
    run_dir = make_run_dir(tmp_path, [reward_model_folder, other_folder])

    assert program.run(run_dir, StopFlag()) == 0
    assert run_dir.read_result() == {"num_members": 2, "num_prompts": 3, "num_responses": 7, "num_truncated": 0}


def test_a_combiner_stands_for_its_members(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    for folder, members in ((inner, ["org/one", "org/two"]), (outer, [str(inner), "org/three"])):
        folder.mkdir()
        told = {"kind": "combiner", "members": [{"path": member} for member in [*members, "org/broken"]], "files": {}}
        told["is_used"] = [True, True, False]
        (folder / "combiner.json").write_text(json.dumps(told), encoding="utf-8")

    assert disagreeing([str(outer), "org/two", "org/four"]) == ["org/one", "org/two", "org/three", "org/four"]
