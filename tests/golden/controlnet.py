"""The comparisons of ControlNets and T2I adapters: weights, control images, and what sdjax makes of them.

The same cases are compared with recorded references (`tests/models`) and live (`tests/parity`). Weights and inputs come
from numpy's frozen `RandomState`; the weights of zero convolutions too, which are not zero here.
"""

import dataclasses
import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax.checkpoints import name_table
from sdjax.checkpoints.controlnet_file import CONTROLNET, T2I_ADAPTER, ControlConfig, control_shapes
from sdjax.checkpoints.tensors import Params, write_params
from sdjax.models import UNet, UNetConfig
from sdjax.models.controlnet import ControlNet, ControlNetConfig, added, residual_scales
from sdjax.models.t2i_adapter import LIGHT, T2IAdapter, T2IAdapterConfig, adapted
from sdjax.models.unet import Residuals
from tests import toys
from tests.golden.checkpoints import checksum, weights
from tests.golden.networks import Arrays, class_labels

FOLDER = Path(__file__).parent
RECORDED = FOLDER / "controlnet.npz"
# Names and shapes, by diffusers and the original code; and what diffusers reads from the toys of the latter.
NAMES = FOLDER / "controlnet_names.json.gz"
BATCH = 2
# What diffusers' ControlNets have of the UNet's config.
OF_A_UNET = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block",
    "attention_head_dim", "use_linear_projection", "class_embed_type", "num_class_embeds",
    "projection_class_embeddings_input_dim", "upcast_attention",
)  # fmt: skip


class Control(NamedTuple):
    """A network, and how much each image of the batch heeds it.

    guess: which images are drawn in guess mode.
    """

    config: ControlConfig
    seed: int
    weights: tuple[float, ...] = (1.0, 1.0)
    guess: tuple[bool, ...] = (False, False)

    def params(self) -> Params:
        """Random weights."""
        return toys.random_params(control_shapes(self.config), np.random.RandomState(self.seed))


class Case(NamedTuple):
    """A UNet with what steers it. Its latents have odd sides, which are halved to what is more than half."""

    unet: UNetConfig
    controls: tuple[Control, ...]
    size: tuple[int, int] = (9, 7)

    def params(self) -> Params:
        """The UNet's random weights."""
        return toys.random_params(toys.param_shapes(self.unet), np.random.RandomState(30))


# Two levels, so that they are soon compiled.
_SMALL = dataclasses.replace(
    toys.SD1.unet,
    sample_size=None,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(32, 64),
)
_SMALL_SD2 = dataclasses.replace(
    _SMALL,
    in_channels=9,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    block_out_channels=(64, 64),
    attention_head_dim=(2, 4),
    use_linear_projection=True,
    class_embed_type="timestep",
)
# Toys' VAEs have four pixels for a latent.
_SD1 = ControlNetConfig(_SMALL, conditioning_embedding_out_channels=(16, 32, 48))
_SD2 = ControlNetConfig(
    dataclasses.replace(_SMALL_SD2, in_channels=4),
    controlnet_conditioning_channel_order="bgr",
    conditioning_embedding_out_channels=(16,),
    global_pool_conditions=True,
)
_FULL = T2IAdapterConfig(channels=(32, 64))
_GRAY = T2IAdapterConfig(in_channels=1, channels=(32, 64), num_res_blocks=1, downscale_factor=4)
_LIGHT = T2IAdapterConfig(channels=(64,), num_res_blocks=3, adapter_type=LIGHT)
# The ordinary toys, and nets with diffusers' defaults.
_WHOLE_SD1 = ControlNetConfig(
    dataclasses.replace(toys.SD1.unet, sample_size=None), conditioning_embedding_out_channels=(16, 32, 48)
)
_WHOLE_SD2 = ControlNetConfig(dataclasses.replace(toys.SD2.unet, sample_size=None))
_LABELLED = dataclasses.replace(toys.SD2.unet, only_cross_attention=(True, False, True), num_class_embeds=10)

