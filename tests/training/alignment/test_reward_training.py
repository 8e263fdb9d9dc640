import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    GPTBigCodeConfig,
    MPNetConfig,
)

from tests.training.alignment.material import (
    StopAt,
    alone,
    random_pairs,
    save_backbone,
    write_length_world,
    write_rankings,
)
from training.alignment.calibration import fit_temperature
from training.alignment.config import ConfigError, RewardModelConfig
from training.alignment.evaluation import measure
from training.alignment.preferences import read_rankings
from training.alignment.reward_model import RewardModel
from training.alignment.reward_net import RewardNet
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, file_digest


def start(path, backbone, preferences, **values) -> tuple[RewardModelConfig, RunDir]:
    config = RewardModelConfig(
        **{
            "backbone": str(backbone),
            "preferences": str(preferences),
            "learning_rate": 3e-3,
            "num_epochs": 1.0,
            "save_minutes": 60.0,
            **values,
        }
    )
    return config, RunDir.create(path, config)


def curve(run_dir: RunDir) -> list[dict]:
    return [{key: line[key] for key in line if key != "time"} for line in run_dir.read_metrics()]


def distinct_texts(path: Path) -> set[tuple[str, frozenset[str]]]:
    """The responses of each training ranking that teaches anything: what was judged twice is there once."""
    decided = [ranked for ranked in read_rankings(path, split="train") if ranked.is_decided]
    return {(ranked.prompt[0]["content"], frozenset(ranked.responses)) for ranked in decided}


def losses(run_dir: RunDir) -> list[float]:
    return [line["loss"] for line in run_dir.read_metrics() if line["phase"] == "train"]


def test_a_reward_model_learns_what_is_better(reward_model_run):
    result = reward_model_run.read_result()

    assert result == {
        "model": "model",
        "accuracy": 1.0,
        "interval": [pytest.approx(0.81, abs=0.01), 1.0],
        "num_pairs": 102,
        "num_prompts": 20,
        "loss": pytest.approx(0, abs=0.1),
        "validation_loss": pytest.approx(0, abs=0.2),  # at a temperature that never claims certainty
        "best_step": result["best_step"],
        "num_steps": 48,
        "num_train_rankings": 92,
        "num_tied_rankings": 4,
        "num_too_long": 0,
        "num_shared_prompts": result["num_shared_prompts"],
        "num_truncated": 0,
        "packing": "shared",
        "real_tokens": 1.0,
        "temperature": result["temperature"],
    }
    model = RewardModel.load(reward_model_run.model)
    prompt = [{"role": "user", "content": "What do I put into dish 500?"}]
    scores = model.score(
        [(prompt, "salt salt salt salt"), (prompt, "eggs salt salt eggs"), (prompt, "eggs eggs eggs eggs")]
    )
    assert scores == sorted(scores)


def test_metrics_tell_how_far_it_is(reward_model_run):
    lines = curve(reward_model_run)

    assert [(line["step"], line["phase"]) for line in lines] == [
        (step, phase) for step in range(1, 49) for phase in (["train", "validation"] if step % 12 == 0 else ["train"])
    ]
    assert [line["progress"] for line in lines] == [pytest.approx(0.95 * line["step"] / 48) for line in lines]
    assert {frozenset(line) for line in lines} == {
        frozenset({"step", "phase", "progress", "loss", "learning_rate", "tokens"}),
        frozenset({"step", "phase", "progress", "loss", "accuracy"}),
    }


def test_scores_have_mean_zero_and_deviation_one_on_the_training_set(reward_model_run, rankings_path):
    model = RewardModel.load(reward_model_run.model)
    train = list(read_rankings(rankings_path, split="train"))

    scores = model.score([(ranked.prompt, text) for ranked in train for text in ranked.responses])

    assert statistics.fmean(scores) == pytest.approx(0, abs=1e-6)
    assert statistics.pstdev(scores) == pytest.approx(1, abs=1e-6)
    assert model.max_length == 512


