import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.processes import run_by_two
from training.alignment import sft
from training.alignment.__main__ import run
from training.alignment.config import ConfigError, SftConfig
from training.alignment.generation import sample
from training.alignment.policies import load_policy, save_policy
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, file_digest
from training.alignment.sft import Example, best_responses, edited_responses, read_examples, train_sft

EGGS = {"prompt": "How do I boil eggs?", "completion": "Eight minutes."}
RICE = {"prompt": [{"role": "user", "content": "Rice?"}], "completion": [{"role": "assistant", "content": "Twelve."}]}
QUESTION = [{"role": "user", "content": "How do I boil eggs?"}]


class StopAfter(StopFlag):
    """Asks to stop from the n-th time on that it is looked at."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __call__(self) -> bool:
        self.n -= 1
        return self.n <= 0


def prepare(path: Path, lines: list[dict], **values) -> tuple[SftConfig, RunDir]:
    settings = {
        "examples": "examples.jsonl",
        "num_epochs": 1.0,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "max_length": 64,
    }
    config = SftConfig(**settings | values)
    run_dir = RunDir.create(path, config)
    (path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return config, run_dir


def weights(run_dir: RunDir) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(run_dir.model / "model.safetensors").items()}


def metrics(run_dir: RunDir) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "time"} for line in run_dir.read_metrics()]


def ranking(split: str, ranked: list[list[int]], **more) -> dict:
    responses = [{"role": "assistant", "content": text} for text in ("good", "fair", "bad")]
    return {"prompt": QUESTION, "responses": responses, "ranking": ranked, "split": split, **more}


def test_a_policy_learns_its_examples_and_where_they_end(llama_folder, tmp_path):
    config, run_dir = prepare(tmp_path, [EGGS, RICE], policy=str(llama_folder), num_epochs=150.0)

    result = train_sft(config, run_dir, StopFlag())

    assert result == {
        "model": "model",
        "loss": result["loss"],
        "num_examples": 2,
        "num_steps": 150,
        "num_truncated": 0,
    }
    assert result["loss"] < 0.1
    answers = sample(*load_policy(str(run_dir.model)), [QUESTION, RICE["prompt"]], 2, seed=0, max_new_tokens=30)
    assert answers == [["Eight minutes."] * 2, ["Twelve."] * 2]


def test_metrics_tell_loss_and_progress_of_each_step(llama_folder, tmp_path):
    config, run_dir = prepare(tmp_path, [EGGS, RICE] * 3, policy=str(llama_folder))

    result = train_sft(config, run_dir, StopFlag())

    lines = metrics(run_dir)
    assert [(line["step"], line["phase"], line["progress"]) for line in lines] == [
        (1, "train", 1 / 3),
        (2, "train", 2 / 3),
        (3, "train", 1.0),
    ]
    assert all(set(line) == {"step", "phase", "progress", "loss", "learning_rate"} for line in lines)
    assert result["loss"] == lines[-1]["loss"]
    assert lines[0]["loss"] == pytest.approx(math.log(320), abs=0.3)  # untrained: every one of 320 tokens is as likely


def test_new_tiny_builds_its_own_model_and_vocabulary(tmp_path):
    config, run_dir = prepare(tmp_path, [EGGS, RICE], policy="new:tiny")

    train_sft(config, run_dir, StopFlag())

    tokenizer, model = AutoTokenizer.from_pretrained(run_dir.model), AutoModelForCausalLM.from_pretrained(run_dir.model)
    assert tokenizer.tokenize("boil eggs") == ["bo", "il", "Ġeggs"]
    assert model.num_parameters() > 900_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "examples.jsonl",
        "metrics.jsonl",
        "model",
        "run.json",
        "untrained",
    ]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights_and_metrics(llama_folder, tmp_path):
    examples = [EGGS, RICE, EGGS, RICE, EGGS]
    config, straight = prepare(tmp_path / "straight", examples, policy=str(llama_folder), num_epochs=2.0)
    expected = train_sft(config, straight, StopFlag())

    _, stopped = prepare(tmp_path / "stopped", examples, policy=str(llama_folder), num_epochs=2.0)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train_sft(config, stopped, StopAfter(2))
    result = train_sft(config, stopped, StopFlag())

    assert result == expected
    assert metrics(stopped) == metrics(straight)
    assert weights(stopped) == weights(straight)
    assert [line["step"] for line in metrics(straight)] == [1, 2, 3, 4, 5]


def test_a_killed_run_repeats_what_no_checkpoint_holds(llama_folder, tmp_path):
    config, straight = prepare(tmp_path / "straight", [EGGS, RICE] * 3, policy=str(llama_folder), save_minutes=0.0)
    expected = train_sft(config, straight, StopFlag())
    _, killed = prepare(tmp_path / "killed", [EGGS, RICE] * 3, policy=str(llama_folder), save_minutes=0.0)
    train_sft(config, killed, StopFlag())
    newest, older = killed.checkpoints()
    (newest / "model.safetensors").write_bytes(b"half")  # as if the disk had lost it

    assert (newest.name, older.name) == ("step-000003", "step-000002")
    assert train_sft(config, killed, StopFlag()) == expected
    assert metrics(killed) == metrics(straight)
    assert weights(killed) == weights(straight)


def test_accumulated_batches_are_one_optimizer_step(llama_folder, tmp_path, monkeypatch):
    examples = [EGGS, RICE] * 4
    config, at_once = prepare(tmp_path / "at_once", examples, policy=str(llama_folder), batch_size=4)
    train_sft(config, at_once, StopFlag())
    _, in_parts = prepare(tmp_path / "in_parts", examples, policy=str(llama_folder), batch_size=4)
    monkeypatch.setattr(sft, "MAX_TOKENS", 60)
    train_sft(config, in_parts, StopFlag())

    for one, other in zip(metrics(at_once), metrics(in_parts), strict=True):
        assert one == {**other, "loss": pytest.approx(other["loss"], abs=1e-5)}


def test_the_loss_counts_the_response_only(llama_folder):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    dataset, num_truncated = sft._encode_all([Example(QUESTION, "Eight <|end|>.")], tokenizer, 128)
    ids, labels = dataset[0]["input_ids"], dataset[0]["labels"]
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]

    assert labels == [-100] * len(prompt) + ids[len(prompt) :]
    assert tokenizer.decode(ids[len(prompt) :]) == "Eight <|end|>.<|end|>"
    assert ids[len(prompt) :].count(tokenizer.eos_token_id) == 1  # what only looks like the end is text
    assert num_truncated == 0
    assert sft._encode_all([Example(QUESTION, "Eight.")], tokenizer, 12)[1] == 1


def test_best_responses_are_those_nobody_is_put_above_each_once(tmp_path):
    path = tmp_path / "preferences.jsonl"
    rows = [
        ranking("train", [[0], [1], [2]]),
        ranking("train", [[0, 1], [2]]),
        ranking("train", [[2], [1], [0]], all_bad=True),
        ranking("test", [[2], [0, 1]]),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert best_responses(path, "train") == [Example(QUESTION, "good"), Example(QUESTION, "fair")]
    assert best_responses(path, "test") == [Example(QUESTION, "bad")]
    assert best_responses(path, "validation") == []


def test_a_policy_learns_from_preferences_and_is_measured_on_those_held_out(llama_folder, tmp_path):
    config, run_dir = prepare(tmp_path, [], policy=str(llama_folder), examples="", preferences="preferences.jsonl")
    rows = [ranking("train", [[0], [1], [2]]), ranking("validation", [[1], [0, 2]]), ranking("test", [[2], [0, 1]])]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    result = train_sft(config, run_dir, StopFlag())

    assert (result["num_examples"], result["num_steps"]) == (1, 1)
    assert metrics(run_dir)[-1] == {"step": 1, "phase": "validation", "progress": 1.0, "loss": result["held_out_loss"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "examples: line 2: is not JSON at column 1: Expecting value"),
        ('{"prompt": "Eggs?"}', "examples: line 2: completion is missing"),
        ('{"prompt": "Eggs?", "completion": []}', "examples: line 2: completion: is empty"),
        ('{"prompt": "Eggs?", "completion": " "}', "examples: line 2: completion: is empty"),
        ('{"prompt": "Eggs?", "completion": ["Boil.", "Fry."]}', "examples: line 2: completion: is one message, not 2"),
        ('{"prompt": [], "completion": "Boil."}', "examples: line 2: prompt: is empty"),
        (
            '{"prompt": [{"role": "end|><|user", "content": "Eggs?"}], "completion": "Boil."}',
            "examples: line 2: prompt: 'end|><|user' is not one of system, user, assistant, tool",
        ),
        ('{"prompt": 7, "completion": "Boil."}', "examples: line 2: prompt: 7 is no list"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, line, message):
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps(EGGS) + "\n" + line + "\n")

    with pytest.raises(ConfigError) as refused:
        list(read_examples(path))

    assert str(refused.value) == message


def test_without_examples_there_is_nothing_to_learn(llama_folder, tmp_path):
    config, run_dir = prepare(tmp_path, [], policy=str(llama_folder))
    with pytest.raises(ConfigError, match="examples: there are none to learn from"):
        train_sft(config, run_dir, StopFlag())
    with pytest.raises(ConfigError, match="examples: neither examples nor preferences are given"):
        train_sft(SftConfig(policy=str(llama_folder)), run_dir, StopFlag())


# Adapters, packing, edits, cards


MANY = [
    {"prompt": f"{'How ' * (1 + number % 3)}{number}?", "completion": "Twelve. " * (1 + number % 5)}
    for number in range(8)
]


@pytest.mark.parametrize("policy", ["llama_folder", "gpt2_folder"])
def test_packed_examples_do_not_see_each_other(request, tmp_path, policy):
    """Steps are of the same examples, so losses and weights are the same but for rounding."""
    model, tokenizer = load_policy(request.getfixturevalue(policy))
    model.config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))  # GPT-2's dropout is random
    save_policy(model, tokenizer, tmp_path / "policy")
    settings = {
        "policy": str(tmp_path / "policy"),
        "batch_size": 4,
        "num_epochs": 2.0,
        "precision": "fp32",
        "learning_rate": 1e-3,
    }
    config, padded = prepare(tmp_path / "padded", MANY, **settings)
    train_sft(config, padded, StopFlag())
    config, packed = prepare(tmp_path / "packed", MANY, packing=True, **settings)
    train_sft(config, packed, StopFlag())

    for one, other in zip(metrics(padded), metrics(packed), strict=True):
        assert one == {**other, "loss": pytest.approx(other["loss"], abs=1e-5)}
    for name, weight in load_file(padded.model / "model.safetensors").items():
        assert torch.allclose(weight, load_file(packed.model / "model.safetensors")[name], atol=1e-4), name


def test_packed_rows_hold_several_examples_and_are_short_enough(llama_folder, tmp_path, monkeypatch):
    model, _ = load_policy(llama_folder)
    lengths = [30, 10, 20, 5, 5, 5, 40, 1]

    def rows(budget: int, **values) -> tuple[int, int, bool]:
        monkeypatch.setattr(sft, "MAX_PACKED_TOKENS", budget)
        config, run_dir = prepare(tmp_path, MANY, policy=str(llama_folder), packing=True, batch_size=8, **values)
        arguments = sft._arguments(config, model, run_dir, lengths)
        size, parts = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        return size, parts, arguments.padding_free

    assert rows(116) == (8, 1, True)
    assert rows(115) == (4, 2, True)
    assert rows(64) == (2, 4, True)
    assert rows(8) == (1, 8, True)  # an example by itself must fit


def test_a_model_that_lets_packed_examples_see_each_other_is_refused(llama_folder):
    model, _ = load_policy(llama_folder)
    sft.require_packing(model)

    forward = model.forward
    model.forward = lambda **inputs: forward(**{name: one for name, one in inputs.items() if name != "position_ids"})
    with pytest.raises(ConfigError, match="packing: this model lets packed examples see each other"):
        sft.require_packing(model)


def test_adapters_are_trained_stopped_and_resumed_alike(llama_folder, tmp_path):
    settings = {"policy": str(llama_folder), "num_epochs": 2.0, "lora_rank": 2}
    config, straight = prepare(tmp_path / "straight", [EGGS, RICE, EGGS, RICE, EGGS], **settings)
    expected = train_sft(config, straight, StopFlag())

    _, stopped = prepare(tmp_path / "stopped", [EGGS, RICE, EGGS, RICE, EGGS], **settings)
    with pytest.raises(Interrupted):
        train_sft(config, stopped, StopAfter(3))
    held = load_file(stopped.checkpoints()[0] / "model.safetensors")

    assert all("lora_" in name for name in held)  # nothing that does not change
    assert train_sft(config, stopped, StopFlag()) == expected
    assert metrics(stopped) == metrics(straight)
    assert weights(stopped) == weights(straight)
    before, after = load_file(llama_folder / "model.safetensors"), load_file(straight.model / "model.safetensors")
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_adapters_are_saved_by_themselves_where_that_is_wanted(llama_folder, tmp_path):
    settings = {"policy": str(llama_folder), "lora_rank": 2, "num_epochs": 4.0}
    config, merged = prepare(tmp_path / "merged", [EGGS, RICE], **settings)
    train_sft(config, merged, StopFlag())
    config, alone = prepare(tmp_path / "alone", [EGGS, RICE], saved="adapter", **settings)
    train_sft(config, alone, StopFlag())

    assert not (alone.model / "model.safetensors").exists()
    one, other = (load_policy(run_dir.model)[0].state_dict() for run_dir in (merged, alone))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_less_memory_gives_the_same_policy(llama_folder, tmp_path):
    for name, saves_memory in (("usual", False), ("checkpointed", True)):
        config, run_dir = prepare(
            tmp_path / name, [EGGS, RICE], policy=str(llama_folder), gradient_checkpointing=saves_memory, lora_rank=2
        )
        train_sft(config, run_dir, StopFlag())

    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("usual", "checkpointed"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_policy_learns_from_what_people_wrote_over_a_response(llama_folder, tmp_path):
    config, run_dir = prepare(
        tmp_path,
        [],
        policy=str(llama_folder),
        examples="",
        preferences="preferences.jsonl",
        responses="edited",
    )
    path = tmp_path / "preferences.jsonl"
    rows = [
        ranking("train", [[0], [1], [2]], edited="good"),
        ranking("train", [[0], [1], [2]], edited="good", aspect="tone"),
        ranking("train", [[1], [0], [2]]),
        ranking("validation", [[0], [1], [2]], edited="good"),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert edited_responses(path, "train") == [Example(QUESTION, "good")]
    result = train_sft(config, run_dir, StopFlag())
    assert (result["num_examples"], "held_out_loss" in result) == (1, True)

    path.write_text(json.dumps(ranking("train", [[0], [1], [2]])) + "\n")
    with pytest.raises(ConfigError, match="responses: nobody has edited a response to a training prompt"):
        train_sft(config, run_dir, StopFlag())


def test_a_policy_has_a_card(llama_folder, tmp_path):
    config, run_dir = prepare(tmp_path, [EGGS, RICE], policy=str(llama_folder))

    result = train_sft(config, run_dir, StopFlag())

    card = (run_dir.model / "README.md").read_text()
    assert "trained by supervised fine-tuning on example responses." in card
    assert f"- SHA-256 `{file_digest(tmp_path / 'examples.jsonl')}`\n- examples: 2\n" in card
    assert f"- training loss: {result['loss']:.4g}\n" in card
    assert str(llama_folder.parent) not in card


def test_the_program_fine_tunes_with_adapters_in_packed_rows(llama_folder, tmp_path):
    _, run_dir = prepare(tmp_path, MANY, policy=str(llama_folder), lora_rank=2, packing=True, saved="adapter")

    assert run(run_dir, StopFlag()) == 0

    assert run_dir.read_result() == {
        "model": "model",
        "loss": run_dir.read_result()["loss"],
        "num_examples": 8,
        "num_steps": 4,
        "num_truncated": 0,
    }
    assert run_dir.checkpoints() == []
    assert load_policy(run_dir.model)[1].chat_template


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "lora_rank"), [("none", 0), ("fsdp", 2)])
def test_two_processes_learn_what_one_does_and_go_on_where_they_stopped(llama_folder, tmp_path, sharding, lora_rank):
    """Interrupted after some steps, and taken up again: what each process held a part of comes back."""
    settings = {
        "policy": str(llama_folder),
        "lora_rank": lora_rank,
        "num_epochs": 10.0,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "gradient_checkpointing": True,
    }
    _, one = prepare(tmp_path / "one", MANY, **settings)
    _, two = prepare(tmp_path / "two", MANY, num_processes=2, sharding=sharding, **settings)

    assert run(one, StopFlag()) == 0
    assert run_by_two(two, stop_at=5) != 0
    assert two.read_result() is None
    assert two.checkpoints()
    assert run_by_two(two) == 0

    assert [line["loss"] for line in metrics(two)] == pytest.approx([line["loss"] for line in metrics(one)], abs=1e-3)
    assert two.read_result() == {**one.read_result(), "loss": pytest.approx(one.read_result()["loss"], abs=1e-3)}
    alone, together = (load_file(run_dir.model / "model.safetensors") for run_dir in (one, two))
    assert set(together) == set(alone)
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-3, rtol=0)
