"""Two-layer models built from a config, with tokenizers trained on the spot: one with a chat template, one without."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.training.alignment.material import write_rankings
from training.alignment.config import RewardModelConfig
from training.alignment.reward_training import train_reward_model
from training.alignment.run_dir import RunDir, StopFlag
from training.alignment.tiny_lm import build_tiny_lm

TEXTS = [
    "How do I boil four eggs? Put the eggs into boiling water for eight minutes, then cool them.",
    "How long does rice take? Rinse the rice, add twice as much water and simmer it for twelve minutes.",
    "I do not know. Ask somebody else. Eggs, rice, water, salt and a little patience.",
    "user: assistant: system: <|end|> [INST] é ü 你好 0 1 2 3 4 5 6 7 8 9",
]


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """An untrained Llama of two layers whose tokenizer has a chat template; pad and end are tokens of their own."""
    folder = tmp_path_factory.mktemp("llama")
    build_tiny_lm(TEXTS, folder, vocabulary_size=320, hidden_size=32, num_layers=2, num_heads=2)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory) -> Path:
    """An untrained GPT-2 of two layers as it comes from the hub: no chat template, no pad token, begin is end."""
    folder = tmp_path_factory.mktemp("gpt2")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rankings_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rankings") / "preferences.jsonl"
    return write_rankings(path, num_train=96, num_validation=16, num_test=40)


@pytest.fixture(scope="session")
def long_rankings_path(tmp_path_factory) -> Path:
    """More than are scored at a time."""
    path = tmp_path_factory.mktemp("rankings") / "preferences.jsonl"
    return write_rankings(path, num_train=0, num_validation=0, num_test=300)


@pytest.fixture(scope="session")
def reward_model_run(tmp_path_factory, llama_folder, rankings_path) -> RunDir:
    """A run that has trained a reward model."""
    config = RewardModelConfig(
        preferences=str(rankings_path), backbone=str(llama_folder), num_epochs=8, learning_rate=3e-3, eval_steps=12
    )
    run_dir = RunDir.create(tmp_path_factory.mktemp("run"), config)
    run_dir.write_result(train_reward_model(config, run_dir, StopFlag()))
    return run_dir


@pytest.fixture(scope="session")
def reward_model_folder(reward_model_run) -> Path:
    return reward_model_run.model
