"""A job to what its program and its batch are for: all that is decided before anything is computed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL

from sdjax import conditions, pictures
from sdjax.adapters import per_image
from sdjax.adapters.embedding import Embedding
from sdjax.adapters.library import Adapters, AdapterSet
from sdjax.classifier import Classifier
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.tableau import Table
from sdjax.images import masks
from sdjax.job import DEPTH_PREPROCESSOR, MAX_SIDE, MAX_STEPS, Job, JobError, image_id, split
from sdjax.job import told as job_told
from sdjax.model import Model
from sdjax.models.vae_tiles import tile_of
from sdjax.picture_library import KnownControl, PictureLibrary
from sdjax.program import Bucket
from sdjax.text.tokenized_prompt import TokenizedPrompt, tokenize_prompt

# Lengths of compiled tables: a job's evaluations are rounded up to the next.
_TABLE_ROWS = (64, 128, 256, 512, 1024, 2048)
# Numbers of compiled previews, likewise.
_FRAMES = (0, 8, 16, 32, 64)
# Weights of a prompt's parts that add up to less have no mean.
_LEAST_SUM = 1e-3
# Stands for the path of the picture with which a second pass begins: no file has this name.
_OWN_IMAGE = "\0"
# How LoRAs act: merged into the weights, for a batch that has the same; or for each image of a batch beside them, where
# all are of plain low rank.
LORA_MODES = ("merged", "batched")


class Setup(NamedTuple):
    """What jobs are done with.

    lora_mode: one of `LORA_MODES`.
    vae_tile: see `tile_of`.
    pictures: what they are read and seen with.
    fingerprint: what besides job and model decides the bits of an image.
    """

    model: Model
    classifier: Classifier | None
    adapters: Adapters
    lora_mode: str
    vae_tile: int
    pictures: PictureLibrary
    fingerprint: Mapping[str, Any]


class Together(NamedTuple):
    """What the jobs of a batch have in common besides their program.

    guided: the evaluations that are guided, from one to before another; None if all or none are.
    resized_from: (height, width) of latents of which the device takes noise to their own size; None if of none.
    loras: digest, and weights in the UNet and the text encoder, of those that are merged into the network's weights.
    hypernetworks: digests.
    begins_with_picture: whether the first latents are made of a picture.
    masked: whether a part of it is drawn anew.
    controls: digests of ControlNets.
    second: the program of a second pass, and what the batch has in common there.
    enlarged_by: what enlarges the image for it.
    upscaled: the digest of what makes the finished latents larger.
    """

    guided: tuple[int, int] | None
    resized_from: tuple[int, int] | None
    loras: tuple[tuple[str, float, float], ...]
    hypernetworks: tuple[str, ...]
    begins_with_picture: bool
    masked: bool
    controls: tuple[str, ...]
    second: "tuple[Bucket, Together] | None"
    enlarged_by: str | None
    upscaled: str | None


class Task(NamedTuple):
    """A job that can be done, worked out.

    job: with all defaults filled in.
    id: of the image.
    together: only jobs of the same share a batch.
    prompts: what of its prompts is used.
    adapters: that are applied.
    low_rank: the LoRAs among them, if they are not merged into the weights.
    shown: its pictures.
    controls: the ControlNets that act.
    second: a second pass over its image.
    read: its prompts as they were read.
    """

    job: Job
    id: str
    bucket: Bucket
    together: Together
    prompts: conditions.Used
    table: Table
    adapters: AdapterSet
    low_rank: tuple[per_image.Weighted, ...]
    shown: pictures.Shown
    controls: tuple[KnownControl, ...]
    second: "Task | None"
    read: TokenizedPrompt
    metadata: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, before an upscaler makes it larger."""
        whole = self.shown.whole
        return (self.bucket.height, self.bucket.width) if whole is None else (whole.shape[0], whole.shape[1])

    @property
    def kept_steps(self) -> range:
        """The steps whose pictures are kept; if none are asked for, the first."""
        return range(0, int(self.table.step[-1]) + 1, self.job.preview_every or MAX_STEPS)


