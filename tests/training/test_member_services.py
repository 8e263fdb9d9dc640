import hashlib
import json
from pathlib import Path

import pytest
from django.db import IntegrityError

from annotate.models import Judgment
from tests.factories import make_comparison, make_judgment, make_project, make_prompt, make_user
from tests.training.factories import make_finished_run, make_staff
from training import launch, member_services, previews, references, services
from training.alignment.config import ConfigError
from training.alignment.member_config import JudgeMember, read_member
from training.models import Member, TrainingRun

pytestmark = pytest.mark.django_db
KEY = "sk-very-secret-0123456789"
SERVED = {"base_url": "http://127.0.0.1:1/v1", "model": "judge", "key_variable": "TEST_API_KEY"}


@pytest.fixture(autouse=True)
def judge_keys(settings) -> None:
    settings.JUDGE_KEYS = {"TEST_API_KEY"}


def make_member(kind: str = "length", name: str = "short", **values) -> Member:
    fields = {name: values.pop(name) for name in ("project", "user") if name in values}
    return member_services.create_member(kind=kind, name=name, values=values, **fields)


def everything_under(folder) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


# Registering


def test_create_member_writes_its_folder_and_its_row():
    project, user = make_project(), make_staff()
    member = make_member("judge", "helpful", model="org/judge", rubric="Is it helpful?", project=project, user=user)

    told = json.loads((member.path / "member.json").read_text())
    assert read_member(member.path) == JudgeMember(model="org/judge", rubric="Is it helpful?")
    assert (member.kind, member.aspect, member.project, member.created_by) == ("judge", "overall", project, user)
    assert {"kind": "judge", **member.config} == told
    assert member.digest == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    assert str(member) == f"{project}/helpful"


def test_equal_members_share_a_folder_and_others_do_not():
    one, same, other = (make_member(name=name, target=target) for name, target in (("a", 5), ("b", 5), ("c", 6)))
    assert one.path == same.path
    assert one.path != other.path


def test_create_member_finds_the_models_that_it_names():
    run, policy = make_finished_run(name="rm"), make_finished_run(name="base", kind="sft")
    member = make_member("reward_model", "m", model="rm")
    implicit = make_member("implicit", "i", policy="base", reference_policy="org/base")
    assert member.config["model"] == str(run.model_dir.resolve())
    assert (implicit.config["policy"], implicit.config["reference_policy"]) == (
        str(policy.model_dir.resolve()),
        "org/base",
    )
    with pytest.raises(ConfigError, match=r"^policy: run rm is of kind reward model"):
        make_member("implicit", "j", policy="rm", reference_policy="org/base")


def test_create_member_pressed_twice_makes_one():
    assert make_member() == make_member()
    member_services.retire_member(member=Member.objects.get())
    with pytest.raises(ConfigError, match=r"^name: there is a member without a project short already$"):
        make_member()


def test_create_member_names_once_in_a_project_and_once_without():
    project = make_project(name="cooking")
    make_member(name="same")
    make_member(name="same", project=project)
    with pytest.raises(ConfigError, match=r"^name: there is a member without a project same already$"):
        make_member("repetition", name="same")
    with pytest.raises(ConfigError, match=r"^name: project cooking has a member same already$"):
        make_member("repetition", name="same", project=project)
    assert Member.objects.count() == 2


@pytest.mark.parametrize("project", [None, "cooking"])
def test_the_database_too_keeps_a_name_once(project):
    project = make_project(name=project) if project else None
    fields = {"name": "same", "project": project, "kind": "length", "aspect": "overall", "config": {}}
    Member.objects.create(**fields, digest="1" * 64)
    with pytest.raises(IntegrityError):
        Member.objects.create(**fields, digest="2" * 64)


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a, b", "x" * 101])
def test_create_member_refuses_a_name_that_runs_could_not_name(name):
    with pytest.raises(ConfigError, match=r"^name: has 1 to 100 characters"):
        make_member(name=name)


def test_a_member_never_changes():
    member = make_member()
    member.name = "other"
    with pytest.raises(TypeError, match="never changes"):
        member.save()
    assert Member.objects.get().name == "short"


def test_retire_member_and_bring_it_back():
    member = make_member()
    member_services.retire_member(member=member)
    assert not Member.objects.active().exists()
    assert (member.path / "member.json").exists()
    member_services.retire_member(member=member, is_active=True)
    assert Member.objects.active().get() == member


