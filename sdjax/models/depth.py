"""Depth from one image: MiDaS' dense prediction transformers, DPT-Large and DPT-Hybrid.

Ranftl et al. 2021, arXiv:2103.13413. Numbers match transformers' `DPTForDepthEstimation`. What is predicted is relative
and inverse: larger is nearer, and neither scale nor offset means anything.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sdjax.models.bit import FIXED, INFORMATIVE, Bit, BitConfig
from sdjax.models.config import (
    MOST_CHANNELS,
    MOST_SIDE,
    ConfigError,
    check_class,
    quoted,
    read_config,
    require,
    require_layers,
    require_positive,
)
from sdjax.models.convolution import Conv
from sdjax.models.interpolation import bilinear
from sdjax.models.vit import ViTLayer

# The channels before the last convolution, and what torch adds to a variance.
_HEAD_CHANNELS, _BATCH_NORM_EPS = 32, 1e-5
# How many feature maps are fused, and how many of them a hybrid takes from its ResNet as they are.
MAPS, _FROM_RESNET = 4, 2
# By which features are enlarged or reduced: 4.
_MOST_FACTOR = 256
# Pixels of a patch along a side: 16.
_MOST_PATCH = 256

_FIXED = {
    **FIXED,
    "model_type": "dpt",
    "hidden_act": "gelu",
    "num_channels": 3,
    "head_in_index": -1,
    "add_projection": False,
    "backbone": None,
    "backbone_kwargs": None,
    "use_autobackbone": False,
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
}
# Of training and of segmentation. `embedding_type` is what `is_hybrid` was called before transformers had it.
_INFORMATIVE = INFORMATIVE | {
    "auxiliary_loss_weight", "embedding_type", "pooler_act", "pooler_output_size", "semantic_classifier_dropout",
    "semantic_loss_ignore_index", "use_auxiliary_head",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """`config.json` of a depth estimator; `backbone_config` is there if `is_hybrid`."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    image_size: int = 384
    patch_size: int = 16
    is_hybrid: bool = False
    qkv_bias: bool = True
    backbone_out_indices: tuple[int, ...] = (2, 5, 8, 11)
    readout_type: Literal["ignore", "add", "project"] = "project"
    reassemble_factors: tuple[float, ...] = (4, 2, 1, 0.5)
    neck_hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    fusion_hidden_size: int = 256
    use_batch_norm_in_fusion_residual: bool = False
    use_bias_in_fusion_residual: bool | None = None
    backbone_config: BitConfig | None = None

    def __post_init__(self) -> None:
        require_positive(
            self, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "neck_hidden_sizes", "fusion_hidden_size", most=MOST_CHANNELS,
        )  # fmt: skip
        require_positive(self, "layer_norm_eps", most=1.0)
        require_positive(self, "image_size", most=MOST_SIDE)
        require_positive(self, "patch_size", most=_MOST_PATCH)
        require_positive(self, "reassemble_factors", most=_MOST_FACTOR)
        require_layers(self.layers, "num_hidden_layers", "backbone_config")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
        )
        require(
            self.image_size >= self.patch_size,
            f"image_size = {self.image_size} is below patch_size = {self.patch_size}",
        )
        for name in ("backbone_out_indices", "reassemble_factors", "neck_hidden_sizes"):
            value = getattr(self, name)
            require(len(value) == MAPS, f"{name} = {value} has not one entry for each of {MAPS} feature maps")
        used = self.backbone_out_indices[self.passed_on :]
        require(
            list(used) == sorted(set(used)) and used[0] >= 0 and used[-1] == self.num_hidden_layers - 1,
            f"backbone_out_indices = {self.backbone_out_indices} do not rise to the last of "
            f"num_hidden_layers = {self.num_hidden_layers}",
        )
        for factor in self.reassemble_factors:
            whole = factor if factor >= 1 else 1 / factor
            require(
                whole <= _MOST_FACTOR and whole == int(whole),
                f"reassemble_factors: neither {factor} nor 1 / {factor} is a whole number",
            )
        require(
            self.is_hybrid == (self.backbone_config is not None),
            "backbone_config and is_hybrid say different things; of backbones sdjax has the hybrid's ResNet only",
        )
        if self.backbone_config is not None:
            require(self.readout_type == "project", f"readout_type = {self.readout_type!r} is not a hybrid's")
            require(
                self.patch_size == self.backbone_config.stride,
                f"patch_size = {self.patch_size} is not the backbone's stride, {self.backbone_config.stride}",
            )
            require(
                self.neck_hidden_sizes[:_FROM_RESNET] == self.backbone_config.hidden_sizes[:_FROM_RESNET],
                f"neck_hidden_sizes = {self.neck_hidden_sizes} do not begin with the backbone's widths",
            )

    @property
    def layers(self) -> int:
        """Of the transformer, and of the ResNet before it."""
        return self.num_hidden_layers + sum(self.backbone_config.depths if self.backbone_config else ())

    @property
    def passed_on(self) -> int:
        """How many of the feature maps come from the ResNet."""
        return _FROM_RESNET if self.is_hybrid else 0

    @property
    def fusion_bias(self) -> bool:
        """Whether the convolutions between which features are added have a bias."""
        said = self.use_bias_in_fusion_residual
        return not self.use_batch_norm_in_fusion_residual if said is None else said

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> "DepthConfig":
        """Reads transformers' config; raises `ConfigError` for what is not implemented."""
        check_class(data.get("model_type"), ("dpt",), where, "model_type")
        rest = dict(data)
        is_hybrid = rest.get("is_hybrid") is True
        shape, ignored, backbone = (
            rest.pop(key, None) for key in ("backbone_featmap_shape", "neck_ignore_stages", "backbone_config")
        )
        if backbone is not None and not is_hybrid:
            raise ConfigError(
                f"{where}: it has a backbone_config but not is_hybrid: a DPT on another network (Depth Anything, "
                "DINOv2, Swin, BEiT), which sdjax does not have; use Intel/dpt-hybrid-midas or Intel/dpt-large"
            )
        if is_hybrid:
            resnet = BitConfig() if backbone is None else _backbone(backbone, where)
            if ignored not in (None, [0, 1], (0, 1)):
                raise ConfigError(
                    f"{where}: neck_ignore_stages = {quoted(ignored)} is not supported; supported: [0, 1]"
                )
            channels = resnet.hidden_sizes[-1]
            if shape is not None and (not isinstance(shape, list | tuple) or list(shape[1:2]) != [channels]):
                raise ConfigError(
                    f"{where}: backbone_featmap_shape = {quoted(shape)}: its second entry is not {channels}, the "
                    "channels that the backbone gives"
                )
            rest["backbone_config"] = resnet
        return read_config(cls, rest, fixed=_FIXED, informative=_INFORMATIVE, where=where)


