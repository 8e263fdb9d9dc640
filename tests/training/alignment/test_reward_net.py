import math
import types

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    LlamaConfig,
    MptConfig,
    T5Config,
    XLNetConfig,
)

from training.alignment.config import ConfigError
from training.alignment.packing import Packing, Row, build_row, bundle
from training.alignment.reward_model import RewardModel
from training.alignment.reward_net import RewardNet, fit_length, load_backbone, load_classifier

ENCODER_DECODERS = {
    "bart": BartConfig(
        vocab_size=60,
        d_model=16,
        num_labels=1,
        max_position_embeddings=64,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **{f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    ),
    "t5": T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, num_labels=1, decoder_start_token_id=0
    ),
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


def row(texts: list[list[int]], packing: Packing) -> Row:
    return build_row([bundle(texts, packing)], packing, torch.device("cpu"))


@pytest.fixture(params=["llama", "gpt2"])
def untrained_folder(request, tmp_path):
    """A reward model with a random head, saved as training saves it."""
    model, tokenizer = load_backbone(str(request.getfixturevalue(f"{request.param}_folder")))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_reward_is_read_at_the_end_of_the_text_whatever_token_stands_there(untrained_folder):
    model = RewardModel.load(untrained_folder)
    plain = RewardModel.load(untrained_folder, packing=Packing.PADDED)
    end, padding = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    cases = [[70, 80, 90], [70, 80, 90, end], [70, 80, 90, end, end], [70, 80, 90, padding]]

    with torch.inference_mode():
        together = model.net(row(cases, model.net.packing))[:, 0].tolist()
        one_by_one = [plain.net(row([ids], Packing.PADDED)).item() for ids in cases]

    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert len({round(reward, 4) for reward in together}) == 4


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_classifier_that_is_read_at_the_end_token_gets_padded_batches(name):
    model = AutoModelForSequenceClassification.from_config(ENCODER_DECODERS[name])
    end = model.config.eos_token_id
    texts = [[7, 8, 9, end], [7, 8, 9, 10, 11, end]]

    net = RewardNet(model)

    assert net.packing == Packing.PADDED
    alone = [model(input_ids=torch.tensor([text])).logits.item() for text in texts]
    assert net(row(texts, Packing.PADDED))[:, 0].tolist() == pytest.approx(alone, abs=1e-5)


def test_texts_with_unlike_numbers_of_end_tokens_are_read_as_they_are_alone():
    """A conversation has the token after each response, and BART takes no batch of unlike numbers of them."""
    for config in ENCODER_DECODERS.values():
        model = AutoModelForSequenceClassification.from_config(config)
        end = model.config.eos_token_id
        texts = [[7, 8, 9, end], [7, 8, end, 10, 11, end], [9, end]]

        net = RewardNet(model)

        alone = [model(input_ids=torch.tensor([text])).logits.item() for text in texts]
        assert net(row(texts, net.packing))[:, 0].tolist() == pytest.approx(alone, abs=1e-5)
        net.is_one_pass = True
        with pytest.raises(ConfigError, match=r"^sharding: .* reads texts one by one"):
            net(row(texts, net.packing))


def test_a_model_that_reads_padding_gets_each_text_alone():
    config = XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=2, d_inner=32, num_labels=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config)
    texts = [[7, 8, 9], [7, 8, 9, 10, 11, 12, 13], [9, 10]]

    net = RewardNet(model)

    assert net.packing == Packing.ALONE
    alone = [model(input_ids=torch.tensor([text])).logits.item() for text in texts]
    assert net(row(texts, Packing.ALONE))[:, 0].tolist() == pytest.approx(alone, abs=1e-6)
    with pytest.raises(ConfigError, match=r"^packing: XLNetForSequenceClassification gives other rewards .* padded$"):
        RewardNet(model, Packing.PADDED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_hides_no_packing_that_gives_other_rewards(dtype):
    """MPT tells positions by a bias of its own, which packing overlooks; rewards are far from 0 and near each other."""
    torch.manual_seed(0)
    config = MptConfig(
        vocab_size=60, d_model=16, n_heads=2, n_layers=2, max_seq_len=64, expansion_ratio=2, num_labels=1
    )
    model = AutoModelForSequenceClassification.from_config(config).to(dtype)
    with torch.no_grad():
        model.score.weight.mul_(1e-2)
        model.score.weight[:, 0] += 1.0  # the last layer's norm has mean 0
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    assert RewardNet(model).packing == Packing.PADDED
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_a_model_that_gives_no_rewards_to_try_gets_padded_batches():
    model = AutoModelForSequenceClassification.from_config(ENCODER_DECODERS["bart"])
    model.config.eos_token_id = 70  # which it has no place for

    assert RewardNet(model).packing == Packing.PADDED


@pytest.mark.parametrize(
    ("rope", "max_length", "packing"),
    [
        (LONGROPE, 32, Packing.SHARED),
        (LONGROPE, 33, Packing.PADDED),
        ({"rope_type": "dynamic", "factor": 2.0}, 128, Packing.SHARED),
        ({"rope_type": "dynamic", "factor": 2.0}, 129, Packing.PADDED),
        ({"rope_type": "linear", "factor": 2.0}, 129, Packing.SHARED),
        ({"rope_type": "default"}, 129, Packing.SHARED),
    ],
)
def test_where_positions_go_by_the_longest_in_the_row_texts_are_not_packed(rope, max_length, packing):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=60, num_labels=1, max_position_embeddings=128, **sizes, rope_parameters={**rope, "rope_theta": 1e4}
    )
    model = AutoModelForSequenceClassification.from_config(config)

    assert RewardNet(model, max_length=max_length).packing == packing
    if packing == Packing.PADDED:
        with pytest.raises(ConfigError, match=r"^packing: LlamaForSequenceClassification gives other rewards"):
            RewardNet(model, Packing.SHARED, max_length)
        net = RewardNet(model, max_length=max_length)
        texts = [[*range(3, 3 + size)] * 4 for size in (2, 33, 5, 40)]
        alone = [model(input_ids=torch.tensor([text])).logits.item() for text in texts]
        assert net(row(texts, net.packing))[:, 0].tolist() == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(MptConfig(max_seq_len=64), 64), (XLNetConfig(), 1000), (LlamaConfig(max_position_embeddings=128), 128)],
)
def test_the_most_tokens_are_as_many_as_the_model_has_places_for(config, expected, gpt2_folder):
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    model = types.SimpleNamespace(config=config, base_model=None)

    assert fit_length(1000, model, tokenizer) == expected


