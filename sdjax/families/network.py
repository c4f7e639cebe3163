"""A network of a kind of model: how it is made, and how a diffusers folder stores it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np

from sdjax.checkpoints.name_table import NameTable


@runtime_checkable
class NetworkConfig(Protocol):
    """The config of any network: a frozen dataclass, which is hashable."""

    @property
    def layers(self) -> int:
        """How many layers it has, at least roughly: what is built is bounded by it."""


class Network(NamedTuple):
    """A network, whatever its config.

    module: of flax, from the config.
    read_config: (JSON object of `config.json`, the file's name for errors) -> the config; raises `ConfigError`.
    inputs: of the module, as shapes, for a config: those with which it is initialised.
    library, classes: what it may be called in `model_index.json`; the first class is written.
    config_keys: what `config.json` says besides the config's fields, where it is written.
    table: the names of its tensors.
    stem: of the name of its weights' files.
    """

    module: Callable[[Any], nn.Module]
    read_config: Callable[[Mapping[str, Any], str], Any]
    inputs: Callable[[Any], tuple[Any, ...]]
    library: str
    classes: tuple[str, ...]
    config_keys: Mapping[str, Any]
    table: NameTable = NameTable()
    stem: str = "diffusion_pytorch_model"

    def param_shapes(self, config: Any) -> dict[str, Any]:
        """The parameter tree as shapes, nothing allocated. It is shared: not to be changed."""
        return _param_shapes(self.module, self.inputs, config)

    def to_json(self, config: Any) -> dict[str, Any]:
        """The JSON object that `read_config` reads."""
        return {**self.config_keys, **dataclasses.asdict(config)}


@functools.lru_cache(maxsize=32)
def _param_shapes(
    module: Callable[[Any], nn.Module], inputs: Callable[[Any], tuple[Any, ...]], config: Any
) -> dict[str, Any]:
    tree: dict[str, Any] = jax.eval_shape(module(config).init, random_key(), *inputs(config))
    return tree["params"]


def random_key() -> jax.ShapeDtypeStruct:
    """The shape of a random key, as networks are initialised with; it needs no device."""
    return jax.eval_shape(jax.random.key, 0)


def floats(*lengths: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of float32, nothing allocated."""
    return jax.ShapeDtypeStruct(lengths, np.float32)


def integers(*lengths: int) -> jax.ShapeDtypeStruct:
    """The shape of an array of int32, nothing allocated."""
    return jax.ShapeDtypeStruct(lengths, np.int32)