def prepare(setup: Setup, job: Job, notes: Mapping[str, Any]) -> Task:
    """Works out what a job takes.

    Args:
      setup: with which it is done.
      job: with a seed.
      notes: more to be told in the metadata, of where the job comes from; without a say in the id.

    Raises:
      JobError: if the model can't do it, or the prompt can't be read and is to be rejected then, or a picture can't be
        used.
      AdapterError: if an adapter that it names is not there, can't be read, or is for another model.
    """
    model = setup.model
    opened = pictures.open_pictures(job, setup.pictures.read)
    job = model.resolve(pictures.with_size(job, opened, model.vae.config.factor))
    _check_label(job, model)
    _check_pictures(job, model)
    # A picture that has no say is not in the job any more.
    named = {name: found for name, found in opened.digests.items() if getattr(job, name)}
    told_of = tuple(note for note in opened.notes if note.partition(":")[0] in named)
    opened = opened._replace(image=opened.image if job.image else None, digests=named, notes=told_of)
    task = _task(setup, job, opened)
    again = second_pass(job, model)
    if again is not None:
        second = _task(setup, again, opened, steps_before=task.table.steps)
        # Latents are enlarged as they are; a picture is encoded again.
        encodes = job.hires_upscaler not in LATENT_UPSCALERS
        second = second._replace(together=second.together._replace(begins_with_picture=encodes))
        together = task.together._replace(second=(second.bucket, second.together), enlarged_by=job.hires_upscaler)
        task = task._replace(second=second, together=together)
    setup.pictures.upscalers.check(job, *(task.second or task).size)
    told = _told(setup, task, opened)
    identity = image_id(pictures.by_content(job, named), model.digest, told.decided)
    metadata = {"id": identity, **told.metadata, "pictures": pictures.told(named, opened.notes), **notes}
    return task._replace(id=identity, metadata=metadata)


