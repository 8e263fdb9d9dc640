from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate import diff
from annotate.diff import Difference, difference
from tests.work import num_calls


def same(text: str) -> tuple[str, str]:
    return ("same", text)


def only(text: str) -> tuple[str, str]:
    return ("only", text)


@pytest.mark.parametrize(
    ("left", "right", "left_segments", "right_segments"),
    [
        ("Boil the water.", "Boil the water.", [same("Boil the water.")], [same("Boil the water.")]),
        (
            "Boil the water now.",
            "Boil the milk now.",
            [same("Boil the "), only("water "), same("now.")],
            [same("Boil the "), only("milk "), same("now.")],
        ),
        ("Salt it.", "Salt it. Serve.", [same("Salt it.")], [same("Salt it. "), only("Serve.")]),
        ("", "new", [], [only("new")]),
        ("", "", [], []),
        ("one", "two", [only("one")], [only("two")]),
        # a lone "the" is no common ground
        ("see the sun", "buy the car", [only("see the sun")], [only("buy the car")]),
        # other spaces are no difference, and each side keeps its own
        ("  a b\n\nc", "a  b c", [same("  a b\n\nc")], [same("a  b c")]),
        # no spaces between words
        (
            "我喜欢红茶。",
            "我喜欢绿茶。",
            [same("我喜欢"), only("红"), same("茶。")],
            [same("我喜欢"), only("绿"), same("茶。")],
        ),
        # right to left, and vowels written over the letters
        ("אני אוהב תה", "אני אוהב קפה", [same("אני אוהב "), only("תה")], [same("אני אוהב "), only("קפה")]),
        ("नमस्ते दुनिया", "नमस्ते भारत", [same("नमस्ते "), only("दुनिया")], [same("नमस्ते "), only("भारत")]),
        ("<b>x</b>", "<i>x</b>", [same("<"), only("b"), same(">x</b>")], [same("<"), only("i"), same(">x</b>")]),
    ],
)
def test_difference(left, right, left_segments, right_segments):
    found = difference(left, right)

    assert (found.left, found.right) == (left_segments, right_segments)


def test_common_is_the_share_of_characters_in_common():
    assert difference("same words", "same words").common == 1
    assert difference("", "").common == 1
    assert difference("aaaa bbbb", "aaaa cccc").common == 10 / 18
    assert difference("aaaa", "bbbb").common == 0


def test_difference_of_long_texts_is_by_lines_and_of_longer_ones_none(monkeypatch):
    monkeypatch.setattr(diff, "MAX_TOKENS", 10)
    monkeypatch.setattr(diff, "MAX_LINES", 6)
    left, right = "one two three\nfour five six\n", "one two three\nfour five seven\n"

    assert difference(left, right) == Difference(
        [same("one two three\n"), only("four five six\n")],
        [same("one two three\n"), only("four five seven\n")],
        "lines",
        28 / 58,
    )
    assert difference(left * 3, right * 3) == Difference([only(left * 3)], [only(right * 3)], None, 0)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a " * 60_000, "a " * 60_000),
        ("a b " * 900, "b a " * 900),
        ("a " * 310, "a b " * 310),
        (" ".join(map(str, range(3_000))), " ".join(map(str, reversed(range(3_000))))),
        (" ".join(str(i % 60) for i in range(3_000)), " ".join(str(i % 61) for i in range(3_000))),
        ("x\n" * 2_000, "x\ny\n" * 1_000),
        (" " * 100_000, "x" * 100_000),
        ("茶" * 50_000, "茶水" * 25_000),
        ("'" * 50_000, "!" * 50_000),
    ],
    ids=range(9),
)
def test_work_is_bounded_whatever_the_texts(left, right):
    assert num_calls(partial(difference, left, right)) <= 110 * diff.MAX_PAIRS


@given(st.text(alphabet="ab \n,茶ت"), st.text(alphabet="ab \n,茶ت"))
def test_segments_hold_every_character_and_alternate(left, right):
    found = difference(left, right)

    assert ("".join(text for _, text in found.left), "".join(text for _, text in found.right)) == (left, right)
    for side in (found.left, found.right):
        kinds = [kind for kind, _ in side]
        assert all(one != next_one for one, next_one in pairwise(kinds))
        assert "" not in [text for _, text in side]


@given(st.text())
def test_a_text_differs_not_from_itself(text):
    found = difference(text, text)

    assert (found.common, [kind for kind, _ in found.left]) == (1, ["same"] * bool(text))
