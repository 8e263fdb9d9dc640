import gzip
import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from training.alignment.config import ConfigError
from training.alignment.preferences import (
    Preference,
    RankedResponses,
    chat_template,
    encode,
    encode_prompt,
    pairs,
    prompt_key,
    read_prompts,
    read_rankings,
    read_responses,
)

PROMPT = [{"role": "user", "content": "How long does rice take?"}]
CHAT = [
    {"role": "system", "content": "You are a cook."},
    {"role": "user", "content": "How long does rice take?"},
    {"role": "assistant", "content": "Twelve minutes."},
    {"role": "user", "content": "And eggs?"},
]


@pytest.fixture(scope="module")
def llama(llama_folder):
    return AutoTokenizer.from_pretrained(llama_folder)


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return AutoTokenizer.from_pretrained(gpt2_folder)


def row(**values: object) -> dict:
    responses = [{"role": "assistant", "content": text} for text in ("one", "two", "three")]
    return {"prompt": PROMPT, "responses": responses, "ranking": [[1], [0, 2]], **values}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path, *rows: dict):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Records


def test_what_utf_8_cannot_carry_becomes_a_question_mark(tmp_path):
    prompt, response = (
        [{"role": "user", "content": "half \ud83c of an egg"}],
        {"role": "assistant", "content": "\udf73"},
    )
    path = write(tmp_path / "preferences.jsonl", row(prompt=prompt, responses=[response] * 3))

    (ranked,) = read_rankings(path)

    assert (ranked.prompt[0]["content"], ranked.responses) == ("half ? of an egg", ("?", "?", "?"))


def test_rankings_are_read_in_the_order_of_the_lines(tmp_path):
    told = {"annotator": "a1", "aspect": "style", "split": "test", "id": "f00", "strength": 2, "all_bad": True}
    path = write(
        tmp_path / "preferences.jsonl",
        row(),
        row(**told, source="browser", meta={"bad": [0, 2]}, shown_order=[2, 0, 1]),
    )

    assert list(read_rankings(path)) == [
        RankedResponses(PROMPT, ("one", "two", "three"), ((1,), (0, 2))),
        RankedResponses(
            PROMPT,
            ("one", "two", "three"),
            ((1,), (0, 2)),
            "style",
            "a1",
            "test",
            "f00",
            strength=2,
            all_bad=True,
            bad=(0, 2),
            source="browser",
        ),
    ]


