"""Sample responses from a policy: n for each prompt.

What is sampled follows from the seed, the prompt and the number of the sample, and from nothing else: each response
has its own stream of uniform numbers, which picks its tokens by inverting the cumulative distribution. So neither the
order of the prompts nor the size of a batch changes a response. One reservation: padding changes the last bits of a
logit, so a token whose uniform number falls within rounding of a boundary may differ; on a CPU in single precision
that is about one token in a million, in half precision more.

Where vLLM is installed and there is a GPU, `Generator` samples through it: by the same law, but with a seed of vLLM's
own for each response in place of the numbers, so its samples are others. Otherwise the model is run by `decoding`, or,
where its memory is not made of keys and values alone, by the `generate` of transformers.
"""

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.alignment.config import ConfigError
from training.alignment.decoding import Progress, Response, can_decode, decode, draw, warp
from training.alignment.policies import load_policy, save_policy
from training.alignment.preferences import Messages, encode_prompt
from training.alignment.reward_net import fit_length
from training.alignment.vllm_engine import VllmEngine, has_vllm


@dataclass(frozen=True)
class Generated:
    """The tokens of one response, without the one that ends it, and whether that came."""

    ids: list[int]
    is_ended: bool
    end: int | None = field(default=None, compare=False)
    """Which token it was: models may have several that end a response."""


class Settings(Protocol):
    """What a configuration that samples tells; see `SamplingConfig`."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def generation_batch_size(self) -> int: ...
    @property
    def backend(self) -> str: ...


class _InverseCdf(LogitsProcessor):
    """Leaves one token possible: the one that each row's uniform number of this step falls on."""

    def __init__(self, uniforms: Tensor, num_prompt_tokens: int, temperature: float, top_p: float) -> None:
        self.uniforms, self.num_prompt_tokens = uniforms, num_prompt_tokens
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        step = input_ids.shape[1] - self.num_prompt_tokens
        chosen = draw(warp(scores, self.temperature, self.top_p), self.uniforms[:, step])
        return cast(FloatTensor, torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0))


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    num_samples: int,
    **options: Any,
) -> list[list[str]]:
    """`num_samples` responses to each prompt, without special tokens; all else as in `generate_ids`."""
    return texts(tokenizer, generate_ids(model, tokenizer, prompts, num_samples, **options))


