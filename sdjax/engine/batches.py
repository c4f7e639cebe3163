"""The arrays of one batch, as the host makes them of tasks that share a program and a batch key."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped, UInt8, UInt32

from sdjax.adapters import per_image
from sdjax.diffusion import noise
from sdjax.diffusion.brownian import TorchBrownianTree
from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.sample import stack_tables
from sdjax.diffusion.scheduler_config import alphas_cumprod
from sdjax.engine import prompt_arrays
from sdjax.engine.accelerations import deep_evaluations
from sdjax.engine.inputs import (
    Img2ImgInputs,
    Inputs,
    NoisedImageInputs,
    PerEvaluation,
    PerImage,
    Shared,
    StartInputs,
)
from sdjax.engine.latents import latent_shape
from sdjax.engine.passes import Sample, noise_resized_from
from sdjax.images import masks
from sdjax.jobs.job import Job
from sdjax.library.depth import normalised
from sdjax.model import DTYPES

# Samplers of which diffusers' class draws white noise where k-diffusion's has a Brownian path.
_WHITE_IN_DIFFUSERS = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpm_solver_2m_sde")


class Computed(NamedTuple):
    """The inputs of the program that are computed on the devices before it runs.

    latents: the first ones.
    extra_channels: that the UNet sees beside latents; None if none.
    init_latents, init_noise: of the images of which a part stays; None if none do.
    noise: drawn on the host, in the order of draws; None if there is none.
    controls: parameters of the ControlNets.
    """

    latents: Any
    extra_channels: Any
    init_latents: Any
    init_noise: Any
    noise: Any
    controls: tuple[Any, ...]


def inputs(batch: Sequence[Sample], params: Any, computed: Computed) -> Inputs:
    """All that the sampling program is given.

    Args:
      batch: of one bucket and key.
      params: of the model, or anything with their shapes.
      computed: before.
    """
    bucket = batch[0].bucket
    jobs, tables = [sample.job for sample in batch], [sample.table for sample in batch]

    def floats(*values: float) -> Float32[np.ndarray, " b"]:
        return np.array(values, np.float32)

    hypernetworks = batch[0].adapters.hypernetworks
    weights = [[each.weight for each in sample.adapters.hypernetworks] for sample in batch]
    vectors = [[embedding.vectors for embedding in sample.adapters.embeddings] for sample in batch]
    prompts = prompt_arrays.arrays(
        [sample.prompts for sample in batch], tables, [job.clip_skip for job in jobs], bucket.evaluations, vectors
    )
    stacked = stack_tables(tables, bucket.evaluations)
    labelled = jobs[0].class_label is not None
    return Inputs(
        PerImage(
            prompts=prompts.tokens,
            seed_words=seed_words(batch),
            latents=computed.latents,
            evaluations=stacked.counts,
            guidance_scale=floats(*(job.guidance_scale for job in jobs)),
            guidance_rescale=floats(*(job.guidance_rescale for job in jobs)),
            classifier_scale=floats(*(job.classifier_scale for job in jobs)),
            classifier_labels=np.array([job.classifier_label or 0 for job in jobs], np.int32),
            threshold_ratio=floats(*(job.dynamic_thresholding_ratio or 0.0 for job in jobs)),
            threshold_max=floats(*(job.sample_max_value for job in jobs)),
            class_labels=np.array([job.class_label for job in jobs], np.int32) if labelled else None,
            extra_channels=computed.extra_channels,
            hypernetwork_weights=np.array(weights, np.float32) if hypernetworks else None,
            low_rank=_low_rank(batch, params),
            mask=latent_masks(batch) if bucket.masked else None,
            init_latents=computed.init_latents,
            init_noise=computed.init_noise,
            control_images=tuple(
                np.stack([sample.images.controls[number] for sample in batch]) for number in range(len(bucket.controls))
            ),
            guess_mode=tuple(_guess_mode(batch, number) for number in range(len(bucket.controls))),
        ),
        PerEvaluation(
            table=stacked.evaluations,
            text_of=prompts.text_of,
            part_weights=prompts.part_weights,
            control_weights=tuple(_control_weights(batch, number) for number in range(len(bucket.controls))),
            previews=_previews(batch) if bucket.previews else None,
            noise=computed.noise,
        ),
        Shared(
            guided=np.array(batch[0].key.guided or (0, bucket.evaluations), np.int32),
            hypernetworks=tuple(each.adapter.params for each in hypernetworks),
            controls=computed.controls,
            deep=_deep_evaluations(batch[0]),
            gate=None if batch[0].key.gate is None else np.array([batch[0].key.gate], np.int32),
        ),
    )


def _deep_evaluations(sample: Sample) -> Bool[np.ndarray, " e"] | None:
    """In which evaluations deep features are computed; None without DeepCache."""
    bucket, key = sample.bucket, sample.key
    if bucket.accelerations.deep_cache_branch is None:
        return None
    return deep_evaluations(bucket.evaluations, key.deep_cache_interval, key.guided, key.gate)


def _low_rank(batch: Sequence[Sample], params: Any) -> Any:
    """What is added to layers for each image, by network; None if nothing is."""
    model, shape = batch[0].model, batch[0].bucket.low_rank
    if shape is None:
        return None
    adapted = {name: params[name] for name in model.family.adapted_networks}
    return per_image.arrays([sample.low_rank for sample in batch], shape, adapted, DTYPES[model.dtype])


def seed_words(batch: Sequence[Sample]) -> UInt32[np.ndarray, "b 2"]:
    """The halves of the seeds."""
    return np.stack([noise.to_seed_words(_seed(sample.job)) for sample in batch])


def latent_masks(batch: Sequence[Sample]) -> Float32[np.ndarray, "b h w 1"]:
    """The shares of latents that are repainted."""
    return _stacked([sample.images.latent_mask for sample in batch])[..., None]


def input_images(batch: Sequence[Sample]) -> UInt8[np.ndarray, "b y x 3"]:
    """The images with which jobs begin."""
    return _stacked([sample.images.image for sample in batch])


def hidden_pixels(batch: Sequence[Sample]) -> Bool[np.ndarray, "b y x 1"]:
    """Where these are repainted."""
    return _stacked([sample.images.mask for sample in batch])[..., None] >= masks.HALF


def _stacked(arrays: Sequence[Shaped[np.ndarray, "..."] | None]) -> Shaped[np.ndarray, "b ..."]:
    """Arrays of a batch, all of which have them."""
    return np.stack([array for array in arrays if array is not None])


def _guess_mode(batch: Sequence[Sample], number: int) -> Bool[np.ndarray, " b"]:
    """Whether a ControlNet acts on the prompt's side only.

    One that sees the mean of its image alone (shuffle) always does: so it is in diffusers, and in A1111's extension.
    """
    pooled = getattr(batch[0].bucket.controls[number], "global_pool_conditions", False)
    return np.array([sample.job.guess_mode or pooled for sample in batch])


def _control_weights(batch: Sequence[Sample], number: int) -> Float32[np.ndarray, "e b"]:
    """The weight of a ControlNet at each evaluation; 0 where it is not in force."""
    weights = np.zeros((batch[0].bucket.evaluations, len(batch)), np.float32)
    for image, sample in enumerate(batch):
        control, step = sample.job.controls[number], sample.table.step
        weights[: len(step), image] = np.where(control.acts_in(step, int(step[-1]) + 1), control.weight, 0.0)
    return weights


def _previews(batch: Sequence[Sample]) -> Int32[np.ndarray, "e b"]:
    places = np.full((batch[0].bucket.evaluations, len(batch)), -1, np.int32)
    for number, sample in enumerate(batch):
        for place, step in enumerate(sample.preview_steps):
            places[np.flatnonzero(sample.table.step == step)[0], number] = place
    return places


def depth_maps(batch: Sequence[Sample], shape: tuple[int, int, int]) -> Float32[np.ndarray, "b h w 1"]:
    """Depth for the UNet, from -1 (far) to 1 (near) in each image; where nothing is known 0, the middle."""
    maps = np.zeros((len(batch), *shape[:2], 1), np.float32)
    for number, sample in enumerate(batch):
        if sample.images.depth is not None:
            maps[number] = normalised(sample.images.depth[None], *shape[:2])[0]
    return maps


def img2img_inputs(batch: Sequence[Sample], image_latents: Any, noise_latents: Any, fill_noise: Any) -> Img2ImgInputs:
    """What first latents that begin with an image are made of."""
    jobs = [sample.job for sample in batch]
    return Img2ImgInputs(
        image_latents=image_latents,
        noise_latents=noise_latents,
        image_weight=np.array([job.strength != 1 for job in jobs], np.float32),
        mask=latent_masks(batch) if batch[0].key.masked else None,
        fill=np.array([FILLINGS.index(job.inpaint_fill) for job in jobs], np.int32),
        fill_noise=fill_noise,
    )


def start_inputs(batch: Sequence[Sample], unit: bool = False) -> StartInputs:
    """What first latents are made of, of noise drawn on the device; `unit` is that noise at deviation 1."""
    jobs, tables = [sample.job for sample in batch], [sample.table for sample in batch]
    return StartInputs(
        seed_words=seed_words(batch),
        variation_seed_words=np.stack([noise.to_seed_words(job.variation_seed or 0) for job in jobs]),
        variation_strength=np.array([job.variation_strength for job in jobs], np.float32),
        start=np.array([1.0 if unit else table.start for table in tables], np.float32),
        first_noise=np.array([0.0 if unit else table.first_noise for table in tables], np.float32),
    )


def noised_image_inputs(batch: Sequence[Sample], pixels: Any, drawn: Any) -> NoisedImageInputs:
    """What images are made of as the x4 upscaler's UNet sees them: each has the noise of its own level."""
    low_res = batch[0].model.low_res
    assert low_res is not None, "only the x4 upscaler sees noised images"
    kept = alphas_cumprod(low_res)[[sample.job.class_label or 0 for sample in batch]]
    signal, sigma = (np.sqrt(share).astype(np.float32) for share in (kept, 1 - kept))
    return NoisedImageInputs(pixels, signal, sigma, drawn)


