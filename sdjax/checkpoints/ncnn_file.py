"""Networks in ncnn's two files: a text of layers (.param), and their numbers one after the other (.bin).

Read are the layers that upscalers are made of. Each option of a layer is one that is known, at a value that is
implemented, and each byte of the numbers belongs to a layer.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sdjax.checkpoints.stored_tensor import DTYPES, CheckpointError, Tensor

Value = int | float | tuple[float, ...]

_MAGIC = "7767517"
# How kernels are stored, by the word before them. Biases and slopes are float32 without one.
_KERNELS = {0x00000000: "F32", 0x01306B47: "F16"}
# Numbers begin at multiples of so many bytes.
_ALIGNED = 4
# Real-ESRGAN's x4plus has 116 kB of text in 999 layers.
_MOST_TEXT, _MOST_LAYERS = 1 << 22, 20_000
# Most elements of a tensor; of the largest that is known, 110,592.
_MOST_ELEMENTS = 1 << 30
# An option that is an array has its number taken from this.
_ARRAY = -23300
# Characters of a line that an error shows.
_SHOWN = 80


class _Option(NamedTuple):
    """An option of a layer, which stands in the file under a number.

    default: what it is where it is not said; None if it has to be.
    only: the one value that is implemented; None if any is.
    """

    name: str
    default: Value | None
    only: Value | None = None


_CONVOLUTION = {
    0: _Option("outputs", None),
    1: _Option("kernel_w", None, 3),
    2: _Option("dilation_w", 1, 1),
    3: _Option("stride_w", 1, 1),
    4: _Option("pad_left", 0, 1),
    5: _Option("bias_term", 0, 1),
    6: _Option("weight_data_size", None),
    8: _Option("int8_scale_term", 0, 0),
    9: _Option("activation", 0),  # 0 none, 2 leaky ReLU
    10: _Option("activation_params", ()),
    # These are the ones above where they are not said.
    11: _Option("kernel_h", 3, 3),
    12: _Option("dilation_h", 1, 1),
    13: _Option("stride_h", 1, 1),
    14: _Option("pad_top", 1, 1),
    15: _Option("pad_right", 1, 1),
    16: _Option("pad_bottom", 1, 1),
    18: _Option("pad_value", 0, 0),
    19: _Option("dynamic_weight", 0, 0),
}
_INTERP = {
    0: _Option("resize_type", None),  # 1 nearest, 3 bicubic
    1: _Option("height_scale", None),
    2: _Option("width_scale", None),
    3: _Option("output_height", 0, 0),
    4: _Option("output_width", 0, 0),
    5: _Option("dynamic_target_size", 0, 0),
    6: _Option("align_corner", 0, 0),
}
_KINDS: Mapping[str, Mapping[int, _Option]] = {
    "Input": {},
    "Split": {},
    "Convolution": _CONVOLUTION,
    "PReLU": {0: _Option("slopes", None)},
    "Concat": {0: _Option("axis", 0, 0)},
    "Eltwise": {0: _Option("operation", 0, 1), 1: _Option("coefficients", ())},  # 1 is the sum
    "BinaryOp": {0: _Option("operation", 0, 0), 1: _Option("with_scalar", 0, 0)},  # 0 is the sum
    "Interp": _INTERP,
    "PixelShuffle": {0: _Option("factor", None), 1: _Option("mode", 0, 0)},
}


class Layer(NamedTuple):
    """A layer.

    line: of the text.
    inputs: the layers whose results it takes, by their places.
    options: those of which more than one value is implemented, by name.
    tensors: its numbers, in the file's order.
    """

    kind: str
    name: str
    line: int
    inputs: tuple[int, ...]
    options: Mapping[str, Value]
    tensors: tuple[Tensor, ...] = ()


class _Line(NamedTuple):
    """A line of the text, in parts; of inputs and outputs the names."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    options: dict[str, Value]


