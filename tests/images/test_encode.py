import dataclasses
import io
import json
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdjax.images import metadata as metadata_text
from sdjax.images.decode import ImageError
from sdjax.images.encode import FORMATS, EncodeError, decode, encode, read_metadata, read_parameters
from sdjax.jobs.a1111_text import a1111_text
from sdjax.jobs.job import Job

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
METADATA = {
    **dataclasses.asdict(Job(prompt="")),
    "id": "0" * 32,
    "prompt": "a red apple, on a table",
    "negative_prompt": "blurry",
    "seed": 965400086,
    "steps": 20,
    "guidance_scale": 7.0,
    "width": 16,
    "height": 8,
    "sampler": "euler_ancestral",
    "schedule": "karras",
    "eta": 1.0,
    "noise_source": "torch",
    "model": "emoji",
    "model_digest": "45dee52b12ffaa00",
    "devices": 1,
    "model_file_digest": "",
    "adapters_applied": "",
    "sdjax": "0.1.0",
}


def written(pixels, metadata, format_name):
    """The bytes of an image as a run writes it."""
    return encode(pixels, metadata, a1111_text(metadata), format_name)


EVERY_FORMAT = pytest.mark.parametrize("format_name", FORMATS)


# --- The reader of AUTOMATIC1111's web UI: its pattern, and its walk over the lines ---

A1111_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def a1111_reads(text):
    *lines, last = text.strip().split("\n")
    found = A1111_PATTERN.findall(last)
    assert len(found) >= 3, "A1111 would take the last line for a part of the prompt"
    read = {key: json.loads(value) if value.startswith('"') else value for key, value in found}
    sides = {"Prompt": [], "Negative prompt": []}
    side = "Prompt"
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            side, line = "Negative prompt", line.strip()[16:]
        sides[side].append(line.strip())
    return read | {key: "\n".join(lines) for key, lines in sides.items()}


@pytest.mark.parametrize(
    "prompt",
    [
        "two\nlines",
        "Steps: 3, Seed: 4, Size: 1x1",
        "commas, colons: and \"quotes\" and 'more'",
        "naïve 漢字 🍎",
        "(a:1.2) [b] \\( {c|d}",
    ],
)
@EVERY_FORMAT
def test_a1111_reads_prompts_that_look_like_its_own_grammar(prompt, format_name):
    data = written(PIXELS, METADATA | {"prompt": prompt, "negative_prompt": f"no {prompt}"}, format_name)
    read = a1111_reads(read_parameters(data, "x"))
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, f"no {prompt}")
    assert (read["Steps"], read["Seed"], read["Size"]) == ("20", "965400086", "16x8")


@EVERY_FORMAT
def test_a_prompt_with_a_line_of_a_negative_prompt_is_ambiguous_to_a1111_and_exact_in_our_own_metadata(
    format_name,
):
    prompt = "a cat\nNegative prompt: a dog"
    data = written(PIXELS, METADATA | {"prompt": prompt, "negative_prompt": ""}, format_name)
    read = a1111_reads(read_parameters(data, "x"))
    assert (read["Prompt"], read["Negative prompt"], read["Steps"]) == ("a cat", "a dog", "20")
    assert read_metadata(data, "x")["prompt"] == prompt


@EVERY_FORMAT
def test_nul_and_half_surrogate_pairs_are_replaced_for_a1111_and_kept_in_our_own_metadata(format_name):
    prompt = "a\0b\ud83dc"
    data = written(PIXELS, METADATA | {"prompt": prompt}, format_name)
    assert a1111_reads(read_parameters(data, "x"))["Prompt"] == "a\ufffdb\ufffdc"
    assert read_metadata(data, "x")["prompt"] == prompt


# --- The files ---


