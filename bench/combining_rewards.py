"""Ways of combining rewards, beside the mean and the best single one, on judgments of prompts that none was fitted to.

Members are trained on a source's train file only:

    minilm, llama    as `reward_model_accuracy` trained and kept them, from whatever seeds it did
    words, half      Bradley-Terry on bags of words, of the whole train file and of half of its prompts
    characters       the same on three to five neighbouring characters, hashed
    embedding        a linear reward on frozen MiniLM embeddings of the response, and of it times the prompt's; not of
                     the two sources that would take long
    overlap          the share of the response's words that stand in the prompt
    longer           the longer response wins
    gpt4             of mtbench_human, GPT-4's own verdict on each pair

Combiners are fitted on the test file's prompts crosswise: in five folds, each fold's judgments are scored by what was
fitted to the other four, which also standardise the members and give each score its temperature. That is done with
three divisions into folds, and each pair's loss is the mean over these. The best single member is the one with the
least log-loss on all these judgments: it is chosen in hindsight, and nobody could have chosen it so. Gains come with
95 % intervals by prompt.

What members and combiners say is kept in PLUMBLINE_HOME, so a run that was stopped goes on. PLUMBLINE_BENCH_DATA names
some of the sources.
"""

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.preference_data import minilm, read_rows, write_preferences
from bench.processes import prepare
from bench.reward_model_accuracy import BACKBONES, cell_of, training_rows
from bench.run import Row, Skipped
from config.home import HOME

if TYPE_CHECKING:
    from training.alignment.ensemble import JudgedScores
    from training.alignment.preferences import RankedResponses

SOURCES = ("hh_harmless", "hh_helpful", "mtbench_human", "ukpconvarg", "alpaca_eval", "finegrained_qa")
RULES = ("mean", "median", "worst_case", "uncertainty_weighted")
METHODS = (*RULES, "bayesian_average", "stacking", "fusion")
FOLDER = HOME / "bench" / "combining_rewards"
LONG = {"hh_helpful", "alpaca_eval"}  # embedding them takes two cores a good part of an hour
NUM_SEEDS, NUM_FOLDS, MOST_SEEDS = 3, 5, 5
PENALTY = 0.5  # of the variance between members
NUM_BUCKETS = 4096
PENALTIES = tuple(10.0**power for power in np.arange(-1, 4, 0.5))

Floats = NDArray[np.float64]
Scores = list[list[float]]


@dataclass(frozen=True)
class Material:
    """A source's judgments; rankings of the test file are what is measured on."""

    source: str
    train: "list[RankedResponses]"
    test: "list[RankedResponses]"
    test_rows: list[dict[str, Any]]


def run() -> Iterator[Row]:
    wanted = [name for name in os.environ.get("PLUMBLINE_BENCH_DATA", "").split(",") if name]
    if unknown := {*wanted} - {*SOURCES}:
        raise Skipped(f"{', '.join(sorted(unknown))}: there are {', '.join(SOURCES)}")
    prepare()
    minilm()  # or it is skipped before anything is computed
    for source in wanted or SOURCES:
        material = read_material(source)
        scores = {name: _kept(source, name, make, material) for name, make in _makers(source).items()}
        cells = {
            f"{model}-{seed}": cell_of(source, model, seed).read() for model in BACKBONES for seed in range(MOST_SEEDS)
        }
        yield from _table(material, scores | {name: found for name, found in cells.items() if found})


def read_material(source: str) -> Material:
    rows = read_rows(source, "test")
    with tempfile.TemporaryDirectory() as scratch:
        train = write_preferences(training_rows(source), Path(scratch) / "train.jsonl")
        test = write_preferences(rows, Path(scratch) / "test.jsonl")
    return Material(source, train, test, rows)


# Members


def _makers(source: str) -> dict[str, Callable[[Material], Scores]]:
    makers = {
        "longer": _longer,
        "overlap": _overlap,
        "words": _words,
        "half": _half,
        "characters": _characters,
    }
    if source not in LONG:
        makers["embedding"] = _embedding
    if source == "mtbench_human":
        makers["gpt4"] = _gpt4
    return makers


