"""Rewards by rule: length, repetition and form, declared in a form and computed without a model.

    length      -weight * min(1, excess / target), where the excess is what the length differs by from the target,
                beyond the tolerance: DAPO's soft overlong punishment, falling over a stretch of one target
    repetition  -weight * (1 - distinct / all) sequences of `size` words; 0 for a text of fewer words
    format      weight where the form is kept, else 0

They know the response only, never its prompt. A text takes time in proportion to its length, whoever wrote it: a
policy that is trained by a rule looks for its gaps.

Sources: Q. Yu et al., "DAPO: an open-source LLM reinforcement learning system at scale", 2025, equation 13;
S. Welleck et al., "Neural text generation with unlikelihood training", 2019 (seq-rep-n).
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.alignment.config import ConfigError
from training.alignment.member_config import FormatRule, LengthRule, MemberConfig, RepetitionRule, member_to_dict
from training.alignment.patterns import Pattern
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored

VERSION = 1  # of the formulas: scores of another version are other scores
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
ENDS = frozenset(".!?…。．！？｡؟۔।॥։།።")  # noqa: RUF001 -- full stops and the like of many scripts
CLOSING = frozenset({"Pe", "Pf", "Pi", "So", "Sk", "Mn"})  # brackets, quotation marks, emoji and what belongs to them
MARKS = frozenset("\"'*_`~\u200d")

Rule = Callable[[str], float]


@dataclass(frozen=True)
class RuleReward:
    """A rule as a reward like any other."""

    config: MemberConfig
    rule: Rule

    is_listwise = False

    @property
    def digest(self) -> str:
        told = json.dumps([VERSION, member_to_dict(self.config)], sort_keys=True)
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.config.aspect,)

    def log_odds(self, aspect: str | None = None) -> float:
        """Nothing is known of how people take it."""
        return 1.0

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses; none is ever missing or truncated."""
        return [Scored([self.rule(text) for text in one.responses]) for one in prompts]


def load(config: MemberConfig, folder: Path | None = None, device: Any = None, cache: Any = None) -> RuleReward:
    """The rule that a member describes.

    Raises:
        ConfigError: it describes no rule, or a regular expression that RE2 does not take.
    """
    return RuleReward(config, _rule(config))


def _rule(config: MemberConfig) -> Rule:
    match config:
        case LengthRule():
            return lambda text: -config.weight * _excess(config, text) + 0.0  # 0.0, and not -0.0
        case RepetitionRule():
            return lambda text: -config.weight * repeated_share(words(text.lower()), config.size) + 0.0
        case FormatRule():
            keeps_form = _form(config)
            return lambda text: config.weight if keeps_form(text) else 0.0
    raise ConfigError(f"kind: {config.kind} is no rule")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores; each character where words are written without spaces.

    The latter are Chinese and Japanese characters.
    """
    return WORD.findall(text)


def repeated_share(words: Sequence[str], size: int) -> float:
    """The share of sequences of `size` words that have come before, from 0 up to, but without, 1.

    0 where there are fewer words than `size`.
    """
    num_all = len(words) - size + 1
    if num_all < 1:
        return 0.0
    return 1 - len(set(zip(*(words[start:] for start in range(size)), strict=False))) / num_all


def is_json(text: str) -> bool:
    """It is one JSON value, as RFC 8259 has it, with nothing but white space around it.

    What is nested deeper than Python's parser goes, about a thousand levels, is taken for none.
    """
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)  # the numbers themselves do not matter
    except (ValueError, RecursionError):
        return False
    return True


def ends_in_sentence(text: str) -> bool:
    """The last character that is no space, quotation mark, bracket, emphasis or emoji is a sentence's end."""
    for character in reversed(text):
        if character in ENDS:
            return True
        if not (character.isspace() or character in MARKS or unicodedata.category(character) in CLOSING):
            return False
    return False


def _excess(config: LengthRule, text: str) -> float:
    """How far the length is from what costs nothing, in targets, 1 at the most."""
    length = len(text) if config.unit == "characters" else len(words(text))
    over = length - config.target - config.tolerance
    under = 0 if config.is_one_sided else config.target - config.tolerance - length
    return min(1.0, max(over, under, 0) / max(config.target, 1))


def _form(config: FormatRule) -> Callable[[str], bool]:
    if config.rule == "pattern":
        return Pattern(config.pattern).is_in
    return {"json": is_json, "ends_in_sentence": ends_in_sentence}[config.rule]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