@given(st.text(st.characters(), max_size=40), st.text(max_size=40), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_metadata_come_back_as_they_were_from_every_format(prompt, negative_prompt, seed):
    metadata = METADATA | {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed}
    for format_name in FORMATS:
        assert read_metadata(written(PIXELS, metadata, format_name), "x") == metadata


@EVERY_FORMAT
def test_pixels_come_back_exactly_or_nearly(format_name):
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    back = decode(written(ramp, METADATA, format_name), "x")
    assert back.dtype == np.uint8 and back.shape == ramp.shape
    assert np.abs(back.astype(int) - ramp).max() <= (0 if FORMATS[format_name].lossless else 4)


@EVERY_FORMAT
def test_the_same_image_gives_the_same_bytes_whatever_the_order_of_its_metadata(format_name):
    turned = dict(reversed(METADATA.items()))
    assert written(PIXELS, METADATA, format_name) == written(PIXELS.copy(), turned, format_name)


@EVERY_FORMAT
def test_pixels_in_any_memory_layout_give_the_same_bytes(format_name):
    turned = np.asfortranarray(PIXELS)
    assert written(PIXELS, METADATA, format_name) == written(turned, METADATA, format_name)


@EVERY_FORMAT
@pytest.mark.parametrize("prompt", ["an apple", "<a> & </sdjax:metadata> ]]> \x01 漢"])
def test_an_image_says_in_well_formed_xmp_that_a_model_made_it(format_name, prompt):
    data = written(PIXELS, METADATA | {"prompt": prompt}, format_name)
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"]
    tree = ElementTree.fromstring(packet if isinstance(packet, str) else packet.decode())
    label = tree.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert label.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_jpegs_keep_a_colour_for_every_pixel():
    with Image.open(io.BytesIO(written(PIXELS, METADATA, "jpeg"))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


def png_chunks(data):
    position, chunks = 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return chunks


@pytest.mark.parametrize(
    "prompt, kind, coded",
    [("naïve", b"tEXt", "naïve".encode("latin-1")), ("漢字", b"iTXt", "漢字".encode())],
)
def test_the_parameters_of_a_png_are_latin_1_if_they_can_be_and_else_utf_8(prompt, kind, coded):
    chunks = png_chunks(written(PIXELS, METADATA | {"prompt": prompt}, "png"))
    [(found, body)] = [chunk for chunk in chunks if chunk[1].startswith(b"parameters\0")]
    assert found == kind and coded in body


@pytest.mark.parametrize("format_name", ["webp", "jpeg"])
def test_exif_holds_the_parameters_as_a1111_writes_them(format_name):
    data = written(PIXELS, METADATA, format_name)
    assert b"UNICODE\0" + a1111_text(METADATA).encode("utf-16-be") in data


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "Steps: 20, 漢".encode("utf-16-le"),
        b"UNICODE\0" + "Steps: 20, 漢".encode("utf-16-be"),
        b"UNICODE\0" + "\ufeffSteps: 20, 漢".encode("utf-16-le"),
        b"ASCII\0\0\0" + "Steps: 20, 漢".encode(),
        "Steps: 20, 漢".encode(),
    ],
)
def test_comments_are_read_in_every_coding_that_tools_write(comment):
    assert metadata_text.text_of_user_comment(comment) == "Steps: 20, 漢"


def test_the_parameters_of_another_tools_image_can_be_read():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 3, Sampler: Euler, Seed: 1")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=chunks)
    assert read_parameters(file.getvalue(), "x").startswith("a cat")


def saved(kind, image=None):
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_image_without_metadata_has_no_parameters_and_says_so_clearly(kind):
    assert read_parameters(saved(kind), "x") is None
    with pytest.raises(ImageError, match=r"cat\.png: no metadata of sdjax"):
        read_metadata(saved(kind), "cat.png")


@EVERY_FORMAT
def test_a_truncated_image_is_an_error_wherever_it_ends(format_name):
    data = written(PIXELS, METADATA, format_name)
    for read in (read_metadata, decode):
        for end in range(len(data)):
            with pytest.raises(ImageError, match=r"^cut: "):
                read(data[:end], "cut")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_image_is_a_clear_error(data):
    for read in (read_metadata, read_parameters, decode):
        with pytest.raises(ImageError, match=r"^notes\.txt: "):
            read(data, "notes.txt")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_image_is_read_or_refused_but_nothing_else(data):
    format_name = data.draw(st.sampled_from(sorted(FORMATS)))
    damaged = bytearray(written(PIXELS, METADATA, format_name))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_metadata, read_parameters, decode):
        try:
            read(bytes(damaged), "x")
        except ImageError as error:
            assert str(error).startswith("x: ")


def test_other_kinds_of_images_are_not_even_tried():
    with pytest.raises(ImageError, match="no whole image; expected one of png, webp, jpeg"):
        decode(saved("GIF"), "x.gif")


def test_an_image_that_is_not_8_bit_rgb_is_refused_rather_than_changed():
    with pytest.raises(ImageError, match="of mode RGBA; expected 8-bit RGB"):
        decode(saved("PNG", Image.new("RGBA", (2, 2))), "x.png")


@pytest.mark.parametrize("side", [8200, 10_000, 100_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"bomb\.png: .*more than 67108864"):
        decode(bomb, "bomb.png")


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "7"])
def test_broken_metadata_are_a_clear_error(text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sdjax", text)
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=chunks)
    with pytest.raises(ImageError, match=r"x\.png: its metadata of sdjax can't be read"):
        read_metadata(file.getvalue(), "x.png")


def test_metadata_too_long_for_a_jpeg_are_an_error_and_fit_into_the_others():
    metadata = METADATA | {"prompt": "long " * 20_000}
    with pytest.raises(EncodeError, match="png and webp hold more"):
        written(PIXELS, metadata, "jpeg")
    for format_name in ("png", "webp"):
        assert read_metadata(written(PIXELS, metadata, format_name), "x") == metadata


def test_an_unknown_format_is_an_error_that_lists_the_known_ones():
    with pytest.raises(EncodeError, match="'gif': expected one of png, webp, jpeg"):
        written(PIXELS, METADATA, "gif")


def test_a_path_is_read_like_its_bytes(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(written(PIXELS, METADATA, "png"))
    assert read_metadata(path, path.name) == METADATA
    assert np.array_equal(decode(path, path.name), PIXELS)
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        decode(tmp_path / "gone.png", "gone.png")
