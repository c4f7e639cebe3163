"""Damaged files without end, each from a number: cut, flipped, with headers that lie, pickles that would run code."""

import io
import json
import math
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.checkpoints import pickles

Random = random.Random
Change = Callable[[Random, bytes], bytes]

# Integers at which arithmetic goes wrong.
NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 16, 31, 64, 255, 256, 768, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**61, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**200, -1, -2, -(2**31), -(2**63), -(2**200),
)  # fmt: skip
TEXTS = (
    "", "a", "storage", "cpu", "0", "1", "..", "../secret", "/etc/passwd", "data.pkl", "__reduce__", "__class__",
    "\0", "\n", "\x1b[31m", "é", "\U0001f600", "a" * 300, "a" * 3000, "os", "system", "touch canary",
    "open('canary', 'w')", "state_dict", "string_to_param", "_parameters", "1e999", "NaN",
    "lora_unet_down_blocks_0_attentions_0_proj_in.alpha",
)  # fmt: skip
NAMES = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.getattr",
    "builtins.open", "builtins.__import__", "__builtin__.eval", "importlib.import_module", "webbrowser.open",
    "torch.load", "torch.storage._load_from_bytes", "torch.hub.load", "numpy.load", "runpy.run_path", "shutil.rmtree",
    "operator.attrgetter", "functools.partial", "types.FunctionType", "codecs.decode", "pickle.loads",
    "copyreg._reconstructor", "sdjax.checkpoints.unpickling._Machine", "collections.OrderedDict",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state", "torch.Size", "torch.nn.modules.container.ParameterDict",
    "torch.FloatStorage", "torch.HalfStorage", "torch.LongStorage", "torch.BoolStorage", "torch.storage.UntypedStorage",
    "torch.float32", "torch.bfloat16", "torch.device", "numpy.dtype", "numpy.core.multiarray.scalar", "_codecs.encode",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "__builtin__.set",
)  # fmt: skip
KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I8", "U8", "BOOL", "F4", "C64", "f32", "", "F32 ", 32, None)
_LISTS = ("shape", "data_offsets")
# Instructions without arguments, those that need what is on the stack more often.
_BARE = tuple(
    bytes([code])
    for code in b"(((.0012NNaabbbddeeeellooQQRRRRRssttttuuu\x81\x85\x86\x87\x88\x89\x92\x93\x94]})\x8f\x90\x91\x97\x98"
)


def cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(rng: Random, content: bytes, within: int | None = None) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(min(within or len(changed), len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_in_front(rng: Random, content: bytes) -> bytes:
    return flipped(rng, content, rng.choice((8, 64, 400)))


def flipped_at_the_end(rng: Random, content: bytes) -> bytes:
    return content[:-120] + flipped(rng, content[-120:])


def shuffled(rng: Random, content: bytes) -> bytes:
    """Bytes are left out, put in, come twice, or become others."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 2, 8, 64, 512)))
    piece = content[start:end]
    new = rng.choice((b"", piece * 2, bytes(len(piece)), b"\xff" * len(piece), rng.randbytes(len(piece)), piece[::-1]))
    return content[:start] + new + content[end:]


def longer(rng: Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 8, 1000)))


def telling_of_more(rng: Random, content: bytes) -> bytes:
    """A length at the beginning, or anywhere, is another one."""
    width, order = rng.choice(((8, "<Q"), (4, "<I"), (2, "<H")))
    start = 0 if rng.random() < 0.5 else rng.randrange(max(1, len(content) - width))
    number = rng.choice(NUMBERS) % (1 << 8 * width)
    return content[:start] + struct.pack(order, number) + content[start + width :]


def noise(rng: Random, content: bytes) -> bytes:
    head = rng.choice((b"", content[:16], b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 64) + b"{"))
    return head + rng.randbytes(rng.choice((0, 1, 7, 8, 100, 3000)))


def _value(rng: Random, depth: int = 0) -> Any:
    """Something that JSON can hold."""
    kind = rng.randrange(7 if depth < 4 else 4)
    if kind < 4:
        return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice((None, True, False, 0.5, 1e300)), -1))
    values = [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind < 6 else {rng.choice(TEXTS): value for value in values}


def lying_header(rng: Random, content: bytes) -> bytes:
    """Of a safetensors file: the header says something else."""
    length = struct.unpack("<Q", content[:8])[0]
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(header))
        entry = header[name]
        match rng.randrange(12):
            case 0:
                header.pop(name)
                header = header or {"a": 1}
            case 1:
                header[rng.choice(TEXTS)] = entry
            case 2:
                header[name] = _value(rng)
            case 3:
                header["__metadata__"] = _value(rng)
            case _ if not isinstance(entry, dict) or not all(isinstance(entry.get(key), list) for key in _LISTS):
                continue
            case 4 | 5:
                entry["dtype"] = rng.choice(KINDS)
            case 6 | 7:
                shape = list(entry["shape"])
                shape.insert(rng.randrange(len(shape) + 1), rng.choice((*NUMBERS, 1, 0.5, None, "1", True, [1])))
                entry["shape"] = rng.choice((shape, shape, shape[::-1], shape[1:], [1] * rng.choice((31, 33, 70))))
            case 8 | 9:
                offsets = list(entry["data_offsets"])
                offsets[rng.randrange(2) : 2] = [rng.choice((*NUMBERS, len(numbers), None, 4.0))]
                entry["data_offsets"] = rng.choice((offsets, offsets, offsets[::-1], offsets[:1], [*offsets, 8]))
            case 10:
                other = header[rng.choice(sorted(header))]
                entry["data_offsets"] = other.get("data_offsets") if isinstance(other, dict) else other
            case 11:
                entry.pop(rng.choice(sorted(entry)))
    written = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            written = written.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)
        case 1:
            written = b"[" * rng.choice((10, 2000, 100_000)) + written
        case 2:
            written = b'{"a":' * rng.choice((10, 2000, 100_000)) + written
        case 3:
            written = written.replace(b"[", b"[" + rng.choice((b"NaN,", b"1e400,", b"9" * 5000 + b",", b"-0,")), 1)
        case 4:
            written = written[:-1] + b", " + written[1:]
        case 5:
            written += b" " * rng.randrange(20)
        case 6:
            written = b"\xef\xbb\xbf" + written
    return struct.pack("<Q", len(written)) + written + numbers


_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}


def _shape(rng: Random, shape: Sequence[int]) -> list[int]:
    """Another small shape, most often one that is near."""
    new = list(shape)
    match rng.randrange(8):
        case 0:
            new = []
        case 1:
            new = new[::-1]
        case 2:
            new = [*new, 1]
        case 3:
            new = new[1:]
        case 4:
            new = [rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(5))]
        case _ if new:
            new[rng.randrange(len(new))] = rng.choice((0, 1, 2, 3, 4, 8, 33))
    return new


def other_tensors(rng: Random, content: bytes) -> bytes:
    """A sound safetensors file whose tensors are others: of other shapes and kinds, with other names, some missing."""
    length = struct.unpack("<Q", content[:8])[0]
    header, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", None)
    tensors = {
        name: (entry["dtype"], entry["shape"], numbers[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }
    for _ in range(rng.choice((1, 1, 2, 4, 20))):
        name = rng.choice(sorted(tensors))
        dtype, shape, values = tensors[name]
        match rng.randrange(10):
            case 0 if len(tensors) > 1:
                tensors.pop(name)
            case 1 if len(tensors) > 1:
                tensors[_renamed(rng, name)] = tensors.pop(name)
            case 2:
                tensors[_renamed(rng, name)] = tensors[name]
            case 3 | 4:
                dtype = rng.choice(sorted(_SIZES))
            case 5:
                values = rng.choice((b"\xff", b"\x7f", b"\0", rng.randbytes(7))) * len(values)
            case 6 if metadata:
                key = rng.choice(sorted(metadata))
                metadata[key] = rng.choice((*TEXTS, "{", "[]", "1e999", metadata[key][:20]))
            case _:
                shape = _shape(rng, shape)
        if name in tensors:
            size = math.prod(shape) * _SIZES[dtype]
            tensors[name] = (dtype, shape, (values * (size // max(1, len(values)) + 1))[:size].ljust(size, b"\1"))
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, (dtype, shape, values) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(values)]}
        place += len(values)
    written = json.dumps(entries).encode()
    return struct.pack("<Q", len(written)) + written + b"".join(values for *_, values in tensors.values())


def _renamed(rng: Random, name: str) -> str:
    parts = name.split(".")
    parts[rng.randrange(len(parts))] = rng.choice(
        ("weight", "alpha", "lora_A", "lokr_w1", "hada_t1", "999", "", *parts)
    )
    return rng.choice((".".join(parts), ".".join(parts), name[: rng.randrange(1 + len(name))], name + name))


def other_values(rng: Random, content: bytes) -> bytes:
    """A sound pickle in a sound archive, of the words and numbers of another one, put together anew."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        [name] = [each for each in source.namelist() if each.endswith("data.pkl")]
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(source.read(name))]
    words = [argument for step, argument in steps if step == "BINUNICODE"]
    counts = [argument for step, argument in steps if step in ("BININT", "BININT1", "BININT2")] or [1]
    storages: dict[str, bytes] = {}

    def tensor() -> bytes:
        shape = _shape(rng, rng.choice(([1, 4], [4, 4], [8, 4], [4], [2, 768])))
        kind, size = rng.choice((("Float", 4), ("Float", 4), ("Half", 2), ("Long", 8), ("Bool", 1), ("BFloat16", 2)))
        key, length = str(len(storages)), math.prod(shape)
        storages[key] = rng.randbytes(length * size)
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return pickles.tensor(pickles.storage(key, length, f"torch.{kind}Storage"), shape, strides)

    def value(depth: int) -> bytes:
        match rng.randrange(9 if depth < 4 else 5):
            case 0:
                return pickles.text(rng.choice((*words, *TEXTS)))
            case 1:
                return pickles.integer(rng.choice((*counts, *counts, 0, 1, 2**31, 2**63)))
            case 2:
                return rng.choice(
                    (b"N", b"\x88", b"\x89", b"G" + struct.pack(">d", rng.choice((0.5, 1e300, math.inf, math.nan))))
                )
            case 3 | 4:
                return tensor()
            case 5:
                return (
                    b"](" + b"".join(value(depth + 1) for _ in range(rng.randrange(4))) + rng.choice((b"e", b"e\x85"))
                )
            case _:
                items = b""
                for _ in range(rng.randrange(1, 5)):
                    key = pickles.integer(rng.choice(counts)) if rng.random() < 0.3 else pickles.text(rng.choice(words))
                    items += key + value(depth + 1)
                return b"}(" + items + b"u"

    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as target:
        items = b"".join(
            (pickles.integer(rng.choice(counts)) if rng.random() < 0.3 else pickles.text(rng.choice(words))) + value(1)
            for _ in range(rng.randrange(1, 6))
        )
        target.writestr("archive/data.pkl", b"\x80\x02}(" + items + b"u.")
        for key, stored in storages.items():
            target.writestr(f"archive/data/{key}", stored)
    return written.getvalue()


def _instruction(rng: Random) -> bytes:
    match rng.randrange(12):
        case 0:
            return pickles.text(rng.choice(TEXTS))
        case 1:
            return pickles.integer(rng.choice(NUMBERS))
        case 2:
            return pickles.name(rng.choice(NAMES))
        case 3:
            return pickles.storage(rng.choice(("0", "1", "2", *TEXTS)), rng.choice(NUMBERS), rng.choice(NAMES))
        case 4:
            stored = pickles.storage("0", 4)
            lengths = [rng.choice((1, 2, 4, *NUMBERS)) for _ in range(rng.randrange(4))]
            steps = [rng.choice((0, 1, 2, *NUMBERS)) for _ in lengths]
            return pickles.tensor(
                stored, lengths, steps, rng.choice((0, 0, 1, *NUMBERS)), made=rng.choice(("v2", "v3"))
            )
        case 5:
            return pickles.tensor(pickles.storage("0", 4), (2, 2), rng.choice(((2, 1), (1, 2), (0, 1))))
        case 6:
            return rng.choice((b"q", b"h")) + bytes([rng.randrange(4)])
        case 7:
            return rng.choice((b"r", b"j")) + struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1)))
        case 8:
            return bytes([rng.randrange(256)]) + rng.randbytes(rng.choice((0, 1, 4)))
        case 9:
            return (
                rng.choice((b"X", b"B", b"T", b"\x8b"))
                + struct.pack("<I", rng.choice((0, 3, 2**31 - 1, 2**32 - 1)))
                + b"abc"
            )
        case _:
            return rng.choice(_BARE)


