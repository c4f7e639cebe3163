"""Images by strangers: what they look like, or why they can't be used."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from sdjax.images.decode import ImageError
from sdjax.images.read import READABLE, read_grey, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 37, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 12 * 19).reshape(12, 19).astype(np.uint16)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}}


def saved(image, kind, **options):
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, bits, colour, *chunks, interlaced=0, size=None):
    """A PNG of rows of samples, with chunks before the pixels."""
    height, width = size or values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2" if bits == 16 else "u1"))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# --- Plain images ---


@pytest.mark.parametrize("kind", LOSSLESS)
def test_plain_pixels_come_as_they_are_and_nothing_is_noted(kind):
    data = saved(PIXELS, kind, **LOSSLESS[kind])
    image = read_image(data, "x")
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert image.notes == ()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 100}])
def test_jpegs_come_as_pillow_decodes_them(options):
    data = saved(PIXELS, "JPEG", **options)
    np.testing.assert_array_equal(read_image(data, "x").pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_pixels_can_be_written_to():
    assert read_image(saved(PIXELS, "PNG"), "x").pixels.flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_become_three_channels(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    read = read_image(saved(image, "PNG"), "x")
    np.testing.assert_array_equal(read.pixels, np.asarray(image.convert("RGB")))
    assert read.notes == ()


def test_an_interlaced_image_is_whole():
    rows = np.random.default_rng(1).integers(0, 256, (8, 8, 1))
    # Adam7 of 8 x 8: the passes' rows one after the other, each with its filter's byte.
    body = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        body += b"".join(b"\0" + bytes(row[x::dx, 0].tolist()) for row in rows[y::dy])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1))

    def file(raw):
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")

    np.testing.assert_array_equal(read_image(file(body), "x").pixels, rows.repeat(3, -1))
    with pytest.raises(ImageError, match="fewer pixels than 8x8"):
        read_image(file(body[:-1]), "x")


# --- Depth ---


def test_16_bit_greys_become_8_rounded_and_are_never_clipped():
    read = read_image(png(RAMP, 16, 0), "x")
    np.testing.assert_array_equal(read.pixels[..., 0], np.round(RAMP / 257))
    assert read.notes == ("16 bits to 8",)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_depth_where_numbers_are_asked_for(kind):
    np.testing.assert_allclose(read_grey(saved(RAMP, kind), "x").values, RAMP / 65535, rtol=1e-7)


def test_16_bit_colours_keep_their_upper_8():
    values = np.random.default_rng(2).integers(0, 65536, (5, 4, 3))
    read = read_image(png(values, 16, 2), "x")
    np.testing.assert_array_equal(read.pixels, values >> 8)
    assert read.notes == ("16 bits to 8",)


def test_32_bit_and_floating_point_tiffs():
    whole = (RAMP.astype(np.int32) << 15) + 7
    np.testing.assert_allclose(
        read_grey(saved(Image.fromarray(whole), "TIFF"), "x").values, whole / (2**31 - 1), rtol=1e-6
    )
    real = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read_grey(saved(real, "TIFF"), "x").values, real)
    read = read_image(saved(real, "TIFF"), "x")
    np.testing.assert_array_equal(read.pixels[..., 2], np.round(real * 255))
    assert read.notes == ("float to 8 bits",)


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, np.inf])
def test_floating_point_values_beyond_0_to_1_are_refused(wrong):
    data = saved(np.array([[0.5, wrong]], np.float32), "TIFF")
    for read in (read_image, read_grey):
        with pytest.raises(ImageError, match=r"^depth\.tif: values from .*expected 0 to 1"):
            read(data, "depth.tif")


def test_a_tiff_whose_white_is_0_is_not_shown_as_its_negative():
    data = bytearray(saved(RAMP, "TIFF"))
    tag = data.index(struct.pack("<HHIH", 262, 3, 1, 1))
    data[tag + 8] = 0
    np.testing.assert_allclose(read_grey(bytes(data), "x").values, 1 - RAMP / 65535, atol=1e-7)


# --- Transparency ---


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_laid_on_white(mode):
    opacity = np.tile(np.array([0, 128, 255, 255], np.uint8), (3, 1))
    image = Image.new("RGB", (4, 3), (200, 100, 0)).convert(mode[:-1])
    image.putalpha(Image.fromarray(opacity))
    read = read_image(saved(image, "PNG"), "x")
    colour = np.asarray(image.convert("RGB"))[0, 0]
    np.testing.assert_array_equal(read.pixels[0, [0, 2]], [(255, 255, 255), colour])
    assert np.abs(read.pixels[0, 1] - (colour * (128 / 255) + 255 * (127 / 255))).max() <= 0.51
    assert read.notes == ("transparency laid on white",)


def test_a_clear_colour_of_a_palette_of_grey_and_of_rgb_is_transparent():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    read = read_image(saved(palette, "PNG", transparency=bytes([255, 0, 128])), "x")
    assert read.pixels[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 255]]
    for data in (
        png(np.array([[7, 8]]), 8, 0, chunk(b"tRNS", struct.pack(">H", 7))),
        png(np.array([[7, 8]]), 16, 0, chunk(b"tRNS", struct.pack(">H", 7))),
        png(np.array([[[7, 7, 7], [8, 8, 8]]]), 8, 2, chunk(b"tRNS", struct.pack(">HHH", 7, 7, 7))),
        saved(palette.crop((0, 0, 2, 1)), "GIF", transparency=0),
    ):
        read = read_image(data, "x")
        assert read.notes[-1] == "transparency laid on white" and read.pixels[0, 0].tolist() == [255, 255, 255]
        assert read.pixels[0, 1].tolist() != [255, 255, 255]


def test_an_opaque_alpha_channel_is_none():
    read = read_image(saved(Image.fromarray(PIXELS).convert("RGBA"), "PNG"), "x")
    assert read.notes == ()
    np.testing.assert_array_equal(read.pixels, PIXELS)


def test_a_clear_colour_in_16_bits_is_refused_rather_than_missed():
    data = png(np.zeros((2, 2, 3)), 16, 2, chunk(b"tRNS", bytes(6)))
    with pytest.raises(ImageError, match="use an alpha channel"):
        read_image(data, "x")


def test_the_colours_of_a_mask_count_and_its_opacity_only_where_they_say_nothing():
    luma = np.asarray(Image.fromarray(PIXELS).convert("L")) / np.float32(255)
    np.testing.assert_array_equal(read_grey(saved(PIXELS, "PNG"), "x").values, luma)
    opacity = Image.fromarray(PIXELS[..., 0])
    image = Image.fromarray(PIXELS)
    image.putalpha(opacity)
    np.testing.assert_array_equal(read_grey(saved(image, "PNG"), "x").values, luma)
    painted = Image.new("RGB", opacity.size)
    painted.putalpha(opacity)
    np.testing.assert_array_equal(read_grey(saved(painted, "PNG"), "x").values, PIXELS[..., 0] / np.float32(255))
    painted.putalpha(255)
    assert not read_grey(saved(painted, "PNG"), "x").values.any()


# --- Colours of other kinds ---


def test_a_cmyk_jpeg_of_adobes_kind_is_not_shown_as_its_negative():
    read = read_image(saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100), "x")
    assert np.abs(read.pixels.astype(int) - (0, 255, 255)).max() <= 2 and read.notes == ("CMYK to RGB",)


def test_a_ycck_jpeg():
    cyan, magenta, yellow, key = 200, 30, 90, 20
    luma = Image.new("RGB", (1, 1), (cyan, magenta, yellow)).convert("YCbCr").getpixel((0, 0))
    data = bytearray(saved(Image.new("CMYK", (16, 16), (*(255 - part for part in luma), key)), "JPEG", quality=100))
    # Pillow writes CMYK; the last byte of Adobe's marker says how the numbers are meant.
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    wanted = Image.new("CMYK", (1, 1), (cyan, magenta, yellow, key)).convert("RGB").getpixel((0, 0))
    read = read_image(bytes(data), "x")
    assert np.abs(read.pixels.astype(int) - wanted).max() <= 3 and read.notes == ("CMYK to RGB",)


@pytest.mark.parametrize("options", [{}, {"icc_profile": b""}])
def test_lab_tiffs(options):
    tints = np.array([(20, 20, 20), (128, 128, 128), (250, 250, 250), (150, 120, 100), (90, 120, 140)], np.uint8)[None]
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    image = ImageCms.profileToProfile(Image.fromarray(tints), rgb, lab, outputMode="LAB")
    read = read_image(saved(image, "TIFF", **options), "x")
    assert np.abs(read.pixels.astype(int) - tints).max() <= 2
    assert read.notes == ("LAB to RGB", "its ICC profile to sRGB")[: 2 - len(options)]


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_an_icc_profile_is_followed():
    swapped = srgb_profile().replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    other = swapped.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))
    for kind in ("PNG", "TIFF"):
        read = read_image(saved(PIXELS, kind, icc_profile=other), "x")
        assert np.abs(read.pixels.astype(int) - PIXELS[..., ::-1]).max() <= 2
        assert read.notes == ("its ICC profile to sRGB",)


def test_srgb_itself_changes_nothing():
    read = read_image(saved(PIXELS, "PNG", icc_profile=srgb_profile()), "x")
    np.testing.assert_array_equal(read.pixels, PIXELS)
    assert read.notes == ()


@pytest.mark.parametrize("profile", [b"nonsense", srgb_profile()[:300]])
def test_a_broken_profile_and_one_of_other_colours_are_left_aside(profile):
    read = read_image(saved(PIXELS, "PNG", icc_profile=profile), "x")
    np.testing.assert_array_equal(read.pixels, PIXELS)
    assert read.notes == ("its ICC profile can't be followed: left aside",)


# --- Turned and moving ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_by_their_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(PIXELS, kind, exif=exif.tobytes(), **LOSSLESS.get(kind, {}))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    read = read_image(data, "x")
    np.testing.assert_array_equal(read.pixels, wanted)
    assert read.notes == ("turned by its EXIF orientation",) * (orientation > 1)
    np.testing.assert_array_equal(read_grey(data, "x").values.shape, wanted.shape[:2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"])
def test_damaged_exif_data_do_not_take_a_good_image_away(exif):
    assert read_image(saved(PIXELS, "JPEG", exif=exif), "x").pixels.shape == PIXELS.shape


@pytest.mark.parametrize("kind, counted", [("GIF", "3"), ("WEBP", "3"), ("PNG", "3"), ("TIFF", "several")])
def test_of_an_animation_the_first_frame_is_taken(kind, counted):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options), "x")
    np.testing.assert_array_equal(read.pixels, np.asarray(frames[0]))
    assert read.notes == (f"first of {counted} frames",)


# --- What can't be used ---


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "an empty file"),
        (b"hello", "no whole image; expected one of png, jpeg, webp, gif, bmp, tiff"),
        (b"%PDF-1.7 ...", "a PDF"),
        (b'\n<?xml version="1.0"?><svg/>', "SVG"),
        (b"<svg xmlns='x'/>", "an SVG"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"\x89PNG\r\n\x1a\n", "ends without its last chunk"),
        (b"GIF89a", "damaged"),
        (saved(PIXELS, "PPM"), "no whole image"),
        (saved(PIXELS, "ICO"), "no whole image"),
    ],
)
def test_what_is_no_image_is_named_as_what_it_is(data, why):
    for read in (read_image, read_grey):
        with pytest.raises(ImageError, match=why) as caught:
            read(data, "a/cat.png")
        assert str(caught.value).startswith("a/cat.png: ")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", READABLE)
def test_a_file_that_was_cut_anywhere_is_an_error_or_has_all_of_its_pixels(kind):
    data = saved(PIXELS, kind, **LOSSLESS.get(kind, {}))
    whole = read_image(data, "x").pixels
    complete = 0
    for end in range(len(data)):
        try:
            read = read_image(data[:end], "cut")
        except ImageError as error:
            assert str(error).startswith("cut: ")
        else:
            np.testing.assert_array_equal(read.pixels, whole)
            complete += 1
    # Of BMP the padding of the last row, of GIF its closing bytes, of TIFF what Pillow does not need.
    assert complete <= 12


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.9, 0.98])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_and_closed_again_is_not_filled_with_grey(share, progressive):
    data = saved(PIXELS, "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="truncated"):
        read_image(data[: int(len(data) * share)] + b"\xff\xd9", "x")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_whole_jpeg_that_ends_in_grey_is_no_cut_one(progressive):
    data = saved(np.full((20, 30, 3), 128, np.uint8), "JPEG", progressive=progressive)
    assert read_image(data, "x").pixels[-1, -1].tolist() == [128, 128, 128]


def test_a_png_with_fewer_pixels_than_it_says_is_not_filled_with_black():
    with pytest.raises(ImageError, match=r"x\.png: a truncated image: it has fewer pixels than 37x25"):
        read_image(png(PIXELS, 8, 2, size=(25, 37)), "x.png")


def test_a_wrong_checksum_is_an_error():
    data = bytearray(saved(PIXELS, "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum of a chunk b'IDAT'"):
        read_image(bytes(data), "x")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_is_read_or_refused_but_nothing_else(data):
    kind = data.draw(st.sampled_from(READABLE))
    damaged = bytearray(saved(PIXELS, kind, **LOSSLESS.get(kind, {})))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_image, read_grey):
        try:
            read(bytes(damaged), "x")
        except ImageError as error:
            assert str(error).startswith("x: ")


# --- Files that ask for more than there is ---


def gif(screen, frame):
    image = struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6) + b"\x21\xf9\x04\x09\0\0\0\0"
    return b"GIF89a" + image + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\0;"


def tiff(size, tile):
    body = zlib.compress(bytes(1000))
    body += bytes(len(body) % 2)
    entries = [(256, size), (257, size), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8)]
    entries.append((325, len(body)))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + table + bytes(4)


def webp(side):
    frame = saved(PIXELS, "WEBP", lossless=True)[12:]
    extent = (36).to_bytes(3, "little") + (23).to_bytes(3, "little")
    frame = bytes(6) + extent + bytes(4) + frame
    canvas = (side - 1).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(side):
    data = bytearray(saved(PIXELS, "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", side, side)
    return bytes(data)


SMALL = np.zeros((2, 2, 3), np.uint8)
BOMBS = {
    "png 100000": png(SMALL, 8, 2, size=(100_000, 100_000)),
    "png 10000": png(SMALL, 8, 2, size=(10_000, 10_000)),
    "png empty": png(SMALL, 8, 2, size=(8_000, 8_000)),
    "jpeg 65500": jpeg(65_500),
    "jpeg 13000": jpeg(13_000),
    "gif screen": gif((65_535, 65_535), (1, 1)),
    "gif frame": gif((1, 1), (13_000, 13_000)),
    "webp 16383": webp(16_383),
    "webp 13000": webp(13_000),
    "bmp": saved(SMALL, "BMP")[:18] + struct.pack("<ii", 100_000, 100_000) + saved(SMALL, "BMP")[26:],
    "tiff": tiff(30_000, 16),
    "tiff tile": tiff(16, 20_000),
    "png profile": png(SMALL, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100_000_000)))),
}
TEXTS = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000))) * 200
HARMLESS = {"png texts": png(SMALL, 8, 2, TEXTS)}

_PROGRAM = """
import pickle, resource, sys
from sdjax.images.encode import ImageError
from sdjax.images.read import read_image
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def now(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
bombs, small = pickle.load(sys.stdin.buffer)
for data in small:
    read_image(data, "x")
# Back to the most that was ever used, for more than that to be seen.
ballast = bytearray(b"x") * (max(0, most() - now()) << 20)
before = most()
for name, data in bombs.items():
    try:
        read_image(data, name)
        print(name, most() - before, "read")
    except ImageError as error:
        print(name, most() - before, error)
"""


def test_files_that_would_fill_the_memory_are_refused_for_less_than_50_mb():
    sent = pickle.dumps((BOMBS | HARMLESS, [saved(PIXELS, kind) for kind in READABLE]))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM], input=sent, capture_output=True, check=True
    )
    lines = result.stdout.decode().splitlines()
    print(*lines, sep="\n")
    taken = max(int(line[line.index(name) + len(name) :].split()[0]) for name, line in zip(BOMBS, lines, strict=False))
    assert len(lines) == len(BOMBS) + 1 and taken < 50
    assert all(": " in line for line in lines[:-1]) and lines[-1].endswith(" read")
    assert sum("more than" in line or "too large" in line or "in tiles" in line for line in lines) >= 9


@pytest.mark.parametrize(
    "name", ["png 100000", "png 10000", "jpeg 13000", "gif screen", "gif frame", "webp 13000", "tiff"]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_named_as_the_reason(name):
    with pytest.raises(ImageError, match=r"cat\.png: .*more than 67108864"):
        read_image(BOMBS[name], "cat.png")


def test_no_pixels_at_all():
    with pytest.raises(ImageError, match="0x3 pixels; expected at least one"):
        read_image(png(SMALL, 8, 2, size=(3, 0)), "x")