def test_the_best_on_validation_is_kept(tmp_path, llama_folder, rankings_path):
    """Validation that contradicts training: the more is learned, the worse it gets."""
    contrary = tmp_path / "contrary.jsonl"
    rows = [json.loads(line) for line in rankings_path.read_text().splitlines()]
    for row in rows:
        row["ranking"] = row["ranking"][::-1] if row["split"] == "validation" else row["ranking"]
    contrary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, run_dir = start(tmp_path / "run", llama_folder, contrary, eval_steps=1, num_epochs=2.0)

    result = train_reward_model(config, run_dir, StopFlag())

    validations = {line["step"]: line["loss"] for line in curve(run_dir) if line["phase"] == "validation"}
    assert result["best_step"] == min(validations, key=validations.__getitem__) < result["num_steps"]
    assert result["validation_loss"] == validations[result["best_step"]]
    model = RewardModel.load(run_dir.model)
    validation = list(read_rankings(contrary, split="validation"))
    rewards = [
        [model.std * score for score in model.score([(ranked.prompt, text) for text in ranked.responses])]
        for ranked in validation
    ]
    calibrated = [[reward / model.temperature for reward in own] for own in rewards]
    assert measure(validation, calibrated)["loss"] == pytest.approx(result["validation_loss"], abs=1e-5)


def test_a_run_whose_validation_gets_no_better_stops_early(tmp_path, llama_folder, rankings_path):
    values = {"eval_steps": 2, "num_epochs": 40.0, "learning_rate": 1e-2, "patience": 3}
    config, run_dir = start(tmp_path, llama_folder, rankings_path, **values)

    result = train_reward_model(config, run_dir, StopFlag())

    assert result["num_steps"] == result["best_step"] + 2 * 3 < 40 * 6


def test_each_response_goes_through_the_model_once_a_step(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path, eval_steps=1000, batch_size=1000)
    num_texts = []

    def count(module, inputs):
        if isinstance(module, RewardNet) and torch.is_grad_enabled():
            num_texts.append(len(inputs[0].lasts))

    hook = register_module_forward_pre_hook(count)
    try:
        train_reward_model(config, run_dir, StopFlag())
    finally:
        hook.remove()

    assert len(losses(run_dir)) == 1
    assert sum(num_texts) == sum(len(texts) for _, texts in distinct_texts(rankings_path))


