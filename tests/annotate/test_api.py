import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from annotate import queries, services
from annotate.formats import FORMATS
from annotate.models import (
    ApiToken,
    Aspect,
    Comparison,
    Figures,
    Flag,
    Judgment,
    Lease,
    Membership,
    Response,
    Skip,
)
from annotate.tokens import token_digest
from tests.factories import (
    make_annotator,
    make_comparison,
    make_judgment,
    make_lease,
    make_project,
    make_user,
    response_ids,
)

pytestmark = pytest.mark.django_db

KEY = "00000000-0000-4000-8000-000000000000"


class Program:
    """What a script with a token of `user` sees: status and JSON."""

    def __init__(self, user=None, **headers):
        self.client = Client(headers=headers or {"Authorization": f"Bearer {make_token(user)}"})

    def get(self, path):
        return told(self.client.get(f"/api{path}"))

    def post(self, path, **values):
        return told(self.client.post(f"/api{path}", values, content_type="application/json"))

    def send(self, path, body):
        return told(self.client.post(f"/api{path}", body, content_type="application/jsonl"))


def told(response):
    return response.status_code, json.loads(response.content) if response.content else None


def make_token(user, **values):
    secret = f"secret of {user.pk} {ApiToken.objects.count()}"
    ApiToken.objects.create(user=user, name="script", digest=token_digest(secret), **values)
    return secret


def make_member(project, role="annotator"):
    return Membership.objects.create(project=project, user=make_user(), role=role).user


@pytest.fixture
def user():
    return make_user(username="amina")


@pytest.fixture
def program(user):
    return Program(user)


@pytest.fixture
def project(user):
    return make_project(name="Cooking", is_open=False, members=(user,), description="Recipes.")


def lease_of(user, **values):
    """A comparison of one project that `user` holds."""
    project = make_project(members=(user,), **values)
    return make_lease(comparison=make_comparison(project=project, k=3), annotator=make_annotator(user=user))


# Tokens


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}]
)
def test_without_a_good_token_there_is_nothing(headers):
    program = Program(**{"X": "y", **headers})
    paths = ["/projects", "/projects/1", "/comparisons/1", "/projects/1/export/rankings", "/elsewhere"]
    assert [program.get(path) for path in paths] == [(401, {"detail": "Unauthorized"})] * 5
    assert program.post("/projects/1/next") == (401, {"detail": "Unauthorized"})
    assert program.client.get("/api/projects")["WWW-Authenticate"] == "Bearer"


def test_a_session_of_the_browser_is_no_token(user):
    client = Client()
    client.force_login(user)
    assert client.get("/api/projects").status_code == 401


@pytest.mark.parametrize("why", ["revoked", "inactive"])
def test_a_token_that_is_taken_back_or_whose_user_is_gone_is_refused(user, why):
    program = Program(user)
    assert program.get("/projects")[0] == 200
    if why == "revoked":
        ApiToken.objects.update(is_revoked=True)
    else:
        type(user).objects.update(is_active=False)
    assert program.get("/projects")[0] == 401


def test_the_last_use_is_written_once_a_minute(program, django_assert_num_queries):
    program.get("/projects/0")
    first = ApiToken.objects.get().last_used_at
    with django_assert_num_queries(2):
        program.get("/projects/0")
    assert ApiToken.objects.get().last_used_at == first

    ApiToken.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    program.get("/projects/0")
    assert ApiToken.objects.get().last_used_at > first


# Projects


def test_projects_with_my_roles(program, user, project):
    make_project(is_open=False)
    free = make_project(name="Open", kind="best")
    led = make_project(name="Led")
    Membership.objects.create(project=led, user=user, role="manager")
    project.kind = "rating"
    project.save()

    assert program.get("/projects") == (
        200,
        [
            {"id": project.pk, "name": "Cooking", "description": "Recipes.", "kind": "rating", "role": "annotator"},
            {"id": led.pk, "name": "Led", "description": "", "kind": "ranking", "role": "manager"},
            {"id": free.pk, "name": "Open", "description": "", "kind": "best", "role": None},
        ],
    )


def test_projects_take_as_many_queries_for_three_as_for_one(program, user, django_assert_num_queries):
    program.get("/projects")
    for number in (1, 2):
        for _ in range(number):
            make_project(members=(user,))
        with django_assert_num_queries(4):
            program.get("/projects")


