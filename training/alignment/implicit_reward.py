"""The reward that a policy trained on preferences stands for: beta * log(policy / reference policy) of a response.

DPO and its kin train a policy that is optimal, under a KL penalty of weight beta, for some reward; this is that reward,
up to a constant for each prompt. Only differences between responses to one prompt mean anything, and they are in nats:
P(one before other) = sigmoid(difference).

A response's probability is that of all its tokens and of the end, so their logarithms are added, not averaged; the
prompt's tokens do not count, nor what a chat template writes after the end. Everything is computed in single precision:
the difference of two large sums would be lost in a half one.

Source: R. Rafailov et al., "Direct preference optimization: your language model is secretly a reward model", 2023,
equation 5.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.alignment.batching import batches, budget, pad
from training.alignment.config import ConfigError
from training.alignment.member_config import ImplicitRewardMember
from training.alignment.policies import Policy, load_policy
from training.alignment.preferences import Encoded, Messages, PromptedResponses, encode, tokenizer_digest
from training.alignment.products import allow_fast_products
from training.alignment.reward import OVERALL, Scored, placed
from training.alignment.reward_net import fit_length
from training.alignment.weights import weights_digest

MAX_TOKENS = 16384
NUM_LOGITS = 2**28  # at a time: a gigabyte of them
PARTS = ("normalizer", "pre_tokenizer", "model")  # of a tokenizer: what makes tokens of text
PROBES = (
    [{"role": "user", "content": "Is 2 + 2 = 4?\n\n\tNaïve 你好 🙂"}],
    [{"role": "user", "content": "Eggs?"}, {"role": "assistant", "content": "Boil."}, {"role": "user", "content": "?"}],
)

Floats = NDArray[np.float64]


def load(
    config: ImplicitRewardMember, folder: Path, device: str | torch.device | None = None, cache: Any = None
) -> "ImplicitReward":
    """The pair of policies that a member names.

    Args:
        folder: what the policies' paths are relative to.
        device: a GPU where there is one.

    Raises:
        ConfigError: the two read the same text differently, or adapters are no safetensors.
        OSError: one of the policies is not there, or what its adapters belong to.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        allow_fast_products()
    (policy, tokenizer), (reference_policy, reference_tokenizer) = (
        load_policy(placed(folder, name)) for name in (config.policy, config.reference_policy)
    )
    require_same_tokens(tokenizer, reference_tokenizer)
    return ImplicitReward(
        policy.to(device),  # type: ignore[arg-type]
        reference_policy.to(device),  # type: ignore[arg-type]
        tokenizer,
        beta=config.beta,
        max_length=config.max_length,
        aspect=config.aspect,
    )


