"""The YAML configs that lie beside original single files (CompVis' and Stability AI's `ldm`)."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.checkpoints.infer_config import Heads
from sdjax.checkpoints.plain_yaml import PlainYamlError, read_plain_yaml
from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.families.family import Configs
from sdjax.families.stable_diffusion import TEXT_NETWORKS
from sdjax.messages import quoted
from sdjax.models import UNetConfig, VAEConfig

# All published models have 1000.
_MOST_TIMESTEPS = 100_000
# How much of a value an error shows.
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_MODELS = ("LatentDiffusion", "LatentInpaintDiffusion", "LatentDepth2ImageDiffusion")


@dataclasses.dataclass(frozen=True)
class _Section:
    """What may stand in one mapping of such a file. A key that is in none of the three is an error.

    read: keys that are read.
    fixed: keys that are accepted at these values only.
    informative: keys that say nothing about images, or what only training heeds.
    """

    read: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    informative: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARAMS = _Section(
    _words("parameterization linear_start linear_end timesteps scale_factor unet_config first_stage_config")
    | {"cond_stage_config"},
    {
        "beta_schedule": ("linear",),
        "conditioning_key": ("crossattn", "hybrid", "concat"),
        "num_timesteps_cond": (1, None),
        "scale_by_std": (False,),
        "given_betas": (None,),
    },
    # `image_size` is 64 in the config of the UNet for 768 pixels too.
    _words(
        "channels ckpt_path clip_denoised cond_stage_key cond_stage_trainable concat_keys depth_stage_config "
        "finetune_keys first_stage_key ignore_keys image_size l_simple_weight learn_logvar load_only_unet log_every_t "
        "logvar_init loss_type monitor original_elbo_weight scheduler_config ucg_training unet_trainable use_ema "
        "v_posterior"
    ),
)
_UNET = _Section(
    _words("in_channels out_channels model_channels channel_mult num_res_blocks attention_resolutions context_dim")
    | _words("transformer_depth num_heads num_head_channels use_linear_in_transformer num_classes"),
    {
        "use_spatial_transformer": (True,),
        "use_scale_shift_norm": (False,),
        "resblock_updown": (False,),
        "conv_resample": (True,),
        "dims": (2,),
        "n_embed": (None,),
        "disable_self_attentions": (None,),
        "num_attention_blocks": (None,),
        "disable_middle_self_attn": (False,),
        "adm_in_channels": (None,),
    },
    _words("dropout image_size legacy num_heads_upsample use_bf16 use_checkpoint use_fp16 use_new_attention_order"),
)
_FIRST_STAGE = _Section(_words("ddconfig embed_dim"), {}, _words("ckpt_path image_key lossconfig monitor ignore_keys"))
_AUTOENCODER = _Section(
    _words("z_channels in_channels out_ch ch ch_mult num_res_blocks"),
    {"double_z": (True,), "attn_resolutions": ([],)},
    _words("attn_type dropout resolution"),
)
_CLIP = _Section(frozenset(), {"layer": ("last",), "max_length": (77,)}, _words("device freeze version"))
_OPEN_CLIP = _Section(
    _words("layer"), {"arch": ("ViT-H-14",), "max_length": (77,)}, _words("device freeze version always_return_pooled")
)


@dataclasses.dataclass(frozen=True)
class OriginalConfig:
    """What such a file says that names and shapes do not; the rest is compared with them.

    penultimate: whether the text encoder stops before its last layer.
    stated: (name, value) of what they do say.
    """

    file: Path
    prediction_type: str
    beta_start: float
    beta_end: float
    timesteps: int
    scaling_factor: float
    heads: Heads
    penultimate: bool
    stated: tuple[tuple[str, Any], ...]

    def check(self, configs: Configs) -> None:
        """Raises `CheckpointError` if the file is of another model than one of these networks."""
        open_clip = configs[TEXT_NETWORKS[0]].hidden_act == "gelu"
        found = {
            **_of_unet(configs["unet"]),
            **_of_vae(configs["vae"]),
            "text encoder": "FrozenOpenCLIPEmbedder" if open_clip else "FrozenCLIPEmbedder",
        }
        for name, value in self.stated:
            if value != found[name]:
                raise CheckpointError(
                    f"{self.file}: {name} is {quoted(value)}, but the checkpoint's tensors have {found[name]!r}; "
                    "it is the config of another model"
                )


def _of_unet(unet: UNetConfig) -> dict[str, Any]:
    first = unet.block_out_channels[0]
    attends = [2**level for level, kind in enumerate(unet.down_block_types) if kind.startswith("CrossAttn")]
    return {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": first,
        "channel_mult": [channels // first for channels in unet.block_out_channels],
        "num_res_blocks": _plain(unet.layers_per_block),
        "attention_resolutions": sorted(attends, key=str),
        "context_dim": unet.per_level("cross_attention_dim")[0],
        "transformer_depth": _plain(unet.transformer_layers_per_block),
        "use_linear_in_transformer": unet.use_linear_projection,
        "num_classes": unet.num_class_embeds,
    }


def _of_vae(vae: VAEConfig) -> dict[str, Any]:
    first = vae.block_out_channels[0]
    return {
        "embed_dim": vae.latent_channels,
        "ddconfig.z_channels": vae.latent_channels,
        "ddconfig.in_channels": vae.in_channels,
        "ddconfig.out_ch": vae.out_channels,
        "ddconfig.ch": first,
        "ddconfig.ch_mult": [channels // first for channels in vae.block_out_channels],
        "ddconfig.num_res_blocks": vae.layers_per_block,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_original_config(file: Path) -> OriginalConfig:
    """Reads a config.

    Raises:
      CheckpointError: if it is no such file, or says what is not implemented.
    """
    document = _load(file)
    model = _mapping(document, "model", file)
    kind = _target(model, file)
    if kind not in _MODELS:
        raise CheckpointError(f"{file}: the model is a {kind}, expected one of {', '.join(_MODELS)}")
    params = _checked(_mapping(model, "params", file), _PARAMS, file)
    unet = _checked(_part(params, "unet_config", ("UNetModel",), file), _UNET, file)
    first_stage = _checked(_part(params, "first_stage_config", ("AutoencoderKL",), file), _FIRST_STAGE, file)
    autoencoder = _checked(_mapping(first_stage, "ddconfig", file), _AUTOENCODER, file)
    sections = {"FrozenCLIPEmbedder": _CLIP, "FrozenOpenCLIPEmbedder": _OPEN_CLIP}
    text_kind = _target(_mapping(params, "cond_stage_config", file), file)
    text = _part(params, "cond_stage_config", tuple(sections), file)
    text = _checked(text, sections[text_kind], file)
    layer = text.get("layer", "last")
    prediction = params.get("parameterization", "eps")
    if layer not in ("last", "penultimate") or prediction not in _PREDICTIONS:
        raise CheckpointError(
            f"{file}: layer = {quoted(layer)}, parameterization = {quoted(prediction)}: expected last or penultimate, "
            f"and one of {', '.join(_PREDICTIONS)}"
        )
    stated = {name: unet[name] for name in _UNET.read - {"num_heads", "num_head_channels"} if name in unet}
    stated |= {f"ddconfig.{name}": autoencoder[name] for name in _AUTOENCODER.read if name in autoencoder}
    stated |= {"embed_dim": first_stage["embed_dim"]} if "embed_dim" in first_stage else {}
    if isinstance(stated.get("attention_resolutions"), list):
        stated["attention_resolutions"] = sorted(stated["attention_resolutions"], key=str)
    return OriginalConfig(
        file=file,
        prediction_type=_PREDICTIONS[prediction],
        # The original code's own, where the file is silent.
        beta_start=_number(params, "linear_start", 1e-4, file),
        beta_end=_number(params, "linear_end", 2e-2, file),
        timesteps=_count(params, "timesteps", 1000, _MOST_TIMESTEPS, file),
        scaling_factor=_number(params, "scale_factor", 1.0, file),
        heads=_heads(unet, file),
        penultimate=layer == "penultimate",
        stated=(*sorted(stated.items()), ("text encoder", text_kind)),
    )


def _load(file: Path) -> Mapping[str, Any]:
    try:
        document = read_plain_yaml(file)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    except PlainYamlError as error:
        raise CheckpointError(f"{file} is not YAML as configs have it ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds {type(document).__name__}, not the config of a model")
    return document


def _mapping(data: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: {key!r} is missing, or no mapping; expected a config of the original code")
    return value


def _target(data: Mapping[str, Any], file: Path) -> str:
    """The class that a part is of, without its module."""
    target = data.get("target")
    if not isinstance(target, str):
        raise CheckpointError(f"{file}: a part has no 'target', the name of its class")
    return target.split(".")[-1]


def _part(params: Mapping[str, Any], key: str, kinds: tuple[str, ...], file: Path) -> Mapping[str, Any]:
    """The parameters of a part, which has to be of one of these classes."""
    part = _mapping(params, key, file)
    kind = _target(part, file)
    if kind not in kinds:
        raise CheckpointError(f"{file}: {key} is a {quoted(kind)}, expected {' or '.join(kinds)}")
    return part.get("params") or {}


def _checked(data: Mapping[str, Any], section: _Section, file: Path) -> Mapping[str, Any]:
    for key, value in data.items():
        if key in section.fixed and value not in section.fixed[key]:
            allowed = ", ".join(repr(each) for each in section.fixed[key])
            raise CheckpointError(f"{file}: {key} = {quoted(value)} is not supported; supported: {allowed}")
        if key not in section.read | section.informative | section.fixed.keys():
            raise CheckpointError(
                f"{file}: unknown key {quoted(key)} (value {quoted(value)}). It may change the images, so it is not "
                "ignored; take it out only if you know that it does not"
            )
    return data


def _number(data: Mapping[str, Any], key: str, default: float, file: Path) -> float:
    value = data.get(key, default)
    try:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{file}: {key} = {quoted(value)}, expected a number") from None


def _count(data: Mapping[str, Any], key: str, default: int, most: int, file: Path) -> int:
    number = _number(data, key, default, file)
    if not number.is_integer() or not 1 <= number <= most:
        raise CheckpointError(f"{file}: {key} = {quoted(data[key])}, expected a whole number from 1 to {most}")
    return int(number)


def _heads(unet: Mapping[str, Any], file: Path) -> Heads:
    number, width = unet.get("num_heads", -1), unet.get("num_head_channels", -1)
    for value in (number, width):
        if type(value) is not int or value == 0 or value < -1:
            raise CheckpointError(f"{file}: num_heads, num_head_channels = {quoted(value)}, expected counts")
    if number == width == -1:
        raise CheckpointError(f"{file}: the UNet has neither num_heads nor num_head_channels")
    # The width goes before the number in the original code.
    return Heads(width=width) if width != -1 else Heads(number=number)
