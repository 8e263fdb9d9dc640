import pytest
from django.test import Client
from django.urls import reverse

from tests.training.factories import make_finished_run, make_judged_project, make_staff
from tests.training.reports import leave
from tests.training.test_admin import _num_queries, inline, make_viewer, run_url
from tests.training.trackings import ALARM, exploited, leave_checks, leave_samples, make_policies
from training import alignment_queries
from training.models import Metric

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff(username="staff"))
    return client


def make_rlhf(**values):
    run = make_finished_run(**{"kind": "rlhf", "config": {"guard": "stop", "kl_target": 2.0}, **values})
    return leave(leave_checks(run, exploited()), "alarm.json", ALARM)


def test_run_page_says_that_the_guard_stopped_it(staff: Client):
    page = staff.get(run_url("change", make_rlhf())).content.decode()
    assert "Stopped by the guard at step 120; the policy of step 80 is kept." in page
    assert "The reward rose while the held-out reward fell" in page
    assert '<th scope="row">80</th><td>1.260 [1.160,\u00a01.360]</td><td>0.700 [0.600,\u00a00.800]</td>' in page
    assert page.count('<svg class="plot chart"') == 8
    assert inline(page.encode()) == []


def test_run_page_shows_what_a_policy_answers_over_time(staff: Client):
    run = make_rlhf()
    for step in (0, 80, 160):
        leave_samples(run, step, response="<script>alert(1)</script>")
    response = staff.get(run_url("change", run), {"prompt": "1", "step": ["0", "160"]})
    page = response.content.decode()
    assert page.count('<pre dir="auto">&lt;script&gt;alert(1)&lt;/script&gt;</pre>') == 4
    assert "<script>alert" not in page
    assert [choice.value for choice in response.context["over_time"].steps if choice.is_chosen] == [0, 160]
    assert '<legend>After step <span class="quiet">six at most</span></legend>' in page
    assert '<a href="?prompt=2&amp;step=0&amp;step=160#samples">Next prompt</a>' in page


def test_run_page_asks_the_database_no_more_for_checks_and_samples(staff: Client):
    run = make_finished_run(kind="rlhf")
    before = _num_queries(staff, run_url("change", run))
    leave_checks(run, exploited())
    for step in (0, 20, 40):
        leave_samples(run, step)
    assert _num_queries(staff, run_url("change", run)) == before


def test_tracking_is_sent_again_once_there_is_news(staff: Client):
    run = leave_checks(make_finished_run(kind="rlhf", status="queued"), exploited())
    url = run_url("tracking", run)
    news = staff.get(url, {"seen": "140"})
    assert (news.status_code, staff.get(url, {"seen": "160"}).status_code) == (200, 204)
    page = news.content.decode()
    assert f'hx-get="{url}?seen=160"' in page
    assert 'role="region" aria-label="Checks as a table" hx-swap-oob="true"' in page
    leave(run, "alarm.json", ALARM)
    assert f'{url}?seen=160-alarm"' in staff.get(url, {"seen": "160"}).content.decode()
    run.status = "succeeded"
    run.save()
    assert "hx-get" not in staff.get(url).content.decode()


def test_what_has_been_seen_is_not_read_again(staff: Client, monkeypatch):
    run = leave_checks(make_finished_run(kind="rlhf", status="queued"), exploited())
    monkeypatch.setattr(alignment_queries, "read_checks", lambda path: pytest.fail("all checks were read"))
    assert staff.get(run_url("tracking", run), {"seen": "160"}).status_code == 204


def test_shards_appear_by_themselves(staff: Client):
    config = {"num_shards": 2}
    run = make_finished_run(kind="rejection_sampling", status="queued", config=config)
    url = run_url("shards", run)
    page = staff.get(run_url("change", run)).content.decode()
    assert f'hx-get="{url}"' in page
    assert "None yet." in page
    make_finished_run(kind="sample", name="shard 1", parent=run, status="queued")
    page = staff.get(url).content.decode()
    assert "shard 1" in page
    assert '<div class="scrolling" tabindex="0" role="region" aria-label="Shards as a table">' in page
    assert "<caption" in page
    undivided = make_finished_run(kind="rejection_sampling", config={"num_shards": 1})
    assert "run-shards" not in staff.get(run_url("change", undivided)).content.decode()
    assert staff.get(run_url("shards", undivided)).status_code == 404


