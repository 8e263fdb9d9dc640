"""Every kind of comparison through its page: asked, answered, taken up again, revised, given up."""

import json
import re
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from annotate import services
from annotate.models import Aspect, Draft, Flag, Gold, Judgment, Lease, Response, Revision, Skip, Standing
from tests import factories
from tests.annotate.test_views import in_words

pytestmark = pytest.mark.django_db

SCRIPT = {"HX-Request": "true"}


@pytest.fixture
def annotator():
    return factories.make_annotator(user=factories.make_user(username="amina"))


@pytest.fixture
def client(annotator):
    client = Client()
    client.force_login(annotator.user)
    return client


def url(name, obj):
    return reverse(f"annotate:{name}", args=[obj.pk])


def make_lease(annotator, *, k=2, aspects=(), **values):
    project = factories.make_project(mirror_share=0, **values)
    for position, name in enumerate(aspects):
        Aspect.objects.create(project=project, name=name, text=f"About {name}.", position=position)
    return factories.make_lease(comparison=factories.make_comparison(project=project, k=k), annotator=annotator)


def send(client, lease, headers=SCRIPT, **values):
    address = url("comparison", lease.comparison)
    return client.post(address, {"key": str(lease.key), **values}, headers=headers)


def shown(lease, *groups):
    return [[lease.shown_order["ABCDEFGHIJKL".index(letter)] for letter in group] for group in groups]


def pressed(html):
    """Which buttons, radio buttons and options are given."""
    return re.findall(r'name="([\w-]+)" value="([\w-]+)"[^>]* (?:aria-pressed="true"|checked)>', html) + re.findall(
        r'<option value="([\w-]+)" selected>()', html
    )


# Best of K, ratings, aspects


def test_best_is_a_button_in_each_card(client, annotator):
    lease = make_lease(annotator, k=3, kind="best")

    html = client.get(url("comparison", lease.comparison)).content.decode()

    assert re.findall(r'name="best" value="(\w+)"', html) == ["0", "1", "2", "none"]
    assert 'data-kind="best"' in html
    assert "Which response is the best?" in html
    assert pressed(html) == []


@pytest.mark.parametrize(("best", "groups", "is_all_bad"), [("2", ("C", "AB"), False), ("none", ("ABC",), True)])
def test_best_is_stored(client, annotator, best, groups, is_all_bad):
    lease = make_lease(annotator, k=3, kind="best")

    response = send(client, lease, best=best)

    judgment = Judgment.objects.get()
    assert (response.status_code, response["X-Saved"]) == (200, str(judgment.pk))
    assert (judgment.ranking, judgment.kind, judgment.is_all_bad) == (shown(lease, *groups), "best", is_all_bad)


def test_ratings_are_radio_buttons_in_each_card(client, annotator):
    lease = make_lease(annotator, k=2, kind="rating", rating_max=3)

    html = client.get(url("comparison", lease.comparison)).content.decode()

    assert re.findall(r'type="radio" name="(rating-\d)" value="(\d)"', html) == [
        (f"rating-{position}", str(rating)) for position in range(2) for rating in (1, 2, 3)
    ]
    assert "Rate each response from 1 to 3" in html
    assert pressed(html) == []


def test_ratings_are_stored(client, annotator):
    lease = make_lease(annotator, k=3, kind="rating")
    first, second, third = lease.shown_order

    send(client, lease, **{"rating-0": "2", "rating-1": "5", "rating-2": "1"})

    judgment = Judgment.objects.get()
    assert judgment.ratings == {str(first): 2, str(second): 5, str(third): 1}
    assert judgment.ranking == [[second], [first], [third]]


def test_ratings_that_are_missing_come_back_with_the_others(client, annotator):
    lease = make_lease(annotator, k=3, kind="rating")

    response = send(client, lease, **{"rating-0": "2"})

    html = response.content.decode()
    assert (response.status_code, pressed(html)) == (422, [("rating-0", "2")])
    assert "<p>Rate B, C.</p>" in html
    assert not Judgment.objects.exists()


