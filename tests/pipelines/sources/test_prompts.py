import csv
import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.sections import RunConfig, RunSection
from pipelines.sources import prompts, sweeps
from pipelines.sources.prompts import (
    FORMATS,
    JobRequest,
    PromptFileError,
    Reject,
    Row,
    read_rows,
)
from pipelines.sources.rows import MAX_LINE_BYTES
from sdjax.jobs.job import Job
from sdjax.text.wildcards import Wildcards


def rows_of(data, name):
    return list(read_rows(lambda: io.BytesIO(data), name))


def prompts_of(rows):
    return [row.values["prompt"] if row.values else None for row in rows]


def parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def table(rows, delimiter=",", ends="\r\n"):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=ends).writerows(rows)
    return file.getvalue().encode()


# The same two rows, as every format has them.
SAMPLES = {
    ".txt": b"a cat\na dog\n",
    ".csv": b"prompt\na cat\na dog\n",
    ".tsv": b"prompt\na cat\na dog\n",
    ".jsonl": b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n',
    ".ndjson": b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n',
    ".parquet": parquet({"prompt": ["a cat", "a dog"]}),
}
TEXT_FORMATS = [extension for extension in FORMATS if extension != ".parquet"]
EVERY_FORMAT = pytest.mark.parametrize("extension", FORMATS)


# --- What every format does ---


def test_every_format_has_a_sample_here():
    assert set(SAMPLES) == set(FORMATS)


@EVERY_FORMAT
@pytest.mark.parametrize("gzipped", [False, True])
def test_prompts_are_read_from_every_format_plain_or_gzipped(extension, gzipped):
    data, name = SAMPLES[extension], f"prompts{extension}"
    rows = rows_of(gzip.compress(data), f"{name}.gz") if gzipped else rows_of(data, name)
    assert prompts_of(rows) == ["a cat", "a dog"]
    assert {row.source for row in rows} == {f"{name}.gz" if gzipped else name}


