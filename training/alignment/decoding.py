"""Write many responses side by side on one cache of keys and values, a token at a time.

`transformers` can do the same by `generate`, and computes much for nothing: each prompt once for every response to it,
and each response until the longest of its batch has ended. Here a prompt is computed once, its keys and values are
copied for its responses, and when enough responses have ended, others take their place. Responses are aligned at
their newest token, so that all grow at the same place; what stands before the first one is masked.

A token is drawn by inverting the cumulative distribution at a uniform number, so which token it is follows from the
response's own numbers, and from nothing that is computed beside it but for rounding.
"""

import inspect
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import FloatTensor, Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

Progress = Callable[[int, int], None]

LIVE = 0.75
"""A batch is put together anew when no more than this share of its responses goes on."""
ROOM = 64  # tokens for which keys and values have room before they are copied


@dataclass
class Response:
    """A response being written: the prompt's tokens, a uniform number for each token that it may have, its tokens."""

    prompt: tuple[int, ...]
    uniforms: Sequence[float]
    ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    """Whether a token that ends a response came; it is not among `ids`."""
    end: int | None = None
    """The token that ended it."""

    @property
    def is_done(self) -> bool:
        return self.is_ended or len(self.ids) == len(self.uniforms)

    def add(self, token: int, ends: Collection[int]) -> None:
        if token in ends:
            self.is_ended, self.end = True, token
        else:
            self.ids.append(token)


