"""Cross-attention that is kept; against T-GATE it is compared live (`tests/parity`)."""

import jax
import numpy as np

from sdjax.models import UNet
from sdjax.models.t_gate import cross_attention
from tests.golden import networks

NETWORK = networks.NETWORKS["sd1_unet"]


def test_behind_the_gate_the_text_has_no_say():
    unet, params = UNet(NETWORK.config), {"params": NETWORK.params()}
    sample, timesteps, context = networks.inputs(NETWORK).values()

    @jax.jit
    def three(params, sample, timesteps, context):
        with cross_attention(None) as outputs:
            plain = unet.apply(params, sample, timesteps, context)
        with cross_attention(outputs) as reused:
            same = unet.apply(params, sample, timesteps, -context)
        return unet.apply(params, sample, timesteps, context), plain, same, outputs, reused

    without, plain, same, outputs, reused = three(params, sample, timesteps, context)
    np.testing.assert_allclose(plain, without, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same, without, rtol=1e-4, atol=1e-5)
    assert outputs.keys() == reused.keys() and len(outputs) == 2 + 1 + 4
    assert all(path.endswith("/attn2") for path in outputs)