def test_aspects_of_a_pair_are_asked_and_stored_in_one_submit(client, annotator):
    lease = make_lease(annotator, aspects=("clarity", "harmlessness"))
    html = client.get(url("comparison", lease.comparison)).content.decode()
    assert re.findall(r'<fieldset class="aspect" data-aspect="(\w+)"', html) == ["clarity", "harmlessness"]
    assert "data-needs-submit" in html

    send(client, lease, verdict="a-strongly", **{"clarity-verdict": "tie", "harmlessness-verdict": "b-slightly"})

    found = {each.aspect: (each.ranking, each.strength) for each in Judgment.objects.all()}
    assert found == {
        "overall": (shown(lease, "A", "B"), 2),
        "clarity": (shown(lease, "AB"), None),
        "harmlessness": (shown(lease, "B", "A"), 1),
    }


def test_an_aspect_that_is_missing_is_named_and_the_verdict_kept(client, annotator):
    lease = make_lease(annotator, aspects=("clarity",))

    html = send(client, lease, verdict="b-slightly").content.decode()

    assert "<p>clarity: Choose one of the answers below.</p>" in html
    assert pressed(html) == [("verdict", "b-slightly")]
    assert '<input type="hidden" name="verdict" value="b-slightly">' in html  # so that Submit alone sends it
    assert not Judgment.objects.exists()


def test_aspects_of_a_list_stand_in_each_card(client, annotator):
    lease = make_lease(annotator, k=3, aspects=("clarity",))
    html = client.get(url("comparison", lease.comparison)).content.decode()
    assert re.findall(r'<select name="([\w-]+)"', html)[:6] == [
        name for position in range(3) for name in (f"place-{position}", f"clarity-place-{position}")
    ]

    places = {"place-0": "1", "place-1": "2", "place-2": "2"}
    send(client, lease, **places, **{f"clarity-{name}": "1" for name in places})

    found = {each.aspect: each.ranking for each in Judgment.objects.all()}
    assert found == {"overall": shown(lease, "A", "BC"), "clarity": shown(lease, "ABC")}


def test_aspects_that_are_not_asked_are_left_out(client, annotator):
    lease = make_lease(annotator, aspects=("clarity",))
    Aspect.objects.update(is_asked=False)

    assert "clarity" not in client.get(url("comparison", lease.comparison)).content.decode()
    assert send(client, lease, verdict="tie").status_code == 200


@pytest.mark.parametrize(
    ("values", "placement"),
    [({"confirm": "1"}, "confirmed"), ({"place-0": "1", "place-1": "2", "place-2": "3"}, "placed")],
)
def test_whether_the_order_shown_was_confirmed_is_stored(client, annotator, values, placement):
    lease = make_lease(annotator, k=3)

    send(client, lease, **values, placement="confirmed")  # what the page says of it does not count

    judgment = Judgment.objects.get()
    assert (judgment.ranking, judgment.placement) == (shown(lease, *"ABC"), placement)


# What goes with an answer


def test_reasons_marks_and_a_better_answer_are_stored(client, annotator):
    lease = make_lease(annotator)
    mark = {"start": 0, "end": 6, "text": "Answer", "reason": "Wrong"}

    send(
        client,
        lease,
        verdict="tie",
        rationale="Both are short.",
        highlights=json.dumps([{"position": 1, **mark}]),
        edit="Mine.",
        edit_of="1",
        seconds="4",
        total_seconds="9",
    )

    judgment, edited = Judgment.objects.get(), Response.objects.get(content="Mine.")
    assert (judgment.rationale, judgment.seconds, judgment.total_seconds) == ("Both are short.", 4.0, 9.0)
    assert judgment.highlights == [{"response": lease.shown_order[1], **mark}]
    assert (edited.author, edited.edited_from_id) == (annotator, lease.shown_order[1])
    assert judgment.ranking == [[edited.pk], *shown(lease, "AB")]


def test_what_is_too_long_comes_back_with_the_name_of_its_field(client, annotator):
    lease = make_lease(annotator)

    response = send(client, lease, verdict="tie", rationale="x" * 5001)

    assert response.status_code == 422
    assert "Why?: Ensure this value has at most 5000 characters (it has 5001)." in response.content.decode()
    assert not Judgment.objects.exists()


# What the page holds, and what comes next


def make_queue(annotator, number):
    project = factories.make_project(mirror_share=0)
    comparisons = [factories.make_comparison(project=project) for _ in range(number)]
    return project, comparisons, factories.make_lease(comparison=comparisons[0], annotator=annotator)


def test_prefetch_brings_the_comparison_after_those_on_the_page(client, annotator):
    project, comparisons, _lease = make_queue(annotator, 3)

    response = client.post(url("next", project), {"besides": [comparisons[0].pk]}, headers=SCRIPT)

    assert (response.status_code, response["HX-Push-Url"]) == (200, url("comparison", comparisons[1]))
    assert f'data-id="{comparisons[1].pk}"' in response.content.decode()


