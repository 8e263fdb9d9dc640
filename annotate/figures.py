"""What a project's judgments are worth, computed once and kept: pages read a snapshot, whatever there is to count.

`refresh_figures` reads the judgments once, hands flat arrays to the pure functions of `annotate.stats`, and keeps one
JSON object and the consensus of every comparison that several people judged. Small projects are refreshed when
somebody looks, large ones by a worker, while the page shows what it has.
"""

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from statistics import quantiles
from typing import Any

import numpy as np
import redis
from django.contrib.auth.models import User
from django.db.models import Count, Max, Sum
from django.db.models.functions import Length
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerError
from numpy.typing import NDArray

from annotate import shared, tasks
from annotate.models import (
    OVERALL,
    Annotator,
    Consensus,
    Figures,
    Gold,
    Judgment,
    Mirror,
    Option,
    Project,
    Response,
    Revision,
    Verdict,
)
from annotate.stats import bias
from annotate.stats.agreement import agreement
from annotate.stats.annotators import SURE, NotConvergedError, SignError, dawid_skene
from annotate.stats.bradley_terry import TIE, leaderboard
from annotate.stats.ceiling import human_ceiling
from annotate.stats.consensus import UNRANKED, consensus
from annotate.stats.forecast import forecast
from annotate.stats.gold import gold_score

SMALL = 2000  # judgments that are counted within a request
ROWS_AT_ONCE = 2000
ASKED_SECONDS = 600  # until a worker that was asked is given up
COMPARISONS_AT_ONCE = 1000
NUM_DAYS = 60
RECENT_DAYS = 14  # that foretell the next ones
MIN_VOTES_OF_MODEL = 5
MAX_MODELS = 30
MAX_ANNOTATORS = 500
DEFAULT_RELIABILITY = 0.75
MIN_ANNOTATORS = 3  # below, nobody can be told apart
MIN_VOTES_BY_CHANCE = 30  # below, nobody is said to vote by chance
NUM_REPLICATES = 200
CONSENSUS_FIELDS = ["ranking", "certainty", "num_judgments"]
NO_PAIR = -2  # in place of who won, where there are more than two responses

Array = NDArray[Any]
log = logging.getLogger(__name__)


def refresh_if_stale(project: Project) -> Figures | None:
    """The figures as they are; a small project's are brought up to date first, a large one's by a worker."""
    figures = Figures.objects.filter(project=project).select_related("project").first()
    if figures and not is_stale(figures):
        return figures
    if Judgment.objects.filter(project=project)[:SMALL].count() < SMALL:
        return refresh_figures(project=project)
    _ask_worker(project)
    return figures


def _ask_worker(project: Project) -> None:
    """Once, until it is done or seems lost."""
    with suppress(redis.RedisError), shared.connect() as connection:  # without it somebody may count in vain
        if not connection.set(_asked(project.pk), 1, nx=True, ex=ASKED_SECONDS):
            return
    try:
        tasks.refresh_figures.delay(project.pk)
    except BrokerError:
        log.warning("The figures of project %s wait: no broker.", project.pk)


def refresh_by_worker(*, project_id: int) -> None:
    """Unless somebody else has done it meanwhile."""
    figures = Figures.objects.filter(project_id=project_id).select_related("project").first()
    try:
        if figures is None:
            refresh_figures(project=Project.objects.get(pk=project_id))
        elif is_stale(figures):
            refresh_figures(project=figures.project)
    finally:
        with suppress(redis.RedisError), shared.connect() as connection:
            connection.delete(_asked(project_id))


def _asked(project_id: int) -> str:
    return f"plumbline:figures-asked:{project_id}"


def is_stale(figures: Figures) -> bool:
    return (figures.last_judgment, figures.num_changes) != _state(figures.project)


def refresh_figures(*, project: Project) -> Figures:
    """Count everything anew."""
    last_judgment, num_changes = _state(project)
    votes = _read(project)
    by_aspect = {aspect: _Ranked(judgments) for aspect, judgments in sorted(votes.by_aspect.items())}
    overall = by_aspect.get(OVERALL, _Ranked([]))
    reliability = _reliability(project, votes)
    values = {
        **_progress(project, votes),
        "aspects": {aspect: _aspect(ranked) for aspect, ranked in by_aspect.items()},
        **_bias(overall, votes),
        "annotators": _annotators(overall, votes, reliability),
        "reliability": _verdict_on_annotators(reliability),
        "leaderboard": _leaderboard(overall, votes),
        "giveaways": _giveaways(project),
    }
    for aspect, ranked in by_aspect.items():  # a little at a time: whoever judges meanwhile need not wait
        _keep_consensus(project, aspect, ranked, reliability if aspect == OVERALL else None)
    kept = {"values": values, "last_judgment": last_judgment, "num_changes": num_changes}
    return Figures.objects.update_or_create(project=project, defaults=kept)[0]


