import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.alignment.config import ConfigError
from training.alignment.member_config import (
    FormatRule,
    LengthRule,
    MemberConfig,
    RepetitionRule,
    RewardModelMember,
    write_member,
)
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored, load_reward
from training.alignment.rule_rewards import ends_in_sentence, is_json, load, repeated_share, words

PROMPT = [{"role": "user", "content": "How do I boil eggs?"}]
RULES = [
    LengthRule(target=3, tolerance=1, is_one_sided=False),
    LengthRule(unit="characters", target=10, tolerance=0),
    LengthRule(target=0, tolerance=0),
    RepetitionRule(size=1),
    RepetitionRule(size=4, weight=3.0),
    FormatRule(pattern=r"(\w+)\s", weight=-2.0),
    FormatRule(rule="json"),
    FormatRule(rule="ends_in_sentence", weight=0.5),
]


def scores(config: MemberConfig, *responses: str) -> list[float]:
    (scored,) = load(config).score_prompts([PromptedResponses(PROMPT, responses)])
    return scored.scores


# Length


def test_length_costs_nothing_up_to_the_tolerance_then_as_much_a_word_and_no_more_than_the_weight():
    """DAPO's soft overlong punishment: free up to 4 + 2, all of the weight lost from 4 more on."""
    config = LengthRule(target=4, tolerance=2, weight=2.0)

    assert scores(config, *("word " * n for n in (0, 4, 6, 7, 8, 9, 10, 11, 1000))) == [
        *(0.0, 0.0, 0.0),
        *(-0.5, -1.0, -1.5, -2.0, -2.0, -2.0),
    ]


def test_too_short_may_cost_as_much_as_too_long():
    config = LengthRule(target=4, tolerance=1, is_one_sided=False)

    assert scores(config, *("word " * n for n in range(8))) == [-0.75, -0.5, -0.25, 0.0, 0.0, 0.0, -0.25, -0.5]


def test_words_and_characters_are_counted_as_people_do():
    assert words("  Don't stop: 你好, naïve_x2 — ok?\nひら ") == [
        *("Don", "t", "stop", "你", "好", "naïve_x2", "ok", "ひ", "ら")
    ]
    assert words("") == words(" \n—!") == []
    assert scores(LengthRule(unit="characters", target=1, tolerance=1), "é", "你好", "🙂🙂🙂") == [0.0, 0.0, -1.0]


# Repetition


def test_the_share_of_repeated_sequences_by_hand():
    """a b a b a: of the four pairs two are distinct; of the three triples two; of the five words two."""
    assert [repeated_share("ababa", size) for size in (1, 2, 3, 4, 5, 6)] == pytest.approx(
        [3 / 5, 1 / 2, 1 / 3, 0, 0, 0]
    )
    assert repeated_share([], 1) == 0
    assert scores(RepetitionRule(size=2, weight=10), "Boil eggs. boil EGGS, boil", "好好好好好", "one two") == [
        *(-5.0, pytest.approx(-7.5), 0.0)
    ]


def test_borders_between_words_are_kept_apart():
    assert repeated_share(["ab", "c", "a", "bc"], 2) == 0


class Counted(str):
    """A word that counts how often any such word is looked at."""

    num_looks = 0

    def __hash__(self) -> int:
        Counted.num_looks += 1
        return super().__hash__()

    __eq__ = str.__eq__


@pytest.mark.parametrize("size", [1, 3, 20])
def test_repetition_looks_at_each_word_as_often_however_long_the_text(size):
    looks = []
    for num_words in (1000, 2000, 4000):
        Counted.num_looks = 0
        repeated_share([Counted(number % 7) for number in range(num_words)], size)
        looks.append(Counted.num_looks / (num_words - size + 1))

    assert looks == [size] * 3


# Form


@pytest.mark.parametrize(
    "text", ["{}", ' {"a": [1, -2.5e9, "é", null, true]}\n', "3", '"text"', "1" * 5000, "[" * 500 + "]" * 500]
)
def test_json(text):
    assert is_json(text)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{'a': 1}", "[1,]", "NaN", "[-Infinity]", "{} {}", "```json\n{}\n```", "Here: {}", "[" * 10**6, "\ud800"],
)
def test_no_json(text):
    assert not is_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "Done.",
        "Really?! ",
        'He said: "Yes!"',
        "(As above.)\n",
        "**Enjoy!**",
        "煮八分钟。",
        "„Gut.“",
        "Enjoy! 🙂👍🏽❤️",
        "ठीक है।",
    ],
)
def test_ends_in_a_sentence(text):
    assert ends_in_sentence(text)


