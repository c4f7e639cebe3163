"""A job to the passes that make its image: all that is decided before anything is computed, without devices."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sdjax import extensions
from sdjax.adapters import per_image
from sdjax.adapters.embedding import Embedding
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.engine import upscaling_passes
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.engine.passes import (
    Bucket,
    Decode,
    Pass,
    Paste,
    ResizeLatents,
    Sample,
    SampleKey,
    Start,
    Task,
    noise_resized_from,
)
from sdjax.engine.sample_plan import accelerations_of, branches_of, gate_of, host_noise_places, rounded_evaluations
from sdjax.extensions import Extension
from sdjax.families.registry import extension_of
from sdjax.images import masks
from sdjax.jobs import input_images
from sdjax.jobs.canonical import DEPTH_PREPROCESSOR, split
from sdjax.jobs.image_id import image_id
from sdjax.jobs.job import MAX_SIDE, Job, JobError
from sdjax.jobs.records import to_metadata
from sdjax.library.classifier import ClassifierLabels
from sdjax.library.depth import check_size
from sdjax.library.library import Library
from sdjax.library.opened import OpenLibrary
from sdjax.library.store import Store
from sdjax.model import DTYPES, Model
from sdjax.models.vae_tiles import tile_of
from sdjax.text.tokenize_prompt import SYNTAXES, TokenizedPrompt, tokenize_prompt
from sdjax.upscaling.upscalers import Upscalers

# Numbers of previews that are compiled: those of a job are rounded up to the next.
_PREVIEWS = (0, 8, 16, 32, 64)
# Stands for the path of the image with which a second pass begins: no file has this name.
_OWN_IMAGE = "\0"
# How LoRAs act: merged into the weights, for a batch that has the same; or for each image of a batch beside them, where
# all are of plain low rank.
LORA_MODES = ("merged", "batched")


class Planner(NamedTuple):
    """What jobs are planned with; the same plans in any process.

    model: with the digest of its weights, which need not be loaded.
    fingerprint: what besides job and model decides the bits of an image, from `sdjax.engine.fingerprint`.
    pillow: the version of that package; part of the id of jobs that read image files.
    classifier: for jobs with a `classifier_scale`.
    library: the files that jobs and prompts may name.
    upscalers: those of the library.
    read_image: gives the bytes of an input image by its path.
    lora_mode: one of `LORA_MODES`.
    vae_tile: see `tile_of`.
    """

    model: Model
    fingerprint: Mapping[str, Any]
    pillow: str
    classifier: ClassifierLabels | None
    library: OpenLibrary
    upscalers: Upscalers
    read_image: input_images.Read
    lora_mode: str
    vae_tile: int

    def plan(self, job: Job, notes: Mapping[str, Any] | None = None) -> Task:
        """Resolves a job into its passes, id and metadata.

        Args:
          job: with a seed.
          notes: more for the metadata, of where the job comes from; not part of the id.

        Raises:
          JobError: if the model can't do it, or the prompt can't be read and is to be rejected then, or an input image
            can't be used.
          AdapterError: if an adapter that it names is not there, can't be read, or is for another model.
        """
        model = self.model
        files = input_images.open_inputs(job, self.read_image)
        job = model.resolve(input_images.with_size(job, files, model.vae.config.factor))
        _check_label(job, model)
        _check_depth_image(job, model)
        # `resolve` has dropped input images that affect nothing.
        digests = {name: found for name, found in files.digests.items() if getattr(job, name)}
        notes_of_files = tuple(note for note in files.notes if note.partition(":")[0] in digests)
        files = files._replace(image=files.image if job.image else None, digests=digests, notes=notes_of_files)
        passes = self._passes(job, files)
        decided, metadata = self._described(job, passes, files)
        identity = image_id(input_images.by_content(job, digests), model.digest, decided)
        images = input_images.to_metadata(digests, files.notes)
        return Task(job, identity, passes, {"id": identity, **metadata, "pictures": images, **(notes or {})})

    def _passes(self, job: Job, files: input_images.InputFiles) -> tuple[Pass, ...]:
        first = self._sample(job, files)
        passes: list[Pass] = [first]
        last = first
        second = hires_job(job, self.model)
        if second is not None:
            upscaling_passes.check_hires(self.upscalers, job)
            assert second.height is not None and second.width is not None
            steps = first.table.steps
            if job.hires_upscaler in LATENT_UPSCALERS:
                factor = self.model.vae.config.factor
                last = self._sample(second, files, "latents", steps)
                size = second.height // factor, second.width // factor
                passes += [ResizeLatents(job.hires_upscaler, *size), last]
            else:
                size = second.height, second.width
                last = self._sample(second, files, "image", steps)
                passes += [Decode(self.model), upscaling_passes.hires_images(self.upscalers, job, size), last]
        whole = last.images.whole
        size = (last.bucket.height, last.bucket.width) if whole is None else (whole.shape[0], whole.shape[1])
        before, after = upscaling_passes.final_passes(self.upscalers, job, self.model, size)
        passes += [*before, Decode(self.model)]
        if whole is not None:
            passes.append(Paste(last.images))
        return (*passes, *after)

    def _sample(
        self, job: Job, files: input_images.InputFiles, start: Start | None = None, steps_before: int | None = None
    ) -> Sample:
        """A job, or one pass of it after one of `steps_before`, worked out."""
        model = self.model
        images = input_images.fit_inputs(job, files, model.vae.config.factor, model.takes_depth)
        self._check_depth(images)
        assert job.height is not None and job.width is not None
        if model.takes_mask and images.latent_mask is not None and not (images.latent_mask >= masks.HALF).any():
            kind = "black" if job.invert_mask else "white"
            raise JobError(f"mask_image: {job.mask_image}: no pixel is at least half {kind} at the size of the latents")
        table = model.table(job)
        steps = int(table.step[-1]) + 1
        read = self._read(job, steps, steps_before)
        prompts, guided = branches_of(job, read, table)
        controls = self.library.controlnets(job.controls)
        for control in job.controls:
            acts = job.image == _OWN_IMAGE or any(control.acts_in(step, steps) for step in range(steps))
            if table.steps and not acts:
                raise JobError(f"controlnets = {job.controlnets!r}: {control.name} acts in none of {steps} steps")
        adapters = self.library.adapters((*job.adapters, *read.tags), prompts.embeddings)
        low_rank = self.library.low_rank(adapters.loras) if self.lora_mode == "batched" else None
        if job.classifier_scale != 0:
            _checked_classifier(self.classifier, job)
        masked = images.mask is not None
        gate = gate_of(job, table, guided, prompts.shape.guided, job.image == _OWN_IMAGE)
        bucket = Bucket(
            height=job.height,
            width=job.width,
            prompts=prompts.shape,
            interval=guided is not None,
            host_noise=host_noise_places(job, table),
            evaluations=rounded_evaluations(table),
            previews=_previews(job, steps),
            classifier=job.classifier_scale != 0,
            hypernetworks=tuple(each.adapter.structure for each in adapters.hypernetworks),
            low_rank=per_image.shape_of(low_rank) if low_rank else None,
            masked=masked and not model.takes_mask,
            controls=tuple(control.config for control in controls),
            accelerations=accelerations_of(job, model)._replace(gated=gate is not None),
        )
        if start is None:
            encodes = images.image is not None and (job.strength != 1 or bucket.masked)
            start = "input image" if encodes else "noise"
        resizes = job.noise_source == "threefry"
        key = SampleKey(
            model=model.digest,
            start=start,
            guided=guided,
            resized_from=noise_resized_from(job, model.vae.config.factor) if resizes else None,
            loras=()
            if low_rank
            else tuple((each.adapter.digest, each.weight, each.text_weight) for each in adapters.loras),
            hypernetworks=tuple(each.adapter.digest for each in adapters.hypernetworks),
            masked=masked,
            controls=tuple(control.digest for control in controls),
            deep_cache_interval=job.deep_cache_interval,
            gate=gate,
        )
        return Sample(model, job, start, bucket, key, prompts, table, adapters, low_rank or (), images, controls, read)

    def _check_depth(self, images: input_images.InputImages) -> None:
        """Finds out whether the depth of input images can be estimated where it is to be."""
        asked = [pixels for pixels, by_depth in zip(images.controls, images.controls_by_depth, strict=True) if by_depth]
        for pixels in asked if images.depth_from is None else [images.depth_from, *asked]:
            estimator = self.library.depth_model()
            if estimator is None:
                raise JobError("depth is to be estimated: set library.depth_model, or give a depth_image")
            try:
                check_size(estimator.processor, *pixels.shape[:2])
            except ValueError as error:
                raise JobError(str(error)) from error

    def _read(self, job: Job, steps: int, steps_before: int | None) -> TokenizedPrompt:
        """The prompts, with the words of embeddings, also of those that come with the LoRAs named there."""

        def read(bundled: Mapping[str, Embedding]) -> TokenizedPrompt:
            return tokenize_prompt(
                self.model.tokenizer,
                job.prompt,
                job.negative_prompt,
                syntax=job.prompt_syntax,
                emphasis=job.emphasis,
                steps=steps,
                steps_before=steps_before,
                followed=job.hires_scale is not None,
                embeddings=self.library.vector_counts(bundled),
            )

        found = read({})
        bundled = self.library.bundled_embeddings((*job.adapters, *found.tags))
        found = read(bundled) if bundled else found
        if found.problems and job.prompt_problems == "reject":
            raise JobError(
                f"{'; '.join(found.problems)}. Set prompt_problems = accept to use it anyway, or "
                "prompt_syntax = plain to treat every character literally"
            )
        return found

    def _described(
        self, job: Job, passes: tuple[Pass, ...], files: input_images.InputFiles
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What decides the bits besides job and model; and the metadata."""
        model = self.model
        samples = [each for each in passes if isinstance(each, Sample) and each.model is model]
        first = samples[0]
        fingerprint = dict(self.fingerprint)
        if first.adapters.loras:
            fingerprint["lora_mode"] = "batched" if first.low_rank else "merged"
        if first.bucket.classifier:
            fingerprint["classifier_digest"] = _checked_classifier(self.classifier, job).digest
        if added := [str(each) for each in _extensions(job, passes)]:
            fingerprint["extensions"] = "; ".join(added)
        last = samples[-1].bucket
        sizes = [(last.height, last.width), *upscaling_passes.decoded_sizes(passes, model)]
        if tile := max(tile_of(*size, self.vae_tile) for size in sizes):
            fingerprint["vae_tile"] = tile
        fingerprint |= self._digests(job, first)
        if files.digests or job.upscaler or (job.hires_scale and job.hires_upscaler not in LATENT_UPSCALERS):
            fingerprint["pillow"] = self.pillow  # it decodes and resizes
        adapters, read = first.adapters, first.read
        decided = {**fingerprint, "adapters": adapters.identity()} if any(adapters) else fingerprint
        return decided, {
            **to_metadata(job),
            "model": model.name,
            "model_kind": model.variant_name,
            "model_digest": model.digest,
            "model_file_digest": model.file_digest or "",
            "model_revision": model.revision or "",
            "vae_revision": model.vae_revision or "",
            "vae_dtype": model.vae_dtype,
            **fingerprint,
            "adapters_applied": adapters.to_metadata(),
            "steps_taken": first.table.steps,
            "evaluations": sum(each.table.evaluations for each in samples if each.table.steps),
            "prompt_tokens": read.tokens,
            "prompt_chunks": read.chunks,
            "prompt_cut": read.cut,
            "negative_prompt_tokens": read.negative_tokens,
            "negative_prompt_chunks": read.negative_chunks,
            "negative_prompt_cut": read.negative_cut,
            "problems_found": "; ".join(read.problems),
        }

    def _digests(self, job: Job, first: Sample) -> dict[str, str]:
        """Of the files with which input images are prepared, and the image is steered and upscaled."""
        found: dict[str, str] = {}
        if first.controls:
            found["control_digests"] = "; ".join(control.digest for control in first.controls)
        own_depth = self.model.takes_depth and job.depth_image is None and job.image is not None
        if own_depth or DEPTH_PREPROCESSOR in split(job.control_preprocessor):
            estimator = self.library.depth_model()
            found |= {"depth_digest": estimator.digest} if estimator else {}
        return found | self.upscalers.digests(job)