CASES = {
    "sd1": Case(_SMALL, (Control(_SD1, 31, (0.7, 1.3)),)),
    "guess_mode": Case(_SMALL, (Control(_SD1, 31, (1.0, 0.8), (True, False)),)),
    "several": Case(
        _SMALL, (Control(_SD1, 31, (0.5, 0.0)), Control(_SD1, 33, (1.5, 0.6), (False, True)), Control(_SD1, 34))
    ),
    "sd2_with_more_channels_labels_no_strides_pooled_and_a_light_adapter": Case(
        _SMALL_SD2, (Control(_SD2, 32, (1.0, 0.4), (False, True)), Control(_LIGHT, 38, (1.0, 0.5)))
    ),
}
# Compared live only.
LIVE_CASES = {
    "adapters_and_a_controlnet": Case(
        _SMALL, (Control(_FULL, 36, (0.2, 0.9)), Control(_SD1, 31), Control(_GRAY, 37, (0.8, 0.1)))
    ),
    "whole_sd1": Case(toys.SD1.unet, (Control(_WHOLE_SD1, 31, (0.7, 1.3)),), (8, 8)),
    "whole_sd2": Case(toys.SD2.unet, (Control(_WHOLE_SD2, 32, (1.0, 0.4)),), (8, 8)),
    "only_cross_attention_and_class_labels": Case(
        _LABELLED, (Control(dataclasses.replace(_WHOLE_SD1, unet=_LABELLED), 33, guess=(True, True)),), (8, 8)
    ),
    "several_of_which_one_pools": Case(
        toys.SD1.unet,
        (
            Control(_WHOLE_SD1, 31, (0.5, 0.0)),
            Control(dataclasses.replace(_WHOLE_SD1, global_pool_conditions=True), 33, (1.5, 0.6), (False, True)),
        ),
        (8, 8),
    ),
    "full_adapter": Case(
        toys.SD1.unet, (Control(T2IAdapterConfig(channels=(16, 32, 32)), 36, (1.0, 0.7)),), (8, 8)
    ),
    "light_adapter": Case(
        toys.SD1.unet, (Control(T2IAdapterConfig(channels=(16, 32), adapter_type=LIGHT), 36, (1.0, 0.7)),)
    ),
}  # fmt: skip


def condition_of(config: ControlConfig, size: tuple[int, int], seed: int) -> np.ndarray:
    """Control images in [0, 1] for latents of a size."""
    controlnet = isinstance(config, ControlNetConfig)
    factor = config.factor if controlnet else config.downscale_factor
    channels = config.conditioning_channels if controlnet else config.in_channels
    shape = (BATCH, size[0] * factor, size[1] * factor, channels)
    return np.random.RandomState(seed).uniform(0, 1, shape).astype(np.float32)


def inputs(case: Case) -> Arrays:
    """What the UNet is asked, and the control images, as "condition_0" and so on."""
    rng = np.random.RandomState(40)
    asked = {
        "sample": rng.standard_normal((BATCH, *case.size, case.unet.in_channels)).astype(np.float32),
        "timesteps": np.array([981.0, 16.0], np.float32),
        "context": rng.standard_normal((BATCH, 7, case.unet.per_level("cross_attention_dim")[0])).astype(np.float32),
    }
    labels = class_labels(case.unet)
    asked |= {} if labels is None else {"class_labels": labels}
    return asked | {
        f"condition_{index}": condition_of(control.config, case.size, 41 + index)
        for index, control in enumerate(case.controls)
    }


@functools.cache
def compiled(module: nn.Module, method: str | None = None) -> Callable[..., Any]:
    """A network as a compiled function of its variables and arguments."""
    return jax.jit(functools.partial(module.apply, method=method))


def residuals_of(control: Control, condition: np.ndarray, asked: Arrays) -> Residuals:
    """What one network adds."""
    variables, of_images = {"params": control.params()}, jnp.array(control.weights, jnp.float32)
    if isinstance(control.config, T2IAdapterConfig):
        return adapted(compiled(T2IAdapter(control.config))(variables, condition), of_images)
    network = ControlNet(control.config)
    embedded = compiled(network, "embed")(variables, condition)
    scales = residual_scales(control.config, of_images, jnp.array(control.guess))
    latents = {**asked, "sample": asked["sample"][..., : control.config.unet.in_channels]}
    return compiled(network)(variables, **latents, embedded=embedded, scales=scales)


def named(residuals: Residuals) -> dict[str, Any]:
    """Their arrays by name."""
    found = {f"down_{index}": each for index, each in enumerate(residuals.down)}
    found |= {f"intrablock_{index}": each for index, each in enumerate(residuals.intrablock)}
    return found if residuals.mid is None else found | {"mid": residuals.mid}


