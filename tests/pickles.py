"""Pickled files in torch's form, written without torch."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.pickles import archive, storage, tensor, text


def write(file: Path, value: Any) -> Path:
    """Writes a value of plain types and arrays of float32 as `torch.save` does; gives the file."""
    storages: dict[str, bytes] = {}
    return archive(file, _opcodes(value, storages), storages)


def _opcodes(value: Any, storages: dict[str, bytes]) -> bytes:
    """A pickle's instructions for a value."""

    def every(values: Iterable[Any]) -> bytes:
        return b"(" + b"".join(_opcodes(each, storages) for each in values)

    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int | float):
        return f"{'I' if isinstance(value, int) else 'F'}{value!r}\n".encode()
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list | tuple):
        return b"]" + every(value) + b"e" if isinstance(value, list) else every(value) + b"t"
    if isinstance(value, dict):
        return b"}" + every(itertools.chain.from_iterable(value.items())) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    key, whole = str(len(storages)), np.ascontiguousarray(value)
    storages[key] = whole.tobytes()
    return tensor(storage(key, whole.size), whole.shape, [stride // whole.itemsize for stride in whole.strides])
