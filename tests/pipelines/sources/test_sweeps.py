import contextlib
import itertools
import json
import math
import re
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.sources import sweeps
from pipelines.sources.sweeps import (
    MAX_PER_ROW,
    SweepError,
    drawn_seed,
    expand,
    read_sweeps,
    row_key,
    size,
    swept,
    values_of,
)
from sdjax.jobs.job import FIELDS, JobError

DOCS = Path(__file__).parents[3] / "docs" / "prompts.md"


def expanded(values, others=None):
    rows = list(expand(values, others or {}))
    assert size(values, others or {}) == len(rows)
    return rows


# --- The values of one field ---


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", "1..5", [1, 2, 3, 4, 5]),
        ("seed", " 1 .. 3 ", [1, 2, 3]),
        ("steps", "1..9..2", [1, 3, 5, 7, 9]),
        ("steps", "1..10..4", [1, 5, 9]),
        ("steps", "3..1", [3, 2, 1]),
        ("steps", "9..1..4", [9, 5, 1]),
        ("steps", "9..1..-4", [9, 5, 1]),
        ("steps", "4..4", [4]),
        ("steps", "1, 4, 7..9", [1, 4, 7, 8, 9]),
        ("steps", "1..2.0", [1, 2]),
        ("seed", "-1, 5", [-1, 5]),
        ("seed", f"{2**64 - 2}..{2**64 - 1}", [2**64 - 2, 2**64 - 1]),
        ("guidance_scale", "4..8", [4.0, 5.0, 6.0, 7.0, 8.0]),
        ("guidance_scale", "4..5.5..0.5", [4.0, 4.5, 5.0, 5.5]),
        ("guidance_scale", "0..1...25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("guidance_scale", "7, 7.5", [7.0, 7.5]),
        ("sampler", "euler, ddim", ["euler", "ddim"]),
        ("noise_source", "threefry,torch", ["threefry", "torch"]),
        ("seed", [1, "3..5", 7.0], [1, 3, 4, 5, 7.0]),
        ("sampler", ["euler", None, "a, b"], ["euler", None, "a", "b"]),
        ("prompt", ["a, b", "1..3"], ["a, b", "1..3"]),
        # One value each, as it is.
        ("seed", " 5 ", [" 5 "]),
        ("seed", 5, [5]),
        ("steps", "nan", ["nan"]),
        ("steps", None, [None]),
        ("prompt", "a cat, 1..3, red", ["a cat, 1..3, red"]),
        ("negative_prompt", "blurry, text", ["blurry, text"]),
        ("prompt", {"a": 1}, [{"a": 1}]),
        ("steps", True, [True]),
    ],
)
def test_a_field_stands_for_these_values(name, value, expected):
    found = list(values_of(name, value))
    assert found == expected and list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("steps", "1..", "steps = '1..': expected first..last or first..last..step, such as 1..100"),
        ("steps", "..5", "expected first..last"),
        ("steps", "..", "expected first..last"),
        ("steps", "1..2..3..4", "expected first..last"),
        ("steps", "1..five", "expected first..last"),
        ("steps", "1..5,", "nothing between two commas; expected 1, 4, 7..9"),
        ("steps", "1,,5", "nothing between two commas"),
        ("sampler", "euler,", "nothing between two commas; expected euler, ddim"),
        ("steps", "1..9..0", "the step is 0; expected one above it"),
        ("guidance_scale", "0.2..0.8", "expected a step, such as 0.2..0.8..0.1"),
        ("steps", "1..3..0.5", "steps = '1..3..0.5': expected whole numbers"),
        ("steps", "0.5..2.5..1", "expected whole numbers"),
        ("steps", "1, many", "steps = 'many': expected a value of type int"),
        ("steps", "1, 2.5", "steps = '2.5': expected a value of type int"),
        ("steps", [], "steps = []: expected values in the list"),
        ("steps", [[1]], "steps: a list within a list; expected values such as 1, 4, 7..9"),
        ("seed", "1..1000001", "1000001 values; expected up to 1000000"),
        ("seed", "1..600000, 1..600000", "1200000 values; expected up to 1000000"),
        ("seed", "1.." + "9" * 20, f"{'9' * 20} values; expected up to 1000000"),
        ("seed", "1.." + "9" * 5000, "expected first..last"),
        ("colour", "red", "unknown column 'colour'"),
    ],
)
def test_values_that_make_no_sense_are_errors_that_tell_the_field_and_what_is_expected(name, value, expected):
    with pytest.raises((SweepError, JobError), match=re.escape(expected)) as raised:
        values_of(name, value)
    assert len(str(raised.value)) < 1000


