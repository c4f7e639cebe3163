"""The comparisons of depth estimators: toys, images, and what sdjax gives for them. Only results are stored."""

import dataclasses
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from sdjax.checkpoints.depth_file import DEPTH, DepthProcessor, depth_shapes
from sdjax.checkpoints.name_table import file_names, to_file
from sdjax.checkpoints.tensors import Params
from sdjax.library.depth import DepthModel, depth_of, normalised, processed
from sdjax.models.bit import BitConfig
from sdjax.models.depth import DepthConfig
from tests import toys

RECORDED = Path(__file__).parent / "depth.npz"
# Names and shapes of the published networks, of transformers and of the original code, and of the original toys.
SHAPES = Path(__file__).parent / "depth_shapes.json.gz"
# What transformers 4.26.1, 4.44.2 and 5 write for the published sizes: "hybrid", "large" and "processor" of each.
CONFIGS = json.loads(gzip.decompress((Path(__file__).parent / "depth_configs.json.gz").read_bytes()))
PUBLISHED = ("hybrid", "large")
# What transformers' networks have and nothing computes with.
NOT_COMPUTED = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")

PLAIN = DepthConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=96,
    image_size=64,
    backbone_out_indices=(0, 1, 2, 3),
    neck_hidden_sizes=(24, 32, 40, 48),
    fusion_hidden_size=48,
)
HYBRID = dataclasses.replace(
    PLAIN,
    is_hybrid=True,
    reassemble_factors=(1, 1, 1, 0.5),
    neck_hidden_sizes=(64, 96, 40, 48),
    backbone_config=BitConfig(embedding_size=32, hidden_sizes=(64, 96, 128), depths=(1, 2, 1), num_groups=8),
)


class Case(NamedTuple):
    """A toy with random weights, and the sizes of the images that it is asked about, which need no resizing.

    more: sizes of which nothing is recorded.
    """

    config: DepthConfig
    seed: int
    sizes: tuple[tuple[int, int], ...]
    more: tuple[tuple[int, int], ...] = ()


CASES = {
    "hybrid": Case(HYBRID, 1, ((64, 64),), ((80, 48), (96, 96), (32, 64))),
    "plain": Case(PLAIN, 2, ((64, 64), (70, 92)), ((96, 96), (64, 32))),
    "plain_with_batch_norm": Case(
        dataclasses.replace(PLAIN, use_batch_norm_in_fusion_residual=True, qkv_bias=False), 3, (), ((64, 64),)
    ),
    "plain_readout_added": Case(
        dataclasses.replace(PLAIN, readout_type="add", use_bias_in_fusion_residual=False, num_hidden_layers=6,
                            backbone_out_indices=(0, 2, 3, 5)), 4, (), ((48, 48),)
    ),
    "plain_readout_ignored": Case(dataclasses.replace(PLAIN, readout_type="ignore", patch_size=8), 5, (), ((64, 64),)),
}  # fmt: skip

# Settings, and the sizes of images that they are tried on.
PROCESSORS = {
    "published": DepthProcessor(size=(24, 24)),
    "bilinear": DepthProcessor(size=(16, 24), resample=2, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25)),
    "shape_kept": DepthProcessor(size=(32, 32), keep_aspect_ratio=True, ensure_multiple_of=16),
    "plain_numbers": DepthProcessor(do_resize=False, do_normalize=False),
}
IMAGES = ((25, 38), (53, 27), (24, 24))
# A map, and the size that it is brought to.
SIZED = (np.random.RandomState(6).rand(12, 20).astype(np.float32), 30, 17)
# Toys of the original code, and the sizes of the images that they are asked about.
ORIGINALS = {"original_hybrid": ((96, 64),), "original_plain": ((64, 96),)}


def params_of(case: Case) -> Params:
    """Random weights."""
    return toys.random_params(depth_shapes(case.config), np.random.RandomState(case.seed))


def state(params: Params) -> dict[str, np.ndarray]:
    """Weights under transformers' names and in torch's layout."""
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = tuple(key.key for key in keys)
        # What is no weight is called otherwise; the last name is torch's own.
        found[file_names(path, DEPTH)[-1]] = to_file(path, np.asarray(leaf))
    return found


def image(height: int, width: int) -> np.ndarray:
    """Noise on a slope."""
    rng = np.random.RandomState(height * 1000 + width)
    slope = np.linspace(0, 155, width)[None, :, None] + rng.randint(0, 101, (height, width, 3))
    return slope.astype(np.uint8)


def outputs(name: str, sizes: Iterable[tuple[int, int]]) -> dict[str, np.ndarray]:
    """What sdjax gives for a case, by the images' sizes, and the maps that a UNet would see."""
    case = CASES[name]
    model = DepthModel(case.config, params_of(case), DepthProcessor(do_resize=False), "")
    found = {}
    for height, width in sizes:
        depth = depth_of(model, image(height, width))
        found[f"{height}x{width}"] = depth
        found[f"{height}x{width} normalised"] = normalised(depth[None], height // 8, width // 8)
    return found


def seen(name: str) -> dict[str, np.ndarray]:
    """What the network would see of some images."""
    return {f"{height}x{width}": processed(PROCESSORS[name], image(height, width)) for height, width in IMAGES}


def original_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights for an original toy, in the order of the names."""
    rng, found = np.random.RandomState(7), {}
    for name in sorted(shapes):
        values = rng.standard_normal(shapes[name])
        if len(shapes[name]) in (2, 4):
            values /= np.sqrt(np.prod(shapes[name][1:]))
        elif name.endswith(".weight"):
            values = 1 + 0.1 * values
        elif name.endswith(".bias"):
            values *= 0.1
        found[name] = values.astype(np.float32)
    return found


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Recorded names and shapes of a published network."""
    return {key: tuple(shape) for key, shape in json.loads(gzip.decompress(SHAPES.read_bytes()))[name].items()}
