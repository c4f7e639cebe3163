"""What takes temporary files and locks away again when a process ends without going back through its callers.

A program that is stopped by a signal may end itself from another thread, where no `finally` runs. Such a program hands
over a guard, which knows what is under way and undoes it; without one only exceptions are provided for.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

_Made = TypeVar("_Made")
# Arguments and result are those of `guarded`.
Guard = Callable[[Callable[[], Any], Callable[[Any], Any], bool], AbstractContextManager[Any]]


@contextlib.contextmanager
def _unguarded(make: Callable[[], Any], undo: Callable[[Any], Any], remote: bool) -> Iterator[Any]:
    yield make()


_guard: Guard = _unguarded


def use_interruption_guard(guard: Guard) -> None:
    """Sets the guard of all stores in this process."""
    global _guard
    _guard = guard


def guarded(
    make: Callable[[], _Made], undo: Callable[[_Made], Any], remote: bool = False
) -> AbstractContextManager[_Made]:
    """A context with what `make` gives, of which the guard leaves nothing if the process is stopped within.

    The end of the context, by whatever exception, leaves that to its user.

    Args:
      make: makes something that may be left behind.
      undo: takes it away again; runs in another thread, beside the one that is in the context.
      remote: whether `undo` asks another machine, and so may take long.
    """
    return _guard(make, undo, remote)
