import json
import re
import uuid

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate.models import Aspect, Judgment
from tests.factories import make_comparison, make_judgment, make_project
from tests.training.factories import make_finished_run, make_preference_set, make_staff
from tests.training.test_admin import inline, make_viewer, run_url, start_url
from training import member_services, previews, references, services
from training.member_forms import MemberForm
from training.models import Member, Promotion, TrainingRun

pytestmark = pytest.mark.django_db
LIST = "/admin/training/member/"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7|add:7 }}"


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff(username="staff"))
    return client


def make_member(kind: str = "length", name: str = "short", project=None, **values) -> Member:
    return member_services.create_member(kind=kind, name=name, values=values, project=project)


def form_url(kind: str) -> str:
    return reverse("admin:training_member_form", args=[kind])


def member_url(name: str, member: Member) -> str:
    return reverse(f"admin:training_member_{name}", args=[member.pk])


def form_data(kind: str, client: Client, **values) -> dict[str, str]:
    """The form as the page fills it in, with what a person would type."""
    form = client.get(form_url(kind)).context["form"]
    shown = {name: form[name].value() for name in form.fields}
    return {name: value for name, value in {**shown, **values}.items() if value is not None and value is not False}


def evaluate(reward: str, accuracy: float, **values) -> TrainingRun:
    result = {"accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05], "num_pairs": 80}
    config = {"reward_model": reward, "split": "test", **values}
    return make_finished_run(kind="evaluate", name=f"evaluation of {accuracy}", config=config, result=result)


# The list


def test_list_shows_all_that_scores_in_one(staff: Client):
    make_member("judge", "helpful judge", model="org/judge", aspect="helpfulness")
    make_member(name="short", project=make_project(name="cooking"))
    for kind, name in (("reward_model", "rm"), ("combine", "all"), ("average_weights", "mean"), ("sft", "policy")):
        make_finished_run(kind=kind, name=name)
    make_finished_run(kind="reward_model", name="failed", status="failed")
    response = staff.get(LIST)
    shown = [(one.reward.name, one.reward.label, one.reward.project) for one in response.context["found"].entries]
    assert shown == [
        ("mean", "Weight average", ""),
        ("all", "Combination of rewards", ""),
        ("rm", "Reward model", ""),
        ("short", "Rule of length", "cooking"),
        ("helpful judge", "Judge", ""),
    ]
    assert inline(response.content) == []


def test_list_shows_the_newest_accuracy_on_a_test_split(staff: Client):
    member, run = make_member(), make_finished_run(name="rm", result={"accuracy": 0.9})
    evaluate(str(member.path), 0.6)
    newest = evaluate(str(member.path), 0.7)
    evaluate(str(member.path), 0.99, split="train")
    page = staff.get(LIST)
    entries = {one.reward.name: one for one in page.context["found"].entries}
    assert entries["short"].accuracy.text == "70.0% [65.0,\N{NO-BREAK SPACE}75.0]"
    assert (entries["short"].measured.run, entries["short"].measured.basis) == (newest.pk, "80 pairs")
    assert (entries["rm"].accuracy.text, entries["rm"].measured.run) == ("90.0%", run.pk)
    assert run_url("change", newest) in page.content.decode()


def test_list_shows_no_accuracy_on_prompts_that_a_reward_has_learned_from(staff: Client):
    member = make_member()
    for accuracy, num_learned in ((0.6, None), (0.7, 0), (0.99, 3)):
        run = evaluate(str(member.path), accuracy)
        run.result |= {"num_learned_prompts": num_learned} if num_learned is not None else {}
        run.save()
    (entry,) = staff.get(LIST).context["found"].entries
    assert entry.accuracy.text == "70.0% [65.0,\N{NO-BREAK SPACE}75.0]"


def test_list_says_what_was_not_measured(staff: Client):
    make_member()
    make_finished_run(name="broken", result={"accuracy": "much", "interval": "wide"})
    entries = staff.get(LIST).context["found"].entries
    assert [(one.accuracy.text, one.measured) for one in entries] == [("not measured", None)] * 2


def test_list_shows_what_uses_a_reward(staff: Client):
    member, project = make_member(), make_project(name="cooking")
    run = make_finished_run(name="rm", project=project)
    Promotion.objects.create(project=project, run=run, test={})
    make_member("reward_model", "wrapped", model="rm")
    values = {"members": f"{member.path}, {run.model_dir.resolve()}"}
    for number in range(4):
        make_finished_run(kind="combine", name=f"all-{number}", config=values)
    make_finished_run(kind="combine", name="failed", config=values, status="failed")
    entries = {one.reward.name: one for one in staff.get(LIST).context["found"].entries}
    assert [use.text for use in entries["rm"].uses] == ["current one of cooking", "member wrapped", "all-3"]
    assert entries["rm"].num_further_uses == 3
    assert [use.text for use in entries["short"].uses] == ["all-3", "all-2", "all-1"]
    assert entries["all-0"].uses == []


def test_list_asks_the_database_as_often_for_many_as_for_one(staff: Client):
    make_one(0)
    few = num_queries(staff)
    for number in range(1, 6):
        make_one(number)
    assert num_queries(staff) == few


def make_one(number: int) -> None:
    project = make_project()
    member = make_member(name=f"m{number}", project=project, target=number)
    run = make_finished_run(name=f"r{number}", project=project)
    make_member("reward_model", f"w{number}", model=str(run.model_dir))
    Promotion.objects.create(project=project, run=run, test={})
    evaluate(str(member.path), 0.7)
    make_finished_run(kind="combine", name=f"c{number}", config={"members": f"{member.path}, {run.model_dir}"})


def num_queries(client: Client) -> int:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert client.get(LIST, {"state": "all"}).status_code == 200
    return len(queries)


def test_list_is_narrowed_by_kind_and_state(staff: Client):
    make_member(name="kept")
    member_services.retire_member(member=make_member(name="old", target=3))
    make_finished_run(name="rm")

    def names(**asked):
        return {one.reward.name for one in staff.get(LIST, asked).context["found"].entries}

    assert names() == {"kept", "rm"}
    assert names(state="retired") == {"old"}
    assert names(state="all") == {"kept", "old", "rm"}
    assert names(kind="length", state="all") == {"kept", "old"}
    assert names(kind="reward_model") == {"rm"}
    assert names(kind="nonsense") == set()
    assert names(state="nonsense", page="99") == {"kept", "rm"}


def test_list_shows_only_what_the_user_may_see():
    hidden = make_project(is_open=False)
    make_member(project=hidden)
    make_finished_run(name="rm", project=hidden)
    viewer = make_viewer("view_member")
    response = viewer.get(LIST)
    assert response.context["found"].entries == []
    assert "Register a member" not in response.content.decode().replace("Register a member, or", "")
    assert make_viewer("view_preferenceset").get(LIST).status_code == 403


def test_list_names_a_reward_by_its_folder_where_its_name_stands_for_several(staff: Client):
    rewards = [
        *(make_finished_run(name="twice") for _ in range(2)),
        make_finished_run(name="a run, with a comma"),
        make_finished_run(name="judge"),
        make_member(name="judge"),
        make_member(name="judge", project=make_project(name="cooking"), target=2),
        make_member(name="only", target=3),
        make_finished_run(name="rm"),
    ]
    found = {one.reward.path: one.reference for one in staff.get(LIST).context["found"].entries}
    assert {name for name in found.values() if not name.startswith("/")} == {"cooking/judge", "only", "rm"}
    for reward in rewards:
        path = str((reward.model_dir if isinstance(reward, TrainingRun) else reward.path).resolve())
        assert references.resolve_model("evaluate", "reward_model", found[path]) == path


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_list_refuses_other_methods(staff: Client, method: str):
    assert getattr(staff, method)(LIST).status_code == 405


def test_chosen_rewards_are_filled_in_where_a_combination_is_started(staff: Client):
    member, run = make_member(), make_finished_run(name="rm")
    preference_set = make_preference_set()
    response = staff.get(reverse("admin:training_member_combine"), {"member": ["short", "rm", "a,b"]})
    assert response.headers["Location"] == f"{start_url('combine')}?members=short%2C+rm"
    form = staff.get(response.headers["Location"]).context["form"]
    assert [field.name for field in form.basic] == ["name", "preference_set", "members", "method", "incumbent"]
    assert form["members"].value() == "short, rm"
    assert {"Fitting and measuring", "Ways of combining", "Fusion"} <= form.advanced.keys()

    shown = {name: form[name].value() for name in form.fields} | {"preference_set": preference_set.pk}
    staff.post(
        start_url("combine"), {name: value for name, value in shown.items() if value is not None and value is not False}
    )
    started = TrainingRun.objects.get(kind="combine")
    assert started.config["members"] == f"{member.path.resolve()}, {run.model_dir.resolve()}"
    assert "short, rm (run" in staff.get(run_url("change", started)).content.decode()


def test_only_who_may_start_runs_may_combine():
    assert make_viewer("view_member").get(reverse("admin:training_member_combine")).status_code == 403


# Registering


def test_choose_page_names_every_kind_that_a_form_makes(staff: Client):
    response = staff.get(reverse("admin:training_member_add"))
    assert [choice["kind"] for choice in response.context["choices"]] == [
        "reward_model",
        "judge",
        "served_judge",
        "implicit",
        "length",
        "repetition",
        "format",
    ]
    assert staff.post(reverse("admin:training_member_add")).status_code == 405


TYPED = {
    "reward_model": {"model": "org/model"},
    "judge": {"model": "org/judge"},
    "served_judge": {"model": "judge", "base_url": "http://127.0.0.1:8000/v1"},
    "implicit": {"policy": "org/policy", "reference_policy": "org/base"},
    "length": {},
    "repetition": {},
    "format": {"rule": "json"},
}


@pytest.mark.parametrize("kind", TYPED)
def test_form_registers_a_member(staff: Client, kind: str):
    project = make_project()
    response = staff.get(form_url(kind))
    form = response.context["form"]
    shown = [field.name for field in form.basic] + [field.name for own in form.advanced.values() for field in own]
    assert sorted(shown) == sorted(form.fields.keys() - {"key", "preview_project"})
    assert inline(response.content) == []

    response = staff.post(form_url(kind), form_data(kind, staff, project=project.pk, **TYPED[kind]))
    member = Member.objects.get()
    assert response.headers["Location"] == member_url("change", member)
    assert (member.kind, member.project, member.created_by.username) == (kind, project, "staff")
    assert {name: member.config[name] for name in TYPED[kind]} == TYPED[kind]
    assert member.path.is_dir()


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        ("judge", {"rubric": ""}, "rubric"),
        ("judge", {"model": "--x"}, "model"),
        ("judge", {"lowest": "9", "highest": "3"}, "highest"),
        ("judge", {"name": "a/b"}, "name"),
        ("judge", {"max_length": "1"}, "max_length"),
        ("served_judge", {"key_variable": "sk-secret"}, "key_variable"),
        ("served_judge", {"key_variable": "DATABASE_URL"}, "key_variable"),
        ("served_judge", {"base_url": "file:///etc/passwd"}, "base_url"),
        ("served_judge", {"max_cost": "3"}, "max_cost"),
        ("format", {"rule": "pattern", "pattern": ""}, "pattern"),
        ("format", {"rule": "pattern", "pattern": "("}, "pattern"),
        ("length", {"project": "0"}, "project"),
    ],
)
def test_form_marks_the_field_it_refuses(staff: Client, kind, values, field):
    response = staff.post(form_url(kind), form_data(kind, staff, **{**TYPED[kind], **values}))
    assert response.status_code == 200
    assert response.context["form"].errors.keys() == {field}
    assert not Member.objects.exists()