def program(rng: Random) -> bytes:
    """Instructions of a pickle, of which many make sense together, and few all of them."""
    steps = [rng.choice((b"}(", b"](", b"(", b"")), *(_instruction(rng) for _ in range(rng.choice((1, 3, 8, 30, 100))))]
    called = (
        pickles.name(rng.choice(NAMES)) + b"(" + b"".join(_instruction(rng) for _ in range(rng.randrange(4))) + b"t"
    )
    steps.insert(rng.randrange(len(steps) + 1), called + rng.choice((b"R", b"\x81", b"b", b"\x92", b"Q")))
    if rng.random() < 0.3:  # a bomb
        steps += [
            b"]\x94",
            *(b"](" + b"j" + struct.pack("<I", rng.randrange(4)) * 1 + b"h\x00e\x94" for _ in range(40)),
        ]
    return b"".join(steps) + rng.choice((b"u", b"e", b"t", b"", b"a", b"s"))


def edited(rng: Random, steps: bytes) -> bytes:
    """A sound pickle whose instructions are left out, doubled, exchanged, or have other arguments."""
    starts = [place for *_, place in pickletools.genops(steps) if place is not None]
    pieces = [steps[start:end] for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(pieces))
        piece = pieces[place]
        match rng.randrange(8):
            case 0:
                pieces[place] = b""
            case 1:
                pieces[place] = piece * 2
            case 2:
                other = rng.randrange(len(pieces))
                pieces[place], pieces[other] = pieces[other], piece
            case 3:
                pieces[place] = _instruction(rng)
            case 4:
                pieces[place] = piece + _instruction(rng)
            case 5 | 6:
                numbers = [at for at, each in enumerate(pieces) if each[:1] in (b"K", b"M", b"J", b"\x8a")]
                if numbers:
                    pieces[rng.choice(numbers)] = pickles.integer(rng.choice(NUMBERS))
            case 7:
                names = [at for at, each in enumerate(pieces) if each[:1] in (b"c", b"X", b"\x8c")]
                if names:
                    at = rng.choice(names)
                    new = pickles.name(rng.choice(NAMES)) if pieces[at][:1] == b"c" else pickles.text(rng.choice(TEXTS))
                    pieces[at] = new
    return b"".join(pieces)


