"""What a reward model is worth on held-out rankings: agreement, calibration, length bias, and people's own agreement.

`report` measures given rewards, and is all that training, benchmarks and notebooks need; `evaluate` is the run that
scores a file first. The prompts, not the pairs, are what an interval counts as independent; see `measures`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator

from training.alignment import measures
from training.alignment.config import ConfigError, EvaluateConfig, split_names
from training.alignment.losses import ranking_loss
from training.alignment.measures import Bools, Clustered, Figure, Floats, Ints, clustered_interval
from training.alignment.preferences import ANY, STRENGTHS, RankedResponses, prompt_key, read_rankings
from training.alignment.provenance import prompt_digest, trained_on
from training.alignment.reward import Reward, Scored, as_json, load_reward, score_cache, told_by, uncached
from training.alignment.reward_model import CHUNK, RewardModel, join_processes, score_rankings
from training.alignment.run_dir import RunDir, StopFlag, write_json

SCORES, REPORT = ("scores.jsonl", "other_scores.jsonl"), "report.json"
MAX_SLICES = 50  # of one kind
NOT_TOLD = "not told"
MIN_RESPONSES = 2  # of which a ranking says something
LENGTH_BUCKETS = (0.1, 0.25, 0.5)
LENGTH_BUCKET_NAMES = ("up to 10 %", "10 to 25 %", "25 to 50 %", "over 50 %")


@dataclass(frozen=True)
class PairwiseAccuracy:
    """The share of strictly ordered pairs whose better response has the higher score."""

    accuracy: float
    interval: tuple[float, float]
    num_pairs: int
    num_prompts: int


def pairwise_accuracy(
    rankings: Sequence[RankedResponses], scores: Sequence[Sequence[float]]
) -> PairwiseAccuracy | None:
    """The accuracy of `scores`, (K,) for each ranking, with a 95 % interval; nothing where no pair is ordered.

    Equal scores count half. The interval is for other prompts of the same kind; see `clustered_interval`.

    Raises:
        ValueError: the numbers of rankings and scores differ.
    """
    correct: dict[str, float] = defaultdict(float)
    total: dict[str, int] = defaultdict(int)
    for ranked, own in zip(rankings, scores, strict=True):
        prompt = prompt_key(ranked.prompt)
        for better, worse in ranked.ordered_places():
            correct[prompt] += 1.0 if own[better] > own[worse] else 0.5 if own[better] == own[worse] else 0.0
            total[prompt] += 1
    if not total:
        return None
    counts = [(correct[prompt], total[prompt]) for prompt in total]
    num_pairs = sum(total.values())
    return PairwiseAccuracy(sum(correct.values()) / num_pairs, clustered_interval(counts), num_pairs, len(total))


def measure(
    rankings: Sequence[RankedResponses], rewards: Sequence[Sequence[float]], split: str = "given"
) -> dict[str, Any]:
    """Agreement of rewards, in nats, with rankings, as a run's result shows it.

    "loss" is the mean over rankings that order anything, in nats per choice (see `losses.ranking_loss`).
    """
    found = pairwise_accuracy(rankings, rewards)
    if found is None:
        nothing = {"accuracy": None, "interval": None, "num_pairs": 0, "num_prompts": 0, "loss": None}
        return {**nothing, "note": f"No accuracy: no ranking of the {split} split puts one response above another."}
    decided = [(ranked, own) for ranked, own in zip(rankings, rewards, strict=True) if ranked.is_decided]
    by_size: dict[int, list[tuple[Sequence[float], Sequence[int]]]] = defaultdict(list)
    for ranked, own in decided:
        by_size[len(own)].append((own, ranked.groups))
    losses = [
        ranking_loss(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups))
        for rewards, groups in (zip(*some, strict=True) for some in by_size.values())
    ]
    return {
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "num_pairs": found.num_pairs,
        "num_prompts": found.num_prompts,
        "loss": torch.cat(losses).mean().item(),
    }


@dataclass(frozen=True)
class OtherModel:
    """Another reward model, to be compared with on the same pairs."""

    name: str
    scores: Sequence[Sequence[float]]
    """(K,) for each ranking, in nats."""
    temperature: float | Sequence[float] = 1.0


def report(
    rankings: Sequence[RankedResponses],
    scores: Sequence[Sequence[float]],
    *,
    temperature: float | Sequence[float] = 1.0,
    num_truncated: int = 0,
    name: str = "first",
    other: OtherModel | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What a reward model is worth on these rankings: every figure with its 95 % interval by prompt, as report.json.

    A figure is {"value", "interval"}, or None where there is nothing to measure; an interval is None where a single
    prompt tells nothing about others. All judgments count alike, and each pair of responses counts once for each.

    - accuracy: of the pairs that an annotator ordered, the share whose better response has the higher reward; equal
      rewards count half.
    - accuracy_with_ties: of all pairs that were judged, the share that got the annotator's verdict, where the model is
      taken to call a tie if rewards differ by `tie_threshold` nats or less: the threshold that serves it best here.
      Two responses that nobody sorted (see `RankedResponses.is_unsorted`) are no judged pair, neither here nor below.
    - kendall_tau: tau-b of each ranking that orders anything, averaged; equal rewards throughout count 0.
    - top_1: how often the highest reward is in the ranking's best group; equally high ones share.
    - log_loss (nats), brier, ece: of sigmoid(margin / temperature) as the probability of an ordered pair; ece over 15
      bins of equally many pairs by the probability of the winner that the model names. It and its interval hold the
      noise of so many pairs, so they are to be held against `ece_if_calibrated`, never against 0.
    - slices: the same of a part of the judgments; length_difference is of a part of the pairs, relative to the longer
      response, in characters. What is not among the largest MAX_SLICES of a kind is the last one together.
    - length: correlation is Spearman's of reward and length among the responses to one prompt, averaged over prompts;
      partial_correlation, given the human verdict, is that of how far the better response leads in reward and in
      length, over ordered pairs: 0 where length moves rewards no further than it moves people. longer_wins is the
      accuracy of a rule that prefers the longer response.
    - ceiling: where two or more annotators judged the same responses, see `_ceiling`.
    - comparison: with `other`, on the same pairs. Gains are this model's less the other's, in accuracy and in nats of
      log-likelihood; McNemar's p takes pairs as independent, the intervals do not. Equal rewards count as not right in
      its numbers.

    Args:
        scores: (K,) for each ranking, in nats.
        temperature: what divides margins to make them log-odds: one number, or one for each ranking, as several heads
            have several; the report then tells none.
        num_truncated: responses that lost something to the maximum length; only told on.
        seed: of the bootstrap.

    Raises:
        ValueError: there are not as many scores as responses, or one is not a finite number.
    """
    temperatures = np.broadcast_to(np.asarray(temperature, dtype=np.float64), len(rankings))
    pairs = _Pairs.of(rankings, scores, other.scores if other else scores)
    prompts = measures.numbered(prompt_key(ranked.prompt) for ranked in rankings)
    ordered = pairs.where(~pairs.is_tied)
    by_prompt = Clustered(prompts[ordered.ranking], seed)
    by_ranking = _Rankings(rankings, scores, pairs, prompts, seed)
    is_right, threshold = measures.right_with_ties(pairs.margins, pairs.is_tied)
    log_odds = ordered.margins / temperatures[ordered.ranking]
    return {
        "figures": {
            "accuracy": by_prompt.share(measures.right(ordered.margins)),
            "accuracy_with_ties": Clustered(prompts[pairs.ranking], seed).share(is_right),
            "kendall_tau": by_ranking.kendall_tau(),
            "top_1": by_ranking.top_1(),
            "log_loss": by_prompt.mean(measures.log_losses(log_odds)),
            "brier": by_prompt.mean(measures.brier_scores(log_odds), (0, 1)),
            "ece": measures.calibration_error(by_prompt, log_odds),
        },
        "num_rankings": len(rankings),
        "num_pairs": len(ordered.ranking),
        "num_prompts": by_prompt.num_clusters,
        "num_tied_pairs": int(pairs.is_tied.sum()),
        "num_truncated": num_truncated,
        "temperature": temperature if isinstance(temperature, float | int) else _only(temperature),
        "tie_threshold": threshold,
        "ece_if_calibrated": measures.error_if_calibrated(log_odds),
        "reliability": measures.reliability(log_odds, prompts[ordered.ranking]),
        "slices": _slices(by_ranking, ordered, log_odds),
        "length": {"correlation": by_ranking.length_correlation(), **_length(ordered, prompts, seed)},
        "ceiling": _ceiling(rankings, ordered, prompts, seed),
        "comparison": _compare(ordered, log_odds, by_prompt, name, other) if other else None,
    }


