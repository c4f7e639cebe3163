"""Training a ControlNet for the embedded model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.checkpoints.controlnet_file import find_controlnet, load_control
from sdjax.models.controlnet import ControlNet
from sdjax.training import control, state
from sdjax.training.conditions import SceneSet

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def emoji() -> sdjax.Model:
    return sdjax.load("emoji")


@pytest.fixture(scope="module")
def params(emoji):
    return control.beginning(emoji)


@pytest.mark.slow
def test_before_training_it_gives_nothing(emoji, params):
    network = ControlNet(control.config(emoji))
    latents, context = RNG.standard_normal((1, 8, 8, 12)), RNG.standard_normal((1, 32, 160))
    image, sample, text = (jnp.asarray(each, jnp.float32) for each in (RNG.random((1, 64, 64, 3)), latents, context))
    given = network.apply({"params": params}, image, sample, jnp.ones(1), text, method="everything")
    assert all(not np.asarray(each).any() for each in (*given.down, given.mid))
    copied = params["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert np.array_equal(copied, emoji.params["unet"]["mid_block"]["resnets_0"]["conv1"]["kernel"])


@pytest.mark.slow
def test_a_run_goes_on_from_where_it_was_and_what_it_exports_is_read(emoji, params, tmp_path):
    data = SceneSet(
        np.zeros((4, 64, 64, 3), np.uint8),
        RNG.standard_normal((4, 8, 8, 12)).astype(np.float32),
        RNG.integers(0, 2, (4, 64, 64)).astype(np.uint8) * 255,
        np.zeros((4, 32), np.int16),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes kinds of numbers
        for steps in (1, 2):
            trained = control.train(emoji, tmp_path, data, state.Recipe(steps=steps, learning_rate=1e-3, warmup=0), 4)
    assert np.abs(trained["controlnet_mid_block"]["kernel"]).max() > 0
    control.export(emoji, tmp_path, tmp_path / "net")
    found = find_controlnet(tmp_path / "net")
    found.config.check_fits(emoji.unet.config)
    assert found.config.residual_channels == control.config(emoji).residual_channels
    read, _ = load_control(found, np.float32)
    assert jax.tree.structure(read) == jax.tree.structure(trained)
    np.testing.assert_allclose(
        read["controlnet_mid_block"]["kernel"], trained["controlnet_mid_block"]["kernel"], atol=1e-4
    )