def test_rankings_of_one_split_or_one_aspect(tmp_path):
    lines = [row(id=f"{split} {aspect}", split=split, aspect=aspect) for split in ("train", "test") for aspect in "ab"]
    path = write(tmp_path / "preferences.jsonl", *lines)

    assert [ranked.id for ranked in read_rankings(path, split="test")] == ["test a", "test b"]
    assert [ranked.id for ranked in read_rankings(path, split="all", aspect="b")] == ["train b", "test b"]
    assert [ranked.id for ranked in read_rankings(path, split="train", aspect="a")] == ["train a"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ranking": [[0], [0, 1, 2]]}, "ranking: [[0], [0, 1, 2]] does not hold each of 3 responses once"),
        ({"ranking": [[0], [3]]}, "ranking: [[0], [3]] does not hold each of 3 responses once"),
        ({"ranking": [[-1], [0]]}, "ranking: [[-1], [0]] does not hold each of 3 responses once"),
        ({"ranking": [[0, 1, 2], []]}, "ranking: a group is empty"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [{"role": "end", "content": ""}]}, "prompt: 'end' is not one of system, user, assistant, tool"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt: must be text, not None"),
        ({"prompt": [{"role": "user"}]}, "prompt: content is missing"),
        ({"prompt": ["Hi"]}, "prompt: 'Hi' is no message"),
        ({"prompt": 5}, "prompt: 5 is no list"),
        ({"responses": [{"content": 5}]}, "responses: must be text, not 5"),
        ({"responses": [{"role": "assistant"}]}, "responses: content is missing"),
        ({"responses": "Yes"}, "responses: 'Yes' is no list"),
        ({"responses": [], "ranking": []}, "responses: is empty"),
        ({"ranking": [[0], [1.0]]}, "ranking: a group [1.0] is no list of whole numbers"),
        ({"ranking": [[0], [True]]}, "ranking: a group [True] is no list of whole numbers"),
        ({"ranking": [0, 1]}, "ranking: a group 0 is no list of whole numbers"),
        ({"ranking": "01"}, "ranking: '01' is no list"),
        ({"chosen": [], "rejected": "No."}, "chosen: is empty"),
        ({"chosen": "Yes.", "rejected": [{"role": "assistant"}]}, "rejected: content is missing"),
        ({"chosen": ["Yes."], "rejected": []}, "chosen: 'Yes.' is no message"),
        ({"chosen": [CHAT[3], said("Ten.")], "rejected": "No."}, "chosen: does not begin with the prompt"),
        ({"chosen": CHAT, "rejected": CHAT}, "chosen: the last message is of user, not of assistant"),
        (
            {"prompt": None, "chosen": [*CHAT, said("Ten.")], "rejected": [*CHAT[1:], said("No.")]},
            "rejected: does not answer what chosen answers",
        ),
        ({"strength": 7}, "strength: 7 is not 1 (slightly better) or 2 (strongly better)"),
        ({"all_bad": "no"}, "all_bad: 'no' is not true or false"),
        ({"weight": True}, "weight: True is not a number from 0 on"),
        ({"weight": 10**400}, f"weight: {10**400} is not a number from 0 on"),
    ],
)
def test_a_line_that_is_no_ranking_is_named(tmp_path, wrong, message):
    path = write(tmp_path / "preferences.jsonl", row(), row(**wrong))

    with pytest.raises(ConfigError) as refused:
        list(read_rankings(path))

    assert str(refused.value) == f"preferences: line 2: {message}"


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = write(tmp_path / "preferences.jsonl", row())
    path.write_text(path.read_text() + '{"prompt": ')

    with pytest.raises(ConfigError, match=r"^preferences: line 2: is not JSON at column 12: Expecting value$"):
        list(read_rankings(path))


def test_a_line_that_is_no_utf_8_or_no_object_is_named(tmp_path):
    path = write(tmp_path / "preferences.jsonl", row())
    first = path.read_bytes()

    path.write_bytes(first + b'{"prompt": "\xff"}\n')
    with pytest.raises(ConfigError, match=r"^preferences: line 2: is not UTF-8 at byte 13$"):
        list(read_rankings(path))
    path.write_bytes(first + b"[1]\n")
    with pytest.raises(ConfigError, match=r"^preferences: line 2: is no object with fields$"):
        list(read_rankings(path))
    path.write_bytes(first + b'{"prompt": ' + b"[" * 10**5 + b"\n")
    with pytest.raises(ConfigError, match=r"^preferences: line 2: is nested too deeply$"):
        list(read_rankings(path))


def test_a_file_that_cannot_be_read_is_told_with_the_field_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"^preferences: .*none.jsonl: No such file or directory$"):
        list(read_rankings(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=r"^prompts: .*: Is a directory$"):
        list(read_prompts(tmp_path))
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(row()).encode() + b"\n")[:-8])
    with pytest.raises(ConfigError, match=r"^preferences: is damaged after line 1: "):
        list(read_rankings(damaged))


def test_blank_lines_are_passed_over_and_counted_and_files_may_be_zipped(tmp_path):
    line = json.dumps(row()).encode()
    told = b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\n\n"
    plain, zipped = tmp_path / "plain.jsonl", tmp_path / "zipped"
    plain.write_bytes(told)
    zipped.write_bytes(gzip.compress(told))

    assert list(read_rankings(plain)) == list(read_rankings(zipped))
    assert len(list(read_rankings(plain))) == 2
    plain.write_bytes(told + b"{}")
    with pytest.raises(ConfigError, match=r"^preferences: line 6: prompt is missing$"):
        list(read_rankings(plain))


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ("How long does rice take?", []),
        (CHAT, []),
        (CHAT[1:], CHAT),  # a system's message may stand before what the prompt tells
        (CHAT[1]["content"], CHAT),
        (CHAT[:2], CHAT),
        (CHAT[:2], CHAT[2:]),  # the conversation goes on where the prompt ends
        (None, CHAT),
    ],
)
def test_pairs_may_be_conversations_that_hold_their_prompt(tmp_path, prompt, before):
    told = {"prompt": prompt, "chosen": [*before, said("Ten.")], "rejected": [*before, said("No.")], "subset": "eggs"}

    (ranked,) = read_rankings(write(tmp_path / "pairs.jsonl", told))

    assert ranked == RankedResponses(
        CHAT if before or prompt == CHAT else PROMPT, ("Ten.", "No."), ((0,), (1,)), source="eggs"
    )