@EVERY_FORMAT
def test_the_extension_may_be_in_capitals_and_after_other_dots(extension):
    assert len(rows_of(SAMPLES[extension], f"My.Prompts.v2{extension.upper()}")) == 2


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_the_mark_of_utf_8_and_the_line_ends_of_windows_are_no_part_of_a_prompt(extension):
    data = b"\xef\xbb\xbf" + SAMPLES[extension].replace(b"\n", b"\r\n")
    assert prompts_of(rows_of(data, f"x{extension}")) == ["a cat", "a dog"]


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_the_last_line_needs_no_line_break(extension):
    assert prompts_of(rows_of(SAMPLES[extension].rstrip(b"\n"), f"x{extension}")) == ["a cat", "a dog"]


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_blank_lines_are_no_rows_but_count_as_lines(extension):
    data = SAMPLES[extension].replace(b"\n", b"\n\n  \n")
    rows = rows_of(data, f"x{extension}")
    assert prompts_of(rows) == ["a cat", "a dog"]
    assert [data.split(b"\n")[row.line - 1].decode() for row in rows] == [row.text for row in rows]


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_a_row_that_is_not_utf_8_is_its_own_problem(extension):
    data = SAMPLES[extension].replace(b"cat", b"c\xe4t") + SAMPLES[extension].splitlines(True)[-1]
    bad, *good = rows_of(data, f"x{extension}")
    assert bad.values is None and "0xe4, is not UTF-8" in bad.problem and "c\ufffdt" in bad.text
    assert prompts_of(good) == ["a dog", "a dog"]


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_a_line_beyond_all_bounds_is_its_own_problem_and_not_kept_in_memory(extension):
    first, second = SAMPLES[extension].splitlines(True)[-2:]
    header = SAMPLES[extension][: -len(first + second)]
    long = first.replace(b"cat", b"cat" * (5 * MAX_LINE_BYTES))
    data = header + long + second
    tracemalloc.start()
    bad, good = rows_of(data, f"x{extension}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than" in bad.problem and len(bad.text) < 1000
    assert good.values == {"prompt": "a dog"}
    assert peak < 12 * MAX_LINE_BYTES < len(data)


@pytest.mark.parametrize("extension", TEXT_FORMATS)
def test_rows_come_one_by_one_before_the_rest_is_read(extension):
    class Endless(io.RawIOBase):
        def __init__(self):
            self.data = io.BytesIO(SAMPLES[extension])

        def readable(self):
            return True

        def readinto(self, buffer):
            found = self.data.read(len(buffer))
            assert found, "read on after the row was there"
            buffer[: len(found)] = found
            return len(found)

    rows = read_rows(lambda: io.BufferedReader(Endless()), f"x{extension}")
    assert next(rows).values == {"prompt": "a cat"}


# --- Files that can't be used at all ---


@pytest.mark.parametrize("name", ["prompts", "prompts.xlsx", "prompts.gz", "prompts.csv.bz2", ".csv"])
def test_an_unknown_extension_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(PromptFileError, match=r"extension.*expected \.txt, \.csv, .*\.gz"):
        rows_of(b"a cat", name)


@EVERY_FORMAT
def test_an_empty_file_is_an_error_that_says_what_was_expected(extension):
    with pytest.raises(PromptFileError, match=rf"^x\{extension}: "):
        rows_of(b"", f"x{extension}")


@pytest.mark.parametrize(
    "name, data",
    [
        ("x.txt", b"\n  \n"),
        ("x.txt.gz", gzip.compress(b"", mtime=0)),
        ("x.txt.gz", b""),
        ("x.csv", b"\xef\xbb\xbf"),
        ("x.csv", b"prompt,seed\n"),
        ("x.jsonl", b"\n"),
        ("x.parquet", parquet({"prompt": pa.array([], pa.string())})),
    ],
)
def test_a_file_without_rows_is_an_error(name, data):
    with pytest.raises(PromptFileError, match=rf"^{name}: no prompts in it; expected"):
        rows_of(data, name)


def with_columns(*names):
    return {
        "x.csv": ",".join(names).encode() + b"\n" + b",".join([b"1"] * len(names)),
        "x.tsv": "\t".join(names).encode() + b"\n" + b"\t".join([b"1"] * len(names)),
        "x.parquet": parquet({name: ["1"] for name in names}),
    }


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_a_column_that_no_job_has_is_an_error_with_the_nearest_that_there_is(name):
    with pytest.raises(PromptFileError, match=rf"^{name}: unknown column 'sede' \(did you mean 'seed'\?\)"):
        rows_of(with_columns("prompt", "sede")[name], name)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_a_header_without_a_prompt_is_an_error(name):
    with pytest.raises(PromptFileError, match=rf"^{name}: no column 'prompt' in the header, which is seed, steps"):
        rows_of(with_columns("seed", "steps")[name], name)


def test_a_column_that_is_there_twice_is_an_error():
    with pytest.raises(PromptFileError, match="'seed' is there twice"):
        rows_of(b"prompt,seed,seed\na,1,2", "x.csv")


@pytest.mark.parametrize("header", [b'"prompt\na cat\n', b"pr\xffompt\na cat\n", b"prompt,\na,b\n"])
def test_a_broken_header_is_an_error_of_the_whole_file(header):
    with pytest.raises(PromptFileError, match=r"^x\.csv"):
        rows_of(header, "x.csv")


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named_as_what_it_is(coding):
    data = ("\ufeff" * (coding != "utf-16") + "a cat").encode(coding)
    with pytest.raises(PromptFileError, match="the text is UTF-16; save it as UTF-8"):
        rows_of(data, "x.txt")


def test_a_name_that_does_not_fit_the_data_is_an_error_both_ways_round():
    with pytest.raises(PromptFileError, match=r"^x\.txt\.gz: the data are not gzipped; take \.gz off"):
        rows_of(b"a cat", "x.txt.gz")
    with pytest.raises(PromptFileError, match=r"^x\.txt: the data are gzipped; add \.gz"):
        rows_of(gzip.compress(b"a cat", mtime=0), "x.txt")


@EVERY_FORMAT
def test_a_gzip_that_breaks_off_is_an_error_wherever_it_ends(extension):
    data = gzip.compress(SAMPLES[extension])
    for end in range(2, len(data)):
        with pytest.raises(PromptFileError, match=rf"^x\{extension}\.gz: .*damaged or break off"):
            rows_of(data[:end], f"x{extension}.gz")


def test_a_gzip_with_a_wrong_checksum_is_an_error():
    data = bytearray(gzip.compress(b"a cat\n", mtime=0))
    data[-8] ^= 1
    with pytest.raises(PromptFileError, match="damaged"):
        rows_of(bytes(data), "x.txt.gz")


def test_a_parquet_file_that_breaks_off_is_an_error_wherever_it_ends():
    data = SAMPLES[".parquet"]
    for end in range(0, len(data), 7):
        with pytest.raises(PromptFileError, match=r"^x\.parquet: "):
            rows_of(data[:end], "x.parquet")


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(PromptFileError, match=r"^gone\.txt: can't be read: .*No such file"):
        list(read_rows((tmp_path / "gone.txt").open, "gone.txt"))


# --- Tables ---

# Without U+FEFF, which is taken out of every form of rows: tests/pipelines/sources/test_rows.py says where.
CELLS = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(CELLS.filter(str.strip), CELLS), min_size=1, max_size=5), st.sampled_from(",\t"))
@settings(deadline=None)
def test_what_is_written_as_a_table_is_read_as_it_was(cells, delimiter):
    data = table([("prompt", "negative_prompt"), *cells], delimiter)
    rows = rows_of(data, "x.csv" if delimiter == "," else "x.tsv")
    assert [tuple(row.values.values()) for row in rows] == cells


