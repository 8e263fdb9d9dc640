"""What a member is: one frozen dataclass per kind of reward that is no trained model by itself.

Standard library only, and RE2 where there is an expression to check, so that the web process can show and check one
without loading torch. A member is a folder with `member.json` in it: {"kind": "judge", …the fields}. Paths in it are
absolute or relative to that folder. Wherever a reward model is asked for, such a folder will do: see
`training.alignment.reward`.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from training.alignment.config import ConfigError, check_field, option, read_fields
from training.alignment.run_dir import write_json

MEMBER = "member.json"
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
LIKERT = (1, 10)


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """What every kind of member has."""

    kind: ClassVar[str]

    aspect: str = option("overall", "What it judges: overall, or an aspect of the project's.")

    def __post_init__(self) -> None:
        for item in fields(self):
            check_field(item, getattr(self, item.name))
        if not self.aspect.strip():
            raise ConfigError("aspect: name one")


@dataclass(frozen=True, kw_only=True)
class RewardModelMember(MemberConfig):
    """A sequence classifier with one output: trained here or off the shelf, with its own chat template."""

    kind: ClassVar[str] = "reward_model"

    model: str = option("", "A folder, a Hugging Face id, or the name of an earlier run.")
    max_length: int = option(0, "Tokens of prompt and response; 0 for as many as it was trained on.", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "model")


@dataclass(frozen=True, kw_only=True)
class _Judge(MemberConfig):
    """What a judge is asked, whoever answers."""

    model: str = option("", "The language model that judges.")
    mode: str = option(
        "pointwise",
        "pointwise: the expected rating of one response; pairwise: two responses at a time, in both orders, turned "
        "into scores by Bradley-Terry over the list. Pairwise scores tell responses of one prompt apart, no more.",
        choices=("pointwise", "pairwise"),
    )
    rubric: str = option(
        "How helpful, truthful and clear is the response?", "What the judge goes by, in words; one aspect at a time."
    )
    lowest: int = option(LIKERT[0], "The lowest rating.", minimum=0, maximum=99)
    highest: int = option(LIKERT[1], "The highest rating.", minimum=1, maximum=100)
    swap: str = option(
        "always",
        "Whether two responses are shown in both orders, which cancels a preference for a place. adaptive: only where "
        "one order leaves it open.",
        choices=("always", "adaptive", "never"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "model")
        _require(self, "rubric")
        if self.lowest >= self.highest:
            raise ConfigError("highest: is not above the lowest rating")


@dataclass(frozen=True, kw_only=True)
class JudgeMember(_Judge):
    """A language model as it is, from local weights, read from its probabilities and not by sampling."""

    kind: ClassVar[str] = "judge"

    max_length: int = option(4096, "Tokens of all that the judge reads; a longer conversation is cut.", minimum=64)
    batch_size: int = option(8, "Questions to the judge in one forward pass.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ServedJudgeMember(_Judge):
    """A language model behind an OpenAI-compatible server: vLLM, Ollama, transformers serve, or a commercial one."""

    kind: ClassVar[str] = "served_judge"

    base_url: str = option("", "Where it answers, as http://127.0.0.1:8000/v1.")
    key_variable: str = option(
        "OPENAI_API_KEY", "The environment variable that holds the key; the key itself is stored nowhere."
    )
    has_logprobs: bool = option(False, "The server tells probabilities of tokens: ratings are read from these.")
    concurrency: int = option(8, "Requests at a time.", minimum=1, maximum=256)
    requests_per_minute: int = option(0, "No more than so many; 0 for no limit.", minimum=0)
    price_in: float = option(0.0, "Price of a million tokens read.", minimum=0)
    price_out: float = option(0.0, "Price of a million tokens written.", minimum=0)
    max_cost: float = option(0.0, "Stop before a run costs more; 0 for no limit.", minimum=0)
    timeout: float = option(60.0, "Seconds to wait for one answer.", minimum=0.1)
    max_retries: int = option(5, "Tries again after a failure that may pass.", minimum=0, maximum=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        address = urlsplit(self.base_url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise ConfigError("base_url: is no address of a server, such as http://127.0.0.1:8000/v1")
        if address.username or address.password or address.query or address.fragment:
            raise ConfigError("base_url: holds more than an address; a key belongs into the environment variable")
        if not VARIABLE.fullmatch(self.key_variable):
            raise ConfigError(
                "key_variable: is the name of an environment variable, in capitals, digits and underscores; never a key"
            )
        if self.max_cost and not (self.price_in or self.price_out):
            raise ConfigError("max_cost: needs price_in and price_out")


@dataclass(frozen=True, kw_only=True)
class ImplicitRewardMember(MemberConfig):
    """What a policy trained on preferences came to prefer: beta times its log-probability ratio to the reference."""

    kind: ClassVar[str] = "implicit"

    policy: str = option("", "The trained policy: a folder, a Hugging Face id, or the name of an earlier run.")
    reference_policy: str = option("", "What it was trained from.")
    beta: float = option(0.1, "The KL weight that it was trained with.", minimum=0)
    max_length: int = option(1024, "Tokens of prompt and response; a longer prompt loses its beginning.", minimum=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "policy")
        _require(self, "reference_policy")


@dataclass(frozen=True, kw_only=True)
class LengthRule(MemberConfig):
    """Takes off for each unit of length beyond a tolerance around a target."""

    kind: ClassVar[str] = "length"

    unit: str = option("words", "What is counted.", choices=("words", "characters"))
    target: int = option(100, "The length that costs nothing.", minimum=0)
    tolerance: int = option(50, "Units more or fewer that cost nothing either.", minimum=0)
    weight: float = option(
        1.0, "Reward lost for being a whole target beyond that, and the most that is lost.", minimum=0
    )
    is_one_sided: bool = option(True, "Only what is too long loses.")


@dataclass(frozen=True, kw_only=True)
class RepetitionRule(MemberConfig):
    """Takes off for words that say the same again: the share of repeated sequences of so many words."""

    kind: ClassVar[str] = "repetition"

    size: int = option(3, "Words in a sequence.", minimum=1, maximum=20)
    weight: float = option(1.0, "Reward lost when all is repetition.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class FormatRule(MemberConfig):
    """Gives for a response that keeps a form."""

    kind: ClassVar[str] = "format"

    rule: str = option(
        "pattern",
        "pattern: a regular expression is found in it; json: it is JSON; ends_in_sentence: it ends where a sentence "
        "does.",
        choices=("pattern", "json", "ends_in_sentence"),
    )
    pattern: str = option("", "The regular expression, RE2's.")
    weight: float = option(1.0, "Reward for keeping it; below zero to take off.", minimum=-1000, maximum=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "pattern":
            from training.alignment.patterns import Pattern  # noqa: PLC0415 -- RE2, where there is an expression

            _require(self, "pattern")
            Pattern(self.pattern)


@dataclass(frozen=True, kw_only=True)
class WordsMember(MemberConfig):
    """Bradley-Terry on bags of words; its weights lie beside member.json."""

    kind: ClassVar[str] = "words"


MEMBER_CONFIGS: dict[str, type[MemberConfig]] = {
    config.kind: config
    for config in (
        RewardModelMember,
        JudgeMember,
        ServedJudgeMember,
        ImplicitRewardMember,
        LengthRule,
        RepetitionRule,
        FormatRule,
        WordsMember,
    )
}


def member_from_dict(values: dict[str, Any]) -> MemberConfig:
    """A member from {"kind": …, its fields}; text is read as the field's type, as from a form.

    Raises:
        ConfigError: no such kind or field, or a value that the field does not take.
    """
    kind = values.get("kind", "")
    if kind not in MEMBER_CONFIGS:
        raise ConfigError(f"kind: {kind!r} is not one of {', '.join(sorted(MEMBER_CONFIGS))}")
    return read_fields(MEMBER_CONFIGS[kind], kind, {name: value for name, value in values.items() if name != "kind"})


def member_to_dict(member: MemberConfig) -> dict[str, Any]:
    return {"kind": member.kind, **dataclasses.asdict(member)}


def is_member(folder: Path) -> bool:
    return (folder / MEMBER).is_file()


def read_member(folder: Path) -> MemberConfig:
    """The member in a folder.

    Raises:
        ConfigError: member.json holds none.
    """
    try:
        told = json.loads((folder / MEMBER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / MEMBER}: {error}") from error
    if not isinstance(told, dict):
        raise ConfigError(f"{folder / MEMBER}: is not an object")
    return member_from_dict(told)


def write_member(folder: Path, member: MemberConfig) -> Path:
    """Write member.json into the folder, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MEMBER, member_to_dict(member))
    return folder


def _require(member: MemberConfig, name: str) -> None:
    if not getattr(member, name).strip():
        raise ConfigError(f"{name}: is empty")
