import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.guidance import classifier_free, denoised, network_input

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 4, 2)
ONE, TWO = (jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32) for _ in range(2))

sigmas = st.lists(st.floats(2.0**-6, 150, width=32), min_size=3, max_size=3)


def per_image(values):
    return jnp.asarray(values, jnp.float32)[:, None, None, None]


def test_scale_zero_is_the_unconditional_prediction():
    np.testing.assert_array_equal(classifier_free(ONE, TWO, per_image([0, 0, 0])), ONE)


def test_scale_one_is_the_conditional_prediction():
    np.testing.assert_allclose(classifier_free(ONE, TWO, per_image([1, 1, 1])), TWO, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3))
def test_guidance_is_a_straight_line_through_both_predictions_for_each_image(scales):
    expected = np.stack([(1 - s) * np.asarray(u) + s * np.asarray(c) for s, u, c in zip(scales, ONE, TWO, strict=True)])
    np.testing.assert_allclose(classifier_free(ONE, TWO, per_image(scales)), expected, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(sigmas)
def test_knowing_the_noise_gives_the_clean_latents_back(levels):
    sigma = per_image(levels)
    found = denoised(TWO, ONE + sigma * TWO, sigma, "epsilon")
    np.testing.assert_allclose(found, ONE, atol=2e-7 * max(levels) * 10 + 1e-6)


@settings(deadline=None, max_examples=30)
@given(sigmas)
def test_knowing_v_gives_the_clean_latents_back(levels):
    sigma = per_image(levels)
    # On the unit circle: cos(phi) of signal and sin(phi) of noise; v is the derivative in phi.
    angle = jnp.arctan(sigma)
    v = jnp.cos(angle) * TWO - jnp.sin(angle) * ONE
    found = denoised(v, ONE + sigma * TWO, sigma, "v_prediction")
    np.testing.assert_allclose(found, ONE, atol=1e-4)


def test_the_network_sees_unit_variance_at_every_level():
    sigma = per_image([0.05, 1.0, 14.6])
    clean, noise = (jnp.asarray(RNG.standard_normal((3, 64, 64, 4)), jnp.float32) for _ in range(2))
    seen = np.asarray(network_input(clean + sigma * noise, sigma))
    np.testing.assert_allclose(seen.std((1, 2, 3)), 1, atol=0.02)


def test_another_kind_of_prediction_is_refused():
    with pytest.raises(ValueError, match="'sample' is neither epsilon nor v_prediction"):
        denoised(ONE, TWO, per_image([1, 1, 1]), "sample")
