"""What is found out before anything is made: whether model and output fit what a run is to do."""

import os
from collections.abc import Mapping
from typing import Any

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.sections import paths, replaced
from pipelines.loading import library_of, load_model
from pipelines.sinks import FILES, open_sink, recorded_kind
from pipelines.sinks.sink import Sink, format_of
from sdjax import storage
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import SAMPLERS, Options
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.job import Job, JobError, check_fields
from sdjax.library.opened import OpenLibrary
from sdjax.model import DTYPES, Model
from sdjax.storage import StorageError
from sdjax.text.controls import read_controls

# Fields of which the model decides whether it can do them.
_OF_THE_MODEL = (
    *("width", "height", "seed_resize_from_width", "seed_resize_from_height", "clip_skip", "sampler"),
    *("timestep_spacing", "dynamic_thresholding_ratio", "sample_max_value", *Options._fields),
)
# Steps that every sampler can take.
_FEW_STEPS = 4


def with_whole_paths(config: RunConfig) -> RunConfig:
    """The same with paths that workers and `verify` find from any folder; names on a hub and addresses stay."""
    return replaced(config, {key: os.path.abspath(path) for key, path in paths(config).items() if os.path.exists(path)})


def check_model(config: RunConfig) -> RunConfig:
    """Finds out whether the model and other files are there and can do what the configuration asks of every row.

    Gives the configuration, with the commits of what comes from a hub: what a branch stands for may change while the
    run goes on.

    Raises:
      RunConfigError: if it can't.
      CheckpointError, ConfigError, TokenizerError: if the model or another file can't be used.
    """
    model = load_model(config, weights=False)
    fields = check_fields(dict(config.job))
    try:
        model.resolve(job_for_all(config, model, steps=_FEW_STEPS))
    except JobError as error:
        raise RunConfigError(f"{config.model.name}: {error}") from error
    _check_library(config, fields, model)
    return replaced(config, {"model.revision": model.revision, "model.vae_revision": model.vae_revision})


def job_for_all(config: RunConfig, model: Model, **values: Any) -> Job:
    """A job of what the configuration asks of a model for every row, whatever its prompt and image are.

    Args:
      config: of the run.
      model: of the run.
      values: of further fields; steps go with their schedule, which rows may give.
    """
    fields = check_fields(dict(config.job))
    asked = {name: value for name, value in fields.items() if name in _OF_THE_MODEL}
    if not {"seed_resize_from_width", "seed_resize_from_height"} <= asked.keys():  # the rows give the other side
        asked = {name: value for name, value in asked.items() if not name.startswith("seed_resize_from")}
    if "sampler" not in asked or "sampler" in dict(config.sweeps):  # options go with their sampler
        asked = {name: value for name, value in asked.items() if name not in Options._fields}
        asked["sampler"] = model.sampler or next(iter(SAMPLERS))
    return Job(prompt="", seed=0, **asked, **values)


def _check_library(config: RunConfig, fields: Mapping[str, Any], model: Model) -> None:
    """Finds out whether the folders are there, and what the fields of all jobs name in them."""
    library = OpenLibrary(library_of(config), model.family, model.configs, DTYPES[model.dtype])
    controls = [control.name for control in read_controls(fields.get("controlnets", ""))]
    named = {fields[name] for name in ("hires_upscaler", "upscaler") if fields.get(name)}
    library.check(controls, sorted(named - {*PIXEL_UPSCALERS, *LATENT_UPSCALERS}))
    wildcards = config.library.wildcards
    if wildcards and next(storage.list_files(wildcards), None) is None:
        raise RunConfigError(f"library.wildcards = {wildcards}: there is no such folder, or no file in it")


def check_output(sink: Sink, config: RunConfig) -> None:
    """Finds out whether an output's images are of the kind that a run makes: each image is there once.

    Raises:
      RunConfigError: if they are in another format, or were written by another kind of sink.
      StorageError: if its images can't be listed.
    """
    format_name = config.output.format
    try:
        written_by = recorded_kind(sink.url)
    except StorageError:  # a summary that says nothing is overwritten
        written_by = None
    if written_by not in (None, config.output.sink):
        raise RunConfigError(
            f"{sink.url} was written by the sink {written_by}: set output.sink to it, or choose another output"
        )
    if written_by is None and config.output.sink != FILES and next(open_sink(sink.url).images(), None):
        raise RunConfigError(f"{sink.url} holds images of the sink {FILES}: set output.sink to it, or choose another")
    image = next(sink.images(), None)
    if image and format_of(image.name) != format_name:
        raise RunConfigError(
            f"{sink.path(image.name)} was made by a run in another format than {format_name}: "
            "keep to its format, or choose another output"
        )