def test_a_record_over_several_lines_counts_from_its_first():
    data = b'prompt,seed\n"a\ncat, ""red""",1\na dog,2\n'
    assert rows_of(data, "x.csv") == [
        Row("x.csv", 2, {"prompt": 'a\ncat, "red"', "seed": "1"}, '"a\ncat, ""red""",1', None),
        Row("x.csv", 4, {"prompt": "a dog", "seed": "2"}, "a dog,2", None),
    ]


def test_a_quote_inside_a_plain_field_is_a_letter_like_others():
    assert prompts_of(rows_of(b'prompt\na 5" nail\na dog\n', "x.csv")) == ['a 5" nail', "a dog"]


@pytest.mark.parametrize("record", [b"a cat", b"a cat,1,2", b'"a cat" ,x"', b'"a" cat,1', b"a\rcat,1"])
def test_a_ragged_or_misquoted_record_is_its_own_problem(record):
    before, bad, after = rows_of(b"prompt,seed\na fox,0\n" + record + b"\na dog,2\n", "x.csv")
    assert before.problem is None and bad.values is None and bad.line == 3 and bad.text == record.decode()
    assert after.values == {"prompt": "a dog", "seed": "2"}


def test_a_quote_that_is_never_closed_costs_its_line_only():
    count = 20_000  # more letters than the csv module takes for one field
    data = b'prompt,seed\n"a cat,1\n' + b"a dog,2\n" * count
    bad, *good = rows_of(data, "x.csv")
    assert (bad.line, bad.text, bad.values) == (2, '"a cat,1', None)
    assert "quote" in bad.problem
    assert [row.line for row in good] == list(range(3, 3 + count)) and not any(row.problem for row in good)


def test_a_quote_not_closed_at_the_end_of_the_file_costs_its_line_only():
    assert [row.problem is None for row in rows_of(b'prompt\na fox\n"a cat\na dog', "x.csv")] == [
        True,
        False,
        True,
    ]


def test_a_huge_field_is_its_own_problem():
    bad, good = rows_of(b"prompt\n" + b"x" * 1_000_000 + b"\na dog\n", "x.csv")
    assert "field limit" in bad.problem and good.values == {"prompt": "a dog"}


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=6), st.sampled_from(TEXT_FORMATS))
def test_no_line_however_broken_stops_those_after_it_for_good(lines, extension):
    header = b"prompt,seed\n" if extension == ".csv" else b"prompt\tseed\n" if extension == ".tsv" else b""
    last = SAMPLES[extension].splitlines()[-1] + {".csv": b",1", ".tsv": b"\t1"}.get(extension, b"")
    # A quote that is open at the end of the broken lines may take one good line with it, but not two.
    data = header + b"".join(line + b"\n" for line in lines) + (last + b"\n") * 2
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")):
        return
    rows = rows_of(data, f"x{extension}")
    assert rows[-1].values and rows[-1].values["prompt"].endswith("a dog")
    for row in rows:
        assert isinstance(parse(row), list | Reject)
        assert (row.values is None) == (row.problem is not None)


