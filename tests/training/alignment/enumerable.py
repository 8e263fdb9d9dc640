"""A language model whose every response can be listed, with the probability of each: what algorithms must land on is
then a closed form.

Responses are texts of no more than four of the letters a, b, c, d, the empty one among them: 341. After four letters
the end is certain, so every response ends by itself within `MAX_NEW_TOKENS`. The logits of the next letter, or of the
end, are a parameter of their own for each prompt and each beginning of a response. So the model represents every law
exactly, and what is off after training is the algorithm's doing. A prompt is told from another by its last letter.

It is a Hugging Face model by all appearances: `AutoModelForCausalLM.from_pretrained` loads it, in this process.
"""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from training.alignment.preferences import Messages, encode
from training.alignment.tiny_lm import build_tokenizer

LETTERS = "abcd"
LONGEST = 4
MAX_NEW_TOKENS = LONGEST + 1  # the end is a token
BEGINNINGS = ["".join(letters) for length in range(LONGEST) for letters in itertools.product(LETTERS, repeat=length)]
RESPONSES = [*BEGINNINGS, *("".join(letters) for letters in itertools.product(LETTERS, repeat=LONGEST))]
PROMPTS: list[Messages] = [[{"role": "user", "content": letter}] for letter in LETTERS]
VOCABULARY_SIZE = 262  # all bytes, and six special tokens
HIDDEN_SIZE = len(LETTERS) + 2  # logits of letters and end, and a 1
NEVER = -1e4  # a logit whose probability is 0 in every precision


class EnumerableConfig(PreTrainedConfig):
    model_type = "enumerable"

    def __init__(self, letter_ids: list[int] | None = None, role_ids: list[int] | None = None, **options: Any) -> None:
        self.letter_ids = letter_ids or [0] * len(LETTERS)
        self.role_ids = role_ids or [0, 0]
        """Of user and assistant."""
        self.vocab_size = VOCABULARY_SIZE
        self.hidden_size = HIDDEN_SIZE
        self.num_hidden_layers = 1
        self.max_position_embeddings = 512
        super().__init__(**options)


class _Table(nn.Module):
    """The hidden state of a token: the logits of what may follow it, and a 1."""

    def __init__(self, config: EnumerableConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(len(PROMPTS), len(BEGINNINGS), len(LETTERS) + 1))
        """(prompts, beginnings, letters and the end) logits."""

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        moves, rows = _moves_and_rows(tuple(self.config.letter_ids), tuple(self.config.role_ids))
        moves, rows = moves.to(input_ids.device), rows.to(input_ids.device)
        state = torch.zeros_like(input_ids[:, 0])
        states = []
        for token in input_ids.unbind(1):
            state = moves[state, token]
            states.append(state)
        certain_end = self.table.new_tensor([[NEVER] * len(LETTERS) + [0.0]])
        hidden = torch.cat([self.table.flatten(0, 1), certain_end])[rows[torch.stack(states, 1)]]
        return BaseModelOutput(last_hidden_state=torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1))


class _Spread(nn.Module):
    """Puts logits into their places in the vocabulary; a language model's head, but nothing to learn."""

    def __init__(self, config: EnumerableConfig) -> None:
        super().__init__()
        self.bias = None
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(VOCABULARY_SIZE, HIDDEN_SIZE))

    def fill(self, letter_ids: list[int], end: int) -> None:
        self.weight[:, -1] = NEVER
        for column, token in enumerate([*letter_ids, end]):
            self.weight[token, column], self.weight[token, -1] = 1, 0

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight)


