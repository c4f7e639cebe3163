"""The programs around sampling, for one device's share: first latents, images to latents, latents to images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from sdjax.diffusion import noise
from sdjax.diffusion.inpaint import filled
from sdjax.diffusion.resize_latents import resize_latents
from sdjax.diffusion.sample import Latents
from sdjax.engine.inputs import EncoderInputs, Img2ImgInputs, NoisedImageInputs, StartInputs
from sdjax.model import DTYPES, Model
from sdjax.models import vae_tiles
from sdjax.models.resnet import nearest
from sdjax.models.vae import Gaussian

# Pixels of the images that are decoded at once: 8 images of 512x512, for which the decoder compiled for a TPU takes
# 5.4 GB in float32. So memory does not grow with the batch. Bits follow from it, as from other code: a version of this
# library has one.
_PIXELS_AT_ONCE = 8 * 512 * 512


def precision(model: Model) -> Any:
    """float32 means float32, also where the device would rather round its factors."""
    return jax.default_matmul_precision("highest" if model.dtype == "float32" else "default")


def latent_shape(model: Model, height: int, width: int) -> tuple[int, int, int]:
    """(height, width, channels) of the latents of an image of `height` times `width` pixels."""
    cfg = model.vae.config
    return height // cfg.factor, width // cfg.factor, cfg.latent_channels


def start_latents(
    shape: tuple[int, int, int], resized_from: tuple[int, int] | None, params: Any, start: StartInputs
) -> Latents:
    """The first latents of noise that is drawn on the device."""
    words = start.seed_words
    first = noise.varied_start_noise(words, start.variation_seed_words, start.variation_strength, shape, resized_from)
    more = noise.step_noise(words, 0, shape)
    return first * start.start[:, None, None, None] + more * start.first_noise[:, None, None, None]


def img2img_latents(shape: tuple[int, int, int], params: Any, inputs: Img2ImgInputs) -> Latents:
    """The first latents of images that begin with an image."""
    image_latents = inputs.image_latents
    if inputs.mask is not None:
        drawn = inputs.fill_noise
        drawn = noise.filling_noise(drawn, shape) if drawn.ndim == 2 else drawn
        image_latents = filled(image_latents, inputs.mask, inputs.fill, drawn)
    weight = inputs.image_weight[:, None, None, None]
    return jnp.where(weight == 0, inputs.noise_latents, inputs.noise_latents + weight * image_latents)


def encode_images(
    model: Model, shape: tuple[int, int, int], tile: int, masked: bool, params: Any, inputs: EncoderInputs
) -> Latents:
    """Images to latents, as the sampler takes them.

    Args:
      model: whose VAE encodes.
      shape: (height, width, channels) of the latents.
      tile: side, in pixels, of the tiles in which it does; 0 is at once.
      masked: whether the noise is that for images of which a part is hidden.
      params: of the model.
      inputs: the images.
    """
    draw = noise.masked_image_latents_noise if masked else noise.image_latents_noise
    drawn = draw(inputs.noise, shape) if inputs.noise.ndim == 2 else inputs.noise
    pixels = inputs.pixels.astype(jnp.float32) / 127.5 - 1
    if inputs.hidden is not None:
        pixels = jnp.where(inputs.hidden, 0.0, pixels)
    return _posterior(model, params["vae"], pixels, tile).sample(drawn) * model.vae.config.scaling_factor


def _posterior(model: Model, vae: Any, pixels: Float[Array, "b h w 3"], tile: int) -> Gaussian:
    """What the encoder gives, in float32."""
    pixels = pixels.astype(jax.tree.leaves(vae)[0].dtype)
    with precision(model):
        if tile:
            posterior = vae_tiles.encode(model.vae, vae, pixels, tile)
        else:
            posterior = model.vae.apply({"params": vae}, pixels, method="encode")
    return Gaussian(*(each.astype(jnp.float32) for each in posterior))


def whole_mask_channels(
    model: Model,
    shape: tuple[int, int, int],
    tile: int,
    params: Any,
    drawn: Float[Array, "b h w c"] | UInt32[Array, "b 2"],
) -> Float[Array, "b h w d"]:
    """What an inpainting UNet sees to draw a whole image: a mask that covers all, and the latents of a grey image.

    Args:
      model: with an inpainting UNet.
      shape: (height, width, channels) of the latents.
      tile: side, in pixels, of the tiles in which the grey image is encoded; 0 is at once.
      params: of the model.
      drawn: noise with which latents are drawn from the encoder's distribution; or seeds of it.
    """
    drawn = noise.masked_image_latents_noise(drawn, shape) if drawn.ndim == 2 else drawn
    grey = jnp.zeros((1, shape[0] * model.vae.config.factor, shape[1] * model.vae.config.factor, 3))
    posterior = Gaussian(
        *(jnp.broadcast_to(each, drawn.shape) for each in _posterior(model, params["vae"], grey, tile))
    )
    latents = posterior.sample(drawn) * model.vae.config.scaling_factor
    return jnp.concatenate([jnp.ones((*drawn.shape[:3], 1)), latents], axis=-1)


def noised_images(params: Any, inputs: NoisedImageInputs) -> Float[Array, "b y x 3"]:
    """Images from -1 to 1 with noise added, as the x4 upscaler's UNet sees them."""
    drawn = inputs.noise
    drawn = noise.image_latents_noise(drawn, inputs.pixels.shape[1:]) if drawn.ndim == 2 else drawn
    signal, sigma = (share[:, None, None, None] for share in (inputs.signal, inputs.sigma))
    return (inputs.pixels.astype(jnp.float32) / 127.5 - 1) * signal + drawn * sigma


