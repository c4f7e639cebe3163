"""Safetensors files written from where their bytes lie in other files: a few megabytes are in memory at any time.

safetensors' own writer wants all tensors at once. What is written here is byte for byte what it would write: a length,
a header in JSON, and the tensors' bytes, the widest kinds of number first and then by name.
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sdjax.checkpoints.stored_tensor import DTYPES, CheckpointError, Tensor, read_tensor

_CHUNK = 1 << 23
_ALIGNED = 8
# safetensors' order of kinds of number within a file.
_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip


class Piece(NamedTuple):
    """A tensor in a file, or the part of it along its first axis that `rows` says."""

    tensor: Tensor
    rows: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        if self.rows is None:
            return self.tensor.nbytes
        return (self.rows[1] - self.rows[0]) * self._row

    @property
    def _row(self) -> int:
        return math.prod(self.tensor.shape[1:]) * DTYPES[self.tensor.dtype].itemsize

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, the last axis fastest, some at a time.

        Raises:
          CheckpointError: if the file ends before the tensor does.
        """
        tensor = self.tensor
        if tensor.strides is not None:
            array = read_tensor(tensor)
            yield (array if self.rows is None else array[slice(*self.rows)]).tobytes()
            return
        left = self.nbytes
        with tensor.file.open("rb") as opened:
            opened.seek(tensor.offset + (self.rows[0] * self._row if self.rows else 0))
            while left:
                data = opened.read(min(left, _CHUNK))
                if not data:
                    raise CheckpointError(f"{tensor.file} ends {left} bytes early: it has been cut while it was read")
                left -= len(data)
                yield data


class Target(NamedTuple):
    """A tensor to be written: `pieces`, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def in_order(targets: Sequence[Target]) -> list[Target]:
    """Tensors as they follow each other in a file that safetensors writes."""
    return sorted(targets, key=lambda target: (_ORDER.index(target.dtype), target.name.encode()))


def header_of(targets: Sequence[Target], metadata: Mapping[str, str]) -> bytes:
    """The header of a file with these tensors, one after the other, padded as safetensors does."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for target in targets:
        ends = [place, place + target.nbytes]
        entries[target.name] = {"dtype": target.dtype, "shape": target.shape, "data_offsets": ends}
        place += target.nbytes
    written = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    return written.ljust(math.ceil(len(written) / _ALIGNED) * _ALIGNED)


def read_header(file: Path) -> bytes:
    """The header of a safetensors file that is known to be whole."""
    with file.open("rb") as opened:
        return opened.read(int.from_bytes(opened.read(_ALIGNED), "little"))


def write_tensors(file: Path, targets: Sequence[Target], header: bytes) -> None:
    """Writes a safetensors file, folders above it included.

    Args:
      targets: in the order in which `header` has them.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(_ALIGNED, "little") + header)
        for target in targets:
            assert sum(piece.nbytes for piece in target.pieces) == target.nbytes, f"{target.name} has other bytes"
            for piece in target.pieces:
                opened.writelines(piece.chunks())


# What `written_whole` is writing just now.
_unfinished: set[Path] = set()


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to, which gets its name at the end; if anything fails, nothing is left.

    Raises:
      CheckpointError: if there is something of that name.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} is there already and is not overwritten; give another name, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    _unfinished.add(partial)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        _remove(partial)
        _unfinished.discard(partial)


def remove_unfinished() -> None:
    """Removes what this process has not written whole; for one that ends without going back through its callers."""
    for partial in tuple(_unfinished):
        # What another thread goes on writing does not get there any more.
        gone = partial.with_name(f"{partial.name}.gone")
        with suppress(OSError):
            os.rename(partial, gone)
            _remove(gone)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
