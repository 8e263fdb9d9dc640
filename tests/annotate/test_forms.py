import json
from uuid import UUID

import pytest
from django.http import QueryDict

from annotate.answers import Answer, Edit
from annotate.forms import MAX_EDIT, MAX_HIGHLIGHTS, MAX_NOTE, MAX_RATIONALE, FlagForm, JudgmentForm, SkipForm
from annotate.models import Aspect, Project
from annotate.questions import LETTERS, PairQuestion, kind_of, place_choices

KEY = "6f1c2d3e-0000-4000-8000-000000000001"
IDS = [70, 71, 72, 73, 74, 75]  # of the responses shown, from left to right


def make_form(k, data=None, *, kind="ranking", aspects=(), **values):
    project = Project(kind=kind, rating_max=5)
    data = None if data is None else {"key": KEY, **data}
    asked = [Aspect(name=name) for name in aspects]
    return JudgmentForm(data, project=project, num_responses=k, aspects=asked, **values)


def pair(verdict="tie", **data):
    return make_form(2, {"verdict": verdict, **data})


def listing(*places, **data):
    return make_form(len(places), {**{f"place-{at}": place for at, place in enumerate(places)}, **data})


def rating(*ratings, **data):
    entered = {f"rating-{at}": value for at, value in enumerate(ratings)}
    return make_form(len(ratings), {**entered, **data}, kind="rating")


def answers(form):
    assert form.is_valid(), form.errors
    return form.answers(IDS[: form.overall.num_responses])


def answer(form):
    (overall,) = answers(form).values()
    return overall


# Pairs


VERDICTS = [
    ("a-strongly", Answer([[70], [71]], 2)),
    ("a-slightly", Answer([[70], [71]], 1)),
    ("tie", Answer([[70, 71]])),
    ("b-slightly", Answer([[71], [70]], 1)),
    ("b-strongly", Answer([[71], [70]], 2)),
    ("both-bad", Answer([[70, 71]], bad=(70, 71), is_all_bad=True)),
]


@pytest.mark.parametrize(("verdict", "expected"), VERDICTS)
def test_pair_reads_a_verdict(verdict, expected):
    assert answer(pair(verdict)) == expected


def test_pair_has_a_key_of_its_own_for_each_verdict():
    assert [verdict.key for verdict in PairQuestion.VERDICTS.values()] == ["1", "2", "3", "4", "5", "0"]


def test_pair_names_its_verdicts():
    assert [str(verdict.label) for verdict in PairQuestion.VERDICTS.values()] == [
        "A much better",
        "A slightly better",
        "Tie",
        "B slightly better",
        "B much better",
        "Both bad",
    ]


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        ({"key": KEY}, {"verdict": ["Choose one of the answers below."]}),
        ({"key": KEY, "verdict": "c-strongly"}, {"verdict": ["There is no such answer."]}),
        ({"key": "", "verdict": "tie"}, {"key": ["This field is required."]}),
        ({"key": "1", "verdict": "tie"}, {"key": ["Enter a valid UUID."]}),
    ],
)
def test_pair_refuses(data, errors):
    assert make_form(2, data).errors == errors


# Lists


@pytest.mark.parametrize(
    ("places", "ranking"),
    [
        (("1", "2", "3"), [[70], [71], [72]]),
        (("3", "1", "2"), [[71], [72], [70]]),
        (("1", "3", "3"), [[70], [71, 72]]),  # a gap says nothing: the two come after the first
        (("3", "2", "3"), [[71], [70, 72]]),
        (("2", "2", "2"), [[70, 71, 72]]),
    ],
)
def test_list_compresses_places(places, ranking):
    assert answer(listing(*places)) == Answer(ranking)


def test_list_puts_the_bad_ones_last():
    assert answer(listing("bad", "2", "1", "bad")) == Answer([[72], [71], [70, 73]], bad=(70, 73))


def test_list_of_bad_ones_only():
    assert answer(listing("bad", "bad", "bad")) == Answer([[70, 71, 72]], bad=(70, 71, 72), is_all_bad=True)


def test_list_preselects_nothing():
    form = make_form(3)

    assert [field.value() for field in form.overall.fields] == [None, None, None]
    choices = [[(choice.value, str(choice.label), choice.is_given) for choice in each] for each in form.overall.choices]
    offered = [("", "choose…", False), ("1", "1 (best)", False), ("2", "2", False), ("3", "3 (worst)", False)]
    assert choices == [[*offered, ("bad", "bad", False)]] * 3


def test_list_names_what_is_missing_and_keeps_the_rest():
    form = listing("2", "", "1", "")

    assert form.errors == {
        "__all__": ["Give a place to B, D."],
        "place-1": ["Not placed yet."],
        "place-3": ["Not placed yet."],
    }
    assert form.complaints == ["Give a place to B, D."]
    assert [field.value() for field in form.overall.fields] == ["2", "", "1", ""]


@pytest.mark.parametrize("place", ["0", "4", "-1", "first", "1.5"])
def test_list_refuses_a_place_that_does_not_exist(place):
    assert listing("1", place, "2").errors == {
        "__all__": ["Give a place to B."],
        "place-1": ["There is no such place."],
    }


