import choix
import numpy as np
import pytest

from annotate.stats import bradley_terry as module
from annotate.stats.bradley_terry import (
    FIRST,
    HALF,
    SECOND,
    TIE,
    DisconnectedError,
    NotConvergedError,
    bradley_terry,
    leaderboard,
    outcome_probabilities,
)


def simulated(num_items, num_votes, tie, seed):
    """True strengths (mean zero), and votes drawn by Davidson's model."""
    generator = np.random.default_rng(seed)
    strengths = generator.normal(size=num_items)
    strengths -= strengths.mean()
    first = generator.integers(0, num_items, num_votes)
    second = (first + generator.integers(1, num_items, num_votes)) % num_items
    probabilities = outcome_probabilities(strengths[first] - strengths[second], tie)
    outcome = (generator.random(num_votes)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    return strengths, first, second, outcome


def test_two_items_have_the_log_odds_of_their_wins():
    # seven wins to three: log(7 / 3) = 0.8472978604 apart, mean zero
    fitted = bradley_terry([0] * 10, [1] * 10, [FIRST] * 7 + [SECOND] * 3, 2)
    np.testing.assert_allclose(fitted.strengths, [0.4236489302, -0.4236489302], atol=1e-9)
    assert fitted.tie == 0.0


def test_two_items_with_ties_by_davidson_keep_the_odds_of_the_decided_and_the_share_of_ties():
    # 4 : 1 decided, 4 ties. exp(d) = 4; nu / (exp(d/2) + exp(-d/2)) = ties / decided = 4 / 5, so nu = 0.8 x 2.5 = 2
    fitted = bradley_terry([0] * 9, [1] * 9, [FIRST] * 4 + [SECOND] + [TIE] * 4, 2)
    np.testing.assert_allclose(fitted.strengths, [np.log(2), -np.log(2)], atol=1e-9)
    assert fitted.tie == pytest.approx(2.0, abs=1e-9)
    np.testing.assert_allclose(fitted.probabilities(0, 1), [4 / 9, 1 / 9, 4 / 9], atol=1e-9)


def test_a_tie_as_half_a_win_for_each():
    # 4 wins, 1 loss and 4 ties are 6 against 3
    fitted = bradley_terry([0] * 9, [1] * 9, [FIRST] * 4 + [SECOND] + [TIE] * 4, 2, ties=HALF)
    np.testing.assert_allclose(fitted.strengths, [np.log(2) / 2, -np.log(2) / 2], atol=1e-9)
    assert fitted.tie == 0.0


def test_davidsons_probabilities():
    np.testing.assert_allclose(outcome_probabilities(0.0, 0.8), [1 / 2.8, 1 / 2.8, 0.8 / 2.8], atol=1e-15)
    np.testing.assert_allclose(
        outcome_probabilities(2.0, 0.0), [0.8807970779778823, 0.11920292202211755, 0], atol=1e-15
    )
    win, loss, tie = outcome_probabilities(1.3, 0.8)
    assert win + loss + tie == pytest.approx(1, abs=1e-15)
    assert win / (win + loss) == pytest.approx(1 / (1 + np.exp(-1.3)), abs=1e-12)  # without its ties: Bradley-Terry
    np.testing.assert_array_equal(outcome_probabilities([5000.0, -5000.0], 1.0), [[1, 0, 0], [0, 1, 0]])


def test_strengths_and_ties_are_recovered():
    strengths, *votes = simulated(30, 20_000, 0.8, seed=0)
    fitted = bradley_terry(*votes, 30)
    assert np.sqrt(np.mean((fitted.strengths - strengths) ** 2)) < 0.1
    assert fitted.tie == pytest.approx(0.8, abs=0.04)


def test_the_fit_without_ties_is_choixs():
    _, first, second, outcome = simulated(12, 1500, 0.0, seed=1)
    pairs = [
        (one, other) if won == FIRST else (other, one) for one, other, won in zip(first, second, outcome, strict=True)
    ]
    np.testing.assert_allclose(
        bradley_terry(first, second, outcome, 12).strengths, choix.ilsr_pairwise(12, pairs), atol=1e-6
    )


def test_with_a_prior_the_fit_is_choixs_too():
    pairs = [(0, 1), (0, 1), (1, 2), (3, 4)]
    fitted = bradley_terry([0, 0, 1, 3], [1, 1, 2, 4], [FIRST] * 4, 5, l2=0.2)
    expected = choix.opt_pairwise(5, pairs, alpha=0.1, method="BFGS", tol=1e-10)  # its penalty is alpha |s|^2
    np.testing.assert_allclose(fitted.strengths, expected, atol=1e-6)


def test_the_most_likely_parameters_have_no_slope():
    _, first, second, outcome = simulated(6, 400, 0.5, seed=2)
    fitted = bradley_terry(first, second, outcome, 6)

    def log_likelihood(strengths, tie):
        probabilities = outcome_probabilities(strengths[first] - strengths[second], tie)
        return np.log(probabilities[np.arange(len(outcome)), outcome]).sum()

    for nudge in 1e-4 * np.eye(6):
        slope = log_likelihood(fitted.strengths + nudge, fitted.tie) - log_likelihood(
            fitted.strengths - nudge, fitted.tie
        )
        assert slope / 2e-4 == pytest.approx(0, abs=1e-6)
    slope = log_likelihood(fitted.strengths, fitted.tie + 1e-4) - log_likelihood(fitted.strengths, fitted.tie - 1e-4)
    assert slope / 2e-4 == pytest.approx(0, abs=1e-4)


def test_names_sides_and_order_of_votes_do_not_matter():
    _, first, second, outcome = simulated(8, 600, 0.5, seed=3)
    fitted = bradley_terry(first, second, outcome, 8)
    generator = np.random.default_rng(0)
    names, order = generator.permutation(8), generator.permutation(600)
    renamed = bradley_terry(names[first], names[second], outcome, 8)
    np.testing.assert_allclose(renamed.strengths[names], fitted.strengths, atol=1e-9)
    swapped = np.array([SECOND, FIRST, TIE])[outcome]
    mirrored = bradley_terry(second[order], first[order], swapped[order], 8)
    np.testing.assert_allclose(mirrored.strengths, fitted.strengths, atol=1e-9)


def test_items_that_only_won_or_never_met_are_named():
    with pytest.raises(DisconnectedError, match=r"\[\[0\], \[1\], \[2, 3\]\]") as refused:
        bradley_terry([0, 2, 3], [1, 3, 2], [FIRST, FIRST, FIRST], 4)
    assert refused.value.components == [[0], [1], [2, 3]]


def test_a_tie_connects_both_ways():
    np.testing.assert_allclose(bradley_terry([0, 0, 1], [1, 1, 0], [TIE, FIRST, FIRST], 2).strengths, 0, atol=1e-9)
    with pytest.raises(DisconnectedError):
        bradley_terry([0, 1], [1, 2], [TIE, FIRST], 3)


def test_a_prior_holds_what_is_not_connected():
    fitted = bradley_terry([0, 2], [1, 3], [FIRST, FIRST], 4, l2=1.0)
    # each pair for itself: sigmoid(-2 s) = s, so s = 0.3374... for the winner
    root = fitted.strengths[0]
    np.testing.assert_allclose(fitted.strengths, [root, -root, root, -root], atol=1e-9)
    assert 1 / (1 + np.exp(2 * root)) == pytest.approx(root, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "message"),
    [
        ([0, 1], [1], [FIRST], "of one shape"),
        ([], [], [], "not empty"),
        ([0], [2], [FIRST], "items must be 0 to 1"),
        ([-1], [1], [FIRST], "items must be 0 to 1"),
        ([1], [1], [FIRST], "cannot meet itself"),
        ([0], [1], [3], "FIRST, SECOND or TIE"),
        ([0], [1], [TIE], "all outcomes are ties"),
    ],
)
def test_votes_that_are_none_are_refused(first, second, outcome, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry(first, second, outcome, 2)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="ties must be"):
        bradley_terry([0], [1], [FIRST], 2, ties="drop")
    with pytest.raises(ValueError, match="l2"):
        bradley_terry([0], [1], [FIRST], 2, l2=-1)


