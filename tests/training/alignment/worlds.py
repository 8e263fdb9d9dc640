"""Worlds in which the truth is known: members are truth plus noise, and what combines them best is a formula.

Differences of truth between two responses have variance 1, and a member's noise in such a difference the variance that
is told. A member is then right about which of two is truly better with probability 1/2 + arctan(1 / deviation) / pi.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.alignment.ensemble import JudgedScores

Floats = NDArray[np.float64]

NUM_TOPICS = 5
NUM_FEATURES = 16
SHARPNESS = 3.0  # nats that a truth of 1 is worth to the people who judge
BEST_OF = 2 ** np.arange(14)
NUM_VOTES, FLIP_RATE = 800, 0.25
NUM_GOOD, NUM_HARMFUL = 8, 60


@dataclass(frozen=True)
class World:
    judged: JudgedScores
    truth: Floats
    """(B, K)"""
    optimal: Floats
    """(B, K) the truth expected from all members' scores, in nats of a judgment: nothing predicts pairs better."""
    topics: NDArray[np.int64]
    """(B,) of each prompt."""


def draw(
    rng: np.random.Generator,
    num_prompts: int,
    covariance: Floats,
    *,
    num_responses: int = 2,
    sharpness: float = SHARPNESS,
) -> World:
    """A ranking of each of `num_prompts` prompts, drawn by Plackett-Luce from the truth.

    Args:
        covariance: (M, M) of the members' noise in differences, or (T, M, M) of as many topics, each prompt having one.
        sharpness: of the judgments, in nats per unit of truth; infinite where they are never wrong.
    """
    by_topic = covariance[None] if covariance.ndim == 2 else covariance
    num_topics, num_members = by_topic.shape[:2]
    topics = rng.integers(num_topics, size=num_prompts)
    truth = rng.normal(size=(num_prompts, num_responses)) / np.sqrt(2)
    roots = np.stack([_root(one) for one in by_topic])
    noise = rng.normal(size=(num_prompts, num_responses, num_members)) / np.sqrt(2)
    scores = truth[..., None] + np.einsum("bkm,bnm->bkn", noise, roots[topics])
    weights = np.stack([np.linalg.pinv(one).sum(1) for one in by_topic])
    weights /= 1 + weights.sum(1, keepdims=True)
    optimal = np.einsum("bkm,bm->bk", scores, weights[topics])
    doubt = (1 - weights.sum(1))[topics]  # the variance of the true difference given the scores
    nats = 1 / np.sqrt(1 / sharpness**2 + np.pi / 8 * doubt)  # MacKay's mean of a sigmoid over a normal
    surprise = rng.gumbel(size=truth.shape)
    seen = truth if np.isinf(sharpness) else sharpness * truth + surprise
    deviations = np.sqrt((1 + np.diagonal(by_topic, axis1=1, axis2=2).mean(0)) / 2)  # the population's
    centres = _unit_vectors(num_topics)
    judged = JudgedScores(
        scores=scores / deviations,
        groups=np.argsort(np.argsort(-seen, axis=1), axis=1),
        prompts=np.arange(num_prompts),
        weights=np.ones(num_prompts),
        features=centres[topics] + 0.1 * rng.normal(size=(num_prompts, NUM_FEATURES)),
    )
    return World(judged, truth, nats[:, None] * optimal, topics)


def contextual(rng: np.random.Generator, num_prompts: int, **options: float) -> World:
    """Five members, each good on one topic of five: the mean is right 0.785 of the time, the best gate 0.911."""
    deviations = np.full((NUM_TOPICS, NUM_TOPICS), 2.0) - 1.7 * np.eye(NUM_TOPICS)
    return draw(rng, num_prompts, np.stack([np.diag(own**2) for own in deviations]), **options)


def redundant(rng: np.random.Generator, num_prompts: int, **options: float) -> World:
    """Four near-copies and an independent member, all as large: the mean is right 0.78 of the time, the best 0.80."""
    covariance = np.eye(5)
    covariance[:4, :4] = 0.99 + 0.01 * np.eye(4)
    return draw(rng, num_prompts, covariance, **options)


def homogeneous(rng: np.random.Generator, num_prompts: int, **options: float) -> World:
    """Five members of independent noise of the same size: nothing is better than the mean."""
    return draw(rng, num_prompts, np.eye(5), **options)


