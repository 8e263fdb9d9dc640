import pytest

from annotate.answers import Answer, check_answer, ranking_by_rating
from annotate.errors import BadRanking
from annotate.models import Project

Kind = Project.Kind


def test_ratings_give_the_order_and_equal_ones_are_ties():
    assert ranking_by_rating({11: 2, 10: 5, 12: 2}) == [[10], [11, 12]]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (Kind.RANKING, Answer([[2], [1], [3]])),
        (Kind.RANKING, Answer([[1, 2, 3]])),
        (Kind.RANKING, Answer([[2], [1, 3]], bad=(1, 3))),
        (Kind.RANKING, Answer([[2], [1], [3]], bad=(1, 2, 3), is_all_bad=True)),
        (Kind.BEST, Answer([[2], [1, 3]])),
        (Kind.BEST, Answer([[1, 2, 3]], is_all_bad=True)),
        (Kind.RATING, Answer([[3], [1, 2]], ratings={1: 1, 2: 1, 3: 5})),
    ],
)
def test_an_answer_fits_its_project(kind, answer):
    check_answer(answer, [1, 2, 3], Project(kind=kind))


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        (Kind.RANKING, Answer([[2], [1]]), "The ranking must hold each response of the comparison exactly once."),
        (
            Kind.RANKING,
            Answer([[2], [1, 3]], bad=(2,)),
            "What is not acceptable must stand together at the end of the ranking.",
        ),
        (Kind.BEST, Answer([[2], [1], [3]]), "Choose one response as the best."),
        (Kind.RATING, Answer([[3], [1, 2]]), "Rate each response from 1 to 5."),
        (Kind.RATING, Answer([[3], [1, 2]], ratings={1: 1, 2: 1}), "Rate each response from 1 to 5."),
        (Kind.RATING, Answer([[3], [1, 2]], ratings={1: 1, 2: 1, 3: 6}), "Rate each response from 1 to 5."),
        (Kind.RATING, Answer([[1, 2], [3]], ratings={1: 1, 2: 1, 3: 5}), "The ranking must follow from the ratings."),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(kind, answer, message):
    with pytest.raises(BadRanking, match=f"^{message}$"):
        check_answer(answer, [1, 2, 3], Project(kind=kind))
