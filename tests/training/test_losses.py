import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig
from sdjax.training.autoencoder import DECODER, decoder_loss, latent_scale, reconstruction_loss, vae_loss
from sdjax.training.latent_diffusion import LatentSet, cells, diffusion_loss, text_loss
from tests.toys import param_shapes, random_params

RNG = np.random.default_rng(0)
TEXT = TextEncoderConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=8,
)
UNET = UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    block_out_channels=(16,),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=16,
    attention_head_dim=2,
)
AUTOENCODER = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=16,
)
SCHEDULER = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def params_of(config, seed=0):
    return jax.tree.map(jnp.asarray, random_params(param_shapes(config), np.random.RandomState(seed)))


def images(batch=2, side=16):
    return jnp.asarray(RNG.uniform(-1, 1, (batch, side, side, 3)), jnp.float32)


# --- Reconstruction ---


def test_equal_images_cost_nothing():
    image = images()
    assert reconstruction_loss(image, image) == 0


def test_a_shift_in_brightness_costs_itself_at_each_size():
    image = images()
    assert reconstruction_loss(image + 0.25, image, scales=3) == pytest.approx(3 * 0.25, rel=1e-5)


def test_a_fine_pattern_costs_its_pixels_and_edges_at_the_finest_size_only():
    rows, columns = np.mgrid[:16, :16]
    board = jnp.asarray(np.where((rows + columns) % 2, 0.1, -0.1)[None, :, :, None] * np.ones(3), jnp.float32)
    image = jnp.zeros_like(board)
    # 0.1 for the pixels, 0.2 for differences across, 0.2 for those down.
    assert reconstruction_loss(board, image, scales=3) == pytest.approx(0.5, rel=1e-5)


def test_the_loss_is_the_same_both_ways_round():
    one, two = images(), images()
    assert reconstruction_loss(one, two) == pytest.approx(float(reconstruction_loss(two, one)))


def test_the_vaes_loss_trains_every_part_of_it():
    pixels = jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3)), jnp.uint8)
    vae = VAE(AUTOENCODER)
    grad = jax.jit(jax.value_and_grad(lambda params, key: vae_loss(vae, params, pixels, key, 1e-3), has_aux=True))
    (value, report), gradients = grad(params_of(AUTOENCODER), jax.random.key(0))
    assert value > report["error"] > 0 and report["kl"] > 0 and report["std"] > 0
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_the_decoders_loss_is_that_of_the_whole_without_the_pull_and_trains_every_part_of_the_decoder():
    pixels = jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3)), jnp.uint8)
    vae, params, key = VAE(AUTOENCODER), params_of(AUTOENCODER), jax.random.key(0)
    posterior = vae.apply({"params": params}, pixels.astype(jnp.float32) / 127.5 - 1, method="encode")
    latents = posterior.mean + jnp.exp(0.5 * posterior.logvar) * jax.random.normal(key, posterior.mean.shape)
    decoder = {name: params[name] for name in DECODER}
    (value, _), gradients = jax.value_and_grad(lambda part: decoder_loss(vae, part, latents, pixels), has_aux=True)(
        decoder
    )
    assert value == pytest.approx(float(vae_loss(vae, params, pixels, key, 0)[0]), rel=1e-5)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_the_scale_brings_latents_to_unit_deviation():
    means = RNG.normal(3, 5, (10, 4, 4, 2)).astype(np.float32)
    assert (means * latent_scale(means)).std() == pytest.approx(1, rel=1e-5)


# --- What the text encoder tells ---


