"""JSON lines: what is written comes back, is readable, and does nothing to a terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import terminal
from sdjax.storage import StorageError, read_jsonl, read_whole, write_jsonl
from sdjax.storage.jsonl import MAX_LINE_BYTES, TERMINAL_CONTROLS
from tests.storage.folders import files_below

VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters())
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5))
@settings(deadline=None)
def test_rows_come_back_as_they_were(tmp_path_factory, rows):
    path = str(tmp_path_factory.mktemp("rows") / "x.jsonl")
    write_jsonl(path, iter(rows))
    assert list(read_jsonl(path)) == rows
    assert read_whole(path).count(b"\n") == len(rows)


def test_rows_are_readable_text_in_any_script(tmp_path):
    path = str(tmp_path / "x.jsonl")
    write_jsonl(path, [{"prompt": "漢字\u2028 \ud83d"}])
    assert read_whole(path) == '{"prompt": "漢字\u2028 \\ud83d"}\n'.encode()


def test_what_a_terminal_would_obey_is_an_escape_in_the_file_and_the_same_when_read(tmp_path):
    path = str(tmp_path / "x.jsonl")
    row = {"text": "a\x1b[31m\x9b31m\x7f\u202eb", "\u2066": "\\u202e"}
    write_jsonl(path, [row])
    assert not set("\x1b\x9b\x7f\u202e\u2066") & set(read_whole(path).decode())
    assert list(read_jsonl(path)) == [row]


def test_nan_is_no_json_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(str(tmp_path / "x.jsonl"), [{"a": float("nan")}])
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("line", ['{"a": ', "[1]", "\ufffe", "", "[" * 100_000])
def test_a_line_that_is_no_object_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n", "utf-8")
    with pytest.raises(StorageError, match=rf"^{path}, line 2: "):
        list(read_jsonl(str(path)))


def test_a_line_longer_than_any_that_a_run_writes_is_not_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "' + b"a" * MAX_LINE_BYTES + b'"}')
    with pytest.raises(StorageError, match="line 1: longer than"):
        list(read_jsonl(str(path)))


def test_what_is_escaped_in_files_is_what_is_escaped_in_the_terminal():
    assert TERMINAL_CONTROLS == terminal.TERMINAL_CONTROLS