class ImplicitReward:
    """Scores responses by how much likelier the policy makes them than the reference policy does.

    Args:
        tokenizer: of both.
        beta: the KL weight that the policy was trained with.
        max_length: tokens of prompt and response; a longer prompt loses its beginning.
        max_tokens: in one forward pass.
    """

    is_listwise = False

    def __init__(
        self,
        policy: PreTrainedModel,
        reference_policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        beta: float,
        max_length: int = 1024,
        max_tokens: int = MAX_TOKENS,
        aspect: str = OVERALL,
    ) -> None:
        self.policy, self.reference_policy, self.tokenizer = policy.eval(), reference_policy.eval(), tokenizer
        self.beta, self.max_tokens, self.aspects = beta, max_tokens, (aspect,)
        for model in (policy, reference_policy):
            max_length = fit_length(max_length, model, tokenizer)
        self.max_length = max_length

    @cached_property
    def digest(self) -> str:
        """Of both policies' weights, the tokenizer and all else that a score depends on."""
        models = [(model.config.model_type, weights_digest(model)) for model in (self.policy, self.reference_policy)]
        parts = json.dumps([self.beta, self.max_length, models, tokenizer_digest(self.tokenizer)])
        return hashlib.sha256(parts.encode()).hexdigest()

    def log_odds(self, aspect: str | None = None) -> float:
        """A unit of score is a nat."""
        return 1.0

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses; one whose probability overflows is missing."""
        encoded = [
            [encode_answer(self.tokenizer, one.prompt, text, self.max_length) for text in one.responses]
            for one in prompts
        ]
        flat = [text for texts in encoded for text in texts]
        policy, reference = (
            response_logprobs(model, flat, self.max_tokens) for model in (self.policy, self.reference_policy)
        )
        scores = self.beta * (policy - reference)
        rest = iter(np.where(np.isfinite(scores), scores, math.nan).tolist())
        return [Scored(list(islice(rest, len(texts))), sum(text.is_truncated for text in texts)) for texts in encoded]


@torch.inference_mode()
def response_logprobs(model: Policy, encoded: Sequence[Encoded], max_tokens: int = MAX_TOKENS) -> Floats:
    """(N,) the log-probability of each response given its prompt, in nats: the sum over its tokens.

    Sequences of similar length are padded on the right, where a causal model's attention does not reach, so what else
    is computed along changes nothing but rounding.

    Args:
        model: a causal language model.
        max_tokens: in one forward pass, padding included.
    """
    max_tokens = min(budget(max_tokens, next(model.parameters()).device), most_tokens(model))
    found = np.zeros(len(encoded))
    for places in batches([len(one.ids) for one in encoded], [1] * len(encoded), max_tokens):
        found[places] = summed_logprobs(model, [encoded[place] for place in places]).cpu().numpy()
    return found


def most_tokens(model: Policy) -> int:
    """How many of them may have logits at a time."""
    return NUM_LOGITS // int(model.config.get_text_config().vocab_size)


def summed_logprobs(model: nn.Module, encoded: Sequence[Encoded]) -> Tensor:
    """(N,) double, what `response_logprobs` gives, in one forward pass and with gradients where they are on."""
    device = next(model.parameters()).device
    ids, mask = pad([one.ids for one in encoded], device)
    first = max(min(one.num_prompt_tokens for one in encoded), 1)  # nothing foretells the very first token
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - first + 1).logits[
        :, :-1
    ]
    targets = ids[:, first:]
    logprobs = -nn.functional.cross_entropy(
        (logits if logits.dtype == torch.float64 else logits.float()).flatten(0, 1),
        targets.flatten(),
        reduction="none",
    ).view(targets.shape)
    begins = torch.tensor([[one.num_prompt_tokens] for one in encoded], device=device)
    counts = (torch.arange(first, ids.shape[1], device=device) >= begins) & (mask[:, first:] > 0)
    return logprobs.double().where(counts, 0.0).sum(1)


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: Messages, response: str, max_length: int) -> Encoded:
    """Up to the token that ends the response: no policy has written what a template puts after it."""
    encoded = encode(tokenizer, prompt, response, max_length)
    special = set(tokenizer.all_special_ids)
    ends = [place for place, token in enumerate(encoded.ids) if token in special]
    end = ends[-1] + 1 if ends and ends[-1] >= encoded.num_prompt_tokens else len(encoded.ids)
    return Encoded(encoded.ids[:end], encoded.num_prompt_tokens, encoded.num_dropped)


def require_same_tokens(tokenizer: PreTrainedTokenizerBase, reference: PreTrainedTokenizerBase) -> None:
    """Both policies must read the same tokens, or their probabilities are of different things.

    A reference policy without a chat template of its own is asked in the policy's.

    Raises:
        ConfigError: they do not.
    """
    own, other = (json.loads(one.backend_tokenizer.to_str()) for one in (tokenizer, reference))
    if differing := [part for part in PARTS if own[part] != other[part]]:
        raise ConfigError(
            f"reference_policy: its tokenizer is not the policy's, they differ in their {' and '.join(differing)}"
        )
    for prompt in PROBES:
        ids = encode(tokenizer, prompt, "Yes.", 1024).ids
        if tokenizer.convert_ids_to_tokens(ids) != reference.convert_ids_to_tokens(ids):
            raise ConfigError("reference_policy: its tokenizer lacks tokens of the policy's chat template")
        if reference.chat_template and encode(reference, prompt, "Yes.", 1024).ids != ids:
            raise ConfigError("reference_policy: its chat template is not the policy's, so it is asked something else")
