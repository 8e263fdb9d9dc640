import re

import pytest
from django.test import Client
from django.urls import reverse

from annotate.models import ApiToken
from annotate.tokens import token_digest
from tests.factories import make_user

pytestmark = pytest.mark.django_db

PAGE = "/account/tokens/"


@pytest.fixture
def user():
    return make_user(username="amina")


@pytest.fixture
def client(user):
    client = Client()
    client.force_login(user)
    return client


def make_token(user, name="script", **values):
    return ApiToken.objects.create(user=user, name=name, digest=token_digest(name), **values)


def names(response):
    return re.findall(r'<th scope="row">(.*?)</th>', response.content.decode())


def test_a_token_is_shown_once_and_kept_by_its_digest(client, user):
    made = client.post(PAGE, {"name": "nightly import"})

    secret = re.search(r'id="token" value="([^"]*)"', made.content.decode()).group(1)
    assert ApiToken.objects.values_list("user", "name", "digest", "is_revoked", "last_used_at").get() == (
        user.pk,
        "nightly import",
        token_digest(secret),
        False,
        None,
    )
    again = client.get(PAGE)
    assert (secret in again.content.decode(), names(again)) == (False, ["nightly import"])
    assert "no-store" in made["Cache-Control"]


def test_a_token_needs_a_name(client):
    answer = client.post(PAGE, {"name": ""})
    assert "This field is required." in answer.content.decode()
    assert not ApiToken.objects.exists()


def test_revoke(client, user):
    token = make_token(user)

    answer = client.post(reverse("annotate:revoke_token", args=[token.pk]))

    token.refresh_from_db()
    assert (answer.url, token.is_revoked, names(client.get(PAGE))) == (PAGE, True, [])


def test_tokens_of_others_are_not_within_reach(client):
    theirs = make_token(make_user())

    answer = client.post(reverse("annotate:revoke_token", args=[theirs.pk]))

    theirs.refresh_from_db()
    assert (answer.status_code, theirs.is_revoked, names(client.get(PAGE))) == (404, False, [])


def test_strangers_and_wrong_methods(client, user):
    revoke = reverse("annotate:revoke_token", args=[make_token(user).pk])
    assert Client().get(PAGE).url == f"/login/?next={PAGE}"
    assert Client().post(revoke).status_code == 302
    assert [client.put(PAGE).status_code, client.get(revoke).status_code] == [405, 405]


def test_list_takes_as_many_queries_for_three_tokens_as_for_one(client, user, django_assert_num_queries):
    for number in (1, 2):
        for place in range(number):
            make_token(user, f"token {number} {place}")
        with django_assert_num_queries(3):
            client.get(PAGE)
