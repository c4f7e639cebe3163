"""A checkpoint in diffusers' layout: a folder per part, and `model_index.json`."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints import names
from sdjax.checkpoints.tensors import (
    CheckpointError,
    Params,
    check_tensors,
    list_tensors,
    read_params,
    weight_files,
    write_params,
)
from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.schedule import SchedulerConfig
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig

# Pipelines that draw pictures from text with the parts below.
_PIPELINES = ("StableDiffusionPipeline",)
# Of the scheduler's config, what is written though it be the default: diffusers' classes have other ones.
_ALWAYS_WRITTEN = frozenset({"beta_start", "beta_end", "beta_schedule", "prediction_type", "set_alpha_to_one"})
# Parts of such a pipeline which are not used: the first is not there without its own checkpoint's classifier.
_UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder"})


class Checkpoint(NamedTuple):
    """All that a text-to-image checkpoint holds, as read.

    params: {"text_encoder": ..., "unet": ..., "vae": ...}, arrays of numpy.
    sampler: the registry's name of the scheduler's class, or None with `scheduler_class` not known here.
    digest: sha256 over every file that has a say in the pictures.
    """

    text_encoder: TextEncoderConfig
    unet: UNetConfig
    vae: VAEConfig
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    tokenizer_folder: Path
    params: Params
    digest: str


NetworkConfig = TextEncoderConfig | UNetConfig | VAEConfig


class _Part(NamedTuple):
    """A network's folder: its weights' stem, its table of names, and how its config is read."""

    folder: str
    stem: str
    table: names.NameTable
    read_config: Callable[[Mapping[str, Any], str], NetworkConfig]


PARTS = {
    "text_encoder": _Part("text_encoder", "model", names.TEXT_ENCODER, TextEncoderConfig.from_json),
    "unet": _Part("unet", "diffusion_pytorch_model", names.UNET, UNetConfig.from_json),
    "vae": _Part("vae", "diffusion_pytorch_model", names.VAE, VAEConfig.from_json),
}


def param_shapes(config: NetworkConfig) -> Params:
    """The parameter tree of a network as shapes, nothing allocated."""
    key = jax.random.key(0)
    if isinstance(config, TextEncoderConfig):
        tree = jax.eval_shape(TextEncoder(config).init, key, jnp.zeros((1, 2), jnp.int32))
    elif isinstance(config, UNetConfig):
        side = 2 ** (len(config.block_out_channels) - 1)
        labels = _class_labels(config)
        context = jnp.zeros((1, 2, config.per_level("cross_attention_dim")[0]))
        sample = jnp.zeros((1, side, side, config.in_channels))
        tree = jax.eval_shape(UNet(config).init, key, sample, jnp.zeros(1), context, labels)
    else:
        side = config.factor
        pixels, noise = jnp.zeros((1, side, side, config.in_channels)), jnp.zeros((1, 1, 1, config.latent_channels))
        tree = jax.eval_shape(VAE(config).init, key, pixels, noise)
    return tree["params"]


def _class_labels(config: UNetConfig) -> jax.Array | None:
    """Labels of the kind a UNet takes, or None."""
    if not config.has_class_embedding:
        return None
    if config.class_embed_type == "identity":
        return jnp.zeros((1, 4 * config.block_out_channels[0]))
    if config.class_embed_type == "projection":
        return jnp.zeros((1, config.projection_class_embeddings_input_dim or 0))
    return jnp.zeros(1) if config.class_embed_type == "timestep" else jnp.zeros(1, jnp.int32)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError` naming the file."""
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; is {file.parent} a whole diffusers folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds {type(data).__name__}, not an object")
    return data


def digest_files(root: Path, files: Iterable[Path]) -> str:
    """sha256 over the names (from `root`) and contents of files, read side by side."""

    def one(file: Path) -> str:
        with file.open("rb") as opened:
            return f"{file.relative_to(root).as_posix()} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n"

    with ThreadPoolExecutor(4) as pool:
        return hashlib.sha256("".join(pool.map(one, sorted(files))).encode()).hexdigest()


