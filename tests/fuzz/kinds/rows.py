"""Prompt files of every format, to their jobs: values nested, huge and of wrong types; files packed and damaged."""

import decimal
import gzip
import io
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.sections import RunConfig, RunSection
from pipelines.sources.prompts import JobRequest, Reject, parse, read_rows
from pipelines.sources.rows import MARK, MAX_LINE_BYTES, PromptFileError
from sdjax.jobs.image_id import canonical_json
from sdjax.jobs.job import FIELDS
from sdjax.text.templates import NO_WILDCARDS

_NAMES = (
    *FIELDS,
    "cfg_scale",
    "inpainting_fill",
    "init_images",
    "clip skip",
    "Steps",
    "sweep",
    "combinations",
    "stesp",
    "",
)
_TEXTS = (
    "a cat",
    "",
    " ",
    "7,5",
    "1..3",
    "1..9..0",
    "-1",
    "nan",
    "1e999",
    "euler",
    "yes",
    "# note",
    "a --w 5",
    "a -n4",
)
_TEXTS += (
    "\ufeffa cat",
    "a\0b",
    "\x1b[31m",
    "\u202eabc",
    "\U0001f600",
    "{a|b}",
    "a, b",
    "null",
    "9" * 30,
    '"',
    "'",
    "[1]",
)
# Rows of one file that are looked at, and images of one row.
_MOST_ROWS, _MOST_JOBS = 50, 200
# Of a message: what it shows of a row is bounded, and the fields that there are take a kilobyte.
_MOST_LETTERS = 4000


def warm(folder: Path) -> None:
    """Reads a good file of each format."""
    for name, data in (
        ("x.jsonl", b'{"prompt": "a cat", "seed": 1}\n'),
        ("x.csv", b"prompt,seed\na cat,1\n"),
        ("x.txt.gz", gzip.compress(b"a cat\n")),
        ("x.parquet", _parquet({"prompt": [["a cat"]], "seed": [1]})),
    ):
        assert not _refused(data, name)


def case(rng: random.Random, folder: Path) -> bool:
    """Makes and reads a file; gives whether anything of it was refused."""
    extension, make = rng.choice(_MAKERS)
    data = make(rng)
    if rng.random() < 0.15:
        data = _damaged(rng, data)
    folders = rng.choice(("", "y.jsonl.d/", "a.csv/", "z.parquet/"))
    zipped = rng.random() < 0.1
    return _refused(gzip.compress(data) if zipped else data, f"{folders}x{extension}{'.gz' * zipped}")


def _refused(data: bytes, name: str) -> bool:
    refused, before, taken = False, 0, 0
    rows = read_rows(lambda: io.BytesIO(data), name)
    try:
        for row in rows:
            assert row.line > before and row.source == name, "rows are in order, under the file's name"
            before = row.line
            size = len(pickle.dumps(row))
            assert size < 8 * MAX_LINE_BYTES, "a row is small"
            taken += size
            assert MARK not in str(row.values), "no mark is left"
            found = parse(row, RunConfig(run=RunSection(combinations="none", repeat=1)), "run", NO_WILDCARDS)
            if isinstance(found, Reject):
                refused = True
                assert (found.source, found.line) == (name, row.line)
                _check_message(found.reason)
            else:
                _check_jobs(found, name)
            if row.line >= _MOST_ROWS or taken > 2 * MAX_LINE_BYTES:  # one such row takes a tenth of a second
                break
    except PromptFileError as error:
        assert name in str(error), f"the file is named: {error}"
        _check_message(str(error))
        return True
    return refused


def _check_message(message: str) -> None:
    assert message.strip() and len(message) < _MOST_LETTERS, message[:200]
    assert all(letter.isprintable() for letter in message), repr(message[:500])


def _check_jobs(found: list[JobRequest], name: str) -> None:
    assert found, "a row is rejected or gives jobs"
    typed = name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".parquet"))
    for asked in found[:_MOST_JOBS]:
        assert asked.job.prompt.strip() or typed, "no empty prompt out of a table"
        canonical_json(vars(asked.job))


# --- Values ---


def _text(rng: random.Random) -> str:
    kind = rng.randrange(8)
    if kind == 0:
        return "".join(
            chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF)))) for _ in range(rng.randrange(20))
        )
    if kind == 1:
        text = rng.choice(_TEXTS)
        return text if "," in text else text * rng.choice((1, 10, 10_000))  # a sweep of 20,000 is right, but long
    return rng.choice(_TEXTS)


def _number(rng: random.Random) -> Any:
    return rng.choice(
        (
            0,
            1,
            -1,
            7.5,
            2.0,
            512,
            2**53 + 1,
            2**63,
            2**64 - 1,
            2**64,
            10**40,
            1e308,
            -0.0,
            rng.randrange(100),
            True,
            False,
        )
    )


def _scalar(rng: random.Random) -> Any:
    return rng.choice((_text, _text, _number, lambda rng: None))(rng)


def _value(rng: random.Random) -> Any:
    kind = rng.randrange(12)
    if kind == 0:
        return [_scalar(rng) for _ in range(rng.choice((0, 1, 3)))]
    if kind == 1:
        return {_text(rng): _scalar(rng)}
    if kind == 2:
        return [[_scalar(rng)]]
    if kind == 3:
        return [1] * rng.choice((1, 5, 1_000_001))
    return _scalar(rng)


def _row(rng: random.Random) -> dict[str, Any]:
    row = {"prompt": "a cat"} if rng.random() < 0.8 else {}
    row |= {rng.choice(_NAMES): _value(rng) for _ in range(rng.choice((0, 1, 1, 2, 5)))}
    if rng.random() < 0.05:
        row |= {f"k{number}" * rng.choice((1, 1000)): number for number in range(rng.choice((1, 500)))}
    return row


