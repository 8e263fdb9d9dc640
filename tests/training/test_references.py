import pytest

from tests.factories import make_comparison, make_judgment, make_project, make_user
from tests.training.factories import make_finished_run, make_preference_set, make_run, make_staff
from training import references
from training.alignment.config import ConfigError

pytestmark = pytest.mark.django_db


def resolve(value: str, field: str = "backbone", kind: str = "reward_model", user=None) -> str:
    return references.resolve_model(kind, field, value, user)


def make_folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_resolve_model_takes_absolute_and_relative_folders(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    assert [resolve(value) for value in (str(folder), "models/mine", "./models/mine")] == [str(folder)] * 3


def test_resolve_model_takes_the_newest_run_of_that_name():
    make_finished_run(kind="sft", name="base")
    newest = make_finished_run(kind="rejection_sampling", name="base")
    assert resolve("base") == str(newest.model_dir)


def test_resolve_model_takes_only_reward_models_where_one_is_wanted():
    reward_model = make_finished_run(kind="reward_model", name="rm")
    assert resolve("rm", "reward_model", "evaluate") == str(reward_model.model_dir)
    with pytest.raises(ConfigError, match=r"^policy: run rm is of kind reward model, not supervised fine-tuning or"):
        resolve("rm", "policy", "rejection_sampling")


def test_resolve_model_refuses_a_run_that_has_not_succeeded():
    make_run(name="rm")
    with pytest.raises(ConfigError, match=r"^reward_model: run rm has saved no model; it is queued$"):
        resolve("rm", "reward_model", "evaluate")


def test_resolve_model_does_not_know_runs_on_projects_that_the_user_may_not_see():
    make_finished_run(kind="sft", name="secret run", project=make_project(is_open=False))
    assert resolve("secret run", user=make_staff())
    with pytest.raises(ConfigError, match=r"^backbone: 'secret run' is neither"):
        resolve("secret run", user=make_user())


@pytest.mark.parametrize("value", ["gpt2", "Qwen/Qwen3-0.6B", "org/model_1.5"])
def test_resolve_model_takes_hugging_face_ids(value):
    assert resolve(f" {value} ") == value


@pytest.mark.parametrize(
    "value",
    [
        "--trust_remote_code",
        "../../etc",
        "/etc",
        "~/nothing",
        "a/b/c",
        "a b",
        "org/--x",
        "org/..",
        "$(id)",
        "a;b",
        "a\nb",
    ],
)
def test_resolve_model_refuses_what_names_no_model(value):
    with pytest.raises(ConfigError, match=r"^backbone: "):
        resolve(value)


def test_resolve_model_wants_a_model_except_where_it_is_optional():
    assert resolve("", "held_out_reward_model", "rejection_sampling") == ""
    with pytest.raises(ConfigError, match=r"^reward_model: name a model$"):
        resolve(" ", "reward_model", "rejection_sampling")


def test_resolve_model_starts_from_nothing_only_for_sft():
    assert resolve("new:tiny", "policy", "sft") == "new:tiny"
    with pytest.raises(ConfigError, match=r"^policy: 'new:tiny' is neither"):
        resolve("new:tiny", "policy", "rejection_sampling")


def test_resolve_model_takes_several_objectives_of_rlhf_and_one():
    one, two = (str(make_finished_run(name=name).model_dir) for name in "ab")
    assert resolve("a, b", "reward_model", "rlhf") == f"{one}, {two}"
    assert resolve("b", "reward_model", "rlhf") == two
    with pytest.raises(ConfigError, match=r"^reward_model: name a model$"):
        resolve(" ", "reward_model", "rlhf")
    with pytest.raises(ConfigError, match=r"^reward_model: 'a, b' is neither"):
        resolve("a, b", "reward_model", "rejection_sampling")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("rlhf", "reference_policy"), ("dpo", "reference_policy")),
        *(("sample", "reward_model"), ("compare_policies", "reward_model")),
    ],
)
def test_resolve_model_leaves_empty_what_a_kind_can_do_without(kind, field):
    assert resolve("", field, kind) == ""


def test_resolve_model_compares_two_policies_or_more():
    policies = {kind: str(make_finished_run(kind=kind, name=kind).model_dir) for kind in ("sft", "rlhf", "dpo")}
    assert resolve("sft, rlhf, dpo", "policies", "compare_policies") == ", ".join(policies.values())
    with pytest.raises(ConfigError, match=r"^policies: name 2 different models or more, separated by commas$"):
        resolve("sft, sft", "policies", "compare_policies")


def test_resolve_model_takes_the_folder_of_an_adapter_as_a_policy(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert resolve(str(tmp_path / "adapter"), "policy", "rlhf") == str(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"^backbone: "):
        resolve(str(tmp_path / "adapter"))


def test_resolve_model_takes_an_adapter_that_a_run_saved_as_a_policy_only():
    run = make_finished_run(kind="sft", name="base")
    (run.model_dir / "config.json").rename(run.model_dir / "adapter_config.json")
    assert resolve("base", "policy", "dpo") == str(run.model_dir)
    with pytest.raises(ConfigError, match=r"^backbone: run base has saved an adapter alone; name one that was saved m"):
        resolve("base")


def test_usable_names_lists_each_once_newest_first():
    for name, kind in [("a", "sft"), ("b", "sft"), ("a", "rejection_sampling"), ("rm", "reward_model")]:
        make_finished_run(name=name, kind=kind)
    make_finished_run(name="failed", kind="sft", status="failed")
    assert references.usable_names("policy", make_staff()) == ["a", "b"]
    assert references.usable_names("reward_model") == ["rm"]


def test_resolve_preference_set_by_name_and_by_project():
    cooking, travel = make_project(name="cooking"), make_project(name="travel")
    from_cooking, from_travel = (_set(project) for project in (cooking, travel))
    assert references.resolve_preference_set("cooking/first") == from_cooking
    assert references.resolve_preference_set("travel/first") == from_travel
    with pytest.raises(ConfigError, match=r"^preference_set: 'first' stands for several: travel/first, cooking/first$"):
        references.resolve_preference_set("first")


def test_resolve_preference_set_names_those_that_exist():
    frozen = make_preference_set(name="first")
    assert references.resolve_preference_set("first") == frozen
    with pytest.raises(ConfigError, match=rf"^preference_set: there is no 'second'; there are: {frozen}$"):
        references.resolve_preference_set("second")


def _set(project):
    make_judgment(comparison=make_comparison(project=project))
    return make_preference_set(project=project, name="first")
