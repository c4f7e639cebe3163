"""Pickles put together by hand, of instructions that no sound writer would choose."""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# torch's magic number and protocol, and what it says of the machine: how the older format begins.
OLDER_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."


def text(value: str) -> bytes:
    """Pushes a text."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """Pushes an integer."""
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def integers(values: Sequence[int]) -> bytes:
    """Pushes a tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def name(dotted: str) -> bytes:
    """Pushes what a name stands for."""
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def storage(key: str, length: int, kind: str = "torch.FloatStorage") -> bytes:
    """Pushes a storage."""
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + integer(length) + b"tQ"


def tensor(
    stored: bytes,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int = 0,
    more: bytes = b"\x89N",
    made: str = "v2",
) -> bytes:
    """Pushes a tensor."""
    arguments = stored + integer(offset) + integers(shape) + integers(strides) + more
    return name(f"torch._utils._rebuild_tensor_{made}") + b"(" + arguments + b"tR"


def dictionary(values: Mapping[str, bytes]) -> bytes:
    """Pushes a dictionary."""
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def archive(
    file: Path, steps: bytes, storages: Mapping[str, bytes], root: str = "archive", method: int = zipfile.ZIP_STORED
) -> Path:
    """Writes a file in torch's zip format around the instructions of a pickle."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as opened:
        opened.writestr(f"{root}/data.pkl", b"\x80\x02" + steps + b".")
        opened.writestr(f"{root}/byteorder", b"little")
        for key, content in storages.items():
            opened.writestr(f"{root}/data/{key}", content)
    file.write_bytes(written.getvalue())
    return file


def older(file: Path, steps: bytes, storages: Mapping[str, tuple[int, bytes]]) -> Path:
    """Writes a file in torch's older format; of each storage its length and its bytes."""
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    content = b"".join(struct.pack("<Q", length) + stored for length, stored in storages.values())
    file.write_bytes(OLDER_HEAD + b"\x80\x02" + steps + b"." + keys + content)
    return file