# --- Files ---


def _jsonl(rng: random.Random) -> bytes:
    return "\n".join(_line(rng) for _ in range(rng.randrange(1, 6))).encode("utf-8", "surrogatepass")


def _line(rng: random.Random) -> str:
    kind = rng.randrange(10)
    depth = rng.choice((2, 40, 300, 500, 900, 990, 1100, 100_000))
    if kind == 0:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        nested = opening * depth + "1" + closing * depth
        return f'{{"prompt": "a", "{rng.choice(_NAMES)}": {nested}}}'
    if kind == 1:
        literal = rng.choice(
            ("9" * rng.choice((20, 300, 309, 310, 4299, 5000, 500_000)), "1e999", "NaN", "-Infinity", "1.5e-400")
        )
        return f'{{"prompt": "a", "{rng.choice(_NAMES)}": {literal}}}'
    if kind == 2:
        escape = rng.choice(("\\ud800", "\\udc00x", "\\u0000", "\\ufeff", "\\u001b"))
        return rng.choice(('{"prompt": "a%s"}', '{"prompt": "a", "b%s": 1}', '{"prompt": ["a", "%s"]}')) % escape
    if kind == 3:
        return rng.choice(("[1]", '"a"', "5", "null", "{", '{"a": 1, "a": 2}', "// note", "\ufeff", '{"prompt": "a",}'))
    return json.dumps(_row(rng), ensure_ascii=rng.random() < 0.5)


def _txt(rng: random.Random) -> bytes:
    ends = rng.choice(("\n", "\r\n", "\n\ufeff", "\r"))
    return ends.join(_text(rng) for _ in range(rng.randrange(1, 6))).encode("utf-8", "surrogatepass")


def _table(delimiter: str) -> Any:
    def make(rng: random.Random) -> bytes:
        parting = rng.choice((delimiter, delimiter, delimiter, ",", ";", "\t", "|"))
        columns = ["prompt", *rng.sample(_NAMES, rng.choice((0, 1, 3)))]
        if rng.random() < 0.1:
            columns += [f"c{number}" for number in range(rng.choice((10, 20_000)))]
        head = rng.choice(("", "", "", f"sep={parting}\n", "sep=\n", "\ufeff", "\n\n"))
        quote = rng.choice(("", '"', '"', '"x'))
        rows = [columns, *([_text(rng) for _ in columns[:50]] for _ in range(rng.choice((1, 3, 20))))]
        ends = rng.choice(("\n", "\r\n"))
        return (head + ends.join(parting.join(f"{quote}{each}{quote}" for each in row) for row in rows)).encode(
            "utf-8", "surrogatepass"
        )

    return make


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _any_parquet(rng: random.Random) -> bytes:
    count, packs = rng.choice((1, 3, 300)), rng.random() < 0.7
    columns = {"prompt": pa.array(["a cat"] * count)} if rng.random() < 0.8 else {}
    for name in rng.sample(_NAMES, rng.choice((0, 1, 2))):
        columns[rng.choice((name, f"\ufeff{name}"))] = rng.choice(tuple(_columns(rng, count, packs)))()
    compression = rng.choice(("none", "snappy", "zstd", "gzip", "brotli", "lz4"))
    return _parquet(columns, compression=compression, use_dictionary=packs)


def _columns(rng: random.Random, count: int, packs: bool) -> Iterator[Any]:
    """Makers of columns of any type; if the file packs what is there often, also of what is long."""
    letters = rng.choice((1, 1000, 300_000, 3_000_000) if packs else (1, 1000, 50_000))
    packed = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * letters])
    yield lambda: packed
    yield lambda: pa.ListArray.from_arrays([0, *[count] * count], packed)
    yield lambda: pa.array([_text(rng) for _ in range(count)], rng.choice((pa.string(), pa.large_string())))
    yield lambda: pa.array([rng.choice((None, 1, 2**63 - 1)) for _ in range(count)])
    yield lambda: pa.array([2**64 - 1] * count, pa.uint64())
    yield lambda: pa.array([rng.choice((0.5, float("nan"), 1e300)) for _ in range(count)], pa.float64())
    yield lambda: pa.array([b"a\xff"] * count).view(rng.choice((pa.string(), pa.binary())))
    yield lambda: pa.array([decimal.Decimal("7.5")] * count, rng.choice((pa.decimal128(5, 2), pa.decimal256(70, 2))))
    yield lambda: pa.array([0] * count, pa.timestamp("us", tz=rng.choice(("UTC", "Nowhere/None", "+99:99", "", "\0"))))
    yield lambda: pa.array([2**40] * count, rng.choice((pa.date64(), pa.duration("s"), pa.time64("us"))))
    yield lambda: pa.array([[{"a": [1]}]] * count)
    yield lambda: pa.array([[[1]]] * count)
    yield lambda: pa.array([[1, None, 3]] * count, pa.list_(pa.int64(), 3))
    yield lambda: pa.array([None] * count)
    yield lambda: pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64()))


def _damaged(rng: random.Random, data: bytes) -> bytes:
    kind, place = rng.randrange(4), rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + rng.choice((b"\xef\xbb\xbf", b"\xff", b"\0", b'"', b"\n", b"\xf0\x9f")) + data[place:]
    if kind == 2:
        return rng.choice((b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf" * 2)) + data
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 5))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


_MAKERS = (
    (".jsonl", _jsonl),
    (".ndjson", _jsonl),
    (".txt", _txt),
    (".csv", _table(",")),
    (".tsv", _table("\t")),
    (".parquet", _any_parquet),
    (".PARQUET", _any_parquet),
)
