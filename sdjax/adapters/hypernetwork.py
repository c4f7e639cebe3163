"""Hypernetworks: small networks that change the input from which the UNet's attention makes keys and values.

The files and the arithmetic are AUTOMATIC1111's (`modules/hypernetworks/hypernetwork.py`): for each width a network of
its own for keys and one for values, `x + multiplier * network(x)`, in self- and cross-attention alike, wherever the
UNet has that width.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from sdjax.adapters.files import AdapterError
from sdjax.adapters.lora_changes import Values
from sdjax.checkpoints.pickled import read_pickle
from sdjax.checkpoints.stored_tensor import CheckpointError, Tensor, read_tensor
from sdjax.checkpoints.tensors import Params
from sdjax.families.known_models import KNOWN_MODELS
from sdjax.messages import quoted

# Widths of text encoders, which tell what a file was trained for.
# torch's LayerNorm.
_NORM_EPS = 1e-5
# Widths of layers as multiples of the network's: what a file without a structure has, and the most one may ask for.
_DEFAULT_STRUCTURE = (1.0, 2.0, 1.0)
_MOST_LAYERS, _WIDEST = 64, 64.0
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def _softplus(x: Array) -> Array:
    return jnp.logaddexp(x, jnp.zeros_like(x))


# torch's classes of `torch.nn.modules.activation` with what they are when made without arguments, in lower case; as in
# A1111 "swish" is the hard one.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "hardshrink": lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0.0),
    "hardsigmoid": jax.nn.hard_sigmoid,
    "hardswish": jax.nn.hard_swish,
    "hardtanh": jax.nn.hard_tanh,
    "leakyrelu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "logsigmoid": jax.nn.log_sigmoid,
    "mish": lambda x: x * jnp.tanh(_softplus(x)),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    # Outside training the slope is the middle of those drawn from.
    "rrelu": lambda x: jax.nn.leaky_relu(x, (1 / 8 + 1 / 3) / 2),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": _softplus,
    "softshrink": lambda x: jnp.sign(x) * jax.nn.relu(jnp.abs(x) - 0.5),
    "softsign": jax.nn.soft_sign,
    "swish": jax.nn.hard_swish,
    "tanh": jnp.tanh,
    "tanhshrink": lambda x: x - jnp.tanh(x),
}
# Why A1111 offers some that are not there.
_REFUSED = {
    "glu": "halves the width, which no layer after it expects",
    "multiheadattention": "is no function of one array",
    "prelu": "has a slope that A1111 does not train",
    "threshold": "has no meaning without arguments",
    **dict.fromkeys(
        ("softmax", "softmin", "logsoftmax", "softmax2d"),
        "runs over the images of a batch there, so that an image would depend on its neighbours",
    ),
}


class Structure(NamedTuple):
    """The static structure of a hypernetwork, which is part of a compiled program.

    widths: of what it changes.
    layers: widths of layers as multiples of these, the first and the last 1.
    activation: a name in `ACTIVATIONS`; None if there is none.
    layer_norm: whether each layer ends in one.
    activate_output: whether the last layer is activated too.
    """

    widths: tuple[int, ...]
    layers: tuple[float, ...]
    activation: str | None
    layer_norm: bool
    activate_output: bool


class Hypernetwork(NamedTuple):
    """A hypernetwork's file.

    name: the file's without its suffix, by which prompts call it.
    digest: sha256 of the file; A1111's short hash is its first ten digits.
    params: {width: {"k": layers, "v": layers}}, a layer being {"kernel": (in, out), "bias"} and with a layer norm
      {"norm_scale", "norm_bias"}, in float32.
    """

    name: str
    digest: str
    structure: Structure
    params: dict[int, dict[str, list[dict[str, np.ndarray]]]]


def read_hypernetwork(file: Path, pickled: bool = False) -> Hypernetwork:
    """Reads one of A1111's files.

    Args:
      file: .pt, which is a pickled file.
      pickled: whether such files may be read; nothing in them is run.

    Raises:
      AdapterError: if the file can't be read, is no hypernetwork, or asks for what is not implemented.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise AdapterError(
            f"{file} is no hypernetwork: A1111 writes them as .pt only, and there is no other form; "
            "a LoRA or an embedding goes by another field"
        )
    if not pickled:
        raise AdapterError(
            f"{file} is a pickled file, as all hypernetworks are; allow these (pickled) to have it read by a reader "
            "that admits tensors and runs nothing"
        )
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        content = read_pickle(file)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    except OSError as error:
        raise AdapterError(f"{file} can't be read ({error})") from error
    networks = _networks(file, content)
    structure = _structure(file, content, tuple(sorted(networks)))
    params = {
        width: {
            part: _layers(f"{file}: the network of width {width} for {what}", structure, width, tensors)
            for part, what, tensors in zip("kv", ("keys", "values"), networks[width], strict=True)
        }
        for width in structure.widths
    }
    return Hypernetwork(file.stem, digest, structure, params)


