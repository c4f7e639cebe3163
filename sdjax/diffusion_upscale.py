"""Upscaling with Stable Diffusion's upscalers: x4, of small pictures, and x2, of latents.

The programs are written for one device's share of a batch, as those of `sdjax.program`; the functions at the end cut
what they are given into batches of one size, for one device.

The x4 upscaler (Rombach et al. 2022, arXiv:2112.10752, section 4.5; Ho et al. 2021, arXiv:2106.15282, section 4.2) is
a UNet that sees the small picture, with noise on it, beside latents of its height and width, and is told the noise's
level as a class label.

The x2 upscaler is preconditioned as in Karras et al. 2022 (arXiv:2206.00364, table 1) for data of deviation 1: it gives
F of (latents / sqrt(sigma^2 + 1), ln(sigma) / 4), and latents / (sigma^2 + 1) + F * sigma / sqrt(sigma^2 + 1) are the
denoised latents. It sees the latents to be upscaled as they are, each four times, and 64 ones, 64 zeros (the cosines
and sines of how noisy they are: not at all) and the text encoder's last state at the end of the prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from sdjax import conditions
from sdjax.checkpoints.sd_upscaler import NOISE_FEATURES
from sdjax.device import platform_of, program_for
from sdjax.diffusion import noise
from sdjax.diffusion.guidance import classifier_free, network_input, to_denoised
from sdjax.diffusion.sample import Denoise, Latents, Level, TableArrays, sample, stack_tables
from sdjax.diffusion.scheduler_config import alphas_cumprod
from sdjax.diffusion.tableau import Table
from sdjax.job import JobError
from sdjax.model import DTYPES
from sdjax.models import vae_tiles
from sdjax.models.latent_upscaler import LatentUpscalerUNet
from sdjax.models.resnet import nearest
from sdjax.text.tokenized_prompt import tokenize_prompt
from sdjax.upscaler_model import Networks, Upscaler

# --- The programs ---


class X4Inputs(NamedTuple):
    """The arrays of one batch of the x4 upscaler.

    Where noise is drawn on the device, both kinds are seeds, (images, 2).
    """

    prompts: conditions.Prompts
    pixels: Any  # (images, h, w, 3) uint8
    signal: Any  # (images, 2) the shares of picture and noise
    noise_level: Any  # (images,) int32
    picture_noise: Any  # (images, h, w, 3)
    noise: Any  # (images, h, w, c) of the first latents
    start: Any  # (images,) their standard deviation
    guidance: Any  # (images,)
    tables: TableArrays


class X2Inputs(NamedTuple):
    """The arrays of one batch of the x2 upscaler; the last branch is the negative prompt if there are two."""

    tokens: Any  # (branches, images, tokens)
    ends: Any  # (branches, images) where prompts end
    latents: Any  # (images, h, w, c) to be upscaled, as the sampler of another model gives them
    noise: Any  # (images, 2h, 2w, c); or (images, 2) seeds of it
    start: Any  # (images,) its standard deviation
    guidance: Any  # (images,)
    tables: TableArrays


def x4_latents(networks: Networks, params: Any, inputs: X4Inputs) -> Latents:
    """Small pictures to latents of their height and width, which the VAE decodes to four times that."""
    unet, dtype = networks.unet, DTYPES[networks.dtype]
    height, width = inputs.pixels.shape[1:3]
    first = _drawn(inputs.noise, (height, width, networks.vae.config.latent_channels), noise.start_noise)
    picture_noise = _drawn(inputs.picture_noise, inputs.pixels.shape[1:], noise.image_latents_noise)
    clean_share, noise_share = (inputs.signal[:, place, None, None, None] for place in (0, 1))
    picture = (inputs.pixels.astype(jnp.float32) / 127.5 - 1) * clean_share + picture_noise * noise_share
    with _precision(networks):
        contexts = conditions.encode(networks.text_encoder, params["text_encoder"], inputs.prompts)

        def predict(latents: Latents, level: Level) -> Float[Array, "q h w c"]:
            text_of = inputs.prompts.text_of[level.evaluation]
            context, mask = conditions.seen_by(contexts, text_of)
            shown = jnp.concatenate([network_input(latents, level.alpha), picture], axis=-1).astype(dtype)
            sample_, timesteps, labels = (
                _for_each(each, text_of.shape[1]) for each in (shown, level.timestep, inputs.noise_level)
            )
            given: Array = unet.apply({"params": params["unet"]}, sample_, timesteps, context, labels, mask)
            return given

        def denoise(latents: Latents, level: Level) -> Latents:
            prediction = _guided(predict(latents, level), inputs.prompts.part_weights, inputs.guidance)
            return to_denoised(prediction, latents, level.sigma, level.alpha, networks.prediction_type)

        return _sampled(denoise, first, inputs.start, inputs.tables)


def x2_latents(networks: Networks, params: Any, inputs: X2Inputs) -> Latents:
    """Latents to those of a picture of twice the height and width."""
    unet, dtype = networks.unet, DTYPES[networks.dtype]
    branches, images, length = inputs.tokens.shape
    height, width, channels = 2 * inputs.latents.shape[1], 2 * inputs.latents.shape[2], inputs.latents.shape[3]
    first = _drawn(inputs.noise, (height, width, channels), noise.start_noise)
    with _precision(networks):
        tokens = inputs.tokens.reshape(branches * images, length)
        read = networks.text_encoder.apply({"params": params["text_encoder"]}, tokens)
        ends = inputs.ends.reshape(branches * images, 1, 1)
        whole = jnp.take_along_axis(read.last_hidden_state, ends, axis=1)[:, 0]
        not_noisy = jnp.repeat(jnp.array([1, 0], whole.dtype), NOISE_FEATURES // 2)
        told = jnp.concatenate([jnp.tile(not_noisy[None], (len(whole), 1)), whole], axis=-1)
        upscaled = nearest(inputs.latents, height, width)

        def denoise(latents: Latents, level: Level) -> Latents:
            shown = jnp.concatenate([network_input(latents, level.alpha), upscaled], axis=-1).astype(dtype)
            sample_, timesteps = (_for_each(each, branches) for each in (shown, level.timestep))
            # As published it was trained on states before the final norm.
            given = unet.apply({"params": params["unet"]}, sample_, timesteps, read.hidden_states[-1], told)
            # The last channel is a variance, which is not used.
            prediction = _guided(given[..., :-1], jnp.ones((1, images)), inputs.guidance)
            # The network's F is the v of Salimans and Ho with the other sign.
            return to_denoised(-prediction, latents, level.sigma, level.alpha, "v_prediction")

        return _sampled(denoise, first, inputs.start, inputs.tables)


def pixels_of(
    networks: Networks, tile: int, params: Any, latents: Float[Array, "b i j c"]
) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, " b"]]:
    """Latents to pixels: (images, whether each is finite); `tile` is the side of the VAE's tiles, 0 for at once."""
    vae, weights = networks.vae, params["vae"]
    with _precision(networks):
        scaled = (latents / vae.config.scaling_factor).astype(jax.tree.leaves(weights)[0].dtype)
        if tile:
            decoded = vae_tiles.decode(vae, weights, scaled, tile)
        else:
            decoded = vae.apply({"params": weights}, scaled, method="decode")
        pixels = decoded.astype(jnp.float32)
    finite = jnp.isfinite(pixels).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8), finite


