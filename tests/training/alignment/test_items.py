import dataclasses
import math

import pytest
import torch
from transformers import AutoTokenizer

from training.alignment.items import build_items, judge, length_spread, log_length, start_with_length
from training.alignment.losses import Likelihood, davidson_loss, ranking_loss
from training.alignment.packing import Packing
from training.alignment.preferences import RankedResponses

PROMPT = [{"role": "user", "content": "How long do eggs take?"}]


def ranked(*responses: str, ranking: tuple = ((0,), (1,)), **values: object) -> RankedResponses:
    return RankedResponses(PROMPT, responses, ranking, **values)


@pytest.fixture
def build(llama_folder):
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)

    def build(rankings: list[RankedResponses], **values: object):
        told = {
            "aspects": ["overall"],
            "likelihood": Likelihood(),
            "tokenizer": tokenizer,
            "max_length": 64,
            "packing": Packing.SHARED,
            "is_weighted": False,
        }
        return build_items(rankings, **{**told, **values})

    return build


def test_judgments_of_the_same_responses_share_their_texts(build):
    items = build(
        [
            ranked("Eight minutes.", "No.", annotator="b", strength=2),
            ranked("No.", "Eight minutes.", annotator="a", aspect="style", weight=0.5),
            ranked("Eight minutes.", "Ask.", annotator="a"),
        ],
        aspects=["overall", "style"],
        is_weighted=True,
    )

    first, second = items.items
    assert (first.bundle.num_sequences, second.bundle.num_sequences) == (2, 2)
    told = [(one.places, one.groups, one.head, one.strength, one.annotator, one.weight) for one in first.judgments]
    assert told == [((0, 1), (0, 1), 0, 2.0, 1, 1.0), ((1, 0), (0, 1), 1, 0.0, 0, 0.5)]
    assert first.weight == 1.5
    assert (items.annotators, items.num_rankings, items.num_silent) == (["a", "b"], 3, 0)


def test_equal_responses_are_read_once(build):
    (item,) = build([ranked("No.", "Eight minutes.", "No.", ranking=((1,), (0, 2)))]).items

    assert item.bundle.num_sequences == 2
    assert item.judgments[0].places == (0, 1, 0)


def test_what_teaches_nothing_and_what_is_too_long_is_counted(build):
    items = build(
        [
            ranked("Yes.", "No.", ranking=((0, 1),)),
            ranked("Yes.", "No.", weight=0.0),
            ranked("Yes.", "word " * 100),
            ranked("Yes.", "word " * 100, annotator="b"),
            RankedResponses([{"role": "user", "content": "word " * 100}], ("Yes.", "No."), ((0,), (1,))),
        ],
        is_weighted=True,
    )

    assert len(items.items) == 1
    assert (items.num_rankings, items.num_silent, items.num_too_long, items.num_truncated) == (1, 2, 2, 2)


def test_ties_teach_where_the_likelihood_has_a_place_for_them(build):
    tied = [ranked("Yes.", "No.", ranking=((0, 1),))]

    assert build(tied, likelihood=Likelihood(ties="davidson")).num_rankings == 1
    assert build(tied).num_rankings == 0


def test_what_nobody_sorted_is_no_tie(build):
    best = ranked("a", "b", "c", ranking=((0,), (1, 2)))
    likelihood = Likelihood(ties="davidson")
    rewards = torch.tensor([[1.0], [-1.0], [0.5]])
    told = {
        "sorted": [best],
        "best only": [dataclasses.replace(best, is_best_only=True)],
        "bad": [dataclasses.replace(best, bad=(1, 2))],
    }

    items = {name: build(own, likelihood=likelihood).items for name, own in told.items()}
    losses = {name: judge(likelihood, rewards, own).item() for name, own in items.items()}

    odds = torch.tensor([0.5, 0.5 / 4]).log()
    both = torch.tensor([[0, 1, 1]])
    free = davidson_loss(rewards.T, both, odds, both == 1).item()
    tied = davidson_loss(rewards.T, both, odds).item()
    assert losses == {name: pytest.approx(tied / 2 if name == "sorted" else free, abs=1e-6) for name in told}
    none_good = ranked("a", "b", ranking=((0, 1),), bad=(0, 1), all_bad=True)
    assert build([none_good], likelihood=likelihood).num_silent == 1


