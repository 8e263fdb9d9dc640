import random

from annotate.demonstration.annotator import Verdict, judge


def test_judge_without_noise_is_the_oracle():
    assert judge([0.2, 0.9, 0.5], 0, random.Random(0)) == Verdict([[1], [2], [0]], None, False)


def test_judge_says_how_much_better_the_winner_of_a_pair_is():
    assert judge([0.5, 0.3], 0, random.Random(0)) == Verdict([[0], [1]], 1, False)
    assert judge([0.3, 0.55], 0, random.Random(0)) == Verdict([[1], [0]], 2, False)


def test_judge_ties_what_it_cannot_tell_apart():
    assert judge([0.5, 0.51], 0, random.Random(0)) == Verdict([[0, 1]], None, False)
    # 0.50, 0.52, 0.54: the last differs from the best by more than a tie, though not from its neighbour
    assert judge([0.5, 0.52, 0.54], 0, random.Random(0)) == Verdict([[1, 2], [0]], None, False)


def test_judge_finds_all_bad():
    assert judge([0.1, 0.0], 0, random.Random(0)) == Verdict([[0], [1]], 1, True)
    assert judge([0.1, 0.11], 0, random.Random(0)) == Verdict([[0, 1]], None, True)


def test_judge_errs_as_often_as_its_noise_says():
    # P(N(0.2, 0.2 * sqrt 2) < 0) = 0.24
    rng = random.Random(1)
    wrong = [judge([0.8, 0.6], 0.2, rng).ranking[0] == [1] for _ in range(4000)]
    assert 0.17 < sum(wrong) / len(wrong) < 0.24  # some of them are ties instead


def test_judge_does_not_prefer_a_place():
    rng = random.Random(2)
    firsts = [judge([0.6, 0.6], 0.2, rng).ranking[0] == [0] for _ in range(4000)]
    assert 0.44 < sum(firsts) / len(firsts) < 0.5