def open_library(library: Library | None, model: Model, store: Store | None = None) -> OpenLibrary:
    """The files that jobs for a model can name, listed and checked.

    Args:
      library: None has none.
      model: weights are not needed.
      store: with what has been read already for the same model, from `new_store`.

    Raises:
      CheckpointError, ConfigError: if a folder is not there, or the estimator of depth or the classifier can't be used.
    """
    opened = OpenLibrary(library or Library(), model.family, model.configs, DTYPES[model.dtype], store)
    opened.check()
    return opened


def planner_for(
    model: Model,
    identity: EngineIdentity,
    library: OpenLibrary,
    *,
    labels: tuple[str, ...] | None,
    read_image: input_images.Read,
    lora_mode: str,
    vae_tile: int,
) -> Planner:
    """The planner of an engine, in the process of that engine or in another one.

    Args:
      model: that of the engine; weights are not needed, its digests are those of the identity.
      identity: the engine's.
      library: opened for this model.
      labels: of the engine's classifier; None without one.
      read_image, lora_mode, vae_tile: as of an engine.
    """
    if model.digest != identity.model_digest:
        model = dataclasses.replace(model, digest=identity.model_digest, file_digest=identity.model_file_digest)
    classifier = None
    if labels is not None:
        assert identity.classifier_digest is not None, "the engine has a classifier"
        classifier = ClassifierLabels(labels, identity.classifier_digest)
    return Planner(
        model=model,
        fingerprint=dict(identity.fingerprint),
        pillow=identity.pillow,
        classifier=classifier,
        library=library,
        upscalers=Upscalers(library, model.dtype),
        read_image=read_image,
        lora_mode=lora_mode,
        vae_tile=vae_tile,
    )


