"""Hypernetworks against torch's layers (recorded), and against their definition in numpy."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.files import AdapterError
from sdjax.adapters.hypernetwork import (
    ACTIVATIONS,
    Hypernetwork,
    Structure,
    attending,
    check_fit,
    read_hypernetwork,
)
from sdjax.models import UNet
from tests import pickles, toys
from tests.golden import hypernetworks as golden

RECORDED = golden.recorded()


@pytest.mark.parametrize("name", [name.split()[1] for name in RECORDED if name.startswith("activation ")])
def test_activations_are_torchs(name: str) -> None:
    wanted = RECORDED[f"activation {name}"]
    given = golden.POINTS if name == "linear" else ACTIVATIONS[name](jnp.asarray(golden.POINTS))
    np.testing.assert_allclose(np.asarray(given), wanted, rtol=1e-5, atol=1e-6)


def test_no_activation_is_without_reference() -> None:
    assert set(ACTIVATIONS) <= {name.split()[1] for name in RECORDED if name.startswith("activation ")}


def written(folder: Path, case: str) -> Path:
    """A recorded file of torch's."""
    file = folder / "some style.pt"
    file.write_bytes(RECORDED[f"file {case}"].tobytes())
    return file


class _Attention(nn.Module):
    """Where attention takes its keys and values from, without changing them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(nn.Dense(x.shape[-1], use_bias=False, name=name)(x) for name in ("to_q", "to_k", "to_v"))


def taken(hypernetworks: Sequence[Hypernetwork], multipliers: Any, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What queries, keys and values are made of."""
    structures = [each.structure for each in hypernetworks]
    same = {"kernel": np.eye(x.shape[-1], dtype=x.dtype)}

    @jax.jit
    def program(params: Any, multipliers: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        with attending(structures, params, multipliers), jax.default_matmul_precision("highest"):
            return _Attention().apply({"params": {name: same for name in ("to_q", "to_k", "to_v")}}, x)

    result = program([each.params for each in hypernetworks], np.array(multipliers, np.float32), x)
    return tuple(np.asarray(array) for array in result)


@pytest.mark.parametrize("case", golden.CASES)
def test_files_give_what_torch_gives(tmp_path: Path, case: str) -> None:
    hypernetwork = read_hypernetwork(written(tmp_path, case), pickled=True)
    assert (hypernetwork.name, hypernetwork.structure.widths) == ("some style", golden.WIDTHS)
    for width in golden.WIDTHS:
        x = golden.inputs(width)
        query, key, value = taken([hypernetwork], [[golden.MULTIPLIER] * len(x)], x)
        np.testing.assert_array_equal(query, x)
        np.testing.assert_allclose(key, RECORDED[f"output {case} k {width}"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(value, RECORDED[f"output {case} v {width}"], rtol=1e-5, atol=1e-5)


def random_hypernetwork(structure: Structure, seed: int) -> Hypernetwork:
    """One with weights that change what goes through, of a name and digest that say nothing."""
    rng = np.random.RandomState(seed)

    def layer(inputs: int, outputs: int) -> dict[str, np.ndarray]:
        shapes: dict[str, tuple[int, ...]] = {"kernel": (inputs, outputs), "bias": (outputs,)}
        if structure.layer_norm:
            shapes |= {"norm_scale": (outputs,), "norm_bias": (outputs,)}
        return {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}

    def network(width: int) -> list[dict[str, np.ndarray]]:
        widths = [int(width * multiple) for multiple in structure.layers]
        return [layer(*pair) for pair in itertools.pairwise(widths)]

    params = {width: {part: network(width) for part in "kv"} for width in structure.widths}
    return Hypernetwork(f"number {seed}", "", structure, params)


DEEP = Structure((16, 32), (1.0, 2.0, 1.5, 1.0), "elu", layer_norm=True, activate_output=True)
PLAIN = Structure((16, 32), (1.0, 2.0, 1.0), "relu", layer_norm=False, activate_output=False)


def defined(hypernetwork: Hypernetwork, part: str, multipliers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x + multiplier * network(x), in float64."""
    functions = {"elu": lambda y: np.where(y > 0, y, np.expm1(y)), "relu": lambda y: np.maximum(y, 0)}
    structure = hypernetwork.structure
    y = x.astype(np.float64)
    layers = hypernetwork.params[x.shape[-1]][part]
    for number, layer in enumerate(layers):
        y = y @ layer["kernel"] + layer["bias"]
        if structure.activation and (number + 1 < len(layers) or structure.activate_output):
            y = functions[structure.activation](y)
        if structure.layer_norm:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
            y = y * layer["norm_scale"] + layer["norm_bias"]
    return x + multipliers[:, None, None] * y


# Self-attention of both widths, and cross-attention to 32.
SMALL = dataclasses.replace(
    toys.SD1.unet,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    block_out_channels=(16,),
)


def test_all_attention_of_the_unet_goes_through_it() -> None:
    weights = toys.random_params(toys.param_shapes(SMALL), np.random.RandomState(3))
    hypernetworks = [random_hypernetwork(DEEP, 1), random_hypernetwork(PLAIN, 2)]
    # Of two images; the network is asked twice for each.
    multipliers = np.array([[0.5, 0.0], [-1.0, 0.25]], np.float32)
    structures, params = [each.structure for each in hypernetworks], [each.params for each in hypernetworks]

    # Compiled with little care, which takes less time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def seen_by_layers(
        weights: Any, params: Any, multipliers: jax.Array, *given: jax.Array
    ) -> dict[tuple[str, ...], tuple[jax.Array, jax.Array]]:
        seen = {}

        def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            if context.module.name in ("to_q", "to_k", "to_v"):
                seen[context.module.path] = args[0], result
            return result

        with nn.intercept_methods(look), attending(structures, params, multipliers):
            UNet(SMALL).apply({"params": weights}, *given)
        return seen

    rng = np.random.RandomState(0)
    shapes = (4, 8, 8, 4), (4,), (4, 7, 32)
    given = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    seen = seen_by_layers(weights, params, multipliers, *given)
    attentions = {path[:-1] for path in seen}
    assert {path[-1] for path in attentions} == {"attn1", "attn2"}
    assert len(seen) == 3 * len(attentions) == 3 * 2 * 4
    for path, (source, result) in seen.items():
        leaves: Any = weights
        for name in path:
            leaves = leaves[name]
        wanted = np.asarray(source)
        if path[-1] != "to_q":
            for hypernetwork, multiplier in zip(hypernetworks, multipliers, strict=True):
                wanted = defined(hypernetwork, path[-1][-1], np.tile(multiplier, 2), wanted)
        np.testing.assert_allclose(result, wanted @ np.asarray(leaves["kernel"]), rtol=1e-4, atol=1e-4)


def test_a_multiplier_of_0_changes_nothing_whatever_the_network_gives() -> None:
    broken = random_hypernetwork(PLAIN, 1)
    broken.params[16]["k"][0]["kernel"][:] = np.inf
    x = np.random.RandomState(0).standard_normal((2, 3, 16)).astype(np.float32)
    _, key, _ = taken([broken], [[0.0, 1.0]], x)
    np.testing.assert_array_equal(key[0], x[0])
    assert not np.isfinite(key[1]).any()


def test_other_widths_are_left_alone() -> None:
    x = np.ones((1, 3, 20), np.float32)
    for array in taken([random_hypernetwork(PLAIN, 1)], [[1.0]], x):
        np.testing.assert_array_equal(array, x)


def test_half_precision_stays_so() -> None:
    hypernetwork = random_hypernetwork(DEEP, 1)
    x = np.random.RandomState(0).standard_normal((2, 3, 16)).astype(np.float16)
    key = taken([hypernetwork], [[1.0, 1.0]], x)[1]
    assert key.dtype == np.float16
    np.testing.assert_allclose(key, defined(hypernetwork, "k", np.ones(2), x), atol=2e-2)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def content(**changes: Any) -> dict[Any, Any]:
    """What makes a sound file."""
    network = {
        "linear.0.weight": zeros(8, 4),
        "linear.0.bias": zeros(8),
        "linear.1.weight": zeros(4, 8),
        "linear.1.bias": zeros(4),
    }
    return {4: (network, network), "layer_structure": [1, 2, 1], "activation_func": "linear", **changes}


def without(name: str) -> dict[str, np.ndarray]:
    """The tensors of a network but one."""
    return {key: shape for key, shape in content()[4][0].items() if key != name}


WRONG: Mapping[str, tuple[Any, str]] = {
    "a list": ([1, 2], "no hypernetwork: expected networks under their widths"),
    "no widths": ({"step": 1}, "expected networks under their widths"),
    "one network": (content() | {4: content()[4][:1]}, "under the width 4 expected the tensors for keys and those"),
    "an unknown tensor": (content() | {4: ({"a.weight": zeros(1)},) * 2}, "unknown tensor 'a.weight'"),
    "a missing tensor": (content() | {4: (without("linear.1.bias"),) * 2}, "of width 4 for keys has tensors of shapes"),
    "other widths": (content(layer_structure=[1, 3, 1]), r"layer_structure 1, 3, 1 without layer norm makes .*\(12, 4"),
    "layer norm": (content(is_layer_norm=True), "layer_structure 1, 2, 1 with layer norm makes"),
    "another end": (content(layer_structure=[1, 2]), r"layer_structure = \[1, 2\]: expected multiples"),
    "no numbers": (content(layer_structure=["1", 1]), "layer_structure"),
    "huge": (content(layer_structure=[1, 1e9, 1]), "layer_structure"),
    "not a switch": (content(is_layer_norm="no"), "is_layer_norm = 'no': expected true or false"),
    "unknown": (content(activation_func="sine"), "'sine' is not one of linear, celu"),
    "softmax": (content(activation_func="softmax"), "'softmax' runs over the images of a batch"),
    "no text": (content(activation_func=[1]), r"activation function \[1\] is not one of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_hypernetwork_is_refused(tmp_path: Path, case: str) -> None:
    value, message = WRONG[case]
    file = pickles.write(tmp_path / "wrong.pt", value)
    with pytest.raises(AdapterError, match=f"^{re.escape(str(file))}.*{message}"):
        read_hypernetwork(file, pickled=True)


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    hypernetwork = read_hypernetwork(pickles.write(tmp_path / "sound.pt", content()), pickled=True)
    assert hypernetwork.structure == Structure((4,), (1.0, 2.0, 1.0), None, False, True)
    assert len(hypernetwork.digest) == 64


def test_files_that_may_not_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"sound\.pt is a pickled file, .*allow these \(pickled\)"):
        read_hypernetwork(pickles.write(tmp_path / "sound.pt", content()))
    with pytest.raises(AdapterError, match=r"style\.safetensors is no hypernetwork: A1111 writes them as \.pt only"):
        read_hypernetwork(tmp_path / "style.safetensors", pickled=True)
    with pytest.raises(AdapterError, match=r"gone\.pt can't be read"):
        read_hypernetwork(tmp_path / "gone.pt", pickled=True)
    (tmp_path / "text.pt").write_text("a cat")
    with pytest.raises(AdapterError, match=r"text\.pt"):
        read_hypernetwork(tmp_path / "text.pt", pickled=True)


def for_widths(*widths: int) -> Hypernetwork:
    return Hypernetwork("style", "", Structure(widths, (1.0, 1.0), None, False, False), {})


def test_a_hypernetwork_for_another_model_is_refused() -> None:
    sd1 = toys.param_shapes(dataclasses.replace(SMALL, cross_attention_dim=768))
    sd2 = toys.param_shapes(dataclasses.replace(SMALL, cross_attention_dim=1024))
    check_fit(for_widths(16, 768), sd1)
    check_fit(for_widths(16), sd1)
    check_fit(for_widths(768, 1024), sd2)
    with pytest.raises(
        AdapterError, match=r"style is for another model: .*16, 768 \(768 is that of .* 1\); .* text 1024$"
    ):
        check_fit(for_widths(16, 768), sd2)
    with pytest.raises(AdapterError, match=r"changes the widths 320, 640; this UNet's attention has 16, 768, and its"):
        check_fit(for_widths(320, 640), sd1)
