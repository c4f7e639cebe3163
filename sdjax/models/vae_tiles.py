"""The VAE on images whose features don't fit in memory: the same numbers, computed for a part of the image at a time.

Three things make the seams of tiles that are decoded one by one and blended: group norms take a tile's statistics for
the image's, attention sees a tile, and convolutions miss what is around it. None of them is so here. What runs at low
resolution, with the attention, runs on the whole image. The levels of the highest resolutions are cut into parts of a
few layers, and each part goes over strips of rows as wide as the image, with as many rows around a strip as its
convolutions reach. The statistics of a part's norms are those of the whole image: as many passes over the strips as
it has norms find one after the other, each pass running the layers before that norm; the last pass writes the result.

So the only difference from `VAE.decode` and `VAE.encode` is the rounding of sums; the price is that layers are run
again for each norm behind them.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdjax.models.convolution import Conv
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample
from sdjax.models.vae import EPS, VAE, Gaussian, Head, Middle, VAEConfig, gaussian

# At a side of 512 the decoder of Stable Diffusion takes 1.5 GB where it takes 3.8 for a whole image of 1024x1024.
VAE_TILE = 512
# So many levels of the highest resolutions go over strips. What is below takes no more memory than the result of the
# part before the last.
_LEVELS = 2


class _Layer(NamedTuple):
    """A module with the names that lead to its parameters.

    reach: rows on either side which a row of its result depends on, at the higher of its resolutions.
    norms: how many group norms it has.
    """

    module: nn.Module
    path: tuple[str, ...]
    reach: int = 1
    norms: int = 0


class _Part(NamedTuple):
    layers: list[_Layer]

    @property
    def norms(self) -> int:
        return sum(layer.norms for layer in self.layers)

    @property
    def halo(self) -> int:
        """Rows around a strip of what is given; even, so that every other one is also every other of the image."""
        rows = 0
        for layer in reversed(self.layers):
            if isinstance(layer.module, Downsample):
                rows = 2 * rows
            rows += layer.reach
            if isinstance(layer.module, Upsample):
                rows = -(-rows // 2)
        return rows + rows % 2


def _resnets(cfg: VAEConfig, level: tuple[str, ...], channels: int, count: int) -> list[_Layer]:
    block = ResnetBlock(channels, cfg.norm_num_groups, EPS)
    return [_Layer(block, (*level, f"resnets_{index}"), reach=2, norms=2) for index in range(count)]


def _decoder(cfg: VAEConfig) -> tuple[list[_Layer], list[_Part]]:
    """What runs on the whole image, and the parts after it.

    A level's first residual block takes twice the channels, at a resolution where these are never held as a whole; with
    what makes them it is a part of its own.
    """
    whole = [
        _Layer(Conv(cfg.block_out_channels[-1], (3, 3)), ("decoder", "conv_in")),
        _Layer(Middle(cfg), ("decoder", "mid_block")),
    ]
    if cfg.use_post_quant_conv:
        whole.insert(0, _Layer(Conv(cfg.latent_channels, (1, 1)), ("post_quant_conv",)))
    parts = []
    for index, channels in enumerate(reversed(cfg.block_out_channels)):
        below = ("decoder", f"up_blocks_{index - 1}", "upsamplers_0")
        up = [_Layer(Upsample(), below)] if index else []
        first, *others = _resnets(cfg, ("decoder", f"up_blocks_{index}"), channels, cfg.layers_per_block + 1)
        if index < len(cfg.block_out_channels) - _LEVELS:
            whole += [*up, first, *others]
        else:
            parts += [_Part([*up, first]), _Part(others)]
    parts[-1].layers.append(_Layer(Head(cfg, cfg.out_channels), ("decoder",), norms=1))
    return whole, parts


def _encoder(cfg: VAEConfig) -> tuple[list[_Part], list[_Layer]]:
    """The parts, a level each, and what runs on the whole image after them."""
    parts, whole = [], []
    for index, channels in enumerate(cfg.block_out_channels):
        level = ("encoder", f"down_blocks_{index}")
        layers = _resnets(cfg, level, channels, cfg.layers_per_block)
        if index == 0:
            layers.insert(0, _Layer(Conv(channels, (3, 3)), ("encoder", "conv_in")))
        if index < len(cfg.block_out_channels) - 1:
            layers.append(_Layer(Downsample("after"), (*level, "downsamplers_0")))
        if index < _LEVELS:
            parts.append(_Part(layers))
        else:
            whole += layers
    whole += [
        _Layer(Middle(cfg), ("encoder", "mid_block")),
        _Layer(Head(cfg, 2 * cfg.latent_channels), ("encoder",)),
    ]
    if cfg.use_quant_conv:
        whole.append(_Layer(Conv(2 * cfg.latent_channels, (1, 1)), ("quant_conv",)))
    return parts, whole


class _RowSums(NamedTuple):
    """Of the values in each row and group of channels: their mean, and the mean square of the distance from it."""

    mean: Float[Array, "h g"]
    square: Float[Array, "h g"]


class _Statistics(NamedTuple):
    """Of each group of channels over the whole image: the mean, and one over the standard deviation."""

    mean: Float[Array, " g"]
    inverse: Float[Array, " g"]


def _row_sums(x: Float[Array, "1 h w c"], groups: int) -> _RowSums:
    grouped = x.astype(jnp.float32).reshape(*x.shape[1:3], groups, -1)
    mean = grouped.mean(axis=(1, 3))
    return _RowSums(mean, jnp.square(grouped - mean[:, None, :, None]).mean(axis=(1, 3)))


def _statistics(rows: _RowSums) -> _Statistics:
    """Of all rows together, which have the same number of values each (Chan, Golub and LeVeque 1983)."""
    mean = rows.mean.mean(axis=0)
    variance = rows.square.mean(axis=0) + jnp.square(rows.mean - mean[None]).mean(axis=0)
    return _Statistics(mean, lax.rsqrt(variance + EPS))


class _Norms:
    """Stands in for the group norms of a part, by `nn.intercept_methods`.

    The first ones have the statistics `known`. `sums` is then what the next one was given; what comes after that has no
    meaning.
    """

    def __init__(self, known: Sequence[_Statistics]) -> None:
        self._known = iter(known)
        self.sums: _RowSums | None = None

    def __call__(self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], context: Any) -> Any:
        norm = context.module
        if not isinstance(norm, nn.GroupNorm):
            return call(*args, **kwargs)
        [x] = args
        statistics = next(self._known, None)
        if statistics is None:
            self.sums = self.sums or _row_sums(x, norm.num_groups)
            return x
        mean, inverse = (jnp.repeat(of_groups, x.shape[-1] // norm.num_groups) for of_groups in statistics)
        scale, bias = (norm.get_variable("params", name).astype(jnp.float32) for name in ("scale", "bias"))
        y = (x.astype(jnp.float32) - mean[None, None, None]) * (inverse * scale)[None, None, None]
        return (y + bias[None, None, None]).astype(x.dtype)


def _through(layers: Sequence[_Layer], params: Any, x: Float[Array, "1 h w c"]) -> Float[Array, "1 i j d"]:
    for layer in layers:
        own = functools.reduce(operator.getitem, layer.path, params)
        x = layer.module.apply({"params": own}, x)
    return x


def _by_strips(run: Callable[[Float[Array, "s w c"]], Any], x: Float[Array, "h w c"], strip: int, halo: int) -> Any:
    """What `run` gives for all of `x`, from strips of so many rows.

    `run` gives arrays with as many rows as it is given, twice or half as many; each of its rows depends on no more than
    `halo` rows on either side. The window around a strip lies within the image, so that convolutions meet a border
    where the image has one.
    """
    height = x.shape[0]
    strip = min(strip, height)
    window = min(strip + 2 * halo, height)

    def add(index: Array, results: Any) -> Any:
        start = jnp.minimum(index * strip, height - strip)  # the last strip may give some rows again
        top = jnp.clip(start - halo, 0, height - window)

        def put(result: Array, found: Array) -> Array:
            def rows(given: Any) -> Any:
                return given * found.shape[0] // window

            inner = lax.dynamic_slice_in_dim(found, rows(start - top), rows(strip))
            return lax.dynamic_update_slice_in_dim(result, inner, rows(start), 0)

        return jax.tree.map(put, results, run(lax.dynamic_slice_in_dim(x, top, window)))

    def empty(found: jax.ShapeDtypeStruct) -> Array:
        # Something that depends on `x`, all of which is written over: XLA makes constants when the program begins, and
        # holds them until they are wanted.
        return jnp.full((found.shape[0] * height // window, *found.shape[1:]), x[0, 0, 0], found.dtype)

    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((window, *x.shape[1:]), x.dtype))
    return lax.fori_loop(0, -(-height // strip), add, jax.tree.map(empty, shapes))


def _next(
    part: _Part, params: Any, known: Sequence[_Statistics], window: Float[Array, "s w c"]
) -> _RowSums | Float[Array, "t v d"]:
    """The sums of the first norm of which the statistics are not known; the result if all are."""
    norms, x = _Norms(known), window[None]
    with nn.intercept_methods(norms):
        for layer in part.layers:
            if norms.sums is None:
                x = _through([layer], params, x)
    return x[0] if norms.sums is None else norms.sums


def _part_through(part: _Part, params: Any, x: Float[Array, "h w c"], strip: int) -> Float[Array, "i j d"]:
    known: tuple[_Statistics, ...] = ()
    for _ in range(part.norms):
        sums = _by_strips(functools.partial(_next, part, params, known), x, strip, part.halo)
        known = (*known, _statistics(sums))
    return _by_strips(functools.partial(_next, part, params, known), x, strip, part.halo)


def _strip(cfg: VAEConfig, tile: int, width: int) -> int:
    """Rows of pixels in a strip: a multiple of the factor."""
    return max(tile * tile // width // cfg.factor, 1) * cfg.factor


def tile_of(height: int, width: int, vae_tile: int) -> int:
    """The side of the tiles in which an image is decoded, if it is larger than four of them; else 0, for at once."""
    return vae_tile if height * width > 4 * vae_tile**2 else 0


def decode(vae: VAE, params: Any, latents: Float[Array, "b i j c"], tile: int) -> Float[Array, "b h w 3"]:
    """`VAE.decode`, one image and one strip at a time.

    Args:
      vae: the module.
      params: its parameters.
      latents: as `VAE.decode` takes them, of any size.
      tile: a strip has about as many pixels as a square of this side, but at least as many rows as a latent has.
    """
    cfg = vae.config
    whole, parts = _decoder(cfg)
    strip = _strip(cfg, tile, latents.shape[2] * cfg.factor)

    def one(image: Float[Array, "i j c"]) -> Float[Array, "h w 3"]:
        x = _through(whole, params, image[None])[0]
        for part in parts:
            x = _part_through(part, params, x, strip * x.shape[0] // (image.shape[0] * cfg.factor))
        return x

    return lax.map(one, latents)


def encode(vae: VAE, params: Any, pixels: Float[Array, "b h w 3"], tile: int) -> Gaussian:
    """`VAE.encode`, one image and one strip at a time.

    Args:
      vae: the module.
      params: its parameters.
      pixels: in [-1, 1]; both sides multiples of the factor, or it is a `ValueError`.
      tile: as of `decode`.
    """
    cfg = vae.config
    height, width = pixels.shape[1:3]
    if height % cfg.factor or width % cfg.factor:
        raise ValueError(f"an image of {width}x{height} is not in multiples of {cfg.factor}: scale or cut it before")
    parts, whole = _encoder(cfg)
    strip = _strip(cfg, tile, width)

    def one(image: Float[Array, "h w 3"]) -> Float[Array, "i j d"]:
        x = image
        for part in parts:
            x = _part_through(part, params, x, strip * x.shape[0] // height)
        return _through(whole, params, x[None])[0]

    return gaussian(lax.map(one, pixels))
