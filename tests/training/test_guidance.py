import json

import pytest
from django.core.management import CommandError, call_command

from annotate.models import Comparison
from tests.factories import make_comparison, make_judgment, make_project, response_ids
from tests.training.factories import make_finished_run
from training import guidance, services
from training.alignment.config import ConfigError
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


def make_guidance(project, **values):
    """A queued run; the little trainer's members like long and short responses."""
    names = [make_finished_run(name=f"rewards {number}").name for number in (1, 2)]
    return services.create_run(
        kind="score_comparisons",
        name="guidance",
        values={"reward_models": ", ".join(names), **values},
        project=project,
    )


def guide(project, **values):
    run = make_guidance(project, **values)
    services.execute_run(run_id=run.pk)
    run.refresh_from_db()
    return run


def in_order(project):
    comparisons = Comparison.objects.filter(project=project, priority__gt=0).order_by("-priority")
    return [list(one.options.values_list("response__content", flat=True)) for one in comparisons]


def test_a_run_orders_the_open_comparisons_of_its_project():
    project = make_project(name="cooking")
    make_comparison(project=project, contents=("aa", "a"))
    make_comparison(project=project, contents=("aaaaaaaa", "a"))
    make_comparison(project=project, contents=("aaaa", "a"))
    judged = make_judgment(comparison=make_comparison(project=project, contents=("aaaaaaaaa", "a"))).comparison

    run = guide(project)

    assert (run.status, run.error) == ("succeeded", "")
    assert run.result == {"num_members": 2, "num_prompts": 3, "num_new_pairs": 0, "num_comparisons": 3}
    assert in_order(project) == [["aaaaaaaa", "a"], ["aaaa", "a"], ["aa", "a"]]
    judged.refresh_from_db()
    assert judged.priority == 0


def test_the_run_directory_holds_the_prompts_to_score():
    comparison = make_comparison(contents=("yes", "no"))

    run = guide(comparison.project)

    yes, no = response_ids(comparison)
    assert [json.loads(line) for line in (run.run_dir / "prompts.jsonl").read_text().splitlines()] == [
        {
            "id": str(comparison.prompt_id),
            "prompt": comparison.prompt.messages,
            "responses": [{"id": yes, "content": "yes"}, {"id": no, "content": "no"}],
            "ranking": [],
        }
    ]
    assert [(one.prompt, one.scores) for one in guidance.scored_prompts(run.run_dir)] == [
        (comparison.prompt_id, {yes: (3.0, -3.0), no: (2.0, -2.0)})
    ]


def test_a_run_makes_the_most_informative_pairs_and_orders_them_with_the_rest():
    project = make_project()
    make_judgment(comparison=make_comparison(project=project, contents=("aaa", "aaaaaa", "a")))

    run = guide(project, num_pairs=1)

    assert (run.result["num_new_pairs"], run.result["num_comparisons"]) == (1, 1)
    assert in_order(project) == [["aaaaaa", "a"]]


def test_a_second_worker_that_hands_the_scores_over_makes_no_further_pairs():
    project = make_project()
    make_comparison(project=project, k=4)
    run = guide(project, num_pairs=2)

    again = guidance.hand_over(run, launch_dir(run))

    assert again == {"num_new_pairs": 2, "num_comparisons": 3}
    assert Comparison.objects.count() == 3


def launch_dir(run):
    return guidance.RunDir(run.run_dir)


def test_a_later_attempt_keeps_what_is_to_be_scored():
    project = make_project()
    make_comparison(project=project)
    run = guide(project)
    before = (run.run_dir / "prompts.jsonl").read_bytes()
    make_comparison(project=project)

    guidance.place_prompts(run, launch_dir(run))

    assert (run.run_dir / "prompts.jsonl").read_bytes() == before


def test_a_project_without_open_comparisons_is_told_in_words():
    project = make_project(name="cooking")
    make_judgment(comparison=make_comparison(project=project))

    run = guide(project)

    assert (run.status, run.error) == ("failed", "Project cooking has no open comparison to score.")


def test_scores_that_are_no_numbers_are_told_in_words():
    comparison = make_comparison(contents=("not a number", "a"))

    run = guide(comparison.project)

    assert run.status == "failed"
    assert run.error == "The reward models' scores cannot be used: scores: not all are finite numbers"
    assert in_order(comparison.project) == []


def test_long_work_beats_and_stops_where_the_run_was_taken_away(settings):
    settings.RUN_HEARTBEAT_SECONDS = 0
    comparison = make_comparison()
    run = make_guidance(comparison.project)
    claimed = services.claim_run(run_id=run.pk, worker="one")
    beat = services._heartbeat(claimed)
    beat()
    TrainingRun.objects.filter(pk=run.pk).update(token=7)

    with pytest.raises(services.ClaimLost):
        beat()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward_models": "rewards 1"}, "reward_models: name 2 different models or more, separated by commas"),
        ({"reward_models": ""}, "reward_models: name 2 different models or more, separated by commas"),
        ({"reward_models": "rewards 1, no such run!"}, "reward_models: 'no such run!' is neither a folder"),
        ({"strategy": "closeness"}, "strategy: 'closeness' is not one of bald, posterior_variance"),
        ({"num_pairs": -1}, "num_pairs: -1 is below 0"),
    ],
)
def test_create_run_names_what_it_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        make_guidance(make_project(), **values)


def test_create_run_wants_a_project_to_guide():
    with pytest.raises(ConfigError, match="project: name the project whose comparisons are scored"):
        make_guidance(None)


def test_launch_takes_a_project_by_name():
    project = make_project(name="cooking")
    models = ",".join(make_finished_run(name=name).name for name in ("a", "b"))
    call_command("launch", "score_comparisons", "guidance", "project=cooking", f"reward_models={models}")

    assert TrainingRun.objects.get(kind="score_comparisons").project == project
    with pytest.raises(CommandError, match="project: there is no 'nothing'"):
        call_command("launch", "score_comparisons", "guidance", "project=nothing", f"reward_models={models}")


def test_propose_pairs_uses_the_newest_scores(capsys):
    project = make_project(name="cooking")
    make_comparison(project=project, contents=("aaa", "aaaaaa", "a"))
    run = guide(project)

    call_command("propose_pairs", "cooking", "--number=2")

    assert capsys.readouterr().out == f"2 new comparisons by the scores of {run}; 3 open ones in order.\n"
    assert in_order(project)[0] == ["aaaaaa", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "project: there is no 'nothing'"),
        (("cooking",), "project: no run of kind score_comparisons has scored cooking yet"),
        (("cooking", "--number=0"), "--number: make one comparison or more"),
    ],
)
def test_propose_pairs_says_what_is_wrong(arguments, message):
    make_project(name="cooking")
    with pytest.raises(CommandError, match=message):
        call_command("propose_pairs", *arguments)