def _networks(file: Path, content: Any) -> dict[int, Sequence[Mapping[str, Tensor]]]:
    """The tensors for keys and for values, by width."""
    found = {key: value for key, value in content.items() if type(key) is int} if isinstance(content, dict) else {}
    if not found:
        raise AdapterError(f"{file} is no hypernetwork: expected networks under their widths (320, 768, ...)")
    for width, pair in found.items():
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_state(state) for state in pair)
        if width < 1 or not whole:
            raise AdapterError(f"{file}: under the width {width} expected the tensors for keys and those for values")
    return found


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _structure(file: Path, content: Mapping[Any, Any], widths: tuple[int, ...]) -> Structure:
    layers = content.get("layer_structure") or _DEFAULT_STRUCTURE
    numbers = isinstance(layers, list | tuple) and all(type(value) in (int, float) for value in layers)
    if (
        not numbers
        or not 2 <= len(layers) <= _MOST_LAYERS
        or (layers[0], layers[-1]) != (1, 1)
        or not all(math.isfinite(value) and 0 < value <= _WIDEST for value in layers)
    ):
        raise AdapterError(
            f"{file}: layer_structure = {quoted(layers)}: expected multiples of the width from 1 to 1, such as 1, 2, 1"
        )
    activation = content.get("activation_func")
    if activation in (None, "linear"):
        activation = None
    elif not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = isinstance(activation, str) and activation in _REFUSED
        reason = _REFUSED[activation] if known else f"is not one of linear, {', '.join(ACTIVATIONS)}"
        raise AdapterError(f"{file}: the activation function {quoted(activation)} {reason}")
    return Structure(
        widths=widths,
        layers=tuple(float(value) for value in layers),
        activation=activation,
        layer_norm=_switch(file, content, "is_layer_norm", False),
        activate_output=_switch(file, content, "activate_output", True),
    )


def _switch(file: Path, content: Mapping[Any, Any], name: str, default: bool) -> bool:
    value = content.get(name, default)
    if value not in (None, False, True):
        raise AdapterError(f"{file}: {name} = {quoted(value)}: expected true or false")
    return bool(value)


# Names of the two layers before there could be more.
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}


def _layers(where: str, structure: Structure, width: int, tensors: Mapping[str, Tensor]) -> list[dict[str, np.ndarray]]:
    """The layers of one network; in the file they stand in order, with numbers left out for what has no weights."""
    places: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        first, _, number = _OLD_NAMES.get(module, module).partition(".")
        if first != "linear" or not (number.isascii() and number.isdigit() and len(number) < 4):
            raise AdapterError(f"{where} has an unknown tensor {quoted(name)}: expected linear.0.weight and so on")
        places.setdefault(int(number), {})[kind] = tensor
    widths = [int(width * multiple) for multiple in structure.layers]
    wanted: list[dict[str, tuple[int, ...]]] = []
    for inputs, outputs in itertools.pairwise(widths):
        wanted.append({"weight": (outputs, inputs), "bias": (outputs,)})
        if structure.layer_norm:
            wanted.append({"weight": (outputs,), "bias": (outputs,)})
    found = [{kind: tensor.shape for kind, tensor in places[number].items()} for number in sorted(places)]
    if found != wanted:
        norm = "with" if structure.layer_norm else "without"
        raise AdapterError(
            f"{where} has tensors of shapes {_shapes(found)}: its layer_structure "
            f"{', '.join(f'{multiple:g}' for multiple in structure.layers)} {norm} layer norm makes {_shapes(wanted)}"
        )
    arrays = [{kind: _values(where, tensor) for kind, tensor in places[number].items()} for number in sorted(places)]
    stride = 2 if structure.layer_norm else 1
    layers = [{"kernel": np.ascontiguousarray(layer["weight"].T), "bias": layer["bias"]} for layer in arrays[::stride]]
    if structure.layer_norm:
        for layer, norm_values in zip(layers, arrays[1::stride], strict=True):
            layer |= {"norm_scale": norm_values["weight"], "norm_bias": norm_values["bias"]}
    return layers


