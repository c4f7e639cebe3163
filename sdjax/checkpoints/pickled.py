"""Files that torch pickled, read without running anything: tensors and plain values come out, all else is refused.

Both of torch's formats are read: the zip archive (since 1.6), and the older one, in which the storages follow the
pickles.
"""

import functools
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from sdjax.checkpoints.stored_tensor import DTYPES, CheckpointError, Tensor
from sdjax.checkpoints.unpickling import MOST_NAME, ParameterDict, PickleError, Storage, run_pickle

# The directory of an archive, and its pickle (or the pickles of the older format), in bytes.
_MOST_DIRECTORY = 1 << 24
_MOST_BYTES = 1 << 26
# The values that a pickle may unfold to, and how deep they may lie in each other.
_MOST_VALUES = 100_000
_MOST_DEEP = 32
# Tensors may share storages (tied weights), but not without end: their sizes come to at most so many times the file's.
_MOST_SHARING = 4
# How the older format begins.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class _Counter:
    """What the values of a file come to, as they are unfolded."""

    def __init__(self, file: Path, most_bytes: int):
        self.file = file
        self.values = 0
        self.bytes = 0
        self.most_bytes = most_bytes

    def plain(self, value: Any, name: str, depth: int) -> Any:
        """A value without the machine's own things: those in dictionaries are left out, others become None.

        Raises:
          PickleError: if values lie too deep in each other, or are too many: a few bytes can be made to unfold
            without end.
        """
        if isinstance(value, ParameterDict):
            value = value.parameters
        # All that lie in it, those left out too, before any is looked at: it may come again and again.
        self.values += len(value) if isinstance(value, dict | list) or type(value) is tuple else 0
        if self.values > _MOST_VALUES or depth > _MOST_DEEP or len(name) > MOST_NAME:
            raise PickleError(
                f"{self.file} is no sound file of pickled tensors: its values are more than {_MOST_VALUES}, lie more "
                f"than {_MOST_DEEP} deep in each other, or have names of more than {MOST_NAME} characters"
            )
        if isinstance(value, Tensor):
            self.bytes += value.nbytes
            if self.bytes > self.most_bytes:
                raise PickleError(f"{self.file}: its tensors come to more than {_MOST_SHARING} times the file's size")
            return value._replace(name=name)
        if isinstance(value, dict):
            kept = {key: each for key, each in value.items() if isinstance(key, str | int) and not _is_skipped(each)}
            return {
                key: self.plain(each, f"{name}.{key}" if name else str(key), depth + 1) for key, each in kept.items()
            }
        if type(value) is list or type(value) is tuple:
            items = [self.plain(each, f"{name}.{place}", depth + 1) for place, each in enumerate(value)]
            return items if type(value) is list else tuple(items)
        return None if _is_skipped(value) else value


def _is_skipped(value: object) -> bool:
    """Whether a value is one of the machine's own things, or bytes, which no file of tensors needs."""
    plain = isinstance(value, ParameterDict | dict | list | tuple | str | int | float | None)
    return not plain or isinstance(value, Storage)


class _Limited(io.FileIO):
    """A file of which nobody reads more than `most` bytes at once, whatever lengths it tells."""

    most = _MOST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"it tells of {size} bytes that would have to be read at once")
        return super().read(size)