def own_row(project: Project, user: User) -> dict[str, Any] | None:
    """What the figures say of this user's judgments; nothing before the first."""
    figures = refresh_if_stale(project)
    annotator = Annotator.objects.filter(user=user).values_list("pk", flat=True).first()
    rows = figures.values["annotators"] if figures else []
    return next((row for row in rows if row["id"] == annotator), None)


def names_of(ids: list[int]) -> dict[int, str]:
    """What a lead calls these annotators."""
    return {annotator.pk: str(annotator) for annotator in Annotator.objects.filter(pk__in=ids)}


def _state(project: Project) -> tuple[int, int]:
    """What changes with every judgment, revision, verdict and known answer; read from the ends of indexes."""
    judged = Judgment.objects.filter(project=project).order_by("-pk").values_list("pk", flat=True).first()
    revised = Revision.objects.order_by("-pk").values_list("pk", flat=True).first()
    said = Verdict.objects.filter(project=project).count() + Gold.objects.filter(project=project).count()
    return judged or 0, (revised or 0) + said


# Reading


@dataclass(slots=True)
class _Row:
    comparison: int
    prompt: int
    annotator: int
    ranking: list[list[int]]
    shown: list[int]
    mirror: str
    seconds: float | None
    total_seconds: float | None
    created_at: datetime
    source: str


@dataclass
class _Votes:
    by_aspect: dict[str, list[_Row]] = field(default_factory=dict)
    gold: dict[int, list[float]] = field(default_factory=dict)  # scores by annotator
    known: dict[int, list[list[int]]] = field(default_factory=dict)  # known answers by comparison
    gold_rows: list[_Row] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)


def _read(project: Project) -> _Votes:
    """Judgments that count, by aspect; those of comparisons with a known answer only by how right they were."""
    votes = _Votes(known=dict(Gold.objects.filter(project=project).values_list("comparison_id", "ranking")))
    judged = Judgment.objects.filter(project=project, repeat=0).order_by("pk")
    fields = ("comparison_id", "comparison__prompt_id", "annotator_id", "ranking", "shown_order", "mirror")
    times = ("seconds", "total_seconds", "created_at", "source", "aspect", "comparison__is_gold")
    for *values, aspect, is_gold in judged.values_list(*fields, *times).iterator(chunk_size=ROWS_AT_ONCE):
        row = _Row(*values)
        row.shown = row.shown or []
        if not is_gold:
            votes.by_aspect.setdefault(aspect, []).append(row)
        elif aspect == OVERALL and row.comparison in votes.known:
            votes.gold_rows.append(row)
            votes.gold.setdefault(row.annotator, []).append(gold_score(row.ranking, votes.known[row.comparison]))
    options = Option.objects.filter(comparison__project=project, comparison__num_taken__gt=0).order_by()
    told = options.annotate(length=Length("response__content")).values_list("response_id", "length", "response__model")
    for pk, length, model in told.iterator(chunk_size=ROWS_AT_ONCE):
        votes.lengths[pk], votes.models[pk] = length, model
    return votes


