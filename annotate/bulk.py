"""Rows of a file into the database, many at a time: the number of queries grows with batches, not with rows.

Everything is recognised by its digest, so what is there already is found again and used. Imported annotators take
free places at a comparison; where there are none, it comes to want as many judgments as it got.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db.models import F, Max
from django.db.models.functions import Greatest

from annotate.formats.rows import NOT_TOLD, Row
from annotate.giveaway import giveaway
from annotate.identity import comparison_digest, digest, messages_digest, response_digest
from annotate.insert import insert
from annotate.models import Annotator, Comparison, Judgment, Option, Project, Prompt, Response

ROWS_AT_ONCE = 1000
CHARACTERS_AT_ONCE = 8_000_000


@dataclass
class ImportReport:
    """How many rows were read, what they added, and how many of them added nothing."""

    rows: int = 0
    prompts: int = 0
    responses: int = 0
    comparisons: int = 0
    judgments: int = 0
    already_there: int = 0


@dataclass(slots=True)
class _Item:
    """A row on its way into the database: its digests, then the ids of what they stand for."""

    row: Row
    prompt_digest: str
    answers: list[tuple[str, str, int]]  # content, model, copy
    response_digests: list[str]
    comparison_digest: str
    import_key: str
    prompt_id: int = 0
    response_ids: list[int] = field(default_factory=list)
    comparison_id: int = 0
    annotator_id: int = 0

    @property
    def kind(self) -> str:
        is_simulated = self.row.source == Judgment.Source.SIMULATION
        return Annotator.Kind.SIMULATED if is_simulated else Annotator.Kind.IMPORTED


def store_rows(project: Project, rows: Iterable[Row], progress: Callable[[int], None] | None = None) -> ImportReport:
    """Store rows in the caller's transaction; `progress` hears how many have been stored so far."""
    report = ImportReport()
    for batch in _batches(rows):
        items = [_item(row) for row in batch]
        report.rows += len(items)
        report.prompts += _store_prompts(project, items)
        report.responses += _store_responses(items)
        new_comparisons = _store_comparisons(project, items)
        report.comparisons += len(new_comparisons)
        num_judgments = _store_judgments(project, [item for item in items if item.row.ranking], new_comparisons)
        report.judgments += num_judgments
        asked = {item.comparison_id for item in items if not item.row.ranking}
        report.already_there += len(items) - num_judgments - len(asked & new_comparisons)
        if progress:
            progress(report.rows)
    return report


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += sum(len(content) for content, _ in row.responses)
        num_characters += sum(len(message["content"]) for message in row.messages)
        if len(batch) == ROWS_AT_ONCE or num_characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _item(row: Row) -> _Item:
    answers = number_copies(row.responses)
    prompt_digest = messages_digest(row.messages)
    response_digests = [response_digest(*answer) for answer in answers]
    said = [row.ranking, row.annotator, row.aspect, row.strength, row.is_all_bad]
    told = [row.source, row.shown_order, row.seconds, row.meta]
    return _Item(
        row=row,
        prompt_digest=prompt_digest,
        answers=answers,
        response_digests=response_digests,
        comparison_digest=comparison_digest(prompt_digest, response_digests),
        import_key=digest([row.id, prompt_digest, response_digests, *said, *told]),
    )


def number_copies(responses: list[tuple[str, str]]) -> list[tuple[str, str, int]]:
    seen: Counter[tuple[str, str]] = Counter()
    answers = []
    for content, model in responses:
        answers.append((content, model, seen[content, model]))
        seen[content, model] += 1
    return answers


def _store_prompts(project: Project, items: list[_Item]) -> int:
    wanted = {item.prompt_digest: item.row.messages for item in items}
    known = dict(Prompt.objects.filter(project=project, digest__in=wanted).values_list("digest", "pk"))
    missing = [key for key in wanted if key not in known]
    new_ids = insert(Prompt, ("project", "messages", "digest"), [(project.pk, wanted[key], key) for key in missing])
    known.update(zip(missing, new_ids, strict=True))
    for item in items:
        item.prompt_id = known[item.prompt_digest]
    return len(missing)


def _store_responses(items: list[_Item]) -> int:
    wanted = {
        (item.prompt_id, key): answer
        for item in items
        for key, answer in zip(item.response_digests, item.answers, strict=True)
    }
    there = Response.objects.filter(prompt_id__in={prompt_id for prompt_id, _ in wanted})
    known = {
        (prompt_id, key): pk
        for prompt_id, key, pk in there.values_list("prompt_id", "digest", "pk").iterator()
        if (prompt_id, key) in wanted
    }
    missing = [place for place in wanted if place not in known]
    new_ids = insert(
        Response,
        ("prompt", "digest", "content", "model", "copy", "giveaway"),
        [
            (prompt_id, key, *wanted[prompt_id, key], giveaway(*wanted[prompt_id, key][:2]))
            for prompt_id, key in missing
        ],
    )
    known.update(zip(missing, new_ids, strict=True))
    for item in items:
        item.response_ids = [known[item.prompt_id, key] for key in item.response_digests]
    return len(missing)


