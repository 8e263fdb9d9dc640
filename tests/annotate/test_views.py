import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from django.template.loader import render_to_string
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from annotate import services
from annotate.models import Annotator, Comparison, Endpoint, Judgment, Lease, Membership, Skip
from tests import factories

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def user():
    return factories.make_user(username="amina")


@pytest.fixture
def annotator(user):
    return factories.make_annotator(user=user)


@pytest.fixture
def client(user):
    client = Client()
    client.force_login(user)
    return client


def url(name, obj):
    return reverse(f"annotate:{name}", args=[obj.pk])


def pair(lease, verdict="a-strongly", **values):
    return {"key": str(lease.key), "verdict": verdict, **values}


def listing(lease, *places, **values):
    return {"key": str(lease.key), **{f"place-{i}": place for i, place in enumerate(places)}, **values}


def stored(judgment):
    names = ("ranking", "strength", "bad", "is_all_bad", "is_extra", "shown_order", "seconds", "source", "key")
    return {name: getattr(judgment, name) for name in names}


def in_words(response):
    """What the page says inside <main>, without tags."""
    main = re.sub(r"(?s).*<main.*?>|</main>.*|<(script|select|dialog|template).*?</\1>", "", response.content.decode())
    return " ".join(re.sub(r"<[^>]*>", " ", main).split())


# Projects


def test_projects_show_my_progress(client, annotator):
    mine = factories.make_project(name="Cooking", description="Recipes.")
    factories.make_project(name="Locked", is_open=False)
    for _ in range(3):
        factories.make_comparison(project=mine)
    factories.make_judgment(comparison=mine.comparisons.first(), annotator=annotator)

    response = client.get("/")

    assert in_words(response) == (
        "Projects Compare answers and say which you prefer. What you save counts at once; you can stop any time. "
        "Cooking Recipes. Continue Cooking 1 judged by you Guidelines"
    )
    assert f'<a href="{url("mine", mine)}">1 judged by you</a>' in response.content.decode()
    assert f'<form method="post" action="{url("next", mine)}">' in response.content.decode()


def test_projects_with_nothing_open(client):
    factories.make_project(name="Empty")

    assert in_words(client.get("/")).endswith("Empty Nothing is open to you here now. Guidelines")


def test_projects_lead_to_what_else_can_be_done_there(client, user):
    project = factories.make_project()
    for name in ("one", "two"):
        Endpoint.objects.create(project=project, name=name, model="m")
    Membership.objects.create(project=project, user=user, role="manager")

    html = client.get("/").content.decode()

    links = [url(name, project) for name in ("guidelines", "live", "lead", "review", "people", "settings")]
    assert re.findall(rf'<a href="(/projects/{project.pk}/[^"]+)"', html) == links


def test_no_projects(client):
    assert in_words(client.get("/")).endswith(
        "Nothing to judge yet You are in no project. As soon as somebody adds you to one, it stands here."
    )


def test_projects_take_as_many_queries_for_three_as_for_one(client, django_assert_num_queries):
    factories.make_comparison()
    with django_assert_num_queries(4):  # session, user, annotator, projects
        client.get("/")
    factories.make_comparison()
    factories.make_comparison()
    with django_assert_num_queries(4):
        client.get("/")


# The next comparison


def test_next_leases_a_comparison(client, user):
    comparison = factories.make_comparison()

    response = client.post(url("next", comparison.project))

    assert (response.status_code, response["Location"]) == (303, url("comparison", comparison))
    lease = Lease.objects.get()
    assert (lease.comparison, lease.annotator.user) == (comparison, user)


def test_next_returns_to_what_is_held_already(client):
    project = factories.make_project()
    first, _ = factories.make_comparison(project=project), factories.make_comparison(project=project)

    locations = [client.post(url("next", project))["Location"] for _ in range(2)]

    assert locations == [url("comparison", first)] * 2


def test_next_of_nothing_says_so(client):
    project = factories.make_project(name="Cooking")

    response = client.post(url("next", project), follow=True)

    assert response.redirect_chain == [(url("done", project), 303)]
    assert in_words(response) == (
        "All done for now Nothing in this project is open to you now. What others leave comes back to the queue. "
        "You have judged 0 in Cooking. Look again To my projects"
    )


