import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.alignment import policies
from training.alignment.config import ConfigError, DpoConfig, RejectionSamplingConfig, SftConfig
from training.alignment.policies import (
    is_adapter,
    load_policy,
    move_policy,
    policy_card,
    prepare,
    save_policy,
    trainer_arguments,
)

LORA = {"lora_rank": 2, "lora_alpha": 4.0, "precision": "fp32"}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits


def changed(folder, **values):
    """A policy with adapters that have learned something."""
    model, tokenizer = load_policy(folder)
    model = prepare(model, SftConfig(**LORA, **values))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model, tokenizer


@pytest.mark.parametrize("folder", ["llama_folder", "gpt2_folder"])
@pytest.mark.parametrize("saved", ["merged", "adapter"])
def test_a_policy_with_adapters_is_saved_merged_or_beside_its_base_and_loads_the_same(request, tmp_path, folder, saved):
    base = request.getfixturevalue(folder)
    model, tokenizer = changed(base, saved=saved)
    expected, before = logits(model), {name: one.clone() for name, one in model.state_dict().items()}

    save_policy(model, tokenizer, tmp_path / "model", saved=saved, card="# A policy\n")

    loaded, own_tokenizer = load_policy(tmp_path / "model")
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    assert not torch.allclose(logits(load_policy(base)[0]), expected, atol=1e-2)
    assert own_tokenizer("eggs")["input_ids"] == tokenizer("eggs")["input_ids"]
    assert own_tokenizer.pad_token_id is not None
    assert (tmp_path / "model" / "README.md").read_text() == "# A policy\n"
    assert is_adapter(tmp_path / "model") == (saved == "adapter")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())  # saving changes nothing
    files = {path.name for path in (tmp_path / "model").iterdir()}
    weights = "model.safetensors" if saved == "merged" else "adapter_model.safetensors"
    assert {path for path in files if path.endswith((".safetensors", ".bin", ".pt"))} == {weights}


def test_a_merged_policy_is_an_ordinary_folder(llama_folder, tmp_path):
    model, tokenizer = changed(llama_folder)
    save_policy(model, tokenizer, tmp_path / "model")

    plain, told = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)

    assert torch.allclose(logits(plain), logits(model), atol=1e-5)
    assert {name: list(what) for name, what in told.items() if what} == {}
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == tokenizer.chat_template


def test_responses_end_where_the_chat_template_closes_them(llama_folder, tmp_path):
    """As in base models whose settings name the end of a text, and whose template the end of a turn."""
    model, tokenizer = load_policy(llama_folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '<|turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    save_policy(model, tokenizer, tmp_path / "model")

    loaded, _ = load_policy(tmp_path / "model")

    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|turn|>")]
    assert loaded.generation_config.eos_token_id == ends
    save_policy(loaded, tokenizer, tmp_path / "again")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").generation_config.eos_token_id == ends


def test_a_policy_whose_template_wants_a_system_message_loads(llama_folder, tmp_path):
    model, tokenizer = load_policy(llama_folder)
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    save_policy(model, tokenizer, tmp_path / "model")

    loaded, _ = load_policy(tmp_path / "model")

    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_adapters_that_are_moved_still_name_their_base(llama_folder, tmp_path):
    model, tokenizer = changed(llama_folder, saved="adapter")
    save_policy(model, tokenizer, tmp_path / "round_1" / "model", saved="adapter")

    move_policy(tmp_path / "round_1" / "model", tmp_path / "model")

    load_policy(tmp_path / "model")
    assert not (tmp_path / "round_1" / "model").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own, of transformers 4
def test_peft_loads_adapters_that_were_saved_by_themselves(llama_folder, tmp_path):
    model, tokenizer = changed(llama_folder, saved="adapter")
    save_policy(model, tokenizer, tmp_path / "model", saved="adapter")

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), tmp_path / "model")

    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


