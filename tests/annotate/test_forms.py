from uuid import UUID

import pytest

from annotate.forms import ListwiseForm, PairwiseForm, judgment_form

KEY = "6f1c2d3e-0000-4000-8000-000000000001"


def answer(form):
    assert form.is_valid(), form.errors
    return form.ranking, form.strength, form.is_all_bad


def listwise(*places, **values):
    data = {"key": KEY, **{f"place-{position}": place for position, place in enumerate(places)}, **values}
    return ListwiseForm(data, num_responses=len(places))


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("a-strongly", ([[0], [1]], 2, False)),
        ("a-slightly", ([[0], [1]], 1, False)),
        ("tie", ([[0, 1]], None, False)),
        ("b-slightly", ([[1], [0]], 1, False)),
        ("b-strongly", ([[1], [0]], 2, False)),
        ("both-bad", ([[0, 1]], None, True)),
    ],
)
def test_pairwise_form_reads_a_verdict(verdict, expected):
    assert answer(PairwiseForm({"key": KEY, "verdict": verdict})) == expected


def test_pairwise_form_has_a_key_of_its_own_for_each_verdict():
    assert [verdict.key for verdict in PairwiseForm.VERDICTS.values()] == ["1", "2", "3", "4", "5", "0"]


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        ({"key": KEY}, {"verdict": ["Choose one of the answers below."]}),
        ({"key": KEY, "verdict": "c-strongly"}, {"verdict": ["There is no such answer."]}),
        ({"verdict": "tie"}, {"key": ["This field is required."]}),
        ({"key": "1", "verdict": "tie"}, {"key": ["Enter a valid UUID."]}),
    ],
)
def test_pairwise_form_refuses(data, errors):
    assert PairwiseForm(data).errors == errors


@pytest.mark.parametrize(
    ("places", "ranking"),
    [
        (("1", "2", "3"), [[0], [1], [2]]),
        (("3", "1", "2"), [[1], [2], [0]]),
        (("1", "3", "3"), [[0], [1, 2]]),  # a gap says nothing: the two come after the first
        (("3", "2", "3"), [[1], [0, 2]]),
        (("2", "2", "2"), [[0, 1, 2]]),
    ],
)
def test_listwise_form_compresses_places(places, ranking):
    assert answer(listwise(*places)) == (ranking, None, False)


def test_listwise_form_takes_none_acceptable_beside_an_order():
    assert answer(listwise("2", "1", "3", all_bad="on")) == ([[1], [0], [2]], None, True)


def test_listwise_form_preselects_nothing():
    form = ListwiseForm(num_responses=3)

    assert [field.value() for field in form.places] == [None, None, None]
    assert form.places[0].field.choices == [("", "choose…"), (1, "1 (best)"), (2, "2"), (3, "3 (worst)")]


def test_listwise_form_names_what_is_missing_and_keeps_the_rest():
    form = listwise("2", "", "1", "")

    assert form.errors == {
        "__all__": ["Give a place to B, D."],
        "place-1": ["Not placed yet."],
        "place-3": ["Not placed yet."],
    }
    assert [field.value() for field in form.places] == ["2", "", "1", ""]


@pytest.mark.parametrize("place", ["0", "4", "-1", "first", "1.5"])
def test_listwise_form_refuses_a_place_that_does_not_exist(place):
    assert listwise("1", place, "2").errors == {
        "__all__": ["Give a place to B."],
        "place-1": ["There is no such place."],
    }


@pytest.mark.parametrize(
    ("entered", "stored"),
    [
        ("12.5", 12.5),
        ("0", 0.0),
        ("1e9", 3600.0),  # away from the desk
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_no_answer_is_refused_for_its_time(entered, stored):
    form = PairwiseForm({"key": KEY, "verdict": "tie", "seconds": entered})

    assert form.is_valid()
    assert form.cleaned_data == {"key": UUID(KEY), "seconds": stored, "verdict": "tie"}


def test_judgment_form_by_number_of_responses():
    assert isinstance(judgment_form(2), PairwiseForm)
    assert len(judgment_form(24).places) == 24
