import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate import gold, services
from annotate.models import Consensus, Gold, Membership
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user, response_ids

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    return make_project(name="Cooking", is_open=False, gold_rate=1)


@pytest.fixture
def client(project):
    boss = make_user(username="boss")
    Membership.objects.create(project=project, user=boss, role="manager")
    return client_of(boss)


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


def url(name, *args):
    return reverse(f"annotate:{name}", args=args)


def main_of(response):
    main = re.sub(r"(?s).*<main.*?>|</main>.*|<(script|select|textarea).*?</\1>", "", response.content.decode())
    return " ".join(re.sub(r"<[^>]*>", " ", main).split())


def make_gold(project, **values):
    comparison = make_comparison(project=project)
    return gold.make_gold(comparison=comparison, ranking=[[pk] for pk in response_ids(comparison)], **values)


def judge(project, *, is_right):
    annotator = make_annotator(user=make_user())
    Membership.objects.create(project=project, user=annotator.user)
    lease = services.lease_next(project=project, annotator=annotator)
    ids = response_ids(lease.comparison)
    ranking = [[pk] for pk in (ids if is_right else ids[::-1])]
    services.record_judgment(
        comparison=lease.comparison, annotator=annotator, ranking=ranking, key=lease.key, source="browser"
    )


def answer_page(project, comparison):
    return f"{url('add_gold', project.pk)}?comparison={comparison.pk}"


def places(comparison, *numbers, **values):
    """The form: a place for each response in the order of the source."""
    placed = zip(response_ids(comparison), numbers, strict=True)
    return {"use": "mixed", "explanation": "", **{f"place-{pk}": number for pk, number in placed}, **values}


# Who may see it


def test_whoever_is_no_manager_finds_nothing(client, project):
    reviewer, elsewhere = make_user(), make_user()
    Membership.objects.create(project=project, user=reviewer, role="reviewer")
    other = make_project()
    Membership.objects.create(project=other, user=elsewhere, role="manager")
    mine = make_gold(project)
    gets = [url("gold", project.pk), answer_page(project, mine.comparison), url("change_gold", project.pk, mine.pk)]
    posts = [*gets[1:], url("remove_gold", project.pk, mine.pk)]

    answers = {client_of(user).get(page).status_code for user in (reviewer, elsewhere) for page in gets}
    answers |= {client_of(user).post(page).status_code for user in (reviewer, elsewhere) for page in posts}
    through_own = {
        client_of(elsewhere).post(url(name, other.pk, mine.pk)).status_code for name in ("change_gold", "remove_gold")
    }

    assert (answers, through_own, Gold.objects.count()) == ({404}, {404}, 1)
    assert {Client().get(page).status_code for page in gets} == {302}


def test_wrong_methods_are_refused(client, project):
    mine = make_gold(project)
    assert [
        client.post(url("gold", project.pk)).status_code,
        client.put(answer_page(project, mine.comparison)).status_code,
        client.put(url("change_gold", project.pk, mine.pk)).status_code,
        client.get(url("remove_gold", project.pk, mine.pk)).status_code,
    ] == [405] * 4


# The list


def test_list_shows_how_often_each_was_asked_and_answered_rightly(client, project):
    asked = make_gold(project)
    for is_right in (True, True, False):
        judge(project, is_right=is_right)
    fresh = make_gold(project, use="example")

    words = main_of(client.get(url("gold", project.pk)))

    rows = [
        f"{made.comparison_id} {made.comparison.prompt} {use} {shown} Remove {made.comparison_id}"
        for made, use, shown in (
            (fresh, "worked example in the guidelines", "0 none"),
            (asked, "mixed into the queue", "3 67 %"),
        )
    ]
    assert f"Number Prompt Use Asked Right Remove {' '.join(rows)} Number of a comparison" in words


def test_list_says_when_nobody_can_qualify(client, project):
    project.qualification_size = 2
    project.save()
    make_gold(project, use="qualification")
    words = "Nobody can qualify. Known answers asked for it: 2; there are: 1."

    assert words in main_of(client.get(url("gold", project.pk)))
    make_gold(project, use="qualification")
    assert words not in main_of(client.get(url("gold", project.pk)))


