"""sdjax: the UNet and its operations compiled as the engine compiles them, and images by the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array

import sdjax
from benchmarks.peers import work as works
from benchmarks.peers.peer import Run
from benchmarks.peers.work import Work
from sdjax.engine.device import program_for
from sdjax.models.attention import dot_product_attention
from sdjax.models.convolution import Conv
from sdjax.models.winograd import all_transformed, convolve, convolving, kernels_of, transformed


def prepare(work: Work, model: Path, build: Path) -> Run:
    """Parts work on random arrays and read no model."""
    if work.kind == "image":
        return _images(work, model)
    return _unet(work, model) if work.kind == "unet" else _part(work)


def _unet(work: Work, folder: Path) -> Run:
    model = sdjax.load(str(folder), dtype="float32")
    config = model.unet.config
    arrays = works.unet_inputs(work, config.in_channels, config.cross_attention_dim)
    params = model.params["unet"]
    kernels = jax.jit(all_transformed)(kernels_of(config, params)) if jax.default_backend() == "cpu" else {}
    program = program_for(jax.default_backend(), _forward, model.unet)
    inputs = jax.device_put((params, kernels, *arrays))
    return lambda work: np.asarray(program(*inputs))


def _forward(unet: Any, params: Any, kernels: Any, latents: Array, timesteps: Array, context: Array) -> Array:
    with convolving(kernels):
        predicted: Array = unet.apply({"params": params}, latents, timesteps, context)
    return predicted


def _images(work: Work, folder: Path) -> Run:
    engine = sdjax.Engine(sdjax.load(str(folder), dtype="float32"), batch_size=work.size("batch"))

    def run(work: Work) -> np.ndarray:
        tasks = [engine.prepare(_job(work, seed, prompt)) for seed, prompt in enumerate(_prompts(work))]
        return np.stack([result.image for result in engine.run(tasks)])

    return run


def _prompts(work: Work) -> list[str]:
    return works.prompts(work.size("images"))


def _job(work: Work, seed: int, prompt: str) -> sdjax.Job:
    """As the others draw it: Euler, on the noise of torch's generator."""
    side = work.size("side")
    return sdjax.Job(
        prompt=prompt,
        seed=seed,
        steps=work.size("steps"),
        width=side,
        height=side,
        sampler="euler",
        noise_source="torch",
        guidance_scale=works.GUIDANCE_SCALE,
    )


# --- Parts ---

# The side of the lowest resolution, whose kernels the engine does not transform.
_LOWEST = 8


def _part(work: Work) -> Run:
    operation, arrays = _OPERATIONS[work.kind], jax.device_put(works.part_inputs(work))
    if work.kind == "convolution" and jax.default_backend() == "cpu" and arrays[0].shape[1] > _LOWEST:
        operation, arrays = convolve, (arrays[0], jax.jit(transformed)(arrays[1]))
    program = program_for(jax.default_backend(), operation)
    return lambda work: np.asarray(program(*arrays))


def _convolution(x: Array, kernel: Array) -> Array:
    """By the module of the networks, so that it is whatever they do."""
    module = Conv(kernel.shape[-1], kernel.shape[:2], use_bias=False)
    convolved: Array = module.apply({"params": {"kernel": kernel}}, x)
    return convolved


def _product(x: Array, weights: Array) -> Array:
    return lax.dot(x, weights)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


_OPERATIONS: dict[str, Callable[..., Array]] = {
    "attention": dot_product_attention,
    "convolution": _convolution,
    "product": _product,
    "gelu": _gelu,
}