class _Ranked:
    """Judgments of one aspect as arrays: comparisons and annotators by number, responses by place in their list."""

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows
        self.comparison_ids, self.comparison = _numbered([row.comparison for row in rows])
        self.annotator_ids, self.annotator = _numbered([row.annotator for row in rows])
        self.responses: dict[int, list[int]] = {}
        for row in rows:
            own = row.shown or [pk for group in row.ranking for pk in group]
            self.responses.setdefault(row.comparison, sorted(own))
        most = max((len(ids) for ids in self.responses.values()), default=2)
        self.places = np.full((len(rows), most), np.nan)
        for number, row in enumerate(rows):
            place_of = {pk: place for place, group in enumerate(row.ranking) for pk in group}
            for column, pk in enumerate(self.responses[row.comparison]):
                self.places[number, column] = place_of.get(pk, np.nan)
        self.won_at = np.array([_won_at(row) for row in rows], dtype=np.int64)

    @property
    def num_annotators(self) -> int:
        return len(self.annotator_ids)

    def verdicts(self) -> tuple[Array, Array, Array]:
        """Of each judgment on each pair of responses: the pair's number, the judgment's, and 0, 1 or 2 (a tie)."""
        first, second = np.triu_indices(self.places.shape[1], 1)
        difference = self.places[:, second] - self.places[:, first]
        judgment, column = np.nonzero(~np.isnan(difference))
        said = np.select([difference > 0, difference < 0], [0, 1], 2)[judgment, column]
        pair = self.comparison[judgment] * len(first) + column
        return np.unique(pair, return_inverse=True)[1], judgment, said


def _won_at(row: _Row) -> int:
    """Where what won was shown, of two responses."""
    if len(row.shown) != 2:
        return NO_PAIR
    best = next(group for group in ([pk for pk in group if pk in row.shown] for group in row.ranking) if group)
    return bias.TIE if len(best) == 2 else row.shown.index(best[0])


def _numbered(ids: list[int]) -> tuple[Array, Array]:
    return np.unique(np.array(ids, dtype=np.int64), return_inverse=True)


# Counting


def _progress(project: Project, votes: _Votes) -> dict[str, Any]:
    rows = votes.by_aspect.get(OVERALL, [])
    ours = [row for row in rows if row.source != Judgment.Source.IMPORT]
    wanted = project.comparisons.filter(is_gold=False).aggregate(wanted=Sum("num_wanted"))["wanted"] or 0
    days = Counter(timezone.localtime(row.created_at).date() for row in ours)
    today = timezone.localdate()
    shown = [today - timedelta(days=back) for back in range(NUM_DAYS - 1, -1, -1)]
    since = max(min(days, default=today), today - timedelta(days=RECENT_DAYS))
    whole_days = [days[day] for day in shown if since <= day < today]  # today is not over
    expected = forecast(whole_days, wanted - len(rows))
    return {
        "num_judgments": len(rows),
        "num_judged": len({row.comparison for row in rows}),
        "num_wanted": wanted,
        "days": [[day.isoformat(), days[day]] for day in shown],
        "forecast": asdict(expected) if expected else None,
        "seconds": _quartiles([row.seconds for row in ours if row.seconds is not None]),
        "total_seconds": _quartiles([row.total_seconds for row in ours if row.total_seconds is not None]),
    }


def _quartiles(values: list[float]) -> dict[str, float] | None:
    if len(values) < 2:
        return None
    low, median, high = quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high, "num": len(values)}


def _aspect(ranked: _Ranked) -> dict[str, Any]:
    return {
        "num_judgments": len(ranked.rows),
        "agreement": asdict(agreement(ranked.comparison, ranked.annotator, ranked.places + 1, rng=_rng())),
        "ceiling": _ceiling(ranked),
    }


def _ceiling(ranked: _Ranked) -> dict[str, Any] | None:
    """Of pairs that several decided; in a list, of one pair drawn by chance, since its pairs go together."""
    if not ranked.rows:
        return None
    num = len(ranked.comparison_ids)
    size = np.array([len(ranked.responses[pk]) for pk in ranked.comparison_ids.tolist()])
    one, other = np.sort(_rng().random((num, ranked.places.shape[1])).argsort(axis=1)[:, :2], axis=1).T
    one, other = np.where(other < size, one, 0), np.where(other < size, other, 1)
    rows = np.arange(len(ranked.rows))
    difference = ranked.places[rows, other[ranked.comparison]] - ranked.places[rows, one[ranked.comparison]]
    decided = (difference != 0) & ~np.isnan(difference)
    votes = np.bincount(ranked.comparison[decided], minlength=num)
    first = np.bincount(ranked.comparison[decided & (difference > 0)], minlength=num)
    found = human_ceiling(first, votes, rng=_rng())
    return asdict(found) if found else None


def _bias(ranked: _Ranked, votes: _Votes) -> dict[str, Any]:
    pairs = np.flatnonzero(ranked.won_at != NO_PAIR)
    lengths = [[votes.lengths.get(pk, 0) for pk in ranked.rows[number].shown] for number in pairs]
    first, second = np.array(lengths, dtype=int).reshape(-1, 2).T
    return {
        "position": _share(bias.position_bias(ranked.won_at[pairs])),
        "length": _share(bias.length_bias(first, second, ranked.won_at[pairs])),
        "mirrored": _share(bias.mirrored_consistency(*_mirrored(ranked))),
    }