def _drawn(
    given: Float[Array, "b h w c"] | UInt32[Array, "b 2"], shape: tuple[int, ...], draw: Any
) -> Float[Array, "b h w c"]:
    return draw(given, shape) if given.ndim == 2 else given


def _for_each(values: Array, branches: int) -> Array:
    """The same for each branch, branches outside."""
    return jnp.tile(values, (branches, *(1,) * (values.ndim - 1)))


def _guided(predictions: Float[Array, "q h w c"], weights: Float[Array, "p b"], scale: Float[Array, " b"]) -> Latents:
    """The predictions of a prompt's parts, and of the negative prompt if there are more than parts, as one."""
    parts, images = weights.shape
    each = predictions.astype(jnp.float32).reshape(-1, images, *predictions.shape[1:])
    if len(each) == parts:
        return each[0]
    return classifier_free(each[-1], each[:-1], weights, scale)


def _sampled(denoise: Denoise, first: Latents, start: Float[Array, " b"], tables: TableArrays) -> Latents:
    latents, _ = sample(denoise, first * start[:, None, None, None], tables, None)
    return latents


def _precision(networks: Networks) -> Any:
    """float32 means float32, also where the device would rather round its factors."""
    return jax.default_matmul_precision("highest" if networks.dtype == "float32" else "default")


