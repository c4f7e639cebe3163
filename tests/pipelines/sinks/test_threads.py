"""Images are encoded and stored in threads, in their order, and no failure is lost."""

import threading
from collections.abc import Iterator

import pytest

from pipelines.sinks.threads import mapped

THREADS = 2


def test_results_come_in_the_order_of_items_however_long_each_takes():
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(10)  # the first ends after the second
        if number == 1:
            second.set()
        return number * number

    assert list(mapped(work, range(20), THREADS)) == [number * number for number in range(20)]


def test_items_are_taken_only_a_few_ahead_of_what_is_done():
    taken, go_on = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            if number == 2 * THREADS:
                go_on.set()
            yield number

    def work(number: int) -> int:
        assert go_on.wait(10)
        return number

    results = mapped(work, items(), THREADS)
    for number in range(50):
        assert next(results) == number
        assert len(taken) <= number + 1 + 2 * THREADS + 1
    results.close()
    assert len(taken) < 100


def test_a_failure_is_raised_in_its_place_after_the_results_before_it():
    def work(number: int) -> int:
        if number == 3:
            raise OSError("the disk is full")
        return number

    results, found = mapped(work, range(10), THREADS), []
    with pytest.raises(OSError, match="the disk is full"):
        for each in results:
            found.append(each)
    assert found == [0, 1, 2]


def test_what_was_taken_is_done_to_its_end_where_items_fail_and_no_thread_remains():
    done: set[int] = set()

    def items() -> Iterator[int]:
        yield from range(5)
        raise RuntimeError("the device is gone")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(mapped(done.add, items(), THREADS))
    assert done == set(range(5))
    assert threading.active_count() == before
