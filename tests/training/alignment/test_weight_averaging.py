import dataclasses
import json
import math
import random

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.training.alignment.material import StopAt, random_pairs
from training.alignment.calibration import fit_temperature
from training.alignment.config import AverageWeightsConfig, ConfigError, RewardModelConfig
from training.alignment.evaluation import measure
from training.alignment.preferences import RankedResponses, read_rankings
from training.alignment.reward_model import RewardModel
from training.alignment.reward_net import load_backbone
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import Interrupted, RunDir, StopFlag
from training.alignment.weight_averaging import average_reward_models, average_weights, path_losses


def save(model, tokenizer, folder, **told):
    model.save_pretrained(folder, max_shard_size=told.pop("max_shard_size", "1GB"))
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | told))
    return folder


def shaken(folder, target, seed, *, size=0.01, dtype=torch.float32, part="", **told):
    """A model like the one in the folder, with noise on the weights of a part."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(part):
                weight.add_(size * torch.randn(weight.shape, generator=generator))
    return save(model, AutoTokenizer.from_pretrained(folder), target, **told)


@pytest.fixture(scope="module")
def start(tmp_path_factory, llama_folder):
    """An untrained reward model, as members begin."""
    torch.manual_seed(0)
    model, tokenizer = load_backbone(str(llama_folder))
    return save(model, tokenizer, tmp_path_factory.mktemp("start"))


@pytest.fixture
def members(start, tmp_path):
    return [
        shaken(start, tmp_path / str(seed), seed, reward_mean=[seed], reward_std=[2.0], reward_temperature=[3.0])
        for seed in range(3)
    ]


@pytest.fixture
def rankings(rankings_path):
    return list(read_rankings(rankings_path, "validation"))


# The average


def test_each_weight_is_the_mean_of_the_members(members, tmp_path):
    target = tmp_path / "average"

    found = average_reward_models(members, target)

    weights = [load_file(member / "model.safetensors") for member in members]
    averaged = load_file(target / "model.safetensors")
    assert averaged.keys() == weights[0].keys()
    for name, value in averaged.items():
        mean = torch.stack([one[name].double() for one in weights]).mean(0)
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), mean, rtol=1e-7, atol=0), name
    with safe_open(target / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (found["num_models"], found["weights"]) == (3, [1 / 3] * 3)
    assert 0 < found["distance"] < 0.5
    assert {path.name for path in target.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }


def test_weights_may_be_given_in_any_unit(members, tmp_path):
    found = average_reward_models(members[:2], tmp_path / "average", weights=[3, 1])

    one, other = (load_file(member / "model.safetensors")["score.weight"].double() for member in members[:2])
    averaged = load_file(tmp_path / "average" / "model.safetensors")["score.weight"]
    assert found["weights"] == [0.75, 0.25]
    assert averaged == pytest.approx((0.75 * one + 0.25 * other).float(), abs=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_average_of_linear_heads_predicts_the_mean(start, tmp_path, dtype):
    heads = [shaken(start, tmp_path / str(seed), seed, size=0.3, dtype=dtype, part="score") for seed in range(4)]

    average_reward_models(heads, tmp_path / "average", weights=[1, 2, 3, 4])

    ids = torch.arange(3, 20)[None]
    rewards = [
        AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)(ids).logits.item()
        for folder in (*heads, tmp_path / "average")
    ]
    mean = sum(share * reward for share, reward in zip([0.1, 0.2, 0.3, 0.4], rewards[:4], strict=True))
    assert rewards[4] == pytest.approx(mean, abs={8: 1e-12, 4: 1e-6, 2: 1e-2}[dtype.itemsize])
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "average", dtype="auto").dtype == dtype


def test_the_average_of_a_model_with_itself_is_the_model(start, tmp_path):
    found = average_reward_models([start, start, start], tmp_path / "average", weights=[0.1, 0.2, 0.7])

    averaged, own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "average", start))
    assert all(torch.equal(value, own[name]) for name, value in averaged.items())
    assert found["distance"] == 0


def test_members_in_several_files_are_averaged_into_one(members, start, tmp_path):
    divided = shaken(start, tmp_path / "divided", 0, max_shard_size="50KB")
    assert len(list(divided.glob("*.safetensors"))) > 2

    average_reward_models([divided, members[1]], tmp_path / "average")
    average_reward_models(members[:2], tmp_path / "other")

    averaged, other = (load_file(tmp_path / name / "model.safetensors") for name in ("average", "other"))
    assert averaged.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in averaged.items())


def test_an_average_takes_the_place_of_an_earlier_one(members, tmp_path):
    average_reward_models(members, tmp_path / "average")
    average_reward_models(members[:2], tmp_path / "average")

    assert len(json.loads((tmp_path / "average" / "config.json").read_text())["reward_average"]) == 2
    with pytest.raises(ConfigError):
        average_reward_models([members[0], tmp_path], tmp_path / "average")
    assert len(json.loads((tmp_path / "average" / "config.json").read_text())["reward_average"]) == 2


# Normalisation


def test_mean_deviation_and_temperature_are_fitted_to_the_averages_own_rewards(members, rankings, tmp_path):
    average_reward_models(members, tmp_path / "average", rankings=rankings)

    average = RewardModel.load(tmp_path / "average", "cpu")
    raw = [row[0] for row in average.reward_stream((one.prompt, text) for one in rankings for text in one.responses)]
    mean, std = torch.tensor(raw).double().mean().item(), torch.tensor(raw).double().std(correction=0).item()
    assert (average.mean, average.std) == pytest.approx((mean, std), rel=1e-5)
    rest, margins = iter(raw), []
    for one in rankings:
        own = [next(rest) for _ in one.responses]
        margins += [own[better] - own[worse] for better, worse in one.ordered_places()]
    assert average.temperature == pytest.approx(fit_temperature(margins), rel=1e-5)
    scores = average.score([(one.prompt, text) for one in rankings for text in one.responses])
    assert (sum(scores) / len(scores), torch.tensor(scores).std(correction=0).item()) == pytest.approx((0, 1), abs=1e-5)
    config = json.loads((tmp_path / "average" / "config.json").read_text())
    assert config["reward_reference"]["num_responses"] == len(raw)
    assert config["reward_reference"]["digest"] in (tmp_path / "average" / "README.md").read_text()


def test_without_rankings_a_score_is_a_raw_reward(members, tmp_path):
    average_reward_models(members, tmp_path / "average")

    average = RewardModel.load(tmp_path / "average", "cpu")
    assert (average.mean, average.std, average.temperature) == (0.0, 1.0, 1.0)
    assert "a score is a raw reward" in (tmp_path / "average" / "README.md").read_text()
    pairs = random_pairs(3)
    assert average.score(pairs) == pytest.approx([row[0] for row in average.reward_stream(pairs)])


def test_the_model_card_names_the_parts_by_what_they_hold(members, tmp_path):
    average_reward_models(members, tmp_path / "average", weights=[2, 1, 1])

    card = (tmp_path / "average" / "README.md").read_text()
    parts = json.loads((tmp_path / "average" / "config.json").read_text())["reward_average"]
    assert [part["weight"] for part in parts] == [0.5, 0.25, 0.25]
    assert all(f"| `{part['digest']}` | {part['weight']:.4g} |" in card for part in parts)
    assert str(tmp_path) not in card + json.dumps(parts)


def test_aspects_keep_their_own_temperatures(llama_folder, tmp_path):
    torch.manual_seed(1)
    model, tokenizer = load_backbone(str(llama_folder), num_heads=2)
    two = save(model, tokenizer, tmp_path / "two", reward_aspects=["helpful", "brief"])
    pairs = random_pairs(12)
    rankings = [
        RankedResponses(prompt, (text, "no"), ((0,), (1,)), aspect=("helpful", "brief")[number % 2])
        for number, (prompt, text) in enumerate(pairs)
    ]

    average_reward_models([two, two], tmp_path / "average", rankings=rankings)

    average = RewardModel.load(tmp_path / "average", "cpu")
    raw = {one.responses: list(average.reward_stream((one.prompt, text) for text in one.responses)) for one in rankings}
    for head, aspect in enumerate(average.aspects):
        margins = [
            raw[one.responses][0][head] - raw[one.responses][1][head] for one in rankings if one.aspect == aspect
        ]
        assert average.temperatures[head] == pytest.approx(fit_temperature(margins), rel=1e-4)


# Adapters


def test_adapters_are_merged_first(start, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(start)
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["score"], init_lora_weights=False)
    model.add_adapter(config)
    with torch.no_grad():
        model.score.modules_to_save["default"].weight.add_(0.1)
    model.save_pretrained(tmp_path / "adapters")

    average_reward_models([tmp_path / "adapters", tmp_path / "adapters"], tmp_path / "average")

    ids = torch.arange(3, 20)[None]
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "average")
    assert merged(ids).logits.item() == pytest.approx(model.eval()(ids).logits.item(), abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(start)
    assert abs(merged(ids).logits.item() - plain(ids).logits.item()) > 1e-3


# What cannot be averaged


def test_models_of_another_kind_are_refused(start, members, gpt2_folder, llama_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    gpt2 = save(*load_backbone(str(gpt2_folder)), tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template += "{# another one #}"
    template = save(AutoModelForSequenceClassification.from_pretrained(start), tokenizer, tmp_path / "template")
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(
        AutoModelForSequenceClassification.from_pretrained(start).config
    )
    unrelated = save(model, AutoTokenizer.from_pretrained(start), tmp_path / "unrelated")
    refused = {
        gpt2: "of different kinds: .*architectures is",
        shaken(start, tmp_path / "aspects", 0, reward_aspects=["brief"]): r"reward_aspects is None and \['brief'\]",
        shaken(start, tmp_path / "half", 0, dtype=torch.bfloat16): "dtype is",
        template: "read text by different tokenizers or chat templates",
        unrelated: "not trained from the same beginning: their weights are 100%|9[0-9]% as far",
        tmp_path / "empty": "is no folder of a reward model",
    }
    for other, reason in refused.items():
        with pytest.raises(ConfigError, match=reason):
            average_reward_models([members[0], other], tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_an_average_needs_two_models_and_weights_above_nothing(members, tmp_path):
    with pytest.raises(ConfigError, match="models: an average needs two or more"):
        average_reward_models(members[:1], tmp_path / "average")
    for weights in ([1, 2], [1, 0, 1], [1, -1, 2], [1, math.nan, 1]):
        with pytest.raises(ValueError, match="weights must be 3 finite numbers above 0"):
            average_reward_models(members, tmp_path / "average", weights=weights)
    with pytest.raises(ConfigError, match="there is no ranking to fit"):
        average_reward_models(members, tmp_path / "average", rankings=[])


# The path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, reward_model_folder, rankings_path):
    """Two reward models that went on from the same one, each with its own seed and half of the rankings."""
    folders = []
    lines = rankings_path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    for seed in range(2):
        path = tmp_path_factory.mktemp("trained")
        (path / "preferences.jsonl").write_text("\n".join(lines[seed::2]) + "\n")
        config = RewardModelConfig(
            backbone=str(reward_model_folder), num_epochs=1, learning_rate=1e-3, seed=seed, eval_steps=100
        )
        run_dir = RunDir.create(path, config)
        train_reward_model(config, run_dir, StopFlag())
        folders.append(run_dir.model)
    return folders


def test_between_models_of_one_beginning_the_loss_stays_low(trained, rankings_path, tmp_path):
    rankings = list(read_rankings(rankings_path, "test"))

    path = path_losses(*trained, rankings)

    assert path.shares == (0, 0.25, 0.5, 0.75, 1)
    assert path.barrier == max(path.losses) - max(path.losses[0], path.losses[-1])
    assert path.barrier <= 0.02
    average_reward_models(trained, tmp_path / "average", rankings=rankings)
    for folder, loss in (
        (trained[0], path.losses[0]),
        (tmp_path / "average", path.losses[2]),
        (trained[1], path.losses[4]),
    ):
        model = RewardModel.load(folder, "cpu")
        rewards = [
            [row[0] for row in model.reward_stream((one.prompt, text) for text in one.responses)] for one in rankings
        ]
        assert measure(rankings, rewards)["loss"] == pytest.approx(loss, abs=1e-5)


def test_a_run_averages_and_measures(trained, rankings_path, tmp_path):
    config = AverageWeightsConfig(preferences=str(rankings_path), models=f"{trained[0]}, {trained[1]}", split="test")
    run_dir = RunDir.create(tmp_path, config)

    result = average_weights(config, run_dir, StopFlag())

    rankings = list(read_rankings(rankings_path, "test"))
    path = path_losses(*trained, rankings)
    model = RewardModel.load(run_dir.model, "cpu")
    assert result == {
        "model": "model",
        "num_models": 2,
        "weights": [0.5, 0.5],
        "distance": result["distance"],
        "member_losses": [path.losses[0], path.losses[-1]],
        "barrier": path.barrier,
        **measure(
            rankings,
            [[row[0] for row in model.reward_stream((one.prompt, text) for text in one.responses)] for one in rankings],
        ),
        "loss": pytest.approx(path.losses[2], abs=1e-5),
    }
    assert 0 < result["distance"] < 0.2
    assert result["accuracy"] > 0.7
    assert [line["progress"] for line in run_dir.read_metrics()] == [0.5]
    with pytest.raises(Interrupted, match="stopped after measuring 0 of 1 paths"):
        average_weights(config, run_dir, StopAt(1))
    for values, reason in (
        ({"models": "somewhere"}, "models: an average needs two or more"),
        ({"models": "somewhere, else"}, "models: somewhere is no folder of a reward model"),
        ({"preferences": str(tmp_path / "few.jsonl")}, "no ranking of the test split orders responses by overall"),
    ):
        (tmp_path / "few.jsonl").touch()
        with pytest.raises(ConfigError, match=reason):
            average_weights(dataclasses.replace(config, **values), run_dir, StopFlag())


def test_a_barrier_is_seen(trained, rankings, tmp_path):
    """Turning the head round makes two models whose mean knows nothing."""
    model = AutoModelForSequenceClassification.from_pretrained(trained[0])
    with torch.no_grad():
        model.score.weight.neg_()
        model.model.norm.weight.neg_()
    turned = save(model, AutoTokenizer.from_pretrained(trained[0]), tmp_path / "turned")

    path = path_losses(trained[0], turned, rankings)

    assert path.losses[0] == pytest.approx(path.losses[-1], abs=1e-4)
    assert path.barrier > 0.02
    with pytest.raises(ConfigError, match="no ranking puts one response above another"):
        path_losses(*trained, [RankedResponses([{"role": "user", "content": "?"}], ("a", "b"), ((0, 1),))])
