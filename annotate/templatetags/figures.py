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
def percent_interval(found: dict[str, Any] | None) -> str:
    """A share with its interval; a dash where there is none."""
    if not found:
        return lead_words.DASH
    low, high = lead_words.percent(found["low"]), lead_words.percent(found["high"])
    return f"{lead_words.percent(found['value'])} ({low} {lead_words.DASH} {high})"
