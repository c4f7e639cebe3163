"""The sampling program: from prompts and first latents to latents, for one device's share of a batch.

A program is for the shapes in its bucket; everything else about a job is an array. The engine maps it over devices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.adapters import per_image
from sdjax.adapters.hypernetwork import attending
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
from sdjax.diffusion.sample import Latents, Level, Memory, NoiseRequest, Previews, TableArrays, sample
from sdjax.engine import prompt_arrays
from sdjax.engine.accelerations import accelerated, branch_shares, empty_cache, updated
from sdjax.engine.inputs import Inputs, PerImage
from sdjax.engine.latents import precision
from sdjax.engine.passes import Bucket
from sdjax.families.family import UNET, Conditioning, Networks, UNetInputs
from sdjax.model import DTYPES, Model
from sdjax.models import winograd
from sdjax.models.controlnet import ControlNet, ControlNetConfig, added, residual_scales
from sdjax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig, adapted
from sdjax.models.unet import Residuals

# Under what name the parameters have transformed kernels of the UNet, if there are any.
WINOGRAD = "winograd"
# Shares of red, green and blue in grey (ITU-R BT.601), as in Pillow.
_LUMA = (0.299, 0.587, 0.114)

# (latents, level, number of branches, memory, gated=False) -> the UNet's outputs for the first so many branches, and
# the memory after; if `gated` its cross-attention is that of the memory.
_Predict = Callable[..., tuple[tuple[Latents, ...], Memory]]


def sample_latents(
    model: Model,
    log_probability: LogProbability | None,
    bucket: Bucket,
    shape: tuple[int, int, int],
    params: Any,
    inputs: Inputs,
) -> tuple[Latents, Previews]:
    """First latents to the last ones, and those that are kept on the way.

    Args:
      model: whose UNet denoises.
      log_probability: of the engine's classifier, whose parameters are `params["classifier"]`; None if there is none.
      bucket: of the batch.
      shape: (height, width, channels) of the latents.
      params: of the model.
      inputs: one device's share.
    """
    per_image, per_evaluation = inputs.per_image, inputs.per_evaluation
    with precision(model):
        networks = Networks(model.networks, params, functools.partial(_adapted, model, bucket, params, inputs))
        texts = prompt_arrays.encode(model.family, networks, per_image.prompts, model.tokenizer.end)
        predict = _predict(model, bucket, inputs, networks, texts)
        guided_prediction = functools.partial(_guided, bucket, inputs, predict)

        def denoise(latents: Latents, level: Level, memory: Memory) -> tuple[Latents, Memory]:
            prediction, memory = guided_prediction(latents, level, memory)
            result = to_denoised(prediction, latents, level.sigma, level.alpha, model.prediction_type)
            if bucket.classifier:
                result = _classified(log_probability, params["classifier"], per_image, result, latents, level)
            return thresholded(result, per_image.threshold_ratio, per_image.threshold_max), memory

        restore = functools.partial(_restored, per_image) if bucket.masked else None
        tables = TableArrays(per_evaluation.table, per_image.evaluations)
        draw, memory = _draw(bucket, shape, inputs), _first_memory(bucket, inputs, predict)
        latents, previews = sample(
            denoise, per_image.latents, tables, draw, per_evaluation.previews, bucket.previews, restore, memory
        )
        return (_restored(per_image, latents) if bucket.masked else latents), previews


def _predict(model: Model, bucket: Bucket, inputs: Inputs, networks: Networks, texts: Conditioning) -> _Predict:
    """The UNet with all that it is given besides latents and times."""
    dtype = DTYPES[model.dtype]
    embeddings = [
        _control_embedding(config, params, images, dtype)
        for config, params, images in zip(
            bucket.controls, inputs.shared.controls, inputs.per_image.control_images, strict=True
        )
    ]

    accelerations = bucket.accelerations

    def predict(
        latents: Latents, level: Level, branches: int, memory: Memory, gated: bool = False
    ) -> tuple[tuple[Latents, ...], Memory]:
        conditioning = prompt_arrays.by_branch(texts, inputs.per_evaluation.text_of[level.evaluation][:, :branches])
        scaled = network_input(latents, level.alpha)
        extra, labels = inputs.per_image.extra_channels, inputs.per_image.class_labels
        unet_latents = scaled if extra is None else jnp.concatenate([scaled, extra], axis=-1)

        def unet_inputs(channels: Latents) -> UNetInputs:
            return UNetInputs(
                latents=jnp.tile(channels.astype(dtype), (branches, 1, 1, 1)),
                timesteps=jnp.tile(level.timestep, branches),
                conditioning=conditioning,
                class_labels=None if labels is None else jnp.tile(labels, branches),
            )

        def evaluate(deep: Any) -> tuple[tuple[Latents, ...], Memory]:
            residuals = _residuals(model, bucket, inputs, embeddings, unet_inputs(scaled), level, branches)
            reused = memory.cross_attention if gated else None
            with accelerated(accelerations, inputs, level, deep, reused) as (features, outputs):
                prediction = model.family.predict(networks, unet_inputs(unet_latents), residuals)
            parts = tuple(jnp.split(prediction.astype(jnp.float32), branches))
            if not accelerations.cached:
                return parts, memory
            shares = branch_shares(inputs.per_evaluation.part_weights, branches)
            return parts, updated(memory, [] if deep is not None else features, {} if gated else outputs, shares)

        computed = inputs.shared.deep
        if computed is None or memory is None:
            return evaluate(None)
        deep = memory.deep[: branches * len(latents)]
        return jax.lax.cond(computed[level.evaluation], lambda: evaluate(None), lambda: evaluate(deep))

    return predict


def _first_memory(bucket: Bucket, inputs: Inputs, predict: _Predict) -> Memory:
    """What `predict` is given in the first evaluation."""
    if not bucket.accelerations.cached:
        return ()
    first = jax.tree.map(lambda column: column[0], inputs.per_evaluation.table)
    level = Level(first.sigma, first.alpha, first.timestep, jnp.zeros((), jnp.int32))
    shapes = jax.eval_shape(lambda: predict(inputs.per_image.latents, level, bucket.prompts.branches, None))
    return empty_cache(shapes[1])


@contextmanager
def _adapted(model: Model, bucket: Bucket, params: Any, inputs: Inputs, network: str) -> Iterator[None]:
    """The context in which a network has the adapters of the batch that are not merged into its weights."""
    reads_text = network in model.family.text_networks
    with ExitStack() as adapters:
        if network == UNET and WINOGRAD in params:
            adapters.enter_context(winograd.convolving(params[WINOGRAD]))
        if bucket.hypernetworks and not reads_text:
            adapters.enter_context(_attending(bucket, inputs))
        if bucket.low_rank:
            changes = inputs.per_image.low_rank[network]
            adapters.enter_context(per_image.adding(changes, images_first=reads_text))
        yield


def _attending(bucket: Bucket, inputs: Inputs) -> Any:
    weights = inputs.per_image.hypernetwork_weights
    assert weights is not None, "they come with the hypernetworks"
    return attending(bucket.hypernetworks, inputs.shared.hypernetworks, weights.T)


def _restored(per_image: PerImage, latents: Latents, sigma: Float[Array, " b"] | None = None) -> Latents:
    """Latents with those of the input image where nothing is repainted, noised to `sigma`; None is 0."""
    init_latents, init_noise, mask = per_image.init_latents, per_image.init_noise, per_image.mask
    assert init_latents is not None and init_noise is not None and mask is not None, "a masked batch has all three"
    if sigma is not None:
        init_latents = init_latents + sigma[:, None, None, None] * init_noise
    restored: Latents = mask * latents + (1 - mask) * init_latents
    return restored


def _control_embedding(config: ControlNetConfig | T2IAdapterConfig, params: Any, images: Any, dtype: Any) -> Any:
    """What is made of control images once, before the steps."""
    pixels = images.astype(jnp.float32) / 255
    channels = config.in_channels if isinstance(config, T2IAdapterConfig) else config.conditioning_channels
    if channels == 1:
        pixels = (pixels * jnp.array(_LUMA)).sum(axis=-1, keepdims=True)
    pixels = pixels.astype(dtype)
    if isinstance(config, T2IAdapterConfig):
        return T2IAdapter(config).apply({"params": params}, pixels)
    return ControlNet(config).apply({"params": params}, pixels, method="embed")


def _residuals(
    model: Model,
    bucket: Bucket,
    inputs: Inputs,
    embeddings: Sequence[Any],
    unet_inputs: UNetInputs,
    level: Level,
    branches: int,
) -> Residuals | None:
    """What ControlNets and T2I adapters add to the UNet, for the first so many branches; None if there are none."""
    total = None
    for number, (config, embedding) in enumerate(zip(bucket.controls, embeddings, strict=True)):
        guess_mode = inputs.per_image.guess_mode[number]
        weights = inputs.per_evaluation.control_weights[number][level.evaluation]
        # In guess mode the last branch, the negative prompt, is left alone.
        alone = jnp.where(guess_mode, 0.0, weights)
        unguided = bucket.prompts.guided and branches == bucket.prompts.branches
        all_weights = jnp.concatenate([jnp.tile(weights, branches - 1), alone if unguided else weights])
        if isinstance(config, T2IAdapterConfig):
            residuals = adapted(tuple(jnp.tile(each, (branches, 1, 1, 1)) for each in embedding), all_weights)
        else:
            context, mask, _ = unet_inputs.conditioning
            labels = unet_inputs.class_labels
            if labels is not None and model.unet.config.class_embed_type == "timestep":
                labels = labels.astype(jnp.float32)
            residuals = ControlNet(config).apply(
                {"params": inputs.shared.controls[number]},
                unet_inputs.latents,
                unet_inputs.timesteps,
                context,
                jnp.tile(embedding, (branches, 1, 1, 1)),
                labels,
                mask,
                scales=residual_scales(config, all_weights, jnp.tile(guess_mode, branches)),
            )
        total = residuals if total is None else added(total, residuals)
    return total


def _guided(
    bucket: Bucket, inputs: Inputs, predict: _Predict, latents: Latents, level: Level, memory: Memory
) -> tuple[Latents, Memory]:
    """The UNet's prediction with guidance; in steps without it the negative prompt is not asked for."""
    branches, weights = bucket.prompts.branches, inputs.per_evaluation.part_weights
    if not bucket.prompts.guided:
        [prediction], after = predict(latents, level, branches, memory)
        return prediction, after
    scale, rescale = inputs.per_image.guidance_scale, inputs.per_image.guidance_rescale

    def mean(parts: tuple[Latents, ...]) -> Latents:
        if len(parts) == 1:
            return parts[0]
        shares = (weights / weights.sum(axis=0, keepdims=True))[..., None, None, None]
        return sum((share * part for share, part in zip(shares, parts, strict=True)), jnp.zeros_like(latents))

    def guided() -> tuple[Latents, Memory]:
        (*parts, unconditional), after = predict(latents, level, branches, memory)
        result = classifier_free(unconditional, jnp.stack(parts), weights, scale)
        conditional = classifier_free(unconditional, jnp.stack(parts), weights, jnp.ones_like(scale))
        return rescaled(result, conditional, rescale), after

    def unguided() -> tuple[Latents, Memory]:
        parts, after = predict(latents, level, branches - 1, memory)
        return mean(parts), after

    def before_gate() -> tuple[Latents, Memory]:
        if not bucket.interval:
            return guided()
        begin, end = inputs.shared.guided
        within = (level.evaluation >= begin) & (level.evaluation < end)
        return jax.lax.cond(within, guided, unguided)

    def behind_gate() -> tuple[Latents, Memory]:
        [prediction], after = predict(latents, level, 1, memory, gated=True)
        return prediction, after

    if (gate := inputs.shared.gate) is None:
        return before_gate()
    return jax.lax.cond(level.evaluation < gate[0], before_gate, behind_gate)


def _classified(
    log_probability: LogProbability | None,
    params: Any,
    per_image: PerImage,
    denoised: Latents,
    latents: Latents,
    level: Level,
) -> Latents:
    assert log_probability is not None, "the planner lets no such job through"
    return classifier_guided(
        denoised,
        latents,
        level.sigma,
        level.alpha,
        level.timestep,
        per_image.classifier_labels,
        per_image.classifier_scale,
        log_probability,
        params,
    )


def _draw(bucket: Bucket, shape: tuple[int, int, int], inputs: Inputs) -> Callable[[NoiseRequest], Latents] | None:
    """Where the noise of the steps comes from."""
    if bucket.host_noise is not None:
        noise = inputs.per_evaluation.noise
        return None if noise is None else lambda wanted: noise[wanted.place]
    words, latents = inputs.per_image.seed_words, inputs.per_image.latents

    def draw(wanted: NoiseRequest) -> Latents:
        def drawn() -> Latents:
            return step_noise(words, wanted.place, wanted.brownian, wanted.span, shape)

        # What no image of the batch wants is not drawn; what an image gets depends on itself alone.
        return jax.lax.cond(jnp.any(wanted.draws), drawn, lambda: jnp.zeros_like(latents))

    return draw
