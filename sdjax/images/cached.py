"""Decoded images and what is made of them, kept by the contents of their files.

Many rows name the same image, and an image is opened when its row is planned and again when it is sampled.
"""

import hashlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np

from sdjax.library.store import Store

# Bytes of images that a process keeps: twenty of 2048x2048 pixels.
MAX_BYTES = 256 << 20

_store = Store(MAX_BYTES)


class CachedImage(NamedTuple):
    """An image, a mask or a depth map, with what it was made of.

    values: its pixels or numbers; read-only, since all who ask for it share them.
    key: the sha256 of its file, then each function that was applied, with its arguments.
    notes: what was done to read the file.
    """

    values: np.ndarray
    key: tuple[Hashable, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The sha256 of its file."""
        return str(self.key[0])

    def map(self, function: Callable[..., np.ndarray], *arguments: Hashable) -> "CachedImage":
        """A pure function of the values and some arguments, computed if its result is not kept; it may raise."""
        key = (*self.key, function, *arguments)

        def compute() -> np.ndarray:
            values = function(self.values, *arguments)
            # A view would keep all that it is a part of.
            return _read_only(values.copy() if values.base is not None and values is not self.values else values)

        return CachedImage(_store.get(key, compute), key)


def decoded(decode: Callable[[bytes, str], tuple[Any, tuple[str, ...]]], data: bytes, name: str) -> CachedImage:
    """An image from the bytes of its file, decoded if it is not kept.

    Args:
      decode: `read_image` or `read_grey`: (bytes, name) -> (values, notes); what it raises is not kept.
      data: the file's bytes.
      name: names the file in errors.
    """

    def read() -> tuple[np.ndarray, tuple[str, ...]]:
        values, notes = decode(data, name)
        return _read_only(values), notes

    key = (hashlib.sha256(data).hexdigest(), decode)
    values, notes = _store.get(key, read)
    return CachedImage(values, key, notes)


def _read_only(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values
