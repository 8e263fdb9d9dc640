import itertools
import math
import random
from collections import Counter
from math import inf, nan

import numpy as np
import pytest
from scipy import stats

from training.alignment import best_of_n

NUM_SYMBOLS, NUM_TOKENS = 5, 4


@pytest.fixture(scope="module")
def sequences():
    """Probabilities of the 625 sequences of an autoregressive law, and a reward without ties."""
    draw = np.random.default_rng(0)
    probs = np.ones(1)
    for depth in range(NUM_TOKENS):
        logits = draw.normal(size=(NUM_SYMBOLS**depth, NUM_SYMBOLS))
        conditional = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        probs = (probs[:, None] * conditional).ravel()
    return probs, draw.normal(size=NUM_SYMBOLS**NUM_TOKENS)


# What is known exactly


def test_law_by_hand():
    # F is 0.2 up to reward 1, 0.7 up to 2 and 1 up to 3; squares: 0.04, 0.49 and 1
    assert best_of_n.law([0.5, 0.2, 0.3], [2.0, 1.0, 3.0], 2) == pytest.approx([0.45, 0.04, 0.51])


def test_a_tie_is_shared_as_the_policy_shares_it():
    # the level of 0.75 and 0.15 has F from 0.1 to 1
    found = best_of_n.law([0.1, 0.75, 0.15], [0.0, 5.0, 5.0], 3)

    assert found == pytest.approx([0.001, 0.999 * 0.75 / 0.9, 0.999 * 0.15 / 0.9])


def test_law_is_that_of_the_best_of_all_choices_of_n():
    draw = random.Random(0)
    probs, rewards, n = [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 1.0, -1.0], 3
    counted = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=n):
        best = [place for place in drawn if rewards[place] == max(rewards[one] for one in drawn)]
        for place in best:
            counted[place] += math.prod(probs[one] for one in drawn) / len(best)

    assert best_of_n.law(probs, rewards, n) == pytest.approx(counted)
    sampled = Counter(
        drawn[best_of_n.best_of([rewards[place] for place in drawn], draw)]
        for drawn in (draw.choices(range(4), probs, k=n) for _ in range(20_000))
    )
    assert stats.chisquare([sampled[place] for place in range(4)], counted * 20_000).pvalue > 0.01


def test_the_best_of_one_is_the_policy(sequences):
    probs, rewards = sequences

    assert best_of_n.law(probs, rewards, 1) == pytest.approx(probs, abs=1e-15)
    assert best_of_n.kl(probs, rewards, 1) == pytest.approx(0, abs=1e-12)
    assert best_of_n.kl_bound(1) == 0
    assert best_of_n.expected_win_rate(probs, rewards, 1) == pytest.approx(0.5) == best_of_n.win_rate(1)


def test_the_bound_of_the_divergence():
    found = [best_of_n.kl_bound(n) for n in (2, 4, 16, 64, 1024)]

    assert found == pytest.approx([0.1931, 0.6363, 1.8351, 3.1745, 5.9324], abs=5e-5)


def test_the_divergence_of_625_sequences_is_below_the_bound_and_near_it_for_small_n(sequences):
    found = [best_of_n.kl(*sequences, n) for n in (2, 4, 16, 64, 1024)]

    assert found == pytest.approx([0.1931, 0.6362, 1.8343, 3.1644, 5.9015], abs=5e-5)
    assert all(value < best_of_n.kl_bound(n) for value, n in zip(found, (2, 4, 16, 64, 1024), strict=True))


def test_the_divergence_is_that_of_its_law(sequences):
    probs, rewards = sequences
    rewards = rewards.round(1)  # with ties
    law = best_of_n.law(probs, rewards, 16)

    assert law.sum() == pytest.approx(1)
    assert best_of_n.kl(probs, rewards, 16) == pytest.approx(stats.entropy(law, probs))


def test_win_rates_of_625_sequences(sequences):
    assert [best_of_n.win_rate(n) for n in (2, 4, 16)] == pytest.approx([0.6667, 0.8000, 0.9412], abs=5e-5)
    assert [best_of_n.expected_win_rate(*sequences, n) for n in (2, 4, 16)] == pytest.approx(
        [0.6667, 0.8000, 0.9412], abs=1e-3
    )


def test_of_the_same_reward_nothing_is_gained():
    probs = [0.2, 0.3, 0.5]

    assert best_of_n.law(probs, [1.0] * 3, 64) == pytest.approx(probs)
    assert best_of_n.kl(probs, [1.0] * 3, 64) == pytest.approx(0, abs=1e-12)
    assert best_of_n.expected_win_rate(probs, [1.0] * 3, 64) == pytest.approx(0.5)


