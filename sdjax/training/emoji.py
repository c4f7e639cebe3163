"""Makes the embedded model from Noto emoji, in stages that can be stopped and continued.

    python -m sdjax.training.emoji [--state DIR] [--font FILE] [STAGE ...]

The stages: `vae` trains the autoencoder, `latents` encodes scenes with it, `text` trains the text encoder to tell what
they look like, `unet` trains the UNet to draw them, `decoder` trains the VAE's decoder further on the same latents,
`export` writes the model folder. Each goes on from what DIR holds.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array
from PIL import Image
from rich.progress import track

from sdjax.checkpoints.diffusers_folder import write_folder
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.stable_diffusion import SD1
from sdjax.models import VAE, TextEncoder, TextEncoderConfig, UNet, UNetConfig, VAEConfig
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import END, START, Vocabulary, clip_vocabulary, cut_down, write_tokenizer
from sdjax.training import scenes, state
from sdjax.training.autoencoder import DECODER, decoder_loss, latent_scale, vae_loss
from sdjax.training.latent_diffusion import TEXT, LatentSet, diffusion_loss, text_loss
from sdjax.training.stages import parse_stages

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

VAE_CONFIG = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=12,
    norm_num_groups=8,
    sample_size=scenes.SIZE,
    force_upcast=False,
)
VAE_RECIPE = state.Recipe(steps=1500, learning_rate=2e-3, warmup=50, average=0.995)
VAE_BATCH = 16
KL_WEIGHT = 5e-4
DECODER_RECIPE = state.Recipe(steps=1500, learning_rate=1.5e-3, warmup=50, average=0.995)

# Side of the latents.
SIDE = scenes.SIZE // VAE_CONFIG.factor
UNET_CONFIG = UNetConfig(
    sample_size=SIDE,
    in_channels=VAE_CONFIG.latent_channels,
    out_channels=VAE_CONFIG.latent_channels,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(96, 224),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=160,
    attention_head_dim=4,
    use_linear_projection=True,
)
# Positions of the text encoder: captions take 12 at most, and each costs time in every step.
TEXT_LENGTH = 32
TEXT_LAYERS = 2
SCHEDULER = SchedulerConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    steps_offset=1,
)
SCHEDULER_CLASS = "DPMSolverMultistepScheduler"
LATENTS = 24_000
UNET_RECIPE = state.Recipe(steps=8000, learning_rate=1e-3, average=0.998)
TEXT_RECIPE = state.Recipe(steps=9000, learning_rate=2e-3, warmup=100, decay_from=0.5, average=0.998)
# Squares of a scene which the text encoder tells, along each side: as many as the UNet's lowest level has.
CELLS = SIDE // 2 ** (len(UNET_CONFIG.block_out_channels) - 1)
BATCH = 32
UNCONDITIONAL = 0.1
# Seeds of the data: training and images that no training has seen.
TRAIN_SEED, HELD_OUT_SEED = 1, 2


def scene_batches(
    seed: int, sprites: tuple[Image.Image, ...], size: int, first: int
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Batches of (pixels, captions), drawn one batch ahead in a thread; `first` counts batches."""
    source = scenes.examples(seed, sprites, first * size)

    def draw() -> tuple[np.ndarray, list[str]]:
        rows = [next(source) for _ in range(size)]
        return np.stack([pixels for pixels, _, _ in rows]), [caption for _, caption, _ in rows]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw)
        while True:
            batch, ahead = ahead.result(), pool.submit(draw)
            yield batch