def _shapes(places: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    return "; ".join(", ".join(f"{kind} {shape}" for kind, shape in sorted(place.items())) for place in places[:8])


def _values(where: str, tensor: Tensor) -> np.ndarray:
    try:
        values = read_tensor(tensor)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise AdapterError(f"{where}: {tensor.name} is of {values.dtype}, expected floating point")
    return values.astype(np.float32)


def check_fit(hypernetwork: Hypernetwork, unet: Params) -> None:
    """Checks that a hypernetwork fits a model.

    Args:
      hypernetwork: to be applied.
      unet: the parameters of the model's UNet, or anything with their shapes.

    Raises:
      AdapterError: if the UNet has none of its widths, or it was trained beside another text encoder.
    """
    inputs: dict[str, set[int]] = {"attn1": set(), "attn2": set()}
    for path, leaf in jax.tree.leaves_with_path(unet):
        names = [str(step.key) for step in path]
        if names[-2:] == ["to_k", "kernel"]:
            inputs[names[-3]].add(leaf.shape[0])
    used = inputs["attn1"] | inputs["attn2"]
    given = hypernetwork.structure.widths
    others = [width for width in given if width not in used]
    if not used.intersection(given) or (others and not inputs["attn2"].intersection(given)):
        models = [model for model in KNOWN_MODELS if model.supported and model.context_width in others]
        made_for = [f"{model.context_width} is that of {model.name}" for model in models]
        raise AdapterError(
            f"the hypernetwork {hypernetwork.name} is for another model: it changes the widths "
            f"{_listed(given)}{''.join(f' ({text})' for text in made_for)}; "
            f"this UNet's attention has {_listed(sorted(used))}, and its text {_listed(sorted(inputs['attn2']))}"
        )


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(str(width) for width in widths)


_SOURCES = {"to_k": "k", "to_v": "v"}


def attending(
    structures: Sequence[Structure], params: Sequence[Any], multipliers: Float[Array, "n b"]
) -> AbstractContextManager[None]:
    """A context in which the UNet's attention makes keys and values through hypernetworks.

    Args:
      structures, params: of the hypernetworks, in the order in which they are applied.
      multipliers: of each for each image; 0 changes nothing. The UNet's batch may be a multiple of the images, the
        images being the faster axis.
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        part = _SOURCES.get(context.module.name or "")
        if part is None or not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return call(*args, **kwargs)
        [x] = args
        for structure, networks, multiplier in zip(structures, params, multipliers, strict=True):
            width = x.shape[-1]
            if width in structure.widths:
                x = _changed(structure, networks[width][part], multiplier, x)
        return call(x, **kwargs)

    return nn.intercept_methods(intercept)


def _changed(
    structure: Structure,
    layers: Sequence[Mapping[str, Values]],
    multiplier: Float[Array, " b"],
    x: Float[Array, "q n c"],
) -> Float[Array, "q n c"]:
    weight = jnp.tile(multiplier, x.shape[0] // multiplier.shape[0])[:, None, None]
    return jnp.where(weight == 0, x, x + weight.astype(x.dtype) * network(structure, layers, x))


def network(
    structure: Structure, layers: Sequence[Mapping[str, Values]], x: Float[Array, "q n c"]
) -> Float[Array, "q n c"]:
    """What one of a hypernetwork's networks gives, in the precision of `x`."""
    for number, layer in enumerate(layers):
        x = jnp.matmul(x, layer["kernel"].astype(x.dtype)) + layer["bias"].astype(x.dtype)[None, None]
        if structure.activation is not None and (number < len(layers) - 1 or structure.activate_output):
            x = ACTIVATIONS[structure.activation](x)
        if structure.layer_norm:
            x = _normalised(x, layer["norm_scale"], layer["norm_bias"])
    return x


def _normalised(x: Float[Array, "q n c"], scale: Values, bias: Values) -> Float[Array, "q n c"]:
    """torch's LayerNorm, in float32."""
    values = x.astype(jnp.float32)
    values = values - values.mean(axis=-1, keepdims=True)
    values = values * lax.rsqrt(jnp.square(values).mean(axis=-1, keepdims=True) + _NORM_EPS)
    return (values * scale[None, None] + bias[None, None]).astype(x.dtype)