def test_prefetch_of_nothing_is_empty(client, annotator):
    project, comparisons, _lease = make_queue(annotator, 1)

    response = client.post(url("next", project), {"besides": [comparisons[0].pk]}, headers=SCRIPT)

    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("besides", ["x", "-1", "²", "9" * 30, ""])
def test_what_is_no_number_holds_nothing(client, annotator, besides):
    project, comparisons, _lease = make_queue(annotator, 1)

    response = client.post(url("next", project), {"besides": [besides]}, headers=SCRIPT)

    assert response["HX-Push-Url"] == url("comparison", comparisons[0])


def test_submit_brings_what_the_page_does_not_hold_yet(client, annotator):
    project, comparisons, lease = make_queue(annotator, 3)
    client.post(url("next", project), {"besides": [comparisons[0].pk]}, headers=SCRIPT)

    response = send(client, lease, verdict="tie", besides=[comparisons[1].pk])

    assert response["HX-Push-Url"] == url("comparison", comparisons[2])
    assert set(Lease.objects.values_list("comparison", flat=True)) == {comparisons[1].pk, comparisons[2].pk}


def test_the_same_submit_again_says_what_is_stored(client, annotator):
    _project, _comparisons, lease = make_queue(annotator, 2)

    saved = [send(client, lease, verdict=verdict)["X-Saved"] for verdict in ("tie", "a-strongly")]

    judgment = Judgment.objects.get()
    assert (saved, judgment.strength) == ([str(judgment.pk)] * 2, None)


def test_a_page_shown_before_its_lease_was_taken_anew_keeps_its_order(client, annotator):
    """Mirrored by now, because somebody else has come in between: what the page showed counts."""
    project = factories.make_project(mirror_share=1, overlap=3)
    comparison = factories.make_comparison(project=project)
    lease = factories.make_lease(comparison=comparison, annotator=annotator)
    services.lease_next(project=project, annotator=factories.make_annotator(), now=timezone.now() + timedelta(hours=1))
    comparison.refresh_from_db()
    assert services.renew_lease(comparison=comparison, annotator=annotator)
    assert Lease.objects.get(annotator=annotator).shown_order == lease.shown_order[::-1]

    send(client, lease, verdict="a-strongly")

    judgment = Judgment.objects.get()
    assert (judgment.ranking, judgment.shown_order, judgment.mirror, judgment.is_extra) == (
        shown(lease, "A", "B"),
        lease.shown_order,
        "straight",
        False,
    )


def test_submit_with_aspects_and_drafts_takes_few_queries(client, annotator, django_assert_max_num_queries):
    lease = make_lease(annotator, aspects=("clarity", "harmlessness"))
    for _ in range(3):
        factories.make_comparison(project=lease.project)
    services.save_draft(comparison=lease.comparison, annotator=annotator, values={"verdict": "tie"})

    with django_assert_max_num_queries(20):
        send(client, lease, verdict="tie", **{"clarity-verdict": "tie", "harmlessness-verdict": "tie"})

    assert Judgment.objects.count() == 3


# Drafts


def test_draft_is_kept_and_fills_the_page(client, annotator):
    lease = make_lease(annotator, k=3)
    before = lease.expires_at

    response = client.post(
        url("draft", lease.comparison),
        {"key": str(lease.key), "place-1": "2", "rationale": "So far", "seconds": "7.5", "nonsense": "x"},
    )

    assert response.status_code == 204
    assert Draft.objects.get().values == {"place-1": "2", "rationale": "So far", "seconds": "7.5"}
    lease.refresh_from_db()
    assert lease.expires_at > before
    html = client.get(url("comparison", lease.comparison)).content.decode()
    assert pressed(html) == [("2", "")]
    assert '<details class="extras" data-extras open>' in html
    assert 'name="seconds" value="7.5"' in html
    assert "So far</textarea>" in html


def test_a_sign_of_life_renews_the_lease_and_keeps_the_draft(client, annotator):
    lease = make_lease(annotator)
    services.save_draft(comparison=lease.comparison, annotator=annotator, values={"verdict": "tie"})
    Lease.objects.update(expires_at=timezone.now())

    assert client.post(url("draft", lease.comparison), {"alive": "1"}).status_code == 204
    assert Lease.objects.get().expires_at > timezone.now() + timedelta(minutes=14)
    assert Draft.objects.get().values == {"verdict": "tie"}


