"""A model: networks, parameters, tokenizer and scheduler config, from a bundled name, a folder, a file or a hub."""

import dataclasses
import functools
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.assets import BUNDLED, bundled
from sdjax.checkpoints import hub
from sdjax.checkpoints.checkpoint import Checkpoint, VAEFile, vae_dtype_of
from sdjax.checkpoints.diffusers_folder import read_diffusers_folder
from sdjax.checkpoints.original_names import is_open_clip
from sdjax.checkpoints.single_file import read_file
from sdjax.checkpoints.tensors import CheckpointError, MissingWeightsError, Params
from sdjax.checkpoints.vae_file import find_vae
from sdjax.diffusion.noise import MAX_SEED
from sdjax.diffusion.samplers import MULTISTEP, SAMPLERS, config_for, fill_in, sampler_row, table_of
from sdjax.diffusion.scheduler_config import PREDICTION_TYPES, SchedulerConfig
from sdjax.diffusion.schedules import default_schedule
from sdjax.diffusion.tableau import Table
from sdjax.diffusion.timestep_spacing import ScheduleError, default_spacing
from sdjax.families.family import VAE as VAE_NETWORK
from sdjax.families.family import Family
from sdjax.families.stable_diffusion import DEPTH, INPAINTING, extra_channels
from sdjax.jobs.job import RANDOM_SEED, Job, JobError, changed
from sdjax.library.finding import FindingError, find_path
from sdjax.models import VAE, TextEncoderConfig
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import END, PADDING_2, clip_tokenizer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What `load` gives.

    Attributes:
      name: of its folder.
      digest: sha256 of the checkpoint's files, and of all that was said otherwise when it was loaded (but for dtypes).
      dtype: of parameters and network arithmetic, but for the VAE's.
      vae_dtype: of the VAE's.
      family: the kind of model.
      networks: modules by name, among them "unet" and "vae".
      params: nested dicts of arrays under the same names; empty if the weights were not read.
      low_res: of the x4 upscaler, the schedule of the noise that is put on small images; None of other models.
      max_noise_level: the noisiest of its levels that is allowed.
      variant_name: what it is, for people to read.
      file_digest: sha256 of a single file as it is, of which A1111's model hash is the first ten digits; else None.
      revision: the commit from which it was fetched; None if it was not.
      vae_revision: likewise, of a VAE in the place of its own.
    """

    name: str
    digest: str
    dtype: str
    vae_dtype: str
    family: Family
    networks: Mapping[str, Any]
    tokenizer: Tokenizer
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    params: Params
    variant_name: str
    file_digest: str | None
    revision: str | None
    vae_revision: str | None
    low_res: SchedulerConfig | None = None
    max_noise_level: int = 0

    @functools.cached_property
    def configs(self) -> Mapping[str, Any]:
        """The configs of its networks, by name."""
        return {name: module.config for name, module in self.networks.items()}

    @property
    def unet(self) -> Any:
        """The network that denoises."""
        return self.networks["unet"]

    @property
    def vae(self) -> VAE:
        """The network between images and latents."""
        vae: VAE = self.networks["vae"]
        return vae

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon", "v_prediction" or "sample"."""
        return self.family.prediction_type or self.scheduler.prediction_type

    @property
    def takes_depth(self) -> bool:
        """Whether the UNet sees a depth map."""
        return self.family.conditioned_on is None and extra_channels(self.unet.config, self.vae.config) == DEPTH

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet sees a mask and the latents of a masked image."""
        return self.family.conditioned_on is None and extra_channels(self.unet.config, self.vae.config) == INPAINTING

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
        layers = self.family.text_layers(self.configs)
        if job.clip_skip >= layers:
            raise JobError(f"clip_skip = {job.clip_skip}: the text encoder has {layers} layers; expected less")
        config = self._config(sampler)
        schedule = job.schedule or default_schedule(self.scheduler)
        spacing = job.timestep_spacing or default_spacing(config, sampler_row(sampler).rules, schedule)
        try:
            options = fill_in(config, sampler, job.sampler_options)
        except ScheduleError as error:
            raise JobError(str(error)) from error
        ratio = job.dynamic_thresholding_ratio
        if ratio is None and config.thresholding:
            if sampler in _KEEP_NOISE:
                raise JobError(
                    f"the checkpoint's scheduler asks for thresholding, which diffusers' {sampler} does to the "
                    "denoised latents and not to the noise; that is not supported: name another sampler, or set "
                    "dynamic_thresholding_ratio to have both"
                )
            ratio = config.dynamic_thresholding_ratio
        most = job.sample_max_value if job.dynamic_thresholding_ratio is not None else config.sample_max_value
        resolved = changed(
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
            strength=_strength(job),
            eta=options.eta,
            solver_order=options.solver_order,
            dynamic_thresholding_ratio=ratio,
            sample_max_value=most if ratio is not None else Job.sample_max_value,
            **_without_effect(job, sampler, spacing, self.takes_mask),
        )
        if resolved.strength == 1 and not resolved.mask_image and not self._conditions_on_image(resolved):
            mode = resolved.resize_mode if resolved.control_image or resolved.depth_image else Job.resize_mode
            resolved = changed(resolved, image=None, strength=None, resize_mode=mode)
        self.table(resolved)
        return resolved

    def _conditions_on_image(self, job: Job) -> bool:
        """Whether the input image conditions the UNet or a ControlNet, besides being where sampling begins."""
        return bool(job.controls and not job.control_image) or (self.takes_depth and not job.depth_image)

    def _check_sides(self, job: Job, **sides: int | None) -> None:
        factor = self.vae.config.factor
        for name, side in sides.items():
            if side is not None and side % factor:
                near = max(factor, round(side / factor) * factor)
                raise JobError(f"{name} = {side}: expected a multiple of {factor}, the VAE's factor; {near} is near")

    # Kept for each model: plans of thousands of rows ask for the same few.
    @functools.cached_property
    def _config(self) -> Callable[[str], SchedulerConfig]:
        """The scheduler's config as a sampler heeds it."""
        return functools.cache(lambda sampler: config_for(self.scheduler, sampler, own=sampler == self.sampler))

    @functools.cached_property
    def _table(self) -> Callable[..., Table]:
        """The table of a sampler's name, and of what else `table_of` takes."""

        def table(sampler: str, *arguments: Any) -> Table:
            return self.family.table(table_of(self._config(sampler), sampler, *arguments))

        return functools.lru_cache(_MOST_TABLES)(table)

    def table(self, job: Job) -> Table:
        """The steps which a resolved job's sampler takes.

        Raises:
          JobError: if the schedule has not so many.
        """
        assert job.sampler is not None and job.schedule is not None, "the job is not resolved"
        strength = 1.0 if job.strength is None else job.strength
        try:
            return self._table(
                job.sampler, job.schedule, job.timestep_spacing, job.steps, job.sampler_options, strength
            )
        except ScheduleError as error:
            raise JobError(str(error)) from error
        except ArithmeticError as error:
            asked = f"{job.sampler} in {job.steps} steps of the schedule {job.schedule}, {job.timestep_spacing}"
            raise JobError(f"{asked}: has no coefficients ({error}); take another schedule") from error