def test_how_a_step_is_cut_into_batches_changes_nothing(tmp_path, llama_folder, rankings_path):
    curves = []
    for max_tokens in (64, 16384):
        config, run_dir = start(tmp_path / str(max_tokens), llama_folder, rankings_path, max_tokens=max_tokens)
        train_reward_model(config, run_dir, StopFlag())
        curves.append(losses(run_dir))

    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_same_seed_same_weights(tmp_path, llama_folder, rankings_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config, run_dir = start(tmp_path / name, llama_folder, rankings_path, seed=seed, num_epochs=0.5)
        train_reward_model(config, run_dir, StopFlag())
        weights.append((run_dir.model / "model.safetensors").read_bytes())

    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("is_validated", [True, False])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(tmp_path, llama_folder, rankings_path, is_validated):
    if not is_validated:
        rankings_path = write_rankings(tmp_path / "rankings", num_train=60, num_validation=0, num_test=10)
    values = {"num_epochs": 1.5, "eval_steps": 2}
    config, whole = start(tmp_path / "whole", llama_folder, rankings_path, **values)
    expected = train_reward_model(config, whole, StopFlag())
    config, halting = start(tmp_path / "halting", llama_folder, rankings_path, **values)

    num_stops = 0
    result = None
    while result is None:
        try:  # every attempt takes a step and is stopped, in the end while scoring
            result = train_reward_model(config, halting, StopAt(1 if num_stops < expected["num_steps"] else 3))
        except Interrupted:
            num_stops += 1

    assert num_stops >= expected["num_steps"]
    assert result == expected
    assert curve(halting) == curve(whole)
    for name in ("model.safetensors", "config.json"):
        assert (halting.model / name).read_bytes() == (whole.model / name).read_bytes()


def test_a_checkpoint_holds_no_pickle(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path)

    with pytest.raises(Interrupted, match="stopped after step 1 of 6"):
        train_reward_model(config, run_dir, StopAt(1))

    folder, state = run_dir.latest_checkpoint()
    counted = {"learned": {}, "num_real": state["num_real"], "num_computed": state["num_real"]}
    assert state == {"step": 1, "validated_step": 0, "best_step": 0, "best_loss": None, "num_worse": 0, **counted}
    assert sorted(path.name for path in folder.iterdir()) == [
        "COMPLETE.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "training.json",
        "weights.safetensors",
    ]


def test_without_test_rankings_the_result_says_why_there_is_no_accuracy(tmp_path, gpt2_folder):
    preferences = write_rankings(tmp_path / "rankings", num_train=8, num_validation=0, num_test=0)
    config, run_dir = start(tmp_path / "run", gpt2_folder, preferences, max_length=20)

    assert train_reward_model(config, run_dir, StopFlag()) == {
        "model": "model",
        "accuracy": None,
        "interval": None,
        "num_pairs": 0,
        "num_prompts": 0,
        "loss": None,
        "note": "No accuracy: no ranking of the test split puts one response above another.",
        "num_steps": 1,
        "num_train_rankings": 8,
        "num_tied_rankings": 0,
        "num_too_long": 0,
        "num_shared_prompts": 0,
        "packing": "shared",
        "real_tokens": 1.0,
        "temperature": None,
        "num_truncated": sum(len(texts) for _, texts in distinct_texts(preferences)),
    }
    assert math.isfinite(RewardModel.load(run_dir.model).score(random_pairs(1))[0])


def test_nothing_to_learn_from_is_told_in_words(tmp_path, llama_folder, rankings_path):
    ties = tmp_path / "ties.jsonl"
    rows = [json.loads(line) for line in rankings_path.read_text().splitlines()[:3]]
    ties.write_text(
        "".join(json.dumps({**row, "ranking": [list(range(len(row["responses"])))]}) + "\n" for row in rows)
    )
    config, run_dir = start(tmp_path / "run", llama_folder, ties)

    with pytest.raises(ConfigError) as refused:
        train_reward_model(config, run_dir, StopFlag())
    assert str(refused.value) == (
        "preferences: nothing to learn: all 3 training rankings of aspect overall tie all responses"
    )
    with pytest.raises(ConfigError, match=r"^preferences: the train split has no rankings of aspect style$"):
        train_reward_model(dataclasses.replace(config, aspect="style"), run_dir, StopFlag())


@pytest.mark.parametrize("ties", ["exact", "davidson"])
def test_each_aspect_must_have_something_to_learn_from(tmp_path, llama_folder, rankings_path, ties):
    tied = tmp_path / "tied.jsonl"
    rows = [json.loads(line) for line in rankings_path.read_text().splitlines()]
    other = [{**row, "aspect": "style", "ranking": [list(range(len(row["responses"])))]} for row in rows]
    tied.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *other]))
    config, run_dir = start(tmp_path / "run", llama_folder, tied, ties=ties)

    for aspect, missing in (("overall, style", "style"), ("charm, overall", "charm")):
        with pytest.raises(ConfigError) as refused:
            train_reward_model(dataclasses.replace(config, aspect=aspect), run_dir, StopFlag())
        assert str(refused.value) == f"aspect: no training ranking of {missing} puts one response above another"
    with pytest.raises(ConfigError, match=r"^aspect: overall is named twice$"):
        train_reward_model(dataclasses.replace(config, aspect="overall, style, overall"), run_dir, StopFlag())


def test_labels_of_lists_that_nobody_sorted_to_the_end_are_not_smoothed_under_davidson(tmp_path, llama_folder):
    path = tmp_path / "best.jsonl"
    row = {"prompt": "Eggs?", "responses": ["Eight.", "No.", "?"], "ranking": [[0], [1, 2]], "meta": {"kind": "best"}}
    path.write_text(json.dumps({**row, "split": "train"}) + "\n")
    config, run_dir = start(tmp_path / "run", llama_folder, path, ties="davidson", label_smoothing=0.1)

    with pytest.raises(ConfigError, match=r"^label_smoothing: under davidson lists whose last responses nobody sorted"):
        train_reward_model(config, run_dir, StopFlag())


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path, learning_rate=1e30)

    with pytest.raises(FloatingPointError, match=r"^the loss of step \d is nan; try a lower learning_rate$"):
        train_reward_model(config, run_dir, StopFlag())


# What a run can be told


