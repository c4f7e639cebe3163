"""Checkpoints of Stable Diffusion's upscalers: x4, of small pictures, and x2, of latents.

Both are diffusers folders; the x4 upscaler is also an original single file (`x4-upscaler-ema`), whose configs are those
of Stability AI's `x4-upscaling.yaml`, less what is told by its shapes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints import infer_config, original_names
from sdjax.checkpoints.diffusers_folder import (
    PARTS,
    NetworkConfig,
    check_parts,
    digest_files,
    floats,
    param_shapes,
    random_key,
    sha256_of,
    vae_dtype_of,
)
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.single_file import Configs, choose_tensors
from sdjax.checkpoints.tensors import (
    CheckpointError,
    NetworkTensors,
    Params,
    check_layers,
    check_tensors,
    list_file,
    list_tensors,
    load_networks,
    weight_files,
)
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_classes import same_class
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.latent_upscaler import NOISE_FEATURES
from sdjax.messages import quoted
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.models.latent_upscaler import LatentUpscalerConfig, LatentUpscalerUNet

X4, X2 = "StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline"
# Channels of the small picture that the x4 upscaler's UNet sees beside the latents.
_PICTURE = 3
# The x4 upscaler's latents are scaled by this, whatever its VAE's config says; diffusers takes it so too.
SCALING_FACTOR = 0.08333
# The noisiest that a small picture can be made, if the folder does not say it.
_MAX_NOISE_LEVEL = 350
# Parts of such pipelines that are not used.
_UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermarker"})
# Of the original x4 upscaler.
_HEADS, _SIDE = 8, 128
_BETAS = SchedulerConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
_SCHEDULER_CLASS = "DDIMScheduler"
# diffusers' classes that clip unless they are told not to. Its text-to-image pipeline turns that off, these do not.
_CLIPPING = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
# The schedule of the noise on the small picture: buffers, which are worked out anew.
_LOW_SCALE = "low_scale_model."


class UpscalerCheckpoint(NamedTuple):
    """All that an upscaler's checkpoint holds, as read.

    low_res: the schedule of the noise that is put on small pictures, and
    max_noise_level: its noisiest level allowed; None and 0 of the x2 upscaler.
    params, sampler, tokenizer_folder, digest, file_digest: as in `diffusers_folder.Checkpoint`.
    """

    text_encoder: TextEncoderConfig
    unet: UNetConfig | LatentUpscalerConfig
    vae: VAEConfig
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    low_res: SchedulerConfig | None
    max_noise_level: int
    tokenizer_folder: Path | None
    params: Params
    digest: str
    file_digest: str | None = None

    @property
    def configs(self) -> dict[str, Any]:
        """The configs of the networks, by name."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}


def read_upscaler(
    path: Path,
    variant: str | None = None,
    dtype: DTypeLike | None = jnp.float32,
    *,
    vae_dtype: DTypeLike | None = None,
    pickled: bool = False,
) -> UpscalerCheckpoint:
    """Reads an upscaler.

    Args:
      path: a folder with `model_index.json`, or an original single file of the x4 upscaler.
      variant: which files of a folder to take, for example "fp16"; None takes the plain ones, or the only ones there.
      dtype: of the parameters in memory. None reads configs and the headers of the weights' files, and no tensor:
        there are no parameters then; files are hashed all the same.
      vae_dtype: of the VAE's parameters; None is float32 if its config has `force_upcast`, else `dtype`.
      pickled: whether pickled weights are allowed.

    Raises:
      CheckpointError: if it is no such upscaler, or not whole.
      ConfigError: if a config asks for what is not implemented.
    """
    if path.is_dir():
        return _read_folder(path, variant, dtype, vae_dtype, pickled)
    return _read_file(path, dtype, vae_dtype, pickled)


