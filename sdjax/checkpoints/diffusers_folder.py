"""A checkpoint in diffusers' layout: a folder per part, and `model_index.json`."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints.checkpoint import Checkpoint, VAEFile, check_fit, load_family
from sdjax.checkpoints.digests import digest_files, digest_with
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.tensors import (
    CheckpointError,
    Params,
    ParamTensor,
    Tensor,
    check_layers,
    check_tensors,
    list_tensors,
    weight_files,
    write_params,
)
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_classes import same_class
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.family import VAE, Configs, Family, Pipeline
from sdjax.families.registry import by_configs, by_pipeline, pipelines
from sdjax.messages import quoted
from sdjax.models import VAEConfig
from sdjax.models.config import check_class

INDEX, CONFIG = "model_index.json", "config.json"
TOKENIZER, SCHEDULER, _LOW_RES = "tokenizer", "scheduler", "low_res_scheduler"
_SCHEDULER_CONFIG = "scheduler_config.json"
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
# How many unknown parts an error names.
_MOST_PARTS = 10
# diffusers' classes that clip unless their config says not to.
_CLIPPING = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
# The noisiest that an image which conditions the UNet can be made, if the folder does not say it.
MAX_NOISE_LEVEL = 350
# Of the scheduler's config, what is written though it be the default: diffusers' classes have other ones.
_ALWAYS_WRITTEN = frozenset({"beta_start", "beta_end", "beta_schedule", "prediction_type", "set_alpha_to_one"})
# diffusers' version whose form the files have; it opens no inpainting checkpoint that does not say one.
_WRITTEN_FOR = "0.42.1"


# --- What a folder says ---


def config_file(root: Path, part: str) -> Path:
    """The config of a part: of a network, or of a scheduler."""
    return root / part / (_SCHEDULER_CONFIG if part.endswith(SCHEDULER) else CONFIG)


def texts_of(folder: Path) -> list[Path]:
    """The files of a tokenizer, or another part that has no weights, that have a say in images."""
    scheduler = folder / _SCHEDULER_CONFIG
    return (
        [scheduler] if scheduler.is_file() else [file for file in folder.glob("*") if file.suffix in (".json", ".txt")]
    )


def read_configs(root: Path, family: Family, without: Iterable[str] = ()) -> dict[str, Any]:
    """The configs of a family's networks, by name, but for those in `without`.

    Raises:
      CheckpointError: if a file is missing, or no JSON.
      ConfigError: if a config asks for what is not implemented.
    """
    return {name: _read_config(root, family, name) for name in family.networks if name not in without}


def _read_config(root: Path, family: Family, name: str) -> Any:
    file = config_file(root, name)
    config = family.networks[name].read_config(read_json(file), str(file))
    return dataclasses.replace(config, **family.folder.overrides.get(name, {}))


def read_scheduler(file: Path, pipeline: Pipeline) -> tuple[SchedulerConfig, str]:
    """A scheduler's config as a pipeline takes it, and its class in diffusers.

    Raises:
      CheckpointError: if there is none, or it clips the denoised latents.
      ConfigError: if it asks for what is not implemented.
    """
    data = read_json(file)
    name = str(data.get("_class_name"))
    if pipeline.clips and same_class(name) in _CLIPPING and data.get("clip_sample", True) is not False:
        raise CheckpointError(
            f"{file}: clip_sample is not false: {name} clips the denoised latents, which is not implemented"
        )
    return dataclasses.replace(SchedulerConfig.from_json(data, str(file)), **pipeline.scheduler), name


def _families_of(file: Path, class_name: object, upscaler: bool) -> tuple[Family, ...]:
    """The families of a pipeline's class, which is an upscaler's or is not; raises `CheckpointError` if none is."""
    families = by_pipeline(class_name)
    found = tuple(family for family in families if family.is_upscaler == upscaler)
    if not found:
        other = "is an upscaler's, which jobs name as `upscaler`" if families else "is not supported"
        problem, known = "is no upscaler" if upscaler else other, ", ".join(pipelines(upscalers=upscaler))
        raise CheckpointError(f"{file}: {quoted(class_name)} {problem}; expected one of {known}")
    return found


def _check_parts(index: Mapping[str, Any], where: str, family: Family) -> None:
    """Raises if a pipeline's `model_index.json` has other parts than those of a family's folders.

    Args:
      index: the JSON object.
      where: names the file in errors.

    Raises:
      CheckpointError: for an unknown part.
      ConfigError: for a part of another class.
    """
    used = {name: value for name, value in index.items() if isinstance(value, list) and value and value[0]}
    classes = {name: network.classes for name, network in family.networks.items()} | {TOKENIZER: _TOKENIZERS}
    unread = {*family.folder.unused_parts, *family.folder.extra_folders, SCHEDULER}
    strange = used.keys() - classes.keys() - unread
    if strange:
        names = [name if name.isidentifier() else quoted(name) for name in sorted(strange)]
        raise CheckpointError(f"{where}: unknown parts {', '.join(names[:_MOST_PARTS])}")
    for name in classes.keys() & used.keys():
        check_class(used[name][-1], classes[name], where, name)


def _scale_of(root: Path, family: Family) -> float:
    """The factor by which a checkpoint's latents are scaled; Stable Diffusion's if it has no VAE's config."""
    has_config = config_file(root, VAE).is_file()
    return float(_read_config(root, family, VAE).scaling_factor) if has_config else VAEConfig.scaling_factor


