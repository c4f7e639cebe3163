"""Images that begin with or are steered by other images, as jobs; and what sdjax gives for them."""

import dataclasses
import functools
import io
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image

import sdjax
from sdjax.checkpoints.controlnet_file import control_shapes, write_controlnet
from sdjax.models.controlnet import ControlNetConfig
from tests import toys
from tests.results import make

RECORDED = Path(__file__).parent / "images_conditioned.npz"
SIDE = 32


def image(name: str) -> np.ndarray:
    """An image of a few waves, uint8, (32, 32, 3)."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) % 2**31)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    return np.round(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def mask() -> np.ndarray:
    """White in a part of the image that is no multiple of latents, uint8, (32, 32)."""
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[6:22, 10:27] = 255
    return white


def soft_mask() -> np.ndarray:
    """Greys that rise from the left to the right, uint8, (32, 32)."""
    return np.tile(np.linspace(0, 255, SIDE).round().astype(np.uint8), (SIDE, 1))


def depth() -> np.ndarray:
    """A depth map of 16 bits."""
    return (image("depth")[..., 0].astype(np.uint16) * 257)[4:28]


def png(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    PIL.Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


FILES = {
    "cat.png": png(image("cat")),
    "edges.png": png(image("edges")),
    "pose.png": png(image("pose")),
    "mask.png": png(mask()),
    "soft.png": png(soft_mask()),
    "depth.png": png(depth()),
}

_job = functools.partial(
    sdjax.Job,
    prompt="a photo of a red apple",
    negative_prompt="the blue cat",
    seed=3,
    steps=7,
    noise_source="torch",
    sampler="ddim",
    width=SIDE,
    height=SIDE,
)
_from_image = functools.partial(_job, image="cat.png")
_in_mask = functools.partial(_from_image, mask_image="mask.png")
_controlled = functools.partial(_job, control_image="edges.png", controlnets="tiny:0.8")


# Samplers that keep the network's outputs of earlier steps, and count: how they begin follows from the strength.
_COUNTING, _STRENGTHS = ("plms", "lms", "pndm"), (0.2, 0.4, 0.5, 0.6, 0.8, 0.9)


def _of_every_strength(
    kind: str, job: Callable[..., sdjax.Job], samplers: Iterable[str] = _COUNTING, **fields: Any
) -> dict[str, sdjax.Job]:
    """Images of one kind by each of those samplers, in 20 steps."""
    return {
        f"{kind} {sampler} {strength}": job(steps=20, sampler=sampler, strength=strength, **fields)
        for sampler in samplers
        for strength in _STRENGTHS
    }


class Model(NamedTuple):
    """A toy, and the images that are made with it."""

    toy: toys.Toy
    jobs: Mapping[str, sdjax.Job]


_TINY_INPAINT = dataclasses.replace(
    toys.TINY, unet=dataclasses.replace(toys.TINY.unet, in_channels=9), scheduler=toys.SD1_INPAINT.scheduler, seed=10
)
_TINY_DEPTH = dataclasses.replace(
    toys.TINY, unet=dataclasses.replace(toys.TINY.unet, in_channels=5), scheduler=toys.SD2_DEPTH.scheduler, seed=11
)

MODELS = {
    "tiny": Model(
        toys.TINY,
        {
            "img2img ddim": _from_image(strength=0.3),
            "img2img euler": _from_image(strength=0.8, sampler="euler"),
            "img2img dpmpp_2m": _from_image(strength=0.6, sampler="dpmpp_2m", schedule="karras", steps=9),
            "img2img ancestral": _from_image(strength=0.7, sampler="euler_ancestral"),
            "img2img heun": _from_image(strength=0.5, sampler="heun"),
            "img2img plms": _from_image(strength=0.6, sampler="plms"),
            "img2img pndm": _from_image(strength=0.9, sampler="pndm"),
            "img2img lms": _from_image(strength=0.6, sampler="lms", schedule="karras"),
            "inpaint ddim": _in_mask(strength=0.6),
            "inpaint whole": _in_mask(),
            "inpaint euler": _in_mask(strength=0.9, sampler="euler"),
            "inpaint dpmpp_2m": _in_mask(strength=0.8, sampler="dpmpp_2m"),
            "inpaint plms": _in_mask(strength=0.5, sampler="plms"),
            "inpaint lms": _in_mask(strength=0.7, sampler="lms"),
            "inpaint binary": _in_mask(strength=0.7, mask_image="soft.png", binarize_mask=True),
            **_of_every_strength("img2img", _from_image),
            # diffusers' inpainting pipeline makes plms of pndm.
            **_of_every_strength("inpaint", _in_mask, ("plms", "lms")),
            "hires plms": _job(hires_scale=2.0, hires_strength=0.6, sampler="plms"),
            "controlnet": _controlled(),
            "controlnet part": _controlled(controlnets="tiny:1.2:0.2:0.7"),
            "controlnet guess": _controlled(guess_mode=True),
            "controlnet pooled": _controlled(controlnets="pooled"),
            "controlnet img2img": _controlled(image="cat.png", strength=0.6),
            "hires": _job(hires_scale=2.0, hires_steps=5, hires_strength=0.6),
            "hires bicubic": _job(
                hires_scale=2.0, hires_upscaler="latent_bicubic_antialiased", sampler="euler", hires_strength=0.7
            ),
        },
    ),
    "tiny, more": Model(
        toys.TINY,
        {
            "controlnets": _controlled(controlnets="tiny:0.5; tiny:0.7:0:0.5", control_image="edges.png; pose.png"),
            "controlnet inpaint": _controlled(image="cat.png", mask_image="mask.png", strength=0.8),
            "hires antialiased": _job(hires_scale=1.5, hires_upscaler="latent_antialiased", hires_strength=0.5),
            "hires nearest": _job(hires_scale=1.5, hires_upscaler="latent_nearest_exact", hires_strength=0.5),
            "hires sharp": _job(hires_scale=1.5, hires_upscaler="latent_bicubic", hires_strength=0.5),
            "hires first": _job(hires_scale=1.5, hires_upscaler="latent_nearest", hires_strength=0.5),
        },
    ),
    "tiny_inpaint": Model(
        _TINY_INPAINT,
        {"whole": _in_mask(), "part": _in_mask(strength=0.7), "ancestral": _in_mask(sampler="euler_ancestral")},
    ),
    "tiny_depth": Model(
        _TINY_DEPTH,
        {
            "depth": _from_image(depth_image="depth.png", strength=0.8),
            "depth euler": _from_image(depth_image="depth.png", strength=0.4, sampler="euler"),
            **_of_every_strength("depth", _from_image, depth_image="depth.png"),
            "depth plms": _from_image(depth_image="depth.png", strength=0.6, sampler="plms"),
            "depth lms": _from_image(depth_image="depth.png", strength=0.4, sampler="lms"),
        },
    ),
    "sd1": Model(toys.SD1, {"img2img": _from_image(strength=0.3), "inpaint": _in_mask(strength=0.8)}),
    "sd2": Model(toys.SD2, {"img2img v": _from_image(strength=0.7, sampler="dpmpp_2m"), "inpaint v": _in_mask()}),
    "sd2_inpaint": Model(toys.SD2_INPAINT, {"part": _in_mask(strength=0.7)}),
    "sd2_depth": Model(toys.SD2_DEPTH, {"depth": _from_image(depth_image="depth.png")}),
}
# Made in every run of the tests; the others live.
QUICK = ("tiny", "tiny_inpaint", "tiny_depth")


# With as many pixels to a latent as the toy has.
CONTROL = ControlNetConfig(toys.TINY.unet, conditioning_embedding_out_channels=(8, 16))


def write_controls(folder: Path) -> Path:
    """Writes the ControlNets that the jobs name as diffusers does; gives the folder."""
    params = toys.random_params(control_shapes(CONTROL), np.random.RandomState(20))
    for name, config in (("tiny", CONTROL), ("pooled", dataclasses.replace(CONTROL, global_pool_conditions=True))):
        write_controlnet(folder / name, config, params, np.float32)
    return folder


def drawn(name: str, folder: Path) -> dict[str, np.ndarray]:
    """The images of one model; `folder` is empty at first."""
    model = sdjax.load(toys.write_toy(folder / name, MODELS[name].toy))
    library = sdjax.Library(controlnets=write_controls(folder / "controls"))
    devices = jax.local_devices()[:1]
    engine = sdjax.Engine(model, batch_size=4, devices=devices, library=library, read_image=FILES.__getitem__)
    jobs = MODELS[name].jobs
    return dict(zip(jobs, (result.image for result in make(engine, list(jobs.values()))), strict=True))
