"""What one image is asked to be."""

import dataclasses
import hashlib
import json
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.noise import MAX_SEED, SOURCES
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import MULTISTEP_STARTS, SAMPLERS, Options, names
from sdjax.diffusion.scheduler_config import SAMPLE_MAX_VALUES
from sdjax.diffusion.sigmas import SCHEDULES
from sdjax.diffusion.timestep_spacing import SPACINGS
from sdjax.images.fit import RESIZE_MODES
from sdjax.images.preprocess import PREPROCESSORS, PreprocessorError, read_preprocessor
from sdjax.messages import near_match, quoted
from sdjax.text import controls, tags
from sdjax.text.tokenized_prompt import SYNTAXES

MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_GUIDANCE = 1000.0
# Letters of a prompt: far beyond any that a text encoder reads, little enough to keep in memory by the million.
MAX_PROMPT = 100_000
# ControlNets of a job: each is in its program.
MAX_CONTROLS = 8
# What weights in A1111's syntax do: as there; without restoring means; nothing.
EMPHASES = ("original", "no_norm", "ignore")
# Ways to enlarge finished pictures that need no weights.
PIXEL_UPSCALERS = ("lanczos", "bicubic", "nearest")
# Of a run with an estimator of depth, besides those that need no weights.
DEPTH_PREPROCESSOR = "depth"
# A seed that stands for one drawn at random.
RANDOM_SEED = -1

# Of derived seeds: so many that no two of a large run fall together, within the whole numbers of any JSON reader. torch
# sees the low 32 bits of a seed alone.
_SEED_BYTES = 6

# What A1111's settings and command lines call the sources of noise.
_SOURCE_NAMES = {"cpu": "torch", "nv": "philox", "gpu": "philox", "cuda": "philox"}
# Other names of what fields can be, as `_plain` leaves them: A1111's.
_OTHER_NAMES: Mapping[str, Mapping[str, str]] = {
    "noise_source": _SOURCE_NAMES,
    "resize_mode": {
        **{"just_resize": "stretch", "crop_and_resize": "crop", "resize_and_fill": "pad"},
        **{"0": "stretch", "1": "crop", "2": "pad"},
    },
    "inpaint_fill": {"latent_noise": "noise", "latent_nothing": "blank", "1": "original", "2": "noise", "3": "blank"},
}
# Fields that A1111's API has as numbers.
NUMBERED = ("resize_mode", "inpaint_fill")
# What else these can be there, and what is said of it.
_ONLY_THERE: Mapping[tuple[str, str], str] = {
    **dict.fromkeys(
        (("inpaint_fill", "0"), ("inpaint_fill", "fill")),
        "; A1111's fill (0) paints the mask with the colours around it, of which average is the nearest here",
    ),
    ("resize_mode", "3"): "; A1111's 3 enlarges latents instead of the image, which is not done here",
}
# Fields that want another beside them.
NEEDS: Mapping[str, str] = {
    "variation_strength": "variation_seed",
    "seed_resize_from_width": "seed_resize_from_height",
    "seed_resize_from_height": "seed_resize_from_width",
    "classifier_scale": "classifier_label",
    "only_masked_padding": "only_masked",
    **dict.fromkeys(
        ("mask_blur", "invert_mask", "inpaint_fill", "only_masked", "keep_unmasked", "binarize_mask"), "mask_image"
    ),
    "mask_image": "image",
    "strength": "image",
    "resize_mode": "image",
    **dict.fromkeys(("control_image", "control_preprocessor", "guess_mode"), "controlnets"),
    "controlnets": "control_image",
    **dict.fromkeys(("hires_upscaler", "hires_steps", "hires_strength"), "hires_scale"),
    **dict.fromkeys(("upscale_by", "upscaler_steps", "upscaler_guidance_scale", "upscaler_noise_level"), "upscaler"),
    "upscaler": "upscale_by",
}