def contact_sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Images (n, h, w, 3) of uint8 side by side."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def reconstruction_sheet(
    file: Path, sprites: tuple[Image.Image, ...], encoder: state.Params | None = None
) -> Callable[[state.TrainState], None]:
    """Gives a function that draws scenes never trained on, each with its reconstruction on the right.

    Args:
      file: where the sheet goes.
      sprites: of `scenes.sprites`.
      encoder: the parameters that are not in the run's state, if any.
    """
    vae = VAE(VAE_CONFIG)
    held_out, _ = next(scene_batches(HELD_OUT_SEED, sprites, 32, 0))

    @jax.jit
    def reconstruct(params: state.Params, pixels: Array) -> Array:
        posterior = vae.apply({"params": params}, pixels / 127.5 - 1, method="encode")
        output = vae.apply({"params": params}, posterior.mean, method="decode")
        return jnp.round(jnp.clip(output * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)

    def draw(current: state.TrainState) -> None:
        params = {**(encoder or {}), **current.average}
        output = np.asarray(reconstruct(params, jnp.asarray(held_out, jnp.float32)))
        pairs = np.stack([held_out, output], 1).reshape(-1, *held_out.shape[1:])
        contact_sheet(pairs, 16).save(file)

    return draw


def train_vae(folder: Path, sprites: tuple[Image.Image, ...]) -> None:
    """Trains the autoencoder to its last step."""
    vae = VAE(VAE_CONFIG)
    latents = jnp.zeros((1, SIDE, SIDE, VAE_CONFIG.latent_channels))
    params = vae.init(jax.random.key(0), jnp.zeros((1, scenes.SIZE, scenes.SIZE, 3)), latents)["params"]
    params = state.quiet_branches(params, ("conv2", "to_out_0"))
    init, update = state.make_update(lambda p, b, k: vae_loss(vae, p, b, k, KL_WEIGHT), VAE_RECIPE, seed=10)
    state.run(
        update,
        state.restore(folder / "vae.msgpack", init(params)),
        lambda first: (p for p, _ in scene_batches(TRAIN_SEED, sprites, VAE_BATCH, first)),
        steps=VAE_RECIPE.steps,
        path=folder / "vae.msgpack",
        title="vae",
        on_save=reconstruction_sheet(folder / "vae.png", sprites),
    )


def train_decoder(folder: Path, sprites: tuple[Image.Image, ...]) -> None:
    """Trains the decoder further, on the latents on which the UNet was trained; the encoder stays as it is."""
    vae = VAE(VAE_CONFIG)
    params = state.averaged(folder / "vae.msgpack")
    encoder = {name: part for name, part in params.items() if name not in DECODER}
    data = load_latents(folder)

    def batches(first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = len(data.means) // VAE_BATCH
        while True:
            numbers = range(first % count, count)
            source = scene_batches(TRAIN_SEED, sprites, VAE_BATCH, numbers.start)
            for number, (pixels, _) in zip(numbers, source, strict=False):
                rows = np.arange(number * VAE_BATCH, (number + 1) * VAE_BATCH)
                yield data.sampled(np.random.default_rng([TRAIN_SEED, first]), rows), pixels
                first += 1

    init, update = state.make_update(lambda p, b, _: decoder_loss(vae, p, *b), DECODER_RECIPE, seed=11)
    state.run(
        update,
        state.restore(folder / "decoder.msgpack", init({name: params[name] for name in DECODER})),
        batches,
        steps=DECODER_RECIPE.steps,
        path=folder / "decoder.msgpack",
        title="decoder",
        on_save=reconstruction_sheet(folder / "decoder.png", sprites, encoder),
    )


def vocabulary() -> Vocabulary:
    """The part of CLIP's vocabulary that captions use."""
    said = [concept.name for concept in scenes.concepts()]
    said += [*scenes.COLORS, "a an the and next to on of emoji small large left right background picture"]
    return cut_down(clip_vocabulary(), re.findall("[a-z]+", " ".join(said)))


def text_config(words: Vocabulary) -> TextEncoderConfig:
    """The text encoder's sizes."""
    width = UNET_CONFIG.per_level("cross_attention_dim")[0]
    return TextEncoderConfig(
        vocab_size=len(words.tokens),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
    )


def encode_scenes(folder: Path, sprites: tuple[Image.Image, ...], vae_params: state.Params) -> None:
    """Encodes the first `LATENTS` scenes; writes `latents.npz`."""
    vae = VAE(VAE_CONFIG)
    size = 100

    vae_params = state.on_devices(vae_params, PartitionSpec())

    @jax.jit
    def encode(vae_params: state.Params, pixels: Array) -> tuple[Array, Array]:
        posterior = vae.apply({"params": vae_params}, pixels.astype(jnp.float32) / 127.5 - 1, method="encode")
        return posterior.mean.astype(jnp.float16), jnp.exp(0.5 * posterior.logvar).astype(jnp.float16)

    means, deviations, captions = [], [], []
    source = scene_batches(TRAIN_SEED, sprites, size, 0)
    for _ in track(range(LATENTS // size), "latents"):
        pixels, texts = next(source)
        mean, deviation = encode(vae_params, state.on_devices(pixels, PartitionSpec("data")))
        means.append(np.asarray(mean))
        deviations.append(np.asarray(deviation))
        captions.extend(texts)
    write_tokenizer(folder / "tokenizer", vocabulary(), TEXT_LENGTH)
    tokenizer = Tokenizer(folder / "tokenizer", TEXT_LENGTH)
    ids = np.array([tokenizer(text).ids for text in captions], np.int16)
    written = folder / "latents.writing.npz"
    np.savez(written, means=np.concatenate(means), deviations=np.concatenate(deviations), ids=ids)
    written.replace(folder / "latents.npz")


def load_latents(folder: Path) -> LatentSet:
    """What `encode_scenes` wrote."""
    with np.load(folder / "latents.npz") as stored:
        means, deviations, ids = stored["means"], stored["deviations"], stored["ids"]
    tokenizer = Tokenizer(folder / "tokenizer", TEXT_LENGTH)
    scale = latent_scale(means.astype(np.float32))
    return LatentSet(means, deviations, ids, np.array(tokenizer("").ids), scale)


def train_text(folder: Path) -> None:
    """Trains the text encoder to its last step, on the scenes' captions and latents."""
    network = TextEncoder(text_config(vocabulary()))
    data = load_latents(folder)
    width = network.config.hidden_size
    channels = data.means[0].size // CELLS**2
    params = {
        TEXT: network.init(jax.random.key(20), jnp.zeros((1, TEXT_LENGTH), jnp.int32))["params"],
        "head": {"kernel": jnp.zeros((width, channels)), "bias": jnp.zeros(channels)},
    }
    # Flax makes positions several times larger than tokens, which hides the words behind their places.
    for name, size in (("token_embedding", 1.0), ("position_embedding", 0.5)):
        table = params[TEXT][name]["embedding"]
        params[TEXT][name]["embedding"] = table * (size / table.std())

    def loss(params: state.Params, batch: tuple[Array, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        return text_loss(network, params, *batch, CELLS)

    init, update = state.make_update(loss, TEXT_RECIPE, seed=22)
    state.run(
        update,
        state.restore(folder / "text.msgpack", init(params)),
        lambda first: ((ids, latents) for latents, ids in data.batches(TRAIN_SEED, first, BATCH, UNCONDITIONAL)),
        steps=TEXT_RECIPE.steps,
        path=folder / "text.msgpack",
        title="text",
    )


def train_unet(folder: Path) -> None:
    """Trains the UNet to its last step; the text encoder stays as it is."""
    network, unet = TextEncoder(text_config(vocabulary())), UNet(UNET_CONFIG)
    text_params = state.on_devices(state.averaged(folder / "text.msgpack")[TEXT], PartitionSpec())
    data = load_latents(folder)
    context = jnp.zeros((1, TEXT_LENGTH, network.config.hidden_size))
    noisy = jnp.zeros((1, SIDE, SIDE, UNET_CONFIG.in_channels))
    params = unet.init(jax.random.key(21), noisy, jnp.zeros(1), context)["params"]
    params = state.quiet_branches(params, ("conv2", "conv_out", "to_out_0", "net_2"))

    def loss(params: state.Params, batch: tuple[Array, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        latents, ids = batch
        context = network.apply({"params": text_params}, ids).last_hidden_state

        def predict(noisy: Array, timesteps: Array) -> Array:
            return unet.apply({"params": params}, noisy, timesteps, context)

        return diffusion_loss(predict, SCHEDULER, latents, key)

    init, update = state.make_update(loss, UNET_RECIPE, seed=21)
    state.run(
        update,
        state.restore(folder / "unet.msgpack", init(params)),
        lambda first: data.batches(TRAIN_SEED, first, BATCH, UNCONDITIONAL),
        steps=UNET_RECIPE.steps,
        path=folder / "unet.msgpack",
        title="unet",
    )


def export(folder: Path, target: Path) -> None:
    """Writes what the runs in `folder` have reached as a diffusers folder, in float16."""
    words = vocabulary()
    vae_params = state.averaged(folder / "vae.msgpack") | state.averaged(folder / "decoder.msgpack")
    scale = load_latents(folder).scale
    write_folder(
        target,
        SD1,
        {
            TEXT: text_config(words),
            "unet": UNET_CONFIG,
            "vae": dataclasses.replace(VAE_CONFIG, scaling_factor=scale),
        },
        scheduler=SCHEDULER,
        scheduler_class=SCHEDULER_CLASS,
        special_tokens={
            "bos_token_id": words.tokens[START],
            "eos_token_id": words.tokens[END],
            "pad_token_id": words.tokens[END],
        },
        params={
            TEXT: state.averaged(folder / "text.msgpack")[TEXT],
            "unet": state.averaged(folder / "unet.msgpack"),
            "vae": vae_params,
        },
        dtype=jnp.float16,
    )
    write_tokenizer(target / "tokenizer", words, TEXT_LENGTH)


STAGES = ("vae", "latents", "text", "unet", "decoder", "export")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with bitmaps")
    parser.add_argument("--out", type=Path, default=Path("sdjax/assets/emoji"), help="where the model is exported to")
    options, stages = parse_stages(parser, STAGES)
    sprites = scenes.sprites(options.font) if {"vae", "latents", "decoder"} & set(stages) else ()
    if "vae" in stages:
        train_vae(options.state, sprites)
    if "latents" in stages:
        encode_scenes(options.state, sprites, state.averaged(options.state / "vae.msgpack"))
    if "text" in stages:
        train_text(options.state)
    if "unet" in stages:
        train_unet(options.state)
    if "decoder" in stages:
        train_decoder(options.state, sprites)
    if "export" in stages:
        export(options.state, options.out)


if __name__ == "__main__":
    main()
