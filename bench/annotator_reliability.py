"""Labels of real crowd workers: the share that meets the authors' gold label, by our model and by majority vote.

UKPConvArg: which of two arguments convinces more, five votes a pair (first, second or equal), 2,875 workers, half of
whom voted at most twice. Gold is never shown to the model. It is itself the outcome of a model of annotators, MACE, on
the same votes: meeting it shows that we find what careful people accepted as the labels, not that it is the truth.

A majority between several labels counts as the share that guessing among them would get right, which is the better of
the ways to break it. The interval is of the difference on the same pairs, by bootstrap over pairs.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotate.stats.annotators import MODELS, READING, dawid_skene
from annotate.stats.bradley_terry import TIE
from bench.run import Row, Skipped

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "ukpconvarg"
NUM_REPLICATES = 2000


def votes() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each vote the pair, annotator and label, (V,), and of each pair the gold label, (N,), or -1."""
    lines = [
        line for path in sorted(FOLDER.glob("*.jsonl.gz")) for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    rows = [json.loads(line) for line in lines]
    if not rows:
        raise Skipped(f"no judgments in {FOLDER}")
    pairs: dict[str, int] = {}
    annotators: dict[str, int] = {}
    gold: dict[int, int] = {}
    table = []
    for row in rows:
        pair = pairs.setdefault(row["meta"]["item"], len(pairs))
        annotator = annotators.setdefault(row["annotator"], len(annotators))
        table.append((pair, annotator, TIE if len(row["ranking"]) == 1 else row["ranking"][0][0]))
        if (right := row["meta"].get("gold")) is not None:
            gold[pair] = TIE if right == "tie" else right
    pair, annotator, label = np.array(table).T
    return pair, annotator, label, np.array([gold.get(number, -1) for number in range(len(pairs))])


def meeting_gold(scores: NDArray[np.float64], gold: NDArray[np.int64]) -> NDArray[np.float64]:
    """(number of gold labels,) 1 where the highest score is gold's, shared evenly where several are highest."""
    is_highest = np.isclose(scores, scores.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    shares = is_highest / is_highest.sum(axis=1, keepdims=True)
    known = np.flatnonzero(gold >= 0)
    return shares[known, gold[known]]


def paired_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = [generator.choice(differences, len(differences)).mean() for _ in range(NUM_REPLICATES)]
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)


def run() -> Iterator[Row]:
    pair, annotator, label, gold = votes()
    counts = np.bincount(pair * 3 + label, minlength=len(gold) * 3).reshape(-1, 3).astype(float)
    majority = meeting_gold(counts, gold)
    for model in sorted(MODELS, key=lambda name: name != READING):
        found = dawid_skene(
            pair, annotator, label, num_pairs=len(gold), num_annotators=annotator.max() + 1, num_labels=3, model=model
        )
        ours = meeting_gold(found.labels, gold)
        lower, upper = paired_interval(ours - majority)
        print(
            f"  {model}: {100 * (ours - majority).mean():+.2f} points on {len(ours)} pairs [{lower:+.4f}, {upper:+.4f}]"
        )
        if model == READING:
            missed, by_majority = (100 * float(1 - met.mean()) for met in (ours, majority))
            yield Row("labels that miss gold, ukpconvarg", missed, by_majority, "%", by_majority / missed, 1.0)