# --- JSON lines ---


@pytest.mark.parametrize(
    "line, problem",
    [
        (b"a cat", "not valid JSON"),
        (b'{"prompt": "a cat"', "not valid JSON"),
        (b'{"prompt": "a cat"} {"prompt": "a dog"}', "not valid JSON"),
        (b'["a cat"]', "a JSON list; expected an object"),
        (b'"a cat"', "a JSON str; expected an object"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "NaN is no JSON"),
        (b'{"prompt": "a", "guidance_scale": -Infinity}', "-Infinity is no JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"prompt": "a\0"}', "not valid JSON"),
    ],
)
def test_a_line_that_is_no_plain_object_is_its_own_problem(line, problem):
    bad, good = rows_of(line + b'\n{"prompt": "a dog"}\n', "x.jsonl")
    assert bad.values is None and problem in bad.problem and bad.text == line.decode()
    assert good.values == {"prompt": "a dog"}


def test_json_keeps_the_types_of_values():
    [row] = rows_of(b'{"prompt": "a", "seed": 3, "guidance_scale": 2.5, "sampler": null}', "x.jsonl")
    assert row.values == {"prompt": "a", "seed": 3, "guidance_scale": 2.5, "sampler": None}


# --- Parquet ---


def test_parquet_is_read_in_batches_with_its_types_and_row_numbers():
    count = 1000
    data = parquet({"prompt": [f"cat {i}" for i in range(count)], "seed": range(count)}, row_group_size=300)
    rows = rows_of(data, "x.parquet")
    assert [row.line for row in rows] == list(range(1, count + 1))
    assert rows[700].values == {"prompt": "cat 700", "seed": 700}
    assert json.loads(rows[700].text) == rows[700].values


def test_parquet_text_that_is_not_utf_8_is_the_problem_of_its_row():
    strings = pa.array([b"a cat", b"c\xe4t", b"a dog"]).view(pa.string())
    first, bad, last = rows_of(parquet({"prompt": strings}), "x.parquet")
    assert bad.values is None and "can't be read" in bad.problem and bad.line == 2
    assert prompts_of([first, last]) == ["a cat", "a dog"]


# --- From rows to jobs ---

FILES = {"animals/cats": ("tabby", "{big|small} lion"), "animals/dogs": ("pug",), "bad": ("a\0b",)}
WILDCARDS = Wildcards(lambda: FILES, lambda name: FILES[name], "wild")


def row(**values):
    return Row("x.csv", 7, values, "as it stands", None)


def parse(
    row, defaults=None, repeats=1, run_seed=0, sweeps=None, combinations="random", run_name="run", sweep="product"
):
    config = RunConfig(
        run=RunSection(run_seed, repeats, combinations, sweep),
        job=tuple((defaults or {}).items()),
        sweeps=tuple((sweeps or {}).items()),
    )
    return prompts.parse(row, config, run_name, WILDCARDS)


def jobs(*arguments, **options):
    found = parse(*arguments, **options)
    assert isinstance(found, list), found
    return [asked.job for asked in found]


def test_a_row_gives_its_job_from_text():
    values = {"prompt": "a cat", "seed": " 5 ", "steps": "3", "guidance_scale": "2", "width": ""}
    assert parse(row(**values)) == [JobRequest(Job(prompt="a cat", seed=5, steps=3, guidance_scale=2.0), {})]


def test_defaults_fill_what_a_row_leaves_open_and_no_more():
    defaults = {"steps": 9, "negative_prompt": "blurry", "seed": 1}
    given = row(prompt="a cat", steps="", negative_prompt=None, seed="2")
    assert jobs(given, defaults) == [Job(prompt="a cat", steps=9, negative_prompt="blurry", seed=2)]


def test_what_a_run_says_of_images_is_for_rows_that_have_some():
    run = {"strength": 0.6, "mask_blur": 2.0, "resize_mode": "crop", "upscale_by": 2.0, "steps": 7}
    [job] = jobs(row(prompt="a"), run)
    assert job == Job(prompt="a", seed=job.seed, steps=7)
    [job] = jobs(row(prompt="a", image="b.png", upscaler="lanczos"), run)
    assert (job.strength, job.resize_mode, job.upscale_by, job.mask_blur) == (0.6, "crop", 2.0, 0.0)
    [job] = jobs(row(prompt="a", image="b.png", mask_image="c.png"), {**run, "invert_mask": True})
    assert (job.mask_blur, job.invert_mask) == (2.0, True)
    run = {"only_masked_padding": 8, "only_masked": True}
    for said, padding in (("", 8), ("no", 32)):
        [job] = jobs(row(prompt="a", image="b.png", mask_image="c.png", only_masked=said), run)
        assert job.only_masked_padding == padding
    # What a row says itself stays an error.
    assert "expected image with it" in parse(row(prompt="a", strength=0.5)).reason


def test_a_row_shows_each_of_a_runs_controlnets_an_image():
    [job] = jobs(row(prompt="a", control_image="b.png; c.png"), {"controlnets": "canny; depth"})
    assert (job.controlnets, job.control_image) == ("canny; depth", "b.png; c.png")
    [job] = jobs(row(prompt="a", controlnets="x"), {"image": "b.png"})
    assert job.image == "b.png"
    [job] = jobs(row(prompt="a", guess_mode=True, resize_mode="crop"), {"image": "b.png", "controlnets": "x"})
    assert job.guess_mode
    run = {"control_preprocessor": "canny; none"}
    [job] = jobs(row(prompt="a", controlnets="x; y", control_image="b.png"), run)
    assert job.control_preprocessor == "canny; none"
    run["control_image"] = "b.png"
    [job] = jobs(row(prompt="a", controlnets="x; y"), run)
    assert (job.control_image, job.control_preprocessor) == ("b.png", "canny; none")


def test_repeats():
    assert [job.seed for job in jobs(row(prompt="a cat", seed="5"), repeats=3)] == [5, 6, 7]
    seeds = [job.seed for job in jobs(row(prompt="a cat"), repeats=3)]
    assert len(set(seeds)) == 3
    assert seeds == [job.seed for job in jobs(Row("y.txt", 1, {"prompt": "a cat"}, "", None), repeats=3)]
    assert seeds != [job.seed for job in jobs(row(prompt="a cat"), repeats=3, run_seed=1)]


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"prompt": "  "}, "no prompt in this row"),
        ({"seed": "1"}, "no prompt in this row"),
        ({"prompt": "a", "steps": "-3"}, "steps = -3"),
        ({"prompt": "a", "steps": "nan"}, "steps = 'nan'"),
        ({"prompt": "a", "guidance_scale": "nan"}, "guidance_scale = nan"),
        ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale = inf"),
        ({"prompt": "a", "sampler": "eular"}, "did you mean 'euler'"),
        ({"prompt": "a", "sampler": "euler, eular"}, "did you mean 'euler'"),
        ({"prompt": "a", "colour": "red"}, "unknown column 'colour'"),
        ({"prompt": 5}, "prompt = 5"),
        ({"prompt": [["a"]]}, "prompt: a list within a list"),
        ({"prompt": [5]}, "prompt = 5"),
        ({"prompt": []}, "prompt = []"),
        ({"prompt": {"a": 1}}, "prompt = {'a': 1}"),
        ({"prompt": b"a"}, "prompt = b'a'"),
        ({"prompt": "a", "seed": True}, "seed = True"),
        ({"prompt": "a", "seed": "9" * 5000}, "seed"),
        ({"prompt": "a", "seed": 10**400}, "seed = 1000"),
        ({"prompt": "a", "guidance_scale": 10**400}, "far too large"),
        ({"prompt": "a\0b"}, "prompt: letter 2 is a NUL character"),
        ({"prompt": ["x", "a\0b"]}, "prompt: letter 2 is a NUL character"),
        ({"prompt": "ab\ud83d"}, r"prompt: letter 3 is half of a surrogate pair (\ud83d)"),
        ({"prompt": "x" * 200_000}, "200000 letters"),
        ({"prompt": "a", "sweep": "zipp"}, "sweep = 'zipp': expected one of product, zip (did you mean 'zip'?)"),
        ({"prompt": "a", "combinations": "most"}, "combinations = 'most'"),
        ({"prompt": "a {b"}, "prompt: letter 3: this { is never closed"),
        ({"prompt": "a", "negative_prompt": "}"}, "negative_prompt: letter 1: this } closes no brace"),
        ({"prompt": "__animals/catz__"}, "prompt: letter 1: there is no wildcard 'animals/catz' in wild (did you mean"),
        ({"prompt": "__bad__"}, "prompt: letter 2 is a NUL character"),
        ({"prompt": "__bad__", "combinations": "all"}, "prompt: letter 2 is a NUL character"),
        ({"prompt": "{ |}"}, "the template gives no text"),
        ({"prompt": "{ |a}", "combinations": "all"}, "no prompt in this row"),
        ({"prompt": "a", "seed": "1..1000000"}, "this row asks for 2000000 images"),
        ({"prompt": "{a|b}" * 30, "combinations": "all"}, f"this row asks for {2 * 2**30} images"),
        ({"prompt": "a", "cfg": "4,5", "guidance_scale": "3"}, "both mean guidance_scale"),
    ],
)
def test_rejects(values, reason):
    reject = parse(row(**values), repeats=2)
    assert isinstance(reject, Reject)
    assert (reject.source, reject.line, reject.text) == ("x.csv", 7, "as it stands")
    assert reason in reject.reason and len(reject.reason) < 1000


