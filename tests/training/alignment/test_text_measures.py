from training.alignment.text_measures import diversity, repetition


def test_repetition_by_hand():
    # "a b c" of the four sequences a b c, b c a, c a b, a b c stood before; the other text repeats nothing
    assert repetition(["A b c a b c", "Boil the rice gently."]) == (1 / 4 + 0) / 2
    assert repetition([]) == 0.0
    assert repetition(["", "two words"]) == 0.0


def test_diversity_by_hand():
    # bigrams "a b", "b c" twice over: 2 of 4 distinct; then 3 of 3; one-word responses have none
    responses = [["a b c", "A b c."], ["boil the rice now", ""], ["yes", "no"]]

    assert diversity(responses) == (2 / 4 + 3 / 3) / 2
    assert diversity([]) == 0.0
    assert diversity([["yes"]]) == 0.0


def test_neighbouring_responses_make_no_bigram():
    assert diversity([["a b", "b a"]]) == 1.0
    assert diversity([["a b", "a b"]]) == 0.5