class HostNoise:
    """The noise of a batch that is drawn on the host, in the order in which torch's users draw it.

    Attributes:
      latents: the first ones.
      first: the standard normal numbers at the start.
      image: for the latents of the image with which each begins, or for the image that the UNet sees; None if none.
      masked: for those of an image of which a part is hidden; None if there is none.
      later: what is added at places of the table; None where nothing is.
    """

    def __init__(self, batch: Sequence[Sample]) -> None:
        """Draws it all."""
        sample = batch[0]
        places, model, bucket = sample.bucket.host_noise or 0, sample.model, sample.bucket
        shape = latent_shape(model, bucket.height, bucket.width)
        self.latents: Float32[np.ndarray, "b h w c"] = np.empty((len(batch), *shape), np.float32)
        self.first = np.empty_like(self.latents)
        encodes, sees_image = sample.start in ("input image", "image"), sample.start == "on image"
        image_shape = (*shape[:2], 3) if sees_image else shape
        self.image = np.empty((len(batch), *image_shape), np.float32) if encodes or sees_image else None
        self.masked = np.empty_like(self.latents) if sample.key.masked or model.takes_mask else None
        later = np.zeros((places, len(batch), *shape), np.float32)
        for number, each in enumerate(batch):
            job, table = each.job, each.table
            source = noise.HostNoiseStream(
                job.noise_source,
                _seed(job),
                shape,
                variation_seed=job.variation_seed,
                variation_strength=job.variation_strength,
                resize_from=noise_resized_from(job, model.vae.config.factor),
                image_shape=None if self.image is None else image_shape,
            )
            self.first[number] = source.first
            self.latents[number] = source.first * np.float32(table.start)
            if self.image is not None:
                self.image[number] = source.image
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
        self.later: Any = later if places else None


def _seed(job: Job) -> int:
    assert job.seed is not None, "the job is not resolved"
    return job.seed
