"""What the API takes and gives. Responses are named by letters, in the order shown to the account that asks."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any
from uuid import UUID

from django.utils.translation import gettext as _
from ninja import Field, Schema
from pydantic import AfterValidator

from annotate.answers import Answer, ranking_by_rating
from annotate.errors import BadRanking
from annotate.formats import jsonl
from annotate.formats.rows import Record
from annotate.guidance import ScoredPrompt
from annotate.models import MAX_RESPONSES, Aspect, Flag, Lease, Project, Skip

LETTERS = ascii_uppercase[:MAX_RESPONSES]
MAX_TEXT = 100_000
MAX_ID = 2**63 - 1
SHOWN = "Letters in the order shown, best first, ties as groups: [['B'], ['A', 'C']]."


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL; lone surrogates, the other thing that JSON can spell, are refused before this."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_storable)]


class Trouble(Schema):
    detail: Any
    line: int | None = None
    field: str | None = None


class ProjectOut(Schema):
    id: int
    name: str
    description: str
    kind: str
    role: str | None = Field(description="None where the project is open and I am no member.")


class AspectOut(Schema):
    name: str
    text: str


class ProjectDetailOut(ProjectOut):
    guidelines: str
    guidelines_version: int
    rating_max: int
    overlap: int
    lease_minutes: int
    aspects: list[AspectOut]


class MessageOut(Schema):
    role: str
    content: str


class ResponseOut(Schema):
    letter: str
    content: str


class ComparisonOut(Schema):
    id: int
    project: int
    kind: str
    key: UUID = Field(description="Proves that the comparison was leased to me; it goes back with the judgment.")
    messages: list[MessageOut]
    responses: list[ResponseOut]
    aspects: list[str]
    expires_at: datetime


class AnswerIn(Schema):
    ranking: list[list[str]] | None = Field(
        None, description=f"{SHOWN} It follows from the ratings where these are given."
    )
    strength: int | None = Field(None, description="Of a pair with a better response: 1 slightly, 2 much better.")
    bad: list[str] = Field([], description="Letters that are not acceptable.")
    all_bad: bool = False
    ratings: dict[str, int] | None = Field(None, description="Letter to rating, in projects that rate.")


class EditIn(Schema):
    """A better response, written by whoever judges."""

    text: Annotated[Text, Field(pattern=r"\S")]
    letter: str | None = Field(None, description="The response that it was written from.")

    def response_id(self, order: Sequence[int]) -> int | None:
        return None if self.letter is None else _id(self.letter, order)


class KeyIn(Schema):
    key: UUID


class JudgmentIn(AnswerIn):
    key: UUID
    aspects: dict[str, AnswerIn] = Field(default_factory=dict)
    rationale: Text = ""
    seconds: float | None = None
    edit: EditIn | None = None
    lease_next: bool = Field(False, description="Lease the next comparison in the same request.")

    def aspects_of(self, project: Project) -> dict[str, AnswerIn]:
        unknown = self.aspects.keys() - set(_asked(project).values_list("name", flat=True)) if self.aspects else ()
        if unknown:
            raise BadRanking(_("This project does not ask for %(names)s.") % {"names": ", ".join(sorted(unknown))})
        return self.aspects


class SkipIn(KeyIn):
    reason: Skip.Reason = Skip.Reason.NONE
    note: Text = ""


class FlagIn(KeyIn):
    reason: Flag.Reason
    note: Text = ""


class JudgmentOut(Schema):
    id: int
    next: ComparisonOut | None


class RenewedOut(Schema):
    expires_at: datetime


class ReportOut(Schema):
    rows: int
    prompts: int
    responses: int
    comparisons: int
    judgments: int
    already_there: int


class FiguresOut(Schema):
    computed_at: datetime | None = None
    values: dict[str, Any] = Field(default_factory=dict)


class PrioritiesOut(Schema):
    comparisons: int = Field(description="How many have a new priority.")


def project_out(project: Project, role: str | None) -> ProjectOut:
    return ProjectOut(id=project.pk, name=project.name, description=project.description, kind=project.kind, role=role)


def project_detail_out(project: Project, role: str | None) -> ProjectDetailOut:
    return ProjectDetailOut(
        **vars(project_out(project, role)),
        guidelines=project.guidelines,
        guidelines_version=project.guidelines_version,
        rating_max=project.rating_max,
        overlap=project.overlap,
        lease_minutes=project.lease_minutes,
        aspects=[AspectOut(name=aspect.name, text=aspect.text) for aspect in _asked(project)],
    )


def comparison_out(lease: Lease, project: Project) -> ComparisonOut:
    comparison = lease.comparison
    responses = zip(LETTERS, lease.shown_order, strict=False)
    return ComparisonOut(
        id=comparison.pk,
        project=project.pk,
        kind=project.kind,
        key=lease.key,
        messages=[MessageOut(**message) for message in comparison.prompt.messages],
        responses=[ResponseOut(letter=letter, content=lease.contents[pk]) for letter, pk in responses],
        aspects=list(_asked(project).values_list("name", flat=True)),
        expires_at=lease.expires_at,
    )


def answer_from(said: AnswerIn, order: Sequence[int]) -> Answer:
    """An answer in response ids.

    Raises:
        BadRanking: there is no such letter, or neither ranking nor ratings.
    """
    ratings = {_id(letter, order): rating for letter, rating in said.ratings.items()} if said.ratings else None
    if said.ranking is None and ratings is None:
        raise BadRanking(_("Give a ranking, or ratings."))
    ranking = [[_id(letter, order) for letter in group] for group in said.ranking or []]
    return Answer(
        ranking=ranking or ranking_by_rating(ratings or {}),
        strength=said.strength,
        bad=tuple(_id(letter, order) for letter in said.bad),
        is_all_bad=said.all_bad,
        ratings=ratings,
    )


def scored_prompts(path: Path) -> Iterator[ScoredPrompt]:
    """
    Raises:
        BadRow: a line is no prompt with its responses' scores; the message names its line and field.
        BadFile: the file cannot be read.
    """
    for line, values in jsonl.read_objects(path):
        record = Record(line, values)
        prompt, scores = values.get("prompt"), values.get("scores")
        if not isinstance(prompt, int) or isinstance(prompt, bool) or not 0 < prompt <= MAX_ID:
            record.refuse("prompt", "must be the id of a prompt")
        if not isinstance(scores, dict):
            record.refuse("scores", "must be an object: a response's id to the members' scores")
        yield ScoredPrompt(
            prompt, {_response_id(record, key): _scores(record, key, own) for key, own in scores.items()}
        )


def _response_id(record: Record, key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 20 and int(key) <= MAX_ID):
        record.refuse(f"scores.{key[:20]}", "is no id of a response")
    return int(key)


def _scores(record: Record, key: str, scores: Any) -> list[float]:
    for score in record.check_list(f"scores.{key}", scores, "numbers, one of each member"):
        if isinstance(score, bool) or not isinstance(score, int | float):
            record.refuse(f"scores.{key}", "must be numbers, one of each member")
    return [float(score) for score in scores]


def _asked(project: Project) -> Any:
    return Aspect.objects.filter(project=project, is_asked=True)


def _id(letter: str, order: Sequence[int]) -> int:
    if len(letter) != 1 or not 0 <= LETTERS.find(letter) < len(order):
        raise BadRanking(_("There is no response %(letter)s.") % {"letter": letter[:20]})
    return order[LETTERS.index(letter)]
