"""Figures as text."""

from typing import Any

from django import template

from annotate import lead_words

register = template.Library()


@register.filter
def percent(share: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return lead_words.percent(share)


@register.filter
def percent_range(found: dict[str, Any]) -> str:
    """The interval of a share."""
    return f"{lead_words.percent(found['low'])} {lead_words.DASH} {lead_words.percent(found['high'])}"
