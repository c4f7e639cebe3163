"""Depth estimators against recordings of transformers, diffusers and the original code, and what must hold of maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.checkpoints.depth_file import DEPTH, DepthProcessor, depth_shapes
from sdjax.checkpoints.name_table import file_names, shape_in_file
from sdjax.engine.device import program_for
from sdjax.library.depth import DepthModel, depth_of, grey_png16, normalised, sized
from sdjax.models import ConfigError
from sdjax.models.depth import DepthConfig, DepthEstimator
from sdjax.models.interpolation import bicubic, bilinear
from tests.golden import depth
from tests.golden.networks import TOLERANCE, relative_error


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(depth.RECORDED) as stored:
        return dict(stored)


@functools.cache
def toy(name: str) -> DepthModel:
    """A toy that takes images as they are."""
    case = depth.CASES[name]
    params = jax.device_put(depth.params_of(case))
    return DepthModel(case.config, params, DepthProcessor(do_resize=False), "")


# --- Parity ---


@pytest.mark.parametrize("name", [name for name, case in depth.CASES.items() if case.sizes])
def test_depth_is_what_transformers_and_diffusers_gave(name: str) -> None:
    found = depth.outputs(name, depth.CASES[name].sizes)
    for key, array in found.items():
        assert relative_error(array, recorded()[f"{name}/{key}"]) < TOLERANCE, key


@pytest.mark.parametrize("name", depth.PROCESSORS)
def test_an_image_is_processed_to_the_bit_as_by_transformers(name: str) -> None:
    for key, array in depth.seen(name).items():
        np.testing.assert_array_equal(array, recorded()[f"seen/{name}/{key}"], key)


def test_depth_at_another_size_is_what_transformers_gave() -> None:
    assert relative_error(sized(*depth.SIZED), recorded()["sized"]) < TOLERANCE


# --- Published sizes ---


@pytest.mark.parametrize("name", depth.PUBLISHED)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    config = DepthConfig.from_json(depth.CONFIGS["5"][name])
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(depth_shapes(config)):
        path = tuple(key.key for key in keys)
        found[file_names(path, DEPTH)[-1]] = shape_in_file(path, leaf.shape)
    shapes = depth.shapes(name)
    unused = {key for key in shapes if key.startswith(depth.NOT_COMPUTED)}
    assert len(unused) == 6
    assert found == {key: shape for key, shape in shapes.items() if key not in unused}


@pytest.mark.parametrize("name", depth.PUBLISHED)
def test_configs_of_all_versions_of_transformers_say_the_same(name: str) -> None:
    configs = {DepthConfig.from_json(written[name]) for written in depth.CONFIGS.values()}
    assert len(configs) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("num_hidden_layers", 13),
        ("num_attention_heads", 5),
        ("backbone_out_indices", [2, 5, 11, 8]),
        ("neck_hidden_sizes", [256, 512, 768]),
        ("neck_hidden_sizes", [96, 192, 384, 768]),
        ("neck_ignore_stages", [0]),
        ("reassemble_factors", [1, 1, 1, 0.4]),
        ("readout_type", "add"),
        ("patch_size", 8),
        ("is_hybrid", False),
        ("backbone_featmap_shape", [1, 512, 24, 24]),
        ("backbone_config", "resnet"),
        ("backbone_config", {"model_type": "dinov2"}),
        ("backbone_config", {"model_type": "bit", "out_features": ["stage1", "stage2", "stage3"]}),
        ("depth_estimation_type", "metric"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"somewhere/config\.json") as raised:
        DepthConfig.from_json({**depth.CONFIGS["5"]["hybrid"], key: value}, "somewhere/config.json")
    assert key in str(raised.value)


def test_another_backbone_is_named() -> None:
    data = {**depth.CONFIGS["5"]["large"], "backbone_config": {"model_type": "dinov2"}}
    with pytest.raises(ConfigError, match="Depth Anything"):
        DepthConfig.from_json(data)


# --- What must hold ---


def test_the_depth_of_an_image_depends_on_neither_its_neighbours_nor_its_place() -> None:
    model = toy("hybrid")
    images = np.random.RandomState(0).standard_normal((4, 64, 64, 3)).astype(np.float32)
    estimate = jax.jit(DepthEstimator(model.config).apply)
    variables = {"params": model.params}
    whole = np.asarray(estimate(variables, images))
    for order in ([3, 2, 1, 0], [1, 1, 1, 1], [2, 0, 0, 3]):
        np.testing.assert_array_equal(np.asarray(estimate(variables, images[np.array(order)])), whole[order])


def test_one_program_serves_all_images_of_a_size() -> None:
    from sdjax.library.depth import _estimated

    model = toy("hybrid")
    depth_of(model, depth.image(64, 64))
    program = program_for("cpu", _estimated, model.config)
    before = program._cache_size()
    first, second = (depth_of(model, np.full((64, 64, 3), grey, np.uint8)) for grey in (9, 200))
    assert program._cache_size() == before > 0
    assert first.dtype == second.dtype == np.float32 and not np.array_equal(first, second)


def test_half_precision_gives_nearly_the_same() -> None:
    image, whole = depth.image(64, 64), toy("plain")
    half = whole._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole.params))
    with jax.numpy_dtype_promotion("standard"):  # Flax' own norms promote
        found = depth_of(half, image)
    assert found.dtype == np.float32
    assert relative_error(found, depth_of(whole, image)) < 0.1


@pytest.mark.parametrize(("name", "shape"), [("hybrid", (64, 40)), ("plain", (15, 64))])
def test_images_of_no_whole_patches_are_refused(name: str, shape: tuple[int, int]) -> None:
    case = depth.CASES[name]
    with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} pixels; expected .* 16"):
        jax.eval_shape(DepthEstimator(case.config).init, jax.random.key(0), jnp.zeros((1, *shape, 3)))


def test_the_nearest_is_white_and_one_for_a_unet_and_the_farthest_black_and_minus_one() -> None:
    values = np.array([[1.0, 3.0], [2.0, 5.0]], np.float32)
    np.testing.assert_array_equal(grey_png16(values), [[0, 32768], [16384, 65535]])
    np.testing.assert_allclose(normalised(values[None], 2, 2)[0, ..., 0], [[-1, 0], [-0.5, 1]], atol=1e-6)


def test_a_map_that_is_flat_is_far_everywhere() -> None:
    maps = np.stack([np.full((8, 8), 7.0, np.float32), np.eye(8, dtype=np.float32)])
    found = normalised(maps, 4, 4)
    assert (found[0] == -1).all() and found[1].max() == 1 and found[1].min() == -1
    assert (grey_png16(maps[0]) == 0).all()


def test_each_map_is_normalised_alone() -> None:
    maps = (
        np.random.RandomState(0).rand(3, 20, 30).astype(np.float32) * np.array([1, 50, 0.1], np.float32)[:, None, None]
    )
    whole = normalised(maps, 10, 12)
    for index in range(3):
        np.testing.assert_array_equal(normalised(maps[index : index + 1], 10, 12)[0], whole[index])


def test_grey_levels_are_as_good_as_the_map_itself() -> None:
    values = np.random.RandomState(0).rand(1, 24, 24).astype(np.float32) * 30
    read = grey_png16(values[0])[None].astype(np.float32)
    np.testing.assert_allclose(normalised(read, 8, 8), normalised(values, 8, 8), atol=1e-4)


SIZES = st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(2, 20), st.integers(2, 20))


@settings(deadline=None, max_examples=30)
@given(SIZES)
def test_interpolation_keeps_what_is_constant_and_is_exact_on_slopes(sizes: tuple[int, int, int, int]) -> None:
    height, width, to_height, to_width = sizes
    flat = np.full((1, height, width, 1), 3.0, np.float32)
    slope = np.broadcast_to(np.arange(width, dtype=np.float32)[None, None, :, None], (1, height, width, 1))
    for resize in (bilinear, bicubic, functools.partial(bilinear, align_corners=True)):
        np.testing.assert_allclose(resize(flat, to_height, to_width), 3.0, rtol=1e-5)
    np.testing.assert_allclose(
        bilinear(slope, to_height, to_width, align_corners=True)[0, 0, :, 0],
        np.linspace(0, width - 1, to_width),
        atol=1e-4,
    )
    np.testing.assert_array_equal(bicubic(slope, height, width), slope)


def test_interpolation_on_the_device_is_that_of_numpy() -> None:
    x = np.random.RandomState(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    for resize in (bilinear, bicubic, functools.partial(bilinear, align_corners=True)):
        np.testing.assert_allclose(resize(jnp.asarray(x), 13, 5), resize(x, 13, 5), atol=1e-5)
