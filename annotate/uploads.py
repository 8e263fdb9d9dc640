"""Files on their way in: to disk under PLUMBLINE_HOME as they arrive, and no further than IMPORT_MAX_MB allows."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from django import forms
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from annotate import services
from annotate.bulk import ImportReport
from annotate.errors import AnnotateError, BadFile
from annotate.models import Project

BYTES_AT_ONCE = 1024 * 1024


class UploadHandler(TemporaryFileUploadHandler):
    """Refuses a request that is too long before any of it is kept; Django's own limit leaves files out."""

    def handle_raw_input(self, input_data: Any, META: Any, content_length: int, *args: Any, **kwargs: Any) -> None:
        if content_length > settings.IMPORT_MAX_BYTES:
            raise RequestDataTooBig(f"More than {settings.IMPORT_MAX_BYTES} bytes.")


class ImportForm(forms.Form):
    file = forms.FileField(
        label=gettext_lazy("File"),
        help_text=gettext_lazy("Lines of JSON, plain or gzipped: rankings, or TRL rows of chosen and rejected."),
    )

    def store(self, project: Project) -> ImportReport | None:
        """Import the file; where it is refused, the form says why and nothing is stored."""
        file = self.cleaned_data["file"]
        path = Path(file.temporary_file_path())
        try:
            with called(path, file.name):
                return services.import_file(project=project, path=path)
        except AnnotateError as error:
            self.add_error("file", str(error))
            return None


@contextmanager
def received(read: Callable[[int], bytes]) -> Iterator[Path]:
    """A request's body, which `read` gives piece by piece, as a file.

    Raises:
        RequestDataTooBig: it is longer than IMPORT_MAX_MB.
        BadFile: the file cannot be read; where it lies is left out.
    """
    with tempfile.NamedTemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR, suffix=".upload") as file:
        _copy(read, file)
        file.flush()
        with called(Path(file.name), _("the body")):
            yield Path(file.name)


@contextmanager
def called(path: Path, name: str) -> Iterator[None]:
    """The file's own name in what is said of it: where it lies is nobody's business."""
    try:
        yield
    except BadFile as error:
        raise BadFile(str(error).replace(str(path), name)) from error


def _copy(read: Callable[[int], bytes], file: IO[bytes]) -> None:
    num_bytes = 0
    while chunk := read(BYTES_AT_ONCE):
        num_bytes += len(chunk)
        if num_bytes > settings.IMPORT_MAX_BYTES:
            raise RequestDataTooBig(f"More than {settings.IMPORT_MAX_BYTES} bytes.")
        file.write(chunk)
