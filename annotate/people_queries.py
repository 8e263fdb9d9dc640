"""Reads about people: who is in a project, and where each of them stands."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.core.paginator import Page, Paginator
from django.db.models import Q, QuerySet

from annotate.models import Invitation, Membership, Project, Standing

PEOPLE_AT_ONCE = 100
OVER_SHOWN = 20  # invitations that are over: the newest of them


@dataclass(frozen=True)
class Person:
    """Somebody with an account who is a member, or who has judged in an open project."""

    username: str
    membership: Membership | None
    standing: Standing | None

    @property
    def num_judged(self) -> int:
        return self.standing.num_judged if self.standing else 0

    @property
    def gold_percent(self) -> float | None:
        if not self.standing or not self.standing.num_gold:
            return None
        return 100 * self.standing.gold_score / self.standing.num_gold


@dataclass(frozen=True)
class PeoplePage:
    people: list[Person]
    page: "Page[Any]"
    invitations: list[Invitation]
    invitations_over: list[Invitation]


def people_page(project: Project, number: str | None) -> PeoplePage:
    """One page of members in the order of their names, then those who judge without being members."""
    page = Paginator(_user_names(project), PEOPLE_AT_ONCE).get_page(number)
    names = dict(page.object_list)
    memberships = {row.user_id: row for row in Membership.objects.filter(project=project, user__in=names)}
    standings = Standing.objects.filter(project=project, annotator__user__in=names).select_related("annotator")
    by_user = {row.annotator.user_id: row for row in standings}
    people = [Person(name, memberships.get(pk), by_user.get(pk)) for pk, name in names.items()]
    invitations = list(Invitation.objects.filter(project=project).open())
    over = Invitation.objects.filter(project=project).exclude(pk__in=[row.pk for row in invitations])
    return PeoplePage(people, page, invitations, list(over[:OVER_SHOWN]))


def _user_names(project: Project) -> "QuerySet[User, tuple[int, str]]":
    members = Membership.objects.filter(project=project).values("user")
    judging = Standing.objects.filter(project=project, annotator__user__isnull=False).values("annotator__user")
    users = User.objects.filter(Q(pk__in=members) | Q(pk__in=judging))
    return users.order_by("username").values_list("pk", "username")
