import numpy as np
import pytest

from annotate.stats.bias import (
    FIRST,
    MIN_JUDGMENTS,
    SECOND,
    TIE,
    Suspicion,
    length_bias,
    mirrored_consistency,
    position_bias,
    share,
    suspicious,
)


def test_share_has_a_wilson_interval():
    found = share(8, 10)
    assert (found.value, found.num) == (0.8, 10)
    assert (found.low, found.high, found.p_value) == pytest.approx((0.4902, 0.9433, 0.1094), abs=1e-4)
    assert share(0, 0) is None


def test_position_bias_leaves_ties_out():
    found = position_bias(np.array([FIRST, FIRST, FIRST, SECOND, TIE, TIE]))
    assert (found.value, found.num) == (0.75, 4)
    assert position_bias(np.array([TIE])) is None


def test_length_bias_leaves_equal_lengths_out():
    first, second = np.array([9, 1, 5, 5]), np.array([1, 9, 5, 7])
    found = length_bias(first, second, np.array([FIRST, SECOND, FIRST, FIRST]))
    assert (found.value, found.num) == (pytest.approx(2 / 3), 3)


def test_mirrored_consistency_counts_decided_couples():
    found = mirrored_consistency(np.array([0, 1, 1, TIE]), np.array([0, 1, 0, 1]))
    assert (found.value, found.num) == (pytest.approx(2 / 3), 3)


def crowd(*annotators):
    """Judgments of one annotator after the other: (won_at, seconds) of each."""
    name = np.concatenate([np.full(len(won), number) for number, (won, _) in enumerate(annotators)])
    won_at = np.concatenate([won for won, _ in annotators])
    seconds = np.concatenate([np.full(len(won), time, dtype=float) for won, time in annotators])
    return name, won_at, seconds, np.full(len(name), 600)


def honest(num=60, seed=0):
    return np.random.default_rng(seed).integers(0, 2, size=num)


def test_suspicious_names_who_clicks_through_on_one_side_without_an_opinion_or_in_turn():
    always_left = np.zeros(40, dtype=int)
    always_tied = np.full(40, TIE)
    in_turn = np.tile([FIRST, SECOND], 30)

    found = suspicious(*crowd((honest(), 20), (always_left, 20), (always_tied, 20), (in_turn, 20), (honest(), 2)))

    assert found == [
        Suspicion(1, "same_side", 1.0, 40),
        Suspicion(2, "always_tied", 1.0, 40),
        Suspicion(3, "one_pattern", 1.0, 60),
        Suspicion(4, "too_fast", 1.0, 60),
    ]


def test_suspicious_names_nobody_for_a_few_judgments_or_unknown_times():
    few = np.zeros(MIN_JUDGMENTS - 1, dtype=int)
    assert suspicious(*crowd((few, 0.1), (honest(), np.nan))) == []


def test_suspicious_counts_changes_exactly():
    in_turn = np.tile([FIRST, SECOND], 12)
    in_turn[-1] = FIRST  # 22 of 23 neighbours differ
    assert suspicious(*crowd((in_turn, 20))) == [Suspicion(0, "one_pattern", 22 / 23, 24)]


def test_suspicious_names_hardly_anybody_in_an_honest_crowd():
    named = [suspicious(*crowd(*((honest(50, 100 * n + m), 30) for m in range(20)))) for n in range(20)]
    assert sum(bool(found) for found in named) <= 1