@dataclass(frozen=True)
class _Pairs:
    """Judged pairs of responses, the better one first."""

    ranking: Ints
    is_tied: Bools
    better: Floats
    """(N, 4): reward, length in characters, the other model's reward, whether nobody sorted it."""
    worse: Floats

    @classmethod
    def of(
        cls,
        rankings: Sequence[RankedResponses],
        scores: Sequence[Sequence[float]],
        others: Sequence[Sequence[float]],
    ) -> Self:
        values = [
            np.array([own, [len(text) for text in ranked.responses], other, ranked.is_unsorted], dtype=np.float64).T
            for ranked, own, other in zip(rankings, scores, others, strict=True)
        ]
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError("a score is not a finite number")
        ranking, is_tied, better, worse = measures.judged_pairs([ranked.groups for ranked in rankings], values)
        pairs = cls(ranking, is_tied, better.reshape(-1, 4), worse.reshape(-1, 4))
        return pairs.where(~is_tied | (pairs.better[:, 3] == 0))

    def where(self, chosen: Bools) -> Self:
        return type(self)(self.ranking[chosen], self.is_tied[chosen], self.better[chosen], self.worse[chosen])

    @property
    def margins(self) -> Floats:
        return self.better[:, 0] - self.worse[:, 0]

    @property
    def lengths(self) -> Floats:
        """By how many characters the better response is longer."""
        return self.better[:, 1] - self.worse[:, 1]

    @property
    def other_margins(self) -> Floats:
        return self.better[:, 2] - self.worse[:, 2]

    @property
    def length_difference(self) -> Floats:
        """As a share of the longer response's length."""
        return np.abs(self.lengths) / np.maximum(1, np.maximum(self.better[:, 1], self.worse[:, 1]))