def aspects_path(path: Path, rankings_path: Path) -> Path:
    """The same responses judged twice: the more eggs the better, and in style the other way round; half of them."""
    rows = [json.loads(line) for line in rankings_path.read_text().splitlines()]
    other = [{**row, "aspect": "style", "ranking": row["ranking"][::-1]} for row in rows[::2]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *other]))
    return path


def test_aspects_are_learned_together_by_a_head_each(tmp_path, llama_folder, rankings_path):
    preferences = aspects_path(tmp_path / "aspects.jsonl", rankings_path)
    values = {"aspect": "overall, style", "num_epochs": 8.0, "eval_steps": 12}
    config, run_dir = start(tmp_path / "run", llama_folder, preferences, **values)

    result = train_reward_model(config, run_dir, StopFlag())

    assert result["accuracy"] > 0.95
    model = RewardModel.load(run_dir.model)
    assert (model.aspects, len(model.stds)) == (("overall", "style"), 2)
    prompt = [{"role": "user", "content": "What do I put into dish 500?"}]
    pairs = [(prompt, "salt salt salt salt"), (prompt, "eggs eggs eggs eggs")]
    overall, style = model.score(pairs), model.score(pairs, aspect="style")
    assert overall[0] < overall[1]
    assert style[0] > style[1]
    assert RewardModel.load(run_dir.model, aspect="style").score(pairs) == style
    classifier = AutoModelForSequenceClassification.from_pretrained(run_dir.model)
    assert classifier.config.id2label == {0: "overall", 1: "style"}


@pytest.mark.parametrize(
    "values",
    [
        {"lora_rank": 8, "learning_rate": 2e-2},
        {"gradient_checkpointing": True},
        {"precision": "bf16"},
        {"dropout": True},
        {"packing": "separate"},
        {"packing": "padded"},
        {"loss": "all_pairs", "label_smoothing": 0.02},
        {"ties": "davidson"},
        {"ties": "rao_kupper", "learn_flip_rate": True, "flip_rate": 0.05},
        {"annotators": "temperatures"},
        {"annotators": "flip_rates"},
        {"annotators": "weights", "centring": 0.001, "margin": 1.0},
    ],
    ids="-".join,
)
def test_whatever_a_run_is_told_it_learns_and_others_read_its_rewards(tmp_path, gpt2_folder, rankings_path, values):
    rows = [json.loads(line) for line in rankings_path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"annotator": f"a{number % 3}", "weight": 1.0 + number % 2, "strength": 1 + number % 2}
    preferences = tmp_path / "rankings.jsonl"
    preferences.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"num_epochs": 5.0, "eval_steps": 15, "learning_rate": 5e-3, **values}
    config, run_dir = start(tmp_path / "run", gpt2_folder, preferences, **told)

    result = train_reward_model(config, run_dir, StopFlag())

    assert result["accuracy"] > 0.8
    assert result["packing"] == values.get("packing", "shared")
    model = RewardModel.load(run_dir.model)
    pairs = random_pairs(5)
    raw = [float(row[0]) for row in model.reward_stream(pairs)]
    ids = [model.encode(*pair).ids for pair in pairs]
    classifier = AutoModelForSequenceClassification.from_pretrained(run_dir.model)
    assert raw == pytest.approx([classifier(torch.tensor([one])).logits.item() for one in ids], abs=1e-5)
    assert model.score(pairs) == pytest.approx([(one - model.mean) / model.std for one in raw], abs=1e-5)


@pytest.mark.slow
def test_what_memory_is_saved_by_changes_nothing(tmp_path, llama_folder, rankings_path):
    curves = []
    for values in ({}, {"gradient_checkpointing": True}, {"packing": "separate"}, {"packing": "padded"}):
        config, run_dir = start(tmp_path / str(len(curves)), llama_folder, rankings_path, **values)
        train_reward_model(config, run_dir, StopFlag())
        curves.append(losses(run_dir))

    for other in curves[1:]:
        assert other == pytest.approx(curves[0], abs=1e-4)


def test_checkpointing_switches_no_dropout_on_by_whatever_name(tmp_path, gpt2_folder, rankings_path):
    config = GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=2, n_positions=256, attn_pdrop=0.5)
    backbone = save_backbone(tmp_path / "starcoder", config, gpt2_folder)
    curves = []
    for is_checkpointing in (False, True):
        values = {"gradient_checkpointing": is_checkpointing, "num_epochs": 0.5}
        config, run_dir = start(tmp_path / str(is_checkpointing), backbone, rankings_path, **values)
        train_reward_model(config, run_dir, StopFlag())
        curves.append(losses(run_dir))

    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