def warp(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    """(B, V) the logits of the distribution that is sampled from, given the model's."""
    unread: Any = None  # the tokens so far
    warped = TemperatureLogitsWarper(temperature)(unread, cast(FloatTensor, scores))
    return TopPLogitsWarper(top_p)(unread, warped) if top_p < 1 else warped


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) the tokens that uniform numbers fall on.

    Args:
        scores: (B, V) logits.
        uniforms: (B,) in [0, 1), double precision.

    Raises:
        FloatingPointError: a logit is no number, so that no token has a probability.
    """
    cumulative = scores.double().softmax(-1).cumsum(-1)
    if not cumulative[:, -1].isfinite().all():
        raise FloatingPointError("the logits of the next token are no numbers: the policy's weights have overflowed")
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return chosen.clamp(max=scores.shape[-1] - 1)[:, 0]


def can_decode(model: Any) -> bool:
    """Whether all that the model remembers are keys and values of each token, and it may be told tokens' positions."""
    base = _base(model)
    config = base.config.get_text_config(decoder=True)
    takes = inspect.signature(base.forward).parameters
    if base.config.is_encoder_decoder or not {"position_ids", "past_key_values", "attention_mask"} <= takes.keys():
        return False
    if getattr(config, "attention_chunk_size", None) or getattr(config, "num_kv_shared_layers", None):
        return False
    return {type(layer) for layer in DynamicCache(config=config).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


@torch.no_grad()  # what a model keeps in inference mode, it could not be trained with any more
def decode(
    model: Any,
    responses: Sequence[Response],
    *,
    ends: Collection[int],
    temperature: float,
    top_p: float,
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """Write all responses to their ends, `batch_size` at a time, in their order.

    Args:
        model: one that `can_decode`.
        ends: the tokens that end a response.
        progress: told now and then how many of how many are done; may raise to stop.
    """
    batch = _Batch(model, ends, temperature, top_p)
    waiting = deque(responses)
    while waiting or batch.num_live:
        batch.regroup([waiting.popleft() for _ in range(min(len(waiting), batch_size - batch.num_live))])
        while batch.num_live > LIVE * len(batch.responses):
            batch.step()
        if progress:
            progress(len(responses) - len(waiting) - batch.num_live, len(responses))


def _base(model: Any) -> Any:
    """The model under adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _Layer(DynamicLayer):
    """Keys and values of one layer, (B, H, T, D) each, with room for more; the usual cache copies all at each token.

    Layers with a sliding window are held whole as well: the model masks what lies outside.
    """

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.keys: Any = keys
        self.values: Any = values
        self.is_initialized = keys is not None
        self.rooms: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if not self.rooms or self.rooms[0].shape[-2] < stop:
            self.rooms = [pad(held, (0, 0, 0, stop - start + ROOM)) for held in (self.keys, self.values)]
        self.rooms[0][..., start:stop, :], self.rooms[1][..., start:stop, :] = key_states, value_states
        self.keys, self.values = (room[..., :stop, :] for room in self.rooms)
        return self.keys, self.values


@dataclass
class _State:
    """What is known of B token sequences, aligned at their ends.

    Attributes:
        layers: each one's keys and values, (B, H, T, D) each.
        mask: (B, T) true where there is a token.
        logits: (B, V) of the next token.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    logits: Tensor

    def select(self, places: Sequence[int]) -> "_State":
        index = torch.tensor(places, device=self.mask.device)
        layers = [(keys[index], values[index]) for keys, values in self.layers]
        return _State(layers, self.mask[index], self.logits[index])

    def widen(self, width: int) -> "_State":
        """To `width` tokens, or, where that is less, without what stands before them."""
        by = width - self.mask.shape[1]
        layers = [(pad(keys, (0, 0, by, 0)), pad(values, (0, 0, by, 0))) for keys, values in self.layers]
        return _State(layers, pad(self.mask, (by, 0)), self.logits)

    @property
    def longest(self) -> int:
        return int(self.mask.sum(1).max())


def _join(states: Sequence[_State]) -> _State:
    width = max(state.longest for state in states)
    aligned = [state.widen(width) for state in states]
    layers = [
        (torch.cat([keys for keys, _ in same]), torch.cat([values for _, values in same]))
        for same in zip(*(state.layers for state in aligned), strict=True)
    ]
    return _State(layers, torch.cat([one.mask for one in aligned]), torch.cat([one.logits for one in aligned]))


class _Batch:
    """Responses that are written side by side."""

    def __init__(self, model: Any, ends: Collection[int], temperature: float, top_p: float) -> None:
        self.model, self.ends, self.temperature, self.top_p = model, ends, temperature, top_p
        has_choice = "logits_to_keep" in inspect.signature(_base(model).forward).parameters
        self.options = {"logits_to_keep": 1} if has_choice else {}
        self.responses: list[Response] = []
        self.cache, self.mask, self.logits = Cache(layers=[]), torch.empty(0), torch.empty(0)

    @property
    def num_live(self) -> int:
        return sum(not response.is_done for response in self.responses)

    def regroup(self, new: Sequence[Response]) -> None:
        """Let go of the responses that are done, and take new ones in."""
        live = [place for place, response in enumerate(self.responses) if not response.is_done]
        states = []
        if live:
            states.append(self._state().select(live))
        if new:
            prompts = list(dict.fromkeys(response.prompt for response in new))
            states.append(self._read(prompts).select([prompts.index(response.prompt) for response in new]))
        self.responses = [*(self.responses[place] for place in live), *new]
        if states:
            state = _join(states)
            self.cache = Cache(layers=[_Layer(keys, values) for keys, values in state.layers])
            self.mask, self.logits = state.mask, state.logits

    def step(self) -> None:
        """A token more for each response; those that are done are computed along, for nothing."""
        numbers = [0.0 if one.is_done else one.uniforms[len(one.ids)] for one in self.responses]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=self.logits.device)
        tokens = draw(warp(self.logits, self.temperature, self.top_p), uniforms)
        for response, token in zip(self.responses, tokens.tolist(), strict=True):
            if not response.is_done:
                response.add(token, self.ends)
        if not self.num_live:
            return
        positions = [[len(one.prompt) + max(0, len(one.ids) - 1)] for one in self.responses]
        self.mask = pad(self.mask, (0, 1), value=True)
        self.logits = self._forward(tokens[:, None], torch.tensor(positions, device=tokens.device))

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> _State:
        """What is known once the prompts are read."""
        width = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self.mask = torch.tensor([[False] * (width - len(one)) + [True] * len(one) for one in prompts], device=device)
        self.cache = Cache(layer_class_to_replicate=_Layer)
        self.logits = self._forward(ids, (self.mask.cumsum(1) - 1).clamp(min=0))
        return self._state()

    def _state(self) -> _State:
        layers: list[Any] = self.cache.layers  # typed as all kinds that there are
        return _State([(layer.keys, layer.values) for layer in layers], self.mask, self.logits)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, V) logits after the last of the tokens, whose keys and values are kept."""
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **self.options,
        )
        return output.logits[:, -1].float()