# Keys


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        "sk-ABC",
        "openai_api_key",
        "OPENAI API KEY",
        "",
        "SECRET_KEY",
        "DATABASE_URL",
        "PGPASSWORD",
        "DJANGO_SECRET_KEY",
        "HF_TOKEN",
        "FIELD_ENCRYPTION_KEY",
    ],
)
def test_create_member_takes_the_name_of_a_key_and_no_key(value, tmp_path):
    with pytest.raises(ConfigError, match=r"^key_variable: is the name of an environment variable"):
        make_member("served_judge", **{**SERVED, "key_variable": value})
    assert not Member.objects.exists()
    assert not value or value not in everything_under(tmp_path)


def test_a_trainer_gets_the_keys_of_its_own_judges_and_no_other(monkeypatch, tmp_path):
    for name in ("TEST_API_KEY", "OTHER_API_KEY", "SECRET_KEY"):
        monkeypatch.setenv(name, KEY)
    judge, rule = make_member("served_judge", "judge", **SERVED), make_member()
    run = services.create_run(
        kind="score_comparisons", name="g", values={"reward_models": "judge, short"}, project=make_project()
    )
    assert keys_of(run) == {"TEST_API_KEY": KEY}

    combiner = tmp_path / "combined"
    combiner.mkdir()
    (combiner / "combiner.json").write_text(json.dumps({"members": [{"path": str(judge.path)}, {"path": "missing"}]}))
    values = {"reward_models": f"{combiner}, short"}
    combined = services.create_run(kind="score_comparisons", name="c", values=values, project=make_project())
    assert keys_of(combined) == {"TEST_API_KEY": KEY}

    values = {"reward_models": f"{rule.path}, org/other"}
    without = services.create_run(kind="score_comparisons", name="w", values=values, project=make_project())
    assert keys_of(without) == {}


def keys_of(run: TrainingRun) -> dict[str, str]:
    environment = launch.environment(launch.prepare(TrainingRun.objects.get(pk=run.pk)))
    return {name: value for name, value in environment.items() if name.endswith("_KEY")}


@pytest.mark.parametrize("name", ["SECRET_KEY", "FIELD_ENCRYPTION_KEY", "OPENAI_API_KEY"])
def test_a_folder_that_names_another_secret_does_not_get_it(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, KEY)
    told = {"kind": "served_judge", **SERVED, "key_variable": name}
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "member.json").write_text(json.dumps(told))
    values = {"reward_models": f"{tmp_path / 'forged'}, org/other"}
    run = services.create_run(kind="score_comparisons", name="f", values=values, project=make_project())
    assert keys_of(run) == {}


def test_a_key_is_in_no_file_and_no_row(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_API_KEY", KEY)
    project = make_project()
    make_comparison(project=project)
    make_member("served_judge", "judge", **SERVED)
    make_member()
    run = services.create_run(
        kind="score_comparisons", name="g", values={"reward_models": "judge, short"}, project=project
    )
    services.execute_run(run_id=run.pk)
    run.refresh_from_db()

    assert run.status == "succeeded"
    rows = [Member.objects.values(), TrainingRun.objects.values(), run.metrics.values(), run.events.values()]
    assert KEY not in repr([list(values) for values in rows])
    assert run.metrics.exists()
    assert "judge" in everything_under(tmp_path)
    assert KEY not in everything_under(tmp_path)


# Naming members


def test_a_reward_is_named_by_a_member_a_run_or_a_folder_of_any_kind(tmp_path):
    member = make_member(name="short")
    combined = make_finished_run(kind="combine", name="all")
    averaged = make_finished_run(kind="average_weights", name="mean")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "combiner.json").write_text("{}")
    found = {value: references.resolve_model("evaluate", "reward_model", value) for value in ("short", "all", "mean")}
    assert found == {"short": str(member.path), "all": str(combined.model_dir), "mean": str(averaged.model_dir)}
    assert references.resolve_model("evaluate", "reward_model", str(folder)) == str(folder)
    members = references.resolve_model("combine", "members", "short\nall, org/model")
    assert members == f"{member.path}, {combined.model_dir}, org/model"
    assert references.resolve_model("combine", "incumbent", "") == ""


def test_a_member_in_a_project_is_named_with_it_where_there_are_several():
    cooking, travel = make_project(name="cooking"), make_project(name="travel")
    first = make_member(name="judge", project=cooking, target=1)
    assert references.resolve_model("evaluate", "reward_model", "judge") == str(first.path)
    second = make_member(name="judge", project=travel, target=2)
    assert references.resolve_model("evaluate", "reward_model", "travel/judge") == str(second.path)
    with pytest.raises(ConfigError, match=r"^reward_model: 'judge' stands for several members: travel/judge, cooking"):
        references.resolve_model("evaluate", "reward_model", "judge")


