"""Where a policy or a reward comes from, and what was made from it: policy, run, reward, preference set, judgments.

Runs name each other in their configurations, by the folders in which models are; a preference set holds what its
project's annotators had judged when it was frozen; a contest is votes on a policy's answers, which every set frozen
after them holds. Of all runs, contests and sets that a user sees it is read at once how they hang together, and of
those that the tree reaches what it says of them: so the database is asked as often for a long history as for a short
one, and looks up no judgments of others. What stands in the tree already is only named when it comes again.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

from django.db.models import Count, Min, OuterRef, Q, QuerySet, Subquery
from django.utils.dateformat import format as date_format
from django.utils.timezone import localtime

from annotate.models import Annotator, Judgment
from training import queries, references
from training.alignment.config import split_names
from training.models import Contest, PreferenceSet, TrainingRun

MAX_RUNS = 5000  # of the newest: what is older is not looked for
MAX_MODELS = 200  # named by one field
MAX_PROJECTS = 20  # of which it is told who has judged in them
MAX_NAMES = 20
MAX_DEPTH = 12
NAME_LENGTH = 200
RUN_PAGE, SET_PAGE, CONTEST_PAGE = (
    f"admin:training_{model}_change" for model in ("trainingrun", "preferenceset", "contest")
)
ENDS = {"first": "pk", "last": "-pk"}
ROLES = {
    **{"policy": "Began as", "reference_policy": "Held to", "backbone": "Began as", "policies": "Policy"},
    **{"reward_model": "Reward", "reward_models": "Reward", "members": "Combines", "models": "Averages"},
    **{"held_out_reward_model": "Held-out reward", "other_reward_model": "Measured against"},
    **{"incumbent": "Measured against"},
}  # of what a configuration names
USES = {
    **{"policy": "Went on from it", "reference_policy": "Held to it", "backbone": "Went on from it"},
    **{"policies": "Compared it", "reward_model": "Used it as reward", "reward_models": "Used it as reward"},
    **{"members": "Combined it", "models": "Averaged it", "held_out_reward_model": "Graded by it"},
    **{"other_reward_model": "Was measured against it", "incumbent": "Was measured against it"},
}  # the same, seen from what is named


@dataclass(frozen=True)
class Node:
    """Something in a lineage: what it is to what stands above it, where its page is, and what stands below it."""

    role: str
    text: str
    facts: str = ""
    url: str = ""
    pk: int = 0
    parts: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Lineage:
    """Back to the annotators, and forth to what came of it."""

    sources: Node
    uses: list[Node]


def lineage(run: TrainingRun, user: Any) -> Lineage:
    """The lineage of a run, as far as the user sees it."""
    graph = _Graph(run, user)
    return Lineage(_Sources(graph).of_run(run.pk, run.get_kind_display()), _Uses(graph).of_run(run.pk))


class _Run(NamedTuple):
    pk: int
    name: str
    kind: str
    status: str
    preference_set: int | None
    named: list[tuple[str, str]]
    """Field and path of each model that its configuration names."""

    @property
    def text(self) -> str:
        return f"{self.name} (run {self.pk})"

    @property
    def kind_in_words(self) -> str:
        return str(TrainingRun.Kind(self.kind).label)

    @property
    def facts(self) -> str:
        return self.kind_in_words if self.status == "succeeded" else f"{self.kind_in_words}, {self.status}"


class _People(NamedTuple):
    """One annotator's judgments in a project."""

    name: str
    kind: str
    first: datetime
    last: datetime


class _Links:
    """How all runs, contests and sets that a user sees hang together, by their numbers."""

    def __init__(self, run: TrainingRun, user: Any) -> None:
        visible = references.runs_of(user).filter(parent=None).order_by("-pk")
        own = TrainingRun.objects.filter(pk=run.pk)
        self.runs = {one.pk: one for one in [*_runs(visible), *_runs(own)]}
        paths = {path for one in self.runs.values() for _, path in one.named}
        numbers = ((path, queries.saved_by(path)) for path in paths)
        self.saved = {path: number for path, number in numbers if number in self.runs}
        self.users = self._users()
        self.contests = _by(Contest.objects.for_user(user).values_list("run", "project"))  # their projects
        self.sets = _by(PreferenceSet.objects.for_user(user).values_list("project", "pk"))
        self.learners = _by((one.preference_set, one.pk) for one in self.runs.values() if one.preference_set)

    def _users(self) -> dict[int, list[tuple[str, int]]]:
        """By a run's number, which runs name its model, and in which field; the oldest first."""
        found: dict[int, list[tuple[str, int]]] = {}
        for pk in sorted(self.runs):
            for name, path in self.runs[pk].named:
                if self.saved.get(path, pk) != pk:
                    found.setdefault(self.saved[path], []).append((name, pk))
        return found

    def sources(self, pk: int) -> set[int]:
        """A run and those that it stands on."""
        return _reached(pk, lambda run: [self.saved[path] for _, path in self.runs[run].named if path in self.saved])

    def uses(self, pk: int) -> set[int]:
        """A run and those that may have come of it: votes on its answers are in none of the sets frozen before."""
        return _reached(pk, self._uses)

    def _uses(self, pk: int) -> list[int]:
        learned = (self.learners.get(one, []) for one in self.sets_after(self.contests.get(pk, [])))
        return [*(user for _, user in self.users.get(pk, [])), *chain.from_iterable(learned)]

    def sets_after(self, projects: Iterable[int]) -> set[int]:
        """Those that may hold votes of contests in projects."""
        return {one for project in set(projects) for one in self.sets.get(project, [])}


