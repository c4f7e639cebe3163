"""The arrays of one batch, as the host makes them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from sdjax import conditions
from sdjax.adapters import per_image
from sdjax.depth import normalised
from sdjax.diffusion import noise
from sdjax.diffusion.brownian import TorchBrownianTree
from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.sample import stack_tables
from sdjax.images import masks
from sdjax.job import Job
from sdjax.model import DTYPES, Model
from sdjax.plan import Task, resized_from
from sdjax.program import Beginning, Bucket, Controlled, Inputs, Picture, Seen

# Samplers of which diffusers' class draws white noise where k-diffusion's has a Brownian path.
_WHITE_IN_DIFFUSERS = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpm_solver_2m_sde")


def latent_shape(model: Model, bucket: Bucket) -> tuple[int, int, int]:
    """(height, width, channels) of a picture's latents."""
    cfg = model.vae.config
    return bucket.height // cfg.factor, bucket.width // cfg.factor, cfg.latent_channels


def words(batch: Sequence[Task]) -> Shaped[np.ndarray, "b 2"]:
    """The seeds."""
    return np.stack([noise.to_seed_words(_seed(task.job)) for task in batch])


class Given(NamedTuple):
    """What of a program's inputs is computed before.

    latents: the first ones.
    later: noise that is put in at places of the table; () if the device draws it.
    channels: that the UNet is given besides latents; () if none.
    kept: clean latents of the pictures that stay where nothing is drawn anew; () if none do.
    kept_noise: with which they are put back; () likewise.
    controls: ControlNets and what they do.
    """

    latents: Any
    later: Any
    channels: Any
    kept: Any
    kept_noise: Any
    controls: tuple[Controlled, ...]


def inputs(model: Model, batch: Sequence[Task], given: Given) -> Inputs:
    """All that a program is given.

    Args:
      model: for which they are.
      batch: of one bucket, and together.
      given: what is computed before.
    """
    bucket, jobs, tables = batch[0].bucket, [task.job for task in batch], [task.table for task in batch]

    def floats(*values: list[float]) -> np.ndarray:
        return np.array(values, np.float32).T

    labelled = jobs[0].class_label is not None
    hypernetworks = batch[0].adapters.hypernetworks
    multipliers = [[each.weight for each in task.adapters.hypernetworks] for task in batch]
    vectors = [[embedding.vectors for embedding in task.adapters.embeddings] for task in batch]
    return Inputs(
        prompts=conditions.arrays(
            [task.prompts for task in batch], tables, [job.clip_skip for job in jobs], bucket.rows, vectors
        ),
        words=words(batch),
        latents=given.latents,
        guidance=floats(
            [job.guidance_scale for job in jobs],
            [job.guidance_rescale for job in jobs],
            [job.classifier_scale for job in jobs],
        ),
        threshold=floats(
            [job.dynamic_thresholding_ratio or 0.0 for job in jobs], [job.sample_max_value for job in jobs]
        ),
        labels=np.array([job.classifier_label or 0 for job in jobs], np.int32),
        class_labels=np.array([job.class_label for job in jobs], np.int32) if labelled else (),
        channels=given.channels,
        hypernetworks=tuple(each.adapter.params for each in hypernetworks),
        multipliers=np.array(multipliers, np.float32) if hypernetworks else (),
        low_rank=()
        if bucket.low_rank is None
        else per_image.arrays([task.low_rank for task in batch], bucket.low_rank, model.params, DTYPES[model.dtype]),
        guided=np.array(batch[0].together.guided or (0, bucket.rows), np.int32),
        tables=stack_tables(tables, bucket.rows),
        controls=given.controls,
        kept=given.kept,
        kept_noise=given.kept_noise,
        anew=latent_masks(batch) if bucket.masked else (),
        frames=_frames(batch) if bucket.frames else (),
        noise=given.later,
    )


def latent_masks(batch: Sequence[Task]) -> Float32[np.ndarray, "b h w 1"]:
    """The shares that are drawn anew."""
    return _stacked([task.shown.latent_mask for task in batch])[..., None]


def controlled(batch: Sequence[Task], params: Sequence[Any]) -> tuple[Controlled, ...]:
    """What ControlNets do in a batch; `params` are theirs.

    One that sees the mean of its picture alone (shuffle) acts on the prompt's side only, as in guess mode: so it is in
    diffusers, and in A1111's extension.
    """
    rows, jobs = batch[0].bucket.rows, [task.job for task in batch]
    found = []
    for number, each in enumerate(params):
        weights = np.zeros((rows, len(batch)), np.float32)
        for image, task in enumerate(batch):
            control, steps = task.job.controls[number], int(task.table.step[-1]) + 1
            step = task.table.step
            weights[: len(step), image] = np.where(control.acts_in(step, steps), control.weight, 0.0)
        pictures = np.stack([task.shown.controls[number] for task in batch])
        pooled = getattr(batch[0].bucket.controls[number], "global_pool_conditions", False)
        found.append(Controlled(each, pictures, weights, np.array([job.guess_mode or pooled for job in jobs])))
    return tuple(found)


