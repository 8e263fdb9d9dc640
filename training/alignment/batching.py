"""Sequences of unequal length -> batches of similar length that fit a budget of tokens, padded on the right."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CPU_TOKENS = 2048  # keep a CPU busy and its caches from overflowing; a wider batch only adds padding


def batches(lengths: Sequence[int], counts: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Places of items grouped into batches of at most `max_tokens` tokens, padding included, longest first.

    Args:
        lengths: of each item's longest sequence.
        counts: of each item's sequences, which stay in one batch. An item larger than the budget has one for itself.

    The longest come first, so that memory runs out at once or not at all.
    """
    found: list[list[int]] = []
    num_sequences, longest = 0, 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not found or (num_sequences + counts[place]) * longest > max_tokens:
            found.append([])
            num_sequences, longest = 0, lengths[place]
        found[-1].append(place)
        num_sequences += counts[place]
    return found


def pad(sequences: Sequence[Sequence[int] | np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) token ids, and 1 where one stands, 0 where it is padding."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def budget(max_tokens: int, device: torch.device) -> int:
    """Tokens of one forward pass that serve a device best, within the limit."""
    return min(max_tokens, CPU_TOKENS) if device.type == "cpu" else max_tokens
