import json
import random
from collections import Counter
from statistics import fmean

from annotate.demonstration.kitchen import read_request
from annotate.demonstration.quality import quality
from annotate.demonstration.recipes import (
    COOKS,
    FAULTS,
    demonstration_rows,
    possible_faults,
    sft_examples,
    write_answer,
    write_question,
)


def test_demonstration_rows_are_120_questions_each_once_pairwise_and_once_listwise():
    rows = list(demonstration_rows())

    assert len({row["id"] for row in rows}) == 240
    assert len({json.dumps(row["prompt"]) for row in rows}) == 120
    assert Counter(len(row["responses"]) for row in rows) == {2: 120, 4: 90, 5: 30}
    for pair, several in zip(rows[::2], rows[1::2], strict=True):
        assert pair["prompt"] == several["prompt"]
        assert set(pair) == set(several) == {"id", "prompt", "responses", "meta"}


def test_demonstration_rows_hold_different_answers_by_different_cooks():
    for row in demonstration_rows():
        assert len({response["content"] for response in row["responses"]}) == len(row["responses"])
        assert {response["model"] for response in row["responses"]} <= {f"demonstration/{name}" for name in COOKS}


def test_demonstration_follows_from_the_seed():
    assert list(demonstration_rows(3)) == list(demonstration_rows(3))
    assert list(demonstration_rows(3)) != list(demonstration_rows(4))
    assert list(sft_examples(3, 20)) == list(sft_examples(3, 20))
    assert list(sft_examples(3, 20)) != list(sft_examples(4, 20))


def test_demonstration_holds_conversations_diets_and_hurry():
    requests = [(row["prompt"], read_request(row["prompt"])) for row in demonstration_rows()]

    assert sum(len(prompt) == 3 for prompt, _ in requests) >= 10
    assert {diet for _, request in requests for diet in request.diets} == {
        "vegan",
        "vegetarian",
        "no nuts",
        "no dairy",
        "no gluten",
    }
    assert sum(request.minutes > 0 for _, request in requests) >= 20


def test_every_question_is_read_as_it_was_meant():
    rng = random.Random(5)
    for _ in range(500):
        messages, request = write_question(rng)
        assert read_request(messages) == request


def test_an_answer_without_faults_is_good_and_each_fault_makes_it_worse():
    rng = random.Random(6)
    losses = {fault: [] for fault in FAULTS}
    for _ in range(200):
        messages, request = write_question(rng)
        state = rng.getstate()
        good = quality(messages, write_answer(request, (), rng))
        assert good > 0.8
        for fault in possible_faults(request):
            rng.setstate(state)  # the same recipe, spoilt
            losses[fault].append(good - quality(messages, write_answer(request, [fault], rng)))
    for fault, lost in losses.items():
        assert fmean(lost) > 0.1, fault.__name__
        assert min(lost) >= 0, fault.__name__


def test_cooks_are_of_different_worth_and_the_healthy_list_is_worth_least():
    rng = random.Random(7)
    asked = [write_question(rng) for _ in range(300)]
    means = {
        name: fmean(quality(messages, cook(request, rng)) for messages, request in asked)
        for name, cook in COOKS.items()
    }

    assert sorted(means, key=means.__getitem__) == ["lister", "hurried", "beginner", "home-cook", "chef"]
    assert means["lister"] < 0.02
    assert means["chef"] > 0.75


def test_sft_examples_are_mixed_and_ask_nothing_that_the_project_asks():
    examples = list(sft_examples(0, 1000))
    asked = {json.dumps(row["prompt"]) for row in demonstration_rows()}
    qualities = [quality(example["prompt"], example["completion"]) for example in examples]

    assert len(examples) == 1000
    assert not asked & {json.dumps(example["prompt"]) for example in examples}
    assert len({json.dumps(example["prompt"]) for example in examples}) > 900
    assert 0.35 < fmean(qualities) < 0.55
    assert sum(value > 0.8 for value in qualities) > 100
    assert sum(value < 0.2 for value in qualities) > 100