@pytest.mark.parametrize("text", ["", " \n", "Then you", "Then,", "1. Boil", "e.g", "()", "🙂", "Step 2:", "a. b"])
def test_ends_in_no_sentence(text):
    assert not ends_in_sentence(text)


def test_a_pattern_is_found_anywhere():
    assert scores(FormatRule(pattern=r"(?i)^step \d+:", weight=1.5), "Step 12: boil", "A step 1:", "") == [
        1.5,
        0.0,
        0.0,
    ]
    assert scores(FormatRule(pattern=r"\p{Han}{2}$"), "你好", "你好!") == [1.0, 0.0]
    assert scores(FormatRule(pattern="sorry", weight=-1), "I am sorry", "Eggs") == [-1.0, 0.0]
    assert scores(FormatRule(pattern="a.c"), "a\ud800c", "\ud800") == [1.0, 0.0]


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(.*.*.*.*.*x)*y", r"(?:a?){1000}b"])
def test_no_pattern_hangs(pattern):
    """Python's own engine would take longer than the universe has lasted."""
    assert scores(FormatRule(pattern=pattern), "a" * 100_000 + "!") == [0.0]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", r"missing \): \(a"),
        (r"(a)\1", r"invalid escape sequence: \\1; RE2's syntax has no look-around and no back-references"),
        ("(?=a)", "invalid perl operator"),
        ("a{5000}", "invalid repetition size"),
        ("(((a{100}){100}){100})", "invalid repetition size"),
        ("[^x]" * 50_000, "pattern too large"),
        ("\ud800", "half a character"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_refused(pattern, reason):
    with pytest.raises(ConfigError, match=f"^pattern: .*{reason}"):
        FormatRule(pattern=pattern)


# Rewards


@settings(deadline=None, max_examples=200)
@given(st.text(), st.integers(0, 60))
def test_every_text_has_a_score_within_bounds(text, times):
    for config in RULES:
        for score in scores(config, text, text * times, ""):
            low, high = sorted((0.0, config.weight if isinstance(config, FormatRule) else -config.weight))
            assert low <= score <= high


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(1, 30))
def test_longer_and_more_repeated_texts_never_score_higher(text, times):
    for config in (RULES[1], RULES[2], RULES[3]):
        found = scores(config, *(f"{text} " * n for n in (times, times + 1)))
        assert found[1] <= found[0]


@pytest.mark.parametrize("config", RULES)
def test_a_rule_is_a_reward(config, tmp_path):
    reward = load_reward(write_member(tmp_path / "member", config))
    prompts = [PromptedResponses(PROMPT, ("a b. ", "{}")), PromptedResponses(PROMPT, ()), PromptedResponses([], ("",))]

    assert (reward.aspects, reward.is_listwise, reward.log_odds()) == (("overall",), False, 1.0)
    assert reward.score_prompts(prompts) == [
        Scored(scores(config, *prompts[0].responses)),
        Scored([]),
        Scored(scores(config, "")),
    ]


def test_a_digest_tells_rules_apart():
    digests = [load(config).digest for config in [*RULES, RepetitionRule(size=1, weight=1.5)]]

    assert len(set(digests)) == len(digests)
    assert digests == [load(config).digest for config in [*RULES, RepetitionRule(size=1, weight=1.5)]]
    assert {len(bytes.fromhex(digest)) for digest in digests} == {32}


def test_what_is_no_rule_is_refused():
    with pytest.raises(ConfigError, match="kind: reward_model is no rule"):
        load(RewardModelMember(model="somewhere"))


def test_numbers_of_a_member_may_come_as_json(tmp_path):
    (tmp_path / "member.json").write_text(json.dumps({"kind": "length", "target": 1, "tolerance": 0}))

    assert load_reward(tmp_path).score_prompts([PromptedResponses(PROMPT, ("a", "a b"))]) == [Scored([0.0, -1.0])]