def _rewritten(content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return written.getvalue()


def edited_archive(rng: Random, content: bytes) -> bytes:
    return _rewritten(content, lambda name, entry: edited(rng, entry) if name.endswith("data.pkl") else entry)


def archived_program(rng: Random, content: bytes) -> bytes:
    steps = b"\x80\x02" + program(rng) + b"."
    return _rewritten(content, lambda name, entry: steps if name.endswith("data.pkl") else entry)


def tricky_archive(rng: Random, content: bytes) -> bytes:
    """The archive itself is not what torch writes."""
    match rng.randrange(6):
        case 0:
            return _rewritten(content, lambda _, entry: entry, zipfile.ZIP_DEFLATED)
        case 1:
            return _rewritten(
                content, lambda name, entry: entry if name.endswith("data.pkl") else entry[: len(entry) // 2]
            )
        case 2:
            bomb = b"\x80\x02" + b"N0" * rng.choice((10, 100_000)) + b"N."
            return _rewritten(
                content, lambda name, entry: bomb if name.endswith("data.pkl") else entry, zipfile.ZIP_DEFLATED
            )
        case 3:
            return _rewritten(content, lambda name, entry: b"big" if name.endswith("byteorder") else entry)
        case 4:  # a number in the directory
            start = content.index(b"PK\x01\x02")
            return content[:start] + telling_of_more(rng, flipped(rng, content[start:]))
        case _:
            old, new = rng.choice(((b"data/0", b"data/1"), (b"data.pkl", b"data.pk1"), (b"archive/", b"../../a/")))
            return content.replace(old, new)


def edited_older(rng: Random, content: bytes) -> bytes:
    """Of torch's older format: one of its pickles is edited, or another program takes its place."""
    stream = io.BytesIO(content)
    ends = [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    place = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 4))
    start, end = ends[place], ends[place + 1]
    new = edited(rng, content[start:end]) if rng.random() < 0.7 else b"\x80\x02" + program(rng) + b"."
    return content[:start] + new + content[end:]


ANY: tuple[Change, ...] = (cut, flipped, flipped_in_front, flipped_at_the_end, shuffled, longer, telling_of_more, noise)
SAFETENSORS: tuple[Change, ...] = (*ANY, *(lying_header,) * 8, *(other_tensors,) * 12)
ARCHIVE: tuple[Change, ...] = (
    *ANY,
    *(edited_archive,) * 8,
    *(archived_program,) * 6,
    *(tricky_archive,) * 4,
    *(other_values,) * 12,
)
OLDER: tuple[Change, ...] = (*ANY, *(edited_older,) * 12)


def other_words(rng: Random, content: bytes) -> bytes:
    """ncnn's text with some of its words replaced by numbers, and lines left out or twice."""
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(lines))
        words = lines[place].split(" ")
        words[rng.randrange(len(words))] = rng.choice(
            (str(rng.choice(NUMBERS)), rng.choice(TEXTS), "0=1e9", "-23300=9,1")
        )
        lines[place : place + 1] = rng.choice(
            ([" ".join(words)], [" ".join(words)], [" ".join(words)], [], lines[place : place + 1] * 2)
        )
    return "\n".join(lines).encode()