def _store_comparisons(project: Project, items: list[_Item]) -> set[int]:
    """The ids of the new ones."""
    wanted = {item.comparison_digest: item for item in items}
    known = dict(Comparison.objects.filter(project=project, digest__in=wanted).values_list("digest", "pk"))
    missing = [item for key, item in wanted.items() if key not in known]
    new_ids = insert(
        Comparison,
        ("project", "prompt", "digest", "num_responses", "num_wanted"),
        [(project.pk, item.prompt_id, item.comparison_digest, len(item.answers), project.overlap) for item in missing],
    )
    insert(
        Option,
        ("comparison", "response", "position"),
        [
            (comparison_id, response_id, position)
            for comparison_id, item in zip(new_ids, missing, strict=True)
            for position, response_id in enumerate(item.response_ids)
        ],
    )
    known.update((item.comparison_digest, pk) for item, pk in zip(missing, new_ids, strict=True))
    for item in items:
        item.comparison_id = known[item.comparison_digest]
    return set(new_ids)


def _store_judgments(project: Project, items: list[_Item], new_comparisons: set[int]) -> int:
    by_key = {item.import_key: item for item in reversed(items)}  # of equal rows the first counts
    there = Judgment.objects.filter(project=project, import_key__in=by_key)
    known = set(there.values_list("import_key", flat=True))
    fresh = [item for item in items if by_key[item.import_key] is item and item.import_key not in known]
    earlier = _Earlier({item.comparison_id for item in fresh} - new_comparisons)
    _find_annotators(project, fresh, earlier)
    insert(Judgment, _JUDGMENT_FIELDS, [_judgment(project, item, earlier.next_repeat(item)) for item in fresh])
    _count_places(earlier.new_seats)
    return len(fresh)


class _Earlier:
    """Who has judged these comparisons before, in the database and in this batch."""

    def __init__(self, comparison_ids: set[int]) -> None:
        self.repeats: dict[tuple[int, str, int], int] = {}  # comparison, aspect, annotator -> judgments
        self.num_not_told: Counter[tuple[int, str]] = Counter()  # comparison, aspect
        self.seats: set[tuple[int, int]] = set()  # comparison, annotator
        self.new_seats: set[tuple[int, int]] = set()
        judged = Judgment.objects.filter(comparison_id__in=comparison_ids).order_by()
        by_annotator = judged.values_list("comparison_id", "aspect", "annotator_id", "annotator__name")
        for comparison_id, aspect, annotator_id, name, last in by_annotator.annotate(last=Max("repeat")):
            self.repeats[comparison_id, aspect, annotator_id] = last + 1
            self.num_not_told[comparison_id, aspect] += name.startswith(NOT_TOLD)
            self.seats.add((comparison_id, annotator_id))

    def next_not_told(self, item: _Item) -> str:
        """An annotator whom the file does not name is another one for each judgment of the same responses."""
        place = (item.comparison_id, item.row.aspect)
        self.num_not_told[place] += 1
        return f"{NOT_TOLD}{self.num_not_told[place]}"

    def next_repeat(self, item: _Item) -> int:
        place = (item.comparison_id, item.row.aspect, item.annotator_id)
        repeat = self.repeats.get(place, 0)
        self.repeats[place] = repeat + 1
        if (seat := (item.comparison_id, item.annotator_id)) not in self.seats:
            self.seats.add(seat)
            self.new_seats.add(seat)
        return repeat


def _find_annotators(project: Project, items: list[_Item], earlier: _Earlier) -> None:
    names = [(item.kind, item.row.annotator or earlier.next_not_told(item)) for item in items]
    there = Annotator.objects.filter(project=project, name__in={name for _, name in names})
    known = {(kind, name): pk for kind, name, pk in there.values_list("kind", "name", "pk")}
    missing = [name for name in dict.fromkeys(names) if name not in known]
    new_ids = insert(Annotator, ("project", "kind", "name"), [(project.pk, kind, name) for kind, name in missing])
    known.update(zip(missing, new_ids, strict=True))
    for item, name in zip(items, names, strict=True):
        item.annotator_id = known[name]


_JUDGMENT_FIELDS = (
    "project",
    "comparison",
    "annotator",
    "repeat",
    "ranking",
    "shown_order",
    "aspect",
    "strength",
    "is_all_bad",
    "seconds",
    "source",
    "import_key",
    "row_id",
    "meta",
)


def _judgment(project: Project, item: _Item, repeat: int) -> tuple[Any, ...]:
    row, ids = item.row, item.response_ids
    return (
        project.pk,
        item.comparison_id,
        item.annotator_id,
        repeat,
        [[ids[index] for index in group] for group in row.ranking or []],
        row.shown_order and [ids[index] for index in row.shown_order],
        row.aspect,
        row.strength,
        row.is_all_bad,
        row.seconds,
        row.source,
        item.import_key,
        row.id,
        row.meta,
    )


def _count_places(seats: set[tuple[int, int]]) -> None:
    """Each new annotator takes a place at the comparison; it comes to want more where it has none left."""
    places = Counter(comparison_id for comparison_id, _ in seats)
    for num_places in set(places.values()):
        taken = F("num_taken") + num_places
        filled = [pk for pk, count in places.items() if count == num_places]
        Comparison.objects.filter(pk__in=filled).update(num_taken=taken, num_wanted=Greatest(F("num_wanted"), taken))