def test_form_opens_further_settings_when_one_is_wrong(staff: Client):
    page = staff.post(form_url("judge"), form_data("judge", staff, **TYPED["judge"], highest="0")).content.decode()
    assert "<details open>" in page


def test_form_begins_with_what_it_is_reached_from(staff: Client):
    project = make_project()
    make_finished_run(name="rm")
    run = make_finished_run(name="rm", project=project, config={"aspect": "helpfulness, harmlessness"})
    form = staff.get(form_url("reward_model"), {"run": run.pk}).context["form"]
    filled = {name: form[name].value() for name in ("name", "model", "project", "aspect")}
    assert filled == {"name": "rm", "model": "rm", "project": project.pk, "aspect": "helpfulness"}

    member = make_member("judge", "first", project, model="org/judge", rubric="Is it?", lowest=3)
    form = staff.get(form_url("judge"), {"like": member.pk}).context["form"]
    filled = {name: form[name].value() for name in ("name", "model", "rubric", "lowest", "project")}
    assert filled == {"name": "judge-2", "model": "org/judge", "rubric": "Is it?", "lowest": 3, "project": project.pk}


def test_form_reached_from_what_is_hidden_is_not_found():
    hidden = make_project(is_open=False)
    viewer = make_viewer("add_member", "view_member", "view_trainingrun")
    run, member = make_finished_run(project=hidden), make_member("judge", project=hidden, model="org/judge")
    assert viewer.get(form_url("reward_model"), {"run": run.pk}).status_code == 404
    assert viewer.get(form_url("judge"), {"like": member.pk}).status_code == 404
    assert viewer.get(form_url("judge")).context["form"].fields["project"].queryset.count() == 0