def test_project(program, project):
    project.guidelines = "Prefer the true one."
    project.save()
    Aspect.objects.create(project=project, name="tone", text="Friendly.")
    Aspect.objects.create(project=project, name="later", is_asked=False)

    assert program.get(f"/projects/{project.pk}") == (
        200,
        {
            "id": project.pk,
            "name": "Cooking",
            "description": "Recipes.",
            "kind": "ranking",
            "role": "annotator",
            "guidelines": "Prefer the true one.",
            "guidelines_version": 1,
            "rating_max": 5,
            "overlap": 1,
            "lease_minutes": 15,
            "aspects": [{"name": "tone", "text": "Friendly."}],
        },
    )


# Judging


def test_next_leases_a_comparison_and_names_no_model(program, user, project):
    comparison = make_comparison(project=project, k=3, models=("gpt-x", "llama-y", "qwen-z"))
    Aspect.objects.create(project=project, name="tone")

    status, shown = program.post(f"/projects/{project.pk}/next")

    lease = Lease.objects.get()
    contents = dict(Response.objects.values_list("pk", "content"))
    assert (status, shown) == (
        200,
        {
            "id": comparison.pk,
            "project": project.pk,
            "kind": "ranking",
            "key": str(lease.key),
            "messages": comparison.prompt.messages,
            "responses": [
                {"letter": letter, "content": contents[pk]} for letter, pk in zip("ABC", lease.shown_order, strict=True)
            ],
            "aspects": ["tone"],
            "expires_at": shown["expires_at"],
        },
    )
    assert [name for name in ("gpt-x", "llama-y", "qwen-z", "model") if name in json.dumps(shown)] == []
    assert program.get(f"/comparisons/{comparison.pk}") == (200, shown)
    assert program.post(f"/projects/{project.pk}/next") == (200, shown)


def test_next_where_nothing_is_open(program, project):
    assert program.post(f"/projects/{project.pk}/next") == (204, None)


def test_judge_stores_what_the_page_would(program, user):
    lease = lease_of(user)
    Aspect.objects.create(project=lease.project, name="tone")
    a, b, c = lease.shown_order

    status, answer = program.post(
        f"/comparisons/{lease.comparison_id}/judgment",
        key=str(lease.key),
        ranking=[["B"], ["C", "A"]],
        bad=["A", "C"],
        aspects={"tone": {"ranking": [["A"], ["B"], ["C"]]}},
        rationale="B is true.",
        seconds=4.5,
    )

    overall, tone = Judgment.objects.order_by("pk")
    assert (status, answer) == (200, {"id": overall.pk, "next": None})
    names = (
        "ranking",
        "bad",
        "aspect",
        "rationale",
        "seconds",
        "source",
        "key",
        "shown_order",
        "is_extra",
        "placement",
    )
    assert {name: getattr(overall, name) for name in names} == {
        "ranking": [[b], [c, a]],
        "bad": [a, c],
        "aspect": "overall",
        "rationale": "B is true.",
        "seconds": 4.5,
        "source": "api",
        "key": lease.key,
        "shown_order": [a, b, c],
        "is_extra": False,
        "placement": "",
    }
    assert (tone.aspect, tone.ranking) == ("tone", [[a], [b], [c]])


def test_judge_again_returns_what_is_stored(program, user):
    lease = lease_of(user)
    path, key = f"/comparisons/{lease.comparison_id}/judgment", str(lease.key)

    first = program.post(path, key=key, ranking=[["A"], ["B"], ["C"]])
    second = program.post(path, key=key, ranking=[["C"], ["B"], ["A"]])

    assert first == second == (200, {"id": Judgment.objects.get().pk, "next": None})
    assert Judgment.objects.get().ranking == [[pk] for pk in lease.shown_order]


def test_judge_and_lease_the_next_at_once(program, user):
    lease = lease_of(user)
    following = make_comparison(project=lease.project)

    _status, answer = program.post(
        f"/comparisons/{lease.comparison_id}/judgment", key=str(lease.key), ranking=[["A"], ["B", "C"]], lease_next=True
    )

    assert answer["next"]["id"] == following.pk
    assert program.get(f"/comparisons/{following.pk}") == (200, answer["next"])


