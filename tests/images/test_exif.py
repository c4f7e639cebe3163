"""The EXIF data that images carry: written as their readers expect, and a stranger's read within bounds."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from sdjax.images import segments
from sdjax.images.decode import ImageError
from sdjax.images.encode import decode, read_metadata, read_parameters
from sdjax.images.exif import Exif, read_exif, user_comment_block
from sdjax.images.metadata import json_in_xmp, user_comment
from sdjax.images.read import read_image
from sdjax.jobs.a1111_text import a1111_text
from tests.images.test_encode import METADATA, PIXELS, written

# Far more than any of these takes, and far less than the quadratic reading of them took.
SOON = 2.0
UNDEFINED = 7


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def directory(*entries: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """A block of EXIF data, big-endian; an entry is tag, type, count, and value or place."""
    body = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(4) + more


# --- As a reader of EXIF 2.32 reads it, entry by entry ---


def entries_of(block: bytes, place: int) -> dict[int, tuple[int, bytes]]:
    [count] = struct.unpack_from(">H", block, place)
    found = {}
    for start in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(">HHI", block, start)
        [value] = struct.unpack_from(">I", block, start + 8)
        found[tag] = (kind, block[value : value + length] if kind == UNDEFINED else value)
    return found


@pytest.mark.parametrize("prompt", ["a cat", "naïve 漢字 🍎"])
@pytest.mark.parametrize("format_name", ["webp", "jpeg"])
def test_the_comment_is_of_the_type_that_other_readers_take(format_name, prompt):
    metadata = METADATA | {"prompt": prompt}
    with Image.open(io.BytesIO(written(PIXELS, metadata, format_name))) as image:
        block = image.info["exif"].removeprefix(b"Exif\0\0")
    assert block[:8] == b"MM\0*\0\0\0\x08"
    first = entries_of(block, 8)
    kind, comment = entries_of(block, first[0x8769][1])[0x9286]
    assert kind == UNDEFINED
    # piexif.helper.UserComment.load, which A1111 and sd-prompt-reader call.
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf_16_be") == a1111_text(metadata)


@pytest.mark.parametrize("kind", [1, 7])
@pytest.mark.parametrize("format_name", ["WEBP", "JPEG"])
def test_the_comment_is_read_of_either_type(format_name, kind):
    comment = user_comment("Steps: 3")
    inner = struct.pack(">HHHIII", 1, 0x9286, kind, len(comment), 44, 0) + comment
    block = b"Exif\0\0" + directory((0x8769, 4, 1, 26), more=inner)
    assert read_parameters(saved(format_name, exif=block), "x") == "Steps: 3"


def test_what_is_written_is_read():
    for comment in (b"UNICODE\0", b"UNICODE\0\0a"):
        assert read_exif(user_comment_block(comment)) == Exif(None, comment)


def test_a_comment_in_the_first_directory_is_read_too():
    assert read_exif(directory((0x9286, 7, 4, 0x61626364))).comment == b"abcd"


@pytest.mark.parametrize(
    "block",
    [
        b"nonsense",
        b"MM\0*",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        directory((0x9286, 7, 100, 5)),
        directory((0x8769, 4, 1, 5000)),
    ],
)
def test_damaged_data_are_a_clear_error_and_the_image_is_good(block):
    with pytest.raises(ValueError, match=r"EXIF|directory|data"):
        read_exif(block)
    image = saved("WEBP", exif=b"Exif\0\0" + block)
    assert read_image(image, "x").notes == ("its EXIF data are damaged: left aside",)
    with pytest.raises(ImageError, match=r"x: its EXIF data are damaged"):
        read_parameters(image, "x")


def test_a_directory_that_leads_to_itself_ends():
    assert read_exif(directory((0x8769, 4, 1, 8))) == Exif(None, None)


def test_an_image_is_turned_as_its_xmp_says_where_exif_says_nothing():
    packet = b'<rdf:Description tiff:Orientation="6"/>'
    assert read_image(saved("JPEG", xmp=packet), "x").pixels.shape == (16, 8, 3)
    assert read_image(saved("WEBP", xmp=packet, exif=directory((0x0112, 3, 1, 1 << 16))), "x").notes == ()


# --- Bombs ---


def test_a_packet_full_of_beginnings_is_read_at_once():
    start = time.process_time()
    assert json_in_xmp(b"<sdjax:metadata>" * 80_000) is None
    assert json_in_xmp(b"<sdjax:metadata>" * 80_000 + b"</sdjax:metadata>") is not None
    with pytest.raises(ImageError, match="no metadata of sdjax"):
        read_metadata(saved("WEBP", xmp=b"<sdjax:metadata>" * 80_000), "x")
    assert time.process_time() - start < SOON


def jpeg_with(*found: bytes) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + b"".join(found) + plain[2:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">HH", marker, len(body) + 2) + body


def test_exif_segments_without_end_are_refused_at_once():
    start = time.process_time()
    bomb = jpeg_with(segment(0xFFE1, b"Exif\0\0" + b"x" * 60_000) * 65)
    for read in (read_parameters, decode, read_image):
        with pytest.raises(ImageError, match=r"x: .*more than 64 segments"):
            read(bomb, "x")
        with pytest.raises(ImageError, match=r"x: .*more than 5000 segments"):
            read(jpeg_with(segment(0xFFE1, b"Exif\0\0x") * 100_000), "x")
    assert time.process_time() - start < SOON


def test_what_lies_between_segments_takes_no_time():
    start = time.process_time()
    filled = jpeg_with(bytes(5_000_000))
    assert np.array_equal(decode(filled, "x"), decode(saved("JPEG"), "x"))
    assert time.process_time() - start < SOON


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_entries_that_all_point_to_the_same_bytes_are_not_followed(kind):
    entries = 3000 if kind == "JPEG" else 60_000
    size = 12 * entries
    bomb = directory(*[(0x0112 + index % 3, 2, size, 8) for index in range(entries)])
    start = time.process_time()
    image = saved(kind, exif=b"Exif\0\0" + bomb)
    assert read_parameters(image, "x") is None
    assert read_image(image, "x").pixels.shape == PIXELS.shape
    assert time.process_time() - start < SOON


def test_tags_of_a_tiff_that_all_point_to_the_same_bytes_are_refused():
    entries = 60_000
    bomb = directory(*[(1000 + index, 2, 12 * entries, 8) for index in range(entries)])
    inside = directory((0x8769, 4, 1, 26), more=bomb[8:])
    start = time.process_time()
    for data in (bomb, inside):
        with pytest.raises(ImageError, match=r"x: a damaged image: its tags point to more than"):
            read_image(data, "x")
    assert time.process_time() - start < SOON


def test_a_list_of_further_images_that_is_a_bomb_is_left_aside():
    bomb = directory(*[(1000 + index, 2, 60_000, 8) for index in range(5000)])
    assert np.array_equal(decode(jpeg_with(segment(0xFFE2, b"MPF\0" + bomb)), "x"), decode(saved("JPEG"), "x"))


def test_a_png_of_empty_chunks_is_refused_at_once():
    def chunk(kind: bytes, body: bytes = b"") -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    plain = saved("PNG")
    bomb = plain[:33] + chunk(b"juNk") * (segments.MOST_CHUNKS + 1) + plain[33:]
    start = time.process_time()
    for read in (decode, read_parameters, read_image):
        with pytest.raises(ImageError, match=f"x: .*more than {segments.MOST_CHUNKS} chunks"):
            read(bomb, "x")
    assert time.process_time() - start < SOON


def test_metadata_that_unfold_to_many_values_or_lie_deep_are_refused():
    for text, reason in (
        ('{"a":[[[[[1]]]]]}', "nested too deep"),
        ('{"a":"' + "x" * (1 << 24) + '"}', "letters, more than"),
    ):
        packet = f"<sdjax:metadata>{text}</sdjax:metadata>".encode()
        with pytest.raises(ImageError, match=f"x: its metadata of sdjax can't be read: .*{reason}"):
            read_metadata(saved("WEBP", xmp=packet), "x")


def test_a_comment_of_megabytes_is_read_at_once_whatever_its_order():
    text = "Steps: 3, " * 400_000
    start = time.process_time()
    for order in ("be", "le"):
        block = user_comment_block(b"UNICODE\0" + text.encode(f"utf-16-{order}"))
        assert read_parameters(saved("WEBP", exif=block), "x") == text
    assert time.process_time() - start < SOON
