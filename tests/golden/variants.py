"""Images of models whose UNet is told more than latents and text: inpainting, depth, class labels; and of SD-Turbo.

Text to image with them, where nothing else is given: the mask of an inpainting model covers the whole image, and all
is of middle depth.
"""

from pathlib import Path

import sdjax
from tests import toys
from tests.golden.images import Image

RECORDED = Path(__file__).parent / "images_variants.npz"


def _job(sampler: str, steps: int, **fields: object) -> Image:
    given = {"guidance_scale": 7.5, "negative_prompt": "the blue cat", **fields}
    job = sdjax.Job(
        prompt="a photo of a red apple", seed=3, sampler=sampler, steps=steps, noise_source="torch", **given
    )
    return Image(job)


_USUAL = {"euler_ancestral": _job("euler_ancestral", 5), "ddim": _job("ddim", 7)}
_LABELLED = {"euler_ancestral": _job("euler_ancestral", 5, class_label=4), "ddim": _job("ddim", 7, class_label=1)}
_TURBO = {f"{steps} steps": _job("euler", steps, guidance_scale=1.0, negative_prompt="") for steps in (1, 2, 4)}

# By model: its toy, and the images.
VARIANTS: dict[str, tuple[toys.Toy, dict[str, Image]]] = {
    "sd1_inpaint": (toys.SD1_INPAINT, _USUAL),
    "sd2_inpaint": (toys.SD2_INPAINT, _USUAL),
    "sd2_depth": (toys.SD2_DEPTH, _USUAL),
    "sd1_classes": (toys.SD1_CLASSES, _LABELLED),
    "sd1_timed_classes": (toys.SD1_TIMED_CLASSES, _LABELLED),
    "sd_turbo": (toys.SD_TURBO, _TURBO),
}
# Made in every run of the tests; the others live.
QUICK = ("sd2_depth", "sd1_timed_classes")