def _max_noise_level(file: Path, index: Mapping[str, Any], low_res: SchedulerConfig) -> int:
    level = index.get("max_noise_level", MAX_NOISE_LEVEL)
    if type(level) is not int or not 0 <= level < low_res.num_train_timesteps:
        raise CheckpointError(
            f"{file}: max_noise_level = {quoted(level)}: expected a number from 0 to {low_res.num_train_timesteps - 1}"
        )
    return level


# --- Reading ---


def read_diffusers_folder(
    root: Path,
    variant: str | None = None,
    dtype: DTypeLike | None = jnp.float32,
    *,
    upscaler: bool = False,
    vae: VAEFile | None = None,
    vae_dtype: DTypeLike | None = None,
    prediction_type: str | None = None,
    pickled: bool = False,
    hashed: bool = False,
) -> Checkpoint:
    """Reads a checkpoint of any family.

    Args:
      root: the folder with `model_index.json`.
      variant: for example "fp16"; None takes the plain files, or the only variant there is.
      dtype: of the parameters in memory. None reads configs and the headers of the weights' files, and no tensor:
        `params` and `digest` are empty.
      upscaler: whether it has to be an upscaler's, or that of a model which makes images of text alone.
      vae: takes the place of the folder's own, which need not be there then.
      vae_dtype: of the VAE's parameters; None is as `vae_dtype_of` says.
      prediction_type: takes the place of the scheduler's.
      pickled: whether pickled weights are taken where there are no others.
      hashed: whether the names of tensors are checked and files are hashed though no tensor is read.

    Raises:
      CheckpointError: if files or tensors are missing, left over or of the wrong shape.
      ConfigError: if a config asks for what is not implemented.
    """
    index_file = root / INDEX
    index = read_json(index_file)
    families = _families_of(index_file, index.get("_class_name"), upscaler)
    _check_parts(index, str(index_file), families[0])
    own = [name for name in families[0].networks if vae is None or name != VAE]
    configs = read_configs(root, families[0], () if vae is None else (VAE,))
    if vae is not None:
        configs[VAE] = vae.beside(_scale_of(root, families[0]))
    family = by_configs(families, configs)
    check_fit(str(root), family, configs)
    pipeline = family.folder.pipeline(index["_class_name"])
    assert pipeline is not None, "the family was found by it"
    scheduler, scheduler_class = read_scheduler(config_file(root, SCHEDULER), pipeline)
    if prediction_type is not None:
        scheduler = dataclasses.replace(scheduler, prediction_type=prediction_type)
    low_res = _low_res(config_file(root, _LOW_RES)) if _LOW_RES in family.folder.extra_folders else None

    files = {name: weight_files(root / name, family.networks[name].stem, variant, pickled) for name in own}
    # A missing shard must be reported as such, not by the digest.
    tensors = {name: list_tensors(listed, pickled) for name, listed in files.items()}
    for name in own:
        check_layers(configs[name].layers, tensors[name], str(root / name))
    params: Params = {}
    digest = ""
    if dtype is not None or hashed:
        chosen = {name: _check_tensors(root, family, name, configs, tensors[name]) for name in own}
        if vae is not None:
            chosen[VAE] = vae.chosen
        params, hashes = ({}, {}) if dtype is None else load_family(family, configs, chosen, dtype, vae_dtype)
        changes = {"prediction_type": prediction_type or "", "vae": vae.digest(hashes) if vae else ""}
        digest = digest_with(digest_files(root, _decisive(root, family, files), hashes), changes)
    return Checkpoint(
        family=family,
        configs=configs,
        params=params,
        scheduler=scheduler,
        scheduler_class=scheduler_class,
        sampler=own_sampler(scheduler_class, scheduler),
        low_res=low_res,
        max_noise_level=_max_noise_level(index_file, index, low_res) if low_res else 0,
        tokenizer_folder=root / TOKENIZER,
        digest=digest,
    )