def test_draft_of_what_has_gone_to_somebody_else_is_gone(client, annotator):
    lease = make_lease(annotator)
    Lease.objects.all().delete()
    factories.make_judgment(comparison=lease.comparison)

    for values in ({"key": str(lease.key), "alive": "1"}, {"key": str(lease.key), "verdict": "tie"}, {"alive": "1"}):
        assert client.post(url("draft", lease.comparison), values).status_code == 410
    assert not Draft.objects.exists()


def test_a_lease_is_taken_anew_only_by_who_was_shown_the_comparison(client, annotator):
    lease = make_lease(annotator)
    Lease.objects.all().delete()
    lease.comparison.num_taken = 0
    lease.comparison.save()

    foreign = str(lease.key_for(lease.comparison_id, 0))
    statuses = [
        client.post(url("draft", lease.comparison), values).status_code
        for values in ({"alive": "1"}, {"alive": "1", "key": foreign}, {"alive": "1", "key": str(lease.key)})
    ]

    assert (statuses, Lease.objects.count()) == ([410, 410, 204], 1)


# Skipping and flagging


def test_skip_keeps_its_reason(client, annotator):
    _project, comparisons, lease = make_queue(annotator, 2)

    values = {"key": str(lease.key), "reason": "language", "note": "Basque?"}
    response = client.post(url("skip", comparisons[0]), values, headers=SCRIPT)

    assert (response["X-Skipped"], response["HX-Push-Url"]) == (
        str(comparisons[0].pk),
        url("comparison", comparisons[1]),
    )
    skip = Skip.objects.get()
    assert (skip.reason, skip.note, skip.annotator) == ("language", "Basque?", annotator)


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("skip", {"reason": "boring"}, "Reason: Select a valid choice. boring is not one of the available choices."),
        ("skip", {"note": "x" * 2001}, "Note: Ensure this value has at most 2000 characters (it has 2001)."),
        ("flag", {}, "Reason: Choose a reason."),
    ],
)
def test_reasons_that_cannot_be_are_named(client, annotator, name, values, error):
    lease = make_lease(annotator)

    response = client.post(url(name, lease.comparison), {"key": str(lease.key), **values}, headers=SCRIPT)

    assert response.status_code == 422
    assert f"<p>{error}</p>" in response.content.decode()
    assert (Skip.objects.count(), Flag.objects.count(), Lease.objects.count()) == (0, 0, 1)


def test_flag_tells_the_leads_and_leaves_the_comparison(client, annotator):
    lease = make_lease(annotator)
    values = {"key": str(lease.key), "reason": "identity", "note": "It says who it is."}

    by_script = client.post(url("flag", lease.comparison), values, headers=SCRIPT)
    plain = client.post(url("flag", lease.comparison), values, follow=True)

    assert (by_script.status_code, by_script.content) == (204, b"")
    assert plain.redirect_chain == [(f"{url('comparison', lease.comparison)}?flagged=1", 303)]
    assert "Flagged. A lead will look at it" in plain.content.decode()
    flag = Flag.objects.get()
    assert (flag.reason, flag.note, flag.annotator, flag.project) == (
        "identity",
        "It says who it is.",
        annotator,
        lease.project,
    )


def test_flag_of_what_was_judged(client, annotator):
    judgment = factories.make_judgment(annotator=annotator)

    assert client.post(url("flag", judgment.comparison), {"reason": "other"}).status_code == 303
    assert Flag.objects.get().comparison == judgment.comparison


def test_flag_of_what_was_never_shown_is_not_found(client, annotator):
    comparison = factories.make_comparison()

    assert client.post(url("flag", comparison), {"reason": "other"}).status_code == 404
    assert not Flag.objects.exists()


# Revising


def test_a_judged_comparison_shows_the_answer_to_be_changed(client, annotator):
    lease = make_lease(annotator, k=3, aspects=("clarity",))
    places = {"place-0": "2", "place-1": "1", "place-2": "bad"}
    mark = {"position": 2, "start": 0, "end": 6, "text": "Answer", "reason": "Wrong"}
    send(
        client,
        lease,
        **places,
        **{f"clarity-{name}": "1" for name in places},
        rationale="C is wrong.",
        highlights=json.dumps([mark]),
        edit="Mine.",
        edit_of="1",
    )

    html = client.get(url("comparison", lease.comparison)).content.decode()

    assert " data-revising>" in html
    assert "Change your answer: Put the 3 responses in order" in html
    assert pressed(html) == [("2", ""), ("1", ""), ("1", ""), ("1", ""), ("bad", ""), ("1", ""), ("1", "")]
    assert "C is wrong.</textarea>" in html
    assert "Mine.</textarea>" in html
    assert json.dumps([mark]).replace('"', "&quot;") in sorted_json(html)
    assert "data-open-skip" not in html