def depth_maps(batch: Sequence[Task], shape: tuple[int, int, int]) -> Float32[np.ndarray, "b h w 1"]:
    """Depth for the UNet, from -1 (far) to 1 (near) in each picture; where nothing is known 0, the middle."""
    maps = np.zeros((len(batch), *shape[:2], 1), np.float32)
    for number, task in enumerate(batch):
        if task.shown.depth is not None:
            maps[number] = normalised(task.shown.depth[None], *shape[:2])[0]
    return maps


def seen(batch: Sequence[Task], drawn: Any, *, hide: bool = False, pixels: Any = None) -> Seen:
    """The pictures with which images begin, for the encoder.

    Args:
      batch: each with one.
      drawn: noise, or seeds of it.
      hide: what is drawn anew.
      pixels: of them all; None takes those of the jobs.
    """
    pixels = _stacked([task.shown.image for task in batch]) if pixels is None else pixels
    return Seen(pixels, drawn, _stacked([task.shown.mask for task in batch])[..., None] >= masks.HALF if hide else ())


def _stacked(arrays: Sequence[Shaped[np.ndarray, "..."] | None]) -> Shaped[np.ndarray, "b ..."]:
    """Of tasks that are together, and so have all what one of them has."""
    return np.stack([array for array in arrays if array is not None])


def picture(batch: Sequence[Task], clean: Any, first: Any, drawn: Any) -> Picture:
    """What first latents that begin with a picture are made of."""
    jobs = [task.job for task in batch]
    return Picture(
        clean=clean,
        first=first,
        weight=np.array([job.strength != 1 for job in jobs], np.float32),
        anew=latent_masks(batch) if batch[0].together.masked else (),
        filling=np.array([FILLINGS.index(job.inpaint_fill) for job in jobs], np.int32),
        drawn=drawn,
    )


def beginning(batch: Sequence[Task], plain: bool = False) -> Beginning:
    """What first latents are made of, of noise drawn on the device; `plain` is that noise as it is."""
    jobs = [task.job for task in batch]
    return Beginning(
        words=words(batch),
        variation_words=np.stack([noise.to_seed_words(job.variation_seed or 0) for job in jobs]),
        variation_strength=np.array([job.variation_strength for job in jobs], np.float32),
        start=np.array([1.0 if plain else task.table.start for task in batch], np.float32),
        first_noise=np.array([0.0 if plain else task.table.first_noise for task in batch], np.float32),
    )


class HostNoise:
    """The noise of a batch that is drawn on the host, in the order in which torch's users draw it.

    Attributes:
      latents: the first ones.
      first: the standard normal numbers at the start.
      picture: for the latents of a picture with which an image begins; None if it begins with none.
      masked: for those of a picture of which a part is hidden; None if there is none.
      later: what is put in at places of the table; () where nothing is.
    """

    def __init__(self, model: Model, batch: Sequence[Task]) -> None:
        places = batch[0].bucket.host_noise or 0
        shape = latent_shape(model, batch[0].bucket)
        self.latents: Float32[np.ndarray, "b h w c"] = np.empty((len(batch), *shape), np.float32)
        with_picture, masked = batch[0].together.begins_with_picture, batch[0].together.masked
        self.first = np.empty_like(self.latents)
        self.picture = np.empty_like(self.latents) if with_picture else None
        self.masked = np.empty_like(self.latents) if masked or model.extra_channels > 1 else None
        later = np.zeros((places, len(batch), *shape), np.float32)
        for number, task in enumerate(batch):
            job, table = task.job, task.table
            source = noise.HostNoiseStream(
                job.noise_source,
                _seed(job),
                shape,
                variation_seed=job.variation_seed,
                variation_strength=job.variation_strength,
                resize_from=resized_from(job, model),
                with_image=with_picture,
            )
            self.first[number] = source.first
            self.latents[number] = source.first * np.float32(table.start)
            if self.picture is not None:
                self.picture[number] = source.image_latents_noise
            if self.masked is not None:  # diffusers draws it also where it is not used
                self.masked[number] = source.next(shape)
            # diffusers draws white noise for these, A1111 and k-diffusion the increments of a path.
            white = job.timestep_spacing != "k_diffusion" and job.sampler in _WHITE_IN_DIFFUSERS
            paths = np.flatnonzero(table.brownian)
            if len(paths) and not white:
                ends = np.concatenate([table.sigma, table.span[paths].ravel()])
                tree = TorchBrownianTree(ends[ends > 0].min(), ends.max(), _seed(job), shape, job.noise_source)
            for place in np.flatnonzero(table.draws):
                path = table.brownian[place] and not white
                later[place, number] = tree(*table.span[place]) if path else source.next(shape)
            if table.first_noise:
                self.latents[number] += later[0, number] * np.float32(table.first_noise)
        self.later: Any = later if places else ()


def _frames(batch: Sequence[Task]) -> Int32[np.ndarray, "rows b"]:
    frames = np.full((batch[0].bucket.rows, len(batch)), -1, np.int32)
    for number, task in enumerate(batch):
        for place, step in enumerate(task.kept_steps):
            frames[np.flatnonzero(task.table.step == step)[0], number] = place
    return frames


def _seed(job: Job) -> int:
    assert job.seed is not None, "the job is not resolved"
    return job.seed