@dataclass(frozen=True)
class _Rankings:
    """Figures of whole rankings."""

    rankings: Sequence[RankedResponses]
    scores: Sequence[Sequence[float]]
    pairs: _Pairs
    prompts: Ints
    seed: int

    def kendall_tau(self, chosen: Bools | None = None) -> Figure:
        """Of all rankings, or of the chosen, (N,)."""
        known = np.isfinite(self._taus) if chosen is None else np.isfinite(self._taus) & chosen
        return Clustered(self.prompts[known], self.seed).mean(self._taus[known], (-1, 1))

    def top_1(self, chosen: Bools | None = None) -> Figure:
        """Of all rankings, or of the chosen, (N,)."""
        known = np.isfinite(self._bests) if chosen is None else np.isfinite(self._bests) & chosen
        return Clustered(self.prompts[known], self.seed).share(self._bests[known])

    @cached_property
    def _taus(self) -> Floats:
        pairs = self.pairs
        return measures.kendall_tau_b(pairs.ranking, pairs.is_tied, pairs.margins, len(self.rankings))

    @cached_property
    def _bests(self) -> Floats:
        return measures.top_1([ranked.groups for ranked in self.rankings], [np.array(own) for own in self.scores])

    def length_correlation(self) -> Figure:
        """Each response counts once for each aspect, however many annotators judged it."""
        rewards: dict[tuple[int, str], dict[str, float]] = defaultdict(dict)
        for prompt, ranked, own in zip(self.prompts.tolist(), self.rankings, self.scores, strict=True):
            rewards[prompt, ranked.aspect].update(zip(ranked.responses, own, strict=True))
        lengths = [np.array([len(text) for text in own]) for own in rewards.values()]
        found = measures.spearman([np.array(list(own.values())) for own in rewards.values()], lengths)
        known = np.isfinite(found)
        prompts = np.array([prompt for prompt, _ in rewards], dtype=np.int64)
        return Clustered(prompts[known], self.seed).mean(found[known], (-1, 1))


