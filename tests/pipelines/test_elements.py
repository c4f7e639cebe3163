"""Elements come back from their bytes as they were, and their bytes are the same everywhere."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.elements import KINDS, Count, ManifestRow, PlannedJob, decode, encode, is_of
from pipelines.sources.rows import Row
from sdjax.jobs.job import Job

# Also halves of surrogate pairs, which names of files and prompts of strangers have.
TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
WHOLE = st.integers(-(10**309), 10**309)
NUMBER = st.floats(allow_nan=False) | WHOLE
VALUE = st.none() | st.booleans() | NUMBER | TEXT
COLUMNS = st.dictionaries(TEXT, VALUE | st.lists(VALUE, max_size=3), max_size=4)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {"str": TEXT, "int": WHOLE, "bool": st.booleans()}


def elements_of(kind: type) -> st.SearchStrategy[Any]:
    """Elements of a kind with any values in their fields."""
    types = {name: getattr(each, "__name__", "") for name, each in kind.__annotations__.items()}
    return st.builds(kind, **{name: BY_TYPE.get(each, COLUMNS) for name, each in types.items()})


ELEMENTS = st.one_of([elements_of(kind) for kind in KINDS.values()])


@given(ELEMENTS)
def test_an_element_comes_back_digit_by_digit_with_the_order_of_its_columns(element):
    back = decode(encode(element))
    assert type(back) is type(element) and repr(back) == repr(element)
    assert encode(back) == encode(element)


@given(ELEMENTS)
def test_the_bytes_say_the_kind(element):
    others = tuple(kind for kind in KINDS.values() if kind is not type(element))
    assert is_of(encode(element), (type(element),)) and not is_of(encode(element), others)


def test_numbers_that_are_none_and_numbers_beyond_all_come_back():
    row = decode(encode(ManifestRow("ab", {"a": float("nan"), "b": float("inf"), "c": -0.0, "d": 2**64})))
    assert isinstance(row, ManifestRow)
    assert repr(list(row.row.values())) == "[nan, inf, -0.0, 18446744073709551616]"


def test_the_bytes_are_those_of_every_version():
    job = PlannedJob("00ff", {"prompt": "a cät", "seed": 3}, "0123456789abcdef", {}, "", "p.txt", 1, cut=False)
    text = '["PlannedJob","00ff",{"prompt":"a cät","seed":3},"0123456789abcdef",{},"","p.txt",1,false]'
    assert encode(job) == text.encode()
    assert encode(Count("rows", 1)) == b'["Count","rows",1]'
    assert encode(Row("p.txt", 1, None, "\ud83d\udc31", "bad")) == (
        b'["Row","p.txt",1,null,"\xed\xa0\xbd\xed\xb0\xb1","bad"]'  # two halves stay two
    )


@pytest.mark.parametrize("data", [b'["Other",1]', b'["Count","rows",1,2]', b'["Count"]'])
def test_bytes_of_another_version_are_an_error_that_says_so(data):
    with pytest.raises(ValueError, match="this worker has another version of sdjax"):
        decode(data)


@pytest.mark.parametrize(
    "job",
    [
        Job(prompt="a cat", seed=2**64 - 1, steps=1, guidance_scale=7.3, variation_seed=5, variation_strength=1e-17),
        Job(prompt="\ud800 é \U0001f431 {|}", negative_prompt='"\\\n', seed=0, width=64, height=8),
        Job(prompt="", controlnets="canny:0.7:0:0.5", control_image="x y.png", preview_every=3, eta=0.1),
    ],
)
def test_a_job_is_planned_and_comes_back_as_it_was(job):
    planned = PlannedJob("00", job.given, "k", {}, "", "p", 1, cut=False)
    back = decode(encode(planned))
    assert isinstance(back, PlannedJob) and back.to_job() == job
