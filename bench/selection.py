"""What it buys to ask the most informative comparisons first: accuracy against the number of judgments.

Every strategy gets the same pool of pairs, begins with the same twenty drawn at random, and asks for twenty more at a
time; after each round the models are fitted anew to all answers. Models are Bradley-Terry models linear in features;
an ensemble is eight of them, each fitted to a bootstrap sample of the answers. "Ours" is what the application does:
BALD over the ensemble, chosen as diverse batches, with a share drawn at random as in a project's default settings.

Synthetic pools show whether a strategy can tell what there is to tell. On recorded judgments, with cheap features of
the text, a strategy also meets models that do not fit; there it may buy nothing, and then the table says so.
PLUMBLINE_DATA names the folder of recorded judgments, `NAME/train.jsonl.gz` and `NAME/test.jsonl.gz`.
"""

import gzip
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from scipy.special import expit, stdtrit

from annotate.stats.selection import (
    BALD,
    Candidates,
    Posterior,
    asking_order,
    bald,
    closeness,
    laplace,
)
from bench.run import Row, Skipped

ROUND, NUM_LABELS, SHOWN = 20, 300, (60, 100, 140, 200, 300)
NUM_MEMBERS = 8
RANDOM_SHARE = 0.2  # of a new project
NUM_SYNTHETIC_SEEDS, NUM_REPLAY_SEEDS, NUM_RESAMPLES = 40, 20, 2000
AIM_LABELS, AIM_BEHIND = 110, 0.01

NUM_PAIRS, NUM_INFORMATIVE, NUM_FEATURES, NUM_TEST_PAIRS = 3000, 200, 20, 20_000
DULL = 0.25  # how long the other pairs' differences are, next to those of the informative ones
STRENGTH, FAINT_STRENGTH = 3.0, 0.3  # length of the true weights: clear answers, and almost coin-flips

