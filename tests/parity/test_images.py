"""Live comparison of sizes, masks and regions with diffusers' VaeImageProcessor and torch."""

import itertools

import numpy as np
import pytest
from PIL import Image

from sdjax.images.decode import ImageError
from sdjax.images.fit import fitted, fitted_mask, snapped
from sdjax.images.masks import crop_region, latent_mask

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs torch: make parity")
processors = pytest.importorskip("diffusers.image_processor", reason="needs diffusers: make parity")

MODES = {"stretch": "default", "crop": "crop", "pad": "fill"}
SIZES = ((64, 64), (48, 96), (31, 77), (120, 40), (64, 65))
WANTED = ((64, 64), (32, 96), (104, 56), (8, 8))


@pytest.mark.parametrize("mode", MODES)
def test_images_of_another_size_to_the_bit(mode):
    for (height, width), size in itertools.product(SIZES, WANTED):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        resized = processors.VaeImageProcessor().resize(Image.fromarray(pixels), *size, MODES[mode])
        np.testing.assert_array_equal(fitted(pixels, *size, mode), np.asarray(resized))


@pytest.mark.parametrize("mode", MODES)
def test_masks_of_another_size_to_the_bit(mode):
    processor = processors.VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    for (height, width), size in itertools.product(SIZES, WANTED):
        grey = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
        wanted = processor.preprocess(Image.fromarray(grey), *size, resize_mode=MODES[mode])[0, 0].numpy()
        soft = fitted_mask(grey.astype(np.float32) / np.float32(255), *size, mode)
        np.testing.assert_array_equal(np.where(soft < 0.5, 0, 1), wanted)
        # To the latents, as the pipelines do it.
        latents = torch.nn.functional.interpolate(
            torch.from_numpy(wanted)[None, None], size=(size[0] // 8, size[1] // 8)
        )
        np.testing.assert_array_equal(latent_mask(wanted, size[0] // 8, size[1] // 8), latents[0, 0].numpy())


def test_masks_to_latents_of_any_size_to_the_bit():
    sides = (1, 2, 7, 8, 13, 64, 97, 100, 511, 512)
    for height, rows in itertools.product(sides, sides):
        mask = np.random.default_rng(height).random((height, 9), np.float32)
        wanted = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=(rows, 5))[0, 0].numpy()
        np.testing.assert_array_equal(latent_mask(mask, rows, 5), wanted)


def test_default_sizes():
    processor = processors.VaeImageProcessor()
    for height, width in itertools.product((8, 9, 15, 64, 511, 1000), (8, 17, 640)):
        assert snapped(height, width, 8) == processor.get_default_height_width(Image.new("L", (width, height)))


def test_regions_around_masks():
    random = np.random.default_rng(0)
    compared = 0
    for (height, width), size, padding in itertools.product(SIZES, WANTED, (0, 5, 32)):
        for _ in range(12):
            rows, columns = np.sort(random.integers(0, height + 1, 2)), np.sort(random.integers(0, width + 1, 2))
            grey = np.zeros((height, width), np.uint8)
            grey[slice(*rows), slice(*columns)] = random.integers(1, 256)
            mask = grey.astype(np.float32) / np.float32(255)
            if not grey.any():
                with pytest.raises(ImageError, match="nothing is masked"):
                    crop_region(mask, padding, size)
                continue
            left, top, right, bottom = processors.VaeImageProcessor.get_crop_region(
                Image.fromarray(grey), size[1], size[0], pad=padding
            )
            assert crop_region(mask, padding, size) == (top, left, bottom, right)
            compared += 1
    print(f"\n{compared} regions")
    assert compared > 500
