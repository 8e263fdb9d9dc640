"""A judge tried on a few comparisons, from a member's folder to preview.json."""

import json

import pytest

from tests.training.alignment.conftest import TEXTS
from tests.training.alignment.test_judge import with_room
from training.alignment.config import ConfigError, PreviewJudgeConfig
from training.alignment.judging import COMPARE, MATERIAL, RATE
from training.alignment.member_config import JudgeMember, LengthRule, write_member
from training.alignment.preview import preview_judge
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.tiny_lm import build_tiny_lm

ROWS = [
    {
        "id": str(number),
        "prompt": [{"role": "user", "content": f"How long do {number} eggs take?"}],
        "responses": [
            {"id": 2 * number, "content": "Eight minutes."},
            {"id": 2 * number + 1, "content": "No <|end|>."},
        ],
    }
    for number in range(4)
]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """An untrained Llama with a chat template and room for a question."""
    folder = tmp_path_factory.mktemp("judge")
    texts = [*TEXTS, RATE, COMPARE, MATERIAL]
    build_tiny_lm(texts, folder, vocabulary_size=700, hidden_size=32, num_layers=2, num_heads=2)
    return with_room(folder)


def make_run(tmp_path, member, rows=ROWS, **told) -> tuple[PreviewJudgeConfig, RunDir]:
    config = PreviewJudgeConfig(member=str(write_member(tmp_path / "member", member)), **told)
    run_dir = RunDir.create(tmp_path / "run", config)
    (run_dir.path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config, run_dir


def test_preview_judge_leaves_what_it_asked_and_heard(tmp_path, judge_folder):
    config, run_dir = make_run(tmp_path, JudgeMember(model=str(judge_folder), rubric="Is it kind?", highest=5))
    result = preview_judge(config, run_dir, StopFlag())
    told = json.loads((run_dir.path / "preview.json").read_text())

    assert [one["id"] for one in told] == ["0", "1", "2"]
    seconds = sum(one["seconds"] for one in told)
    assert result == {"num_comparisons": 3, "num_questions": 6, "num_unanswered": 0, "seconds": seconds}
    first = told[0]["questions"][0]
    assert first["responses"] == [0]
    assert sorted(first["probabilities"]) == ["1", "2", "3", "4", "5"]
    assert told[0]["scores"] == [question["value"] for question in told[0]["questions"]]
    assert first["text"].startswith("<|begin|><|user|>")  # the tokenizer's own chat template
    for words in ("Is it kind?", "How long do 0 eggs take?", "Eight minutes."):
        assert words in first["text"]
    assert [line["step"] for line in run_dir.read_metrics()] == [1, 2, 3]


def test_preview_judge_shows_both_orders_of_a_pair(tmp_path, judge_folder):
    config, run_dir = make_run(tmp_path, JudgeMember(model=str(judge_folder), mode="pairwise"), num_comparisons=1)
    preview_judge(config, run_dir, StopFlag())
    (told,) = json.loads((run_dir.path / "preview.json").read_text())
    assert sorted(question["responses"] for question in told["questions"]) == [[0, 1], [1, 0]]
    assert sum(told["scores"]) == pytest.approx(0, abs=1e-9)


def test_preview_judge_shows_what_it_asked_where_nobody_answers(tmp_path, judge_folder, monkeypatch):
    def refuse(self, questions):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr("training.alignment.judge.Judge.ask", refuse)
    config, run_dir = make_run(tmp_path, JudgeMember(model=str(judge_folder)))
    with pytest.raises(ConnectionError):
        preview_judge(config, run_dir, StopFlag())
    (told,) = json.loads((run_dir.path / "preview.json").read_text())
    assert [(one["responses"], one["value"], one["failure"]) for one in told["questions"]] == [
        ([0], None, "not yet"),
        ([1], None, "not yet"),
    ]
    assert "Eight minutes." in told["questions"][0]["text"]


def test_preview_judge_wants_a_judge_and_comparisons(tmp_path, judge_folder):
    config, run_dir = make_run(tmp_path / "rule", LengthRule())
    with pytest.raises(ConfigError, match=r"^member: is no judge$"):
        preview_judge(config, run_dir, StopFlag())
    config, run_dir = make_run(tmp_path / "empty", JudgeMember(model=str(judge_folder)), rows=[])
    with pytest.raises(ConfigError, match=r"^num_comparisons: there is none to look at$"):
        preview_judge(config, run_dir, StopFlag())


def test_preview_judge_stops_when_it_is_told_to(tmp_path, judge_folder):
    config, run_dir = make_run(tmp_path, JudgeMember(model=str(judge_folder)))
    stop = StopFlag()
    stop.set()
    with pytest.raises(Interrupted, match="stopped after 0 of 3 comparisons"):
        preview_judge(config, run_dir, stop)
