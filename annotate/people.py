"""Writes about people: invitations, roles, who may judge.

An invitation is a link with a secret in it; only the secret's digest is stored, and uses are counted by a conditional
update, so that a link for one never lets in two.
"""

from datetime import timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from annotate.errors import InvitationOver, LastManager, NotEnoughGold
from annotate.models import Comparison, Gold, Invitation, Membership, Project, Skip, Standing
from annotate.tokens import new_token

ROLES = (Membership.Role.ANNOTATOR, Membership.Role.REVIEWER, Membership.Role.MANAGER)  # each may do more


def invite(
    *,
    project: Project,
    created_by: User,
    role: str = Membership.Role.ANNOTATOR,
    note: str = "",
    max_uses: int = 1,
    days: int = 7,
) -> tuple[Invitation, str]:
    """An invitation and its secret, which nobody can learn again."""
    secret, digest = new_token()
    invitation = Invitation.objects.create(
        project=project,
        created_by=created_by,
        role=role,
        note=note,
        max_uses=max_uses,
        digest=digest,
        expires_at=timezone.now() + timedelta(days=days),
    )
    return invitation, secret


@transaction.atomic
def accept_invitation(*, invitation: Invitation, user: User) -> Membership:
    """Make `user` a member. Who is one already keeps the role, unless the invitation's may do more.

    Raises:
        InvitationOver: nothing is changed.
    """
    members = Membership.objects.select_for_update()
    membership, is_new = members.get_or_create(
        project_id=invitation.project_id, user=user, defaults={"role": invitation.role}
    )
    if not is_new and ROLES.index(Membership.Role(membership.role)) >= ROLES.index(Membership.Role(invitation.role)):
        return membership
    if not Invitation.objects.filter(pk=invitation.pk).open().update(num_uses=F("num_uses") + 1):
        raise InvitationOver(_("This invitation has expired, was used already, or was taken back."))
    membership.role = invitation.role
    membership.save(update_fields=["role"])
    return membership


def revoke_invitation(*, invitation: Invitation) -> None:
    Invitation.objects.filter(pk=invitation.pk).update(is_revoked=True)


@transaction.atomic
def set_role(*, membership: Membership, role: str) -> None:
    """
    Raises:
        LastManager: nobody else could change the project's settings.
    """
    if role != Membership.Role.MANAGER:
        _check_another_manager(membership)
    Membership.objects.filter(pk=membership.pk).update(role=role)


@transaction.atomic
def remove_member(*, membership: Membership) -> None:
    """Take somebody out of a project. Their judgments stay; what they hold comes back when its lease runs out.

    Raises:
        LastManager: nobody else could change the project's settings.
    """
    _check_another_manager(membership)
    membership.delete()


@transaction.atomic
def ask_again(*, standing: Standing) -> None:
    """Let an annotator qualify once more, by comparisons that they have not judged yet.

    Raises:
        NotEnoughGold: too few of those are left.
    """
    project, annotator = standing.project, standing.annotator
    asked_before = Standing.objects.select_for_update().get(pk=standing.pk)
    golds = Comparison.objects.filter(project=project, is_gold=True, gold__use=Gold.Use.QUALIFICATION)
    Skip.objects.filter(comparison__in=golds, annotator=annotator).delete()
    if golds.open_to(annotator).count() < project.qualification_size:
        raise NotEnoughGold(
            _("%(name)s has judged too many of the qualification's comparisons. Add some, or open the queue.")
            % {"name": annotator.name}
        )
    asked_before.num_gold, asked_before.gold_score = 0, 0.0
    asked_before.qualified_at = asked_before.failed_at = None
    asked_before.save(update_fields=["num_gold", "gold_score", "qualified_at", "failed_at"])


def open_queue(*, standing: Standing) -> None:
    """Let an annotator judge whatever they answered when they were to qualify."""
    Standing.objects.filter(pk=standing.pk).update(qualified_at=timezone.now(), failed_at=None)


def _check_another_manager(membership: Membership) -> None:
    """Managers are locked, so that two of them cannot remove each other at once."""
    here = Membership.objects.filter(project_id=membership.project_id, role=Membership.Role.MANAGER)
    managers = set(here.select_for_update().order_by("pk").values_list("pk", flat=True))
    if managers == {membership.pk}:
        raise LastManager(_("Make somebody else a manager first: this is the only one."))