def test_a_model_whose_rewards_are_no_numbers_is_refused(untrained_folder):
    model = AutoModelForSequenceClassification.from_pretrained(untrained_folder)
    torch.nn.init.constant_(model.score.weight, math.nan)

    with pytest.raises(ConfigError, match=r"gives rewards that are no finite numbers$"):
        RewardNet(model)


@pytest.mark.parametrize("name", ["/none/there", "../none", "a/b/c"])
def test_a_path_that_leads_nowhere_is_told(name):
    for load in (load_backbone, load_classifier):
        with pytest.raises(FileNotFoundError, match=rf"^there is no model at {name}$"):
            load(name)


def test_a_text_that_is_too_long_loses_its_beginning_in_other_programs_too(untrained_folder):
    tokenizer = AutoTokenizer.from_pretrained(untrained_folder)

    whole = tokenizer("one two three four")["input_ids"]
    cut = tokenizer("one two three four", truncation=True, max_length=3)["input_ids"]

    assert cut[-1] == whole[-1]


def test_dropout_is_off(gpt2_folder):
    model, _ = load_backbone(str(gpt2_folder))  # which has dropout of 0.1
    net = RewardNet(model)
    one = row([[70, 80, 90]], net.packing)

    assert net(one).tolist() == net(one).tolist()


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
