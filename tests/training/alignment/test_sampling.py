import json
from pathlib import Path

import pytest

from tests.training.alignment.material import StopAt
from tests.training.alignment.processes import run_by_two
from training.alignment.config import ConfigError, SampleConfig
from training.alignment.generation import generate_ids, texts
from training.alignment.policies import load_policy
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored, load_reward
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.sampling import chunk_size, chunks, read_samples, run_sampling, score, shards

DISHES = ("eggs", "rice", "water", "salt", "patience", "the boiled eggs that somebody else cooled", "é")
PROMPTS = [[{"role": "user", "content": f"How long does {dish} take?"}] for dish in DISHES]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts_path(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def prepare(tmp_path, prompts_path, llama_folder, reward_model_folder):
    """Makes the run directory of a shard; chunks of two prompts."""

    def prepare(name: str = "run", **values: object) -> RunDir:
        settings = {
            "prompts": str(prompts_path),
            "policy": str(llama_folder),
            "reward_model": str(reward_model_folder),
            "num_samples": 4,
            "max_new_tokens": 8,
            "generation_batch_size": 8,
            "seed": 3,
        }
        return RunDir.create(tmp_path / name, SampleConfig(**settings | values))

    return prepare


def sample(run_dir: RunDir, stop: StopFlag | None = None) -> dict:
    return run_sampling(run_dir.config(), run_dir, stop or StopFlag())


def test_chunks_begin_where_they_begin_whatever_is_asked_for():
    assert chunks(range(0, 7), 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert chunks(range(2, 7), 3) == [range(2, 3), range(3, 6), range(6, 7)]
    assert chunks(range(3, 5), 3) == [range(3, 5)]


@pytest.mark.parametrize(
    ("num_prompts", "num_samples", "expected"),
    [
        (30, 8, 8),  # a batch: four chunks
        (200, 8, 13),  # sixteen chunks
        (10_000, 8, 32),  # four batches
        (10_000, 256, 1),
        (1, 256, 1),
    ],
)
def test_a_chunk_is_a_batch_to_four_by_the_number_of_prompts(num_prompts, num_samples, expected):
    assert chunk_size(SampleConfig(generation_batch_size=64, num_samples=num_samples), num_prompts) == expected


def test_few_prompts_are_work_for_several():
    config = SampleConfig(generation_batch_size=64, num_samples=8)

    assert shards(30, 3, chunk_size(config, 30)) == [range(0, 8), range(8, 16), range(16, 30)]


@pytest.mark.parametrize(
    ("num_prompts", "num_shards", "expected"),
    [
        (7, 1, [range(0, 7)]),
        (7, 2, [range(0, 4), range(4, 7)]),
        (7, 3, [range(0, 2), range(2, 4), range(4, 7)]),
        (7, 100, [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]),
        (1, 3, [range(0, 1)]),
    ],
)
def test_shards_are_whole_chunks_of_about_the_same_number(num_prompts, num_shards, expected):
    assert shards(num_prompts, num_shards, size=2) == expected


def test_shards_cover_all_prompts_once():
    for num_prompts in range(1, 40):
        for num_shards in (1, 2, 3, 7, 1000):
            found = shards(num_prompts, num_shards, size=3)
            assert [line for part in found for line in part] == list(range(num_prompts))
            assert all(part.start % 3 == 0 for part in found)
            assert len(found) == min(num_shards, -(-num_prompts // 3))


def test_responses_and_rewards_are_those_of_policy_and_reward(prepare, llama_folder, reward_model_folder):
    run_dir = prepare()

    result = sample(run_dir)

    generated = generate_ids(
        *load_policy(llama_folder), PROMPTS, 4, seed=3, max_new_tokens=8, max_length=1024, batch_size=2
    )
    rows = list(read_samples(run_dir.path / "samples.jsonl"))
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["responses"] for row in rows] == texts(load_policy(llama_folder)[1], generated)
    reward = load_reward(reward_model_folder)
    for row in rows:
        scored = reward.score_prompts([PromptedResponses(row["prompt"], tuple(row["responses"]))])[0].scores
        assert row["rewards"] == pytest.approx(scored, abs=1e-4)
    assert result == {
        "output": "samples.jsonl",
        "num_prompts": 7,
        "num_samples": 4,
        "num_tokens": sum(len(one.ids) + one.is_ended for own in generated for one in own),
        "num_missing": 0,
        "backend": result["backend"],
        "seconds_generating": result["seconds_generating"],
        "seconds_scoring": result["seconds_scoring"],
    }
    assert result["backend"].startswith("transformers")
    assert result["seconds_generating"] > 0
    assert result["seconds_scoring"] > 0


@pytest.mark.parametrize("num_shards", [2, 3])
def test_the_data_are_the_same_to_the_last_bit_whatever_the_number_of_shards(prepare, num_shards):
    whole = prepare("whole")
    sample(whole)
    parts = shards(len(PROMPTS), num_shards, chunk_size(whole.config(), len(PROMPTS)))

    found = b""
    for number, part in enumerate(parts):
        shard = prepare(f"shard_{number}", first=part.start, num_prompts=len(part))
        sample(shard)
        found += (shard.path / "samples.jsonl").read_bytes()

    assert len(parts) == num_shards
    assert found == (whole.path / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_the_data_are_the_same_to_the_last_bit_whatever_the_number_of_processes(prepare):
    alone, together = prepare("alone"), prepare("together", num_processes=2)
    result = sample(alone)

    assert run_by_two(together) == 0

    assert (together.path / "samples.jsonl").read_bytes() == (alone.path / "samples.jsonl").read_bytes()
    told = together.read_result()
    measured = {name: told[name] for name in ("seconds_generating", "seconds_scoring")}
    assert told == {**result, **measured}


def test_another_seed_gives_other_responses(prepare):
    one, other = prepare("one"), prepare("other", seed=4)
    for run_dir in (one, other):
        sample(run_dir)

    assert [row["responses"] for row in read(one.path / "samples.jsonl")] != [
        row["responses"] for row in read(other.path / "samples.jsonl")
    ]


def test_the_output_goes_where_it_is_wanted(prepare, tmp_path):
    run_dir = prepare(output=str(tmp_path / "shard_003.jsonl"), first=6)

    assert sample(run_dir)["output"] == str(tmp_path / "shard_003.jsonl")
    assert [row["prompt"] for row in read(tmp_path / "shard_003.jsonl")] == PROMPTS[6:]


def test_without_a_reward_all_rewards_are_missing(prepare):
    run_dir = prepare(reward_model="")

    result = sample(run_dir)

    assert {reward for row in read(run_dir.path / "samples.jsonl") for reward in row["rewards"]} == {None}
    assert (result["num_missing"], result["seconds_scoring"]) == (28, 0)
    assert not (run_dir.path / "rewards.jsonl").exists()
    assert list(run_dir.read_metrics())[-1]["progress"] == 1.0


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(prepare):
    straight, stopped = (prepare(name, generation_batch_size=2) for name in ("straight", "stopped"))
    expected = sample(straight)

    result, times = None, 0
    while result is None:
        try:
            result = sample(stopped, StopAt(7))
        except Interrupted:
            times += 1
            assert not (stopped.path / "samples.jsonl").exists()
            with (stopped.path / ("rewards.jsonl" if times > 3 else "responses.jsonl")).open("a") as file:
                file.write('{"responses": [["half a li')  # as a kill may leave it

    assert times > 2
    assert (stopped.path / "samples.jsonl").read_bytes() == (straight.path / "samples.jsonl").read_bytes()
    measured = {name: result[name] for name in ("seconds_generating", "seconds_scoring")}
    assert result == {**expected, **measured}


def test_a_run_killed_before_its_result_was_written_does_nothing_again(prepare):
    run_dir = prepare()
    expected = sample(run_dir)
    (run_dir.path / "samples.jsonl").unlink()
    num_lines = len(list(run_dir.read_metrics()))

    assert sample(run_dir, StopAt(1)) == expected

    assert (run_dir.path / "samples.jsonl").exists()
    assert len(list(run_dir.read_metrics())) == num_lines


def test_phases_follow_each_other_and_progress_grows(prepare):
    run_dir = prepare()
    sample(run_dir)

    lines = list(run_dir.read_metrics())

    assert [(line["phase"], line["step"]) for line in lines] == [
        (phase, step) for phase in ("generate", "score") for step in (2, 4, 6, 7)
    ]
    assert [line["progress"] for line in lines] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 1.0])


def test_a_text_is_scored_once_and_an_empty_one_as_any_other():
    class Reward:
        def score_prompts(self, prompts):
            self.asked = prompts
            return [
                Scored([float("nan") if text == "?" else float(len(text)) for text in one.responses]) for one in prompts
            ]

    reward = Reward()

    found = score(reward, PROMPTS[:3], [["aa", "", "aa", "?"], ["", ""], ["b"]])

    assert found == [[2.0, 0.0, 2.0, None], [0.0, 0.0], [1.0]]
    assert reward.asked == [
        PromptedResponses(prompt, own) for prompt, own in zip(PROMPTS, [("aa", "", "?"), ("",), ("b",)], strict=False)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": ""}, "policy: none is given"),
        ({"first": 7}, "prompts: the file has none from line 7 on"),
    ],
)
def test_what_cannot_be_sampled_is_said(prepare, values, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        sample(prepare(**values))


@pytest.mark.parametrize("line", ['{"question": "Eggs?"}', '{"prompt": []}', "no JSON"])
def test_a_line_without_a_prompt_is_named(prepare, prompts_path, line):
    with prompts_path.open("a") as file:
        file.write(line + "\n")

    with pytest.raises(ConfigError, match=r"^prompts: line 8: "):
        sample(prepare())