DATA = Path(os.environ.get("PLUMBLINE_DATA", "../shared/data"))
RECORDED = ("hh_harmless", "hh_helpful", "mtbench_human", "ukpconvarg")
NUM_HASHED, NUM_COMPONENTS, PRIOR_PRECISION = 2**14, 50, 0.1

Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Pairs as differences of features, what annotators answer (1 or -1), and pairs to be right about."""

    features: Array
    answers: Array
    test_features: Array
    test_answers: Array
    prior_precision: float = 1.0


# What is asked


@dataclass(frozen=True)
class Knowledge:
    """What a strategy may know: the pairs left, and the models fitted to the answers so far."""

    features: Array
    judged: Array
    """(N, D) of the pairs judged, chosen less rejected."""
    posterior: Posterior
    prior_precision: float
    generator: np.random.Generator

    def members(self) -> Array:
        """(M, N) score differences of the pairs left, by an ensemble."""
        num_judged = len(self.judged)
        samples = self.generator.integers(num_judged, size=(NUM_MEMBERS, num_judged))
        weights = np.array([laplace(self.judged[sample], self.prior_precision).mean for sample in samples])
        return weights @ self.features.T


def _best(values: Array) -> NDArray[np.intp]:
    return np.argsort(-values, kind="stable")[:ROUND]


def ask_at_random(known: Knowledge) -> NDArray[np.intp]:
    return known.generator.permutation(len(known.features))[:ROUND]


def ask_uncertain(known: Knowledge) -> NDArray[np.intp]:
    return _best(closeness((known.features @ known.posterior.mean)[None]))


def ask_variable(known: Knowledge) -> NDArray[np.intp]:
    return _best(known.posterior.variance(known.features))


def ask_bald(known: Knowledge) -> NDArray[np.intp]:
    return _best(bald(known.members()))


def ask_ours(known: Knowledge) -> NDArray[np.intp]:
    differences = known.members()
    candidates = Candidates.from_scores(np.stack([differences, np.zeros_like(differences)], axis=2), BALD)
    return asking_order(candidates, known.generator, random_share=RANDOM_SHARE, num_diverse=ROUND)[:ROUND]


STRATEGIES: dict[str, Callable[[Knowledge], NDArray[np.intp]]] = {
    "random": ask_at_random,
    "uncertainty": ask_uncertain,
    "variance": ask_variable,
    "bald": ask_bald,
    "ours": ask_ours,
}


def replay(world: World, strategy: str, seed: int) -> list[float]:
    """Accuracy on the test pairs after each round."""
    generator = np.random.default_rng(seed)
    left = generator.permutation(len(world.features))
    asked, left = left[:ROUND], left[ROUND:]
    accuracies = []
    while True:
        judged = world.features[asked] * world.answers[asked, None]
        posterior = laplace(judged, world.prior_precision)
        accuracies.append(float(((world.test_features @ posterior.mean > 0) == (world.test_answers > 0)).mean()))
        if len(asked) >= NUM_LABELS:
            return accuracies
        known = Knowledge(world.features[left], judged, posterior, world.prior_precision, generator)
        chosen = STRATEGIES[strategy](known)
        asked, left = np.concatenate([asked, left[chosen]]), np.delete(left, chosen)


# Synthetic pools


def mixed_pool(seed: int) -> World:
    """3,000 pairs, 200 of which differ enough that an answer tells something."""
    return _synthetic(seed, STRENGTH, np.where(np.arange(NUM_PAIRS) < NUM_INFORMATIVE, 1.0, DULL))


def coin_flips(seed: int) -> World:
    """Every answer is a coin-flip, in the test too: there is nothing to learn."""
    return _synthetic(seed, 0.0, np.ones(NUM_PAIRS))


def faint_pool(seed: int) -> World:
    """Every answer is almost a coin-flip, and one pair tells as little as another."""
    return _synthetic(seed, FAINT_STRENGTH, np.ones(NUM_PAIRS))


def _synthetic(seed: int, strength: float, lengths: Array) -> World:
    generator = np.random.default_rng([seed, 1])
    weights = generator.normal(size=NUM_FEATURES)
    weights *= strength / np.linalg.norm(weights)
    features = generator.normal(size=(NUM_PAIRS, NUM_FEATURES)) * lengths[:, None]
    answers = np.where(generator.random(NUM_PAIRS) < expit(features @ weights), 1.0, -1.0)
    test = generator.normal(size=(NUM_TEST_PAIRS, NUM_FEATURES))
    truth = test @ weights if strength else generator.choice([-1.0, 1.0], NUM_TEST_PAIRS)
    return World(features, answers, test, truth)


# Recorded judgments


@dataclass(frozen=True)
class Recorded:
    """Pairs with all the votes on each (1, 0 for a tie, -1), and test pairs with their majority."""

    features: Array
    votes: list[list[int]]
    test_features: Array
    test_answers: Array

    def world(self, seed: int) -> World:
        """One vote on each pair, drawn; ties teach a Bradley-Terry model nothing and are left out."""
        generator = np.random.default_rng([seed, 2])
        answers = np.array([votes[generator.integers(len(votes))] for votes in self.votes], dtype=float)
        decided, tested = answers != 0, self.test_answers != 0
        return World(
            self.features[decided],
            answers[decided],
            self.test_features[tested],
            self.test_answers[tested],
            PRIOR_PRECISION,
        )


def recorded(name: str) -> Recorded:
    """Judgments of a source, with features that are standardised and fitted to the training pairs' texts."""
    train, test = (_items(DATA / name / f"{split}.jsonl.gz") for split in ("train", "test"))
    texts = [text for pair, _ in (*train, *test) for text in pair]
    features = _features(texts, 2 * len(train))
    differences = (features[0::2] - features[1::2]) / np.sqrt(features.shape[1])
    majority = np.array([np.sign(sum(votes)) for _, votes in test], dtype=float)
    return Recorded(differences[: len(train)], [votes for _, votes in train], differences[len(train) :], majority)