def _backbone(data: Any, where: str) -> BitConfig:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: backbone_config = {quoted(data)} is no object")
    return BitConfig.from_json(data, f"{where}, backbone_config")


# --- The transformer ---


class _Table(nn.Module):
    """Rows that are learned."""

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "1 n c"]:
        return self.param("embedding", nn.initializers.normal(0.02), (1, self.rows, self.width))


class _Embeddings(nn.Module):
    """A token for each patch, one before them that stands for the image, and positions; and a hybrid's first maps."""

    config: DepthConfig

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n c"], tuple[int, int], list[Float[Array, "b _ _ _"]]]:
        cfg = self.config
        maps: list[Array] = []
        if cfg.backbone_config is not None:
            features = Bit(cfg.backbone_config, name="backbone")(pixels)
            maps = list(features[:_FROM_RESNET])
            patches = Conv(cfg.hidden_size, (1, 1), name="projection")(features.third)
        else:
            patch = (cfg.patch_size, cfg.patch_size)
            patches = Conv(cfg.hidden_size, patch, patch, padding="VALID", name="patch_projection")(pixels)
        batch, height, width, channels = patches.shape
        side = cfg.image_size // cfg.patch_size
        learned = _Table(side**2 + 1, channels, name="position_embeddings")()
        grid = bilinear(learned[:, 1:].reshape(1, side, side, channels), height, width)
        positions = jnp.concatenate([learned[:, :1], grid.reshape(1, -1, channels)], axis=1)
        whole = jnp.broadcast_to(_Table(1, channels, name="cls_token")(), (batch, 1, channels))
        tokens = jnp.concatenate([whole, patches.reshape(batch, -1, channels)], axis=1)
        return tokens + positions, (height, width), maps


