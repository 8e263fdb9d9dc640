"""Template filters and tags over annotate.rendering and annotate.diff."""

from typing import Any

from django import template
from django.utils.safestring import SafeString

from annotate.diff import difference
from annotate.rendering import has_invisible_characters, render_markdown

register = template.Library()


@register.filter
def markdown(text: str) -> SafeString:
    return render_markdown(text)


@register.filter
def holds_invisible(text: str) -> bool:
    return has_invisible_characters(text)


@register.inclusion_tag("annotate/_diff.html")
def diff(left: str, right: str, left_name: str, right_name: str) -> dict[str, Any]:
    """Two texts side by side under their names, what differs marked; needs text.css."""
    found = difference(left, right)
    sides = [
        {"name": left_name, "segments": found.left, "is_left": True},
        {"name": right_name, "segments": found.right, "is_left": False},
    ]
    return {"sides": sides, "unit": found.unit, "percent": int(found.common * 100)}