def sorted_json(html):
    """The page with the marks' values in the order of the test's."""
    (marks,) = re.findall(r'name="highlights" value="([^"]*)"', html)
    names = ("position", "start", "end", "text", "reason")
    entered = [{name: mark[name] for name in names} for mark in json.loads(marks.replace("&quot;", '"'))]
    return json.dumps(entered).replace('"', "&quot;")


def test_revising_keeps_what_was_said_before(client, annotator):
    _project, comparisons, lease = make_queue(annotator, 2)
    send(client, lease, verdict="a-strongly", seconds="5", total_seconds="8")

    response = send(client, lease, verdict="b-slightly", revises="True", seconds="9", total_seconds="3")

    judgment = Judgment.objects.get()
    assert (response["X-Saved"], response["HX-Push-Url"]) == (str(judgment.pk), url("comparison", comparisons[1]))
    assert (judgment.ranking, judgment.strength, judgment.num_revisions) == (shown(lease, "B", "A"), 1, 1)
    assert (judgment.seconds, judgment.total_seconds) == (9.0, 8.0)
    assert Revision.objects.get().values["strength"] == 2
    html = client.get(url("comparison", lease.comparison)).content.decode()
    assert re.search(r"<li>A much better, until [^<]+</li>", html)
    assert pressed(html) == [("verdict", "b-slightly")]


def test_revising_without_an_answer_says_so(client, annotator):
    lease = make_lease(annotator, k=3)
    send(client, lease, confirm="1")

    response = send(client, lease, revises="True", **{"place-0": "1"})

    assert response.status_code == 422
    html = response.content.decode()
    assert "<p>Give a place to B, C.</p>" in html
    assert " data-revising>" in html
    assert not Revision.objects.exists()


def test_a_judgment_out_of_reach_cannot_be_revised(client, annotator):
    project = factories.make_project()
    comparisons = [factories.make_comparison(project=project) for _ in range(21)]
    judgment, *_newer = [factories.make_judgment(comparison=each, annotator=annotator) for each in comparisons]

    response = client.post(
        url("comparison", comparisons[0]), {"key": str(judgment.key), "verdict": "tie", "revises": "1"}
    )

    assert response.status_code == 409
    assert "Already judged" in response.content.decode()
    assert not Revision.objects.exists()


def test_somebody_elses_judgment_cannot_be_revised(client, annotator):
    judgment = factories.make_judgment()

    values = {"key": str(judgment.key), "verdict": "tie", "revises": "1"}
    assert client.post(url("comparison", judgment.comparison), values).status_code == 404
    assert not Revision.objects.exists()


def test_a_draft_of_a_revision_fills_the_page(client, annotator):
    lease = make_lease(annotator)
    send(client, lease, verdict="a-strongly")

    client.post(url("draft", lease.comparison), {"verdict": "tie", "rationale": "Hm."})

    html = client.get(url("comparison", lease.comparison)).content.decode()
    assert pressed(html) == [("verdict", "tie")]
    assert "Hm.</textarea>" in html


def test_a_sign_of_life_while_revising_is_heard(client, annotator):
    lease = make_lease(annotator)
    send(client, lease, verdict="a-strongly")

    assert client.post(url("draft", lease.comparison), {"alive": "1"}).status_code == 204
    assert (Lease.objects.count(), Draft.objects.count()) == (0, 0)


# My last judgments


def test_mine_lists_what_can_be_changed_newest_first(client, annotator):
    project, (first, second), lease = make_queue(annotator, 2)
    send(client, lease, verdict="b-slightly")
    send(client, lease, verdict="a-slightly", revises="True")
    send(client, services.lease_next(project=project, annotator=annotator), verdict="both-bad")
    factories.make_judgment(comparison=factories.make_comparison(project=project))  # somebody else's

    html = client.get(url("mine", project)).content.decode()

    assert re.findall(r'<a href="([^"]+)" data-revise', html) == [url("comparison", second), url("comparison", first)]
    assert re.findall(r"<strong>([^<]+)</strong>", html) == ["None is acceptable", "A slightly better"]
    assert html.count("changed once") == 1