def test_several_responses_of_which_some_are_right_leave_the_others_unsorted(tmp_path):
    told = {"prompt": "How long does rice take?", "chosen": ["Twelve minutes."], "rejected": ["No.", "Why?", "Salt."]}

    (ranked,) = read_rankings(write(tmp_path / "best.jsonl", told))

    assert ranked == RankedResponses(
        PROMPT, ("Twelve minutes.", "No.", "Why?", "Salt."), ((0,), (1, 2, 3)), is_best_only=True
    )


def test_texts_stand_for_messages(tmp_path):
    path = write(tmp_path / "preferences.jsonl", row(prompt="How long?", responses=["one", "two", "three"]))

    (ranked,) = read_rankings(path)

    assert ranked == RankedResponses(
        [{"role": "user", "content": "How long?"}], ("one", "two", "three"), ((1,), (0, 2))
    )


def test_what_other_programs_keep_in_meta_is_left_unread(tmp_path):
    others = (
        "from reddit",
        '"bad"',
        "[" * 10**5,
        ["bad"],
        {"bad": None},
        {"bad": "two"},
        {"bad": [3]},
        {"bad": [True], "kind": ["best"]},
    )
    path = write(tmp_path / "preferences.jsonl", *[row(meta=meta) for meta in others])

    assert list(read_rankings(path)) == [RankedResponses(PROMPT, ("one", "two", "three"), ((1,), (0, 2)))] * 8


def test_names_lose_what_utf_8_cannot_carry_as_texts_do(tmp_path):
    told = dict.fromkeys(("id", "subset", "annotator", "split", "aspect", "edited"), "x\ud83c")
    path = write(tmp_path / "preferences.jsonl", row(**told))

    (ranked,) = read_rankings(path)
    (prompted,) = read_responses(path)

    assert (ranked.id, ranked.source, ranked.annotator, ranked.split, ranked.aspect, ranked.edited) == ("x?",) * 6
    assert prompted.id == "x?"


def test_prompts_are_read_alone(tmp_path):
    path = write(tmp_path / "prompts.jsonl", {"prompt": CHAT, "id": 5}, {"prompt": "And \ud83c rice?"})

    assert list(read_prompts(path)) == [CHAT, [{"role": "user", "content": "And ? rice?"}]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": {"role": "user", "content": "Hi"}}, "prompt: {'role': 'user', 'content': 'Hi'} is no list"),
        ({"prompt": [{"content": "Hi"}]}, "prompt: None is not one of system, user, assistant, tool"),
        ({"prompt": [{"role": "user", "content": ["Hi"]}]}, "prompt: must be text, not ['Hi']"),
    ],
)
def test_a_line_that_holds_no_prompt_is_named(tmp_path, wrong, message):
    path = write(tmp_path / "prompts.jsonl", {"prompt": "Hi"}, wrong)

    with pytest.raises(ConfigError) as refused:
        list(read_prompts(path))

    assert str(refused.value) == f"prompts: line 2: {message}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"responses": "Yes"}, "responses: 'Yes' is no list"),
        ({"responses": []}, "responses: is empty"),
        ({"responses": [5]}, "responses: must be text, not 5"),
        ({"response": None}, "responses: must be text, not None"),
    ],
)
def test_a_line_that_holds_no_responses_is_named(tmp_path, wrong, message):
    path = write(tmp_path / "responses.jsonl", {"prompt": "Hi", **wrong})

    with pytest.raises(ConfigError) as refused:
        list(read_responses(path))

    assert str(refused.value) == f"responses: line 1: {message}"


def test_pairs_are_those_that_a_ranking_orders_strictly():
    ranked = RankedResponses(PROMPT, ("a", "b", "c", "d"), ((2,), (0, 3), (1,)))

    assert list(pairs(ranked)) == [
        Preference(PROMPT, "c", "a"),
        Preference(PROMPT, "c", "d"),
        Preference(PROMPT, "c", "b"),
        Preference(PROMPT, "a", "b"),
        Preference(PROMPT, "d", "b"),
    ]


