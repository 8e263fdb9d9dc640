import pytest

from annotate.errors import BadRow
from annotate.formats import read_row
from annotate.formats.rows import Row


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


EXPECTED = Row(1, "", [user("Tea?")], [("Yes.", ""), ("No.", "")], [[0], [1]])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}, id="text"),
        pytest.param(
            {"prompt": [user("Tea?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
            id="conversational",
        ),
        pytest.param(
            {"chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Tea?"), assistant("No.")]},
            id="implicit prompt",
        ),
        pytest.param(
            {"prompt": "Tea?", "chosen": [user("Tea?"), assistant("Yes.")], "rejected": [assistant("No.")]},
            id="prompt said twice",
        ),
        pytest.param(
            {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "score_chosen": 0.9, "messages": []},
            id="further columns",
        ),
    ],
)
def test_read_knows_each_form(values):
    assert read_row(1, values) == EXPECTED


def test_read_takes_what_a_rankings_row_may_have():
    values = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "id": "a", "annotator": "anna", "strength": 2}
    row = read_row(1, values)
    assert (row.id, row.annotator, row.strength) == ("a", "anna", 2)


def test_read_takes_the_longest_common_beginning_for_the_prompt():
    beginning = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello."), user("Tea?")]
    row = read_row(1, {"chosen": [*beginning, assistant("Yes.")], "rejected": [*beginning, assistant("No.")]})
    assert (row.messages, row.responses) == (beginning, [("Yes.", ""), ("No.", "")])


def test_read_takes_equal_answers_apart():
    conversation = [user("Tea?"), assistant("Yes.")]
    row = read_row(1, {"chosen": conversation, "rejected": conversation})
    assert (row.messages, row.responses) == ([user("Tea?")], [("Yes.", ""), ("Yes.", "")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "Tea?", "chosen": "Yes."}, "rejected: must be a list of messages, or text"),
        ({"prompt": "Tea?", "rejected": "No."}, "chosen: must be a list of messages, or text"),
        ({"prompt": "Tea?", "chosen": 5, "rejected": "No."}, "chosen: must be a list of messages, or text"),
        (
            {"chosen": "Tea? Yes.", "rejected": "Tea? No."},
            "prompt: is missing; where chosen and rejected are text, it must stand by itself",
        ),
        (
            {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
            "prompt: is missing, and chosen and rejected begin with no message in common",
        ),
        (
            {"chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Coffee?"), assistant("No.")]},
            "prompt: is missing, and chosen and rejected begin with no message in common",
        ),
        ({"prompt": "Tea?", "chosen": [], "rejected": "No."}, "chosen: must hold one message after the prompt, not 0"),
        (
            {
                "prompt": "Tea?",
                "chosen": [assistant("Yes."), user("Sugar?"), assistant("No.")],
                "rejected": [assistant("No.")],
            },
            "chosen: must hold one message after the prompt, not 3",
        ),
        ({"prompt": "Tea?", "chosen": "Yes.", "rejected": [user("No.")]}, "rejected[0].role: must be assistant"),
        (
            {"prompt": "Tea?", "chosen": [user("Tea?"), user("Yes.")], "rejected": "No."},
            "chosen[1].role: must be assistant",
        ),
        ({"prompt": [], "chosen": "Yes.", "rejected": "No."}, "prompt: must not be empty"),
    ],
)
def test_read_refuses(values, message):
    with pytest.raises(BadRow) as refused:
        read_row(2, values)
    assert str(refused.value) == f"line 2, {message}"
