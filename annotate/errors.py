"""What this app refuses, in words for whoever asked. Pure, so that the file formats may raise it too."""


class AnnotateError(Exception):
    """Base of all errors of this app; the message may be shown."""


class BadRow(AnnotateError):
    """A line of a file that cannot be imported."""

    def __init__(self, line: int, field: str, message: str) -> None:
        super().__init__(f"line {line}, {field}: {message}" if field else f"line {line}: {message}")
        self.line = line
        self.field = field
        self.message = message


class BadFile(AnnotateError):
    """A file that cannot be read or written at all."""


class BadProject(AnnotateError):
    """A project that cannot be made as asked."""


class BadRanking(AnnotateError):
    """A ranking that does not name each response of the comparison once, or a strength that does not fit it."""


class NotLeased(AnnotateError):
    """A judgment by somebody to whom the comparison was never shown."""


class NotRevisable(AnnotateError):
    """A judgment that its annotator cannot change any more."""


class NoBattle(AnnotateError):
    """A prompt that no models can answer now."""


class UnknownQuality(AnnotateError):
    """A comparison that simulated annotators cannot judge."""


class InvitationOver(AnnotateError):
    """An invitation that has expired, was used up or was revoked."""


class LastManager(AnnotateError):
    """A project's only manager, who would leave it with none."""


class NotEnoughGold(AnnotateError):
    """Fewer comparisons with a known answer than a qualification asks for."""


class NotGold(AnnotateError):
    """A comparison that cannot have that known answer, or cannot lose the one that it has."""