def _length(ordered: _Pairs, prompts: Ints, seed: int) -> dict[str, Figure]:
    def accuracy(chosen: Bools) -> Figure:
        own = ordered.where(chosen)
        return Clustered(prompts[own.ranking], seed).share(measures.right(own.margins))

    by_prompt = Clustered(prompts[ordered.ranking], seed)
    return {
        "partial_correlation": measures.rank_correlation(by_prompt, ordered.margins, ordered.lengths),
        "accuracy_shorter_preferred": accuracy(ordered.lengths < 0),
        "accuracy_longer_preferred": accuracy(ordered.lengths > 0),
        "longer_wins": by_prompt.share(measures.right(ordered.lengths)),
    }


def _slices(by_ranking: _Rankings, ordered: _Pairs, log_odds: Floats) -> dict[str, list[dict[str, Any]]]:
    rankings = by_ranking.rankings

    def by(names: Sequence[str], names_in_order: Sequence[str] = ()) -> list[dict[str, Any]]:
        """By the names of rankings; the largest first where the names have no order."""
        told = names_in_order or sorted(set(names))
        code = {name: number for number, name in enumerate(told)}
        codes = np.array([code[name] for name in names], dtype=np.int64)
        sizes = np.bincount(codes[ordered.ranking], minlength=len(told))
        numbers = np.flatnonzero(sizes)
        if not names_in_order:
            numbers = numbers[np.argsort(-sizes[numbers], kind="stable")]
        found = [whole(told[number], codes == number) for number in numbers[:MAX_SLICES]]
        if others := numbers[MAX_SLICES:].tolist():
            found.append(whole(f"{len(others)} others", np.isin(codes, others)))
        return found

    def whole(name: str, chosen: Bools) -> dict[str, Any]:
        """Of the chosen rankings."""
        figures = {"kendall_tau": by_ranking.kendall_tau(chosen), "top_1": by_ranking.top_1(chosen)}
        return part(name, chosen[ordered.ranking]) | figures

    def part(name: str, chosen: Bools) -> dict[str, Any]:
        """Of the chosen pairs."""
        own = log_odds[chosen]
        by_prompt = Clustered(by_ranking.prompts[ordered.ranking[chosen]], by_ranking.seed)
        return {
            "name": name,
            "num_pairs": len(own),
            "num_prompts": by_prompt.num_clusters,
            "accuracy": by_prompt.share(measures.right(own)),
            "log_loss": by_prompt.mean(measures.log_losses(own)),
            "brier": by_prompt.mean(measures.brier_scores(own), (0, 1)),
            "ece": measures.calibration_error(by_prompt, own),
            "ece_if_calibrated": measures.error_if_calibrated(own),
        }

    sizes = [len(ranked.responses) for ranked in rankings]
    buckets = np.searchsorted(LENGTH_BUCKETS, ordered.length_difference, side="left")
    return {
        "aspect": by([ranked.aspect for ranked in rankings]),
        "source": by([ranked.source or NOT_TOLD for ranked in rankings]),
        "annotator": by([ranked.annotator or NOT_TOLD for ranked in rankings]),
        "num_responses": by([str(size) for size in sizes], [str(size) for size in sorted(set(sizes))]),
        "strength": by(
            [STRENGTHS.get(ranked.strength or 0, NOT_TOLD) for ranked in rankings], [*STRENGTHS.values(), NOT_TOLD]
        ),
        "length_difference": [
            part(name, buckets == number)
            for number, name in enumerate(LENGTH_BUCKET_NAMES)
            if (buckets == number).any()
        ],
    }


