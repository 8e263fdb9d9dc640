import itertools
import json
import math
import shutil
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.material import random_pairs
from training.alignment.config import ConfigError
from training.alignment.implicit_reward import (
    encode_answer,
    load,
    require_same_tokens,
    response_logprobs,
)
from training.alignment.member_config import ImplicitRewardMember, write_member
from training.alignment.preferences import Encoded, PromptedResponses, encode
from training.alignment.reward import load_reward
from training.alignment.weights import classifier_state

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def copied(folder, target, change=None):
    """A policy like the one in the folder, but for what `change` does to its weights."""
    shutil.copytree(folder, target)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if change:
        with torch.no_grad():
            change(model)
    model.save_pretrained(target)
    return target


def shaken(seed: int = 0, size: float = 0.05):
    def change(model):
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))

    return change


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, tmp_path_factory):
    """Folders of a policy and its reference policy."""
    reference = request.getfixturevalue(f"{request.param}_folder")
    return copied(reference, tmp_path_factory.mktemp("pair") / "policy", shaken()), reference


def member(policy, reference, **others) -> ImplicitRewardMember:
    return ImplicitRewardMember(policy=str(policy), reference_policy=str(reference), **others)


# Small enough to count

END, LETTERS, PROMPTS = 0, (1, 2), (3, 4)
LONGEST = 3


class Tabular(nn.Module):
    """A language model that is a table: from what stands so far to the log-probabilities of what follows."""

    def __init__(self, probabilities: dict[tuple[int, ...], float]) -> None:
        """
        Args:
            probabilities: of each whole sequence, prompt included.
        """
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=5))
        self.nothing = nn.Parameter(torch.zeros(()))
        self.masses = defaultdict(float)
        for sequence, probability in probabilities.items():
            for end in range(len(sequence) + 1):
                self.masses[sequence[:end]] += probability

    def forward(self, input_ids, attention_mask, use_cache, logits_to_keep):
        logits = torch.zeros(*input_ids.shape, 5, dtype=torch.float64)
        for row, place in itertools.product(*map(range, input_ids.shape)):
            begin = tuple(input_ids[row, : place + 1].tolist())
            masses = torch.tensor([self.masses.get((*begin, token), 0.0) for token in range(5)], dtype=torch.float64)
            logits[row, place] = masses.log() if masses.sum() else 0.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_the_optimal_policy_stands_for_its_reward_up_to_a_constant_of_the_prompt():
    """policy = reference * exp(reward / beta) / Z, over all 15 responses to each of two prompts."""
    draw, beta = np.random.default_rng(0), 0.3
    bodies = [body for length in range(LONGEST + 1) for body in itertools.product(LETTERS, repeat=length)]
    constants = []
    for prompt in PROMPTS:
        sequences = [(prompt, *body, END) for body in bodies]
        reference = draw.dirichlet(np.ones(len(bodies)))
        rewards = draw.normal(size=len(bodies))
        tilted = reference * np.exp(rewards / beta)
        encoded = [Encoded(list(sequence), 1, 0) for sequence in sequences]

        logprobs, reference_logprobs = (
            response_logprobs(Tabular(dict(zip(sequences, law, strict=True))), encoded, max_tokens=32)
            for law in (tilted / tilted.sum(), reference)
        )

        assert reference_logprobs == pytest.approx(np.log(reference), abs=1e-12)
        constants.append(beta * (logprobs - reference_logprobs) - rewards)
        assert constants[-1] == pytest.approx(-beta * math.log(tilted.sum()), abs=1e-12)
    assert np.abs(constants[0].mean() - constants[1].mean()) > 0.1


# Models


