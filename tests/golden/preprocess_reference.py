"""Records preprocess.npz with OpenCV, which is what sd-webui-controlnet's preprocessors of no weights call.

    python -m tests.golden.preprocess_reference

where opencv-python-headless is installed (5.0 and 4.14 give the same); it is needed nowhere else. Nothing here comes
from sdjax. The images are made by numpy on both sides.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("preprocess.npz")

THRESHOLDS = ((100, 200), (50, 60), (0, 0), (200, 100), (30.5, 400.9), (1500, 2000))
# Radii of A1111's mask blur.
RADII = (1, 4, 7.5)


def images() -> dict[str, np.ndarray]:
    """Noise, gradients and shapes of all sizes and colours, and such as are as thin as an image can be."""
    random = np.random.default_rng(5)
    row, column = np.mgrid[:96, :130].astype(np.float64)
    waves = 128 + 60 * np.sin(row / 7 + column / 11) + 60 * np.sin(row * column / 300)
    shapes = np.full((96, 130, 3), 240.0)
    for index, (y, x, size) in enumerate(((30, 30, 20), (60, 80, 28), (48, 100, 9), (80, 20, 12))):
        inside = (row - y) ** 2 + (column - x) ** 2 < size**2
        shapes[inside] = random.integers(0, 256, 3) if index % 2 else (row + column)[inside][:, None]
    shapes[40:44, 5:120] = (10, 20, 200)
    given = {
        "noise": random.integers(0, 256, (61, 47, 3)),
        "faint noise": random.integers(100, 140, (40, 64, 3)),
        "waves": np.stack([waves, waves[::-1], np.roll(waves, 9, 1)], -1),
        "shapes": shapes,
        "hard": random.integers(0, 2, (33, 50, 1)).repeat(3, -1) * 255,
        "blocks": random.integers(0, 256, (9, 11, 3)).repeat(8, 0).repeat(8, 1),
        "large": random.normal(128, 30, (5, 6, 3)).repeat(40, 0).repeat(40, 1) + random.normal(0, 6, (200, 240, 3)),
        "flat": np.full((16, 16, 3), 77),
        "row": random.integers(0, 256, (1, 30, 3)),
        "column": random.integers(0, 256, (30, 1, 3)),
        "pixel": np.full((1, 1, 3), 9),
    }
    return {name: np.clip(image, 0, 255).astype(np.uint8) for name, image in given.items()}


def masks() -> dict[str, np.ndarray]:
    """In 8 bits: of one channel of `images`, hard."""
    return {name: np.where(images()[name][..., 0] > 128, np.uint8(255), np.uint8(0)) for name in ("waves", "blocks")}


def main() -> None:
    """Records what OpenCV gives."""
    import cv2

    arrays = {}
    for name, image in images().items():
        for low, high in THRESHOLDS:
            arrays[f"canny {name} {low} {high}"] = np.packbits(cv2.Canny(image, low, high) > 0)
        if min(image.shape[:2]) > 1:
            # sd-webui-controlnet's `lineart_standard`.
            values = image.astype(np.float32)
            darker = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
            found = darker[darker > 8]
            drawn = darker / max(16, np.median(found) if found.size else 0) * 127
            arrays[f"lines {name}"] = drawn.clip(0, 255).astype(np.uint8)
        height, width = image.shape[:2]
        for cell in (8, 64):
            if min(height, width) >= cell:
                # sd-webui-controlnet's `apply_color`, whose cells have 64 pixels.
                small = cv2.resize(image, (width // cell, height // cell), interpolation=cv2.INTER_CUBIC)
                grid = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
                arrays[f"grid {name} {cell}"] = grid
        if name == "blocks":
            arrays["smaller blocks"] = cv2.resize(image, (44, 36), interpolation=cv2.INTER_AREA)
    for name, mask in masks().items():
        for radius in RADII:
            # A1111's mask blur, which rounds to 8 bits in between.
            size = 2 * int(2.5 * radius + 0.5) + 1
            across = cv2.GaussianBlur(mask, (size, 1), radius)
            arrays[f"blur {name} {radius}"] = cv2.GaussianBlur(across, (1, size), radius)
            values = cv2.GaussianBlur(mask.astype(np.float32) / 255, (size, 1), radius)
            arrays[f"soft {name} {radius}"] = cv2.GaussianBlur(values, (1, size), radius)[::3, ::3]
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
