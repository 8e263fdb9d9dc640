"""What a reward model has to beat: the longer response wins, and the words of a response by themselves.

Both take rankings and give scores as a reward model does, in seconds and without a language model. A reward model that
does no better than these has learned nothing that needs one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Self

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from training.alignment.evaluation import prompt_key
from training.alignment.measures import Floats, Ints, judged_pairs, log_losses
from training.alignment.preferences import RankedResponses

WORD = re.compile(r"\w+|[^\w\s]")
PENALTIES = tuple(10.0**power for power in np.arange(0, 5, 0.5))
NUM_FOLDS = 5
MAX_ITERATIONS = 500


def longer_wins(rankings: Iterable[RankedResponses]) -> list[list[float]]:
    """The length of each response, in characters, for a score."""
    return [[float(len(text)) for text in ranked.responses] for ranked in rankings]


@dataclass(frozen=True)
class WordReward:
    """A reward that is linear in the words of a response, and in pairs of neighbours: Bradley-Terry on bags of words.

    One that stands n times in a response counts log(1 + n) times, or long responses would count for little else.
    Words of the prompt do not count, as they are the same for all its responses.
    """

    vocabulary: dict[str, int]
    weights: Floats
    """(V,) nats."""
    penalty: float

    @classmethod
    def fit(
        cls, rankings: Sequence[RankedResponses], penalties: Sequence[float] = PENALTIES, min_prompts: int = 2
    ) -> Self:
        """The most likely weights under an L2 penalty, penalty / 2 * |weights|^2 beside a sum of nats over rankings.

        A ranking has one voice, however many pairs it makes. Five parts of the prompts, each predicted from the other
        four, choose the penalty by log-loss; then the weights are fitted once more on everything.

        Args:
            penalties: to choose from.
            min_prompts: in how many prompts' responses a word must stand to count.

        Raises:
            ValueError: no ranking puts one response above another.
            RuntimeError: the fit did not converge.
        """
        decided = [ranked for ranked in rankings if ranked.is_decided]
        if not decided:
            raise ValueError("no ranking puts one response above another")
        vocabulary = _vocabulary(decided, min_prompts)
        pairs = _Differences.of(decided, vocabulary)
        penalty = _choose_penalty(pairs, penalties)
        return cls(vocabulary, _fit(pairs.values, pairs.voices, penalty, np.zeros(len(vocabulary))), penalty)

    def score(self, rankings: Iterable[RankedResponses]) -> list[list[float]]:
        """(K,) for each ranking, in nats."""
        rankings = list(rankings)
        texts = [text for ranked in rankings for text in ranked.responses]
        flat = (_counts(texts, self.vocabulary) @ self.weights).tolist()
        ends = np.cumsum([len(ranked.responses) for ranked in rankings]).tolist()
        return [flat[end - len(ranked.responses) : end] for ranked, end in zip(rankings, ends, strict=True)]


@dataclass(frozen=True)
class _Differences:
    """Of each ordered pair, what the better response has more of."""

    values: csr_matrix
    """(N, V)"""
    voices: Floats
    """(N,) how much the pair counts."""
    folds: Ints
    """(N,) which of five parts of the prompts it belongs to."""

    @classmethod
    def of(cls, rankings: Sequence[RankedResponses], vocabulary: dict[str, int]) -> Self:
        counts = _counts([text for ranked in rankings for text in ranked.responses], vocabulary)
        sizes = [len(ranked.responses) for ranked in rankings]
        rows = np.split(np.arange(float(sum(sizes)))[:, None], np.cumsum(sizes)[:-1])
        ranking, is_tied, better, worse = judged_pairs([ranked.groups for ranked in rankings], rows)
        ranking = ranking[~is_tied]
        first, second = (part[~is_tied, 0].astype(np.int64) for part in (better, worse))
        folds = np.array([_fold(ranked) for ranked in rankings])
        return cls(counts[first] - counts[second], 1 / np.bincount(ranking)[ranking], folds[ranking])


def _choose_penalty(pairs: _Differences, penalties: Sequence[float]) -> float:
    """The penalty with the least log-loss on parts that were not fitted."""
    folds = [(pairs.folds != number, pairs.folds == number) for number in np.unique(pairs.folds)]
    weights = [np.zeros(pairs.values.shape[1]) for _ in folds]
    best, least = max(penalties), np.inf
    for penalty in sorted(penalties, reverse=True):  # each fit starts where the one before has ended
        margins = np.empty(len(pairs.voices))
        for number, (inside, outside) in enumerate(folds):
            weights[number] = _fit(pairs.values[inside], pairs.voices[inside], penalty, weights[number])
            margins[outside] = pairs.values[outside] @ weights[number]
        loss = float(pairs.voices @ log_losses(margins))
        if loss >= least:
            break
        best, least = penalty, loss
    return best


def _fit(differences: csr_matrix, voices: Floats, penalty: float, start: Floats) -> Floats:
    """(V,) weights of the logistic likelihood of (N, V) differences, without an intercept: neither side is favoured."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = differences @ weights
        value = voices @ log_losses(margins) + penalty / 2 * weights @ weights
        return float(value), penalty * weights - differences.T @ (voices * expit(-margins))

    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "gtol": 1e-3, "ftol": 1e-7},
    )
    if not found.success:
        raise RuntimeError(f"the words' weights did not converge: {found.message}")
    return np.asarray(found.x, dtype=np.float64)


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> csr_matrix:
    """(N, V) log(1 + n) of how often each word stands in each text."""
    values: list[int] = []
    columns: list[int] = []
    ends = [0]
    for text in texts:
        found = {vocabulary[word]: n for word, n in Counter(_words(text)).items() if word in vocabulary}
        columns += found
        values += found.values()
        ends.append(len(columns))
    return csr_matrix((np.log1p(values), columns, ends), shape=(len(texts), len(vocabulary)))


def _vocabulary(rankings: Sequence[RankedResponses], min_prompts: int) -> dict[str, int]:
    prompts: dict[str, set[str]] = {}
    for ranked in rankings:
        words = {word for text in ranked.responses for word in _words(text)}
        prompts.setdefault(prompt_key(ranked), set()).update(words)
    num_prompts = Counter(word for words in prompts.values() for word in words)
    return {word: number for number, word in enumerate(sorted(w for w, n in num_prompts.items() if n >= min_prompts))}


def _words(text: str) -> list[str]:
    """Words and marks, and each two that follow one another."""
    words = WORD.findall(text.lower())
    return words + [f"{one} {other}" for one, other in pairwise(words)]


def _fold(ranked: RankedResponses) -> int:
    """Of a prompt, always the same."""
    digest = blake2b(prompt_key(ranked).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) % NUM_FOLDS
