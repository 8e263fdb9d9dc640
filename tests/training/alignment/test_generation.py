import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.training.alignment import enumerable
from training.alignment import generation
from training.alignment.config import SampleConfig
from training.alignment.decoding import Response, can_decode, decode, warp
from training.alignment.generation import Generator, _InverseCdf, generate_ids, sample, texts

PROMPTS = [
    [{"role": "user", "content": "Eggs?"}],
    [{"role": "user", "content": "How long does rice take, and how much water does it need?"}],
    [
        {"role": "user", "content": "Eggs or rice?"},
        {"role": "assistant", "content": "Rice."},
        {"role": "user", "content": "How?"},
    ],
]
SETTINGS = {"seed": 3, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def policy(llama_folder):
    return AutoModelForCausalLM.from_pretrained(llama_folder), AutoTokenizer.from_pretrained(llama_folder)


def choose(probabilities: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
    """The share of 10,000 evenly spread uniform numbers that falls on each token."""
    uniforms = torch.arange(0.5, 10_000, dtype=torch.float64)[:, None] / 10_000
    scores = torch.tensor(probabilities).log().expand(10_000, -1)
    prompt = torch.zeros(10_000, 4, dtype=torch.int64)
    chosen = _InverseCdf(uniforms, 4, temperature, top_p)(prompt, scores).argmax(-1)
    return (torch.bincount(chosen, minlength=len(probabilities)) / 10_000).tolist()


def test_tokens_are_drawn_from_the_model_s_distribution():
    assert choose([0.5, 0.125, 0.25, 0.125]) == pytest.approx([0.5, 0.125, 0.25, 0.125], abs=1e-4)


def test_temperature_and_top_p_shape_the_distribution():
    # at temperature 0.5 probabilities are squared: (0.25, 0.015625, 0.0625, 0.015625) / 0.34375
    squared = [0.25 / 0.34375, 0.015625 / 0.34375, 0.0625 / 0.34375, 0.015625 / 0.34375]
    assert choose([0.5, 0.125, 0.25, 0.125], temperature=0.5) == pytest.approx(squared, abs=1e-4)
    # a nucleus of 0.7 holds the first and the third token: 0.5 / 0.75 and 0.25 / 0.75
    assert choose([0.5, 0.125, 0.25, 0.125], top_p=0.7) == pytest.approx([2 / 3, 0, 1 / 3, 0], abs=1e-4)


def test_a_token_without_probability_is_never_drawn():
    assert choose([0.0, 0.5, 0.0, 0.5, 0.0]) == pytest.approx([0, 0.5, 0, 0.5, 0], abs=1e-4)


def test_samples_depend_on_neither_batch_nor_order(policy):
    together = sample(*policy, PROMPTS, 3, batch_size=64, **SETTINGS)
    alone = sample(*policy, PROMPTS, 3, batch_size=1, **SETTINGS)
    backwards = sample(*policy, PROMPTS[::-1], 3, batch_size=4, **SETTINGS)[::-1]

    assert [len(texts) for texts in together] == [3, 3, 3]
    assert len({text for texts in together for text in texts}) == 9
    assert together == alone == backwards


def test_samples_follow_from_the_seed_and_more_samples_begin_with_the_same_ones(policy):
    three = sample(*policy, PROMPTS, 3, **SETTINGS)

    assert [texts[:2] for texts in three] == sample(*policy, PROMPTS, 2, **SETTINGS)
    assert three != sample(*policy, PROMPTS, 3, seed=4, max_new_tokens=12)


def test_texts_hold_no_special_tokens_and_end_at_the_end(policy):
    model, tokenizer = policy
    # an untrained model says each of its 320 tokens with about the same probability, so some answers end early
    texts = [text for texts in sample(model, tokenizer, PROMPTS, 100, seed=0, max_new_tokens=64) for text in texts]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]

    assert not any(special in text for text in texts for special in tokenizer.all_special_tokens)
    assert min(lengths) < 20


def test_the_models_own_settings_do_not_count_and_are_left_alone(policy):
    model, tokenizer = policy
    plain = sample(model, tokenizer, PROMPTS, 2, **SETTINGS)
    own = model.generation_config
    altered = GenerationConfig(**{**own.to_dict(), "repetition_penalty": 9.0, "top_k": 1, "min_new_tokens": 11})
    model.generation_config = altered
    try:
        assert sample(model, tokenizer, PROMPTS, 2, **SETTINGS) == plain
        assert model.generation_config is altered
    finally:
        model.generation_config = own


def test_a_model_as_it_comes_from_the_hub_without_template_and_padding(gpt2_folder):
    policy = AutoModelForCausalLM.from_pretrained(gpt2_folder), AutoTokenizer.from_pretrained(gpt2_folder)

    together = sample(*policy, PROMPTS, 2, batch_size=64, **SETTINGS)

    assert together == sample(*policy, PROMPTS, 2, batch_size=1, **SETTINGS)


def test_progress_is_told_as_responses_end_and_may_stop(policy):
    told = []
    sample(*policy, PROMPTS, 3, batch_size=4, progress=lambda done, total: told.append((done, total)), **SETTINGS)
    assert told == [(4, 9), (5, 9), (8, 9), (9, 9)]  # one ends early, and another takes its place

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(*policy, PROMPTS, 3, batch_size=4, progress=stop, **SETTINGS)


def test_a_long_prompt_loses_its_beginning(policy):
    long = [{"role": "user", "content": "Rice, " * 2000 + "how?"}]

    assert len(sample(*policy, [long], 1, **SETTINGS)[0][0]) > 0
    with pytest.raises(ValueError, match="max_new_tokens: 512 leaves no room for a prompt"):
        sample(*policy, PROMPTS, 1, seed=0, max_new_tokens=512)


# The law


LAWS = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9)]