def test_leaderboard_by_hand():
    # 0 beats 1 twice and ties once; 1 and 2 share four games; 0 and 2 never meet
    votes = [0, 0, 0, 1, 1, 2, 2], [1, 1, 1, 2, 2, 1, 1], [FIRST, FIRST, TIE, FIRST, SECOND, FIRST, SECOND]
    board = leaderboard(*votes, 3, unit=range(7), generator=np.random.default_rng(0))
    np.testing.assert_array_equal(
        board.win_matrix, [[np.nan, 5 / 6, np.nan], [1 / 6, np.nan, 0.5], [np.nan, 0.5, np.nan]]
    )
    np.testing.assert_array_equal(board.num_outcomes, [[0, 3, 0], [3, 0, 4], [0, 4, 0]])
    np.testing.assert_allclose(board.strengths, bradley_terry(*votes, 3, l2=0.01).strengths, atol=1e-9)
    expected = outcome_probabilities(board.strengths, board.tie)
    np.testing.assert_allclose(board.win_rates, expected[:, FIRST] + expected[:, TIE] / 2, atol=1e-12)
    assert (board.lower <= board.strengths).all()
    assert (board.strengths <= board.upper).all()


def test_leaderboards_intervals_hold_the_truth_about_as_often_as_they_say():
    held = []
    for seed in range(20):
        strengths, *votes = simulated(8, 1200, 0.5, seed=seed)
        board = leaderboard(*votes, 8, unit=range(1200), generator=np.random.default_rng(seed))
        held.extend((board.lower < strengths) & (strengths < board.upper))
    assert 0.88 < np.mean(held) < 0.99  # of 160, by intervals of 95 %


def test_votes_copied_within_a_unit_do_not_narrow_the_intervals():
    _, *votes = simulated(6, 600, 0.0, seed=4)
    once = leaderboard(*votes, 6, unit=range(600), generator=np.random.default_rng(0))
    copied = [np.repeat(column, 5) for column in votes]
    units = np.repeat(np.arange(600), 5)
    fivefold = leaderboard(*copied, 6, unit=units, generator=np.random.default_rng(0), l2=0.05)
    np.testing.assert_allclose(fivefold.lower, once.lower, atol=1e-6)
    np.testing.assert_allclose(fivefold.upper, once.upper, atol=1e-6)


def test_leaderboard_without_a_prior_refuses_a_replicate_without_a_maximum():
    with pytest.raises(DisconnectedError):
        leaderboard([0, 0], [1, 1], [FIRST, SECOND], 2, unit=[0, 1], generator=np.random.default_rng(0), l2=0.0)


def test_leaderboard_refuses_units_and_levels_that_do_not_fit():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unit must be of shape"):
        leaderboard([0, 0], [1, 1], [FIRST, SECOND], 2, unit=[0], generator=generator)
    with pytest.raises(ValueError, match="level between 0 and 1"):
        leaderboard([0, 0], [1, 1], [FIRST, SECOND], 2, unit=[0, 1], generator=generator, level=95)


def test_strengths_that_did_not_converge_are_not_returned(monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 1)
    with pytest.raises(NotConvergedError):
        bradley_terry([0, 0, 0], [1, 1, 1], [FIRST, FIRST, SECOND], 2)
