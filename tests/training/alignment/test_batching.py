import random

import numpy as np
import pytest
import torch

from training.alignment.batching import CPU_TOKENS, batches, budget, pad


def test_batches_hold_what_fits_longest_first():
    # 9 · 1 fits 20 alone; 9 + 7 would take 18 tokens, with 5 it would take 27
    assert batches([5, 9, 2, 7], [1, 1, 1, 1], 20) == [[1, 3], [0, 2]]
    assert batches([5, 9, 2, 7], [1, 1, 1, 1], 1000) == [[1, 3, 0, 2]]


def test_the_sequences_of_an_item_stay_together_and_count():
    assert batches([4, 4, 4], [2, 3, 1], 16) == [[0], [1, 2]]


def test_an_item_larger_than_the_budget_has_a_batch_for_itself():
    assert batches([100, 3, 50], [1, 1, 1], 10) == [[0], [2], [1]]


@pytest.mark.parametrize("max_tokens", [1, 50, 500])
def test_every_item_is_in_one_batch_and_no_batch_exceeds_the_budget(max_tokens):
    draw = random.Random(0)
    lengths, counts = [draw.randint(1, 40) for _ in range(200)], [draw.randint(1, 5) for _ in range(200)]

    found = batches(lengths, counts, max_tokens)

    assert sorted(place for batch in found for place in batch) == list(range(200))
    for batch in found:
        tokens = sum(counts[place] for place in batch) * max(lengths[place] for place in batch)
        assert len(batch) == 1 or tokens <= max_tokens


def test_nothing_makes_no_batch():
    assert batches([], [], 10) == []


def test_padding_stands_on_the_right():
    ids, mask = pad([[7, 8, 9], np.array([5], dtype=np.int32)], torch.device("cpu"))

    assert (ids.tolist(), mask.tolist()) == ([[7, 8, 9], [5, 0, 0]], [[1, 1, 1], [1, 0, 0]])


def test_a_cpu_takes_less_at_a_time():
    assert budget(16384, torch.device("cpu")) == CPU_TOKENS
    assert budget(100, torch.device("cpu")) == 100
    assert budget(16384, torch.device("cuda")) == 16384
