import json
from dataclasses import fields

import pytest

from training.alignment.config import ConfigError
from training.alignment.member_config import (
    MEMBER_CONFIGS,
    FormatRule,
    ImplicitRewardMember,
    JudgeMember,
    LengthRule,
    RepetitionRule,
    RewardModelMember,
    ServedJudgeMember,
    WordsMember,
    member_from_dict,
    member_to_dict,
    read_member,
    write_member,
)

SERVED = {"kind": "served_judge", "model": "m", "base_url": "http://127.0.0.1:8000/v1"}
MEMBERS = [
    RewardModelMember(model="org/model"),
    JudgeMember(model="org/model", mode="pairwise", rubric="How kind is it?", aspect="kindness"),
    ServedJudgeMember(model="m", base_url="https://example.org/v1", price_in=1.0, price_out=2.0, max_cost=3.0),
    ImplicitRewardMember(policy="a", reference_policy="b"),
    LengthRule(target=80),
    RepetitionRule(),
    FormatRule(pattern="^Dear"),
    WordsMember(),
]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.kind)
def test_a_member_is_read_as_it_was_written(tmp_path, member):
    assert read_member(write_member(tmp_path / "member", member)) == member
    assert member_from_dict(json.loads(json.dumps(member_to_dict(member)))) == member


def test_all_kinds_are_known():
    assert [member.kind for member in MEMBERS] == list(MEMBER_CONFIGS)


@pytest.mark.parametrize("config", MEMBER_CONFIGS.values(), ids=list(MEMBER_CONFIGS))
def test_each_field_has_help_that_a_form_can_show(config):
    assert all(item.metadata["help"].endswith(".") for item in fields(config))


def test_text_from_a_form_is_read_as_the_fields_type():
    member = member_from_dict({**SERVED, "has_logprobs": "true", "timeout": "2.5", "max_retries": "0"})

    assert (member.has_logprobs, member.timeout, member.max_retries) == (True, 2.5, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "oracle"}, "kind: 'oracle' is not one of"),
        ({"kind": "length", "lenght": 3}, "lenght: length has no such field"),
        ({"kind": "length", "target": "many"}, "target: 'many' is not a whole number"),
        ({"kind": "length", "aspect": " "}, "aspect: name one"),
        ({"kind": "reward_model"}, "model: is empty"),
        ({"kind": "judge", "model": "m", "rubric": " "}, "rubric: is empty"),
        ({"kind": "judge", "model": "m", "lowest": 5, "highest": 5}, "highest: is not above the lowest rating"),
        ({"kind": "judge", "model": "m", "mode": "listwise"}, "mode: 'listwise' is not one of pointwise, pairwise"),
        ({**SERVED, "base_url": "file:///etc/passwd"}, "base_url: is no address of a server"),
        ({**SERVED, "base_url": "https://me:secret@example.org/v1"}, "base_url: holds more than an address"),
        ({**SERVED, "base_url": "https://example.org/v1?api_key=sk-1"}, "base_url: holds more than an address"),
        ({**SERVED, "key_variable": "sk-abcdef"}, "key_variable: is the name of an environment variable"),
        ({**SERVED, "max_cost": 1.0}, "max_cost: needs price_in and price_out"),
        ({"kind": "implicit", "policy": "a"}, "reference_policy: is empty"),
        ({"kind": "format"}, "pattern: is empty"),
    ],
)
def test_what_is_no_member_is_said_by_field(values, message):
    with pytest.raises(ConfigError) as caught:
        member_from_dict(values)
    assert str(caught.value).startswith(message)


def test_a_refusal_repeats_no_secret():
    with pytest.raises(ConfigError) as caught:
        member_from_dict({**SERVED, "key_variable": "sk-abcdef"})
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": 1}'])
def test_a_damaged_member_is_an_error(tmp_path, text):
    (tmp_path / "member.json").write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError):
        read_member(tmp_path)
