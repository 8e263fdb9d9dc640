import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.errors import BadRow
from annotate.formats import jsonl, rankings, read_row
from annotate.formats.rows import Row

QUESTION = [{"role": "user", "content": "Tea or coffee?"}]


def make(**values):
    return {"prompt": "Tea or coffee?", "responses": ["Tea.", "Coffee."], **values}


def test_read_takes_text_and_leaves_the_rest_unknown():
    assert read_row(7, make()) == Row(7, "", QUESTION, [("Tea.", ""), ("Coffee.", "")], None)


def test_read_takes_everything_a_row_may_have():
    values = {
        "id": "row-1",
        "prompt": [{"role": "system", "content": "Be brief."}, *QUESTION],
        "responses": [
            {"role": "assistant", "content": "Tea.", "model": "small"},
            {"text": "Coffee."},
            {"content": "", "model": None},
        ],
        "ranking": [[2, 0], [1]],
        "annotator": "anna",
        "aspect": "brevity",
        "all_bad": True,
        "source": "simulation",
        "shown_order": [1, 2, 0],
        "seconds": 3,
        "meta": {"models": ["large", "medium", None], "scores": [1.5, None]},
        "unknown": {"is": "left out"},
    }
    assert read_row(1, values) == Row(
        line=1,
        id="row-1",
        messages=values["prompt"],
        responses=[("Tea.", "small"), ("Coffee.", "medium"), ("", "")],
        ranking=[[2, 0], [1]],
        annotator="anna",
        aspect="brevity",
        strength=None,
        is_all_bad=True,
        source="simulation",
        shown_order=[1, 2, 0],
        seconds=3.0,
        meta=values["meta"],
    )


def test_read_keeps_the_name_of_a_data_set_in_meta():
    row = read_row(1, make(source="hh_harmless", meta={"item": 1}))
    assert (row.source, row.meta) == ("import", {"item": 1, "source": "hh_harmless"})
    assert read_row(1, make(source="a", meta={"source": "b"})).meta == {"source": "b"}


def test_read_takes_a_number_for_an_id():
    assert read_row(1, make(id=12)).id == "12"


