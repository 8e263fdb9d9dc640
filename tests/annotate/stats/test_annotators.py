import numpy as np
import pytest

from annotate.stats import annotators as module
from annotate.stats.annotators import (
    CONFUSION,
    MODELS,
    ONE_COIN,
    READING,
    SignError,
    check_sign,
    crowd_bradley_terry,
    crowd_bradley_terry_loss,
    crowd_plackett_luce,
    crowd_plackett_luce_loss,
    dawid_skene,
)
from annotate.stats.bradley_terry import FIRST, SECOND, TIE, NotConvergedError

EIGHT = np.array([0.9, 0.85, 0.85, 0.8, 0.5, 0.5, 0.25, 0.2])  # two toss coins, two lie
THREE_GOOD_OF_SEVEN = np.array([0.85, 0.85, 0.85, 0.2, 0.2, 0.2, 0.2])


def drawn_votes(accuracy, seed, num_pairs=400, votes_a_pair=5):
    """The right labels (N,), and votes as pair, annotator, vote (V,)."""
    generator = np.random.default_rng(seed)
    right = generator.integers(0, 2, num_pairs)
    judges = np.stack([generator.permutation(len(accuracy))[:votes_a_pair] for _ in range(num_pairs)])
    is_right = generator.random(judges.shape) < accuracy[judges]
    votes = np.where(is_right, right[:, None], 1 - right[:, None])
    return right, np.repeat(np.arange(num_pairs), votes_a_pair), judges.ravel(), votes.ravel()


def fitted(votes, num_annotators, model=READING, gold=None, num_labels=2):
    return dawid_skene(
        *votes,
        num_pairs=int(votes[0].max()) + 1,
        num_annotators=num_annotators,
        num_labels=num_labels,
        model=model,
        gold=gold,
    )


@pytest.mark.parametrize("model", MODELS)
def test_liars_are_named_and_labels_put_right_where_the_majority_is_not(model):
    majority, ours, off = [], [], []
    for seed in range(10):
        right, *votes = drawn_votes(EIGHT, seed)
        found = fitted(votes, 8, model)
        majority.append(np.mean((np.bincount(votes[0], votes[2]) > 2.5) == right))
        ours.append(np.mean(found.labels.argmax(axis=1) == right))
        off.append(np.abs(found.accuracy - EIGHT))
        assert found.liars.tolist() == [6, 7]
    assert np.mean(majority) == pytest.approx(0.725, abs=0.02)
    assert np.mean(ours) >= 0.92
    assert np.mean(off) < 0.05
    assert np.abs(np.mean(off, axis=0)).max() < 0.05


