import json

from annotate.formats import trl_pairwise

PROMPT = [{"role": "user", "content": "Tea?"}]


def pairs(ranking, contents="abcd"):
    responses = [{"role": "assistant", "content": content, "model": "secret"} for content in contents]
    lines = trl_pairwise.write([{"prompt": PROMPT, "responses": responses, "ranking": ranking}])
    return [json.loads(line) for line in lines]


def test_write_gives_one_row_for_each_strictly_ordered_pair():
    rows = pairs([[2], [0, 3], [1]])
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("c", "a"),
        ("c", "d"),
        ("c", "b"),
        ("a", "b"),
        ("d", "b"),
    ]
    assert rows[0] == {
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": "c"}],
        "rejected": [{"role": "assistant", "content": "a"}],
    }


def test_write_gives_nothing_for_a_tie():
    assert pairs([[0, 1]], "ab") == []
