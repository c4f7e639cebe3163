"""The compiled programs: from prompts and noise to latents, and from latents to pixels.

A program is for the shapes in its bucket; everything else about a job is an array. It is written for one device's share
of a batch; the engine maps it over devices.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt8, UInt32

from sdjax import conditions
from sdjax.adapters import per_image
from sdjax.adapters.hypernetwork import Structure, attending
from sdjax.diffusion import noise
from sdjax.diffusion.brownian import step_noise
from sdjax.diffusion.guidance import (
    LogProbability,
    classifier_free,
    classifier_guided,
    network_input,
    rescaled,
    thresholded,
    to_denoised,
)
from sdjax.diffusion.inpaint import filled
from sdjax.diffusion.sample import Latents, Level, NoiseRequest, Previews, TableArrays, sample
from sdjax.model import DTYPES, Model
from sdjax.models import vae_tiles
from sdjax.models.controlnet import ControlNet, ControlNetConfig, added, residual_scales
from sdjax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig, adapted
from sdjax.models.unet import Residuals
from sdjax.models.vae import Gaussian

# Shares of red, green and blue in grey (ITU-R BT.601), as in Pillow.
_LUMA = (0.299, 0.587, 0.114)


class Bucket(NamedTuple):
    """What one compiled program is for. Everything else about a job is an array.

    height, width: pixels.
    prompts: the shape of what the text encoder reads and the network is asked.
    interval: whether there are steps without guidance.
    host_noise: how many times noise drawn on the host is put in besides the first; None if it is drawn on the device.
    rows: evaluations.
    frames: how many previews.
    classifier: whether the engine's classifier guides.
    hypernetworks: how those are built that act.
    low_rank: ranks of what is added to layers for each image; None if nothing is.
    masked: whether a picture stays as it is where nothing is drawn anew.
    controls: how the ControlNets and T2I adapters are built that act.
    """

    height: int
    width: int
    prompts: conditions.Shape
    interval: bool
    host_noise: int | None
    rows: int
    frames: int
    classifier: bool
    hypernetworks: tuple[Structure, ...]
    low_rank: per_image.Shape | None
    masked: bool
    controls: tuple[ControlNetConfig | T2IAdapterConfig, ...]


class Controlled(NamedTuple):
    """A ControlNet or a T2I adapter and what it does in a batch."""

    params: Any  # the same for all images
    pictures: Any  # (images, pixels, pixels, 3) uint8
    weights: Any  # (evaluations, images); 0 where it is not in force
    guess: Any  # (images,) bool


class Inputs(NamedTuple):
    """The arrays of one batch; `specs` says which axis runs over images."""

    prompts: conditions.Prompts
    words: Any  # (images, 2) the seeds
    latents: Any  # (images, h, w, c) the first ones
    guidance: Any  # (images, 3): scale, rescale, and scale of the classifier
    threshold: Any  # (images, 2): quantile, greatest bound
    labels: Any  # (images,) of the classifier
    class_labels: Any  # (images,) of the UNet; () if it has none
    channels: Any  # (images, h, w, d) that the UNet is given besides the latents; () if none
    hypernetworks: Any  # their parameters; the same for all images
    multipliers: Any  # (images, hypernetworks); () if there are none
    low_rank: Any  # {"unet": ..., "text_encoder": ...} what is added for each image; () if nothing is
    guided: Any  # (2,) evaluations, from and before
    tables: TableArrays
    controls: tuple[Controlled, ...]
    kept: Any  # (images, h, w, c) clean latents of the pictures that stay; () if none do
    kept_noise: Any  # (images, h, w, c) standard normal, with which they are put back between evaluations; () likewise
    anew: Any  # (images, h, w, 1) shares that are drawn anew; () likewise
    frames: Any  # (evaluations, images) where a step is kept; () if none is
    noise: Any  # drawn on the host: (places, images, h, w, c); () if it is not


class Beginning(NamedTuple):
    """What the first latents of a batch are made of, where noise is drawn on the device."""

    words: Any  # (images, 2)
    variation_words: Any  # (images, 2)
    variation_strength: Any  # (images,)
    start: Any  # (images,) standard deviation
    first_noise: Any  # (images,) weight of noise added before the first step


# Axes over images that are not the first.
_SECOND = ("text_of", "part_weights", "frames")


def specs(inputs: Inputs) -> Inputs:
    """Which axis of each input runs over images."""
    first, second = PartitionSpec("data"), PartitionSpec(None, "data")

    def all_of(values: Any, spec: PartitionSpec) -> Any:
        return jax.tree.map(lambda _: spec, values)

    prompts = inputs.prompts
    return Inputs(
        prompts=conditions.Prompts(
            *(
                all_of(getattr(prompts, name), second if name in _SECOND else first)
                for name in conditions.Prompts._fields
            )
        ),
        words=first,
        latents=first,
        guidance=first,
        threshold=first,
        labels=first,
        class_labels=all_of(inputs.class_labels, first),
        channels=all_of(inputs.channels, first),
        hypernetworks=all_of(inputs.hypernetworks, PartitionSpec()),
        multipliers=all_of(inputs.multipliers, first),
        low_rank=all_of(inputs.low_rank, first),
        guided=PartitionSpec(),
        controls=tuple(
            Controlled(all_of(each.params, PartitionSpec()), first, second, first) for each in inputs.controls
        ),
        kept=all_of(inputs.kept, first),
        kept_noise=all_of(inputs.kept_noise, first),
        anew=all_of(inputs.anew, first),
        tables=TableArrays(evaluations=all_of(inputs.tables.evaluations, second), counts=first),
        frames=all_of(inputs.frames, second),
        noise=all_of(inputs.noise, second),
    )


def latents_of(
    model: Model,
    log_probability: LogProbability | None,
    bucket: Bucket,
    shape: tuple[int, int, int],
    params: Any,
    inputs: Inputs,
) -> tuple[Latents, Previews]:
    """Text to latents for one device's share of a batch."""
    with _precision(model):
        with _adding(bucket, inputs, "text_encoder"):
            contexts = conditions.encode(model.text_encoder, params["text_encoder"], inputs.prompts)

        looked = [
            _looked_at(config, each, DTYPES[model.dtype])
            for config, each in zip(bucket.controls, inputs.controls, strict=True)
        ]

        def predict(latents: Latents, level: Level, branches: int) -> tuple[Latents, ...]:
            """The network's outputs for the first so many branches."""
            text_of = inputs.prompts.text_of[level.evaluation][:, :branches]
            context, mask = conditions.seen_by(contexts, text_of)
            shown = network_input(latents, level.alpha)
            seen = jnp.tile(shown.astype(DTYPES[model.dtype]), (branches, 1, 1, 1))
            if isinstance(inputs.channels, jax.Array):
                shown = jnp.concatenate([shown, inputs.channels], axis=-1)
            given = jnp.tile(shown.astype(DTYPES[model.dtype]), (branches, 1, 1, 1))
            timesteps = jnp.tile(level.timestep, branches)
            labels = None
            if isinstance(inputs.class_labels, jax.Array):
                labels = jnp.tile(inputs.class_labels, branches)
                if model.unet.config.class_embed_type == "timestep":
                    labels = labels.astype(jnp.float32)
            asked = Asked(seen, timesteps, context, labels, mask)
            residuals = _residuals(bucket, inputs, looked, asked, level, branches)
            with _attending(bucket, inputs), _adding(bucket, inputs, "unet"):
                prediction = model.unet.apply(
                    {"params": params["unet"]}, given, timesteps, context, labels, mask, residuals
                )
            return tuple(jnp.split(prediction.astype(jnp.float32), branches))

        guide = functools.partial(_guided, bucket, inputs, predict)
        classify = functools.partial(_classified, log_probability, params["classifier"], inputs)

        def denoise(latents: Latents, level: Level) -> Latents:
            prediction = guide(latents, level)
            denoised = to_denoised(prediction, latents, level.sigma, level.alpha, model.scheduler.prediction_type)
            if bucket.classifier:
                denoised = classify(denoised, latents, level)
            return thresholded(denoised, inputs.threshold[:, 0], inputs.threshold[:, 1])

        frames = inputs.frames if bucket.frames else None
        draw = _draw(bucket, shape, inputs)
        put_back = functools.partial(_put_back, inputs) if bucket.masked else None
        latents, trail = sample(denoise, inputs.latents, inputs.tables, draw, frames, bucket.frames, put_back)
        return (_put_back(inputs, latents) if bucket.masked else latents), trail


