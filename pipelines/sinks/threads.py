"""Work on images in threads: encoding and writing go on while the next images are made."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Encoding and storing leave Python for most of their time. More threads than this outpace any accelerator of one host.
_MOST_THREADS = 8


def mapped(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """The results of a function for each of `items`, in their order, computed in threads.

    Items are taken from their iterator in the thread of the caller, at most twice as many ahead as there are threads.
    What was taken is worked on to its end, also if the iterator fails or the caller stops; no thread remains after it.

    Args:
      function: what it raises for an item is raised in the place of its result, and ends the iteration.
      items: of any number.
      threads: by default one for each core, up to 8.
    """
    count = threads or min(_MOST_THREADS, os.cpu_count() or 1)
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count, "images") as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            while pending and (pending[0].done() or len(pending) > 2 * count):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
