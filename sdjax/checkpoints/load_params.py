"""Loads the parameters of networks: each file is read once, from its beginning to its end, straight into our layout.

A file passes in pieces of a few rows of a tensor. While one piece is read, those before it are hashed and copied to
their places, transposed and cast, by other threads: a piece is small enough to stay in the processor's cache until
then, and a transposition of few rows is several times as fast as one of the whole. Beside the parameters themselves
only the pieces are in memory.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, Shaped

from sdjax.checkpoints import name_table
from sdjax.checkpoints.stored_tensor import CheckpointError, Tensor, numbers, read_into, read_tensor

Params = dict[str, Any]

# Bytes of a piece, and pieces in memory at any moment.
_PIECE = 1 << 22
_PIECES = 8
# Bytes at whose multiples parameters begin: what JAX wants of memory that it takes over.
_ALIGNED = 64
# Rows that are transposed at once: as many numbers of four bytes as a line of the processor's cache holds.
_ROWS = 16
# Threads that copy; another one hashes.
_COPYING = 2


class ParamTensor(NamedTuple):
    """A parameter and the stored tensor it is loaded from.

    path: the parameter's in our tree.
    rows: the part of the tensor along its first axis (fused projections); None for the whole.
    """

    path: name_table.Path
    tensor: Tensor
    rows: tuple[int, int] | None = None


class NetworkTensors(NamedTuple):
    """The tensors of which a network's parameters are loaded.

    chosen: one for each leaf of `shapes`, in any order.
    shapes: the network's tree, of anything with a `shape`.
    dtype: of the parameters in memory.
    """

    chosen: Sequence[ParamTensor]
    shapes: Params
    dtype: DTypeLike


class _Place(NamedTuple):
    """Where rows of a stored tensor go.

    target: the parameter, its axes as in the file (a view).
    rows: of the tensor, from and to.
    """

    target: Shaped[np.ndarray, "..."]
    rows: tuple[int, int]


class _Piece(NamedTuple):
    """Bytes of a file, and what they are: rows of a tensor from `first` on, or nothing that is needed."""

    offset: int
    length: int
    tensor: Tensor | None = None
    first: int = 0


def load_networks(parts: Mapping[str, NetworkTensors], hashed: bool = True) -> tuple[Params, dict[Path, str]]:
    """Reads networks' parameters, each straight to its place, cast once.

    Args:
      parts: the networks by name; their tensors may lie in the same file.
      hashed: whether the files are hashed in passing, for which they are read as a whole.

    Returns:
      the parameters (arrays of numpy) by the network's name, and the sha256 of each file (none if not `hashed`).

    Raises:
      CheckpointError: if a file is gone or ends early, or a tensor has not as many numbers as its parameter.
    """
    params: Params = {}
    places: dict[Path, dict[Tensor, list[_Place]]] = {}
    for name, part in parts.items():
        shapes = {tuple(key.key for key in keys): leaf.shape for keys, leaf in jax.tree.leaves_with_path(part.shapes)}
        arrays = _allocated(shapes, jnp.dtype(part.dtype))
        for path, tensor, rows in part.chosen:
            target, whole = name_table.in_file(path, arrays[path]), rows or (0, tensor.shape[0] if tensor.shape else 1)
            _check(tensor, target, whole)
            places.setdefault(tensor.file, {}).setdefault(tensor, []).append(_Place(target, whole))
        params[name] = jax.tree.unflatten(jax.tree.structure(part.shapes), [arrays[path] for path in shapes])
    digests = {}
    try:
        for file, tensors in places.items():
            digests[file] = _load(file, tensors, hashed)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    return params, digests if hashed else {}


def _allocated(shapes: Mapping[name_table.Path, tuple[int, ...]], dtype: np.dtype[Any]) -> dict[name_table.Path, Any]:
    """An array for each parameter of a network, all in one block of memory, which the system gives in large pages."""
    sizes = {path: math.prod(shape) * dtype.itemsize for path, shape in shapes.items()}
    block = np.empty(sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes.values()) + _ALIGNED, np.uint8)
    start = -block.ctypes.data % _ALIGNED
    arrays = {}
    for path, size in sizes.items():
        arrays[path] = block[start : start + size].view(dtype).reshape(shapes[path])
        start += -(-size // _ALIGNED) * _ALIGNED
    return arrays


def load_params(chosen: Sequence[ParamTensor], shapes: Params, dtype: DTypeLike) -> Params:
    """Reads one network's parameters; arguments and errors are those of `NetworkTensors` and `load_networks`."""
    return load_networks({"": NetworkTensors(chosen, shapes, dtype)}, hashed=False)[0][""]


