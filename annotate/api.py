"""The HTTP API under /api/: what the pages do, for programs. Described by /api/openapi.json.

A program sends `Authorization: Bearer TOKEN` with a token of its account and may do what the account may do on the
pages. What is not theirs to see is not found. Responses are named by letters in the order in which they are shown to
this account, never by their models.

Errors are `{"detail": …}`: 401 without a good token, 404 for what is not there or not yours, 413 for a body that is
too long, 422 for what cannot be stored (an imported file's also name `line` and `field`).
"""

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.core.exceptions import RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone
from ninja import NinjaAPI, Status
from ninja.errors import AuthenticationError, HttpError
from ninja.security import HttpBearer

from annotate import guidance, services
from annotate.answers import Edit
from annotate.api_schemas import (
    ComparisonOut,
    FiguresOut,
    FlagIn,
    JudgmentIn,
    JudgmentOut,
    KeyIn,
    PrioritiesOut,
    ProjectDetailOut,
    ProjectOut,
    RenewedOut,
    ReportOut,
    SkipIn,
    Trouble,
    answer_from,
    comparison_out,
    project_detail_out,
    project_out,
    scored_prompts,
)
from annotate.distribution import lease_shown
from annotate.downloads import export_response
from annotate.errors import AnnotateError, BadRow, NotLeased
from annotate.formats import FORMATS, jsonl
from annotate.models import Annotator, ApiToken, Comparison, Figures, Judgment, Lease, Membership, Project
from annotate.stats.selection import BALD
from annotate.tokens import token_digest
from annotate.uploads import received

MANAGER, REVIEWER = Membership.Role.MANAGER, Membership.Role.REVIEWER
TOUCHED_AFTER = timedelta(minutes=1)  # a token's last use is written no more often


LINES = {"content": {"application/jsonl": {"schema": {"type": "string"}}}, "required": True}


class Request(HttpRequest):
    auth: User


class Token(HttpBearer):
    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        good = ApiToken.objects.filter(digest=token_digest(token), is_revoked=False, user__is_active=True)
        found = good.select_related("user").first()
        if found is None:
            return None
        now = timezone.now()
        if found.last_used_at is None or found.last_used_at < now - TOUCHED_AFTER:
            good.update(last_used_at=now)
        return found.user


api = NinjaAPI(title="Plumbline", version="1", docs_url=None, auth=Token(), urls_namespace="api")


@api.exception_handler(AnnotateError)
def refused(request: HttpRequest, error: AnnotateError) -> HttpResponse:
    place = {"line": error.line, "field": error.field} if isinstance(error, BadRow) else {}
    status = HTTPStatus.NOT_FOUND if isinstance(error, NotLeased) else HTTPStatus.UNPROCESSABLE_ENTITY
    return api.create_response(request, {"detail": str(error), **place}, status=status)