def test_the_order_shown_is_confirmed_expressly():
    form = listing("", "", "", confirm="1")

    assert answer(form) == Answer([[70], [71], [72]])
    assert form.told(IDS)["placement"] == "confirmed"


def test_placed_responses_are_not_confirmed():
    form = listing("1", "2", "3")

    assert form.is_valid()
    assert form.told(IDS)["placement"] == "placed"


def test_the_order_shown_is_not_confirmed_beside_places():
    assert listing("1", "", "", confirm="1").errors == {
        "__all__": ["Some responses have a place already. Submit these places, or clear them first."]
    }


def test_only_a_list_can_be_confirmed():
    assert make_form(2, {"confirm": "1"}).errors == {"verdict": ["Choose one of the answers below."]}


def test_a_list_takes_as_many_responses_as_there_are_letters():
    assert len(make_form(24).overall.fields) == len(LETTERS) == 24
    assert [str(label) for _value, label in place_choices(2)] == ["1 (best)", "2 (worst)"]


# Best of K, ratings


def test_best_reads_a_choice():
    def best(value):
        return answer(make_form(3, {"best": value}, kind="best"))

    assert best("1") == Answer([[71], [70, 72]])
    assert best("none") == Answer([[70, 71, 72]], bad=(70, 71, 72), is_all_bad=True)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({}, "Choose the best response, or none."),
        ({"best": "3"}, "There is no such answer."),
        ({"best": "-1"}, "There is no such answer."),
    ],
)
def test_best_refuses(data, error):
    assert make_form(3, data, kind="best").errors == {"best": [error]}


def test_ratings_give_the_order():
    assert answer(rating("2", "5", "2")) == Answer([[71], [70, 72]], ratings={70: 2, 71: 5, 72: 2})


def test_ratings_name_what_is_missing():
    assert rating("2", "", "6").errors == {
        "__all__": ["Rate B, C."],
        "rating-1": ["Not rated yet."],
        "rating-2": ["There is no such rating."],
    }


@pytest.mark.parametrize(
    ("kind", "k", "expected"),
    [
        ("ranking", 2, "pairwise"),
        ("ranking", 3, "listwise"),
        ("best", 2, "best"),
        ("rating", 2, "rating"),
    ],
)
def test_kind_of(kind, k, expected):
    assert kind_of(Project(kind=kind), k) == expected


# Aspects


def test_aspects_are_answered_in_the_same_form():
    data = {"verdict": "a-strongly", "clarity-verdict": "tie", "harmlessness-verdict": "b-slightly"}
    form = make_form(2, data, aspects=("clarity", "harmlessness"))

    assert form.needs_submit
    assert answers(form) == {
        "overall": Answer([[70], [71]], 2),
        "clarity": Answer([[70, 71]]),
        "harmlessness": Answer([[71], [70]], 1),
    }


def test_aspects_that_are_missing_are_named():
    form = make_form(2, {"verdict": "tie"}, aspects=("clarity",))
    assert form.complaints == ["clarity: Choose one of the answers below."]

    data = {"place-0": "1", "place-1": "2", "place-2": "3", "clarity-place-1": "1", "clarity-place-2": "x"}
    form = make_form(3, data, aspects=("clarity",))
    assert (form.complaints, form.needs_submit) == (["clarity: Give a place to A, C."], False)


def test_aspects_are_asked_although_the_order_is_confirmed():
    form = make_form(3, {"confirm": "1"}, aspects=("clarity",))

    assert form.complaints == ["clarity: Give a place to A, B, C."]


# What stored answers were entered as


def said_by(answer):
    return {
        "ranking": [[99], *answer.ranking],  # 99: the annotator's own better answer
        "strength": answer.strength,
        "bad": list(answer.bad),
        "is_all_bad": answer.is_all_bad,
        "ratings": answer.ratings and {str(pk): value for pk, value in answer.ratings.items()},
    }


@pytest.mark.parametrize(
    ("form", "entered"),
    [
        *[(pair(verdict), {"verdict": verdict}) for verdict, _answer in VERDICTS],
        (listing("3", "1", "bad"), {"place-0": "2", "place-1": "1", "place-2": "bad"}),
        (listing("2", "2", "1"), {"place-0": "2", "place-1": "2", "place-2": "1"}),
        (listing("bad", "bad", "bad"), {"place-0": "bad", "place-1": "bad", "place-2": "bad"}),
        (make_form(3, {"best": "2"}, kind="best"), {"best": "2"}),
        (make_form(3, {"best": "none"}, kind="best"), {"best": "none"}),
        (rating("1", "4", "4"), {"rating-0": "1", "rating-1": "4", "rating-2": "4"}),
    ],
)
def test_a_stored_answer_fills_the_form(form, entered):
    order = IDS[: form.overall.num_responses]

    assert form.overall.entered(said_by(answer(form)), order) == entered


def test_a_preference_without_a_strength_presses_no_button():
    assert pair().overall.entered(said_by(Answer([[70], [71]])), IDS[:2]) == {}