class _Graph:
    """What a tree says of the runs that it reaches, and of what they and the sets stand on."""

    def __init__(self, run: TrainingRun, user: Any) -> None:
        self.links = _Links(run, user)
        self.runs, self.saved, self.users = self.links.runs, self.links.saved, self.links.users
        sources, uses = self.links.sources(run.pk), self.links.uses(run.pk)
        paths = sorted({path for pk in sources for _, path in self.runs[pk].named})
        self.members = queries.registered_members(paths, user, run.project_id)
        self.contests = _by((one.run_id, one) for one in _contests(user, uses))
        asked = chain.from_iterable(self.links.contests.get(pk, []) for pk in uses)
        learned_from = {own for pk in sources if (own := self.runs[pk].preference_set)}
        sets = PreferenceSet.objects.for_user(user).filter(pk__in=learned_from | self.links.sets_after(asked))
        self.sets = {one.pk: one for one in sets.select_related("project").order_by("pk")}
        self.people = _people({own.project_id for pk, own in self.sets.items() if pk in learned_from})
        self.may_name = user.has_perm("annotate.view_annotator")


def _runs(runs: QuerySet[TrainingRun]) -> list[_Run]:
    """The first of them; of configurations only what names models."""
    fields = ("pk", "name", "kind", "status", "preference_set")
    rows = runs.values_list(*fields, *(f"config__{name}" for name in ROLES))[:MAX_RUNS]
    return [
        _Run(pk, name, kind, status, preference_set, _named(models))
        for pk, name, kind, status, preference_set, *models in rows
    ]


def _named(values: Sequence[Any]) -> list[tuple[str, str]]:
    found = zip(ROLES, values, strict=True)
    return [(name, path) for name, value in found for path in dict.fromkeys(split_names(str(value or ""))[:MAX_MODELS])]


def _reached(start: int, further: Callable[[int], Iterable[int]]) -> set[int]:
    found, left = {start}, [start]
    while left:
        new = set(further(left.pop())) - found
        found |= new
        left += new
    return found


def _contests(user: Any, runs: Collection[int]) -> QuerySet[Contest]:
    votes = "pairs__comparison__judgments"
    counted = {"num_votes": Count(f"{votes}__comparison", distinct=True), "first_vote": Min(f"{votes}__created_at")}
    own = Contest.objects.for_user(user).filter(run__in=runs).select_related("project")
    return own.annotate(**counted).order_by("pk")


def _people(projects: Collection[int]) -> dict[int, list[_People]]:
    """By project, who has judged in it, when first and when last: looked up by annotator, not counted."""
    asked = sorted(projects)[:MAX_PROJECTS]
    ends = {f"{end}_{project}": _end(project, order) for project in asked for end, order in ENDS.items()}
    annotators = Annotator.objects.filter(Q(project=None) | Q(project__in=asked)).annotate(**ends).order_by("pk")
    rows = list(annotators.values("name", "kind", *ends)) if asked else []
    return {
        project: [
            _People(row["name"], row["kind"], row[f"first_{project}"], row[f"last_{project}"])
            for row in rows
            if row[f"first_{project}"]
        ]
        for project in asked
    }


def _end(project: int, order: str) -> Subquery:
    judged = Judgment.objects.filter(project=project, annotator=OuterRef("pk"), comparison__is_gold=False)
    return Subquery(judged.order_by(order).values("created_at")[:1])


def _by(rows: Iterable[tuple[int, Any]]) -> dict[int, list[Any]]:
    """By the first of each two."""
    found: dict[int, list[Any]] = {}
    for key, one in rows:
        found.setdefault(key, []).append(one)
    return found