class JobError(ValueError):
    """A row asks for what can't be; the message names the field, what was found and what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a row of a prompt file can ask for, under diffusers' names where it has them.

    Attributes:
      prompt: what is to be seen.
      negative_prompt: what is not.
      prompt_syntax: a key of `SYNTAXES`: how prompts are read.
      emphasis: one of `EMPHASES`: what weights in A1111's syntax do.
      prompt_problems: "reject" a prompt that can't be read as it stands, or "accept" it as A1111 reads it.
      clip_skip: layers of the text encoder left out at its end: 0 none, 1 the last (A1111's "Clip skip: 2").
      seed: 0 to 2^64 - 1; None derives one from the run's seed, the row's content and its repeat number; -1 draws one.
      noise_source: "threefry"; "torch" or "philox" for the numbers of torch's generators on CPU and CUDA.
      variation_seed: another seed, to whose noise the first latents go by `variation_strength`, 0 to 1.
      variation_strength: of it.
      seed_resize_from_width: pixels of a picture whose composition is kept, as far as the first latents decide it.
      seed_resize_from_height: likewise.
      width: pixels, a multiple of the VAE's factor; None is the model's own size.
      height: likewise.
      steps: of the sampler, 1 to 1000.
      sampler: a key of `SAMPLERS`, or its name in diffusers, A1111 or ComfyUI; None is the checkpoint's own.
      schedule: a key of `SCHEDULES`, or another tool's name for it; None is the checkpoint's own.
      timestep_spacing: one of `SPACINGS`; None is the checkpoint's own.
      eta: share of fresh noise of samplers that draw any; None is the sampler's default.
      s_churn: noise added before steps; s_tmin, s_tmax: between these sigmas; s_noise: factor of all noise added.
      s_tmin: see there.
      s_tmax: likewise; None is no limit.
      s_noise: likewise.
      solver_order: 1 to 3 (lms: 4); None is the sampler's default.
      multistep_start: one of `MULTISTEP_STARTS`: how lms, plms and pndm begin with a picture.
      guidance_scale: of classifier-free guidance; 0 is unconditional, 1 conditional alone.
      guidance_rescale: 0 to 1, how far the deviation of guided predictions is brought back.
      guidance_start: share of the steps before guidance begins, 0 to 1.
      guidance_end: share of the steps after which it ends; outside, the conditional prediction counts alone.
      dynamic_thresholding_ratio: quantile beyond which the denoised latents are cut; None does not.
      sample_max_value: largest bound of that.
      loras: of these by name, each with a weight: "name:0.8; other:0.5:1" (of the text encoder, and of the UNet if that
        is another), besides those that the prompt names.
      hypernetworks: likewise: "name:0.8".
      image: path of a picture with which the image begins, and which `strength` of the steps change.
      strength: 0 (none of them) to 1 (all, from noise alone); None is 0.8, and 1 with a mask, as in diffusers.
      resize_mode: one of `RESIZE_MODES`: how pictures come to the image's size.
      mask_image: path of a mask of `image`: white is drawn anew, black stays.
      mask_blur: standard deviation, in pixels of the image, by which the mask is blurred.
      invert_mask: draws black anew instead.
      binarize_mask: takes greys from the middle on for white and others for black, where latents are drawn.
      inpaint_fill: one of `FILLINGS`: what stands there before anything is drawn.
      only_masked: draws the part around the mask alone, at the image's size, and puts it back into the picture.
      only_masked_padding: pixels of the picture around the mask which are part of it.
      keep_unmasked: gives pixels where nothing is drawn anew as they came.
      depth_image: path of a depth map for a model that takes one, bright is near; None has it estimated from `image`.
      controlnets: of these by name, each with a weight, and the shares of the steps at which it begins and ends:
        "canny:0.8; depth:1:0:0.5".
      control_image: paths of what they see, "; " between; one for each, or one for all; None is `image`.
      control_preprocessor: one of `PREPROCESSORS` for each, or one for all: what is made of `control_image` first; with
        its numbers: "canny:50:150; tile:4".
      guess_mode: lets them act on the prompt's side alone, weaker at high resolutions.
      hires_scale: draws it again as many times as large, from itself; None does not.
      hires_upscaler: by which it is enlarged for that: one of `LATENT_UPSCALERS`, of `PIXEL_UPSCALERS`, or the name of
        an upscaler's file.
      hires_steps: of the second time; None is `steps`.
      hires_strength: of the second time, as `strength`.
      upscaler: one of `PIXEL_UPSCALERS`, or the name of an upscaler's file, which enlarges the finished image.
      upscale_by: as many times as large; None is the upscaler's own factor.
      upscaler_steps: of an upscaler that is a diffusion model; this and the next two are diffusers' by default.
      upscaler_guidance_scale: likewise.
      upscaler_noise_level: of the noise that the x4 upscaler puts on the image first.
      class_label: what a UNet with labels is told besides the prompt.
      classifier_scale: of guidance by the engine's classifier; 0 is none.
      classifier_label: the classifier's label to go to.
      preview_every: keeps every so many steps' picture; None keeps none.

    Raises:
      JobError: for a value out of its range.
    """

    prompt: str
    negative_prompt: str = ""
    prompt_syntax: str = "a1111"
    emphasis: str = "original"
    prompt_problems: str = "reject"
    clip_skip: int = 0
    seed: int | None = None
    noise_source: str = "threefry"
    variation_seed: int | None = None
    variation_strength: float = 0.0
    seed_resize_from_width: int | None = None
    seed_resize_from_height: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int = 20
    sampler: str | None = None
    schedule: str | None = None
    timestep_spacing: str | None = None
    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0
    solver_order: int | None = None
    multistep_start: str = "diffusers"
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    dynamic_thresholding_ratio: float | None = None
    sample_max_value: float = 1.0
    loras: str = ""
    hypernetworks: str = ""
    image: str | None = None
    strength: float | None = None
    resize_mode: str = "stretch"
    mask_image: str | None = None
    mask_blur: float = 0.0
    invert_mask: bool = False
    binarize_mask: bool = False
    inpaint_fill: str = "original"
    only_masked: bool = False
    only_masked_padding: int = 32
    keep_unmasked: bool = False
    depth_image: str | None = None
    controlnets: str = ""
    control_image: str | None = None
    control_preprocessor: str = "none"
    guess_mode: bool = False
    hires_scale: float | None = None
    hires_upscaler: str = "latent"
    hires_steps: int | None = None
    hires_strength: float = 0.7
    upscaler: str | None = None
    upscale_by: float | None = None
    upscaler_steps: int = 75
    upscaler_guidance_scale: float = 9.0
    upscaler_noise_level: int = 20
    class_label: int | None = None
    classifier_scale: float = 0.0
    classifier_label: int | None = None
    preview_every: int | None = None

    def __post_init__(self) -> None:
        for name in PICTURES:
            if isinstance(getattr(self, name), os.PathLike | str):
                object.__setattr__(self, name, os.fspath(getattr(self, name)).strip() or None)
        for name in FIELDS:
            check_type(name, getattr(self, name))
            # 7 and 7.0 are the same job, and so are 0 and -0.
            if float in allowed_types(name) and getattr(self, name) is not None:
                object.__setattr__(self, name, _float(name, getattr(self, name)))
        for name in ("prompt", "negative_prompt"):
            require(
                len(getattr(self, name)) <= MAX_PROMPT,
                name,
                f"{len(getattr(self, name))} letters",
                f"up to {MAX_PROMPT}",
            )
        for name, (least, most) in _RANGES.items():
            _within(name, getattr(self, name), least, most)
        for name, kind in _ADAPTERS.items():
            try:
                object.__setattr__(self, name, tags.to_text(tags.read_list(kind, getattr(self, name))))
            except tags.TagError as error:
                raise JobError(f"{name}: {error}") from error
        try:
            named = controls.read_controls(self.controlnets)
        except controls.ControlError as error:
            raise JobError(f"controlnets: {error}") from error
        object.__setattr__(self, "controlnets", controls.to_text(named))
        require(len(named) <= MAX_CONTROLS, "controlnets", self.controlnets, f"up to {MAX_CONTROLS} of them")
        for name, kinds in (("control_image", None), ("control_preprocessor", PREPROCESSORS)):
            self._check_each(name, len(named), kinds)
        self._name_sampler()
        for name in ("hires_upscaler", "upscaler"):
            plain = re.sub(r"[()]", "", _plain(getattr(self, name) or ""))
            if plain in (*PIXEL_UPSCALERS, *(LATENT_UPSCALERS if name == "hires_upscaler" else ())):
                object.__setattr__(self, name, plain)
        for name in _CHOICES:
            if getattr(self, name) is not None:  # "No norm" is no_norm
                plain = _plain(getattr(self, name))
                plain = _OTHER_NAMES.get(name, {}).get(plain, plain)
                if plain in _CHOICES[name]:
                    object.__setattr__(self, name, plain)
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            _one_of(name, value, known, hint=_ONLY_THERE.get((name, _plain(value or "")), ""))
        require(
            self.guidance_start < self.guidance_end,
            "guidance_start",
            self.guidance_start,
            f"less than guidance_end, {self.guidance_end}",
        )
        require(
            self.variation_strength == 0 or self.variation_seed is not None,
            "variation_strength",
            self.variation_strength,
            "a variation_seed with it",
        )
        require(
            (self.seed_resize_from_width is None) == (self.seed_resize_from_height is None),
            "seed_resize_from_width",
            self.seed_resize_from_width,
            "seed_resize_from_height with it, and the other way round",
        )
        for name in ONLY_WITH:
            value, partner = getattr(self, name), NEEDS[name]
            said = value == _DEFAULTS[name] or getattr(self, partner) != _DEFAULTS[partner]
            hint = "; hires_strength is that of the second time" if name == "strength" and self.hires_scale else ""
            require(said, name, value, f"{partner} with it{hint}")
        pictures = (self.image, self.control_image, self.depth_image)
        require(
            self.resize_mode == _DEFAULTS["resize_mode"] or any(each is not None for each in pictures),
            "resize_mode",
            self.resize_mode,
            "a picture with it",
        )
        require(
            self.upscaler not in PIXEL_UPSCALERS or self.upscale_by is not None,
            "upscaler",
            self.upscaler,
            "upscale_by with it",
        )
        if self.upscaler in PIXEL_UPSCALERS:
            check_upscaler_options(self)
        require(
            not self.controlnets or self.control_image is not None or self.image is not None,
            "controlnets",
            self.controlnets,
            "a control_image with it, or an image",
        )
        require(
            self.classifier_scale == 0 or self.classifier_label is not None,
            "classifier_scale",
            self.classifier_scale,
            "a classifier_label with it",
        )

    def _name_sampler(self) -> None:
        """Turns the names of other tools into the registry's."""
        if self.schedule is not None:
            schedule = names.schedule_named(self.schedule)
            if self.schedule in SPACINGS:
                raise JobError(
                    f"schedule = {self.schedule!r}: that is how timesteps are laid; say it in timestep_spacing"
                )
            if schedule is None:
                _one_of("schedule", self.schedule, SCHEDULES, names.A1111_SCHEDULES.values())
            object.__setattr__(self, "schedule", schedule or None)
        if self.sampler is None:
            return
        named = names.sampler_named(self.sampler)
        if named is None:
            if names.is_adaptive(self.sampler):
                raise JobError(
                    f"sampler = {self.sampler!r}: an adaptive sampler decides from picture to picture how many steps "
                    "it takes, which the compiled loop can't; dpm_fast is the same solver with fixed steps"
                )
            _one_of("sampler", self.sampler, SAMPLERS, names.known_sampler_names())
            return
        if named.schedule and self.schedule not in (None, named.schedule):
            raise JobError(f"sampler = {self.sampler!r} names another schedule than schedule = {self.schedule!r}")
        object.__setattr__(self, "sampler", named.sampler)
        object.__setattr__(self, "schedule", named.schedule or self.schedule)

    def _check_each(self, name: str, nets: int, known: Iterable[str] | None) -> None:
        """A field that says something for each ControlNet, or one thing for all."""
        parts = split(getattr(self, name))
        if known is not None:
            try:
                read = [read_preprocessor(part) for part in parts]
            except PreprocessorError as error:
                raise JobError(f"{name}: {error}") from error
            for kind, _ in read:
                _one_of(name, kind, (*known, DEPTH_PREPROCESSOR))
            parts = tuple(":".join([kind, *(f"{number:g}" for number in numbers)]) for kind, numbers in read)
        require(
            len(parts) in (0, 1, nets),
            name,
            getattr(self, name),
            f"one for all, or one for each of the {nets} controlnets",
        )
        object.__setattr__(self, name, "; ".join(parts) or _DEFAULTS[name])

    @property
    def controls(self) -> tuple[controls.Control, ...]:
        """What is named in `controlnets`."""
        return controls.read_controls(self.controlnets)

    @property
    def adapters(self) -> tuple[tags.Tag, ...]:
        """What is named in `loras` and `hypernetworks`."""
        return tuple(tag for name, kind in _ADAPTERS.items() for tag in tags.read_list(kind, getattr(self, name)))

    @property
    def sampler_options(self) -> Options:
        """What is set of the sampler."""
        return Options(
            self.eta, self.s_churn, self.s_tmin, self.s_tmax, self.s_noise, self.solver_order, self.multistep_start
        )

    def to_json(self) -> str:
        """The canonical form: the prompt and all that is not at its default, sorted, without spaces.

        So a field that comes with a later version, and does nothing by default, leaves every id as it is.
        """
        said = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name == "prompt" or getattr(self, field.name) != field.default
        }
        return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


