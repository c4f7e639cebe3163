"""What has been read of files, bounded in bytes."""

import threading
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import cachetools
import jax

# Bytes that are kept: of eight ControlNets of Stable Diffusion 1 in float32, and some adapters besides.
MAX_BYTES = 12 << 30
# What counts of each value besides its arrays, so that there are not any number of small ones.
_OVERHEAD = 1 << 12

Value = TypeVar("Value")


class _Failure(NamedTuple):
    """Why a value can't be read."""

    kind: type[ValueError]
    message: str


class Store:
    """Values by key, each read once while it is kept; those that were used last are kept, up to some bytes.

    Whatever is in use is kept, however large: of a value larger than all bytes, that alone. Any number of threads may
    use it: of several that ask for one key one reads, and the others wait for it; none waits for another key. Some
    errors are kept in the place of a value, so a key has to be another once a file has changed.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, errors: tuple[type[ValueError], ...] = ()) -> None:
        """A store with nothing in it.

        Args:
          max_bytes: of the arrays in all values.
          errors: that are kept, made of a message alone.
        """
        self._errors = errors
        self._cache: cachetools.LRUCache[Hashable, object] = cachetools.LRUCache(
            max_bytes, lambda value: min(max_bytes, bytes_of(value) + _OVERHEAD)
        )
        cached = cachetools.cached(self._cache, key=lambda key, read: key, condition=threading.Condition())
        self._get: Callable[[Hashable, Callable[[], object]], object] = cached(self._outcome)

    @property
    def size(self) -> int:
        """Bytes of what is kept; what is larger than all of them counts as all."""
        return int(self._cache.currsize)

    def get(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """The value of a key; `read` gives it if it is not kept, and may ask for other keys.

        Raises:
          ValueError: what `read` raised, now or, of the kinds that are kept, when it was last called.
        """
        outcome = self._get(key, read)
        if isinstance(outcome, _Failure):
            raise outcome.kind(outcome.message)
        return outcome  # type: ignore[return-value]  # what `read` gave

    def _outcome(self, key: Hashable, read: Callable[[], object]) -> object:
        try:
            return read()
        except self._errors as error:
            return _Failure(type(error), str(error))


def bytes_of(value: object) -> int:
    """The size of all arrays in a tree."""
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(value))
