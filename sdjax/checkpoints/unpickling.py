"""A machine that runs pickles of tensors, and nothing else.

A pickle is a program for a machine with a stack, and Python's own machine imports and calls whatever the program names.
The machine here has the same instructions, but it knows a few names only, each by what torch means with it, and imports
none. `pickletools` of the standard library takes the instructions apart.
"""

import io
import itertools
import pickletools
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdjax.checkpoints.stored_tensor import DTYPES, CheckpointError, Tensor, check_shape


class PickleError(CheckpointError):
    """A pickled file is damaged, or holds something else than tensors and plain values."""


# Instructions of a pickle; one of a whole checkpoint with its optimizer's state has about 150,000.
MOST_STEPS = 500_000
# Items that instructions take out of what they are given. What a writer makes has an instruction for each, so they are
# no more; but a pickle can remember a long list and have it copied again and again.
_MOST_ITEMS = MOST_STEPS
# Characters of a value's name in other values, joined by dots.
MOST_NAME = 1000
# Greater integers mean nothing in such files; the greatest known is torch's magic number, of 77 bits.
_MOST_BITS = 128
# torch's classes of storages, by the kind of number.
_STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.storage.UntypedStorage": "U8",
}
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.uint64": "U64",
    "torch.int32": "I32",
    "torch.uint32": "U32",
    "torch.int16": "I16",
    "torch.uint16": "U16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
# What trainers leave beside the tensors (the original checkpoints of SD1 do). It is skipped, not made.
_SKIPPED = frozenset(
    {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
        "_codecs.encode",
        "__builtin__.set",
        "builtins.set",
        "torch.device",
    }
)


class _Named:
    """A name that the machine knows; equal only to itself."""

    def __init__(self, name: str):
        self.name = name


class _Skipped:
    """Stands for a thing that is not made."""


class ParameterDict:
    """torch's dictionary of parameters, before and after it gets its state."""

    def __init__(self) -> None:
        self.parameters: dict[Any, Any] = {}


class Storage(NamedTuple):
    """Numbers in a file: where the first of them is, how many there are, and of which kind."""

    offset: int
    length: int
    dtype: str


# Finds a storage in a file, by its key, the kind of its numbers and how many there are.
Find = Callable[[str, str, int], Storage]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _lengths(value: object, what: str) -> tuple[int, ...]:
    if type(value) is not tuple:
        raise ValueError(f"{what} is a {_kind(value)}")
    check_shape(value, what)
    return value


def _tensor(file: Path, storage: object, offset: object, shape: object, strides: object, dtype: str | None) -> Tensor:
    """A tensor in a storage.

    Raises:
      ValueError: if it reaches beyond the storage, or repeats its numbers.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    if dtype is not None:
        size = DTYPES[dtype].itemsize
        if storage.dtype != "U8" or storage.length % size:
            raise ValueError(f"a storage of {storage.length} x {storage.dtype} is no whole number of {dtype}")
        storage = Storage(storage.offset, storage.length // size, dtype)
    lengths, steps = _lengths(shape, "a tensor's shape"), strides
    counts = type(steps) is tuple and len(steps) == len(lengths) and all(map(_is_count, steps))
    if not _is_count(offset) or not counts:
        raise ValueError("a tensor's offset, shape and strides don't belong together")
    assert isinstance(offset, int) and isinstance(steps, tuple)
    start = storage.offset + offset * DTYPES[storage.dtype].itemsize
    packed = _packed(lengths)
    apart = any(step != own for length, step, own in zip(lengths, steps, packed, strict=True) if length != 1)
    found = Tensor(file, "", lengths, storage.dtype, start, steps if apart and 0 not in lengths else None)
    whole = storage.length * DTYPES[storage.dtype].itemsize
    if found.nbytes > whole or start + found.span > storage.offset + whole:
        raise ValueError(
            f"a tensor of {lengths} with strides {steps} reaches beyond its {storage.length} stored numbers"
        )
    return found


def _packed(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps, the last axis fastest."""
    products = itertools.accumulate(reversed(lengths), lambda total, length: total * length, initial=1)
    return tuple(products)[-2::-1] if lengths else ()