def _items(path: Path) -> list[tuple[list[str], list[int]]]:
    """The two texts of each pair, and the votes on it."""
    texts: dict[str, list[str]] = {}
    votes: dict[str, list[int]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["aspect"] == "overall" and len(row["responses"]) == 2:
                item = row["meta"]["item"]
                texts.setdefault(item, [response["content"] for response in row["responses"]])
                votes[item].append(0 if len(row["ranking"]) == 1 else 1 if row["ranking"][0] == [0] else -1)
    return [(texts[item], votes[item]) for item in texts]


def _features(texts: list[str], num_fitted: int) -> Array:
    """(N, D): words and pairs of words, hashed, weighted by rarity and projected; lengths and marks."""
    counts = _hashed(texts)
    num_texts = np.asarray((counts[:num_fitted] > 0).sum(axis=0)).ravel()
    weighted = counts.multiply(np.log((1 + num_fitted) / (1 + num_texts))).tocsr()
    _, _, components = svds(weighted[:num_fitted], k=NUM_COMPONENTS, rng=np.random.default_rng(0))
    features = np.hstack([weighted @ components.T, np.array([_style(text) for text in texts])])
    fitted = features[:num_fitted]
    return (features - fitted.mean(0)) / fitted.std(0)


def _hashed(texts: list[str]) -> csr_matrix:
    data: list[float] = []
    places: list[int] = []
    ends = [0]
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        grams = [*words, *map(" ".join, pairwise(words))]
        counts = Counter(crc32(gram.encode()) % NUM_HASHED for gram in grams)
        values = np.log1p(np.array(list(counts.values()), dtype=float))
        data += list(values / (np.linalg.norm(values) or 1))
        places += counts
        ends.append(len(places))
    return csr_matrix((data, places, ends), shape=(len(texts), NUM_HASHED))


def _style(text: str) -> list[float]:
    words = text.lower().split()
    counts = (len(text), len(words), text.count("\n"), text.count(","), text.count("?"), text.count("!"))
    return [*np.log1p(counts), len(set(words)) / (len(words) + 1)]


# Curves


def curves_of(make_world: Callable[[int], World], num_seeds: int) -> dict[str, Array]:
    """(seeds, rounds) accuracies of each strategy."""
    found: dict[str, list[list[float]]] = {strategy: [] for strategy in STRATEGIES}
    for seed in range(num_seeds):
        world = make_world(seed)
        for strategy, curves in found.items():
            curves.append(replay(world, strategy, seed))
    return {strategy: np.array(curves) for strategy, curves in found.items()}


def interval(samples: Array) -> tuple[Array, Array]:
    """Mean over seeds and half the width of its 95 % interval, by Student's t."""
    num_seeds = len(samples)
    half = stdtrit(num_seeds - 1, 0.975) * samples.std(axis=0, ddof=1) / np.sqrt(num_seeds)
    return samples.mean(axis=0), half


def labels_needed(curve: Array, target: float) -> float:
    """Labels at which a mean curve first reaches `target`, between rounds on a straight line; infinite if never."""
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return float(ROUND)
    share = (target - curve[after - 1]) / (curve[after] - curve[after - 1])
    return float(ROUND * (after + share))


def needed_interval(curves: dict[str, Array]) -> tuple[float, float, float]:
    """Labels with which ours is as accurate as random is with all of them, and a 95 % interval over seeds."""
    ours, random = curves["ours"], curves["random"]
    generator = np.random.default_rng(0)
    drawn = (generator.integers(len(ours), size=len(ours)) for _ in range(NUM_RESAMPLES))
    found = [labels_needed(ours[seeds].mean(0), random[seeds, -1].mean()) for seeds in drawn]
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return labels_needed(ours.mean(0), random[:, -1].mean()), float(low), float(high)


def show(title: str, curves: dict[str, Array]) -> None:
    print(f"\n  {title}\n  {'labels':12}" + "".join(f"{number:>14}" for number in SHOWN))
    for strategy, samples in curves.items():
        mean, half = interval(samples)
        cells = (f"{mean[place]:.3f} ± {half[place]:.3f}" for place in (number // ROUND - 1 for number in SHOWN))
        print(f"  {strategy:12}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def as_json(curves: dict[str, Array]) -> dict[str, Any]:
    labels = [ROUND * (number + 1) for number in range(NUM_LABELS // ROUND)]
    told = {strategy: [part.round(4).tolist() for part in interval(samples)] for strategy, samples in curves.items()}
    return {
        "labels": labels,
        "accuracy": {strategy: mean for strategy, (mean, _) in told.items()},
        "half_width": {strategy: half for strategy, (_, half) in told.items()},
    }


# Figures


def needed_row(name: str, curves: dict[str, Array]) -> Row:
    """Labels with which ours is as good as random is with all."""
    needed = labels_needed(curves["ours"].mean(0), curves["random"][:, -1].mean())
    title = f"{name}: labels to random's accuracy at {NUM_LABELS}"
    aim = NUM_LABELS / AIM_LABELS
    return Row(title, round(needed, 1), NUM_LABELS, "labels", NUM_LABELS / needed, aim, as_json(curves))


def behind_row(name: str, curves: dict[str, Array]) -> Row:
    """Accuracy where ours is furthest behind random; the aim allows a point."""
    behind = (curves["ours"] - curves["random"]).mean(0)
    worst = int(behind.argmin())
    title = f"{name}: where ours is furthest behind random, {ROUND * (worst + 1)} labels"
    return _accuracy_row(title, curves, worst, AIM_BEHIND)


def last_row(name: str, curves: dict[str, Array]) -> Row:
    """Accuracy with all labels; the aim is to be no worse."""
    return _accuracy_row(f"{name}: {NUM_LABELS} labels", curves, -1, 0.0)


def _accuracy_row(title: str, curves: dict[str, Array], place: int, allowed: float) -> Row:
    ours, random = (float(curves[strategy].mean(0)[place]) for strategy in ("ours", "random"))
    aim = (random - allowed) / random
    return Row(title, round(ours, 4), round(random, 4), "accuracy", ours / random, aim, as_json(curves))


def conclusion(name: str, curves: dict[str, Array]) -> str:
    """In words: whether ours is better than random with all labels and on average over the rounds, paired by seeds."""
    gains = curves["ours"] - curves["random"]
    parts = [
        f"{_verdict(samples)} {when}"
        for samples, when in ((gains.mean(axis=1), "on average over the rounds"), (gains[:, -1], f"at {NUM_LABELS}"))
    ]
    needed, low, high = (f"{number:.0f}" if number < np.inf else "never" for number in needed_interval(curves))
    return f"{name}: {'; '.join(parts)}. Labels to random's accuracy at {NUM_LABELS}: {needed} ({low} to {high})."


def _verdict(gains: Array) -> str:
    (mean,), (half,) = (100 * part for part in interval(gains[:, None]))
    word = "ahead" if mean > half else "behind" if mean < -half else "no difference shown"
    return f"{word} {mean:+.1f} ± {half:.1f} points"


def run() -> Iterator[Row]:
    told = []
    for name, make_world, row in SYNTHETIC:
        curves = curves_of(make_world, NUM_SYNTHETIC_SEEDS)
        show(f"{name}. {make_world.__doc__}", curves)
        told.append(conclusion(name, curves))
        yield row(name, curves)
    there = [name for name in RECORDED if (DATA / name / "train.jsonl.gz").is_file()]
    for name in there:
        curves = curves_of(recorded(name).world, NUM_REPLAY_SEEDS)
        show(f"{name}, recorded judgments", curves)
        told.append(conclusion(name, curves))
        yield last_row(name, curves)
    print("\n  Ours next to random, 95 % intervals over seeds:\n  " + "\n  ".join(told))
    if missing := [name for name in RECORDED if name not in there]:
        raise Skipped(f"no recorded judgments of {', '.join(missing)}: PLUMBLINE_DATA names their folder")


SYNTHETIC: tuple[tuple[str, Callable[[int], World], Callable[[str, dict[str, Array]], Row]], ...] = (
    ("synthetic pool", mixed_pool, needed_row),
    ("coin-flips", coin_flips, behind_row),
    ("faint pool", faint_pool, behind_row),
)