def thinned(arrays: Arrays) -> Arrays:
    """What is recorded of outputs: every eighth channel of features."""
    return {name: array if name.endswith("prediction") else array[..., ::8] for name, array in arrays.items()}


def outputs(case: Case, asked: Arrays | None = None) -> Arrays:
    """What sdjax gives for `inputs`: the residuals, all together, and the UNet's prediction with them."""
    asked = dict(asked or inputs(case))
    conditions = [asked.pop(f"condition_{index}") for index in range(len(case.controls))]
    with jax.default_matmul_precision("highest"):
        every = [residuals_of(control, each, asked) for control, each in zip(case.controls, conditions, strict=True)]
        together = functools.reduce(added, every)
        given = named(together)
        given["prediction"] = compiled(UNet(case.unet))({"params": case.params()}, **asked, residuals=together)
    return {name: np.asarray(array) for name, array in given.items()}


# --- Original files ---

# The published networks, and toys of them, by the original code.
ORIGINAL_CONTROLNETS = {"sd1": "models/cldm_v15.yaml", "sd2": "models/cldm_v21.yaml"}
ORIGINAL_ADAPTERS = ("full", "light")
# Of the toys: what they are built with; all norms of the original code have 32 groups.
TOY_CONTROLNETS: dict[str, dict[str, Any]] = {
    "sd1": {"model_channels": 32, "channel_mult": [1, 2, 2], "attention_resolutions": [1, 2], "num_res_blocks": 1},
    "sd2": {"model_channels": 64, "channel_mult": [1, 2], "attention_resolutions": [1], "num_res_blocks": 2},
}
TOY_ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"channels": [32, 64, 64], "nums_rb": 2, "cin": 192, "ksize": 1, "sk": True, "use_conv": False},
    "light": {"channels": [32, 64, 64], "nums_rb": 3, "cin": 64},
}
TOY_TEXT_WIDTH = 32
TOY_SIZE = (8, 8)


@functools.cache
def recorded_names() -> dict[str, Any]:
    """{"diffusers": {name: shapes}, "original": {"full" or "toy": {name: shapes}}, "read": {name: checksums}}."""
    return json.loads(gzip.decompress(NAMES.read_bytes()))


def shapes_of(listed: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes as tuples."""
    return {name: tuple(shape) for name, shape in listed.items()}


def original_toy(name: str) -> Arrays:
    """The state of a toy of the original code, by its names there: "sd1", "sd2", "full" or "light"."""
    return weights(shapes_of(recorded_names()["original"]["toy"][name]))


def original_inputs() -> Arrays:
    """What the toys of the original code are asked; `hint` is for one of 8 x 8 latents."""
    rng = np.random.RandomState(50)
    return {
        "sample": rng.standard_normal((BATCH, *TOY_SIZE, 4)).astype(np.float32),
        "timesteps": np.array([7.0, 801.0], np.float32),
        "context": rng.standard_normal((BATCH, 7, TOY_TEXT_WIDTH)).astype(np.float32),
        "hint": rng.uniform(0, 1, (BATCH, 64, 64, 3)).astype(np.float32),
    }


# --- Files ---


def json_of(config: ControlConfig) -> dict[str, Any]:
    """The config as diffusers writes it."""
    fields = dataclasses.asdict(config)
    if isinstance(config, T2IAdapterConfig):
        return {"_class_name": "T2IAdapter", **fields}
    unet = fields.pop("unet")
    return {"_class_name": "ControlNetModel", **{name: unet[name] for name in OF_A_UNET}, **fields}


def write_folder(folder: Path, control: Control) -> Path:
    """Writes a network as diffusers does; gives the folder."""
    table = CONTROLNET if isinstance(control.config, ControlNetConfig) else T2I_ADAPTER
    write_params(control.params(), table, folder / "diffusion_pytorch_model.safetensors", np.float32)
    (folder / "config.json").write_text(json.dumps(json_of(control.config)))
    return folder


def checksums(params: Params) -> dict[str, str]:
    """Those of all parameters of a ControlNet, by diffusers' names."""
    return {
        name_table.file_names(path, CONTROLNET)[0]: checksum(name_table.to_file(path, np.asarray(leaf)))
        for keys, leaf in jax.tree.leaves_with_path(params)
        for path in [tuple(key.key for key in keys)]
    }


def assert_same(params: Params, others: Params) -> None:
    """Raises unless two trees have the same bits."""
    jax.tree.map(np.testing.assert_array_equal, params, others)
