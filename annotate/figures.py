"""What a project's judgments are worth, computed by `annotate.stats` and kept: a page reads the snapshot.

Small projects are computed in the request that asks, larger ones by a task, while pages show the figures of before.
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from django.core.cache import cache
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone
from numpy.typing import NDArray

from annotate import tasks
from annotate.columns import (
    MIRRORS,
    NO_PAIR,
    Columns,
    Floats,
    Ints,
    Judged,
    gold_rankings,
    num_giveaways,
    read_judged,
)
from annotate.models import OVERALL, Comparison, Consensus, Figures, Judgment, Lease, Mirror, Project, Revision, Verdict
from annotate.stats import agreement, annotators, bias, bradley_terry, ceiling, consensus, forecast, gold

SMALL = 2000  # judgments that are computed in the request
SEED = 20  # figures of the same judgments are the same
NUM_DAYS, FORECAST_DAYS = 60, 14
MAX_UNITS = 300_000  # pairs within comparisons that agreement and reliability look at; more are sampled
MAX_SOURCES = 40
MIN_VOTES = 30  # before an annotator is said to vote by chance
USUAL_RELIABILITY = 0.75  # of annotators of whom the model says nothing
POSTERIORS_AT_ONCE = 2_000_000
CONSENSUS_FIELDS = ["ranking", "certainty", "num_judgments"]


# Fresh or not


def refresh_if_stale(project: Project) -> Figures:
    """The project's figures; `is_stale` says that newer ones are being computed."""
    figures = Figures.objects.filter(project=project).first()
    mark = state_mark(project)
    if figures and (figures.last_judgment, figures.num_changes) == mark:
        figures.is_stale = False
        return figures
    if Judgment.objects.filter(project=project)[: SMALL + 1].count() <= SMALL:
        return refresh_figures(project)
    if cache.add(f"annotate.figures.{project.pk}", mark, 60):
        transaction.on_commit(lambda: tasks.refresh_figures.delay(project.pk), robust=True)
    figures = figures or Figures(project=project, computed_at=timezone.now())
    figures.is_stale = True
    return figures


def state_mark(project: Project) -> tuple[int, int]:
    """What figures are computed from: the newest judgment, and how often something was changed."""
    newest = Judgment.objects.filter(project=project).order_by("-pk").values_list("pk", flat=True).first()
    num_revisions = Revision.objects.filter(judgment__project=project).count()
    return newest or 0, num_revisions + Verdict.objects.filter(project=project).count()


def refresh_figures(project: Project) -> Figures:
    """Compute everything anew, and the consensus on each comparison that several people have judged."""
    last_judgment, num_changes = state_mark(project)
    values = compute(project)
    stored = {"values": values, "last_judgment": last_judgment, "num_changes": num_changes}
    figures = Figures.objects.update_or_create(project=project, defaults=stored)[0]
    cache.delete(f"annotate.figures.{project.pk}")
    figures.is_stale = False
    return figures


# The figures


def compute(project: Project) -> dict[str, Any]:
    """All figures as JSON values, and the Consensus rows on the way."""
    judged = read_judged(project)
    overall = judged.of_aspect(OVERALL)
    is_gold = judged.comparisons.is_gold[overall.comparison]
    ordinary = overall.where(~is_gold)
    votes = votes_of(overall, gold_rankings(project), judged)
    reliability, reliability_state = reliability_of(votes)
    progress = progress_of(project)
    by_aspect = {name: judged.of_aspect(name) for name in judged.aspects}
    for name, columns in by_aspect.items():
        chosen = columns.where(~judged.comparisons.is_gold[columns.comparison])
        store_consensus(project, name, chosen, judged, reliability)
    return {
        "num_judgments": len(ordinary),
        "num_imported": int(ordinary.is_import.sum()),
        "progress": progress,
        **throughput(ordinary, progress["wanted"] - progress["done"]),
        "time": times(ordinary),
        "aspects": {name: aspect_figures(columns, judged) for name, columns in by_aspect.items()},
        "bias": biases(ordinary, judged),
        "reliability": reliability_state,
        "annotators": annotator_rows(overall, is_gold, judged, reliability, gold_rankings(project)),
        "leaderboard": leaderboard_of(ordinary, judged),
        "giveaways": num_giveaways(project),
    }


def progress_of(project: Project) -> dict[str, int]:
    ordinary = Comparison.objects.filter(project=project, is_gold=False)
    sums = ordinary.aggregate(wanted=Sum("num_wanted", default=0), taken=Sum("num_taken", default=0))
    num_leases = Lease.objects.filter(project=project, comparison__is_gold=False).count()
    return {"wanted": sums["wanted"], "done": sums["taken"] - num_leases}


