"""ControlNets and T2I adapters against recordings of diffusers and of the original code."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.checkpoints.controlnet_file import control_shapes
from sdjax.models import ConfigError, UNet
from sdjax.models.controlnet import ControlNet, ControlNetConfig, added, guess_scales, residual_scales
from sdjax.models.interpolation import pixel_unshuffle
from sdjax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from sdjax.models.unet import Residuals
from tests import toys
from tests.golden import controlnet, networks


@functools.cache
def references() -> dict[str, np.ndarray]:
    with np.load(controlnet.RECORDED) as stored:
        return dict(stored)


@pytest.mark.parametrize("name", controlnet.CASES)
def test_a_steered_unet_gives_what_diffusers_gave(name: str) -> None:
    given = controlnet.thinned(controlnet.outputs(controlnet.CASES[name]))
    recorded = networks.stored(references(), name)
    assert given.keys() == recorded.keys()
    for output, array in given.items():
        assert networks.relative_error(array, recorded[output]) < networks.TOLERANCE, output


def test_the_residuals_matter() -> None:
    case = controlnet.CASES["sd1"]
    none = case._replace(controls=tuple(control._replace(weights=(0.0, 0.0)) for control in case.controls))
    steered, plain = networks.stored(references(), "sd1")["prediction"], controlnet.outputs(none)["prediction"]
    assert networks.relative_error(plain, steered) > 0.1


# --- Scales ---


def test_guess_mode_goes_from_a_tenth_to_one_evenly_in_logarithms() -> None:
    np.testing.assert_allclose(guess_scales(5), [0.1, 0.1**0.75, 0.1**0.5, 0.1**0.25, 1], rtol=1e-6)


def test_scales_are_of_each_image() -> None:
    config = controlnet.CASES["sd1"].controls[0].config
    assert isinstance(config, ControlNetConfig)
    scales = residual_scales(config, jnp.array([2.0, 2.0, 0.0]), jnp.array([False, True, True]))
    count = len(config.residual_channels)
    np.testing.assert_allclose(scales, [[2.0] * count, 2 * guess_scales(count), [0.0] * count], rtol=1e-6)
    pooled = dataclasses.replace(config, global_pool_conditions=True)
    np.testing.assert_array_equal(residual_scales(pooled, jnp.ones(1), jnp.array([True])), np.ones((1, count)))


def test_nothing_is_added_to_nothing() -> None:
    some = Residuals(mid=jnp.ones((2, 2, 2, 32)))
    assert added(Residuals(), some) == some == added(some, Residuals())
    np.testing.assert_array_equal(np.asarray(added(some, some).mid), np.full((2, 2, 2, 32), 2.0))


def test_an_image_does_not_see_its_neighbours() -> None:
    case = controlnet.CASES["several"]
    given = controlnet.outputs(case)
    turned = [each._replace(weights=each.weights[::-1], guess=each.guess[::-1]) for each in case.controls]
    asked = {name: array[::-1] for name, array in controlnet.inputs(case).items()}
    for name, array in controlnet.outputs(case._replace(controls=tuple(turned)), asked).items():
        np.testing.assert_array_equal(array[::-1], given[name])


# --- Errors ---


def run_controlnet(latents: tuple[int, int], pixels: tuple[int, int], scales: int | None = None) -> Residuals:
    config = controlnet.CASES["sd1"].controls[0].config
    assert isinstance(config, ControlNetConfig)
    network = ControlNet(config)
    variables = {"params": control_shapes(config)}

    def run(variables: Any) -> Residuals:
        embedded = network.apply(variables, jnp.zeros((1, *pixels, 3)), method="embed")
        factors = jnp.ones((1, scales or len(config.residual_channels)))
        sample, context = jnp.zeros((1, *latents, 4)), jnp.zeros((1, 7, 32))
        return network.apply(variables, sample, jnp.zeros(1), context, embedded, scales=factors)

    return jax.eval_shape(run, variables)


def test_a_control_image_of_another_size_is_an_error() -> None:
    assert run_controlnet((8, 8), (32, 32)).mid is not None
    with pytest.raises(ValueError, match=r"embedded as \(16, 16\), but the latents are \(8, 8\).* 4 pixels for a lat"):
        run_controlnet((8, 8), (64, 64))
    with pytest.raises(ValueError, match="3 scales for 5 residuals"):
        run_controlnet((8, 8), (32, 32), scales=3)


@pytest.mark.parametrize(
    ("residuals", "reason"),
    [
        (Residuals(down=(jnp.zeros((1, 8, 8, 16)),)), "1 down residuals for a UNet that keeps 4"),
        (Residuals(intrablock=(jnp.zeros((1, 8, 8, 16)),)), "1 intrablock residuals for a UNet of 2"),
        (Residuals(mid=jnp.zeros((1, 4, 4, 16))), r"middle residual is \(1, 4, 4, 16\), .* \(1, 4, 4, 64\)"),
    ],
)
def test_residuals_for_another_unet_are_an_error(residuals: Residuals, reason: str) -> None:
    case = controlnet.CASES["sd1"]
    asked = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 32)))
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(UNet(case.unet).apply, {"params": toys.param_shapes(case.unet)}, *asked, residuals=residuals)
    with pytest.raises(ValueError, match="can't be added"):
        added(Residuals(down=(jnp.zeros((1, 1, 1, 1)),)), Residuals(down=(jnp.zeros((1, 1, 1, 1)),) * 2))


@pytest.mark.parametrize(("shape", "more"), [((1, 4, 4, 64), 1), ((1, 2, 2, 64), 0), ((1, 4, 4, 16), 0)])
def test_one_feature_more_is_added_to_the_middle_block_if_it_is_of_its_shape(shape: tuple[int, ...], more: int) -> None:
    case = controlnet.CASES["sd1"]
    asked = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 32)))
    each = (jnp.zeros((1, 8, 8, 32)), jnp.zeros((1, 4, 4, 64)))

    def sums(*intrablock: jax.Array) -> int:
        apply = functools.partial(UNet(case.unet).apply, residuals=Residuals(intrablock=intrablock))
        traced = jax.make_jaxpr(apply)({"params": toys.param_shapes(case.unet)}, *asked)
        return sum(equation.primitive.name == "add" for equation in traced.eqns)

    assert sums(*each, jnp.zeros(shape)) - sums(*each) == more


def test_features_of_adapters_are_summed_also_where_one_has_one_more() -> None:
    ones = [jnp.ones((1, 1, 1, 1))] * 3
    for first, second in ((ones, ones[:2]), (ones[:2], ones)):
        both = added(Residuals(intrablock=tuple(first)), Residuals(intrablock=tuple(second))).intrablock
        assert [float(each[0, 0, 0, 0]) for each in both] == [2, 2, 1]


def test_an_adapters_image_has_whole_squares_and_its_channels() -> None:
    network = T2IAdapter(T2IAdapterConfig(channels=(16, 32)))
    with pytest.raises(ValueError, match=r"image is \(60, 64, 3\); expected multiples of 8 with 3 channels"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 60, 64, 3)))
    with pytest.raises(ValueError, match=r"image is \(64, 64, 1\)"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))


def test_pixels_become_channels_in_torchs_order() -> None:
    image = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(1, 2, 4, 3)
    squares = pixel_unshuffle(image, 2)
    assert squares.shape == (1, 1, 2, 12)
    # Red of the four pixels row by row, then green, then blue.
    np.testing.assert_array_equal(squares[0, 0, 0], [0, 3, 12, 15, 1, 4, 13, 16, 2, 5, 14, 17])


def test_a_network_for_another_model_is_an_error() -> None:
    config = ControlNetConfig(toys.SD1.unet)
    config.check_fits(dataclasses.replace(toys.SD2.unet, in_channels=9))
    with pytest.raises(ConfigError, match=r"cross_attention_dim is \(32, 32, 32\), but the UNet's is \(64, 64, 64\)"):
        config.check_fits(dataclasses.replace(toys.SD1.unet, cross_attention_dim=64))
    T2IAdapterConfig(channels=(16, 32, 32)).check_fits(toys.SD1.unet)
    # One feature more, whatever its channels, is for the middle block.
    T2IAdapterConfig(channels=(16, 32, 32, 32)).check_fits(toys.SD1.unet)
    T2IAdapterConfig(channels=(16, 32, 32), adapter_type="light_adapter").check_fits(toys.SD1.unet)
    with pytest.raises(ConfigError, match="it was made for another model"):
        T2IAdapterConfig(channels=(16, 32, 32, 32, 32)).check_fits(toys.SD1.unet)
    with pytest.raises(ConfigError, match="it was made for another model"):
        T2IAdapterConfig().check_fits(toys.SD1.unet)


# --- Configs ---


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (ControlNetConfig, {"controlnet_conditioning_channel_order": "gbr"}, "channel_order = 'gbr'"),
        (ControlNetConfig, {"conditioning_embedding_out_channels": None}, "embedding_out_channels = None"),
        (ControlNetConfig, {"conditioning_embedding_out_channels": []}, "not positive"),
        (ControlNetConfig, {"mid_block_type": "UNetMidBlock2D"}, "'UNetMidBlock2D' is not supported"),
        (ControlNetConfig, {"addition_embed_type": "text_time"}, "addition_embed_type"),
        (ControlNetConfig, {"down_block_types": 3}, "down_block_types = 3"),
        (ControlNetConfig, {"unet": {}}, "unknown key 'unet'"),
        (ControlNetConfig, {"strange": 1}, "unknown key 'strange'"),
        (T2IAdapterConfig, {"adapter_type": "full_adapter_xl"}, "Stable Diffusion XL, which is not supported"),
        (T2IAdapterConfig, {"adapter_type": "other"}, "not one of 'full_adapter', 'light_adapter'"),
        (T2IAdapterConfig, {"adapter_type": "light_adapter", "channels": [6]}, "not multiples of 4"),
        (T2IAdapterConfig, {"strange": 1}, "unknown key 'strange'"),
    ],
)
def test_a_config_of_what_is_not_implemented_is_an_error(kind: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"here.json: .*{reason}"):
        kind.from_json(changes, "here.json")


def test_both_halves_make_all_parameters() -> None:
    config = controlnet.CASES["sd1"].controls[0].config
    assert isinstance(config, ControlNetConfig)
    arguments = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 7, 32))
    made = jax.eval_shape(
        functools.partial(ControlNet(config).init, method="everything"), jax.random.key(0), *arguments
    )
    described = control_shapes(config)
    assert jax.tree.map(lambda leaf: leaf.shape, made["params"]) == jax.tree.map(lambda leaf: leaf.shape, described)