# Tables that a model keeps.
_MOST_TABLES = 256
# Samplers of diffusers that threshold the denoised latents and go on with the noise of those before.
_KEEP_NOISE = ("ddim", "tcd")


def _strength(job: Job) -> float | None:
    """The job's strength, or the default of diffusers' pipelines; None without an input image."""
    if job.image is None or job.strength is not None:
        return job.strength
    return 1.0 if job.mask_image else 0.8


def _without_effect(job: Job, sampler: str, spacing: str, sees_mask: bool) -> dict[str, Any]:
    """Fields without effect in this job, at their defaults: what does not decide an image is not in its id."""
    changes: dict[str, Any] = {}
    if job.s_churn == 0:
        changes |= {"s_tmin": Job.s_tmin, "s_tmax": Job.s_tmax}
    if job.classifier_scale == 0:
        changes["classifier_label"] = None
    if job.only_masked:
        changes |= {"keep_unmasked": False, "resize_mode": Job.resize_mode}  # so it is anyway
    if _strength(job) == 1:
        changes["inpaint_fill"] = Job.inpaint_fill  # nothing of it is left under the noise
    if sees_mask and (_strength(job) == 1 or job.inpaint_fill == Job.inpaint_fill):
        changes["binarize_mask"] = Job.binarize_mask  # such models take a binary one
    in_the_middle = _strength(job) not in (None, 0, 1) or job.hires_scale is not None
    if sampler not in MULTISTEP or spacing == "k_diffusion" or not in_the_middle:
        changes["multistep_start"] = Job.multistep_start
    return changes


