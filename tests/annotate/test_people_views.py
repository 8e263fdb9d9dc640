import logging
import re

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from annotate import people
from annotate.models import Invitation, Membership, Standing
from config.logs import LineFormatter
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user

pytestmark = pytest.mark.django_db

PASSWORD = "nine purple lanterns"


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss():
    return make_user(username="boss")


@pytest.fixture
def project(boss):
    project = make_project(name="Cooking", is_open=False)
    Membership.objects.create(project=project, user=boss, role="manager")
    return project


@pytest.fixture
def client(boss):
    return client_of(boss)


@pytest.fixture
def member(project):
    return Membership.objects.create(project=project, user=make_user(username="amina"))


def url(name, *args):
    return reverse(f"annotate:{name}", args=args)


def main_of(response):
    main = re.sub(r"(?s).*<main.*?>|</main>.*|<(script|select|details).*?</\1>", "", response.content.decode())
    return " ".join(re.sub(r"<[^>]*>", " ", main).split())


def roles(project):
    return dict(project.memberships.values_list("user__username", "role"))


def invitation_link(response):
    return re.search(r'id="invitation-link" value="([^"]*)"', response.content.decode()).group(1)


def addresses(project, member):
    """Every address of these pages that only managers may use, with the methods that it takes."""
    invitation = people.invite(project=project, created_by=make_user())[0]
    standing = Standing.objects.create(project=project, annotator=make_annotator(user=member.user))
    return {
        url("people", project.pk): {"get", "post"},
        url("change_role", project.pk, member.pk): {"post"},
        url("remove_member", project.pk, member.pk): {"post"},
        url("revoke_invitation", project.pk, invitation.pk): {"post"},
        url("ask_again", project.pk, standing.pk): {"post"},
        url("open_queue", project.pk, standing.pk): {"post"},
    }


# Who may see it


def test_whoever_is_no_manager_finds_nothing(project, member):
    reviewer = make_user()
    Membership.objects.create(project=project, user=reviewer, role="reviewer")
    elsewhere = make_user()
    Membership.objects.create(project=make_project(), user=elsewhere, role="manager")
    before = roles(project)

    answers = {
        getattr(client_of(user), method)(address).status_code
        for address, methods in addresses(project, member).items()
        for method in methods
        for user in (member.user, reviewer, elsewhere)
    }

    assert (answers, roles(project)) == ({404}, before)


def test_strangers_are_sent_to_sign_in(project, member):
    page = url("people", project.pk)
    found = {(address, Client().post(address).url) for address in addresses(project, member)}
    assert {target for _address, target in found} == {"/login/?next=/"}
    assert Client().get(page).url == f"/login/?next={page}"


def test_wrong_methods_are_refused(client, project, member):
    answers = {
        getattr(client, method)(address).status_code
        for address, methods in addresses(project, member).items()
        for method in {"get", "post", "put", "delete"} - methods
    }
    assert answers == {405}


def test_people_of_another_project_are_not_within_reach(client, project):
    other = make_project()
    stranger = Membership.objects.create(project=other, user=make_user(username="stranger"))
    standing = Standing.objects.create(project=other, annotator=make_annotator())
    invitation = people.invite(project=other, created_by=make_user())[0]

    answers = {
        client.post(url(name, project.pk, obj.pk), {"role": "manager"}).status_code
        for name, obj in {
            "change_role": stranger,
            "remove_member": stranger,
            "revoke_invitation": invitation,
            "ask_again": standing,
            "open_queue": standing,
        }.items()
    }

    invitation.refresh_from_db()
    assert (answers, roles(other), invitation.is_revoked) == ({404}, {"stranger": "annotator"}, False)


def test_staff_who_may_change_projects_manage_all_of_them(project):
    staff = make_user(is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="change_project"))
    assert client_of(staff).get(url("people", project.pk)).status_code == 200


# The page