def test_form_needs_permission_and_a_kind():
    assert make_viewer("view_member").get(form_url("judge")).status_code == 403
    assert make_viewer("view_member").get(reverse("admin:training_member_add")).status_code == 403
    assert make_viewer("add_member").get(form_url("words")).status_code == 404
    assert make_viewer("add_member").get(form_url("dpo")).status_code == 404
    assert make_viewer("add_member").put(form_url("judge")).status_code == 405


def test_form_offers_aspects_of_projects_and_models_of_runs(staff: Client):
    Aspect.objects.create(project=make_project(), name="harmlessness")
    for name, kind in (("rm", "reward_model"), ("mean", "average_weights"), ("all", "combine"), ("base", "sft")):
        make_finished_run(name=name, kind=kind)
    form = staff.get(form_url("reward_model")).context["form"]
    assert form.fields["aspect"].suggestions == ["overall", "harmlessness"]
    assert form.fields["model"].suggestions == ["mean", "rm"]
    assert staff.get(form_url("judge")).context["form"].fields["model"].suggestions == ["base"]
    assert not hasattr(staff.get(form_url("served_judge")).context["form"].fields["model"], "suggestions")


def test_rubric_begins_with_what_annotators_are_told(staff: Client):
    project = make_project(guidelines=f"Be kind. {HOSTILE}")
    Aspect.objects.create(project=project, name="harmlessness", text="Does it harm?")
    data = form_data("judge", staff, model="org/judge", lowest="2", preview_project=project.pk, take_text="1")

    response = staff.post(form_url("judge"), data)
    form = response.context["form"]
    assert (form["rubric"].value(), form["lowest"].value(), form.errors) == (f"Be kind. {HOSTILE}", "2", {})
    assert b"<script>alert" not in response.content
    form = staff.post(form_url("judge"), {**data, "aspect": "harmlessness"}).context["form"]
    assert form["rubric"].value() == "Does it harm?"
    form = staff.post(form_url("judge"), {**data, "aspect": "unknown", "rubric": "mine"}).context["form"]
    assert form["rubric"].value() == "mine"
    assert not Member.objects.exists()


