"""A checkpoint in one file, as CompVis' and Stability AI's original code writes it, and all fine-tunes do.

What the file can't say comes from a config: a YAML file beside it (`model.yaml` for `model.safetensors`), or one
that is named, or a folder of diffusers' configs. Where nothing says it and the structure does not decide, the user is
asked.
"""

import dataclasses
import re
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints import infer_config, original_names
from sdjax.checkpoints.checkpoint import Checkpoint, VAEFile, check_fit, load_family
from sdjax.checkpoints.diffusers_folder import (
    INDEX,
    SCHEDULER,
    TOKENIZER,
    config_file,
    read_configs,
    read_scheduler,
    texts_of,
)
from sdjax.checkpoints.digests import digest_files, digest_with, sha256_of
from sdjax.checkpoints.folder_metadata import folder_texts
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.original_config import OriginalConfig, read_original_config
from sdjax.checkpoints.tensors import CheckpointError, Listing, Params, ParamTensor, Tensor, list_file
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_config import PREDICTION_TYPES, SchedulerConfig
from sdjax.families.family import UNET, VAE, Configs, Family
from sdjax.families.registry import by_configs
from sdjax.families.stable_diffusion import SD1, SD2, TEXT_NETWORKS, extra_channels
from sdjax.library.finding import beside
from sdjax.models import VAEConfig

