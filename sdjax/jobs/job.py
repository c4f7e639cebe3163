"""What one image is asked to be."""

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
from sdjax.text import controls, tags
from sdjax.text.tokenized_prompt import SYNTAXES

MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_GUIDANCE = 1000.0
# Letters of a prompt: far beyond any that a text encoder reads, little enough to keep in memory by the million.
MAX_PROMPT = 100_000
# What weights in A1111's syntax do: as there; without restoring means; nothing.
EMPHASES = ("original", "no_norm", "ignore")
# A seed that stands for one drawn at random.
RANDOM_SEED = -1

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
        doc="The grammar in which both prompts are read."))
    emphasis: str = row(Field("original", group="prompts", choices=EMPHASES,
        labels={"no_norm": "No norm", "ignore": "Ignore"}, label="Emphasis",
        doc="What weights in A1111's syntax do: `original` scales each weighted chunk back to its mean, `no_norm` does"
        " not, `ignore` reads weights and does nothing with them."))
    prompt_problems: str = row(Field("reject", group="prompts", choices=("reject", "accept"),
        doc="What becomes of a prompt that can't be read as it was probably meant: `reject` makes no image of it, "
        "`accept` reads it as the tool of that syntax does."))
    clip_skip: int = row(Field(0, group="prompts", within=(0, 11),
        aliases_from_one=("clip_stop_at_last_layers", "clip skip"), label="Clip skip",
        doc="Layers left out at the end of the text encoder, in diffusers' count: A1111's `Clip skip: 2` is 1."))

    seed: int | None = row(Field(None, unset="derived from the row's content", group="noise", within=_SEEDS,
        label="Seed", doc="The seed of all noise. -1 draws one at random, which the metadata record."))
    noise_source: str = row(Field("threefry", group="noise", choices=SOURCES,
        labels={"torch": "CPU", "philox": "NV", "threefry": "threefry"}, spellings={"gpu": "philox", "cuda": "philox"},
        aliases=("rng",), label="RNG",
        doc="Which generator draws noise: `threefry` is JAX's; `torch` and `philox` give the numbers of torch's "
        "generators on CPUs and on NVIDIA's GPUs."))
    variation_seed: int | None = row(Field(None, group="noise", within=_SEEDS, aliases=("subseed",),
        label="Variation seed",
        doc="Another seed, towards whose noise the first latents are interpolated. -1 draws one at random."))
    variation_strength: float = row(Field(0.0, group="noise", within=(0.0, 1.0), needs=("variation_seed",),
        aliases=("subseed_strength",), label="Variation seed strength",
        doc="How far the noise goes: 0 is that of `seed`, 1 that of `variation_seed`."))
    seed_resize_from_width: int | None = row(Field(None, group="noise", within=(1, MAX_SIDE),
        needs=("seed_resize_from_height",), aliases=("seed_resize_from_w",), label="Seed resize from",
        doc="The width in pixels of an image of the same seed whose composition this one keeps at its own size."))
    seed_resize_from_height: int | None = row(Field(None, group="noise", within=(1, MAX_SIDE),
        needs=("seed_resize_from_width",), aliases=("seed_resize_from_h",), label="Seed resize from",
        doc="The height of the same image."))

    width: int | None = row(Field(None, unset="the model's own, or the input image's", group="size",
        within=(1, MAX_SIDE), label="Size",
        doc="The width in pixels: a multiple of the VAE's factor, which is 8 for Stable Diffusion."))
    height: int | None = row(Field(None, unset="the model's own, or the input image's", group="size",
        within=(1, MAX_SIDE), label="Size", doc="The height in pixels, likewise."))

    steps: int = row(Field(20, group="sampling", within=(1, MAX_STEPS), aliases=("num_inference_steps",), label="Steps",
        doc="The steps of the sampler."))
    sampler: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", values="a sampler's name",
        read=canonical.sampler, known=canonical.SAMPLER_NAMES, extended_by=extensions.SAMPLERS,
        labels=names.A1111_SAMPLERS, aliases=("sampler_name",), label="Sampler",
        doc="The sampler, by its name here or in diffusers, A1111 or ComfyUI."))
    schedule: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", values="a schedule's name",
        read=canonical.schedule, known=canonical.SCHEDULE_NAMES, extended_by=extensions.SCHEDULES,
        labels=names.A1111_SCHEDULES, aliases=("scheduler",),
        label="Schedule type",
        doc="The noise levels of the steps, by their name here or in diffusers, A1111 or ComfyUI."))
    timestep_spacing: str | None = row(Field(None, unset="the checkpoint's own", group="sampling", choices=SPACINGS,
        doc="How timesteps are spread over the schedule: as in diffusers' class of the sampler, or as in k-diffusion, "
        "which A1111 and ComfyUI use."))
    eta: float | None = row(Field(None, unset="the sampler's own", group="sampling", within=(0.0, 1.0), label="Eta",
        doc="The share of fresh noise in samplers that draw any at each step."))
    s_churn: float = row(Field(0.0, group="sampling", within=(0.0, 1000.0), label="Sigma churn",
        doc="Noise added before steps (Karras et al. 2022, algorithm 2)."))
    s_tmin: float = row(Field(0.0, group="sampling", within=(0.0, 1e6), label="Sigma tmin",
        doc="The least sigma at which `s_churn` acts."))
    s_tmax: float | None = row(Field(None, unset="no limit", group="sampling", within=(0.0, 1e6), label="Sigma tmax",
        doc="The largest sigma at which `s_churn` acts."))
    s_noise: float = row(Field(1.0, group="sampling", within=(0.0, 10.0), label="Sigma noise",
        doc="A factor of all noise that is added between steps."))
    solver_order: int | None = row(Field(None, unset="the sampler's own", group="sampling", within=(1, 4),
        doc="The order of samplers that come in several: 1 to 3, and 4 for `lms`."))
    multistep_start: str = row(Field("diffusers", group="sampling", choices=MULTISTEP_STARTS,
        doc="How `lms`, `plms` and `pndm` begin in the middle of a schedule, with an input image."))

    guidance_scale: float = row(Field(7.5, group="guidance", within=(0.0, MAX_GUIDANCE), aliases=("cfg_scale", "cfg"),
        label="CFG scale",
        doc="The scale of classifier-free guidance: 0 is the negative prompt alone and 1 the prompt alone, each at "
        "half the cost; more moves away from the negative prompt, towards the prompt."))
    guidance_rescale: float = row(Field(0.0, group="guidance", within=(0.0, 1.0),
        doc="How far the deviation of guided predictions is brought back to that of the prompt's own."))
    guidance_start: float = row(Field(0.0, group="guidance", within=(0.0, 1.0),
        doc="The share of the steps after which guidance begins."))
    guidance_end: float = row(Field(1.0, group="guidance", within=(0.0, 1.0),
        doc="The share of the steps after which guidance ends; steps without it cost half."))
    dynamic_thresholding_ratio: float | None = row(Field(None, group="guidance", within=(0.0, 1.0),
        doc="The quantile of the denoised latents' absolute values beyond which they are clipped."))
    sample_max_value: float = row(Field(1.0, group="guidance", within=SAMPLE_MAX_VALUES,
        doc="The largest bound at which `dynamic_thresholding_ratio` clips."))

    loras: str = row(Field("", group="adapters", values="`name:0.8; other:0.5:1`", read=canonical.adapters("lora"),
        aliases=("lora",),
        doc="LoRAs by name, each with its weight, or with one for the text encoder and one for the UNet; besides those"
        " that the prompt names."))
    hypernetworks: str = row(Field("", group="adapters", values="`name:0.8; other:1`",
        read=canonical.adapters("hypernetwork"), aliases=("hypernetwork", "hypernet"),
        doc="Hypernetworks by name, each with its weight; besides those that the prompt names."))

    image: str | None = row(Field(None, group="img2img", values="a path", paths=_one_path,
        aliases=("init_image", "init_images", "input_image"), column="input_image",
        doc="The path of an image to begin with."))
    strength: float | None = row(Field(None, unset="0.8, and 1 with a mask", group="img2img", within=(0.0, 1.0),
        needs=("image",), idle=True, aliases=("denoising_strength", "denoise"), label="Denoising strength",
        doc="The share of the steps that is taken (SDEdit): 0 gives the input image back but for what the VAE loses, 1"
        " is text to image, bit for bit. Of `steps` it takes `int(steps * strength)`, as diffusers does."))
    resize_mode: str = row(Field("stretch", group="img2img", choices=RESIZE_MODES,
        spellings={"just_resize": "stretch", "crop_and_resize": "crop", "resize_and_fill": "pad"} |
        {"0": "stretch", "1": "crop", "2": "pad"}, refused={"3": _LATENT_RESIZE},
        needs=("image", "control_image", "depth_image"), idle=True,
        doc="How input images are brought to `width` and `height`: `stretch` as diffusers does, `crop`, or `pad`, "
        "which repeats the border."))

    mask_image: str | None = row(Field(None, group="inpainting", values="a path", paths=_one_path, needs=("image",),
        idle=True, aliases=("mask",),
        doc="The path of a mask: white is drawn, black stays, and greys are shares of both. Of another size than "
        "`image`, it is resized if its proportions are the same."))
    mask_blur: float = row(Field(0.0, group="inpainting", within=(0.0, 256.0), needs=("mask_image",), idle=True,
        label="Mask blur",
        doc="The standard deviation in pixels by which the mask is blurred, at the size of the image that is drawn; "
        "with `only_masked`, at that of the input image."))
    invert_mask: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True, label="Mask mode",
        doc="Draws what is black and keeps what is white."))
    binarize_mask: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True,
        doc="Takes greys from the middle on for white and others for black, as diffusers does."))
    inpaint_fill: str = row(Field("original", group="inpainting", choices=FILLINGS,
        labels={"noise": "latent noise", "blank": "latent nothing"},
        spellings={"1": "original", "2": "noise", "3": "blank"}, refused={"0": _FILL, "fill": _FILL},
        needs=("mask_image",), idle=True, aliases=("inpainting_fill",), label="Masked content",
        doc="What stands under the mask at first: the input image, noise, latents of 0 (`blank`) or the average of the"
        " rest. It has a say below strength 1; at 1 noise covers all."))
    only_masked: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True, label="Inpaint area",
        doc="Draws the part around the mask alone, at `width` x `height` or the model's own size, and puts it back: "
        "the result has the input image's size."))
    only_masked_padding: int = row(Field(32, group="inpainting", within=(0, MAX_SIDE), needs=("only_masked",),
        idle=True, label="Masked area padding",
        doc="Pixels of the input image around the mask that belong to the part which `only_masked` draws."))
    keep_unmasked: bool = row(Field(False, group="inpainting", needs=("mask_image",), idle=True,
        doc="Keeps pixels outside of the mask exactly as they came; `only_masked` does so anyway."))

    depth_image: str | None = row(Field(None, unset="estimated from `image`", group="depth", values="a path",
        paths=_one_path, doc="The path of a depth map, bright is near, for checkpoints that take one."))

    controlnets: str = row(Field("", group="controlnet", values="`canny:0.8; depth:1:0:0.5`",
        read=canonical.controlnets, needs=("control_image", "image"), aliases=("controlnet",), label="ControlNet",
        doc="ControlNets by name, each with its weight and the shares of the steps at which it begins and ends."))
    control_image: str | None = row(Field(None, unset="`image`", group="controlnet", values="paths",
        read=canonical.paths, paths=split, needs=("controlnets",), idle=True, aliases=("control_images",),
        doc="The paths of the images that ControlNets are given, `; ` between them: one for each, or one for all."))
    control_preprocessor: str = row(Field("none", group="controlnet", values="`canny:50:150; tile:4`",
        read=canonical.preprocessors, needs=("controlnets",), idle=True,
        doc="What is made of `control_image` first, with its numbers: one for each ControlNet, or one for all."))
    guess_mode: bool = row(Field(False, group="controlnet", needs=("controlnets",), idle=True,
        doc="Lets ControlNets act on the prompt's side alone, weaker at high resolutions, as in diffusers."))

    hires_scale: float | None = row(Field(None, group="hires", within=(1.0, 8.0), aliases=("hr_scale",),
        label="Hires upscale",
        doc="Enlarges the image so many times and draws it again; sides are rounded down to whole latents."))
    hires_upscaler: str = row(Field("latent", group="hires", values="an upscaler's name",
        read=canonical.upscaler((*LATENT_UPSCALERS, *PIXEL_UPSCALERS)), labels=_UPSCALER_LABELS, needs=("hires_scale",),
        idle=True, aliases=("hr_upscaler",), label="Hires upscaler",
        doc="What enlarges the image for the second pass: one of torch's interpolations of latents ("
        f"{_listed(LATENT_UPSCALERS)}), a filter ({_listed(PIXEL_UPSCALERS)}), or the name of an upscaler's file."))
    hires_steps: int | None = row(Field(None, unset="`steps`", group="hires", within=(1, MAX_STEPS),
        needs=("hires_scale",), idle=True, aliases=("hr_second_pass_steps",), label="Hires steps",
        doc="The steps of the second pass."))
    hires_strength: float = row(Field(0.7, group="hires", within=(0.0, 1.0), needs=("hires_scale",), idle=True,
        aliases=("hires_denoising_strength",), label="Denoising strength",
        doc="The share of its steps that the second pass takes, as `strength` of an input image."))

    upscaler: str | None = row(Field(None, group="upscaling", values="an upscaler's name",
        read=canonical.upscaler(PIXEL_UPSCALERS), labels=_UPSCALER_LABELS, label="Postprocess upscaler",
        doc=f"What enlarges the finished image: a filter ({_listed(PIXEL_UPSCALERS)}), or the name of an upscaler's "
        "file."))
    upscale_by: float | None = row(Field(None, unset="the upscaler's own", group="upscaling", within=(1.0, 8.0),
        needs=("upscaler",), idle=True, label="Postprocess upscale by",
        doc="How many times larger the finished image gets."))
    upscaler_steps: int = row(Field(75, group="upscaling", within=(1, MAX_STEPS), needs=("upscaler",), idle=True,
        doc="The steps of an upscaler that is a diffusion model."))
    upscaler_guidance_scale: float = row(Field(9.0, group="upscaling", within=(0.0, MAX_GUIDANCE), needs=("upscaler",),
        idle=True, doc="The `guidance_scale` of an upscaler that is a diffusion model."))
    upscaler_noise_level: int = row(Field(20, group="upscaling", within=(0, MAX_STEPS), needs=("upscaler",), idle=True,
        doc="The timestep of the noise that Stable Diffusion's x4 upscaler adds to the image first."))

    class_label: int | None = row(Field(None, group="classes", within=_INDEX,
        doc="The class of the image, for UNets that take one besides the prompt."))
    classifier_scale: float = row(Field(0.0, group="classes", within=(-MAX_GUIDANCE, MAX_GUIDANCE),
        needs=("classifier_label",), doc="The scale of guidance by the run's classifier."))
    classifier_label: int | None = row(Field(None, group="classes", within=_INDEX,
        doc="The label towards which the classifier guides, by its number."))

    preview_every: int | None = row(Field(None, group="output", within=(1, MAX_STEPS),
        doc="Keeps the image of every so many steps, as a strip and an animation in the output's folder `steps`."))
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


def given_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some canonical values that are not at their fields' defaults."""
    return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


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