# Trying a judge


def make_judged(**values):
    project = make_project(name="cooking", **values)
    comparison = make_comparison(project=project)
    make_judgment(comparison=comparison)
    return project


def press_preview(client: Client, project, **values):
    typed = {
        "model": "org/judge",
        "rubric": "Is it kind?",
        "lowest": "2",
        "preview_project": project.pk,
        "name": "kind",
    }
    return client.post(form_url("judge"), form_data("judge", client, **typed, **values, preview="1"))


def test_preview_shows_what_the_judge_is_sent_and_answers_beside_what_people_said(staff: Client):
    project = make_judged()
    response = press_preview(staff, project)
    run = TrainingRun.objects.get()
    assert response.headers["Location"] == f"{form_url('judge')}?preview={run.pk}&name=kind#preview"
    assert (run.kind, run.project, run.created_by.username) == ("preview_judge", project, "staff")
    waiting = staff.get(response.headers["Location"]).content.decode()
    fragment = reverse("admin:training_member_preview", args=[run.pk])
    assert f'hx-get="{fragment}" hx-trigger="every 2s"' in waiting

    services.execute_run(run_id=run.pk)
    response = staff.get(response.headers["Location"])
    form, shown = response.context["form"], response.context["preview"].comparisons[0]
    kept = {name: form[name].value() for name in ("name", "model", "rubric", "lowest", "preview_project")}
    assert kept == {
        "name": "kind",
        "model": "org/judge",
        "rubric": "Is it kind?",
        "lowest": 2,
        "preview_project": project.pk,
    }
    first = shown.responses[0]
    assert (first.score, first.is_best, first.said, shown.seconds) == (
        "9",
        True,
        "first in 1 of 1 judgments",
        "0.25 s",
    )
    assert shown.verdict == "The judge puts A first, as annotators most often do."
    assert shown.questions[0].text == f"Rate this: {first.text}"
    assert shown.questions[0].probabilities == [{"option": "9", "share": "75.0%", "percent": "75.0"}]
    page = response.content.decode()
    assert ("hx-trigger" in page, "It was sent exactly this" in page) == (False, True)
    assert inline(response.content) == []
    assert "It was sent exactly this" in staff.get(run_url("change", run)).content.decode()
    assert not Member.objects.exists()