# --- From pictures to pictures ---

# Tables are filled up to multiples of so many evaluations, so that few programs serve many numbers of steps.
_ROWS = 64


def upscale_x4(
    upscaler: Upscaler,
    pixels: UInt8[np.ndarray, "b h w 3"],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompts: Sequence[str] = (),
    steps: int = 75,
    guidance_scale: float = 9.0,
    noise_level: int = 20,
    noise_source: str = "threefry",
    prompt_syntax: str = "a1111",
    prompt_problems: str = "reject",
    batch_size: int = 1,
    vae_tile: int = 0,
) -> UInt8[np.ndarray, "b i j 3"]:
    """Pictures of four times the height and width.

    What becomes of one does not depend on the others, but for `batch_size`. Other arguments are named, and set where
    they are left out, as in diffusers' `StableDiffusionUpscalePipeline`.

    Args:
      upscaler: the x4 one.
      pixels: the small pictures.
      prompts: one for each.
      seeds: one for each.
      negative_prompts: likewise; empty ones if there are none.
      steps: of the checkpoint's scheduler.
      guidance_scale: up to 1 there is no guidance.
      noise_level: of the noise that is put on the small pictures, from 0 to the checkpoint's `max_noise_level`.
      noise_source: "threefry", or "torch" or "philox" in diffusers' order with a generator for each picture.
      prompt_syntax: how prompts are read; see `sdjax.text.tokenized_prompt.tokenize_prompt`.
      prompt_problems: "reject" or "accept" prompts that can't be read as they stand, as of jobs.
      batch_size: pictures that are made at once.
      vae_tile: side, in pixels, of the tiles in which the VAE decodes; 0 is at once.

    Raises:
      JobError: for a noise level or a number of steps that the checkpoint has not, or a prompt that can't be read as
        it was meant, does not fit, or names adapters.
      ArithmeticError: if pictures are not finite.
    """
    _check(upscaler, 4, pixels, prompts, seeds)
    assert upscaler.low_res is not None
    _check_level(upscaler, noise_level)
    table = upscaler.table(steps)
    used = [
        read_prompt(upscaler, prompt, negative, prompt_syntax, prompt_problems, table, guidance_scale)
        for prompt, negative in zip(prompts, negative_prompts or [""] * len(prompts), strict=True)
    ]
    clean = alphas_cumprod(upscaler.low_res)[noise_level]
    shape = (*pixels.shape[1:3], upscaler.networks.vae.config.latent_channels)
    sampled, decoded = _program(upscaler, x4_latents), _program(upscaler, pixels_of, vae_tile)
    made = np.zeros((len(pixels), *(4 * side for side in pixels.shape[1:3]), 3), np.uint8)
    for batch, count in _batches([each.shape for each in used], batch_size):
        # In diffusers' order: first for the picture, then for the latents.
        drawn = _noise(noise_source, [seeds[index] for index in batch], [pixels.shape[1:], shape])
        inputs = X4Inputs(
            prompts=conditions.arrays(
                [used[index] for index in batch], [table] * batch_size, [0] * batch_size, _rows(table)
            ),
            pixels=pixels[batch],
            signal=np.full((batch_size, 2), [np.sqrt(clean), np.sqrt(1 - clean)], np.float32),
            noise_level=np.full(batch_size, noise_level, np.int32),
            picture_noise=drawn[0],
            noise=drawn[1],
            **_shared(table, guidance_scale, batch_size),
        )
        latents = sampled(upscaler.params, inputs)
        images, finite = decoded(upscaler.params, latents)
        if not np.all(finite[:count]):
            raise ArithmeticError(f"upscaling gives pictures that are not finite: {np.array(batch)[~np.array(finite)]}")
        made[batch[:count]] = np.asarray(images)[:count]
    return made