FIELDS: Mapping[str, Any] = typing.get_type_hints(Job)
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Job)}
# Fields that say nothing where another is at its default.
ONLY_WITH = tuple(
    name
    for name, partner in NEEDS.items()
    if partner in ("image", "mask_image", "only_masked", "controlnets", "hires_scale", "upscaler")
    and name != "resize_mode"
)
_RANGES: Mapping[str, tuple[float, float]] = {
    "clip_skip": (0, 11),
    "seed": (RANDOM_SEED, MAX_SEED),
    "variation_seed": (RANDOM_SEED, MAX_SEED),
    "variation_strength": (0.0, 1.0),
    "seed_resize_from_width": (1, MAX_SIDE),
    "seed_resize_from_height": (1, MAX_SIDE),
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "steps": (1, MAX_STEPS),
    "eta": (0.0, 1.0),
    "s_churn": (0.0, 1000.0),
    "s_tmin": (0.0, 1e6),
    "s_tmax": (0.0, 1e6),
    "s_noise": (0.0, 10.0),
    "solver_order": (1, 4),
    "guidance_scale": (0.0, MAX_GUIDANCE),
    "guidance_rescale": (0.0, 1.0),
    "guidance_start": (0.0, 1.0),
    "guidance_end": (0.0, 1.0),
    "dynamic_thresholding_ratio": (0.0, 1.0),
    "sample_max_value": SAMPLE_MAX_VALUES,
    "strength": (0.0, 1.0),
    "mask_blur": (0.0, 256.0),
    "only_masked_padding": (0, MAX_SIDE),
    "hires_scale": (1.0, 8.0),
    "hires_steps": (1, MAX_STEPS),
    "hires_strength": (0.0, 1.0),
    "upscale_by": (1.0, 8.0),
    "upscaler_steps": (1, MAX_STEPS),
    "upscaler_guidance_scale": (0.0, MAX_GUIDANCE),
    "upscaler_noise_level": (0, MAX_STEPS),
    "class_label": (0, 2**31 - 1),
    "classifier_scale": (-MAX_GUIDANCE, MAX_GUIDANCE),
    "classifier_label": (0, 2**31 - 1),
    "preview_every": (1, MAX_STEPS),
}
# Fields that name adapters, and of which kind.
_ADAPTERS: Mapping[str, str] = {"loras": "lora", "hypernetworks": "hypernetwork"}
_CHOICES: Mapping[str, Iterable[str]] = {
    "prompt_syntax": SYNTAXES,
    "emphasis": EMPHASES,
    "prompt_problems": ("reject", "accept"),
    "noise_source": SOURCES,
    "timestep_spacing": SPACINGS,
    "multistep_start": MULTISTEP_STARTS,
    "resize_mode": RESIZE_MODES,
    "inpaint_fill": FILLINGS,
}


