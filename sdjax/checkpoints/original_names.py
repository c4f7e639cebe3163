"""The names of tensors in original single files (CompVis' and Stability AI's `ldm`).

An original file holds the three networks under one roof: `model.diffusion_model.` the UNet, `first_stage_model.` the
VAE, `cond_stage_model.` the text encoder, which is CLIP under transformers' names in Stable Diffusion 1 and OpenCLIP
under its own in 2. Where a parameter of ours lies is worked out from the network's config.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as File
from typing import NamedTuple

import jax

from sdjax.checkpoints import name_table
from sdjax.checkpoints.identify import listed
from sdjax.checkpoints.name_table import Path
from sdjax.checkpoints.tensors import FLOATS, CheckpointError, ParamTensor, Tensor
from sdjax.families.network import Network, NetworkConfig
from sdjax.families.networks import AUTOENCODER_KL, CLIP_TEXT_MODEL, UNET_2D_CONDITION_MODEL
from sdjax.models import ConfigError, TextEncoderConfig, UNetConfig, VAEConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
EMA = "model_ema."


@contextlib.contextmanager
def naming(file: File) -> Iterator[None]:
    """A context whose errors about tensors and configs name the file."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        if str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


class Source(NamedTuple):
    """Where one parameter of ours lies in an original file.

    path: ours, within its network.
    name: the tensor's.
    rows: the part of the tensor along its first axis; None for the whole.
    shape: the tensor's.
    """

    path: Path
    name: str
    rows: tuple[int, int] | None
    shape: tuple[int, ...]


# --- Where each parameter lies ---

# Within a residual block of the UNet: ours -> theirs.
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Within blocks of the VAE.
_VAE_BLOCK = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out_0": "proj_out",
}
# Within a layer of OpenCLIP's text tower; the three projections are the rows of one tensor.
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "out_proj": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
_FUSED = ("q_proj", "k_proj", "v_proj")

Modules = dict[Path, str]