def upscale_latent_x2(
    upscaler: Upscaler,
    latents: Float[np.ndarray, "b h w c"],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompts: Sequence[str] = (),
    steps: int = 75,
    guidance_scale: float = 9.0,
    noise_source: str = "threefry",
    batch_size: int = 1,
) -> Float[np.ndarray, "b i j c"]:
    """Latents of pictures of twice the height and width.

    Args:
      upscaler: the x2 one.
      latents: scaled as a sampler gives them, of a model of Stable Diffusion 1 or 2; twice their sides are multiples
        of the UNet's factor, 8 as published.
      prompts, seeds, negative_prompts, steps, noise_source, batch_size: as for `upscale_x4`; prompts are plain text.
      guidance_scale: up to 1 there is no guidance, and at 0 no prompt either.

    Raises:
      JobError: for a number of steps or a size that is not supported, or a prompt that does not fit.
    """
    _check(upscaler, 2, latents, prompts, seeds)
    height, width, channels = 2 * latents.shape[1], 2 * latents.shape[2], latents.shape[3]
    check_latents(upscaler, *latents.shape[1:])
    table = upscaler.table(steps)
    asked = [
        _asked(*pair, guidance_scale) for pair in zip(prompts, negative_prompts or [""] * len(prompts), strict=True)
    ]
    tokens = np.array([[tokens_of(upscaler, text) for text in branch] for branch in zip(*asked, strict=True)], np.int32)
    ends = np.argmax(tokens == upscaler.tokenizer.end, axis=-1).astype(np.int32)
    sampled = _program(upscaler, x2_latents)
    made = np.zeros((len(latents), height, width, channels), np.float32)
    for batch, count in _batches([None] * len(latents), batch_size):
        [drawn] = _noise(noise_source, [seeds[index] for index in batch], [(height, width, channels)])
        inputs = X2Inputs(
            tokens=tokens[:, batch],
            ends=ends[:, batch],
            latents=latents[batch].astype(np.float32),
            noise=drawn,
            **_shared(table, guidance_scale, batch_size),
        )
        made[batch[:count]] = np.asarray(sampled(upscaler.params, inputs))[:count]
    return made


def check(
    upscaler: Upscaler,
    prompt: str,
    negative_prompt: str,
    *,
    steps: int,
    guidance_scale: float,
    noise_level: int,
    prompt_syntax: str,
    prompt_problems: str,
) -> None:
    """Raises the `JobError` that upscaling would; arguments are those of `upscale_x4`."""
    table = upscaler.table(steps)
    if upscaler.factor == 4:
        _check_level(upscaler, noise_level)
        read_prompt(upscaler, prompt, negative_prompt, prompt_syntax, prompt_problems, table, guidance_scale)
    else:
        for text in _asked(prompt, negative_prompt, guidance_scale):
            tokens_of(upscaler, text)


def check_latents(upscaler: Upscaler, height: int, width: int, channels: int) -> None:
    """Raises the `JobError` that `upscale_latent_x2` would for latents of that shape."""
    unet = upscaler.networks.unet
    assert isinstance(unet, LatentUpscalerUNet)
    if 2 * height % unet.config.factor or 2 * width % unet.config.factor:
        raise JobError(f"latents of {height}x{width}: expected sides that are multiples of {unet.config.factor // 2}")
    if channels != upscaler.networks.vae.config.latent_channels:
        raise JobError(
            f"latents of {channels} channels: the upscaler's have {upscaler.networks.vae.config.latent_channels}"
        )