def _drawn(seed: int) -> int:
    return secrets.randbelow(min(2**48, MAX_SEED)) if seed == RANDOM_SEED else seed


class Place(NamedTuple):
    """Where a model's files are; `commit` if they were fetched."""

    path: Path
    commit: str | None


def load(
    name: str | Path,
    *,
    variant: str | None = None,
    dtype: DTypeLike | str = "float32",
    weights: bool = True,
    vae: str | Path | None = None,
    vae_dtype: DTypeLike | str | None = None,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    pickled: bool = False,
    revision: str | None = None,
    vae_revision: str | None = None,
) -> Model:
    """Loads a model.

    SD-Turbo has the structure of Stable Diffusion 2 and its own way of sampling, which only its folder says: loaded
    from a single file it needs prediction_type "epsilon", and jobs with the sampler "euler", the timestep_spacing
    "trailing", 1 to 4 steps and a guidance_scale of 1.

    Args:
      name: a bundled model ("emoji"); the path of a folder that diffusers wrote, or of an original single file; or
        "org/name" on a hub, where a path of a file in it may follow.
      variant: which files of a folder to take, for example "fp16"; of another VAE's, where it has such.
      dtype: "float32", "bfloat16" or "float16": parameters are cast to it once; those of a VAE that overflows in
        float16 (`force_upcast` in its config, which is the default) are float32 then.
      weights: whether to read them; a model without can resolve jobs and nothing else, and has no digest.
      vae: a VAE that takes the place of the model's own: a single file, or a folder that diffusers wrote.
      vae_dtype: of the VAE, whatever its config says.
      config: of a single file: a YAML file of the original code, or a folder with diffusers' configs. None takes the
        YAML file beside it that has its name, if there is one.
      prediction_type: "epsilon", "v_prediction" or "sample": what the UNet predicts, where nothing says it or it is
        said wrongly.
      ema: takes the averages (EMA) of the UNet's parameters from a single file.
      pickled: allows files that torch pickled (.ckpt, and a folder's .bin where there are no others). They are read by
        a reader that runs nothing.
      revision: of a model on a hub: a branch, a tag or a commit.
      vae_revision: likewise, of the other VAE.

    Raises:
      CheckpointError: if there is no such model, or its files are not whole, or do not say what they are.
      ConfigError: if its config asks for what is not implemented.
      TokenizerError: if its tokenizer can't be read.
      ValueError: for another dtype, or arguments that say nothing of such a model.
    """
    dtype_name = _dtype_named("dtype", dtype)
    vae_kind = None if vae_dtype is None else _dtype_named("vae_dtype", vae_dtype)
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"prediction_type = {prediction_type!r}: expected one of {', '.join(PREDICTION_TYPES)}")
    place = place_of(str(name), revision, variant, pickled)
    other_place, other_vae = (None, None) if vae is None else _other_vae(str(vae), vae_revision, variant, pickled)
    options: dict[str, Any] = {
        "dtype": DTYPES[dtype_name] if weights else None,
        "vae": other_vae,
        "vae_dtype": None if vae_kind is None else DTYPES[vae_kind],
        "prediction_type": prediction_type,
    }
    if place.path.is_file():
        if variant is not None and not (other_vae and other_vae.where.is_dir()):
            raise ValueError(f"variant = {variant!r}: {name} is a single file, and only folders have variants")
        config_path = None if config is None else Path(config)
        checkpoint = read_file(place.path, config=config_path, ema=ema, pickled=pickled, **options)
    elif config is not None or ema:
        raise ValueError(
            f"{name} is a folder, which has its own configs and no averages: config and ema are not for it"
        )
    else:
        checkpoint = read_diffusers_folder(place.path, variant, pickled=pickled, **options)
    model = model_of(checkpoint, place.path, dtype_name, vae_kind)
    return dataclasses.replace(model, revision=place.commit, vae_revision=other_place and other_place.commit)


