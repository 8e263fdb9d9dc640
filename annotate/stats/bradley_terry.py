"""Strengths of items from pairwise outcomes: Bradley-Terry, with Davidson's model of ties; a leaderboard from them.

The likelihood needs only how often each item beat or tied each other one, so votes are counted first and everything
after works on (N, N) counts, many bootstrap replicates at once.

Sources: R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs", Biometrika 39, 1952;
R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", JASA
65, 1970; L. R. Ford, "Solution of a ranking problem from binary comparisons", American Mathematical Monthly 64, 1957
(when a maximum exists).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

FIRST, SECOND, TIE = 0, 1, 2  # what an outcome says: the first item won, the second won, neither did
DAVIDSON, HALF = "davidson", "half"
MAX_STEPS = 200
MAX_HALVINGS = 30
TOLERANCE = 1e-9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DisconnectedError(ValueError):
    """The outcomes do not tie all items to one scale; `components` holds the groups of items that they do tie."""

    def __init__(self, components: list[list[int]]) -> None:
        self.components = components
        super().__init__(
            "No finite strengths fit: between these groups of items wins go one way or nothing was compared: "
            f"{components}. Ask for more comparisons between them, or give a prior (l2)."
        )


class NotConvergedError(RuntimeError):
    """The maximum was not reached in the steps allowed."""


@dataclass(frozen=True)
class Strengths:
    """`strengths` (N,) in log-odds, mean zero; `tie` is Davidson's nu: between equals nu / (2 + nu) of outcomes tie."""

    strengths: Floats
    tie: float

    def probabilities(self, first: ArrayLike, second: ArrayLike) -> Floats:
        """(..., 3) probabilities that `first` wins, `second` wins, neither does."""
        difference = self.strengths[np.asarray(first)] - self.strengths[np.asarray(second)]
        return outcome_probabilities(difference, self.tie)


@dataclass(frozen=True)
class Leaderboard:
    """`lower` and `upper` bound the strengths; a tie counts as half a win in both win rates.

    Attributes:
        strengths, lower, upper: (N,) in log-odds, mean zero.
        win_rates: (N,) expected against an item of average strength.
        win_matrix: (N, N) the observed rate of the row's item against the column's; NaN where they never met.
        num_outcomes: (N, N) how often they met.
        tie: Davidson's nu; 0 where ties count as halves.
    """

    strengths: Floats
    lower: Floats
    upper: Floats
    win_rates: Floats
    win_matrix: Floats
    num_outcomes: Ints
    tie: float


