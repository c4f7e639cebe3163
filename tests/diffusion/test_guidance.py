import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.diffusion.guidance import classifier_free, network_input, rescaled, thresholded, to_denoised

RNG = np.random.default_rng(0)
SHAPE = (3, 4, 4, 2)
ONE, TWO, THREE = (jnp.asarray(RNG.standard_normal(SHAPE), jnp.float32) for _ in range(3))

sigmas = st.lists(st.floats(2.0**-6, 150, width=32), min_size=3, max_size=3)


def per_image(values):
    return jnp.asarray(values, jnp.float32)[:, None, None, None]


def alpha(sigma):
    return 1 / jnp.sqrt(1 + sigma.ravel() ** 2)


def guided(scale, *conditional, weights=None):
    parts = jnp.stack(conditional)
    weights = np.ones((len(conditional), 3)) if weights is None else weights
    return classifier_free(ONE, parts, jnp.asarray(weights, jnp.float32), jnp.asarray(scale, jnp.float32))


def test_scale_zero_is_the_unconditional_prediction():
    np.testing.assert_array_equal(guided([0, 0, 0], TWO), ONE)


def test_scale_one_is_the_conditional_prediction():
    np.testing.assert_allclose(guided([1, 1, 1], TWO), TWO, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3))
def test_guidance_is_a_straight_line_through_both_predictions_for_each_image(scales):
    expected = np.stack([(1 - s) * np.asarray(u) + s * np.asarray(c) for s, u, c in zip(scales, ONE, TWO, strict=True)])
    np.testing.assert_allclose(guided(scales, TWO), expected, atol=2e-5)


def test_parts_of_a_prompt_pull_each_by_its_weight():
    weights = np.array([[1.0, 0.5, 0.0], [2.0, -1.0, 3.0]])
    found = guided([1.0, 4.0, 7.5], TWO, THREE, weights=weights)
    one, two, three = (np.asarray(part, np.float64) for part in (ONE, TWO, THREE))
    for index, scale in enumerate((1.0, 4.0, 7.5)):
        first, second = weights[:, index]
        expected = one + scale * (first * (two - one) + second * (three - one))
        np.testing.assert_allclose(found[index], expected[index], atol=2e-5)


def test_rescaling_brings_the_deviation_back_by_its_share():
    result = np.asarray(rescaled(3 * TWO, ONE, jnp.asarray([1.0, 0.0, 0.5], jnp.float32)))
    one, two = np.asarray(ONE, np.float64), np.asarray(TWO, np.float64)
    np.testing.assert_allclose(result[0].std(), one[0].std(), rtol=1e-5)
    np.testing.assert_array_equal(result[1], 3 * np.asarray(TWO)[1])
    half = 0.5 * (two[2] * one[2].std() / two[2].std()) + 0.5 * 3 * two[2]
    np.testing.assert_allclose(result[2], half, rtol=1e-4)


@pytest.mark.parametrize("most", [1.0, 1.5, 100.0])
def test_values_beyond_a_quantile_are_cut_and_all_divided_by_it(most):
    ratios = [0.0, 0.9, 0.5]
    found = np.asarray(
        thresholded(4 * ONE, jnp.asarray(ratios, jnp.float32), jnp.full(3, most, jnp.float32)), np.float64
    )
    values = 4 * np.asarray(ONE, np.float64)
    np.testing.assert_array_equal(found[0], values[0])
    for index in (1, 2):
        bound = min(max(np.quantile(np.abs(values[index]), ratios[index]), 1.0), most)
        np.testing.assert_allclose(found[index], np.clip(values[index], -bound, bound) / bound, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(sigmas)
def test_knowing_the_noise_gives_the_denoised_latents_back(levels):
    sigma = per_image(levels)
    found = to_denoised(TWO, ONE + sigma * TWO, sigma.ravel(), alpha(sigma), "epsilon")
    np.testing.assert_allclose(found, ONE, atol=2e-7 * max(levels) * 10 + 1e-6)


@settings(deadline=None, max_examples=30)
@given(sigmas)
def test_knowing_v_gives_the_denoised_latents_back(levels):
    sigma = per_image(levels)
    # On the unit circle: cos(phi) of signal and sin(phi) of noise; v is the derivative in phi.
    angle = jnp.arctan(sigma)
    v = jnp.cos(angle) * TWO - jnp.sin(angle) * ONE
    found = to_denoised(v, ONE + sigma * TWO, sigma.ravel(), alpha(sigma), "v_prediction")
    np.testing.assert_allclose(found, ONE, atol=1e-4)


def test_the_network_sees_unit_variance_at_every_level():
    sigma = per_image([0.05, 1.0, 14.6])
    latents, noise = (jnp.asarray(RNG.standard_normal((3, 64, 64, 4)), jnp.float32) for _ in range(2))
    given = np.asarray(network_input(latents + sigma * noise, alpha(sigma)))
    np.testing.assert_allclose(given.std((1, 2, 3)), 1, atol=0.02)


def test_denoised_latents_may_be_predicted_themselves():
    np.testing.assert_array_equal(to_denoised(ONE, TWO, jnp.ones(3), jnp.ones(3), "sample"), ONE)


def test_another_kind_of_prediction_is_refused():
    with pytest.raises(ValueError, match="'flow' is none of epsilon, v_prediction and sample"):
        to_denoised(ONE, TWO, jnp.ones(3), jnp.ones(3), "flow")