def test_only_the_order_of_rewards_counts(sequences):
    probs, rewards = sequences

    assert (best_of_n.law(probs, rewards, 8) == best_of_n.law(probs, np.exp(3 * rewards) - 7, 8)).all()


def test_what_the_policy_never_says_is_never_best():
    assert best_of_n.law([0.0, 1.0, 0.0], [9.0, 1.0, 1.0], 4).tolist() == [0.0, 1.0, 0.0]
    assert best_of_n.kl([0.0, 1.0, 0.0], [9.0, 1.0, 1.0], 4) == 0


@pytest.mark.parametrize(
    ("probs", "rewards", "n", "message"),
    [
        ([0.5, 0.5], [1.0], 2, r"probs \(2,\) and rewards \(1,\) must both be \(N,\)"),
        ([[1.0]], [[1.0]], 2, r"must both be \(N,\)"),
        ([0.5, 0.5], [1.0, 2.0], 0, "n: 0 is below 1"),
        ([0.5, 0.6], [1.0, 2.0], 2, "probabilities that sum to 1"),
        ([-0.5, 1.5], [1.0, 2.0], 2, "probabilities that sum to 1"),
        ([0.5, 0.5], [1.0, nan], 2, "rewards finite"),
    ],
)
def test_what_is_no_law_is_refused(probs, rewards, n, message):
    with pytest.raises(ValueError, match=message):
        best_of_n.law(probs, rewards, n)


# What samples tell


def test_the_estimated_divergence_of_different_rewards_is_the_bound():
    rewards = np.random.default_rng(0).normal(size=16)

    assert [best_of_n.estimate_kl(rewards, n) for n in (1, 4, 16)] == pytest.approx(
        [0.0, best_of_n.kl_bound(4), best_of_n.kl_bound(16)]
    )


def test_the_estimated_divergence_of_one_level_is_none():
    assert best_of_n.estimate_kl([3.0, nan, 3.0, 3.0], 4) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rewards", [[nan, nan], [1.0, nan], []])
def test_one_reward_tells_nothing_of_the_divergence(rewards):
    assert math.isnan(best_of_n.estimate_kl(rewards, 2))


def test_the_best_of_one_sample_does_not_diverge():
    assert best_of_n.estimate_kl([nan, 3.0], 1) == 0
    assert best_of_n.estimate_kl([1.0, 2.0, 2.0], 1) == pytest.approx(0, abs=1e-12)


def test_the_estimated_divergence_by_hand():
    # 1, 1, 1, 2: to each of the three the level is 2 / 3 wide; between the quantiles 0 and 2 / 3
    # ∫ 2 u log(2 u) = u² (log(2 u) - 1 / 2) = 4 / 9 (log(4 / 3) - 1 / 2), less 4 / 9 log((4 / 9) / (2 / 3))
    lost = 4 / 9 * (math.log(4 / 3) - 1 / 2) - 4 / 9 * math.log(2 / 3)

    assert best_of_n.estimate_kl([1.0, 2.0, 1.0, 1.0], 2) == pytest.approx(math.log(2) - 1 / 2 - 3 / 4 * lost / (2 / 3))


@pytest.mark.parametrize(("decimals", "n", "bias"), [(0, 4, 0.006), (0, 16, 0.04), (1, 16, 0.006), (1, 64, 0.05)])
def test_the_estimated_divergence_is_near_the_exact_one_where_rewards_are_shared(sequences, decimals, n, bias):
    probs, rewards = sequences[0], sequences[1].round(decimals)
    draw = np.random.default_rng(1)
    samples = rewards[draw.choice(len(probs), p=probs, size=(400, 64))]

    found = np.mean([best_of_n.estimate_kl(own, n) for own in samples])

    assert found == pytest.approx(best_of_n.kl(probs, rewards, n), abs=bias)


def test_the_estimated_divergence_approaches_the_exact_one():
    probs, rewards = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), np.array([0.0, 3.0, 1.0, 2.0, 4.0, -1.0])
    draw = np.random.default_rng(2)

    errors = [
        np.mean([best_of_n.estimate_kl(rewards[draw.choice(6, p=probs, size=size)], 8) for _ in range(400)])
        - best_of_n.kl(probs, rewards, 8)
        for size in (16, 64, 256)
    ]

    assert errors == pytest.approx([-0.02, -0.003, 0.0], abs=0.01)


def test_the_curve_by_hand():
    # best of two out of 1, 2 and 4: 2, 4 and 4
    assert best_of_n.curve([4.0, 1.0, 2.0]) == pytest.approx([7 / 3, 10 / 3, 4.0])
    # told of the same choices: 20 of reward 2, and 10 of reward 4, twice
    assert best_of_n.curve([4.0, 1.0, 2.0], [10.0, 60.0, 20.0]) == pytest.approx([30.0, 40 / 3, 10.0])