def test_page_shows_members_and_their_work(client, project, member):
    make_judgment(comparison=make_comparison(project=project), annotator=make_annotator(user=member.user))

    words = main_of(client.get(url("people", project.pk)))

    assert "Members Name Role Judged Known answers right Remove " in words
    assert "amina Change amina 1 none Remove amina boss Change boss 0 none Remove boss" in words


def test_invite_shows_the_link_once(client, project):
    page = url("people", project.pk)
    values = {"role": "reviewer", "note": "for the office", "max_uses": 2, "days": 3}

    made = client.post(page, values)

    link = invitation_link(made)
    assert link.startswith("http://testserver/join/")
    assert made["Cache-Control"] == "max-age=0, no-cache, no-store, must-revalidate, private"
    assert 'id="invitation-link"' not in client.get(page).content.decode()
    assert "for the office reviewer 0 / 2" in main_of(client.get(page))
    assert list(Invitation.objects.values_list("role", "max_uses", "project")) == [("reviewer", 2, project.pk)]


def test_invite_refuses_what_is_too_much(client, project):
    answer = client.post(url("people", project.pk), {"role": "king", "max_uses": 0, "days": 400})

    assert re.findall(r'class="errorlist"[^>]*><li>(.*?)</li>', answer.content.decode()) == [
        "Select a valid choice. king is not one of the available choices.",
        "Ensure this value is greater than or equal to 1.",
        "Ensure this value is less than or equal to 90.",
    ]
    assert not Invitation.objects.exists()


def test_change_role_and_remove(client, project, member):
    back = url("people", project.pk)

    answer = client.post(url("change_role", project.pk, member.pk), {"role": "reviewer"})
    assert (answer.status_code, answer.url, roles(project)) == (302, back, {"boss": "manager", "amina": "reviewer"})
    client.post(url("change_role", project.pk, member.pk), {"role": "king"})
    assert roles(project) == {"boss": "manager", "amina": "reviewer"}
    client.post(url("remove_member", project.pk, member.pk))
    assert roles(project) == {"boss": "manager"}


def test_the_last_manager_is_told_why_they_stay(client, project, boss):
    membership = Membership.objects.get(user=boss)

    answer = client.post(url("remove_member", project.pk, membership.pk), follow=True)

    assert "Make somebody else a manager first: this is the only one." in main_of(answer)
    assert roles(project) == {"boss": "manager"}


def test_a_manager_who_gives_up_the_role_comes_to_their_projects(client, project, boss, member):
    people.set_role(membership=member, role="manager")

    answer = client.post(url("change_role", project.pk, Membership.objects.get(user=boss).pk), {"role": "annotator"})

    assert (answer.url, roles(project)) == ("/", {"boss": "annotator", "amina": "manager"})


def test_revoke_invitation(client, project, boss):
    invitation = people.invite(project=project, created_by=boss)[0]
    client.post(url("revoke_invitation", project.pk, invitation.pk))
    assert not Invitation.objects.open().exists()


def test_standings_can_be_opened(client, project, member):
    project.qualification_size = 1
    project.save()
    standing = Standing.objects.create(
        project=project, annotator=make_annotator(user=member.user), failed_at=timezone.now(), num_gold=1
    )
    assert "0 0 % (1) failed Let in amina Ask again amina" in main_of(client.get(url("people", project.pk)))

    refused = client.post(url("ask_again", project.pk, standing.pk), follow=True)
    client.post(url("open_queue", project.pk, standing.pk))

    assert "amina has judged too many of the qualification" in main_of(refused)
    standing.refresh_from_db()
    assert (standing.qualified_at is not None, standing.failed_at) == (True, None)


# Joining


@pytest.fixture
def join(project, boss):
    """The address behind an invitation."""
    return url("join", people.invite(project=project, created_by=boss)[1])


def test_join_with_an_account(join, project):
    amina = make_user(username="amina")

    page = client_of(amina).get(join)
    answer = client_of(amina).post(join)

    assert main_of(page) == "Join Cooking You are invited as annotator. Join as amina"
    assert (answer.status_code, answer.url) == (303, "/")
    assert roles(project) == {"boss": "manager", "amina": "annotator"}