def test_cells_are_squares_row_by_row():
    latents = jnp.arange(2.0 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    squares = cells(latents, 2)
    assert squares.shape == (2, 4, 12)
    np.testing.assert_array_equal(squares[1, 2], latents[1, 2:, :2].reshape(-1))


def test_the_text_encoder_learns_what_each_caption_looks_like():
    encoder = TextEncoder(TEXT)
    ids = jnp.asarray(RNG.integers(0, 20, (4, 8)), jnp.int32)
    latents = jnp.asarray(RNG.standard_normal((4, 4, 4, 2)), jnp.float32)
    head = {"kernel": jnp.zeros((TEXT.hidden_size, 8)), "bias": jnp.zeros(8)}
    params = {"text_encoder": params_of(TEXT), "head": head}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        (value, _), gradients = jax.value_and_grad(
            lambda params: text_loss(encoder, params, ids, latents, 2), has_aux=True
        )(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    moments = optimizer.init(params)
    values = []
    with jax.numpy_dtype_promotion("standard"):  # optax' own counts promote
        for _ in range(300):
            params, moments, value = step(params, moments)
            values.append(float(value))
    assert values[0] == pytest.approx(float((latents**2).mean()), rel=1e-5)
    assert values[-1] < 0.05 * values[0]


# --- Diffusion ---


@pytest.fixture(scope="module")
def loss_and_gradient():
    unet = UNet(UNET)

    def loss(params, latents, context, key):
        def predict(noisy, timesteps):
            return unet.apply({"params": params}, noisy, timesteps, context)

        return diffusion_loss(predict, SCHEDULER, latents, key)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def params():
    return params_of(UNET)


def unit_latents(batch=16):
    return jnp.asarray(RNG.standard_normal((batch, 8, 8, 4)), jnp.float32)


def contexts(batch=16):
    return jnp.asarray(RNG.standard_normal((batch, 6, TEXT.hidden_size)), jnp.float32)


def moves(gradients):
    """Whether a gradient reaches all but a few leaves: a bias of keys moves all scores of a query alike."""
    sizes = np.array([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)])
    return np.isfinite(sizes).all() and sizes.max() > 1e-6 and np.mean(sizes > 0) > 0.9


def test_the_gradient_flows_to_all_of_the_unet(loss_and_gradient, params):
    (value, report), gradients = loss_and_gradient(params, unit_latents(), contexts(), jax.random.key(0))
    assert np.isfinite(value) and value > 0 and report["noisiest"] > 0
    assert moves(gradients)


def test_a_network_that_says_nothing_is_wrong_by_the_variance_of_v(loss_and_gradient, params):
    silent = jax.tree.map(jnp.zeros_like, params)
    (value, report), _ = loss_and_gradient(silent, unit_latents(), contexts(), jax.random.key(1))
    # v is noise and latents on the unit circle: 4096 values of unit variance.
    assert value == pytest.approx(1, abs=0.1)
    assert report["noisiest"] == pytest.approx(1, abs=0.15)


def test_the_loss_depends_on_the_key_alone_for_its_noise(loss_and_gradient, params):
    latents, context = unit_latents(), contexts()
    losses = [float(loss_and_gradient(params, latents, context, jax.random.key(key))[0][0]) for key in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


# --- The latents in memory ---


@pytest.fixture
def latent_set():
    count = 50
    means = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 4), np.float32)
    ids = np.arange(count)[:, None] * np.ones((1, 6), int)
    return LatentSet(means, np.zeros_like(means), ids, np.full(6, -1), scale=0.5)


def test_a_batch_is_decided_by_seed_and_step(latent_set):
    for one, two in zip(latent_set.batch(1, 2, 8, 0.1), latent_set.batch(1, 2, 8, 0.1), strict=True):
        np.testing.assert_array_equal(one, two)
    others = [latent_set.batch(*which, 8, 0.1)[1].tolist() for which in ((1, 2), (1, 3), (2, 2))]
    assert others[0] != others[1] != others[2]


def test_each_latent_comes_scaled_with_its_own_caption(latent_set):
    latents, ids = latent_set.batch(0, 0, 64, 0.0)
    assert latents.dtype == np.float32 and ids.dtype == np.int32
    np.testing.assert_array_equal(latents[:, 0, 0, 0], 0.5 * ids[:, 0])


def test_a_share_of_captions_is_the_empty_one(latent_set):
    _, ids = latent_set.batch(0, 0, 4000, 0.2)
    empty = (ids == -1).all(1)
    assert empty.mean() == pytest.approx(0.2, abs=0.03)
    assert (ids[~empty] >= 0).all()


def test_latents_are_sampled_from_their_means_and_deviations():
    shape = (1, 32, 32, 4)
    one = LatentSet(
        np.full(shape, 3.0, np.float32), np.full(shape, 2.0, np.float32), np.zeros((1, 6), int), np.zeros(6, int), 1.0
    )
    latents, _ = one.batch(0, 0, 4, 0.0)
    assert latents.mean() == pytest.approx(3, abs=0.1) and latents.std() == pytest.approx(2, abs=0.1)
    assert np.abs(latents[0] - latents[1]).max() > 1
