"""Strict reading of a checkpoint's `config.json` into a frozen dataclass.

A config decides what the network computes, so nothing in it may be passed over: a key is a field of
the dataclass, or a key that says nothing about the numbers (`INFORMATIVE`), or a switch which this
code knows and supports only in one position (the model's own `fixed` table). Everything else raises.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sdjax.messages import quoted

Config = TypeVar("Config")

INFORMATIVE = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_commit_hash"})

# Bounds on what a file can make this code build, far above any published model (which are said behind).
MOST_CHANNELS = 1 << 16  # of a layer: 10,240 in Stable Diffusion's feed-forward layers
MOST_LEVELS = 8  # of resolutions: 4
MOST_LAYERS = 512  # of a network, nested ones counted each: 40 of Stable Diffusion's UNet by that count
MOST_SIDE = 1 << 16  # of a sample: 1,024
MOST_TOKENS = 1 << 24  # of a vocabulary: 49,408
MOST_POSITIONS = 4096  # of a text: 77, 248 of LongCLIP
# float32 has no greater numbers.
_MOST_NUMBER = 3e38
# Letters of a message, and of its beginning and its end where it has more.
_LONGEST_MESSAGE, _MESSAGE_END = 800, 300

# Classes of diffusers and transformers that stand where the networks of Stable Diffusion 1 and 2 are expected.
_OTHER_CLASSES = {
    "AsymmetricAutoencoderKL": "an autoencoder whose decoder sees a mask",
    "AutoencoderDC": "a deep compression autoencoder",
    "AutoencoderKLTemporalDecoder": "the autoencoder of Stable Video Diffusion",
    "AutoencoderTiny": "a tiny autoencoder (TAESD)",
    "ConsistencyDecoderVAE": "a consistency decoder (of DALL-E 3)",
    "ControlNetUnionModel": "a ControlNet of many conditions, for Stable Diffusion XL",
    "FluxControlNetModel": "a ControlNet for Flux",
    "FluxTransformer2DModel": "Flux' transformer",
    "MultiAdapter": "several T2I adapters in one; name each by itself",
    "MultiControlNetModel": "several ControlNets in one; name each by itself",
    "SD3ControlNetModel": "a ControlNet for Stable Diffusion 3",
    "SD3Transformer2DModel": "Stable Diffusion 3's transformer",
    "SparseControlNetModel": "a ControlNet of AnimateDiff",
    "T5EncoderModel": "T5, the text encoder of Stable Diffusion 3, Flux, PixArt and DeepFloyd",
    "UNet2DModel": "a UNet without text",
    "UNet3DConditionModel": "a UNet of video",
    "UNetMotionModel": "a UNet of AnimateDiff",
    "UNetSpatioTemporalConditionModel": "the UNet of Stable Video Diffusion",
    "VQModel": "an autoencoder with a codebook",
}
# diffusers' former classes for JAX: the same networks.
_FLAX = "Flax"


class ConfigError(ValueError):
    """A config holds a key or a value which this code does not implement."""


def check_class(name: Any, expected: tuple[str, ...], where: str, key: str = "_class_name") -> None:
    """Raises `ConfigError` if a config names another class than the expected ones; None names none."""
    if name is None or (isinstance(name, str) and name.removeprefix(_FLAX) in expected):
        return
    what = f". It is {_OTHER_CLASSES[name]}" if isinstance(name, str) and name in _OTHER_CLASSES else ""
    known = expected[0] if len(expected) == 1 else f"one of {', '.join(expected)}"
    raise ConfigError(f"{where}: {key} {quoted(name)} is not supported; expected {known}{what}")


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, at any depth, so that configs are hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def read_config(
    cls: type[Config],
    data: Mapping[str, Any],
    *,
    fixed: Mapping[str, Any],
    informative: frozenset[str] = frozenset(),
    where: str = "config.json",
    classes: tuple[str, ...] = (),
) -> Config:
    """Makes a `cls` from the JSON object of a config file.

    Args:
      cls: a frozen dataclass whose fields carry the names of the config's keys.
      data: the JSON object.
      fixed: keys which are accepted at the given value only (a frozenset lists several).
      informative: keys of this kind of config that do not change the numbers.
      where: names the file in errors.
      classes: what `_class_name` may say; none for any.

    Raises:
      ConfigError: for another class, an unknown key, an unsupported value or a field the dataclass refuses.
    """
    if classes:
        check_class(data.get("_class_name"), classes, where)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass type
    accepted: dict[str, Any] = {}
    for key, raw in data.items():
        value = _frozen(raw)
        if key in fields:
            accepted[key] = value
        elif key in INFORMATIVE or key in informative:
            continue
        elif key in fixed:
            supported = fixed[key]
            allowed = tuple(supported) if isinstance(supported, frozenset) else (supported,)
            if not any(_same(value, option) for option in allowed):
                raise ConfigError(
                    f"{where}: {key} = {quoted(raw)} is not supported by sdjax's {cls.__name__}; "
                    f"supported: {', '.join(sorted(map(repr, allowed)))}."
                )
        else:
            raise ConfigError(
                f"{where}: unknown key {quoted(key)} (value {quoted(raw)}) for {cls.__name__}. It may change what the "
                "network computes, so it is not ignored; remove it only if you know that it does not."
            )
    hints = typing.get_type_hints(cls)
    for key, value in accepted.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{where}: {key} = {quoted(data[key])} is not of the type {_named(hints[key])}")
    try:
        return cls(**accepted)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _same(value: Any, option: Any) -> bool:
    """Whether a value is an option: equal, and neither true nor false where the other is a number."""
    return bool(value == option) and isinstance(value, bool) == isinstance(option, bool)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, of those that fields of configs have."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) <= _MOST_NUMBER)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def require_positive(config: Any, *names: str, most: float | None = None) -> None:
    """Raises `ConfigError` unless these fields, or all entries of those that are tuples, are above 0, up to `most`."""
    for name in names:
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else (value,)
        require(bool(entries) and all(entry > 0 for entry in entries), f"{name} = {quoted(value)} is not positive")
        if most is not None:
            require(max(entries) <= most, f"{name} = {quoted(value)}: expected {most} at most")


def require_levels(config: Any, *names: str) -> None:
    """Raises `ConfigError` if these tuples, with an entry for each level of a network, have too many."""
    for name in names:
        value = getattr(config, name)
        require(
            not isinstance(value, tuple) or len(value) <= MOST_LEVELS,
            f"{name} = {quoted(value)}: expected {MOST_LEVELS} entries at most, one for each level",
        )


def require_sample_size(size: int | tuple[int, ...] | None) -> None:
    """Raises `ConfigError` unless it is the side of a square, or a height and a width, in bounds."""
    sides = size if isinstance(size, tuple) else (1 if size is None else size,) * 2
    require(
        len(sides) == 2 and all(1 <= side <= MOST_SIDE for side in sides),
        f"sample_size = {quoted(size)}: expected one side or two, from 1 to {MOST_SIDE}",
    )


def require_layers(count: int, *said_by: str) -> None:
    """Raises `ConfigError` if a network has too many layers; `said_by` names the keys that say how many."""
    require(
        count <= MOST_LAYERS, f"{', '.join(said_by)} make a network of {count} layers; expected {MOST_LAYERS} at most"
    )


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds; of a message without end the middle is left out."""
    if not condition:
        long = len(message) > _LONGEST_MESSAGE
        raise ConfigError(f"{message[:_MESSAGE_END]}...{message[-_MESSAGE_END:]}" if long else message)
