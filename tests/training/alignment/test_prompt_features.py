import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer, BertConfig, BertModel

from training.alignment.prompt_features import PromptFeatures, hashed


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, llama_folder) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_like_texts_have_like_features():
    soup, stew, car = map(hashed, ("how do i cook a soup", "How do I cook a stew?", "which tyres fit this car"))

    def cosine(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    assert cosine(soup, stew) > 0.5
    assert abs(cosine(soup, car)) < 0.4


def test_hashed_words_by_hand():
    one, other, both = hashed("eggs"), hashed("rice"), hashed("eggs rice")

    assert set(np.abs(one)) == {1.0}
    pair = both * np.sqrt(3) - one - other  # what the two neighbours have together
    assert set(np.round(np.abs(pair), 9)) == {1.0}
    assert hashed("?!").tolist() == hashed("").tolist() == [0.0] * 64


def test_hashed_words_are_the_same_in_every_process():
    program = "from training.alignment.prompt_features import hashed; print(hashed('eggs').tolist())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == str(hashed("eggs").tolist())


def test_features_of_no_prompt_have_a_shape():
    assert PromptFeatures()([]).shape == (0, 64)


def test_an_encoders_features_do_not_depend_on_the_batch(encoder):
    texts = ["eggs", "rice and eggs " * 20, "", "salt"]
    features = PromptFeatures(encoder)

    together = features([prompt(text) for text in texts])

    assert together.shape == (4, 32)
    alone = np.concatenate([features([prompt(text)]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_features_are_loaded_as_they_were_saved(tmp_path, encoder):
    for features in (PromptFeatures(), PromptFeatures(encoder)):
        features.save(tmp_path)
        assert PromptFeatures.load(tmp_path) == features


def test_a_missing_encoder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        PromptFeatures(str(tmp_path / "nowhere"))([prompt("eggs")])
