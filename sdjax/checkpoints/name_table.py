"""Tables of tensor names: what our parameters are called in files, and in which layout they are stored there.

Our trees follow diffusers' module names. What differs is said once: children of a list are numbered with an
underscore (`resnets_0` for `resnets.0`), and leaves have Flax's names and layouts.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

Path = tuple[str, ...]

# Modules whose children torch numbers.
_LISTS = (
    "attentions|blocks|body|controlnet_down_blocks|down_blocks|downsamplers|layers|net|resnets|to_out"
    "|transformer_blocks|up_blocks|upsamplers"
)
_NUMBERED = re.compile(rf"^({_LISTS})_(\d+)$")
# Leaves: ours -> theirs.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class NameTable(NamedTuple):
    """The names of one network's tensors in files.

    prefix: what stands before every name when written.
    other_prefixes: what may stand there instead when read.
    renamed: (start of our dotted name, start of theirs), the first that fits.
    aliases: (part of a name as written, the same part in older files).
    ignored: names that hold no parameters (buffers, as regular expressions).
    """

    prefix: str = ""
    other_prefixes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


def dotted(part: str) -> str:
    """A module's name as torch has it: `resnets.0` for our `resnets_0`."""
    return _NUMBERED.sub(r"\1.\2", part)


def file_names(path: Path, table: NameTable) -> tuple[str, ...]:
    """All names under which a parameter of ours may stand in a file, the one that is written first."""
    parts = [dotted(part) for part in path[:-1]]
    name = ".".join([*parts, LEAVES[path[-1]]])
    for ours, theirs in table.renamed:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    names = [name]
    for written, older in table.aliases:
        if written in name:
            names.append(name.replace(written, older))
    return tuple(prefix + each for prefix in (table.prefix, *table.other_prefixes) for each in names)


class Layout(NamedTuple):
    """How the axes of one kind of tensor lie in files of torch."""

    to_file: tuple[int, ...]
    to_ours: tuple[int, ...]


# By our leaf and its number of axes: convolutions HWIO <-> OIHW, linear layers IO <-> OI.
_LAYOUTS = {
    ("kernel", 4): Layout(to_file=(3, 2, 0, 1), to_ours=(2, 3, 1, 0)),
    ("kernel", 2): Layout(to_file=(1, 0), to_ours=(1, 0)),
}


def _transposition(path: Path, axes: int, which: Callable[[Layout], tuple[int, ...]]) -> tuple[int, ...]:
    layout = _LAYOUTS.get((path[-1], axes))
    return which(layout) if layout else tuple(range(axes))


def shape_in_file(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape under which a parameter of ours is stored."""
    return tuple(shape[axis] for axis in _transposition(path, len(shape), lambda layout: layout.to_file))


def to_ours(path: Path, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A stored tensor in our layout (a view)."""
    return tensor.transpose(_transposition(path, tensor.ndim, lambda layout: layout.to_ours))


def in_file(path: Path, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A parameter of ours in the stored layout (a view)."""
    return tensor.transpose(_transposition(path, tensor.ndim, lambda layout: layout.to_file))


def to_file(path: Path, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A parameter of ours in the stored layout, contiguous."""
    return np.ascontiguousarray(in_file(path, tensor))