def test_judge_by_ratings(program, user):
    lease = lease_of(user, kind="rating")
    a, b, c = lease.shown_order

    program.post(f"/comparisons/{lease.comparison_id}/judgment", key=str(lease.key), ratings={"A": 2, "B": 5, "C": 2})

    judgment = Judgment.objects.get()
    assert (judgment.ranking, judgment.ratings) == ([[b], sorted([a, c])], {str(a): 2, str(b): 5, str(c): 2})


def test_judge_with_a_better_answer(program, user):
    lease = lease_of(user)
    a, b, c = lease.shown_order

    program.post(
        f"/comparisons/{lease.comparison_id}/judgment",
        key=str(lease.key),
        ranking=[["A"], ["B"], ["C"]],
        edit={"text": "Seven minutes.", "letter": "B"},
    )

    edited = Response.objects.get(content="Seven minutes.")
    assert (edited.edited_from_id, edited.author) == (b, lease.annotator)
    assert Judgment.objects.get().ranking == [[edited.pk], [a], [b], [c]]


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ({"ranking": [["A"], ["B"]]}, "The ranking must hold each response of the comparison exactly once."),
        ({"ranking": [["A"], ["B"], ["D"]]}, "There is no response D."),
        ({"ranking": [["A"], ["B"], ["AB"]]}, "There is no response AB."),
        ({"ranking": [["A"], ["B"], [""]]}, "There is no response ."),
        (
            {"ranking": [["A", "B", "C"]], "strength": 2},
            "Only a pair with a better response has a strength: 1 slightly, 2 strongly.",
        ),
        ({}, "Give a ranking, or ratings."),
        ({"ranking": [["A", "B", "C"]], "aspects": {"tone": {"ranking": []}}}, "This project does not ask for tone."),
        ({"ranking": [["A", "B", "C"]], "edit": {"text": "Yes.", "letter": "Z"}}, "There is no response Z."),
    ],
)
def test_judge_refuses_what_cannot_be_stored(program, user, values, detail):
    lease = lease_of(user)

    answer = program.post(f"/comparisons/{lease.comparison_id}/judgment", key=str(lease.key), **values)

    assert (answer, Judgment.objects.count(), Lease.objects.count()) == ((422, {"detail": detail}), 0, 1)


def test_a_malformed_body_is_refused_by_field(program, user):
    lease = lease_of(user)
    path = f"/comparisons/{lease.comparison_id}/judgment"

    status, answer = program.post(path, key="x", ranking="best")

    assert (status, [error["loc"] for error in answer["detail"]]) == (
        422,
        [["body", "body", "ranking"], ["body", "body", "key"]],
    )
    status, answer = told(program.client.post(f"/api{path}", b"{", content_type="application/json"))
    assert (status, answer["detail"][:25]) == (400, "Cannot parse request body")


@pytest.mark.parametrize(
    "values",
    [{"rationale": "a\0b"}, {"rationale": "a\ud800b"}, {"edit": {"text": "\0"}}, {"edit": {"text": " \n"}}],
)
def test_text_that_no_database_keeps_is_refused(program, user, values):
    lease = lease_of(user)

    status, _answer = program.post(
        f"/comparisons/{lease.comparison_id}/judgment", key=str(lease.key), ranking=[["A", "B", "C"]], **values
    )

    assert (status, Judgment.objects.count(), Response.objects.count()) == (422, 0, 3)


def test_any_script_is_kept(program, user):
    lease = lease_of(user)
    path = f"/comparisons/{lease.comparison_id}/judgment"
    program.post(path, key=str(lease.key), ranking=[["A", "B", "C"]], rationale="\u05d0\u4e2d\U0001f373")
    assert Judgment.objects.get().rationale == "\u05d0\u4e2d\U0001f373"


def test_numbers_that_no_database_holds_are_not_found(program):
    paths = [f"/projects/{10**30}", f"/comparisons/{10**30}"]
    assert [program.get(path) for path in paths] == [(404, {"detail": "Not Found"})] * 2


