"""Depth maps: a depth estimator from a checkpoint, what it gives for an image, and the forms that others want it in.

Depth is relative and inverse everywhere: larger is nearer, and neither scale nor offset means anything.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Float32, UInt8, UInt16
from PIL import Image

from sdjax.checkpoints.depth_file import PARTS, DepthFile, DepthProcessor, depth_shapes, find_depth
from sdjax.checkpoints.tensors import NetworkTensors, Params, load_networks
from sdjax.engine.device import platform_of, program_for
from sdjax.library.finding import FileState, states_of
from sdjax.library.library import find_place
from sdjax.models.depth import DepthConfig, DepthEstimator
from sdjax.models.interpolation import bicubic

# How many times as many pixels as of a square the network takes of an image of other proportions.
_MOST = 8
_GREYS = np.iinfo(np.uint16).max


class DepthModel(NamedTuple):
    """A depth estimator on a device.

    params: arrays of one dtype, in which it computes.
    processor: how an image becomes what the network sees.
    digest: sha256 over every file that has a say in what it gives.
    """

    config: DepthConfig
    params: Params
    processor: DepthProcessor
    digest: str


class DepthModelFile(NamedTuple):
    """An estimator of depth, without its parameters.

    digest: sha256 over every file that has a say in what it gives.
    path: of its file or folder.
    """

    config: DepthConfig
    processor: DepthProcessor
    digest: str
    path: Path


def load_depth(path: str | Path, dtype: DTypeLike = jnp.float32, pickled: bool = False) -> DepthModel:
    """Loads a depth estimator: MiDaS' DPT-Hybrid or DPT-Large.

    Args:
      path: transformers' folder (Intel/dpt-hybrid-midas, Intel/dpt-large); a diffusers folder with `depth_estimator/`
        (Stable Diffusion 2 depth); a single file under the original names, MiDaS' own or of the same model; or "emoji",
        the bundled one.
      dtype: of the parameters in memory, and of the computation.
      pickled: whether pickled weights are taken.

    Raises:
      CheckpointError: if there is none, or it is not whole.
      ConfigError: if its config or its settings ask for what is not implemented.
    """
    found = find_depth(find_depth_model(path), pickled)
    params, digest = _load(found, dtype)
    return DepthModel(found.config, jax.device_put(params), found.processor, digest)


def find_depth_model(path: str | Path) -> Path:
    """Where an estimator of depth is, by its path or as a bundled one; raises `CheckpointError` if there is none."""
    return find_place(path, "depth_model", "estimator of depth")


def depth_states(place: Path) -> tuple[FileState, ...]:
    """The states of the files of an estimator; of a diffusers folder those of its parts that belong to it."""
    parts = [place / part for part in PARTS if (place / part).is_dir()] or [place]
    return tuple(state for part in parts for state in states_of(part))


def read_depth(place: Path, pickled: bool) -> DepthModelFile:
    """What is to be known of an estimator before it runs; its files are hashed, and no parameter is read.

    Arguments and errors are those of `sdjax.checkpoints.depth_file.find_depth`.
    """
    found = find_depth(place, pickled)
    return DepthModelFile(found.config, found.processor, found.digest(), place)


def load_depth_params(file: DepthModelFile, pickled: bool) -> tuple[Params, str]:
    """The parameters, arrays of numpy in float32, and the digest of the files that they were read from."""
    return _load(find_depth(file.path, pickled), jnp.float32)


def _load(found: DepthFile, dtype: DTypeLike) -> tuple[Params, str]:
    params, hashed = load_networks({"depth": NetworkTensors(found.chosen, depth_shapes(found.config), dtype)})
    return params["depth"], found.digest(hashed)


def depth_of(model: DepthModel, pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "i j"]:
    """The depth of one image, at the size at which the network sees it; compiled once for each such size.

    Raises:
      ValueError: if the image is too long and narrow, or what the network gives is not finite.
    """
    values = processed(model.processor, pixels)
    precision = "highest" if jax.tree.leaves(model.params)[0].dtype == jnp.float32 else "default"
    with jax.default_matmul_precision(precision):
        estimated = program_for(platform_of(model.params), _estimated, model.config)
        found = np.asarray(estimated(model.params, values[None])[0])
    if not np.isfinite(found).all():
        raise ValueError("the estimator of depth gave NaN or infinity for an image")
    return found


def _estimated(
    config: DepthConfig, params: Params, pixels: Float[Array | np.ndarray, "b h w 3"]
) -> Float[Array, "b i j"]:
    dtype = jax.tree.leaves(params)[0].dtype
    return DepthEstimator(config).apply({"params": params}, pixels.astype(dtype)).astype(jnp.float32)


def processed(processor: DepthProcessor, pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "i j 3"]:
    """What the network sees of an image, to the bit as transformers' `DPTImageProcessor` does it with Pillow."""
    if processor.do_resize:
        height, width = _network_size(processor, *pixels.shape[:2])
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling(processor.resample))
        pixels = np.asarray(resized)
    values = pixels.astype(np.float32)
    if processor.do_rescale:
        values = (pixels.astype(np.float64) * processor.rescale_factor).astype(np.float32)
    if processor.do_normalize:
        mean, deviation = (np.array(values, np.float32) for values in (processor.image_mean, processor.image_std))
        values = (values - mean[None, None]) / deviation[None, None]
    return values


def _network_size(processor: DepthProcessor, height: int, width: int) -> tuple[int, int]:
    """The size to which an image is resized: of two scales that keep its shape, the one nearer to 1."""
    scale_y, scale_x = processor.size[0] / height, processor.size[1] / width
    if processor.keep_aspect_ratio:
        scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
    step = processor.ensure_multiple_of
    if scale_y * height * scale_x * width > _MOST * processor.size[0] * processor.size[1]:
        raise ValueError(f"{width}x{height} pixels are too long and narrow for an estimator of depth")
    return max(step, round(scale_y * height / step) * step), max(step, round(scale_x * width / step) * step)


def check_size(processor: DepthProcessor, height: int, width: int) -> None:
    """Raises `ValueError` for an image that is too long and narrow for the network."""
    if processor.do_resize:
        _network_size(processor, height, width)


def sized(depth: Float[np.ndarray, "i j"], height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """Depth at another size, as transformers' `post_process_depth_estimation` gives it at the image's."""
    return bicubic(depth.astype(np.float32)[None, :, :, None], height, width)[0, :, :, 0]


def normalised(
    depth: Float[np.ndarray, "b i j"], height: int, width: int
) -> Float32[np.ndarray, "b {height} {width} 1"]:
    """What a depth-to-image UNet sees beside the latents, of whose size it is: each map from -1 (far) to 1 (near).

    As diffusers' `StableDiffusionDepth2ImgPipeline.prepare_depth_map`; but a map that is flat, of which that makes NaN,
    is -1 everywhere.
    """
    maps = bicubic(depth.astype(np.float32)[..., None], height, width)
    low, high = (bound(maps, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    return np.float32(2) * (maps - low) / np.where(high > low, high - low, np.float32(1)) - np.float32(1)


def grey_png16(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Depth as grey levels of 16 bits: the nearest is white, the farthest black; a flat map is black."""
    low, high = float(depth.min()), float(depth.max())
    share = (depth.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return np.rint(share * _GREYS).astype(np.uint16)
