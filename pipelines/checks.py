"""What is found out before anything is made: whether model and output fit what a run is to do."""

import dataclasses

from pipelines import storage
from pipelines.config import RunConfig, RunConfigError
from pipelines.equipment import equipment, library_of, load_model, pictures_of
from pipelines.fields import with_partners
from sdjax.adapters.library import Adapters
from sdjax.classifier import load_classifier
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import SAMPLERS, Options
from sdjax.images.encode import FORMATS
from sdjax.job import PIXEL_UPSCALERS, Job, JobError
from sdjax.picture_library import check_files

_SIZES = ("seed_resize_from_width", "seed_resize_from_height")
# Steps that every sampler can take.
_FEW_STEPS = 4


def check_model(config: RunConfig) -> RunConfig:
    """Finds out whether the model and other files are there and can do what the configuration asks of every row.

    Gives the configuration, with the commits of what comes from a hub: what a branch stands for may change while the
    run goes on.

    Raises:
      AdapterError: if a folder of adapters is not there.
      RunConfigError: if it can't.
      CheckpointError, ConfigError, TokenizerError: if the model can't be used.
    """
    given = equipment(config)
    model = load_model(given, weights=False)
    Adapters(library_of(given), model.text_encoder.config, model.unet.config, model.params)
    # What the configuration leaves open rows may say; steps go with their schedule, options with their sampler.
    asked = with_partners({**dict(config.job), "seed": 0, "steps": _FEW_STEPS, "schedule": None})
    if "sampler" not in asked or "sampler" in dict(config.sweeps):
        asked = {name: value for name, value in asked.items() if name not in Options._fields}
        asked["sampler"] = model.sampler or next(iter(SAMPLERS))
    # Sizes of a picture whose composition is kept are partners here, and of no account.
    asked |= {name: None for name in _SIZES if name not in dict(config.job)}
    try:
        job = Job(**asked)
        model.resolve(job)
    except JobError as error:
        raise RunConfigError(f"{config.model}: {error}") from error
    said = dict(config.job)
    controls = [control.name for control in job.controls] if "controlnets" in said else []
    named = {getattr(job, name) for name in ("hires_upscaler", "upscaler") if name in said}
    check_files(pictures_of(given), controls, sorted(named - {*PIXEL_UPSCALERS, *LATENT_UPSCALERS}))
    if config.classifier:
        load_classifier(config.classifier)
    if config.wildcards and next(storage.list_files(config.wildcards), None) is None:
        raise RunConfigError(f"wildcards = {config.wildcards}: there is no such folder, or no file in it")
    return dataclasses.replace(config, revision=model.revision, vae_revision=model.vae_revision)


def check_format(out: str, format_name: str) -> None:
    """Raises `RunConfigError` if an output holds pictures of another format: each picture is there once."""
    done = next(storage.list_done(out), None)
    if done and not done.path.endswith(f".{FORMATS[format_name].extension}"):
        raise RunConfigError(
            f"{done.path} was made by a run in another format than {format_name}: "
            "keep to its format, or choose another output"
        )
