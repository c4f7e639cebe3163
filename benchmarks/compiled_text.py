"""What the text of a compiled program says: its kernels, their memory traffic, transfers with the host.

The text is that of XLA's optimised HLO, as `jax.stages.Compiled.as_text` gives it.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\w+\[[\d,]*\](?:\{[^}]*\})?) ([\w-]+)\(([^)]*)\)", re.M)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(.*?^\}$", re.M | re.S)
# Computations inside an instruction: of a fusion, a reduction.
_INSIDE = re.compile(r"(?:calls|to_apply)=%([\w.-]+)")
_LOOP = re.compile(r" while\([^)]*\), condition=%([\w.-]+), body=%([\w.-]+)")
_COUNT = re.compile(r"= s32\[\][^ ]* constant\((\d+)\)")
_BLOCKS = re.compile(r'"xprof_metadata":"(\{.*?\})"')
# What moves arrays between the device and its host, or runs there.
_HOST = re.compile(
    r"^\s+(?:ROOT )?%([\w.-]+) = .*? (?:infeed|outfeed|send|recv)(?:-start|-done)?\(|"
    r"^\s+(?:ROOT )?%([\w.-]+) = .*custom_call_target=\"[^\"]*(?:callback|MoveToHost|MoveToDevice|HostExecute)|"
    r"^\s+(?:ROOT )?%([\w.-]+) = .*?:[^ ]*S\(5\)",
    re.M,
)
# Instructions that move nothing, or what another one has been counted for.
_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call")


class Shape(NamedTuple):
    """An array in memory.

    tile: of its last axes in memory, which are filled up to whole tiles; empty for none.
    order: its axes, the one along which memory runs first.
    on_chip: whether it lies in the chip's own memory (VMEM) and not in the device's.
    """

    dtype: str
    lengths: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        lengths = list(self.lengths)
        for axis, side in zip(self.order, reversed(self.tile), strict=False):
            lengths[axis] = -(-lengths[axis] // side) * side
        return math.prod(lengths) * _BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
    """One instruction of a program; `computation` is what it stands in, `place` where its operands end in the text."""

    name: str
    kind: str
    results: tuple[Shape, ...]
    operands: tuple[Shape, ...]
    computation: str
    place: int

    @property
    def traffic(self) -> int:
        """Bytes that it moves from and to the device's memory, each operand and result once."""
        if self.kind in _FREE or self.kind.endswith("-done"):
            return 0
        if self.kind.endswith("-start"):  # its results are both ends of a copy, and a flag
            ends = [shape for shape in self.results if shape.lengths][:2]
            return min(shape.bytes for shape in ends) * sum(not shape.on_chip for shape in ends)
        return sum(shape.bytes for shape in (*self.operands, *self.results) if not shape.on_chip)


class Kernel(NamedTuple):
    """A call of splash attention.

    query, keys: (heads of all images, tokens, width).
    block_q, block_kv: tokens of a block.
    """

    query: tuple[int, int, int]
    keys: int
    itemsize: int
    block_q: int
    block_kv: int

    @property
    def traffic(self) -> int:
        """Bytes of operands and results, keys and values as often as they are read.

        For each block of queries all blocks of keys pass by: they are read again unless one block has them all. Results
        have widths filled up to 128 in memory.
        """
        heads, queries, width = self.query
        reads = 1 if self.block_kv >= self.keys else queries // self.block_q
        return heads * self.itemsize * (queries * (width + _filled(width, 128)) + 2 * reads * self.keys * width)

    @property
    def flops(self) -> int:
        """Of both products, counted 2 for each multiplication and addition."""
        heads, queries, width = self.query
        return 4 * heads * queries * self.keys * width


def _filled(length: int, side: int) -> int:
    return -(-length // side) * side


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: one, or those of a tuple."""
    found = []
    for dtype, lengths, layout in _SHAPE.findall(text):
        order = re.match(r"[\d,]*", layout)
        tile = re.search(r"T\(([\d,]+)\)", layout)
        found.append(
            Shape(
                dtype,
                _integers(lengths),
                _integers(order[0] if order else ""),
                _integers(tile[1] if tile else ""),
                "S(1)" in layout,
            )
        )
    return tuple(found)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def instructions(text: str) -> list[Instruction]:
    """The instructions of a program; not what is inside of fusions, but what is inside of loops, once."""
    inside = set(_INSIDE.findall(text))
    return [each for found in _COMPUTATION.finditer(text) if found[1] not in inside for each in _of(found)]


def _of(computation: re.Match[str]) -> Iterator[Instruction]:
    known: dict[str, tuple[Shape, ...]] = {}
    for found in _INSTRUCTION.finditer(computation[0]):
        name, type_, kind, operands = found.groups()
        known[name] = shapes(type_)
        arrays = tuple(shape for each in re.findall(r"%([\w.-]+)", operands) for shape in known.get(each, ()))
        yield Instruction(name, kind, known[name], arrays, computation[1], computation.start() + found.end())


def repeated_traffic(text: str) -> int:
    """Bytes that loops of a length known beforehand move in all turns after their first.

    A loop's length is the only constant in its condition; that of the samplers' loop is an argument.
    """
    bodies = {body: _COUNT.findall(_computation(text, condition)) for condition, body in _LOOP.findall(text)}
    turns = {body: int(counts[0]) for body, counts in bodies.items() if len(counts) == 1}
    return sum(each.traffic * (turns[each.computation] - 1) for each in instructions(text) if each.computation in turns)


def _computation(text: str, name: str) -> str:
    return next(found[0] for found in _COMPUTATION.finditer(text) if found[1] == name)


def kernels(text: str) -> list[Kernel]:
    """The calls of splash attention, each as often as it stands in the program: once for all turns of a loop."""
    found = []
    for each in instructions(text):
        if each.kind != "custom-call" or "splash" not in each.name:
            continue
        blocks = _BLOCKS.search(text, each.place)
        assert blocks, "splash attention says its blocks"
        sizes = json.loads(blocks[1].replace('\\"', '"'))
        query, key = [shape for shape in each.operands if shape.dtype in ("bf16", "f32")][:2]
        heads, width, queries = query.lengths
        found.append(
            Kernel((heads, queries, width), key.lengths[2], _BYTES[query.dtype], sizes["block_q"], sizes["block_kv"])
        )
    return found


def host_transfers(text: str) -> list[str]:
    """The names of instructions that move arrays between the device and its host, or run there."""
    return [next(filter(None, names)) for names in _HOST.findall(text)]


def largest(text: str, count: int) -> list[tuple[int, str]]:
    """(bytes, name) of the instructions that move most."""
    return sorted(((each.traffic, each.name) for each in instructions(text)), reverse=True)[:count]