def texts(tokenizer: PreTrainedTokenizerBase, generated: Sequence[Sequence[Generated]]) -> list[list[str]]:
    """The responses to each prompt as text, without special tokens."""
    flat = [one.ids for own in generated for one in own]
    decoded = iter(tokenizer.batch_decode(flat, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return [[next(decoded).strip() for _ in own] for own in generated]


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    num_samples: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    max_length: int = 1024,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[list[Generated]]:
    """`num_samples` responses to each prompt, as tokens.

    Args:
        prompts: conversations that end before the response.
        temperature, top_p: the distribution sampled from; nothing else of the model's own generation settings counts.
        max_new_tokens: where a response that does not end is cut.
        max_length: tokens of prompt and response; a longer prompt loses its beginning.
        batch_size: responses generated at a time.
        progress: told now and then how many of how many responses are done; may raise to stop.

    Raises:
        ValueError: `max_new_tokens` leaves no room for a prompt.
    """
    encoded = _encode(model, tokenizer, prompts, max_new_tokens, max_length)
    responses = [
        Response(ids, _uniforms(seed, prompt, number, max_new_tokens).tolist())
        for ids, prompt in zip(encoded, prompts, strict=True)
        for number in range(num_samples)
    ]
    longest_first = sorted(responses, key=lambda one: -len(one.prompt))  # memory runs out at once or not at all
    write = decode if can_decode(model) else _generate
    model.eval()
    write(
        model,
        longest_first,
        ends=_ends(model, tokenizer),
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        progress=progress,
    )
    return _grouped(responses, num_samples)


class Generator:
    """Samples from one policy by the fastest way that there is.

    Args:
        policy: a folder, a Hugging Face id, or a model, which is used as it is where transformers runs it.
        tokenizer: the policy's own where it is none.
        config: how to sample; its `backend` may ask for one way.

    Attributes:
        name: which way it is, for the run to tell.

    Raises:
        ConfigError: vLLM is asked for and cannot run here.
    """

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        config: Settings,
        device: torch.device | str,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        if config.backend == "vllm" and not has_vllm(self.device):
            raise ConfigError("backend: vLLM is not installed here, or there is no GPU for it")
        self.has_engine = config.backend != "transformers" and has_vllm(self.device)
        self.engine: VllmEngine | None = None
        self.model: Any
        self.tokenizer: Any = tokenizer
        self.refresh(policy)

    @property
    def name(self) -> str:
        if self.engine:
            return self.engine.name
        return "transformers, continuous batches" if can_decode(self.model) else "transformers, generate"

    def refresh(self, policy: str | Path | PreTrainedModel) -> None:
        """Sample from another policy from now on; vLLM starts anew, which takes a minute."""
        self.close()
        self.model = policy
        if isinstance(policy, str | Path):
            self.model, own = load_policy(policy)
            self.tokenizer = self.tokenizer or own
            if not self.has_engine:
                self.model.to(self.device, sampling_dtype(self.device))
        if self.has_engine:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "policy"
                save_policy(self.model, self.tokenizer, folder)  # whole, and weights that are in training as they are
                limit = fit_length(self.config.max_length, self.model, self.tokenizer)
                self.engine = VllmEngine(folder, limit, sampling_dtype(self.device))

    def sample(
        self, prompts: Sequence[Messages], num_samples: int, seed: int, progress: Progress | None = None
    ) -> list[list[str]]:
        """`num_samples` responses to each prompt, without special tokens."""
        return texts(self.tokenizer, self.generate_ids(prompts, num_samples, seed, progress))

    def generate_ids(
        self, prompts: Sequence[Messages], num_samples: int, seed: int, progress: Progress | None = None
    ) -> list[list[Generated]]:
        """`num_samples` responses to each prompt, as tokens; see the function of this name."""
        config = self.config
        if self.engine:
            return self._by_engine(self.engine, prompts, num_samples, seed, progress)
        return generate_ids(
            self.model,
            self.tokenizer,
            prompts,
            num_samples,
            seed=seed,
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            max_length=config.max_length,
            batch_size=config.generation_batch_size,
            progress=progress,
        )

    def close(self) -> None:
        """Give back the memory."""
        if self.engine:
            self.engine.close()
        self.engine = self.model = None

    def _by_engine(
        self,
        engine: VllmEngine,
        prompts: Sequence[Messages],
        num_samples: int,
        seed: int,
        progress: Progress | None,
    ) -> list[list[Generated]]:
        config = self.config
        encoded = _encode(self.model, self.tokenizer, prompts, config.max_new_tokens, config.max_length)
        responses = [Response(ids, ()) for ids in encoded for _ in range(num_samples)]
        engine.write(
            responses,
            [_response_seed(seed, prompt, number) for prompt in prompts for number in range(num_samples)],
            ends=_ends(self.model, self.tokenizer),
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
        )
        if progress:
            progress(len(responses), len(responses))
        return _grouped(responses, num_samples)


def sampling_dtype(device: torch.device) -> torch.dtype:
    """What a policy that only samples is held in."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    max_length: int,
) -> list[tuple[int, ...]]:
    limit = fit_length(max_length, model, tokenizer) - max_new_tokens
    if limit < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens} leaves no room for a prompt")
    return [tuple(encode_prompt(tokenizer, prompt, limit)) for prompt in prompts]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a response; of the model's own generation settings they alone are kept."""
    own = model.generation_config.eos_token_id
    found = own if own is not None else tokenizer.eos_token_id
    return set(found if isinstance(found, list) else [] if found is None else [found])


def _grouped(responses: Sequence[Response], num_samples: int) -> list[list[Generated]]:
    """The responses of each prompt."""
    found = [Generated(one.ids, one.is_ended, one.end) for one in responses]
    return [found[start : start + num_samples] for start in range(0, len(found), num_samples)]


def _response_seed(seed: int, prompt: Messages, number: int) -> int:
    """64 bits, with a sign."""
    key = hashlib.sha256(json.dumps([seed, prompt, number], sort_keys=True).encode()).digest()
    return int.from_bytes(key[:8], "big", signed=True)


def _uniforms(seed: int, prompt: Messages, number: int, n: int) -> Tensor:
    """(n,) uniform numbers of one response."""
    generator = torch.Generator().manual_seed(_response_seed(seed, prompt, number))
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _generate(
    model: Any,
    responses: Sequence[Response],
    *,
    ends: Collection[int],
    temperature: float,
    top_p: float,
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """As `decode`, by the model's own `generate`: for models that remember otherwise."""
    for start in range(0, len(responses), batch_size):
        batch = responses[start : start + batch_size]
        width = max(len(one.prompt) for one in batch)
        uniforms = torch.tensor([one.uniforms for one in batch], dtype=torch.float64, device=model.device)
        choose = _InverseCdf(uniforms, width, temperature, top_p)
        with _plain_settings(model, ends, uniforms.shape[1]):
            output = model.generate(
                torch.tensor([[0] * (width - len(one.prompt)) + [*one.prompt] for one in batch], device=model.device),
                attention_mask=torch.tensor(
                    [[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in batch], device=model.device
                ),
                logits_processor=LogitsProcessorList([choose]),
            )
        for response, ids in zip(batch, output[:, width:].tolist(), strict=True):
            for token in ids:
                if not response.is_done:
                    response.add(token, ends)
        if progress:
            progress(start + len(batch), len(responses))


@contextmanager
def _plain_settings(model: PreTrainedModel, ends: Collection[int], max_new_tokens: int) -> Iterator[None]:
    """Replace the model's own generation settings."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,  # _InverseCdf has already drawn
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,  # what follows an end is not looked at
    )
    try:
        yield
    finally:
        model.generation_config = own
