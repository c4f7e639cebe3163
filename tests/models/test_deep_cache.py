"""The UNet with deep features that are kept; against DeepCache it is compared live (`tests/parity`)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models import UNet
from sdjax.models.deep_cache import deep_cache
from sdjax.models.unet import Residuals
from tests.golden import networks

UNETS = {
    "sd1": "sd1_unet",
    "sd2": "sd2_unet",
    "odd": "unet_of_9_channels_odd_size_deep_transformers_timestep_labels",
}


@functools.cache
def parts(name):
    network = networks.NETWORKS[UNETS[name]]
    inputs = tuple(map(jnp.asarray, networks.inputs(network).values()))
    return UNet(network.config), {"params": network.params()}, inputs


@functools.cache
def predictions(name, branch, later):
    """Of a whole evaluation, and of one at `later` timesteps with its deep features; and those features."""
    unet, params, (sample, timesteps, *others) = parts(name)

    @jax.jit
    def both(params, sample, timesteps, others):
        with deep_cache(branch, None) as features:
            whole = unet.apply(params, sample, timesteps, *others)
        [deep] = features
        with deep_cache(branch, deep):
            return whole, unet.apply(params, sample, timesteps + later, *others), deep

    return tuple(map(np.asarray, both(params, sample, timesteps, others)))


# Of sd1 that of `conv_in`, of a layer, of a downsampler, and the last; of others some.
@pytest.mark.parametrize("name, branch", [*(("sd1", branch) for branch in (0, 1, 2, 5)), ("sd2", 3), ("odd", 4)])
def test_deep_features_of_the_same_evaluation_change_nothing(name, branch):
    unet, params, inputs = parts(name)
    plain = np.asarray(jax.jit(unet.apply)(params, *inputs))
    whole, reused, _ = predictions(name, branch, 0.0)
    np.testing.assert_allclose(whole, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reused, plain, rtol=1e-4, atol=1e-5)


def test_of_another_evaluation_they_change_little_and_less_at_inner_branches():
    unet, params, (sample, timesteps, *others) = parts("sd1")
    later = np.asarray(jax.jit(unet.apply)(params, sample, timesteps + 40.0, *others))
    errors = [networks.relative_error(predictions("sd1", branch, 40.0)[1], later) for branch in (0, 5)]
    assert errors[0] > errors[1] > 0


def test_only_the_layers_above_the_branch_are_computed():
    unet, params, inputs = parts("sd1")

    used = set()

    def watch(call, args, kwargs, context):
        used.add("/".join(context.module.path[:2]))
        return call(*args, **kwargs)

    deep = jnp.asarray(predictions("sd1", 1, 0.0)[2])
    with deep_cache(1, deep), nn.intercept_methods(watch):
        jax.eval_shape(unet.apply, params, *inputs)
    assert {name for name in used if "block" in name and "/" in name} == {
        "down_blocks_0/resnets_0", "down_blocks_0/attentions_0",
        "up_blocks_2/resnets_0", "up_blocks_2/attentions_0", "up_blocks_2/resnets_1", "up_blocks_2/attentions_1",
    }  # fmt: skip


def test_residuals_of_other_networks_act_on_the_layers_that_are_computed():
    unet, params, inputs = parts("sd1")
    plain, _, deep = predictions("sd1", 1, 0.0)
    zeros = jnp.zeros((2, 8, 8, unet.config.block_out_channels[0]))
    rest = [jnp.zeros((2, 1, 1, 1))] * (unet.config.skip_connections - 2)  # of layers that are left out
    labels, mask = None, None

    @jax.jit
    def steered(params, inputs, deep, added):
        with deep_cache(1, deep):
            return unet.apply(params, *inputs, labels, mask, Residuals(down=(zeros, added, *rest)))

    unchanged, changed = (np.asarray(steered(params, inputs, deep, zeros + by)) for by in (0, 1))
    np.testing.assert_allclose(unchanged, plain, rtol=1e-4, atol=1e-5)
    assert networks.relative_error(changed, plain) > 0.01