def test_next_of_a_foreign_project_is_not_found(client):
    comparison = factories.make_comparison(project=factories.make_project(is_open=False))

    assert client.post(url("next", comparison.project)).status_code == 404
    assert not Lease.objects.exists()


# A comparison on show


@pytest.mark.parametrize("k", [2, 4])
def test_comparison_shows_responses_in_the_order_drawn(client, annotator, k):
    comparison = factories.make_comparison(k=k)
    lease = factories.make_lease(comparison=comparison, annotator=annotator)
    contents = dict(comparison.responses.values_list("pk", "content"))

    pages = [client.get(url("comparison", comparison)) for _ in range(3)]

    shown = [re.findall(r"<p>(Answer \d+\.)</p>", page.content.decode()) for page in pages]
    assert shown == [[contents[pk] for pk in lease.shown_order]] * 3


def test_order_differs_between_annotators():
    comparison = factories.make_comparison(k=6, num_wanted=8)

    orders = {tuple(factories.make_lease(comparison=comparison).shown_order) for _ in range(8)}

    assert len(orders) > 1


def test_comparison_shows_the_conversation_and_the_guidelines(client, annotator):
    project = factories.make_project(name="Cooking", guidelines="Prefer **safe** advice.")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How long do eggs boil?"},
        {"role": "assistant", "content": "Soft or hard?"},
        {"role": "user", "content": "*Hard*"},
    ]
    prompt = factories.make_prompt(project=project, messages=messages)
    comparison = factories.make_comparison(prompt=prompt, contents=("Ten minutes.", "Ten minutes. "))
    factories.make_lease(comparison=comparison, annotator=annotator)

    response = client.get(url("comparison", comparison))

    assert in_words(response) == (
        "Which response is better? Cooking 0 judged by you Keys ? Guidelines G Prefer safe advice. "
        "Worked examples and earlier versions "
        "System Be brief. User How long do eggs boil? Assistant Soft or hard? User Hard "
        "A : response Ten minutes. B : response Ten minutes. "
        "Say why, or write a better answer R Why? A better answer It becomes a response of its own, ranked first. "
        "It is made from Your judgment "
        "A much better 1 A slightly better 2 Tie 3 B slightly better 4 B much better 5 Both bad 0 Skip S Flag F "
        "Skip or flag it Why do you skip it? Note, if you like Skip this comparison "
        "What is wrong with it? Note for the leads Flag this comparison"
    )


def telltale_comparison(k):
    """A comparison whose responses' ids and models are unlike everything else on the page."""
    comparison = factories.make_comparison(k=k)
    for position, option in enumerate(comparison.options.all()):
        option.response = comparison.prompt.responses.create(
            pk=7_000_001 + position, content=f"Take {position}.", model=f"Zephyr-{position}B"
        )
        option.save()
    return comparison


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("headers", [{}, HTMX])
def test_model_names_and_ids_of_responses_never_reach_the_page(client, annotator, k, headers):
    comparison = telltale_comparison(k)
    lease = factories.make_lease(comparison=comparison, annotator=annotator)

    html = client.get(url("comparison", comparison), headers=headers).content.decode()

    assert (sorted(lease.shown_order)[0], html.count("Take ")) == (7_000_001, 2 * k)  # rendered, and as it was written
    assert re.findall(r"(?i)zephyr|700000\d", html) == []
    forms = 1 if headers else 2  # the dialog, and what stands for it without script
    assert re.findall(r"(?i)[^ >]* [^ ]*model[^ ]*", html) == ["A model"] * forms  # a reason to flag


def test_hostile_text_is_shown_as_text(client, annotator):
    attack = '<button name="verdict" value="tie" hx-get="/">x</button><script>alert(1)</script>'
    project = factories.make_project(guidelines=attack, name="<b>n</b>")
    prompt = factories.make_prompt(project=project, messages=[{"role": "<i>user", "content": attack}])
    comparison = factories.make_comparison(prompt=prompt, contents=(attack, f"# {attack}\u200b", f"- {attack}"))
    factories.make_lease(comparison=comparison, annotator=annotator)

    html = client.get(url("comparison", comparison)).content.decode()

    escaped = (
        '&lt;button name="verdict" value="tie" hx-get="/"&gt;x&lt;/button&gt;&lt;script&gt;alert(1)&lt;/script&gt;'
    )
    assert html.count(escaped) == 5  # guidelines, prompt, three responses
    as_written = escaped.replace('"', "&quot;")
    assert html.count(as_written) == 3  # for the field of the better answer
    rest = html.replace(escaped, "").replace(as_written, "")
    assert re.findall(r"<script>|<b>|<i>|hx-get|<button name=.verdict.", rest) == []
    assert html.count("Holds invisible characters.") == 1


