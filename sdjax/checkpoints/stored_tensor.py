"""A tensor that is stored in a file: its dtype, shape and place there, and how it is read."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt8


class CheckpointError(ValueError):
    """A checkpoint is not whole, or not what its config says; the message names the file and the tensors."""


# dtypes by safetensors' names.
DTYPES: Mapping[str, np.dtype[Any]] = {
    name: jnp.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}
# Axes that a tensor may have; numpy stops at 64.
MOST_AXES = 32
_MOST_ELEMENTS = 1 << 58


class Tensor(NamedTuple):
    """A tensor that is stored in a file; nothing of it is read yet.

    offset: of its first element in the file, in bytes.
    strides: elements from one index to the next, by axis; None if it lies without gaps, the last axis fastest.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # a key of `DTYPES`
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Its size once read."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def span(self) -> int:
        """How many bytes of the file, from `offset` on, its elements lie in."""
        if self.strides is None or 0 in self.shape:
            return self.nbytes
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * DTYPES[self.dtype].itemsize


def check_shape(shape: Sequence[object], what: str) -> None:
    """Raises `ValueError` unless numpy can hold arrays of a shape that a file tells, empty ones too."""
    counts = all(type(length) is int and 0 <= length < _MOST_ELEMENTS for length in shape)
    if len(shape) > MOST_AXES or not counts:
        raise ValueError(f"{what} has lengths that are no counts, or more than {MOST_AXES} axes")
    if math.prod(length for length in shape if isinstance(length, int) and length) >= _MOST_ELEMENTS:
        raise ValueError(f"{what} has more elements than there can be")


def numbers(tensor: Tensor, stored: UInt8[np.ndarray, " span"]) -> Shaped[np.ndarray, "..."]:
    """A tensor whose bytes have been read, as a view of them."""
    dtype = DTYPES[tensor.dtype]
    flat = stored.view(dtype)
    if tensor.strides is None or 0 in tensor.shape:
        return flat.reshape(tensor.shape)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def read_into(opened: io.FileIO, buffer: UInt8[np.ndarray, " n"], file: Path) -> None:
    """Fills a buffer from where a file stands.

    Raises:
      CheckpointError: if the file ends before.
    """
    rest = buffer.data
    while rest:
        count = opened.readinto(rest)
        if not count:
            raise CheckpointError(f"{file} ends {len(rest)} bytes early: it has been cut while it was read")
        rest = rest[count:]


def read_tensor(tensor: Tensor) -> Shaped[np.ndarray, "..."]:
    """A tensor, as stored.

    Raises:
      CheckpointError: if the file is gone, or ends before the tensor does.
    """
    stored = np.empty(tensor.span, np.uint8)
    try:
        with tensor.file.open("rb", buffering=0) as opened:
            opened.seek(tensor.offset)
            read_into(opened, stored, tensor.file)
    except OSError as error:
        raise CheckpointError(f"{tensor.file} can't be read ({error})") from error
    return np.ascontiguousarray(numbers(tensor, stored)).reshape(tensor.shape)