@pytest.mark.parametrize(
    ("scores", "rankings", "verdict"),
    [
        ([2, 1], [[[1], [2]], [[1], [2]], [[2], [1]]], "The judge puts A first, as annotators most often do."),
        ([2, 1], [[[2], [1]]], "The judge puts A first, annotators most often B."),
        ([1, 1], [[[2], [1]]], "The judge puts A and B first, annotators most often B."),
        ([None, 1], [[[1], [2]], [[2], [1]]], "The judge puts B first; annotators are divided between A and B."),
        ([2, 1], [], "The judge puts A first."),
        ([None, None], [[[2], [1]]], ""),
    ],
)
def test_preview_holds_the_judge_against_annotators(scores, rankings, verdict):
    row = {"id": "7", "prompt": [], "responses": [{"id": 1, "content": "x"}, {"id": 2, "content": "y"}]}
    assert previews.shown_comparison(1, row, {"scores": scores}, previews.Judged(rankings)).verdict == verdict


def test_preview_counts_how_often_people_put_a_response_first():
    written_instead, ranked = [[9], [1], [2]], [[2], [1]]
    judged = previews.Judged([written_instead, ranked, [[1, 2]], []])
    assert [judged.said(response, [1, 2]) for response in (1, 2)] == ["first in 2 of 4 judgments"] * 2
    assert previews.Judged().said(1, [1, 2]) == "not judged yet"