def test_read_takes_unknown_values_as_the_writer_spells_them():
    unknown = {"annotator": "", "strength": -1, "shown_order": [-1], "seconds": -1.0, "meta": ""}
    assert read_row(1, make(**unknown)) == read_row(1, make())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": None}, "prompt: must be a list of messages, or text"),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"prompt": []}, "prompt: must not be empty"),
        ({"prompt": ["Tea?"]}, 'prompt[0]: must be an object {"role", "content"}'),
        ({"prompt": [{"content": "Tea?"}]}, "prompt[0].role: must be one of system, user, assistant, tool"),
        (
            {"prompt": [{"role": "human", "content": "Tea?"}]},
            "prompt[0].role: must be one of system, user, assistant, tool",
        ),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content: must be text"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "prompt[0].content: must be text"),
        (
            {"prompt": [{"role": "user", "content": "Tea?", "tool_calls": [1]}]},
            "prompt[0].tool_calls: is not understood here; only role, content are",
        ),
        (
            {"prompt": [*QUESTION, {"role": "assistant", "content": "Well,"}]},
            "prompt: must end with what the assistant has to answer, not with the assistant",
        ),
        ({"responses": None}, "responses: must be a list of responses"),
        ({"responses": ["Tea."]}, "responses: must be 2 to 24 responses, not 1"),
        ({"responses": ["Tea."] * 25}, "responses: must be 2 to 24 responses, not 25"),
        ({"responses": ["Tea.", 5]}, 'responses[1]: must be text or an object {"content", "model"}'),
        ({"responses": ["Tea.", {}]}, "responses[1].content: must be text"),
        ({"responses": ["Tea.", {"text": 5}]}, "responses[1].text: must be text"),
        (
            {"responses": ["Tea.", {"text": "a", "content": "b"}]},
            "responses[1].text: stands beside content; give one of them",
        ),
        ({"responses": ["Tea.", {"role": "user", "content": "b"}]}, "responses[1].role: must be assistant"),
        ({"responses": ["Tea.", {"content": "b", "model": 5}]}, "responses[1].model: must be text"),
        (
            {"responses": ["Tea.", {"content": "b", "model": "m" * 201}]},
            "responses[1].model: must have at most 200 characters",
        ),
        ({"ranking": "0>1"}, "ranking: must be a list of groups, each a list of indices"),
        ({"ranking": [0, 1]}, "ranking[0]: must be a list of indices (responses that tie share one)"),
        ({"ranking": [[0], []]}, "ranking[1]: must not be empty"),
        ({"ranking": [[0], [True]]}, "ranking[1]: must be the index of a response, a whole number"),
        ({"ranking": [[0], [1.0]]}, "ranking[1]: must be the index of a response, a whole number"),
        ({"ranking": [[0], [2]]}, "ranking[1]: must be an index from 0 to 1, since there are 2 responses"),
        ({"ranking": [[0], [0, 1]]}, "ranking: holds a response twice"),
        ({"ranking": [[1]]}, "ranking: must place every response; 0 is missing"),
        ({"ranking": []}, "ranking: must place every response; 0, 1 is missing"),
        ({"id": 1.5}, "id: must be text"),
        ({"annotator": ["anna"]}, "annotator: must be text"),
        ({"annotator": "a" * 201}, "annotator: must have at most 200 characters"),
        (
            {"annotator": "not told 3"},
            "annotator: must not begin with 'not told '; null stands for an annotator who is not told",
        ),
        ({"aspect": 1}, "aspect: must be text"),
        ({"strength": 1}, "strength: belongs to a pair with a better response only"),
        ({"strength": 2, "ranking": [[0, 1]]}, "strength: belongs to a pair with a better response only"),
        ({"strength": 3, "ranking": [[0], [1]]}, "strength: must be 1 (slightly better) or 2 (strongly better)"),
        ({"strength": True, "ranking": [[0], [1]]}, "strength: must be 1 (slightly better) or 2 (strongly better)"),
        ({"all_bad": 1}, "all_bad: must be true or false"),
        ({"shown_order": [0]}, "shown_order: must hold each index from 0 to 1 once"),
        ({"shown_order": [0, "1"]}, "shown_order[1]: must be the index of a response, a whole number"),
        ({"seconds": -2}, "seconds: must be a number from 0 to 1000000000"),
        ({"seconds": "3"}, "seconds: must be a number from 0 to 1000000000"),
        ({"meta": []}, "meta: must be an object"),
        ({"meta": "[]"}, "meta: must be an object"),
        ({"meta": "{"}, "meta: is not JSON at column 2: Expecting property name enclosed in double quotes"),
        ({"meta": json.loads("[" * 50 + "]" * 50)}, "meta: must be an object"),
        ({"meta": {"a": json.loads("[" * 50 + "]" * 50)}}, "meta: is nested deeper than 50 levels"),
        ({"meta": {"models": ["a"]}}, "meta.models: must name a model for each of the 2 responses"),
        ({"meta": {"models": ["a", 2]}}, "meta.models[1]: must be text"),
    ],
)
def test_read_refuses(values, message):
    with pytest.raises(BadRow) as refused:
        read_row(3, make(**values))
    assert str(refused.value) == f"line 3, {message}"


def test_read_row_refuses_what_is_in_no_format():
    with pytest.raises(BadRow, match=r"line 1, responses: is missing \(and so are chosen and rejected\)"):
        read_row(1, {"prompt": "Tea?"})


def test_write_gives_every_key_one_type():
    row = {
        "id": "1",
        "prompt": QUESTION,
        "responses": [{"role": "assistant", "content": "Tea.", "model": ""}],
        "ranking": [[0]],
        "annotator": None,
        "aspect": "overall",
        "strength": None,
        "all_bad": False,
        "source": "import",
        "shown_order": [],
        "seconds": None,
        "meta": {"b": [1], "a": "é"},
    }
    (line,) = rankings.write([row])
    assert json.loads(line) == {
        **row,
        "annotator": "",
        "strength": -1,
        "shown_order": [-1],
        "seconds": -1.0,
        "meta": '{"a": "é", "b": [1]}',
    }


# Any JSON value in place of any field is read or refused in words; nothing else is raised.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)
FIELDS = ["prompt", "responses", "ranking", "id", "annotator", "aspect", "strength", "all_bad", "seconds", "meta"]


@given(st.dictionaries(st.sampled_from([*FIELDS, "shown_order", "source", "chosen", "rejected"]), anything))
def test_read_row_reads_or_refuses_anything(values):
    for record in (values, {**make(ranking=[[0], [1]]), **values}):
        with suppress(BadRow):
            row = read_row(1, record)
            assert jsonl.to_line({"responses": row.responses, "meta": row.meta})