def test_comparison_of_somebody_else_is_not_found(client, annotator):
    comparison = factories.make_comparison(num_wanted=2)
    factories.make_lease(comparison=comparison)

    assert client.get(url("comparison", comparison)).status_code == 404
    assert client.post(url("comparison", comparison), {"verdict": "tie"}).status_code == 404
    assert client.post(url("skip", comparison)).status_code == 404
    assert not Judgment.objects.exists()
    assert not Skip.objects.exists()


def test_comparison_is_not_found_by_who_has_never_started(client):
    comparison = factories.make_comparison()

    assert client.get(url("comparison", comparison)).status_code == 404
    assert client.post(url("comparison", comparison), {"verdict": "tie"}).status_code == 404
    assert not Annotator.objects.exists()


def test_comparison_is_not_found_once_the_project_is_closed_to_me(client, annotator):
    comparison = factories.make_comparison()
    lease = factories.make_lease(comparison=comparison, annotator=annotator)
    comparison.project.is_open = False
    comparison.project.save()

    assert client.get(url("comparison", comparison)).status_code == 404
    assert client.post(url("comparison", comparison), pair(lease)).status_code == 404
    assert client.post(url("skip", comparison), pair(lease)).status_code == 404


def test_comparison_judged_long_ago_says_so(client, annotator):
    project = factories.make_project()
    judgment, *_newer = [
        factories.make_judgment(comparison=factories.make_comparison(project=project), annotator=annotator)
        for _ in range(21)
    ]

    response = client.get(url("comparison", judgment.comparison))

    assert in_words(response) == (
        "Already judged You have judged this comparison, and your answer is stored. "
        f"You have judged 21 in {judgment.project.name}. Next comparison My last judgments To my projects"
    )


def test_skipped_comparison_says_so(client, annotator):
    lease = factories.make_lease(annotator=annotator)
    services.skip_comparison(comparison=lease.comparison, annotator=annotator)

    response = client.get(url("comparison", lease.comparison))

    assert in_words(response).startswith("Skipped You have skipped this comparison; it is left to others.")


@pytest.mark.parametrize("k", [2, 6])
def test_comparison_takes_as_many_queries_however_long_the_list(client, annotator, k, django_assert_num_queries):
    comparison = factories.make_comparison(k=k)
    factories.make_lease(comparison=comparison, annotator=annotator)

    with django_assert_num_queries(6):  # session, user, lease, responses, aspects, standing and draft
        client.get(url("comparison", comparison))


# Judging a pair


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        ("a-strongly", ([[0], [1]], 2, [], False)),
        ("b-slightly", ([[1], [0]], 1, [], False)),
        ("tie", ([[0, 1]], None, [], False)),
        ("both-bad", ([[0, 1]], None, [0, 1], True)),
    ],
)
def test_pair_is_stored_by_what_was_shown(client, annotator, verdict, answer):
    order, strength, bad, is_all_bad = answer
    comparison = factories.make_comparison()
    lease = factories.make_lease(comparison=comparison, annotator=annotator)

    response = client.post(url("comparison", comparison), pair(lease, verdict, seconds="7.25"))

    assert (response.status_code, response["Location"]) == (303, url("done", comparison.project))
    assert stored(Judgment.objects.get()) == {
        "ranking": [[lease.shown_order[position] for position in group] for group in order],
        "strength": strength,
        "bad": [lease.shown_order[position] for position in bad],
        "is_all_bad": is_all_bad,
        "is_extra": False,
        "shown_order": lease.shown_order,
        "seconds": 7.25,
        "source": "browser",
        "key": lease.key,
    }


def test_submit_redirects_to_the_next_comparison(client, annotator):
    project = factories.make_project()
    first, second = factories.make_comparison(project=project), factories.make_comparison(project=project, k=4)
    lease = factories.make_lease(comparison=first, annotator=annotator)

    response = client.post(url("comparison", first), pair(lease))

    assert (response.status_code, response["Location"]) == (303, url("comparison", second))