def read_network(text: Path, numbers: Path) -> tuple[Layer, ...]:
    """The layers of a network, in order, without those that only pass on what they are given (`Split`).

    The first one is its input; the result is that of the last.

    Args:
      text: the .param file.
      numbers: the .bin file.

    Raises:
      CheckpointError: if a file is missing, damaged, or holds what is not implemented.
    """
    layers: list[Layer] = []
    made_by: dict[str, int] = {}
    used: set[str] = set()
    called: set[str] = set()
    for number, line in _lines(text):
        where = f"{text}, line {number}"
        unknown = [name for name in line.inputs if name not in made_by]
        if unknown:
            raise CheckpointError(f"{where}: {unknown[0][:_SHOWN]!r} is given to a layer before any layer made it")
        used.update(line.inputs)
        inputs = tuple(made_by[name] for name in line.inputs)
        if line.kind == "Split":
            if len(inputs) != 1:
                raise CheckpointError(f"{where}: a Split is given {len(inputs)} results, not 1")
            [place] = inputs
        else:
            if len(line.outputs) != 1 or (line.kind == "Input") != (not layers) or (not inputs) != (not layers):
                raise CheckpointError(
                    f"{where}: a {line.kind} of {len(inputs)} inputs and {len(line.outputs)} outputs; expected are one "
                    "Input, as the first layer, and layers that make one result of others"
                )
            place = len(layers)
            if line.name in called:
                raise CheckpointError(f"{where}: two layers are called {line.name[:_SHOWN]!r}")
            called.add(line.name)
            layers.append(Layer(line.kind, line.name, number, inputs, line.options))
        for name in line.outputs:
            if name in made_by:
                raise CheckpointError(f"{where}: two layers make {name[:_SHOWN]!r}")
            made_by[name] = place
    results = [name for name in made_by if name not in used]
    if len(results) != 1 or made_by[results[0]] != len(layers) - 1:
        raise CheckpointError(f"{text}: not one result, of its last layer, is left over, but {len(results)}")
    return _with_tensors(layers, text, numbers)


def _lines(text: Path) -> Iterator[tuple[int, _Line]]:
    """The lines that describe layers, with their numbers."""
    lines = _text_of(text).splitlines()
    counts = lines[1].split() if len(lines) > 1 else []
    if not lines or lines[0].strip() != _MAGIC or len(counts) != 2 or not all(map(_is_count, counts)):
        raise CheckpointError(f"{text} does not begin with {_MAGIC} and two counts, as ncnn's texts do")
    layers, results = map(int, counts)
    found = [(number, line) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if layers != len(found) or not 0 < layers <= _MOST_LAYERS:
        raise CheckpointError(f"{text} tells of {layers} layers (1 to {_MOST_LAYERS} are read) and has {len(found)}")
    for number, line in found:
        try:
            parsed = _parsed(line.split())
        except ValueError as error:
            raise CheckpointError(f"{text}, line {number}: {error} in {line.strip()[:_SHOWN]!r}") from error
        results -= len(parsed.outputs)
        yield number, parsed
    if results:
        raise CheckpointError(f"{text} tells of {counts[1]} results, its layers make {int(counts[1]) - results}")


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_TEXT + 1)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read ({error})") from error
    if len(content) > _MOST_TEXT:
        raise CheckpointError(f"{file} has more than {_MOST_TEXT} bytes, too many for a text of ncnn")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is no text of ncnn ({error})") from error


def _is_count(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,9}", text))


def _parsed(words: list[str]) -> _Line:
    """A line's words: kind, name, number of inputs and of outputs, these, and options."""
    if len(words) < 4 or not all(map(_is_count, words[2:4])):
        raise ValueError("there is no layer's kind, name and two counts")
    kind, name = words[:2]
    if kind not in _KINDS:
        raise ValueError(f"a layer {kind[:_SHOWN]!r} is none of {', '.join(_KINDS)}")
    first = 4 + int(words[2])
    last = first + int(words[3])
    if last > len(words):
        raise ValueError(f"{words[2]} inputs and {words[3]} outputs are not all there")
    said: dict[int, Value] = {}
    for word in words[last:]:
        key, value = _option(word)
        if key in said:
            raise ValueError(f"option {key} is said twice")
        said[key] = value
    # An input may tell of the size for which it was made, which any other is as good as.
    known = _KINDS[kind]
    if kind != "Input" and (spare := said.keys() - known.keys()):
        raise ValueError(f"option {min(spare)} of {kind} is not known")
    options: dict[str, Value] = {}
    for key, option in known.items():
        found = said.get(key, option.default)
        if found is None:
            raise ValueError(f"option {key} ({option.name}) is missing")
        if option.only is None:
            options[option.name] = found
        elif found != option.only:
            raise ValueError(f"{option.name} is {found}; implemented is {option.only}")
    return _Line(kind, name, words[4:first], words[first:last], options)