def unequal(rng: np.random.Generator, num_prompts: int, **options: float) -> World:
    """Five members of known, unequal and correlated noise."""
    deviations = np.array([0.5, 0.8, 1.0, 1.5, 2.5])
    correlation = 0.3 + 0.7 * np.eye(5)
    correlation[0, 1] = correlation[1, 0] = 0.6
    return draw(rng, num_prompts, correlation * np.outer(deviations, deviations), **options)


def one_right(rng: np.random.Generator, num_prompts: int, **options: float) -> World:
    """One member that tells the truth but for little noise, four that hardly know it: the best member is the best."""
    return draw(rng, num_prompts, np.diag([0.3, 3.0, 3.0, 3.0, 3.0]) ** 2, **options)


def exploitable(rng: np.random.Generator, *, num_members: int = 5, is_shared: bool = False) -> tuple[Floats, Floats]:
    """(N, M) standardised scores and (N,) true worth of responses in which rare things do harm, from which to choose.

    Each member is fitted to 800 votes, a quarter of them the wrong way round, in which each of the 60 harmful things
    occurs about six times: so it takes some of them for good, and among many responses there are always some with them.

    Args:
        is_shared: all members are fitted to resamples of the same votes, so they share the votes' mistakes.
    """
    worth = np.concatenate([rng.normal(size=NUM_GOOD) / np.sqrt(NUM_GOOD), np.full(NUM_HARMFUL, -3.0)])

    def responses(number: int) -> Floats:
        return np.hstack([rng.normal(size=(number, NUM_GOOD)), rng.random((number, NUM_HARMFUL)) < 0.004])

    def votes() -> Floats:
        differences = responses(NUM_VOTES) - responses(NUM_VOTES)
        is_first = rng.random(NUM_VOTES) < 1 / (1 + np.exp(-2 * differences @ worth))
        is_first ^= rng.random(NUM_VOTES) < FLIP_RATE
        return np.where(is_first[:, None], differences, -differences)

    common = votes()
    own = [common[rng.integers(NUM_VOTES, size=NUM_VOTES)] if is_shared else votes() for _ in range(num_members)]
    offered = responses(8 * BEST_OF[-1])
    scores = offered @ np.stack([_fitted(one) for one in own], axis=1)
    return (scores - scores.mean(0)) / scores.std(0), offered @ worth


def best_of(scores: Floats, worth: Floats) -> Floats:
    """(14,) the mean worth of the response with the highest score among 1, 2, 4, … 8192."""
    found = []
    for size in BEST_OF:
        chosen = scores.reshape(-1, size).argmax(1)
        found.append(np.take_along_axis(worth.reshape(-1, size), chosen[:, None], 1).mean())
    return np.array(found)


def broken(judged: JudgedScores, kind: str, member: int = 0) -> JudgedScores:
    """The same judgments with one member constant, flipped or missing."""
    scores = judged.scores.copy()
    scores[..., member] = {"constant": 0.0, "flipped": -scores[..., member], "missing": np.nan}[kind]
    return JudgedScores(scores, judged.groups, judged.prompts, judged.weights, judged.features)


def accuracy(rewards: Floats, truth: Floats) -> float:
    """The share of pairs of which the truly better response has the higher reward; half where they are equal."""
    one, other = np.triu_indices(truth.shape[1], 1)
    agreement = np.sign(rewards[:, one] - rewards[:, other]) * np.sign(truth[:, one] - truth[:, other])
    return float(np.mean((1 + agreement) / 2))


def _fitted(differences: Floats, ridge: float = 0.9) -> Floats:
    """The weights with which the first of each pair is likeliest to be preferred, by Newton's method."""
    weights = np.zeros(differences.shape[1])
    for _ in range(8):
        wrong = 1 / (1 + np.exp(differences @ weights))
        curvature = (differences.T * (wrong * (1 - wrong))) @ differences + ridge * np.eye(len(weights))
        weights += np.linalg.solve(curvature, wrong @ differences - ridge * weights)
    return weights


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def _unit_vectors(number: int) -> Floats:
    """(T, D) of prompts' features by topic, the same in all worlds."""
    drawn = np.random.default_rng(0).normal(size=(number, NUM_FEATURES))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
