"""Packed rows against single sequences: on models of many kinds, and FlexAttention's mask against what it must say."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from training.alignment.attention import Rule, _by_parts, _flex, block_mask
from training.alignment.config import ConfigError
from training.alignment.packing import Layout, Packing, Span, build_row, bundle
from training.alignment.reward_net import RewardNet

CPU = torch.device("cpu")
COMMON = {"vocab_size": 200, "num_labels": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**COMMON, **SIZES, "num_key_value_heads": 2}
MODELS = {
    "llama": (LlamaConfig(**GROUPED), "shared"),
    "qwen2": (Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1), "shared"),
    "qwen3": (Qwen3Config(**GROUPED, head_dim=16), "shared"),
    "mistral": (MistralConfig(**GROUPED, sliding_window=7), "shared"),
    "gemma": (GemmaConfig(**GROUPED, head_dim=8), "shared"),
    "gemma2": (Gemma2Config(**GROUPED, head_dim=8, sliding_window=5, attn_logit_softcapping=3.0), "shared"),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=5), "shared"),
    "gpt2": (GPT2Config(**COMMON, n_positions=128, n_embd=32, n_layer=3, n_head=4), "shared"),
    "gpt_neox": (GPTNeoXConfig(**COMMON, **SIZES), "shared"),
    "opt": (
        OPTConfig(**COMMON, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4),
        "shared",
    ),
    "bert": (BertConfig(**COMMON, **SIZES), "separate"),
    "roberta": (RobertaConfig(**{**COMMON, "pad_token_id": 1}, **SIZES), "separate"),
    "modernbert": (
        ModernBertConfig(
            **COMMON,
            **SIZES,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=8,
            global_attn_every_n_layers=2,
            classifier_pooling="mean",
        ),
        "separate",
    ),
    "bloom": (BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4), "padded"),  # attends by distance
}


def random_model(name: str) -> AutoModelForSequenceClassification:
    """With weights large enough that attention matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(MODELS[name][0]).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_rankings(seed: int = 0) -> list[list[np.ndarray]]:
    draw = np.random.default_rng(seed)

    def tokens(longest: int) -> np.ndarray:
        return draw.integers(3, 180, draw.integers(1, longest))

    prompts = [tokens(30) for _ in range(6)]
    return [[np.concatenate([prompt, tokens(15)]) for _ in range(draw.integers(2, 5))] for prompt in prompts]


def gradients(model, rewards: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (rewards * weights).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_packed_rewards_and_gradients_are_those_of_the_sequences_alone(name):
    model = random_model(name)
    net = RewardNet(model)
    rankings = random_rankings()
    texts = [text for ranking in rankings for text in ranking]
    weights = torch.randn(len(texts), 2, generator=torch.Generator().manual_seed(1))

    packed = net(build_row([bundle(ranking, net.packing) for ranking in rankings], net.packing, CPU))
    found = gradients(model, packed, weights)
    inputs = [torch.tensor(text)[None] for text in texts]
    alone = torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in inputs])
    expected = gradients(model, alone, weights)

    assert net.packing == MODELS[name][1]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    size = max(one.abs().max() for one in expected.values())
    assert found.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(found[parameter] / size, expected[parameter] / size, atol=1e-5, rtol=1e-5)
    assert packed.std() > 0.1


def test_a_model_that_keeps_no_promise_is_not_packed_by_force():
    with pytest.raises(
        ConfigError, match=r"^packing: BertForSequenceClassification gives other rewards when its texts"
    ):
        RewardNet(random_model("bert"), Packing.SHARED)


def test_padding_and_company_change_nothing_in_a_packed_model():
    """What is left unpacked, such as another program's batch, is computed as ever by the same model."""
    model = random_model("gemma2")
    texts = [text for ranking in random_rankings(3) for text in ranking]
    rows = [build_row([bundle(texts, packing)], packing, CPU) for packing in Packing]

    shared, separate, padded, alone = (
        RewardNet(model, packing)(row) for packing, row in zip(Packing, rows, strict=True)
    )

    torch.testing.assert_close(separate, shared, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded, shared, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, shared, atol=1e-5, rtol=1e-5)


LAYOUT = Layout([Span(0, (4, 7, 8)), Span(8, (8, 13)), Span(13, (14, 16, 19, 20))])


@pytest.mark.parametrize(("causal", "window"), list(product([True, False], [None, 3])))
def test_the_block_mask_lets_each_token_see_its_own_sequence(causal, window):
    mask = block_mask(LAYOUT, causal, window, CPU)

    groups, endings = LAYOUT.owners()
    positions = LAYOUT.positions()
    for query, key in product(range(20), range(20)):
        is_own = groups[query] == groups[key] and endings[key] in {0, endings[query]}
        is_near = window is None or abs(positions[query] - positions[key]) < window
        expected = is_own and is_near and (not causal or positions[key] <= positions[query])
        assert bool(mask.mask_mod(0, 0, torch.tensor(query), torch.tensor(key))) == expected


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # which needs no compiler
@pytest.mark.parametrize(
    ("causal", "window", "softcap", "num_key_heads"),
    [(True, None, None, 4), (True, 3, None, 2), (True, None, 2.0, 4), (False, 3, None, 1), (False, None, None, 4)],
)
def test_attention_by_parts_is_flex_attention_with_the_block_mask(causal, window, softcap, num_key_heads):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 20, 16, generator=draw)
    key, value = (torch.randn(1, num_key_heads, 20, 16, generator=draw) for _ in range(2))
    rule = Rule(causal, window, 0.3, softcap, 0.0)

    by_mask = _flex(query, key, value, LAYOUT, rule)
    copies = [one.repeat_interleave(4 // num_key_heads, dim=1) for one in (key, value)]
    by_parts = _by_parts(query, *copies, LAYOUT, rule)

    torch.testing.assert_close(by_parts, by_mask.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "bert"])
def test_on_a_gpu_packed_rewards_are_those_of_the_sequences_alone(name):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = random_model(name).cuda()
    rankings = random_rankings()
    rows = [build_row([bundle(one, packing) for one in rankings], packing, model.device) for packing in Packing]
    net = RewardNet(model)

    packed = net(rows[list(Packing).index(net.packing)])

    assert net.packing == MODELS[name][1]
    torch.testing.assert_close(packed, RewardNet(model, Packing.PADDED)(rows[-1]), atol=1e-4, rtol=1e-4)
