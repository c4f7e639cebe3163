"""The comparisons of Stable Diffusion's upscalers: toys, what they are given, and what sdjax makes of it.

Only results are stored. The toys are built as the published ones, an eighth and a twelfth as wide.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.checkpoints.tensors import Params, write_params
from sdjax.engine.devices import Devices
from sdjax.engine.execution import Execution, start_of
from sdjax.engine.passes import Decode, Task
from sdjax.engine.upscaling_passes import diffusion_sample
from sdjax.families.family import Family
from sdjax.families.latent_upscaler import LATENT_UPSCALER
from sdjax.families.stable_diffusion import SD1
from sdjax.families.x4_upscaler import SCALING_FACTOR, X4_UPSCALER
from sdjax.jobs.job import Job
from sdjax.library.library import Library
from sdjax.library.opened import OpenLibrary
from sdjax.library.upscalers import read_diffusion_upscaler
from sdjax.model import Model
from sdjax.models import TextEncoderConfig, UNet, UNetConfig, VAEConfig
from sdjax.models.latent_upscaler import LatentUpscalerConfig, LatentUpscalerUNet
from sdjax.text.vocabulary import END, START, clip_vocabulary, cut_down, write_tokenizer
from sdjax.upscaling.diffusion import diffusion_upscaler_of
from tests import toys

RECORDED = Path(__file__).parent / "sd_upscalers.npz"
# Of latents: the largest difference over the largest value.
LATENT_TOLERANCE = 1e-4
# Names and shapes of the parameters of the published UNets, by diffusers.
NAMES = Path(__file__).parent / "sd_upscaler_names.json.gz"

# What diffusers' class has besides in a latent upscaler's config.
X2_SWITCHES: Mapping[str, Any] = {
    "act_fn": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "mid_block_type": None,
    "norm_num_groups": None,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
}
# The published UNets. That of x4 is as in `x4-upscaling.yaml` of Stability AI's code; that of x2 is what its class is
# written for (diffusers' `convert_k_upscaler_to_diffusers.py`), with the widths of k-diffusion's config.
PUBLISHED_X4 = UNetConfig(
    sample_size=128,
    in_channels=7,
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    only_cross_attention=(True, True, True, False),
    block_out_channels=(256, 512, 512, 1024),
    cross_attention_dim=1024,
    use_linear_projection=True,
    num_class_embeds=1000,
)
PUBLISHED_X2 = LatentUpscalerConfig(sample_size=128)


class Toy(NamedTuple):
    """A checkpoint of an upscaler; the schedulers as JSON."""

    family: Family
    text_encoder: TextEncoderConfig
    unet: Any  # UNetConfig or LatentUpscalerConfig
    vae: VAEConfig
    scheduler: Mapping[str, Any]
    low_res: Mapping[str, Any] | None
    padding: str
    seed: int

    @property
    def configs(self) -> dict[str, Any]:
        """Of the three networks, by name."""
        return {"text_encoder": self.text_encoder, "unet": self.unet, "vae": self.vae}

    def params(self) -> dict[str, Params]:
        """The weights of the three networks."""
        rng = np.random.RandomState(self.seed)
        return {
            part: toys.random_params(self.family.networks[part].param_shapes(config), rng)
            for part, config in self.configs.items()
        }


_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
X4_TOY = Toy(
    family=X4_UPSCALER,
    text_encoder=dataclasses.replace(toys.SD2.text_encoder, hidden_size=128, intermediate_size=128),
    unet=dataclasses.replace(
        PUBLISHED_X4, sample_size=8, block_out_channels=(32, 64, 64, 128), cross_attention_dim=128, layers_per_block=1
    ),
    vae=dataclasses.replace(
        toys.SD2.vae, block_out_channels=(32, 32, 64), norm_num_groups=32, scaling_factor=SCALING_FACTOR
    ),
    scheduler={
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        **_BETAS,
    },
    low_res={"_class_name": "DDPMScheduler", "clip_sample": True, "variance_type": "fixed_small", **_BETAS},
    padding="!",
    seed=31,
)
X2_TOY = Toy(
    family=LATENT_UPSCALER,
    text_encoder=toys.SD1.text_encoder,
    unet=dataclasses.replace(
        PUBLISHED_X2,
        sample_size=16,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=16,
        time_cond_proj_dim=160,
    ),
    vae=toys.SD1.vae,
    scheduler={
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "interpolation_type": "log_linear",
        "prediction_type": "sample",
    },
    low_res=None,
    padding=END,
    seed=32,
)
_WORDS = cut_down(clip_vocabulary(), toys.WORDS)


def write(root: Path, toy: Toy) -> Path:
    """Writes a checkpoint in diffusers' layout; gives the folder."""
    index: dict[str, Any] = {
        "_class_name": toy.family.folder.pipelines[0].name,
        "scheduler": ["diffusers", toy.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    switches = X2_SWITCHES if toy.family is LATENT_UPSCALER else {}
    tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": toy.padding}
    documents = {
        "scheduler/scheduler_config.json": toy.scheduler,
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **dataclasses.asdict(toy.text_encoder),
            **{name: _WORDS.tokens[token] for name, token in tokens.items()},
        },
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **dataclasses.asdict(toy.unet), **switches},
        "vae/config.json": {"_class_name": "AutoencoderKL", **dataclasses.asdict(toy.vae)},
    }
    if toy.low_res:
        index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": 350}
        documents["low_res_scheduler/scheduler_config.json"] = toy.low_res
    for name, document in {"model_index.json": index, **documents}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document), "utf-8")
    params = toy.params()
    for name, network in toy.family.networks.items():
        write_params(params[name], network.table, root / name / f"{network.stem}.safetensors", np.float32)
    write_tokenizer(root / "tokenizer", _WORDS, toys.LENGTH, toy.padding)
    return root