@pytest.mark.parametrize("number", [1, 3])
def test_mine_takes_as_many_queries_for_three_as_for_one(client, annotator, number, django_assert_num_queries):
    project = factories.make_project()
    for _ in range(number):
        factories.make_judgment(comparison=factories.make_comparison(project=project, k=3), annotator=annotator)

    client.get(url("mine", project))  # counts the figures anew
    with django_assert_num_queries(13):
        client.get(url("mine", project))


def test_mine_shows_what_my_judgments_come_to(client, annotator):
    project = factories.make_project(overlap=2)
    for seconds in (10, 20, 30):
        comparison = factories.make_comparison(project=project)
        factories.make_judgment(comparison=comparison, annotator=annotator, seconds=seconds)
        factories.make_judgment(comparison=comparison, order=[[0], [1]])

    page = in_words(client.get(url("mine", project)))

    assert "My figures Time for a judgment, usually 20 s" in page
    assert "Others who judged the same pair said the same 100 %" in page
    assert "Known answers right" not in page


def test_mine_before_the_first_judgment(client):
    assert "Nothing yet." in client.get(url("mine", factories.make_project())).content.decode()


# Guidelines


def make_gold(project, *, contents=("Boil it.", "Fry it."), order=(1, 0), **values):
    comparison = factories.make_comparison(
        prompt=factories.make_prompt(project=project), contents=contents, is_gold=True, num_wanted=1000
    )
    ids = factories.response_ids(comparison)
    ranking = [[ids[place]] for place in order]
    return Gold.objects.create(comparison=comparison, project=project, ranking=ranking, **values)


def test_guidelines_show_worked_examples_and_aspects(client):
    project = factories.make_project(name="Cooking", guidelines="Be **kind**.")
    Aspect.objects.create(project=project, name="clarity", text="Is it *clear*?")
    make_gold(project, use=Gold.Use.EXAMPLE, explanation="Frying is *quicker*.")
    make_gold(project, contents=("Secret.", "Hidden."), use=Gold.Use.MIXED)

    html = client.get(url("guidelines", project)).content.decode()

    assert "<p>Be <strong>kind</strong>.</p>" in html
    assert "<p>Is it <em>clear</em>?</p>" in html
    assert re.findall(r"place (\d)</h4>\s*<div[^>]*><p>([^<]+)</p>", html) == [("2", "Boil it."), ("1", "Fry it.")]
    assert "The answer: B &gt; A" in html
    assert "<p>Frying is <em>quicker</em>.</p>" in html
    assert re.findall("Secret|Hidden|model-", html) == []


def test_guidelines_keep_their_versions(client):
    project = factories.make_project(guidelines="Old.")
    project.guidelines = "New."
    project.save()

    now, old = (client.get(url("guidelines", project), data).content.decode() for data in ({}, {"version": "1"}))

    assert re.findall(r"<p>(Old|New)\.</p>", now) == ["New"]
    assert re.findall(r"<p>(Old|New)\.</p>", old) == ["Old"]
    assert ("This is an earlier version." in now, "This is an earlier version." in old) == (False, True)
    assert re.findall(r'href="\?version=(\d)"', now) == ["2", "1"]
    for version in ("3", "x"):
        assert client.get(url("guidelines", project), {"version": version}).status_code == 404


@pytest.mark.parametrize("number", [1, 3])
def test_guidelines_take_as_many_queries_for_three_examples(client, number, django_assert_num_queries):
    project = factories.make_project()
    for _ in range(number):
        make_gold(project, use=Gold.Use.EXAMPLE)

    with django_assert_num_queries(7):
        client.get(url("guidelines", project))


# Known answers


def judge_gold(client, annotator, verdict_by_right, headers=SCRIPT, **values):
    project = factories.make_project(qualification_size=1, gold_feedback=True, **values)
    gold = make_gold(project, use=Gold.Use.QUALIFICATION, explanation="Frying is *quicker*.")
    lease = services.lease_next(project=project, annotator=annotator)
    better = "ab"[lease.shown_order.index(gold.ranking[0][0])]
    verdict = f"{better if verdict_by_right else 'ab'.replace(better, '')}-strongly"
    return lease, send(client, lease, verdict=verdict, headers=headers)