def test_submit_brings_the_next_comparison_along(client, annotator):
    project = factories.make_project()
    first, second = factories.make_comparison(project=project), factories.make_comparison(project=project, k=4)
    lease = factories.make_lease(comparison=first, annotator=annotator)

    response = client.post(url("comparison", first), pair(lease), headers=HTMX)

    assert (response.status_code, response["HX-Push-Url"]) == (200, url("comparison", second))
    assert response.templates[0].name == "annotate/_comparison.html"
    html = response.content.decode()
    assert html.lstrip().startswith('<section id="comparison" class="work listwise"')
    assert f'action="{url("comparison", second)}"' in html
    assert "<html" not in html


def test_last_submit_says_that_all_is_done(client, annotator):
    lease = factories.make_lease(annotator=annotator)

    response = client.post(url("comparison", lease.comparison), pair(lease), headers=HTMX)

    assert (response.status_code, response["HX-Push-Url"]) == (200, url("done", lease.project))
    assert response.content.decode().lstrip().startswith('<section id="comparison" class="panel"')
    assert "You have judged 1 in" in response.content.decode()


def test_submit_sent_twice_is_stored_once(client, annotator):
    project = factories.make_project()
    first, second = factories.make_comparison(project=project), factories.make_comparison(project=project)
    lease = factories.make_lease(comparison=first, annotator=annotator)

    responses = [client.post(url("comparison", first), pair(lease, verdict)) for verdict in ("a-strongly", "tie")]

    assert [response["Location"] for response in responses] == [url("comparison", second)] * 2
    judgment = Judgment.objects.get()
    assert (judgment.strength, judgment.comparison) == (2, first)


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_submit_without_a_verdict_asks_for_one(client, annotator, headers):
    lease = factories.make_lease(annotator=annotator)

    response = client.post(
        url("comparison", lease.comparison), {"key": str(lease.key), "seconds": "3.0"}, headers=headers
    )

    assert response.status_code == 422
    assert "Choose one of the answers below." in response.content.decode()
    assert '<input type="hidden" name="seconds" value="3.0" id="id_seconds">' in response.content.decode()
    assert not Judgment.objects.exists()


def test_judgment_after_the_lease_ran_out_counts_while_there_is_room(client, annotator):
    comparison = factories.make_comparison()
    lease = factories.make_lease(comparison=comparison, annotator=annotator)
    late = timezone.now() + timedelta(hours=1)
    services.lease_next(project=comparison.project, annotator=factories.make_annotator(), now=late)
    judgment = factories.make_judgment(comparison=comparison)  # somebody else fills the place
    assert not Lease.objects.filter(annotator=annotator).exists()

    client.post(url("comparison", comparison), pair(lease, "b-strongly"))

    assert stored(Judgment.objects.exclude(pk=judgment.pk).get()) == {
        "ranking": [[lease.shown_order[1]], [lease.shown_order[0]]],
        "strength": 2,
        "bad": [],
        "is_all_bad": False,
        "is_extra": True,
        "shown_order": lease.shown_order,
        "seconds": None,
        "source": "browser",
        "key": lease.key,
    }


def test_key_of_another_annotator_opens_nothing(client, annotator):
    foreign = factories.make_lease()

    response = client.post(url("comparison", foreign.comparison), pair(foreign))

    assert response.status_code == 404
    assert not Judgment.objects.exists()


def test_submit_takes_few_queries(client, annotator, django_assert_max_num_queries):
    project = factories.make_project()
    for _ in range(3):
        factories.make_comparison(project=project)
    lease = factories.make_lease(comparison=project.comparisons.first(), annotator=annotator)

    with django_assert_max_num_queries(20):
        client.post(url("comparison", lease.comparison), pair(lease), headers=HTMX)


# Judging a list


def test_list_is_stored_by_what_was_shown(client, annotator):
    comparison = factories.make_comparison(k=4)
    lease = factories.make_lease(comparison=comparison, annotator=annotator)
    first, second, third, fourth = lease.shown_order

    client.post(url("comparison", comparison), listing(lease, "bad", 1, "bad", 2, seconds="61"))

    assert stored(Judgment.objects.get()) == {
        "ranking": [[second], [fourth], [first, third]],
        "strength": None,
        "bad": [first, third],
        "is_all_bad": False,
        "is_extra": False,
        "shown_order": lease.shown_order,
        "seconds": 61.0,
        "source": "browser",
        "key": lease.key,
    }


