"""Upscalers (ESRGAN, Real-ESRGAN) from the files in which they are published.

As torch pickled them, as safetensors, or as ncnn's two files; under the names of Real-ESRGAN, of ESRGAN, and of ESRGAN
before that. The config is inferred from names and shapes, and of ncnn's files from the layers.
"""

import functools
import itertools
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from sdjax.checkpoints import name_table
from sdjax.checkpoints.digests import digest_files, sha256_of
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.ncnn_file import Layer, Value, read_network
from sdjax.checkpoints.original_names import Source, choose, naming
from sdjax.checkpoints.tensors import (
    CheckpointError,
    NetworkTensors,
    Params,
    ParamTensor,
    Tensor,
    list_file,
    load_networks,
)
from sdjax.families.network import random_key
from sdjax.library.finding import beside
from sdjax.models import ConfigError
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig, network_of

# What may stand before all names: Real-ESRGAN's training leaves averages, which are meant, and weights beside them.
_AVERAGES, _WEIGHTS = "params_ema.", "params."
# More than published networks have of blocks (23) or convolutions (32).
_MOST_LAYERS = 1000

_COMPACT_PATTERN = r"body\.\d+\.weight"

Shapes = Mapping[str, tuple[int, ...]]
# Modules of ours, in the order in which they run -> theirs. Blocks have numbers here (`body_0`).
Modules = dict[name_table.Path, str]


class UpscalerNetwork(NamedTuple):
    """A network that upscales images.

    params: as `sdjax.models.upscaler` has them, on the default device.
    digest: sha256 of the file; of ncnn's two, of their names and contents.
    """

    config: UpscalerConfig
    params: Params
    digest: str

    @property
    def scale(self) -> int:
        """How many times larger an image becomes."""
        return self.config.scale


class UpscalerNetworkFile(NamedTuple):
    """An upscaler of which nothing but names and shapes is read yet.

    chosen: the tensor of each parameter.
    decisive: the files that have a say in its images.
    """

    config: UpscalerConfig
    chosen: list[ParamTensor]
    decisive: tuple[Path, ...]

    def digest(self, hashed: Mapping[Path, str] = types.MappingProxyType({})) -> str:
        """sha256 of the file; of ncnn's two, of their names and contents. `hashed` has those that have been read."""
        if len(self.decisive) == 1:
            return hashed.get(self.decisive[0]) or sha256_of(self.decisive[0])
        return digest_files(self.decisive[0].parent, self.decisive, hashed)


class _Found(NamedTuple):
    """What a file holds: the network, what its modules are called, and tensors by name."""

    config: UpscalerConfig
    modules: Modules
    tensors: Mapping[str, Tensor]


def read_upscaler(path: Path, dtype: DTypeLike = jnp.float32, pickled: bool = False) -> UpscalerNetwork:
    """Reads an upscaler onto the default device; arguments and errors are those of `find_upscaler` and below."""
    found = find_upscaler(path, pickled)
    params, digest = load_upscaler(found, dtype)
    return UpscalerNetwork(found.config, jax.device_put(params), digest)


def find_upscaler(path: Path, pickled: bool = False) -> UpscalerNetworkFile:
    """Finds an upscaler.

    Args:
      path: a file that torch pickled (.pth), safetensors, or either of ncnn's two (.param and .bin, side by side).
      pickled: whether the first is allowed.

    Raises:
      CheckpointError: if a file is missing, damaged, or no upscaler's, or tensors are missing or left over.
      ConfigError: if the network is of a structure that is not implemented.
    """
    text, numbers = beside(path, ".param"), beside(path, ".bin")
    is_ncnn = path == text or (path == numbers and text.is_file())
    with naming(path):
        found = _in_layers(text, numbers) if is_ncnn else _in_tensors(path, pickled)
        wanted = {"upscaler": _sources(_shapes(found.config), found.modules)}
        averaged = any(name.startswith(_AVERAGES) for name in found.tensors)
        chosen = choose(
            str(path), found.tensors, wanted, lambda name: averaged and not is_ncnn and name.startswith(_WEIGHTS)
        )
    return UpscalerNetworkFile(found.config, chosen["upscaler"], (text, numbers) if is_ncnn else (path,))