def test_join_by_looking_does_nothing(join, project):
    client_of(make_user()).get(join)
    Client().get(join)
    assert roles(project) == {"boss": "manager"}


def test_join_makes_an_account_signs_in_and_joins(join, project):
    client = Client()
    form = client.get(join)

    answer = client.post(join, {"username": "amina", "password1": PASSWORD, "password2": PASSWORD}, follow=True)

    assert f'href="/login/?next={join.replace("/", "%2F")}"' in form.content.decode()
    assert "You have joined Cooking." in main_of(answer)
    assert roles(project) == {"boss": "manager", "amina": "annotator"}
    amina = User.objects.get(username="amina")
    assert (amina.check_password(PASSWORD), amina.is_staff, amina.is_superuser) == (True, False, False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"username": "boss"}, "A user with that username already exists."),
        ({"password2": "another one entirely"}, "The two password fields didn\u2019t match."),
        (
            {"password1": "short", "password2": "short"},
            "This password is too short. It must contain at least 12 characters.",
        ),
        ({"password1": "", "password2": ""}, "This field is required."),
    ],
)
def test_join_refuses_an_account(join, project, values, words):
    answer = Client().post(join, {"username": "amina", "password1": PASSWORD, "password2": PASSWORD, **values})

    assert answer.status_code == 200
    assert words in answer.content.decode()
    assert not User.objects.filter(username="amina").exists()
    assert (roles(project), Invitation.objects.get().num_uses) == ({"boss": "manager"}, 0)


@pytest.mark.parametrize("why", ["used", "expired", "revoked"])
def test_join_by_an_invitation_that_is_over(join, project, why):
    match why:
        case "used":
            client_of(make_user()).post(join)
        case "expired":
            Invitation.objects.update(expires_at=timezone.now())
        case "revoked":
            Invitation.objects.update(is_revoked=True)
    before = roles(project)
    account = {"username": "zora", "password1": PASSWORD, "password2": PASSWORD}
    user = make_user()

    answers = [
        Client().get(join),
        Client().post(join, account),
        client_of(user).get(join),
        client_of(user).post(join),
    ]

    assert [answer.status_code for answer in answers] == [410] * 4
    assert {main_of(answer) for answer in answers} == {
        "The invitation is over This link has expired, was used already, or was taken back. "
        "Ask whoever gave it to you for a new one. Projects"
    }
    assert (roles(project), User.objects.filter(username="zora").exists()) == (before, False)


def test_join_again_changes_nothing(join, project):
    client = client_of(make_user(username="amina"))
    client.post(join)

    page, answer = client.get(join), client.post(join)

    assert "You are a member already, as annotator." in main_of(page)
    assert (answer.status_code, Invitation.objects.get().num_uses) == (303, 1)


def test_join_by_an_unknown_token_finds_nothing(project):
    for client in (Client(), client_of(make_user())):
        assert {client.get(url("join", "x" * 43)).status_code, client.post(url("join", "x" * 43)).status_code} == {404}


def test_join_takes_no_other_method(join):
    assert Client().put(join).status_code == 405


def test_join_keeps_the_secret_out_of_logs(join, caplog):
    """What is logged: a form without its CSRF token, a wrong method, an invitation that is over."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user())
    with caplog.at_level(logging.DEBUG):
        answers = [client.post(join).status_code, Client().put(join).status_code]
        Invitation.objects.update(is_revoked=True)
        answers.append(client.get(join).status_code)

    console = next(handler for handler in logging.getLogger().handlers if isinstance(handler.formatter, LineFormatter))
    written = [console.format(record).partition(" ")[2].partition(" ")[2] for record in caplog.records]
    assert answers == [403, 405, 410]
    assert written == [
        "WARNING django.security.csrf: Forbidden (CSRF cookie not set.): /join/…/",
        "WARNING django.request: Method Not Allowed (PUT): /join/…/",
        "WARNING django.request: Gone: /join/…/",
    ]