def _put_back(inputs: Inputs, latents: Latents, sigma: Float[Array, " b"] | None = None) -> Latents:
    """Latents with those of pictures where nothing is drawn anew, with the noise of the start at `sigma`; None is 0."""
    kept = inputs.kept
    if sigma is not None:
        kept = kept + sigma[:, None, None, None] * inputs.kept_noise
    return inputs.anew * latents + (1 - inputs.anew) * kept


class Asked(NamedTuple):
    """What the network is asked, and so also what ControlNets are."""

    latents: Any
    timesteps: Any
    context: Any
    labels: Any
    mask: Any


def _looked_at(config: ControlNetConfig | T2IAdapterConfig, controlled: Controlled, dtype: Any) -> Any:
    """What is made of control pictures once, before the steps."""
    pictures = controlled.pictures.astype(jnp.float32) / 255
    channels = config.in_channels if isinstance(config, T2IAdapterConfig) else config.conditioning_channels
    if channels == 1:
        pictures = (pictures * jnp.array(_LUMA)).sum(axis=-1, keepdims=True)
    pictures = pictures.astype(dtype)
    params = {"params": controlled.params}
    if isinstance(config, T2IAdapterConfig):
        return T2IAdapter(config).apply(params, pictures)
    return ControlNet(config).apply(params, pictures, method="embed")