# What metadata call fields, where that is not the field's own name: in a data set `image` is the image itself.
TOLD_AS: Mapping[str, str] = {"image": "input_image"}
# Fields whose numbers go beyond those that every reader of JSON holds, 2^53: their digits are text in `metadata.jsonl`.
SEEDS = ("seed", "variation_seed")
_DIGITS = re.compile("[0-9]{1,20}")
# Fields that are paths of pictures, and how they are read.
PICTURES: Mapping[str, Callable[[str | None], tuple[str, ...]]] = {
    **dict.fromkeys(("image", "mask_image", "depth_image"), lambda text: (text,) if text else ()),
    "control_image": lambda text: split(text),
}


def _plain(choice: str) -> str:
    return re.sub(r"[\s-]+", "_", choice.strip().lower())


def split(text: str | None) -> tuple[str, ...]:
    """What stands between semicolons."""
    return tuple(part.strip() for part in (text or "").split(";") if part.strip())


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raises the `JobError` of a field unless a condition holds."""
    if not condition:
        raise JobError(f"{name} = {quoted(found)}: expected {expected}")


def allowed_types(name: str) -> tuple[type, ...]:
    """The types of a field."""
    return typing.get_args(FIELDS[name]) or (FIELDS[name],)


def check_type(name: str, value: Any) -> None:
    """Raises `JobError` if a field can't have such a value."""
    allowed = allowed_types(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = isinstance(value, allowed) and isinstance(value, bool) <= (bool in allowed)
    fits = (float in allowed and number) or right
    kinds = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
    if name in PICTURES and not fits:
        raise JobError(
            f"{name} is a {type(value).__name__}: expected a path; of other pictures see sdjax.Pictures(read=)"
        )
    require(fits, name, value, f"a value of type {kinds}")


def check_upscaler_options(job: "Job") -> None:
    """Raises `JobError` if something is said of an upscaler that is no diffusion model, which those alone heed."""
    for name in ("upscaler_steps", "upscaler_guidance_scale", "upscaler_noise_level"):
        value = getattr(job, name)
        require(
            value == _DEFAULTS[name], name, value, f"an upscaler with it that is a diffusion model, not {job.upscaler}"
        )


def _float(name: str, value: float) -> float:
    try:
        return float(value) + 0.0
    except OverflowError:
        raise JobError(f"{name} = {quoted(value)}: far too large") from None


def _within(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None:  # NaN is not within anything
        require(least <= value <= most, name, value, f"a number from {least} to {most}")


def _one_of(name: str, value: str | None, known: Iterable[str], spellings: Iterable[str] = (), hint: str = "") -> None:
    if value is not None and value not in known:
        hint = hint or near_match(value, (*spellings, *known), 0.4)
        raise JobError(f"{name} = {quoted(value)}: expected one of {', '.join(known)}{hint}")


# What version 0.2 did where later versions ask.
_OF_0_2: Mapping[str, Any] = {"multistep_start": "k_diffusion"}


def told(job: Job) -> dict[str, Any]:
    """The fields of a job as metadata have them."""
    return {TOLD_AS.get(name, name): getattr(job, name) for name in FIELDS}


def with_seeds_as_text(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as `metadata.jsonl` has them, in which no reader rounds a seed."""
    seeds = {name: str(metadata[name]) for name in SEEDS if type(metadata.get(name)) is int}
    return {**metadata, **seeds}


def with_seeds_as_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of pictures, from a row of `metadata.jsonl`; earlier versions have numbers there already."""
    texts = {name: row[name] for name in SEEDS if isinstance(row.get(name), str)}
    return {**row, **{name: int(text) for name, text in texts.items() if _DIGITS.fullmatch(text)}}


def job_of(metadata: Mapping[str, Any]) -> Job:
    """The job of which metadata tell, or such a row, also those of version 0.2, which had fewer fields."""
    metadata = with_seeds_as_numbers(metadata)
    if str(metadata.get("sdjax")).startswith("0.2."):
        metadata = {**_OF_0_2, **metadata}
    kept = {name: TOLD_AS.get(name, name) for name in FIELDS}
    return Job(**{name: metadata[key] for name, key in kept.items() if key in metadata})


def derived_seed(run_seed: int, row: Job, repeat: int) -> int:
    """The seed of a row that names none: from the run's seed, what the row itself asks, and its repeat number."""
    text = f"{run_seed}\n{row.to_json()}\n{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_SEED_BYTES])


def repeated(job: Job, row: Job, repeats: int, run_seed: int) -> tuple[Job, ...]:
    """The job `repeats` times, each with its seed: one after the other from the job's own, or derived.

    Args:
      job: what is to be made.
      row: the same without what the run's configuration adds, which has no say in derived seeds: so runs of one file
        with other settings begin from the same noise.
      repeats: at least 1.
      run_seed: of the derived seeds.

    Raises:
      JobError: if the last seed would be too large.
    """
    if job.seed is None:
        return tuple(dataclasses.replace(job, seed=derived_seed(run_seed, row, repeat)) for repeat in range(repeats))
    if job.seed == RANDOM_SEED:
        return (job,) * repeats
    return tuple(dataclasses.replace(job, seed=job.seed + repeat) for repeat in range(repeats))


def image_id(job: Job, model_digest: str, fingerprint: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that stand for all that decides an image's bits."""
    decided = json.dumps([json.loads(job.to_json()), model_digest, dict(fingerprint)], sort_keys=True)
    return hashlib.sha256(decided.encode()).hexdigest()[:32]