def test_groups_number_the_responses_and_leave_out_what_was_not_ranked():
    assert RankedResponses(PROMPT, ("a", "b", "c", "d"), ((2,), (0, 3))).groups == (1, -1, 0, 1)
    assert RankedResponses(PROMPT, ("a", "b"), ((0, 1),)).is_decided is False
    assert RankedResponses(PROMPT, ("a", "b"), ((1,), (0,))).is_decided is True


@pytest.mark.parametrize(
    ("told", "is_unsorted"),
    [
        ({}, (False, False, False)),
        ({"meta": {"bad": [0]}}, (False, False, False)),
        ({"meta": {"bad": [0, 2]}}, (True, False, True)),
        ({"meta": {"kind": "best"}}, (True, False, True)),
        ({"meta": {"kind": "rating"}}, (False, False, False)),
        ({"ranking": [[0, 1, 2]], "all_bad": True}, (True, True, True)),
        ({"ranking": [], "all_bad": True}, (False, False, False)),
    ],
)
def test_bad_ones_and_all_but_the_best_are_sorted_by_nobody(tmp_path, told, is_unsorted):
    (ranked,) = read_rankings(write(tmp_path / "preferences.jsonl", row(**told)))

    assert ranked.is_unsorted == is_unsorted
    assert ranked.only([2, 0]).is_unsorted == (is_unsorted[2], is_unsorted[0])


# Tokens


def test_a_chat_template_is_applied_to_prompt_and_response_together(llama):
    whole = [*CHAT, {"role": "assistant", "content": "Eight minutes."}]

    encoded = encode(llama, CHAT, "Eight minutes.", 512)

    assert llama.decode(encoded.ids) == (
        "<|begin|><|system|>You are a cook.<|end|><|user|>How long does rice take?<|end|>"
        "<|assistant|>Twelve minutes.<|end|><|user|>And eggs?<|end|><|assistant|>Eight minutes.<|end|>"
    )
    assert encoded.ids == llama.apply_chat_template(whole, return_dict=False)
    assert encoded.ids[: encoded.num_prompt_tokens] == encode_prompt(llama, CHAT, 512)
    assert (encoded.num_dropped, encoded.is_truncated) == (0, False)


def test_a_tokenizer_without_a_template_gets_plain_text(gpt2):
    encoded = encode(gpt2, CHAT, "Eight minutes.", 512)

    assert gpt2.decode(encoded.ids) == (
        "System: You are a cook.\n\nUser: How long does rice take?\n\nAssistant: Twelve minutes.<|endoftext|>"
        "\n\nUser: And eggs?\n\nAssistant: Eight minutes.<|endoftext|>"
    )
    assert encoded.ids[: encoded.num_prompt_tokens] == encode_prompt(gpt2, CHAT, 512)
    assert gpt2.decode(encode_prompt(gpt2, CHAT, 512)).endswith("User: And eggs?\n\nAssistant:")


def test_the_plain_template_begins_as_the_tokenizer_does(gpt2, llama_folder):
    assert not chat_template(gpt2).startswith("{{ bos_token }}")
    bert = AutoTokenizer.from_pretrained(llama_folder, cls_token="<|begin|>", sep_token="<|end|>", eos_token=None)
    bert.chat_template = None
    bert.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|begin|> $0 <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)]
    )

    encoded = encode(bert, PROMPT, "Twelve.", 512)

    assert bert.decode(encoded.ids) == "<|begin|>User: How long does rice take?\n\nAssistant: Twelve.<|end|>"


@pytest.mark.parametrize("which", ["llama", "gpt2"])
def test_text_that_spells_a_special_token_stays_text(which, request):
    tokenizer = request.getfixturevalue(which)
    special = " ".join(tokenizer.all_special_tokens)
    hostile = [{"role": "user", "content": f"Hi{special} there"}]

    encoded = encode(tokenizer, hostile, f"{special}Good{special}", 512)

    clean = encode(tokenizer, [{"role": "user", "content": "Hi there"}], "Good", 512)
    is_special = set(tokenizer.all_special_ids)
    assert [token for token in encoded.ids if token in is_special] == [
        token for token in clean.ids if token in is_special
    ]
    assert special in tokenizer.decode(encoded.ids)
    assert [token for token in encode_prompt(tokenizer, hostile, 512) if token in is_special] == [
        token for token in encode_prompt(tokenizer, PROMPT, 512) if token in is_special
    ]


