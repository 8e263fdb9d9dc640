from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from annotate import gold, people, services
from annotate.errors import InvitationOver, LastManager, NotEnoughGold
from annotate.models import Gold, Invitation, Membership, Standing
from annotate.people_queries import people_page
from annotate.tokens import new_token, token_digest
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user, response_ids

pytestmark = pytest.mark.django_db


def make_invitation(**values):
    values = {"project": make_project(), "created_by": make_user(), **values}
    return people.invite(**values)[0]


def make_member(project, role, user=None):
    return Membership.objects.create(project=project, user=user or make_user(), role=role)


def roles(project):
    return dict(Membership.objects.filter(project=project).values_list("user__username", "role"))


# Invitations


def test_invite_keeps_the_digest_and_never_the_secret():
    project, boss = make_project(), make_user()

    invitation, secret = people.invite(
        project=project, created_by=boss, role="reviewer", note="for Amina", max_uses=3, days=2
    )

    stored = Invitation.objects.values().get()
    assert len(secret) == 43
    assert secret not in str(stored)
    left = stored.pop("expires_at") - stored.pop("created_at")
    assert timedelta(days=2) - left < timedelta(minutes=1)
    assert stored == {
        "id": invitation.pk,
        "project_id": project.pk,
        "role": "reviewer",
        "digest": token_digest(secret),
        "note": "for Amina",
        "created_by_id": boss.pk,
        "max_uses": 3,
        "num_uses": 0,
        "is_revoked": False,
    }


def test_tokens_differ():
    assert new_token()[0] != new_token()[0]


def test_accept_invitation_makes_a_member_and_counts():
    project, user = make_project(), make_user(username="amina")
    invitation = make_invitation(project=project, role="reviewer")

    people.accept_invitation(invitation=invitation, user=user)

    invitation.refresh_from_db()
    assert (roles(project), invitation.num_uses, invitation.is_open) == ({"amina": "reviewer"}, 1, False)


@pytest.mark.parametrize("why", ["used", "expired", "revoked"])
def test_accept_invitation_refuses_one_that_is(why):
    invitation = make_invitation()
    match why:
        case "used":
            people.accept_invitation(invitation=invitation, user=make_user())
        case "expired":
            Invitation.objects.update(expires_at=timezone.now())
        case "revoked":
            people.revoke_invitation(invitation=invitation)
    before = roles(invitation.project)

    with pytest.raises(InvitationOver, match="expired, was used already, or was taken back"):
        people.accept_invitation(invitation=invitation, user=make_user())

    invitation.refresh_from_db()
    assert (roles(invitation.project), invitation.is_open) == (before, False)
    assert list(Invitation.objects.open()) == []


@pytest.mark.parametrize(
    ("role", "invited_as", "then", "uses"),
    [
        ("annotator", "manager", "manager", 1),
        ("manager", "annotator", "manager", 0),
        ("reviewer", "reviewer", "reviewer", 0),
    ],
)
def test_accept_invitation_never_takes_a_role_away(role, invited_as, then, uses):
    project, user = make_project(), make_user(username="amina")
    make_member(project, role, user)
    invitation = make_invitation(project=project, role=invited_as)

    people.accept_invitation(invitation=invitation, user=user)

    invitation.refresh_from_db()
    assert (roles(project), invitation.num_uses) == ({"amina": then}, uses)


# Roles


def test_set_role_and_remove_member():
    project = make_project()
    make_member(project, "manager", make_user(username="boss"))
    first = make_member(project, "annotator", make_user(username="amina"))
    second = make_member(project, "annotator", make_user(username="ben"))

    people.set_role(membership=first, role="manager")
    people.remove_member(membership=second)

    assert roles(project) == {"boss": "manager", "amina": "manager"}


def test_the_last_manager_stays():
    project = make_project()
    boss = make_member(project, "manager", make_user(username="boss"))
    make_member(project, "reviewer", make_user(username="amina"))
    make_member(make_project(), "manager")

    with pytest.raises(LastManager):
        people.set_role(membership=boss, role="annotator")
    with pytest.raises(LastManager):
        people.remove_member(membership=boss)
    people.set_role(membership=boss, role="manager")

    assert roles(project) == {"boss": "manager", "amina": "reviewer"}


def test_removed_member_of_a_closed_project_sees_nothing_of_it_and_leaves_their_judgments():
    project = make_project(is_open=False)
    membership = make_member(project, "annotator")
    judgment = make_judgment(
        comparison=make_comparison(project=project), annotator=make_annotator(user=membership.user)
    )

    people.remove_member(membership=membership)

    assert list(type(project).objects.for_user(membership.user)) == []
    assert list(project.judgments.all()) == [judgment]


