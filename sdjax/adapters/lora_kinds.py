"""The tensors that a LoRA file has for one module, brought to what they do to its parameters.

The shapes here are torch's: (out, in) of linear layers, (out, in, height, width) of convolutions. Files store 1x1
convolutions and windows that are flattened into the inputs in either way, so what counts is the number of elements.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sdjax.adapters.files import AdapterError
from sdjax.adapters.lora_changes import Change, Difference, Hadamard, Kronecker, LowRank, Product
from sdjax.checkpoints import name_table
from sdjax.checkpoints.name_table import Path
from sdjax.checkpoints.tensors import Tensor, read_tensor

# The kinds of number that values may be stored in, and besides them single numbers.
FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I8", "I16", "I32", "I64", "U8")

Values = Float[np.ndarray, "..."]


class ModuleTensors(NamedTuple):
    """The tensors that a file has for one module.

    name: the module's in the file.
    path: the module's in the model, its network first.
    shapes: those of the module's parameters, as torch has them, by their leaf: "kernel", "scale", "embedding", "bias".
    tensors: by their role, see `lora_names`.
    scale: what the adapter is multiplied with; None where the file itself says it (by alpha, or not at all).
    """

    name: str
    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Tensor]
    scale: float | None

    @property
    def kernel(self) -> tuple[int, ...]:
        """(out, in) or (out, in, height, width)."""
        if "kernel" not in self.shapes:
            raise AdapterError(f"{self.name} is no linear layer and no convolution, but has {self.listed()}")
        return self.shapes["kernel"]

    def read(self, role: str) -> Values:
        """A tensor in float32."""
        tensor = self.tensors[role]
        if tensor.dtype not in FLOATS:
            raise AdapterError(f"{tensor.name} holds {tensor.dtype}, not one of {', '.join(FLOATS)}")
        return read_tensor(tensor).astype(np.float32)

    def shaped(self, role: str, *shape: int) -> Values:
        """The same, brought to a shape of as many elements; its first axis must be there already."""
        found = self.tensors[role].shape
        if not found or found[0] != shape[0]:
            raise self.mismatch(role, f"but {shape} is expected")
        return self.shaped_freely(role, *shape)

    def shaped_freely(self, role: str, *shape: int) -> Values:
        """The same, brought to any shape of as many elements."""
        if math.prod(self.tensors[role].shape) != math.prod(shape):
            raise self.mismatch(role, f"but {shape} is expected")
        return self.read(role).reshape(shape)

    def widened(self, role: str, *shape: int) -> Values:
        """The same, of (n, in, ...); where `conv_in` has more inputs than the 4 that were trained, they get nothing.

        So LoRAs draw in inpainting and depth models too (A1111 does the same).
        """
        found = self.tensors[role].shape
        if self.path[-1] != "conv_in" or len(found) != len(shape) or not 0 < found[1] < shape[1]:
            return self.shaped(role, *shape)
        few = self.shaped(role, shape[0], found[1], *shape[2:])
        return np.pad(few, [(0, 0), (0, shape[1] - found[1]), (0, 0), (0, 0)])

    def shape_of(self, leaf: str, role: str) -> tuple[int, ...]:
        """That of the parameter for which a tensor is."""
        if leaf not in self.shapes:
            raise AdapterError(f"{self.tensors[role].name} is for a {leaf}, which {'.'.join(self.path)} doesn't have")
        return self.shapes[leaf]

    def number(self, role: str) -> float | None:
        """A single number, or None."""
        tensor = self.tensors.get(role)
        if tensor is None:
            return None
        if math.prod(tensor.shape) != 1 or tensor.dtype not in (*FLOATS, *_INTEGERS):
            raise AdapterError(f"{tensor.name} is {tensor.dtype} {tensor.shape}, not one number")
        value = float(read_tensor(tensor).reshape(()))
        if not math.isfinite(value):
            raise AdapterError(f"{tensor.name} is {value}")
        return value

    def rows(self, role: str) -> int:
        """The length of a tensor's first axis."""
        return self._length(role, 0)

    def columns(self, role: str) -> int:
        """The length of a matrix' second axis."""
        return self._length(role, 1)

    def _length(self, role: str, axis: int) -> int:
        shape = self.tensors[role].shape
        if len(shape) < 2 or 0 in shape:
            raise self.mismatch(role, "but a matrix is expected")
        return shape[axis]

    def mismatch(self, role: str, why: str) -> AdapterError:
        """The error of a tensor that does not go with its module."""
        tensor = self.tensors[role]
        whole = f" ({'.'.join(self.path)} is {self.shapes['kernel']})" if "kernel" in self.shapes else ""
        return AdapterError(f"{tensor.name} is {tensor.shape}, {why}{whole}")

    def listed(self) -> str:
        """The names of its tensors."""
        return ", ".join(tensor.name for tensor in self.tensors.values())