class _Tree:
    """What has been told already is only named when it comes again."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self.told: set[tuple[str, int]] = set()
        self.depth = 0

    def node(self, told: Node, parts: Callable[[], list[Node]]) -> Node:
        """With its parts, the first time that its page is named."""
        if (told.url, told.pk) in self.told or self.depth >= MAX_DEPTH:
            return replace(told, facts="see above")
        self.told.add((told.url, told.pk))
        self.depth += 1
        below = parts()
        self.depth -= 1
        return replace(told, parts=below)


class _Sources(_Tree):
    def of_run(self, pk: int, role: str) -> Node:
        run = self.graph.runs[pk]
        facts = run.facts if role != run.kind_in_words else "" if run.status == "succeeded" else run.status
        return self.node(Node(role, run.text, facts, RUN_PAGE, pk), lambda: self._of(run))

    def _of(self, run: _Run) -> list[Node]:
        named = [self._model(ROLES[name], path) for name, path in run.named]
        preference_set = self.graph.sets.get(run.preference_set or 0)
        return [*named, *([self._set(preference_set)] if preference_set else [])]

    def _model(self, role: str, path: str) -> Node:
        if path in self.graph.saved:
            return self.of_run(self.graph.saved[path], role)
        if path == references.NEW_TINY:
            return Node(role, "a tiny model", "made new, with weights drawn by chance")
        if path in self.graph.members:
            return Node(role, self.graph.members[path], "registered reward")
        return Node(role, "/".join(path.rstrip("/").split("/")[-2:])[:NAME_LENGTH], "made elsewhere")

    def _set(self, one: PreferenceSet) -> Node:
        facts = f"frozen {_day(one.created_at)}"
        return self.node(Node("Preference set", str(one), facts, SET_PAGE, one.pk), lambda: [self._judgments(one)])

    def _judgments(self, one: PreferenceSet) -> Node:
        num = sum(counts.get("judgments", 0) for counts in one.counts.values())
        simulated = queries.num_simulated(one)
        people = [own for own in self.graph.people.get(one.project_id, []) if own.first <= one.created_at]
        facts = [f"{'all' if simulated == num else f'{simulated:,}'} of them simulated"] if simulated else []
        if people:
            last = min(one.created_at, max(own.last for own in people))
            facts.append(_period(min(own.first for own in people), last))
        return Node("Judgments", f"{num:,}", ", ".join(facts), parts=[self._annotators(people)] if people else [])

    def _annotators(self, people: list[_People]) -> Node:
        names = sorted(own.name for own in people if own.kind == Annotator.Kind.PERSON)
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        told = ", ".join(names[:MAX_NAMES]) + more if self.graph.may_name else ""
        return Node("Annotators", f"{len(people):,}", told)


class _Uses(_Tree):
    def of_run(self, pk: int) -> list[Node]:
        self.told.add((RUN_PAGE, pk))
        return [
            *(self._run(USES[name], other) for name, other in self.graph.users.get(pk, [])),
            *(self._contest(contest) for contest in self.graph.contests.get(pk, [])),
        ]

    def _run(self, role: str, pk: int) -> Node:
        run = self.graph.runs[pk]
        return self.node(Node(role, run.text, run.facts, RUN_PAGE, pk), lambda: self.of_run(pk))

    def _contest(self, contest: Any) -> Node:
        votes = f"{contest.num_votes:,} pairs judged in {contest.project}"
        return self.node(
            Node("Judged by people", str(contest), votes, CONTEST_PAGE, contest.pk), lambda: self._after(contest)
        )

    def _after(self, contest: Any) -> list[Node]:
        """Preference sets that hold votes of the contest."""
        if contest.first_vote is None:
            return []
        return [
            self._set(one)
            for one in self.graph.sets.values()
            if one.project_id == contest.project_id and one.created_at > contest.first_vote
        ]

    def _set(self, one: PreferenceSet) -> Node:
        facts = f"frozen {_day(one.created_at)}, with these votes"
        return self.node(Node("Preference set", str(one), facts, SET_PAGE, one.pk), lambda: self._on(one.pk))

    def _on(self, preference_set: int) -> list[Node]:
        return [self._run("Learned from it", pk) for pk in sorted(self.graph.links.learners.get(preference_set, []))]


def _day(moment: datetime) -> str:
    return date_format(localtime(moment), "j M Y")


def _period(first: datetime, last: datetime) -> str:
    begin, end = _day(first), _day(last)
    return f"made {begin}" if begin == end else f"made from {begin} to {end}"
