"""Rows with templates, sweeps and wildcards, as far as their jobs."""

import itertools
import os
import random
import re
from pathlib import Path
from typing import Any

from pipelines.config.sections import RunConfig, RunSection
from pipelines.sources.prompts import Reject, parse
from pipelines.sources.rows import MAX_LINE_BYTES, Row
from pipelines.sources.sweeps import SweepError, expand, size
from sdjax.jobs.job import JobError
from sdjax.jobs.text_values import with_fields_named
from sdjax.text.template_grammar import TemplateError, has_template, parse_template
from sdjax.text.templates import choose, combinations
from sdjax.text.wildcards import Wildcards, count
from tests.text.wildcard_folder import wildcards_in

# Signs of the notation and of those it is mixed with, and what users write between them.
SIGNS = (
    *r"{}|[]()$_\/*-~!@#%:;,.?'<> 12ab^", "$$", "__", "::", "{2$$", "{1-2$$", "{-$$", "${", "%{",
    "${a=", "\\__", "\\{",
    "\\::", "\n", "\r\n", "# x\n", " #", "0.5::", "3 ::", "0,5::", "-1::", "inf::", "1e9::", "{a|b}", "{2$$a|a|b}",
    "__fruit__", "__fr?it__", "__**__", "__sub/*__", "__*a*a*a*b__", "__a,b__", "__a(b)__", "__a[bc]__",
    r"__sub\deep__",
    "__link/fruit__", "__yaml__", "__round__", "__..__", "__fruit", "fruit__", "[a|b]", "[a::5]",
    "^__^", "a cat", "漢",
    "\u0301", "😀", "\x1b[31m", "\u202e", "\ud800", "\0", "\u00a0", "\u2028", "1" * 30, "9" * 5000,
)  # fmt: skip
VALUES = (
    "1..3", "1..1000000000", "3..1", "1..9..2", "1..2..0.5", "0.1..0.2", "1,2,3", "1,,2", "..", "1...3",
    "1..1..0", "-1",
    "euler, ddim",
    "a", "", "\uff11..\uff13", "1e3", "nan", "1" * 400, "1..1000000," * 100, [1, 2], [[1]], [], ["1..3", 5], [None],
    {"a": 1}, None, True, 1.5, 10**400, float("inf"), ["1..1000000"] * 50, "1," * 3000 + "1",
)  # fmt: skip
FIELDS = (
    "seed",
    "steps",
    "guidance_scale",
    "sampler",
    "width",
    "strength",
    "sweep",
    "combinations",
    "hires_scale",
    "x",
)
FILES = ("fruit", "sub/deep", "sub/a", "aaaa", "a,b", "ab", "ac", "a(b)", "yaml", "round")
# Of more images than these a few are made.
MANY_IMAGES = 300


def warm(folder: Path) -> None:
    """Reads a row."""
    case(random.Random(0), folder)


def case(rng: random.Random, folder: Path) -> bool:
    """A row and a folder of wildcards."""
    values: dict[str, Any] = {"prompt": text(rng)}
    if rng.random() < 0.3:
        values["negative_prompt"] = text(rng)
    for name in rng.sample(FIELDS, rng.choice([0, 0, 0, 1, 2, 6])):
        values[name] = rng.choice(rng.choice([VALUES, ["1..3", [1, 2], "7"]]))
    mode = rng.choice(["random", "all", "all", "none"])
    wildcards = wildcards_of(rng, folder)
    if not (few := images(values, wildcards)):
        return few is None
    row = Row("rows.jsonl", 7, values, "as it stands", None)
    config = RunConfig(run=RunSection(combinations=mode, repeat=rng.choice([1, 2])))
    found = parse(row, config, "run", wildcards)
    assert parse(row, config, "run", wildcards) == found
    if isinstance(found, Reject):
        check_message(found.reason)
        return True
    for asked in found:
        if mode != "none" and "\\" not in f"{values}":
            assert not re.search(r"__fruit__|__sub/deep__|\{a\|b\}", asked.job.prompt), asked.job.prompt[:200]
    return False


def images(values: dict[str, Any], wildcards: Wildcards) -> bool | None:
    """Whether a row has few images; of one with many some are looked at, and of one that is refused it is None."""
    try:
        given = with_fields_named({name: value for name, value in values.items() if value not in (None, "")})
        rows = size(given, {})
        total = rows
        list(itertools.islice(expand(given, {}), 3))
        for name in ("prompt", "negative_prompt"):
            said = given.get(name)
            if isinstance(said, str) and has_template(said):
                template = parse_template(said)
                total *= count(template, wildcards)
                one = choose(template, wildcards, 5, name)
                some = list(itertools.islice(combinations(template, wildcards), 20))
                assert total > 20 * rows or one in some
    except (TemplateError, SweepError, JobError) as error:
        check_message(str(error)[:500])
        return None
    except (ValueError, OverflowError, TypeError):  # of Python about numbers, which `parse` says in its own words
        return True
    return total <= MANY_IMAGES


def check_message(message: str) -> None:
    """It says something, is short, and does nothing to a terminal."""
    assert message and len(message) < 600, message[:1000]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", message), message


def text(rng: random.Random) -> str:
    """A template, more or less."""
    signs = rng.choice([SIGNS, rng.sample(SIGNS, 8), ("{a|b}", "__fruit__", " # x\n", *rng.sample(SIGNS, 2))])
    pieces = [rng.choice(signs) for _ in range(rng.choice([1, 3, 8, 20, 60]))]
    kind = rng.random()
    if kind < 0.1:
        return ("".join(pieces[:3]) * rng.choice([10, 1000, 10_000]))[:MAX_LINE_BYTES]
    if kind < 0.2:
        depth = rng.choice([3, 49, 51, 3000])
        return "{a|" * depth + "".join(pieces[:2]) + "}" * depth
    if kind < 0.3:
        return "{" + rng.choice(["", "2$$", "1-3$$, $$"]) + "|".join(pieces) + "}"
    if kind < 0.4:
        return f"{{{rng.choice(['1', '500'])}$$" + "|".join(map(str, range(rng.choice([3, 2000])))) + "}"
    if kind < 0.45:
        return "{a|b}" * 15 + "x" * 5000
    return "".join(pieces)


def wildcards_of(rng: random.Random, folder: Path) -> Wildcards:
    """A few files, some of which are none."""
    for name in rng.sample(FILES, rng.choice([0, 2, 6])):
        path = folder / f"{name}{rng.choice(['.txt', '.txt', '.TXT', '.yaml', '.json', ''])}"
        path.parent.mkdir(exist_ok=True)
        lines = [text(rng)[:2000] for _ in range(rng.choice([0, 1, 3]))] + ["plain"] * rng.choice([0, 1])
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + rng.choice([b"", b"", b"\xff", b"\0"]))
    if rng.random() < 0.2:
        os.symlink(rng.choice([folder, folder / "sub", folder / "gone"]), folder / "link")
    if rng.random() < 0.1:
        (folder / "round.txt").write_text("x\n__round__ __fruit__")
    return wildcards_in(folder)