def _check(tensor: Tensor, target: Shaped[np.ndarray, "..."], rows: tuple[int, int]) -> None:
    length = tensor.shape[0] if tensor.shape else 1
    if not 0 <= rows[0] <= rows[1] <= length or (rows[1] - rows[0]) * math.prod(tensor.shape[1:]) != target.size:
        raise CheckpointError(
            f"{tensor.file}: rows {rows[0]} to {rows[1]} of tensor {tensor.name!r}, which is {tensor.shape}, are no "
            f"parameter of {target.shape}"
        )


def _load(file: Path, tensors: Mapping[Tensor, Sequence[_Place]], hashed: bool) -> str:
    """Reads one file and gives its sha256."""
    digest = hashlib.sha256()
    buffers = [np.empty(_PIECE, np.uint8) for _ in range(_PIECES)]
    pending: list[list[Future[None]]] = [[] for _ in buffers]
    with (
        ThreadPoolExecutor(1) as hashing,
        ThreadPoolExecutor(_COPYING) as copying,
        file.open("rb", buffering=0) as opened,
    ):
        passing = _passing(tensors)
        size = os.fstat(opened.fileno()).st_size
        for turn, piece in enumerate(_pieces(passing, size, hashed)):
            slot = turn % _PIECES
            for task in pending[slot]:
                task.result()
            stored = buffers[slot][: piece.length]
            opened.seek(piece.offset)
            read_into(opened, stored, file)
            pending[slot] = [hashing.submit(digest.update, stored.data)] if hashed else []
            if piece.tensor:
                places = tensors[piece.tensor]
                pending[slot] += [copying.submit(_copy, piece.tensor, stored, piece.first, place) for place in places]
        for tasks in pending:
            for task in tasks:
                task.result()
    for tensor in tensors.keys() - set(passing):
        for place in tensors[tensor]:
            rows = read_tensor(tensor).reshape(tensor.shape or (1,))[slice(*place.rows)]
            place.target[...] = rows.reshape(place.target.shape).astype(place.target.dtype)
    return digest.hexdigest()


def _passing(tensors: Mapping[Tensor, Sequence[_Place]]) -> list[Tensor]:
    """The tensors that are read in passing, in the order of the file; pickled ones may overlap (tied weights)."""
    found: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        apart = not found or found[-1].offset + found[-1].nbytes <= tensor.offset
        if apart and _passes(tensor, tensors[tensor]):
            found.append(tensor)
    return found


def _passes(tensor: Tensor, places: Iterable[_Place]) -> bool:
    """Whether a tensor can be read row by row: it has rows, without gaps, and they stay rows in each of its places."""
    if tensor.strides is not None or not tensor.shape or not tensor.nbytes or tensor.nbytes // tensor.shape[0] > _PIECE:
        return False
    return all(place.target.ndim and len(place.target) == place.rows[1] - place.rows[0] for place in places)


def _pieces(tensors: Sequence[Tensor], size: int, hashed: bool) -> Iterator[_Piece]:
    """A file's pieces, in order, by its tensors in order; without `hashed` only those of tensors."""
    reached = 0
    for tensor in tensors:
        if hashed:
            yield from _gap(reached, tensor.offset)
        row = tensor.nbytes // tensor.shape[0]
        step = max(1, _PIECE // row // _ROWS * _ROWS or _PIECE // row)
        for first in range(0, tensor.shape[0], step):
            count = min(step, tensor.shape[0] - first)
            yield _Piece(tensor.offset + first * row, count * row, tensor, first)
        reached = tensor.offset + tensor.nbytes
    if hashed:
        yield from _gap(reached, size)


def _gap(start: int, end: int) -> Iterator[_Piece]:
    for offset in range(start, end, _PIECE):
        yield _Piece(offset, min(_PIECE, end - offset))


def _copy(tensor: Tensor, stored: Shaped[np.ndarray, " span"], first: int, place: _Place) -> None:
    """Copies some rows of a tensor, from `first` on, to their place; rows that do not belong there are left out."""
    count = len(stored) // (tensor.nbytes // tensor.shape[0])
    rows = numbers(tensor._replace(shape=(count, *tensor.shape[1:])), stored)
    start, end = max(first, place.rows[0]), min(first + count, place.rows[1])
    for begin in range(start, end, _ROWS):
        stop = min(begin + _ROWS, end)
        block = place.target[begin - place.rows[0] : stop - place.rows[0]]
        block[...] = rows[begin - first : stop - first].reshape(block.shape).astype(block.dtype, copy=False)