@api.exception_handler(AuthenticationError)
def unknown(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    response = api.create_response(request, {"detail": str(error)}, status=HTTPStatus.UNAUTHORIZED)
    response["WWW-Authenticate"] = "Bearer"
    return response


@api.exception_handler(RequestDataTooBig)
def too_long(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
    detail = "The body is too long."
    return api.create_response(request, {"detail": detail}, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


# Judging


@api.get("/projects", response=list[ProjectOut], summary="Projects that I may judge in")
def projects(request: Request) -> list[ProjectOut]:
    roles = _roles(request.auth)
    return [project_out(project, roles.get(project.pk)) for project in Project.objects.for_user(request.auth)]


@api.get("/projects/{int:pk}", response=ProjectDetailOut, summary="One project, with guidelines and aspects")
def project(request: Request, pk: int) -> ProjectDetailOut:
    found = get_object_or_404(Project.objects.for_user(request.auth), pk=pk)
    return project_detail_out(found, _roles(request.auth).get(pk))


@api.post(
    "/projects/{int:pk}/next",
    response={200: ComparisonOut, 204: None},
    summary="Lease the next comparison; 204 where nothing is open to me",
)
def next_comparison(request: Request, pk: int) -> Status[Any]:
    found = get_object_or_404(Project.objects.for_user(request.auth), pk=pk)
    annotator = services.annotator_for(user=request.auth)
    lease = services.lease_next(project=found, annotator=annotator)
    return Status(200, comparison_out(lease, found)) if lease else Status(204, None)


@api.get("/comparisons/{int:pk}", response=ComparisonOut, summary="A comparison that I hold")
def comparison(request: Request, pk: int) -> ComparisonOut:
    found, annotator = _comparison(request, pk)
    lease = get_object_or_404(Lease.objects.select_related("comparison__prompt"), comparison=found, annotator=annotator)
    return comparison_out(lease, found.project)


@api.post(
    "/comparisons/{int:pk}/judgment",
    response={200: JudgmentOut, 422: Trouble},
    summary="Judge; the same again returns what is stored",
)
def judge(request: Request, pk: int, body: JudgmentIn) -> JudgmentOut:
    found, annotator, lease = _shown(request, pk, body.key)
    order = lease.shown_order
    submission: dict[str, Any] = {
        **vars(answer_from(body, order)),
        "aspects": {name: answer_from(each, order) for name, each in body.aspects_of(found.project).items()},
        "edit": Edit(body.edit.text, body.edit.response_id(order)) if body.edit else None,
        "rationale": body.rationale,
        "seconds": body.seconds,
        "key": lease.key,
        "source": Judgment.Source.API,
        "lease": lease if lease.pk else None,
    }
    if not body.lease_next:
        judgment = services.record_judgment(comparison=found, annotator=annotator, **submission)
        return JudgmentOut(id=judgment.pk, next=None)
    judgment, following = services.record_and_lease_next(comparison=found, annotator=annotator, **submission)
    return JudgmentOut(id=judgment.pk, next=comparison_out(following, found.project) if following else None)


@api.post("/comparisons/{int:pk}/skip", response={204: None}, summary="Give a comparison back")
def skip(request: Request, pk: int, body: SkipIn) -> Status[None]:
    found, annotator, _lease = _shown(request, pk, body.key)
    services.skip_comparison(comparison=found, annotator=annotator, reason=body.reason, note=body.note)
    return Status(204, None)


@api.post("/comparisons/{int:pk}/flag", response={204: None}, summary="Tell the leads about a comparison")
def flag(request: Request, pk: int, body: FlagIn) -> Status[None]:
    found, annotator, _lease = _shown(request, pk, body.key)
    services.flag_comparison(comparison=found, annotator=annotator, reason=body.reason, note=body.note)
    return Status(204, None)


@api.post("/comparisons/{int:pk}/renew", response=RenewedOut, summary="Hold a comparison for longer; 404 if it is lost")
def renew(request: Request, pk: int, body: KeyIn) -> RenewedOut:
    found, annotator, _lease = _shown(request, pk, body.key)
    if not services.renew_lease(comparison=found, annotator=annotator):
        raise Http404
    expires_at: datetime = Lease.objects.values_list("expires_at", flat=True).get(comparison=found, annotator=annotator)
    return RenewedOut(expires_at=expires_at)


# For leads


@api.post(
    "/projects/{int:pk}/import",
    response={200: ReportOut, 422: Trouble},
    summary="Import lines of JSON, plain or gzipped, in any format that is known: all of them or none",
    openapi_extra={"requestBody": LINES},
)
def import_rows(request: Request, pk: int) -> dict[str, int]:
    found = _led(request, pk, MANAGER)
    with received(request.read) as path:
        return vars(services.import_file(project=found, path=path))


@api.get(
    "/projects/{int:pk}/export/{str:format_name}",
    summary=f"Judgments as lines of JSON; formats: {', '.join(FORMATS)}",
    openapi_extra={"responses": {200: {"description": "OK", "content": {"application/jsonl": {}}}}},
)
def export(request: Request, pk: int, format_name: str) -> StreamingHttpResponse:
    return export_response(_led(request, pk, MANAGER), format_name)


@api.get("/projects/{int:pk}/figures", response=FiguresOut, summary="What the judgments are worth, as computed last")
def figures(request: Request, pk: int) -> FiguresOut:
    found = _led(request, pk, MANAGER, REVIEWER)
    stored = Figures.objects.filter(project=found).first()
    return FiguresOut(computed_at=stored.computed_at, values=stored.values) if stored else FiguresOut()


@api.get("/projects/{int:pk}/prompts", summary="Prompts with open comparisons and their responses, to be scored")
def prompts(request: Request, pk: int) -> StreamingHttpResponse:
    rows = guidance.prompts_to_score(_led(request, pk, MANAGER))
    return StreamingHttpResponse(map(jsonl.to_line, rows), content_type="application/jsonl")


@api.post(
    "/projects/{int:pk}/priorities",
    response={200: PrioritiesOut, 422: Trouble},
    summary="Hand in the scores of an ensemble's members, and the most informative comparisons come first",
    description="Lines of JSON: a prompt's id, and its responses' ids with one score of each member, in nats: "
    '{"prompt": 7, "scores": {"12": [0.1, 0.3], "13": [-0.2, 0.9]}}',
    openapi_extra={"requestBody": LINES},
)
def priorities(request: Request, pk: int, strategy: str = BALD, seed: int = 0) -> PrioritiesOut:
    found = _led(request, pk, MANAGER)
    with received(request.read) as path:
        try:
            num_changed = guidance.accept_scores(
                project=found, scores=scored_prompts(path), strategy=strategy, seed=seed
            )
        except ValueError as error:
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    return PrioritiesOut(comparisons=num_changed)


@api.api_operation(["GET", "POST", "PUT", "PATCH", "DELETE"], "/{path:rest}", include_in_schema=False)
def nothing(request: Request, rest: str) -> None:
    raise Http404


def _roles(user: User) -> dict[int, str]:
    """The role of this user in each project where they have one."""
    own = dict(Membership.objects.filter(user=user).values_list("project", "role"))
    managed = Project.objects.led_by(user, MANAGER).values_list("pk", flat=True)
    return {**own, **dict.fromkeys(managed, MANAGER.value)}


def _led(request: Request, pk: int, *roles: str) -> Project:
    return get_object_or_404(Project.objects.led_by(request.auth, *roles), pk=pk)


def _comparison(request: Request, pk: int) -> tuple[Comparison, Annotator]:
    mine = Comparison.objects.for_user(request.auth).select_related("project", "prompt")
    return get_object_or_404(mine, pk=pk), get_object_or_404(Annotator, user=request.auth)


def _shown(request: Request, pk: int, key: UUID) -> tuple[Comparison, Annotator, Lease]:
    """A comparison that was leased to this account: by the lease, or by the key where that has run out."""
    found, annotator = _comparison(request, pk)
    return found, annotator, lease_shown(found, annotator, key)