def _kept(source: str, name: str, make: Callable[[Material], Scores], material: Material) -> Scores:
    path = FOLDER / source / f"{name}.json"
    if not path.exists():
        _keep(path, make(material))
    return json.loads(path.read_text())


def _keep(path: Path, found: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(found))
    scratch.replace(path)


def _longer(material: Material) -> Scores:
    from training.alignment.baselines import longer_wins

    return longer_wins(material.test)


def _overlap(material: Material) -> Scores:
    from training.alignment.baselines import WORD

    def share(prompt: set[str], response: str) -> float:
        words = WORD.findall(response.lower())
        return sum(word in prompt for word in words) / max(1, len(words))

    prompts = [{*WORD.findall(_prompt(ranked).lower())} for ranked in material.test]
    return [
        [share(prompt, text) for text in ranked.responses]
        for prompt, ranked in zip(prompts, material.test, strict=True)
    ]


def _words(material: Material) -> Scores:
    from training.alignment.baselines import WordReward

    return WordReward.fit(material.train).score(material.test)


def _half(material: Material) -> Scores:
    from training.alignment.baselines import WordReward

    prompts = sorted({_prompt(ranked) for ranked in material.train})
    half = {*random.Random(0).sample(prompts, len(prompts) // 2)}
    return WordReward.fit([ranked for ranked in material.train if _prompt(ranked) in half]).score(material.test)


def _characters(material: Material) -> Scores:
    return _linear(material, _hashed_characters)


def _embedding(material: Material) -> Scores:
    return _linear(material, _embedded)


def _gpt4(material: Material) -> Scores:
    verdicts = [row["meta"] for row in material.test_rows]
    return [[float(model == verdict["gpt4"]) for model in verdict["models"]] for verdict in verdicts]


def _prompt(ranked: "RankedResponses") -> str:
    return "\n".join(message["content"] for message in ranked.prompt)


def _hashed_characters(rankings: "Sequence[RankedResponses]") -> Any:
    """(N, F) of all responses: log(1 + n) of the n-grams that fall into a bucket."""
    from zlib import crc32

    from scipy.sparse import csr_matrix

    texts = [f" {text.lower()} ".encode() for ranked in rankings for text in ranked.responses]
    counts = [
        np.bincount(
            [crc32(text[start : start + n]) % NUM_BUCKETS for n in (3, 4, 5) for start in range(len(text) - n + 1)],
            minlength=NUM_BUCKETS,
        )
        for text in texts
    ]
    return csr_matrix(np.stack([np.log1p(own) for own in counts]))


def _embedded(rankings: "Sequence[RankedResponses]") -> Floats:
    """(N, F) of all responses: MiniLM's embedding, and it times the prompt's."""
    from training.alignment.prompt_features import PromptFeatures

    encode = PromptFeatures(str(minilm()))
    texts = list(dict.fromkeys(text for ranked in rankings for text in (_prompt(ranked), *ranked.responses)))
    found = encode([[{"role": "user", "content": text}] for text in texts])
    row = {text: number for number, text in enumerate(texts)}
    responses = found[[row[text] for ranked in rankings for text in ranked.responses]]
    prompts = found[[row[_prompt(ranked)] for ranked in rankings for _ in ranked.responses]]
    size = np.sqrt(found.shape[1])  # to columns of about unit size
    return np.hstack([size * responses, size**2 * responses * prompts])


def _linear(material: Material, describe: "Callable[[Sequence[RankedResponses]], Any]") -> Scores:
    """The scores of a Bradley-Terry reward linear in what `describe` gives, under the penalty best in five folds."""
    from training.alignment.measures import judged_pairs, log_losses

    rows = _by_ranking(material.train, np.arange(sum(len(ranked.responses) for ranked in material.train)))
    values = [np.array(own, dtype=np.float64)[:, None] for own in rows]
    ranking, is_tied, better, worse = judged_pairs([ranked.groups for ranked in material.train], values)
    ranking, better, worse = (part[~is_tied] for part in (ranking, better, worse))
    described = describe(material.train)
    differences = described[better[:, 0].astype(int)] - described[worse[:, 0].astype(int)]
    voices = 1 / np.bincount(ranking)[ranking]
    folds = _folds(_numbers([_prompt(ranked) for ranked in material.train]), 0)[ranking]
    losses = []
    for penalty in PENALTIES:
        margins = np.empty(len(voices))
        for fold in range(NUM_FOLDS):
            inside = folds != fold
            weights = _ridge(differences[inside], voices[inside], penalty)
            margins[~inside] = differences[~inside] @ weights
        losses.append(voices @ log_losses(margins))
    weights = _ridge(differences, voices, PENALTIES[int(np.argmin(losses))])
    return [own.tolist() for own in _by_ranking(material.test, describe(material.test) @ weights)]


def _ridge(differences: Any, voices: Floats, penalty: float) -> Floats:
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = differences @ weights
        value = voices @ np.logaddexp(0, -margins) + penalty / 2 * weights @ weights
        return float(value), penalty * weights - differences.T @ (voices * expit(-margins))

    start = np.zeros(differences.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-7, "maxiter": 500}).x


# Combiners


def _table(material: Material, members: dict[str, Scores]) -> Iterator[Row]:
    from training.alignment.measures import log_losses, right

    names = list(members)
    combined = [_combined(material, members, seed) for seed in range(NUM_SEEDS)]
    margins = {
        name: np.stack([_margins(material, found[name]) for found in combined]) for name in (*names, *METHODS)
    }  # (S, N) nats
    losses = {name: log_losses(own).mean(0) for name, own in margins.items()}
    rights = {name: right(own).mean(0) for name, own in margins.items()}
    best = min(names, key=lambda name: losses[name].mean())
    prompts = _pair_prompts(material)
    print(f"    {material.source}: {len(prompts)} pairs on {len({*prompts.tolist()})} prompts; best member {best}")
    for name in (*names, *METHODS):
        against = {rival: _gain(losses[rival] - losses[name], prompts) for rival in ("mean", best)}
        told = "; ".join(f"against {rival} {_shown(gain)}" for rival, gain in against.items() if rival != name)
        print(f"      {name}: {100 * rights[name].mean():.1f} %, {losses[name].mean():.4f} nats; {told}")
    for rival in ("mean", best):
        ours, peer = float(losses["fusion"].mean()), float(losses[rival].mean())
        gain = _gain(losses[rival] - losses["fusion"], prompts)
        title = f"log-loss, {material.source}, fusion against {'the mean' if rival == 'mean' else 'the best member'}"
        yield Row(title, ours, peer, "nats", peer / ours, 1.0, note=f"gain {_shown(gain)}")


def _combined(material: Material, members: dict[str, Scores], seed: int) -> dict[str, Scores]:
    """What each member, at its temperature, and each combiner says of what it was not fitted to, in nats."""
    told = json.dumps([members, METHODS, PENALTY, NUM_FOLDS], sort_keys=True).encode()
    path = FOLDER / material.source / f"combined-{seed}-{hashlib.sha256(told).hexdigest()[:8]}.json"
    if not path.exists():
        _keep(path, _fit_and_combine(material, members, seed))
    return json.loads(path.read_text())


def _fit_and_combine(material: Material, members: dict[str, Scores], seed: int) -> dict[str, Scores]:
    from training.alignment.ensemble import Standardisation

    judged = _judged(material, list(members.values()))
    folds = _folds(judged.prompts, seed)
    found = {name: np.zeros(judged.groups.shape) for name in (*members, *METHODS)}
    for fold in range(NUM_FOLDS):
        fitted, held_out = judged.select(folds != fold), judged.select(folds == fold)
        standardisation = Standardisation.fit(fitted.scores.reshape(-1, judged.num_members))
        fitted, held_out = (replace(part, scores=standardisation.apply(part.scores)) for part in (fitted, held_out))
        for name, rewards in _rewards(list(members), fitted, held_out, seed).items():
            found[name][folds == fold] = rewards
    sizes = [len(ranked.responses) for ranked in material.test]
    return {
        name: [own[:size].tolist() for own, size in zip(rewards, sizes, strict=True)] for name, rewards in found.items()
    }


def _rewards(names: list[str], fitted: "JudgedScores", held_out: "JudgedScores", seed: int) -> dict[str, Floats]:
    """(B, K) nats of the held-out rankings by each member and each method."""
    from training.alignment import ensemble
    from training.alignment.bayesian_averaging import posterior_of, stacking_weights
    from training.alignment.fusion import FusionConfig, fit_fusion
    from training.alignment.member_checks import temperatures

    own = temperatures(fitted)
    found = {name: held_out.scores[..., number] / own[number] for number, name in enumerate(names)}
    rules: dict[str, Callable[[Floats], Floats]] = {
        "mean": ensemble.mean,
        "median": ensemble.median,
        "worst_case": ensemble.worst_case,
        "uncertainty_weighted": lambda scores: ensemble.uncertainty_weighted(scores, PENALTY),
    }
    for name, rule in rules.items():
        alone = replace(fitted, scores=rule(fitted.scores)[..., None])
        found[name] = rule(held_out.scores) / temperatures(alone)[0]
    found["bayesian_average"] = held_out.scores @ (posterior_of(fitted, own) / own)
    found["stacking"] = held_out.scores @ stacking_weights(fitted, seed=seed)
    network = fit_fusion(fitted, FusionConfig(seed=seed))
    features = None if held_out.features is None else held_out.features[:, None]
    found["fusion"] = network.log_odds * network.score(held_out.scores, features)
    return {name: np.nan_to_num(rewards) for name, rewards in found.items()}


def _judged(material: Material, columns: Sequence[Scores]) -> "JudgedScores":
    """The test rankings with the members' own scores; what is beyond a list's end is missing."""
    from training.alignment.ensemble import JudgedScores
    from training.alignment.prompt_features import PromptFeatures

    most = max(len(ranked.responses) for ranked in material.test)
    scores = np.full((len(material.test), most, len(columns)), np.nan)
    groups = np.full((len(material.test), most), -1, dtype=np.int64)
    for number, ranked in enumerate(material.test):
        size = len(ranked.responses)
        groups[number, :size] = ranked.groups
        scores[number, :size] = np.array([column[number] for column in columns]).T
    return JudgedScores(
        scores=scores,
        groups=groups,
        prompts=_numbers([_prompt(ranked) for ranked in material.test]),
        weights=np.ones(len(material.test)),
        features=PromptFeatures()([ranked.prompt for ranked in material.test]),
    )


# Arrays


def _margins(material: Material, scores: Scores) -> Floats:
    """(N,) of ordered pairs, the better one first."""
    from training.alignment.measures import judged_pairs

    values = [np.array(own, dtype=np.float64)[:, None] for own in scores]
    _, is_tied, better, worse = judged_pairs([ranked.groups for ranked in material.test], values)
    return (better - worse)[~is_tied, 0]


def _pair_prompts(material: Material) -> NDArray[np.int64]:
    from training.alignment.measures import judged_pairs

    values = [np.zeros((len(ranked.responses), 1)) for ranked in material.test]
    ranking, is_tied, _, _ = judged_pairs([ranked.groups for ranked in material.test], values)
    return _numbers([_prompt(ranked) for ranked in material.test])[ranking[~is_tied]]


def _gain(gains: Floats, prompts: NDArray[np.int64]) -> dict[str, Any]:
    from training.alignment.measures import Clustered

    found = Clustered(prompts).mean(gains)
    assert found is not None
    return found


def _folds(prompts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(B,) of rankings on prompts (B,)."""
    fold_of = np.random.default_rng([seed, NUM_FOLDS]).permutation(prompts.max() + 1) % NUM_FOLDS
    return fold_of[prompts]


def _numbers(keys: Sequence[str]) -> NDArray[np.int64]:
    known: dict[str, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _by_ranking(rankings: "Sequence[RankedResponses]", values: Any) -> list[NDArray[Any]]:
    return np.split(np.asarray(values), np.cumsum([len(ranked.responses) for ranked in rankings])[:-1])


def _shown(gain: dict[str, Any]) -> str:
    low, high = gain["interval"]
    return f"{gain['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
