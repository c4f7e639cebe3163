"""The original single file of Stable Diffusion's x4 upscaler (`x4-upscaler-ema`).

Its configs are those of Stability AI's `x4-upscaling.yaml`, less what its shapes say.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints import infer_config, original_names
from sdjax.checkpoints.checkpoint import Checkpoint, check_fit, load_family
from sdjax.checkpoints.diffusers_folder import MAX_NOISE_LEVEL
from sdjax.checkpoints.digests import sha256_of
from sdjax.checkpoints.single_file import choose_tensors
from sdjax.checkpoints.tensors import Params, list_file
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.family import UNET, VAE
from sdjax.families.stable_diffusion import TEXT_NETWORKS
from sdjax.families.x4_upscaler import SCALING_FACTOR, X4_UPSCALER
from sdjax.models import UNetConfig, VAEConfig

_HEADS, _SIDE = 8, 128
_BETAS = SchedulerConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
_SCHEDULER = dataclasses.replace(
    _BETAS, prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True
)
_SCHEDULER_CLASS = "DDIMScheduler"
# The schedule of the noise on the small image: buffers, which are computed here.
_LOW_SCALE = "low_scale_model."


def read_x4_file(
    file: Path, dtype: DTypeLike | None = jnp.float32, *, vae_dtype: DTypeLike | None = None, pickled: bool = False
) -> Checkpoint:
    """Reads the upscaler.

    Args:
      dtype: of the parameters in memory. None reads the file's header and no tensor: there are no parameters then; the
        file is hashed all the same.
      vae_dtype: of the VAE's parameters; None is as `vae_dtype_of` says.
      pickled: whether the file may be a pickled one.

    Raises:
      CheckpointError: if it is no such upscaler, or not whole.
      ConfigError: if there can be no such networks.
    """
    tensors = original_names.standard_names(list_file(file, pickled).tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_LOW_SCALE)}
    with original_names.naming(file):
        configs = {
            TEXT_NETWORKS[0]: infer_config.infer_open_clip(infer_config.under(tensors, original_names.OPEN_CLIP)),
            UNET: _infer_unet(infer_config.under(tensors, original_names.UNET)),
            VAE: _infer_vae(infer_config.under(tensors, original_names.VAE)),
        }
    check_fit(str(file), X4_UPSCALER, configs)
    chosen = choose_tensors(file, tensors, configs, own_vae=True, ema=False)
    params: Params = {}
    hashed: dict[Path, str] = {}
    if dtype is not None:
        params, hashed = load_family(X4_UPSCALER, configs, chosen, dtype, vae_dtype)
    digest = hashed.get(file) or sha256_of(file)
    return Checkpoint(
        family=X4_UPSCALER,
        configs=configs,
        params=params,
        scheduler=_SCHEDULER,
        scheduler_class=_SCHEDULER_CLASS,
        sampler=own_sampler(_SCHEDULER_CLASS, _SCHEDULER),
        low_res=_BETAS,
        max_noise_level=MAX_NOISE_LEVEL,
        digest=digest,
        file_digest=digest,
    )


def _infer_unet(stored: infer_config.Shapes) -> UNetConfig:
    """The UNet's config. Where the text is as wide as the pixels' features, attention is to these, as published."""
    unet = infer_config.infer_unet(stored, infer_config.Heads(number=_HEADS))
    width, layers, block = unet.per_level("cross_attention_dim")[0], unet.per_level("layers_per_block"), 1
    only_cross = []
    for channels, count in zip(unet.block_out_channels, layers, strict=True):
        name = f"input_blocks.{block}.1.transformer_blocks.0.attn1.to_k.weight"
        only_cross.append(name in stored and channels != width and stored.axis(name, 1) == width)
        block += count + 1
    return dataclasses.replace(unet, only_cross_attention=tuple(only_cross), sample_size=_SIDE)


def _infer_vae(stored: infer_config.Shapes) -> VAEConfig:
    vae = infer_config.infer_vae(stored)
    return dataclasses.replace(vae, scaling_factor=SCALING_FACTOR, sample_size=_SIDE * vae.factor)