def test_curves_are_shown_where_there_are_some(staff: Client):
    run = make_finished_run(kind="compare_policies")
    Metric.objects.create(run=run, line=0, values={"step": 1, "phase": "generate"})
    page = staff.get(run_url("change", run)).content.decode()
    assert [telling for telling in ("Curves", "run.js", "uPlot") if telling in page] == []
    Metric.objects.create(run=run, line=1, values={"step": 1, "phase": "train", "loss": 0.5})
    page = staff.get(run_url("change", run)).content.decode()
    assert [telling for telling in ("Curves", "run.js", "uPlot") if telling not in page] == []


def test_tracking_of_what_makes_no_checks_is_no_content(staff: Client):
    assert staff.get(run_url("tracking", make_finished_run(kind="sft"))).status_code == 204


def test_tracking_is_for_those_who_see_the_project():
    run = make_rlhf(project=make_judged_project(is_open=False))
    viewer = make_viewer("view_trainingrun")
    assert viewer.get(run_url("tracking", run)).status_code == 404
    assert viewer.get(run_url("tracking", make_rlhf())).status_code == 200
    assert make_viewer().get(run_url("tracking", run)).status_code == 403


def test_tracking_refuses_other_methods(staff: Client):
    assert staff.post(run_url("tracking", make_rlhf())).status_code == 405
    assert staff.get(reverse("admin:training_trainingrun_tracking", args=[999])).status_code == 404


# A comparison of policies


def make_comparison(**values):
    policies = [make_finished_run(kind="rlhf", config={"reward_model": "org/reward"}) for _ in range(3)]
    run = make_finished_run(kind="compare_policies", **values)
    return leave(run, "report.json", make_policies(*(str(one.model_dir.resolve()) for one in policies)))


def test_run_page_compares_policies(staff: Client):
    run = make_comparison()
    page = staff.get(run_url("change", run)).content.decode()
    assert "60.0% [57.0,\u00a063.0]" in page
    assert page.count("RLHF: reward org/reward") == 3
    assert page.count('<details class="disagreement"') == 4
    assert inline(page.encode()) == []


def test_run_page_escapes_what_policies_answer(staff: Client):
    told = make_policies("a", "<b>bold</b>")
    told["samples"][0]["responses"] = ["<script>alert(1)</script>", "\ud800"]
    run = leave(make_finished_run(kind="compare_policies"), "report.json", told)
    page = staff.get(run_url("change", run)).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "bold</b>" not in page.replace("&lt;b&gt;bold&lt;/b&gt;", "")


def test_run_page_asks_the_database_no_more_for_three_policies(staff: Client):
    run = make_comparison()
    policies = [make_finished_run(kind="dpo", config={"reward_model": "org/reward"}) for _ in range(2)]
    few = make_policies(*(str(one.model_dir.resolve()) for one in policies))
    many = _num_queries(staff, run_url("change", run))
    assert _num_queries(staff, run_url("change", leave(run, "report.json", few))) == many


# What is optimised, beside the form


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("rlhf", "In the mean this is the exact gradient."),
        ("rejection_sampling", "nats: 0.19 for 2, 0.64 for 4, 1.84 for 16, 3.17 for 64."),
        ("dpo", "With endless judgments it ends at the same policy as RLHF"),
    ],
)
def test_start_page_explains_what_is_optimised(staff: Client, kind, says):
    page = staff.get(reverse("admin:training_trainingrun_start", args=[kind])).content.decode()
    assert says in page
    assert "<h3>The guard</h3>" in page
    assert inline(page.encode()) == []


def test_start_page_of_other_kinds_explains_nothing(staff: Client):
    assert (
        '<details class="card explained">'
        not in staff.get(reverse("admin:training_trainingrun_start", args=["reward_model"])).content.decode()
    )