def _run_archive(file: Path) -> Any:
    with _Limited(file) as opened, zipfile.ZipFile(opened) as archive:
        size = os.fstat(opened.fileno()).st_size
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            if entry.filename in entries:
                raise ValueError(f"it holds {entry.filename!r} twice")
            entries[entry.filename] = entry
        opened.most = _MOST_BYTES
        roots = [
            name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(roots) != 1:
            raise ValueError("it is a zip archive without one data.pkl, so torch did not write it")

        def stored(name: str) -> zipfile.ZipInfo:
            if name not in entries:
                raise ValueError(f"its entry {name[:MOST_NAME]!r} is missing")
            entry = entries[name]
            if (
                entry.compress_type != zipfile.ZIP_STORED
                or entry.compress_size != entry.file_size
                or entry.flag_bits & 1
            ):
                raise ValueError(f"its entry {name!r} is compressed or encrypted, which torch does not do")
            return entry

        @functools.cache  # a pickle can ask for one again and again
        def find(key: str, dtype: str, count: int) -> Storage:
            entry = stored(f"{roots[0]}data/{key}")
            if entry.file_size != count * DTYPES[dtype].itemsize:
                raise ValueError(f"its entry {entry.filename!r} has {entry.file_size} bytes, not {count} x {dtype}")
            opened.seek(entry.header_offset)
            header = opened.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise ValueError(f"its entry {entry.filename!r} is not where its directory says")
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            if start + entry.file_size > size:
                raise ValueError(f"its entry {entry.filename!r} reaches beyond the end of the file")
            return Storage(start, count, dtype)

        order = f"{roots[0]}byteorder"
        if order in entries and archive.read(stored(order)) != b"little":
            raise ValueError("its numbers are not in little-endian order")
        pickle = stored(f"{roots[0]}data.pkl")
        if pickle.file_size > _MOST_BYTES:
            raise ValueError(f"its data.pkl has {pickle.file_size} bytes, more than {_MOST_BYTES}")
        return run_pickle(io.BytesIO(archive.read(pickle)), file, find)


def _run_older(file: Path) -> Any:
    """torch's format before 1.6: five pickles one after the other, then each storage's length and numbers."""
    with _Limited(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        opened.most = _MOST_BYTES
        head = io.BytesIO(opened.read(_MOST_BYTES))
        keys: dict[str, tuple[str, int]] = {}

        def refuse(key: str, dtype: str, count: int) -> Storage:
            raise ValueError("it has a storage where none is expected")

        def note(key: str, dtype: str, count: int) -> Storage:
            if keys.setdefault(key, (dtype, count)) != (dtype, count):
                raise ValueError(f"it has two storages {key[:MOST_NAME]!r}")
            return Storage(0, count, dtype)

        magic, protocol, system = (run_pickle(head, file, refuse) for _ in range(3))
        if magic != _MAGIC or protocol != _PROTOCOL:
            raise ValueError(f"it does not begin with torch's magic number and protocol {_PROTOCOL}")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its numbers are not in little-endian order")
        start = head.tell()
        run_pickle(head, file, note)
        listed = run_pickle(head, file, refuse)
        texts = isinstance(listed, list) and all(isinstance(key, str) for key in listed)
        if not texts or len(listed) != len(keys) or set(listed) != set(keys):
            raise ValueError("its list of storages does not fit its tensors")
        found: dict[str, Storage] = {}
        place = head.tell()
        for key in listed:
            dtype, count = keys[key]
            opened.seek(place)
            length = opened.read(8)
            place += 8 + count * DTYPES[dtype].itemsize
            if int.from_bytes(length, "little") != count or place > size:
                raise ValueError(f"its storage {key[:MOST_NAME]!r} is cut, or has not the length that its tensors tell")
            found[key] = Storage(place - count * DTYPES[dtype].itemsize, count, dtype)
        # Now that it is known where the storages are.
        head.seek(start)
        return run_pickle(head, file, lambda key, dtype, count: found[key])


def is_pickled(head: bytes) -> bool:
    """Whether a file that begins so is one that torch pickled."""
    return head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[8:9] != b"{")


def read_pickle(file: Path) -> Any:
    """What torch pickled into a file, with each tensor as a `Tensor`, of which nothing is read yet.

    Things that trainers leave beside the tensors are left out.

    Returns:
      dict, list, tuple, str, int, float, bool, None and `Tensor` in each other.

    Raises:
      PickleError: if the file is damaged, or asks for anything else.
      CheckpointError: if it can't be read.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        if not is_pickled(head):
            raise ValueError("it begins like neither of torch's two formats")
        value = _run_archive(file) if head.startswith(b"PK") else _run_older(file)
        return _Counter(file, _MOST_SHARING * file.stat().st_size).plain(value, "", 0)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    except PickleError:
        raise
    except (ValueError, KeyError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise PickleError(f"{file} is no sound file of pickled tensors: {str(error)[:MOST_NAME]}") from error