@pytest.mark.parametrize("model", MODELS)
def test_reliabilities_are_all_recovered_from_many_votes(model):
    _, *votes = drawn_votes(EIGHT, seed=0, num_pairs=4000)
    np.testing.assert_allclose(fitted(votes, 8, model).accuracy, EIGHT, atol=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_the_posterior_never_falls(model):
    _, *votes = drawn_votes(EIGHT, seed=1)
    trace = fitted(votes, 8, model).log_posterior
    assert len(trace) > 3
    assert (np.diff(trace) >= -1e-9).all()


@pytest.mark.parametrize("model", MODELS)
def test_relabelled_annotators_and_pairs_are_the_same_ones(model):
    _, pair, annotator, vote = drawn_votes(EIGHT, seed=2)
    found = fitted((pair, annotator, vote), 8, model)
    generator = np.random.default_rng(0)
    names, numbers = generator.permutation(8), generator.permutation(400)
    renamed = fitted((numbers[pair], names[annotator], vote), 8, model)
    np.testing.assert_allclose(renamed.confusion[names], found.confusion, atol=1e-9)
    np.testing.assert_allclose(renamed.labels[numbers], found.labels, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_the_two_sides_are_treated_alike(model):
    _, pair, annotator, vote = drawn_votes(EIGHT, seed=3)
    found, mirrored = fitted((pair, annotator, vote), 8, model), fitted((pair, annotator, 1 - vote), 8, model)
    np.testing.assert_allclose(mirrored.labels[:, ::-1], found.labels, atol=1e-9)
    np.testing.assert_allclose(mirrored.accuracy, found.accuracy, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_perfect_annotators_miss_perfection_by_their_number_of_votes(model):
    for num_pairs in (50, 500):
        _, *votes = drawn_votes(np.ones(5), seed=4, num_pairs=num_pairs)
        short = 1 - fitted(votes, 5, model).accuracy
        assert (short > 0).all()
        assert (short < 5 / num_pairs).all()


def test_one_perfect_step_by_hand():
    # three who agree on four pairs: labels are all but sure, so right = (4 + 1) / (4 + 2)
    pair, annotator = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    found = fitted((pair, annotator, np.repeat([0, 1, 0, 1], 3)), 3, ONE_COIN)
    wrong_label = (1 / 6) ** 3 / ((5 / 6) ** 3 + (1 / 6) ** 3)  # to the first step; the fixed point is close by
    np.testing.assert_allclose(found.accuracy, (4 * (1 - wrong_label) + 1) / 6, atol=2e-3)
    np.testing.assert_allclose(found.labels[:, 0], [1, 0, 1, 0], atol=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_it_refuses_where_liars_may_be_the_majority(model):
    for seed in range(5):
        _, *votes = drawn_votes(THREE_GOOD_OF_SEVEN, seed)
        with pytest.raises(SignError, match="4 annotators agree with one side and 3 with its mirror image"):
            fitted(votes, 7, model)


@pytest.mark.parametrize("model", MODELS)
def test_gold_says_who_lies_even_where_they_are_the_majority(model):
    right, *votes = drawn_votes(THREE_GOOD_OF_SEVEN, seed=0)
    found = fitted(votes, 7, model, gold={pair: int(right[pair]) for pair in range(10)})
    assert found.liars.tolist() == [3, 4, 5, 6]
    assert np.mean(found.labels.argmax(axis=1) == right) > 0.9
    np.testing.assert_array_equal(found.labels[np.arange(10), right[:10]], 1.0)


def test_one_gold_answer_that_tells_too_little_does_not_settle_the_sign():
    right, pair, annotator, vote = drawn_votes(THREE_GOOD_OF_SEVEN, seed=0)
    on_gold = np.flatnonzero(pair == 0)
    kept = np.delete(np.arange(len(pair)), on_gold[1:])  # one vote on it
    with pytest.raises(SignError):
        fitted((pair[kept], annotator[kept], vote[kept]), 7, gold={0: int(right[0])})


def test_habits_are_told_from_lies():
    # six who read three times in four, one who always takes the first, one who has the scale upside down
    generator = np.random.default_rng(5)
    right = generator.integers(0, 3, 600)
    reads = generator.random((600, 6)) < 0.75
    votes = np.where(reads, right[:, None], generator.integers(0, 3, (600, 6)))
    always_first, reversed_scale = np.zeros((600, 1), dtype=int), np.array([SECOND, FIRST, TIE])[right][:, None]
    table = np.hstack([votes, always_first, reversed_scale])
    columns = np.repeat(np.arange(600), 8), np.tile(np.arange(8), 600), table.ravel()
    found = fitted(columns, 8, READING, num_labels=3)
    assert found.liars.tolist() == [7]
    np.testing.assert_allclose(found.confusion[6, :, FIRST], 1, atol=0.03)
    np.testing.assert_allclose(found.confusion[7], [[0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=0.03)
    np.testing.assert_allclose(found.accuracy[:6], 0.75 + 0.25 / 3, atol=0.05)
    assert np.mean(found.labels.argmax(axis=1) == right) > 0.97


def test_an_annotator_of_one_vote_stays_near_the_prior():
    right, pair, annotator, vote = drawn_votes(np.full(6, 0.9), seed=6)
    columns = np.append(pair, 0), np.append(annotator, 6), np.append(vote, right[0])
    for model, highest in ((ONE_COIN, 0.67), (CONFUSION, 0.76), (READING, 0.8)):
        assert 0.5 < fitted(columns, 7, model).accuracy[6] < highest


def test_a_pair_without_votes_keeps_the_prior():
    found = dawid_skene(
        [0, 0, 0], [0, 1, 2], [0, 0, 0], num_pairs=2, num_annotators=3, num_labels=3, label_prior=[0.4, 0.4, 0.2]
    )
    np.testing.assert_allclose(found.labels[1], [0.4, 0.4, 0.2], atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pair": [0]}, "one shape"),
        ({"pair": [], "annotator": [], "vote": []}, "not empty"),
        ({"pair": [0, 2]}, "pair must be 0 to 1"),
        ({"annotator": [0, 2]}, "annotator must be 0 to 1"),
        ({"vote": [0, TIE]}, "vote must be 0 to 1"),
        ({"num_labels": 4}, "num_labels must be 2 or 3"),
        ({"model": "mace"}, "model one of"),
        ({"label_prior": [1.0, 0.0]}, "label_prior"),
        ({"gold": {2: 0}}, "gold must be labels 0 to 1 of pairs 0 to 1"),
    ],
)
def test_votes_that_do_not_fit_are_refused(changed, message):
    arguments = {
        "pair": [0, 1],
        "annotator": [0, 1],
        "vote": [0, 1],
        "num_pairs": 2,
        "num_annotators": 2,
        "num_labels": 2,
    }
    with pytest.raises(ValueError, match=message):
        dawid_skene(**{**arguments, **changed})


def test_the_sign_needs_three_good_ones_for_two_liars():
    check_sign([1, 1, 1, 0, 0, 0.5, 0.5])
    check_sign([0.5, 0.9, 0.1])
    with pytest.raises(SignError) as refused:
        check_sign([1, 0])
    assert (refused.value.num_good, refused.value.num_liars) == (1, 1)


def drawn_pairs(eta, seed, num_items=40, num_votes=8000):
    generator = np.random.default_rng(seed)
    strengths = 1.5 * generator.normal(size=num_items)
    strengths -= strengths.mean()
    first = generator.integers(0, num_items, num_votes)
    second = (first + generator.integers(1, num_items, num_votes)) % num_items
    annotator = generator.integers(0, len(eta), num_votes)
    by_strength = 1 / (1 + np.exp(strengths[second] - strengths[first]))
    win = eta[annotator] * by_strength + (1 - eta[annotator]) * (1 - by_strength)
    return strengths, (first, second, (generator.random(num_votes) < win).astype(float), annotator)


def test_crowd_bradley_terry_recovers_strengths_and_annotators():
    strengths, votes = drawn_pairs(EIGHT, seed=0)
    found = crowd_bradley_terry(*votes, num_items=40, num_annotators=8)
    assert found.liars.tolist() == [6, 7]
    np.testing.assert_allclose(found.annotators, EIGHT, atol=0.06)
    assert np.corrcoef(found.strengths, strengths)[0, 1] > 0.98


def test_crowd_bradley_terry_does_not_depend_on_sides_or_names():
    _, (first, second, share, annotator) = drawn_pairs(EIGHT, seed=1, num_items=10, num_votes=1500)
    found = crowd_bradley_terry(first, second, share, annotator, num_items=10, num_annotators=8)
    names, who = np.random.default_rng(0).permutation(10), np.random.default_rng(1).permutation(8)
    other = crowd_bradley_terry(names[second], names[first], 1 - share, who[annotator], num_items=10, num_annotators=8)
    np.testing.assert_allclose(other.strengths[names], found.strengths, atol=1e-4)
    np.testing.assert_allclose(other.annotators[who], found.annotators, atol=1e-4)


def test_a_graded_vote_is_a_share_of_two_whole_ones():
    # 0.75 for the first, four times, is three votes for the first and one for the second
    graded = crowd_bradley_terry([0] * 4, [1] * 4, [0.75] * 4, [0] * 4, num_items=2, num_annotators=1)
    whole = crowd_bradley_terry([0] * 4, [1] * 4, [1, 1, 1, 0], [0] * 4, num_items=2, num_annotators=1)
    np.testing.assert_allclose(graded.strengths, whole.strengths, atol=1e-6)
    np.testing.assert_allclose(graded.annotators, whole.annotators, atol=1e-6)


def test_crowd_bradley_terry_refuses_where_liars_may_be_the_majority():
    _, votes = drawn_pairs(THREE_GOOD_OF_SEVEN, seed=2)
    with pytest.raises(SignError):
        crowd_bradley_terry(*votes, num_items=40, num_annotators=7)


def test_crowd_bradley_terry_refuses_what_is_no_share():
    for share, second in (([1.5], [1]), ([1.0], [0]), ([1.0, 0.0], [1])):
        with pytest.raises(ValueError, match="share must be"):
            crowd_bradley_terry([0], second, share, [0], num_items=2, num_annotators=1)


def drawn_lists(sharpness, seed, num_items=20, num_lists=1200):
    generator = np.random.default_rng(seed)
    strengths = 1.5 * generator.normal(size=num_items)
    strengths -= strengths.mean()
    annotator = generator.integers(0, len(sharpness), num_lists)
    rankings = []
    for judge in annotator:
        shown = generator.choice(num_items, 5, replace=False)
        utility = sharpness[judge] * strengths[shown] + generator.gumbel(size=5)
        order = shown[np.argsort(-utility)].tolist()
        rankings.append([order[:1], order[1:3], order[3:4], order[4:]])
    return strengths, rankings, annotator


def test_crowd_plackett_luce_recovers_strengths_and_sharpness():
    sharpness = np.array([1.5, 1.0, 1.0, 1.0, 0.5, 0.0, -0.8, 1.2])
    strengths, rankings, annotator = drawn_lists(sharpness, seed=0)
    found = crowd_plackett_luce(rankings, annotator, num_items=20, num_annotators=8)
    assert found.liars.tolist() == [6]
    scale = found.annotators.sum() / sharpness.sum()  # shared between strengths and sharpness, and set by the priors
    np.testing.assert_allclose(found.annotators / scale, sharpness, atol=0.15)
    np.testing.assert_allclose(found.strengths * scale, strengths, atol=0.4)


def test_crowd_plackett_luce_refuses_where_liars_may_be_the_majority_and_wrong_shapes():
    _, rankings, annotator = drawn_lists(np.array([1.0, 1.0, -1.0, -1.0]), seed=1, num_lists=200)
    with pytest.raises(SignError):
        crowd_plackett_luce(rankings, annotator, num_items=20, num_annotators=4)
    with pytest.raises(ValueError, match="annotator must be of shape"):
        crowd_plackett_luce(rankings, annotator[1:], num_items=20, num_annotators=4)


def assert_gradient(loss, point):
    _, gradient = loss(point)
    differences = [(loss(point + nudge)[0] - loss(point - nudge)[0]) / 2e-5 for nudge in 1e-5 * np.eye(len(point))]
    np.testing.assert_allclose(gradient, differences, atol=1e-5)


def test_the_gradients_are_those_of_finite_differences():
    generator = np.random.default_rng(0)
    first, second, share, annotator = (
        [0, 1, 2, 0],
        [1, 2, 0, 2],
        np.array([1.0, 0.75, 0.0, 0.5]),
        np.array([0, 1, 0, 1]),
    )

    def pairs(point):
        votes = {"share": share, "annotator": annotator, "num_items": 3, "l2": 0.3}
        return crowd_bradley_terry_loss(point, np.array(first), np.array(second), **votes)

    def lists(point):
        items, places = np.array([[0, 1, 2], [2, 1, 0]]), np.array([[0, 0, 1], [0, 1, 2]])
        return crowd_plackett_luce_loss(point, items, places, np.array([0, 1]), num_items=3, l2=0.3)

    assert_gradient(pairs, generator.normal(size=5))
    assert_gradient(lists, generator.normal(size=5))


def test_reliabilities_that_did_not_converge_are_not_returned(monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 2)
    _, *votes = drawn_votes(EIGHT, seed=0)
    with pytest.raises(NotConvergedError):
        fitted(votes, 8)
