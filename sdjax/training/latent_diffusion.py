"""Training of the text encoder and then of the UNet, on latents that the VAE has given beforehand."""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sdjax.diffusion.scheduler_config import SchedulerConfig, alphas_cumprod
from sdjax.families.stable_diffusion import TEXT_NETWORKS
from sdjax.models import TextEncoder
from sdjax.training.state import Params

# The name of the text encoder, as families call it.
(TEXT,) = TEXT_NETWORKS


def cells(latents: Float[Array, "b h w c"], side: int) -> Float[Array, "b n d"]:
    """Latents cut into `side` x `side` squares, row by row, each as one vector."""
    batch, height, width, channels = latents.shape
    squares = latents.reshape(batch, side, height // side, side, width // side, channels)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)


def text_loss(
    network: TextEncoder,
    params: Params,
    ids: Int[Array, "b n"],
    latents: Float[Array, "b h w c"],
    side: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """How far the text encoder is from telling what a caption's image looks like.

    Each of the last `side`**2 positions, which short captions leave empty, tells one square of the latents through a
    linear head that all share. So the UNet finds in its context, place by place, what it is to draw; to learn that
    through the UNet alone takes many times as long.

    Args:
      network: the text encoder.
      params: {TEXT: those of the text encoder, "head": {"kernel", "bias"}}.
      latents: of unit variance.
    """
    hidden = network.apply({"params": params[TEXT]}, ids).last_hidden_state
    predicted = hidden[:, -side * side :] @ params["head"]["kernel"] + params["head"]["bias"][None, None]
    return ((predicted - cells(latents, side)) ** 2).mean(), {}


def diffusion_loss(
    predict: Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Float[Array, "b h w c"]],
    scheduler: SchedulerConfig,
    latents: Float[Array, "b h w c"],
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The error in v (Salimans and Ho 2022) at a random timestep of each image.

    Reports also that of the noisiest quarter of the levels alone ("noisiest"): it falls when captions are heeded.

    Args:
      predict: noisy latents and timesteps to what the network says of them.
      latents: of unit variance.
    """
    for_time, for_noise = jax.random.split(key)
    signal = jnp.asarray(alphas_cumprod(scheduler), jnp.float32)
    # A little more often the noisier levels, where the caption decides.
    clean = jax.random.uniform(for_time, latents.shape[:1]) ** 1.25
    timesteps = jnp.floor((1 - clean) * (scheduler.num_train_timesteps - 1)).astype(jnp.int32)
    noise = jax.random.normal(for_noise, latents.shape)
    share = signal[timesteps][:, None, None, None]
    noisy = jnp.sqrt(share) * latents + jnp.sqrt(1 - share) * noise
    target = jnp.sqrt(share) * noise - jnp.sqrt(1 - share) * latents
    output = predict(noisy, timesteps.astype(jnp.float32))
    errors = ((output - target) ** 2).mean(axis=(1, 2, 3))
    noisiest = (timesteps >= scheduler.num_train_timesteps * 3 // 4).astype(jnp.float32)
    return errors.mean(), {"noisiest": (noisiest * errors).sum() / jnp.maximum(noisiest.sum(), 1)}


class LatentSet:
    """Encoded scenes in memory: means and deviations of their latents, and their captions' token ids."""

    def __init__(
        self,
        means: Float[np.ndarray, "n h w c"],
        deviations: Float[np.ndarray, "n h w c"],
        ids: Int[np.ndarray, "n t"],
        empty: Int[np.ndarray, " t"],
        scale: float,
    ) -> None:
        """Keeps the arrays; `empty` are the ids of the empty prompt, `scale` the VAE's scaling factor."""
        self.means, self.deviations, self.ids, self.empty, self.scale = means, deviations, ids, empty, scale

    def sampled(self, rng: np.random.Generator, rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b h w c"]:
        """Latents of some scenes as the VAE encodes them, not scaled."""
        noise = rng.standard_normal((len(rows), *self.means.shape[1:]), np.float32)
        return self.means[rows] + self.deviations[rows] * noise

    def batch(
        self, seed: int, step: int, size: int, unconditional: float
    ) -> tuple[Float[np.ndarray, "b h w c"], Int[np.ndarray, "b t"]]:
        """The batch of a step: latents of unit variance and ids, a share `unconditional` of them without a caption."""
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(self.means), size=size)
        latents = self.sampled(rng, rows) * self.scale
        ids = np.where(rng.random(size)[:, None] < unconditional, self.empty, self.ids[rows])
        return latents.astype(np.float32), ids.astype(np.int32)

    def batches(
        self, seed: int, first: int, size: int, unconditional: float
    ) -> Iterator[tuple[Float[np.ndarray, "b h w c"], Int[np.ndarray, "b t"]]]:
        """Endless batches from that of step `first` on."""
        for step in itertools.count(first):
            yield self.batch(seed, step, size, unconditional)
