import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from training.alignment.prompt_features import PromptFeatures

COOKING = [{"role": "user", "content": "How long do I boil four eggs in salted water?"}]
COOKING_TOO = [{"role": "user", "content": "How long do I boil six eggs in cold water?"}]
CODE = [{"role": "user", "content": "Write a Python function that sorts a list of dictionaries by key."}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, llama_folder) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama_folder)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


def test_hashed_words_put_prompts_that_share_them_near_each_other():
    features = PromptFeatures()([COOKING, COOKING_TOO, CODE])
    near, far = features[0] @ features[1], features[0] @ features[2]
    assert features.shape == (3, 64)
    assert near > 0.3
    assert abs(far) < 0.3


def test_hashed_words_are_the_same_in_every_process():
    program = (
        "from training.alignment.prompt_features import PromptFeatures\n"
        f"print(PromptFeatures()([{COOKING!r}]).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PromptFeatures()([COOKING]).tobytes().hex()


def test_a_prompt_without_words_has_no_features():
    features = PromptFeatures()([[{"role": "user", "content": " \n"}], COOKING])
    assert features[0].tolist() == [0.0] * 64
    assert PromptFeatures()([]).shape == (0, 64)


def test_all_turns_of_a_conversation_count():
    longer = [*COOKING, {"role": "assistant", "content": "Eight minutes."}, {"role": "user", "content": "And rice?"}]
    assert not np.allclose(PromptFeatures()([longer]), PromptFeatures()([COOKING]))


def test_encoded_prompts_do_not_depend_on_their_batch(encoder):
    prompts = [COOKING, CODE, [{"role": "user", "content": "Rice?"}], [{"role": "user", "content": "salt " * 200}]]
    features = PromptFeatures(encoder, "cpu")
    together = features(prompts)
    assert together.shape == (4, 16)
    np.testing.assert_allclose(np.concatenate([features([prompt]) for prompt in prompts]), together, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("is_encoded", [False, True])
def test_saved_features_are_the_same(tmp_path, encoder, is_encoded):
    features = PromptFeatures(encoder if is_encoded else "", "cpu")
    features.save(tmp_path / "made")
    loaded = PromptFeatures.load(tmp_path / "made", "cpu")
    assert loaded([COOKING, CODE]).tolist() == features([COOKING, CODE]).tolist()