def _extensions(job: Job, passes: tuple[Pass, ...]) -> Iterator[Extension]:
    """What other packages add that a job uses, as it is resolved, and its models."""
    families = {id(each.model.family): each.model.family for each in passes if isinstance(each, Sample)}
    yield from filter(None, map(extension_of, families.values()))
    for name, own, group in (
        (job.sampler, SAMPLERS, extensions.SAMPLERS),
        (job.schedule, SCHEDULES, extensions.SCHEDULES),
        (job.prompt_syntax, SYNTAXES, extensions.SYNTAXES),
    ):
        if added := extensions.added_by(name, own, group):
            yield added


def hires_job(job: Job, model: Model) -> Job | None:
    """The job of the second, larger pass (hires fix); None without one.

    Raises:
      JobError: if that can't be done.
    """
    if job.hires_scale is None:
        return None
    if job.mask_image is not None:
        raise JobError(f"hires_scale = {job.hires_scale}: not with a mask_image, which says what is repainted")
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


def _check_depth_image(job: Job, model: Model) -> None:
    if job.depth_image is not None and not model.takes_depth:
        raise JobError(f"depth_image = {job.depth_image!r}: this model takes no depth map")


def _check_label(job: Job, model: Model) -> None:
    config = model.unet.config
    if config.has_class_embedding != (job.class_label is not None):
        wanted = "one, which its UNet takes besides the prompt" if config.has_class_embedding else "none"
        raise JobError(f"class_label = {job.class_label}: this model wants {wanted}")
    if job.class_label is not None and config.num_class_embeds and job.class_label >= config.num_class_embeds:
        raise JobError(f"class_label = {job.class_label}: expected a number from 0 to {config.num_class_embeds - 1}")


def _checked_classifier(classifier: ClassifierLabels | None, job: Job) -> ClassifierLabels:
    if classifier is None:
        raise JobError(
            f"classifier_scale = {job.classifier_scale}: there is no classifier; set library.classifier = "
            "emoji, or a folder, or give the engine one"
        )
    count = len(classifier.labels)
    if job.classifier_label is None or job.classifier_label >= count:
        raise JobError(f"classifier_label = {job.classifier_label}: expected a number from 0 to {count - 1}")
    return classifier


def _previews(job: Job, steps: int) -> int:
    count = len(range(0, steps, job.preview_every)) if job.preview_every else 0
    if count > _PREVIEWS[-1]:
        least = -(-steps // _PREVIEWS[-1])
        raise JobError(
            f"preview_every = {job.preview_every}: of {steps} steps {count} would be kept; expected {least} or "
            f"more, which keeps up to {_PREVIEWS[-1]}"
        )
    return next(each for each in _PREVIEWS if each >= count)