def changes_for(content: bytes) -> tuple[Change, ...]:
    """The ways to damage a file, some more often than others."""
    if content.startswith(b"PK"):
        return ARCHIVE
    if content.startswith(b"\x80"):
        return OLDER
    if content.startswith(b"7767517"):
        return (cut, flipped, other_words, other_words)
    return SAFETENSORS if content[8:9] == b"{" else (cut, flipped)


class Index(NamedTuple):
    """A folder with an index of shards: its files, and those of them that lead elsewhere."""

    files: Mapping[str, bytes]
    links: Mapping[str, str]


def index(rng: Random, shard: bytes) -> Index:
    """An index of shards that points where it should not."""
    names = (
        "a.safetensors", "b.safetensors", "../a.safetensors", "/etc/passwd", "/etc/a.safetensors", "..", "", ".",
        "a.bin", "sub/a.safetensors", "a.safetensors/", "a.safetensors\0", "~/a.safetensors", "C:\\a.safetensors",
        "link.safetensors", "x" * 300 + ".safetensors", None, 1, ["a.safetensors"], {}, True,
    )  # fmt: skip
    listed = {f"t{place}": rng.choice(names) for place in range(rng.randrange(1, 4))}
    document: Any = {"metadata": _value(rng), "weight_map": listed}
    match rng.randrange(8):
        case 0:
            document = _value(rng)
        case 1:
            document["weight_map"] = _value(rng)
        case 2:
            document.pop("weight_map")
    text = json.dumps(document).encode()
    match rng.randrange(8):
        case 0:
            text = flipped(rng, text)
        case 1:
            text = b"[" * 100_000
        case 2:
            text = cut(rng, text)
    files = {"model.safetensors.index.json": text, "a.safetensors": shard, "sub/a.safetensors": shard}
    return Index(
        files, {"link.safetensors": rng.choice(("/etc/passwd", "nowhere", "a.safetensors", "link.safetensors"))}
    )


def write(folder: Path, made: Index) -> Path:
    """Writes it, and gives its folder."""
    for name, content in made.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    for name, target in made.links.items():
        (folder / name).symlink_to(target)
    return folder