# --- Each kind ---


def _ours(kernel: Values) -> Values:
    """(out, in) or (out, in, height, width), brought to our layout."""
    return np.ascontiguousarray(name_table.to_ours(("kernel",), kernel))


def _product(
    stored: ModuleTensors, up: str, down: str, middle: str | None, kernel: tuple[int, ...], scale: float = 1.0
) -> Product:
    """`up` (out, r) and `down` (r, in, height, width); or with a middle (s, r, height, width) `down` (r, in).

    With a middle, `up` is (out, s) in LoRA and (s, out) in lycoris' other kinds.
    """
    rank = stored.rows(down)
    if middle is None or middle not in stored.tensors:
        matrix = stored.shaped(up, kernel[0], rank).T
        return Product(_ours(stored.widened(down, rank, *kernel[1:])), _scaled(matrix, scale))
    if len(kernel) != 4:
        raise stored.mismatch(middle, "but only convolutions have such")
    last = stored.rows(middle)
    matrix = stored.shaped(up, kernel[0], last).T if up == "up" else stored.shaped(up, last, kernel[0])
    between = _ours(stored.shaped(middle, last, rank, *kernel[2:]))
    return Product(_ours(stored.shaped(down, rank, kernel[1])), _scaled(matrix, scale), between)


def _scaled(matrix: Values, scale: float) -> Values:
    return np.ascontiguousarray(matrix) * np.float32(scale)


def _low_rank(stored: ModuleTensors, scale: float) -> Change:
    return LowRank(_product(stored, "up", "down", "middle", stored.kernel, scale), _magnitude(stored))


def _hadamard(stored: ModuleTensors, scale: float) -> Change:
    first = _product(stored, "hada_w1_a", "hada_w1_b", "hada_t1", stored.kernel, scale)
    return Hadamard(first, _product(stored, "hada_w2_a", "hada_w2_b", "hada_t2", stored.kernel), _magnitude(stored))


