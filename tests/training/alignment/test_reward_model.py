import json
import math
import random
import statistics

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from tests.training.alignment.material import StopAt, alone, random_pairs
from training.alignment.config import ConfigError
from training.alignment.packing import Packing
from training.alignment.preferences import read_rankings
from training.alignment.reward_model import RewardModel, join_processes, score_rankings
from training.alignment.reward_net import load_backbone
from training.alignment.run_dir import Interrupted, StopFlag


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


def test_a_score_does_not_depend_on_the_batch_it_came_in(untrained_folder):
    pairs = random_pairs(500)
    expected = alone(RewardModel.load(untrained_folder), pairs)

    for packing, max_tokens in ((None, 64), ("separate", 500), ("padded", 500), (None, 100_000)):
        model = RewardModel.load(untrained_folder, max_tokens=max_tokens, packing=packing and Packing(packing))
        order = random.Random(max_tokens).sample(range(500), 500)
        scores = model.score([pairs[place] for place in order])
        assert scores == pytest.approx([expected[place] for place in order], abs=1e-5)
    assert statistics.pstdev(expected) > 0.01  # they do differ


def test_in_bfloat16_a_score_depends_on_the_batch_by_its_last_digits_only(untrained_folder):
    """Two units in the last place of what goes into the head, which itself computes in single precision."""
    pairs = random_pairs(60)
    model = RewardModel.load(untrained_folder, dtype=torch.bfloat16)

    scores, expected = model.score(pairs), alone(model, pairs)

    assert scores == pytest.approx(expected, abs=2 * 2**-8 * max(map(abs, expected)))


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

    positions = model.net.model.config.max_position_embeddings
    assert positions - positions // 16 < len(model.encode(prompt, "Eight.").ids) <= model.max_length == positions
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


def test_rankings_are_scored_in_order(reward_model_folder, rankings_path):
    model = RewardModel.load(reward_model_folder)
    rankings = list(read_rankings(rankings_path, split="test"))

    (scored,) = score_rankings(join_processes(), model, rankings, StopFlag())

    for ranked, one in zip(rankings, scored, strict=True):
        assert one.scores == pytest.approx(model.score([(ranked.prompt, text) for text in ranked.responses]), abs=1e-5)
    with pytest.raises(Interrupted, match="stopped after scoring 0 of 40 rankings"):
        list(score_rankings(join_processes(), model, rankings, StopAt(1)))