def test_preview_shows_overall_judgments_where_none_is_of_the_aspect(staff: Client):
    project = make_judged()
    press_preview(staff, project, aspect="harmlessness")
    run = TrainingRun.objects.get()
    services.execute_run(run_id=run.pk)

    def said():
        return [one.said for one in previews.preview(run).comparisons[0].responses]

    assert said() == ["first in 1 of 1 judgments (overall)", "first in 0 of 1 judgments (overall)"]
    overall = Judgment.objects.get()
    Judgment.objects.create(
        **{name: getattr(overall, name) for name in ("comparison", "project", "annotator", "source")},
        aspect="harmlessness",
        ranking=overall.ranking[::-1],
    )
    assert said() == ["first in 0 of 1 judgments", "first in 1 of 1 judgments"]


def test_preview_escapes_texts_of_every_kind(staff: Client):
    project = make_judged()
    press_preview(staff, project)
    run = TrainingRun.objects.get()
    run.run_dir.mkdir(parents=True)
    row = {
        "id": str(project.comparisons.get().pk),
        "prompt": [{"role": HOSTILE, "content": HOSTILE}],
        "responses": [{"id": 1, "content": f"</pre>{HOSTILE}"}, {"id": 2, "content": HOSTILE}],
    }
    told = {"responses": [0, 1], "text": f"</pre>{HOSTILE}", "reply": HOSTILE, "failure": HOSTILE, "value": None}
    told["probabilities"] = {HOSTILE: 0.5}
    (run.run_dir / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    (run.run_dir / "preview.json").write_text(json.dumps([{"id": row["id"], "questions": [told]}]))
    TrainingRun.objects.update(error=HOSTILE)
    page = staff.get(reverse("admin:training_member_preview", args=[run.pk])).content
    assert (b"<script>alert" in page, b"<img src=x" in page) == (False, False)
    assert page.count(b"&lt;script&gt;alert(1)&lt;/script&gt;") >= 9
    assert inline(page) == []


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (None, None),
        ("{", "{"),
        (None, "[]"),
        ("row", "[1, null]"),
        ("row", '[{"id": "ID", "scores": "high", "questions": {"a": 1}, "seconds": "long"}]'),
        ("row", '[{"id": "ID", "scores": [null, 1], "questions": [{"responses": [7, "x"], "probabilities": [1]}]}]'),
    ],
)
def test_preview_bears_whatever_the_run_left(staff: Client, prompts, told):
    project = make_judged()
    press_preview(staff, project)
    run, pk = TrainingRun.objects.get(), str(project.comparisons.get().pk)
    run.run_dir.mkdir(parents=True)
    row = {
        "id": pk,
        "prompt": [{"role": "user", "content": "x"}],
        "responses": [{"id": n, "content": "y"} for n in "12"],
    }
    if prompts:
        (run.run_dir / "prompts.jsonl").write_text(json.dumps(row) if prompts == "row" else prompts)
    if told:
        (run.run_dir / "preview.json").write_text(told.replace("ID", pk))
    response = staff.get(reverse("admin:training_member_preview", args=[run.pk]))
    assert (response.status_code, len(response.context["preview"].comparisons)) == (200, int(prompts == "row"))


def test_preview_says_what_it_cannot_do(staff: Client):
    empty = make_project()
    form = press_preview(staff, empty).context["form"]
    assert form.errors == {"preview_project": [f"{empty} has no comparison yet"]}
    assert not TrainingRun.objects.exists()


def test_enter_registers_and_sends_nothing(staff: Client):
    page = staff.get(form_url("served_judge")).content.decode()
    form = page[page.index(f'action="{form_url("served_judge")}"') :]
    first = re.search(r'<button|<input type="submit"[^>]*>', form)
    assert first
    assert 'value="Register"' in first[0]


def test_preview_pressed_twice_starts_one_run(staff: Client):
    project, key = make_judged(), uuid.uuid4()
    first, second = (press_preview(staff, project, key=key) for _ in range(2))
    assert first.headers["Location"] == second.headers["Location"]
    assert TrainingRun.objects.count() == 1
    another = press_preview(staff, project, key=key, swap="never")
    assert another.headers["Location"] != first.headers["Location"]
    assert TrainingRun.objects.count() == 2