def test_a_comparison_that_was_not_shown_to_me_is_not_found(program, user, project):
    make_annotator(user=user)
    theirs = make_lease(comparison=make_comparison(project=project, num_wanted=2))
    path = f"/comparisons/{theirs.comparison_id}"
    not_found = (404, {"detail": "Not Found"})
    not_shown = (404, {"detail": "This comparison was not shown to you."})

    assert program.get(path) == not_found
    for key in (KEY, str(theirs.key)):
        assert program.post(f"{path}/judgment", key=key, ranking=[["A"], ["B"]]) == not_shown
        assert program.post(f"{path}/skip", key=key) == not_shown
        assert program.post(f"{path}/flag", key=key, reason="other") == not_shown
        assert program.post(f"{path}/renew", key=key) == not_shown
    assert (Judgment.objects.count(), Skip.objects.count(), list(Lease.objects.all())) == (0, 0, [theirs])


def test_skip_flag_and_renew(program, user):
    lease = lease_of(user)
    path, key = f"/comparisons/{lease.comparison_id}", str(lease.key)
    Lease.objects.update(expires_at=timezone.now())

    assert program.post(f"{path}/flag", key=key, reason="private", note="A name.") == (204, None)
    status, renewed = program.post(f"{path}/renew", key=key)
    assert program.post(f"{path}/skip", key=key, reason="language", note="Basque?") == (204, None)

    assert (status, renewed["expires_at"] > timezone.now().isoformat()[:10]) == (200, True)
    assert Flag.objects.values_list("reason", "note").get() == ("private", "A name.")
    assert Skip.objects.values_list("reason", "note").get() == ("language", "Basque?")
    assert program.post(f"{path}/renew", key=key) == (404, {"detail": "Not Found"})
    assert program.post(f"{path}/flag", key=key, reason="boring")[0] == 422


def test_the_qualification_holds_by_the_api_too(program, project):
    make_comparison(project=project)
    project.qualification_size = 1
    project.save()
    assert program.post(f"/projects/{project.pk}/next") == (204, None)


# Who may do what


def test_who_is_no_member_finds_nothing(program):
    other = make_project(is_open=False)
    comparison = make_comparison(project=other)
    Membership.objects.create(project=make_project(), user=ApiToken.objects.get().user, role="manager")
    not_found = (404, {"detail": "Not Found"})

    assert [
        program.get(f"/projects/{other.pk}"),
        program.post(f"/projects/{other.pk}/next"),
        program.get(f"/comparisons/{comparison.pk}"),
        program.post(f"/comparisons/{comparison.pk}/judgment", key=KEY, ranking=[["A"], ["B"]]),
        program.post(f"/comparisons/{comparison.pk}/skip", key=KEY),
        program.post(f"/comparisons/{comparison.pk}/flag", key=KEY, reason="other"),
        program.post(f"/comparisons/{comparison.pk}/renew", key=KEY),
        program.send(f"/projects/{other.pk}/import", b""),
        program.get(f"/projects/{other.pk}/export/rankings"),
        program.get(f"/projects/{other.pk}/figures"),
        program.get(f"/projects/{other.pk}/prompts"),
        program.send(f"/projects/{other.pk}/priorities", b""),
        program.get("/elsewhere"),
        program.post("/projects/x/next"),
    ] == [not_found] * 14
    assert Lease.objects.count() == 0


@pytest.mark.parametrize(
    ("role", "may_see", "may_lead"), [("annotator", 404, 404), ("reviewer", 200, 404), ("manager", 200, 200)]
)
def test_what_each_role_may_do(project, role, may_see, may_lead):
    program, path = Program(make_member(project, role)), f"/projects/{project.pk}"
    leading = {
        program.client.get(f"/api{path}/export/rankings").status_code,
        program.client.get(f"/api{path}/prompts").status_code,
        program.send(f"{path}/import", b"")[0],
        program.send(f"{path}/priorities", b"")[0],
    }
    assert (program.get(f"{path}/figures")[0], leading) == (may_see, {may_lead})


def test_staff_who_may_change_projects_lead_all_of_them(project):
    staff = make_user(is_staff=True)
    staff.user_permissions.add(*Permission.objects.filter(codename__in=("change_project", "view_project")))
    program = Program(staff)
    assert program.get(f"/projects/{project.pk}")[1]["role"] == "manager"
    assert program.get(f"/projects/{project.pk}/figures") == (200, {"computed_at": None, "values": {}})


