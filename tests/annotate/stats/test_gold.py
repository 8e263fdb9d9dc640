import pytest

from annotate.stats.gold import gold_score


@pytest.mark.parametrize(
    ("ranking", "gold", "score"),
    [
        ([[1], [2]], [[1], [2]], 1.0),
        ([[2], [1]], [[1], [2]], 0.0),
        ([[1, 2]], [[1], [2]], 0.0),  # a tie where the answer is known
        ([[1], [3], [2]], [[1], [2], [3]], 2 / 3),
        ([[2], [1], [3]], [[1, 2], [3]], 1.0),  # the known answer does not say which of 1 and 2 is better
        ([[9], [1], [2]], [[1], [2]], 1.0),  # a better response that the annotator wrote
        ([[2], [1]], [[1, 2]], 1.0),
    ],
)
def test_gold_score_is_the_share_of_known_pairs_in_the_right_order(ranking, gold, score):
    assert gold_score(ranking, gold) == pytest.approx(score)