def outcome_probabilities(difference: ArrayLike, tie: float) -> Floats:
    """Davidson's probabilities of a win, a loss and a tie.

    Args:
        difference: (...) the first item's strength less the second's, in log-odds.
        tie: nu, at least 0; with 0 this is Bradley-Terry.

    Returns:
        (..., 3) which sum to one.
    """
    half = np.asarray(difference, dtype=float)[..., None] / 2
    with np.errstate(divide="ignore"):  # the logarithm of no ties is minus infinity, and its exponential 0
        logits = np.concatenate([half, -half, np.full_like(half, np.log(tie))], axis=-1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def bradley_terry(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, num_items: int, *, ties: str = DAVIDSON, l2: float = 0.0
) -> Strengths:
    """The most likely strengths, and with them how readily items tie.

    Args:
        first, second: (V,) items of each vote, 0 to N - 1.
        outcome: (V,) FIRST, SECOND or TIE.
        num_items: N.
        ties: DAVIDSON estimates how readily items tie; HALF counts a tie as half a win for each.
        l2: weight of a Gaussian prior, -l2/2 times the sum of squared strengths. With one, any outcomes will do.

    Raises:
        ValueError: shapes differ, an item or outcome is unknown, an item meets itself, or all outcomes are ties.
        DisconnectedError: without a prior no finite strengths are the most likely.
        NotConvergedError: the maximum was not reached.
    """
    votes = _checked(first, second, outcome, num_items)
    _check_options(ties, l2)
    wins, tied = _counts(*votes, unit=np.zeros_like(votes[0]), num_units=1, num_items=num_items)
    wins, tied = wins.toarray().reshape(1, num_items, num_items), tied.toarray().reshape(1, num_items, num_items)
    if not l2:
        check_connected(wins[0] + tied[0] + tied[0].T)
    strengths, tie = _maximise(*_with_ties(wins, tied, ties), l2)
    return Strengths(strengths[0], float(tie[0]))


def leaderboard(
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    num_items: int,
    *,
    unit: ArrayLike,
    generator: np.random.Generator,
    num_replicates: int = 200,
    level: float = 0.95,
    ties: str = DAVIDSON,
    l2: float = 0.01,
) -> Leaderboard:
    """Strengths with bootstrap intervals, drawn anew by unit (a prompt), since the votes on one prompt go together.

    Args:
        first, second, outcome, num_items, ties: as for `bradley_terry`.
        unit: (V,) int, the prompt of each vote.
        generator: draws the replicates.
        level: of the percentile intervals.
        l2: as for `bradley_terry`; by default so weak that it only holds replicates in which an item never lost.

    Raises:
        As `bradley_terry`.
    """
    votes = _checked(first, second, outcome, num_items)
    _check_options(ties, l2)
    units, unit_of_vote = np.unique(np.asarray(unit), return_inverse=True)
    if unit_of_vote.shape != votes[0].shape:
        raise ValueError(f"unit must be of shape {votes[0].shape}, but is {unit_of_vote.shape}")
    if num_replicates < 1 or not 0 < level < 1:
        raise ValueError("num_replicates must be at least 1 and level between 0 and 1")
    wins, tied = _counts(*votes, unit=unit_of_vote, num_units=len(units), num_items=num_items)
    drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=num_replicates)
    weights = np.concatenate([np.ones((1, len(units))), drawn])  # the votes as they are come first
    shape = (num_replicates + 1, num_items, num_items)
    all_wins, all_tied = (weights @ wins).reshape(shape), (weights @ tied).reshape(shape)
    if not l2:
        for replicate_wins, replicate_tied in zip(all_wins, all_tied, strict=True):
            check_connected(replicate_wins + replicate_tied + replicate_tied.T)
    strengths, tie = _maximise(*_with_ties(all_wins, all_tied, ties), l2)
    lower, upper = np.quantile(strengths[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    halves = all_wins[0] + (all_tied[0] + all_tied[0].T) / 2
    met = halves + halves.T
    against_average = outcome_probabilities(strengths[0], float(tie[0]))
    return Leaderboard(
        strengths=strengths[0],
        lower=lower,
        upper=upper,
        win_rates=against_average[:, FIRST] + against_average[:, TIE] / 2,
        win_matrix=np.divide(halves, met, out=np.full_like(met, np.nan), where=met > 0),
        num_outcomes=np.rint(met).astype(np.int64),
        tie=float(tie[0]),
    )


def check_connected(wins: ArrayLike) -> None:
    """Raise DisconnectedError unless every item leads to every other by a chain of wins (Ford's condition).

    Args:
        wins: (N, N) above zero where the row's item beat the column's; a tie counts for both.
    """
    num_components, component = connected_components(csr_matrix(wins), directed=True, connection="strong")
    if num_components > 1:
        raise DisconnectedError(
            sorted(np.flatnonzero(component == number).tolist() for number in range(num_components))
        )


def _checked(first: ArrayLike, second: ArrayLike, outcome: ArrayLike, num_items: int) -> tuple[Ints, Ints, Ints]:
    one, other, result = (np.asarray(values, dtype=np.int64) for values in (first, second, outcome))
    if not one.shape == other.shape == result.shape or one.ndim != 1 or not one.size:
        raise ValueError(
            f"first, second and outcome must be of one shape (V,), not empty: {one.shape} {other.shape} {result.shape}"
        )
    if min(one.min(), other.min()) < 0 or max(one.max(), other.max()) >= num_items:
        raise ValueError(f"items must be 0 to {num_items - 1}")
    if (one == other).any():
        raise ValueError("an item cannot meet itself")
    if not np.isin(result, (FIRST, SECOND, TIE)).all():
        raise ValueError("an outcome must be FIRST, SECOND or TIE")
    return one, other, result


def _check_options(ties: str, l2: float) -> None:
    if ties not in (DAVIDSON, HALF):
        raise ValueError(f"ties must be {DAVIDSON!r} or {HALF!r}, not {ties!r}")
    if l2 < 0:
        raise ValueError("l2 must not be negative")


def _counts(
    first: Ints, second: Ints, outcome: Ints, *, unit: Ints, num_units: int, num_items: int
) -> tuple[csr_matrix, csr_matrix]:
    """Wins (winner, loser) and ties, each (units, N * N) and sparse; a tie stands once, in one of its two cells."""
    cell = np.where(outcome == SECOND, second * num_items + first, first * num_items + second)
    shape, is_tie = (num_units, num_items**2), outcome == TIE

    def count(chosen: NDArray[np.bool_]) -> csr_matrix:
        return csr_matrix((np.ones(chosen.sum()), (unit[chosen], cell[chosen])), shape=shape)

    return count(~is_tie), count(is_tie)


def _with_ties(wins: Floats, tied: Floats, ties: str) -> tuple[Floats, Floats]:
    """Wins and symmetric ties, (..., N, N) both, as the model in use takes them."""
    symmetric = tied + np.swapaxes(tied, -1, -2)
    return (wins, symmetric) if ties == DAVIDSON else (wins + symmetric / 2, np.zeros_like(tied))


def _maximise(wins: Floats, tied: Floats, l2: float) -> tuple[Floats, Floats]:
    """Newton's method with step halving on R problems at once: strengths (R, N) and ties (R,).

    The parameters are the strengths and log nu, in which Davidson's likelihood is concave (it is log-linear).
    """
    num_problems, num_items = wins.shape[:2]
    has_ties = tied.sum((1, 2)) > 0
    if not (wins.sum((1, 2)) > 0).all():
        raise ValueError("all outcomes are ties: how strong an item is cannot be told")
    parameters = np.zeros((num_problems, num_items + 1))
    parameters[~has_ties, -1] = -np.inf
    total = wins + np.swapaxes(wins, 1, 2) + tied
    value = _objective(parameters, wins, tied, l2)
    for _ in range(MAX_STEPS):
        gradient, curvature = _derivatives(parameters, wins, tied, total, l2=l2, has_ties=has_ties)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        # the gain still to be had, in nats; rounding of a sum of so many votes is far above the tolerance's square
        if (np.sum(gradient * step, axis=1) < TOLERANCE**2 * total.sum((1, 2))).all():
            return parameters[:, :-1] - parameters[:, :-1].mean(axis=1, keepdims=True), np.exp(parameters[:, -1])
        size = np.ones(num_problems)
        for _ in range(MAX_HALVINGS):
            candidate = parameters + size[:, None] * step
            candidate_value = _objective(candidate, wins, tied, l2)
            is_worse = candidate_value < value - 1e-12 * np.abs(value)
            if not is_worse.any():
                break
            size[is_worse] /= 2
        parameters, value = candidate, candidate_value
    raise NotConvergedError(f"strengths did not converge in {MAX_STEPS} steps")


def _log_probabilities(parameters: Floats) -> tuple[Floats, Floats]:
    """Logarithms of P(row beats column) and P(tie), (R, N, N) both."""
    strengths, log_tie = parameters[:, :-1], parameters[:, -1][:, None, None]
    half = (strengths[:, :, None] - strengths[:, None, :]) / 2
    total = np.logaddexp(np.logaddexp(half, -half), log_tie)
    return half - total, log_tie - total


def _objective(parameters: Floats, wins: Floats, tied: Floats, l2: float) -> Floats:
    log_win, log_tie = _log_probabilities(parameters)
    log_tie = np.where(tied > 0, log_tie, 0.0)  # no ties at log nu = -inf: 0 times minus infinity is not a number
    penalty = l2 / 2 * np.sum(parameters[:, :-1] ** 2, axis=1)
    return np.sum(wins * log_win + tied * log_tie / 2, axis=(1, 2)) - penalty


def _derivatives(
    parameters: Floats, wins: Floats, tied: Floats, total: Floats, *, l2: float, has_ties: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """The gradient (R, N + 1) and the negative second derivative (R, N + 1, N + 1), the constant pinned."""
    num_items = wins.shape[1]
    log_win, log_tie = _log_probabilities(parameters)
    win, tie = np.exp(log_win), np.exp(log_tie)
    lose = np.swapaxes(win, 1, 2)
    surplus = (wins - np.swapaxes(wins, 1, 2)) / 2 - total * (win - lose) / 2
    gradient = np.concatenate(
        [
            surplus.sum(axis=2) - l2 * parameters[:, :-1],
            np.sum(tied - total * tie, axis=(1, 2))[:, None] / 2,
        ],
        axis=1,
    )
    spread = total * (win + lose - (win - lose) ** 2) / 4
    with_tie = np.sum(-total * tie * (win - lose) / 2, axis=2)
    curvature = np.zeros((len(wins), num_items + 1, num_items + 1))
    curvature[:, :-1, :-1] = -spread + 1 / num_items  # moving all strengths alike changes nothing: hold their mean
    diagonal = np.arange(num_items)
    curvature[:, diagonal, diagonal] += spread.sum(axis=2) + l2
    curvature[:, :-1, -1] = curvature[:, -1, :-1] = with_tie
    curvature[:, -1, -1] = np.where(has_ties, np.sum(total * tie * (1 - tie), axis=(1, 2)) / 2, 1.0)
    gradient[~has_ties, -1] = 0.0
    return gradient, curvature
