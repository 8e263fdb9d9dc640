import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from training.alignment.generation import _InverseCdf, sample

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