def test_preview_is_for_who_may_see_its_project_and_runs(staff: Client):
    press_preview(staff, make_judged(is_open=False))
    run = TrainingRun.objects.get()
    url = reverse("admin:training_member_preview", args=[run.pk])
    assert make_viewer("view_member", "view_trainingrun").get(url).status_code == 404
    assert make_viewer("view_member").get(url).status_code == 403
    assert make_viewer("add_member", "view_trainingrun").get(form_url("judge"), {"preview": run.pk}).status_code == 404
    assert staff.get(form_url("judge"), {"preview": "x"}).status_code == 404
    assert staff.get(reverse("admin:training_member_preview", args=[make_finished_run().pk])).status_code == 404
    assert staff.post(url).status_code == 405


def test_preview_starts_a_run_only_for_who_may(staff: Client):
    project = make_judged()
    viewer = make_viewer("add_member", "view_trainingrun")
    assert "Preview on three comparisons" not in viewer.get(form_url("judge")).content.decode()
    assert press_preview(viewer, project).status_code == 403
    assert not TrainingRun.objects.exists()


# One member


def test_member_page_shows_what_it_is_worth_and_told(staff: Client):
    run = make_finished_run(name="rm")
    member = make_member("reward_model", "first", make_project(name="cooking"), model="rm")
    evaluate(str(member.path), 0.7)
    make_finished_run(kind="combine", name="all", config={"members": f"{member.path}, org/x"})
    response = staff.get(member_url("change", member))
    page = response.content.decode()
    for words in ("cooking/first", f"rm (run {run.pk})", "70.0%", ">all</a>", str(member.path), "Retire", "active"):
        assert words in page
    assert f"{start_url('evaluate')}?reward_model=cooking%2Ffirst" in page
    assert inline(response.content) == []


def test_member_page_escapes_what_was_written(staff: Client):
    page = staff.get(member_url("change", make_member("judge", HOSTILE.replace("/", ""), model="a", rubric=HOSTILE)))
    assert b"<script>alert" not in page.content
    assert inline(page.content) == []


def test_member_page_says_that_its_folder_is_missing(staff: Client):
    member = make_member()
    (member.path / "member.json").unlink()
    member.path.rmdir()
    assert "Its folder is missing" in staff.get(member_url("change", member)).content.decode()


def test_member_page_retires_it_and_brings_it_back(staff: Client):
    member = make_member()
    for active, words in (("0", "Member short is retired."), ("1", "Member short is in use again.")):
        response = staff.post(member_url("retire", member), {"active": active}, follow=True)
        assert [str(message) for message in response.context["messages"]] == [words]
        assert Member.objects.get().is_active is (active == "1")
    assert staff.get(member_url("retire", member)).status_code == 405
    assert make_viewer("view_member").post(member_url("retire", member)).status_code == 403


def test_members_of_hidden_projects_are_not_found_and_none_is_deleted(staff: Client):
    member = make_member(project=make_project(is_open=False))
    viewer = make_viewer("view_member", "change_member")
    assert viewer.get(member_url("change", member)).status_code == 404
    assert viewer.post(member_url("retire", member)).status_code == 404
    assert staff.post(member_url("delete", member), {"post": "yes"}).status_code == 403
    assert staff.post(member_url("change", member), {"name": "other"}).status_code == 405


def test_form_of_every_kind_has_a_name_to_begin_with():
    user = make_staff()
    names = [MemberForm(kind=kind, user=user)["name"].value() for kind in member_services.MADE_BY_FORMS]
    assert names == [
        "reward-model-1",
        "judge-1",
        "served-judge-1",
        "implicit-reward-1",
        "length-1",
        "repetition-1",
        "form-1",
    ]