def _residuals(
    bucket: Bucket, inputs: Inputs, looked: Sequence[Any], asked: Asked, level: Level, branches: int
) -> Residuals | None:
    """What ControlNets and T2I adapters add to the network, for the first so many branches; None if there are none."""
    total = None
    for config, controlled, made in zip(bucket.controls, inputs.controls, looked, strict=True):
        weights = controlled.weights[level.evaluation]
        # In guess mode the last branch, the negative prompt, is left alone.
        alone = jnp.where(controlled.guess, 0.0, weights)
        unguided = bucket.prompts.guided and branches == bucket.prompts.branches
        all_weights = jnp.concatenate([jnp.tile(weights, branches - 1), alone if unguided else weights])
        if isinstance(config, T2IAdapterConfig):
            residuals = adapted(tuple(jnp.tile(each, (branches, 1, 1, 1)) for each in made), all_weights)
        else:
            guess = jnp.tile(controlled.guess, branches)
            residuals = ControlNet(config).apply(
                {"params": controlled.params},
                *asked[:3],
                jnp.tile(made, (branches, 1, 1, 1)),
                *asked[3:],
                scales=residual_scales(config, all_weights, guess),
            )
        total = residuals if total is None else added(total, residuals)
    return total


def _attending(bucket: Bucket, inputs: Inputs) -> AbstractContextManager[None]:
    if not bucket.hypernetworks:
        return nullcontext()
    return attending(bucket.hypernetworks, inputs.hypernetworks, inputs.multipliers.T)


def _adding(bucket: Bucket, inputs: Inputs, part: str) -> AbstractContextManager[None]:
    if not bucket.low_rank:
        return nullcontext()
    return per_image.adding(inputs.low_rank[part], images_first=part == "text_encoder")


