"""Files of tensors: what is in them is listed without reading it, and read to where it belongs."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from sdjax.checkpoints import name_table
from sdjax.checkpoints.tensors import (
    CheckpointError,
    NetworkTensors,
    ParamTensor,
    Tensor,
    list_file,
    list_tensors,
    load_networks,
    load_params,
    read_tensor,
)
from tests.checkpoints import pickles

TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([[1.5, -2]], np.float16),
    "brain": np.array([0.5, 3], jnp.bfloat16),
    "counts": np.arange(5),
    "yes": np.array([True, False]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


def test_a_file_is_listed_and_its_tensors_come_out_as_stored(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(TENSORS, file, metadata={"made by": "hand"})
    listing = list_file(file)
    assert listing.metadata == {"made by": "hand"} and listing.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        array = read_tensor(listing.tensors[name])
        assert array.dtype == values.dtype and listing.tensors[name].file == file
        np.testing.assert_array_equal(array, values)


def test_what_a_file_is_is_seen_by_its_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    save_file({"a": np.ones(2, np.float32)}, file)
    assert list(list_file(file).tensors) == ["a"]
    # A header of 128 bytes begins like a pickle.
    file.write_bytes(struct.pack("<Q", 128) + b"{}".ljust(128))
    assert list_file(file).tensors == {}


def test_two_files_with_the_same_tensor_are_told(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"x": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor 'x' is also in .*a\.safetensors"):
        list_tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


LYING: dict[str, tuple[Any, str]] = {
    "no object": ([1], "its header is no object"),
    "no entry": ({"a": 1}, "'a' is not described by"),
    "more in an entry": ({"a": entry(more=1)}, "'a' is not described by"),
    "unknown kind": ({"a": entry(dtype="F4")}, "'a' holds 'F4', not one of BOOL, U8"),
    "kind of no text": ({"a": entry(dtype=["F32"])}, "'a' holds"),
    "negative length": ({"a": entry(shape=(-2,))}, "no counts"),
    "broken length": ({"a": entry(shape=(2.0,))}, "no counts"),
    "a length that is a truth": ({"a": entry(shape=(True, 2))}, "no counts"),
    "immense length": ({"a": entry(shape=(2**62, 4))}, "no counts"),
    "immense product": ({"a": entry(shape=(2**57, 4))}, "more elements than there can be"),
    "many axes": ({"a": entry(shape=(1,) * 33 + (2,))}, "more than 32 axes"),
    "one offset": ({"a": entry(offsets=(0,))}, "not two offsets"),
    "broken offset": ({"a": entry(offsets=(0, 8.0))}, "offsets that are no counts"),
    "immense and empty": ({"a": entry(shape=(0, 2**57, 4), offsets=(0, 0))}, "more elements than there can be"),
    "offsets in the wrong order": ({"a": entry(offsets=(8, 0))}, "in -8 bytes"),
    "another size": ({"a": entry(shape=(3,))}, r"is \(3,\) of F32 in 8 bytes"),
    "a hole": ({"a": entry(offsets=(4, 12))}, "does not begin where the one before it ends"),
    "overlapping": ({"a": entry(), "b": entry()}, "does not begin where the one before it ends"),
    "beyond the end": ({"a": entry((3,), (0, 12))}, "end at byte .*, but the file has"),
    "before the end": ({"a": entry((1,), (0, 4))}, "end at byte .*, but the file has"),
    "no texts as metadata": ({"a": entry(), "__metadata__": {"a": 1}}, "metadata are not texts"),
    "half characters as metadata": ({"a": entry(), "__metadata__": {"a": "\ud800"}}, "surrogates"),
    "a name that can't be printed": ({"a\x1b[31m": entry()}, "can't be printed"),
    "a long name": ({"a" * 2000: entry()}, "more than 1000 characters"),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_header_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    header, message = LYING[kind]
    refuse(tmp_path, json.dumps(header).encode(), message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 100_000, "recursion"),
        (b"[[]," * 200_001, "more than 400000 brackets"),
        (b'{"a": 1, "a": 2}', "one name twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe", "decode"),
        (b"", "Expecting value"),
    ],
)
def test_a_header_that_is_none_is_refused(header: bytes, message: str, tmp_path: Path) -> None:
    refuse(tmp_path, header, message)


def refuse(folder: Path, header: bytes, message: str) -> None:
    file = folder / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors can't be read as safetensors.*{message}") as caught:
        list_file(file)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "would have 0 bytes, but the file has 0"),
        (b"\x01\0\0", "but the file has 3"),
        (struct.pack("<Q", 2**63) + b"{}", "would have 9223372036854775808 bytes, but the file has 10"),
    ],
)
def test_a_file_too_short_for_its_header_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        list_file(tmp_path / "a.safetensors")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", 1 << 30) + b"{")
        opened.truncate(1 << 31)  # a hole, which takes no place
    with pytest.raises(CheckpointError, match="its header has 1073741824 bytes, more than 16777216"):
        list_file(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        list_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.safetensors is missing"):
        list_file(tmp_path / "none.safetensors")


LAYERS = {
    ("conv", "kernel"): (3, 3, 5, 140),
    ("point", "kernel"): (1, 1, 6, 70),
    ("linear", "kernel"): (6, 200),
    ("linear", "bias"): (200,),
    ("norm", "scale"): (7,),
    ("scalar", "bias"): (),
    ("empty", "kernel"): (0, 4),
}


def layers(rng: np.random.RandomState) -> dict[str, dict[str, np.ndarray]]:
    tree: dict[str, dict[str, np.ndarray]] = {}
    for (module, leaf), shape in LAYERS.items():
        tree.setdefault(module, {})[leaf] = np.asarray(rng.standard_normal(shape), np.float32)
    return tree


def written(tree: dict[str, dict[str, np.ndarray]], file: Path) -> list[ParamTensor]:
    """Stores parameters, a pointwise convolution as a linear layer, and tells where they are."""
    stored = {}
    for module, leaves in tree.items():
        for leaf, values in leaves.items():
            array = name_table.to_file((module, leaf), values)
            stored[f"{module}.{leaf}"] = array[:, :, 0, 0].copy() if module == "point" else array
    file.write_bytes(save({**stored, "left_over": np.arange(1000)}))
    tensors = list_file(file).tensors
    return [ParamTensor((name.split(".")[0], name.split(".")[1]), tensors[name]) for name in stored]


@pytest.mark.parametrize("piece", [64, 1000, 1 << 22])
@pytest.mark.parametrize("hashed", [False, True])
def test_parameters_come_to_their_places_in_pieces_of_any_size(
    piece: int, hashed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdjax.checkpoints.load_params._PIECE", piece)
    trees = {name: layers(np.random.RandomState(seed)) for seed, name in enumerate("ab")}
    files = {name: tmp_path / f"{name}.safetensors" for name in trees}
    parts = {name: NetworkTensors(written(tree, files[name]), tree, jnp.float32) for name, tree in trees.items()}
    params, digests = load_networks(parts, hashed)
    jax.tree.map(np.testing.assert_array_equal, params, trees)
    assert all(leaf.flags.c_contiguous and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    expected = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()}
    assert digests == (expected if hashed else {})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_parameters_are_cast_once(dtype: Any, tmp_path: Path) -> None:
    tree = layers(np.random.RandomState(0))
    params = load_params(written(tree, tmp_path / "a.safetensors"), tree, dtype)
    jax.tree.map(lambda found, values: np.testing.assert_array_equal(found, values.astype(dtype)), params, tree)


def test_rows_of_one_tensor_are_several_parameters(tmp_path: Path) -> None:
    fused = np.arange(30 * 4, dtype=np.float16).reshape(30, 4)
    save_file({"in_proj_weight": fused, "in_proj_bias": fused[:, 0].copy()}, tmp_path / "a.safetensors")
    tensors = list_file(tmp_path / "a.safetensors").tensors
    shapes, chosen = {}, []
    for place, module in enumerate(("q", "k", "v")):
        shapes[module] = {"kernel": jax.ShapeDtypeStruct((4, 10), np.float32), "bias": np.zeros(10)}
        for leaf, name in (("kernel", "in_proj_weight"), ("bias", "in_proj_bias")):
            chosen.append(ParamTensor((module, leaf), tensors[name], (10 * place, 10 * place + 10)))
    params = load_params(chosen, shapes, jnp.float32)
    for place, module in enumerate(("q", "k", "v")):
        np.testing.assert_array_equal(params[module]["kernel"], fused[10 * place : 10 * place + 10].T)
        np.testing.assert_array_equal(params[module]["bias"], fused[10 * place : 10 * place + 10, 0])
    wrong = [each._replace(rows=(25, 35)) for each in chosen]
    with pytest.raises(CheckpointError, match=r"rows 25 to 35 of tensor 'in_proj_weight', which is \(30, 4\)"):
        load_params(wrong, shapes, jnp.float32)


def test_tensors_with_gaps_or_in_each_other_are_parameters_too(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32)
    stored = pickles.storage("0", 24)
    steps = pickles.dictionary(
        {
            "whole": pickles.tensor(stored, (4, 6), (6, 1)),
            "tied": pickles.tensor(stored, (4, 6), (6, 1)),
            "transposed": pickles.tensor(stored, (6, 4), (1, 6)),
            "part": pickles.tensor(stored, (2, 3), (6, 1), offset=7),
        }
    )
    file = pickles.archive(tmp_path / "a.pt", steps, {"0": numbers.tobytes()})
    tensors = list_file(file, pickled=True).tensors
    whole = numbers.reshape(4, 6)
    expected = {"whole": whole, "tied": whole, "transposed": whole.T, "part": whole[1:3, 1:4]}
    chosen = [ParamTensor((name, "embedding"), tensors[name]) for name in expected]
    shapes = {name: {"embedding": values} for name, values in expected.items()}
    params, digests = load_networks({"": NetworkTensors(chosen, shapes, jnp.float32)})
    jax.tree.map(np.testing.assert_array_equal, params[""], shapes)
    assert digests == {file: hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_file_that_shrinks_or_goes_is_told(tmp_path: Path) -> None:
    tree = layers(np.random.RandomState(0))
    file = tmp_path / "a.safetensors"
    chosen = written(tree, file)
    file.write_bytes(file.read_bytes()[:2000])
    for hashed in (False, True):
        with pytest.raises(CheckpointError, match=r"a\.safetensors ends \d+ bytes early"):
            load_networks({"": NetworkTensors(chosen, tree, jnp.float32)}, hashed)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"a\.safetensors can't be read"):
        load_params(chosen, tree, jnp.float32)


def test_a_tensor_of_another_size_is_no_parameter(tmp_path: Path) -> None:
    tensor = Tensor(tmp_path / "a", "a", (2, 3), "F32", 0)
    with pytest.raises(CheckpointError, match=r"tensor 'a', which is \(2, 3\), are no parameter of \(7,\)"):
        load_params([ParamTensor(("a", "bias"), tensor)], {"a": {"bias": np.zeros(7)}}, jnp.float32)