def test_a_model_that_knows_no_checkpointing_says_so(tmp_path, gpt2_folder, rankings_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = save_backbone(tmp_path / "mpnet", MPNetConfig(**sizes), gpt2_folder)
    config, run_dir = start(tmp_path / "run", backbone, rankings_path, gradient_checkpointing=True)

    with pytest.raises(ConfigError, match=r"^gradient_checkpointing: .* does not support"):
        train_reward_model(config, run_dir, StopFlag())


def test_an_encoder_with_a_decoder_learns_and_goes_on_where_it_stopped(tmp_path, gpt2_folder, rankings_path):
    parts = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256, **parts)
    backbone = save_backbone(tmp_path / "bart", config, gpt2_folder)
    config, whole = start(tmp_path / "whole", backbone, rankings_path)
    expected = train_reward_model(config, whole, StopFlag())
    config, halting = start(tmp_path / "halting", backbone, rankings_path)
    with pytest.raises(Interrupted):
        train_reward_model(config, halting, StopAt(3))

    assert train_reward_model(config, halting, StopFlag()) == expected
    assert expected["packing"] == "padded"
    assert curve(halting) == curve(whole)


def test_a_run_killed_before_its_first_checkpoint_logs_nothing_twice(tmp_path, llama_folder, rankings_path):
    config, whole = start(tmp_path / "whole", llama_folder, rankings_path)
    train_reward_model(config, whole, StopFlag())
    config, killed = start(tmp_path / "killed", llama_folder, rankings_path)
    lines = whole.metrics.read_text().splitlines(keepends=True)
    killed.metrics.write_text("".join(lines[:3]) + lines[3][:9])  # the last one half written

    train_reward_model(config, killed, StopFlag())

    assert curve(killed) == curve(whole)


@pytest.mark.slow
def test_what_length_counts_for_is_left_out_of_the_rewards(tmp_path, llama_folder):
    preferences = write_length_world(tmp_path / "rankings", 150, ("train",), overall=1.5)
    values = {"length": "control", "num_epochs": 6.0}
    config, run_dir = start(tmp_path / "run", llama_folder, preferences, **values)

    result = train_reward_model(config, run_dir, StopFlag())

    assert result["learned"] == {"nats_per_doubling_of_length": {"overall": pytest.approx(1.5, rel=0.2)}}
    assert "in favour of a response twice as long" in (run_dir.model / "README.md").read_text()
    model = RewardModel.load(run_dir.model)
    prompt = [{"role": "user", "content": "What do I put into dish 500?"}]
    fillers = ["", " thank thank", " thank" * 8]
    scores = model.score([(prompt, "eggs " * n + "salt " * (4 - n) + filler) for n in range(5) for filler in fillers])
    by_eggs = [scores[start : start + 3] for start in range(0, 15, 3)]
    for fewer, more in itertools.pairwise(by_eggs):  # however long
        assert max(fewer) < min(more)
    raw_nats = model.std / (4 * math.log2(7))
    assert raw_nats * abs(sum(own[2] - own[0] for own in by_eggs)) < 0.15


def test_each_aspect_has_its_own_weight_of_length_and_a_run_goes_on_with_them(tmp_path, llama_folder):
    preferences = write_length_world(tmp_path / "rankings", 40, overall=3.0, style=-3.0)
    values = {"length": "control", "aspect": "overall, style", "ties": "davidson", "eval_steps": 2, "num_epochs": 2.0}
    config, whole = start(tmp_path / "whole", llama_folder, preferences, **values)
    expected = train_reward_model(config, whole, StopFlag())
    config, halting = start(tmp_path / "halting", llama_folder, preferences, **values)

    with pytest.raises(Interrupted):
        train_reward_model(config, halting, StopAt(3))
    weights = load_file(halting.latest_checkpoint()[0] / "weights.safetensors")

    assert train_reward_model(config, halting, StopFlag()) == expected
    assert curve(halting) == curve(whole)
    found = expected["learned"]["nats_per_doubling_of_length"]
    assert found["style"] < 0 < found["overall"]
    for name in ("length_weights", "length_prices"):
        assert weights[f"likelihood.{name}"].abs().min() > 0