@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 60), st.integers(0, 3))
@settings(deadline=None)
def test_ranges_are_exact_decimals_with_both_ends(first, last, step, digits):
    """Against the standard library's decimals."""
    first, last, step = (Decimal(number).scaleb(-digits) for number in (first, last, step))
    found = values_of("guidance_scale", f"{first:f}..{last:f}..{step:f}")
    sign = 1 if last >= first else -1
    exact = [first + sign * step * index for index in range(int(abs(last - first) / step) + 1)]
    assert list(found) == [float(number) for number in exact]


@given(st.sampled_from(sorted(FIELDS)), st.text(st.sampled_from("0123456789.,-+ e_x\u0661[]"), max_size=12))
@example("steps", " " * 100_000 + "1..2" + " " * 100_000 + "x")
@example("steps", "1.." * 50_000)
def test_any_text_is_values_or_an_error(name, text):
    with contextlib.suppress(SweepError, JobError):
        assert len(values_of(name, text)) >= 1


def test_fields_of_every_type_can_be_swept():
    for name in FIELDS:
        assert len(values_of(name, ["1", "2"])) == 2


# --- The rows that a row stands for ---


def test_a_row_without_lists_is_itself():
    values = {"prompt": "a, b", "seed": "5", "steps": 3}
    assert expanded(values) == [values] and swept(values) == frozenset()


def test_each_is_combined_with_each_and_the_last_field_varies_fastest():
    values = {"steps": "1, 2", "prompt": "a", "sampler": "euler, ddim"}
    assert [tuple(row.values()) for row in expanded(values)] == [
        (1, "a", "euler"),
        (1, "a", "ddim"),
        (2, "a", "euler"),
        (2, "a", "ddim"),
    ]
    assert swept(values) == {"steps", "sampler"}
    assert [list(row) for row in expanded(values)] == [list(values)] * 4


def test_zip_goes_on_with_all_fields_together_and_repeats_single_values():
    values = {"prompt": "a", "seed": "1..3", "sweep": "zip", "guidance_scale": [4.0, 5.5, 7], "steps": [9]}
    assert [tuple(row.values()) for row in expanded(values)] == [("a", 1, 4.0, 9), ("a", 2, 5.5, 9), ("a", 3, 7, 9)]


def test_zip_of_different_lengths_is_an_error_that_tells_them():
    with pytest.raises(SweepError, match="but seed has 3, steps has 2; make them equal"):
        expand({"prompt": "a", "seed": "1..3", "steps": "1, 2", "sweep": "zip"}, {})


def test_what_a_row_says_itself_goes_before_the_sweeps_of_the_run():
    others = {"steps": (1, 2), "seed": (7, 8)}
    assert expanded({"prompt": "a", "steps": "9"}, others) == [
        {"prompt": "a", "steps": "9", "seed": 7},
        {"prompt": "a", "steps": "9", "seed": 8},
    ]


def test_sweeps_of_the_run_are_combined_with_those_of_a_row_and_vary_faster():
    for sweep, pairs in (("product", itertools.product((1, 2), (4, 5))), ("zip", [(1, 4), (2, 5)])):
        rows = expanded({"prompt": "a", "seed": "1, 2", "steps": "4, 5", "sweep": sweep}, {"sampler": ("x", "y")})
        assert [(row["seed"], row["steps"], row["sampler"]) for row in rows] == [
            (*pair, sampler) for pair in pairs for sampler in ("x", "y")
        ]


def test_the_keys_of_a_row_are_no_fields():
    assert expanded({"prompt": "a", "sweep": "product", "combinations": "all"}) == [{"prompt": "a"}]


@given(
    st.dictionaries(
        st.sampled_from(["seed", "steps", "width", "height"]), st.lists(st.integers(1, 9), min_size=1, max_size=4)
    )
)
@settings(deadline=None)
def test_a_product_holds_each_combination_once_and_in_order(lists):
    rows = expanded({"prompt": "a", **lists})
    assert [tuple(row[name] for name in lists) for row in rows] == list(itertools.product(*lists.values()))
    assert len(rows) == math.prod(map(len, lists.values()))


def test_too_many_images_of_a_row_are_an_error_that_tells_how_many():
    values = {"prompt": "a", "seed": "1..1000", "steps": "1..1000"}
    assert size(values, {}) == MAX_PER_ROW
    assert next(expand(values, {})) == {"prompt": "a", "seed": 1, "steps": 1}
    for do in (size, expand):
        with pytest.raises(SweepError, match=r"2000000 images \(1000 of seed x 1000 of steps x 2 of width\)"):
            do(values, {"width": (64, 128)})


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_row_that_says_nothing_of_its_keys_takes_the_runs_word(value):
    assert row_key({"combinations": value}, "combinations") == "random"
    assert row_key({"combinations": value}, "combinations", "all") == "all"
    assert row_key({"combinations": " none "}, "combinations", "all") == "none"


