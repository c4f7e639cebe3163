"""Training what sees depth: the estimator and the UNet of the embedded model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.checkpoints.depth_file import find_depth
from sdjax.library.depth import load_depth
from sdjax.models import UNet
from sdjax.training import depth, scenes, state
from sdjax.training.conditions import SceneSet

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def emoji() -> sdjax.Model:
    return sdjax.load("emoji")


def test_an_emoji_rises_from_its_border_to_its_middle_and_the_background_is_flat():
    square = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    relief = scenes.relief(scenes.Scene((0,), "white"), (square,))
    side = 48
    inside = relief[8 : 8 + side, 8 : 8 + side]
    assert relief.sum() == inside.sum() and inside.min() > 80
    assert (np.diff(inside[side // 2, : side // 2].astype(int)) >= 0).all() and inside[side // 2, side // 2] == 255


@pytest.mark.slow
def test_before_training_depth_says_nothing(emoji):
    params = depth.beginning(emoji)
    latents, context = RNG.standard_normal((1, 8, 8, 12)), RNG.standard_normal((1, 32, 160))
    sample, text = (jnp.asarray(each, jnp.float32) for each in (latents, context))
    seen = jnp.concatenate([sample, jnp.ones((1, 8, 8, 1))], axis=-1)
    found = UNet(depth.config(emoji)).apply({"params": params}, seen, jnp.ones(1), text)
    plain = emoji.unet.apply({"params": emoji.params["unet"]}, sample, jnp.ones(1), text)
    np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.slow
def test_runs_go_on_from_where_they_were_and_what_they_export_is_read(emoji, tmp_path):
    data = SceneSet(
        RNG.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8),
        RNG.standard_normal((8, 8, 8, 12)).astype(np.float32),
        RNG.integers(0, 256, (8, 64, 64)).astype(np.uint8),
        np.zeros((8, 32), np.int16),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes kinds of numbers
        for steps in (1, 2):
            recipe = state.Recipe(steps=steps, learning_rate=1e-3, warmup=0)
            estimator = depth.train_estimator(tmp_path, data, recipe, 4)
            unet = depth.train_unet(emoji, tmp_path, data, recipe, 4)
    depth.export_estimator(tmp_path, tmp_path / "estimator")
    depth.write_model(emoji, unet, tmp_path / "model")
    assert find_depth(tmp_path / "estimator").processor == depth.PROCESSOR
    read = load_depth(tmp_path / "estimator")
    assert read.config == depth.ESTIMATOR
    assert jax.tree.structure(read.params) == jax.tree.structure(estimator)
    model = sdjax.load(tmp_path / "model")
    assert model.unet.config.in_channels == 13
    kernel = model.params["unet"]["conv_in"]["kernel"]
    np.testing.assert_allclose(kernel, unet["conv_in"]["kernel"], atol=1e-3)
    assert np.abs(kernel[:, :, -1]).max() > 0
    words = "an apple on a blue background"
    assert model.tokenizer(words).ids == emoji.tokenizer(words).ids
