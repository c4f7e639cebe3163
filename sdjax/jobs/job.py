"""The specification of one image."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax import extensions
from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.noise import MAX_SEED, SOURCES
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import MULTISTEP_STARTS, Options, names
from sdjax.diffusion.scheduler_config import SAMPLE_MAX_VALUES
from sdjax.diffusion.timestep_spacing import SPACINGS
from sdjax.images.fit import RESIZE_MODES
from sdjax.jobs import canonical, rules
from sdjax.jobs.canonical import PIXEL_UPSCALERS, split
from sdjax.jobs.fields import Field, JobError, attributes, check_value, fields_of, row
from sdjax.models.token_merging import MAX_RATIO
from sdjax.text import controls, tags
from sdjax.text.tokenize_prompt import SYNTAXES

MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_GUIDANCE = 1000.0
# Letters of a prompt: far beyond any that a text encoder reads, little enough to keep in memory by the million.
MAX_PROMPT = 100_000
# What weights in A1111's syntax do: as there; without restoring means; nothing.
EMPHASES = ("original", "no_norm", "ignore")
# A seed that stands for one drawn at random.
RANDOM_SEED = -1

# More skip connections than any published UNet has; what a model's has is known once it is loaded.
_MOST_BRANCHES = 63
_SEEDS = (RANDOM_SEED, MAX_SEED)
_INDEX = (0, 2**31 - 1)
# A1111's names of ways to enlarge; "bicubic" is no upscaler there.
_UPSCALER_LABELS = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
_FILL = "; A1111's fill (0) paints the mask with the colours around it, of which average is the nearest here"
_LATENT_RESIZE = "; A1111's 3 enlarges latents instead of the image, which is not done here"


def _listed(choices: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in choices)


def _one_path(text: str | None) -> tuple[str, ...]:
    return (text,) if text else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a row of a prompt file can ask for, under diffusers' names where it has them.

    Raises:
      JobError: for a value that its field can't have, and for values that don't go together.
    """

    # fmt: off
    prompt: str = row(Field(group="prompts", longest=MAX_PROMPT, doc="What the image shows."))
    negative_prompt: str = row(Field("", group="prompts", longest=MAX_PROMPT, label="Negative prompt",
        doc="What the image does not show: guidance moves away from it."))
    prompt_syntax: str = row(Field("a1111", group="prompts", choices=tuple(SYNTAXES), extended_by=extensions.SYNTAXES,
        doc="The syntax of both prompts."))
    emphasis: str = row(Field("original", group="prompts", choices=EMPHASES,
        labels={"no_norm": "No norm", "ignore": "Ignore"}, label="Emphasis",
        doc="How weights in A1111's syntax act: `original` scales each weighted chunk back to its original mean, "
        "`no_norm` does not, and `ignore` parses weights without applying them."))
    prompt_problems: str = row(Field("reject", group="prompts", choices=("reject", "accept"),
        doc="What to do with a prompt that its syntax probably misreads, such as one with unclosed brackets: `reject` "
        "makes no image of it, `accept` reads it as the original tool does."))
    clip_skip: int = row(Field(0, group="prompts", within=(0, 11),
        aliases_from_one=("clip_stop_at_last_layers", "clip skip"), label="Clip skip",
        doc="How many of the text encoder's last layers are skipped, counted as in diffusers: A1111's `Clip skip: 2` "
        "is 1."))

    seed: int | None = row(Field(None, unset="derived from the row's content", group="noise", within=_SEEDS,
        label="Seed", doc="The seed of all noise. -1 draws one at random; the metadata records it."))
    noise_source: str = row(Field("threefry", group="noise", choices=SOURCES,
        labels={"torch": "CPU", "philox": "NV", "threefry": "threefry"}, spellings={"gpu": "philox", "cuda": "philox"},
        aliases=("rng",), label="RNG",
        doc="The random number generator for noise: `threefry` is JAX's; `torch` and `philox` reproduce torch's "
        "generators on CPUs and on NVIDIA GPUs."))
    variation_seed: int | None = row(Field(None, group="noise", within=_SEEDS, aliases=("subseed",),
        label="Variation seed",
        doc="A second seed; the initial noise is interpolated towards its noise. -1 draws one at random."))
    variation_strength: float = row(Field(0.0, group="noise", within=(0.0, 1.0), needs=("variation_seed",),
        aliases=("subseed_strength",), label="Variation seed strength",
        doc="The position of the interpolation: 0 is the noise of `seed`, 1 that of `variation_seed`."))
    seed_resize_from_width: int | None = row(Field(None, group="noise", within=(1, MAX_SIDE),
        needs=("seed_resize_from_height",), aliases=("seed_resize_from_w",), label="Seed resize from",
        doc="The width in pixels of another image of the same seed, whose composition this one keeps at its own size."))
    seed_resize_from_height: int | None = row(Field(None, group="noise", within=(1, MAX_SIDE),
        needs=("seed_resize_from_width",), aliases=("seed_resize_from_h",), label="Seed resize from",
        doc="The height in pixels of that other image."))

    width: int | None = row(Field(None, unset="the model's own, or the input image's", group="size",
        within=(1, MAX_SIDE), label="Size",
        doc="The width in pixels, a multiple of the VAE's scale factor (8 for Stable Diffusion)."))
    height: int | None = row(Field(None, unset="the model's own, or the input image's", group="size",
        within=(1, MAX_SIDE), label="Size", doc="The height in pixels, a multiple of the same factor."))

    steps: int = row(Field(20, group="sampling", within=(1, MAX_STEPS), aliases=("num_inference_steps",), label="Steps",
        doc="The number of sampling steps."))
    sampler: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", values="a sampler's name",
        read=canonical.sampler, known=canonical.SAMPLER_NAMES, extended_by=extensions.SAMPLERS,
        labels=names.A1111_SAMPLERS, aliases=("sampler_name",), label="Sampler",
        doc="The sampler, by its name in sdjax, diffusers, A1111 or ComfyUI."))
    schedule: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", values="a schedule's name",
        read=canonical.schedule, known=canonical.SCHEDULE_NAMES, extended_by=extensions.SCHEDULES,
        labels=names.A1111_SCHEDULES, aliases=("scheduler",),
        label="Schedule type",
        doc="The schedule of noise levels, by its name in sdjax, diffusers, A1111 or ComfyUI."))
    timestep_spacing: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", choices=SPACINGS,
        doc="How timesteps are spaced: as in the sampler's diffusers class, or as in k-diffusion, which A1111 and "
        "ComfyUI use."))
    eta: float | None = row(Field(None, unset="the sampler's own", group="sampling", within=(0.0, 1.0), label="Eta",
        doc="The share of fresh noise, for samplers that add noise at each step."))
    s_churn: float = row(Field(0.0, group="sampling", within=(0.0, 1000.0), label="Sigma churn",
        doc="The amount of noise added before each step (Karras et al. 2022, algorithm 2)."))
    s_tmin: float = row(Field(0.0, group="sampling", within=(0.0, 1e6), label="Sigma tmin",
        doc="The smallest sigma at which `s_churn` acts."))
    s_tmax: float | None = row(Field(None, unset="no limit", group="sampling", within=(0.0, 1e6), label="Sigma tmax",
        doc="The largest sigma at which `s_churn` acts."))
    s_noise: float = row(Field(1.0, group="sampling", within=(0.0, 10.0), label="Sigma noise",
        doc="A factor on all noise added between steps."))
    solver_order: int | None = row(Field(None, unset="the sampler's own", group="sampling", within=(1, 4),
        doc="The order, for samplers that have several: 1 to 3, and up to 4 for `lms`."))
    multistep_start: str = row(Field("diffusers", group="sampling", choices=MULTISTEP_STARTS,
        doc="How `lms`, `plms` and `pndm` start in the middle of a schedule, with an input image."))

    guidance_scale: float = row(Field(7.5, group="guidance", within=(0.0, MAX_GUIDANCE), aliases=("cfg_scale", "cfg"),
        label="CFG scale",
        doc="The scale of classifier-free guidance. 0 uses only the negative prompt and 1 only the prompt, each at "
        "half the cost; larger values move away from the negative prompt, towards the prompt."))
    guidance_rescale: float = row(Field(0.0, group="guidance", within=(0.0, 1.0),
        doc="How far the standard deviation of the guided prediction is rescaled to that of the prompt's prediction."))
    guidance_start: float = row(Field(0.0, group="guidance", within=(0.0, 1.0),
        doc="The fraction of the steps after which guidance starts."))
    guidance_end: float = row(Field(1.0, group="guidance", within=(0.0, 1.0),
        doc="The fraction of the steps after which guidance ends; steps without guidance cost half."))
    dynamic_thresholding_ratio: float | None = row(Field(None, group="guidance", within=(0.0, 1.0),
        doc="The quantile of the denoised latents' absolute values at which they are clipped."))
    sample_max_value: float = row(Field(1.0, group="guidance", within=SAMPLE_MAX_VALUES,
        doc="The upper limit of the bound at which `dynamic_thresholding_ratio` clips."))

    deep_cache_interval: int = row(Field(1, group="accelerations", within=(1, MAX_STEPS), aliases=("cache_interval",),
        label="DeepCache interval",
        doc="DeepCache: the whole UNet is computed every so many evaluations; those between reuse its deep features. 1 "
        "is without."))
    deep_cache_branch: int = row(Field(0, group="accelerations", within=(0, _MOST_BRANCHES),
        needs=("deep_cache_interval",), idle=True, aliases=("cache_branch_id",), label="DeepCache branch",
        doc="The skip connection from which on DeepCache computes the UNet in all evaluations: 0 is the outermost and "
        "fastest; larger ones compute more."))
    token_merging_ratio: float = row(Field(0.0, group="accelerations", within=(0.0, MAX_RATIO),
        label="Token merging ratio",
        doc="Token merging: the fraction of tokens that are averaged with others before the UNet's self-attention at "
        "its largest feature maps."))
    gate_step: int | None = row(Field(None, group="accelerations", within=(1, MAX_STEPS), label="T-GATE step",
        doc="T-GATE: the number of steps after which guidance ends and the outputs of cross-attention are reused."))

    loras: str = row(Field("", group="adapters", values="`name:0.8; other:0.5:1`", read=canonical.adapters("lora"),
        aliases=("lora",),
        doc="LoRAs by name, each with one weight, or one for the text encoder and one for the UNet. They are added to "
        "those in the prompt."))
    hypernetworks: str = row(Field("", group="adapters", values="`name:0.8; other:1`",
        read=canonical.adapters("hypernetwork"), aliases=("hypernetwork", "hypernet"),
        doc="Hypernetworks by name, each with its weight. They are added to those in the prompt."))

    image: str | None = row(Field(None, group="img2img", values="a path", paths=_one_path,
        aliases=("init_image", "init_images", "input_image"), column="input_image",
        doc="The path of the input image."))
    strength: float | None = row(Field(None, unset="0.8, and 1 with a mask", group="img2img", within=(0.0, 1.0),
        needs=("image",), idle=True, aliases=("denoising_strength", "denoise"), label="Denoising strength",
        doc="The fraction of the steps that is run (SDEdit): 0 returns the input image, except for what the VAE loses; "
        "1 is text-to-image, bit for bit. `int(steps * strength)` of the steps are run, as in diffusers."))
    resize_mode: str = row(Field("stretch", group="img2img", choices=RESIZE_MODES,
        spellings={"just_resize": "stretch", "crop_and_resize": "crop", "resize_and_fill": "pad"} |
        {"0": "stretch", "1": "crop", "2": "pad"}, refused={"3": _LATENT_RESIZE},
        needs=("image", "control_image", "depth_image"), idle=True,
        doc="How input images are resized to `width` and `height`: `stretch` as diffusers does, `crop`, or `pad`, "
        "which repeats the border."))

    mask_image: str | None = row(Field(None, group="inpainting", values="a path", paths=_one_path, needs=("image",),
        idle=True, aliases=("mask",),
        doc="The path of the mask: white is repainted, black is kept, grey is a mixture of both. A mask of another "
        "size than `image` is resized if it has the same aspect ratio."))
    mask_blur: float = row(Field(0.0, group="inpainting", within=(0.0, 256.0), needs=("mask_image",), idle=True,
        label="Mask blur",
        doc="The standard deviation of the mask's blur in pixels, at the size of the generated image; with "
        "`only_masked`, at that of the input image."))
    invert_mask: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True, label="Mask mode",
        doc="Repaints black and keeps white."))
    binarize_mask: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True,
        doc="Rounds grey to black or white, with mid-grey becoming white, as diffusers does."))
    inpaint_fill: str = row(Field("original", group="inpainting", choices=FILLINGS,
        labels={"noise": "latent noise", "blank": "latent nothing"},
        spellings={"1": "original", "2": "noise", "3": "blank"}, refused={"0": _FILL, "fill": _FILL},
        needs=("mask_image",), idle=True, aliases=("inpainting_fill",), label="Masked content",
        doc="What is under the mask at the start: the input image, noise, latents of 0 (`blank`), or the average of the"
        " rest. It matters only if `strength` is less than 1; at 1 noise replaces everything."))
    only_masked: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True, label="Inpaint area",
        doc="Generates only the region around the mask, at `width` x `height` or the model's own size, and pastes it "
        "back: the result has the input image's size."))
    only_masked_padding: int = row(Field(32, group="inpainting", within=(0, MAX_SIDE), needs=("only_masked",),
        idle=True, label="Masked area padding",
        doc="The margin around the mask, in pixels of the input image, that `only_masked` includes."))
    keep_unmasked: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True,
        doc="Keeps pixels outside the mask exactly as they were; `only_masked` always does."))

    depth_image: str | None = row(Field(None, unset="estimated from `image`", group="depth", values="a path",
        paths=_one_path, doc="The path of a depth map (bright is near), for depth checkpoints."))

    controlnets: str = row(Field("", group="controlnet", values="`canny:0.8; depth:1:0:0.5`",
        read=canonical.controlnets, needs=("control_image", "image"), aliases=("controlnet",), label="ControlNet",
        doc="ControlNets by name, each with its weight and the fractions of the steps at which it starts and ends."))
    control_image: str | None = row(Field(None, unset="`image`", group="controlnet", values="paths",
        read=canonical.paths, paths=split, needs=("controlnets",), idle=True, aliases=("control_images",),
        doc="The paths of the control images, separated by `; `: one for each ControlNet, or one for all."))
    control_preprocessor: str = row(Field("none", group="controlnet", values="`canny:50:150; tile:4`",
        read=canonical.preprocessors, needs=("controlnets",), idle=True,
        doc="The preprocessors of the control images, with their parameters: one for each ControlNet, or one for all."))
    guess_mode: bool = row(Field(False, group="controlnet", needs=("controlnets",), idle=True,
        doc="Applies ControlNets only to the prompt's prediction, more weakly at high resolutions, as in diffusers."))

    hires_scale: float | None = row(Field(None, group="hires", within=(1.0, 8.0), aliases=("hr_scale",),
        label="Hires upscale",
        doc="The factor by which the image is enlarged for a second pass; sides are rounded down to whole latents."))
    hires_upscaler: str = row(Field("latent", group="hires", values="an upscaler's name",
        read=canonical.upscaler((*LATENT_UPSCALERS, *PIXEL_UPSCALERS)), labels=_UPSCALER_LABELS, needs=("hires_scale",),
        idle=True, aliases=("hr_upscaler",), label="Hires upscaler",
        doc="The upscaler before the second pass: one of torch's interpolations of latents ("
        f"{_listed(LATENT_UPSCALERS)}), a filter ({_listed(PIXEL_UPSCALERS)}), or the name of an upscaler's file."))
    hires_steps: int | None = row(Field(None, unset="`steps`", group="hires", within=(1, MAX_STEPS),
        needs=("hires_scale",), idle=True, aliases=("hr_second_pass_steps",), label="Hires steps",
        doc="The number of steps of the second pass."))
    hires_strength: float = row(Field(0.7, group="hires", within=(0.0, 1.0), needs=("hires_scale",), idle=True,
        aliases=("hires_denoising_strength",), label="Denoising strength",
        doc="The `strength` of the second pass: the fraction of its steps that is run."))

    upscaler: str | None = row(Field(None, group="upscaling", values="an upscaler's name",
        read=canonical.upscaler(PIXEL_UPSCALERS), labels=_UPSCALER_LABELS, label="Postprocess upscaler",
        doc=f"The upscaler of the finished image: a filter ({_listed(PIXEL_UPSCALERS)}), or the name of an upscaler's "
        "file."))
    upscale_by: float | None = row(Field(None, unset="the upscaler's own", group="upscaling", within=(1.0, 8.0),
        needs=("upscaler",), idle=True, label="Postprocess upscale by",
        doc="The factor by which the finished image is enlarged."))
    upscaler_steps: int = row(Field(75, group="upscaling", within=(1, MAX_STEPS), needs=("upscaler",), idle=True,
        doc="The number of steps, for upscalers that are diffusion models."))
    upscaler_guidance_scale: float = row(Field(9.0, group="upscaling", within=(0.0, MAX_GUIDANCE), needs=("upscaler",),
        idle=True, doc="The `guidance_scale`, for upscalers that are diffusion models."))
    upscaler_noise_level: int = row(Field(20, group="upscaling", within=(0, MAX_STEPS), needs=("upscaler",), idle=True,
        doc="The timestep of the noise that Stable Diffusion's x4 upscaler first adds to the image."))

    class_label: int | None = row(Field(None, group="classes", within=_INDEX,
        doc="The class of the image, for UNets that take a class label besides the prompt."))
    classifier_scale: float = row(Field(0.0, group="classes", within=(-MAX_GUIDANCE, MAX_GUIDANCE),
        needs=("classifier_label",), doc="The scale of classifier guidance, with the run's classifier."))
    classifier_label: int | None = row(Field(None, group="classes", within=_INDEX,
        doc="The number of the label towards which the classifier guides."))

    preview_every: int | None = row(Field(None, group="output", within=(1, MAX_STEPS),
        doc="Saves a preview every so many steps, as a strip and an animation in the output's folder `steps`."))
    # fmt: on

    def __post_init__(self) -> None:
        values = vars(self)
        # Most fields are at their defaults, which are canonical.
        checked = check_each({name: value for name, value in values.items() if value is not _DEFAULTS[name]})
        values.update(checked)
        given = given_of(checked).keys()
        rules.check_rules(values, given)
        rules.check_needs(FIELDS, values, given)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not at their defaults."""
        return given_of(vars(self))

    @property
    def controls(self) -> tuple[controls.Control, ...]:
        """What is named in `controlnets`."""
        return controls.read_controls(self.controlnets)

    @property
    def adapters(self) -> tuple[tags.Tag, ...]:
        """What is named in `loras` and `hypernetworks`."""
        return (*tags.read_list("lora", self.loras), *tags.read_list("hypernetwork", self.hypernetworks))

    @property
    def sampler_options(self) -> Options:
        """The options that are set of the sampler."""
        return Options(
            self.eta, self.s_churn, self.s_tmin, self.s_tmax, self.s_noise, self.solver_order, self.multistep_start
        )


FIELDS: Mapping[str, Field] = fields_of(Job)
_DEFAULTS: Mapping[str, Any] = {name: field.default for name, field in FIELDS.items()}
Job.__doc__ = f"{Job.__doc__}\n{attributes(FIELDS.values())}"

# Fields that name image files, and how their values are read: value -> the paths in it.
IMAGE_FIELDS = {name: field.paths for name, field in FIELDS.items() if field.paths}


def changed(job: Job, **values: Any) -> Job:
    """The job with other values of some fields, as `dataclasses.replace` makes it; of the others none is checked again.

    Raises:
      JobError: for a value that its field can't have, and where those of several fields don't go together.
    """
    if "sampler" in values and job.schedule is not None:
        values = {"schedule": job.schedule, **values}  # a sampler's name may tell another one
    made = object.__new__(Job)
    fields = vars(made)
    fields.update(vars(job))
    fields.update(check_each(values))
    given = given_of(fields).keys()
    rules.check_rules(fields, given)
    rules.check_needs(FIELDS, fields, given)
    return made


def given_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some canonical values that are not at their fields' defaults."""
    defaults = _DEFAULTS
    # Most are the defaults themselves.
    return {name: value for name, value in values.items() if value is not defaults[name] and value != defaults[name]}


def check(name: str, value: Any) -> Any:
    """The canonical form of a field's value, whatever the other fields are; raises `JobError` if it can't have it."""
    return check_value(FIELDS[name], value)


def check_each(values: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical form of some fields of a job, each by itself, with the schedule that a sampler's name tells.

    Raises:
      JobError: for a value that its field can't have.
    """
    found = {name: check_value(FIELDS[name], value) for name, value in values.items()}
    if found.get("sampler") is not None and (schedule := canonical.schedule_of_sampler(values["sampler"])):
        if found.get("schedule") not in (None, schedule):
            raise JobError(
                f"sampler = {values['sampler']!r} names another schedule than schedule = {found['schedule']!r}"
            )
        found["schedule"] = schedule
    return found


def check_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical form of some fields of a job, whose others are not known yet.

    Raises:
      JobError: for a value that its field can't have, and where those that are there don't go together.
    """
    found = check_each(values)
    rules.check_rules(found, given_of(found).keys())
    return found


def check_upscaler_options(job: Job) -> None:
    """Raises `JobError` if a job gives options of diffusion models for an upscaler that is none."""
    rules.check_upscaler_options(vars(job), job.given.keys())