def test_a_member_of_a_hidden_project_is_not_known():
    make_member(name="hidden judge", project=make_project(is_open=False))
    assert references.resolve_model("evaluate", "reward_model", "hidden judge", make_staff())
    with pytest.raises(ConfigError, match=r"^reward_model: 'hidden judge' is neither a folder, nor a run's name, nor"):
        references.resolve_model("evaluate", "reward_model", "hidden judge", make_user())


def test_a_retired_member_is_taken_no_more_and_says_so():
    member_services.retire_member(member=make_member(name="old"))
    assert references.usable_names("reward_model") == []
    with pytest.raises(ConfigError, match=r"^reward_model: member old has been retired$"):
        references.resolve_model("evaluate", "reward_model", "old")
    run = make_finished_run(name="old")
    assert references.resolve_model("evaluate", "reward_model", "old") == str(run.model_dir)


def test_a_member_whose_folder_is_gone_is_refused():
    member = make_member(name="lost")
    (member.path / "member.json").unlink()
    with pytest.raises(ConfigError, match=r"^reward_model: the folder of member lost is missing: "):
        references.resolve_model("evaluate", "reward_model", "lost")


def test_a_member_is_no_backbone_and_no_weights_to_average():
    member = make_member(name="short")
    for kind, field in (("reward_model", "backbone"), ("average_weights", "models")):
        with pytest.raises(ConfigError, match=rf"^{field}: .*there is no config.json in it"):
            references.resolve_model(
                kind, field, f"{member.path}, org/other" if field == "models" else str(member.path)
            )
    assert references.usable_names("members") == ["short"]
    assert references.usable_names("models") == []


# Previews


def make_judged(project, *, aspect: str = "overall", num: int = 1, **values):
    comparison = make_comparison(project=project)
    for _ in range(num):
        make_judgment(comparison=comparison, aspect=aspect, **values)
    return comparison


def test_preview_judge_asks_about_comparisons_that_people_judged_last():
    project = make_project(overlap=3)
    unjudged = make_comparison(project=project)
    judged = [make_judged(project) for _ in range(4)]
    run = member_services.preview_judge(
        kind="judge", name="helpful", values={"model": "org/judge", "rubric": "Is it?"}, project=project
    )
    assert (run.kind, run.name, run.project) == ("preview_judge", "Preview of helpful", project)
    assert read_member(Path(run.config["member"])).rubric == "Is it?"
    assert not Member.objects.exists()

    services.execute_run(run_id=run.pk)
    rows = [json.loads(line) for line in (run.run_dir / "prompts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(one.pk) for one in judged[:0:-1]]
    assert str(unjudged.pk) not in {row["id"] for row in rows}
    options = judged[-1].options.order_by("position")
    assert rows[0]["prompt"] == judged[-1].prompt.messages
    assert rows[0]["responses"] == [{"id": o.response_id, "content": o.response.content} for o in options]


def test_preview_bears_separators_of_lines_in_texts():
    project = make_project()
    messages = [{"role": "user", "content": "a\u2028b\x85c\nd"}]
    make_comparison(project=project, prompt=make_prompt(project=project, messages=messages))
    run = member_services.preview_judge(kind="judge", name="x", values={"model": "org/judge"}, project=project)
    services.execute_run(run_id=run.pk)
    (shown,) = previews.preview(run).comparisons
    assert shown.prompt[0]["content"] == "a\u2028b\x85c\nd"


def test_preview_judge_prefers_judgments_of_its_aspect():
    project = make_project()
    about_harm = make_judged(project)
    Judgment.objects.update(aspect="harmlessness")
    overall = make_judged(project)
    found = previews.comparisons_to_show(project, "harmlessness", 3)
    assert found == [about_harm, overall]


def test_preview_judge_shows_comparisons_that_nobody_judged_where_there_are_no_others():
    project = make_project()
    comparison = make_comparison(project=project)
    assert previews.comparisons_to_show(project, "overall", 3) == [comparison]


def test_preview_judge_wants_comparisons():
    with pytest.raises(ConfigError, match=r"^preview_project: .* has no comparison yet$"):
        member_services.preview_judge(kind="judge", name="x", values={"model": "org/judge"}, project=make_project())
    assert not TrainingRun.objects.exists()