@pytest.mark.parametrize("value", ["zipp", "ZIP", 3, True, ["zip"]])
def test_a_row_key_that_is_not_known_is_an_error(value):
    with pytest.raises(SweepError, match="expected one of product, zip"):
        expand({"prompt": "a", "sweep": value}, {})


# --- The command line ---


def test_sweeps_of_the_command_line():
    found = read_sweeps(
        ["steps=10..30..10", "sampler = euler, ddim", 'negative_prompt=["", "blurry, text"]', "seed=-1"]
    )
    assert found == {
        "steps": (10, 20, 30),
        "sampler": ("euler", "ddim"),
        "negative_prompt": ("", "blurry, text"),
        "seed": ("-1",),
    }
    assert read_sweeps(["seed=[1, 2]"]) == {"seed": (1, 2)}
    assert read_sweeps(["cfg_scale=4,5"]) == {"guidance_scale": (4.0, 5.0)}
    assert read_sweeps(["variation_strength=0..1..0.5"]) == {"variation_strength": (0.0, 0.5, 1.0)}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("steps", "--sweep steps: expected KEY=VALUES, such as steps=10..50..10"),
        ("steps=", "expected KEY=VALUES"),
        ("stepps=1,2", "--sweep stepps=1,2: unknown column 'stepps' (did you mean 'steps'?)"),
        ("prompt=a", "prompts belong into the prompt file"),
        ("negative_prompt=blurry", 'expected a JSON list of texts, such as ["", "blurry"], for negative_prompt'),
        ("steps=[1", "not a JSON list"),
        ("steps=" + "[" * 100_000, "not a JSON list"),
        ("steps=0,5", "steps = 0: expected a number from 1 to 1000"),
        ("sampler=euler,dim", "sampler = 'dim': expected one of"),
        ("steps=1..", "expected first..last"),
    ],
)
def test_a_sweep_that_can_not_be_is_an_error_before_the_run(text, expected):
    with pytest.raises(SweepError, match=re.escape(expected)):
        read_sweeps([text])


def test_a_field_is_swept_once():
    with pytest.raises(SweepError, match="steps is swept already"):
        read_sweeps(["steps=1", "steps=2"])


# --- Seeds drawn at random ---


def test_a_drawn_seed_is_one_for_each_image_and_the_same_when_tried_again():
    one = ("run", "x.csv", 7, "{}", 0)
    others = [
        ("other", *one[1:]),
        ("run", "y.csv", 7, "{}", 0),
        ("run", "x.csv", 8, "{}", 0),
        ("run", "x.csv", 7, "a", 0),
        (*one[:4], 1),
    ]
    seeds = [drawn_seed(*each) for each in (one, *others)]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**48 for seed in seeds)
    assert drawn_seed(*one) == seeds[0]
    assert drawn_seed("run", "half a pair \ud83d", 1, "", 0) >= 0


# --- The documentation ---


def test_what_the_documentation_shows_is_so():
    part = DOCS.read_text("utf-8").split("<!-- sweeps -->")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+?) \|$", part, re.MULTILINE)
    assert len(rows) > 5
    for name, text, shown in rows:
        assert [str(value) for value in values_of(name, text)] == re.findall("`(.*?)`", shown)
    lines = re.findall(r"^\{.*\}$", part, re.MULTILINE)
    assert lines
    for line in lines:
        assert expanded(json.loads(line))
    commands = re.findall(r"--sweep ([^\s`]+)", part)
    assert commands and read_sweeps(commands)
    for key, words in sweeps.ROW_KEYS.items():
        assert f"`{key}`" in part and all(f"`{word}`" in part for word in words)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": "1..1000," * 9000 + "1"},
        {"seed": ["1..1000"] * 5000},
        {"seed": "1..1000000000"},
        {name: "1..1000" for name in ("seed", "variation_seed", "steps", "width", "height")},
        {name: "1..1000" for name in ("seed", "variation_seed", "steps", "width", "height")} | {"sweep": "zip"},
    ],
)
def test_values_that_would_fill_the_memory_are_an_error_before_they_do(monkeypatch, values):
    monkeypatch.setattr(sweeps, "MAX_PER_ROW", 1000)
    monkeypatch.setattr(sweeps, "MAX_VALUES", 4000)
    tracemalloc.start()
    try:
        with pytest.raises(SweepError, match="expected up to"):
            size(values, {})
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**21
