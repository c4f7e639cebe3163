"""The sections of a run's configuration. Each key is one line: type, default, what it takes, what it means."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.config.keys import (
    AUTO,
    PATH,
    PATH_OR_HUB,
    TEXT,
    TRUTH,
    Key,
    RunConfigError,
    Section,
    key,
    one_of,
    one_of_or_added,
    or_auto,
    or_bundled,
    whole,
)
from pipelines.sinks import FILES, SINKS
from pipelines.sources.sweeps import MAX_PER_ROW, ROW_KEYS
from sdjax import extensions
from sdjax.diffusion.noise import MAX_SEED
from sdjax.diffusion.scheduler_config import PREDICTION_TYPES
from sdjax.engine.planner import LORA_MODES
from sdjax.images.encode import FORMATS
from sdjax.images.previews import ANIMATIONS
from sdjax.jobs.job import check_fields
from sdjax.model import DTYPES
from sdjax.models.vae_tiles import VAE_TILE


@dataclasses.dataclass(frozen=True)
class ModelSection(Section, section="model"):
    """The model to load; names and meanings are those of `sdjax.load`."""

    name: str = key(
        "emoji", or_bundled(PATH_OR_HUB), "a diffusers folder, a single file, a name on a hub, or the bundled model"
    )
    variant: str | None = key(
        None, TEXT, "which files of a folder to read, for example fp16; by default those without a variant"
    )
    revision: str | None = key(None, TEXT, "branch, tag or commit on a hub; a run stays on one commit")
    config: str | None = key(None, PATH, "YAML file or diffusers folder with the configs of a single file")
    prediction_type: str | None = key(None, one_of(PREDICTION_TYPES), "what the UNet of a single file predicts")
    ema: bool = key(False, TRUTH, "use the averaged (EMA) weights of a single file that holds both")
    pickled: bool = key(
        False, TRUTH, "read pickled files (.ckpt, .pt, .bin), also in the library; no code in them is run"
    )
    vae: str | None = key(None, PATH_OR_HUB, "single file or folder of a VAE that replaces the model's own")
    vae_revision: str | None = key(None, TEXT, "branch, tag or commit of that VAE")
    dtype: str = key("float32", one_of(DTYPES), "precision of the networks' weights and arithmetic")
    vae_dtype: str | None = key(
        None,
        one_of(DTYPES),
        "precision of the VAE; by default `model.dtype`, or float32 if that is float16 and its config says that it "
        "overflows",
    )


@dataclasses.dataclass(frozen=True)
class LibrarySection(Section, section="library"):
    """Where to find the files that jobs and prompts name."""

    loras: str | None = key(None, PATH, "folder of LoRAs")
    hypernetworks: str | None = key(None, PATH, "folder of hypernetworks")
    embeddings: str | None = key(None, PATH, "folder of textual inversions")
    controlnets: str | None = key(None, or_bundled(PATH), "folder of ControlNets and T2I adapters")
    upscalers: str | None = key(None, PATH, "folder of upscalers, for `upscaler` and `hires_upscaler`")
    depth_model: str | None = key(None, or_bundled(PATH), "depth estimator (MiDaS DPT)")
    classifier: str | None = key(None, or_bundled(PATH), "folder of a classifier, for `classifier_scale`")
    wildcards: str | None = key(None, PATH, "folder of wildcard files, for `__name__` in prompts")


@dataclasses.dataclass(frozen=True)
class EngineSection(Section, section="engine"):
    """How images are computed. Every key here can affect their bits."""

    batch_size: int | str = key(
        4,
        or_auto(whole(1, 1 << 16)),
        "images per device in a compiled program; part of the fingerprint. `auto`: up to 32, as many as fit into the "
        "memory that is free when an output is begun, and the same whenever that output is continued",
    )
    lora_mode: str = key(
        "merged",
        one_of(LORA_MODES),
        "whether LoRAs are merged into the weights, or applied beside them so that a batch can mix several",
    )
    vae_tile: int = key(
        VAE_TILE,
        whole(0, 1 << 16),
        "images of more pixels than four squares of this side are decoded in tiles; 0: never",
    )


@dataclasses.dataclass(frozen=True)
class OutputSection(Section, section="output"):
    """What is written, and in which format."""

    sink: str = key(FILES, one_of_or_added(SINKS, extensions.SINKS), "the kind of output")
    format: str = key("png", one_of(FORMATS), "format of the image files; `webp` is lossless")
    animation: str = key("webp", one_of(ANIMATIONS), "format of the previews (`preview_every`)")


@dataclasses.dataclass(frozen=True)
class RunSection(Section, section="run"):
    """How rows become jobs, and how jobs are distributed."""

    seed: int = key(0, whole(0, MAX_SEED), "seed from which the seeds of rows without one are derived")
    repeat: int = key(1, whole(1, MAX_PER_ROW), "images per row, each with its own seed (`--repeat`)")
    combinations: str = key(
        "random", one_of(ROW_KEYS["combinations"]), "how templates are expanded in rows that don't say"
    )
    sweep: str = key("product", one_of(ROW_KEYS["sweep"]), "how the values of `--sweep` are combined")
    host_batch: int = key(64, whole(1, 1 << 20), "images passed to the engine at once; changes no image")
    shards: int | None = key(
        None,
        whole(1, 1 << 20),
        "least number of shards per batch key; by default 1 for one worker, else 4 for each; changes no image",
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is done. Hashable, so that equal ones share an engine.

    Attributes:
      job: fields for what rows leave open, sorted by name.
      sweeps: values of fields that rows leave open, from the command line.
    """

    model: ModelSection = ModelSection()
    library: LibrarySection = LibrarySection()
    engine: EngineSection = EngineSection()
    output: OutputSection = OutputSection()
    run: RunSection = RunSection()
    job: tuple[tuple[str, Any], ...] = ()
    sweeps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def __post_init__(self) -> None:
        try:  # rows may give what these need beside them
            check_fields(dict(self.job))
        except ValueError as error:
            raise RunConfigError(str(error)) from error


SECTIONS: Mapping[str, type[Section]] = {
    field.name: type(field.default) for field in dataclasses.fields(RunConfig) if isinstance(field.default, Section)
}
KEYS: Mapping[str, Key] = {
    f"{section}.{name}": of for section in SECTIONS for name, of in SECTIONS[section].keys().items()
}


def finds_batch_size(config: RunConfig) -> bool:
    """Whether the size of batches is still to be found out."""
    return config.engine.batch_size == AUTO


def value_of(config: RunConfig, key: str) -> Any:
    """The value of one of `KEYS`."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def replaced(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The same with other values of some of `KEYS`; raises `RunConfigError` for a value that its key doesn't take."""
    for of, value in values.items():
        section, _, name = of.partition(".")
        changed = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: changed})
    return config


def paths(config: RunConfig) -> dict[str, str]:
    """What a configuration names outside of this package (files, folders, models on a hub), by their keys."""
    named = {key: value_of(config, key) for key, of in KEYS.items() if of.kind.is_path}
    return {key: value for key, value in named.items() if value is not None and value not in KEYS[key].kind.bundled}
