"""What is found out before anything is made: whether model, output, flags and runner fit what a run is to do."""

import dataclasses
import os

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from pipelines import storage
from pipelines.config import RunConfig, RunConfigError
from pipelines.equipment import equipment, library_of, load_model, pictures_of
from pipelines.fields import with_partners
from sdjax.adapters.library import Adapters
from sdjax.classifier import load_classifier
from sdjax.diffusion.enlarge import LATENT_UPSCALERS
from sdjax.diffusion.samplers import SAMPLERS, Options
from sdjax.images.encode import FORMATS
from sdjax.job import PIXEL_UPSCALERS, Job, JobError
from sdjax.picture_library import check_files

# Runners on this machine, which know how many workers there are; on others work is cut into so many parts.
_LOCAL_RUNNERS = ("", "direct", "fnapi", "bundlebaseddirect", "switchingdirect", "prism")
_CLUSTER_SHARDS = 64
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


def checked_options(flags: list[str]) -> PipelineOptions:
    """Beam's options.

    Raises:
      RunConfigError: for flags that nobody would read, and for runners that lose data.
    """
    options = PipelineOptions(flags)
    known = options.get_all_options(drop_default=True)
    runner = _runner(options)
    if runner == "dask":
        raise RunConfigError("Beam's DaskRunner loses parts of a run without a word; take another runner")
    if runner in _LOCAL_RUNNERS:
        strange = options.get_all_options(drop_default=True, retain_unknown_options=True).keys() - known.keys()
        if strange:
            raise RunConfigError(f"Beam knows no flag --{', --'.join(sorted(strange))}")
    return options


def _runner(options: PipelineOptions) -> str:
    """The runner's name as Beam compares it: "direct" for DirectRunner, in whatever module; "" if none is named."""
    named = options.view_as(StandardOptions).runner or ""
    return named.rpartition(".")[2].lower().removesuffix("runner")


def workers(options: PipelineOptions) -> int:
    """Over how many workers the sampling is spread, if the configuration leaves that open."""
    if _runner(options) not in _LOCAL_RUNNERS:
        return _CLUSTER_SHARDS
    return max(1, options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1)