@pytest.mark.slow
def test_however_rows_are_packed_and_cut_length_is_controlled_alike(tmp_path, llama_folder):
    preferences = write_length_world(tmp_path / "rankings", 40, overall=3.0)
    curves, found = [], []
    for values in ({}, {"packing": "separate"}, {"packing": "padded"}, {"max_tokens": 64}):
        told = {"length": "control", "eval_steps": 1000, "length_penalty": 1.0, **values}
        config, run_dir = start(tmp_path / str(len(curves)), llama_folder, preferences, **told)
        result = train_reward_model(config, run_dir, StopFlag())
        curves.append(losses(run_dir))
        found.append(result["learned"]["nats_per_doubling_of_length"])

    for own_curve, own in zip(curves[1:], found[1:], strict=True):
        assert own_curve == pytest.approx(curves[0], abs=1e-4)
        assert own == pytest.approx(found[0], abs=1e-3)


def test_the_best_on_validation_is_the_one_that_explains_judgments_with_their_length(tmp_path, llama_folder):
    preferences = write_length_world(tmp_path / "rankings", 40, overall=8.0)
    config, run_dir = start(tmp_path / "run", llama_folder, preferences, length="control", eval_steps=2)

    result = train_reward_model(config, run_dir, StopFlag())

    model = RewardModel.load(run_dir.model)
    validation = list(read_rankings(preferences, "validation"))
    nats = result["learned"]["nats_per_doubling_of_length"]["overall"]
    seen = [
        [model.std * model.score([(one.prompt, text)])[0] + nats * math.log2(len(text)) for text in one.responses]
        for one in validation
    ]
    temperature = fit_temperature(
        [own[i] - own[j] for one, own in zip(validation, seen, strict=True) for i, j in one.ordered_places()]
    )
    calibrated = [[reward / temperature for reward in own] for own in seen]
    assert result["validation_loss"] == pytest.approx(measure(validation, calibrated)["loss"], abs=1e-5)


def test_where_all_are_as_long_to_control_length_changes_nothing(tmp_path, llama_folder, rankings_path):
    curves = []
    for length in ("ignore", "control"):
        config, run_dir = start(tmp_path / length, llama_folder, rankings_path, length=length, num_epochs=0.5)
        assert "learned" not in train_reward_model(config, run_dir, StopFlag())
        curves.append(losses(run_dir))

    assert curves[0] == curves[1]


def test_what_is_random_in_a_step_follows_from_its_number(tmp_path, gpt2_folder, rankings_path):
    values = {"dropout": True, "ties": "davidson", "lora_rank": 4, "eval_steps": 2}
    config, whole = start(tmp_path / "whole", gpt2_folder, rankings_path, **values)
    expected = train_reward_model(config, whole, StopFlag())
    config, halting = start(tmp_path / "halting", gpt2_folder, rankings_path, **values)

    with pytest.raises(Interrupted):
        train_reward_model(config, halting, StopAt(4))

    assert train_reward_model(config, halting, StopFlag()) == expected
    assert curve(halting) == curve(whole)


def test_the_folder_tells_what_it_was_made_from(reward_model_run, rankings_path):
    config = json.loads((reward_model_run.model / "config.json").read_text())
    digest = file_digest(rankings_path)

    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["reward_aspects"] == ["overall"]
    assert config["reward_reference"]["digest"] == digest
    assert {len(config[name]) for name in ("reward_mean", "reward_std", "reward_temperature")} == {1}
    assert digest in (reward_model_run.model / "README.md").read_text()
    report = json.loads((reward_model_run.path / "report.json").read_text())
    assert report["figures"]["accuracy"]["value"] == reward_model_run.read_result()["accuracy"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu_in_bfloat16_learns_and_scores_in_single(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path, num_epochs=8.0, eval_steps=12)

    result = train_reward_model(config, run_dir, StopFlag())

    model = RewardModel.load(run_dir.model)
    pairs = random_pairs(100)
    assert result["accuracy"] > 0.95
    assert model.device.type == "cuda"
    assert model.score(pairs) == pytest.approx(alone(model, pairs), abs=1e-4)
