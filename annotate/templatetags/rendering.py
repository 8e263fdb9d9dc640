"""Template filters over annotate.rendering."""

from django import template
from django.utils.safestring import SafeString

from annotate.rendering import has_invisible_characters, render_markdown

register = template.Library()


@register.filter
def markdown(text: str) -> SafeString:
    return render_markdown(text)


@register.filter
def holds_invisible(text: str) -> bool:
    return has_invisible_characters(text)
