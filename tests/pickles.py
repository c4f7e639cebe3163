"""Pickled files in torch's form, written without torch."""

import itertools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write(file: Path, value: Any) -> Path:
    """Writes a value of plain types and arrays of float32 as `torch.save` does; gives the file."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + _opcodes(value, archive) + b".")
    return file


def _opcodes(value: Any, archive: zipfile.ZipFile) -> bytes:
    """A pickle's instructions for a value."""

    def every(values: Iterable[Any]) -> bytes:
        return b"(" + b"".join(_opcodes(each, archive) for each in values)

    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int | float):
        return f"{'I' if isinstance(value, int) else 'F'}{value!r}\n".encode()
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, list | tuple):
        return b"]" + every(value) + b"e" if isinstance(value, list) else every(value) + b"t"
    if isinstance(value, dict):
        return b"}" + every(itertools.chain.from_iterable(value.items())) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    key = str(len(archive.namelist()))
    archive.writestr(f"archive/data/{key}", np.ascontiguousarray(value).tobytes())
    strides = tuple(stride // value.itemsize for stride in np.ascontiguousarray(value).strides)
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + every([key, "cpu", value.size])[1:] + b"tQ"
    sizes = every(value.shape) + b"t" + every(strides) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n" + sizes + b"\x89}tR"