def test_losses_are_summed_by_weight_each_from_its_head(build):
    items = build(
        [
            ranked("Eight minutes.", "No."),
            ranked("Eight minutes.", "No.", aspect="style", weight=3.0),
            ranked("a", "b", "c", ranking=((2,), (0,), (1,))),
        ],
        aspects=["overall", "style"],
        is_weighted=True,
    )
    rewards = torch.tensor([[1.0, -1.0], [0.0, 2.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])

    total = judge(Likelihood(), rewards, items.items)

    pairs = torch.nn.functional.softplus(torch.tensor([-1.0, 3.0]))
    list_of_three = torch.log(torch.tensor(6.0)) / 2  # nats per choice
    assert total.item() == pytest.approx((pairs[0] + 3 * pairs[1] + list_of_three).item(), abs=1e-6)


def test_lengths_are_in_doublings_and_their_spread_is_within_prompts():
    assert [log_length(text) for text in ("", "a", "ab", "é" * 8)] == [0, 0, 1, 3]
    assert length_spread(
        [ranked("a", "abcd"), ranked("abc", "xyz"), ranked("a", "b" * 16, "c", ranking=((1,), (0,)))]
    ) == (
        pytest.approx(math.sqrt((1 + 0 + 4) / 3))  # the third response was not ranked
    )
    assert length_spread([ranked("abc", "xyz"), ranked("", "a")]) == 0
    assert length_spread([]) == 0


def test_each_judgment_is_told_its_responses_lengths_and_its_aspect(build):
    rankings = [ranked("Eight.", "No."), ranked("No.", "Eight.", aspect="style"), ranked("ab", "b", "abcd", "unranked")]
    items = build(rankings, aspects=["overall", "style"]).items
    likelihood = Likelihood(length_spread=0.5, length_penalty=0.0, aspects=["overall", "style"])
    with torch.no_grad():
        likelihood.length_weights += torch.tensor([0.5, 1.0])  # 1 and 2 nats a doubling

    total = judge(likelihood, torch.zeros(6, 2), items)

    overall = ranking_loss(torch.tensor([[6.0, 3.0]]).log2(), torch.tensor([[0, 1]]))
    style = ranking_loss(2 * torch.tensor([[3.0, 6.0]]).log2(), torch.tensor([[0, 1]]))
    listed = ranking_loss(torch.tensor([[1.0, 0.0, 2.0, 3.0]]), torch.tensor([[0, 1, -1, -1]]))
    assert total.item() == pytest.approx((overall + style + listed).item(), abs=1e-6)


def test_weights_of_length_start_where_they_explain_the_judgments(build):
    """Three in four prefer a response that is twice as long, and in style all prefer the shorter."""
    rankings = [ranked("ab", "b"), ranked("abcd", "cd"), ranked("efgh", "gh"), ranked("g", "hi")]
    rankings = [one for one in rankings for _ in range(500)] + [ranked("b", "ab", aspect="style")] * 20
    likelihood = Likelihood(length_spread=0.5, aspects=["overall", "style"])

    start_with_length(likelihood, build(rankings, aspects=["overall", "style"], likelihood=likelihood).items)

    found = likelihood.nats_per_doubling
    assert found["overall"] == pytest.approx(math.log(3), abs=0.01)
    wrong = 1 / (1 + math.exp(-found["style"]))  # of a pair that is 2 spreads apart, of twenty; the prior pulls back
    assert found["style"] / 2 + 2 * 20 * wrong == pytest.approx(0, abs=1e-2)
    assert all(parameter.grad is None for parameter in likelihood.parameters())
    without = Likelihood()
    start_with_length(without, [])
    assert without.learned() == {}
