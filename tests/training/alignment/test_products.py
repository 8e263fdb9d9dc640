import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from training.alignment.products import _fused_attention, allow_fast_products, attention, round_products

SIZES = {"vocab_size": 60, "num_labels": 2, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(
        **SIZES, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, attention_bias=True
    ),
    "gpt2": GPT2Config(**SIZES, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
}


@pytest.fixture
def usual():
    """The process's setting, left as it was."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    allow_fast_products.cache_clear()
    yield settings
    settings.fp32_precision = before
    allow_fast_products.cache_clear()


def test_fast_products_are_exact_or_not_taken(usual):
    is_taken = allow_fast_products()

    one, other = torch.randn(64, 96), torch.randn(96, 32)
    assert usual.fp32_precision == ("bf16" if is_taken else usual.fp32_precision)
    torch.testing.assert_close((one @ other).double(), one.double() @ other.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "products"),
    [(60, 60, "ieee"), (1, 4000, "ieee"), (1024, 1024, "bf16")],
    ids=["short", "one query", "long"],
)
def test_attention_is_multiplied_forth_and_back_by_what_is_faster(usual, num_queries, num_keys, products):
    usual.fp32_precision = "bf16"
    queries = torch.randn(1, 2, num_queries, 32, requires_grad=True)
    keys, values = (torch.randn(1, 2, num_keys, 32, requires_grad=True) for _ in range(2))
    found, _ = attention(torch.nn.Module(), queries, keys, values, None, is_causal=False)
    seen = []
    _fused_attention(found.grad_fn).register_prehook(lambda gradients: seen.append(usual.fp32_precision))

    for _ in range(2):
        found.sum().backward(retain_graph=True)
        assert usual.fp32_precision == "bf16"

    assert seen == [products] * 2


@pytest.mark.parametrize("is_causal", [True, False])
def test_short_attention_is_attention(usual, is_causal):
    queries, keys, values = (torch.randn(2, 3, 50, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    products = queries @ keys.mT / 4
    allowed = torch.ones(50, 50, dtype=torch.bool).tril() if is_causal else torch.ones(50, 50, dtype=torch.bool)
    expected = (products.masked_fill(~allowed, -torch.inf).softmax(-1) @ values).transpose(1, 2)
    expected.pow(2).sum().backward()
    gradients = [one.grad for one in (queries, keys, values)]
    allow_fast_products()
    single = [one.detach().float().requires_grad_() for one in (queries, keys, values)]

    found, _ = attention(torch.nn.Module(), *single, None, is_causal=is_causal)
    found.pow(2).sum().backward()

    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for one, gradient in zip(single, gradients, strict=True):
        torch.testing.assert_close(one.grad.double(), gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_rounded_products_are_close_in_rewards_and_gradients(name):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    ids = torch.randint(3, 60, (3, 20))
    found = []
    for _ in range(2):
        model.zero_grad()
        rewards = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        rewards.pow(2).sum().backward()
        found.append((rewards.detach(), {key: one.grad.clone() for key, one in model.named_parameters()}))
        round_products(model)

    (exact, gradients), (rounded, others) = found
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.02)
    for key, gradient in gradients.items():
        assert (others[key] - gradient).norm() <= 0.03 * gradient.norm() + 1e-3, key


def test_rounding_leaves_frozen_weights_and_saved_ones_alone(tmp_path):
    model = AutoModelForSequenceClassification.from_config(CONFIGS["llama"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    round_products(model)

    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    model.save_pretrained(tmp_path)

    assert model.model.layers[0].mlp.up_proj.weight.grad is None
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, before[name])