def shapes_of(config: NetworkConfig | LatentUpscalerConfig) -> Params:
    """The parameter tree of a network as shapes, nothing allocated. It is shared: not to be changed."""
    if not isinstance(config, LatentUpscalerConfig):
        return param_shapes(config)
    return _latent_upscaler_shapes(dataclasses.replace(config, sample_size=None))


@functools.lru_cache(maxsize=8)
def _latent_upscaler_shapes(config: LatentUpscalerConfig) -> Params:
    sample = floats(1, config.factor, config.factor, config.in_channels)
    context, condition = floats(1, 2, config.cross_attention_dim), floats(1, config.time_cond_proj_dim)
    network = LatentUpscalerUNet(config)
    tree: Params = jax.eval_shape(network.init, random_key(), sample, floats(1), context, condition)
    return tree["params"]


# --- A folder ---


def _read_folder(
    root: Path, variant: str | None, dtype: DTypeLike | None, vae_dtype: DTypeLike | None, pickled: bool
) -> UpscalerCheckpoint:
    index_file = root / "model_index.json"
    index = read_json(index_file)
    kind = index.get("_class_name")
    if kind not in (X4, X2):
        raise CheckpointError(f"{index_file}: {quoted(kind)} is no upscaler; expected {X4} or {X2}")
    low_res_files = [root / "low_res_scheduler" / "scheduler_config.json"] if kind == X4 else []
    check_parts(index, str(index_file), _UNUSED_PARTS, frozenset(file.parent.name for file in low_res_files))
    files = {name: root / part.folder / "config.json" for name, part in PARTS.items()}
    readers = {name: part.read_config for name, part in PARTS.items()}
    configs: dict[str, Any] = {
        name: (LatentUpscalerConfig.from_json if (kind, name) == (X2, "unet") else readers[name])(
            read_json(file), str(file)
        )
        for name, file in files.items()
    }
    if kind == X4:
        configs["vae"] = dataclasses.replace(configs["vae"], scaling_factor=SCALING_FACTOR)
    _check_fit(str(root), **configs)
    scheduler_file = root / "scheduler" / "scheduler_config.json"
    scheduler, scheduler_class = _read_scheduler(scheduler_file)
    low_res = [SchedulerConfig.from_json(read_json(file), str(file)) for file in low_res_files]

    weights = {name: weight_files(root / part.folder, part.stem, variant, pickled) for name, part in PARTS.items()}
    tensors = {name: list_tensors(listed, pickled) for name, listed in weights.items()}
    for name, config in configs.items():
        check_layers(config.layers, tensors[name], str(root / PARTS[name].folder))
    chosen = {
        name: check_tensors(tensors[name], shapes_of(configs[name]), part.table, str(root / part.folder))
        for name, part in PARTS.items()
    }
    params, hashed = _load(configs, chosen, dtype, vae_dtype)
    decisive = [index_file, scheduler_file, *low_res_files, *files.values()]
    decisive += [file for listed in weights.values() for file in listed]
    decisive += [file for file in (root / "tokenizer").glob("*") if file.suffix in (".json", ".txt")]
    return UpscalerCheckpoint(
        text_encoder=configs["text_encoder"],
        unet=configs["unet"],
        vae=configs["vae"],
        scheduler=scheduler,
        scheduler_class=scheduler_class,
        sampler=own_sampler(scheduler_class, scheduler),
        low_res=low_res[0] if low_res else None,
        max_noise_level=_max_noise_level(index_file, index, low_res[0]) if low_res else 0,
        tokenizer_folder=root / "tokenizer",
        params=params,
        digest=digest_files(root, decisive, hashed),
    )


def _read_scheduler(file: Path) -> tuple[SchedulerConfig, str]:
    data = read_json(file)
    name = str(data.get("_class_name"))
    if same_class(name) in _CLIPPING and data.get("clip_sample", True) is not False:
        raise CheckpointError(
            f"{file}: clip_sample is not false: {name} clips the denoised latents, which is not implemented"
        )
    return SchedulerConfig.from_json(data, str(file)), name


