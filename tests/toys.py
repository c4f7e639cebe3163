"""Checkpoints of the structure of Stable Diffusion 1 and 2, a thousandth of their size, with random weights.

The weights come from numpy's frozen `RandomState`, so they are the same with any version of JAX, and recorded
results of other implementations stay valid.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.checkpoints.diffusers_folder import write_folder
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.latent_upscaler import LATENT_UPSCALER_UNET
from sdjax.families.network import Network
from sdjax.families.networks import AUTOENCODER_KL, CLIP_TEXT_MODEL, UNET_2D_CONDITION_MODEL
from sdjax.families.stable_diffusion import SD1 as FAMILY
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.models.latent_upscaler import LatentUpscalerConfig
from sdjax.text.vocabulary import END, START, clip_vocabulary, cut_down, write_tokenizer

WORDS = ("a", "an", "the", "red", "green", "blue", "apple", "cat", "dog", "on", "of", "and", "photo", "castle")
LENGTH = 77


@dataclasses.dataclass(frozen=True)
class Toy:
    """What a checkpoint is made of."""

    text_encoder: TextEncoderConfig
    unet: UNetConfig
    vae: VAEConfig
    scheduler: SchedulerConfig
    scheduler_class: str
    padding: str
    seed: int

    @property
    def configs(self) -> dict[str, Any]:
        """Of the three networks, by name."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}


# The networks by the type of their config.
NETWORKS: Mapping[type, Network] = {
    TextEncoderConfig: CLIP_TEXT_MODEL,
    UNetConfig: UNET_2D_CONDITION_MODEL,
    VAEConfig: AUTOENCODER_KL,
    LatentUpscalerConfig: LATENT_UPSCALER_UNET,
}


def param_shapes(config: Any) -> Any:
    """The parameter tree of a network as shapes."""
    return NETWORKS[type(config)].param_shapes(config)


_WORDS = cut_down(clip_vocabulary(), WORDS)
_VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=32,
)
_SCHEDULER = SchedulerConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    set_alpha_to_one=False,
)
_UNET = UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32, 32),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
    attention_head_dim=2,
)
_TEXT = TextEncoderConfig(
    vocab_size=len(_WORDS.tokens),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
)

# As SD1.5: epsilon, quick GELU, convolutional projections, one number of heads, padding with the end token.
SD1 = Toy(_TEXT, _UNET, _VAE, _SCHEDULER, "PNDMScheduler", END, 1)
# As SD2.1: v, exact GELU, linear projections, heads of one width at each level, padding with token 0.
SD2 = Toy(
    dataclasses.replace(_TEXT, hidden_act="gelu"),
    dataclasses.replace(_UNET, attention_head_dim=(2, 4, 4), use_linear_projection=True),
    _VAE,
    dataclasses.replace(_SCHEDULER, prediction_type="v_prediction"),
    "DDIMScheduler",
    "!",
    2,
)
# With a mask and a masked image beside the latents, a depth map, labels.
_PLMS = dataclasses.replace(_SCHEDULER, skip_prk_steps=True)
SD1_INPAINT = dataclasses.replace(SD1, unet=dataclasses.replace(SD1.unet, in_channels=9), scheduler=_PLMS, seed=3)
SD2_INPAINT = dataclasses.replace(
    SD2,
    unet=dataclasses.replace(SD2.unet, in_channels=9),
    scheduler=_PLMS,
    scheduler_class="PNDMScheduler",
    seed=4,
)
SD2_DEPTH = dataclasses.replace(SD2_INPAINT, unet=dataclasses.replace(SD2.unet, in_channels=5), seed=5)
SD1_CLASSES = dataclasses.replace(SD1, unet=dataclasses.replace(SD1.unet, num_class_embeds=5), seed=6)
SD1_TIMED_CLASSES = dataclasses.replace(SD1, unet=dataclasses.replace(SD1.unet, class_embed_type="timestep"), seed=7)
# As SD-Turbo: the structure of SD2, epsilon, a few steps from the noisiest level on.
SD_TURBO = dataclasses.replace(
    SD2,
    scheduler=dataclasses.replace(_SCHEDULER, timestep_spacing="trailing"),
    scheduler_class="EulerDiscreteScheduler",
    seed=8,
)
# As SD1, of one level and one layer, so that its programs are soon compiled.
TINY = dataclasses.replace(
    SD1,
    text_encoder=dataclasses.replace(_TEXT, num_hidden_layers=1),
    unet=dataclasses.replace(
        _UNET,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
    ),
    vae=dataclasses.replace(
        _VAE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
    ),
    seed=9,
)


def random_params(shapes: Any, rng: np.random.RandomState) -> Any:
    """Weights that keep activations of unit size: kernels by fan-in, scales about 1, biases about 0."""

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif kind == "scale":
            values = 1 + 0.1 * values
        elif kind == "bias":
            values *= 0.1
        return values.astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def toy_params(toy: Toy) -> Mapping[str, Any]:
    """The weights of the three networks."""
    rng = np.random.RandomState(toy.seed)
    return {name: random_params(param_shapes(config), rng) for name, config in toy.configs.items()}


def write_toy(folder: Path, toy: Toy) -> Path:
    """Writes the checkpoint in diffusers' layout; gives the folder."""
    write_folder(
        folder,
        FAMILY,
        toy.configs,
        scheduler=toy.scheduler,
        scheduler_class=toy.scheduler_class,
        special_tokens={
            "bos_token_id": _WORDS.tokens[START],
            "eos_token_id": _WORDS.tokens[END],
            "pad_token_id": _WORDS.tokens[toy.padding],
        },
        params=toy_params(toy),
        dtype=np.float32,
    )
    write_tokenizer(folder / "tokenizer", _WORDS, LENGTH, toy.padding)
    return folder