def _check_level(upscaler: Upscaler, noise_level: int) -> None:
    if not 0 <= noise_level <= upscaler.max_noise_level:
        raise JobError(f"noise_level = {noise_level}: expected a number from 0 to {upscaler.max_noise_level}")


def _program(upscaler: Upscaler, function: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    return program_for(platform_of(upscaler.params), function, upscaler.networks, *settings)


def _check(upscaler: Upscaler, factor: int, pictures: Any, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    if upscaler.factor != factor:
        raise JobError(f"{upscaler.name} upscales by {upscaler.factor}; expected an upscaler by {factor}")
    if not len(pictures) == len(prompts) == len(seeds):
        raise ValueError(f"{len(pictures)} pictures, {len(prompts)} prompts, {len(seeds)} seeds: expected as many")


def read_prompt(
    upscaler: Upscaler, prompt: str, negative: str, syntax: str, problems: str, table: Table, guidance_scale: float
) -> conditions.Used:
    """What of prompts the x4 upscaler is asked; raises `JobError` if they can't be read as they were meant."""
    steps = int(table.step[-1]) + 1
    read = tokenize_prompt(upscaler.tokenizer, prompt, negative, syntax=syntax, emphasis="original", steps=steps)
    guided = guidance_scale > 1
    parts = len(read.part_weights)
    found = [
        *(read.problems if problems == "reject" else ()),
        *(f"<{tag.kind}:{tag.name}> names an adapter" for tag in read.tags),
    ]
    found += [f"{cut!r} does not fit" for cut in (read.cut, guided and read.negative_cut) if cut]
    if not guided and read.part_weights != (1.0,):
        found.append("it has weighted parts, which need guidance")
    if found:
        raise JobError(f"the prompt {prompt!r} of a picture to be upscaled: {'; '.join(found)}")
    return conditions.used(read, tuple(range(parts + guided)), guided)


def _asked(prompt: str, negative_prompt: str, guidance_scale: float) -> list[str]:
    """What the x2 upscaler is asked: at a scale of 0 no prompt either, as in diffusers."""
    return [prompt if guidance_scale else "", *([negative_prompt] if guidance_scale > 1 else [])]


def tokens_of(upscaler: Upscaler, prompt: str) -> tuple[int, ...]:
    """A prompt as the x2 upscaler reads it; raises `JobError` if it does not fit."""
    tokens = upscaler.tokenizer(prompt)
    if tokens.cut:
        raise JobError(f"the prompt {prompt!r} of latents to be upscaled: {tokens.cut!r} does not fit")
    return tokens.ids


def _batches(kinds: Sequence[Any], size: int) -> Iterator[tuple[list[int], int]]:
    """Places of one kind, `size` at a time and filled up with the last; and how many there are without that."""
    for kind in dict.fromkeys(kinds):
        places = [place for place, each in enumerate(kinds) if each == kind]
        for start in range(0, len(places), size):
            batch = places[start : start + size]
            yield batch + batch[-1:] * (size - len(batch)), len(batch)


def _noise(source: str, seeds: Sequence[int], shapes: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """For each shape seeds, or what is drawn from them on the host: for one picture all shapes in turn."""
    if source == "threefry":
        return [np.stack([noise.to_seed_words(seed) for seed in seeds])] * len(shapes)
    generators = [noise.host_generator(source, seed) for seed in seeds]
    drawn = [[noise.host_randn(generator, shape) for shape in shapes] for generator in generators]
    return [np.stack(each) for each in zip(*drawn, strict=True)]


def _rows(table: Table) -> int:
    """The length of the compiled table."""
    return -(-table.evaluations // _ROWS) * _ROWS


def _shared(table: Table, guidance_scale: float, batch_size: int) -> dict[str, Any]:
    return {
        "start": np.full(batch_size, table.start, np.float32),
        "guidance": np.full(batch_size, guidance_scale, np.float32),
        "tables": stack_tables([table] * batch_size, _rows(table)),
    }