def test_a_response_is_closed_once(llama_folder):
    llama = AutoTokenizer.from_pretrained(llama_folder)
    template = llama.chat_template

    llama.chat_template = template.replace("+ eos_token", "")  # closes no turn
    assert llama.decode(encode(llama, PROMPT, "Twelve.", 512).ids).endswith("Twelve.<|end|>")
    llama.chat_template = template + "{{ '\\n' }}"  # goes on after the close
    assert llama.decode(encode(llama, PROMPT, "Twelve.", 512).ids).endswith("Twelve.<|end|>\n")


def test_a_token_across_the_border_is_the_responses(llama_folder):
    llama = AutoTokenizer.from_pretrained(llama_folder)
    llama.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{{ ' bo' if message['role'] == 'user' }}{% endfor %}"
    )

    encoded = encode(llama, [{"role": "user", "content": "I"}], "il eggs", 512)

    assert llama.decode(encoded.ids) == "I boil eggs<|end|>"
    assert llama.decode(encoded.ids[: encoded.num_prompt_tokens]) == "I"


@pytest.mark.parametrize("max_length", [16, 20, 30])
def test_a_long_prompt_loses_its_beginning_and_never_the_end_of_the_response(llama, max_length):
    prompt = [{"role": "user", "content": "How long? " * 50}]
    whole = encode(llama, prompt, "Twelve.", 10_000)

    encoded = encode(llama, prompt, "Twelve.", max_length)

    assert encoded.ids == [whole.ids[0], *whole.ids[-(max_length - 1) :]]  # what begins a text stays
    assert llama.decode(encoded.ids).endswith("<|assistant|>Twelve.<|end|>")
    assert encoded.num_dropped == len(whole.ids) - max_length
    assert encoded.ids[encoded.num_prompt_tokens :] == whole.ids[whole.num_prompt_tokens :]


def test_a_response_longer_than_the_limit_keeps_its_end(llama, gpt2):
    for tokenizer, num_begin in ((llama, 1), (gpt2, 0)):
        whole = encode(tokenizer, PROMPT, "Twelve minutes. " * 50, 10_000)

        encoded = encode(tokenizer, PROMPT, "Twelve minutes. " * 50, 20)

        assert encoded.ids == whole.ids[:num_begin] + whole.ids[len(whole.ids) - 20 + num_begin :]
        assert encoded.num_prompt_tokens == num_begin


def test_a_long_prompt_alone_keeps_the_opening_of_the_response(llama):
    ids = encode_prompt(llama, [{"role": "user", "content": "How long? " * 50}], 20)

    assert len(ids) == 20
    assert llama.decode(ids).startswith("<|begin|>")
    assert llama.decode(ids).endswith("How long? <|end|><|assistant|>")


def test_any_text_can_be_encoded(llama, gpt2):
    odd = (
        "\x00 \ud800 \ufdd0 \U0010ffff é 你好 🍳"  # a lone surrogate, which UTF-8 cannot carry, becomes a question mark
    )

    for tokenizer in (llama, gpt2):
        assert odd.replace("\ud800", "?") in tokenizer.decode(encode(tokenizer, PROMPT, odd, 512).ids)


def test_a_conversation_that_the_template_refuses_is_told_in_words(llama_folder):
    llama = AutoTokenizer.from_pretrained(llama_folder)
    llama.chat_template = "{{ raise_exception('no system, please') }}"

    with pytest.raises(ConfigError) as refused:
        encode(llama, CHAT, "Eight.", 512)

    assert str(refused.value) == (
        "the tokenizer's chat template refuses a conversation of system, user, assistant, user, assistant: "
        "no system, please"
    )


def test_prompts_are_the_same_whose_roles_and_texts_are():
    one = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    others = [one[:1], one[::-1], [{"role": "user", "content": 'a"}'}], [{**one[0], "role": "system"}, one[1]]]

    assert prompt_key([dict(reversed(message.items())) for message in one]) == prompt_key(one)
    assert len({prompt_key(prompt) for prompt in (one, *others)}) == 5