def test_the_curve_averages_over_choices_and_over_ways_of_breaking_ties():
    selecting, graded = [1.0, 2.0, 2.0, 0.0, 2.0, 1.0], [3.0, 1.0, 5.0, 0.0, 9.0, 2.0]

    found = best_of_n.curve(selecting, graded)

    for n in range(1, 7):
        means = []
        for drawn in itertools.combinations(range(6), n):
            best = [place for place in drawn if selecting[place] == max(selecting[one] for one in drawn)]
            means.append(np.mean([graded[place] for place in best]))
        assert found[n - 1] == pytest.approx(np.mean(means))


def test_the_curve_is_without_bias():
    probs, rewards, graded = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.0, 1.0]), np.array([-4.0, 2.0, 7.0])

    expected = np.zeros(4)
    for drawn in itertools.product(range(3), repeat=4):
        expected += probs[list(drawn)].prod() * best_of_n.curve(rewards[list(drawn)], graded[list(drawn)])

    assert expected == pytest.approx([best_of_n.law(probs, rewards, n) @ graded for n in range(1, 5)])


def test_the_curve_leaves_out_what_is_missing():
    found = best_of_n.curve([1.0, nan, 3.0, 5.0], [2.0, 8.0, 4.0, nan])

    assert found[:2] == pytest.approx([3.0, 4.0])
    assert np.isnan(found[2:]).all()
    assert np.isnan(best_of_n.curve([nan, nan])).all()


def test_the_curve_of_hundreds_of_samples_ends_at_the_best():
    rewards = np.random.default_rng(0).normal(size=256)

    found = best_of_n.curve(rewards)

    assert found[0] == pytest.approx(rewards.mean())
    assert found[-1] == pytest.approx(rewards.max())
    assert (np.diff(found) > 0).all()


def test_a_curve_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match=r"selecting \(2,\) and graded \(1,\) must both be \(N,\)"):
        best_of_n.curve([1.0, 2.0], [1.0])


def test_means_over_prompts_by_hand():
    # 1, 2, 3: mean 2, deviation 1; Student's 97.5 % quantile at 2 degrees of freedom is 4.302653
    means, intervals = best_of_n.mean_over_prompts([[1.0, 5.0, nan], [2.0, nan, nan], [3.0, nan, nan]])

    assert means[:2].tolist() == [2.0, 5.0]
    assert intervals[0] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], abs=1e-6)
    assert np.isnan(means[2])
    assert np.isnan(intervals[1:]).all()


def test_intervals_over_prompts_cover_the_true_curve():
    draw = np.random.default_rng(3)
    truth = [-1 / 2 + n / (n + 1) for n in range(1, 9)]  # of rewards that are uniform about each prompt's own mean
    covered = np.zeros(8)
    for _ in range(400):
        rewards = draw.uniform(size=(20, 8)) - 0.5 + draw.normal(size=(20, 1))
        _, intervals = best_of_n.mean_over_prompts([best_of_n.curve(own) for own in rewards])
        covered += (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])

    assert covered / 400 == pytest.approx(np.full(8, 0.95), abs=0.035)


# What is kept


def test_what_is_added_to_all_rewards_changes_neither_the_estimated_divergence_nor_the_choices():
    draw = np.random.default_rng(5)
    rewards = draw.integers(-2000, 2000, size=(50, 16)) / 1024
    rewards[:, :2], rewards[:, 3] = rewards[:, 2:3], nan  # the first three are equal
    shifted = rewards + draw.integers(-500, 500, size=(50, 1))

    for own, other in zip(rewards, shifted, strict=True):
        assert best_of_n.estimate_kl(other, 8) == best_of_n.estimate_kl(own, 8)
        assert best_of_n.curve(other, np.arange(16)).tolist()[:15] == best_of_n.curve(own, np.arange(16)).tolist()[:15]
        assert best_of_n.best_first(other, random.Random(1)) == best_of_n.best_first(own, random.Random(1))
        assert best_of_n.best_of(other, random.Random(1)) == best_of_n.best_of(own, random.Random(1))


def test_best_of_breaks_ties_at_random():
    rng = random.Random(0)
    drawn = Counter(best_of_n.best_of([1.0, 2.0, 2.0, 2.0], rng) for _ in range(3000))

    assert best_of_n.best_of([0.5, 0.7, -3.0], rng) == 1
    assert set(drawn) == {1, 2, 3}
    assert all(abs(count - 1000) < 100 for count in drawn.values())  # four standard deviations


