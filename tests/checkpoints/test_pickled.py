"""Pickled files: tensors and plain values come out as torch wrote them, and nothing in them is ever run."""

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdjax.checkpoints import pickled, unpickling
from sdjax.checkpoints.pickled import read_pickle
from sdjax.checkpoints.tensors import CheckpointError, Tensor, list_file, read_tensor
from sdjax.checkpoints.unpickling import PickleError
from tests.checkpoints import pickles
from tests.checkpoints.pickles import dictionary, integer, name, storage, tensor, text

GOLDEN = Path(__file__).parent.parent / "golden" / "pickles"
FORMS = ("zip", "older")
FOUR = np.arange(4, dtype=np.float32)
STORED = {"0": FOUR.tobytes()}


def recorded(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "values.npz") as opened:
        return {key.removeprefix(f"{case}/"): opened[key] for key in opened if key.startswith(f"{case}/")}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_all_kinds_come_out_as_torch_wrote_them(form: str) -> None:
    found, expected = read_pickle(GOLDEN / f"kinds_{form}.pt"), recorded("kinds")
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        array = read_tensor(found[key])
        assert found[key].name == key and array.shape == found[key].shape
        assert str(array.dtype).startswith(key) or key not in map(str, np.sctypeDict)
        np.testing.assert_array_equal(array.astype(np.float64), values, err_msg=key)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_trainer_leaves_beside_the_tensors_is_left_out(form: str) -> None:
    file = GOLDEN / f"lightning_{form}.pt"
    found = read_pickle(file)
    assert found["callbacks"] == {} and found["lr_schedulers"] == []
    assert found["optimizer_states"][0]["param_groups"] == [{"lr": 1e-4}]
    listed = list_file(file, pickled=True)
    assert listed.metadata == {"epoch": "6", "global_step": "470000", "pytorch-lightning_version": "1.4.2"}
    for key, values in recorded("lightning").items():
        np.testing.assert_array_equal(read_tensor(listed.tensors[key]), values)
    assert listed.tensors.keys() == recorded("lightning").keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_dictionary_of_parameters_is_a_dictionary(form: str) -> None:
    file = GOLDEN / f"parameter_dict_{form}.pt"
    found = read_pickle(file)
    expected = recorded("parameter_dict")["string_to_param.*"]
    np.testing.assert_array_equal(read_tensor(found["string_to_param"]["*"]), expected)
    assert (
        found["string_to_token"] == {"*": 265} and found["size"] == (2, 4) and found["pair"] == (1, [2.5, None, True])
    )
    assert found.keys() == {"string_to_param", "string_to_token", "size", "pair"}
    assert list(list_file(file, pickled=True).tensors) == ["string_to_param.*"]


@pytest.mark.parametrize("form", FORMS)
def test_a_pickled_file_is_only_read_where_that_is_asked_for(form: str) -> None:
    with pytest.raises(CheckpointError, match=rf"kinds_{form}\.pt is a pickled file.*`pickled`"):
        list_file(GOLDEN / f"kinds_{form}.pt")


def test_tensors_may_share_a_storage(tmp_path: Path) -> None:
    steps = dictionary(
        {"a": tensor(storage("0", 4), (2, 2), (1, 2)), "b": tensor(storage("0", 4), (2,), (1,), offset=2)}
    )
    for file in (
        pickles.archive(tmp_path / "a.pt", steps, STORED),
        pickles.older(tmp_path / "b.pt", steps, {"0": (4, FOUR.tobytes())}),
    ):
        found = read_pickle(file)
        np.testing.assert_array_equal(read_tensor(found["a"]), FOUR.reshape(2, 2).T)
        np.testing.assert_array_equal(read_tensor(found["b"]), FOUR[2:])


