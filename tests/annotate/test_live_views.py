from uuid import uuid4

import pytest
from django.urls import reverse

from annotate import live, services
from annotate.models import Battle, Endpoint, Lease
from tests.annotate.openai_server import openai_server
from tests.factories import make_project, make_user

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def user(client):
    user = make_user()
    client.force_login(user)
    return user


@pytest.fixture
def project():
    with openai_server() as (url, _requests):
        project = make_project()
        for model in ("brief", "kind"):
            Endpoint.objects.create(project=project, name=model, model=model, base_url=url)
        yield project


def ask(client, project, **values):
    return client.post(reverse("annotate:live", args=[project.pk]), {"key": uuid4(), "text": "Why?", **values})


def test_live_page_asks_for_a_prompt(client, user, project):
    response = client.get(reverse("annotate:live", args=[project.pk]))

    assert response.status_code == 200
    assert "Your own prompt" in response.content.decode()


def test_live_page_sends_to_the_battle(client, user, project):
    response = ask(client, project)

    battle = Battle.objects.get()
    assert (response.status_code, response["Location"]) == (303, f"/battles/{battle.pk}/")
    assert (battle.annotator.user, battle.messages) == (user, [{"role": "user", "content": "Why?"}])


def test_live_page_refuses_an_empty_and_a_second_prompt(client, user, project):
    assert "Write a prompt first." in ask(client, project, text=" ").content.decode()
    ask(client, project)
    assert "Your last prompt is still being answered." in ask(client, project).content.decode()
    assert Battle.objects.count() == 1


def test_battle_shows_what_is_written_then_the_comparison(client, user, project):
    ask(client, project)
    battle = Battle.objects.get()
    page = reverse("annotate:battle", args=[battle.pk])

    writing = client.get(page, headers=HTMX)
    for answer in battle.answers.all():
        live.write_answer(answer_id=answer.pk)
    done = client.get(page, headers=HTMX)

    assert 'hx-trigger="every 500ms"' in writing.content.decode()
    comparison = f"/comparisons/{Lease.objects.get().comparison_id}/"
    assert done["HX-Redirect"] == comparison
    assert client.get(page)["Location"] == comparison
    assert "brief" not in client.get(comparison).content.decode()


def test_battle_says_when_too_few_answers_came(client, user, project):
    Endpoint.objects.update(model="silent")
    ask(client, project)
    battle = Battle.objects.get()
    for answer in battle.answers.all():
        live.write_answer(answer_id=answer.pk)

    page = client.get(reverse("annotate:battle", args=[battle.pk]), headers=HTMX).content.decode()

    assert "The models did not answer" in page
    assert "hx-trigger" not in page


def test_no_endpoints_no_live_page(client, user):
    assert client.get(reverse("annotate:live", args=[make_project().pk])).status_code == 404


def test_strangers_find_nothing(client, user, project):
    ask(client, project)
    battle = reverse("annotate:battle", args=[Battle.objects.get().pk])
    project.is_open = False
    project.save()

    client.force_login(make_user())

    assert client.get(battle).status_code == 404
    assert client.get(reverse("annotate:live", args=[project.pk])).status_code == 404
    assert ask(client, project).status_code == 404


def test_somebody_elses_battle_is_not_found(client, user, project):
    ask(client, project)
    other = make_user()
    services.annotator_for(user=other)
    client.force_login(other)

    assert client.get(reverse("annotate:battle", args=[Battle.objects.get().pk])).status_code == 404


def test_wrong_methods_and_visitors(client, project):
    page = reverse("annotate:live", args=[project.pk])

    assert client.get(page)["Location"] == f"/login/?next={page}"
    client.force_login(make_user())
    assert (client.put(page).status_code, client.post("/battles/1/").status_code) == (405, 405)