class EnumerableLM(PreTrainedModel, GenerationMixin):
    config_class = EnumerableConfig
    base_model_prefix = "model"

    def __init__(self, config: EnumerableConfig) -> None:
        super().__init__(config)
        self.model = _Table(config)
        self.lm_head = _Spread(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights are read from the folder."""

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutput:
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state[:, kept]))

    def prepare_inputs_for_generation(  # type: ignore[override]  # what it is called with, of much more
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids}  # all of them at every step: there is no cache


@cache
def _moves_and_rows(letters: tuple[int, ...], roles: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What follows from the tokens' numbers.

    States are: before a response, by the last letter (4); within one, by prompt and beginning (4 x 341); after it.

    Returns:
        (states, vocabulary), the state after a token, and (states,), in which row of the table its logits stand: the
        last one of all where the end is certain.
    """
    within = {
        (prompt, text): len(LETTERS) + prompt * len(RESPONSES) + place
        for prompt in range(len(PROMPTS))
        for place, text in enumerate(RESPONSES)
    }
    after = len(LETTERS) + len(within)
    moves = torch.full((after + 1, VOCABULARY_SIZE), after)
    rows = torch.full((after + 1,), len(PROMPTS) * len(BEGINNINGS))
    for prompt in range(len(PROMPTS)):
        moves[prompt] = prompt
        moves[prompt, roles[1]] = within[prompt, ""]
    for prompt, token in enumerate(letters):
        moves[: len(LETTERS), token] = prompt
    for (prompt, text), state in within.items():
        if len(text) < LONGEST:
            rows[state] = prompt * len(BEGINNINGS) + BEGINNINGS.index(text)
            for letter, token in zip(LETTERS, letters, strict=True):
                moves[state, token] = within[prompt, text + letter]
    moves[:, roles[0]] = 0
    return moves, rows


AutoConfig.register(EnumerableConfig.model_type, EnumerableConfig)
AutoModelForCausalLM.register(EnumerableConfig, EnumerableLM)


def enumerable_lm(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Write the model, its logits drawn from a normal distribution of deviation `scale`, and its tokenizer."""
    tokenizer = build_tokenizer([], VOCABULARY_SIZE)
    config = EnumerableConfig(
        letter_ids=[tokenizer.get_vocab()[letter] for letter in LETTERS],
        role_ids=[tokenizer.get_vocab()[role] for role in ("<|user|>", "<|assistant|>")],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = EnumerableLM(config)
    with torch.no_grad():
        table = model.model.table
        table.copy_(scale * torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)))
        model.lm_head.fill(config.letter_ids, tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def all_responses(tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """The N = 341 responses, in the order of `law`."""
    return list(RESPONSES)


def token_logprobs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> Tensor:
    """(N, MAX_NEW_TOKENS) log-probabilities of each response's tokens, the end being one; 0 beyond it.

    They carry gradients. Exact in the precision of the weights: load these with dtype=torch.float64 for more.
    """
    encoded = [encode(tokenizer, prompt, text, 512) for text in RESPONSES]
    width, start = max(len(item.ids) for item in encoded), encoded[0].num_prompt_tokens
    pad = tokenizer.pad_token_id
    ids = torch.tensor([item.ids + [pad] * (width - len(item.ids)) for item in encoded], device=model.device)
    logits = model(input_ids=ids).logits[:, start - 1 : -1]
    found = logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]
    return found.masked_fill(ids[:, start:] == pad, 0.0)


def response_logprobs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> Tensor:
    """(N,) log-probabilities of the responses to a prompt, with gradients."""
    return token_logprobs(model, tokenizer, prompt).sum(-1)


@torch.no_grad()
def law(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Messages) -> Tensor:
    """(N,) float64: the probability of each response to a prompt; they sum to 1."""
    return response_logprobs(model, tokenizer, prompt).double().exp()


def optimum(law: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """(N,) the law that maximises the mean reward less beta times the KL to `law`: law * exp(rewards / beta) / Z."""
    return torch.softmax(law.double().log() + rewards.double() / beta, 0)


def total_variation(one: Tensor, other: Tensor) -> float:
    """Half the sum of the absolute differences of two laws, from 0 to 1."""
    return float((one - other).abs().sum() / 2)


def kl(one: Tensor, other: Tensor) -> float:
    """KL(one || other) of two laws, in nats."""
    return float(torch.special.xlogy(one, one / other).sum())


def reward_of_each(reward: Callable[[str], float]) -> Tensor:
    """(N,) float64, of each response in the order of `law`."""
    return torch.tensor([reward(text) for text in RESPONSES], dtype=torch.float64)