def _mirrored(ranked: _Ranked) -> tuple[Array, Array]:
    """Who won, by place in the list, for the first who saw a pair one way and the first who saw its mirror image."""
    seen: dict[int, dict[str, int]] = {}
    for row, won in zip(ranked.rows, ranked.won_at.tolist(), strict=True):
        if row.mirror != Mirror.OWN and won != NO_PAIR:
            by_list = won if won == bias.TIE else sorted(row.shown).index(row.shown[won])
            seen.setdefault(row.comparison, {}).setdefault(row.mirror, by_list)
    couples = [(two[Mirror.STRAIGHT], two[Mirror.MIRRORED]) for two in seen.values() if len(two) == 2]
    straight, mirrored = np.array(couples, dtype=int).reshape(-1, 2).T
    return straight, mirrored


def _share(found: bias.Share | None) -> dict[str, Any] | None:
    return asdict(found) if found else None


@dataclass
class _Told:
    """What the model says of annotators, by their ids."""

    accuracy: dict[int, float]
    better_than_chance: dict[int, float]
    liars: list[int]
    by_chance: list[int]


def _reliability(project: Project, votes: _Votes) -> _Told | SignError | None:
    """What each annotator's votes are worth; the refusal to say where liars may be the majority.

    Known answers take part: they settle who is right where annotators differ.
    """
    ranked = _Ranked(votes.by_aspect.get(OVERALL, []) + votes.gold_rows)
    pair, judgment, said = ranked.verdicts()
    num_pairs, who, num = int(pair.max(initial=-1)) + 1, ranked.annotator[judgment], ranked.num_annotators
    known = _known_labels(ranked, votes.known, pair, judgment)
    tells = (np.bincount(pair)[pair] >= 2) | np.isin(pair, list(known))  # of a single vote nothing can be learned
    pair, who, said = pair[tells], who[tells], said[tells]
    if len(np.unique(who)) < MIN_ANNOTATORS:
        return None
    try:
        found = dawid_skene(pair, who, said, num_pairs=num_pairs, num_annotators=num, num_labels=3, gold=known)
    except SignError as refusal:
        return refusal
    except NotConvergedError:
        log.warning("The reliability of annotators in project %s cannot be told.", project.pk)
        return None
    is_by_chance = np.abs(found.better_than_chance - 0.5) < SURE - 0.5
    is_by_chance &= np.bincount(who, minlength=num) >= MIN_VOTES_BY_CHANCE
    heard = np.unique(who)
    ids = ranked.annotator_ids[heard].tolist()
    return _Told(
        accuracy=dict(zip(ids, found.accuracy[heard].tolist(), strict=True)),
        better_than_chance=dict(zip(ids, found.better_than_chance[heard].tolist(), strict=True)),
        liars=ranked.annotator_ids[found.liars].tolist(),
        by_chance=ranked.annotator_ids[is_by_chance].tolist(),
    )


def _known_labels(ranked: _Ranked, known: dict[int, list[list[int]]], pair: Array, judgment: Array) -> dict[int, int]:
    """The right verdict on each pair of comparisons with a known answer, by the pair's number."""
    first, second = np.triu_indices(ranked.places.shape[1], 1)
    columns = np.nonzero(~np.isnan(ranked.places[:, second] - ranked.places[:, first]))[1]
    labels: dict[int, int] = {}
    for number in np.flatnonzero(np.isin(ranked.comparison_ids, list(known))[ranked.comparison[judgment]]):
        comparison = int(ranked.comparison_ids[ranked.comparison[judgment[number]]])
        place_of = {pk: place for place, group in enumerate(known[comparison]) for pk in group}
        ids = ranked.responses[comparison]
        one, other = (place_of.get(ids[ends[columns[number]]]) for ends in (first, second))
        if one is not None and other is not None:
            labels[int(pair[number])] = TIE if one == other else int(one > other)
    return labels


def _verdict_on_annotators(found: _Told | SignError | None) -> dict[str, Any]:
    if isinstance(found, SignError):
        return {"is_refused": True, "num_good": found.num_good, "num_liars": found.num_liars}
    if found is None:
        return {"is_refused": False, "is_told": False}
    return {"is_refused": False, "is_told": True, "liars": found.liars, "by_chance": found.by_chance}


