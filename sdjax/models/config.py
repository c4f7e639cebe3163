"""Strict reading of a checkpoint's `config.json` into a frozen dataclass.

A config decides what the network computes, so nothing in it may be passed over: a key is a field of
the dataclass, or a key that says nothing about the numbers (`INFORMATIVE`), or a switch which this
code knows and supports only in one position (the model's own `fixed` table). Everything else raises.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

INFORMATIVE = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_commit_hash"})


class ConfigError(ValueError):
    """A config holds a key or a value which this code does not implement."""


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
) -> Config:
    """Makes a `cls` from the JSON object of a config file.

    Args:
      cls: a frozen dataclass whose fields carry the names of the config's keys.
      data: the JSON object.
      fixed: keys which are accepted at the given value only (a frozenset lists several).
      informative: keys of this kind of config that do not change the numbers.
      where: names the file in errors.

    Raises:
      ConfigError: for an unknown key, an unsupported value or a field the dataclass refuses.
    """
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
            if value not in allowed:
                raise ConfigError(
                    f"{where}: {key} = {raw!r} is not supported by sdjax's {cls.__name__}; "
                    f"supported: {', '.join(sorted(map(repr, allowed)))}."
                )
        else:
            raise ConfigError(
                f"{where}: unknown key {key!r} (value {raw!r}) for {cls.__name__}. It may change what the "
                "network computes, so it is not ignored; remove it only if you know that it does not."
            )
    hints = typing.get_type_hints(cls)
    for key, value in accepted.items():
        if not _fits(value, hints[key]):
            raise ConfigError(f"{where}: {key} = {data[key]!r} is not of the type {_named(hints[key])}")
    try:
        return cls(**accepted)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


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
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def require_positive(config: Any, *names: str) -> None:
    """Raises `ConfigError` unless these fields, or all entries of those that are tuples, are above zero."""
    for name in names:
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else (value,)
        require(bool(entries) and all(entry > 0 for entry in entries), f"{name} = {value} is not positive")


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