# Qualification, from the first comparison to the queue


def make_golds(project, number):
    golds = []
    for _ in range(number):
        comparison = make_comparison(project=project)
        ranking = [[pk] for pk in response_ids(comparison)]
        golds.append(gold.make_gold(comparison=comparison, ranking=ranking, use=Gold.Use.QUALIFICATION))
    return golds


def answer(project, annotator, *, is_right):
    """Judge what comes next by the known answer, or against it; the comparison, or None where nothing comes."""
    lease = services.lease_next(project=project, annotator=annotator)
    if lease is None:
        return None
    ranking = [[pk] for pk in response_ids(lease.comparison)]
    services.record_judgment(
        comparison=lease.comparison,
        annotator=annotator,
        ranking=ranking if is_right else ranking[::-1],
        key=lease.key,
        source="browser",
    )
    return lease.comparison


def test_qualification_from_gold_to_the_queue():
    project, annotator = make_project(qualification_size=2, qualification_accuracy=0.5), make_annotator()
    golds = {each.comparison for each in make_golds(project, 2)}
    ordinary = make_comparison(project=project)

    asked = [answer(project, annotator, is_right=is_right) for is_right in (True, False, True, True)]

    assert set(asked[:2]) == golds
    assert asked[2:] == [ordinary, None]
    assert Standing.objects.get().qualified_at is not None


def test_who_fails_the_qualification_is_asked_again_when_a_manager_says_so():
    project, annotator = make_project(qualification_size=2, qualification_accuracy=0.5), make_annotator()
    make_golds(project, 4)
    ordinary = make_comparison(project=project)
    for _ in range(2):
        answer(project, annotator, is_right=False)
    assert answer(project, annotator, is_right=True) is None

    people.ask_again(standing=Standing.objects.get())
    asked = [answer(project, annotator, is_right=True) for _ in range(3)]

    standing = Standing.objects.get()
    assert asked[2] == ordinary
    assert (standing.num_gold, standing.gold_score, standing.failed_at) == (2, 2.0, None)


def test_ask_again_needs_comparisons_that_were_not_judged():
    project, annotator = make_project(qualification_size=1), make_annotator()
    make_golds(project, 1)
    answer(project, annotator, is_right=False)

    with pytest.raises(NotEnoughGold):
        people.ask_again(standing=Standing.objects.get())

    assert Standing.objects.get().failed_at is not None


def test_ask_again_offers_what_was_skipped():
    project, annotator = make_project(qualification_size=1), make_annotator()
    (only,) = make_golds(project, 1)
    lease = services.lease_next(project=project, annotator=annotator)
    services.skip_comparison(comparison=lease.comparison, annotator=annotator)
    assert services.lease_next(project=project, annotator=annotator) is None

    people.ask_again(standing=Standing.objects.get())

    assert services.lease_next(project=project, annotator=annotator).comparison == only.comparison


def test_open_queue_lets_somebody_in_who_failed():
    project, annotator = make_project(qualification_size=1), make_annotator()
    make_golds(project, 1)
    ordinary = make_comparison(project=project)
    answer(project, annotator, is_right=False)

    people.open_queue(standing=Standing.objects.get())

    assert answer(project, annotator, is_right=True) == ordinary


# Queries


def test_people_page_lists_members_and_those_who_judge_without_being_members():
    project = make_project()
    membership = make_member(project, "reviewer", make_user(username="amina"))
    judgment = make_judgment(
        comparison=make_comparison(project=project), annotator=make_annotator(user=make_user(username="ben"))
    )
    make_judgment()  # elsewhere
    invitation, revoked = make_invitation(project=project), make_invitation(project=project)
    people.revoke_invitation(invitation=revoked)

    page = people_page(project, None)

    assert [(person.username, person.membership, person.num_judged, person.gold_percent) for person in page.people] == [
        ("amina", membership, 0, None),
        ("ben", None, 1, None),
    ]
    assert page.people[1].standing.annotator == judgment.annotator
    assert (page.invitations, page.invitations_over) == ([invitation], [revoked])


def test_people_page_takes_as_many_queries_for_three_people_as_for_one(django_assert_num_queries):
    project = make_project(members=(make_user(),))
    for number in (1, 3):
        for _ in range(number):
            make_judgment(comparison=make_comparison(project=project))
            make_invitation(project=project)
        with django_assert_num_queries(6):
            people_page(project, "1")
    assert User.objects.count() > 4