def test_a_right_answer_is_told(client, annotator):
    _lease, response = judge_gold(client, annotator, True)

    html = response.content.decode()
    assert re.search(r"</section>\s*<aside [^>]*data-feedback", html)  # outside its section
    assert "<strong>Right.</strong>" in html
    assert "<p>Frying is <em>quicker</em>.</p>" in html


def test_a_wrong_answer_is_told_with_the_known_one(client, annotator):
    lease, response = judge_gold(client, annotator, False)

    known, given = (
        ("B &gt; A", "A much better")
        if lease.comparison.gold.ranking[0][0] == lease.shown_order[1]
        else (
            "A &gt; B",
            "B much better",
        )
    )
    words = f"The answer to the last comparison was known: {known}. You answered: {given}."
    assert words in response.content.decode()


def test_the_plain_form_is_told_on_the_page_that_follows(client, annotator):
    lease, response = judge_gold(client, annotator, True, headers={})

    judgment = Judgment.objects.get()
    assert response["Location"] == f"{url('done', lease.project)}?judged={judgment.pk}"
    html = client.get(response["Location"]).content.decode()
    assert html.count("data-feedback") == html.count("<strong>Right.</strong>") == 1


def test_nobody_is_told_of_another_ones_answer(client, annotator):
    lease, _response = judge_gold(client, annotator, True)
    stranger = Client()
    stranger.force_login(factories.make_user())

    for judged in (str(Judgment.objects.get().pk), "0", "x", "9" * 40):
        html = stranger.get(url("done", lease.project), {"judged": judged}).content.decode()
        assert "data-feedback" not in html


def test_an_answer_that_was_told_cannot_be_changed(client, annotator):
    lease, _response = judge_gold(client, annotator, False)

    page = client.get(url("comparison", lease.comparison)).content.decode()
    sent = send(client, lease, verdict="tie", revises="True")

    assert "Already judged" in page
    assert "data-revise" not in client.get(url("mine", lease.project)).content.decode()
    assert (sent.status_code, Revision.objects.count()) == (409, 0)


def test_nothing_is_told_where_the_project_keeps_it_to_itself(client, annotator):
    project = factories.make_project(qualification_size=1)
    make_gold(project, use=Gold.Use.QUALIFICATION)
    lease = services.lease_next(project=project, annotator=annotator)

    response = send(client, lease, verdict="tie", headers={})

    assert response["Location"] == url("done", project)
    assert (
        "data-feedback" not in client.get(url("done", project), {"judged": Judgment.objects.get().pk}).content.decode()
    )


def test_a_comparison_with_a_known_answer_looks_like_any_other(client, annotator):
    project = factories.make_project(gold_rate=1.0)
    make_gold(project)
    lease = services.lease_next(project=project, annotator=annotator)

    html = client.get(url("comparison", lease.comparison)).content.decode()

    assert lease.comparison.is_gold
    assert re.findall(r"(?i)gold|known", html) == []


# Qualification


def test_the_way_into_the_queue_is_told(client, annotator):
    project = factories.make_project(qualification_size=2, qualification_accuracy=1.0)
    for _ in range(2):
        make_gold(project, use=Gold.Use.QUALIFICATION)
    factories.make_comparison(project=project)
    words = "The first 2 comparisons have a known answer. After them the queue opens. You have judged 0."
    assert words in client.get("/").content.decode()

    lease = services.lease_next(project=project, annotator=annotator)
    assert words in client.get(url("comparison", lease.comparison)).content.decode()
    html = send(client, lease, verdict="tie").content.decode()

    assert words.replace("judged 0", "judged 1") in html


def test_who_has_not_qualified_is_told_kindly(client, annotator):
    lease, response = judge_gold(client, annotator, False)
    factories.make_comparison(project=lease.project)

    pages = [response, client.get(url("done", lease.project)), client.get("/")]

    for page in pages:
        assert "Thank you for trying." in page.content.decode()
    assert "This project's queue is closed to you" in pages[1].content.decode()
    assert f'action="{url("next", lease.project)}"' not in pages[1].content.decode() + pages[2].content.decode()


def test_who_has_qualified_hears_no_more_of_it(client, annotator):
    lease, _response = judge_gold(client, annotator, True)
    factories.make_comparison(project=lease.project)

    assert "data-qualification" not in client.get("/").content.decode()
    assert Standing.objects.get().qualified_at is not None
