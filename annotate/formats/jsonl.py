"""Lines of JSON, plain or gzipped: read strictly, written whole.

Strict means: UTF-8, standard JSON, no key twice in an object, and no character that a database cannot keep. What
a lenient reader would take for granted here comes back later as a row that differs from its file.
"""

import gzip
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from annotate.errors import BadFile, BadRow

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 50
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_OTHER_LINE_ENDS = "\x85\u2028\u2029"
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # an escaped NUL or surrogate; paired surrogates are fine


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1, and the object in it; blank lines are passed over.

    Raises:
        BadRow: a line is no strict JSON object.
        BadFile: the file cannot be read to its end.
    """
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(_BOM)
                if line.strip():
                    yield number, _object(number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadFile(f"{path}: is damaged after line {number}: {error}") from error
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error


def write_whole(path: Path, lines: Iterable[str]) -> int:
    """Write lines beside `path` and rename them into place; `.gz` compresses. Returns the number of lines."""
    if path.exists() and not path.is_file():
        raise BadFile(f"{path}: is there already and no file")  # a device must not be replaced
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with scratch.open("xb") as raw:
            with _compressed(raw) if path.suffix == ".gz" else _left_open(raw) as file:
                num_lines = write_lines(file, lines)
            raw.flush()
            os.fsync(raw.fileno())
        scratch.replace(path)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            scratch.unlink()
    return num_lines


def write_lines(file: IO[bytes], lines: Iterable[str]) -> int:
    num_lines = 0
    for line in lines:
        file.write(line.encode())
        num_lines += 1
    return num_lines


def to_line(record: dict[str, Any]) -> str:
    """One line of JSON, whatever the reader takes for the end of a line."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    for character in _OTHER_LINE_ENDS:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP
    return gzip.open(path) if is_gzip else path.open("rb")  # type: ignore[return-value]


def _compressed(raw: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)  # type: ignore[return-value] # same rows, same bytes


@contextmanager
def _left_open(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    yield raw


def parse(number: int, field: str, text: str) -> Any:
    """The JSON value in `text`, which stands in line `number`, in `field` if not alone.

    Raises:
        BadRow: it is not strict JSON.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRow(number, field, f"is not JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadRow(number, field, f"is nested deeper than {MAX_DEPTH} levels") from error
    except _Refused as error:
        raise BadRow(number, error.field or field, error.message) from error
    except ValueError as error:  # Python reads no integers of more than 4,300 digits
        raise BadRow(number, field, "holds a number with too many digits") from error
    if _SUSPECT.search(text):
        _check_characters(number, field, value)
    return value


def _object(number: int, line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise BadRow(number, "", f"is longer than {MAX_LINE_BYTES // 2**20} MiB")
    try:
        value = parse(number, "", line.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        raise BadRow(number, "", f"is not UTF-8 at byte {error.start + 1}") from error
    if not isinstance(value, dict):
        raise BadRow(number, "", "must be a JSON object")
    return value


class _Refused(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(twice, "stands twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _Refused("", f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused("", f"{digits} is too large a number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _check_characters(number: int, field: str, value: Any) -> None:
    """Refuse what PostgreSQL or UTF-8 cannot hold: NUL characters and lone surrogates."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_characters(number, field, key)
            _check_characters(number, f"{field}.{key}" if field else key, item)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_characters(number, f"{field}[{place}]", item)
    elif isinstance(value, str):
        if "\x00" in value:
            raise BadRow(number, field, "holds a NUL character, which no database keeps")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRow(number, field, "holds half a character (a lone surrogate)")
