"""An image is decoded once for all who name it, and so is what is made of it."""

import io

import numpy as np
import pytest
from PIL import Image

from sdjax.images.cached import CachedImage, decoded
from sdjax.images.decode import ImageError
from sdjax.images.fit import fitted
from sdjax.images.read import DecodedImage, read_grey, read_image


def png(colour: tuple[int, int, int], side: int = 8) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(written, "PNG")
    return written.getvalue()


def counting(calls: list[str]):
    """A way to decode images of its own, which notes the names that it is called with."""

    def decode(data: bytes, name: str) -> DecodedImage:
        calls.append(name)
        return read_image(data, name)

    return decode


def test_files_of_the_same_contents_are_decoded_once_whatever_their_names():
    calls: list[str] = []
    decode = counting(calls)
    first, again, other = (
        decoded(decode, png(colour), name) for colour, name in (((1, 2, 3), "a"), ((1, 2, 3), "b"), ((3, 2, 1), "a"))
    )
    assert calls == ["a", "a"] and again.values is first.values
    assert first.digest == again.digest != other.digest and not np.array_equal(first.values, other.values)


def test_an_image_is_what_its_reader_gives():
    data = png((10, 20, 30))
    for decode in (read_image, read_grey):
        values, notes = decode(data, "a")
        found = decoded(decode, data, "a")
        assert np.array_equal(found.values, values) and found.values.dtype == values.dtype and found.notes == notes


def test_a_file_that_can_not_be_decoded_is_named_by_each_who_names_it():
    for name in ("first.png", "second.png"):
        with pytest.raises(ImageError, match=name):
            decoded(read_image, b"no image", name)


def test_what_is_made_of_an_image_is_made_once_for_the_same_arguments():
    calls: list[tuple[int, int]] = []

    def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        calls.append((height, width))
        return fitted(pixels, height, width, "stretch")

    image = decoded(read_image, png((9, 9, 9)), "a")
    sides = [image.map(resize, *size).values.shape[:2] for size in ((4, 4), (4, 4), (4, 2))]
    assert sides == [(4, 4), (4, 4), (4, 2)] and calls == [(4, 4), (4, 2)]


def test_nobody_can_change_what_others_share():
    image = decoded(read_image, png((7, 7, 7)), "a")
    for shared in (image, image.map(fitted, 4, 4, "stretch")):
        with pytest.raises(ValueError, match="read-only"):
            shared.values[0, 0] = 0


def test_images_of_one_name_in_one_place_are_told_apart_by_what_was_done_to_them():
    image = CachedImage(np.ones((2, 2), np.float32), ("of a test",))
    doubled = image.map(np.multiply, 2)
    assert (doubled.map(np.add, 1).values == 3).all() and (image.map(np.add, 1).values == 2).all()
