import math
import tracemalloc

import pytest

from sdjax.checkpoints.plain_yaml import MOST_BYTES, PlainYamlError, parse_plain_yaml, read_plain_yaml


@pytest.mark.parametrize(
    "written, value",
    [
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-4", 0.0001),
        ("1.", 1.0),
        ("1.e-6", 1e-6),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("18446744073709551615", 2**64 - 1),
        ("a b", "a b"),
        ("'010'", "010"),
        ('"1"', "1"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("[1, [], {b: c}]", [1, [], {"b": "c"}]),
        ("&name 1", 1),
    ],
)
def test_plain_values_are_read(written, value):
    assert parse_plain_yaml(f"a: {written}") == {"a": value}


@pytest.mark.parametrize("written", ["no", "yes", "on", "off", "Y", "1:30:00", "2024-01-01", "1:30.5", ".", "0o8", "="])
def test_what_only_old_yaml_takes_for_something_else_is_text(written):
    assert parse_plain_yaml(f"a: {written}\n{written}: b") == {"a": written, written: "b"}


def test_a_mark_of_utf_8_is_no_part_of_the_text():
    assert parse_plain_yaml(b"\xef\xbb\xbfa: \xc3\xa9") == {"a": "\xe9"}


def nested(opening: str, closing: str = "") -> str:
    return f"a: {opening * 2000}{closing * 2000}"


# A list of two, of which there are two, and so on.
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param(ALIASES, r"line 2: an alias, \*'a0'; write out", id="aliases within aliases"),
        ("a: *a", "line 1: an alias"),
        ("a: 1\n<<: {b: 2}", "line 2: a merge key"),
        pytest.param(nested("["), "line 1: nested more than 32 deep", id="brackets"),
        pytest.param(nested("[", "]"), "line 1: nested more than 32 deep", id="closed brackets"),
        pytest.param(nested("{b: ", "}"), "line 1: nested more than 32 deep", id="mappings"),
        pytest.param("- " * 2000, "line 1: nested more than 32 deep", id="lists"),
        pytest.param("? " * 2000, "line 1: nested more than 32 deep", id="keys"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", "line 1: the key 'b' is there twice"),
        ("1: a", "line 1: the key 1; expected a text"),
        ("[a]: b", r"line 1: the key \['a'\]; expected a text"),
        ("a: 010", "line 1: '010' is one number or another"),
        ("a: 1_000", "line 1: '1_000' is one number or another"),
        ("a: 0b11", "line 1: '0b11' is one number or another"),
        pytest.param("a: " + "9" * 5000, r"line 1: a number of 5000 letters, '9+\.\.\.;", id="digits"),
        pytest.param("a: 0x" + "f" * 5000, "line 1: a number of 5002 letters", id="hexadecimal digits"),
        ("a: 1e999", "line 1: '1e999' is beyond any number"),
        ("a: !!python/object/apply:os.system [b]", r"line 1: a tag, 'tag:yaml\.org,2002:python"),
        ("a: !!int '1'", "line 1: a tag"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: [", "line 1: not valid YAML: "),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1", "line 2: not valid YAML"),
        ("a: 1\nb: \0", r"line 2: the character U\+0000"),
        ('a: "\\0"', r"line 1: the character U\+0000"),
        ('a: "\\e[31m"', r"line 1: the character U\+001B"),
        ('a: "\\ud800"', r"line 1: the character U\+D800"),
        ("a: \ud800", r"line 1: the character U\+D800"),
        ('a: "\\UFFFFFFFF"', "an escape that stands for no character"),
        (b"a: 1\nb: \xff", "line 2: byte 0xff is not UTF-8"),
        ("a: b".encode("utf-16"), "the text is UTF-16; save it as UTF-8"),
        pytest.param("#" * (MOST_BYTES + 1), f"more than {MOST_BYTES} bytes", id="size"),
    ],
)
def test_what_is_no_plain_value_is_an_error_that_says_where(text, message):
    with pytest.raises(PlainYamlError, match=f"^{message}") as caught:
        parse_plain_yaml(text)
    assert len(str(caught.value)) < 400


def test_a_huge_file_is_not_read_to_its_end(tmp_path):
    file = tmp_path / "run.yaml"
    with file.open("wb") as opened:
        opened.truncate(1 << 33)
    tracemalloc.start()
    try:
        with pytest.raises(PlainYamlError, match="more than"):
            read_plain_yaml(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
