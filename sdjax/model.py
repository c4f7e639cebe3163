"""A model: networks, parameters, tokenizer and scheduler config, from a bundled name or a folder."""

import dataclasses
import importlib.resources
import secrets
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints.diffusers_folder import read_folder
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.diffusion.noise import MAX_SEED
from sdjax.diffusion.samplers import SAMPLERS, config_for, fill_in, table_of
from sdjax.diffusion.schedule import ScheduleError, SchedulerConfig, default_schedule, default_spacing
from sdjax.diffusion.tableau import Table
from sdjax.job import RANDOM_SEED, Job, JobError
from sdjax.models import VAE, TextEncoder, UNet
from sdjax.text.tokenizer import Tokenizer

BUNDLED = ("emoji",)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What `load` gives.

    Attributes:
      name: of its folder.
      digest: sha256 of the checkpoint's files.
      dtype: of parameters and network arithmetic, except those of a VAE that has to stay float32.
      params: {"text_encoder", "unet", "vae"} -> nested dicts of arrays.
    """

    name: str
    digest: str
    dtype: str
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    tokenizer: Tokenizer
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    params: Params

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) in pixels for which the UNet was trained."""
        side = self.unet.config.sample_size
        latents = side if isinstance(side, tuple) else (side or 64,) * 2
        return latents[0] * self.vae.config.factor, latents[1] * self.vae.config.factor

    def resolve(self, job: Job) -> Job:
        """The job with everything said that it left to the model, and random seeds drawn.

        Raises:
          JobError: if this model can't do what the job asks, or the job has no seed.
        """
        height, width = job.height or self.size[0], job.width or self.size[1]
        self._check_sides(job, height=height, width=width)
        self._check_sides(
            job, seed_resize_from_height=job.seed_resize_from_height, seed_resize_from_width=job.seed_resize_from_width
        )
        sampler = job.sampler or self.sampler
        if sampler is None:
            raise JobError(
                f"the checkpoint's own scheduler, {self.scheduler_class}, is not among the samplers; "
                f"set sampler to one of {', '.join(SAMPLERS)}"
            )
        if job.seed is None:
            raise JobError("the job has no seed; give one from 0 on, or -1 for a random one")
        layers = self.text_encoder.config.num_hidden_layers
        if job.clip_skip >= layers:
            raise JobError(f"clip_skip = {job.clip_skip}: the text encoder has {layers} layers; expected less")
        config = self._config(sampler)
        schedule = job.schedule or default_schedule(self.scheduler)
        spacing = job.timestep_spacing or default_spacing(config, SAMPLERS[sampler].rules, schedule)
        try:
            options = fill_in(config, sampler, job.sampler_options)
        except ScheduleError as error:
            raise JobError(str(error)) from error
        ratio = job.dynamic_thresholding_ratio
        if ratio is None and config.thresholding:
            if sampler in _KEEP_NOISE:
                raise JobError(
                    f"the checkpoint's scheduler asks for thresholding, which diffusers' {sampler} does to the clean "
                    "latents and not to the noise; that is not supported: name another sampler, or set "
                    "dynamic_thresholding_ratio to have both"
                )
            ratio = config.dynamic_thresholding_ratio
        most = job.sample_max_value if job.dynamic_thresholding_ratio is not None else config.sample_max_value
        resolved = dataclasses.replace(
            job,
            height=height,
            width=width,
            seed=_drawn(job.seed),
            variation_seed=_drawn(job.variation_seed)
            if job.variation_strength and job.variation_seed is not None
            else None,
            sampler=sampler,
            schedule=schedule,
            timestep_spacing=spacing,
            eta=options.eta,
            solver_order=options.solver_order,
            dynamic_thresholding_ratio=ratio,
            sample_max_value=most if ratio is not None else Job.sample_max_value,
            **_without_effect(job),
        )
        self.table(resolved)
        return resolved

    def _check_sides(self, job: Job, **sides: int | None) -> None:
        factor = self.vae.config.factor
        for name, side in sides.items():
            if side is not None and side % factor:
                near = max(factor, round(side / factor) * factor)
                raise JobError(f"{name} = {side}: expected a multiple of {factor}, the VAE's factor; {near} is near")

    def _config(self, sampler: str) -> SchedulerConfig:
        return config_for(self.scheduler, sampler, own=sampler == self.sampler)

    def table(self, job: Job) -> Table:
        """The steps which a resolved job's sampler takes.

        Raises:
          JobError: if the schedule has not so many.
        """
        assert job.sampler is not None and job.schedule is not None, "the job is not resolved"
        spacing: Any = job.timestep_spacing
        try:
            return table_of(
                self._config(job.sampler), job.sampler, job.schedule, spacing, job.steps, job.sampler_options
            )
        except ScheduleError as error:
            raise JobError(str(error)) from error
        except ArithmeticError as error:
            asked = f"{job.sampler} in {job.steps} steps of the schedule {job.schedule}, {job.timestep_spacing}"
            raise JobError(f"{asked}: has no coefficients ({error}); take another schedule") from error