def _annotators(ranked: _Ranked, votes: _Votes, found: _Told | SignError | None) -> list[dict[str, Any]]:
    """A row for each annotator, the busiest first."""
    if not ranked.rows:
        return []
    with_others, suspicions = _agreement_with_others(ranked), _suspicions(ranked, votes)
    won_at = ranked.won_at
    told = found if isinstance(found, _Told) else None
    by_annotator = np.argsort(ranked.annotator, kind="stable")
    mine_of = np.split(by_annotator, np.searchsorted(ranked.annotator[by_annotator], range(1, ranked.num_annotators)))
    rows = []
    for number, (pk, mine) in enumerate(zip(ranked.annotator_ids.tolist(), mine_of, strict=True)):
        times = [row.seconds for row in (ranked.rows[place] for place in mine) if row.seconds is not None]
        scores = votes.gold.get(pk, [])
        rows.append(
            {
                "id": pk,
                "num_judgments": len(mine),
                "seconds": float(np.median(times)) if times else None,
                "left": _share(bias.position_bias(won_at[mine][won_at[mine] != NO_PAIR])),
                "gold": _share(bias.share(sum(score == 1 for score in scores), len(scores))),
                "with_others": with_others[number],
                "accuracy": told.accuracy.get(pk) if told else None,
                "better_than_chance": told.better_than_chance.get(pk) if told else None,
                "suspicions": suspicions.get(number, []),
            }
        )
    return sorted(rows, key=lambda row: -row["num_judgments"])[:MAX_ANNOTATORS]


def _agreement_with_others(ranked: _Ranked) -> list[float | None]:
    """For each annotator how often another one who judged the same pair said the same."""
    pair, judgment, said = ranked.verdicts()
    counts = np.zeros((int(pair.max(initial=-1)) + 1, 3))
    np.add.at(counts, (pair, said), 1)
    others = counts[pair].sum(axis=1) - 1
    same = np.divide(counts[pair, said] - 1, others, out=np.zeros(len(pair)), where=others > 0)
    who = ranked.annotator[judgment]
    sums = np.bincount(who, same, minlength=ranked.num_annotators)
    num = np.bincount(who, others > 0, minlength=ranked.num_annotators)
    return [float(total / count) if count else None for total, count in zip(sums, num, strict=True)]


def _suspicions(ranked: _Ranked, votes: _Votes) -> dict[int, list[dict[str, Any]]]:
    """Why an annotator's work should be looked at, by their number; of judgments made here."""
    ours = [number for number, row in enumerate(ranked.rows) if row.source != Judgment.Source.IMPORT]
    if not ours:
        return {}
    rows = [ranked.rows[number] for number in ours]
    seconds = np.array([np.nan if row.seconds is None else row.seconds for row in rows])
    characters = np.array([sum(votes.lengths.get(pk, 0) for pk in row.shown) for row in rows])
    named: dict[int, list[dict[str, Any]]] = {}
    for found in bias.suspicious(ranked.annotator[ours], ranked.won_at[ours], seconds, characters):
        named.setdefault(found.annotator, []).append({"reason": found.reason, "value": found.value, "num": found.num})
    return named