def _guided(
    bucket: Bucket,
    inputs: Inputs,
    predict: Callable[[Latents, Level, int], tuple[Latents, ...]],
    latents: Latents,
    level: Level,
) -> Latents:
    """The network's prediction with guidance; in steps without it the negative prompt is not asked for."""
    branches, weights = bucket.prompts.branches, inputs.prompts.part_weights
    if not bucket.prompts.guided:
        [prediction] = predict(latents, level, branches)
        return prediction
    scale, rescale = inputs.guidance[:, 0], inputs.guidance[:, 1]

    def mean(parts: tuple[Latents, ...]) -> Latents:
        if len(parts) == 1:
            return parts[0]
        shares = (weights / weights.sum(axis=0, keepdims=True))[..., None, None, None]
        return sum((share * part for share, part in zip(shares, parts, strict=True)), jnp.zeros_like(latents))

    def guided() -> Latents:
        *parts, unconditional = predict(latents, level, branches)
        result = classifier_free(unconditional, jnp.stack(parts), weights, scale)
        conditional = classifier_free(unconditional, jnp.stack(parts), weights, jnp.ones_like(scale))
        return rescaled(result, conditional, rescale)

    if not bucket.interval:
        return guided()
    within = (level.evaluation >= inputs.guided[0]) & (level.evaluation < inputs.guided[1])
    return jax.lax.cond(within, guided, lambda: mean(predict(latents, level, branches - 1)))


def _classified(
    log_probability: LogProbability | None,
    params: Any,
    inputs: Inputs,
    denoised: Latents,
    latents: Latents,
    level: Level,
) -> Latents:
    assert log_probability is not None, "prepare lets no such job through"
    scale = inputs.guidance[:, 2]
    return classifier_guided(
        denoised, latents, level.sigma, level.alpha, level.timestep, inputs.labels, scale, log_probability, params
    )


def first_latents(
    shape: tuple[int, int, int], resized_from: tuple[int, int] | None, params: Any, beginning: Beginning
) -> Latents:
    """The first latents of one device's share of a batch."""
    words, strength = beginning.words, beginning.variation_strength
    first = noise.varied_start_noise(words, beginning.variation_words, strength, shape, resized_from)
    more = noise.step_noise(words, 0, shape)
    return first * beginning.start[:, None, None, None] + more * beginning.first_noise[:, None, None, None]


class Seen(NamedTuple):
    """Pictures as the encoder takes them.

    drawn: noise with which latents are drawn from what it gives; or seeds of it.
    hidden: where the picture is grey instead; () for nowhere.
    """

    pixels: Any  # (images, h, w, 3) uint8
    drawn: Any  # (images, i, j, c), or (images, 2)
    hidden: Any  # (images, h, w, 1) bool


class Picture(NamedTuple):
    """What the first latents of images that begin with a picture are made of."""

    clean: Any  # (images, h, w, c)
    first: Any  # (images, h, w, c) of noise alone
    weight: Any  # (images,) of the picture: 0 is noise alone
    anew: Any  # (images, h, w, 1) shares that are drawn anew; () is all
    filling: Any  # (images,) what stands there: see `FILLINGS`
    drawn: Any  # (images, h, w, c) noise, or (images, 2) seeds of it


def latents_of_pictures(
    model: Model, shape: tuple[int, int, int], tile: int, for_mask: bool, params: Any, seen: Seen
) -> Latents:
    """Pictures to latents, as the sampler takes them.

    Args:
      model: whose VAE encodes.
      shape: (height, width, channels) of the latents.
      tile: side, in pixels, of the tiles in which it does; 0 is at once.
      for_mask: whether the noise is that for pictures of which a part is hidden.
      params: of the model.
      seen: the pictures.
    """
    draw = noise.masked_image_latents_noise if for_mask else noise.image_latents_noise
    drawn = draw(seen.drawn, shape) if seen.drawn.ndim == 2 else seen.drawn
    pixels = seen.pixels.astype(jnp.float32) / 127.5 - 1
    if isinstance(seen.hidden, jax.Array):
        pixels = jnp.where(seen.hidden, 0.0, pixels)
    return _posterior(model, params["vae"], pixels, tile).sample(drawn) * model.vae.config.scaling_factor


