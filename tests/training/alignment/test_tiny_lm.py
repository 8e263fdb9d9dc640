import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.alignment.tiny_lm import build_tiny_lm

TEXTS = ["Boil the rice for 12 minutes.", "Fry the onions in the olive oil.", "Serve with the rice."] * 5
SIZE = {"vocabulary_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 2}


def test_the_folder_holds_a_model_and_a_tokenizer_that_fit_each_other(tmp_path):
    build_tiny_lm(TEXTS, tmp_path, **SIZE)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 300
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [0, 1, 2]
    assert special == [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512


def test_the_default_size_is_about_a_million_parameters(tmp_path):
    build_tiny_lm(TEXTS, tmp_path)

    assert 900_000 < AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() < 3_000_000


def test_any_text_survives_and_the_domain_is_compact(tmp_path):
    build_tiny_lm(TEXTS, tmp_path, **SIZE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    for text in ("Boil the rice.", " two  spaces\n\nand\tlines ", "naïve 你好 🍲 °C", "1. a . b ! c ' d"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("Boil the rice.") == ["Boil", "Ġthe", "Ġrice", "."]


def test_the_chat_template_marks_who_speaks(tmp_path):
    build_tiny_lm(TEXTS, tmp_path, **SIZE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Rice?"}, {"role": "assistant", "content": "Boil."}]

    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    assert tokenizer.decode(ids) == "<|begin|><|user|>Rice?<|end|><|assistant|>Boil.<|end|><|assistant|>"
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|")] == [
        "<|begin|>",
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
        "<|end|>",
        "<|assistant|>",
    ]


def test_the_same_texts_and_seed_give_the_same_files_and_the_callers_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        build_tiny_lm(TEXTS, tmp_path / name, seed=seed, **SIZE)

    def weights(name: str) -> bytes:
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert torch.equal(torch.get_rng_state(), before)
    assert weights("one") == weights("again")
    assert weights("one") != weights("other")
    vocabularies = [json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("one", "again", "other")]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
