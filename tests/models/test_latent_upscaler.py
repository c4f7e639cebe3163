"""The UNets of Stable Diffusion's upscalers against recordings of diffusers."""

import dataclasses
import gzip
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoints import name_table
from sdjax.families.networks import UNET_2D_CONDITION_MODEL
from sdjax.models import ConfigError
from sdjax.models.latent_upscaler import LatentUpscalerConfig, LatentUpscalerUNet, doubled, halved
from tests import toys
from tests.golden import sd_upscalers
from tests.golden.networks import TOLERANCE, relative_error


@pytest.mark.parametrize("name", sd_upscalers.TOYS)
def test_a_network_gives_what_diffusers_gave(name: str) -> None:
    with np.load(sd_upscalers.RECORDED) as stored:
        recorded = stored[f"network/{name}"]
    found = sd_upscalers.prediction(name)
    assert relative_error(found, recorded) < TOLERANCE
    assert np.abs(found - recorded).max() / np.abs(recorded).max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "config"), [("x4", sd_upscalers.PUBLISHED_X4), ("x2", sd_upscalers.PUBLISHED_X2)]
)  # fmt: skip
def test_names_and_shapes_are_those_of_diffusers_one_to_one(name: str, config: Any) -> None:
    recorded = json.loads(gzip.decompress(sd_upscalers.NAMES.read_bytes()))[name]
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(toys.param_shapes(config)):
        path = tuple(key.key for key in keys)
        found[name_table.file_names(path, UNET_2D_CONDITION_MODEL.table)[0]] = list(
            name_table.shape_in_file(path, leaf.shape)
        )
    assert found == recorded
    assert len(found) == len(jax.tree.leaves(toys.param_shapes(config)))


# As diffusers' class has it.
def x2_json(**changes: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(sd_upscalers.X2_TOY.unet), **sd_upscalers.X2_SWITCHES, **changes}


def test_a_config_is_read() -> None:
    assert LatentUpscalerConfig.from_json(x2_json()) == sd_upscalers.X2_TOY.unet
    assert hash(sd_upscalers.X2_TOY.unet)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"act_fn": "silu"}, "act_fn"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"time_embedding_dim": 48}, "time_embedding_dim"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"layers_per_block": [1, 2, 3, 4]}, "layers_per_block"),
        ({"block_out_channels": [32, 64, 64, 64]}, "the last two, and no others, to be 64"),
        ({"block_out_channels": [32, 32, 32, 64]}, "the last two, and no others, to be 64"),
        ({"block_out_channels": [16, 16, 32, 32]}, "multiples of 32"),
        ({"block_out_channels": [32]}, "two levels or more"),
        ({"attention_head_dim": 24}, "attention_head_dim = 24"),
        ({"down_block_types": ["KDownBlock2D"] * 4}, "down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LatentUpscalerConfig.from_json(x2_json(**changes))


def test_a_config_without_what_makes_the_network_is_refused() -> None:
    data = x2_json()
    del data["conv_in_kernel"]
    with pytest.raises(ConfigError, match=r"unet/config.json: conv_in_kernel is missing"):
        LatentUpscalerConfig.from_json(data)


def test_the_middle_of_a_unet_looks_at_itself_too_whatever_the_levels_do() -> None:
    base = dataclasses.replace(toys.TINY.unet, cross_attention_dim=24, only_cross_attention=True)

    def reads(block: str) -> int:
        transformer = toys.param_shapes(base)[block]["attentions_0"]["transformer_blocks_0"]
        return int(transformer["attn1"]["to_k"]["kernel"].shape[0])

    assert (reads("down_blocks_0"), reads("mid_block")) == (24, 32)


def test_sides_that_do_not_halve_evenly_are_refused() -> None:
    config = sd_upscalers.X2_TOY.unet
    assert isinstance(config, LatentUpscalerConfig)
    arguments = (jnp.zeros((1, 16, 12, 8)), jnp.zeros(1), jnp.zeros((1, 2, 32)), jnp.zeros((1, 160)))
    with pytest.raises(ValueError, match="latents of 16x12: expected sides that are multiples of 8"):
        jax.eval_shape(LatentUpscalerUNet(config).init, jax.random.key(0), *arguments)


def test_a_plane_keeps_its_slope_when_it_is_halved_and_doubled() -> None:
    rows, columns = np.mgrid[:8, :12].astype(np.float32)
    plane = jnp.asarray(2 * rows + 3 * columns)[None, :, :, None]
    small, large = np.asarray(jax.jit(halved)(plane)), np.asarray(jax.jit(doubled)(plane))
    assert small.shape == (1, 4, 6, 1)
    assert large.shape == (1, 16, 24, 1)
    # Within; at the edges the image is mirrored.
    np.testing.assert_allclose(np.diff(small[0, 1:-1, 1:-1, 0], axis=0), 4, rtol=1e-6)
    np.testing.assert_allclose(np.diff(large[0, 2:-2, 2:-2, 0], axis=1), 1.5, rtol=1e-6)
    # The values of an image of one colour stay.
    constant = jnp.full(plane.shape, 7.0)
    assert (np.asarray(jax.jit(halved)(constant)) == 7).all()
    assert (np.asarray(jax.jit(doubled)(constant)) == 7).all()


def test_the_x4_upscalers_unet_has_as_many_parameters_as_published() -> None:
    leaves = jax.tree.leaves(toys.param_shapes(sd_upscalers.PUBLISHED_X4))
    assert round(sum(math.prod(leaf.shape) for leaf in leaves) / 1e6, 1) == 473.4
