"""A reward model as it is used: one score for each prompt and response, whatever else is scored along with it.

It is saved as `transformers` saves a sequence classifier, so other programs load it as one and read the same raw
reward. config.json holds besides, one for each head: `reward_aspects`; `reward_mean` and `reward_std`, by which scores
are brought to mean 0 and deviation 1 on a reference set (rankings leave a reward's origin open; the deviation says how
many nats a unit of score is); and `reward_temperature`, by which differences of raw rewards become probabilities:
P(one before other) = sigmoid((raw - raw') / temperature). `reward_reference` tells the reference set's digest and size.
These are fixed after training, and so leave true differences as they are.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.alignment.batching import budget
from training.alignment.config import ConfigError
from training.alignment.packing import Packing, build_row, parts, plan
from training.alignment.preferences import (
    Messages,
    PromptedResponses,
    RankedResponses,
    Scorable,
    encode_to_score,
    tokenizer_digest,
)
from training.alignment.products import allow_fast_products
from training.alignment.reward import OVERALL, Reward, Scored
from training.alignment.reward_net import RewardNet, fit_length, load_classifier
from training.alignment.run_dir import Interrupted, StopFlag
from training.alignment.weights import weights_digest

if TYPE_CHECKING:
    from training.alignment.encodings import Encodings

MAX_LENGTH, MAX_TOKENS = 1024, 16384
CHUNK = 256
STREAM_CHUNK = 2048

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RewardModel:
    """Scores responses to prompts."""

    net: RewardNet
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int = MAX_LENGTH
    max_tokens: int = MAX_TOKENS
    aspects: tuple[str, ...] = (OVERALL,)
    """What each of the H heads scores."""
    means: tuple[float, ...] = (0.0,)
    stds: tuple[float, ...] = (1.0,)
    """Nats in a unit of score."""
    temperatures: tuple[float, ...] = (1.0,)
    """Nats by which raw rewards differ where the better one is preferred with odds of e to 1."""
    head: int = 0
    """The head that is used where no aspect is asked for."""
    encodings: "Encodings | None" = None
    """What makes tokens of texts for this model and others; see `share_encodings`."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        max_length: int | None = None,
        max_tokens: int = MAX_TOKENS,
        *,
        dtype: torch.dtype = torch.float32,
        aspect: str | None = None,
        packing: Packing | None = None,
    ) -> Self:
        """A reward model from a folder or a Hugging Face id: one of ours, or any sequence classifier with one output.

        On a CPU the process multiplies by `products.allow_fast_products` from then on.

        Args:
            device: a GPU where there is one.
            max_length: tokens of prompt and response; what was trained with, or 1024, but no more than the model takes.
            max_tokens: in one forward pass.
            dtype: bfloat16 halves the memory, and then scores depend on the batch in their second digit.
            aspect: whose head to use; that of "overall" where nothing is asked for, or the first one.
            packing: see `RewardNet`.

        Raises:
            ConfigError: the model has no trained head of one output for each aspect.
            OSError: there is no such model.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cpu":
            allow_fast_products()
        model, missing = load_classifier(str(folder), dtype)
        if missing:
            raise ConfigError(f"{folder} is not a reward model: it lacks {', '.join(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        trained_length: int = getattr(model.config, "reward_max_length", MAX_LENGTH)
        longest = fit_length(max_length or trained_length, model, tokenizer)
        loaded = cls(
            net=RewardNet(model.to(device), packing, longest),  # type: ignore[arg-type]
            tokenizer=tokenizer,
            device=device,
            max_length=longest,
            max_tokens=max_tokens,
            aspects=tuple(getattr(model.config, "reward_aspects", cls.aspects)),
            means=_numbers(model.config, "reward_mean", 0.0),
            stds=_numbers(model.config, "reward_std", 1.0),
            temperatures=_numbers(model.config, "reward_temperature", 1.0),
        )
        usual = OVERALL if OVERALL in loaded.aspects else None
        return dataclasses.replace(loaded, head=loaded.head_of(aspect or usual))

    is_listwise = False

    @cached_property
    def digest(self) -> str:
        """Of the weights, the tokenizer and all else that a score depends on, wherever it was loaded from."""
        model = self.net.model
        told = [self.max_length, self.aspects, self.means, self.stds, self.head, model.config.model_type]
        parts = json.dumps([*told, tokenizer_digest(self.tokenizer), weights_digest(model)])
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def mean(self) -> float:
        return self.means[self.head]

    @property
    def std(self) -> float:
        """Nats in a unit of score."""
        return self.stds[self.head]

    @property
    def temperature(self) -> float:
        return self.temperatures[self.head]

    def head_of(self, aspect: str | None) -> int:
        """The number of an aspect's head; a model with only one judges by it whatever the aspect.

        Raises:
            ConfigError: none of several heads is the aspect's.
        """
        if aspect is None or len(self.aspects) == 1:
            return self.head
        if aspect not in self.aspects:
            raise ConfigError(f"aspect: the reward model scores {', '.join(self.aspects)}, not {aspect}")
        return self.aspects.index(aspect)

    def log_odds(self, aspect: str | None = None) -> float:
        """What a unit of score is worth: P(one before other) = sigmoid(log_odds * (score - score'))."""
        head = self.head_of(aspect)
        return self.stds[head] / self.temperatures[head]

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses."""
        return self.score_aspects(prompts, [aspect] * len(prompts))

    def score_aspects(self, prompts: Sequence[PromptedResponses], aspects: Sequence[str | None]) -> list[Scored]:
        """The scores of all prompts' responses, each prompt's by the head of its own aspect."""
        encoded = self.encode_all([(one.prompt, text) for one in prompts for text in one.responses])
        rewards = self.rewards(encoded)
        found: list[Scored] = []
        start = 0
        for one, aspect in zip(prompts, aspects, strict=True):
            own, head = slice(start, start + len(one.responses)), self.head_of(aspect)
            scores = (rewards[own, head].astype(float) - self.means[head]) / self.stds[head]
            found.append(Scored(scores.tolist(), sum(text.is_truncated for text in encoded[own])))
            start = own.stop
        return found

    def score(self, pairs: Iterable[tuple[Messages, str]], aspect: str | None = None) -> list[float]:
        """The score of each response to its prompt, (messages, text), whatever else is scored along with it."""
        return list(self.score_stream(pairs, aspect))

    def score_stream(self, pairs: Iterable[tuple[Messages, str]], aspect: str | None = None) -> Iterator[float]:
        """Scores in the order of the pairs, in constant memory; the prompt of neighbours is computed once."""
        head = self.head_of(aspect)
        for raw in self.reward_stream(pairs):
            yield (float(raw[head]) - self.means[head]) / self.stds[head]

    def reward_stream(self, pairs: Iterable[tuple[Messages, str]]) -> Iterator[Floats]:
        """(H,) raw rewards of each pair, in nats, one for each head."""
        pairs = iter(pairs)
        while chunk := list(islice(pairs, STREAM_CHUNK)):
            yield from self.rewards(self.encode_all(chunk))

    def encode(self, messages: Messages, response: str) -> Scorable:
        if self.encodings is not None:
            return self.encodings.encode(messages, response)
        return encode_to_score(self.tokenizer, messages, response, self.max_length)

    def encode_all(self, pairs: Sequence[tuple[Messages, str]]) -> list[Scorable]:
        return [self.encode(messages, response) for messages, response in pairs]

    @torch.no_grad()  # shards gathered in inference mode could not be trained any more
    def rewards(self, encoded: Sequence[Scorable]) -> Floats:
        """(N, H) raw rewards, in nats. What begins alike is computed once, and equal texts are computed once."""
        texts = [tuple(one.ids) for one in encoded]
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        max_tokens = budget(self.max_tokens, self.device)
        bundles = parts(distinct, self.net.packing, max_tokens)
        found = np.empty((len(distinct), len(self.aspects)), dtype=np.float32)
        for numbers in plan([one for one, _ in bundles], self.net.packing, max_tokens):
            row = build_row([bundles[number][0] for number in numbers], self.net.packing, self.device)
            found[[text for number in numbers for text in bundles[number][1]]] = self.net(row).float().cpu().numpy()
        return found[[place[text] for text in texts]]


def _numbers(config: Any, name: str, default: float) -> tuple[float, ...]:
    """A number for each head, from a model's configuration; one number stands for that of a single head."""
    value = getattr(config, name, None)
    if value is None:
        return (default,) * len(getattr(config, "reward_aspects", [""]))
    return tuple(value) if isinstance(value, list | tuple) else (float(value),)


def score_rankings(
    accelerator: Accelerator,
    reward: Reward,
    rankings: Sequence[RankedResponses],
    stop: StopFlag,
    is_divided: bool = True,
) -> Iterator[list[Scored]]:
    """The scores of all rankings' responses, each as to the ranking's aspect, a chunk of rankings at a time.

    Args:
        is_divided: each process takes its share; otherwise all do everything together, as sharded models must.

    Raises:
        Interrupted: `stop` is true in one of the processes.
    """
    for start in range(0, len(rankings), CHUNK):
        if agree(accelerator, stop()):
            raise Interrupted(f"stopped after scoring {start} of {len(rankings)} rankings")
        chunk = rankings[start : start + CHUNK]
        if accelerator.num_processes == 1 or not is_divided:
            yield _score_chunk(reward, chunk)
            continue
        mine = _score_chunk(reward, chunk[accelerator.process_index :: accelerator.num_processes])
        shares = gather_object([mine])
        yield [shares[place % len(shares)][place // len(shares)] for place in range(len(chunk))]


def _score_chunk(reward: Reward, rankings: Sequence[RankedResponses]) -> list[Scored]:
    prompts = [PromptedResponses(ranked.prompt, ranked.responses, ranked.id) for ranked in rankings]
    if isinstance(reward, RewardModel):  # computes all heads at once
        return reward.score_aspects(prompts, [ranked.aspect for ranked in rankings])
    found: dict[int, Scored] = {}
    for aspect in dict.fromkeys(ranked.aspect for ranked in rankings):
        places = [place for place, ranked in enumerate(rankings) if ranked.aspect == aspect]
        scored = reward.score_prompts([prompts[place] for place in places], aspect)
        found.update(zip(places, scored, strict=True))
    return [found[place] for place in range(len(rankings))]


def join_processes() -> Accelerator:
    """This process's part in the run. On CPUs accelerate joins processes only when it is told that they are CPUs."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # such as a pooler that no reward is read from
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
    if accelerator.device.type == "cpu":
        allow_fast_products()
    return accelerator


def agree(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up in any process: what one of them does at a step, all do."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


def normalisation(
    rewards: Floats, temperatures: Mapping[int, float], digest: str, aspects: Sequence[str]
) -> dict[str, Any]:
    """What config.json tells about a model's rewards.

    Args:
        rewards: (N, H) raw rewards of the reference set's responses.
        temperatures: of the heads that have one.
        digest: of the reference set.
    """
    values = rewards.astype(np.float64)
    stds = values.std(0)
    return {
        "reward_aspects": list(aspects),
        "reward_mean": values.mean(0).tolist(),
        "reward_std": np.where(stds > 0, stds, 1.0).tolist(),
        "reward_temperature": [temperatures.get(head, 1.0) for head in range(values.shape[1])],
        "reward_reference": {"digest": digest, "num_responses": len(values)},
    }