def _max_noise_level(file: Path, index: Mapping[str, Any], low_res: SchedulerConfig) -> int:
    level = index.get("max_noise_level", _MAX_NOISE_LEVEL)
    if type(level) is not int or not 0 <= level < low_res.num_train_timesteps:
        raise CheckpointError(
            f"{file}: max_noise_level = {quoted(level)}: expected a number from 0 to {low_res.num_train_timesteps - 1}"
        )
    return level


def _check_fit(
    where: str, text_encoder: TextEncoderConfig, unet: UNetConfig | LatentUpscalerConfig, vae: VAEConfig
) -> None:
    """Raises `CheckpointError` if the networks can't upscale together."""
    latents, width = vae.latent_channels, text_encoder.hidden_size
    expected: dict[str, tuple[Any, Any]] = {
        "the VAE's in_channels": (vae.in_channels, 3),
        "the VAE's out_channels": (vae.out_channels, 3),
    }
    if isinstance(unet, LatentUpscalerConfig):
        expected |= {
            "the UNet's in_channels": (unet.in_channels, 2 * latents),
            # One for the variance, which is not used.
            "the UNet's out_channels": (unet.out_channels, latents + 1),
            "the UNet's cross_attention_dim": (unet.cross_attention_dim, width),
            "the UNet's time_cond_proj_dim": (unet.time_cond_proj_dim, NOISE_FEATURES + width),
        }
    else:
        expected |= {
            "the UNet's in_channels": (unet.in_channels, latents + _PICTURE),
            "the UNet's out_channels": (unet.out_channels, latents),
            "the UNet's cross_attention_dim": (set(unet.per_level("cross_attention_dim")), {width}),
            "the UNet's class_embed_type": (unet.class_embed_type, None),
            "whether the UNet has num_class_embeds": (unet.num_class_embeds is not None, True),
        }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise CheckpointError(f"{where}: {name} is {found}, expected {wanted} of an upscaler")


def _load(
    configs: Mapping[str, Any], chosen: Mapping[str, Any], dtype: DTypeLike | None, vae_dtype: DTypeLike | None
) -> tuple[Params, dict[Path, str]]:
    if dtype is None:
        return {}, {}
    dtypes = {**dict.fromkeys(PARTS, dtype), "vae": vae_dtype_of(configs["vae"], dtype, vae_dtype)}
    return load_networks({name: NetworkTensors(chosen[name], shapes_of(configs[name]), dtypes[name]) for name in PARTS})


# --- An original single file ---


def _read_file(file: Path, dtype: DTypeLike | None, vae_dtype: DTypeLike | None, pickled: bool) -> UpscalerCheckpoint:
    tensors = original_names.standard_names(list_file(file, pickled).tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_LOW_SCALE)}
    with original_names.naming(file):
        configs = Configs(
            text_encoder=infer_config.infer_open_clip(infer_config.under(tensors, original_names.OPEN_CLIP)),
            unet=_infer_unet(infer_config.under(tensors, original_names.UNET)),
            vae=_infer_vae(infer_config.under(tensors, original_names.VAE)),
        )
    _check_fit(str(file), *configs)
    chosen = choose_tensors(file, tensors, configs, own_vae=True, ema=False)
    params, hashed = _load(configs._asdict(), chosen, dtype, vae_dtype)
    digest = hashed.get(file) or sha256_of(file)
    scheduler = dataclasses.replace(
        _BETAS, prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True
    )
    return UpscalerCheckpoint(
        text_encoder=configs.text_encoder,
        unet=configs.unet,
        vae=configs.vae,
        scheduler=scheduler,
        scheduler_class=_SCHEDULER_CLASS,
        sampler=own_sampler(_SCHEDULER_CLASS, scheduler),
        low_res=_BETAS,
        max_noise_level=_MAX_NOISE_LEVEL,
        tokenizer_folder=None,
        params=params,
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