def _option(word: str) -> tuple[int, Value]:
    """`0=64`, `1=2.0e+00`, or an array: `-23310=1,2.0e-01`, which has its length first."""
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"-?[0-9]{1,6}", key):
        raise ValueError(f"{word[:_SHOWN]!r} is no option")
    if int(key) >= 0:
        return int(key), _number(value)
    length, *items = value.split(",")
    if int(key) > _ARRAY or not _is_count(length) or int(length) != len(items):
        raise ValueError(f"{word[:_SHOWN]!r} is no array")
    return _ARRAY - int(key), tuple(float(_number(item)) for item in items)


def _number(text: str) -> int | float:
    if re.fullmatch(r"-?[0-9]{1,12}", text):
        return int(text)
    try:
        number = float(text[:_SHOWN])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN]!r} is no number")
    return number


def _with_tensors(layers: list[Layer], text: Path, numbers: Path) -> tuple[Layer, ...]:
    """Finds the numbers of layers, which follow each other without anything between."""
    found = []
    offset = 0
    try:
        with numbers.open("rb") as opened:
            size = numbers.stat().st_size
            for layer in layers:
                tensors = []
                for shape, tagged in _shapes(layer, text):
                    dtype = "F32"
                    if tagged:
                        opened.seek(offset)
                        tag = int.from_bytes(opened.read(4), "little")
                        if tag not in _KERNELS:
                            raise CheckpointError(
                                f"{numbers}: kernels of {layer.name!r} ({text.name}, line {layer.line}) begin with "
                                f"0x{tag:08X}; read are float32 (0x00000000) and float16 (0x01306B47)"
                            )
                        offset, dtype = offset + 4, _KERNELS[tag]
                    name = f"{layer.name}.{'weight' if tagged or layer.kind == 'PReLU' else 'bias'}"
                    tensors.append(Tensor(numbers, name, shape, dtype, offset))
                    offset += -(-math.prod(shape) * DTYPES[dtype].itemsize // _ALIGNED) * _ALIGNED
                    if offset > size:
                        raise CheckpointError(f"{numbers} ends at {size} bytes, before the numbers of {name!r} do")
                found.append(layer._replace(tensors=tuple(tensors)))
    except OSError as error:
        raise CheckpointError(f"{numbers} can't be read ({error})") from error
    if offset != size:
        raise CheckpointError(f"{numbers} has {size} bytes, of which {text.name} describes {offset}")
    return tuple(found)


def _shapes(layer: Layer, text: Path) -> Iterator[tuple[tuple[int, ...], bool]]:
    """The shapes of a layer's tensors as torch has them, and whether there is a word before that says what they are."""
    if layer.kind == "PReLU":
        yield (_counted(layer, "slopes", text),), False
    elif layer.kind == "Convolution":
        outputs, elements = _counted(layer, "outputs", text), _counted(layer, "weight_data_size", text)
        if elements % (outputs * 9):
            raise CheckpointError(f"{text}, line {layer.line}: {elements} numbers are no kernels of 3x3 to {outputs}")
        yield (outputs, elements // (outputs * 9), 3, 3), True
        yield (outputs,), False


def _counted(layer: Layer, name: str, text: Path) -> int:
    value = layer.options[name]
    if not isinstance(value, int) or not 0 < value <= _MOST_ELEMENTS:
        raise CheckpointError(f"{text}, line {layer.line}: {name} is {value}, no count from 1 to {_MOST_ELEMENTS}")
    return value
