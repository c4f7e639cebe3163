"""Stable Diffusion's two upscalers as models: x4, of images, and x2, of latents."""

from pathlib import Path

import jax.numpy as jnp

from sdjax.checkpoints.diffusers_folder import vae_dtype_of
from sdjax.checkpoints.sd_upscaler import UpscalerCheckpoint
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.families.latent_upscaler import LATENT_UPSCALER
from sdjax.families.x4_upscaler import X4_UPSCALER
from sdjax.jobs.job import Job
from sdjax.model import DTYPES, Model, tokenizer_for


def diffusion_upscaler_of(found: UpscalerCheckpoint, place: Path, dtype: str) -> Model:
    """The model of a checkpoint, with the parameters that were read of it.

    Args:
      found: what its files say.
      place: where they are.
      dtype: of its parameters.

    Raises:
      CheckpointError: if its scheduler is of a kind that is not supported.
    """
    if found.sampler is None or found.scheduler.thresholding:
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, is none of the samplers here, or asks for thresholding; "
            "expected DDIMScheduler of the x4 upscaler, EulerDiscreteScheduler of the x2 upscaler"
        )
    family = LATENT_UPSCALER if found.low_res is None else X4_UPSCALER
    model = Model(
        name=place.resolve().name if place.is_dir() else place.stem,
        digest=found.digest,
        dtype=dtype,
        vae_dtype=jnp.dtype(vae_dtype_of(found.vae, DTYPES[dtype], None)).name,
        family=family,
        networks=family.modules(found.configs),
        tokenizer=tokenizer_for(family.text_config(found.configs), found.tokenizer_folder),
        scheduler=found.scheduler,
        scheduler_class=found.scheduler_class,
        sampler=found.sampler,
        params=found.params,
        variant_name=family.name,
        file_digest=found.file_digest,
        revision=None,
        vae_revision=None,
        low_res=found.low_res,
        max_noise_level=found.max_noise_level,
    )
    label = 0 if found.low_res else None
    if model.table(model.resolve(Job(prompt="", seed=0, steps=10, class_label=label))).draws.any():
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, adds noise on the way, which is not supported in "
            "upscaling; set another in scheduler/scheduler_config.json, of the published ones DDIMScheduler (x4) or "
            "EulerDiscreteScheduler (x2)"
        )
    return model
