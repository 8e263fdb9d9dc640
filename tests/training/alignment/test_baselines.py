import dataclasses
import json
import random
from hashlib import sha256

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.sparse import csr_matrix
from scipy.special import log_expit

from training.alignment import baselines
from training.alignment.baselines import WordReward, learned_prompts, longer_wins
from training.alignment.config import ConfigError
from training.alignment.evaluation import pairwise_accuracy
from training.alignment.preferences import PromptedResponses, RankedResponses, prompt_key
from training.alignment.reward import Scored, load_reward


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


# As a member


def test_words_are_saved_and_loaded_as_a_member(tmp_path):
    rankings = [dataclasses.replace(one, aspect="kitchen") for one in kitchen(60)]
    model = WordReward.fit(rankings)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "left over").touch()

    loaded = load_reward(model.save(tmp_path / "words"))

    assert loaded.weights.tolist() == model.weights.tolist()
    assert dataclasses.replace(loaded, weights=model.weights) == model
    assert (loaded.digest, loaded.aspects, loaded.is_listwise) == (model.digest, ("kitchen",), False)
    assert loaded.log_odds() == 1.0
    assert loaded.prompts == {sha256(prompt_key(one.prompt).encode()).hexdigest() for one in rankings}
    assert learned_prompts(tmp_path / "words") == loaded.prompts
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["member.json", "weights.safetensors", "words.json"]
    assert [path.name for path in tmp_path.rglob("left over")] == []


def test_a_member_scores_prompts_as_it_scores_rankings():
    model = WordReward.fit(kitchen(50))
    rankings = [*kitchen(5, seed=1), ranked("a", "\ud800", ""), RankedResponses([], (), ())]

    scored = model.score_prompts([PromptedResponses(one.prompt, one.responses) for one in rankings])

    assert scored == [Scored(scores) for scores in model.score(rankings)]
    assert model.score_prompts([]) == []


def test_a_digest_tells_words_and_weights_apart():
    model = WordReward({"eggs": 0, "salt": 1}, np.array([1.0, 0.0]), 1.0)
    others = [
        model,
        dataclasses.replace(model, weights=np.array([1.0, 1e-9])),
        dataclasses.replace(model, vocabulary={"eggs": 1, "salt": 0}),
        dataclasses.replace(model, vocabulary={"eggs": 0, "rice": 1}),
    ]

    assert len({one.digest for one in others}) == 4
    assert dataclasses.replace(model, penalty=2.0).digest == model.digest  # scores are the same


def test_words_without_their_weights_are_refused(tmp_path):
    folder = WordReward({"eggs": 0, "salt": 1}, np.array([1.0, 0.0]), 1.0).save(tmp_path / "words")
    told = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps({**told, "vocabulary": ["eggs"]}))

    with pytest.raises(ConfigError, match="1 words and weights of shape"):
        load_reward(folder)
