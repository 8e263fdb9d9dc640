from training.alignment.config import RewardModelConfig
from training.alignment.model_card import model_card

RESULT = {
    "num_train_rankings": 90,
    "num_tied_rankings": 4,
    "num_too_long": 2,
    "num_truncated": 7,
    "num_steps": 12,
    "num_shared_prompts": 0,
    "learned": {"flip_rate": 0.21, "davidson_odds": {"2": 0.5}, "temperatures": {"a": 0.5, "b": 2.0}},
}
FIGURE = {"value": 0.7, "interval": [0.6, 0.8]}
REPORT = {
    "num_pairs": 30,
    "num_prompts": 20,
    "figures": {"accuracy": FIGURE, "ece": None},
    "length": {"correlation": FIGURE, "longer_wins": FIGURE, "accuracy_shorter_preferred": FIGURE},
    "ceiling": {"leave_one_out": FIGURE},
}


def test_the_card_tells_data_figures_use_and_biases():
    card = model_card(RewardModelConfig(backbone="base"), RESULT, REPORT, "abc123")

    assert card.startswith("---\nlibrary_name: transformers\n")
    for told in (
        "SHA-256 `abc123`",
        "training rankings: 90; 4 more order nothing, 2 are too long",
        "30 ordered pairs of 20 prompts",
        "| Pairwise accuracy | 0.700 (0.600 to 0.800) |",
        "| Agreement of an annotator with the others | 0.700 (0.600 to 0.800) |",
        "rewards and lengths correlate by 0.700 (0.600 to 0.800).",
        "Where people preferred the shorter response it agrees with them in 0.700 (0.600 to 0.800).",
        "## Use",
        "The temperature was not fitted",
        "- from: `base`",
        "- learned flip rate: 0.21",
        "- learned davidson odds: 0.5 for 2",
        "- learned temperatures: 0.5 to 2 over 2 annotators",
    ):
        assert told in card
    assert "Expected calibration error" not in card
    calibrated = model_card(
        RewardModelConfig(backbone="/somewhere/base/model"), RESULT | {"temperature": 1.5}, REPORT, ""
    )
    assert "was not fitted" not in calibrated
    assert "- from: `base/model`" in calibrated


def test_a_card_without_figures_says_so():
    card = model_card(RewardModelConfig(), {**RESULT, "learned": {}}, {"figures": {}}, "abc123")

    assert "None: the test split orders no responses." in card


def test_the_card_tells_what_length_counted_for_in_words():
    def card(**nats: float) -> str:
        learned = {"nats_per_doubling_of_length": nats}
        return model_card(RewardModelConfig(length="control"), {**RESULT, "learned": learned}, REPORT, "abc123")

    told = (
        "- Length is left out of the rewards. In the judgments{} it counted by itself for {} in favour of a response "
        "twice as long;"
    )
    assert told.format("", "0.42 nats of log-odds (1.5 to 1)") in card(overall=0.42)
    assert "- learned nats per doubling of length: 0.42 for overall" in card(overall=0.42)
    assert told.format(" of style", "-0.5 nats of log-odds (0.61 to 1)") in card(overall=0.42, style=-0.5)
    assert "Length is left out" not in card()
