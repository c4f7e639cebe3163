"""Runs loaders on damaged files, in a process of its own: errors are clear, no code runs, memory and time are bounded.

    python -m tests.checkpoints.fuzz FIRST LAST

The cases are numbers, from which `tests.checkpoints.damage` makes the files: a failing one is told by its number, and
runs alone as `NUMBER NUMBER+1`. In the end there is a line of JSON: how many files were read, and how many refused, by
what they are for.
"""

import contextlib
import dataclasses
import functools
import gzip
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sdjax.adapters.embedding import read_embedding
from sdjax.adapters.files import AdapterError
from sdjax.adapters.hypernetwork import read_hypernetwork
from sdjax.adapters.lora import read_lora
from sdjax.checkpoints.controlnet_file import find_controlnet, load_control
from sdjax.checkpoints.depth_file import depth_shapes, find_depth
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.pickled import read_pickle
from sdjax.checkpoints.single_file import read_file
from sdjax.checkpoints.stored_tensor import MOST_AXES
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
    weight_files,
)
from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.checkpoints.vae_file import find_vae
from sdjax.models import ConfigError
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig
from tests import toys
from tests.checkpoints import damage
from tests.golden import adapters, checkpoints, controlnet, depth, hypernetworks, upscalers

GOLDEN = Path(__file__).parent.parent / "golden"
REFUSALS = (CheckpointError, AdapterError, ConfigError)
# Of one case: resident memory beyond what was there before it, and its time, on a busy machine.
MOST_MEMORY = 100 << 20
MOST_SECONDS = 20
# What nobody does who reads a file of tensors, in the words of `sys.audit`.
FORBIDDEN = (
    "compile", "ctypes.", "exec", "import", "marshal.", "os.chmod", "os.exec", "os.fork", "os.kill", "os.link",
    "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.startfile", "os.symlink",
    "os.system", "os.truncate", "os.unlink", "pickle.", "pty.", "shutil.", "socket.", "subprocess.", "tempfile.",
    "urllib.",
)  # fmt: skip

Reader = Callable[[Path], object]


class Watch:
    """Listens to what the interpreter does, while there is a folder in which alone files may be opened."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        self.making_class = False
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        # Flax makes classes of modules while it works out a network's shapes, by Python's dataclasses.
        if self.making_class and event == "exec":
            self.making_class = False
            return
        self.making_class = event == "compile" and str(arguments[0]).startswith("b'def __create_fn__(")
        if self.making_class:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or flags & 0o3
            if writes or not (isinstance(path, int) or str(path).startswith(str(self.folder))):
                self.seen.append(f"open {path} {mode} {flags}")
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments}"[:300])


WATCH = Watch()


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Fails if what is done inside takes long or much memory, or does what no reader of tensors does."""

    def late(*_: object) -> None:
        raise RuntimeError(f"more than {MOST_SECONDS} seconds")

    peak = Path("/proc/self/status")
    with contextlib.suppress(OSError):  # the peak is counted anew from here on, where there is such a thing
        Path("/proc/self/clear_refs").write_text("5")
    before = resident(peak, "VmRSS")
    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    WATCH.folder, WATCH.seen = folder, []
    try:
        yield
    finally:
        WATCH.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert not WATCH.seen, WATCH.seen
    assert resident(peak, "VmHWM") - before < MOST_MEMORY