def run_pickle(stream: io.BytesIO, file: Path, find: Find) -> Any:
    """The value of a pickle, with `Tensor`, `Storage` and `ParameterDict` in it, and things that stand for others.

    Args:
      stream: stands at the pickle's beginning, and then after its end; small enough to be in memory.
      file: for messages, and for the tensors.
      find: where storages are.

    Raises:
      PickleError: if it is damaged, or asks for something that is not admitted.
    """
    return _Machine(file, find).run(stream)


class _Machine:
    """Runs one pickle: a method for each instruction, and for each name that may be called."""

    def __init__(self, file: Path, find: Find):
        self.file = file
        self.find = find
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, _Named] = {}
        self.items = 0

    def run(self, stream: io.BytesIO) -> Any:
        try:
            for count, (step, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MOST_STEPS:
                    raise ValueError(f"it has more than {MOST_STEPS} instructions")
                if step.name == "STOP":
                    return self.stack.pop()
                if step.name in _VALUES:
                    self.push(argument)
                elif step.name in _STEPS:
                    _STEPS[step.name](self, argument)
                else:
                    raise ValueError(f"it has the instruction {step.name}, which no file of tensors needs")
            raise ValueError("it has no end")
        except PickleError:
            raise
        except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
            reason = "it takes what is not there" if isinstance(error, IndexError | KeyError) else str(error)
            raise PickleError(f"{self.file} is no sound file of pickled tensors: {reason[:MOST_NAME]}") from error

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > _MOST_BITS:
            raise ValueError(f"it has an integer of {value.bit_length()} bits")
        if isinstance(value, str):
            value.encode()  # halves of characters, which could not be printed, are a ValueError
        self.stack.append(value)

    def count(self, items: int) -> None:
        """Has to be called before as many items are gone through or copied."""
        self.items += items
        if self.items > _MOST_ITEMS:
            raise ValueError(f"it goes through more than {_MOST_ITEMS} items")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: object) -> None:
        self.stack.pop()

    def pop_mark(self, _: object) -> None:
        self.since_mark()

    def duplicate(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def recall(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_since_mark(self, _: object) -> None:
        self.stack.append(tuple(self.since_mark()))

    def list_since_mark(self, _: object) -> None:
        self.stack.append(self.since_mark())

    def dict_since_mark(self, _: object) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.set_items(items)

    def append(self, _: object) -> None:
        self.extend([self.stack.pop()])

    def append_all(self, _: object) -> None:
        self.extend(self.since_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            self.count(len(items))
            target.extend(items)
        elif not isinstance(target, _Skipped):
            raise ValueError(f"it appends to a {_kind(target)}")

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_all(self, _: object) -> None:
        self.set_items(self.since_mark())

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, _Skipped):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"it sets {len(items)} halves of items of a {_kind(target)}")
        self.count(len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others could be slow to hash, or made to collide.
            if not isinstance(key, str | _Named | _Skipped) and not _is_count(key):
                raise ValueError(f"it has a {_kind(key)} as a key")
            target[key] = value

    def name(self, argument: str) -> None:
        self.stack.append(self.named(*argument.split(" ", 1)))

    def name_on_stack(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names something by what is no text")
        self.stack.append(self.named(module, name))

    def named(self, module: str, name: str) -> _Named:
        whole = f"{module}.{name}"
        if whole not in self.names:
            if not any(whole in table for table in (_CALLS, _STORAGES, _DTYPES, _SKIPPED)):
                raise PickleError(
                    f"{self.file} asks for {whole[:MOST_NAME]!r}, which is neither a tensor nor a plain value: it is "
                    "not run. If you trust the file's source, load it with torch and save its tensors as safetensors"
                )
            self.names[whole] = _Named(whole)
        return self.names[whole]

    def call(self, _: object) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Named) or type(arguments) is not tuple:
            raise ValueError(f"it calls a {_kind(called)} with a {_kind(arguments)}")
        if called.name in _SKIPPED:
            self.stack.append(_Skipped())
        elif called.name in _CALLS:
            self.count(len(arguments))
            try:
                self.stack.append(_CALLS[called.name](self, *arguments))
            except TypeError:
                raise ValueError(f"it calls {called.name} with {len(arguments)} arguments") from None
        else:
            raise ValueError(f"it calls {called.name}")

    def build(self, _: object) -> None:
        """Gives an object its state: of all that are admitted, only a dictionary of parameters has one that counts."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ParameterDict):
            parameters = state.get("_parameters") if isinstance(state, dict) else None
            if not isinstance(parameters, dict):
                raise ValueError("it has a ParameterDict without its parameters")
            target.parameters = parameters
        elif not isinstance(target, dict | _Skipped):
            raise ValueError(f"it gives a state to a {_kind(target)}")

    def persistent(self, _: object) -> None:
        stored = self.stack.pop()
        if type(stored) is tuple and stored[:1] == ("module",) and len(stored) == 4 and isinstance(stored[1], _Named):
            self.stack.append(stored[1])  # the older format brings a module's source along
            return
        if type(stored) is not tuple or not 5 <= len(stored) <= 6 or stored[0] != "storage":
            raise ValueError("it refers to something that is no storage")
        _, kind, key, _, count, *view = stored
        if not isinstance(kind, _Named) or kind.name not in _STORAGES or not isinstance(key, str):
            raise ValueError("it has a storage of no known kind")
        if not _is_count(count) or any(part is not None for part in view):
            raise ValueError(f"its storage {key[:MOST_NAME]!r} has no proper size, or is a part of another")
        self.stack.append(self.find(key, _STORAGES[kind.name], count))

    def rebuild_tensor(
        self,
        storage: object,
        offset: object,
        shape: object,
        strides: object,
        _gradient: object = None,
        _hooks: object = None,
        metadata: object = None,
    ) -> Tensor:
        if metadata:
            raise ValueError("it has a tensor that is conjugated or negated in passing")
        return _tensor(self.file, storage, offset, shape, strides, None)

    def rebuild_untyped(
        self,
        storage: object,
        offset: object,
        shape: object,
        strides: object,
        _gradient: object,
        _hooks: object,
        dtype: object,
        metadata: object = None,
    ) -> Tensor:
        if metadata or not isinstance(dtype, _Named) or dtype.name not in _DTYPES:
            raise ValueError("it has a tensor of no known kind of number")
        return _tensor(self.file, storage, offset, shape, strides, _DTYPES[dtype.name])

    def parameter(self, tensor: object, *_: object) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"it has a {_kind(tensor)} as a parameter")
        return tensor

    def ordered(self, items: object = ()) -> dict[Any, Any]:
        if not isinstance(items, list | tuple):
            raise ValueError(f"it makes a dictionary of a {_kind(items)}")
        self.count(len(items))
        flat: list[Any] = []
        for item in items:
            if not isinstance(item, list | tuple) or len(item) != 2:
                raise ValueError("it makes a dictionary of what are no pairs")
            flat += item
        self.stack.append({})
        self.set_items(flat)
        return self.stack.pop()

    def size(self, lengths: object = ()) -> tuple[int, ...]:
        if isinstance(lengths, list):
            self.count(len(lengths))
            lengths = tuple(lengths)
        return _lengths(lengths, "a torch.Size")

    def parameters(self) -> ParameterDict:
        return ParameterDict()


def _kind(value: object) -> str:
    return type(value).__name__.lstrip("_")


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Machine.rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _Machine.rebuild_untyped,
    "torch._utils._rebuild_parameter": _Machine.parameter,
    "torch._utils._rebuild_parameter_with_state": _Machine.parameter,
    "torch.Size": _Machine.size,
    "torch.nn.modules.container.ParameterDict": _Machine.parameters,
    "collections.OrderedDict": _Machine.ordered,
}
# Instructions that bring a value with them.
_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": _Machine.list_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _Machine.dict_since_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_all,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