@pytest.mark.parametrize("headers", [{}, HTMX])
def test_list_with_a_gap_comes_back_with_what_was_entered(client, annotator, headers):
    comparison = factories.make_comparison(k=3)
    lease = factories.make_lease(comparison=comparison, annotator=annotator)

    response = client.post(url("comparison", comparison), listing(lease, 2, "", "bad"), headers=headers)

    html = response.content.decode()
    assert response.status_code == 422
    assert "Give a place to B." in html
    assert re.findall(r'<select name="(place-\d)"|<option value="(\w*)" selected>', html) == [
        ("place-0", ""),
        ("", "2"),
        ("place-1", ""),
        ("place-2", ""),
        ("", "bad"),
        ("", ""),  # what the better answer is made from: nothing yet
    ]
    assert f'name="key" value="{lease.key}"' in html
    assert not Judgment.objects.exists()


# Skipping


def test_skip_gives_the_comparison_back(client, annotator):
    project = factories.make_project()
    first, second = factories.make_comparison(project=project), factories.make_comparison(project=project)
    lease = factories.make_lease(comparison=first, annotator=annotator)

    response = client.post(url("skip", first), {"key": str(lease.key)})

    assert (response.status_code, response["Location"]) == (303, url("comparison", second))
    assert [skip.comparison for skip in Skip.objects.all()] == [first]
    first.refresh_from_db()
    assert first.num_taken == 0


def test_skip_twice_is_skipping_once(client, annotator):
    lease = factories.make_lease(annotator=annotator)

    responses = [client.post(url("skip", lease.comparison), {"key": str(lease.key)}, headers=HTMX) for _ in range(2)]

    assert [response["HX-Push-Url"] for response in responses] == [url("done", lease.project)] * 2
    lease.comparison.refresh_from_db()
    assert (Skip.objects.count(), lease.comparison.num_taken) == (1, 0)


# All pages


def addresses(lease):
    return {
        "projects": "/",
        "next": url("next", lease.project),
        "done": url("done", lease.project),
        "mine": url("mine", lease.project),
        "guidelines": url("guidelines", lease.project),
        "comparison": url("comparison", lease.comparison),
        "skip": url("skip", lease.comparison),
        "flag": url("flag", lease.comparison),
        "draft": url("draft", lease.comparison),
    }


POST_ONLY = ("next", "skip", "flag", "draft")


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("projects", ["post", "put", "delete"]),
        ("next", ["get", "head", "put", "delete"]),
        ("done", ["post", "put", "delete"]),
        ("mine", ["post", "put", "delete"]),
        ("guidelines", ["post", "put", "delete"]),
        ("comparison", ["put", "patch", "delete"]),
        ("skip", ["get", "head", "put", "delete"]),
        ("flag", ["get", "head", "put", "delete"]),
        ("draft", ["get", "head", "put", "delete"]),
    ],
)
def test_wrong_methods(client, annotator, name, methods):
    address = addresses(factories.make_lease(annotator=annotator))[name]

    assert [getattr(client, method)(address).status_code for method in methods] == [405] * len(methods)


def test_strangers_are_sent_to_sign_in_and_back(annotator):
    lease = factories.make_lease(annotator=annotator)
    pages = addresses(lease)

    sent = {
        name: (Client().post if name in POST_ONLY else Client().get)(address)["Location"]
        for name, address in pages.items()
    }

    assert sent == {
        "projects": "/login/?next=/",
        "next": "/login/?next=/",
        "done": f"/login/?next={pages['done']}",
        "mine": f"/login/?next={pages['mine']}",
        "guidelines": f"/login/?next={pages['guidelines']}",
        "comparison": f"/login/?next={pages['comparison']}",
        "skip": "/login/?next=/",
        "flag": "/login/?next=/",
        "draft": "/login/?next=/",
    }


