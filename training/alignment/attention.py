"""Attention over rows of packed sequences: each token attends to its own sequence, as if it stood alone.

`transformers` lets a model's attention be exchanged by name; this module registers `PACKED`. The model's own code goes
on computing queries, keys, rotary embeddings and the rest, and hands over the row's `Layout`, which it passes through
from the call of the model to each layer.

On CUDA that is FlexAttention with a block mask, made once a row. On a CPU it is one call of scaled dot-product
attention for each common beginning and each ending, with no mask larger than an ending by its sequence: a row's mask
would be mostly forbidden, and computed in vain.

A window (of a Mistral's layers, say) counts in positions of the sequence, so it reaches as far as it does alone.
Called without a layout, the model computes as it always does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from training.alignment.packing import Layout
from training.alignment.products import attention, by_usual_products, is_short

PACKED = "plumbline_packed"
RECOMPILE_LIMIT = 64
SMALL = 32  # size of a head: on a CPU the fused kernel, by the usual products, is faster than plain ones
MOST_PRODUCTS = 2**23
"""Of queries and keys that a CPU holds at a time: up to there plain products are faster for larger heads."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within the sequences of a row, in the shape that `transformers` wants.

    Args:
        query: (1, heads, T, size).
        key, value: (1, key heads, T, size), key heads dividing heads.
        layout: of the row; none for ordinary attention under `attention_mask`.
        scaling: of the products, 1 / sqrt(size) unless told.
        sliding_window: a token attends to those less than so many positions away.
        softcap: products pass through softcap * tanh(product / softcap).

    Returns:
        (1, T, heads, size).

    Raises:
        NotImplementedError: the model adds something of its own to the products.
    """
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention with sinks or biases is not packed")
    if layout is None and softcap is None:
        return attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rule = Rule(causal, sliding_window, scaling, softcap, dropout)
    if layout is not None and query.device.type == "cuda" and not dropout:
        return _flex(query, key, value, layout, rule).transpose(1, 2).contiguous(), None
    num_copies = query.shape[1] // key.shape[1]
    if num_copies > 1:
        key, value = (one.repeat_interleave(num_copies, dim=1) for one in (key, value))
    if layout is None:
        return _weigh(query, key, value, attention_mask, rule).transpose(1, 2).contiguous(), None
    return _by_parts(query, key, value, layout, rule), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


@dataclass(frozen=True)
class Rule:
    """Who attends to whom, and how products become weights."""

    causal: bool
    window: int | None
    scaling: float | None
    softcap: float | None
    dropout: float


def _by_parts(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    """(1, T, heads, size): one call for each common beginning and each ending."""
    sizes = [stop - start for span in layout.spans for start, stop in pairwise((span.start, *span.stops))]
    queries, keys, values = (iter(one.split(sizes, dim=2)) for one in (query, key, value))  # whose gradients are joined
    parts: list[Tensor] = []
    for span in layout.spans:
        shared_query, shared_key, shared_value = next(queries), next(keys), next(values)
        num_shared = span.stops[0] - span.start
        if num_shared:
            mask = _part_mask(layout, num_shared, num_shared, rule, query.device)
            parts.append(_weigh(shared_query, shared_key, shared_value, mask, rule))
        for begin, end in pairwise(span.stops):
            own_key, own_value = next(keys), next(values)
            if num_shared:
                own_key = torch.cat([shared_key, own_key], dim=2)
                own_value = torch.cat([shared_value, own_value], dim=2)
            mask = _part_mask(layout, end - begin, num_shared + end - begin, rule, query.device)
            parts.append(_weigh(next(queries), own_key, own_value, mask, rule))
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1)


def _weigh(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """(…, heads, Q, size) of the last Q tokens of a sequence of as many as there are keys.

    Without a mask, queries attend to all keys, or in a causal model, where there are as many, to those up to their own.
    """
    is_causal = rule.causal and mask is None and query.shape[2] == key.shape[2] > 1
    if rule.softcap is None:
        attend = partial(
            scaled_dot_product_attention,
            *(query, key, value),
            attn_mask=mask,
            is_causal=is_causal,
            scale=rule.scaling,
            dropout_p=rule.dropout,
        )
        if query.device.type != "cpu":
            return attend()
        if query.shape[3] <= SMALL and is_short(key):
            return by_usual_products(attend)
        if query.shape[1] * query.shape[2] * key.shape[2] > MOST_PRODUCTS:
            return attend()
    scaling = 1 / math.sqrt(query.shape[3]) if rule.scaling is None else rule.scaling
    products = (query * scaling) @ key.transpose(2, 3)
    if rule.softcap is not None:
        products = rule.softcap * torch.tanh(products / rule.softcap)
    if is_causal:
        mask = _causal_mask(query.shape[2], query.device)
    if mask is not None:
        products = products.masked_fill(~mask, torch.finfo(products.dtype).min)  # rows of padding may see nothing
    weights = products.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (drop(weights, rule.dropout) if rule.dropout else weights) @ value


def _part_mask(layout: Layout, num_queries: int, num_keys: int, rule: Rule, device: torch.device) -> Tensor | None:
    """(Q, keys) bool, or none where `_weigh` needs none."""
    is_windowed = rule.window is not None and num_keys > rule.window
    if not is_windowed and (not rule.causal or num_queries in {1, num_keys}):
        return None
    known = (num_queries, num_keys, rule.causal, rule.window if is_windowed else None)
    if known not in layout.masks:
        layout.masks[known] = _allowed(num_queries, num_keys, rule, device)
    return layout.masks[known]


@cache
def _causal_mask(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def _allowed(num_queries: int, num_keys: int, rule: Rule, device: torch.device) -> Tensor:
    keys = torch.arange(num_keys, device=device)
    queries = keys[num_keys - num_queries :, None]
    return _is_allowed(queries, keys, rule.causal, rule.window).expand(num_queries, num_keys)


def _is_allowed(query: Tensor, key: Tensor, causal: bool, window: int | Tensor | None) -> Tensor:
    """Whether a position of a sequence attends to another."""
    allowed = key <= query if causal else key >= 0
    return allowed if window is None else allowed & ((query - key).abs() < window)


def _flex(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rule: Rule) -> Tensor:
    softcap = rule.softcap or 1.0

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return _compiled_flex_attention(query.device.type)(
        query,
        key,
        value,
        score_mod=None if rule.softcap is None else cap,
        block_mask=block_mask(layout, rule.causal, rule.window, query.device),
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@cache
def _compiled_flex_attention(device: str) -> Callable[..., Tensor]:
    """Uncompiled, it computes every product; that is for tests on a CPU.

    A row's length is not compiled in, but kinds of layers, types and modes are: more than PyTorch provides for. Beyond
    its limit it would go on uncompiled, and run out of memory.
    """
    if device != "cuda":
        return flex_attention
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def block_mask(layout: Layout, causal: bool, window: int | None, device: torch.device) -> BlockMask:
    """FlexAttention's mask of a row, made once and kept with the layout."""
    known = ("flex", causal, window)
    if known not in layout.masks:
        groups, endings = (torch.from_numpy(one).to(device) for one in layout.owners())
        positions = torch.from_numpy(layout.positions()).to(device)
        reach = None if window is None else torch.tensor(window, device=device)  # a number would be compiled in

        def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_own = (endings[key] == 0) | (endings[key] == endings[query])
            is_allowed = _is_allowed(positions[query], positions[key], causal, reach)
            return (groups[query] == groups[key]) & is_own & is_allowed

        size = layout.num_tokens
        layout.masks[known] = create_block_mask(is_seen, None, None, size, size, device, _compile=device.type == "cuda")
    return layout.masks[known]