# Samplers of diffusers that threshold clean latents and go on with the noise of those before.
_KEEP_NOISE = ("ddim", "tcd")


def _without_effect(job: Job) -> dict[str, Any]:
    """Fields that say nothing in this job, at their defaults: what does not decide a picture is not in its id."""
    changes: dict[str, Any] = {}
    if job.s_churn == 0:
        changes |= {"s_tmin": Job.s_tmin, "s_tmax": Job.s_tmax}
    if job.classifier_scale == 0:
        changes["classifier_label"] = None
    return changes


def _drawn(seed: int) -> int:
    return secrets.randbelow(min(2**48, MAX_SEED)) if seed == RANDOM_SEED else seed


def load(
    name: str | Path, *, variant: str | None = None, dtype: DTypeLike | str = "float32", weights: bool = True
) -> Model:
    """Loads a model.

    Args:
      name: a bundled model ("emoji"), or the path of a diffusers folder.
      variant: which files of a folder to take, for example "fp16".
      dtype: "float32", "bfloat16" or "float16": parameters are cast to it once; those of a VAE that overflows in half
        precision (`force_upcast` in its config, which is the default) stay float32.
      weights: whether to read them; a model without can resolve jobs and nothing else, and has no digest.

    Raises:
      CheckpointError: if there is no such model, or its files are not whole.
      ConfigError: if its config asks for what is not implemented.
      TokenizerError: if its tokenizer can't be read.
      ValueError: for another dtype.
    """
    kind = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if kind not in DTYPES:
        raise ValueError(f"dtype = {kind!r}: expected one of {', '.join(DTYPES)}")
    root = folder_of(str(name))
    checkpoint = read_folder(root, variant, DTYPES[kind] if weights else None)
    tokenizer = Tokenizer(checkpoint.tokenizer_folder, checkpoint.text_encoder.max_position_embeddings)
    if tokenizer.size > checkpoint.text_encoder.vocab_size:
        raise CheckpointError(
            f"{checkpoint.tokenizer_folder} has {tokenizer.size} tokens, "
            f"the text encoder only {checkpoint.text_encoder.vocab_size}"
        )
    return Model(
        name=root.resolve().name,
        digest=checkpoint.digest,
        dtype=kind,
        text_encoder=TextEncoder(checkpoint.text_encoder),
        unet=UNet(checkpoint.unet),
        vae=VAE(checkpoint.vae),
        tokenizer=tokenizer,
        scheduler=checkpoint.scheduler,
        scheduler_class=checkpoint.scheduler_class,
        sampler=checkpoint.sampler,
        params=checkpoint.params,
    )


def folder_of(name: str) -> Path:
    """Where the files of a model are; raises `CheckpointError` if there is no such model."""
    if name in BUNDLED:
        return Path(str(importlib.resources.files("sdjax.assets"))) / name
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise CheckpointError(f"{name} is a single file; only diffusers folders can be loaded: convert it first")
    raise CheckpointError(
        f"there is no model {name!r}: it is neither bundled ({', '.join(BUNDLED)}) nor a folder on this machine"
    )
