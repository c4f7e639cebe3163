"""The batch size that fits into the memory of a device is found by what compiled programs take, and nothing is run."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdjax
from sdjax.engine.batch_size import SIZES, largest
from sdjax.engine.engine import Engine
from sdjax.engine.execution import Execution


@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 400))
def test_it_is_the_largest_whose_need_is_within_the_limit(fixed, each, limit):
    expected = max((size for size in SIZES if fixed + each * size <= limit), default=0)
    assert largest(SIZES, lambda size: fixed + each * size, limit) == expected


def test_a_size_that_takes_more_than_the_line_says_is_not_chosen():
    assert largest(SIZES, lambda size: size if size < 16 else 10 * size, 100) == 12


@pytest.fixture(scope="module")
def engine(tiny) -> Engine:
    return Engine(tiny, batch_size=1)


def task_of(engine: Engine) -> object:
    return engine.prepare(sdjax.Job(prompt="a", seed=1, steps=2, sampler="euler", width=16, height=16))


def test_more_memory_gives_larger_batches_and_too_little_none(engine):
    found = [engine.fitting_batch_size(task_of(engine), free=free) for free in (1000, 1 << 20, 1 << 22, 1 << 40)]
    assert found == sorted(found) and found[0] == 0 and found[-1] == SIZES[-1]
    assert engine.fitting_batch_size(task_of(engine), free=1 << 40, below=8) == 6
    assert engine.fitting_batch_size(task_of(engine), free=1 << 40, below=1) == 0


def test_what_this_machine_has_left_is_enough_for_an_image(engine):
    assert engine.fitting_batch_size(task_of(engine)) >= 1


def test_an_engine_of_another_batch_size_makes_the_images_of_one_that_began_with_it(engine, tiny):
    jobs = [
        sdjax.Job(prompt=f"a cat {number}", seed=number, steps=2, sampler="euler", width=16, height=16)
        for number in range(3)
    ]
    changed, own = engine.with_batch_size(2), Engine(tiny, batch_size=2)
    assert changed.identity == own.identity != engine.identity
    results = [list(each.run(map(each.prepare, jobs))) for each in (changed, own)]
    for ours, theirs in zip(*results, strict=True):
        assert (ours.metadata, ours.image.tobytes()) == (theirs.metadata, theirs.image.tobytes())
    with pytest.raises(ValueError, match="batch_size = 0: expected at least 1"):
        engine.with_batch_size(0)


@pytest.mark.parametrize("batch_size, advice", [(4, "a batch size of 3 fits"), (1, "not even a batch size of 1 fits")])
def test_out_of_memory_names_the_batch_size_that_fits_in_one_line(engine, monkeypatch, batch_size, advice):
    def full(state: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nand pages more")

    monkeypatch.setattr(Execution, "begin_fetching", staticmethod(full))
    one = engine.with_batch_size(batch_size)
    [result] = one.run([task_of(one)])
    assert isinstance(result.problem, MemoryError) and not result.finite
    assert str(result.problem) == (
        f"out of memory at 16x16 pixels with a batch size of {batch_size}: {advice} "
        "(RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.)"
    )
