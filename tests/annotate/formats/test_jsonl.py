import gzip

import pytest

from annotate.errors import BadFile, BadRow
from annotate.formats import jsonl


def read(path):
    return list(jsonl.read_objects(path))


def write(path, content):
    path.write_bytes(content)
    return path


def test_read_objects_numbers_lines_and_passes_over_blank_ones(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xc3\xa9"}')
    assert read(path) == [(1, {"a": 1}), (4, {"b": "é"})]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl", "a"])
def test_read_objects_knows_gzip_by_its_content(tmp_path, name):
    assert read(write(tmp_path / name, gzip.compress(b'{"a": 1}\n'))) == [(1, {"a": 1})]


def test_read_objects_reads_a_plain_file_that_is_called_gz(tmp_path):
    assert read(write(tmp_path / "a.gz", b'{"a": 1}\n')) == [(1, {"a": 1})]


def test_read_objects_accepts_paired_surrogates_and_escaped_escapes(tmp_path):
    path = write(tmp_path / "a", rb'{"a": "\ud83c\udf5d", "b": "\\u0000 \\ud800"}')
    assert read(path) == [(1, {"a": "🍝", "b": r"\u0000 \ud800"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "line 2: is not JSON at column 8: Expecting ',' delimiter"),
        (b"{'a': 1}", "line 2: is not JSON at column 2: Expecting property name enclosed in double quotes"),
        (b'{"a": 1} {"b": 2}', "line 2: is not JSON at column 10: Extra data"),
        (b'{"a": "\t"}', "line 2: is not JSON at column 8: Invalid control character at"),
        (b'{"a": "\x00"}', "line 2: is not JSON at column 8: Invalid control character at"),
        (b"[1]", "line 2: must be a JSON object"),
        (b'"a"', "line 2: must be a JSON object"),
        (b'{"a": "\xff"}', "line 2: is not UTF-8 at byte 8"),
        (b'{"a": NaN}', "line 2: NaN is not JSON"),
        (b'{"a": [-Infinity]}', "line 2: -Infinity is not JSON"),
        (b'{"a": 1e999}', "line 2: 1e999 is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 2: holds a number with too many digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "line 2, c: stands twice in one object"),
        (b'{"a": ' + b"[" * 100_000, "line 2: is nested deeper than 50 levels"),
        (
            rb'{"prompt": "\u0000"}',
            "line 2, prompt: holds a NUL character, which no database keeps",
        ),
        (
            rb'{"responses": [{"content": "ok"}, {"content": "\uD800 \ud83c\udf5d"}]}',
            "line 2, responses[1].content: holds half a character (a lone surrogate)",
        ),
        (rb'{"meta": {"a\u0000": 1}}', "line 2, meta: holds a NUL character, which no database keeps"),
    ],
)
def test_read_objects_refuses_what_is_no_strict_json(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(BadRow) as refused:
        read(path)
    assert str(refused.value) == message


def test_read_objects_refuses_a_line_without_reading_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1024 * 1024)
    path = write(tmp_path / "bomb.gz", gzip.compress(b'{"a": "' + b"x" * 3_000_000))
    with pytest.raises(BadRow, match="line 1: is longer than 1 MiB"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "is damaged after line"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-8] + b"\x00" * 8, "is damaged after line 1: CRC check failed"),
    ],
)
def test_read_objects_refuses_damaged_gzip(tmp_path, content, message):
    with pytest.raises(BadFile, match=message):
        read(write(tmp_path / "a.gz", content))


def test_read_objects_refuses_what_is_no_file(tmp_path):
    with pytest.raises(BadFile, match=r"missing\.jsonl: No such file or directory"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(BadFile, match="Is a directory"):
        read(tmp_path)


def test_to_line_keeps_every_character_on_one_line():
    line = jsonl.to_line({"a": "x\u2028y\x85z\n\r\U0001f35d"})
    assert line.splitlines() == ['{"a": "x\\u2028y\\u0085z\\n\\r🍝"}']


def test_write_whole_writes_compressed_or_plain_as_the_name_says(tmp_path):
    lines = ['{"a": 1}\n', '{"a": "é"}\n']
    plain, compressed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    assert jsonl.write_whole(plain, lines) == jsonl.write_whole(compressed, lines) == 2
    assert gzip.decompress(compressed.read_bytes()) == plain.read_bytes() == "".join(lines).encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.gz"]


def test_write_whole_leaves_the_old_file_where_it_fails(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def lines():
        yield "new\n"
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        jsonl.write_whole(path, lines())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.jsonl": "old"}


def test_write_whole_says_what_it_cannot_write(tmp_path):
    with pytest.raises(BadFile, match="No such file or directory"):
        jsonl.write_whole(tmp_path / "missing" / "a.jsonl", [])
    with pytest.raises(BadFile, match="is there already and no file"):
        jsonl.write_whole(tmp_path, [])
