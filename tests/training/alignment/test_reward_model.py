import dataclasses
import json
import math
import random
import statistics

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from tests.training.alignment.material import StopAt, write_rankings
from training.alignment.batching import pad
from training.alignment.config import ConfigError, RewardModelConfig
from training.alignment.evaluation import measure
from training.alignment.preferences import read_rankings
from training.alignment.reward_model import (
    RewardModel,
    RewardNet,
    join_processes,
    load_backbone,
    score_rankings,
    train_reward_model,
)
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

WORDS = ["eggs", "rice", "water", "salt", "boil", "minutes", "please", "thank", "1", "2", "<|end|>", "é", "你好"]


def random_pairs(n: int, seed: int = 0) -> list:
    draw = random.Random(seed)

    def text(longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    return [([{"role": "user", "content": text(20)}], text(draw.choice([3, 40]))) for _ in range(n)]


@pytest.fixture(params=["llama", "gpt2"])
def untrained_folder(request, tmp_path):
    """A reward model with a random head, saved as training saves it."""
    model, tokenizer = load_backbone(str(request.getfixturevalue(f"{request.param}_folder")))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory, llama_folder):
    """Somebody's encoder with a head: pooled at its first token, no chat template."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(
        llama_folder, cls_token="<|begin|>", sep_token="<|end|>", bos_token=None, eos_token=None
    )
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|begin|> $0 <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)]
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


# Scores


def alone(model: RewardModel, pairs: list) -> list[float]:
    return [model.score([pair])[0] for pair in pairs]


def test_a_score_does_not_depend_on_the_batch_it_came_in(untrained_folder):
    pairs = random_pairs(150)
    expected = alone(RewardModel.load(untrained_folder), pairs)

    for max_tokens in (64, 500, 100_000):
        model = RewardModel.load(untrained_folder, max_tokens=max_tokens)
        order = random.Random(max_tokens).sample(range(150), 150)
        scores = model.score([pairs[place] for place in order])
        assert scores == pytest.approx([expected[place] for place in order], abs=1e-5)
    assert statistics.pstdev(expected) > 0.01  # they do differ


def test_an_encoder_scores_whatever_the_batch(bert_folder):
    model = RewardModel.load(bert_folder)
    pairs = random_pairs(40)

    assert model.score(pairs) == pytest.approx(alone(model, pairs), abs=1e-5)
    classifier = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    ids = model.encode(*pairs[0]).ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert model.score(pairs[:1]) == pytest.approx(classifier(torch.tensor([ids])).logits[0].tolist(), abs=1e-5)


def test_equal_texts_score_exactly_alike_and_nothing_scores_nothing(untrained_folder):
    model = RewardModel.load(untrained_folder)
    pair, other = random_pairs(2)

    scores = model.score([pair, other, pair])

    assert scores[0] == scores[2] != scores[1]
    assert model.score([]) == []


def test_the_reward_is_read_at_the_end_of_the_text_whatever_token_stands_there(untrained_folder):
    model = RewardModel.load(untrained_folder)
    end, padding = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    cases = [[70, 80, 90], [70, 80, 90, end], [70, 80, 90, end, end], [70, 80, 90, padding]]

    with torch.inference_mode():
        together = model.net(*pad(cases, model.device)).tolist()
        one_by_one = [model.net(*pad([ids], model.device)).item() for ids in cases]

    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert len({round(reward, 4) for reward in together}) == 4


def test_dropout_is_off(gpt2_folder):
    model, _ = load_backbone(str(gpt2_folder))  # which has dropout of 0.1
    net = RewardNet(model)
    ids, mask = pad([[70, 80, 90]], torch.device("cpu"))

    assert net(ids, mask).tolist() == net(ids, mask).tolist()


def test_other_programs_read_the_same_reward(untrained_folder):
    model = RewardModel.load(untrained_folder)
    pairs = random_pairs(120)
    pairs = [(messages, text) for messages, text in pairs if "<|end|>" not in str(messages) + text]
    tokenizer = AutoTokenizer.from_pretrained(untrained_folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(untrained_folder)
    chats = [[*messages, {"role": "assistant", "content": text}] for messages, text in pairs]

    batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    rewards = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]

    assert len(pairs) > 10
    assert rewards.tolist() == pytest.approx(model.score(pairs), abs=1e-5)


def test_normalised_scores_are_stored_beside_the_weights(untrained_folder):
    pairs = [([{"role": "user", "content": "Eggs?"}], text) for text in ("Eight minutes.", "Water", "No")]
    raw = RewardModel.load(untrained_folder).score(pairs)
    config = json.loads((untrained_folder / "config.json").read_text())
    config |= {"reward_mean": 2.0, "reward_std": 4.0, "reward_max_length": 50}
    (untrained_folder / "config.json").write_text(json.dumps(config))

    model = RewardModel.load(untrained_folder)

    assert (model.mean, model.std, model.max_length) == (2.0, 4.0, 50)
    assert model.score(pairs) == pytest.approx([(reward - 2) / 4 for reward in raw], abs=1e-6)


def test_no_text_is_longer_than_the_model_has_positions_for(untrained_folder):
    model = RewardModel.load(untrained_folder, max_length=10_000)
    prompt = [{"role": "user", "content": "eggs " * 2000}]

    assert len(model.encode(prompt, "Eight.").ids) == model.max_length == model.net.model.config.max_position_embeddings
    assert math.isfinite(model.score([(prompt, "Eight.")])[0])


@pytest.mark.parametrize("is_classifier", [True, False])
def test_what_is_no_reward_model_is_refused(llama_folder, tmp_path, is_classifier):
    if is_classifier:
        folder = tmp_path / "sentiments"
        LlamaForSequenceClassification.from_pretrained(llama_folder, num_labels=2).save_pretrained(folder)
        message = f"{folder} is no reward model: it has 2 outputs instead of one"
    else:
        folder, message = llama_folder, f"{llama_folder} is not a reward model: it lacks score.weight"

    with pytest.raises(ConfigError) as refused:
        RewardModel.load(folder)

    assert str(refused.value) == message


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=rf"^{tmp_path} cannot be loaded: Unrecognized model"):
        RewardModel.load(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        RewardModel.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no model is named"):
        RewardModel.load("")


def test_weights_in_a_pickle_are_never_read(llama_folder, tmp_path):
    model = LlamaForSequenceClassification.from_pretrained(llama_folder, num_labels=1)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    with pytest.raises(OSError, match=r"model\.safetensors"):
        RewardModel.load(tmp_path)


# The backbone


def test_a_new_head_starts_small_and_by_the_seed(llama_folder):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load_backbone(str(llama_folder))[0].score.weight.detach())

    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std().item() == pytest.approx(1 / math.sqrt(33), rel=0.4)


def test_a_head_that_was_trained_is_kept(untrained_folder):
    model, _ = load_backbone(str(untrained_folder))

    assert torch.equal(model.score.weight, load_file(untrained_folder / "model.safetensors")["score.weight"])


def test_padding_gets_a_token_of_its_own_where_it_would_look_like_the_end(gpt2_folder, llama_folder):
    model, tokenizer = load_backbone(str(gpt2_folder))

    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|pad|>", len(tokenizer) - 1)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert len(model.get_input_embeddings().weight) == len(tokenizer) == 301
    model, tokenizer = load_backbone(str(llama_folder))
    assert (tokenizer.pad_token_id, model.config.pad_token_id, len(tokenizer)) == (0, 0, 320)


# Training


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
        "validation_loss": pytest.approx(0, abs=0.1),
        "best_step": result["best_step"],
        "num_steps": 48,
        "num_train_rankings": 92,
        "num_tied_rankings": 4,
        "num_truncated": 0,
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
        frozenset({"step", "phase", "progress", "loss", "learning_rate"}),
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
    config, run_dir = start(tmp_path, llama_folder, rankings_path, eval_steps=1, learning_rate=0.3, warmup_ratio=1.0)

    result = train_reward_model(config, run_dir, StopFlag())

    validations = {line["step"]: line["loss"] for line in curve(run_dir) if line["phase"] == "validation"}
    assert result["best_step"] == min(validations, key=validations.__getitem__) < result["num_steps"]
    assert result["validation_loss"] == validations[result["best_step"]]
    model = RewardModel.load(run_dir.model)
    validation = list(read_rankings(rankings_path, split="validation"))
    rewards = [
        [model.std * score for score in model.score([(ranked.prompt, text) for text in ranked.responses])]
        for ranked in validation
    ]
    assert measure(validation, rewards)["loss"] == pytest.approx(result["validation_loss"], abs=1e-5)


def test_each_response_goes_through_the_model_once_a_step(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path, eval_steps=1000, batch_size=1000)
    num_rows = []

    def count(module, inputs):
        if isinstance(module, RewardNet) and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            num_rows.append(len(inputs[0]))

    hook = register_module_forward_pre_hook(count)
    try:
        train_reward_model(config, run_dir, StopFlag())
    finally:
        hook.remove()

    decided = [ranked for ranked in read_rankings(rankings_path, split="train") if ranked.is_decided]
    assert len(losses(run_dir)) == 1
    assert sum(num_rows) == sum(len(ranked.responses) for ranked in decided)


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
    assert state == {"step": 1, "validated_step": 0, "best_step": 0, "best_loss": None}
    assert sorted(path.name for path in folder.iterdir()) == [
        "COMPLETE.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "training.json",
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
        "num_truncated": sum(len(ranked.responses) for ranked in read_rankings(preferences)),
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


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, llama_folder, rankings_path):
    config, run_dir = start(tmp_path, llama_folder, rankings_path, learning_rate=1e30)

    with pytest.raises(FloatingPointError, match=r"^the loss of step \d is nan; try a lower learning_rate$"):
        train_reward_model(config, run_dir, StopFlag())


def test_rankings_are_scored_in_order(reward_model_folder, rankings_path):
    model = RewardModel.load(reward_model_folder)
    rankings = list(read_rankings(rankings_path, split="test"))

    (scored,) = score_rankings(join_processes(), model, rankings, StopFlag())

    for ranked, one in zip(rankings, scored, strict=True):
        assert one.scores == pytest.approx(model.score([(ranked.prompt, text) for text in ranked.responses]), abs=1e-5)
    with pytest.raises(Interrupted, match="stopped after scoring 0 of 40 rankings"):
        list(score_rankings(join_processes(), model, rankings, StopAt(1)))


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