def test_nobody_else_finds_anything(annotator):
    project = factories.make_project(is_open=False, members=(annotator.user,))
    lease = factories.make_lease(comparison=factories.make_comparison(project=project), annotator=annotator)
    stranger = Client()
    stranger.force_login(factories.make_annotator().user)
    pages = {name: address for name, address in addresses(lease).items() if name != "projects"}

    answers = {
        name: (stranger.post if name in POST_ONLY else stranger.get)(address, pair(lease)).status_code
        for name, address in pages.items()
    }

    assert answers == dict.fromkeys(pages, 404)
    assert stranger.post(pages["comparison"], pair(lease)).status_code == 404


def test_htmx_leaves_the_page_to_sign_in(annotator):
    lease = factories.make_lease(annotator=annotator)
    address = url("comparison", lease.comparison)

    response = Client().post(address, pair(lease), headers={**HTMX, "HX-Current-URL": f"http://testserver{address}"})

    assert (response.status_code, response["HX-Redirect"]) == (200, f"/login/?next={address}")
    assert not Judgment.objects.exists()


def test_posts_need_a_token(user, annotator):
    lease = factories.make_lease(annotator=annotator)
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    pages = addresses(lease)

    answers = [client.post(pages[name], pair(lease)) for name in (*POST_ONLY, "comparison")]

    assert [answer.status_code for answer in answers] == [403] * 5
    assert "This form has expired" in in_words(answers[0])
    assert not Judgment.objects.exists()


def test_looking_changes_nothing(client, annotator):
    lease = factories.make_lease(annotator=annotator)
    services.lease_next(
        project=lease.project, annotator=factories.make_annotator(), now=timezone.now() - timedelta(hours=1)
    )
    before = [list(model.objects.order_by("pk").values()) for model in (Comparison, Lease, Judgment, Skip, Annotator)]

    for address in addresses(lease).values():
        client.get(address)
        client.get(address, headers=HTMX)

    after = [list(model.objects.order_by("pk").values()) for model in (Comparison, Lease, Judgment, Skip, Annotator)]
    assert after == before


class InlineCode(HTMLParser):
    """Collects what a strict content security policy would block."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        names = {name for name, _ in attrs}
        inline = [name for name in names if name == "style" or name.startswith(("on", "hx-on"))]
        if inline or tag == "style" or (tag == "script" and "src" not in names):
            self.found.append((tag, inline))


def test_every_page_has_a_strict_policy_and_nothing_inline(client, annotator):
    lease = factories.make_lease(comparison=factories.make_comparison(k=4), annotator=annotator)
    judged = factories.make_judgment(annotator=annotator)
    pages = ["/", url("done", lease.project), url("mine", lease.project), url("guidelines", lease.project)]
    pages += [url("comparison", lease.comparison), url("comparison", judged.comparison)]

    answers = [client.get(page) for page in [*pages, "/nowhere/", "/comparisons/0/"]] + [Client().get("/login/")]

    for answer in answers:
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-" not in policy
        assert InlineCode(answer.content.decode()).found == []
        assert answer["X-Content-Type-Options"] == "nosniff"
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 200, 404, 404, 200]


def test_pages_are_not_kept_by_the_browser(client, annotator):
    lease = factories.make_lease(annotator=annotator)

    assert "no-store" in client.get(url("comparison", lease.comparison))["Cache-Control"]


def test_pages_offer_the_admin_to_staff_only(client, user):
    link = '<a href="/admin/">Admin</a>'
    seen = [link in client.get("/").content.decode()]
    user.is_staff = True
    user.save()
    seen.append(link in client.get("/").content.decode())

    assert seen == [False, True]


def test_sign_in_and_out():
    factories.make_user(username="sam", password="correct horse battery")
    client = Client()

    wrong = client.post("/login/", {"username": "sam", "password": "wrong", "next": "/"})
    right = client.post("/login/", {"username": "sam", "password": "correct horse battery", "next": "/"})
    out = client.post("/logout/")

    assert "That name and password do not match." in wrong.content.decode()
    assert 'name="username" value="sam"' in wrong.content.decode()
    assert (right.status_code, right["Location"]) == (302, "/")
    assert (out.status_code, out["Location"]) == (302, "/login/")


@pytest.mark.parametrize("name", ["400", "403", "404", "500"])
def test_error_pages_stand_without_a_request(name):
    assert '<a class="button primary" href="/">To my projects</a>' in render_to_string(f"{name}.html")
