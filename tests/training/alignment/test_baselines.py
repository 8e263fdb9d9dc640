import dataclasses
import random

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.sparse import csr_matrix
from scipy.special import log_expit

from training.alignment import baselines
from training.alignment.baselines import WordReward, longer_wins
from training.alignment.evaluation import pairwise_accuracy
from training.alignment.preferences import RankedResponses


def ranked(prompt: str, *responses: str, ranking: tuple[tuple[int, ...], ...] | None = None) -> RankedResponses:
    """The best response first, unless told otherwise."""
    places = ranking or tuple((place,) for place in range(len(responses)))
    return RankedResponses([{"role": "user", "content": prompt}], responses, places)


def kitchen(num_prompts: int, seed: int = 0) -> list[RankedResponses]:
    """Whoever speaks more of eggs is preferred, mostly, and salt means nothing."""
    draw = random.Random(seed)
    found = []
    for number in range(num_prompts):
        num_eggs = [draw.randrange(4) for _ in range(3)]
        texts = [" ".join(["eggs"] * n + draw.choices(["salt", "rice", "water"], k=4)) for n in num_eggs]
        order = sorted(range(3), key=lambda place: -num_eggs[place] - draw.gauss(0, 0.5))
        found.append(ranked(f"dish {number}", *texts, ranking=tuple((place,) for place in order)))
    return found


def test_the_longer_response_wins():
    assert longer_wins([ranked("a", "four", "to", ""), ranked("b", "é", "你好")]) == [[4.0, 2.0, 0.0], [1.0, 2.0]]


def test_words_that_are_preferred_are_found():
    model = WordReward.fit(kitchen(200))

    unseen = kitchen(100, seed=1)
    assert pairwise_accuracy(unseen, model.score(unseen)).accuracy > 0.8
    weight = {word: model.weights[number] for word, number in model.vocabulary.items()}
    assert {"eggs", "salt", "eggs eggs", "rice salt"} < set(weight)
    assert weight["eggs"] > 3 * max(abs(weight[word]) for word in ("rice", "salt", "water"))


def test_where_words_say_nothing_little_is_claimed():
    draw = random.Random(0)
    rankings = [
        ranked(str(number), *(" ".join(draw.choices("abcdefgh", k=8)) for _ in range(2))) for number in range(200)
    ]

    model = WordReward.fit(rankings)

    assert np.abs([one - other for one, other in model.score(rankings)]).max() < 0.5


def test_scores_do_not_depend_on_the_company_or_on_case():
    model = WordReward.fit(kitchen(50))
    some = [ranked("a", "Eggs eggs", "salt"), ranked("b", "", "never seen")]

    (first, second), (empty, unseen) = model.score(some)

    assert model.score(some[:1]) == [[first, second]]
    assert model.score([ranked("a", "EGGS eggs", "SALT")]) == [[first, second]]
    assert first > second
    assert empty == unseen == 0


def test_a_fit_does_not_depend_on_the_order_of_rankings():
    rankings = kitchen(60)

    one, other = WordReward.fit(rankings), WordReward.fit(rankings[::-1])

    assert (one.vocabulary, one.penalty) == (other.vocabulary, other.penalty)
    assert one.weights == pytest.approx(other.weights, abs=1e-3)


def test_the_weights_are_where_the_gradient_vanishes():
    draw = np.random.default_rng(0)
    differences, voices = csr_matrix(draw.normal(size=(40, 3))), draw.random(40)

    def loss(weights: np.ndarray) -> float:
        return -voices @ log_expit(differences @ weights) + 2.0 / 2 * weights @ weights

    found = baselines._fit(differences, voices, 2.0, np.zeros(3))

    assert approx_fprime(found, loss) == pytest.approx(np.zeros(3), abs=2e-3)


def test_a_ranking_has_one_voice_however_many_pairs_it_makes():
    pairs = baselines._Differences.of([ranked("a", "x", "y"), ranked("b", "x", "y", "z")], {"x": 0, "y": 1, "z": 2})

    assert sorted(pairs.voices) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_rankings_of_one_prompt_stay_together():
    rankings = [dataclasses.replace(one, annotator=name) for one in kitchen(20) for name in ("ann", "bob")]

    folds = baselines._Differences.of(rankings, {}).folds

    assert len(set(folds)) > 1
    assert all(len({baselines._fold(one) for one in rankings if one.prompt == other.prompt}) == 1 for other in rankings)


def test_without_an_order_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no ranking puts one response above another"):
        WordReward.fit([ranked("a", "x", "y", ranking=((0, 1),))])


def test_a_single_ranking_is_enough_to_fit():
    model = WordReward.fit([ranked("a", "good", "bad")], min_prompts=1)

    ((good, bad),) = model.score([ranked("b", "good", "bad")])
    assert good > bad