def doubled_latents(params: Any, latents: Latents) -> Float[Array, "b i j c"]:
    """Each value four times, as the x2 upscaler's UNet sees latents."""
    return nearest(latents, 2 * latents.shape[1], 2 * latents.shape[2])


def resized_latents(method: str, height: int, width: int, params: Any, latents: Latents) -> Float[Array, "b i j c"]:
    """Latents of another height and width; `method` is a key of `LATENT_UPSCALERS`."""
    return resize_latents(latents, method, height, width)


def decode(
    model: Model, dtype: str | None, tile: int, params: Any, latents: Float[Array, "b i j c"]
) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, " b"]]:
    """Latents to images, and whether each is finite.

    Args:
      model: whose VAE decodes.
      dtype: in which it does; None is that of its parameters.
      tile: side, in pixels, of the tiles in which it does; 0 is at once.
      params: of the model.
      latents: as the sampler gives them.
    """
    factor = model.vae.config.factor
    vae = params["vae"] if dtype is None else jax.tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), params["vae"])
    with precision(model):
        scaled = (latents / model.vae.config.scaling_factor).astype(jax.tree.leaves(vae)[0].dtype)
        if tile:
            decoded = vae_tiles.decode(model.vae, vae, scaled, tile)
        else:
            decoded = _in_groups(lambda group: model.vae.apply({"params": vae}, group, method="decode"), scaled, factor)
        pixels = decoded.astype(jnp.float32)
    finite = jnp.isfinite(pixels).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8), finite


def _in_groups(
    decode: Callable[[Array], Array], latents: Float[Array, "b i j d"], factor: int
) -> Float[Array, "b h w 3"]:
    """Decodes as many images at once as `_PIXELS_AT_ONCE` allows, in groups of one size; zeros fill up the last."""
    batch, height, width, _ = latents.shape
    most = max(1, _PIXELS_AT_ONCE // (height * width * factor**2))
    count = -(-batch // most)
    if count == 1:
        return decode(latents)
    size = -(-batch // count)
    padded = jnp.pad(latents, ((0, count * size - batch), (0, 0), (0, 0), (0, 0)))
    decoded = jax.lax.map(decode, padded.reshape(count, size, *latents.shape[1:]))
    return decoded.reshape(count * size, *decoded.shape[2:])[:batch]
