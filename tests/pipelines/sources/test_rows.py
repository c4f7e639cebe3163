"""What a row of a prompt file may hold, and files that would take all memory or are read as what they are not."""

import datetime
import decimal
import gzip
import io
import json
import pickle
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import settings
from pipelines.sources.prompts import Reject, parse, read_rows
from pipelines.sources.rows import PromptFileError
from sdjax.jobs.job import Job
from sdjax.text.templates import NO_WILDCARDS
from tests.fuzz.limits import limited

MARK = b"\xef\xbb\xbf"


def rows_of(data, name):
    return list(read_rows(lambda: io.BytesIO(data), name))


def parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def jobs_of(row, **keys):
    found = parse(
        row, settings.make({settings.BY_NAME[name]: value for name, value in keys.items()}), "run", NO_WILDCARDS
    )
    return found if isinstance(found, Reject) else [asked.job for asked in found]


def packed(text: str, count: int) -> pa.Array:
    """One text as often, which is written once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [text])


# --- Values ---


@pytest.mark.parametrize(
    "value, problem",
    [
        pytest.param("[" * 900 + "]" * 900, "'seed' holds a list within a list; expected", id="deeper lists"),
        pytest.param("[" * 500 + "]" * 500, "'seed' holds a list within a list; expected", id="lists"),
        pytest.param('{"a": ' * 500 + "1" + "}" * 500, "'seed' holds an object; expected", id="objects"),
        ("[[1]]", "'seed' holds a list within a list; expected a text, a number"),
        ('[{"a": 1}]', "'seed' holds an object within a list"),
        pytest.param("[" + "1," * 1_000_000 + "1]", "'seed' holds 1000001 values; expected up to 1000000", id="many"),
        pytest.param("1" * 5000, "a number of 5000 digits, 11111111111111111111...", id="digits"),
    ],
)
def test_more_than_a_field_can_hold_is_the_problem_of_its_row(value, problem):
    bad, good = rows_of(f'{{"prompt": "a", "seed": {value}}}\n{{"prompt": "a dog"}}\n'.encode(), "x.jsonl")
    assert bad.values is None and bad.problem.startswith(problem) and len(bad.problem) < 500
    assert good.values == {"prompt": "a dog"}
    assert pickle.loads(pickle.dumps(bad)) == bad
    assert isinstance(jobs_of(bad), Reject)


@pytest.mark.parametrize(
    "line, reason",
    [
        pytest.param(json.dumps({"prompt": "a", "x" * 1_000_000: 1}), "unknown column 'xxx", id="a long key"),
        pytest.param(
            json.dumps({"prompt": "a"} | {f"k{n}": n for n in range(100_000)}), "unknown column 'k0'", id="many keys"
        ),
        pytest.param(json.dumps({"prompt": "a", "sampler": "e" * 90_000}), "sampler = 'eee", id="a long name"),
        pytest.param(json.dumps({"prompt": "a", "sweep": "e" * 90_000}), "sweep = 'eee", id="a long mode"),
        pytest.param('{"prompt": "a", ' + f'"{"k" * 10**6}": 1, ' * 2 + '"seed": 1}', "is there twice", id="twice"),
        ('{"prompt": "a", "\\ud800": 1}', r"unknown column '\ud800'"),
        ('{"prompt": "a", "guidance_scale": 1e999}', "guidance_scale = inf: expected a number from 0"),
        ('{"prompt": "a", "steps": 1e999}', "steps = inf: expected a value of type int"),
        ('{"prompt": "a", "\\ufeffprompt": "b"}', "differ by U+FEFF"),
    ],
)
def test_what_no_field_is_costs_little_and_is_shown_short(line, reason):
    start = time.process_time()
    [row] = rows_of(line.encode(), "x.jsonl")
    found = jobs_of(row)
    assert isinstance(found, Reject) and reason in found.reason and len(found.reason) < 600
    assert time.process_time() - start < 2


def test_marks_of_joined_files_are_no_letters_of_prompts_or_columns():
    assert [row.values for row in rows_of(MARK * 2 + b"a red cat\r\n" + MARK + b"a red cat\r\n", "x.txt")] == [
        {"prompt": "a red cat"}
    ] * 2
    objects = b'{"\\ufeffprompt": "a red \\ufeffcat", "seed": "1"}\n' + MARK + b'{"prompt": ["a red cat"], "seed": "1"}'
    for data, name in (
        (b"prompt,seed\na red cat,1\n" + MARK + b"a red" + MARK + b" cat,1\n", "x.csv"),
        (objects, "x.jsonl"),
        (parquet({"\ufeffprompt": ["a red\ufeff cat"] * 2, "seed": ["1", "1"]}), "x.parquet"),
    ):
        assert [jobs_of(row) for row in rows_of(data, name)] == [[Job(prompt="a red cat", seed=1)]] * 2


def test_a_table_below_a_folder_named_like_other_formats_keeps_its_empty_prompts_out():
    [row] = rows_of(b'prompt,seed\n"",1\n', "y.jsonl.d/x.parquet.csv")
    assert "no prompt in this row" in jobs_of(row).reason
    [row] = rows_of(b'{"prompt": ""}\n', "y.csv.d/x.jsonl")
    assert [job.prompt for job in jobs_of(row)] == [""]


# --- Lines of other tools ---


@pytest.mark.parametrize(
    "line, what",
    [
        ('--prompt "a castle" --negative_prompt "trees" --steps 5 --seed 3', "--name, as A1111"),
        ("a castle --n trees --w 512 --h 512 --d 1 --l 7.5 --s 28", "--name, as A1111"),
        ('"a unicorn in manhattan" -n4 -S1234', "as InvokeAI"),
        ("a unicorn in manhattan -s 50 -C7.5", "as InvokeAI"),
        ('"a unicorn" -A k_lms', "as InvokeAI"),
        ("// bulk", "a comment"),
        ("# bulk", "a comment"),
    ],
)
def test_lines_that_are_options_or_comments_of_other_tools_are_never_drawn(line, what):
    bad, good = rows_of(f"{line}\na dog\n".encode(), "x.txt")
    assert bad.values is None and what in bad.problem and "take it out" in bad.problem and bad.text == line
    assert good.values == {"prompt": "a dog"}
    [row] = rows_of(json.dumps({"prompt": line}).encode(), "x.jsonl")
    assert [job.prompt for job in jobs_of(row, combinations="none")] == [line]


@pytest.mark.parametrize(
    "line",
    ["a t-shirt - red, well-known -- old", "no. 5 - 6", '"a cat"', "x-ray of C#", "a -b cat", "5-10 F-16"],
)
def test_hyphens_and_dashes_of_prompts_are_no_options(line):
    assert [row.values for row in rows_of(line.encode(), "x.txt")] == [{"prompt": line}]


# --- Tables ---


def test_tables_parted_by_semicolons_or_with_a_line_that_says_what_parts_them_are_read():
    for data in (
        b"prompt;negative_prompt;cfg_scale\r\na red cat, old;blurry;7.5\r\n",
        b'sep=;\r\nprompt;negative_prompt;cfg_scale\r\n"a red cat, old";blurry;7.5\r\n',
        b'sep=,\r\nprompt,negative_prompt,cfg_scale\r\n"a red cat, old",blurry,7.5\r\n',
        b'"sep=\t"\n\nprompt\tnegative_prompt\tcfg_scale\na red cat, old\tblurry\t7.5\n',
        b'"prompt";"negative_prompt";"cfg_scale"\na red cat, old;blurry;7.5\n',
    ):
        [row] = rows_of(data, "x.csv")
        [job] = jobs_of(row)
        assert (job.prompt, job.negative_prompt, job.guidance_scale) == ("a red cat, old", "blurry", 7.5)
    with pytest.raises(PromptFileError, match=r"x\.csv: 'sep=\|' in its first line; expected one of"):
        rows_of(b"sep=|\nprompt|seed\n", "x.csv")


def test_a_decimal_comma_is_not_read_as_two_values():
    bad, good = rows_of(b"prompt;cfg_scale\na cat;7,5\na dog, red;7\n", "x.csv")
    assert bad.line == 2 and "cfg_scale = '7,5': a comma in a number, in a table parted by ';'" in bad.problem
    assert good.values == {"prompt": "a dog, red", "cfg_scale": "7"}


def test_a_million_columns_are_one_short_error():
    with limited(), pytest.raises(PromptFileError, match=r"unknown column 'a0', .* and 399995 more") as caught:
        rows_of(b"prompt," + b",".join(b"a%d" % n for n in range(400_000)) + b"\n", "x.csv")
    assert len(str(caught.value)) < 3000


def test_quotes_that_stay_open_do_not_have_the_whole_file_read_for_each_line():
    rows = read_rows(lambda: io.BytesIO(b"prompt,seed\n" + b'x","z\n' * 200_000), "x.csv")
    with limited():
        for line in range(2, 102):
            row = next(rows)
            assert row.line == line and "quote" in row.problem


# --- Parquet ---


@pytest.mark.parametrize("compression", ["zstd", "brotli", "gzip"])
def test_one_long_text_that_is_written_once_for_many_rows_is_rejected_within_little_memory(compression):
    """A file of a kilobyte that unfolds to 5.4 GB."""
    data = parquet({"prompt": packed("x" * 21_000_000, 256), "seed": list(range(256))}, compression=compression)
    assert len(data) < 30_000
    with limited(seconds=10, memory=200 << 20):
        rows = read_rows(lambda: io.BytesIO(data), "x.parquet")
        row = next(rows)
        assert (row.values, row.line) == (None, 1) and "have 21000" in row.problem and "expected up to" in row.problem
        assert next(rows).line == 2


def test_a_list_that_holds_a_long_text_often_is_rejected_within_little_memory():
    texts = packed("x" * 2_000_000, 100_000)
    data = parquet({"prompt": pa.ListArray.from_arrays([0, 1, 100_000], texts)}, compression="zstd")
    assert len(data) < 2000
    with limited(memory=200 << 20):
        good, bad = rows_of(data, "x.parquet")
    assert len(good.values["prompt"][0]) == 2_000_000 and bad.values is None and "bytes; expected up to" in bad.problem


def test_columns_that_unfold_far_beyond_prompts_are_refused_by_their_table_of_contents():
    data = parquet({"prompt": ["x" * 1_000_000] * 100}, compression="zstd", use_dictionary=False)
    with limited(memory=200 << 20), pytest.raises(PromptFileError, match=r"x\.parquet: from row 1 on .*'prompt'"):
        rows_of(data, "x.parquet")


def test_a_gzipped_parquet_file_is_not_unpacked_without_end(monkeypatch):
    monkeypatch.setattr("pipelines.sources.parquet._MOST_UNPACKED", 5 << 20)
    with pytest.raises(PromptFileError, match=r"x\.parquet\.gz: unpacks to more than 5242880 bytes"):
        rows_of(gzip.compress(bytes(10 << 20)), "x.parquet.gz")


@pytest.mark.parametrize(
    "values, kind",
    [
        (pa.array([0], pa.timestamp("us", tz="Nowhere/None")), "timestamp"),
        (pa.array([0], pa.timestamp("us")), "timestamp"),
        (pa.array([datetime.date(2024, 1, 1)]), "date32"),
        (pa.array([0], pa.duration("us")), "duration"),
        (pa.array([b"a"]), "binary"),
        (pa.array([{"a": 1}]), "struct"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "map"),
        (pa.array([[[1]]]), "list<"),
        (pa.array([[datetime.date(2024, 1, 1)]]), "list<"),
    ],
)
def test_a_column_of_what_no_field_holds_is_named_with_its_type(values, kind):
    with pytest.raises(PromptFileError, match=rf"x\.parquet: the column 'seed' holds {kind}.*; expected text, numbers"):
        rows_of(parquet({"prompt": ["a"], "seed": values}), "x.parquet")


@pytest.mark.parametrize(
    "values, expected",
    [
        (pa.array([decimal.Decimal("7.50")]), [7.5]),
        (pa.array([[decimal.Decimal("7.50"), None, decimal.Decimal("3")]]), [[7.5, None, 3]]),
        (pa.array([7.5], pa.float16()), [7.5]),
        (pa.array([7.5], pa.float32()), [7.5]),
        (pa.array([7], pa.uint8()), [7]),
        (pa.array(["7.5"], pa.large_string()), ["7.5"]),
        (pa.array(["7.5"]).dictionary_encode(), ["7.5"]),
        (pa.array([["7.5", "8"]], pa.list_(pa.large_string())), [["7.5", "8"]]),
        (pa.array([["7.5", "8"]], pa.list_(pa.string(), 2)), [["7.5", "8"]]),
        (pa.array([None]), [None]),
        (pa.array([float("nan")]), None),
    ],
)
def test_numbers_and_texts_of_any_width_are_read(values, expected):
    [row] = rows_of(parquet({"prompt": ["a"], "guidance_scale": values}), "x.parquet")
    assert pickle.loads(pickle.dumps(row)).line == 1
    if expected is None:
        assert "guidance_scale = nan" in jobs_of(row).reason
    else:
        assert [row.values["guidance_scale"]] == expected


def test_damaged_parquet_files_are_refused_by_name():
    data = parquet({"prompt": [f"cat {n}" for n in range(1000)], "seed": list(range(1000))})
    refused = 0
    for place in range(4, len(data), len(data) // 50):
        try:
            rows_of(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :], "x.parquet")
        except PromptFileError as error:
            refused += 1
            assert str(error).startswith("x.parquet: ") and len(str(error)) < 3000
    assert refused


# --- Numbers of A1111's API ---


@pytest.mark.parametrize(
    "given, field, value",
    [
        *(({"inpainting_fill": number}, "inpaint_fill", "original") for number in (1, 1.0, "1", "original")),
        ({"inpainting_fill": 2}, "inpaint_fill", "noise"),
        ({"inpainting_fill": 3}, "inpaint_fill", "blank"),
        ({"resize_mode": 0}, "resize_mode", "stretch"),
        ({"resize_mode": 1}, "resize_mode", "crop"),
        ({"resize_mode": "2"}, "resize_mode", "pad"),
        ({"invert_mask": 1}, "invert_mask", True),
        ({"invert_mask": "0"}, "invert_mask", False),
    ],
)
def test_choices_of_a1111s_api_are_read_by_their_numbers(given, field, value):
    line = {"prompt": "a dog", "init_images": ["pic.png"], "mask": "pic.png", "denoising_strength": 0.5, **given}
    [row] = rows_of(json.dumps(line).encode(), "x.jsonl")
    [job] = jobs_of(row)
    assert getattr(job, field) == value and job.image == "pic.png"


@pytest.mark.parametrize(
    "given, reason",
    [
        ({"inpainting_fill": 0}, r"inpaint_fill = '0': expected one of original, noise, .* average; A1111's fill (0)"),
        ({"inpainting_fill": "fill"}, "A1111's fill (0) paints"),
        ({"resize_mode": 3}, "resize_mode = '3': expected one of stretch, crop, pad; A1111's 3 enlarges latents"),
        ({"inpainting_fill": 7}, "inpaint_fill = '7': expected one of original"),
        ({"inpainting_fill": True}, "inpaint_fill = True: expected"),
    ],
)
def test_choices_that_are_only_there_are_rejected_with_what_is_near(given, reason):
    line = {"prompt": "a dog", "init_images": ["pic.png"], "mask": "pic.png", **given}
    [row] = rows_of(json.dumps(line).encode(), "x.jsonl")
    assert all(part in jobs_of(row).reason for part in reason.split(" .* "))
