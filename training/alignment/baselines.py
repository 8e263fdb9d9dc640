"""What a reward model has to beat: the longer response wins, and the words of a response by themselves.

Both take rankings and give scores as a reward model does, in seconds and without a language model. A reward model that
does no better than these has learned nothing that needs one. The words can be saved as a member beside others:

    member.json           {"kind": "words", "aspect"}
    words.json            {"penalty", "vocabulary": words in the order of their weights, "prompts": SHA-256 of each
                          prompt that it has learned from}
    weights.safetensors   "weights", (V,) float64
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit

from training.alignment.config import ConfigError
from training.alignment.measures import Floats, Ints, judged_pairs, log_losses
from training.alignment.member_config import MemberConfig, WordsMember, write_member
from training.alignment.preferences import PromptedResponses, RankedResponses, prompt_key
from training.alignment.reward import OVERALL, Scored
from training.alignment.run_dir import replace_folder, write_json

WEIGHTS, WORDS = "weights.safetensors", "words.json"
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
    aspect: str = OVERALL
    prompts: frozenset[str] = frozenset()
    """SHA-256 of each prompt that it has learned from."""

    is_listwise = False

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
        weights = _fit(pairs.values, pairs.voices, penalty, np.zeros(len(vocabulary)))
        prompts = frozenset(sha256(prompt_key(ranked.prompt).encode()).hexdigest() for ranked in decided)
        return cls(vocabulary, weights, penalty, decided[0].aspect, prompts)

    def save(self, folder: Path) -> Path:
        """As a member into the folder, which is replaced as a whole."""
        words = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        told = {"penalty": self.penalty, "vocabulary": words, "prompts": sorted(self.prompts)}

        def write(scratch: Path) -> None:
            save_file({"weights": self.weights}, scratch / WEIGHTS)
            write_json(scratch / WORDS, told)
            write_member(scratch, WordsMember(aspect=self.aspect))

        replace_folder(folder, write)
        return folder

    @property
    def digest(self) -> str:
        found = sha256(json.dumps([WORD.pattern, self.vocabulary], sort_keys=True).encode())
        found.update(self.weights.tobytes())
        return found.hexdigest()

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.aspect,)

    def log_odds(self, aspect: str | None = None) -> float:
        """A unit of score is a nat."""
        return 1.0

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses, in nats; none is ever missing or truncated."""
        return [Scored(scores) for scores in self.score(prompts)]

    def score(self, prompts: Iterable[RankedResponses | PromptedResponses]) -> list[list[float]]:
        """(K,) for each ranking or prompt, in nats."""
        lists = [one.responses for one in prompts]
        flat = (_counts([text for texts in lists for text in texts], self.vocabulary) @ self.weights).tolist()
        ends = np.cumsum([len(texts) for texts in lists]).tolist()
        return [flat[end - len(texts) : end] for texts, end in zip(lists, ends, strict=True)]


def load(config: MemberConfig, folder: Path, device: Any = None, cache: Any = None) -> WordReward:
    """The words in a member's folder.

    Raises:
        ConfigError: words and weights do not belong together.
        OSError: the files are not there.
    """
    told = json.loads((folder / WORDS).read_text(encoding="utf-8"))
    weights = load_file(folder / WEIGHTS)["weights"]
    vocabulary = {word: number for number, word in enumerate(told["vocabulary"])}
    if weights.shape != (len(vocabulary),) or not np.isfinite(weights).all():
        raise ConfigError(f"{folder}: {len(vocabulary)} words and weights of shape {weights.shape}, or no finite ones")
    return WordReward(vocabulary, weights, told["penalty"], config.aspect, frozenset(told["prompts"]))


def learned_prompts(folder: Path) -> set[str]:
    """SHA-256 of each prompt that the words in a member's folder have learned from."""
    return set(json.loads((folder / WORDS).read_text(encoding="utf-8"))["prompts"])


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
        prompts.setdefault(prompt_key(ranked.prompt), set()).update(words)
    num_prompts = Counter(word for words in prompts.values() for word in words)
    return {word: number for number, word in enumerate(sorted(w for w, n in num_prompts.items() if n >= min_prompts))}


def _words(text: str) -> list[str]:
    """Words and marks, and each two that follow one another."""
    words = WORD.findall(text.lower())
    return words + [f"{one} {other}" for one, other in pairwise(words)]


def _fold(ranked: RankedResponses) -> int:
    """Of a prompt, always the same."""
    digest = blake2b(prompt_key(ranked.prompt).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) % NUM_FOLDS
