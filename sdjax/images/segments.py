"""The parts of PNG and JPEG files, counted and sorted before Pillow sees them.

Pillow goes through segments and chunks one by one in Python, and lays the EXIF segments of a JPEG one behind the other,
each time from the start: a file of a few megabytes can keep it busy for minutes.
"""

import struct
from typing import NamedTuple

from PIL.JpegImagePlugin import MARKER

from sdjax.images.exif import directory_extent

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
# An image of the largest size, in the usual pieces of 8 kB, has 25,000 chunks.
MOST_CHUNKS = 200_000
# A profile may have 255 segments; few others come more than once.
_MOST_SEGMENTS = 5000
# EXIF data have one segment. Pillow takes more together, and so do some cameras.
_MOST_EXIF = 64
_EXIF, _SEVERAL = b"Exif\0\0", b"MPF\0"
_APP1, _APP2, _START_OF_SCAN = 0xFFE1, 0xFFE2, 0xFFDA
# A byte 255 that is no marker, and one before a marker.
_ESCAPED, _FILLING = 0xFF00, 0xFFFF


class SplitJpeg(NamedTuple):
    """A JPEG without its EXIF data and without what lies between its segments; and the EXIF data."""

    plain: bytes
    exif: bytes


def check_chunks(data: bytes) -> None:
    """Raises `ValueError` if a PNG has more chunks than any image."""
    place, count = len(PNG), 0
    while place + 8 <= len(data) and count <= MOST_CHUNKS:
        place += 12 + struct.unpack_from(">I", data, place)[0]
        count += 1
    if count > MOST_CHUNKS:
        raise ValueError(f"more than {MOST_CHUNKS} chunks")


def split_jpeg(data: bytes) -> SplitJpeg:
    """Sorts the segments of a JPEG up to its first scan, found as Pillow finds them.

    Raises:
      ValueError: if there are more than in any image.
    """
    kept, exif = [JPEG], []
    place, count = len(JPEG), 0
    while (place := data.find(b"\xff", place)) >= 0:
        marker = 0xFF00 | (data[place + 1] if place + 1 < len(data) else 0xFF)
        if marker in (_ESCAPED, _FILLING):
            place += 2 if marker == _ESCAPED else 1
            continue
        if marker == _START_OF_SCAN or marker not in MARKER:  # the second Pillow refuses
            break
        end = place + 2
        if MARKER[marker][2] is not None:
            end += max(2, int.from_bytes(data[end : end + 2], "big"))
        count += 1
        if count > _MOST_SEGMENTS:
            raise ValueError(f"more than {_MOST_SEGMENTS} segments")
        body = data[place + 4 : end]
        if marker == _APP1 and body.startswith(_EXIF):
            exif.append(body[len(_EXIF) :])
        elif not (marker == _APP2 and body.startswith(_SEVERAL) and _asks_much(body[len(_SEVERAL) :])):
            kept.append(data[place:end])
        place = end
    if len(exif) > _MOST_EXIF:
        raise ValueError(f"EXIF data in more than {_MOST_EXIF} segments")
    return SplitJpeg(b"".join(kept) + (data[place:] if place >= 0 else b""), b"".join(exif))


def _asks_much(directory: bytes) -> bool:
    """Whether the list of a JPEG's further images is damaged, or made to be copied again and again."""
    order = ">" if directory.startswith(b"MM") else "<"
    try:
        return directory_extent(directory, struct.unpack_from(f"{order}I", directory, 4)[0], order).size > 2 * len(
            directory
        )
    except (ValueError, struct.error):
        return True
