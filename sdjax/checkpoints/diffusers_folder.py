"""A checkpoint in diffusers' layout: a folder per part, and `model_index.json`."""

import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from sdjax.checkpoints import name_table
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.tensors import (
    CheckpointError,
    NetworkTensors,
    Params,
    ParamTensor,
    check_layers,
    check_tensors,
    list_tensors,
    load_networks,
    weight_files,
    write_params,
)
from sdjax.checkpoints.variants import DEPTH, INPAINTING, PIPELINES, check_fit, extra_channels
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.messages import quoted
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig
from sdjax.models.config import check_class

# Pipelines that draw pictures from text, and maybe more, with the parts below.
_PIPELINES = (*PIPELINES.values(), "StableDiffusionImg2ImgPipeline")
# Of the scheduler's config, what is written though it be the default: diffusers' classes have other ones.
_ALWAYS_WRITTEN = frozenset({"beta_start", "beta_end", "beta_schedule", "prediction_type", "set_alpha_to_one"})
# diffusers' version whose form the files have; it opens no inpainting checkpoint that does not say one.
_WRITTEN_FOR = "0.42.1"
# The parts that are not there, said as diffusers says it. It takes a depth estimator only from its caller then.
_DEPTH_PARTS = {"depth_estimator": [None, None]}
_OTHER_PARTS = {"image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
# Parts of such a pipeline which are not used: the first is not there without its own checkpoint's classifier.
_UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder", "depth_estimator"})


class Checkpoint(NamedTuple):
    """All that a text-to-image checkpoint holds, as read.

    params: {"text_encoder": ..., "unet": ..., "vae": ...}, arrays of numpy.
    sampler: the registry's name of the scheduler's class, or None with `scheduler_class` not known here.
    tokenizer_folder: None if the checkpoint has none of its own: it is CLIP's.
    tokenizer_texts: files of a tokenizer's folder that a single file carries, by name; where they are no vocabulary, it
      is CLIP's.
    digest: sha256 over every file that has a say in the pictures.
    file_digest: sha256 of a single file as it is, of which A1111's model hash is the first ten digits; else None.
    """

    text_encoder: TextEncoderConfig
    unet: UNetConfig
    vae: VAEConfig
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    tokenizer_folder: Path | None
    params: Params
    digest: str
    file_digest: str | None = None
    tokenizer_texts: Mapping[str, str] = types.MappingProxyType({})

    @property
    def configs(self) -> dict[str, Any]:
        """The configs of the networks, by name."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}


NetworkConfig = TextEncoderConfig | UNetConfig | VAEConfig


class VAEFile(NamedTuple):
    """A VAE of which nothing but names and shapes is read yet.

    where: the file or folder.
    knows_scale: whether its `scaling_factor` is known, from a config.
    chosen: the tensor of each parameter.
    decisive: the files that have a say in its pictures, from `root` on.
    """

    where: Path
    config: VAEConfig
    knows_scale: bool
    chosen: list[ParamTensor]
    root: Path
    decisive: tuple[Path, ...]

    def beside(self, scale: float) -> VAEConfig:
        """Its config for a UNet whose latents are scaled so.

        Raises:
          CheckpointError: if its own latents are scaled otherwise.
        """
        if self.knows_scale and self.config.scaling_factor != scale:
            raise CheckpointError(
                f"{self.where}: its scaling_factor is {self.config.scaling_factor}, but the UNet was trained on "
                f"latents scaled by {scale}: it is the VAE of another kind of model"
            )
        return dataclasses.replace(self.config, scaling_factor=scale)

    def digest(self, hashed: Mapping[Path, str]) -> str:
        """sha256 of a single file, or over the files of a folder; `hashed` has those of files that have been read."""
        if self.decisive == (self.where,) and self.where in hashed:
            return hashed[self.where]
        return digest_files(self.root, self.decisive, hashed)


class _Part(NamedTuple):
    """A network's folder: its weights' stem, its table of names, and how its config is read."""

    folder: str
    stem: str
    table: name_table.NameTable
    read_config: Callable[[Mapping[str, Any], str], NetworkConfig]


PARTS = {
    "text_encoder": _Part("text_encoder", "model", name_table.TEXT_ENCODER, TextEncoderConfig.from_json),
    "unet": _Part("unet", "diffusion_pytorch_model", name_table.UNET, UNetConfig.from_json),
    "vae": _Part("vae", "diffusion_pytorch_model", name_table.VAE, VAEConfig.from_json),
}


def floats(*lengths: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of float32, nothing allocated."""
    return jax.ShapeDtypeStruct(lengths, np.float32)


def random_key() -> jax.ShapeDtypeStruct:
    """The shape of a random key, as networks are initialised with; it needs no device."""
    return jax.eval_shape(jax.random.key, 0)


def param_shapes(config: NetworkConfig) -> Params:
    """The parameter tree of a network as shapes, nothing allocated. It is shared: not to be changed."""
    if isinstance(config, UNetConfig):  # without what shapes no parameter
        config = dataclasses.replace(config, sample_size=None, upcast_attention=False)
    return _param_shapes(config)


@functools.lru_cache(maxsize=32)
def _param_shapes(config: NetworkConfig) -> Params:
    key = random_key()
    if isinstance(config, TextEncoderConfig):
        tree = jax.eval_shape(TextEncoder(config).init, key, jax.ShapeDtypeStruct((1, 2), np.int32))
    elif isinstance(config, UNetConfig):
        side = 2 ** (len(config.block_out_channels) - 1)
        labels = _class_labels(config)
        context = floats(1, 2, config.per_level("cross_attention_dim")[0])
        sample = floats(1, side, side, config.in_channels)
        tree = jax.eval_shape(UNet(config).init, key, sample, floats(1), context, labels)
    else:
        side = config.factor
        pixels, noise = floats(1, side, side, config.in_channels), floats(1, 1, 1, config.latent_channels)
        tree = jax.eval_shape(VAE(config).init, key, pixels, noise)
    return tree["params"]


def _class_labels(config: UNetConfig) -> jax.ShapeDtypeStruct | None:
    """Labels of the kind a UNet takes, or None."""
    if not config.has_class_embedding:
        return None
    if config.class_embed_type == "identity":
        return floats(1, 4 * config.block_out_channels[0])
    if config.class_embed_type == "projection":
        return floats(1, config.projection_class_embeddings_input_dim or 0)
    return floats(1) if config.class_embed_type == "timestep" else jax.ShapeDtypeStruct((1,), np.int32)


def digest_files(root: Path, files: Iterable[Path], hashed: Mapping[Path, str] = types.MappingProxyType({})) -> str:
    """sha256 over the names (from `root`) and contents of files, read side by side; `hashed` are known already."""

    def one(file: Path) -> str:
        return f"{file.relative_to(root).as_posix()} {hashed.get(file) or sha256_of(file)}\n"

    with ThreadPoolExecutor(4) as pool:
        return hashlib.sha256("".join(pool.map(one, sorted(files))).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """sha256 of a file's contents; raises `CheckpointError` if it is none, or can't be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error.strerror}") from error


def digest_with(digest: str, changes: Mapping[str, str]) -> str:
    """The digest of a checkpoint of which something is said otherwise; its own if nothing is."""
    if not changes:
        return digest
    return hashlib.sha256(
        "".join(f"{key} {changes[key]}\n" for key in sorted(changes)).encode() + digest.encode()
    ).hexdigest()


def read_scheduler(file: Path, pipeline: str | None = None) -> tuple[SchedulerConfig, str]:
    """A scheduler's config, and its class in diffusers, as diffusers' `pipeline` takes it."""
    data = read_json(file)
    # As its pipelines do, whatever the file says.
    scheduler = dataclasses.replace(SchedulerConfig.from_json(data, str(file)), steps_offset=1)
    if pipeline == PIPELINES[INPAINTING]:
        scheduler = dataclasses.replace(scheduler, skip_prk_steps=True)
    return scheduler, str(data.get("_class_name"))


# How many unknown ones an error names.
_MOST_PARTS = 10
# The classes of a pipeline's parts that are read.
_PART_CLASSES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": (),
}


def check_parts(
    index: Mapping[str, Any], where: str, unused: frozenset[str], more: frozenset[str] = frozenset()
) -> None:
    """Raises if a pipeline's `model_index.json` has other parts than these.

    Args:
      index: the JSON object.
      where: names the file in errors.
      unused: parts that say nothing in the pictures.
      more: parts of any class, besides the networks, the tokenizer and the scheduler.

    Raises:
      CheckpointError: for an unknown part.
      ConfigError: for a part of another class.
    """
    used = {name: value for name, value in index.items() if isinstance(value, list) and value and value[0]}
    strange = used.keys() - unused - more - _PART_CLASSES.keys()
    if strange:
        told = [name if name.isidentifier() else quoted(name) for name in sorted(strange)]
        raise CheckpointError(f"{where}: unknown parts {', '.join(told[:_MOST_PARTS])}")
    for name, classes in _PART_CLASSES.items():
        if classes and name in used:
            check_class(used[name][-1], classes, where, name)


def vae_dtype_of(config: VAEConfig, dtype: DTypeLike, asked: DTypeLike | None) -> DTypeLike:
    """The dtype of a VAE: as asked for, else float32 for one that overflows in half precision, else the model's."""
    if asked is not None:
        return asked
    return jnp.float32 if config.force_upcast else dtype


def _scale_of(file: Path) -> float:
    """The factor by which a checkpoint's latents are scaled; Stable Diffusion's if it has no VAE's config."""
    return (
        VAEConfig.from_json(read_json(file), str(file)).scaling_factor if file.is_file() else VAEConfig.scaling_factor
    )


def read_folder(
    root: Path,
    variant: str | None = None,
    dtype: DTypeLike | None = jnp.float32,
    *,
    vae: VAEFile | None = None,
    vae_dtype: DTypeLike | None = None,
    prediction_type: str | None = None,
    pickled: bool = False,
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      root: the folder with `model_index.json`.
      variant: for example "fp16"; None takes the plain files, or the only variant there is.
      dtype: of the parameters in memory. None reads configs and the headers of the weights' files, and no tensor:
        `params` and `digest` are empty.
      vae: takes the place of the folder's own, which need not be there then.
      vae_dtype: of the VAE's parameters; None is float32 if its config has `force_upcast`, else `dtype`.
      prediction_type: takes the place of the scheduler's.
      pickled: whether pickled weights are taken where there are no others.

    Raises:
      CheckpointError: if files or tensors are missing, left over or of the wrong shape.
      ConfigError: if a config asks for what is not implemented.
    """
    index = read_json(root / "model_index.json")
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise CheckpointError(
            f"{root / 'model_index.json'}: {quoted(kind)} is not supported; expected one of {', '.join(_PIPELINES)}"
        )
    check_parts(index, str(root / "model_index.json"), _UNUSED_PARTS)

    own = {name: part for name, part in PARTS.items() if vae is None or name != "vae"}
    config_files = {name: root / part.folder / "config.json" for name, part in own.items()}
    configs: dict[str, Any] = {
        name: part.read_config(read_json(config_files[name]), str(config_files[name])) for name, part in own.items()
    }
    if vae is not None:
        configs["vae"] = vae.beside(_scale_of(root / "vae" / "config.json"))
    scheduler_file = root / "scheduler" / "scheduler_config.json"
    scheduler, scheduler_class = read_scheduler(scheduler_file, kind)
    if prediction_type is not None:
        scheduler = dataclasses.replace(scheduler, prediction_type=prediction_type)
    check_fit(str(root), **configs)

    files = {name: weight_files(root / part.folder, part.stem, variant, pickled) for name, part in own.items()}
    decisive = [root / "model_index.json", scheduler_file, *config_files.values()]
    decisive += [file for listed in files.values() for file in listed]
    decisive += [file for file in (root / "tokenizer").glob("*") if file.suffix in (".json", ".txt")]
    # A missing shard must be reported as such, not by the digest.
    tensors = {name: list_tensors(listed, pickled) for name, listed in files.items()}
    for name, part in own.items():
        check_layers(configs[name].layers, tensors[name], str(root / part.folder))
    params: Params = {}
    digest = ""
    if dtype is not None:
        shapes = {name: param_shapes(configs[name]) for name in PARTS}
        chosen = {
            name: check_tensors(tensors[name], shapes[name], part.table, str(root / part.folder))
            for name, part in own.items()
        }
        if vae is not None:
            chosen["vae"] = vae.chosen
        dtypes = dict.fromkeys(PARTS, dtype) | {"vae": vae_dtype_of(configs["vae"], dtype, vae_dtype)}
        params, hashed = load_networks(
            {name: NetworkTensors(chosen[name], shapes[name], dtypes[name]) for name in PARTS}
        )
        changes = {"prediction_type": prediction_type, "vae": vae and vae.digest(hashed)}
        said = {key: value for key, value in changes.items() if value}
        digest = digest_with(digest_files(root, decisive, hashed), said)
    return Checkpoint(
        text_encoder=configs["text_encoder"],
        unet=configs["unet"],
        vae=configs["vae"],
        scheduler=scheduler,
        scheduler_class=scheduler_class,
        sampler=own_sampler(scheduler_class, scheduler),
        tokenizer_folder=root / "tokenizer",
        params=params,
        digest=digest,
    )


def _config_json(config: Any, class_name: str) -> dict[str, Any]:
    return {"_class_name": class_name, **dataclasses.asdict(config)}


def write_configs(
    root: Path,
    *,
    text_encoder: TextEncoderConfig,
    unet: UNetConfig,
    vae: VAEConfig,
    scheduler: SchedulerConfig,
    scheduler_class: str,
    special_tokens: Mapping[str, int],
) -> None:
    """Writes what a checkpoint's folder has beside weights and tokenizer.

    Args:
      special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id` for the text encoder's config.
    """
    scheduler_json = {
        field.name: getattr(scheduler, field.name)
        for field in dataclasses.fields(scheduler)
        if field.name in _ALWAYS_WRITTEN or getattr(scheduler, field.name) != field.default
    }
    extra = extra_channels(unet, vae)
    documents = {
        "model_index.json": {
            "_class_name": PIPELINES[extra],
            "_diffusers_version": _WRITTEN_FOR,
            "feature_extractor": [None, None],
            "scheduler": ["diffusers", scheduler_class],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            **(_DEPTH_PARTS if extra == DEPTH else _OTHER_PARTS),
        },
        # Said, because diffusers' schedulers would clip by default.
        "scheduler/scheduler_config.json": {"_class_name": scheduler_class, "clip_sample": False, **scheduler_json},
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **dataclasses.asdict(text_encoder),
            **special_tokens,
        },
        "unet/config.json": _config_json(unet, "UNet2DConditionModel"),
        "vae/config.json": _config_json(vae, "AutoencoderKL"),
    }
    for name, document in documents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")


def write_folder(root: Path, *, params: Params, dtype: DTypeLike, **configs: Any) -> None:
    """Writes a checkpoint that diffusers opens; the tokenizer's folder is written by `text.vocabulary`.

    Args:
      dtype: of the stored tensors.
      configs: the arguments of `write_configs`.
    """
    write_configs(root, **configs)
    for name, part in PARTS.items():
        write_params(params[name], part.table, root / part.folder / f"{part.stem}.safetensors", dtype)
