"""How far each annotator can be relied on, without knowing the right answers: only from whom they agree with.

`dawid_skene` takes votes on pairs: what is right on each pair is hidden, each annotator has a confusion matrix, and EM
finds both. Three shapes of that matrix:

- ONE_COIN: right with one probability, wrong in all ways alike. Fewest parameters, for two labels.
- CONFUSION: any matrix (Dawid and Skene). Most parameters: for annotators with many votes.
- READING: an annotator reads the pair and says what is right, or has the scale upside down, or answers by habit without
  reading (always the left one, always a tie). Liars are told from habits, and few votes go far: what annotators with
  four votes in five have in common is the shape. With the second of the three left out this is MACE.

`crowd_bradley_terry` and `crowd_plackett_luce` share what is known about items over many pairs or lists: an annotator
votes by the strengths, and reversed some of the time, or more or less sharply.

Of all these the likelihood is the same with every answer mirrored and every good annotator a liar. So labels have a
sign only if most annotators who can be told from chance are good, and by a margin; else `SignError` is raised, unless
gold answers say which way is up. What no method can see without gold: a majority of liars so large that it looks like
the good ones. Disagreement is not dishonesty either: a group with another taste looks the same.

Letters besides those of the house: V votes, C labels, N pairs in `dawid_skene` and N items of them elsewhere.

Sources: A. P. Dawid and A. M. Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm",
Applied Statistics 28(1), 1979; D. Hovy, T. Berg-Kirkpatrick, A. Vaswani and E. Hovy, "Learning whom to trust with
MACE", NAACL 2013; X. Chen, P. N. Bennett, K. Collins-Thompson and E. Horvitz, "Pairwise ranking aggregation in a
crowdsourced setting", WSDM 2013 (Crowd-BT).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, expit, log_expit, ndtr

from annotate.stats.bradley_terry import FIRST, SECOND, NotConvergedError
from annotate.stats.plackett_luce import Ranking, log_likelihood, minimised, padded

ONE_COIN, CONFUSION, READING = "one_coin", "confusion", "reading"
MIRRORED = np.array([1, 0, 2])  # FIRST, SECOND and TIE of `bradley_terry`, as a liar says them
MAX_STEPS = 5000
TOLERANCE = 1e-8  # of the gain of a step, in nats per vote
SURE = 0.995  # an annotator is told from chance where this much of the posterior lies on one side of a half
MOST_LIARS = 0.4  # of the annotators told from chance; with more the sign is anyone's guess
GOLD_EVIDENCE = np.log(20.0)  # nats by which gold must speak for this sign before it settles it

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SignError(ValueError):
    """Which annotators are good and which are liars cannot be told: their votes fit as well the other way round."""

    def __init__(self, num_good: int, num_liars: int) -> None:
        self.num_good, self.num_liars = num_good, num_liars
        super().__init__(
            f"{num_good} annotators agree with one side and {num_liars} with its mirror image; which are right "
            "cannot be told from their votes. Give gold answers to comparisons that they judged."
        )


@dataclass(frozen=True)
class Reliability:
    """What the votes tell about pairs and annotators.

    Attributes:
        labels: (N, C) probability of each label being right; rows sum to one. A pair without votes has the prior.
        confusion: (A, C, C) probability of a vote (last axis) where a label is right.
        accuracy: (A,) probability that a vote is right, over labels as frequent as they are here.
        better_than_chance: (A,) posterior probability that the annotator names the right side more often than not,
            where both the vote and the right answer name a side.
        log_posterior: of the parameters after each step, in nats up to a constant; it never falls.
    """

    labels: Floats
    confusion: Floats
    accuracy: Floats
    better_than_chance: Floats
    log_posterior: tuple[float, ...]

    @property
    def liars(self) -> Ints:
        """Annotators who are surely wrong more often than right."""
        return np.flatnonzero(self.better_than_chance < 1 - SURE)


@dataclass(frozen=True)
class CrowdStrengths:
    """Strengths of items with what each annotator is worth.

    Attributes:
        strengths: (N,) in log-odds, mean zero.
        annotators: (A,) of `crowd_bradley_terry` the probability of voting by the strengths, not against them; of
            `crowd_plackett_luce` the sharpness: 1 for the usual annotator, 0 for chance, negative for a liar.
        better_than_chance: (A,) posterior probability (normal about the maximum) that the annotator is no liar.
    """

    strengths: Floats
    annotators: Floats
    better_than_chance: Floats

    @property
    def liars(self) -> Ints:
        """Annotators who surely vote against the strengths."""
        return np.flatnonzero(self.better_than_chance < 1 - SURE)


class _Model(Protocol):
    """A shape of the confusion matrices, holding its parameters."""

    def confusion(self) -> Floats:
        """(A, C, C) as `Reliability` has it."""

    def log_prior(self) -> float: ...

    def fit(self, counts: Floats) -> None:
        """Take the parameters that fit expected counts (A, C, C) of right label and vote best, or better than now."""


class _OneCoin:
    """Pseudo-counts of one right and one wrong vote keep annotators with few votes from being perfect or hopeless."""

    def __init__(self, num_annotators: int, num_labels: int) -> None:
        self.num_labels = num_labels
        self.right = np.full(num_annotators, 0.7)

    def confusion(self) -> Floats:
        wrong = (1 - self.right) / (self.num_labels - 1)
        is_right = np.eye(self.num_labels, dtype=bool)
        return np.where(is_right, self.right[:, None, None], wrong[:, None, None])

    def log_prior(self) -> float:
        return float(np.sum(np.log(self.right) + np.log1p(-self.right)))

    def fit(self, counts: Floats) -> None:
        self.right = (np.einsum("acc->a", counts) + 1) / (counts.sum((1, 2)) + 2)


class _Confusion:
    """Pseudo-counts of two votes for what is right and one for each other label, for every label."""

    def __init__(self, num_annotators: int, num_labels: int) -> None:
        self.pseudo_counts = 1 + np.eye(num_labels)
        self.rows = np.tile(self.pseudo_counts / self.pseudo_counts.sum(1, keepdims=True), (num_annotators, 1, 1))

    def confusion(self) -> Floats:
        return self.rows

    def log_prior(self) -> float:
        return float(np.sum(self.pseudo_counts * np.log(self.rows)))

    def fit(self, counts: Floats) -> None:
        expected = counts + self.pseudo_counts
        self.rows = expected / expected.sum(axis=2, keepdims=True)


class _Reading:
    """Reads, has it upside down, or answers by habit.

    Pseudo-counts: two votes read, two by habit and a fifth of one reversed, since liars are rare; one of each habit.
    Among a few such priors this one foretold held-out votes of crowd workers best (UKPConvArg, without its gold).
    """

    ways_prior = np.array([2.0, 0.2, 2.0])

    def __init__(self, num_annotators: int, num_labels: int) -> None:
        self.ways = np.tile(self.ways_prior / self.ways_prior.sum(), (num_annotators, 1))
        self.habit = np.full((num_annotators, num_labels), 1 / num_labels)
        self.right = np.eye(num_labels)
        self.mirrored = self.right[MIRRORED[:num_labels]]

    def _parts(self) -> tuple[Floats, Floats, Floats]:
        """The confusion matrix as a sum of three, (A, C, C) or what broadcasts to it."""
        read, mirror, habit = (self.ways[:, way, None, None] for way in range(3))
        return read * self.right, mirror * self.mirrored, habit * self.habit[:, None, :]

    def confusion(self) -> Floats:
        read, mirror, habit = self._parts()
        return read + mirror + habit

    def log_prior(self) -> float:
        return float(np.sum(self.ways_prior * np.log(self.ways)) + np.sum(np.log(self.habit)))

    def fit(self, counts: Floats) -> None:
        parts = self._parts()
        per_chance = counts / sum(parts)
        read, mirror, habit = (part * per_chance for part in parts)
        ways = np.stack([part.sum((1, 2)) for part in (read, mirror, habit)], axis=1) + self.ways_prior
        habits = habit.sum(axis=1) + 1
        self.ways = ways / ways.sum(axis=1, keepdims=True)
        self.habit = habits / habits.sum(axis=1, keepdims=True)


MODELS: dict[str, type[_OneCoin] | type[_Confusion] | type[_Reading]] = {
    ONE_COIN: _OneCoin,
    CONFUSION: _Confusion,
    READING: _Reading,
}


def dawid_skene(
    pair: ArrayLike,
    annotator: ArrayLike,
    vote: ArrayLike,
    *,
    num_pairs: int,
    num_annotators: int,
    num_labels: int,
    model: str = READING,
    label_prior: ArrayLike | None = None,
    gold: Mapping[int, int] | None = None,
) -> Reliability:
    """The right label of each pair and each annotator's confusion matrix, by EM from the votes' shares.

    Args:
        pair, annotator: (V,) 0 to N - 1, 0 to A - 1.
        vote: (V,) FIRST, SECOND or, with three labels, TIE.
        num_labels: 2 or 3.
        model: ONE_COIN, CONFUSION or READING.
        label_prior: (C,) probability of each label before any vote; even by default. It is not estimated: an estimate
            feeds on itself where annotators hardly agree what a tie is, and ends with no ties or nothing else.
        gold: the right label of some pairs; it fixes them, and the sign.

    Raises:
        ValueError: shapes differ or a number is out of range.
        SignError: liars may be the majority.
        NotConvergedError: the maximum was not reached.
    """
    pairs, annotators, votes = (np.asarray(values, dtype=np.int64) for values in (pair, annotator, vote))
    _check_votes({"pair": (pairs, num_pairs), "annotator": (annotators, num_annotators), "vote": (votes, num_labels)})
    if num_labels not in (2, 3) or model not in MODELS:
        raise ValueError(f"num_labels must be 2 or 3 and model one of {tuple(MODELS)}")
    prior = np.full(num_labels, 1 / num_labels) if label_prior is None else np.asarray(label_prior, dtype=float)
    if prior.shape != (num_labels,) or not (prior > 0).all():
        raise ValueError(f"label_prior must be of shape ({num_labels},) and above zero")
    known = _known_labels(gold or {}, num_pairs, num_labels)
    hidden = _HiddenLabels(pairs, annotators, votes, known, np.log(prior / prior.sum()), num_annotators)
    parameters = MODELS[model](num_annotators, num_labels)
    labels, log_posterior = _expectation_maximisation(parameters, hidden)
    confusion, counts = parameters.confusion(), hidden.expected_counts(labels)
    right = counts[:, FIRST, FIRST] + counts[:, SECOND, SECOND]
    better = _beta_above_half(right, wrong=counts[:, FIRST, SECOND] + counts[:, SECOND, FIRST])
    if hidden.evidence_of_gold(confusion) < GOLD_EVIDENCE:
        check_sign(better)
    accuracy = np.einsum("acc,c->a", confusion, labels.mean(axis=0))
    return Reliability(labels, confusion, accuracy, better, log_posterior)


def crowd_bradley_terry(
    first: ArrayLike,
    second: ArrayLike,
    share: ArrayLike,
    annotator: ArrayLike,
    *,
    num_items: int,
    num_annotators: int,
    l2: float = 0.1,
) -> CrowdStrengths:
    """Strengths from graded votes: P(first wins) = eta sigmoid(difference) + (1 - eta) sigmoid(-difference).

    Args:
        first, second, annotator: (V,) 0 to N - 1, 0 to N - 1, 0 to A - 1.
        share: (V,) how much of the vote goes to the first item: 1 much better, 0.75 slightly better, 0.5 tie, ..., 0.
        l2: weight of the Gaussian prior of the strengths. Etas have a pseudo-count of one vote for and one against.

    Raises:
        ValueError: shapes differ or a number is out of range.
        SignError: liars may be the majority.
        NotConvergedError: the maximum was not reached.
    """
    one, other, judge = (np.asarray(values, dtype=np.int64) for values in (first, second, annotator))
    part = np.asarray(share, dtype=float)
    _check_votes({"first": (one, num_items), "second": (other, num_items), "annotator": (judge, num_annotators)})
    if part.shape != one.shape or part.min() < 0 or part.max() > 1 or (one == other).any() or l2 <= 0:
        raise ValueError("share must be (V,) within 0 and 1, items must differ, and l2 must be above zero")

    def loss(parameters: Floats) -> tuple[float, Floats]:
        return crowd_bradley_terry_loss(parameters, one, other, share=part, annotator=judge, num_items=num_items, l2=l2)

    start = np.concatenate([np.zeros(num_items), np.full(num_annotators, 1.0)])
    best = minimised(loss, start, len(one))
    strengths, eta = best[:num_items], expit(best[num_items:])
    upper = expit(strengths[one] - strengths[other])
    win = eta[judge] * upper + (1 - eta[judge]) * (1 - upper)
    slope = (eta * (1 - eta))[judge] * (2 * upper - 1)
    information = np.bincount(judge, slope**2 / (win * (1 - win)), num_annotators) + 2 * eta * (1 - eta)
    better = ndtr(best[num_items:] * np.sqrt(information))
    check_sign(better)
    return CrowdStrengths(strengths - strengths.mean(), eta, better)


def crowd_bradley_terry_loss(
    parameters: Floats, first: Ints, second: Ints, *, share: Floats, annotator: Ints, num_items: int, l2: float
) -> tuple[float, Floats]:
    """The negative log-posterior of `crowd_bradley_terry` and its gradient by strengths and logits of eta, (N + A,)."""
    strengths, logits = parameters[:num_items], parameters[num_items:]
    difference, logit = strengths[first] - strengths[second], logits[annotator]
    by, against = log_expit(logit), log_expit(-logit)
    upper, lower = log_expit(difference), log_expit(-difference)
    win, loss = np.logaddexp(by + upper, against + lower), np.logaddexp(by + lower, against + upper)
    likelihood = share @ win + (1 - share) @ loss
    prior = np.sum(log_expit(logits) + log_expit(-logits)) - l2 / 2 * strengths @ strengths
    by_win = share / np.exp(win) - (1 - share) / np.exp(loss)  # of the probability of a win
    eta, sigmoid = expit(logit), expit(difference)
    by_difference = by_win * (2 * eta - 1) * sigmoid * (1 - sigmoid)
    by_logit = by_win * (2 * sigmoid - 1) * eta * (1 - eta)
    by_strength = np.bincount(first, by_difference, num_items) - np.bincount(second, by_difference, num_items)
    by_annotator = np.bincount(annotator, by_logit, len(logits)) + 1 - 2 * expit(logits)
    return -(likelihood + prior), -np.concatenate([by_strength - l2 * strengths, by_annotator])


def crowd_plackett_luce(
    rankings: Sequence[Ranking], annotator: ArrayLike, *, num_items: int, num_annotators: int, l2: float = 0.1
) -> CrowdStrengths:
    """Strengths from rankings by annotators who see differences more or less sharply: utility is sharpness x strength.

    Args:
        rankings: (J) items 0 to N - 1, best first, ties as groups, as for `plackett_luce`.
        annotator: (J,) 0 to A - 1.
        l2: weight of the Gaussian prior of the strengths. The prior of a sharpness is normal about 1 with deviation 1.

    Raises:
        ValueError: a ranking or an annotator is not what it should be.
        SignError: liars may be the majority.
        NotConvergedError: the maximum was not reached.
    """
    items, places = padded(rankings, num_items)
    judge = np.asarray(annotator, dtype=np.int64)
    _check_votes({"annotator": (judge, num_annotators)})
    if judge.shape != (len(rankings),) or l2 <= 0:
        raise ValueError(f"annotator must be of shape ({len(rankings)},), and l2 above zero")

    def loss(parameters: Floats) -> tuple[float, Floats]:
        return crowd_plackett_luce_loss(parameters, items, places, judge, num_items=num_items, l2=l2)

    best = minimised(loss, np.concatenate([np.zeros(num_items), np.ones(num_annotators)]), len(rankings))
    strengths, sharpness = best[:num_items], best[num_items:]
    nearby = 1e-4 * np.repeat([0.0, 1.0], [num_items, num_annotators])  # annotators do not touch each other's slopes
    slopes = loss(best + nearby)[1] - loss(best - nearby)[1]
    information = np.maximum(slopes[num_items:] / 2e-4, 1.0)  # at least the prior's
    better = ndtr(sharpness * np.sqrt(information))
    check_sign(better)
    return CrowdStrengths(strengths - strengths.mean(), sharpness, better)


def crowd_plackett_luce_loss(
    parameters: Floats, items: Ints, places: Ints, annotator: Ints, *, num_items: int, l2: float
) -> tuple[float, Floats]:
    """The negative log-posterior of `crowd_plackett_luce` and its gradient, by strengths (N,) and sharpnesses (A,)."""
    strengths, sharpness = parameters[:num_items], parameters[num_items:]
    of_items, of_judge = strengths[items], sharpness[annotator][:, None]
    value, gradient = log_likelihood(of_judge * of_items, places)
    by_strength = np.bincount(items.ravel(), (gradient * of_judge).ravel(), num_items)
    by_sharpness = np.bincount(annotator, np.sum(gradient * of_items, axis=1), len(sharpness))
    prior = l2 * strengths @ strengths + np.sum((sharpness - 1) ** 2)
    return prior / 2 - value.sum(), np.concatenate([l2 * strengths - by_strength, sharpness - 1 - by_sharpness])


def check_sign(better_than_chance: ArrayLike) -> None:
    """Raise SignError where more than two in five of the annotators who can be told from chance are liars.

    Args:
        better_than_chance: (A,) posterior probability of being better than chance.
    """
    better = np.asarray(better_than_chance)
    num_good, num_liars = int(np.sum(better > SURE)), int(np.sum(better < 1 - SURE))
    if num_liars > MOST_LIARS * (num_good + num_liars):
        raise SignError(num_good, num_liars)


@dataclass(frozen=True)
class _HiddenLabels:
    """Votes (V,) on pairs, of which `known` (N,) holds the right label or -1 and `log_prior` (C,) tells the rest."""

    pairs: Ints
    annotators: Ints
    votes: Ints
    known: Ints
    log_prior: Floats
    num_annotators: int

    def first_labels(self) -> Floats:
        """(N, C) the shares of the votes; where there is gold, only that: it decides which way is up."""
        num_pairs, num_labels = len(self.known), len(self.log_prior)
        is_gold = (self.known[:, None] == np.arange(num_labels)).astype(float)
        if is_gold.any():
            return is_gold
        counts = np.bincount(self.pairs * num_labels + self.votes, minlength=num_pairs * num_labels)
        shares = (
            counts.reshape(num_pairs, num_labels) / np.maximum(np.bincount(self.pairs, minlength=num_pairs), 1)[:, None]
        )
        return shares

    def expected_counts(self, labels: Floats) -> Floats:
        """(A, C, C) how often each annotator meets each right label (N, C) with each vote."""
        num_labels = len(self.log_prior)
        cell, shape = self.annotators * num_labels + self.votes, (self.num_annotators, num_labels)
        by_label = [np.bincount(cell, labels[self.pairs, label], np.prod(shape)) for label in range(num_labels)]
        return np.stack([counts.reshape(shape) for counts in by_label], axis=1)

    def posterior(self, confusion: Floats) -> tuple[Floats, float]:
        """(N, C) of the labels, and the log-likelihood of the votes."""
        by_vote = np.log(confusion)[self.annotators, :, self.votes]
        sums = [np.bincount(self.pairs, column, len(self.known)) for column in by_vote.T]
        logits = self.log_prior + np.stack(sums, axis=1)
        is_other = (self.known >= 0)[:, None] & (self.known[:, None] != np.arange(len(self.log_prior)))
        logits[is_other] = -np.inf
        total = np.logaddexp.reduce(logits, axis=1)
        return np.exp(logits - total[:, None]), float(total.sum())

    def evidence_of_gold(self, confusion: Floats) -> float:
        """Nats by which the votes on gold are likelier with these confusion matrices than with their mirror images."""
        truth = self.known[self.pairs]
        judge, vote, truth = (values[truth >= 0] for values in (self.annotators, self.votes, truth))
        return float(np.sum(np.log(confusion[judge, truth, vote]) - np.log(confusion[judge, MIRRORED[truth], vote])))


def _expectation_maximisation(parameters: _Model, hidden: _HiddenLabels) -> tuple[Floats, tuple[float, ...]]:
    """Fit the parameters in place; the labels' posterior (N, C), and the parameters' log-posterior at each step."""
    parameters.fit(hidden.expected_counts(hidden.first_labels()))
    trace: list[float] = []
    for _ in range(MAX_STEPS):
        labels, evidence = hidden.posterior(parameters.confusion())
        trace.append(evidence + parameters.log_prior())
        if len(trace) > 1 and trace[-1] - trace[-2] < TOLERANCE * len(hidden.votes):
            return labels, tuple(trace)
        parameters.fit(hidden.expected_counts(labels))
    raise NotConvergedError(f"the annotators' reliabilities did not converge in {MAX_STEPS} steps")


def _beta_above_half(right: Floats, wrong: Floats) -> Floats:
    """Posterior probability of being right more often than not, from an even prior."""
    return 1 - betainc(right + 1, wrong + 1, 0.5)


def _check_votes(columns: Mapping[str, tuple[Ints, int]]) -> None:
    shapes = {name: values.shape for name, (values, _) in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes.values()):
        raise ValueError(f"all must be of one shape (V,), not empty: {shapes}")
    for name, (values, number) in columns.items():
        if values.min() < 0 or values.max() >= number:
            raise ValueError(f"{name} must be 0 to {number - 1}")


def _known_labels(gold: Mapping[int, int], num_pairs: int, num_labels: int) -> Ints:
    known = np.full(num_pairs, -1)
    for pair, label in gold.items():
        if not 0 <= pair < num_pairs or not 0 <= label < num_labels:
            raise ValueError(
                f"gold must be labels 0 to {num_labels - 1} of pairs 0 to {num_pairs - 1}: {pair}: {label}"
            )
        known[pair] = label
    return known