# What goes with an answer


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
    form = pair(seconds=entered, total_seconds=entered)

    assert form.is_valid()
    assert form.cleaned_data == {
        "key": UUID(KEY),
        "seconds": stored,
        "total_seconds": 2592000.0 if entered == "1e9" else stored,
        "revises": False,
        "rationale": "",
        "edit": "",
        "verdict": "tie",
        "highlights": [],
        "edit_of": "",
    }


def highlight(**values):
    return {"position": 1, "start": 3, "end": 8, "text": "a 🍳 b", "reason": "Wrong", **values}  # the pan counts twice


def highlighted(*highlights):
    return pair(highlights=json.dumps(highlights), rationale=" Because. ", seconds="3", total_seconds="9.5")


def test_told_names_responses_by_their_ids():
    form = highlighted(highlight(end=9))

    assert form.is_valid(), form.errors
    assert form.told(IDS) == {
        "rationale": "Because.",
        "highlights": [{"response": 71, "start": 3, "end": 9, "text": "a 🍳 b", "reason": "Wrong"}],
        "placement": "placed",
        "seconds": 3.0,
        "total_seconds": 9.5,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"position": 2},
        {"position": -1},
        {"position": True},
        {"position": "1"},
        {"start": -1},
        {"start": 8},
        {"end": 10},  # the text is shorter
        {"end": 1e9},
        {"text": 5},
        {"text": "x" * 5001, "end": 5004},
        {"text": "a\0🍳 "},
        {"text": "\ud800abcd"},
        {"reason": "x" * 501},
        {"reason": None},
        {"more": 1},
    ],
)
def test_a_highlight_that_cannot_be_is_refused(values):
    form = highlighted(highlight(end=9), highlight(**{"end": 9, **values}))

    assert form.errors == {"highlights": ["Marked passage 2 cannot be read."]}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1e999999"])
def test_highlights_that_are_no_json_are_refused(text):
    assert list(pair(highlights=text).errors) == ["highlights"]


@pytest.mark.parametrize("value", ["{}", "3", '"text"', json.dumps([highlight(end=9)] * (MAX_HIGHLIGHTS + 1))])
def test_highlights_are_a_list_of_bounded_length(value):
    assert pair(highlights=value).errors == {"highlights": ["Marked passages: a list of at most 50."]}


def test_better_answer_names_what_it_was_made_from():
    def better(**data):
        form = pair(**data)
        assert form.is_valid(), form.errors
        return form.better_answer(IDS)

    assert better() is None
    assert better(edit=" \n ", edit_of="1") is None
    assert better(edit="Mine.", edit_of="1") == Edit("Mine.", 71)
    assert better(edit="Mine.") == Edit("Mine.", None)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (
            {"rationale": "x" * (MAX_RATIONALE + 1)},
            "Why?: Ensure this value has at most 5000 characters (it has 5001).",
        ),
        (
            {"edit": "x" * (MAX_EDIT + 1)},
            "A better answer: Ensure this value has at most 50000 characters (it has 50001).",
        ),
        ({"rationale": "a\0b"}, "Why?: Null characters are not allowed."),
        (
            {"edit": "x", "edit_of": "2"},
            "It is made from: Select a valid choice. 2 is not one of the available choices.",
        ),
    ],
)
def test_what_goes_with_an_answer_is_bounded(data, complaint):
    assert pair(**data).complaints == [complaint]


# Drafts


def test_draft_holds_what_was_entered_as_it_stands():
    data = QueryDict(mutable=True)
    data.update({"key": KEY, "place-0": "7", "place-2": "bad", "rationale": "a\0b", "other": "x", "confirm": "1"})
    data.update({"clarity-place-1": "2", "seconds": "4.5", "revises": "True", "besides": "5"})
    form = JudgmentForm(data, project=Project(), num_responses=3, aspects=[Aspect(name="clarity")])

    assert form.draft() == {
        "clarity-place-1": "2",
        "place-0": "7",
        "place-2": "bad",
        "rationale": "ab",
        "seconds": "4.5",
    }


def test_draft_fills_the_form():
    form = make_form(2, initial={"verdict": "tie", "edit": "Mine."})

    assert [choice.is_given for choice in form.overall.choices[0]] == [False, False, True, False, False, False]
    assert (form.given, form.has_extras, make_form(2).has_extras) == ("tie", True, False)


# Reasons


def test_skip_form_takes_a_reason_or_none():
    for reason in ("", "language"):
        form = SkipForm({"reason": reason, "note": "why"})
        assert form.is_valid()
        assert form.cleaned_data == {"key": None, "reason": reason, "note": "why"}


@pytest.mark.parametrize(
    ("data", "complaints"),
    [
        ({}, ["Reason: Choose a reason."]),
        ({"reason": "boring"}, ["Reason: Select a valid choice. boring is not one of the available choices."]),
        (
            {"reason": "other", "note": "x" * (MAX_NOTE + 1)},
            ["Note: Ensure this value has at most 2000 characters (it has 2001)."],
        ),
    ],
)
def test_flag_form_refuses(data, complaints):
    assert FlagForm(data).complaints == complaints
