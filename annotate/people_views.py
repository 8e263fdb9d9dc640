"""Who is in a project, by which links others may join it, and the page behind such a link."""

from http import HTTPStatus
from typing import Any

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from annotate import people, people_queries
from annotate.errors import AnnotateError, InvitationOver
from annotate.models import Invitation, Membership, Project, Standing
from annotate.people_forms import InviteForm, RoleForm
from annotate.tokens import token_digest
from annotate.views import HttpRequest, signed_in

get_or_post = require_http_methods(["GET", "HEAD", "POST"])


def managed(request: HttpRequest, pk: int) -> Project:
    """The project, for its managers; for everybody else there is none."""
    return get_object_or_404(Project.objects.led_by(request.user, Membership.Role.MANAGER), pk=pk)


@get_or_post
@signed_in
def people_page(request: HttpRequest, pk: int) -> HttpResponse:
    """Members and invitations; an invitation that has just been made is shown with its link, this once."""
    project = managed(request, pk)
    form = InviteForm(request.POST or None)
    link = None
    if request.method == "POST" and form.is_valid():
        _invitation, secret = people.invite(project=project, created_by=request.user, **form.cleaned_data)
        link = request.build_absolute_uri(reverse("annotate:join", args=[secret]))
        form = InviteForm()
    context = {
        "project": project,
        "page": people_queries.people_page(project, request.GET.get("page")),
        "form": form,
        "link": link,
        "roles": Membership.Role.choices,
    }
    return render(request, "annotate/people/people.html", context)


@require_POST
@signed_in
def change_role(request: HttpRequest, pk: int, membership_pk: int) -> HttpResponse:
    membership = _membership(request, pk, membership_pk)
    form = RoleForm(request.POST)
    if form.is_valid():
        _told(request, lambda: people.set_role(membership=membership, role=form.cleaned_data["role"]))
    return _back(request, pk)


@require_POST
@signed_in
def remove_member(request: HttpRequest, pk: int, membership_pk: int) -> HttpResponse:
    membership = _membership(request, pk, membership_pk)
    _told(request, lambda: people.remove_member(membership=membership))
    return _back(request, pk)


@require_POST
@signed_in
def revoke_invitation(request: HttpRequest, pk: int, invitation_pk: int) -> HttpResponse:
    project = managed(request, pk)
    people.revoke_invitation(invitation=get_object_or_404(Invitation, pk=invitation_pk, project=project))
    return _back(request, pk)


@require_POST
@signed_in
def ask_again(request: HttpRequest, pk: int, standing_pk: int) -> HttpResponse:
    standing = get_object_or_404(
        Standing.objects.select_related("project", "annotator"), **_here(request, pk, standing_pk)
    )
    _told(request, lambda: people.ask_again(standing=standing))
    return _back(request, pk)


@require_POST
@signed_in
def open_queue(request: HttpRequest, pk: int, standing_pk: int) -> HttpResponse:
    people.open_queue(standing=get_object_or_404(Standing, **_here(request, pk, standing_pk)))
    return _back(request, pk)


@get_or_post
@never_cache
def join(request: HttpRequest, token: str) -> HttpResponse:
    """Whoever opens the link of an invitation joins by a button; who has no account makes one on the same page."""
    invitation = get_object_or_404(Invitation.objects.select_related("project"), digest=token_digest(token))
    if request.user.is_authenticated:
        return _join_as(request, invitation, request.user)
    if not invitation.is_open:
        return _over(request)
    form = UserCreationForm(request.POST or None)
    if not form.is_valid():
        return render(request, "annotate/people/join.html", {"invitation": invitation, "form": form})
    try:
        with transaction.atomic():  # an invitation that is over by now leaves no account behind
            user = form.save()
            people.accept_invitation(invitation=invitation, user=user)
    except InvitationOver:
        return _over(request)
    login(request, user)
    return _joined(request, invitation)


def _join_as(request: HttpRequest, invitation: Invitation, user: User) -> HttpResponse:
    membership = Membership.objects.filter(project=invitation.project, user=user).first()
    if request.method != "POST":
        if not invitation.is_open and not membership:
            return _over(request)
        context = {"invitation": invitation, "membership": membership}
        return render(request, "annotate/people/join.html", context)
    try:
        people.accept_invitation(invitation=invitation, user=user)
    except InvitationOver:
        return _over(request)
    return _joined(request, invitation)


def _joined(request: HttpRequest, invitation: Invitation) -> HttpResponse:
    messages.success(request, _("You have joined %(project)s.") % {"project": invitation.project})
    return HttpResponseRedirect(reverse("annotate:projects"), status=HTTPStatus.SEE_OTHER)


def _over(request: HttpRequest) -> HttpResponse:
    return render(request, "annotate/people/over.html", status=HTTPStatus.GONE)


def _membership(request: HttpRequest, pk: int, membership_pk: int) -> Membership:
    return get_object_or_404(Membership, project=managed(request, pk), pk=membership_pk)


def _here(request: HttpRequest, pk: int, standing_pk: int) -> dict[str, Any]:
    return {"project": managed(request, pk), "pk": standing_pk}


def _told(request: HttpRequest, act: Any) -> None:
    """Do something, and show why where it is refused."""
    try:
        act()
    except AnnotateError as error:
        messages.error(request, str(error))


def _back(request: HttpRequest, pk: int) -> HttpResponse:
    """To the page of people, or to the list of projects for somebody who has just given up that page."""
    is_manager = Project.objects.led_by(request.user, Membership.Role.MANAGER).filter(pk=pk).exists()
    return redirect("annotate:people", pk) if is_manager else redirect("annotate:projects")