def resident(status: Path, field: str) -> int:
    """Bytes, from the system's account of this process; 0 where it keeps none."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def refused(reader: Reader, path: Path, folder: Path) -> bool:
    """Whether a reader refuses a file; fails if it does it in a way that helps nobody."""
    with guarded(folder):
        try:
            reader(path)
        except REFUSALS as error:
            message = str(error)
            assert str(path) in message or str(path.parent) in message, message
            assert len(message) < 10_000, f"{len(message)} characters: {message[:300]}"
            message.encode()
            return True
    return False


def read_tensors(file: Path) -> None:
    """Lists a file, and reads all that it says to hold."""
    listing = list_file(file, pickled=True)
    identify(listing.tensors)
    total = 0
    for name, tensor in listing.tensors.items():
        array = read_tensor(tensor)
        assert tensor.name == name and array.shape == tensor.shape
        total += array.nbytes
    assert total <= 4 * file.stat().st_size


def load_tensors(file: Path) -> None:
    """Reads them as parameters."""
    tensors = list(list_file(file, pickled=True).tensors.values())
    shapes = {str(place): {"bias": jax.ShapeDtypeStruct(each.shape, np.float32)} for place, each in enumerate(tensors)}
    chosen = [ParamTensor((str(place), "bias"), tensor) for place, tensor in enumerate(tensors)]
    found = load_params(chosen, shapes, jnp.float16)
    assert all(found[str(place)]["bias"].shape == tensor.shape for place, tensor in enumerate(tensors))


def as_safetensors_does(file: Path) -> None:
    """What is admitted is what safetensors' own reader admits, and the same numbers come out."""
    listing = list_file(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            assert set(opened.keys()) == set(listing.tensors)
            assert (opened.metadata() or {}) == listing.metadata
            for name, tensor in listing.tensors.items():
                part = opened.get_slice(name)
                assert (tuple(part.get_shape()), part.get_dtype()) == (tensor.shape, tensor.dtype)
                if not tensor.dtype.startswith(("BF", "F8")):
                    assert opened.get_tensor(name).tobytes() == read_tensor(tensor).tobytes()
    except SafetensorError as error:
        raise AssertionError(f"safetensors refuses it: {error}") from error


def walk(file: Path) -> None:
    """Reads a pickled file, and goes through all its values."""

    def through(value: Any, depth: int) -> None:
        assert depth < 100
        if isinstance(value, Tensor):
            assert len(value.shape) <= MOST_AXES
        elif isinstance(value, dict):
            for key, each in value.items():
                assert type(key) in (str, int)
                through(each, depth + 1)
        elif type(value) in (list, tuple):
            for each in value:
                through(each, depth + 1)
        else:
            assert type(value) in (str, int, float, bool, type(None))

    through(read_pickle(file), 0)


def lora(file: Path) -> object:
    return read_lora(file, {"unet": toys.SD1.unet, "text_encoder": toys.SD1.text_encoder}, pickled=True)


def controlnet_of(file: Path) -> object:
    return load_control(find_controlnet(file, pickled=True), np.float16)


def depth_of(file: Path) -> object:
    found = find_depth(file, pickled=True)
    return load_networks({"depth": NetworkTensors(found.chosen, depth_shapes(found.config), np.float16)})


GENERAL: tuple[Reader, ...] = (read_tensors, load_tensors)
READERS: dict[str, tuple[Reader, ...]] = {
    "safetensors": (*GENERAL, as_safetensors_does, functools.partial(find_vae, pickled=True)),
    "pickled": (*GENERAL, walk),
    "lora": (*GENERAL, lora),
    "embedding": (*GENERAL, functools.partial(read_embedding, pickled=True)),
    "hypernetwork": (walk, functools.partial(read_hypernetwork, pickled=True)),
    "checkpoint": (functools.partial(read_file, pickled=True, prediction_type="epsilon"),),
    "controlnet": (controlnet_of,),
    "depth": (depth_of,),
    "upscaler": (functools.partial(read_upscaler, pickled=True),),
}


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound file, and who reads such files."""

    kind: str
    name: str
    content: bytes
    beside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    def written(self, folder: Path, content: bytes) -> Path:
        """Writes it, with other content, and what lies beside it."""
        for name, each in {**self.beside, self.name: content}.items():
            (folder / name).write_bytes(each)
        return folder / self.name


@functools.cache
def sound_files() -> list[Sound]:
    """One of each form."""
    rng = np.random.RandomState(0)
    numbers = {
        "a": rng.rand(3, 4).astype(np.float32),
        "b": np.arange(5),
        "c.d": np.float16([[1], [2]]),
        "e": np.ones(0),
    }
    found = [Sound("safetensors", "model.safetensors", save(numbers, {"made by": "hand"}))]
    found += [Sound("pickled", file.name, file.read_bytes()) for file in sorted((GOLDEN / "pickles").glob("*.pt"))]
    found += [
        Sound("embedding", file.name, file.read_bytes()) for file in sorted((GOLDEN / "embeddings_files").iterdir())
    ]
    found.append(Sound("embedding", "style.safetensors", save({"emb_params": np.ones((2, 32), np.float32)})))
    for case in adapters.recorded().values():
        found += [Sound("lora", name, content) for name, content in case.files.items() if not name.endswith(".json")]
    with np.load(hypernetworks.FILE) as stored:
        found += [Sound("hypernetwork", "h.pt", stored[key].tobytes()) for key in stored if key.startswith("file ")]
    return found + conditions()


def conditions() -> list[Sound]:
    """ControlNets, estimators of depth and upscalers."""
    originals = json.loads(gzip.decompress(depth.SHAPES.read_bytes()))["original_plain"]
    weights = depth.original_weights({name: tuple(shape) for name, shape in originals.items()})
    compact = CompactConfig(convolutions=2, features=6, shuffle=2, scale=2)
    old = RRDBNetConfig(blocks=1, features=6, growth=4)
    found = [
        *(Sound("controlnet", f"{name}.safetensors", save(controlnet.original_toy(name))) for name in ("sd1", "light")),
        Sound("depth", "dpt.safetensors", save(weights)),
        Sound("upscaler", "video.safetensors", save(upscalers.state(compact))),
        Sound("upscaler", "x4.safetensors", save(upscalers.state(old))),
    ]
    with tempfile.TemporaryDirectory() as folder:
        text = upscalers.write_ncnn(Path(folder) / "video.param", compact)
        both = {file.name: file.read_bytes() for file in (text, text.with_suffix(".bin"))}
    for damaged, sound in itertools.permutations(both):
        found.append(Sound("upscaler", damaged, both[damaged], {sound: both[sound]}))
    return found


@functools.cache
def sound_checkpoint() -> Sound:
    return Sound("checkpoint", "model.safetensors", save(checkpoints.toy_weights("sd1")))


def survives(number: int, sound: Sound, folder: Path) -> bool:
    """Damages a file and has it read; gives whether any reader refused it."""
    rng = random.Random(number)
    folder.mkdir()
    change = rng.choice(damage.changes_for(sound.content))
    file = sound.written(folder, change(rng, sound.content))
    return any([refused(reader, file, folder) for reader in READERS[sound.kind]])


def index_survives(number: int, folder: Path) -> bool:
    """The same for an index of shards."""
    rng = random.Random(number)
    folder.mkdir()
    damage.write(folder, damage.index(rng, sound_files()[0].content))

    def listed(inside: Path) -> None:
        files = weight_files(inside, "model", None)
        assert all(file.parent == inside for file in files)
        list_tensors(files)

    return refused(listed, folder / "", folder)


def run(numbers: range, folder: Path) -> dict[str, list[int]]:
    """Runs cases, and gives those that were read and those that were refused, by what the file is for."""
    counts: dict[str, list[int]] = {}
    files = sound_files()
    for number in numbers:
        inside = folder / str(number)
        try:
            if number % 20 == 0:
                kind, was_refused = "index", index_survives(number, inside)
            else:
                sound = files[number % len(files)] if number % 100 != 1 else sound_checkpoint()
                kind, was_refused = sound.kind, survives(number, sound, inside)
        except BaseException as error:
            error.add_note(f"case {number}")
            raise
        shutil.rmtree(inside)
        counts.setdefault(kind, [0, 0])[was_refused] += 1
    return counts


def warm(folder: Path) -> None:
    """Reads the sound files once, so that all that reading imports and compiles is there before anyone listens."""
    for place, sound in enumerate([*sound_files(), sound_checkpoint()]):
        inside = folder / f"sound{place}"
        inside.mkdir()
        file = sound.written(inside, sound.content)
        for reader in READERS[sound.kind]:
            with contextlib.suppress(*REFUSALS):  # a LoRA of the other toy, and what is no VAE
                reader(file)
    for encoding in ("raw_unicode_escape", "unicode_escape", "cp437"):
        b"a".decode(encoding)
    for number in range(40):  # and what refusing imports
        with contextlib.suppress(*REFUSALS):
            inside = folder / f"warm{number}"
            inside.mkdir()
            weight_files(damage.write(inside, damage.index(random.Random(number), b"")), "model", None)


def main() -> None:
    """The command line."""
    first, last = map(int, sys.argv[1:])
    warnings.simplefilter("ignore")  # of casts that overflow: random numbers do
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        print(json.dumps(run(range(first, last), Path(folder))))


if __name__ == "__main__":
    main()
