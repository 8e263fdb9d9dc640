"""Where a policy comes from, and what came of it."""

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from annotate.models import Project
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user
from tests.training.factories import make_finished_run, make_staff
from tests.training.test_admin import inline, make_viewer, run_url
from tests.training.test_contests import judge, make_policy, send
from training import services
from training.lineage_queries import Lineage, Node, lineage
from training.models import PreferenceSet, TrainingRun

pytestmark = pytest.mark.django_db


def folder(run: TrainingRun) -> str:
    return str(run.model_dir.resolve())


def make_set(project: Project, name: str, *, username: str = "") -> PreferenceSet:
    annotator = make_annotator(user=make_user(username=username) if username else None)
    make_judgment(comparison=make_comparison(project=project), annotator=annotator)
    return services.freeze(project=project, name=name)


def make_history(project: Project | None = None) -> tuple[TrainingRun, TrainingRun, TrainingRun]:
    """A base model, a reward model learned from a set, and a policy that went on from the base under the reward."""
    project = project or make_project(name="cooking")
    frozen = make_set(project, "first", username="amina")
    base = make_finished_run(kind="sft", name="base", config={"policy": "hub/base"})
    reward = make_finished_run(
        name="proxy", config={"backbone": "hub/backbone"}, project=project, preference_set=frozen
    )
    config = {"policy": folder(base), "reward_model": folder(reward), "held_out_reward_model": ""}
    return base, reward, make_policy(name="better", project=project, preference_set=frozen, config=config)


def drawn(node: Node, depth: int = 0) -> list[str]:
    """A tree as indented lines."""
    facts = f" ({node.facts})" if node.facts else ""
    line = "  " * depth + f"{node.role}: {node.text}{facts}"
    return [line, *(below for part in node.parts for below in drawn(part, depth + 1))]


def seen_by_staff(run: TrainingRun) -> Lineage:
    return lineage(run, make_staff())


def test_sources_go_back_to_the_annotators():
    base, reward, policy = make_history()
    told = [line.split(" (frozen")[0].split(" (made 2")[0] for line in drawn(seen_by_staff(policy).sources)]
    day = seen_by_staff(policy).sources.parts[1].parts[1].facts
    assert day.startswith("frozen ")
    assert told[:6] == [
        f"Rejection sampling: better (run {policy.pk})",
        f"  Began as: base (run {base.pk}) (Supervised fine-tuning)",
        "    Began as: hub/base (made elsewhere)",
        f"  Reward: proxy (run {reward.pk}) (Reward model)",
        "    Began as: hub/backbone (made elsewhere)",
        "    Preference set: cooking/first",
    ]
    assert told[6:] == [
        "      Judgments: 1",
        "        Annotators: 1 (amina)",
        "  Preference set: cooking/first (see above)",
    ]


def test_uses_go_forth_to_the_next_runs():
    base, _, policy = make_history()
    contest = send(policy).contest
    judge(contest, "wwl")
    after = services.freeze(project=policy.project, name="second")
    learned = make_finished_run(name="next-proxy", project=policy.project, preference_set=after)
    onward = make_finished_run(kind="dpo", name="onward", config={"policy": folder(policy)}, project=policy.project)
    told = [line.split(" (frozen")[0] for node in seen_by_staff(base).uses for line in drawn(node)]
    assert told == [
        f"Went on from it: better (run {policy.pk}) (Rejection sampling)",
        f"  Went on from it: onward (run {onward.pk}) (DPO)",
        f"  Judged by people: better (run {policy.pk}) against the policy it began as (3 pairs judged in cooking)",
        "    Preference set: cooking/second",
        f"      Learned from it: next-proxy (run {learned.pk}) (Reward model)",
    ]


def test_a_set_frozen_before_the_votes_did_not_come_of_them():
    _, _, policy = make_history()
    contest = send(policy).contest
    assert [node.parts for node in seen_by_staff(policy).uses] == [[]]
    make_set(policy.project, "before")
    judge(contest, "w")
    assert [node.parts for node in seen_by_staff(policy).uses] == [[]]