def test_list_takes_as_many_queries_for_three_rows_as_for_one(client, project, django_assert_num_queries):
    make_gold(project)
    judge(project, is_right=True)
    with CaptureQueriesContext(connection) as one:
        client.get(url("gold", project.pk))
    for _ in range(2):
        make_gold(project)
        judge(project, is_right=True)

    with django_assert_num_queries(len(one)):
        client.get(url("gold", project.pk))


# Adding


def test_add_gives_a_comparison_its_answer(client, project):
    comparison = make_comparison(project=project, k=3)
    first, second, third = response_ids(comparison)
    page = answer_page(project, comparison)

    html = client.get(page).content.decode()
    answer = client.post(page, places(comparison, 2, 1, 2, use="qualification", explanation="It is **true**."))

    assert re.findall(r'<option value="(\d?)" selected>', html) == ["", "", ""]
    assert (answer.status_code, answer.url) == (302, url("gold", project.pk))
    assert Gold.objects.values_list("comparison", "ranking", "use", "explanation").get() == (
        comparison.pk,
        [[second], [first, third]],
        "qualification",
        "It is **true**.",
    )


def test_add_fills_in_what_annotators_agreed_on(client, project):
    comparison = make_comparison(project=project)
    first, second = response_ids(comparison)
    Consensus.objects.create(
        comparison=comparison, project=project, ranking=[[second], [first]], certainty=0.9, num_judgments=3
    )

    html = client.get(answer_page(project, comparison)).content.decode()

    assert re.findall(r'<option value="(\d)" selected>', html) == ["2", "1"]


def test_add_refuses_what_is_no_answer(client, project):
    comparison = make_comparison(project=project)
    page = answer_page(project, comparison)

    answers = [
        client.post(page, places(comparison, 1, 1)),
        client.post(page, places(comparison, 1, "")),
        client.post(page, places(comparison, 1, 9)),
        client.post(page, places(comparison, 1, 2, use="decoration")),
    ]

    said = [re.findall(r'class="errorlist[^>]*><li>(.*?)</li>', answer.content.decode()) for answer in answers]
    assert said == [
        ["A known answer must put one response before another."],
        ["Not placed yet."],
        ["Select a valid choice. 9 is not one of the available choices."],
        ["Select a valid choice. decoration is not one of the available choices."],
    ]
    assert not Gold.objects.exists()


@pytest.mark.parametrize("number", ["", "x", "99999999999999999999999", "elsewhere"])
def test_add_finds_no_comparison_of_another_project(client, project, number):
    number = make_comparison().pk if number == "elsewhere" else number

    answer = client.get(f"{url('add_gold', project.pk)}?comparison={number}", follow=True)

    assert answer.redirect_chain == [(url("gold", project.pk), 302)]
    assert "There is no comparison of that number in this project." in main_of(answer)


def test_add_says_what_becomes_of_judgments(client, project):
    comparison = make_comparison(project=project)
    make_judgment(comparison=comparison)

    assert "It has been judged. As a worked example it keeps its judgments" in main_of(
        client.get(answer_page(project, comparison))
    )


# Changing and removing


def test_change_keeps_the_answer(client, project):
    made = make_gold(project)
    page = url("change_gold", project.pk, made.pk)

    shown = main_of(client.get(page))
    client.post(page, {"use": "example", "explanation": "Why not."})

    assert "Place 1 Answer" in shown
    assert Gold.objects.values_list("ranking", "use", "explanation").get() == (made.ranking, "example", "Why not.")


def test_remove(client, project):
    fresh = make_gold(project)
    client.post(url("remove_gold", project.pk, fresh.pk))
    assert not Gold.objects.exists()

    judged = make_gold(project)
    judge(project, is_right=True)
    answer = client.post(url("remove_gold", project.pk, judged.pk), follow=True)

    assert "It has been judged as gold." in main_of(answer)
    assert list(Gold.objects.all()) == [judged]
