import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.test_sft import EGGS, RICE, metrics, prepare
from training.alignment.run_dir import StopFlag
from training.alignment.sft import train_sft
from training.alignment.trainers import order_of_training


def test_steps_are_of_similar_length_and_one_that_is_not_full_comes_last():
    lengths = [(7 * place) % 26 for place in range(26)]  # each once

    order = order_of_training(lengths, 26, 4, seed=3)

    steps = [[lengths[place] for place in order[start : start + 4]] for start in range(0, 26, 4)]
    assert sorted(steps) == [[n, n + 1, n + 2, n + 3] for n in range(0, 24, 4)] + [[24, 25]]
    assert steps != sorted(steps)
    assert steps[-1] == [24, 25]


def test_each_example_is_drawn_once_before_one_is_drawn_again():
    order = order_of_training([5, 3, 4], 8, 2, seed=0)

    assert sorted(order.count(place) for place in range(3)) == [2, 3, 3]


def test_a_loss_that_is_no_number_ends_the_run_in_words(llama_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "policy")
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path / "policy")
    config, run_dir = prepare(tmp_path / "run", [EGGS, RICE], policy=str(tmp_path / "policy"), num_epochs=4.0)

    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan; try a lower learning_rate"):
        train_sft(config, run_dir, StopFlag())

    assert metrics(run_dir) == []
    assert run_dir.checkpoints() == []