def test_members_of_a_combination_are_its_sources():
    _, reward, _ = make_history()
    other = make_finished_run(name="other")
    both = make_finished_run(kind="combine", name="both", config={"members": f"{folder(reward)}, {folder(other)}"})
    assert [line for line in drawn(seen_by_staff(both).sources) if "Combines" in line] == [
        f"  Combines: proxy (run {reward.pk}) (Reward model)",
        f"  Combines: other (run {other.pk}) (Reward model)",
    ]
    told = [line for node in seen_by_staff(other).uses for line in drawn(node)]
    assert told == [f"Combined it: both (run {both.pk}) (Combination of rewards)"]


def test_what_a_user_may_not_see_is_not_named():
    hidden = make_project(name="secret", is_open=False)
    base, reward, _ = make_history(hidden)
    config = {"policy": folder(base), "reward_model": folder(reward)}
    policy = make_policy(name="seen", project=make_project(), config=config)
    viewer = make_user(is_staff=True)
    told = drawn(lineage(policy, viewer).sources)
    assert told[-1] == f"  Reward: {reward.pk}/model (made elsewhere)"
    assert lineage(base, viewer).uses[0].text == f"seen (run {policy.pk})"
    assert len(lineage(base, viewer).uses) == 1


def test_names_of_annotators_are_for_those_who_may_see_them():
    _, _, policy = make_history()
    viewer = make_user(is_staff=True)
    assert "Annotators: 1" in [line.strip() for line in drawn(lineage(policy, viewer).sources)]


def test_page_draws_the_lineage(client: Client):
    client.force_login(make_staff())
    base, _, policy = make_history()
    response = client.get(run_url("lineage", policy))
    page = response.content.decode()
    for words in (f'<a href="{run_url("change", base)}">base (run {base.pk})</a>', "amina", "Nothing yet."):
        assert words in page
    assert inline(response.content) == []
    assert run_url("lineage", policy) in client.get(run_url("change", policy)).content.decode()
    assert client.post(run_url("lineage", policy)).status_code == 405


def test_lineage_of_somebody_elses_run_is_not_found():
    hidden = make_policy(project=make_project(is_open=False))
    assert make_viewer("view_trainingrun").get(run_url("lineage", hidden)).status_code == 404
    assert make_viewer("view_contest").get(run_url("lineage", hidden)).status_code == 403


def test_what_the_tree_does_not_reach_is_not_asked_for():
    _, _, policy = make_history()
    elsewhere = make_project()
    other = make_policy(name="other", project=elsewhere, preference_set=make_set(elsewhere, "theirs"))
    judge(send(other).contest, "ww")
    staff = make_staff()
    with CaptureQueriesContext(connection) as queries:
        told = lineage(policy, staff)
    assert told.uses == []
    judged = [query["sql"] for query in queries if "annotate_judgment" in query["sql"]]
    assert [f'"project_id" = {project.pk})' in judged[-1] for project in (policy.project, elsewhere)] == [True, False]
    assert f'"run_id" IN ({policy.pk})' in judged[0]
    assert len(judged) == 2
    assert not any('"config", "training_trainingrun"."key"' in query["sql"] for query in queries)


def test_a_chain_of_contests_and_sets_is_followed_to_its_end():
    _, _, policy = make_history()
    last = policy
    for number in range(3):
        judge(send(last).contest, "w")
        frozen = services.freeze(project=policy.project, name=f"after-{number}")
        last = make_policy(name=f"next-{number}", project=policy.project, preference_set=frozen)
    told = [line.strip() for node in seen_by_staff(policy).uses for line in drawn(node)]
    assert [line for line in told if "see above" not in line and "Learned" in line] == [
        f"Learned from it: next-{number} (run {policy.pk + 1 + number}) (Rejection sampling)" for number in range(3)
    ]


def test_a_long_history_asks_the_database_no_more_than_a_short_one(client: Client):
    client.force_login(make_staff())
    _, _, policy = make_history()
    numbers = []
    for number in range(2):
        with CaptureQueriesContext(connection) as queries:
            client.get(run_url("lineage", policy))
        numbers.append(len(queries))
        later = make_policy(name=f"later-{number}", project=policy.project, config={"policy": folder(policy)})
        judge(send(later).contest, "w")
        make_set(policy.project, f"set-{number}")
    assert numbers[0] == numbers[1]
