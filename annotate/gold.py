"""Comparisons with a known answer: made, changed, taken back, imported.

What stands where: a comparison that is asked as gold has `is_gold` and room for everybody (`num_wanted` is
GOLD_PLACES), so no index of the queue holds it and `num_taken` goes on counting its judgments and leases. All
judgments of such a comparison are judgments of gold, also those from before: they measure annotators and are left out
of progress and of training (`queries.judgment_rows`). A comparison of the queue that has been judged can become a
worked example without that: it keeps its judgments as ordinary ones and is only closed to further ones.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone
from django.utils.translation import gettext as _

from annotate.answers import check_ranking
from annotate.bulk import number_copies
from annotate.distribution import reap
from annotate.errors import BadRow, NotGold
from annotate.formats import read_file
from annotate.formats.rows import Row
from annotate.identity import comparison_digest, messages_digest, response_digest
from annotate.models import GOLD_PLACES, Comparison, Gold, Project
from annotate.services import import_rows


def make_gold(
    *, comparison: Comparison, ranking: list[list[int]], use: str = Gold.Use.MIXED, explanation: str = ""
) -> Gold:
    """Give a comparison a known answer in response ids, or another one in place of that which it has.

    Raises:
        BadRanking: the ranking is no partition of the comparison's responses.
        NotGold: nothing could be got right or wrong, or somebody is judging the comparison just now.
    """
    reap(comparison.project, timezone.now())
    return _make_gold(comparison, ranking, use, explanation)


def change_gold(*, gold: Gold, use: str, explanation: str) -> Gold:
    """Ask it otherwise, or explain it better; the answer stays, because annotators have been measured by it.

    Raises:
        NotGold: as `make_gold` does.
    """
    return make_gold(comparison=gold.comparison, ranking=gold.ranking, use=use, explanation=explanation)


@transaction.atomic
def remove_gold(*, gold: Gold) -> None:
    """Put the comparison back into the queue.

    Raises:
        NotGold: it has been judged as gold, and those judgments must not count as ordinary ones.
    """
    comparison = Comparison.objects.select_for_update(no_key=True).get(pk=gold.comparison_id)
    if comparison.is_gold and comparison.num_taken:
        raise NotGold(_("It has been judged as gold. Make it a worked example, and it will be asked no more."))
    gold.delete()
    Comparison.objects.filter(pk=comparison.pk).update(
        is_gold=False, num_wanted=Greatest(F("num_taken"), comparison.project.overlap)
    )


def import_gold(*, project: Project, path: Path, use: str = Gold.Use.MIXED) -> int:
    """Store a file whose rankings are the known answers, all of it or nothing. Returns the number of rows.

    What `meta` holds under `explanation` becomes the explanation. A row for a comparison that is there already gives it
    its answer.

    Raises:
        BadRow: a row cannot be imported, or has no ranking that could be got right; the message names line and field.
        BadFile: the file cannot be read.
        NotGold: as `make_gold` does.
    """
    rows = [_checked(row, use) for row in read_file(path)]
    reap(project, timezone.now())
    with transaction.atomic():
        import_rows(project=project, rows=_unjudged(rows))
        for row in rows:
            comparison, ids = _find(project, row)
            ranking = [sorted(ids[index] for index in group) for group in row.ranking or []]
            explanation = row.meta.get("explanation")
            _make_gold(comparison, ranking, use, explanation if isinstance(explanation, str) else "")
    return len(rows)


@transaction.atomic
def _make_gold(comparison: Comparison, ranking: list[list[int]], use: str, explanation: str) -> Gold:
    check_ranking(ranking, comparison.options.values_list("response_id", flat=True), strength=None)
    if use != Gold.Use.EXAMPLE and len(ranking) == 1:
        raise NotGold(_("A known answer must put one response before another."))
    _place(comparison, use)
    values = {"project_id": comparison.project_id, "ranking": ranking, "use": use, "explanation": explanation}
    return Gold.objects.update_or_create(comparison=comparison, defaults=values)[0]


def _place(comparison: Comparison, use: str) -> None:
    """Take a comparison out of the queue; locked, so that no lease slips in."""
    stored = Comparison.objects.select_for_update(no_key=True).get(pk=comparison.pk)
    if not stored.is_gold and stored.leases.exists():
        raise NotGold(_("Somebody is judging this comparison just now. Try again in a few minutes."))
    stays_ordinary = use == Gold.Use.EXAMPLE and not stored.is_gold and stored.num_taken > 0
    comparison.is_gold = not stays_ordinary
    comparison.num_wanted = stored.num_taken if stays_ordinary else GOLD_PLACES
    comparison.save(update_fields=["is_gold", "num_wanted"])


def _checked(row: Row, use: str) -> Row:
    if row.ranking is None:
        raise BadRow(row.line, "ranking", _("is missing: it is the known answer"))
    if use != Gold.Use.EXAMPLE and len(row.ranking) == 1:
        raise BadRow(row.line, "ranking", _("must put one response before another, since it is the known answer"))
    return row


def _unjudged(rows: Iterable[Row]) -> Iterable[Row]:
    """The same comparisons as if nobody had judged them: a known answer is nobody's judgment."""
    return (replace(row, ranking=None, annotator=None, strength=None, is_all_bad=False) for row in rows)


def _find(project: Project, row: Row) -> tuple[Comparison, list[int]]:
    """The comparison that a row was stored as, and its response ids in the order of the row."""
    digests = [response_digest(*answer) for answer in number_copies(row.responses)]
    digest = comparison_digest(messages_digest(row.messages), digests)
    comparison = Comparison.objects.select_related("project").get(project=project, digest=digest)
    ids = dict(comparison.options.values_list("response__digest", "response_id"))
    return comparison, [ids[each] for each in digests]