def test_adapters_are_found_beside_their_base_when_both_were_moved(llama_folder, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(llama_folder, old / "base")
    model, tokenizer = changed(old / "base", saved="adapter")
    save_policy(model, tokenizer, old / "run" / "model", saved="adapter")

    old.rename(new)

    assert torch.allclose(logits(load_policy(new / "run" / "model")[0]), logits(model), atol=1e-5)
    files = [path for path in (new / "run").rglob("*") if path.is_file()]
    assert [path.name for path in files if str(tmp_path).encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"base_model_name_or_path": "../nowhere"}, r"model holds adapters of \.\./nowhere, which is not there"),
        ({"base_model_name_or_path": "."}, "model holds adapters of themselves"),
        ({"base_model_name_or_path": "../other"}, "model holds adapters of themselves"),
        ({"base_model_name_or_path": None}, "model holds adapters, but does not name what they change"),
        ({}, "model holds adapters, but adapter_config.json is none of PEFT's: KeyError"),
        ([], "model holds adapters, but adapter_config.json is none of PEFT's: TypeError"),
    ],
)
def test_adapters_that_name_no_base_are_refused_in_words(tmp_path, told, message):
    for name, own in (("model", told), ("other", {"base_model_name_or_path": "../model"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(own))
        (tmp_path / name / "adapter_model.safetensors").touch()

    with pytest.raises(ConfigError, match=message):
        load_policy(tmp_path / "model")


def test_only_adapters_in_safetensors_are_read(llama_folder, tmp_path):
    model, tokenizer = changed(llama_folder, saved="adapter")
    save_policy(model, tokenizer, tmp_path / "model", saved="adapter")
    (tmp_path / "model" / "adapter_model.safetensors").rename(tmp_path / "model" / "adapter_model.bin")

    with pytest.raises(ConfigError, match="model holds adapters, but not in adapter_model"):
        load_policy(tmp_path / "model")


def test_only_whole_models_in_safetensors_are_read(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")

    with pytest.raises(OSError, match=r"model.safetensors"):
        load_policy(tmp_path / "model")


def test_adapters_begin_as_no_change_follow_from_the_seed_and_leave_other_draws_alone(llama_folder):
    state = torch.random.get_rng_state()
    one, same, other = (
        prepare(load_policy(llama_folder)[0], SftConfig(**LORA, seed=seed)).state_dict() for seed in (3, 3, 4)
    )
    down = next(name for name in one if "lora_A" in name)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[down], other[down])
    assert all(not weight.any() for name, weight in one.items() if "lora_B" in name)


def test_adapters_alone_are_trained_and_never_the_head(llama_folder):
    model = prepare(load_policy(llama_folder)[0], SftConfig(**LORA))

    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}

    assert trained
    assert all("lora_" in name and "lm_head" not in name for name in trained)


def test_a_run_may_start_from_adapters_but_not_save_new_ones_by_themselves(llama_folder, tmp_path):
    model, tokenizer = changed(llama_folder, saved="adapter")
    save_policy(model, tokenizer, tmp_path / "first", saved="adapter")
    start, _ = load_policy(tmp_path / "first")

    with pytest.raises(ConfigError, match="saved: the policy to start from is itself an adapter"):
        prepare(start, SftConfig(**LORA, saved="adapter"))

    second = prepare(start, SftConfig(**LORA))
    save_policy(second, tokenizer, tmp_path / "second")
    assert torch.allclose(logits(load_policy(tmp_path / "second")[0]), logits(model), atol=1e-5)


def test_a_policy_that_was_trained_whole_is_saved_whole_either_way(llama_folder, tmp_path):
    model, tokenizer = load_policy(llama_folder)

    save_policy(model, tokenizer, tmp_path / "model", saved="adapter")

    assert not is_adapter(tmp_path / "model")
    assert torch.equal(logits(load_policy(tmp_path / "model")[0]), logits(model))


def test_products_are_in_bfloat16_where_that_is_wanted(llama_folder):
    exact = logits(prepare(load_policy(llama_folder)[0], SftConfig(precision="fp32")))
    rounded = logits(prepare(load_policy(llama_folder)[0], SftConfig(precision="bf16")))

    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.02)


def test_trainers_are_told_about_shards_and_memory(llama_folder, monkeypatch):
    model, _ = load_policy(llama_folder)
    config = SftConfig(gradient_checkpointing=True, sharding="fsdp")
    usual = trainer_arguments(config, model)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as launchers do
    sharded = trainer_arguments(config, model)

    assert usual["activation_checkpointing"] is True
    assert "fsdp" not in usual
    assert (sharded["activation_checkpointing"], sharded["fsdp"]) == (False, True)
    assert sharded["fsdp_config"] == {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "activation_checkpointing": True,
    }
    assert "fsdp" not in trainer_arguments(SftConfig(), model)


def test_a_card_tells_what_a_policy_is_and_what_it_is_worth():
    config = RejectionSamplingConfig(
        policy="/somewhere/runs/12/model", reward_model="org/reward", num_samples=8, lora_rank=4, saved="adapter"
    )
    result = {
        "num_prompts": 40,
        "reward_before": 0.1,
        "reward_after": 1.2,
        "reward_gain": 1.1,
        "reward_gain_interval": [0.9, 1.3],
        "kl": 1.2345678,
        "stopped_by": "held_out_falls",
        "best_step": 2,
    }

    card = policy_card(config, result, digest="d" * 64)

    lines = card.splitlines()
    assert lines[:6] == [
        "---",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags:",
        "- rejection_sampling",
        "---",
    ]
    assert "somewhere" not in card
    assert [line for line in lines if line.startswith("- ") and line not in policies.BEWARE.splitlines()] == [
        "- rejection_sampling",
        f"- SHA-256 `{'d' * 64}`",
        "- prompts: 40",
        "- reward that was optimised: from 0.1 to 1.2, gain 1.1 (0.9 to 1.3)",
        "- KL to the reference policy, nats a response: 1.235",
        "- stopped early, as the held-out reward fell while the optimised one rose; this is step 2",
        "- beta: 0.1",
        "- samples of each prompt: 8",
        "- peak learning rate: 0.0001",
        "- batch size: 16",
        "- epochs: 2.0",
        "- adapters of rank: 4",
        "- seed: 0",
    ]
    assert "from `12/model`, trained by fine-tuning on those of its own responses that a reward picked out." in card
    assert "The reward is `org/reward`." in card
    assert "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n" in card
    assert (
        'model = AutoModelForCausalLM.from_pretrained("BASE")\nmodel = PeftModel.from_pretrained(model, "FOLDER")\n'
        in card
    )


def test_a_card_is_silent_about_what_is_not_known():
    card = policy_card(DpoConfig(), {})

    assert "- not told" in card
    assert "- none were measured" in card
    assert "from transformers import AutoModelForCausalLM" in card
