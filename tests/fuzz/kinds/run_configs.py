"""Configs of a run as YAML, and `--set` values: bombs, what versions of YAML differ on, wrong types, damaged text."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config import RunConfigError
from pipelines.config.sections import KEYS, SECTIONS, value_of
from pipelines.config.settings import FORMER, make, read_file, read_settings
from sdjax.jobs.job import FIELDS

_STRANGE = ("stesp", "cfg_scale", "clip skip", "<<", "1", "[a]", "? a", "no", "")
_SETTINGS = (*KEYS, *FORMER, *FIELDS, *(f"job.{name}" for name in FIELDS), *SECTIONS, "job", "job.", ".", *_STRANGE)
_NAMES: dict[str, tuple[str, ...]] = {
    **{section: (*of.keys(), *FIELDS, *_STRANGE) for section, of in SECTIONS.items()},
    "job": (*FIELDS, "model.dtype", *_STRANGE),
}
_VALUES = (
    "1",
    "0",
    "-1",
    "7.5",
    "1e-4",
    "1e999",
    ".inf",
    ".nan",
    "010",
    "1_000",
    "0x1F",
    "0b1",
    "1:30:00",
    "2024-01-01",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "null",
    "~",
    "",
    "a",
    "euler",
    "fp16",
    "'a",
    '"a"',
    '"\\ud800"',
    '"\\0"',
    '"\\UFFFFFFFF"',
    '"\\e[31m"',
    "*a",
    "&a 1",
    "!!int 1",
    "!!python/name:os.system",
    "!x y",
    "[1, 2]",
    "{a: 1}",
    "{<<: {a: 1}}",
    "[[[]]]",
    "|\n  a\n  b",
    ">\n  a",
    "a: b",
    "# c",
    "a #c",
    "@a",
    "`a",
    "%a",
    "- a",
    "--- a",
    "\ufeff",
    "\x85",
    "\u2028",
    "\u202e",
    "\U0001f600",
    "9" * 19,
    "9" * 30,
    "9" * 5000,
    "0x" + "f" * 5000,
    "a" * 100_000,
)
_GOOD = (
    "job: {steps: 5}\n",
    "model: 'a b'\n",
    "model: {ema: yes, vae: no}\n",
    "engine: {batch_size: &a 3}\n",
    "job:\n  guidance_scale: 1e1\n",
    "run:\n",
    "\n",
    "# x\n",
)
_MOST_LETTERS = 4000


def warm(folder: Path) -> None:
    """Reads a good file."""
    file = folder / "run.yaml"
    file.write_text("model: emoji\njob:\n  steps: 5\n")
    assert make(read_file(file)).model.name == "emoji"


def case(rng: random.Random, folder: Path) -> bool:
    """Reads a file or settings; gives whether they were refused."""
    if rng.random() < 0.3:
        setting = f"{rng.choice(_SETTINGS)}{rng.choice(('=', '=', '=', '', '=='))}{_value(rng)}"
        return _refused(lambda: read_settings([setting]), "--set")
    file = folder / "run.yaml"
    text = "".join(_line(rng) for _ in range(rng.choice((1, 1, 2, 5, 1000))))
    if rng.random() < 0.05:
        text = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    data = text.encode(rng.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig")), "surrogatepass")
    if rng.random() < 0.15:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.choice((b"", b"\xff", b"\0", b"\t", b"[", b"\n---\n", b"\xef\xbb\xbf")) + data[place:]
    file.write_bytes(data)
    return _refused(lambda: read_file(file), str(file))


def _refused(read: Callable[[], dict[str, Any]], name: str) -> bool:
    try:
        keys = read()
    except RunConfigError as error:
        assert str(error).startswith(name), error
        _check_message(str(error))
        return True
    try:
        made = make(keys)
    except RunConfigError as error:
        _check_message(str(error))
        return True
    for key, value in keys.items():
        if key in KEYS and isinstance(value, str) and KEYS[key].kind.is_text:
            assert value_of(made, key) == value, "a text stays as it was"
    return False


def _check_message(message: str) -> None:
    assert message.strip() and len(message) < _MOST_LETTERS, message[:200]
    assert all(letter.isprintable() for letter in message), repr(message[:500])


def _line(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(_GOOD)
    if rng.random() < 0.3:
        return f"{rng.choice(_SETTINGS)}:{_space(rng)}{_value(rng)}\n"
    section = rng.choice(tuple(_NAMES))
    lines = (f"  {rng.choice(_NAMES[section])}:{_space(rng)}{_value(rng)}\n" for _ in range(rng.choice((1, 1, 3))))
    return f"{section}:\n{''.join(lines)}"


def _space(rng: random.Random) -> str:
    return rng.choice((" ", " ", " ", "", chr(9)))


def _value(rng: random.Random) -> str:
    kind = rng.randrange(10)
    if kind == 0:
        depth = rng.choice((2, 30, 33, 500, 2000, 30_000))
        opening, closing = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("&a ", ""), ("[1, ", "]")))
        return opening * depth + rng.choice(("1", "")) + closing * rng.choice((depth, 0))
    if kind == 1:
        return "[" + ", ".join([rng.choice(_VALUES[:10])] * rng.choice((10, 10_000))) + "]"
    return rng.choice(_VALUES)
