"""The images of `variants` by diffusers. Needs torch."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

from tests.golden.images import Image
from tests.golden.reference import SCHEDULERS


def _scheduler(folder: Path, image: Image) -> Any:
    kind, own = SCHEDULERS[image.job.sampler]
    return kind.from_pretrained(folder / "scheduler", **{**own, "clip_sample": False, "steps_offset": 1})


def draw(folder: Path, image: Image) -> np.ndarray:
    """An image of a model in a folder, uint8, (height, width, 3)."""
    index = diffusers.DiffusionPipeline.load_config(folder)
    by = _by_inpainting if index["_class_name"] == "StableDiffusionInpaintPipeline" else _by_hand
    return by(folder, image)


def _by_inpainting(folder: Path, image: Image) -> np.ndarray:
    """diffusers' pipeline with a mask that covers all of some image."""
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(folder, image)
    job = image.job
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    drawn = pipeline(
        job.prompt,
        image=PIL.Image.effect_noise((side, side), 50).convert("RGB"),
        mask_image=PIL.Image.new("L", (side, side), 255),
        height=side,
        width=side,
        negative_prompt=job.negative_prompt,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance_scale,
        strength=1.0,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    )
    return np.asarray(drawn.images[0])


@torch.no_grad()
def _by_hand(folder: Path, image: Image) -> np.ndarray:
    """What its pipelines do, by its parts: none of them draws from text with a depth model or with class labels."""
    parts = {
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
    }
    plain = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )
    unet, vae, job = parts["unet"], parts["vae"], image.job
    scheduler = _scheduler(folder, image)
    guided = job.guidance_scale > 1
    given, without = plain.encode_prompt(job.prompt, "cpu", 1, guided, job.negative_prompt)
    context = torch.cat([without, given]) if guided else given
    generator = torch.Generator("cpu").manual_seed(job.seed)
    side, channels = unet.config.sample_size, vae.config.latent_channels
    scheduler.set_timesteps(job.steps)
    latents = torch.randn((1, channels, side, side), generator=generator) * scheduler.init_noise_sigma
    more = torch.zeros((1, unet.config.in_channels - channels, side, side))
    labels = None
    if job.class_label is not None:
        labels = torch.tensor([job.class_label] * len(context))
    extra = {"generator": generator} if job.sampler in ("euler_ancestral", "euler") else {}
    for timestep in scheduler.timesteps:
        shown = torch.cat([scheduler.scale_model_input(latents, timestep), more], dim=1)
        prediction = unet(
            shown.repeat(len(context), 1, 1, 1), timestep, encoder_hidden_states=context, class_labels=labels
        ).sample
        if guided:
            without, given = prediction.chunk(2)
            prediction = without + job.guidance_scale * (given - without)
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
    return np.asarray(plain.image_processor.postprocess(pixels, output_type="pil")[0])