CODE = {
    "a command": (name("os.system") + text("touch canary") + b"\x85R", r"'os\.system'"),
    "a command, by another module": (name("posix.system") + text("touch canary") + b"\x85R", r"'posix\.system'"),
    "an expression": (name("builtins.eval") + text("open('canary', 'w')") + b"\x85R", r"'builtins\.eval'"),
    "an expression of Python 2": (name("__builtin__.eval") + text("open('canary', 'w')") + b"\x85R", "eval"),
    "an attribute": (name("builtins.getattr") + name("os.path") + text("os") + b"\x86R", r"'builtins\.getattr'"),
    "a name on the stack": (text("os") + text("system") + b"\x93" + text("touch canary") + b"\x85R", r"'os\.system'"),
    "a name with dots": (text("torch") + text("serialization.os.system") + b"\x93", r"serialization\.os\.system"),
    "an instance": (b"(" + text("touch canary") + b"ios\nsystem\n", "the instruction INST"),
    "an object": (b"(" + name("collections.OrderedDict") + b"o", "the instruction OBJ"),
    "an object with named arguments": (name("torch.Size") + b")}\x92", "the instruction NEWOBJ_EX"),
    "an extension": (b"\x82\x01", "the instruction EXT1"),
    "a name by number": (b"P0\n", "the instruction PERSID"),
    "torch's own loader": (name("torch.storage._load_from_bytes") + b"B\x01\x00\x00\x00x\x85R", "_load_from_bytes"),
    "a module": (name("torch.nn.modules.linear.Linear") + b")\x81", "Linear"),
    "a state for a function": (name("torch._utils._rebuild_tensor_v2") + b"}b", "gives a state to a Named"),
    "a call of a kind": (name("torch.FloatStorage") + integer(4) + b"\x85R", r"it calls torch\.FloatStorage"),
    "a call of a text": (text("os.system") + b")R", "it calls a str"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CODE)
def test_code_is_refused_by_its_name_and_not_run(
    kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps, message = CODE[kind]
    file = tmp_path / "model.ckpt"
    if form == "zip":
        pickles.archive(file, steps, {})
    else:
        pickles.older(file, steps, {})
    with pytest.raises(PickleError, match=message) as caught:
        read_pickle(file)
    assert str(file) in str(caught.value) and list(tmp_path.iterdir()) == [file]


def doubled(values: int, value: bytes) -> bytes:
    """A list of two of the list before it, and so on."""
    steps = b"]" + value + b"a\x94"
    for place in range(values):
        steps += b"](" + b"h" + bytes([place]) + b"h" + bytes([place]) + b"e\x94"
    return steps


WILD = {
    "unfolds without end": (doubled(30, b"N"), "more than 1000,"),
    "lies deep": (b"]" * 100 + b"a" * 99, "more than 32 deep"),
    "lies in itself": (b"]\x94h\x00a", "more than 32 deep"),
    "tensors again and again": (doubled(12, tensor(storage("0", 4), (4,), (1,))), "more than 4 times the file's size"),
    "an immense integer": (b"\x8b\x10\x27\x00\x00" + b"\x7f" * 10_000, "an integer of 79999 bits"),
    "a number of thousands of digits": (b"I" + b"9" * 5000 + b"\n", "digits"),
    "half a character": (b"X\x03\x00\x00\x00\xed\xa0\x80", "surrogates"),
    "a memo far away": (b"Nj\xff\xff\xff\x7f", "takes what is not there"),
    "nothing on the stack": (b"0", "takes what is not there"),
    "no mark": (b"t", "takes what is not there"),
    "a tuple as a key": (b"}N\x85Ns", "a tuple as a key"),
    "half an item": (b"}(Nu", "halves of items"),
    "an item of a number": (integer(1) + b"NNs", "halves of items of a int"),
    "appends to a number": (integer(1) + b"Na", "appends to a int"),
    "a text that is cut": (b"X\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
    "a text of more than there can be": (b"\x8d" + b"\xff" * 8, "18446744073709551615"),
    "no storage": (tensor(b"N", (4,), (1,)), "has no storage"),
    "a tensor beyond its storage": (tensor(storage("0", 4), (5,), (1,)), "reaches beyond"),
    "an offset beyond its storage": (tensor(storage("0", 4), (2,), (1,), offset=3), "reaches beyond"),
    "strides beyond its storage": (tensor(storage("0", 4), (2, 2), (3, 1)), "reaches beyond"),
    "immense strides": (tensor(storage("0", 4), (2, 2), (2**61, 1)), "reaches beyond"),
    "repeats one number": (tensor(storage("0", 4), (2**37, 2**20), (0, 0)), "reaches beyond"),
    "immense": (tensor(storage("0", 4), (2**40, 2**20), (0, 0)), "more elements than there can be"),
    "immense and empty": (tensor(storage("0", 4), (0, 2**40, 2**20), (0, 0, 0)), "more elements than there can be"),
    "a negative length": (tensor(storage("0", 4), (-1,), (1,)), "lengths that are no counts"),
    "a negative stride": (tensor(storage("0", 4), (4,), (-1,)), "don't belong together"),
    "a negative offset": (tensor(storage("0", 4), (1,), (1,), offset=-1), "don't belong together"),
    "too many axes": (tensor(storage("0", 4), (1,) * 33, (1,) * 33), "more than 32 axes"),
    "fewer strides than lengths": (tensor(storage("0", 4), (2, 2), (1,)), "don't belong together"),
    "a conjugate": (tensor(storage("0", 4), (4,), (1,), more=b"\x89N" + dictionary({"conj": b"\x88"})), "conjugated"),
    "too many arguments": (tensor(storage("0", 4), (4,), (1,), more=b"NNNNN"), "with 9 arguments"),
    "no kind of number": (tensor(storage("0", 4), (4,), (1,), made="v3", more=b"\x89NN"), "no known kind of number"),
    "numbers that do not fit": (
        tensor(storage("0", 4), (2,), (1,), made="v3", more=b"\x89N" + name("torch.float64")), "no whole number of F64"
    ),
    "a storage of no kind": (storage("0", 4, "torch.device"), "no known kind"),
    "a storage of negative length": (storage("0", -4), "no proper size"),
    "a part of a storage": (storage("0", 4)[:-2] + text("0") + b"tQ", "part of another"),
    "a storage that is not there": (storage("1", 4), "missing|list of storages"),
    "a parameter of nothing": (name("torch._utils._rebuild_parameter") + b"N\x85R", "a NoneType as a parameter"),
    "a dictionary of a number": (name("collections.OrderedDict") + integer(1) + b"\x85R", "dictionary of a int"),
    "a dictionary of no pairs": (name("collections.OrderedDict") + b"]Na\x85R", "no pairs"),
    "parameters without any": (name("torch.nn.modules.container.ParameterDict") + b")\x81}b", "without its parameters"),
    "a long name": (dictionary({"a" * 2000: tensor(storage("0", 4), (4,), (1,))}), "more than 1000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WILD)
def test_what_no_sound_file_holds_is_refused(
    kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "_MOST_VALUES", 1000)
    steps, message = WILD[kind]
    file = tmp_path / "model.ckpt"
    if form == "zip":
        pickles.archive(file, steps, STORED)
    else:
        pickles.older(file, steps, {"0": (4, FOUR.tobytes())} if b"Storage" in steps else {})
    with pytest.raises(PickleError, match=message) as caught:
        read_pickle(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 3000


def test_the_instructions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickling, "MOST_STEPS", 1000)
    with pytest.raises(PickleError, match="more than 1000 instructions"):
        read_pickle(pickles.archive(tmp_path / "model.ckpt", b"N0" * 600 + b"N", {}))


def named(count: int, value: bytes) -> bytes:
    """Texts, each with the same value after it."""
    return b"".join(text(str(place)) + value for place in range(count))


# Remembers something long (as 1), and then has it gone through again and again.
AGAIN = {
    "a dictionary of what is left out": (
        b"C\x01xq\x000}(" + named(4000, b"h\x00") + b"uq\x010](" + b"h\x01" * 4000 + b"e",
        "its values are more than 10000,",
    ),
    "pairs of a dictionary": (
        b"](" + named(4000, b"N\x86") + b"eq\x010" + name("collections.OrderedDict") + b"q\x000"
        + b"](" + b"h\x00h\x01\x85R" * 4000 + b"e",
        "goes through more than 500000 items",
    ),
    "arguments": (
        b"(" + tensor(storage("0", 4), (4,), (1,)) + b"N" * 4000 + b"tq\x010"
        + name("torch._utils._rebuild_parameter") + b"q\x000(" + b"h\x00h\x01R" * 4000 + b"t",
        "goes through more than 500000 items",
    ),
    "a storage": (
        storage("0", 4)[:-2] + b"N" * 4000 + b"tq\x010(" + b"h\x01Q" * 4000 + b"t", "refers to something"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", AGAIN)
def test_work_is_not_repeated_without_end(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "_MOST_VALUES", 10_000)
    steps, message = AGAIN[kind]
    file = pickles.archive(tmp_path / "model.ckpt", steps, STORED)
    start = time.process_time()
    with pytest.raises(PickleError, match=message):
        read_pickle(file)
    assert time.process_time() - start < 1


ONE = dictionary({"a": tensor(storage("0", 4), (4,), (1,))})


def twice(file: Path) -> None:
    pickles.archive(file, ONE, STORED)
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr("archive/data/0", b"1" * 16)


def encrypted(file: Path) -> None:
    content = pickles.archive(file, ONE, STORED).read_bytes()
    start = content.index(b"PK\x01\x02")
    file.write_bytes(content[: start + 8] + b"\x01" + content[start + 9 :])


def moved(file: Path) -> None:
    """The directory says that a storage begins elsewhere."""
    content = pickles.archive(file, ONE, STORED).read_bytes()
    start = content.rindex(b"PK\x01\x02")
    file.write_bytes(content[: start + 42] + b"\x05\0\0\0" + content[start + 46 :])


TRICKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compressed": (lambda f: pickles.archive(f, ONE, STORED, method=zipfile.ZIP_DEFLATED), "is compressed"),
    "twice": (twice, "holds 'archive/data/0' twice"),
    "encrypted": (encrypted, "encrypted"),
    "moved": (moved, "not where its directory says"),
    "of another size": (lambda f: pickles.archive(f, ONE, {"0": b"1234"}), "has 4 bytes, not 4 x F32"),
    "without its storage": (lambda f: pickles.archive(f, ONE, {}), r"'archive/data/0' is missing"),
    "without a pickle": (lambda f: zipfile.ZipFile(f, "w").writestr("a", "b"), r"without one data\.pkl"),
    "cut": (lambda f: f.write_bytes(pickles.archive(f, ONE, STORED).read_bytes()[:-30]), "not a zip file"),
    "older, cut": (
        lambda f: f.write_bytes(pickles.older(f, ONE, {"0": (4, FOUR.tobytes())}).read_bytes()[:-1]),
        "storage '0' is cut",
    ),
    "older, of another length": (lambda f: pickles.older(f, ONE, {"0": (3, FOUR.tobytes())}), "storage '0' is cut, or"),
    "older, of more storages": (
        lambda f: pickles.older(f, ONE, {"0": (4, FOUR.tobytes()), "1": (0, b"")}), "list of storages"
    ),
    "no torch": (lambda f: f.write_bytes(b"\x80\x02}." * 10), "magic number"),
    "of another machine": (
        lambda f: f.write_bytes(pickles.older(f, ONE, {}).read_bytes().replace(b"endian\x88", b"endian\x89")),
        "little-endian",
    ),
    "neither": (lambda f: f.write_bytes(b"hello"), "neither of torch's two formats"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRICKS)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    make, message = TRICKS[kind]
    file = tmp_path / "model.ckpt"
    make(file)
    with pytest.raises(PickleError, match=message) as caught:
        read_pickle(file)
    assert str(file) in str(caught.value)


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    file = pickles.archive(tmp_path / "a.pt", ONE, STORED)
    tensor = read_pickle(file)["a"]
    assert isinstance(tensor, Tensor)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="ends 16 bytes early"):
        read_tensor(tensor)
    file.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        read_tensor(tensor)