def _unet_modules(config: UNetConfig) -> Modules:
    """Modules of ours -> theirs, numbered through all levels."""
    levels = len(config.block_out_channels)
    layers = config.per_level("layers_per_block")
    found: Modules = {
        ("conv_in",): "input_blocks.0.0",
        ("time_embedding", "linear_1"): "time_embed.0",
        ("time_embedding", "linear_2"): "time_embed.2",
        ("class_embedding", "linear_1"): "label_emb.0.0",
        ("class_embedding", "linear_2"): "label_emb.0.2",
        ("class_embedding",): "label_emb",
        ("mid_block", "resnets_0"): "middle_block.0",
        ("mid_block", "attentions_0"): "middle_block.1",
        ("mid_block", "resnets_1"): "middle_block.2",
        ("conv_norm_out",): "out.0",
        ("conv_out",): "out.2",
    }
    block = 1
    for level in range(levels):
        for layer in range(layers[level]):
            found[f"down_blocks_{level}", f"resnets_{layer}"] = f"input_blocks.{block}.0"
            found[f"down_blocks_{level}", f"attentions_{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            found[f"down_blocks_{level}", "downsamplers_0", "conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for index, kind in enumerate(config.up_block_types):
        for layer in range(layers[levels - 1 - index] + 1):
            found[f"up_blocks_{index}", f"resnets_{layer}"] = f"output_blocks.{block}.0"
            found[f"up_blocks_{index}", f"attentions_{layer}"] = f"output_blocks.{block}.1"
            block += 1
        place = 2 if kind.startswith("CrossAttn") else 1
        found[f"up_blocks_{index}", "upsamplers_0", "conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return found


def _vae_modules(config: VAEConfig) -> Modules:
    """Modules of ours -> theirs: the decoder's levels are counted from the pixels."""
    levels = len(config.block_out_channels)
    found: Modules = {("quant_conv",): "quant_conv", ("post_quant_conv",): "post_quant_conv"}
    for half in ("encoder", "decoder"):
        found |= {
            (half, "conv_in"): f"{half}.conv_in",
            (half, "mid_block", "resnets_0"): f"{half}.mid.block_1",
            (half, "mid_block", "attentions_0"): f"{half}.mid.attn_1",
            (half, "mid_block", "resnets_1"): f"{half}.mid.block_2",
            (half, "conv_norm_out"): f"{half}.norm_out",
            (half, "conv_out"): f"{half}.conv_out",
        }
    for level in range(levels):
        for layer in range(config.layers_per_block):
            found["encoder", f"down_blocks_{level}", f"resnets_{layer}"] = f"encoder.down.{level}.block.{layer}"
        found["encoder", f"down_blocks_{level}", "downsamplers_0", "conv"] = f"encoder.down.{level}.downsample.conv"
        for layer in range(config.layers_per_block + 1):
            found["decoder", f"up_blocks_{level}", f"resnets_{layer}"] = (
                f"decoder.up.{levels - 1 - level}.block.{layer}"
            )
        found["decoder", f"up_blocks_{level}", "upsamplers_0", "conv"] = (
            f"decoder.up.{levels - 1 - level}.upsample.conv"
        )
    return found


def _renamed(path: Path, modules: Modules, within: Mapping[str, str]) -> str:
    """The name of a parameter: that of the longest module known to hold it, then the rest by `within`."""
    for length in range(len(path) - 1, 0, -1):
        start = modules.get(path[:length])
        if start is not None:
            rest = [within.get(part, name_table.dotted(part)) for part in path[length:-1]]
            return ".".join([start, *rest, name_table.LEAVES[path[-1]]])
    raise AssertionError(f"no original module holds {path}")


def _leaves(network: Network, config: NetworkConfig) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """The parameters of a network with the shapes in which torch stores them, in the tree's order."""
    for keys, leaf in jax.tree.leaves_with_path(network.param_shapes(config)):
        path = tuple(key.key for key in keys)
        yield path, name_table.shape_in_file(path, leaf.shape)


def unet_sources(config: UNetConfig, ema: bool = False) -> list[Source]:
    """The UNet's parameters; with `ema` the averages of them, whose names have lost their dots."""
    modules = _unet_modules(config)
    found = []
    for path, shape in _leaves(UNET_2D_CONDITION_MODEL, config):
        residual = any(part.startswith("resnets_") for part in path)
        name = UNET + _renamed(path, modules, _RESIDUAL if residual else {})
        found.append(Source(path, ema_name(name) if ema else name, None, shape))
    return found


def ema_name(name: str) -> str:
    """What the average of a parameter of the UNet is called."""
    return EMA + name.removeprefix("model.").replace(".", "")


def vae_sources(config: VAEConfig) -> list[Source]:
    """The VAE's parameters. The attention's linear layers are 1x1 convolutions there."""
    modules = _vae_modules(config)
    found = []
    for path, shape in _leaves(AUTOENCODER_KL, config):
        if path[-1] == "kernel" and len(shape) == 2:
            shape = (*shape, 1, 1)
        found.append(Source(path, VAE + _renamed(path, modules, _VAE_BLOCK), None, shape))
    return found


def clip_sources(config: TextEncoderConfig) -> list[Source]:
    """CLIP's text encoder, under transformers' names."""
    table = CLIP_TEXT_MODEL.table
    return [
        Source(path, CLIP + name_table.file_names(path, table)[0].removeprefix(table.prefix), None, shape)
        for path, shape in _leaves(CLIP_TEXT_MODEL, config)
    ]


def open_clip_sources(config: TextEncoderConfig) -> list[Source]:
    """OpenCLIP's text tower."""
    width = config.hidden_size
    found = []
    for path, shape in _leaves(CLIP_TEXT_MODEL, config):
        name, rows = _open_clip_name(path), None
        if path[-2] in _FUSED:
            start = _FUSED.index(path[-2]) * width
            rows, shape = (start, start + width), (3 * width, *shape[1:])
        found.append(Source(path, OPEN_CLIP + name, rows, shape))
    return found


def _open_clip_name(path: Path) -> str:
    if path[0] == "position_embedding":
        return "positional_embedding"
    leaf = name_table.LEAVES[path[-1]]
    if path[0] == "token_embedding":
        return f"token_embedding.{leaf}"
    if path[0] == "final_layer_norm":
        return f"ln_final.{leaf}"
    layer = f"transformer.resblocks.{path[0].removeprefix('layers_')}"
    if path[-2] in _FUSED:
        return f"{layer}.attn.in_proj_{leaf}"
    return f"{layer}.{_OPEN_CLIP_LAYER[path[-2]]}.{leaf}"


def is_open_clip(config: TextEncoderConfig) -> bool:
    """Whether a text encoder is OpenCLIP's, which has the exact GELU, and is written under its names."""
    return config.hidden_act == "gelu"


def sources(config: NetworkConfig) -> list[Source]:
    """Where the parameters of a network are written, in the order of the tree.

    Raises:
      CheckpointError: if it is of a kind that has no such names.
    """
    if isinstance(config, UNetConfig):
        return unet_sources(config)
    if isinstance(config, VAEConfig):
        return vae_sources(config)
    if isinstance(config, TextEncoderConfig):
        return open_clip_sources(config) if is_open_clip(config) else clip_sources(config)
    raise CheckpointError(f"original single files have no names for a network of {type(config).__name__}")


# --- Other names for the same, and what else lies in such files ---

# Starts of names in older files and in those of Stability AI's `generative-models`, as they are here.
_OTHER_STARTS: tuple[tuple[str, str], ...] = (
    (r"conditioner\.embedders\.0\.model\.", OPEN_CLIP),
    (r"conditioner\.embedders\.0\.transformer\.", "cond_stage_model.transformer."),
)
_WITHOUT_TEXT_MODEL = re.compile(r"cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)")

# What training and its bookkeeping leave behind, and buffers that are computed here.
_EXTRAS = re.compile(
    "|".join(
        (
            r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
            r"|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance"
            r"|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|lvlb_weights|logvar)",
            r"denoiser\.sigmas",
            r"scale_factor",
            r"global_step|epoch",
            r"v_pred|ztsnr",
            r"model_ema\.(decay|num_updates)",
            r"first_stage_model\.model_ema\..*",
            # Of textual inversion and DreamBooth.
            r"embedding_manager\..*",
            r"(first_stage_model\.)?loss\..*",
            # What `convert` keeps of a folder's other files.
            r"folder:.*",
            # MiDaS, which makes the depth maps of `depth2img`.
            r"depth_model\..*",
            r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids",
            # A whole CLIP, which sees images too.
            r"cond_stage_model\.transformer\.(vision_model\..*|(visual|text)_projection\.weight|logit_scale)",
            r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)",
            r"cond_stage_model\.(text_projection|logit_scale)",
        )
    )
)
_OPEN_CLIP_LAYERS = re.compile(re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\..+")


def standard_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that this module speaks of.

    Raises:
      CheckpointError: if two names mean the same.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        standard = name
        for start, ours in _OTHER_STARTS:
            standard = re.sub(f"^{start}", ours, standard)
        standard = _WITHOUT_TEXT_MODEL.sub(CLIP, standard)
        if standard in found:
            raise CheckpointError(f"{tensor.file}: {name} and {found[standard].name} are the same parameter, twice")
        found[standard] = tensor
    return found


def is_extra(name: str, text_encoder: TextEncoderConfig | None = None) -> bool:
    """Whether a (standard) name is known to hold nothing that is used.

    OpenCLIP's layers after those of the config, of which there is one, are such: images are made from the
    penultimate layer.
    """
    layer = _OPEN_CLIP_LAYERS.fullmatch(name)
    if layer and text_encoder:
        return int(layer[1]) >= text_encoder.num_hidden_layers
    return bool(_EXTRAS.fullmatch(name))


def is_average(name: str) -> bool:
    """Whether a name is that of an average (EMA) of a parameter."""
    return name.startswith(EMA) and not is_extra(name)


def choose(
    where: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, list[Source]], is_known: Callable[[str], bool]
) -> dict[str, list[ParamTensor]]:
    """Finds the tensor of each parameter of some networks.

    Args:
      where: names the file in errors.
      tensors: all that the file holds, by (standard) name.
      wanted: the parameters of each network.
      is_known: whether a name that is not wanted may be there.

    Raises:
      CheckpointError: if tensors are missing, left over, of another shape, or no floating-point numbers.
    """
    chosen: dict[str, list[ParamTensor]] = {}
    missing, misshapen = [], []
    used = set()
    for part, listing in wanted.items():
        chosen[part] = []
        for source in listing:
            tensor = tensors.get(source.name)
            used.add(source.name)
            if tensor is None:
                missing.append(source.name)
            elif _without_ones(tensor.shape) != _without_ones(source.shape):
                misshapen.append(f"{tensor.name} is {tensor.shape}, not {source.shape}")
            elif tensor.dtype not in FLOATS:
                misshapen.append(f"{tensor.name} holds {tensor.dtype}, not one of {', '.join(FLOATS)}")
            else:
                chosen[part].append(ParamTensor(source.path, tensor, source.rows))
    spare = [tensor.name for name, tensor in tensors.items() if name not in used and not is_known(name)]
    problems = [
        f"{title}: {listed(dict.fromkeys(found))}"
        for title, found in (("missing", missing), ("left over", spare), ("wrong", misshapen))
        if found
    ]
    if problems:
        raise CheckpointError(f"{where}: the tensors are not those of a whole checkpoint. " + "; ".join(problems))
    return chosen


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes at its end that 1x1 convolutions have and linear layers have not."""
    return shape[:-2] if len(shape) == 4 and shape[-2:] == (1, 1) else shape
