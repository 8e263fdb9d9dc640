"""Sample responses from a policy: n for each prompt, in batches of similar length.

What is sampled follows from the seed, the prompt and the number of the sample, and from nothing else: each response
has its own stream of uniform numbers, which picks its tokens by inverting the cumulative distribution. So neither the
order of the prompts nor the size of a batch changes a response. One reservation: padding changes the last bits of a
logit, so a token whose uniform number falls within rounding of a boundary may differ; on a CPU in single precision
that is about one token in a million, in half precision more.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from training.alignment.preferences import Messages, encode_prompt
from training.alignment.reward_net import fit_length

Progress = Callable[[int, int], None]


class _InverseCdf(LogitsProcessor):
    """Leaves one token possible: the one that each row's uniform number of this step falls on."""

    def __init__(self, uniforms: Tensor, num_prompt_tokens: int, temperature: float, top_p: float) -> None:
        self.uniforms, self.num_prompt_tokens = uniforms, num_prompt_tokens
        self.warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        step = input_ids.shape[1] - self.num_prompt_tokens
        cumulative = self.warpers(input_ids, scores).double().softmax(-1).cumsum(-1)
        uniform = self.uniforms[:, step, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, uniform, right=True).clamp(max=scores.shape[-1] - 1)
        return cast(FloatTensor, torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0))


@torch.inference_mode()
def sample(
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
) -> list[list[str]]:
    """`num_samples` responses to each prompt, without special tokens.

    Args:
        prompts: conversations that end before the response.
        temperature, top_p: the distribution sampled from; nothing else of the model's own generation settings counts.
        max_new_tokens: where a response that does not end is cut.
        max_length: tokens of prompt and response; a longer prompt loses its beginning.
        batch_size: responses generated at a time.
        progress: told after each batch how many of how many responses are done; may raise to stop.
    """
    limit = fit_length(max_length, model, tokenizer) - max_new_tokens
    if limit < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens} leaves no room for a prompt")
    encoded = [encode_prompt(tokenizer, prompt, limit) for prompt in prompts]
    rows = [(index, number) for index in range(len(prompts)) for number in range(num_samples)]
    rows.sort(key=lambda row: -len(encoded[row[0]]))  # longest first: memory runs out at once or not at all
    texts = [[""] * num_samples for _ in prompts]
    model.eval()
    with _plain_settings(model, tokenizer, max_new_tokens):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            uniforms = torch.stack([_uniforms(seed, prompts[index], number, max_new_tokens) for index, number in batch])
            ids = _generate(model, [encoded[index] for index, _ in batch], uniforms, temperature, top_p)
            decoded = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for (index, number), text in zip(batch, decoded, strict=True):
                texts[index][number] = text.strip()
            if progress:
                progress(start + len(batch), len(rows))
    return texts


def _generate(
    model: PreTrainedModel, prompts: list[list[int]], uniforms: Tensor, temperature: float, top_p: float
) -> Tensor:
    """(B, T) the new tokens of each row; rows that ended early are padded."""
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    choose = _InverseCdf(uniforms.to(model.device), width, temperature, top_p)
    generate: Any = model.generate  # typed as a tensor or a module
    output = generate(input_ids, attention_mask=mask, logits_processor=LogitsProcessorList([choose]))
    return output[:, width:]


def _uniforms(seed: int, prompt: Messages, number: int, n: int) -> Tensor:
    """(n,) uniform numbers of one response."""
    key = hashlib.sha256(json.dumps([seed, prompt, number], sort_keys=True).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big", signed=True))
    return torch.rand(n, generator=generator, dtype=torch.float64)


@contextmanager
def _plain_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Iterator[None]:
    """Replace the model's own generation settings, of which only the tokens that end a response are kept."""
    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False,  # _InverseCdf has already drawn
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad if pad is not None else 0,
    )
    try:
        yield
    finally:
        model.generation_config = own
