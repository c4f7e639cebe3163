"""EXIF data, as far as they are needed: the comment of a generator, and the orientation.

Pillow's reader copies what each entry points to. Entries may all point to the same bytes, so 12 of a stranger's bytes
can ask for megabytes; here only the entries looked for are followed. Its writer gives UserComment the type BYTE, which
the readers of A1111 and others do not take: it is UNDEFINED (EXIF 2.32, section 4.6.5).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_START = b"Exif\0\0"
_ORIENTATION, _EXIF_IFD, _USER_COMMENT = 0x0112, 0x8769, 0x9286
# TIFF 6.0: the bytes of one value of each type, and the types of one whole number.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_LONG, _UNDEFINED = 4, 7
_NUMBERS = {1: "B", 3: "H", _LONG: "I", 13: "I", 16: "Q", 18: "Q"}
# Directories within others: of EXIF, of a place on earth, and within EXIF.
_FURTHER = (_EXIF_IFD, 0x8825, 0xA005)


class Exif(NamedTuple):
    """What is read of a block of EXIF data; None is not there.

    orientation: 1 to 8, or whatever stands there.
    comment: the value of UserComment.
    """

    orientation: int | None = None
    comment: bytes | None = None


class _Entry(NamedTuple):
    kind: int
    length: int
    place: int


def user_comment_block(comment: bytes) -> bytes:
    """A block of EXIF data, big-endian, that holds nothing but a UserComment, of 8 bytes or more."""
    pointer = struct.pack(">HHHII", 1, _EXIF_IFD, _LONG, 1, 26)
    entry = struct.pack(">HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(comment), 44, 0)
    return _START + b"MM\0*" + struct.pack(">I", 8) + pointer + bytes(4) + entry + comment


def read_exif(block: bytes) -> Exif:
    """Reads a block of EXIF data, with or without the `Exif` before it.

    Raises:
      ValueError: if it is damaged.
    """
    while block.startswith(_START):
        block = block[len(_START) :]
    if not block:
        return Exif()
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        raise ValueError("EXIF data without a header")
    first = _directory(block, struct.unpack_from(f"{order}I", block, 4)[0], order)
    inside = _number(block, first.get(_EXIF_IFD), order)
    second = {} if inside is None else _directory(block, inside, order)
    comment = second.get(_USER_COMMENT) or first.get(_USER_COMMENT)
    return Exif(_number(block, first.get(_ORIENTATION), order), _value(block, comment))


def _directory(block: bytes, place: int, order: str) -> dict[int, _Entry]:
    wanted = (_ORIENTATION, _EXIF_IFD, _USER_COMMENT)
    return {tag: entry for tag, entry in _entries(block, place, order, big=False) if tag in wanted}


def _entries(data: bytes, place: int, order: str, big: bool) -> Iterator[tuple[int, _Entry]]:
    """Each entry of a directory by its tag, and where its value lies; `big` is BigTIFF's form."""
    count_form, head_form, place_form = (order + form for form in (("Q", "HHQ", "Q") if big else ("H", "HHI", "I")))
    start, room = place + struct.calcsize(count_form), struct.calcsize(place_form)
    if start > len(data):
        raise ValueError(f"a directory at byte {place}, but there are {len(data)}")
    [count] = struct.unpack_from(count_form, data, place)
    step = struct.calcsize(head_form) + room
    if start + step * count > len(data):
        raise ValueError(f"a directory of {count} entries at byte {place}, but there are {len(data)}")
    for first in range(start, start + step * count, step):
        tag, kind, number = struct.unpack_from(head_form, data, first)
        inside = first + step - room
        within = _SIZES.get(kind, 1) * number <= room
        yield tag, _Entry(kind, number, inside if within else struct.unpack_from(place_form, data, inside)[0])


def _number(data: bytes, entry: _Entry | None, order: str) -> int | None:
    if entry is None or entry.kind not in _NUMBERS or entry.length < 1:
        return None
    form = order + _NUMBERS[entry.kind]
    if entry.place + struct.calcsize(form) > len(data):
        raise ValueError("data that end before a value of theirs")
    return int(struct.unpack_from(form, data, entry.place)[0])


def _value(block: bytes, entry: _Entry | None) -> bytes | None:
    """The bytes of a value of any type whose numbers are bytes."""
    if entry is None or _SIZES.get(entry.kind) != 1:
        return None
    value = block[entry.place : entry.place + entry.length]
    if len(value) < entry.length:
        raise ValueError("data that end before a value of theirs")
    return value


# --- How much directories make a reader copy ---


class DirectoryExtent(NamedTuple):
    """How much data a directory points to.

    size: of all its values together, in bytes.
    further: where the directories within it begin.
    """

    size: int
    further: tuple[int, ...]


def directory_extent(data: bytes, place: int, order: str, big: bool = False) -> DirectoryExtent:
    """How much data the entries of a TIFF's directory point to; `big` is BigTIFF's form.

    Raises:
      ValueError: if the directory is not whole.
    """
    size, further = 0, []
    for tag, entry in _entries(data, place, order, big):
        whole = _SIZES.get(entry.kind, 0) * entry.length
        size += whole if entry.place + whole <= len(data) else 0  # else there is nothing to be copied
        if tag in _FURTHER and (inside := _number(data, entry, order)) is not None:
            further.append(inside)
    return DirectoryExtent(size, tuple(further))