def _ceiling(rankings: Sequence[RankedResponses], ordered: _Pairs, prompts: Ints, seed: int) -> dict[str, Any] | None:
    """How well people agree on items that two or more of them judged: what a reward model can be expected to reach.

    An item is a prompt with its responses, in whatever order, and an aspect. Of an annotator's judgments on one the
    last counts; annotators who are not told are taken for different ones.

    - leave_one_out: an annotator's verdict against the majority of the others', over ordered pairs; half where these
      are split. It is an accuracy as a reward model's is, and `accuracy` is that of this one on the same items.
    - agreement: how often two verdicts on a pair agree, of those that order it; each verdict has one voice.
    - low, high: what agreement, wherever it is in its interval, says about the accuracy of the best possible model;
      see `measures.ceiling_bounds`.
    """
    judgments: dict[tuple[int, str, tuple[str, ...]], dict[str | int, int]] = defaultdict(dict)
    for number, ranked in enumerate(rankings):
        key = (int(prompts[number]), ranked.aspect, tuple(sorted(ranked.responses)))
        judgments[key][number if ranked.annotator is None else ranked.annotator] = number
    items = [list(numbers.values()) for numbers in judgments.values() if len(numbers) > 1]
    if not items:
        return None
    kept = [number for numbers in items for number in numbers]
    item_of = np.repeat(np.arange(len(items)), [len(numbers) for numbers in items])
    groups = [_by_text(rankings[number], rankings[number].groups) for number in kept]
    is_unsorted = [_by_text(rankings[number], rankings[number].is_unsorted) for number in kept]
    item, num_first, num_second, num_tied = measures.count_verdicts(groups, item_of, is_unsorted)
    prompt = prompts[[numbers[0] for numbers in items]][item]
    num_decided = num_first + num_second
    others_judged = (num_decided > 0) & (num_decided + num_tied > 1)
    agreed = num_decided > 1
    if not agreed.any():
        return None
    found = Clustered(prompt[agreed], seed).share(
        (measures.agreement(num_first, num_second) * num_decided)[agreed], num_decided[agreed]
    )
    likely = found["interval"] if found else (0.5, 1.0)
    low, high = measures.ceiling_bounds(likely[0])[0], measures.ceiling_bounds(likely[1])[1]
    same = ordered.where(np.isin(ordered.ranking, kept))
    return {
        "leave_one_out": Clustered(prompt[others_judged], seed).share(
            measures.leave_one_out(num_first, num_second)[others_judged], num_decided[others_judged]
        ),
        "agreement": found,
        "low": low,
        "high": high,
        "num_items": len(items),
        "accuracy": Clustered(prompts[same.ranking], seed).share(measures.right(same.margins)),
    }


def _compare(
    ordered: _Pairs, log_odds: Floats, by_prompt: Clustered, name: str, other: OtherModel
) -> dict[str, Any] | None:
    if not len(ordered.ranking):
        return None
    first, second = ordered.margins, ordered.other_margins
    is_first, is_second = first > 0, second > 0
    num_only_first, num_only_second = int((is_first & ~is_second).sum()), int((is_second & ~is_first).sum())
    temperatures = np.asarray(other.temperature, dtype=np.float64)
    temperatures = temperatures[ordered.ranking] if temperatures.ndim else temperatures
    gains = measures.log_losses(second / temperatures) - measures.log_losses(log_odds)
    return {
        "name_first": name,
        "name_second": other.name,
        "accuracy_first": by_prompt.share(measures.right(first)),
        "accuracy_second": by_prompt.share(measures.right(second)),
        "accuracy_gain": by_prompt.mean(measures.right(first) - measures.right(second), (-1, 1)),
        "log_loss_gain": by_prompt.mean(gains),
        "mcnemar_p": measures.mcnemar(num_only_first, num_only_second),
        "num_both": int((is_first & is_second).sum()),
        "num_only_first": num_only_first,
        "num_only_second": num_only_second,
        "num_neither": int((~is_first & ~is_second).sum()),
    }