def read_folder(root: Path, variant: str | None = None, dtype: DTypeLike | None = jnp.float32) -> Checkpoint:
    """Reads a text-to-image checkpoint.

    Args:
      root: the folder with `model_index.json`.
      variant: for example "fp16"; None takes the plain files, or the only variant there is.
      dtype: of the parameters in memory; float32 for a VAE whose config has `force_upcast`. None reads configs and the
        headers of the weights' files, and no tensor: `params` and `digest` are empty.

    Raises:
      CheckpointError: if files or tensors are missing, left over or of the wrong shape.
      ConfigError: if a config asks for what is not implemented.
    """
    index = read_json(root / "model_index.json")
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise CheckpointError(
            f"{root / 'model_index.json'}: {kind!r} is not supported; expected one of {', '.join(_PIPELINES)}"
        )
    used = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
    strange = used - _UNUSED_PARTS - {"text_encoder", "tokenizer", "unet", "vae", "scheduler"}
    if strange:
        raise CheckpointError(f"{root / 'model_index.json'}: unknown parts {', '.join(sorted(strange))}")

    def config(part: str, name: str = "config.json") -> tuple[Mapping[str, Any], str]:
        file = root / part / name
        return read_json(file), str(file)

    text_encoder = TextEncoderConfig.from_json(*config("text_encoder"))
    unet = UNetConfig.from_json(*config("unet"))
    vae = VAEConfig.from_json(*config("vae"))
    scheduler_json, scheduler_file = config("scheduler", "scheduler_config.json")
    scheduler_class = str(scheduler_json.get("_class_name"))
    scheduler = SchedulerConfig.from_json(scheduler_json, scheduler_file)
    # As diffusers' pipeline does, whatever the file says.
    scheduler = dataclasses.replace(scheduler, steps_offset=1)
    configs: dict[str, NetworkConfig] = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    _check_fit(root, text_encoder, unet, vae)

    files = {name: weight_files(root / part.folder, part.stem, variant) for name, part in PARTS.items()}
    decisive = [root / "model_index.json", Path(scheduler_file)]
    decisive += [root / part.folder / "config.json" for part in PARTS.values()]
    decisive += [file for listed in files.values() for file in listed]
    decisive += [file for file in (root / "tokenizer").glob("*") if file.suffix in (".json", ".txt")]
    # A missing shard must be reported as such, not by the digest.
    tensors = {name: list_tensors(listed) for name, listed in files.items()}
    params: Params = {}
    digest = ""
    if dtype is not None:
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(digest_files, root, decisive)
            for name, part in PARTS.items():
                shapes, where = param_shapes(configs[name]), str(root / part.folder)
                own = jnp.float32 if name == "vae" and vae.force_upcast else dtype  # it overflows in half precision
                params[name] = read_params(tensors[name], shapes, part.table, where, own)
            digest = hashing.result()
    return Checkpoint(
        text_encoder,
        unet,
        vae,
        scheduler,
        scheduler_class,
        own_sampler(scheduler_class, scheduler),
        root / "tokenizer",
        params,
        digest,
    )


def describe_folder(root: Path) -> Iterator[tuple[str, str]]:
    """What a checkpoint is, as (name, value) lines, without loading its weights.

    Raises:
      CheckpointError, ConfigError: if it is not a whole diffusers folder.
    """
    index = read_json(root / "model_index.json")
    yield "model", str(root)
    yield "pipeline", str(index.get("_class_name"))
    file = root / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file)
    kind = scheduler.get("_class_name")
    yield (
        "scheduler",
        f"{kind}, predicts {SchedulerConfig.from_json(scheduler, str(file)).prediction_type}",
    )
    for name, part in PARTS.items():
        config_file = root / part.folder / "config.json"
        config = part.read_config(read_json(config_file), str(config_file))
        tensors = list_tensors(weight_files(root / part.folder, part.stem, None))
        check_tensors(tensors, param_shapes(config), part.table, str(root / part.folder))
        count = sum(math.prod(tensor.shape) for tensor in tensors.values())
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
        yield name, f"{count / 1e6:.2f} M parameters in {len(tensors)} tensors of {kinds}"


def _check_fit(root: Path, text_encoder: TextEncoderConfig, unet: UNetConfig, vae: VAEConfig) -> None:
    """Raises `CheckpointError` if the three networks can't work together on text to image."""
    for name, found, expected in (
        ("the UNet's cross_attention_dim", set(unet.per_level("cross_attention_dim")), {text_encoder.hidden_size}),
        ("the UNet's in_channels", unet.in_channels, vae.latent_channels),
        ("the UNet's out_channels", unet.out_channels, vae.latent_channels),
        ("the VAE's in_channels", vae.in_channels, 3),
        ("the VAE's out_channels", vae.out_channels, 3),
    ):
        if found != expected:
            raise CheckpointError(f"{root}: {name} is {found}, expected {expected} for text to image")
    if unet.has_class_embedding:
        raise CheckpointError(f"{root}: the UNet takes class labels, which text to image does not give it")


def _config_json(config: Any, class_name: str) -> dict[str, Any]:
    return {"_class_name": class_name, **dataclasses.asdict(config)}


def write_folder(
    root: Path,
    *,
    text_encoder: TextEncoderConfig,
    unet: UNetConfig,
    vae: VAEConfig,
    scheduler: SchedulerConfig,
    scheduler_class: str,
    special_tokens: Mapping[str, int],
    params: Params,
    dtype: DTypeLike,
) -> None:
    """Writes a checkpoint that diffusers opens; the tokenizer's folder is written by `text.vocabulary`.

    Args:
      special_tokens: `bos_token_id`, `eos_token_id` and `pad_token_id` for the text encoder's config.
      dtype: of the stored tensors.
    """
    scheduler_json = {
        field.name: getattr(scheduler, field.name)
        for field in dataclasses.fields(scheduler)
        if field.name in _ALWAYS_WRITTEN or getattr(scheduler, field.name) != field.default
    }
    documents = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler_class],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
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
    for name, part in PARTS.items():
        write_params(params[name], part.table, root / part.folder / f"{part.stem}.safetensors", dtype)
