from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from annotate import live, services
from annotate.errors import NoBattle
from annotate.models import Battle, BattleAnswer, Comparison, Endpoint, Judgment, Lease
from tests.annotate.openai_server import openai_server
from tests.factories import make_annotator, make_project

pytestmark = pytest.mark.django_db

QUESTION = "How long do I boil an egg?"


@pytest.fixture
def server():
    with openai_server() as found:
        yield found


def make_endpoints(project, url, *models, **values):
    return [
        Endpoint.objects.create(project=project, name=f"{model}-{place}", model=model, base_url=url, **values)
        for place, model in enumerate(models)
    ]


def start(project, annotator, **values):
    return live.start_battle(**{"project": project, "annotator": annotator, "text": QUESTION, "key": uuid4(), **values})


def write_all(battle):
    for answer in battle.answers.all():
        live.write_answer(answer_id=answer.pk)
    return live.finish_battle(battle=Battle.objects.get(pk=battle.pk))


def test_answers_become_a_comparison_leased_to_who_asked(server):
    url, requests = server
    project, annotator = make_project(overlap=2), make_annotator()
    make_endpoints(project, url, "brief", "kind", max_tokens=99, temperature=0.5)

    battle = write_all(start(project, annotator))

    lease = Lease.objects.get()
    assert (lease.annotator, lease.comparison) == (annotator, battle.comparison)
    comparison = Comparison.objects.get()
    assert (comparison.prompt.messages, comparison.prompt.author) == (
        [{"role": "user", "content": QUESTION}],
        annotator,
    )
    assert {(response.content, response.model) for response in comparison.responses.all()} == {
        ("Seven minutes.", "brief-0"),
        ("Take your time: seven minutes.", "kind-1"),
    }
    assert (comparison.num_taken, comparison.num_wanted) == (1, 2)
    assert {(told["model"], told["max_tokens"], told["temperature"]) for told in requests} == {
        ("brief", 99, 0.5),
        ("kind", 99, 0.5),
    }
    judgment = services.record_judgment(
        comparison=comparison,
        annotator=annotator,
        ranking=[[pk] for pk in lease.shown_order],
        key=lease.key,
        source=Judgment.Source.BROWSER,
    )
    assert not judgment.is_extra
    assert services.lease_next(project=project, annotator=make_annotator()).comparison == comparison


def test_a_prompt_sent_twice_is_answered_once(server):
    url, requests = server
    project, annotator, key = make_project(), make_annotator(), uuid4()
    make_endpoints(project, url, "brief", "kind")

    first, second = start(project, annotator, key=key), start(project, annotator, key=key)
    for _ in range(2):
        write_all(first)

    assert (first, Battle.objects.count(), len(requests), Comparison.objects.count()) == (second, 1, 2, 1)


def test_one_prompt_at_a_time(server):
    project, annotator = make_project(), make_annotator()
    make_endpoints(project, server[0], "brief", "kind")
    start(project, annotator)

    with pytest.raises(NoBattle, match=r"^Your last prompt is still being answered\.$"):
        start(project, annotator)

    start(project, make_annotator())


def test_a_battle_needs_two_endpoints(server):
    project = make_project()
    make_endpoints(project, server[0], "brief")
    make_endpoints(project, server[0], "broken", is_active=False)

    assert not live.can_battle(project)
    with pytest.raises(NoBattle, match=r"^Too few models answer in this project\.$"):
        start(project, make_annotator())


def test_a_model_that_fails_leaves_the_others_to_be_compared(server):
    project = make_project()
    make_endpoints(project, server[0], "brief", "kind", "silent")

    battle = write_all(start(project, make_annotator()))

    assert (battle.comparison.num_responses, live.has_failed(battle)) == (2, False)
    failed = BattleAnswer.objects.get(state=BattleAnswer.State.FAILED)
    assert (failed.endpoint.model, failed.error) == ("silent", "NoBattle: The answer is empty.")


@pytest.mark.parametrize(("model", "words"), [("broken", "InternalServerError: "), ("busy", "RateLimitError: ")])
def test_no_answer_is_made_up_and_no_key_is_kept(server, model, words, monkeypatch, caplog):
    monkeypatch.setenv("LIVE_KEY", "sk-secret")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_: 0)
    project = make_project()
    make_endpoints(project, server[0], "brief", model, key_variable="LIVE_KEY")

    battle = write_all(start(project, make_annotator()))

    assert (battle.comparison, live.has_failed(battle), Comparison.objects.count()) == (None, True, 0)
    failed = battle.answers.get(state=BattleAnswer.State.FAILED)
    assert failed.error.startswith(words)
    assert {request["authorization"] for request in server[1]} == {"Bearer sk-secret"}
    assert "sk-secret" not in failed.error + caplog.text


def test_a_key_that_is_not_set_is_named(server, monkeypatch):
    monkeypatch.delenv("LIVE_KEY", raising=False)
    project = make_project()
    make_endpoints(project, server[0], "brief", "kind", key_variable="LIVE_KEY")

    battle = write_all(start(project, make_annotator()))

    assert {answer.error for answer in battle.answers.all()} == {
        "NoBattle: The environment variable LIVE_KEY is not set."
    }
    assert server[1] == []


def test_an_answer_that_never_comes_ends_the_battle(server):
    project, annotator = make_project(), make_annotator()
    make_endpoints(project, server[0], "brief", "kind")
    battle = start(project, annotator)
    Battle.objects.update(created_at=timezone.now() - timedelta(seconds=live.ANSWER_SECONDS + 1))

    battle = live.finish_battle(battle=Battle.objects.get())

    assert live.has_failed(battle)
    assert {answer.error for answer in battle.answers.all()} == {"No answer in time."}
    start(project, annotator)
