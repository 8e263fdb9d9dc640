import json
import uuid
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate.models import Endpoint
from tests.factories import make_project, make_user
from tests.training.factories import (
    BACKBONE,
    make_finished_run,
    make_judged_project,
    make_preference_set,
    make_run,
    make_staff,
)
from tests.training.reports import leave, make_curve, make_report
from training import launch, services
from training.alignment.config import CONFIGS
from training.forms import BASIC_FIELDS, FILE_FIELDS, GROUPS, POLICY_FORMS, POLICY_GROUPS, THE_RUN
from training.models import Metric, PreferenceSet, TrainingRun

pytestmark = pytest.mark.django_db
KINDS = ["reward_model", "learning_curve", "evaluate", "rejection_sampling", "rlhf", "dpo", "sft"]


@pytest.fixture
def staff(client: Client) -> Client:
    """A browser in which an account of ML staff is logged in."""
    client.force_login(make_staff(username="staff"))
    return client


def make_viewer(*codenames: str) -> Client:
    """Staff with single permissions instead of the group's."""
    user = make_user(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def run_url(name: str, run: TrainingRun) -> str:
    return reverse(f"admin:training_trainingrun_{name}", args=[run.pk])


def start_url(kind: str) -> str:
    return reverse("admin:training_trainingrun_start", args=[kind])


def start_data(kind: str, client: Client, **values) -> dict[str, str]:
    """The form as the page fills it in, with what a person would type."""
    form = client.get(start_url(kind)).context["form"]
    shown = {name: form[name].value() for name in form.fields}
    shown["preference_set"] = getattr(shown["preference_set"], "pk", shown["preference_set"])
    return {name: "" if value is None else value for name, value in {**shown, **values}.items()}


class Inline(HTMLParser):
    """Collects what a strict content security policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        names = dict(attributes)
        if tag == "style" or (tag == "script" and "src" not in names and names.get("type") != "application/json"):
            self.found.append(tag)
        self.found += [name for name in names if name == "style" or name.startswith("on")]


def inline(page: bytes) -> list[str]:
    parser = Inline()
    parser.feed(page.decode())
    return parser.found


# Preference sets


def test_freeze_page_freezes(staff: Client):
    project = make_judged_project(name="cooking")
    data = {"project": project.pk, "name": "first", "train": 1, "validation": 0, "test": 0, "seed": 3}
    response = staff.post(reverse("admin:training_preferenceset_add"), data, follow=True)
    frozen = PreferenceSet.objects.get()
    assert (str(frozen), frozen.seed, frozen.created_by.username) == ("cooking/first", 3, "staff")
    assert [str(message) for message in response.context["messages"]] == [
        "Preference set cooking/first is frozen.",
        "No prompt fell into validation and test.",
    ]
    assert response.redirect_chain == [(reverse("admin:training_preferenceset_change", args=[frozen.pk]), 302)]
    assert frozen.digest in response.content.decode()


def test_freeze_page_sets_votes_aside(staff: Client):
    project = make_judged_project(name="cooking")
    form = staff.get(reverse("admin:training_preferenceset_add")).context["form"]
    shares = {split: form[split].value() for split in ("train", "validation", "test", "guard")}
    assert shares == {"train": 0.65, "validation": 0.1, "test": 0.1, "guard": 0.15}
    staff.post(reverse("admin:training_preferenceset_add"), {**shares, "project": project.pk, "name": "x", "seed": 0})
    assert PreferenceSet.objects.get().fractions == [0.65, 0.1, 0.1, 0.15]


def test_freeze_page_says_why_it_cannot(staff: Client):
    project = make_project(name="empty")
    data = {"project": project.pk, "name": "first", "train": 0.8, "validation": 0.1, "test": 0.1, "seed": 0}
    response = staff.post(reverse("admin:training_preferenceset_add"), data)
    assert response.status_code == 200
    assert response.context["form"].non_field_errors() == ["Project empty has no judgments yet."]
    assert not PreferenceSet.objects.exists()


def test_freeze_page_offers_only_projects_of_the_user():
    hidden, shown = make_project(is_open=False), make_project()
    viewer = make_viewer("add_preferenceset", "view_preferenceset")
    form = viewer.get(reverse("admin:training_preferenceset_add")).context["form"]
    assert list(form.fields["project"].queryset) == [shown]
    data = {"project": hidden.pk, "name": "x", "train": 1, "validation": 0, "test": 0, "seed": 0}
    response = viewer.post(reverse("admin:training_preferenceset_add"), data)
    assert response.context["form"].errors.keys() == {"project"}


def test_preference_set_page_is_read_only(staff: Client):
    frozen = make_preference_set()
    url = reverse("admin:training_preferenceset_change", args=[frozen.pk])
    assert staff.get(url).status_code == 200
    assert staff.post(url, {"name": "other"}).status_code == 405
    assert (
        staff.post(reverse("admin:training_preferenceset_delete", args=[frozen.pk]), {"post": "yes"}).status_code == 403
    )
    frozen.name = "other"
    with pytest.raises(TypeError, match="never changes"):
        frozen.save()
    assert PreferenceSet.objects.get().name != "other"


def test_preference_set_of_a_hidden_project_is_not_found():
    frozen = make_preference_set(project=make_judged_project(is_open=False))
    viewer = make_viewer("view_preferenceset")
    url = reverse("admin:training_preferenceset_change", args=[frozen.pk])
    assert viewer.get(url).status_code == 404
    assert viewer.get(reverse("admin:training_preferenceset_change", args=["none"])).status_code == 404


# Starting runs


@pytest.mark.parametrize("kind", KINDS)
def test_start_page_starts_a_run(staff: Client, kind: str):
    preference_set = make_preference_set()
    base, rewards = make_finished_run(kind="sft", name="base"), make_finished_run(kind="reward_model", name="rewards")
    response = staff.post(start_url(kind), start_data(kind, staff))
    run = TrainingRun.objects.get(status="queued")
    assert response.headers["Location"] == run_url("change", run)
    assert (run.kind, run.preference_set, run.created_by.username) == (kind, preference_set, "staff")
    models = {"backbone": base, "policy": base, "reward_model": rewards}
    for field, saved_by in models.items():
        assert run.config.get(field, str(saved_by.model_dir)) == str(saved_by.model_dir)


def test_start_page_preselects_the_set_that_it_was_reached_from(staff: Client):
    first, _ = make_preference_set(), make_preference_set()
    response = staff.get(start_url("reward_model"), {"preference_set": first.pk})
    assert f'<option value="{first.pk}" selected>' in response.content.decode()


def test_start_page_pressed_twice_starts_one_run(staff: Client):
    make_preference_set()
    data = start_data("reward_model", staff, backbone=BACKBONE)
    first, second = (staff.post(start_url("reward_model"), data) for _ in range(2))
    assert first.headers["Location"] == second.headers["Location"]
    assert TrainingRun.objects.count() == 1


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"backbone": "--trust_remote_code"}, "backbone"),
        ({"backbone": "../../etc"}, "backbone"),
        ({"backbone": ""}, "backbone"),
        ({"num_epochs": "0"}, "num_epochs"),
        ({"batch_size": "many"}, "batch_size"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"preference_set": "0"}, "preference_set"),
        ({"name": ""}, "name"),
        ({"key": "no uuid"}, "key"),
    ],
)
def test_start_page_marks_the_field_it_refuses(staff: Client, values, field):
    make_preference_set()
    response = staff.post(
        start_url("reward_model"), start_data("reward_model", staff, **{"backbone": BACKBONE, **values})
    )
    assert response.status_code == 200
    assert response.context["form"].errors.keys() == {field}
    assert not TrainingRun.objects.exists()


def test_start_page_takes_no_field_of_its_own_accord(staff: Client):
    make_preference_set()
    extra = {"trust_remote_code": "1", "preferences": "/etc/passwd", "status": "succeeded", "attempts": "9"}
    staff.post(start_url("reward_model"), start_data("reward_model", staff, backbone=BACKBONE, **extra))
    run = TrainingRun.objects.get()
    assert (run.config["preferences"], run.status, run.attempts) == ("preferences.jsonl", "queued", 0)
    assert "trust_remote_code" not in run.config


def test_start_page_shows_advanced_fields_when_one_is_wrong(staff: Client):
    make_preference_set()
    data = start_data("reward_model", staff, backbone=BACKBONE, batch_size="0")
    page = staff.post(start_url("reward_model"), data).content.decode()
    assert "<details open>" in page


def test_start_page_offers_only_what_the_user_may_see():
    hidden = make_preference_set(project=make_judged_project(is_open=False))
    make_finished_run(kind="sft", name="hidden base", project=hidden.project)
    viewer = make_viewer("add_trainingrun")
    form = viewer.get(start_url("reward_model")).context["form"]
    assert list(form.fields["preference_set"].queryset) == []
    assert form.fields["backbone"].suggestions == []


def test_start_page_of_an_unknown_kind_is_not_found(staff: Client):
    assert staff.get(start_url("ppo")).status_code == 404


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_start_page_refuses_other_methods(staff: Client, method: str):
    assert getattr(staff, method)(start_url("reward_model")).status_code == 405


def test_start_page_groups_its_further_settings(staff: Client):
    make_preference_set()
    form = staff.get(start_url("reward_model")).context["form"]
    groups = {title: [field.name for field in fields] for title, fields in form.advanced.items()}
    assert list(groups) == ["Data", "Schedule", "Loss", "Annotators and noise", THE_RUN]
    assert groups["Loss"] == ["loss", "ties", "margin", "label_smoothing", "centring", "length", "length_penalty"]
    assert {"seed", "packing", "precision", "lora_rank"} <= set(groups[THE_RUN])
    shown = [field.name for field in form.basic] + [name for names in groups.values() for name in names]
    assert sorted(shown) == sorted(set(form.fields) - {"key"})
    assert form["ties"].field.choices[1] == ("efron", "efron")


@pytest.mark.parametrize("groups", [GROUPS, POLICY_GROUPS])
def test_groups_name_fields_that_there_are(groups):
    known = {name for config in CONFIGS.values() for name in config.__dataclass_fields__}
    named = [name for names in groups.values() for name in names]
    assert (set(named) - known, len(named)) == (set(), len(set(named)))


@pytest.mark.parametrize("kind", sorted(POLICY_FORMS))
def test_every_setting_of_a_policy_stands_under_a_heading(kind):
    named = {name for names in POLICY_GROUPS.values() for name in names} | {*BASIC_FIELDS[kind], *FILE_FIELDS}
    assert {item.name for item in fields(CONFIGS[kind])} - named == {"seed", "num_processes", "save_minutes"}


def test_start_page_of_rlhf_says_where_to_look(staff: Client):
    make_preference_set()
    form = staff.get(start_url("rlhf")).context["form"]
    basic = ["name", "preference_set", "policy", "reward_model", "algorithm", "beta", "num_steps"]
    assert [field.name for field in form.basic] == basic
    assert list(form.advanced) == [
        "Data",
        "Sampling",
        "KL to the reference policy",
        "Policy gradient",
        "Reward",
        "Several objectives",
        "Guard against over-optimisation",
        "Schedule",
        "Weights and memory",
        THE_RUN,
    ]
    left = [field.name for field in form.advanced[THE_RUN]]
    assert left == ["seed", "num_processes", "save_minutes"]
    optional = {name for name in ("reference_policy", "held_out_reward_model") if not form.fields[name].required}
    assert optional == {"reference_policy", "held_out_reward_model"}


def test_start_page_takes_several_objectives_of_rlhf(staff: Client):
    make_preference_set()
    base, one, two = make_finished_run(kind="sft", name="base"), *(make_finished_run(name=name) for name in "ab")
    data = start_data("rlhf", staff, policy="base", reward_model="a, b", reference_policy="base")
    staff.post(start_url("rlhf"), data)
    config = TrainingRun.objects.get(kind="rlhf").config
    assert config["reward_model"] == f"{one.model_dir}, {two.model_dir}"
    assert config["reference_policy"] == str(base.model_dir)


def test_start_page_compares_policies(staff: Client):
    make_preference_set()
    one, two = (make_finished_run(kind=kind, name=kind) for kind in ("sft", "dpo"))
    assert staff.get(start_url("compare_policies")).context["form"]["policies"].value() == ""
    staff.post(start_url("compare_policies"), start_data("compare_policies", staff, policies="sft\ndpo"))
    config = TrainingRun.objects.get(kind="compare_policies").config
    assert (config["policies"], config["reward_model"]) == (f"{one.model_dir}, {two.model_dir}", "")


def test_start_page_opens_on_a_learning_curve_with_its_points(staff: Client):
    make_preference_set()
    form = staff.get(start_url("learning_curve")).context["form"]
    assert [field.name for field in form.basic] == ["name", "preference_set", "backbone", "num_points", "num_epochs"]
    assert form["name"].value() == "learning-curve-1"


def test_start_page_is_filled_in_by_a_link_and_shows_all_of_it(staff: Client):
    preference_set = make_preference_set()
    asked = {"reward_model": "one", "other_reward_model": "two", "split": "validation"}
    hidden = {"max_length": "16", "key": "x", "name": "mine"}
    query = {"preference_set": preference_set.pk, **asked, **hidden}
    response = staff.get(start_url("evaluate"), query)
    form = response.context["form"]
    assert {name: form[name].value() for name in asked} == asked
    assert (form["max_length"].value(), form["name"].value()) == ("16", "evaluation-1")
    assert form["other_reward_model"].field.required is False
    assert "<details open>" in response.content.decode()
    assert "<details open>" not in staff.get(start_url("evaluate"), asked).content.decode()


def test_start_page_of_a_combination_is_filled_in_with_how_another_was_made(staff: Client):
    make_preference_set()
    asked = {"method": "uncertainty_weighted", "num_folds": "5", "penalty": "2", "has_gate": "False"}
    response = staff.get(start_url("combine"), {**asked, "is_monotone": "True", "preferences": "/etc/passwd"})
    form = response.context["form"]
    assert {name: form[name].value() for name in asked} == {**asked, "has_gate": False}
    assert form["is_monotone"].value() is True
    assert "preferences" not in form.initial
    assert "<details open>" in response.content.decode()


def test_pages_take_no_number_that_is_none(staff: Client):
    make_preference_set()
    endless = "9" * 23
    assert staff.get(start_url("combine"), {"preference_set": endless}).status_code == 200
    assert staff.post(start_url("combine"), {"preference_set": endless}).status_code == 200
    assert staff.get(start_url("score_comparisons"), {"project": endless}).status_code == 200
    assert staff.get(reverse("admin:training_preferenceset_add"), {"project": endless}).status_code == 200


@pytest.mark.parametrize("other", ["", "two"])
def test_start_page_evaluates_a_model_alone_or_against_another(staff: Client, other: str):
    make_preference_set()
    saved = {name: str(make_finished_run(name=name).model_dir.resolve()) for name in ("one", "two")} | {"": ""}
    staff.post(start_url("evaluate"), start_data("evaluate", staff, reward_model="one", other_reward_model=other))
    config = TrainingRun.objects.get(kind="evaluate").config
    assert (config["reward_model"], config["other_reward_model"]) == (saved["one"], saved[other])


def test_scores_of_responses_have_a_page_but_no_button(staff: Client):
    """The file that is scored lies on the server, and a form names none."""
    run = make_finished_run(
        kind="score", name="scored", config={"responses": "/data/all.jsonl", "reward_model": "org/m"}
    )
    page = staff.get(run_url("change", run)).content.decode()
    assert "Scores of responses" in page
    assert "/data/all.jsonl" in page
    assert staff.get(start_url("score")).status_code == 404
    for name in ("changelist", "add"):
        assert start_url("score") not in staff.get(reverse(f"admin:training_trainingrun_{name}")).content.decode()


def guide_data(project, **values):
    form = {"key": uuid.uuid4(), "name": "guidance", "project": project.pk, "reward_models": "one\ntwo"}
    rest = {"strategy": "bald", "num_pairs": 0, "seed": 0, "num_processes": 1, "save_minutes": 5}
    return {**form, **rest, "max_length": 1024, "max_tokens": 16384, **values}


def test_start_page_guides_a_project_by_several_reward_models(staff: Client):
    project = make_project(name="cooking")
    one, two = (make_finished_run(name=name) for name in ("one", "two"))

    form = staff.get(start_url("score_comparisons"), {"project": project.pk}).context["form"]
    assert [field.name for field in form.basic] == ["name", "project", "reward_models", "num_pairs"]
    assert (form["project"].value(), form["reward_models"].value()) == (str(project.pk), "two, one")

    response = staff.post(start_url("score_comparisons"), guide_data(project))
    run = TrainingRun.objects.get(kind="score_comparisons")
    assert response.headers["Location"] == run_url("change", run)
    assert (run.project, run.preference_set) == (project, None)
    assert run.config["reward_models"] == f"{one.model_dir.resolve()}, {two.model_dir.resolve()}"
    page = staff.get(run_url("change", run)).content.decode()
    assert f"one (run {one.pk}), two (run {two.pk})" in page


def test_start_page_wants_two_reward_models_and_a_project_to_guide(staff: Client):
    make_finished_run(name="one")
    project = make_project()

    form = staff.post(start_url("score_comparisons"), guide_data(project, reward_models="one, one")).context["form"]
    assert form.errors == {"reward_models": ["name 2 different models or more, separated by commas"]}
    form = staff.post(start_url("score_comparisons"), {**guide_data(project), "project": ""}).context["form"]
    assert form.errors == {"project": ["This field is required."]}
    assert not TrainingRun.objects.filter(kind="score_comparisons").exists()


def test_page_of_a_preference_set_offers_no_guidance(staff: Client):
    response = staff.get(reverse("admin:training_preferenceset_change", args=[make_preference_set().pk]))
    assert list(response.context["buttons"]) == [
        "reward_model",
        "learning_curve",
        "rejection_sampling",
        "rlhf",
        "dpo",
        "compare_policies",
        "evaluate",
        "sft",
        "combine",
        "average_weights",
    ]


def test_choose_page_names_every_kind(staff: Client):
    response = staff.get(reverse("admin:training_trainingrun_add"))
    assert [choice["kind"] for choice in response.context["choices"]] == [
        "reward_model",
        "learning_curve",
        "rejection_sampling",
        "rlhf",
        "dpo",
        "compare_policies",
        "evaluate",
        "sft",
        "score_comparisons",
        "combine",
        "average_weights",
    ]
    assert staff.post(reverse("admin:training_trainingrun_add")).status_code == 405


# One run


def test_run_page_shows_what_happened(staff: Client):
    run = make_run()
    services.execute_run(run_id=run.pk)
    response = staff.get(run_url("change", run))
    page = response.content.decode()
    for words in (
        "Succeeded",
        "75.0% (95% interval 50.0% to 100.0%)",
        "little trainer overall",
        str(run.run_dir),
        str(run.preference_set),
        "hub/backbone",
    ):
        assert words in page
    assert "hx-trigger" not in page
    assert run_url("cancel", run) not in page


def test_run_page_polls_while_the_run_is_active(staff: Client):
    run = make_run()
    page = staff.get(run_url("change", run)).content.decode()
    assert f'hx-get="{run_url("progress", run)}" hx-trigger="every 2s"' in page
    assert run_url("cancel", run) in page


def test_run_page_escapes_what_models_and_trainers_wrote(staff: Client):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7|add:7 }}"
    run = make_finished_run(name=hostile, kind="rejection_sampling", error=hostile, phase=hostile, worker=hostile)
    run.events.create(status="running", token=1, note=hostile)
    Metric.objects.create(run=run, line=0, values={"phase": hostile, "step": hostile, "loss": 1})
    TrainingRun.objects.update(result={hostile: hostile}, config={"policy": hostile})
    (run.run_dir / "log.txt").write_text(hostile)
    sample = {"prompt": [{"role": "user", "content": hostile}], "response": f"</pre>{hostile}", "reward": 1}
    for when in ("before", "after"):
        (run.run_dir / f"samples_{when}.jsonl").write_text(json.dumps(sample) + "\n")
    page = staff.get(run_url("change", run)).content
    assert b"<script>alert" not in page
    assert b"<img src=x" not in page
    assert page.count(b"&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert inline(page) == []


@pytest.mark.parametrize("kind", ["evaluate", "reward_model"])
def test_run_page_shows_what_a_reward_model_is_worth(staff: Client, kind: str):
    run = leave(make_finished_run(kind=kind, result={"accuracy": 0.712, "brier": 0.191}), "report.json", make_report())
    response = staff.get(run_url("change", run))
    page = response.content.decode().replace("\u00a0", " ")
    for words in (
        "What it is worth",
        "71.2% [68.2, 74.2]",
        "58.3% [55.3, 61.3]",
        "73.8% to 80.5%",
        "Reliability diagram",
        "helmsman is better than baseline by 2.1 points [0.4, 3.8]",
        "Prefers longer responses more than people do",
        "annotator 13",
    ):
        assert words in page
    assert [line.label for line in response.context["page"].result] == ["Pairwise accuracy"]
    assert inline(response.content) == []


def test_run_page_shows_a_learning_curve(staff: Client):
    left_out = [{"num_prompts": 4, "seed": 0, "why": "aspect: <b>style</b>"}]
    run = leave(make_finished_run(kind="learning_curve"), "curve.json", make_curve() | {"left_out": left_out})
    response = staff.get(run_url("change", run))
    assert "Left out: 4 prompts with seed 0. aspect: &lt;b&gt;style&lt;/b&gt;" in response.content.decode()
    assert "Accuracy rises from 58.2% at 250 judgments to 70.2% at 4,000." in response.content.decode()
    assert inline(response.content) == []


@pytest.mark.parametrize("language", ["en", "de"])
def test_pictures_have_decimal_points_in_every_language(staff: Client, settings, language: str):
    settings.LANGUAGE_CODE = language
    run = leave(make_finished_run(kind="evaluate"), "report.json", make_report())
    page = staff.get(run_url("change", run), headers={"Accept-Language": language}).content.decode()
    assert '<circle class="dot" cx="52.94%"' in page


def test_run_page_escapes_what_a_report_says(staff: Client):
    hostile = "<script>alert(1)</script>"
    comparison = {"name_first": hostile, "name_second": hostile, "num_both": hostile}
    slices = {"source": [{"name": hostile, "num_pairs": hostile}] * 2}
    rows = [{"confidence": 0.5, "accuracy": 0.5, "num_pairs": hostile}]
    told = make_report(comparison=comparison, slices=slices, reliability=rows)
    run = leave(make_finished_run(kind="evaluate"), "report.json", told)
    page = staff.get(run_url("change", run)).content
    assert b"<script>alert" not in page
    assert page.count(b"&lt;script&gt;alert(1)&lt;/script&gt;") >= 10


def test_run_page_with_a_report_asks_the_database_no_more(staff: Client):
    run = make_finished_run(kind="evaluate")
    before = _num_queries(staff, run_url("change", run))
    leave(run, "report.json", make_report(comparison=None))
    assert _num_queries(staff, run_url("change", run)) == before


def test_progress_fragment_reloads_the_page_when_the_run_has_ended(staff: Client):
    run = make_run()
    response = staff.get(run_url("progress", run), headers={"HX-Request": "true"})
    assert "HX-Refresh" not in response.headers
    assert b"waits for a training worker" in response.content
    services.cancel_run(run=run)
    response = staff.get(run_url("progress", run), headers={"HX-Request": "true"})
    assert response.headers["HX-Refresh"] == "true"


def test_log_fragment_shows_the_end_of_the_log(staff: Client):
    run = make_run()
    run.run_dir.mkdir(parents=True)
    (run.run_dir / launch.LOG).write_text("\x1b[31m<b>one</b>\x1b[0m\n")
    assert "&lt;b&gt;one&lt;/b&gt;</pre>" in staff.get(run_url("log", run)).content.decode()


def test_metrics_are_told_from_where_the_page_left_off(staff: Client):
    run = make_run()
    Metric.objects.bulk_create([Metric(run=run, line=line, values={"loss": line}) for line in range(3)])
    first = Metric.objects.get(line=0).pk
    expected = {"first": first, "is_more": False, "is_active": True}
    assert staff.get(run_url("metrics", run)).json() == {
        **expected,
        "start": 0,
        "rows": [{"loss": 0}, {"loss": 1}, {"loss": 2}],
    }
    after = {"after": 2, "first": first}
    assert staff.get(run_url("metrics", run), after).json() == {**expected, "start": 2, "rows": [{"loss": 2}]}
    assert staff.get(run_url("metrics", run), {"after": "x", "first": "9" * 30}).json()["start"] == 0


def test_cancel_button_cancels(staff: Client):
    run = make_run()
    response = staff.post(run_url("cancel", run))
    run.refresh_from_db()
    assert (response.headers["Location"], run.status) == (run_url("change", run), "cancelled")
    assert run.events.last().note == "cancelled by staff"
    assert staff.get(run_url("cancel", run)).status_code == 405


def test_a_policy_can_answer_live_prompts(staff: Client):
    run, project = make_finished_run(kind="sft"), make_project()

    assert "Add to the live page" in staff.get(run_url("change", run)).content.decode()
    for _ in range(2):
        response = staff.post(run_url("answer", run), {"project": project.pk})

    assert response.headers["Location"] == run_url("change", run)
    assert list(Endpoint.objects.values_list("project", "name", "kind", "model")) == [
        (project.pk, f"{run.name} (run {run.pk})", "policy", str(run.model_dir))
    ]
    assert staff.get(run_url("answer", run)).status_code == 405
    assert staff.post(run_url("answer", run), {"project": "x"}).status_code == 404
    assert staff.post(run_url("answer", make_finished_run()), {"project": project.pk}).status_code == 404


def test_adapters_alone_cannot_answer_live_prompts(staff: Client):
    run, project = make_finished_run(kind="dpo"), make_project()
    (run.model_dir / "adapter_config.json").write_text("{}")

    page = staff.post(run_url("answer", run), {"project": project.pk}, follow=True).content.decode()

    assert "was saved as an adapter; a policy that is served live has to be saved merged." in page
    assert not Endpoint.objects.exists()


def test_cancel_needs_a_token():
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_staff())
    run = make_run()
    assert client.post(run_url("cancel", run)).status_code == 403
    run.refresh_from_db()
    assert run.status == "queued"


PARTS = ["change", "progress", "log", "metrics"]


@pytest.mark.parametrize("name", [*PARTS, "cancel"])
def test_run_on_a_hidden_project_is_not_found(name: str):
    run = make_run(preference_set=make_preference_set(project=make_judged_project(is_open=False)))
    viewer = make_viewer("view_trainingrun", "change_trainingrun")
    ask = viewer.post if name == "cancel" else viewer.get
    assert ask(run_url(name, run)).status_code == 404


@pytest.mark.parametrize("name", PARTS)
def test_run_pages_refuse_other_methods(staff: Client, name: str):
    assert staff.post(run_url(name, make_run())).status_code == 405


def test_run_cannot_be_deleted(staff: Client):
    run = make_finished_run()
    assert staff.post(run_url("delete", run), {"post": "yes"}).status_code == 403
    assert TrainingRun.objects.exists()


# Reward models side by side

COMPARE = "admin:training_trainingrun_compare"


def make_reported_run(name: str, preference_set: PreferenceSet) -> TrainingRun:
    run = make_finished_run(name=name, preference_set=preference_set, project=preference_set.project)
    return leave(run, "report.json", make_report())


def test_compare_page_shows_the_newest_set_and_any_that_is_asked_for(staff: Client):
    old, new = make_preference_set(), make_preference_set()
    first, second = make_reported_run("first", old), make_reported_run("second", new)
    assert [one.run for one in staff.get(reverse(COMPARE)).context["found"].shown] == [second]
    response = staff.get(reverse(COMPARE), {"preference_set": old.pk})
    assert [one.run for one in response.context["found"].shown] == [first]
    assert f'<option value="{old.pk}" selected>' in response.content.decode()


def test_compare_page_leads_from_two_chosen_models_to_a_paired_evaluation(staff: Client):
    preference_set = make_preference_set()
    first, second, _ = (make_reported_run(name, preference_set) for name in ("first", "second", "third"))
    assert "Choose two models" in staff.get(reverse(COMPARE)).content.decode()
    response = staff.get(reverse(COMPARE), {"run": [first.pk, second.pk, "x", "9" * 30]})
    query = f"preference_set={preference_set.pk}&amp;reward_model=second&amp;other_reward_model=first"
    assert f'href="{start_url("evaluate")}?{query}"' in response.content.decode()
    assert inline(response.content) == []


def test_compare_page_without_reports(staff: Client):
    assert "No reward model has been measured yet." in staff.get(reverse(COMPARE)).content.decode()
    make_finished_run(preference_set=make_preference_set())
    assert "No reward model has been measured yet on" in staff.get(reverse(COMPARE)).content.decode()


def test_compare_page_refuses(staff: Client):
    assert staff.post(reverse(COMPARE)).status_code == 405
    assert staff.get(reverse(COMPARE), {"preference_set": "x"}).status_code == 404
    assert make_viewer().get(reverse(COMPARE)).status_code == 403
    assert Client().get(reverse(COMPARE)).status_code == 302


def test_compare_page_shows_a_viewer_what_they_may_see_and_no_buttons():
    hidden = make_preference_set(project=make_judged_project(is_open=False))
    shown = make_preference_set()
    for preference_set in (hidden, shown):
        for name in ("one", "two"):
            make_reported_run(name, preference_set)
    viewer = make_viewer("view_trainingrun", "view_preferenceset")
    assert viewer.get(reverse(COMPARE), {"preference_set": hidden.pk}).status_code == 404
    response = viewer.get(reverse(COMPARE))
    assert response.context["sets"] == [shown]
    assert start_url("evaluate") not in response.content.decode()


def test_lists_and_sets_link_to_the_compare_page(staff: Client):
    preference_set = make_preference_set()
    set_page = reverse("admin:training_preferenceset_change", args=[preference_set.pk])
    assert reverse(COMPARE) not in staff.get(set_page).content.decode()
    make_reported_run("first", preference_set)
    assert f"{reverse(COMPARE)}?preference_set={preference_set.pk}" in staff.get(set_page).content.decode()
    viewer = make_viewer("view_trainingrun")
    assert reverse(COMPARE) in viewer.get(reverse("admin:training_trainingrun_changelist")).content.decode()


def test_compare_page_asks_the_database_no_more_for_three_runs(staff: Client):
    preference_set = make_preference_set()
    make_reported_run("first", preference_set)
    before = _num_queries(staff, reverse(COMPARE))
    for name in ("second", "third"):
        make_reported_run(name, preference_set)
    assert _num_queries(staff, reverse(COMPARE)) == before


# Who may what


def test_view_only_staff_can_look_but_not_touch():
    run = make_run()
    viewer = make_viewer("view_trainingrun", "view_preferenceset", "view_project")
    assert viewer.get(run_url("change", run)).status_code == 200
    assert run_url("cancel", run) not in viewer.get(run_url("change", run)).content.decode()
    assert viewer.post(run_url("cancel", run)).status_code == 403
    assert viewer.get(start_url("reward_model")).status_code == 403
    assert viewer.post(start_url("reward_model")).status_code == 403
    assert viewer.get(reverse("admin:training_trainingrun_add")).status_code == 403
    assert viewer.post(reverse("admin:training_preferenceset_add")).status_code == 403
    assert "start/" not in viewer.get(reverse("admin:training_trainingrun_changelist")).content.decode()
    run.refresh_from_db()
    assert (run.status, TrainingRun.objects.count(), PreferenceSet.objects.count()) == ("queued", 1, 1)


def test_staff_without_permission_see_nothing():
    run = make_run()
    stranger = make_viewer()
    assert [stranger.get(run_url(name, run)).status_code for name in PARTS] == [403] * 4
    assert stranger.get(reverse("admin:training_trainingrun_changelist")).status_code == 403


@pytest.mark.parametrize("is_logged_in", [True, False])
def test_annotators_and_strangers_are_sent_to_log_in(client: Client, is_logged_in: bool):
    run = make_run()
    if is_logged_in:
        client.force_login(make_user())
    for url in (*(run_url(name, run) for name in PARTS), start_url("sft"), reverse("admin:training_preferenceset_add")):
        response = client.get(url)
        assert (response.status_code, response.headers["Location"].partition("?")[0]) == (302, reverse("admin:login"))
    assert client.post(run_url("cancel", run)).status_code == 302
    run.refresh_from_db()
    assert run.status == "queued"


# Lists and the content security policy


@pytest.mark.parametrize("name", ["trainingrun", "preferenceset"])
def test_lists_ask_the_database_no_more_for_three_rows(staff: Client, name: str):
    make_run()
    before = _num_queries(staff, reverse(f"admin:training_{name}_changelist"))
    make_run()
    make_run()
    assert _num_queries(staff, reverse(f"admin:training_{name}_changelist")) == before


def _num_queries(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        client.get(url)
    return len(queries)


def test_list_shows_only_runs_that_the_user_may_see():
    make_run(name="hidden run", preference_set=make_preference_set(project=make_judged_project(is_open=False)))
    make_run(name="shown run")
    page = make_viewer("view_trainingrun").get(reverse("admin:training_trainingrun_changelist")).content.decode()
    assert "shown run" in page
    assert "hidden run" not in page


def test_pages_obey_the_content_security_policy(staff: Client):
    run = make_run(key=uuid.uuid4())
    urls = [
        *(reverse(f"admin:training_{name}_changelist") for name in ("trainingrun", "preferenceset")),
        *(reverse(f"admin:training_{name}_add") for name in ("trainingrun", "preferenceset")),
        *(start_url(kind) for kind in KINDS),
        *(run_url(name, run) for name in ("change", "progress", "log")),
        reverse("admin:training_preferenceset_change", args=[run.preference_set.pk]),
    ]
    for url in urls:
        response = staff.get(url)
        assert (response.status_code, inline(response.content)) == (200, []), url
        assert "unsafe" not in response.headers["Content-Security-Policy"]