def test_a_sweep_begins_from_the_same_noise_and_other_prompts_do_not():
    found = jobs(row(prompt=["a", "b"], cfg_scale="4, 8"), sweeps={"steps": (5, 6)})
    assert [(job.prompt, job.guidance_scale, job.steps) for job in found] == [
        (prompt, scale, steps) for prompt in "ab" for scale in (4.0, 8.0) for steps in (5, 6)
    ]
    assert len({(job.prompt, job.seed) for job in found}) == 2 == len({job.seed for job in found})
    assert found[0].seed == jobs(row(prompt="a"))[0].seed


def test_a_sweep_of_the_run_goes_before_its_settings_and_after_a_row():
    assert [job.steps for job in jobs(row(prompt="a"), {"steps": 3}, sweeps={"steps": (5, 6)})] == [5, 6]
    assert [job.steps for job in jobs(row(prompt="a", steps="4"), {"steps": 3}, sweeps={"steps": (5, 6)})] == [4]
    assert [job.steps for job in jobs(row(prompt="a", steps=""), {"steps": 3}, sweeps={"steps": (5, 6)})] == [5, 6]


def test_a_template_is_chosen_from_by_the_jobs_own_seed():
    text = "a {red|green|blue|black} __animals/*__"
    found = parse(row(prompt=text), repeats=20)
    assert len({asked.job.prompt for asked in found}) > 5
    assert all(asked.notes == {"prompt_template": text, "template_mode": "random"} for asked in found)
    for asked in found:
        [again] = jobs(row(prompt=text, seed=asked.job.seed))
        assert again.prompt == asked.job.prompt


