"""An off-the-shelf language model as a reward, from local weights: read from its probabilities, never by sampling.

The question of `training.alignment.judging` is put to it by its own chat template, without thinking aloud. What counts
is how probable each answer is as the reply's beginning: in every token that spells it, with white space around it or
not. An answer of several tokens, as "10" in many vocabularies, has the probability of all of them after each other, and
"1" that of its token without what goes on to "10".
"""

import copy
import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from training.alignment.config import ConfigError
from training.alignment.judging import Answer, Judging, KnownAnswers, Question
from training.alignment.member_config import JudgeMember
from training.alignment.preferences import PromptedResponses, encode_prompt, tokenizer_digest
from training.alignment.products import allow_fast_products
from training.alignment.reward import Scored, placed
from training.alignment.reward_net import fit_length
from training.alignment.score_cache import ScoreCache
from training.alignment.weights import weights_digest

KEEP = 64
"""Questions answered before their answers are stored."""

Floats = NDArray[np.float64]


def load(
    config: JudgeMember, folder: Path, device: str | torch.device | None = None, cache: ScoreCache | None = None
) -> "Judge":
    """The judge that a member describes.

    Args:
        folder: what the model's path is relative to.
        device: a GPU where there is one.
        cache: of scores. A pairwise judge keeps its own answers there; ratings are kept by `score_cache.Cached`.

    Raises:
        ConfigError: the model cannot spell the answers, or the question alone is too long for it.
        OSError: there is no such model.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        allow_fast_products()
    name = placed(folder, config.model)
    dtype = torch.float32 if device.type == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return Judge(config, model.to(device).eval(), tokenizer, cache)  # type: ignore[arg-type]


class Judge:
    """Scores responses by what a language model thinks of them.

    In single precision an answer does not depend on what else is asked; in half precision its second digit does.
    """

    def __init__(
        self,
        config: JudgeMember,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: ScoreCache | None = None,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.judging = Judging(config)
        self.max_length = fit_length(config.max_length, model, tokenizer)
        self.spellings = Spellings.of(tokenizer, self.judging.options)
        self._known = KnownAnswers(self._model_digest, cache) if self.is_listwise and cache else None

    @property
    def is_listwise(self) -> bool:
        return self.judging.is_pairwise

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.config.aspect,)

    @cached_property
    def digest(self) -> str:
        return self.judging.digest(self._model_digest)

    def log_odds(self, aspect: str | None = None) -> float:
        """1: margins are in logits, and what a step of a rating is worth is not known."""
        return 1.0

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses: ratings, or strengths in logits with mean 0 in each list."""
        return self.judging.score_prompts(self.ask, prompts)

    def sent(self, question: Question) -> str:
        """The exact text that the model reads."""
        return str(self.tokenizer.decode(self._encode(question)[0], clean_up_tokenization_spaces=False))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, each question answered once however often it is asked."""
        distinct = list(dict.fromkeys(questions))
        found: dict[Question, Answer] = {}
        for start in range(0, len(distinct), KEEP):
            some = distinct[start : start + KEEP]
            found.update(zip(some, self._recall(some) if self._known else self._answer(some), strict=True))
        return [found[question] for question in questions]

    def _recall(self, questions: Sequence[Question]) -> list[Answer]:
        assert self._known is not None
        keys = [self._known.key(question) for question in questions]
        known = self._known.get(keys)
        unknown = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        answers = dict(zip(unknown, self._answer(list(unknown.values())), strict=True))
        self._known.put(answers)
        return [(known | answers)[key] for key in keys]

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        encoded = [self._encode(question) for question in questions]
        longest_first = sorted(range(len(encoded)), key=lambda place: -len(encoded[place][0]))
        found: dict[int, Answer] = {}
        for start in range(0, len(encoded), self.config.batch_size):
            places = longest_first[start : start + self.config.batch_size]
            shares = self.spellings.probabilities(self.model, [encoded[place][0] for place in places])
            for place, row in zip(places, shares.tolist(), strict=True):
                probabilities = dict(zip(self.judging.options, row, strict=True))
                value = self.judging.value(probabilities)
                failure = None if np.isfinite(value) else "no probabilities"
                found[place] = Answer(value, probabilities, failure=failure, is_truncated=encoded[place][1])
        return [found[place] for place in range(len(encoded))]

    def _encode(self, question: Question) -> tuple[list[int], bool]:
        """A question's tokens, and whether something of it was cut to fit."""
        ids, whole = self._tokens(question), question
        while len(ids) > self.max_length:
            if not question.num_characters:
                raise ConfigError(
                    f"max_length: without any conversation a question has {len(ids)} tokens, and {self.max_length} fit"
                )
            excess = (len(ids) - self.max_length) / len(ids)
            question = question.cut(max(1, round(excess * question.num_characters)))
            ids = self._tokens(question)
        return ids, question is not whole

    def _tokens(self, question: Question) -> list[int]:
        ids = encode_prompt(self.tokenizer, question.messages, sys.maxsize, enable_thinking=False)
        if self.tokenizer.chat_template:
            return ids
        # after the plain template's "Assistant:" many vocabularies have a space of its own before a digit
        return ids + list(self.tokenizer("\n", add_special_tokens=False)["input_ids"])

    @cached_property
    def _model_digest(self) -> str:
        """Of the weights and of how they are read, wherever they were loaded from."""
        found = hashlib.sha256()
        told = (self.max_length, self.model.config.model_type)
        for part in (repr(told), tokenizer_digest(self.tokenizer), weights_digest(self.model)):
            found.update(f"{len(part)} {part}".encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Spellings:
    """The ways in which tokens spell each of some answers."""

    options: tuple[str, ...]
    steps: dict[str, dict[str, list[int]]]
    """From what is spelled so far, "" at first, to what is spelled then: the tokens that lead there."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> Self:
        """All tokens that spell an option, or begin one that the tokenizer spells by several.

        Raises:
            ConfigError: the tokenizer spells an option in no way that begins by itself.
        """
        begins = _beginnings(tokenizer, options)
        texts = _token_texts(tokenizer)
        steps: dict[str, dict[str, list[int]]] = {}
        for begin in sorted(begins):
            steps[begin] = {}
            for token, text in texts:
                spelled = begin + (text.rstrip() if begin else text.strip())
                if spelled != begin and (spelled in options or spelled in begins):
                    steps[begin].setdefault(spelled, []).append(token)
        reached = {spelled for step in steps.values() for spelled in step}
        if missing := [option for option in options if option not in reached]:
            raise ConfigError(f"model: its tokenizer has no tokens for the answer {missing[0]}")
        return cls(tuple(options), steps)

    @torch.inference_mode()
    def probabilities(self, model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Floats:
        """(B, options) how probable each option is after each of B sequences of tokens, as what comes next."""
        found = {option: np.zeros(len(sequences)) for option in self.options}
        self._follow(_Reader(model, sequences), "", np.zeros(len(sequences)), found)
        return np.stack([found[option] for option in self.options], axis=1)

    def _follow(self, reader: "_Reader", begin: str, so_far: Floats, found: dict[str, Floats]) -> None:
        """Add to `found` what comes after `begin`, whose tokens have log-probability `so_far` and are read."""
        for spelled, tokens in self.steps[begin].items():
            for token, logprobs in zip(tokens, reader.logprobs(tokens).T, strict=True):
                share = np.exp(so_far + logprobs)
                if spelled in self.steps:
                    after = reader.after(token)
                    self._follow(after, spelled, so_far + logprobs, found)
                    longer = [token for tokens in self.steps[spelled].values() for token in tokens]
                    share *= 1 - np.exp(after.logprobs(longer)).sum(1)
                if spelled in found:
                    found[spelled] += share


class _Reader:
    """What a model expects after each of B sequences, which are padded on the left so that all end at one place."""

    def __init__(self, model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> None:
        width = max(map(len, sequences))
        ids = [[0] * (width - len(sequence)) + list(sequence) for sequence in sequences]
        mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
        self.model = model
        self.mask = torch.tensor(mask, device=model.device)
        self._read(torch.tensor(ids, device=model.device), None)

    def logprobs(self, tokens: Sequence[int]) -> Floats:
        """(B, tokens) log-probabilities of tokens as the next one."""
        return (self._logits[:, list(tokens)] - self._logits.logsumexp(-1, keepdim=True)).cpu().numpy()

    def after(self, token: int) -> "_Reader":
        """The same model one token later, in all sequences; this one stays where it is."""
        later = copy.copy(self)
        later.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        later._read(self.mask.new_full((len(self.mask), 1), token), copy.deepcopy(self._cache))
        return later

    def _read(self, ids: Tensor, cache: Any) -> None:
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        taken = inspect.signature(self.model.forward).parameters
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in options.items() if name in taken},
        )
        self._cache = output.past_key_values
        self._logits: Tensor = output.logits[:, -1].double()


def _beginnings(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> set[str]:
    """What is spelled after each token but the last, where the tokenizer spells an option by several; and ""."""
    begins = {""}
    for option in options:
        ids = tokenizer(option, add_special_tokens=False)["input_ids"]
        texts = [
            str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)).strip() for end in range(len(ids))
        ]
        begins |= {text for text in texts if option.startswith(text) and text != option}
    return begins


def _token_texts(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """Each token that is no special one, and its text."""
    tokens = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    return list(zip(tokens, texts, strict=True))