def second_pass(job: Job, model: Model) -> Job | None:
    """What is done to a job's image to draw it again larger; None if nothing is.

    Raises:
      JobError: if it can't be.
    """
    if job.hires_scale is None:
        return None
    if job.mask_image is not None:
        raise JobError(f"hires_scale = {job.hires_scale}: not with a mask_image, which says what is drawn anew")
    factor = model.vae.config.factor
    assert job.height is not None and job.width is not None, "the job is not resolved"
    height, width = (int(side * job.hires_scale) // factor * factor for side in (job.height, job.width))
    if max(height, width) > MAX_SIDE:
        raise JobError(f"hires_scale = {job.hires_scale}: gives {width}x{height} pixels; expected up to {MAX_SIDE}")
    return dataclasses.replace(
        job,
        height=height,
        width=width,
        steps=job.hires_steps or job.steps,
        image=_OWN_IMAGE,
        strength=job.hires_strength,
        hires_scale=None,
        hires_upscaler=Job.hires_upscaler,
        hires_steps=None,
        hires_strength=Job.hires_strength,
    )


class _Told(NamedTuple):
    """What is said of a task: what decides its bits besides job and model, and its metadata."""

    decided: Mapping[str, Any]
    metadata: Mapping[str, Any]


def _task(setup: Setup, job: Job, opened: pictures.Opened, steps_before: int | None = None) -> Task:
    """A job, or one pass of it after one of `steps_before`, worked out; without what is told of it."""
    model = setup.model
    shown = pictures.show(job, opened, model.vae.config.factor, setup.pictures.estimate, model.takes_depth)
    assert job.height is not None and job.width is not None
    if model.extra_channels > 1 and shown.latent_mask is not None and not (shown.latent_mask >= masks.HALF).any():
        kind = "black" if job.invert_mask else "white"
        raise JobError(
            f"mask_image: {job.mask_image}: nothing of it is half {kind} or more, as this checkpoint sees masks"
        )
    table = model.table(job)
    steps = int(table.step[-1]) + 1
    read = _read(setup, job, steps, steps_before)
    if read.problems and job.prompt_problems == "reject":
        raise JobError(
            f"{'; '.join(read.problems)}. Set prompt_problems = accept to have it read all the same, or "
            "prompt_syntax = plain to take every sign as text"
        )
    prompts, guided = _branches(job, read, table)
    controls = setup.pictures.controls(job.controls)
    for control in job.controls:
        acts = job.image == _OWN_IMAGE or any(control.acts_in(step, steps) for step in range(steps))
        if table.steps and not acts:
            raise JobError(f"controlnets = {job.controlnets!r}: {control.name} acts in none of {steps} steps")
    adapters = setup.adapters.find((*job.adapters, *read.tags), prompts.embeddings)
    low_rank = setup.adapters.low_rank(adapters.loras) if setup.lora_mode == "batched" else None
    bucket = Bucket(
        height=job.height,
        width=job.width,
        prompts=prompts.shape,
        interval=guided is not None,
        host_noise=_host_noise_places(job, table),
        rows=_rows(table),
        frames=_frames(job, steps),
        classifier=job.classifier_scale != 0,
        hypernetworks=tuple(each.adapter.structure for each in adapters.hypernetworks),
        low_rank=per_image.shape_of(low_rank) if low_rank else None,
        masked=shown.mask is not None and model.extra_channels <= 1,
        controls=tuple(control.config for control in controls),
    )
    together = Together(
        guided=guided,
        resized_from=resized_from(job, model) if job.noise_source == "threefry" else None,
        loras=()
        if low_rank
        else tuple((each.adapter.digest, each.weight, each.text_encoder_weight) for each in adapters.loras),
        hypernetworks=tuple(each.adapter.digest for each in adapters.hypernetworks),
        begins_with_picture=shown.image is not None and (job.strength != 1 or bucket.masked),
        masked=shown.mask is not None,
        controls=tuple(control.digest for control in controls),
        second=None,
        enlarged_by=None,
        upscaled=setup.pictures.upscalers.of_latents(job),
    )
    return Task(job, "", bucket, together, prompts, table, adapters, low_rank or (), shown, controls, None, read, {})


def _told(setup: Setup, task: Task, opened: pictures.Opened) -> _Told:
    model, job, read, adapters = setup.model, task.job, task.read, task.adapters
    fingerprint = dict(setup.fingerprint)
    if adapters.loras:
        fingerprint["lora_mode"] = "batched" if task.low_rank else "merged"
    if task.bucket.classifier:
        fingerprint["classifier_digest"] = _checked_classifier(setup.classifier, job).digest
    last = task.second or task
    sizes = [(last.bucket.height, last.bucket.width), setup.pictures.upscalers.decoded_size(job, *last.size)]
    if tile := max(tile_of(*size, setup.vae_tile) for size in sizes):
        fingerprint["vae_tile"] = tile
    fingerprint |= _digests_of_pictures(setup, task)
    if opened.digests or job.upscaler or (job.hires_scale and job.hires_upscaler not in LATENT_UPSCALERS):
        fingerprint["pillow"] = PIL.__version__  # it decodes and resizes
    decided = {**fingerprint, "adapters": adapters.identity()} if any(adapters) else fingerprint
    metadata = {
        **job_told(job),
        "model": model.name,
        "model_kind": model.variant_name,
        "model_digest": model.digest,
        "model_file_digest": model.file_digest or "",
        "model_revision": model.revision or "",
        "vae_revision": model.vae_revision or "",
        "vae_dtype": model.vae_dtype,
        **fingerprint,
        "adapters_applied": adapters.to_metadata(),
        "steps_taken": task.table.steps,
        "evaluations": sum(each.table.evaluations for each in (task, task.second) if each and each.table.steps),
        "prompt_tokens": read.tokens,
        "prompt_chunks": read.chunks,
        "prompt_cut": read.cut,
        "negative_prompt_tokens": read.negative_tokens,
        "negative_prompt_chunks": read.negative_chunks,
        "negative_prompt_cut": read.negative_cut,
        "problems_found": "; ".join(read.problems),
    }
    return _Told(decided, metadata)


def _digests_of_pictures(setup: Setup, task: Task) -> dict[str, str]:
    """Of the files with which its pictures are seen and made."""
    job, library = task.job, setup.pictures
    found: dict[str, str] = {}
    if task.controls:
        found["control_digests"] = "; ".join(control.digest for control in task.controls)
    own_depth = setup.model.takes_depth and job.depth_image is None and job.image is not None
    if (own_depth or DEPTH_PREPROCESSOR in split(job.control_preprocessor)) and library.depth is not None:
        found["depth_digest"] = library.depth.digest
    return found | library.upscalers.digests(job)


def _read(setup: Setup, job: Job, steps: int, steps_before: int | None) -> TokenizedPrompt:
    """The prompts, with the words of embeddings, also of those that come with the LoRAs named there."""

    def read(bundled: Mapping[str, Embedding]) -> TokenizedPrompt:
        return tokenize_prompt(
            setup.model.tokenizer,
            job.prompt,
            job.negative_prompt,
            syntax=job.prompt_syntax,
            emphasis=job.emphasis,
            steps=steps,
            steps_before=steps_before,
            followed=job.hires_scale is not None,
            embeddings=setup.adapters.vectors(bundled),
        )

    first = read({})
    bundled = setup.adapters.bundled((*job.adapters, *first.tags))
    return read(bundled) if bundled else first


def _check_pictures(job: Job, model: Model) -> None:
    if job.depth_image is not None and not model.takes_depth:
        raise JobError(f"depth_image = {job.depth_image!r}: this model sees no depth map")


def _check_label(job: Job, model: Model) -> None:
    config = model.unet.config
    if config.has_class_embedding != (job.class_label is not None):
        wanted = "one, which its UNet is told besides the prompt" if config.has_class_embedding else "none"
        raise JobError(f"class_label = {job.class_label}: this model wants {wanted}")
    if job.class_label is not None and config.num_class_embeds and job.class_label >= config.num_class_embeds:
        raise JobError(f"class_label = {job.class_label}: expected a number from 0 to {config.num_class_embeds - 1}")


def _branches(job: Job, read: TokenizedPrompt, table: Table) -> tuple[conditions.Used, tuple[int, int] | None]:
    """What the network is asked: of the prompt's parts and the negative prompt those that count."""
    parts = len(read.part_weights)
    steps = int(table.step[-1]) + 1
    # Rounded down, but for what decimals lose: 0.29 of 100 is 29.
    begin, end = (math.floor(round(share * steps, 9)) for share in (job.guidance_start, job.guidance_end))
    whole = begin == 0 and end == steps
    if not table.steps:
        whole = True
    elif begin >= end:
        raise JobError(
            f"guidance_start = {job.guidance_start}, guidance_end = {job.guidance_end}: of {steps} steps none is "
            "within; guidance_scale = 1 is without guidance"
        )
    if whole and job.guidance_scale == 0:
        return conditions.used(read, (parts,), guided=False), None
    if read.part_weights == (1.0,) and job.guidance_scale == 1:
        return conditions.used(read, (0,), guided=False), None
    if not whole and abs(sum(read.part_weights)) < _LEAST_SUM:
        raise JobError(
            "the weights of the prompt's parts add up to about 0: such a prompt needs guidance in every step"
        )
    guided = None
    if not whole:
        within = np.flatnonzero((table.step >= begin) & (table.step < end))
        guided = (int(within[0]), int(within[-1]) + 1)
    return conditions.used(read, tuple(range(parts + 1)), guided=True), guided


def _checked_classifier(classifier: Classifier | None, job: Job) -> Classifier:
    if classifier is None:
        raise JobError(
            f"classifier_scale = {job.classifier_scale}: there is no classifier; set classifier = emoji, or a "
            "folder, for the run, or give the engine one"
        )
    count = len(classifier.labels)
    if job.classifier_label is None or job.classifier_label >= count:
        raise JobError(f"classifier_label = {job.classifier_label}: expected a number from 0 to {count - 1}")
    return classifier


def _rows(table: Table) -> int:
    return next(rows for rows in _TABLE_ROWS if rows >= table.evaluations)


def _frames(job: Job, steps: int) -> int:
    frames = len(range(0, steps, job.preview_every)) if job.preview_every else 0
    if frames > _FRAMES[-1]:
        least = -(-steps // _FRAMES[-1])
        raise JobError(
            f"preview_every = {job.preview_every}: of {steps} steps {frames} would be kept; expected {least} or "
            f"more, which keeps up to {_FRAMES[-1]}"
        )
    return next(count for count in _FRAMES if count >= frames)


def _host_noise_places(job: Job, table: Table) -> int | None:
    if job.noise_source == "threefry":
        return None
    return _rows(table) + 1 if table.draws.any() else 0


def resized_from(job: Job, model: Model) -> tuple[int, int] | None:
    """(height, width) of the latents from which a job's noise is taken to its own size; None if from none."""
    if job.seed_resize_from_width is None or job.seed_resize_from_height is None:
        return None
    factor = model.vae.config.factor
    size = job.seed_resize_from_height // factor, job.seed_resize_from_width // factor
    return None if (job.seed_resize_from_height, job.seed_resize_from_width) == (job.height, job.width) else size
