import dataclasses

import pytest
from transformers import AutoTokenizer

from tests.training.alignment.material import random_pairs
from training.alignment import encodings
from training.alignment.encodings import Encodings, share_encodings
from training.alignment.member_config import LengthRule
from training.alignment.preferences import PromptedResponses, encode_to_score, tokenizer_digest
from training.alignment.reward_model import RewardModel
from training.alignment.rule_rewards import load
from training.alignment.score_cache import Cached, ScoreCache


@pytest.fixture
def counted(monkeypatch):
    """How often each text is made tokens of."""
    texts = []

    def count(tokenizer, messages, response, max_length):
        texts.append(response)
        return encode_to_score(tokenizer, messages, response, max_length)

    monkeypatch.setattr(encodings, "encode_to_score", count)
    return texts


def test_what_is_kept_is_what_would_be_made_anew(llama_folder, counted):
    tokenizer, pairs = AutoTokenizer.from_pretrained(llama_folder), random_pairs(20)
    made = Encodings(tokenizer, 32)

    for _ in range(2):
        for prompt, text in pairs:
            assert made.encode(prompt, text) == encode_to_score(tokenizer, prompt, text, 32)
    assert counted == [text for _, text in pairs]


def test_no_more_tokens_are_kept_than_were_told_and_the_last_ones(llama_folder, counted):
    made = Encodings(AutoTokenizer.from_pretrained(llama_folder), 64, max_tokens=150)
    pairs = random_pairs(30)
    for prompt, text in pairs:
        made.encode(prompt, text)
        assert made.num_tokens == sum(len(one.ids) for one in made.kept.values()) <= 150
    num_kept = len(made.kept)
    assert 1 < num_kept < 30

    counted.clear()
    for prompt, text in pairs[-num_kept:]:
        made.encode(prompt, text)
    assert counted == []
    made.encode(*pairs[0])
    assert counted == [pairs[0][1]]


def test_members_that_read_alike_read_once(reward_model_folder, counted, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite3")
    first, second, shorter = (RewardModel.load(reward_model_folder, "cpu", length) for length in (64, 64, 32))
    other = dataclasses.replace(second, means=(7.0,))
    rewards = [first, Cached(other, cache), shorter, load(LengthRule())]
    prompts = [PromptedResponses(prompt, (text, "eggs")) for prompt, text in random_pairs(5)]

    shared = share_encodings(rewards)

    expected = [reward.score_prompts(prompts) for reward in (first, other, shorter, load(LengthRule()))]
    assert counted == []
    assert [reward.score_prompts(prompts) for reward in shared] == [
        [dataclasses.replace(one, scores=pytest.approx(one.scores, abs=1e-5)) for one in scored] for scored in expected
    ]
    assert [reward.digest for reward in shared] == [reward.digest for reward in rewards]
    assert counted == [text for one in prompts for text in one.responses] * 2  # once at each of two lengths


def test_a_tokenizers_digest_does_not_depend_on_what_it_was_used_for(llama_folder, gpt2_folder):
    tokenizer, other = (AutoTokenizer.from_pretrained(folder) for folder in (llama_folder, gpt2_folder))
    digest = tokenizer_digest(tokenizer)

    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=9)

    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_digest(tokenizer) == tokenizer_digest(AutoTokenizer.from_pretrained(llama_folder)) == digest
    tokenizer.chat_template += " "
    assert len({digest, tokenizer_digest(tokenizer), tokenizer_digest(other)}) == 3