def test_wrong_methods_are_refused(program, project):
    assert [
        program.client.delete("/api/projects").status_code,
        program.client.get(f"/api/projects/{project.pk}/next").status_code,
        program.client.get(f"/api/projects/{project.pk}/import").status_code,
        program.client.post(f"/api/projects/{project.pk}/figures").status_code,
    ] == [405] * 4


# For leads


@pytest.fixture
def lead(project):
    return Program(make_member(project, "manager"))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_import_stores_a_file_of_any_format(lead, project):
    body = lines(
        {"prompt": "Eggs?", "responses": ["Boil.", "Fry.", "Poach."]},
        {"prompt": "Tea?", "chosen": "Green.", "rejected": "Cold."},
    )

    assert lead.send(f"/projects/{project.pk}/import", body) == (
        200,
        {"rows": 2, "prompts": 2, "responses": 5, "comparisons": 2, "judgments": 1, "already_there": 0},
    )
    assert lead.send(f"/projects/{project.pk}/import", body)[1]["already_there"] == 2
    assert uploads() == []


def uploads():
    return list(Path(settings.FILE_UPLOAD_TEMP_DIR).iterdir())


def test_import_says_which_line_and_field_are_wrong(lead, project):
    body = lines({"prompt": "Eggs?", "responses": ["Boil.", "Fry."]}, {"prompt": "Tea?", "responses": ["Green."]})

    assert lead.send(f"/projects/{project.pk}/import", body) == (
        422,
        {
            "detail": "line 2, responses: must be 2 to 24 responses, not 1",
            "line": 2,
            "field": "responses",
        },
    )
    assert (Comparison.objects.count(), uploads()) == (0, [])


def test_import_names_no_path_of_the_server(lead, project):
    status, answer = lead.send(f"/projects/{project.pk}/import", b"\x1f\x8b\x08 broken")
    assert (status, answer["detail"].partition(":")[0]) == (422, "the body")
    assert str(settings.FILE_UPLOAD_TEMP_DIR) not in answer["detail"]


def test_import_refuses_a_body_that_is_too_long(lead, project, settings):
    settings.IMPORT_MAX_BYTES = 10
    assert lead.send(f"/projects/{project.pk}/import", b"x" * 11) == (413, {"detail": "The body is too long."})
    assert uploads() == []


def test_bodies_that_are_read_whole_have_their_own_limit(program, user, settings):
    lease = lease_of(user)
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    path = f"/comparisons/{lease.comparison_id}/judgment"
    assert program.post(path, key=str(lease.key), rationale="x" * 200) == (413, {"detail": "The body is too long."})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_export_is_the_file_that_the_admin_gives(lead, project, name):
    for k in (2, 3):
        make_judgment(comparison=make_comparison(project=project, k=k))

    response = lead.client.get(f"/api/projects/{project.pk}/export/{name}")

    assert response.streaming
    assert response.getvalue().decode() == "".join(FORMATS[name](queries.judgment_rows(project)))
    assert (response["Content-Type"], response["Content-Disposition"]) == (
        "application/jsonl",
        f'attachment; filename="cooking-{name}.jsonl"',
    )
    assert lead.get(f"/projects/{project.pk}/export/pickle") == (404, {"detail": "Not Found"})


def test_figures(lead, project):
    stored = Figures.objects.create(project=project, values={"agreement": {"alpha": 0.7}})

    status, answer = lead.get(f"/projects/{project.pk}/figures")

    assert (status, answer["values"]) == (200, {"agreement": {"alpha": 0.7}})
    assert answer["computed_at"][:19] == stored.computed_at.isoformat()[:19]


# Guidance