def test_all_combinations():
    found = parse(
        row(prompt="a {red|blue} __animals/dogs__", seed=3), {"negative_prompt": "{x|y}"}, 2, combinations="all"
    )
    assert [(asked.job.prompt, asked.job.negative_prompt, asked.job.seed) for asked in found] == [
        (f"a {colour} pug", negative, seed) for colour in ("red", "blue") for negative in "xy" for seed in (3, 4)
    ]
    assert found[0].notes == {
        "prompt_template": "a {red|blue} __animals/dogs__",
        "negative_prompt_template": "{x|y}",
        "template_mode": "all",
    }
    seeds = {asked.job.seed for asked in parse(row(prompt="{a|b|c}", combinations="all"), combinations="none")}
    assert len(seeds) == 3


def test_no_templates():
    [asked] = parse(row(prompt="a {b __c__", combinations="none", seed=1))
    assert asked == JobRequest(Job(prompt="a {b __c__", seed=1), {})


@pytest.mark.parametrize("seed", [-1, "-1", -1.0, " -1 "])
def test_random_seeds(seed):
    found = jobs(row(prompt="a", seed=seed, steps="3, 4"), repeats=2)
    assert [job.seed for job in found[:2]] == [job.seed for job in found[2:]]
    assert len({job.seed for job in found}) == 2 and all(0 <= job.seed < 2**48 for job in found)
    assert found == jobs(row(prompt="a", seed=seed, steps="3, 4"), repeats=2)
    assert found[0] not in jobs(row(prompt="a", seed=seed, steps="3, 4"), repeats=2, run_name="other")
    assert jobs(row(prompt="a"), {"seed": -1}) != jobs(Row("x.csv", 8, {"prompt": "a"}, "", None), {"seed": -1})
    [job] = jobs(row(prompt="a", seed=-1, variation_seed=-1, variation_strength=0.5))
    assert len({job.seed, job.variation_seed, -1}) == 3