def _decisive(root: Path, family: Family, weights: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The files of a folder that have a say in images; `weights` are those of the networks that are read from it."""
    found = [root / INDEX, *(config_file(root, name) for name in (SCHEDULER, *weights))]
    found += [file for listed in weights.values() for file in listed]
    return found + [file for name in (TOKENIZER, *family.folder.extra_folders) for file in texts_of(root / name)]


def _low_res(file: Path) -> SchedulerConfig:
    return SchedulerConfig.from_json(read_json(file), str(file))


def _check_tensors(
    root: Path, family: Family, name: str, configs: Configs, tensors: Mapping[str, Tensor]
) -> list[ParamTensor]:
    network = family.networks[name]
    return check_tensors(tensors, network.param_shapes(configs[name]), network.table, str(root / name))


# --- Writing ---


def write_configs(
    root: Path,
    family: Family,
    configs: Configs,
    *,
    scheduler: SchedulerConfig,
    scheduler_class: str,
    special_tokens: Mapping[str, int],
) -> None:
    """Writes what a checkpoint's folder has beside weights and tokenizer.

    Args:
      family: one whose folders have no extra ones.
      special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id` for the configs of text encoders.
    """
    scheduler_json = {
        field.name: getattr(scheduler, field.name)
        for field in dataclasses.fields(scheduler)
        if field.name in _ALWAYS_WRITTEN or getattr(scheduler, field.name) != field.default
    }
    says = (
        family.folder.model_index(configs)
        if family.folder.model_index
        else {"_class_name": family.folder.pipelines[0].name}
    )
    documents = {
        INDEX: {
            "_diffusers_version": _WRITTEN_FOR,
            SCHEDULER: ["diffusers", scheduler_class],
            TOKENIZER: ["transformers", _TOKENIZERS[0]],
            **{name: [network.library, network.classes[0]] for name, network in family.networks.items()},
            **says,
        },
        # Said, because diffusers' schedulers would clip by default.
        f"{SCHEDULER}/{_SCHEDULER_CONFIG}": {"_class_name": scheduler_class, "clip_sample": False, **scheduler_json},
    }
    for name, network in family.networks.items():
        tokens = special_tokens if name in family.text_networks else {}
        documents[f"{name}/{CONFIG}"] = {**network.to_json(configs[name]), **tokens}
    for name, document in documents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")


def write_folder(
    root: Path, family: Family, configs: Configs, *, params: Params, dtype: DTypeLike, **others: Any
) -> None:
    """Writes a checkpoint that diffusers opens; the tokenizer's folder is written by `text.vocabulary`.

    Args:
      dtype: of the stored tensors.
      others: the other arguments of `write_configs`.
    """
    write_configs(root, family, configs, **others)
    for name, network in family.networks.items():
        write_params(params[name], network.table, root / name / f"{network.stem}.safetensors", dtype)
