"""How well a reward model agrees with held-out rankings: pairwise accuracy with its interval, and likelihood.

Judgments on one prompt resemble each other, and a list of K makes K (K - 1) / 2 pairs that share responses, so the
prompts, not the pairs, are what the interval counts as independent.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.special import ndtri, stdtrit

from training.alignment.config import ConfigError, EvaluateConfig
from training.alignment.losses import ranking_loss
from training.alignment.preferences import RankedResponses, read_rankings
from training.alignment.run_dir import RunDir, StopFlag

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scored:
    """The scores of one ranking's responses, and how many of these lost something to the maximum length."""

    scores: list[float]
    num_truncated: int


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
        prompt = json.dumps([[message["role"], message["content"]] for message in ranked.prompt])
        for better, worse in ranked.ordered_places():
            correct[prompt] += 1.0 if own[better] > own[worse] else 0.5 if own[better] == own[worse] else 0.0
            total[prompt] += 1
    if not total:
        return None
    counts = [(correct[prompt], total[prompt]) for prompt in total]
    num_pairs = sum(total.values())
    return PairwiseAccuracy(sum(correct.values()) / num_pairs, clustered_interval(counts), num_pairs, len(total))


def clustered_interval(counts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """95 % interval of a share, from (successes, trials) of each cluster; clusters are independent, trials are not.

    Wilson's interval at an effective number of trials: their number divided by the design effect, which is the
    variance between clusters (linearised, of a ratio) over that of independent trials, and by the squared ratio of
    Student's quantile at G - 1 degrees of freedom to the normal one. Two clusters of mean size, one all successes and
    one all failures, are added before the design effect is estimated, as Agresti and Coull add two of each to the
    trials: so few clusters, or clusters that are all alike, give a cautious interval instead of a degenerate one.
    In simulations with 5 to 100 clusters of 1 to 28 trials it covers the truth in 94 to 100 % of cases, 91 % in the
    worst (10 clusters of very unequal size whose trials nearly all agree).

    Sources: E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", Survey Methodology 24(2), 1998; A. Agresti and B. A. Coull,
    "Approximate is better than exact for interval estimation of binomial proportions", 1998.
    """
    num_clusters, num_trials = len(counts), sum(trials for _, trials in counts)
    if num_clusters < 2:
        return (0.0, 1.0)
    quantile = float(ndtri(0.5 + CONFIDENCE / 2))
    shrink = quantile / float(stdtrit(num_clusters - 1, 0.5 + CONFIDENCE / 2))
    mean_size = num_trials / num_clusters
    design_effect = _design_effect([*counts, (mean_size, mean_size), (0.0, mean_size)])
    effective = min(num_trials, num_trials / design_effect) * shrink**2
    return _wilson(sum(successes for successes, _ in counts) / num_trials, effective, quantile)


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
    losses = [
        ranking_loss(torch.tensor([own], dtype=torch.float64), torch.tensor([ranked.groups])) for ranked, own in decided
    ]
    return {
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "num_pairs": found.num_pairs,
        "num_prompts": found.num_prompts,
        "loss": torch.cat(losses).mean().item(),
    }


def evaluate(config: EvaluateConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Score the rankings of a split and compare; the scores are in scores.jsonl, a line for each ranking.

    A run that was stopped goes on after the last whole chunk of them.

    Raises:
        ConfigError: the split holds no ranking.
        Interrupted: `stop` became true.
    """
    from training.alignment.reward_model import (  # noqa: PLC0415 -- it imports this module
        CHUNK,
        RewardModel,
        join_processes,
        score_rankings,
    )

    accelerator = join_processes()
    rankings = list(read_rankings(run_dir.resolve(config.preferences), config.split, config.aspect))
    if not rankings:
        raise ConfigError(f"split: the preference set has no rankings of aspect {config.aspect} in {config.split}")
    model = RewardModel.load(
        run_dir.locate(config.reward_model), accelerator.device, config.max_length, config.max_tokens
    )
    scored = list(_read_scores(run_dir.path / "scores.jsonl"))
    scored = scored[: len(scored) // CHUNK * CHUNK]
    if accelerator.is_main_process:
        _write_scores(run_dir.path / "scores.jsonl", "w", rankings, scored)
    for chunk in score_rankings(accelerator, model, rankings[len(scored) :], stop):
        if accelerator.is_main_process:
            _write_scores(run_dir.path / "scores.jsonl", "a", rankings[len(scored) :], chunk)
        scored += chunk
        if accelerator.is_main_process:
            run_dir.log(step=len(scored), phase="score", progress=len(scored) / len(rankings))
    rewards = [[model.std * score for score in one.scores] for one in scored]
    num_truncated = sum(one.num_truncated for one in scored)
    return {**measure(rankings, rewards, config.split), "num_truncated": num_truncated}


def _write_scores(path: Path, mode: str, rankings: Sequence[RankedResponses], scored: Sequence[Scored]) -> None:
    with path.open(mode, encoding="utf-8") as file:
        for ranked, one in zip(rankings, scored, strict=False):
            file.write(json.dumps({"id": ranked.id, **dataclasses.asdict(one)}) + "\n")


def _read_scores(path: Path) -> Iterator[Scored]:
    """Whole lines; a half-written last one is left out."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            row = json.loads(line)
            yield Scored(row["scores"], row["num_truncated"])


def _design_effect(counts: Sequence[tuple[float, float]]) -> float:
    """The variance of the share over that of as many independent trials."""
    num_clusters, num_trials = len(counts), sum(trials for _, trials in counts)
    share = sum(successes for successes, _ in counts) / num_trials
    spread = math.fsum((successes - share * trials) ** 2 for successes, trials in counts)
    return num_clusters / (num_clusters - 1) * spread / (num_trials * share * (1 - share))


def _wilson(share: float, num_trials: float, quantile: float) -> tuple[float, float]:
    """E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927."""
    square = quantile**2 / num_trials

    def lower(share: float) -> float:
        half = math.sqrt(share * (1 - share) * square + square**2 / 4)
        return max(0.0, (share + square / 2 - half) / (1 + square))

    return (lower(share), 1 - lower(1 - share))