def test_scores_that_are_handed_in_decide_what_comes_next(lead, project):
    project.strategy = "informative"
    project.random_share = 0
    project.save()
    sure, unsure = (make_comparison(project=project) for _ in range(2))

    response = lead.client.get(f"/api/projects/{project.pk}/prompts")
    asked = [json.loads(line) for line in response.getvalue().splitlines()]
    scores = [
        {
            "prompt": row["id"],
            "scores": {response["id"]: told for response, told in zip(row["responses"], own, strict=True)},
        }
        for row, own in zip(asked, ([[5.0, 5.0], [0.0, 0.0]], [[3.0, -3.0], [-3.0, 3.0]]), strict=True)
    ]

    assert [sorted(row) for row in asked] == [["id", "prompt", "responses"]] * 2
    assert [sorted(response) for row in asked for response in row["responses"]] == [["content", "id"]] * 4
    assert lead.send(f"/projects/{project.pk}/priorities", lines(*scores)) == (200, {"comparisons": 2})
    priorities = dict(Comparison.objects.values_list("pk", "priority"))
    assert priorities[unsure.pk] > priorities[sure.pk]
    assert Program(make_member(project)).post(f"/projects/{project.pk}/next")[1]["id"] == unsure.pk


@pytest.mark.parametrize(
    ("row", "field", "detail"),
    [
        ({"prompt": "7", "scores": {}}, "prompt", "must be the id of a prompt"),
        ({"prompt": 10**30, "scores": {}}, "prompt", "must be the id of a prompt"),
        ({"prompt": 7, "scores": {"9" * 19: []}}, f"scores.{'9' * 19}", "is no id of a response"),
        ({"prompt": True, "scores": {}}, "prompt", "must be the id of a prompt"),
        ({"prompt": 7}, "scores", "must be an object: a response's id to the members' scores"),
        ({"prompt": 7, "scores": {"x": [1, 2]}}, "scores.x", "is no id of a response"),
        ({"prompt": 7, "scores": {"1": 2}}, "scores.1", "must be a list of numbers, one of each member"),
        ({"prompt": 7, "scores": {"1": ["2"]}}, "scores.1", "must be numbers, one of each member"),
    ],
)
def test_priorities_refuse_what_is_no_score_by_line_and_field(lead, project, row, field, detail):
    assert lead.send(f"/projects/{project.pk}/priorities", lines({"prompt": 1, "scores": {}}, row)) == (
        422,
        {"detail": f"line 2, {field}: {detail}", "line": 2, "field": field},
    )


def test_priorities_refuse_a_single_member_and_an_unknown_strategy(lead, project):
    comparison = make_comparison(project=project)
    row = {"prompt": comparison.prompt_id, "scores": {pk: [1.0] for pk in response_ids(comparison)}}
    path = f"/projects/{project.pk}/priorities"

    answers = [lead.send(path, lines(row)), lead.send(f"{path}?strategy=coin", lines(row))]

    assert [status for status, _answer in answers] == [422, 422]
    assert Comparison.objects.get().priority == 0


# The description


def test_the_api_describes_itself_and_loads_nothing_from_elsewhere(client):
    described = client.get("/api/openapi.json").json()

    assert sorted(described["paths"]) == [
        "/api/comparisons/{pk}",
        "/api/comparisons/{pk}/flag",
        "/api/comparisons/{pk}/judgment",
        "/api/comparisons/{pk}/renew",
        "/api/comparisons/{pk}/skip",
        "/api/projects",
        "/api/projects/{pk}",
        "/api/projects/{pk}/export/{format_name}",
        "/api/projects/{pk}/figures",
        "/api/projects/{pk}/import",
        "/api/projects/{pk}/next",
        "/api/projects/{pk}/priorities",
        "/api/projects/{pk}/prompts",
    ]
    assert client.get("/api/docs").status_code == 401


def test_judging_by_the_api_keeps_to_the_wanted_number(project):
    make_comparison(project=project)
    first, second = Program(make_member(project)), Program(make_member(project))

    _status, shown = first.post(f"/projects/{project.pk}/next")

    assert second.post(f"/projects/{project.pk}/next") == (204, None)
    first.post(f"/comparisons/{shown['id']}/judgment", key=shown["key"], ranking=[["A"], ["B"]])
    assert second.post(f"/projects/{project.pk}/next") == (204, None)
    assert Comparison.objects.values_list("num_taken", "num_wanted").get() == (1, 1)
    assert services.lease_next(project=project, annotator=make_annotator()) is None


def test_order_is_drawn_for_the_account(project):
    ids = response_ids(make_comparison(project=project, num_wanted=40))
    orders = set()
    for _ in range(12):
        _status, shown = Program(make_member(project)).post(f"/projects/{project.pk}/next")
        orders.add(tuple(response["content"] for response in shown["responses"]))
    assert len(orders) == len(ids)