def by_hand(folder, prompt, response) -> float:
    """The sum of a response's log-probabilities, its end included, from all logits of one forward pass."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = encode(tokenizer, prompt, response, 1024)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        logprobs = model(ids).logits[0].double().log_softmax(-1)
    assert encoded.ids[-1] == tokenizer.eos_token_id
    return sum(
        logprobs[place - 1, ids[0, place]].item() for place in range(encoded.num_prompt_tokens, len(encoded.ids))
    )


def test_a_score_is_beta_times_the_sum_over_the_response_and_its_end(pair):
    policy, reference = pair
    prompt, responses = asking("How do I boil four eggs?"), ("Put the eggs into boiling water.", "", "12 minutes")

    (scored,) = load(member(policy, reference, beta=0.2), policy, "cpu").score_prompts(
        [PromptedResponses(prompt, responses)]
    )

    expected = [0.2 * (by_hand(policy, prompt, text) - by_hand(reference, prompt, text)) for text in responses]
    assert scored.scores == pytest.approx(expected, abs=1e-5)
    assert (scored.num_truncated, scored.spread) == (0, None)
    assert len(set(scored.scores)) == 3


def test_a_score_does_not_depend_on_the_company(pair):
    policy, reference = pair
    reward = load(member(policy, reference), policy, "cpu")
    prompts = [PromptedResponses(prompt, (text, text[:9])) for prompt, text in random_pairs(16)]

    together = reward.score_prompts(prompts)

    for one, scored in zip(prompts, together, strict=True):
        for text, score in zip(one.responses, scored.scores, strict=True):
            (alone,) = reward.score_prompts([PromptedResponses(one.prompt, (text,))])
            assert alone.scores == pytest.approx([score], abs=1e-5)
    reward.max_tokens = 200  # about two responses at a time
    assert [one.scores for one in reward.score_prompts(prompts)] == [
        pytest.approx(one.scores, abs=1e-5) for one in together
    ]
    assert reward.score_prompts([]) == []


def test_a_policy_that_has_learned_nothing_stands_for_no_reward(pair):
    _, reference = pair
    reward = load(member(reference, reference), reference, "cpu")
    prompts = [PromptedResponses(prompt, (text,)) for prompt, text in random_pairs(10)]

    assert [one.scores for one in reward.score_prompts(prompts)] == [[0.0]] * 10


def test_beta_is_the_unit(pair):
    policy, reference = pair
    prompts = [PromptedResponses(prompt, (text,)) for prompt, text in random_pairs(10)]
    small, large = (
        [one.scores[0] for one in load(member(policy, reference, beta=beta), policy, "cpu").score_prompts(prompts)]
        for beta in (0.1, 0.5)
    )

    assert large == pytest.approx([5 * score for score in small], rel=1e-12)


def test_what_cannot_be_computed_is_missing(llama_folder, tmp_path):
    broken = copied(llama_folder, tmp_path / "broken", lambda model: model.lm_head.weight[0].fill_(math.nan))
    reward = load(member(broken, llama_folder), broken, "cpu")

    (scored,) = reward.score_prompts([PromptedResponses(asking("Eggs?"), ("Boil them.",))])

    assert scored.scores == pytest.approx([math.nan], nan_ok=True)


def test_truncated_responses_are_counted(pair):
    policy, reference = pair
    reward = load(member(policy, reference, max_length=32), policy, "cpu")

    (scored,) = reward.score_prompts([PromptedResponses(asking("How long?"), ("12", "eggs " * 40, "rice " * 40))])

    assert scored.num_truncated == 2
    assert all(math.isfinite(score) for score in scored.scores)


def test_what_a_template_writes_after_the_end_does_not_count(llama_folder):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML

    encoded = encode_answer(tokenizer, asking("Eggs?"), "Boil them.", 1024)

    assert tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]) == "Boil them.<|im_end|>"
    assert tokenizer.decode(encoded.ids[: encoded.num_prompt_tokens]).endswith("<|im_start|>assistant\n")


# Adapters, members, tokenizers


def test_adapters_are_put_upon_the_model_that_they_were_trained_on(llama_folder, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(llama_folder)
    base.add_adapter(LoraConfig(r=2, target_modules="all-linear", exclude_modules="lm_head", init_lora_weights=False))
    base.save_pretrained(tmp_path / "adapters")
    AutoModelForCausalLM.from_pretrained(llama_folder).save_pretrained(
        tmp_path / "merged", state_dict=classifier_state(base)
    )
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path / "merged")
    prompts = [PromptedResponses(prompt, (text,)) for prompt, text in random_pairs(5)]

    adapters, merged = (
        load(member(tmp_path / name, llama_folder), tmp_path, "cpu").score_prompts(prompts)
        for name in ("adapters", "merged")
    )

    assert [one.scores for one in adapters] == [pytest.approx(one.scores, abs=1e-5) for one in merged]
    assert all(abs(one.scores[0]) > 1e-3 for one in merged)

    (tmp_path / "adapters" / "adapter_model.safetensors").rename(tmp_path / "adapters" / "adapter_model.bin")
    with pytest.raises(ConfigError, match="holds adapters, but not in adapter_model"):
        load(member(tmp_path / "adapters", llama_folder), tmp_path, "cpu")


def test_a_member_folder_is_an_implicit_reward(pair, tmp_path):
    policy, reference = pair
    shutil.copytree(policy, tmp_path / "policy")
    config = ImplicitRewardMember(policy="policy", reference_policy=str(reference), aspect="helpful")

    reward = load_reward(write_member(tmp_path, config), "cpu")

    assert (reward.aspects, reward.is_listwise, reward.log_odds()) == (("helpful",), False, 1.0)
    moved = load(member(policy, reference), tmp_path, "cpu")
    assert reward.digest == moved.digest
    assert len(bytes.fromhex(reward.digest)) == 32
    others = [member(reference, policy), member(policy, reference, beta=0.2), member(policy, reference, max_length=99)]
    assert len({reward.digest, *(load(other, tmp_path, "cpu").digest for other in others)}) == 4


def test_policies_that_read_the_same_text_differently_are_refused(llama_folder, gpt2_folder, tmp_path):
    with pytest.raises(ConfigError, match="its tokenizer is not the policy's"):
        load(member(llama_folder, gpt2_folder), tmp_path, "cpu")

    own, other = (AutoTokenizer.from_pretrained(llama_folder) for _ in range(2))
    other.chat_template = other.chat_template.replace("assistant", "helper")
    own.chat_template = other.chat_template + "{# the same #}"
    require_same_tokens(own, other)
    other.chat_template = CHATML
    with pytest.raises(ConfigError, match="its chat template is not the policy's"):
        require_same_tokens(own, other)
    other.chat_template = None
    require_same_tokens(own, other)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    require_same_tokens(own, other)
    own.chat_template = CHATML
    with pytest.raises(ConfigError, match="its tokenizer lacks tokens of the policy's chat template"):
        require_same_tokens(own, other)


def test_a_pad_token_of_its_own_makes_no_other_tokenizer(llama_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=8)  # leaves its traces in the tokenizer's file
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"]

    require_same_tokens(AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(llama_folder))
