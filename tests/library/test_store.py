"""What is kept of files that have been read, in how many bytes, by how many threads."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sdjax.checkpoints.tensors import CheckpointError
from sdjax.library.store import _OVERHEAD, Store, bytes_of

KILOBYTE = 1 << 10


def array(kilobytes: int) -> dict[str, Any]:
    return {"weights": [np.zeros(kilobytes * KILOBYTE, np.uint8)], "name": "a"}


def room(*kilobytes: int) -> int:
    """Bytes in which arrays of so many kilobytes just fit."""
    return sum(each * KILOBYTE + _OVERHEAD for each in kilobytes)


def read_counting(store: Store, reads: Counter[Any], key: Any, kilobytes: int) -> Any:
    def read() -> Any:
        reads[key] += 1
        return array(kilobytes)

    return store.get(key, read)


def test_a_value_is_read_once_while_it_is_kept():
    store, reads = Store(), Counter[Any]()
    first = read_counting(store, reads, "a", 1)
    assert read_counting(store, reads, "a", 1) is first and reads == {"a": 1}


def test_what_was_used_longest_ago_goes_first():
    store, reads = Store(room(4, 4)), Counter[Any]()
    for key in ("a", "b", "a", "c", "a", "b"):
        read_counting(store, reads, key, 4)
    assert reads == {"a": 1, "b": 2, "c": 1}


def test_a_value_larger_than_all_bytes_is_kept_alone_while_it_is_in_use():
    store, reads = Store(room(4)), Counter[Any]()
    for key, kilobytes in (("small", 1), ("large", 100), ("large", 100), ("small", 1), ("large", 100)):
        read_counting(store, reads, key, kilobytes)
    assert reads == {"small": 2, "large": 2}


def test_all_arrays_of_a_value_count_wherever_they_are():
    assert bytes_of(array(3)) == 3 * KILOBYTE and bytes_of("text") == bytes_of(None) == 0


def test_an_error_of_a_kept_kind_is_raised_again_without_reading_and_any_other_is_read_again():
    store, reads = Store(errors=(CheckpointError,)), Counter[str]()

    def failing(error: Exception) -> Any:
        def read() -> Any:
            reads[type(error).__name__] += 1
            raise error

        return read

    for _ in range(3):
        with pytest.raises(CheckpointError, match="x is no file of weights"):
            store.get("x", failing(CheckpointError("x is no file of weights")))
        with pytest.raises(OSError, match="away"):
            store.get("y", failing(OSError("away")))
    assert reads == {"CheckpointError": 1, "OSError": 3}
    assert store.get("y", lambda: 1) == 1


def at_once(calls: Sequence[Any]) -> list[Any]:
    """What functions return that begin at the same time, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call: Any) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_of_threads_that_ask_for_one_file_at_once_one_reads_it(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    save_file({"weights": np.arange(1 << 18, dtype=np.float32)}, file)
    store, reads = Store(), Counter[str]()

    def read() -> Any:
        reads["a"] += 1
        return load_file(file)

    found = at_once([lambda: store.get("a", read)] * 8)
    assert reads == {"a": 1} and all(each is found[0] for each in found)


def test_threads_that_read_different_files_do_not_wait_for_each_other(tmp_path: Path):
    """Each ends reading when all have begun: if one waited, the barrier would break."""
    store, begun = Store(), threading.Barrier(4, timeout=60)
    for index in range(4):
        save_file({"weights": np.full(8, index, np.float32)}, tmp_path / f"{index}.safetensors")

    def reading(index: int) -> Any:
        def read() -> Any:
            begun.wait()
            return load_file(tmp_path / f"{index}.safetensors")

        return lambda: store.get(index, read)

    found = at_once([reading(index) for index in range(4)])
    assert [each["weights"][0] for each in found] == [0, 1, 2, 3]


def test_where_a_read_fails_those_that_wait_read_for_themselves():
    store, reads, first = Store(), Counter[str](), threading.Event()

    def read() -> int:
        reads["a"] += 1
        if not first.is_set():
            first.set()
            raise MemoryError
        return 1

    def call() -> int | None:
        try:
            return store.get("a", read)
        except MemoryError:
            return None

    found = at_once([call] * 4)
    assert sorted(map(str, found)) == ["1", "1", "1", "None"] and reads == {"a": 2}


def test_a_value_may_be_made_of_another():
    store = Store()
    assert store.get("b", lambda: store.get("a", lambda: 1) + 1) == 2


@given(
    most=st.integers(0, 40),
    asked=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 12)), max_size=30),
)
def test_kept_bytes_never_exceed_the_budget_and_the_last_value_is_always_kept(most, asked):
    """Compared with the rule written plainly: forget the longest unused until the rest fits, never the last."""
    budget = room(most)
    store, sizes, reads = Store(budget), dict(asked), Counter[Any]()
    kept: list[str] = []
    expected: Counter[Any] = Counter()
    for key, _ in asked:
        read_counting(store, reads, key, sizes[key])
        if key in kept:
            kept.remove(key)
        else:
            expected[key] += 1
        kept.append(key)
        while len(kept) > 1 and sum(min(budget, room(sizes[each])) for each in kept) > budget:
            kept.pop(0)
        assert store.size <= budget
    assert reads == expected
