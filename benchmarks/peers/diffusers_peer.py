"""diffusers on torch: eager, with feature maps whose channels are last in memory, and with a compiled UNet."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.peers import work as works
from benchmarks.peers.peer import Run, threads
from benchmarks.peers.work import Work


def prepare(work: Work, model: Path, build: Path, channels_last: bool = False, compiled: bool = False) -> Run:
    """The pipeline, or its UNet alone."""
    torch.set_num_threads(threads())
    torch.set_grad_enabled(False)
    if work.kind == "unet":
        unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
        return _forward(work, unet.config, _fast(unet, channels_last, compiled))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet = _fast(pipeline.unet, channels_last, compiled)
    pipeline.vae = _fast(pipeline.vae, channels_last, compiled=False)
    return lambda work: _images(work, pipeline)


def _fast(network: Any, channels_last: bool, compiled: bool) -> Any:
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    return torch.compile(network) if compiled else network


def _forward(work: Work, config: Any, unet: Any) -> Run:
    latents, timesteps, context = map(
        torch.from_numpy, works.unet_inputs(work, config.in_channels, config.cross_attention_dim)
    )
    latents = latents.permute(0, 3, 1, 2)
    return lambda work: unet(latents, timesteps, context, return_dict=False)[0].permute(0, 2, 3, 1).numpy()


def _images(work: Work, pipeline: Any) -> np.ndarray:
    steps, side, batch, images = work.sizes
    drawn: list[Any] = []
    for first in range(0, images, batch):
        drawn += pipeline(
            works.prompts(images)[first : first + batch],
            num_inference_steps=steps,
            width=side,
            height=side,
            guidance_scale=works.GUIDANCE_SCALE,
            generator=generators(first, batch),
        ).images
    return np.stack([np.asarray(image) for image in drawn])


def generators(first: int, count: int) -> list[torch.Generator]:
    """One for each image, whose seed is its number."""
    return [torch.Generator().manual_seed(first + index) for index in range(count)]
