"""Makes the embedded model from Noto emoji, in stages that can be stopped and continued.

    python -m sdjax.training.emoji [--state DIR] [--font FILE] [STAGE ...]

The stages: `vae` trains the autoencoder, `latents` encodes scenes with it, `unet` trains the UNet and the text
encoder together on those. Each goes on from what DIR holds.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from PIL import Image

from sdjax.models import VAE, VAEConfig
from sdjax.training import scenes, state
from sdjax.training.autoencoder import vae_loss

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

VAE_CONFIG = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=scenes.SIZE,
    force_upcast=False,
)
VAE_RECIPE = state.Recipe(steps=6000, learning_rate=1e-3)
VAE_BATCH = 8
KL_WEIGHT = 1e-3
# Seeds of the data: training and pictures that no training has seen.
TRAIN_SEED, HELD_OUT_SEED = 1, 2


def scene_batches(
    seed: int, pictures: tuple[Image.Image, ...], size: int, first: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Batches of (pixels, captions), drawn one batch ahead in a thread; `first` counts batches."""
    source = scenes.examples(seed, pictures, first * size)

    def draw() -> tuple[np.ndarray, list[str]]:
        rows = [next(source) for _ in range(size)]
        return np.stack([pixels for pixels, _, _ in rows]), [caption for _, caption, _ in rows]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw)
        while True:
            batch, ahead = ahead.result(), pool.submit(draw)
            yield batch


def contact_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures (n, h, w, 3) of uint8 side by side."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)


def train_vae(folder: Path, pictures: tuple[Image.Image, ...]) -> state.Params:
    """Trains the autoencoder to its last step; gives its averaged parameters."""
    vae = VAE(VAE_CONFIG)
    size = scenes.SIZE
    latents = jnp.zeros((1, size // VAE_CONFIG.factor, size // VAE_CONFIG.factor, VAE_CONFIG.latent_channels))
    params = vae.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), latents)["params"]
    init, update = state.make_update(lambda p, b, k: vae_loss(vae, p, b, k, KL_WEIGHT), VAE_RECIPE, seed=10)
    held_out, _ = next(scene_batches(HELD_OUT_SEED, pictures, 32, 0))

    @jax.jit
    def reconstruct(params: state.Params, pixels: Array) -> Array:
        posterior = vae.apply({"params": params}, pixels / 127.5 - 1, method="encode")
        output = vae.apply({"params": params}, posterior.mean, method="decode")
        return jnp.round(jnp.clip(output * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)

    def show(current: state.TrainState) -> None:
        output = np.asarray(reconstruct(current.average, jnp.asarray(held_out, jnp.float32)))
        pairs = np.stack([held_out, output], 1).reshape(-1, *held_out.shape[1:])
        contact_sheet(pairs, 16).save(folder / "vae.png")

    trained = state.run(
        update,
        state.restore(folder / "vae.msgpack", init(params)),
        lambda first: (jnp.asarray(p) for p, _ in scene_batches(TRAIN_SEED, pictures, VAE_BATCH, first)),
        steps=VAE_RECIPE.steps,
        path=folder / "vae.msgpack",
        title="vae",
        on_save=show,
    )
    return trained.average


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=["vae"], metavar="STAGE")
    parser.add_argument("--state", type=Path, default=Path("training-state/emoji"), help="where the runs are kept")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    pictures = scenes.sprites(options.font)
    if "vae" in options.stages:
        train_vae(options.state, pictures)


if __name__ == "__main__":
    main()
