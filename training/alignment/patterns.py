"""Regular expressions that somebody typed into a form: searched in time that is linear in the text, whatever they are.

Python's own engine tries one way after another, and `(a+)+$` on forty letters keeps it busy for hours. RE2 follows all
ways at once. It takes no look-around and no back-references, which cannot be followed so, and refuses what would grow
too large.

Source: R. Cox, "Regular expression matching can be simple and fast", 2007.
"""

import re2

from training.alignment.config import ConfigError

MAX_MEMORY = 2**20  # bytes; bounds the expression's size, and so the time that a character takes


class Pattern:
    """A regular expression in RE2's syntax.

    Raises:
        ConfigError: RE2 does not take it.
    """

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MAX_MEMORY
        try:
            self._compiled = re2.compile(pattern, options)
        except UnicodeEncodeError as error:
            raise ConfigError("pattern: holds half a character") from error
        except re2.error as error:
            reason = error.args[0].decode("utf-8", "replace")
            raise ConfigError(
                f"pattern: {reason}; RE2's syntax has no look-around and no back-references, and repeats a thing a "
                "thousand times at the most"
            ) from error

    def is_in(self, text: str) -> bool:
        """Whether it is found anywhere in the text."""
        whole = text.encode("utf-8", "replace").decode("utf-8")  # half characters become question marks
        return self._compiled.search(whole) is not None