class _Encoder(nn.Module):
    """All layers; gives the outputs of those whose features are used."""

    config: DepthConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> list[Float[Array, "b n c"]]:
        cfg, found = self.config, []
        sizes = (cfg.num_attention_heads, cfg.intermediate_size, cfg.layer_norm_eps, cfg.qkv_bias)
        for index in range(cfg.num_hidden_layers):
            x = ViTLayer(*sizes, name=f"layers_{index}")(x)
            if index in cfg.backbone_out_indices[cfg.passed_on :]:
                found.append(x)
        return found


class _Transformer(nn.Module):
    """Pixels to a hybrid's first maps, the tokens of some layers, and how many patches the image has each way."""

    config: DepthConfig

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[list[Float[Array, "b _ _ _"]], list[Float[Array, "b n c"]], tuple[int, int]]:
        tokens, size, maps = _Embeddings(self.config, name="embeddings")(pixels)
        return maps, _Encoder(self.config, name="encoder")(tokens), size


# --- Back to maps ---


class _Spread(nn.Module):
    """Each pixel to a square of `factor` x `factor`: torch's `ConvTranspose2d` where its stride is its kernel's size.

    The kernel's last axes are output and input: so it is stored as torch stores it, which has the input first.
    """

    factor: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        batch, height, width, channels = x.shape
        shape = (self.factor, self.factor, channels, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = jnp.einsum("bhwc,ijdc->bhiwjd", x, kernel)
        return y.reshape(batch, height * self.factor, width * self.factor, channels) + bias[None, None, None]


class _Reassemble(nn.Module):
    """Tokens, as a map, to as many channels and pixels as the map's place asks for."""

    channels: int
    factor: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        x = Conv(self.channels, (1, 1), name="projection")(x)
        if self.factor > 1:
            return _Spread(int(self.factor), name="resize")(x)
        if self.factor < 1:
            strides = (int(1 / self.factor),) * 2
            return Conv(self.channels, (3, 3), strides, padding=1, name="resize")(x)
        return x


class _ReassembleStage(nn.Module):
    """All tokens to maps; what the token that stands for the image knows is given to the others."""

    config: DepthConfig

    @nn.compact
    def __call__(self, outputs: list[Float[Array, "b n c"]], size: tuple[int, int]) -> list[Float[Array, "b _ _ _"]]:
        cfg, maps = self.config, []
        for index, tokens in enumerate(outputs, start=cfg.passed_on):
            whole, x = tokens[:, :1], tokens[:, 1:]
            if cfg.readout_type == "project":
                both = jnp.concatenate([x, jnp.broadcast_to(whole, x.shape)], axis=-1)
                x = jax.nn.gelu(nn.Dense(cfg.hidden_size, name=f"readout_{index}")(both), approximate=False)
            elif cfg.readout_type == "add":
                x = x + whole
            x = x.reshape(x.shape[0], *size, cfg.hidden_size)
            layer = _Reassemble(cfg.neck_hidden_sizes[index], cfg.reassemble_factors[index], name=f"layers_{index}")
            maps.append(layer(x))
        return maps


# --- Fusion ---


class _Row(nn.Module):
    """A number for each channel, under a module's name."""

    leaf: str
    channels: int

    @nn.compact
    def __call__(self) -> Float[Array, "1 1 1 c"]:
        return self.param(self.leaf, nn.initializers.ones, (self.channels,))[None, None, None]


class _BatchNorm(nn.Module):
    """Batch normalisation by the mean and variance met in training."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]
        mean, variance = _Row("bias", channels, name="running_mean")(), _Row("scale", channels, name="running_var")()
        return (x - mean) * (lax.rsqrt(variance + _BATCH_NORM_EPS) * scale) + bias


class _Residual(nn.Module):
    """Two convolutions, each after a ReLU, added to the input."""

    config: DepthConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x
        for index in (1, 2):
            bias = self.config.fusion_bias
            y = Conv(x.shape[-1], (3, 3), use_bias=bias, name=f"convolution{index}")(jax.nn.relu(y))
            if self.config.use_batch_norm_in_fusion_residual:
                y = _BatchNorm(name=f"batch_norm{index}")(y)
        return x + y


class _Fusion(nn.Module):
    """What is known so far, with a finer map added to it, at twice its size."""

    config: DepthConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], finer: Float[Array, "b i j c"] | None = None
    ) -> Float[Array, "b 2*h 2*w c"]:
        _, height, width, channels = x.shape
        if finer is not None:
            # An odd number of patches has been rounded up on its way down.
            same = finer if finer.shape == x.shape else bilinear(finer, height, width)
            x = x + _Residual(self.config, name="residual_layer1")(same)
        x = _Residual(self.config, name="residual_layer2")(x)
        return Conv(channels, (1, 1), name="projection")(bilinear(x, 2 * height, 2 * width, align_corners=True))


class _FusionStage(nn.Module):
    """From the coarsest map to the finest."""

    config: DepthConfig

    @nn.compact
    def __call__(self, maps: list[Float[Array, "b _ _ c"]]) -> Float[Array, "b h w c"]:
        x = _Fusion(self.config, name="layers_0")(maps[-1])
        for index, finer in enumerate(reversed(maps[:-1]), start=1):
            x = _Fusion(self.config, name=f"layers_{index}")(x, finer)
        return x


class _Neck(nn.Module):
    """The features of the image at four sizes to one map at half the image's size."""

    config: DepthConfig

    @nn.compact
    def __call__(
        self, maps: list[Float[Array, "b _ _ _"]], outputs: list[Float[Array, "b n c"]], size: tuple[int, int]
    ) -> Float[Array, "b h w d"]:
        maps = maps + _ReassembleStage(self.config, name="reassemble_stage")(outputs, size)
        features = self.config.fusion_hidden_size
        alike = [Conv(features, (3, 3), use_bias=False, name=f"layers_{index}")(x) for index, x in enumerate(maps)]
        return _FusionStage(self.config, name="fusion_stage")(alike)


class _Head(nn.Module):
    """Features to one number a pixel, at twice their size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w"]:
        _, height, width, channels = x.shape
        x = bilinear(Conv(channels // 2, (3, 3), name="conv1")(x), 2 * height, 2 * width, align_corners=True)
        x = jax.nn.relu(Conv(_HEAD_CHANNELS, (3, 3), name="conv2")(x))
        return jax.nn.relu(Conv(1, (1, 1), name="conv3")(x))[..., 0]


class DepthEstimator(nn.Module):
    """Pixels, normalised as the checkpoint's processor says, to relative inverse depth, zero or more.

    The result has 16 pixels for each patch along both sides, the number of patches rounded up to an even one: that is
    the image's size where it is a multiple of 32 and patches have 16. Other sizes than the config's are taken as by
    the original code: positions are interpolated. (transformers takes only squares, and of a hybrid only the config's.)

    Raises:
      ValueError: if a hybrid's pixels are no whole number of patches, or others not even one.
    """

    config: DepthConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b i j"]:
        patch = self.config.patch_size
        if min(pixels.shape[1:3]) < patch or (self.config.is_hybrid and any(n % patch for n in pixels.shape[1:3])):
            kind = "multiples of" if self.config.is_hybrid else "at least"
            raise ValueError(f"images of {pixels.shape[1]} x {pixels.shape[2]} pixels; expected {kind} {patch}")
        maps, outputs, size = _Transformer(self.config, name="dpt")(pixels)
        return _Head(name="head")(_Neck(self.config, name="neck")(maps, outputs, size))
