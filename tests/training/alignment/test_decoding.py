import math

import pytest
import torch

from training.alignment.decoding import draw


def test_draws_the_token_that_the_uniform_number_falls_on():
    scores = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().expand(4, 4)

    assert draw(scores, torch.tensor([0.0, 0.49, 0.6, 0.99], dtype=torch.float64)).tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [-math.inf] * 3, [0.0, math.inf, 1.0]])
def test_logits_that_are_no_numbers_are_told_and_not_drawn_from(row):
    with pytest.raises(FloatingPointError, match="the logits of the next token are no numbers"):
        draw(torch.tensor([[0.0, 1.0, 2.0], row]), torch.tensor([0.5, 0.5], dtype=torch.float64))