# --- The networks ---


class Asked(NamedTuple):
    """What a UNet is asked; `told` are the labels of x4 or the condition of x2."""

    sample: np.ndarray
    timesteps: np.ndarray
    context: np.ndarray
    told: np.ndarray


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


ASKED = {
    "x4": Asked(
        sample=_normal(1, 2, 20, 12, 7),  # halves unevenly
        timesteps=np.array([981.0, 16.0], np.float32),
        context=_normal(2, 2, 7, 128),
        told=np.array([20, 350]),
    ),
    "x2": Asked(
        sample=_normal(3, 2, 16, 24, 8),
        timesteps=np.array([0.66, -0.9], np.float32),
        context=_normal(4, 2, 7, 32),
        told=_normal(5, 2, 160),
    ),
}
TOYS = {"x4": X4_TOY, "x2": X2_TOY}


def prediction(name: str) -> np.ndarray:
    """What the UNet of a toy gives."""
    config, asked = TOYS[name].unet, ASKED[name]
    unet: Any = UNet(config) if isinstance(config, UNetConfig) else LatentUpscalerUNet(config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(unet.apply)({"params": TOYS[name].params()["unet"]}, *asked))


# --- The images ---

PROMPTS = ("a photo of a red apple", "the blue cat and a green dog on a castle", "")
NEGATIVES = ("the blue cat", "", "a dog")
SEEDS = (3, 2**32 + 7, 11)
PIXELS = np.random.RandomState(6).randint(0, 256, (3, 12, 20, 3)).astype(np.uint8)
LATENTS = _normal(7, 3, 8, 12, 4)


class Case(NamedTuple):
    """How images are upscaled; the noise level is of x4."""

    steps: int
    guidance_scale: float
    noise_level: int = 20


CASES = {
    "x4": {"as published": Case(10, 9.0), "without guidance": Case(5, 1.0, 0), "very noisy": Case(7, 4.0, 350)},
    "x2": {"guided": Case(10, 9.0), "without guidance": Case(7, 1.0), "without prompt": Case(20, 0.0)},
}


def load(folder: Path) -> Model:
    """The upscaler in a folder or file, with its parameters."""
    return diffusion_upscaler_of(read_diffusion_upscaler(folder, np.float32), folder, "float32")


def upscaled(upscaler: Model, case: Case, places: Sequence[int] = (0, 1, 2), devices: int = 1, **changes: Any) -> Any:
    """What sdjax makes of some of the three: pixels by x4, latents by x2.

    `changes` are of the job's fields, and `prompts`.
    """
    asked = changes.copy()
    prompts = asked.pop("prompts", PROMPTS)
    of_latents = upscaler.family.conditioned_on == "latents"
    given = (LATENTS if of_latents else PIXELS)[list(places)]
    height, width = given.shape[1:3]
    factor = upscaler.vae.config.factor if of_latents else 1
    size = height * factor * upscaler.family.upscales, width * factor * upscaler.family.upscales
    samples = []
    for place in places:
        fields = {
            "prompt": prompts[place],
            "negative_prompt": NEGATIVES[place],
            "seed": SEEDS[place],
            "noise_source": "torch",
            "upscaler_steps": case.steps,
            "upscaler_guidance_scale": case.guidance_scale,
            "upscaler_noise_level": case.noise_level,
            **asked,
        }
        job = Job(upscaler="it", upscale_by=2.0, **fields)
        samples.append(diffusion_sample(upscaler, job, size, "on latents" if of_latents else "on image"))
    tasks = [Task(sample.job, "", (sample, Decode(upscaler)), {}) for sample in samples]
    state = start_of(tasks)
    state.latents, state.images = (given, None) if of_latents else (None, given)
    on_devices = Devices(jax.local_devices()[:devices])
    # Another model draws the image; its networks are not used here.
    execution = Execution(dataclasses.replace(upscaler, digest="another"), None, on_devices, 1, 0, lambda bucket: None)
    library = OpenLibrary(Library(), SD1, toys.TINY.configs, np.float32)
    execution.run(samples, state, library)
    if of_latents:
        return state.latents
    execution.run([Decode(upscaler)] * len(tasks), state, library)
    return execution.images(state)
