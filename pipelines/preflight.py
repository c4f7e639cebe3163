"""What is found out before anything is made: whether model and output fit what a run is to do."""

import os

from pipelines import storage
from pipelines.config import RunConfig, RunConfigError
from pipelines.config.sections import paths, replaced
from pipelines.loading import library_of, load_model, pictures_of
from sdjax.adapters.library import Adapters
from sdjax.diffusion.enlarge import LATENT_UPSCALERS
from sdjax.diffusion.samplers import SAMPLERS, Options
from sdjax.images.encode import FORMATS
from sdjax.jobs.job import PIXEL_UPSCALERS, Job, JobError
from sdjax.jobs.text_values import with_partners
from sdjax.library.classifier import load_classifier
from sdjax.library.picture_library import check_files
from sdjax.model import Model

_SIZES = ("seed_resize_from_width", "seed_resize_from_height")
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
      AdapterError: if a folder of adapters is not there.
      RunConfigError: if it can't.
      CheckpointError, ConfigError, TokenizerError: if the model can't be used.
    """
    model = load_model(config, weights=False)
    Adapters(library_of(config), model.text_encoder.config, model.unet.config, model.params)
    try:
        job = _some_job(config, model)
        model.resolve(job)
    except JobError as error:
        raise RunConfigError(f"{config.model.name}: {error}") from error
    _check_library(config, job)
    return replaced(config, {"model.revision": model.revision, "model.vae_revision": model.vae_revision})


def _some_job(config: RunConfig, model: Model) -> Job:
    """A job of what the configuration says of all rows. What it leaves open rows may say."""
    # Steps go with their schedule, options with their sampler.
    asked = with_partners({**dict(config.job), "seed": 0, "steps": _FEW_STEPS, "schedule": None})
    if "sampler" not in asked or "sampler" in dict(config.sweeps):
        asked = {name: value for name, value in asked.items() if name not in Options._fields}
        asked["sampler"] = model.sampler or next(iter(SAMPLERS))
    # Sizes of an image whose composition is kept are partners here, and of no account.
    asked |= {name: None for name in _SIZES if name not in dict(config.job)}
    return Job(**asked)


def _check_library(config: RunConfig, job: Job) -> None:
    library, said = config.library, dict(config.job)
    controls = [control.name for control in job.controls] if "controlnets" in said else []
    named = {getattr(job, name) for name in ("hires_upscaler", "upscaler") if name in said}
    check_files(pictures_of(config), controls, sorted(named - {*PIXEL_UPSCALERS, *LATENT_UPSCALERS}))
    if library.classifier:
        load_classifier(library.classifier)
    if library.wildcards and next(storage.list_files(library.wildcards), None) is None:
        raise RunConfigError(f"library.wildcards = {library.wildcards}: there is no such folder, or no file in it")


def check_format(out: str, format_name: str) -> None:
    """Raises `RunConfigError` if an output holds pictures of another format: each picture is there once."""
    done = next(storage.list_done(out), None)
    if done and not done.path.endswith(f".{FORMATS[format_name].extension}"):
        raise RunConfigError(
            f"{done.path} was made by a run in another format than {format_name}: "
            "keep to its format, or choose another output"
        )
