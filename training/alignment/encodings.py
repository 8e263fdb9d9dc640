"""Conversations as tokens, made once for several reward models that read alike.

Rendering and tokenizing a response takes half a millisecond of a processor, which a GPU needs for dozens of them. The
members of an ensemble mostly come from one backbone, score the same texts one after another, and so share this work.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from training.alignment.preferences import Messages, Scorable, encode_to_score, tokenizer_digest
from training.alignment.reward import Reward
from training.alignment.reward_model import RewardModel
from training.alignment.score_cache import Cached

MAX_TOKENS = 2**20  # kept, at some 40 bytes each

Key = tuple[tuple[tuple[str, str], ...], str]


class Encodings:
    """What `encode_to_score` gives, and the last of it again: as many conversations as have `max_tokens` together."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, max_tokens: int = MAX_TOKENS) -> None:
        self.tokenizer, self.max_length, self.max_tokens = tokenizer, max_length, max_tokens
        self.kept: OrderedDict[Key, Scorable] = OrderedDict()
        self.num_tokens = 0

    def encode(self, messages: Messages, response: str) -> Scorable:
        key = (tuple((message["role"], message["content"]) for message in messages), response)
        if key not in self.kept:
            self.kept[key] = encode_to_score(self.tokenizer, messages, response, self.max_length)
            self.num_tokens += len(self.kept[key].ids)
        found = self.kept[key]
        self.kept.move_to_end(key)
        while self.num_tokens > self.max_tokens:
            _, oldest = self.kept.popitem(last=False)
            self.num_tokens -= len(oldest.ids)
        return found


def share_encodings(rewards: Sequence[Reward]) -> list[Reward]:
    """The same rewards; reward models of one tokenizer and length make tokens of a text once for all of them."""
    models = [reward.reward if isinstance(reward, Cached) else reward for reward in rewards]
    known: dict[tuple[str, int], Encodings] = {}
    found: list[Reward] = []
    for reward, model in zip(rewards, models, strict=True):
        if isinstance(model, RewardModel):
            kind = (tokenizer_digest(model.tokenizer), model.max_length)
            encodings = known.setdefault(kind, Encodings(model.tokenizer, model.max_length))
            model = dataclasses.replace(model, encodings=encodings)  # noqa: PLW2901 -- the same one, but for this
        found.append(Cached(model, reward.cache) if isinstance(reward, Cached) else model)
    return found