def load_upscaler(found: UpscalerNetworkFile, dtype: DTypeLike = jnp.float32) -> tuple[Params, str]:
    """The parameters of what was found, arrays of numpy of `dtype`; and its digest.

    Raises:
      CheckpointError: if a file is gone or ends early.
    """
    params, hashed = load_networks({"upscaler": NetworkTensors(found.chosen, _shapes(found.config), dtype)})
    return _stacked(params["upscaler"]), found.digest(hashed)


# --- Parameters ---


def _shapes(config: UpscalerConfig) -> Params:
    """The tree of a network as files have it, each block for itself; nothing is allocated."""
    pixels = jnp.zeros((1, config.unshuffle, config.unshuffle, 3))
    tree = jax.eval_shape(network_of(config).init, random_key(), pixels)["params"]
    if not isinstance(config, RRDBNetConfig):
        return tree
    block = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree.pop("body"))
    return tree | {f"body_{index}": block for index in range(config.blocks)}


def _stacked(params: Params) -> Params:
    """Parameters as the network has them: those of all blocks along a first axis."""
    blocks = [params[f"body_{index}"] for index in range(len(params)) if "rdb1" in params.get(f"body_{index}", {})]
    if not blocks:
        return params
    others = {name: value for name, value in params.items() if not name.startswith("body_")}
    return others | {"body": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def _sources(shapes: Params, modules: Modules) -> list[Source]:
    """Where each parameter lies."""
    sources = []
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        name = f"{modules[path[:-1]]}.{name_table.LEAVES[path[-1]]}"
        sources.append(Source(path, name, None, name_table.shape_in_file(path, leaf.shape)))
    return sources


# --- Names ---


class _Naming(NamedTuple):
    """How files of one kind call the modules of an `RRDBNet`.

    pattern: of the names that tell how many blocks there are.
    dense: a convolution, by its block, its dense block there, and its own number.
    doubled: the convolution after a doubling, by its number; these go up by `step`.
    """

    pattern: str
    first: str
    dense: str
    body: str
    doubled: str
    high: str
    last: str
    step: int = 1


_REAL_ESRGAN = _Naming(
    pattern=r"body\.\d+\.rdb1\.conv1\.weight",
    first="conv_first",
    dense="body.{}.rdb{}.conv{}",
    body="conv_body",
    doubled="conv_up{}",
    high="conv_hr",
    last="conv_last",
)
_ESRGAN = _REAL_ESRGAN._replace(
    pattern=r"RRDB_trunk\.\d+\.RDB1\.conv1\.weight",
    dense="RRDB_trunk.{}.RDB{}.conv{}",
    body="trunk_conv",
    doubled="upconv{}",
    high="HRconv",
)
_OLD_PATTERN = r"model\.1\.sub\.\d+\.RDB1\.conv1\.0\.weight"


def _old_esrgan(blocks: int, doublings: int) -> _Naming:
    """Places in a list, of which activations and changes of resolution have some too."""
    return _Naming(
        pattern=_OLD_PATTERN,
        first="model.0",
        dense="model.1.sub.{}.RDB{}.conv{}.0",
        body=f"model.1.sub.{blocks}",
        doubled="model.{}",
        high=f"model.{3 * doublings + 2}",
        last=f"model.{3 * doublings + 4}",
        step=3,
    )


def _rrdb_modules(config: RRDBNetConfig, called: _Naming) -> Modules:
    modules: Modules = {("conv_first",): called.first}
    for block, inner, layer in itertools.product(range(config.blocks), range(1, 4), range(1, 6)):
        modules[f"body_{block}", f"rdb{inner}", f"conv{layer}"] = called.dense.format(block, inner, layer)
    modules["conv_body",] = called.body
    for level in range(1, config.doublings + 1):
        modules[f"conv_up{level}",] = called.doubled.format(called.step * level)
    return {**modules, ("conv_hr",): called.high, ("conv_last",): called.last}


def _compact_modules(config: CompactConfig) -> Modules:
    return {(f"body_{layer}",): f"body.{layer}" for layer in range(2 * config.convolutions + 3)}


def _in_tensors(path: Path, pickled: bool) -> _Found:
    """A network by the names and shapes of its tensors."""
    tensors = list_file(path, pickled).tensors
    start = next((each for each in (_AVERAGES, _WEIGHTS) if any(name.startswith(each) for name in tensors)), "")
    shapes = {name.removeprefix(start): each.shape for name, each in tensors.items() if name.startswith(start)}
    found = next(filter(None, (structure(shapes) for structure in STRUCTURES)), None)
    if found is None:
        raise CheckpointError(f"{path} holds no upscaler: it is a file of kind {identify(tensors).kind!r}")
    config, modules = found
    return _Found(config, {module: start + name for module, name in modules.items()}, tensors)


class Structure(NamedTuple):
    """A network that the names and shapes of a file's tensors tell, and what the file calls its modules."""

    config: UpscalerConfig
    modules: Modules


def _rrdb(called: _Naming, shapes: Shapes) -> Structure | None:
    blocks = _count(called.pattern, shapes)
    if not blocks:
        return None
    config = _rrdb_config(shapes, called, blocks, _count(called.doubled.format(r"\d+") + r"\.weight", shapes))
    return Structure(config, _rrdb_modules(config, called))


def _old_rrdb(shapes: Shapes) -> Structure | None:
    blocks = _count(_OLD_PATTERN, shapes)
    if not blocks:
        return None
    # The list has the first convolution, one for each doubling, and two at the end.
    doublings = max(_count(r"model\.\d+\.weight", shapes) - 3, 0)
    called = _old_esrgan(blocks, doublings)
    config = _rrdb_config(shapes, called, blocks, doublings)
    return Structure(config, _rrdb_modules(config, called))


def _compact(shapes: Shapes) -> Structure | None:
    convolutions = [name for name, shape in shapes.items() if len(shape) == 4 and re.fullmatch(_COMPACT_PATTERN, name)]
    if len(convolutions) < 2 or "body.0.weight" not in convolutions:
        return None
    config = _compact_config(shapes, len(convolutions) - 2)
    return Structure(config, _compact_modules(config))


# What tells a network by the names and shapes of its tensors, each None of another's; the first that does counts.
STRUCTURES: tuple[Callable[[Shapes], Structure | None], ...] = (
    functools.partial(_rrdb, _REAL_ESRGAN),
    functools.partial(_rrdb, _ESRGAN),
    _old_rrdb,
    _compact,
)


def _count(pattern: str, shapes: Shapes) -> int:
    count = sum(bool(re.fullmatch(pattern, name)) for name in shapes)
    if count > _MOST_LAYERS:
        raise CheckpointError(f"{count} names are as {pattern}; of that at most {_MOST_LAYERS} are read")
    return count


def _rrdb_config(shapes: Shapes, called: _Naming, blocks: int, doublings: int) -> RRDBNetConfig:
    growth, features = _kernel(shapes, called.dense.format(0, 1, 1))
    return RRDBNetConfig(blocks, features, growth, doublings, _side(called.first, _kernel(shapes, called.first)[1]))


def _compact_config(shapes: Shapes, convolutions: int) -> CompactConfig:
    last = f"body.{2 * convolutions + 2}"
    shuffle = _side(last, _kernel(shapes, last)[0])
    return CompactConfig(convolutions, _kernel(shapes, "body.0")[0], shuffle, shuffle)


def _kernel(shapes: Shapes, module: str) -> tuple[int, int]:
    """Channels out and in of a convolution."""
    shape = shapes.get(f"{module}.weight", ())
    if len(shape) != 4:
        found = f"is {shape}" if shape else "is missing"
        raise CheckpointError(
            f"{module}.weight {found}; the network's structure is inferred from its shape, of four lengths"
        )
    return shape[0], shape[1]


def _side(module: str, channels: int) -> int:
    """Of the squares of RGB pixels that so many channels are."""
    side = math.isqrt(channels // 3)
    if side == 0 or 3 * side**2 != channels:
        raise ConfigError(f"{module} has {channels} channels of pixels; implemented are 3 (RGB), times a square number")
    return side


# --- Layers of ncnn ---


class _Expected(NamedTuple):
    """A layer that there has to be; parts are those of `Layer`."""

    kind: str
    inputs: tuple[int, ...]
    options: dict[str, Value]


class _Graph(list[_Expected]):
    """The layers of a network, in order."""

    def add(self, kind: str, *inputs: int, **options: Value) -> int:
        """Puts down a layer of such inputs; gives its place."""
        self.append(_Expected(kind, inputs, options))
        return len(self) - 1

    def convolution(self, given: int, outputs: int, leaky: bool = False) -> int:
        activation: dict[str, Value] = {"activation": 0, "activation_params": ()}
        if leaky:
            activation = {"activation": 2, "activation_params": (0.2,)}
        return self.add("Convolution", given, outputs=outputs, **activation)

    def residual(self, given: int, around: int) -> int:
        return self.add("Eltwise", given, around, coefficients=(0.2, 1.0))

    def interp(self, given: int, scale: float, cubic: bool = False) -> int:
        return self.add("Interp", given, resize_type=3 if cubic else 1, height_scale=scale, width_scale=scale)


def _rrdb_graph(config: RRDBNetConfig) -> _Graph:
    graph = _Graph()
    x = first = graph.convolution(graph.add("Input"), config.features)
    for _ in range(config.blocks):
        block = x
        for _ in range(3):
            found = [x]
            for _ in range(4):
                joined = graph.add("Concat", *found) if len(found) > 1 else x
                found.append(graph.convolution(joined, config.growth, leaky=True))
            x = graph.residual(graph.convolution(graph.add("Concat", *found), config.features), x)
        x = graph.residual(x, block)
    x = graph.add("BinaryOp", first, graph.convolution(x, config.features))
    for _ in range(config.doublings):
        x = graph.convolution(graph.interp(x, 2), config.features, leaky=True)
    graph.convolution(graph.convolution(x, config.features, leaky=True), 3)
    return graph


def _compact_graph(config: CompactConfig) -> _Graph:
    graph = _Graph()
    x = given = graph.add("Input")
    for _ in range(config.convolutions + 1):
        x = graph.add("PReLU", graph.convolution(x, config.features), slopes=config.features)
    x = graph.add("PixelShuffle", graph.convolution(x, 3 * config.shuffle**2), factor=config.shuffle)
    x = graph.add("BinaryOp", x, graph.interp(given, config.shuffle))
    if config.scale != config.shuffle:
        graph.interp(x, config.scale / config.shuffle, cubic=True)
    return graph


def _in_layers(text: Path, numbers: Path) -> _Found:
    """A network by ncnn's layers, which have to be just those of the network that they look like."""
    layers = read_network(text, numbers)
    config, graph, modules = _by_layers(text, layers)
    for layer, expected in itertools.zip_longest(layers, graph):
        if layer is None or expected is None or not _is(layer, expected):
            raise CheckpointError(
                f"{text}, line {layer.line if layer else 'after the last'}: found {_described(layer)}; expected "
                f"{_described(expected)}, as in {config}"
            )
    weighted = [layer for layer in layers if layer.tensors]
    called = {module: layer.name for module, layer in zip(modules, weighted, strict=True)}
    return _Found(config, called, {tensor.name: tensor for layer in weighted for tensor in layer.tensors})


def _by_layers(text: Path, layers: Sequence[Layer]) -> tuple[UpscalerConfig, _Graph, Modules]:
    """What a network seems to be, and what it is made of if it is that."""
    kinds = Counter(layer.kind for layer in layers)
    shapes = [layer.tensors[0].shape for layer in layers if layer.kind == "Convolution"]
    if kinds["PReLU"] and len(shapes) > 1:
        shuffle = _side("the last convolution", shapes[-1][0])
        resized = layers[-1].options["height_scale"] if layers[-1].kind == "Interp" else 1
        assert not isinstance(resized, tuple)
        compact = CompactConfig(len(shapes) - 2, shapes[0][0], shuffle, round(shuffle * resized))
        return compact, _compact_graph(compact), _compact_modules(compact)
    blocks = (len(shapes) - 4 - kinds["Interp"]) // 15
    if blocks < 1 or blocks > _MOST_LAYERS:
        raise CheckpointError(f"{text} describes no upscaler: {dict(kinds)}")
    config = RRDBNetConfig(blocks, shapes[0][0], shapes[1][0], kinds["Interp"])
    return config, _rrdb_graph(config), _rrdb_modules(config, _REAL_ESRGAN)


def _is(layer: Layer, expected: _Expected) -> bool:
    if (layer.kind, layer.inputs) != (expected.kind, expected.inputs):
        return False
    return all(_agree(layer.options[name], value) for name, value in expected.options.items())


def _agree(said: Value, expected: Value) -> bool:
    """Whether two options are the same, as far as a text of seven digits says."""
    return np.shape(said) == np.shape(expected) and np.allclose(said, expected, rtol=1e-6)


def _described(layer: Layer | _Expected | None) -> str:
    if layer is None:
        return "no layer"
    options = ", ".join(f"{name} {value}" for name, value in layer.options.items())
    return f"{layer.kind} ({options}) of layers {', '.join(map(str, layer.inputs))}"