def model_of(checkpoint: Checkpoint, path: Path, dtype: str, vae_dtype: str | None = None) -> Model:
    """The model of a checkpoint, with the parameters that were read of it.

    Args:
      path: where it is.
      dtype: the name of its parameters' dtype, in which it computes.
      vae_dtype: of the VAE, whatever its config says.

    Raises:
      CheckpointError: if its tokenizer has more tokens than its text encoder.
      TokenizerError: if its tokenizer can't be read.
    """
    family, configs = checkpoint.family, checkpoint.configs
    asked = None if vae_dtype is None else DTYPES[vae_dtype]
    text = family.text_config(configs)
    return Model(
        name=path.resolve().name if path.is_dir() else path.stem,
        digest=checkpoint.digest,
        dtype=dtype,
        vae_dtype=jnp.dtype(vae_dtype_of(configs[VAE_NETWORK], DTYPES[dtype], asked)).name,
        family=family,
        networks=family.modules(configs),
        tokenizer=_tokenizer_for(text, checkpoint.tokenizer_folder, checkpoint.tokenizer_texts),
        scheduler=checkpoint.scheduler,
        scheduler_class=checkpoint.scheduler_class,
        sampler=checkpoint.sampler,
        params=checkpoint.params,
        variant_name=family.variant_name(configs, checkpoint.scheduler.prediction_type),
        file_digest=checkpoint.file_digest,
        revision=None,
        vae_revision=None,
        low_res=checkpoint.low_res,
        max_noise_level=checkpoint.max_noise_level,
    )


def _other_vae(name: str, revision: str | None, variant: str | None, pickled: bool) -> tuple[Place, VAEFile]:
    """The VAE of that name and where it is: in the variant if there are such files, else in the plain ones."""
    try:
        place = place_of(name, revision, variant, pickled)
    except MissingWeightsError:
        place = place_of(name, revision, None, pickled)
    return place, find_vae(place.path, variant, pickled)


def _dtype_named(name: str, dtype: DTypeLike | str) -> str:
    kind = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if kind not in DTYPES:
        raise ValueError(f"{name} = {kind!r}: expected one of {', '.join(DTYPES)}")
    return kind


def _tokenizer_for(text: TextEncoderConfig, folder: Path | None, texts: Mapping[str, str]) -> Tokenizer:
    """The tokenizer of a text encoder: of its folder, or CLIP's; `texts` are files that a single file carries."""
    length = text.max_position_embeddings
    if folder is None:
        padding = PADDING_2 if is_open_clip(text) else END
        tokenizer, where = clip_tokenizer(length, padding, texts), "its tokenizer"
    else:
        tokenizer, where = Tokenizer(folder, length), str(folder)
    if tokenizer.size > text.vocab_size:
        raise CheckpointError(f"{where} has {tokenizer.size} tokens, the text encoder only {text.vocab_size}")
    return tokenizer


def place_of(name: str, revision: str | None, variant: str | None, pickled: bool) -> Place:
    """Finds a model's files, or fetches them if its name is one on a hub; arguments and errors are those of `load`."""
    if name not in BUNDLED and not Path(name).exists() and hub.is_hub_name(name):
        fetched = hub.fetched(name, revision=revision, variant=variant, pickled=pickled)
        return Place(fetched.path, fetched.commit)
    if revision is not None:
        raise ValueError(f"revision = {revision!r}: {name} is not on a hub, it has no revisions")
    return Place(path_of(name), None)


def path_of(name: str) -> Path:
    """Where a model on this machine is, a folder or a file; raises `CheckpointError` if there is none."""
    try:
        return bundled(name) or find_path(name, "model", BUNDLED, elsewhere="nor a name like org/name on a hub")
    except FindingError as error:
        raise CheckpointError(str(error)) from error