def _kronecker(stored: ModuleTensors, scale: float) -> Change:
    out, inputs, *window = stored.kernel
    whole = "lokr_w1" in stored.tensors
    left, right = ("lokr_w1", "lokr_w1") if whole else ("lokr_w1_a", "lokr_w1_b")
    rows, columns = stored.rows(left), stored.columns(right)
    if out % rows or inputs % columns:
        raise stored.mismatch(left, f"and {(out, inputs)} are not multiples of {(rows, columns)}")
    rest = (out // rows, inputs // columns, *window)
    first: Values | Product
    if whole:
        first = _scaled(_ours(stored.shaped(left, rows, columns)), scale)
    else:
        first = _product(stored, left, right, None, (rows, columns), scale)
    second: Values | Product
    if "lokr_w2" in stored.tensors:
        second = _ours(stored.shaped("lokr_w2", *rest))
    else:
        second = _product(stored, "lokr_w2_a", "lokr_w2_b", "lokr_t2", rest)
    return Kronecker(first, second, _magnitude(stored))


def _magnitude(stored: ModuleTensors) -> Values | None:
    """DoRA's lengths, with the axes of our kernel: of each output, or in some of lycoris' files of each input."""
    role = next((each for each in _MAGNITUDES if each in stored.tensors), None)
    if role is None:
        return None
    out, inputs, *window = stored.kernel
    shape = stored.tensors[role].shape
    ones = (1,) * len(window)
    # peft has (out,) of linear layers and (1, out, 1, 1) of convolutions.
    if shape[:1] == (out,) or role == "magnitude":
        return stored.shaped_freely(role, out).reshape(*ones, 1, out)
    return stored.shaped_freely(role, inputs).reshape(*ones, inputs, 1)


def _difference(stored: ModuleTensors, role: str, leaf: str) -> Difference:
    shape = stored.shape_of(leaf, role)
    values = stored.widened(role, *shape) if len(shape) > 1 else stored.shaped(role, *shape)
    return Difference(np.ascontiguousarray(name_table.to_ours((leaf,), values)))


class LoraKind(NamedTuple):
    """A member of the family.

    needed: for each of its matrices, the sets of roles of which just one has to be there.
    optional: other roles that only this kind has.
    rank: where the rank is read, as the length of the first axis of the first that is there.
    """

    name: str
    needed: tuple[tuple[frozenset[str], ...], ...]
    optional: frozenset[str]
    rank: tuple[str, ...]
    change: Callable[[ModuleTensors, float], Change]

    @property
    def roles(self) -> frozenset[str]:
        """All that only this kind has."""
        return self.optional.union(*(roles for alternatives in self.needed for roles in alternatives))


def _each(*roles: str) -> tuple[tuple[frozenset[str], ...], ...]:
    return tuple((frozenset({role}),) for role in roles)


def _whole_or_two(name: str) -> tuple[frozenset[str], ...]:
    return frozenset({name}), frozenset({f"{name}_a", f"{name}_b"})


KINDS = (
    LoraKind("LoRA", _each("down", "up"), frozenset({"middle", "up_bias"}), ("down",), _low_rank),
    LoraKind(
        "LoHa",
        _each("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        frozenset({"hada_t1", "hada_t2"}),
        ("hada_w1_b",),
        _hadamard,
    ),
    LoraKind(
        "LoKr",
        (_whole_or_two("lokr_w1"), _whole_or_two("lokr_w2")),
        frozenset({"lokr_t2"}),
        ("lokr_w1_b", "lokr_w2_b"),
        _kronecker,
    ),
)
_MAGNITUDES = ("dora_scale", "magnitude")
# What goes with the matrices of any kind.
_BESIDE = frozenset({"alpha", "scalar", *_MAGNITUDES})
# Differences by role, and the leaves that they may be for.
_DIFFERENCES = {
    "diff": ("kernel", "scale", "embedding"),
    "diff_b": ("bias",),
    "w_norm": ("scale",),
    "b_norm": ("bias",),
}


def changes(stored: ModuleTensors) -> dict[Path, Change]:
    """What a module's tensors do to its parameters, by their paths.

    Raises:
      AdapterError: if tensors are missing, left over, or don't go with the module; it doesn't name the file.
    """
    found: dict[str, Change] = {}
    left = set(stored.tensors)
    kinds = [kind for kind in KINDS if kind.roles & left]
    if len(kinds) > 1:
        raise AdapterError(f"{stored.name} is {' and '.join(kind.name for kind in kinds)} at once")
    for kind in kinds:
        _check_whole(stored, kind)
        scale = _scale(stored, kind)
        found["kernel"] = kind.change(stored, scale)
        if "up_bias" in left:
            # Also where the layer has none: then it gets this one.
            bias = stored.shaped("up_bias", *stored.shapes.get("bias", stored.kernel[:1]))
            found["bias"] = Difference(_scaled(bias, scale))
        left -= kind.roles | _BESIDE
    for role in sorted(left & _DIFFERENCES.keys()):
        leaf = next((each for each in _DIFFERENCES[role] if each in stored.shapes), _DIFFERENCES[role][0])
        if leaf in found:
            raise AdapterError(f"{stored.tensors[role].name} is beside another change of the same {leaf}")
        found[leaf] = _difference(stored, role, leaf)
        left.remove(role)
    if left:
        spare = ", ".join(stored.tensors[role].name for role in sorted(left))
        raise AdapterError(f"{spare} is there without the matrices it belongs to")
    return {(*stored.path, leaf): change for leaf, change in found.items()}


def _check_whole(stored: ModuleTensors, kind: LoraKind) -> None:
    present = stored.tensors.keys()
    for alternatives in kind.needed:
        begun = [roles for roles in alternatives if roles & present]
        if len(begun) != 1 or not begun[0] <= present:
            wanted = " or ".join(" and ".join(sorted(roles)) for roles in alternatives)
            raise AdapterError(f"{stored.name}: {kind.name} needs {wanted}, but it has {stored.listed()}")
    if len({"hada_t1", "hada_t2"} & present) == 1:
        raise AdapterError(f"{stored.name}: LoHa needs both of hada_t1 and hada_t2, or none")
    if len(set(_MAGNITUDES) & present) == 2:
        raise AdapterError(f"{stored.name} has both of {' and '.join(_MAGNITUDES)}")


def _scale(stored: ModuleTensors, kind: LoraKind) -> float:
    """What the matrices are multiplied with: alpha / rank, or 1 if one of the two is not known."""
    scalar = stored.number("scalar")
    factor = 1.0 if scalar is None else scalar
    if stored.scale is not None:
        return stored.scale * factor
    alpha = stored.number("alpha")
    rank = next((stored.rows(role) for role in kind.rank if role in stored.tensors), None)
    return factor if alpha is None or rank is None else alpha / rank * factor
