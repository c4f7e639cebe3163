"""What a worker holds: a model, and what goes with it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipelines import compiled
from pipelines.config import RunConfig, RunConfigError
from pipelines.sources import input_images
from sdjax.engine.engine import Engine
from sdjax.engine.passes import Bucket
from sdjax.library.library import Library
from sdjax.model import Model, load


class Equipment(NamedTuple):
    """The keys of a run's configuration that say it; see `RunConfig`."""

    model: str
    variant: str | None
    revision: str | None
    model_config: str | None
    prediction_type: str | None
    ema: bool
    pickled: bool
    vae: str | None
    vae_revision: str | None
    dtype: str
    vae_dtype: str | None
    vae_tile: int
    classifier: str | None
    lora_folder: str | None
    lora_mode: str
    hypernetwork_folder: str | None
    embedding_folder: str | None
    controlnet_folder: str | None
    depth_model: str | None
    upscaler_folder: str | None
    batch_size: int


def equipment(config: RunConfig | Mapping[str, Any]) -> Equipment:
    """What a configuration says of it; what one of an earlier version leaves out is at its default."""
    keys = dataclasses.asdict(config) if isinstance(config, RunConfig) else config
    plain = RunConfig()
    return Equipment(**{name: keys.get(name, getattr(plain, name)) for name in Equipment._fields})


# What of it says where things are.
PLACES = (
    "model",
    "model_config",
    "vae",
    "classifier",
    "lora_folder",
    "hypernetwork_folder",
    "embedding_folder",
    "controlnet_folder",
    "depth_model",
    "upscaler_folder",
)

_REVISIONS = {"model": "revision", "vae": "vae_revision"}


def moved(given: Equipment, places: Mapping[str, Any]) -> Equipment:
    """The same with some files and folders elsewhere; raises `RunConfigError` for what is no place."""
    for key in places:
        if key not in PLACES:
            raise RunConfigError(f"{key} is no file or folder of a run; expected one of {', '.join(PLACES)}")
    # A place on this machine has no revisions.
    revisions = {name: None for place, name in _REVISIONS.items() if place in places}
    return given._replace(**{**places, **revisions})


def load_model(given: Equipment, *, weights: bool = True) -> Model:
    """The model; errors are those of `sdjax.load`."""
    return load(
        given.model,
        variant=given.variant,
        dtype=given.dtype,
        weights=weights,
        vae=given.vae,
        vae_dtype=given.vae_dtype,
        config=given.model_config,
        prediction_type=given.prediction_type,
        ema=given.ema,
        pickled=given.pickled,
        revision=given.revision,
        vae_revision=given.vae_revision,
    )


def library_of(given: Equipment) -> Library:
    """Where the named files are."""
    return Library(
        loras=given.lora_folder,
        hypernetworks=given.hypernetwork_folder,
        embeddings=given.embedding_folder,
        controlnets=given.controlnet_folder,
        upscalers=given.upscaler_folder,
        depth_model=given.depth_model,
        classifier=given.classifier,
        pickled=given.pickled,
    )


def make_engine(
    given: Equipment,
    on_compile: Callable[[Bucket], None] = lambda bucket: None,
    read: Callable[[str], bytes] | None = None,
) -> Engine:
    """An engine that holds it all, and reads images by `read`, or as `sources.input_images` does.

    Errors are those of `sdjax.load` and `Engine`.
    """
    compiled.use_cache()
    return Engine(
        load_model(given),
        batch_size=given.batch_size,
        library=library_of(given),
        lora_mode=given.lora_mode,
        vae_tile=given.vae_tile,
        read_image=read or input_images.read,
        on_compile=on_compile,
    )