# Of which such files are. All have these betas.
_FAMILIES = (SD1, SD2)
_BETAS = (0.00085, 0.012)
# The side of the latents for which UNets were trained: 512 pixels, 768 where version 2 predicts v.
_SIDE, _SIDE_V = 64, 96
# In the words of the model specification that trainers write into metadata, letters and digits alone.
_SPECIFIED = {
    **dict.fromkeys(("epsilon", "eps", "epsilonprediction", "epspred", "epsprediction", "noise"), "epsilon"),
    **dict.fromkeys(("v", "vpred", "vprediction", "vparameterization", "velocity"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
}
_BESIDE = (".yaml", ".yml")
# Characters of metadata that an error tells.
_MOST_WORDS = 100


class _Given(NamedTuple):
    """What a config says.

    configs: of all networks, if it says them all.
    scheduler: with its class, likewise.
    tokenizer_folder: None if it has none.
    tokenizer_texts: files of such a folder by name, if they lie in the checkpoint itself.
    digest: of what was read; empty if it lies in the checkpoint itself.
    """

    configs: Configs | None = None
    scheduler: tuple[SchedulerConfig, str] | None = None
    original: OriginalConfig | None = None
    tokenizer_folder: Path | None = None
    tokenizer_texts: Mapping[str, str] = types.MappingProxyType({})
    digest: str = ""


def read_file(
    file: Path,
    dtype: DTypeLike | None = jnp.float32,
    *,
    vae: VAEFile | None = None,
    vae_dtype: DTypeLike | None = None,
    config: Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    pickled: bool = False,
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      dtype: of the parameters in memory. None reads the file's header and no tensor: `params` and `digest` are empty.
      vae: takes the place of the file's own, which need not be there then.
      vae_dtype: of the VAE's parameters; None is as `vae_dtype_of` says.
      config: a YAML file of the original code, or a folder of diffusers' configs (`unet/config.json`, ...,
        `scheduler/scheduler_config.json`, and maybe `tokenizer/`); None looks for a YAML file beside.
      prediction_type: "epsilon", "v_prediction" or "sample", whatever else says so.
      ema: takes the averages of the UNet's parameters.
      pickled: whether the file may be a pickled one.

    Raises:
      CheckpointError: if it is no such checkpoint, or not whole, or there is no telling what its UNet predicts.
      ConfigError: if a config asks for what is not implemented.
    """
    listing = list_file(file, pickled)
    identity = identify(listing.tensors)
    if identity.kind != "checkpoint" or not identity.supported:
        what = ", ".join([identity.kind, *(value for name, value in identity.facts if name == "variant")])
        raise CheckpointError(
            f"{file} is no checkpoint of Stable Diffusion 1 or 2: found {what}. A VAE, a LoRA, an embedding or a "
            "hypernetwork is loaded beside a checkpoint"
        )
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise CheckpointError(f"prediction_type = {prediction_type!r}: expected one of {', '.join(PREDICTION_TYPES)}")
    tensors = original_names.standard_names(listing.tensors)
    config = _config_beside(file) if config is None else config
    given = _read_folder_texts(folder_texts(listing.metadata, file)) if config is None else _read_config(config)
    with original_names.naming(file):
        configs = given.configs or _inferred(file, tensors, given.original, vae)
    if vae is not None:
        configs = {**configs, VAE: vae.beside(_scale_of(given))}
    family = by_configs(_FAMILIES, configs)
    check_fit(str(file), family, configs)
    if given.original:
        given.original.check(configs)

    if given.scheduler:
        scheduler, scheduler_class = given.scheduler
        if prediction_type:
            scheduler = dataclasses.replace(scheduler, prediction_type=prediction_type)
        _agree(file, _said(file, listing, {"config": scheduler.prediction_type}, prediction_type), prediction_type)
    else:
        said = {given.original.file.name: given.original.prediction_type} if given.original else {}
        predicts = _agree(file, _said(file, listing, said, prediction_type), prediction_type) or _usual(
            file, family, configs
        )
        scheduler, scheduler_class = _scheduler(predicts, "ztsnr" in tensors, given.original)
        configs = _with_size(family, configs, predicts)

    where = f"{file}, with the configs in {config or 'its metadata'}" if given.configs else str(file)
    chosen = choose_tensors(where, tensors, configs, own_vae=vae is None, ema=ema)
    if vae is not None:
        chosen[VAE] = vae.chosen
    params: Params = {}
    digest = file_digest = ""
    if dtype is not None:
        params, hashed = load_family(family, configs, chosen, dtype, vae_dtype)
        file_digest = hashed[file]
        changes = {
            "config": given.digest,
            "ema": "true" if ema else "",
            "prediction_type": prediction_type or "",
            "vae": vae.digest(hashed) if vae else "",
        }
        digest = digest_with(file_digest, changes)
    return Checkpoint(
        family=family,
        configs=configs,
        scheduler=scheduler,
        scheduler_class=scheduler_class,
        sampler=own_sampler(scheduler_class, scheduler),
        tokenizer_folder=given.tokenizer_folder,
        params=params,
        digest=digest,
        file_digest=file_digest or None,
        tokenizer_texts=given.tokenizer_texts,
    )


# --- What says what the file can't ---


def _config_beside(file: Path) -> Path | None:
    """The YAML file that has the checkpoint's name."""
    return next((found for ending in _BESIDE if (found := beside(file, ending)).is_file()), None)


def _read_folder_texts(texts: Mapping[str, str]) -> _Given:
    """The configs of the folder of which a file was made, if it carries them."""
    if config_file(Path(), UNET).as_posix() not in texts:
        return _Given()
    with tempfile.TemporaryDirectory() as name:
        for path, text in texts.items():
            (Path(name) / path).parent.mkdir(exist_ok=True)
            (Path(name) / path).write_text(text, "utf-8")
        given = _read_config(Path(name))
    own = {path.removeprefix("tokenizer/"): text for path, text in texts.items() if path.startswith("tokenizer/")}
    return given._replace(tokenizer_folder=None, tokenizer_texts=own, digest="")


def _read_config(config: Path) -> _Given:
    if config.is_file():
        return _Given(original=read_original_config(config), digest=sha256_of(config))
    if not config.is_dir():
        raise CheckpointError(f"config = {config}: there is no such YAML file, and no such folder of configs")
    configs = read_configs(config, SD1)
    index, tokenizer = config / INDEX, config / TOKENIZER
    pipeline = SD1.folder.pipeline(read_json(index).get("_class_name")) if index.is_file() else None
    scheduler = read_scheduler(config_file(config, SCHEDULER), pipeline or SD1.folder.pipelines[0])
    decisive = [config_file(config, name) for name in (SCHEDULER, *configs)]
    decisive += [*([index] if index.is_file() else []), *texts_of(tokenizer)]
    return _Given(
        configs=configs,
        scheduler=scheduler,
        tokenizer_folder=tokenizer if tokenizer.is_dir() else None,
        digest=digest_files(config, decisive),
    )


def _scale_of(given: _Given) -> float:
    """The factor by which latents are scaled, by a config or as it is in all published checkpoints."""
    if given.configs:
        return float(given.configs[VAE].scaling_factor)
    return given.original.scaling_factor if given.original else VAEConfig.scaling_factor


def _said(file: Path, listing: Listing, config: Mapping[str, str], asked: str | None) -> dict[str, str]:
    """What the UNet predicts, by all that says so.

    Raises:
      CheckpointError: if metadata say it in words that are not known, and it is not asked for.
    """
    said = dict(config)
    words = listing.metadata.get("modelspec.prediction_type", "")
    specified = _SPECIFIED.get(re.sub(r"[\W_]+", "", words.lower()))
    if specified:
        said["the file's modelspec.prediction_type"] = specified
    elif words.strip() and asked is None:
        raise CheckpointError(
            f"{file}: its modelspec.prediction_type is {words[:_MOST_WORDS]!r}, which is not known; say what the UNet "
            f"predicts, with prediction_type: one of {', '.join(PREDICTION_TYPES)}"
        )
    if "v_pred" in listing.tensors:
        said["the file's marker v_pred"] = "v_prediction"
    return said


def _agree(file: Path, said: Mapping[str, str], asked: str | None) -> str | None:
    """What the UNet predicts, as asked for, else as all say that say anything; None if nothing does.

    Raises:
      CheckpointError: if they say different things.
    """
    if asked or not said:
        return asked
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{value} by {source}" for source, value in said.items())
        raise CheckpointError(f"{file}: what the UNet predicts is {listed}; say which, with prediction_type")
    return next(iter(said.values()))


def _usual(file: Path, family: Family, configs: Configs) -> str:
    """What the UNet predicts where nothing says so.

    Raises:
      CheckpointError: if there are checkpoints of both kinds.
    """
    if family is SD1 or extra_channels(configs[UNET], configs[VAE]):
        return "epsilon"
    raise CheckpointError(
        f"{file} is of {family.name}, and nothing in it or beside it says what its UNet predicts. Say it with "
        "prediction_type: 'v_prediction' for 2.0 and 2.1 at 768 pixels and most fine-tunes of them, 'epsilon' for the "
        "base models at 512 pixels and for SD-Turbo (which also wants jobs with the sampler euler, the "
        "timestep_spacing trailing, 1 to 4 steps and a guidance_scale of 1). Or lay its YAML config beside it as "
        f"{file.stem}.yaml. With the wrong one images are noise"
    )


def _scheduler(prediction_type: str, zero_snr: bool, config: OriginalConfig | None) -> tuple[SchedulerConfig, str]:
    """The scheduler that the published diffusers folder of such a checkpoint has, and its class."""
    start, end = (config.beta_start, config.beta_end) if config else _BETAS
    scheduler = SchedulerConfig(
        num_train_timesteps=config.timesteps if config else SchedulerConfig.num_train_timesteps,
        beta_start=start,
        beta_end=end,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        steps_offset=1,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        rescale_betas_zero_snr=zero_snr,
    )
    return scheduler, "DDIMScheduler" if zero_snr or prediction_type == "v_prediction" else "PNDMScheduler"


# --- What the file holds ---


def _inferred(file: Path, tensors: Mapping[str, Tensor], config: OriginalConfig | None, vae: VAEFile | None) -> Configs:
    """The configs of the three networks, by names and shapes.

    Raises:
      CheckpointError: if a network is missing, or they are of no known variant.
    """
    unet = infer_config.infer_unet(infer_config.under(tensors, original_names.UNET), config.heads if config else None)
    clip, open_clip = (infer_config.under(tensors, start) for start in (original_names.CLIP, original_names.OPEN_CLIP))
    if bool(clip.shapes) == bool(open_clip.shapes):
        found = "two text encoders" if clip.shapes else "no text encoder (cond_stage_model.)"
        raise CheckpointError(f"{file} holds {found}: it is not a whole checkpoint of Stable Diffusion 1 or 2")
    family = by_configs(_FAMILIES, {UNET: unet})
    if bool(open_clip.shapes) != (family is SD2):
        kinds = "OpenCLIP's" if open_clip.shapes else "CLIP's"
        raise CheckpointError(
            f"{file}: the UNet has the structure of {family.name}, with {kinds} text encoder, which "
            "is no known variant; give a folder of diffusers' configs as config"
        )
    if clip.shapes:
        text = infer_config.infer_clip(clip)
    else:
        text = infer_config.infer_open_clip(open_clip, config.penultimate if config else True)
    if vae is not None:
        return {TEXT_NETWORKS[0]: text, UNET: unet, VAE: vae.config}
    own = infer_config.under(tensors, original_names.VAE)
    if not own.shapes:
        raise CheckpointError(f"{file} holds no VAE (first_stage_model.): give one as vae, a file or a folder")
    scale = _scale_of(_Given(original=config))
    own_vae = dataclasses.replace(infer_config.infer_vae(own), scaling_factor=scale)
    return {TEXT_NETWORKS[0]: text, UNET: unet, VAE: own_vae}


def _with_size(family: Family, configs: Configs, prediction_type: str) -> Configs:
    """The configs with the size for which the variant was trained.

    The UNet that predicts v at 768 pixels has large values in its attention, which half precision would not hold.
    """
    large = family is SD2 and prediction_type == "v_prediction"
    side = _SIDE_V if large else _SIDE
    return {
        **configs,
        UNET: dataclasses.replace(configs[UNET], sample_size=side, upcast_attention=large),
        VAE: dataclasses.replace(configs[VAE], sample_size=side * configs[VAE].factor),
    }


def choose_tensors(
    where: Path | str, tensors: Mapping[str, Tensor], configs: Configs, own_vae: bool, ema: bool
) -> dict[str, list[ParamTensor]]:
    """The tensor of each parameter of the networks that are read from a file, all others accounted for.

    Args:
      where: names the file in errors.
      tensors: all of the file, by standard names.
      own_vae: whether the VAE is read from it too.
      ema: whether the UNet's are the averages.

    Raises:
      CheckpointError: if tensors are missing, left over, of another shape, or no floating-point numbers.
    """
    open_clip = any(name.startswith(original_names.OPEN_CLIP) for name in tensors)
    text_sources = original_names.open_clip_sources if open_clip else original_names.clip_sources
    text = configs[TEXT_NETWORKS[0]]
    wanted = {TEXT_NETWORKS[0]: text_sources(text), UNET: original_names.unet_sources(configs[UNET])}
    if own_vae:
        wanted[VAE] = original_names.vae_sources(configs[VAE])
    averages = original_names.unet_sources(configs[UNET], ema=True)
    if ema:
        if not any(map(original_names.is_average, tensors)):
            raise CheckpointError(f"{where} holds no averages (model_ema.): load it without ema")
        wanted["averages"] = averages
    known = {source.name for source in averages}

    def is_known(name: str) -> bool:
        if original_names.is_extra(name, text) or name in known:
            return True
        return not own_vae and name.startswith(original_names.VAE)

    chosen = original_names.choose(str(where), tensors, wanted, is_known)
    if ema:
        chosen[UNET] = chosen.pop("averages")
    return chosen
