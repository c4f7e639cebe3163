"""The passes that make a job's image larger, and whether its upscalers can do what it asks."""

from collections.abc import Sequence

from sdjax.adapters.adapter_set import AdapterSet
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.engine.passes import Bucket, Decode, Pass, Sample, SampleKey, Start, UpscaleImages
from sdjax.engine.sample_plan import branches_of, host_noise_places, rounded_evaluations
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.input_images import InputImages
from sdjax.jobs.job import MAX_SIDE, Job, JobError, check_upscaler_options
from sdjax.library.upscalers import UpscalerFile
from sdjax.model import Model
from sdjax.text import tags
from sdjax.text.tokenize_prompt import tokenize_prompt
from sdjax.upscaling.upscalers import Upscalers

# Of what a network gives on the way to a smaller image.
_MAX_PIXELS = 2 * MAX_SIDE**2

Size = tuple[int, int]


def fits(scale: int, height: int, width: int) -> bool:
    """Whether there is room for what a network gives, before it is resized."""
    return height * width * scale**2 <= _MAX_PIXELS


def check_hires(upscalers: Upscalers, job: Job) -> None:
    """Finds out whether what enlarges a resolved job's image for its second pass can do so.

    Raises:
      JobError: if not.
    """
    if job.hires_upscaler in LATENT_UPSCALERS:
        return
    upscaler = upscalers.named(job.hires_upscaler, "hires_upscaler")
    if upscaler is not None and upscaler.kind == "diffusion":
        raise JobError(f"hires_upscaler = {job.hires_upscaler!r} is a diffusion model; name it as upscaler")
    assert job.height is not None and job.width is not None, "the job is not resolved"
    _check_room(upscaler, f"hires_upscaler = {job.hires_upscaler!r}", (job.height, job.width))