@pytest.mark.parametrize(("rewards", "best"), [([], None), ([nan], None), ([nan, -2.0, nan, -3.0], 1)])
def test_what_has_no_reward_is_never_the_best_nor_taken_for_zero(rewards, best):
    assert best_of_n.best_of(rewards, random.Random(0)) == best


def test_under_a_constant_reward_each_sample_is_chosen_as_often():
    texts, rng = list("abcdefgh"), random.Random(1)
    chosen = Counter(best_of_n.keep_best(texts, [0.5] * 8, rng)[0] for _ in range(8000))

    assert stats.chisquare([chosen[place] for place in range(8)]).pvalue > 0.01


def test_keeping_all_is_plain_fine_tuning_on_all_samples():
    responses, rewards = ["a", "b", "a", "c"], [1.0, 0.0, 1.0, 2.0]

    kept = best_of_n.keep_best(responses, rewards, random.Random(0), num_kept=4, is_distinct=False)

    assert sorted(kept) == [0, 1, 2, 3]
    assert kept == best_of_n.best_first(rewards, random.Random(0))


def test_the_best_different_responses_are_kept():
    responses, rewards = ["a", "b", "a", "c", "d"], [3.0, 2.0, 3.0, nan, 1.0]

    def kept(**values) -> list[str]:
        return [responses[place] for place in best_of_n.keep_best(responses, rewards, random.Random(0), **values)]

    assert kept() == ["a"]
    assert kept(num_kept=2) == ["a", "b"]
    assert kept(num_kept=2, is_distinct=False) == ["a", "a"]
    assert kept(num_kept=5) == ["a", "b", "d"]
    assert kept(num_kept=5, floor=2.0) == ["a", "b"]
    assert kept(floor=3.5) == []
    assert kept(margin=0.75) == ["a"]  # 3 over the mean of 3, 2, 3 and 1
    assert kept(margin=0.76) == []


def test_a_text_that_was_sampled_often_wins_a_tie_as_often():
    responses, rng = ["a", "b", "a", "a"], random.Random(0)
    won = Counter(responses[best_of_n.keep_best(responses, [1.0] * 4, rng)[0]] for _ in range(4000))

    assert stats.chisquare([won["a"], won["b"]], [3000, 1000]).pvalue > 0.01


def test_the_best_and_the_worst_make_a_pair():
    responses, rewards = ["a", "b", "c", "d"], [1.0, 4.0, nan, -2.0]

    def kept(**values) -> tuple[int, int] | None:
        return best_of_n.keep_pair(responses, rewards, random.Random(0), **values)

    assert kept() == (1, 3)
    assert kept(floor=4.0, margin=6.0) == (1, 3)
    assert kept(floor=4.1) is None
    assert kept(margin=6.1) is None


@pytest.mark.parametrize(
    ("responses", "rewards"),
    [(["a", "b"], [1.0, 1.0]), (["a", "a"], [1.0, 2.0]), (["a", "b"], [1.0, nan]), (["a"], [1.0]), ([], [])],
)
def test_what_says_nothing_makes_no_pair(responses, rewards):
    assert best_of_n.keep_pair(responses, rewards, random.Random(0)) is None


def test_ends_of_a_pair_that_tie_are_drawn():
    rng = random.Random(0)
    pairs = Counter(best_of_n.keep_pair(list("abcd"), [1.0, 2.0, 1.0, 2.0], rng) for _ in range(4000))

    assert set(pairs) == {(1, 0), (1, 2), (3, 0), (3, 2)}
    assert stats.chisquare(list(pairs.values())).pvalue > 0.01


def test_a_random_choice_is_a_draw_from_the_samples_that_have_a_reward():
    responses, rewards, rng = ["a", "b", "a", "c"], [9.0, -inf, 1.0, 2.0], random.Random(0)
    drawn = Counter(responses[best_of_n.keep_random(responses, rewards, rng, num_kept=1)[0]] for _ in range(3000))

    assert set(drawn) == {"a", "c"}
    assert stats.chisquare([drawn["a"], drawn["c"]], [2000, 1000]).pvalue > 0.01


def test_a_random_choice_keeps_as_many_different_ones():
    responses, rewards = ["a", "b", "a", "c"], [9.0, 3.0, 1.0, 2.0]

    for seed in range(20):
        kept = best_of_n.keep_random(responses, rewards, random.Random(seed), num_kept=3)
        assert sorted(responses[place] for place in kept) == ["a", "b", "c"]
    assert len(best_of_n.keep_random(responses, rewards, random.Random(0), num_kept=4, is_distinct=False)) == 4
