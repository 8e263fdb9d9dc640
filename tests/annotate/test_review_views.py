import pytest
from django.urls import reverse

from annotate.models import Consensus, Membership, Verdict
from tests.factories import make_comparison, make_judgment, make_project, make_user, response_ids

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    return make_project(is_open=False, overlap=2)


@pytest.fixture
def reviewer(client, project):
    user = make_user()
    Membership.objects.create(project=project, user=user, role=Membership.Role.REVIEWER)
    client.force_login(user)
    return user


def disputed(project, *, k=2):
    """A comparison on which two annotators differ."""
    comparison = make_comparison(project=project, k=k, contents=tuple(f"text {place}" for place in range(k)))
    for order in (list(range(k)), list(range(k))[::-1]):
        make_judgment(comparison=comparison, order=[[place] for place in order], rationale="<b>Because</b>")
    return comparison


def queue(project):
    return reverse("annotate:review", args=[project.pk])


def verdict(comparison, place=0):
    return f"{reverse('annotate:verdict', args=[comparison.pk])}?aspect=overall&place={place}"


def test_queue_shows_what_annotators_differ_on(client, project, reviewer):
    comparison = disputed(project)

    page = client.get(queue(project)).content.decode()

    assert f"Comparison {comparison.pk}" in page
    assert page.count("&lt;b&gt;Because&lt;/b&gt;") == 2
    assert "model-0" not in page
    assert Consensus.objects.get().num_judgments == 2


def test_verdict_is_kept_and_the_next_one_follows(client, project, reviewer):
    comparison = disputed(project)

    response = client.post(verdict(comparison), {"verdict": "a-slightly", "note": "A says when."})

    assert (response.status_code, response["Location"]) == (303, f"{queue(project)}?aspect=overall&place=0")
    (kept,) = Verdict.objects.all()
    assert (kept.comparison, kept.reviewer.user, kept.aspect, kept.note) == (
        comparison,
        reviewer,
        "overall",
        "A says when.",
    )
    assert sorted(pk for group in kept.ranking for pk in group) == response_ids(comparison)
    assert "Nothing to review" in client.get(queue(project)).content.decode()


def test_verdict_on_a_list_needs_every_place(client, project, reviewer):
    comparison = disputed(project, k=3)
    client.get(queue(project))

    refused = client.post(verdict(comparison), {"place-0": "1"})
    kept = client.post(verdict(comparison), {"place-0": "1", "place-1": "2", "place-2": "2"})

    assert "Not placed yet." in refused.content.decode()
    assert kept.status_code == 303
    assert [len(group) for group in Verdict.objects.get().ranking] == [1, 2]


def test_later_shows_the_one_after(client, project, reviewer):
    first, second = disputed(project), disputed(project)
    pages = [client.get(f"{queue(project)}?place={place}").content.decode() for place in (0, 1, 2)]

    assert [
        f"Comparison {comparison.pk}" in page for comparison, page in zip((first, second), pages, strict=False)
    ] == [
        True,
        True,
    ]
    assert "Nothing to review" in pages[2]


@pytest.mark.parametrize("role", [None, Membership.Role.ANNOTATOR])
def test_only_reviewers_and_managers_review(client, project, role):
    comparison, user = disputed(project), make_user()
    if role:
        Membership.objects.create(project=project, user=user, role=role)
    client.force_login(user)

    assert client.get(queue(project)).status_code == 404
    assert client.post(verdict(comparison), {"verdict": "tie"}).status_code == 404
    assert Verdict.objects.count() == 0


def test_wrong_methods_and_visitors(client, project):
    comparison = disputed(project)
    assert client.get(queue(project))["Location"] == f"/login/?next={queue(project)}"
    client.force_login(make_user())
    assert client.post(queue(project)).status_code == 405
    assert client.get(verdict(comparison)).status_code == 405