def final_passes(upscalers: Upscalers, job: Job, model: Model, size: Size) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The passes of a job's `upscaler`: those before the image is decoded, and those after.

    Args:
      upscalers: that jobs may name.
      job: resolved.
      model: that draws the image.
      size: height and width of the image before.

    Raises:
      JobError: if the upscaler can't do it, or the image would be too large.
    """
    if job.upscaler is None:
        return (), ()
    file = upscalers.named(job.upscaler)
    factor = float(file.scale) if file else 1.0
    if file is None or file.kind == "network":
        check_upscaler_options(job)
        _check_room(file, f"upscaler = {job.upscaler!r}", size)
    elif max(size) * factor > MAX_SIDE:
        raise JobError(
            f"{job.upscaler}: {size[1]}x{size[0]} pixels are too large for it, which gives more than {MAX_SIDE}"
        )
    height, width = (round(side * (job.upscale_by or factor)) for side in size)
    if max(height, width) > MAX_SIDE:
        raise JobError(f"{job.upscaler}: gives {width}x{height} pixels; expected up to {MAX_SIDE}")
    if file is None or file.kind == "network":
        return (), (UpscaleImages(_resampling(job.upscaler), file, height, width),)
    upscaler = upscalers.model(file)
    larger = (size[0] * file.scale, size[1] * file.scale)
    resized = () if larger == (height, width) else (UpscaleImages(_resampling(job.upscaler), None, height, width),)
    if upscaler.family.conditioned_on == "latents":
        _check_latents(upscaler, job, model, size)
        # Its own VAE may have another factor; it is not used.
        own, factor = upscaler.vae.config.factor, model.vae.config.factor
        sampled = larger[0] // factor * own, larger[1] // factor * own
        return (diffusion_sample(upscaler, job, sampled, "on latents")._replace(weights=file),), resized
    sample = diffusion_sample(upscaler, job, larger, "on image")._replace(weights=file)
    return (), (sample, Decode(upscaler, file), *resized)


def _resampling(upscaler: str) -> str:
    """The filter by which images are resized: what the job says, or that of networks."""
    return upscaler if upscaler in PIXEL_UPSCALERS else PIXEL_UPSCALERS[0]


def hires_images(upscalers: Upscalers, job: Job, size: Size) -> UpscaleImages:
    """The pass by which images are enlarged for their second pass to `size`."""
    file = upscalers.named(job.hires_upscaler, "hires_upscaler")
    return UpscaleImages(_resampling(job.hires_upscaler), file, *size)


def decoded_sizes(passes: Sequence[Pass], model: Model) -> list[Size]:
    """The sizes at which upscalers' latents are decoded: those of the x2 upscaler by the VAE of `model`."""
    sizes = []
    for each in passes:
        if isinstance(each, Sample) and each.model is not model:
            height, width, own = each.bucket.height, each.bucket.width, each.model.vae.config.factor
            factor = model.vae.config.factor if each.start == "on latents" else own
            sizes.append((height // own * factor, width // own * factor))
    return sizes


def diffusion_sample(upscaler: Model, job: Job, size: Size, start: Start) -> Sample:
    """The sampling of a diffusion model that upscales to `size`.

    Raises:
      JobError: for steps or a noise level beyond the upscaler's, or a prompt that has problems or does not fit.
    """
    own = _upscalers_job(upscaler, job, size)
    table = upscaler.table(own)
    plain = upscaler.family.conditioned_on == "latents"
    _check_prompts(upscaler, own, plain)
    read = tokenize_prompt(
        upscaler.tokenizer,
        own.prompt,
        own.negative_prompt,
        syntax="plain" if plain else own.prompt_syntax,
        emphasis=own.emphasis,
        steps=int(table.step[-1]) + 1,
    )
    unguided = own.guidance_scale == 1
    problems = [
        *(read.problems if own.prompt_problems == "reject" else ()),
        *(f"{cut!r} does not fit" for cut in (read.cut, not unguided and read.negative_cut) if cut),
    ]
    if unguided and read.part_weights != (1.0,):
        problems.append("it has weighted parts, which need guidance")
    if problems:
        raise JobError(f"the prompt {own.prompt!r} of an image to be upscaled: {'; '.join(problems)}")
    prompts, _ = branches_of(own, read, table)
    bucket = Bucket(
        height=size[0],
        width=size[1],
        prompts=prompts.shape,
        interval=False,
        host_noise=host_noise_places(own, table),
        evaluations=rounded_evaluations(table),
        previews=0,
        classifier=False,
        hypernetworks=(),
        low_rank=None,
        masked=False,
        controls=(),
    )
    key = SampleKey(upscaler.digest, start, None, None, (), (), False, ())
    return Sample(upscaler, own, start, bucket, key, prompts, table, AdapterSet(), (), InputImages(), (), read)


def _upscalers_job(upscaler: Model, job: Job, size: Size) -> Job:
    """What a job asks of its upscaler, as a job of that model; its class label is the noise level.

    Raises:
      JobError: for a noise level that there is not, or a number of steps.
    """
    level = None
    if upscaler.family.conditioned_on == "image":
        level = job.upscaler_noise_level
        if not 0 <= level <= upscaler.max_noise_level:
            raise JobError(f"noise_level = {level}: expected a number from 0 to {upscaler.max_noise_level}")
    prompt, negative = _prompts(job)
    # At a scale of 0 the x2 upscaler is asked for no prompt either, as in diffusers; up to 1 there is no guidance.
    if level is None and not job.upscaler_guidance_scale:
        prompt = ""
    asked = Job(
        prompt=prompt,
        negative_prompt=negative,
        prompt_syntax=job.prompt_syntax,
        prompt_problems=job.prompt_problems,
        seed=job.seed,
        noise_source=job.noise_source,
        steps=job.upscaler_steps,
        guidance_scale=max(1.0, job.upscaler_guidance_scale),
        height=size[0],
        width=size[1],
        class_label=level,
    )
    try:
        return upscaler.resolve(asked)
    except JobError as error:
        raise JobError(f"upscaling: {error}") from error


def _prompts(job: Job) -> tuple[str, str]:
    """Prompt and negative prompt for an upscaler, on which no adapter acts."""
    if job.prompt_syntax != "a1111":
        return job.prompt, job.negative_prompt
    return tags.cut(job.prompt).text, tags.cut(job.negative_prompt).text


def _check_prompts(upscaler: Model, job: Job, plain: bool) -> None:
    """The x2 upscaler reads as much as fits into its text encoder at once."""
    if not plain:
        return
    for prompt in (job.prompt, job.negative_prompt) if job.guidance_scale > 1 else (job.prompt,):
        tokens = upscaler.tokenizer(prompt)
        if tokens.cut:
            raise JobError(f"the prompt {prompt!r} of latents to be upscaled: {tokens.cut!r} does not fit")


def _check_latents(upscaler: Model, job: Job, model: Model, size: Size) -> None:
    """Finds out whether the x2 upscaler takes the latents of a job."""
    vae, factor = model.vae.config, upscaler.unet.config.factor
    height, width = size[0] // vae.factor, size[1] // vae.factor
    if 2 * height % factor or 2 * width % factor:
        raise JobError(f"latents of {height}x{width}: expected sides that are multiples of {factor // 2}")
    if vae.latent_channels != upscaler.vae.config.latent_channels:
        channels = upscaler.vae.config.latent_channels
        raise JobError(f"latents of {vae.latent_channels} channels: the upscaler's have {channels}")
    for field in ("mask_image", "preview_every"):
        if getattr(job, field) is not None:
            said = f"{field} = {getattr(job, field)!r}"
            raise JobError(f"{said}: not with {job.upscaler}, which makes latents larger")


def _check_room(network: UpscalerFile | None, named: str, size: Size) -> None:
    if network is not None and not fits(network.scale, *size):
        height, width = size
        raise JobError(f"{named}: {width}x{height} pixels are too large for it, which enlarges {network.scale} times")
