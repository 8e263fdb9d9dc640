import dataclasses
import json
import math
import subprocess
import sys

import pytest

from training.alignment.config import (
    CONFIGS,
    ConfigError,
    RejectionSamplingConfig,
    RewardModelConfig,
    RlhfConfig,
    config_from_dict,
    config_to_dict,
)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_configuration_survives_the_way_through_json(kind):
    config = CONFIGS[kind](seed=7)

    assert config_from_dict(kind, json.loads(json.dumps(config_to_dict(config)))) == config


def test_text_is_read_as_the_type_of_its_field():
    values = {"backbone": "a/b", "seed": "3", "learning_rate": "1e-3", "num_epochs": 2, "batch_size": 8}

    assert config_from_dict("reward_model", values) == RewardModelConfig(
        backbone="a/b", seed=3, learning_rate=0.001, num_epochs=2.0, batch_size=8
    )


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "dance",
            {},
            "kind: 'dance' is not one of average_weights, combine, compare_policies, dpo, evaluate, learning_curve, "
            "preview_judge, rejection_sampling, reward_model, rlhf, sample, score, score_comparisons, sft",
        ),
        ("reward_model", {"seed": "x"}, "seed: 'x' is not a whole number"),
        ("reward_model", {"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ("reward_model", {"seed": True}, "seed: True is not a whole number"),
        ("reward_model", {"seed": -1}, "seed: -1 is below 0"),
        ("reward_model", {"num_processes": 65}, "num_processes: 65 is above 64"),
        ("reward_model", {"learning_rate": "much"}, "learning_rate: 'much' is not a number"),
        ("reward_model", {"learning_rate": None}, "learning_rate: None is not a number"),
        ("reward_model", {"learning_rate": math.nan}, "learning_rate: nan is not a finite number"),
        ("reward_model", {"learning_rate": "inf"}, "learning_rate: inf is not a finite number"),
        ("reward_model", {"backbone": 5}, "backbone: 5 is not text"),
        ("evaluate", {"split": "exam"}, "split: 'exam' is not one of test, validation, train, all"),
        (
            "rejection_sampling",
            {"num_samples": 4, "num_kept": 5},
            "num_kept: 5 of 4 samples cannot be kept",
        ),
        ("rejection_sampling", {"keep": "pairs", "num_samples": 1}, "num_samples: 1 makes no pairs"),
        ("rejection_sampling", {"minimum_reward": "high"}, "minimum_reward: 'high' is not a number"),
        ("rejection_sampling", {"minimum_reward": "nan"}, "minimum_reward: is not a number"),
        ("rejection_sampling", {"num_samples": 257}, "num_samples: 257 is above 256"),
        ("rlhf", {"algorithm": "rloo", "kl_placement": "loss"}, "kl_placement: loss is of grpo only"),
        ("rlhf", {"reward_model": "a, b", "weights": "1"}, "weights: 1 numbers for 2 objectives"),
        ("rlhf", {"reward_model": "a, b", "weights": "1, x"}, "weights: '1, x' are not numbers, separated by commas"),
        (
            "rlhf",
            {"reward_model": "a, b", "objective": "constrained", "constraint": 3},
            "constraint: 3 is none of the 2 objectives",
        ),
        ("rlhf", {"num_samples": 1}, "num_samples: 1 is below 2"),
        ("rlhf", {"kl_target": 2.0, "beta": 0.0}, "beta: begin above 0 where kl_target is to adapt it"),
        ("rlhf", {"num_prompts": 3, "num_processes": 2}, "num_prompts: 3 cannot be shared by 2 processes"),
        (
            "rlhf",
            {"reward_model": "a, b", "objective": "adaptive", "weights": "1, -1"},
            "weights: of adaptive are above zero",
        ),
        ("dpo", {"lists": "plackett_luce", "loss": "ipo"}, "lists: plackett_luce goes with the loss sigmoid"),
    ],
)
def test_what_a_field_does_not_take_is_refused_by_name(kind, values, message):
    with pytest.raises(ConfigError) as refused:
        config_from_dict(kind, values)

    assert str(refused.value) == message


def test_objectives_weigh_alike_where_no_weights_are_told():
    config = RlhfConfig(reward_model="taste, safety")

    assert (config.objectives, config.objective_weights) == (["taste", "safety"], [1.0, 1.0])


@pytest.mark.parametrize(("told", "floor"), [("", -math.inf), (" ", -math.inf), ("-0.5", -0.5)])
def test_a_minimum_reward_is_a_number_or_none(told, floor):
    assert RejectionSamplingConfig(minimum_reward=told).reward_floor == floor


def test_an_unknown_field_is_answered_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"^colour: evaluate has no such field; it has aspect, max_length, .*, split$"
    ):
        config_from_dict("evaluate", {"colour": "red"})


def test_a_configuration_made_in_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"^max_length: 3 is below 16$"):
        RewardModelConfig(max_length=3)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_field_tells_a_form_what_it_is(kind):
    for item in dataclasses.fields(CONFIGS[kind]):
        assert item.metadata["help"].endswith((".", "?"))
        assert item.type in {bool, int, float, str}


def test_reading_a_configuration_loads_neither_torch_nor_django():
    code = "import sys, training.alignment.run_dir; print({'torch', 'numpy', 'django'} & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "set()\n"
