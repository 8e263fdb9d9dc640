import numpy as np
import pytest
import torch

from training.alignment.packing import Bundle, Group, Layout, Packing, Span, build_row, bundle, parts, plan

CPU = torch.device("cpu")


def plain(one: Bundle) -> list:
    return [
        (group.prefix.tolist(), [ending.tolist() for ending in group.endings], list(group.places))
        for group in one.groups
    ]


def random_texts(seed: int) -> list[np.ndarray]:
    """Texts of a few prompts with a few responses each; all begin with the same four tokens."""
    draw = np.random.default_rng(seed)
    begin = draw.integers(0, 9, 4)
    texts = []
    for _ in range(draw.integers(1, 6)):
        prompt = np.concatenate([begin, draw.integers(0, 9, draw.integers(1, 40))])
        texts += [
            np.concatenate([prompt, draw.integers(0, 9, draw.integers(1, 20))]) for _ in range(draw.integers(1, 5))
        ]
    return [texts[place] for place in draw.permutation(len(texts))]


def test_a_prompt_stands_once_for_all_its_responses():
    one = bundle([[1, 2, 3, 7, 8], [1, 2, 3, 5], [1, 2, 3, 7, 9, 9]], Packing.SHARED)

    assert plain(one) == [([1, 2, 3], [[5], [7, 8], [7, 9, 9]], [1, 0, 2])]
    assert (one.num_sequences, one.num_tokens, one.longest) == (3, 9, 6)


def test_each_text_keeps_a_token_of_its_own():
    assert plain(bundle([[1, 2], [1, 2, 3], [1, 2]], Packing.SHARED)) == [([1], [[2], [2], [2, 3]], [0, 2, 1])]


def test_texts_that_begin_differently_stand_apart():
    """A long prompt shared by two is worth more than one token shared by three."""
    texts = [[1, 5, 5, 5, 5, 2], [1, 5, 5, 5, 5, 3], [1, 4]]

    assert plain(bundle(texts, Packing.SHARED)) == [([], [[1, 4]], [2]), ([1, 5, 5, 5, 5], [[2], [3]], [0, 1])]
    assert bundle(texts, Packing.SEPARATE).num_tokens == sum(map(len, texts))


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        bundle([[1], []], Packing.SHARED)


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("seed", range(20))
def test_texts_come_back_as_they_were(packing, seed):
    texts = random_texts(seed)

    one = bundle(texts, packing)

    assert [text.tolist() for text in one.sequences()] == [text.tolist() for text in texts]
    assert one.num_tokens <= sum(map(len, texts))
    found = {}
    for part, numbers in parts(texts, packing, 60):
        assert part.num_tokens <= 60 or part.num_sequences == 1
        found |= dict(zip(numbers, [text.tolist() for text in part.sequences()], strict=True))
    assert [found[number] for number in range(len(texts))] == [text.tolist() for text in texts]


def test_many_samples_of_one_prompt_are_divided_by_the_budget():
    prompt = list(range(50))
    texts = [[*prompt, 100 + number, 7] for number in range(10)]

    assert [numbers for _, numbers in parts(texts, Packing.SHARED, 58)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def group(prefix: list[int], *endings: list[int]) -> Group:
    return Group(np.array(prefix), tuple(np.array(ending) for ending in endings), tuple(range(len(endings))))


def test_a_row_holds_whole_rankings_one_after_another():
    first = Bundle((group([1, 2], [3, 4], [5]),))
    second = Bundle((group([], [6, 7]), Group(np.array([8]), (np.array([9]), np.array([10, 11])), (2, 1))))

    row = build_row([first, second], Packing.SHARED, CPU)

    assert row.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 0, 1, 1, 2]]
    assert row.firsts.tolist() == [0, 0, 5, 7, 7]
    assert row.lasts.tolist() == [3, 4, 6, 10, 8]
    assert row.num_tokens == 11
    assert row.layout.spans == (Span(0, (2, 4, 5)), Span(5, (5, 7)), Span(7, (8, 9, 11)))
    groups, endings = row.layout.owners()
    assert groups.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert endings.tolist() == [0, 0, 1, 1, 2, 3, 3, 0, 4, 5, 5]


def test_padded_texts_stand_below_each_other():
    row = build_row([bundle([[1, 2, 3], [1, 4]], Packing.PADDED)], Packing.PADDED, CPU)

    assert row.input_ids.tolist() == [[1, 2, 3], [1, 4, 0]]
    assert row.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert (row.firsts.tolist(), row.lasts.tolist(), row.num_tokens) == ([0, 3], [2, 4], 5)
    assert row.layout is None


def test_rows_are_filled_where_they_leave_the_least_room():
    bundles = [Bundle((group([], [0] * size),)) for size in (3, 6, 4, 5, 12, 2)]

    assert plan(bundles, Packing.SHARED, 10) == [[4], [1, 2], [3, 0, 5]]


def test_positions_restart_after_the_common_beginning():
    assert Layout([Span(0, (3, 5, 9)), Span(9, (9, 11))]).positions().tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1]