def _only(values: Sequence[float]) -> float | None:
    """The one value that all are, if so."""
    return float(values[0]) if len(set(values)) == 1 else None


def _by_text(ranked: RankedResponses, values: Sequence[int]) -> list[int]:
    """What is known of each response, in the order of their texts."""
    return [values[place] for place in sorted(range(len(values)), key=ranked.responses.__getitem__)]


def evaluate(config: EvaluateConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Score the rankings of a split and compare; report.json holds what `report` finds, the result its headlines.

    Both tell besides "num_missing", responses that could not be scored and are left out, and "num_learned_prompts",
    those from whose judgments one of the rewards has learned: where there are some, nothing is shown of other prompts.

    The scores are in scores.jsonl, a line for each ranking, and those of another reward model in other_scores.jsonl.
    A run that was stopped goes on after the last whole chunk of them. A file that names no split, as RewardBench's, is
    taken whole.

    Raises:
        ConfigError: the split holds no ranking.
        Interrupted: `stop` became true.
    """
    accelerator = join_processes()
    rankings = _read_chosen(config, run_dir)
    names = [config.reward_model, *filter(None, [config.other_reward_model])]
    judged = [
        _judge(config, run_dir, accelerator, rankings, stop, names=names, number=number) for number in range(len(names))
    ]
    numbers, rankings, (first, *others), num_missing = leave_out_missing(rankings, [one.nats for one in judged])
    temperatures = [[one.temperatures[number] for number in numbers] for one in judged]
    found = report(
        rankings,
        first,
        temperature=temperatures[0],
        num_truncated=judged[0].num_truncated,
        name=config.reward_model,
        other=OtherModel(names[1], others[0], temperatures[1]) if others else None,
        seed=config.seed,
    )
    learned = set[str]().union(*(trained_on(Path(run_dir.locate(name))) for name in names))
    told = {
        "num_missing": num_missing,
        "num_learned_prompts": len(learned & {prompt_digest(ranked) for ranked in rankings}),
    }
    if accelerator.is_main_process:
        write_json(run_dir.path / REPORT, {**found, **told})
    return {**measure(rankings, first, config.split), **headlines(found), **told, **judged[0].told}


def leave_out_missing(
    rankings: Sequence[RankedResponses], scores: Sequence[Sequence[Sequence[float]]]
) -> tuple[list[int], list[RankedResponses], list[list[list[float]]], int]:
    """Rankings of those responses that every reward could score: their numbers, they, scores, and how many are missing.

    A ranking of which fewer than two are left is left out as a whole.

    Args:
        scores: of each reward, (K,) for each ranking; nan where a response could not be scored.
    """
    numbers: list[int] = []
    kept: list[RankedResponses] = []
    found: list[list[list[float]]] = [[] for _ in scores]
    num_missing = 0
    for number, ranked in enumerate(rankings):
        own = np.array([one[number] for one in scores], dtype=np.float64)
        places = np.flatnonzero(np.isfinite(own).all(axis=0)).tolist()
        num_missing += len(ranked.responses) - len(places)
        if len(places) < MIN_RESPONSES:
            continue
        numbers.append(number)
        kept.append(ranked if len(places) == len(ranked.responses) else ranked.only(places))
        for values, mine in zip(found, own[:, places].tolist(), strict=True):
            values.append(mine)
    return numbers, kept, found, num_missing


def headlines(found: dict[str, Any]) -> dict[str, Any]:
    """What of a report belongs into a run's result: plain numbers, and intervals as lists of two."""
    values = {name: figure["value"] if figure else None for name, figure in found["figures"].items()}
    lines = {
        **values,
        "interval": found["figures"]["accuracy"] and found["figures"]["accuracy"]["interval"],
        **{name: found[name] for name in ("num_tied_pairs", "num_truncated", "temperature", "ece_if_calibrated")},
        "longer_wins": found["length"]["longer_wins"] and found["length"]["longer_wins"]["value"],
    }
    if ceiling := found["ceiling"]:
        lines |= {"leave_one_out": ceiling["leave_one_out"]["value"], "ceiling": [ceiling["low"], ceiling["high"]]}
    if comparison := found["comparison"]:
        gain = comparison["accuracy_gain"]
        lines |= {
            "accuracy_gain": gain["value"],
            "accuracy_gain_interval": gain["interval"],
            "mcnemar_p": comparison["mcnemar_p"],
        }
    return lines


@dataclass(frozen=True)
class _Judged:
    """What a reward model makes of rankings."""

    nats: list[list[float]]
    temperatures: list[float]
    num_truncated: int
    told: dict[str, Any]


def _read_chosen(config: EvaluateConfig, run_dir: RunDir) -> list[RankedResponses]:
    aspects = split_names(config.aspect)
    told = list(read_rankings(run_dir.resolve(config.preferences)))
    has_splits = any(ranked.split for ranked in told)
    rankings = [
        ranked
        for ranked in told
        if (ranked.aspect in aspects or ANY in aspects) and (config.split in {ANY, ranked.split} or not has_splits)
    ]
    if not rankings:
        raise ConfigError(f"split: the preference set has no rankings of aspect {config.aspect} in {config.split}")
    return rankings


def _judge(
    config: EvaluateConfig,
    run_dir: RunDir,
    accelerator: Accelerator,
    rankings: Sequence[RankedResponses],
    stop: StopFlag,
    *,
    names: Sequence[str],
    number: int,
) -> _Judged:
    """What the model of that number says, kept in its file of scores chunk by chunk."""
    reward = load_reward(
        run_dir.locate(names[number]),
        accelerator.device,
        max_length=config.max_length,
        max_tokens=config.max_tokens,
        cache=score_cache(),
    )
    path = run_dir.path / SCORES[number]
    scored = list(_read_scores(path))
    if len(scored) != len(rankings):
        scored = scored[: len(scored) // CHUNK * CHUNK]
    accelerator.wait_for_everyone()  # all have read before one writes
    if accelerator.is_main_process:
        _write_scores(path, "w", rankings, scored)
    for chunk in score_rankings(accelerator, reward, rankings[len(scored) :], stop):
        if accelerator.is_main_process:
            _write_scores(path, "a", rankings[len(scored) :], chunk)
        scored += chunk
        if accelerator.is_main_process:
            progress = (number + len(scored) / len(rankings)) / len(names)
            run_dir.log(step=number * len(rankings) + len(scored), phase="score", progress=progress)
    scales = [scale(reward, ranked.aspect) for ranked in rankings]
    return _Judged(
        nats=[[nats * score for score in one.scores] for (nats, _), one in zip(scales, scored, strict=True)],
        temperatures=[temperature for _, temperature in scales],
        num_truncated=sum(one.num_truncated for one in scored),
        told=told_by(reward),
    )


def scale(reward: Reward, aspect: str | None = None) -> tuple[float, float]:
    """Nats in a unit of score, and the temperature that turns nats into log-odds."""
    model = uncached(reward)
    if isinstance(model, RewardModel):
        head = model.head_of(aspect)
        return model.stds[head], model.temperatures[head]
    return reward.log_odds(aspect), 1.0


def _write_scores(path: Path, mode: str, rankings: Sequence[RankedResponses], scored: Sequence[Scored]) -> None:
    with path.open(mode, encoding="utf-8") as file:
        for ranked, one in zip(rankings, scored, strict=False):
            line = {"id": ranked.id, "scores": as_json(one.scores), "num_truncated": one.num_truncated}
            told = line if one.spread is None else {**line, "spread": as_json(one.spread)}
            file.write(json.dumps(told) + "\n")


def _read_scores(path: Path) -> Iterator[Scored]:
    """Whole lines; a half-written last one is left out."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            row = json.loads(line)
            scores = [math.nan if score is None else score for score in row["scores"]]
            yield Scored(scores, row["num_truncated"], row.get("spread"))
