"""What is under way is undone by the guard of a program that is stopped."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from sdjax.storage import LOCK, LocalStore, interruption, use_interruption_guard
from tests.storage.folders import files_below


@pytest.fixture
def stop() -> Iterator[Callable[[], None]]:
    """Undoes what is under way, as a program does that is stopped."""
    undone = []

    @contextlib.contextmanager
    def guard(make, undo, remote):
        made = make()
        undone.append(lambda: undo(made))
        yield made
        undone.pop()

    def stop():
        for undo in reversed(undone):
            undo()

    before = interruption._guard
    use_interruption_guard(guard)
    yield stop
    use_interruption_guard(before)


def test_a_file_that_is_being_written_the_lock_and_files_until_the_end_of_a_run_are_taken_away(stop, tmp_path):
    store = LocalStore(str(tmp_path))
    store.put("whole", b"1")
    with store.exclusive(print), store.removing("part-"):
        store.put("part-1", b"1")
        with pytest.raises(OSError), store.replacing("x") as stream:
            stream.write(b"1")
            assert len(files_below(tmp_path)) == 4 and LOCK in files_below(tmp_path)
            stop()
            assert files_below(tmp_path) == ["whole"]
