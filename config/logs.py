"""What a log line leaves out."""

import logging
import re

_INVITATION = re.compile(r"(?<=/join/)[\w-]+")


class LineFormatter(logging.Formatter):
    """Django logs the address of a request that went wrong, and the address of an invitation is its secret."""

    def format(self, record: logging.LogRecord) -> str:
        return _INVITATION.sub("…", super().format(record))