@pytest.mark.parametrize(("temperature", "top_p"), LAWS)
def test_responses_follow_the_law_of_the_model(temperature, top_p):
    """A Llama over five tokens, one of which ends: the 1 + 4 + 16 + 64 responses of at most three tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **sizes, initializer_range=0.6)).eval()
    prompts = [(1, 2, 3), (4,)]
    expected = {prompt: law_of(model, prompt, temperature, top_p) for prompt in prompts}
    uniforms = torch.rand(2, 4000, 3, generator=torch.Generator().manual_seed(1)).tolist()
    responses = [Response(one, own) for one, all_own in zip(prompts, uniforms, strict=True) for own in all_own]

    decode(model, responses, ends={0}, temperature=temperature, top_p=top_p, batch_size=500)

    for prompt in prompts:
        counts = Counter(tuple(one.ids) for one in responses if one.prompt == prompt)
        assert set(counts) <= {ids for ids, chance in expected[prompt].items() if chance}
        assert p_value(counts, expected[prompt], 4000) > 0.01
    assert all(one.is_ended == (len(one.ids) < 3) for one in responses)


@torch.no_grad()
def law_of(model, prompt, temperature, top_p) -> dict[tuple[int, ...], float]:
    def chances(ids):
        logits = model(torch.tensor([[*prompt, *ids]])).logits[:, -1].float()
        return warp(logits, temperature, top_p).double().softmax(-1)[0].tolist()

    found = {}
    for length in range(4):
        for ids in itertools.product(range(1, 5), repeat=length):
            chance = np.prod([chances(ids[:place])[token] for place, token in enumerate(ids)])
            found[ids] = float(chance * (chances(ids)[0] if length < 3 else 1))
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    return found


def test_a_model_without_a_cache_follows_its_law_too(tmp_path):
    folder = enumerable.enumerable_lm(tmp_path, seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = enumerable.PROMPTS[1]
    expected = dict(zip(enumerable.RESPONSES, enumerable.law(model, tokenizer, prompt).tolist(), strict=True))

    found = sample(model, tokenizer, [prompt], 4000, seed=0, max_new_tokens=enumerable.MAX_NEW_TOKENS, batch_size=2000)

    assert not can_decode(model)
    assert p_value(Counter(found[0]), expected, 4000) > 0.01


def p_value(counts, law, num_samples) -> float:
    """Of the chi-square test; what is expected less than five times is counted together."""
    rare = {one for one, chance in law.items() if chance * num_samples < 5}
    kept = [one for one in law if one not in rare]
    expected = [law[one] * num_samples for one in kept]
    observed = [counts[one] for one in kept]
    if (left := sum(law[one] for one in rare) * num_samples) > 1:
        expected.append(left)
        observed.append(sum(counts[one] for one in rare))
    return float(chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue)


# The cache


SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
ENDS = {"eos_token_id": 2, "bos_token_id": 1}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **ENDS)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **ENDS, num_attention_heads=4)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, **ENDS, sliding_window=8)),
    "gemma": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES, **HEADS, **ENDS, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        )
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_those_of_generate(policy, kind, monkeypatch):
    torch.manual_seed(0)
    model, tokenizer = KINDS[kind](), policy[1]
    for weight in model.parameters():
        weight.data *= 3  # or everything is about equally likely, whatever came before
    model.generation_config.eos_token_id = list(range(2, 40))  # about every eighth token ends
    options = {"seed": 0, "max_new_tokens": 24, "batch_size": 4}
    usual = model.config._attn_implementation

    assert can_decode(model)
    found = generate_ids(model, tokenizer, PROMPTS, 5, **options)

    assert model.config._attn_implementation == usual
    monkeypatch.setattr(generation, "can_decode", lambda model: False)
    assert found == generate_ids(model, tokenizer, PROMPTS, 5, **options)
    assert sum(one.is_ended for own in found for one in own) > 5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own, of transformers 4
def test_adapters_are_sampled_with(policy, llama_folder):
    plain, tokenizer = policy
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_folder), LoraConfig(target_modules="all-linear", r=2)
    )
    assert sample(adapted, tokenizer, PROMPTS, 2, **SETTINGS) == sample(plain, tokenizer, PROMPTS, 2, **SETTINGS)

    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    changed = sample(adapted, tokenizer, PROMPTS, 2, **SETTINGS)

    assert changed != sample(plain, tokenizer, PROMPTS, 2, **SETTINGS)
    assert changed == sample(adapted.merge_and_unload(), tokenizer, PROMPTS, 2, **SETTINGS)


def test_tokens_say_whether_a_response_ended(policy):
    generated = generate_ids(*policy, PROMPTS, 20, seed=0, max_new_tokens=64)

    assert all(one.is_ended == (len(one.ids) < 64) for own in generated for one in own)
    assert 0 < sum(one.is_ended for own in generated for one in own) < 60
    assert texts(policy[1], generated) == sample(*policy, PROMPTS, 20, seed=0, max_new_tokens=64)


# The backends


CONFIG = SampleConfig(max_new_tokens=12, max_length=512)


def test_a_generator_samples_as_its_configuration_says(policy, llama_folder):
    expected = sample(*policy, PROMPTS, 3, **SETTINGS)

    generator = Generator(llama_folder, None, CONFIG, "cpu")

    assert (generator.name, generator.sample(PROMPTS, 3, seed=3)) == ("transformers, continuous batches", expected)
    assert Generator(*policy, CONFIG, "cpu").sample(PROMPTS, 3, seed=3) == expected


def test_a_generator_turns_to_another_policy(policy, llama_folder, gpt2_folder, tmp_path):
    generator = Generator(llama_folder, None, CONFIG, "cpu")
    before = generator.sample(PROMPTS, 2, seed=3)
    other = AutoModelForCausalLM.from_pretrained(llama_folder)
    for weight in other.parameters():
        weight.data = weight.data.flip(0)

    generator.refresh(other)

    assert generator.sample(PROMPTS, 2, seed=3) == sample(other, policy[1], PROMPTS, 2, **SETTINGS) != before


def test_a_generator_of_a_model_without_a_cache_says_so(tmp_path):
    generator = Generator(enumerable.enumerable_lm(tmp_path), None, CONFIG, "cpu")

    assert generator.name == "transformers, generate"
