"""The comparisons of accelerated images, and what sdjax gives for them: of SD1 and SD2, with two layers at each level.

They are compared with DeepCache 0.1.1, tomesd 0.1.3 and tgate 1.0.0, which change diffusers' pipeline.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

import sdjax
from tests import toys
from tests.results import make

RECORDED = Path(__file__).parent / "images_accelerated.npz"

_job = functools.partial(
    sdjax.Job,
    prompt="a photo of a red apple",
    negative_prompt="the blue cat",
    seed=3,
    steps=8,
    guidance_scale=7.5,
    noise_source="torch",
    sampler="ddim",
)
# The packages count three skip connections for each level, which is so where it has two layers.
TOYS: Mapping[str, toys.Toy] = {
    name: dataclasses.replace(toy, unet=dataclasses.replace(toy.unet, layers_per_block=2), seed=seed)
    for name, toy, seed in (("sd1", toys.SD1, 31), ("sd2", toys.SD2, 32))
}
CASES: Mapping[str, sdjax.Job] = {
    "deep_cache": _job(deep_cache_interval=3),
    "deep_cache_of_an_inner_branch": _job(deep_cache_interval=2, deep_cache_branch=4, sampler="euler"),
    "token_merging": _job(token_merging_ratio=0.5),
    "token_merging_of_another_shape": _job(token_merging_ratio=0.3, width=40, height=24),
    "gate": _job(gate_step=3),
    "gate_of_the_negative_prompt_rescaled": _job(gate_step=5, guidance_rescale=0.7),
    "deep_cache_and_gate": _job(deep_cache_interval=2, gate_step=5),
}


def drawn(model: sdjax.Model, names: Iterable[str] = tuple(CASES)) -> dict[str, np.ndarray]:
    """What sdjax gives for some cases."""
    names = tuple(names)
    engine = sdjax.Engine(model, batch_size=1, devices=jax.local_devices()[:1])
    found = make(engine, [CASES[name] for name in names])
    return {name: result.image for name, result in zip(names, found, strict=True)}