def _leaderboard(ranked: _Ranked, votes: _Votes) -> dict[str, Any] | None:
    """Strengths of the models that the responses came from; None where fewer than two have met."""
    met: list[tuple[str, str, int, int]] = []
    for row in ranked.rows:
        place_of = {pk: place for place, group in enumerate(row.ranking) for pk in group}
        ids = [pk for pk in ranked.responses[row.comparison] if votes.models.get(pk) and pk in place_of]
        for at, one in enumerate(ids):
            for other in ids[at + 1 :]:
                if votes.models[one] != votes.models[other]:
                    won = TIE if place_of[one] == place_of[other] else int(place_of[one] > place_of[other])
                    met.append((votes.models[one], votes.models[other], won, row.prompt))
    counts = Counter(name for one, other, *_rest in met for name in (one, other))
    names = sorted(name for name, num in counts.most_common(MAX_MODELS) if num >= MIN_VOTES_OF_MODEL)
    number = {name: at for at, name in enumerate(names)}
    met = [each for each in met if each[0] in number and each[1] in number]
    if all(won == TIE for *_who, won, _unit in met):
        return None
    first, second, outcome, unit = zip(*met, strict=True)
    found = leaderboard(
        [number[name] for name in first],
        [number[name] for name in second],
        outcome,
        len(names),
        unit=unit,
        generator=_rng(),
        num_replicates=NUM_REPLICATES,
    )
    order = np.argsort(-found.strengths, kind="stable")
    return {
        "num_votes": len(met),
        "tie": found.tie,
        "rows": [
            {
                "model": names[place],
                "strength": float(found.strengths[place]),
                "low": float(found.lower[place]),
                "high": float(found.upper[place]),
                "win_rate": float(found.win_rates[place]),
                "num": counts[names[place]],
                "against": [_known(found.win_matrix[place, other]) for other in order],
                "met": [int(found.num_outcomes[place, other]) for other in order],
            }
            for place in order
        ],
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _giveaways(project: Project) -> list[dict[str, Any]]:
    """How many answers name the model that wrote them, by model."""
    named = Response.objects.filter(prompt__project=project).exclude(giveaway="")
    counted = named.values("model").annotate(num=Count("pk"), example=Max("giveaway")).order_by("-num", "model")
    return list(counted[:MAX_MODELS])


def _keep_consensus(project: Project, aspect: str, ranked: _Ranked, found: _Told | SignError | None) -> None:
    """The consensus of every comparison that several judged; a reviewer's verdict on it stays noted."""
    worth = np.full(ranked.num_annotators, DEFAULT_RELIABILITY)
    if isinstance(found, _Told):
        worth = np.clip(
            [found.accuracy.get(pk, DEFAULT_RELIABILITY) for pk in ranked.annotator_ids.tolist()], 0.02, 0.98
        )
    num = np.bincount(ranked.comparison, minlength=len(ranked.comparison_ids))
    decided = set(Verdict.objects.filter(project=project, aspect=aspect).values_list("comparison_id", flat=True))
    by_comparison = np.argsort(ranked.comparison, kind="stable")
    several = np.flatnonzero(num >= 2)
    for start in range(0, len(several), COMPARISONS_AT_ONCE):
        chunk = several[start : start + COMPARISONS_AT_ONCE]
        ends = np.searchsorted(ranked.comparison[by_comparison], [chunk[0], chunk[-1] + 1])
        mine = by_comparison[ends[0] : ends[1]]
        mine = mine[num[ranked.comparison[mine]] >= 2]
        places = np.where(np.isnan(ranked.places[mine]), UNRANKED, ranked.places[mine]).astype(np.int64)
        of = np.searchsorted(chunk, ranked.comparison[mine])
        agreed = consensus(of, places, worth[ranked.annotator[mine]], num_comparisons=len(chunk))
        rows = [
            Consensus(
                comparison_id=pk,
                project=project,
                aspect=aspect,
                ranking=_groups(ranked.responses[pk], agreed.places[number]),
                certainty=round(float(agreed.certainty[number]), 9),
                num_judgments=int(num[chunk[number]]),
                is_decided=pk in decided,
            )
            for number, pk in enumerate(ranked.comparison_ids[chunk].tolist())
        ]
        Consensus.objects.bulk_create(
            _changed(rows, aspect),
            update_conflicts=True,
            unique_fields=["comparison", "aspect"],
            update_fields=CONSENSUS_FIELDS,  # whether it is decided is said by whoever gives the verdict
        )


def _changed(rows: list[Consensus], aspect: str) -> list[Consensus]:
    """Those that are not stored just so."""
    stored = Consensus.objects.filter(comparison__in=[row.comparison_id for row in rows], aspect=aspect)
    before = {pk: values for pk, *values in stored.values_list("comparison_id", *CONSENSUS_FIELDS)}
    return [row for row in rows if before.get(row.comparison_id) != [getattr(row, name) for name in CONSENSUS_FIELDS]]


def _groups(ids: list[int], places: Array) -> list[list[int]]:
    by_place: dict[int, list[int]] = {}
    for pk, place in zip(ids, places.tolist(), strict=False):
        if place != UNRANKED:
            by_place.setdefault(place, []).append(pk)
    return [by_place[place] for place in sorted(by_place)]


def _rng() -> np.random.Generator:
    """The same judgments give the same figures."""
    return np.random.default_rng(0)