def throughput(judgments: Columns, remaining: int) -> dict[str, Any]:
    """Judgments made here (imported ones came all at once) per day, and per hour of the last 24."""
    now = timezone.now()
    created = judgments.created[~judgments.is_import]
    today = now.date()
    days = np.array([today.toordinal()]) - (created // 86400).astype(int) - date(1970, 1, 1).toordinal()
    num_days = min(NUM_DAYS, int(days.max(initial=0)) + 1)
    counts = np.bincount(days[days >= 0], minlength=num_days)[:num_days]
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    hours_ago = ((hour.timestamp() + 3600 - created) // 3600).astype(int)
    by_hour = np.bincount(hours_ago[(hours_ago >= 0) & (hours_ago < 24)], minlength=24)
    whole_days = counts[1 : FORECAST_DAYS + 1]  # today is not over
    found = forecast.forecast(whole_days, max(remaining, 0))
    return {
        "days": [[(today - timedelta(days=ago)).isoformat(), int(counts[ago])] for ago in reversed(range(num_days))],
        "hours": [[(hour - timedelta(hours=ago)).isoformat(), int(by_hour[ago])] for ago in reversed(range(24))],
        "forecast": _forecast(found, today) if remaining > 0 else None,
    }


def _forecast(found: forecast.Forecast | None, today: date) -> dict[str, Any] | None:
    if found is None:
        return None

    def day(days: float | None) -> str | None:
        return (today + timedelta(days=round(days))).isoformat() if days is not None and days < 3650 else None

    dates = {"expected": day(found.days), "earliest": day(found.earliest), "latest": day(found.latest)}
    return {"per_day": found.per_day, **dates}


def times(judgments: Columns) -> dict[str, Any]:
    """Quartiles in seconds, of the active time and of all of it."""
    return {"active": _quartiles(judgments.seconds), "total": _quartiles(judgments.total_seconds)}


def _quartiles(seconds: Floats) -> list[float] | None:
    known = seconds[~np.isnan(seconds)]
    return [float(value) for value in np.percentile(known, [25, 50, 75])] if len(known) else None


def aspect_figures(columns: Columns, judged: Judged) -> dict[str, Any]:
    ordinary = columns.where(~judged.comparisons.is_gold[columns.comparison])
    rng = np.random.default_rng(SEED)
    sampled = sample(ordinary, rng)
    places = np.where(sampled.places > 0, sampled.places, np.nan)
    measures = agreement.agreement(sampled.comparison, sampled.annotator, places, rng=rng)
    found = ceiling.human_ceiling(*decided_votes(sampled, judged, rng), rng=rng)
    return {
        "num": len(ordinary),
        "is_sample": len(sampled) < len(ordinary),
        "agreement": asdict(measures),
        "ceiling": asdict(found) if found else None,
    }


def sample(judgments: Columns, rng: np.random.Generator) -> Columns:
    """All of them, or those of comparisons drawn by chance where there are more pairs than MAX_UNITS."""
    width = judgments.places.shape[1]
    rows = np.unique(judgments.comparison)
    most = MAX_UNITS // (width * (width - 1) // 2)
    if len(rows) <= most:
        return judgments
    return judgments.where(np.isin(judgments.comparison, rng.choice(rows, most, replace=False)))


def decided_votes(judgments: Columns, judged: Judged, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Of each comparison the votes for the first of a pair, and all that are no tie.

    Of a list one pair is drawn: its pairs go together, and would make the interval narrower than it is.
    """
    sizes = (judged.comparisons.responses >= 0).sum(axis=1)
    first = rng.integers(0, np.maximum(sizes, 2))
    second = (first + rng.integers(1, np.maximum(sizes, 2))) % np.maximum(sizes, 2)
    first, second = np.minimum(first, second), np.maximum(first, second)
    row, of = np.arange(len(judgments)), judgments.comparison
    one, other = judgments.places[row, first[of]], judgments.places[row, second[of]]
    counts = (one > 0) & (other > 0) & (one != other)
    num = np.bincount(of[counts], minlength=len(sizes))
    return np.bincount(of[counts & (one < other)], minlength=len(sizes)), num


def biases(judgments: Columns, judged: Judged) -> dict[str, Any]:
    won_at = judged.won_at(judgments)
    pairs = won_at != NO_PAIR
    some, won = judgments.where(pairs), won_at[pairs]
    row = np.arange(len(some))
    lengths = judged.comparisons.lengths[some.comparison]
    first, second = lengths[row, some.shown_first], lengths[row, 1 - some.shown_first]
    found = {
        "position": bias.position_bias(won),
        "length": bias.length_bias(first, second, won),
        "mirrored": bias.mirrored_consistency(*_mirrored_pairs(some)),
    }
    return {name: asdict(share) if share else None for name, share in found.items()}


def _mirrored_pairs(judgments: Columns) -> tuple[Ints, Ints]:
    """Who won for an annotator who saw the pair straight and for one who saw it mirrored, of each comparison."""
    sign = judgments.signs(0, 1)
    won = np.select([sign > 0, sign < 0], [0, 1], bias.TIE)
    seen = []
    for mirror in (Mirror.STRAIGHT, Mirror.MIRRORED):
        chosen = judgments.mirror == MIRRORS[mirror]
        rows, at = np.unique(judgments.comparison[chosen], return_index=True)
        seen.append((rows, won[chosen][at]))
    (straight, straight_won), (mirrored, mirrored_won) = seen
    _, one, other = np.intersect1d(straight, mirrored, return_indices=True)
    return straight_won[one], mirrored_won[other]


# Annotators


class Votes:
    """V votes on pairs within comparisons: which pair, by whom, FIRST, SECOND or TIE; `known` right answers."""

    def __init__(self, pair: Ints, annotator: Ints, vote: Ints, known: dict[int, int]) -> None:
        self.pk, self.annotator = np.unique(annotator, return_inverse=True)
        self.pair, self.vote, self.known = pair, vote, known
        self.num_pairs = int(pair.max(initial=-1)) + 1

    def __len__(self) -> int:
        return len(self.pair)


def votes_of(judgments: Columns, known: dict[int, list[list[int]]], judged: Judged) -> Votes:
    """The votes on what several people judged, or what has a known answer."""
    judgments = sample(judgments, np.random.default_rng(SEED))
    num = np.bincount(judgments.comparison, minlength=len(judged.comparisons.pk))
    judgments = judgments.where((num >= 2)[judgments.comparison] | judged.comparisons.is_gold[judgments.comparison])
    first, second = np.triu_indices(judgments.places.shape[1], 1)
    one, other = judgments.places[:, first], judgments.places[:, second]
    row, unit = np.nonzero((one > 0) & (other > 0))
    upper, lower = one[row, unit], other[row, unit]
    vote = np.select([upper < lower, upper > lower], [bradley_terry.FIRST, bradley_terry.SECOND], bradley_terry.TIE)
    ids, pair = np.unique(judgments.comparison[row] * len(first) + unit, return_inverse=True)
    right = {}
    for number, each in enumerate(ids.tolist() if known else ()):
        comparison, unit_of_it = divmod(each, len(first))
        ranking = known.get(int(judged.comparisons.pk[comparison]))
        if ranking:
            place = {pk: at for at, group in enumerate(ranking) for pk in group}
            ends = judged.comparisons.responses[comparison, [first[unit_of_it], second[unit_of_it]]]
            here, there = (place.get(int(pk), -1) for pk in ends)
            right[number] = bradley_terry.TIE if here == there else int(here > there)
    return Votes(pair, judgments.annotator[row], vote, right)


def reliability_of(votes: Votes) -> tuple[dict[int, tuple[float, float]], dict[str, Any]]:
    """Accuracy and the probability of being better than chance by annotator, and what is to be said of the model."""
    if len(votes) == 0 or len(votes.pk) < 3:
        return {}, {"state": "too_few"}
    num_labels = 3 if (votes.vote == bradley_terry.TIE).any() or bradley_terry.TIE in votes.known.values() else 2
    try:
        found = annotators.dawid_skene(
            votes.pair,
            votes.annotator,
            votes.vote,
            num_pairs=votes.num_pairs,
            num_annotators=len(votes.pk),
            num_labels=num_labels,
            gold=votes.known,
        )
    except annotators.SignError as error:
        return {}, {"state": "refused", "num_good": error.num_good, "num_liars": error.num_liars}
    except bradley_terry.NotConvergedError:
        return {}, {"state": "not_converged"}
    each = zip(found.accuracy.tolist(), found.better_than_chance.tolist(), strict=True)
    by_annotator = dict(zip(votes.pk.tolist(), each, strict=True))
    num_votes = np.bincount(votes.annotator, minlength=len(votes.pk))
    unsure = (found.better_than_chance <= annotators.SURE) & (found.better_than_chance >= 1 - annotators.SURE)
    return by_annotator, {
        "state": "told",
        "liars": votes.pk[found.liars].tolist(),
        "by_chance": votes.pk[unsure & (num_votes >= MIN_VOTES)].tolist(),
    }


def annotator_rows(
    judgments: Columns,
    is_gold: NDArray[np.bool_],
    judged: Judged,
    reliability: dict[int, tuple[float, float]],
    known: dict[int, list[list[int]]],
) -> list[dict[str, Any]]:
    """What is told of each annotator, those with the most judgments first."""
    ordinary = judgments.where(~is_gold)
    gold_rows = judgments.where(is_gold)
    right = gold_right(gold_rows, judged, known)
    won_at = judged.won_at(ordinary)
    characters = judged.comparisons.lengths[ordinary.comparison].sum(axis=1)
    suspicions: dict[int, list[str]] = {}
    for found in bias.suspicious(ordinary.annotator, won_at, ordinary.seconds, characters):
        suspicions.setdefault(found.annotator, []).append(found.reason)
    with_others = leave_one_out(ordinary)
    everybody = np.unique(judgments.annotator)
    rows = []
    for pk in everybody.tolist():
        mine, my_gold = ordinary.annotator == pk, gold_rows.annotator == pk
        accuracy, better = reliability.get(pk, (None, None))
        share = bias.share(int(right[my_gold].sum()), int(my_gold.sum()))
        left = bias.position_bias(won_at[mine & (won_at != NO_PAIR)])
        rows.append(
            {
                "pk": pk,
                "num": int(mine.sum()),
                "seconds": _quartiles(ordinary.seconds[mine]),
                "gold": asdict(share) if share else None,
                "agreement": with_others.get(pk),
                "reliability": accuracy,
                "better_than_chance": better,
                "left": asdict(left) if left else None,
                "reasons": suspicions.get(pk, []),
            }
        )
    return sorted(rows, key=lambda row: (-int(row["num"]), int(row["pk"])))


def gold_right(judgments: Columns, judged: Judged, known: dict[int, list[list[int]]]) -> NDArray[np.bool_]:
    """(J,) whether each judgment of a known answer says all that it says."""
    return np.array([_is_right(judgments, row, judged, known) for row in range(len(judgments))], dtype=bool)


def _is_right(judgments: Columns, row: int, judged: Judged, known: dict[int, list[list[int]]]) -> bool:
    comparison = judgments.comparison[row]
    ranking = known.get(int(judged.comparisons.pk[comparison]))
    said = ranking_of(judgments.places[row] - 1, judged.comparisons.responses[comparison])
    return ranking is not None and gold.gold_score(said, ranking) == 1


def leave_one_out(judgments: Columns) -> dict[int, float]:
    """How often each annotator says of a pair what another annotator of it says."""
    names, of = np.unique(judgments.annotator, return_inverse=True)
    same, num = np.zeros(len(names)), np.zeros(len(names))
    for first, second in zip(*np.triu_indices(judgments.places.shape[1], 1), strict=True):
        is_known = (judgments.places[:, first] > 0) & (judgments.places[:, second] > 0)
        sign, comparison = judgments.signs(first, second)[is_known] + 1, judgments.comparison[is_known]
        counts = np.bincount(comparison * 3 + sign, minlength=3 * (int(comparison.max(initial=0)) + 1)).reshape(-1, 3)
        others = counts.sum(axis=1)[comparison] - 1
        share = np.divide(counts[comparison, sign] - 1, others, out=np.zeros(len(others)), where=others > 0)
        same += np.bincount(of[is_known], share, len(names))
        num += np.bincount(of[is_known], others > 0, len(names))
    return {int(name): float(same[at] / num[at]) for at, name in enumerate(names) if num[at]}


# Sources


def leaderboard_of(judgments: Columns, judged: Judged) -> dict[str, Any] | None:
    """Strengths of the sources of responses; None where no two of them met."""
    first, second = np.triu_indices(judgments.places.shape[1], 1)
    parts = []
    for left, right in zip(first, second, strict=True):
        sources = judged.comparisons.sources[judgments.comparison]
        one, other = sources[:, left], sources[:, right]
        met = (one >= 0) & (other >= 0) & (one != other)
        met &= (judgments.places[:, left] > 0) & (judgments.places[:, right] > 0)
        sign = judgments.signs(left, right)
        outcome = np.select([sign > 0, sign < 0], [bradley_terry.FIRST, bradley_terry.SECOND], bradley_terry.TIE)
        prompt = judged.comparisons.prompt[judgments.comparison]
        parts.append(np.stack([one, other, outcome, prompt])[:, met])
    one, other, outcome, prompt = np.concatenate(parts, axis=1)
    num = np.bincount(np.concatenate([one, other]), minlength=len(judged.sources))
    chosen = np.sort(np.argsort(-num, kind="stable")[:MAX_SOURCES])
    chosen = chosen[num[chosen] > 0]
    both = np.isin(one, chosen) & np.isin(other, chosen)
    one, other, outcome, prompt = one[both], other[both], outcome[both], prompt[both]
    if not (outcome != bradley_terry.TIE).any():
        return None
    try:
        board = bradley_terry.leaderboard(
            np.searchsorted(chosen, one),
            np.searchsorted(chosen, other),
            outcome,
            len(chosen),
            unit=prompt,
            generator=np.random.default_rng(SEED),
        )
    except (ValueError, bradley_terry.NotConvergedError):
        return None
    order = np.argsort(-board.strengths, kind="stable")
    return {
        "num_votes": len(one),
        "num_ties": int((outcome == bradley_terry.TIE).sum()),
        "rows": [
            {
                "name": judged.sources[chosen[at]],
                "num": int(board.num_outcomes[at].sum()),
                "strength": float(board.strengths[at]),
                "low": float(board.lower[at]),
                "high": float(board.upper[at]),
                "win_rate": float(board.win_rates[at]),
                "wins": [
                    float(board.win_matrix[at, than]) if board.num_outcomes[at, than] else None for than in order
                ],
            }
            for at in order
        ],
    }


# Consensus


def store_consensus(
    project: Project, aspect: str, judgments: Columns, judged: Judged, reliability: dict[int, tuple[float, float]]
) -> None:
    """Write what has changed of the consensus on comparisons that several people judged."""
    stored = Consensus.objects.filter(project=project, aspect=aspect)
    before = {row[0]: row[1:] for row in stored.values_list("comparison", *CONSENSUS_FIELDS).iterator()}
    decided = set(Verdict.objects.filter(project=project, aspect=aspect).values_list("comparison", flat=True))
    changed: list[Consensus] = []
    for pk, *values in consensus_rows(judgments, judged, reliability):
        if before.pop(pk, None) != tuple(values):
            row = dict(zip(CONSENSUS_FIELDS, values, strict=True))
            changed.append(
                Consensus(comparison_id=pk, project=project, aspect=aspect, is_decided=pk in decided, **row)
            )
        if len(changed) >= 500:
            _upsert(changed)
            changed = []
    _upsert(changed)
    gone = list(before)
    for start in range(0, len(gone), 500):
        stored.filter(comparison__in=gone[start : start + 500]).delete()


def _upsert(rows: list[Consensus]) -> None:
    Consensus.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["comparison", "aspect"],
        update_fields=CONSENSUS_FIELDS,
    )


def consensus_rows(
    judgments: Columns, judged: Judged, reliability: dict[int, tuple[float, float]]
) -> Iterator[tuple[int, list[list[int]], float, int]]:
    """Comparison, ranking, certainty and number of judgments, a few thousand comparisons in memory."""
    num = np.bincount(judgments.comparison, minlength=len(judged.comparisons.pk))
    several = np.flatnonzero(num >= 2)
    order = np.argsort(judgments.comparison, kind="stable")
    by_comparison = judgments.where(order)
    width = judgments.places.shape[1]
    at_once = max(POSTERIORS_AT_ONCE // (3 * width**2), 1)
    usual = (USUAL_RELIABILITY, 1.0)
    for start in range(0, len(several), at_once):
        rows = several[start : start + at_once]
        begin, end = np.searchsorted(by_comparison.comparison, [rows[0], rows[-1] + 1])
        part = by_comparison.where(np.arange(begin, end))
        part = part.where(num[part.comparison] >= 2)
        eta = np.array([reliability.get(pk, usual)[0] for pk in part.annotator.tolist()])
        found = consensus.consensus(
            np.searchsorted(rows, part.comparison),
            part.places - 1,
            np.clip(eta, 0.05, 0.95),
            num_comparisons=len(rows),
        )
        for at, row in enumerate(rows.tolist()):
            ranking = ranking_of(found.places[at], judged.comparisons.responses[row])
            yield int(judged.comparisons.pk[row]), ranking, round(float(found.certainty[at]), 6), int(num[row])


def ranking_of(places: Ints, responses: Ints) -> list[list[int]]:
    """Response ids in groups by their places, best first; those without a place are left out."""
    groups: dict[int, list[int]] = {}
    for place, pk in zip(places.tolist(), responses.tolist(), strict=True):
        if place >= 0 and pk >= 0:
            groups.setdefault(place, []).append(pk)
    return [sorted(groups[place]) for place in sorted(groups)]


def as_date(text: str | None) -> date | None:
    return datetime.fromisoformat(text).date() if text else None