def _posterior(model: Model, vae: Any, pixels: Float[Array, "b h w 3"], tile: int) -> Gaussian:
    """What the encoder gives, in float32."""
    pixels = pixels.astype(jax.tree.leaves(vae)[0].dtype)
    with _precision(model):
        if tile:
            posterior = vae_tiles.encode(model.vae, vae, pixels, tile)
        else:
            posterior = model.vae.apply({"params": vae}, pixels, method="encode")
    return Gaussian(*(each.astype(jnp.float32) for each in posterior))


def begun_with(shape: tuple[int, int, int], params: Any, picture: Picture) -> Latents:
    """The first latents of images that begin with a picture."""
    clean = picture.clean
    if isinstance(picture.anew, jax.Array):
        drawn = noise.filling_noise(picture.drawn, shape) if picture.drawn.ndim == 2 else picture.drawn
        clean = filled(clean, picture.anew, picture.filling, drawn)
    weight = picture.weight[:, None, None, None]
    return jnp.where(weight == 0, picture.first, picture.first + weight * clean)


def masked_whole(
    model: Model,
    shape: tuple[int, int, int],
    tile: int,
    params: Any,
    drawn: Float[Array, "b h w c"] | UInt32[Array, "b 2"],
) -> Float[Array, "b h w d"]:
    """What an inpainting UNet is given to draw a whole picture: a mask that covers all, and the latents of nothing.

    Args:
      model: with an inpainting UNet.
      shape: (height, width, channels) of the latents.
      tile: side, in pixels, of the tiles in which nothing is encoded; 0 is at once.
      params: of the model.
      drawn: noise with which latents are drawn from what the encoder gives; or seeds of it.
    """
    drawn = noise.masked_image_latents_noise(drawn, shape) if drawn.ndim == 2 else drawn
    nothing = jnp.zeros((1, shape[0] * model.vae.config.factor, shape[1] * model.vae.config.factor, 3))
    posterior = Gaussian(
        *(jnp.broadcast_to(each, drawn.shape) for each in _posterior(model, params["vae"], nothing, tile))
    )
    latents = posterior.sample(drawn) * model.vae.config.scaling_factor
    return jnp.concatenate([jnp.ones((*drawn.shape[:3], 1)), latents], axis=-1)


def _draw(bucket: Bucket, shape: tuple[int, int, int], inputs: Inputs) -> Callable[[NoiseRequest], Latents] | None:
    """Where the noise of the steps comes from."""
    if bucket.host_noise is not None:
        return (lambda wanted: inputs.noise[wanted.place]) if bucket.host_noise else None

    def draw(wanted: NoiseRequest) -> Latents:
        def drawn() -> Latents:
            return step_noise(inputs.words, wanted.place, wanted.brownian, wanted.span, shape)

        # What no image of the batch wants is not drawn; what an image gets depends on itself alone.
        return jax.lax.cond(jnp.any(wanted.draws), drawn, lambda: jnp.zeros_like(inputs.latents))

    return draw


def pixels_of(
    model: Model, dtype: str | None, tile: int, params: Any, latents: Float[Array, "b i j c"]
) -> tuple[UInt8[Array, "b h w 3"], Array]:
    """Latents to pixels: (images, whether each is finite).

    Args:
      model: whose VAE decodes.
      dtype: in which it does; None is that of its parameters.
      tile: side, in pixels, of the tiles in which it does; 0 is at once.
      params: of the model.
      latents: as the sampler gives them.
    """
    vae = params["vae"] if dtype is None else jax.tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), params["vae"])
    with _precision(model):
        scaled = (latents / model.vae.config.scaling_factor).astype(jax.tree.leaves(vae)[0].dtype)
        if tile:
            decoded = vae_tiles.decode(model.vae, vae, scaled, tile)
        else:
            decoded = model.vae.apply({"params": vae}, scaled, method="decode")
        pixels = decoded.astype(jnp.float32)
    finite = jnp.isfinite(pixels).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8), finite


def _precision(model: Model) -> Any:
    """float32 means float32, also where the device would rather round its factors."""
    return jax.default_matmul_precision("highest" if model.dtype == "float32" else "default")