def test_an_empty_prompt_is_one_where_values_have_types_and_left_out_in_a_table():
    typed = Row("x.jsonl", 1, {"prompt": "", "steps": 3}, "", None)
    assert jobs(typed)[0].prompt == "" and jobs(typed)[0].steps == 3
    assert isinstance(parse(row(prompt="", steps="3")), Reject)


def test_random_seeds_of_a_list_differ():
    seeds = [job.seed for job in jobs(row(prompt="a", seed=[-1, -1, -1]))]
    assert len(set(seeds)) == 3


def test_sweeps_of_the_command_line_are_combined_each_with_each_or_one_by_one():
    sweeps = {"steps": (1, 2), "guidance_scale": (3.0, 4.0)}
    found = [(job.steps, job.guidance_scale) for job in jobs(row(prompt="a"), sweeps=sweeps)]
    assert found == [(1, 3.0), (1, 4.0), (2, 3.0), (2, 4.0)]
    found = [(job.steps, job.guidance_scale) for job in jobs(row(prompt="a"), sweeps=sweeps, sweep="zip")]
    assert found == [(1, 3.0), (2, 4.0)]
    uneven = {"steps": (1, 2), "guidance_scale": (3.0, 4.0, 5.0)}
    assert "steps has 2, guidance_scale has 3" in parse(row(prompt="a"), sweeps=uneven, sweep="zip").reason


def test_what_a_field_wants_beside_it_may_be_swept_or_come_from_the_configuration():
    swept = jobs(row(prompt="a", classifier_scale=2.0, classifier_label=[0, 5]))
    assert [job.classifier_label for job in swept] == [0, 5]
    assert swept[0].seed == swept[1].seed
    [job] = jobs(row(prompt="a", variation_strength=0.5), {"variation_seed": 3})
    assert job.variation_seed == 3


# --- Limits of a row ---


def test_templates_that_become_more_than_memory_holds_reject_their_row(monkeypatch):
    reject = parse(row(prompt="{a|b}" * 15 + "x" * 90_000), combinations="all")
    assert isinstance(reject, Reject)
    assert "more than 100000000 letters together" in reject.reason and "cut it into several rows" in reject.reason
    monkeypatch.setattr(sweeps, "MAX_LETTERS_PER_ROW", 100)
    for values, options in (
        ({"prompt": "{a|b}" * 3 + "x" * 20}, {"combinations": "all"}),
        ({"prompt": "{a|b} x", "negative_prompt": "{c|d}" + "x" * 30}, {"combinations": "all"}),
        ({"prompt": "{a|b}" + "x" * 20, "seed": "1..5"}, {}),
        ({"prompt": "{a|b}" + "x" * 20}, {"repeats": 5}),
    ):
        assert "more than 100 letters together" in parse(row(**values), **options).reason
    assert len(jobs(row(prompt="{a|b}" * 3 + "x" * 7), combinations="all")) == 8
    assert len(jobs(row(prompt="x" * 60, seed="1..5"))) == 5


def test_a_row_may_begin_with_a_comment():
    [asked] = parse(row(prompt="# the subject\na red cat"))
    assert asked.job.prompt == "a red cat" and asked.notes["prompt_template"] == "# the subject\na red cat"
    assert jobs(row(prompt="#1 cat"))[0].prompt == "#1 cat"
    assert jobs(row(prompt="# the subject\na red cat"), combinations="none")[0].prompt == "# the subject\na red cat"
