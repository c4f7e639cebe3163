"""Upscalers with random weights: as files hold them, and what sdjax makes of them.

Weights come from numpy's frozen `RandomState`, under the names and in the layout of torch, so that the reference takes
them as they are and sdjax reads them from files.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from sdjax.checkpoints.upscaler_file import UpscalerNetwork
from sdjax.engine.device import platform_of, program_for
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig, network_of
from sdjax.upscaling.tiles import Enlarged, enlarged_in_tiles, enlarged_tiles

Arrays = dict[str, np.ndarray]

RECORDED = Path(__file__).with_name("upscaler.npz")
# The largest relative error in float32: the norm of the difference over the norm of the reference.
TOLERANCE = 1e-5


class Case(NamedTuple):
    """A network, and the size of the images that it is given."""

    config: UpscalerConfig
    size: tuple[int, int]


# Wide enough for the convolutions that real ones take on the CPU.
_RRDB = RRDBNetConfig(blocks=2, features=32, growth=24)
_COMPACT = CompactConfig(convolutions=3, features=32)

CASES: dict[str, Case] = {
    "rrdb_x4": Case(_RRDB, (7, 9)),
    "rrdb_x2_unshuffled": Case(RRDBNetConfig(2, 32, 24, 2, 2), (10, 6)),
    "rrdb_x1_unshuffled": Case(RRDBNetConfig(1, 32, 24, 2, 4), (8, 12)),
    "rrdb_x2_doubled_once": Case(RRDBNetConfig(1, 32, 24, 1, 1), (5, 6)),
    "rrdb_x8": Case(RRDBNetConfig(1, 32, 24, 3, 1), (3, 5)),
    "compact_x4": Case(_COMPACT, (6, 5)),
    "compact_x2": Case(CompactConfig(2, 32, 2, 2), (6, 5)),
    "compact_x4_resized_to_x3": Case(CompactConfig(3, 32, 4, 3), (6, 5)),
    "compact_x4_resized_to_x2": Case(CompactConfig(3, 32, 4, 2), (5, 7)),
}


def _convolutions(config: UpscalerConfig) -> Iterator[tuple[str, int, int]]:
    """Names in Real-ESRGAN, in the order of the network, with the channels in and out."""
    wide = config.features
    if isinstance(config, CompactConfig):
        yield "body.0", 3, wide
        for layer in range(1, config.convolutions + 1):
            yield f"body.{2 * layer}", wide, wide
        yield f"body.{2 * config.convolutions + 2}", wide, 3 * config.shuffle**2
        return
    yield "conv_first", 3 * config.unshuffle**2, wide
    for block in range(config.blocks):
        for dense in (1, 2, 3):
            for layer in range(1, 6):
                taken = wide + (layer - 1) * config.growth
                yield f"body.{block}.rdb{dense}.conv{layer}", taken, wide if layer == 5 else config.growth
    for name in ("conv_body", *(f"conv_up{level + 1}" for level in range(config.doublings)), "conv_hr"):
        yield name, wide, wide
    yield "conv_last", wide, 3


@functools.cache
def state(config: UpscalerConfig) -> Arrays:
    """Weights by Real-ESRGAN's names."""
    rng, found = np.random.RandomState(31), {}
    for name, taken, given in _convolutions(config):
        found[f"{name}.weight"] = rng.standard_normal((given, taken, 3, 3)) / np.sqrt(9 * taken)
        found[f"{name}.bias"] = 0.1 * rng.standard_normal(given)
    if isinstance(config, CompactConfig):
        for layer in range(config.convolutions + 1):
            found[f"body.{2 * layer + 1}.weight"] = rng.uniform(-0.2, 0.5, config.features)
    return {name: array.astype(np.float32) for name, array in found.items()}


def in_esrgan(name: str, config: RRDBNetConfig) -> str:
    """What ESRGAN calls what Real-ESRGAN calls so."""
    name = re.sub(r"^body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", name)
    for new, old in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
        name = name.replace(new, old)
    return name


def in_old_esrgan(name: str, config: RRDBNetConfig) -> str:
    """What it was called before, when all was one list: of x4 the places 0, 1, 3, 6, 8 and 10."""
    places = {2: ("3", "6", "8", "10"), 1: ("3", "5", "7"), 3: ("3", "6", "9", "11", "13")}[config.doublings]
    ups = [f"conv_up{level + 1}" for level in range(config.doublings)]
    place = dict(zip([*ups, "conv_hr", "conv_last"], places, strict=True)) | {"conv_first": "0"}
    place["conv_body"] = f"1.sub.{config.blocks}"
    name = re.sub(r"^body\.(\d+)\.rdb(\d)\.conv(\d)", r"1.sub.\1.RDB\2.conv\3.0", name)
    start, _, end = name.rpartition(".")
    return f"model.{place.get(start, start)}.{end}"


def write(file: Path, config: UpscalerConfig) -> Path:
    """Writes safetensors; gives the file."""
    save_file(state(config), file)
    return file


def pixels(case: Case) -> np.ndarray:
    """Two images, in [0, 1]."""
    return np.random.RandomState(32).uniform(0, 1, (2, *case.size, 3)).astype(np.float32)


def enlarged(upscaler: UpscalerNetwork, images: np.ndarray, tile: int = 256, overlap: int = 64) -> Enlarged:
    """Images through an upscaler a tile at a time, one image after the other, on one device."""
    program = program_for(platform_of(upscaler.params), enlarged_tiles, upscaler.config)
    run = functools.partial(program, upscaler.params)
    made = [enlarged_in_tiles(upscaler.config, run, image[None], tile, overlap) for image in images]
    return Enlarged(*(np.concatenate(parts) for parts in zip(*made, strict=True)))


def given_by(upscaler: UpscalerNetwork, asked: np.ndarray) -> np.ndarray:
    """What the network gives, not clipped."""
    network = network_of(upscaler.config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(network.apply)({"params": upscaler.params}, asked))


# --- ncnn's files ---


class _Text:
    """Lines of a .param file, and the bytes that belong to them."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self.lines: list[tuple[str, list[str], str, str]] = []
        self.numbers = b""

    def add(self, kind: str, inputs: list[str], options: str) -> str:
        output = f"blob{len(self.lines)}"
        self.lines.append((kind, [*inputs], output, options))
        return output

    def convolution(self, weights: Arrays, name: str, given: str, leaky: bool = False) -> str:
        kernel = weights[f"{name}.weight"]
        stored = kernel.astype(np.float16) if self.half else kernel
        tag = 0x01306B47 if self.half else 0
        self.numbers += tag.to_bytes(4, "little") + stored.tobytes()
        self.numbers += bytes(-len(self.numbers) % 4) + weights[f"{name}.bias"].tobytes()
        activation = " 9=2 -23310=1,2.000000e-01" if leaky else ""
        return self.add("Convolution", [given], f"0={len(kernel)} 1=3 4=1 5=1 6={kernel.size}{activation}")

    def text(self) -> str:
        """Results that more than one layer takes are split, as ncnn's converters do."""
        takers: dict[str, int] = {}
        for _, inputs, _, _ in self.lines:
            for name in inputs:
                takers[name] = takers.get(name, 0) + 1
        written, results, turn = [], 0, dict.fromkeys(takers, 0)
        for place, (kind, inputs, output, options) in enumerate(self.lines):
            called = []
            for name in inputs:
                called.append(f"{name}_split{turn[name]}" if takers[name] > 1 else name)
                turn[name] += 1
            written.append(
                f"{kind:<24} {kind}_{place} {len(inputs)} 1 {' '.join([*called, output])} {options}".rstrip()
            )
            results += 1
            if takers.get(output, 0) > 1:
                copies = [f"{output}_split{index}" for index in range(takers[output])]
                written.append(f"Split split_{output} 1 {len(copies)} {output} {' '.join(copies)}")
                results += len(copies)
        return "\n".join(["7767517", f"{len(written)} {results}", *written, ""])


def write_ncnn(text: Path, config: UpscalerConfig, half: bool = False) -> Path:
    """Writes both files of ncnn, laid out as those that Real-ESRGAN publishes; gives the first."""
    written, weights = _Text(half), state(config)
    if isinstance(config, CompactConfig):
        _write_compact(written, config, weights)
    else:
        _write_rrdb(written, config, weights)
    text.write_text(written.text())
    text.with_suffix(".bin").write_bytes(written.numbers)
    return text


def _write_compact(written: _Text, config: CompactConfig, weights: Arrays) -> None:
    x = first = written.add("Input", [], "")
    for layer in range(config.convolutions + 1):
        x = written.convolution(weights, f"body.{2 * layer}", x)
        slopes = weights[f"body.{2 * layer + 1}.weight"]
        written.numbers += slopes.tobytes()
        x = written.add("PReLU", [x], f"0={slopes.size}")
    x = written.convolution(weights, f"body.{2 * config.convolutions + 2}", x)
    x = written.add("PixelShuffle", [x], f"0={config.shuffle}")
    nearest = written.add("Interp", [first], f"0=1 1={config.shuffle:e} 2={config.shuffle:e}")
    x = written.add("BinaryOp", [x, nearest], "")
    if config.scale < config.shuffle:
        ratio = config.scale / config.shuffle
        written.add("Interp", [x], f"0=3 1={ratio:e} 2={ratio:e}")


def _write_rrdb(written: _Text, config: RRDBNetConfig, weights: Arrays) -> None:
    residual = "0=1 -23301=2,2.000000e-01,1.000000e+00"
    x = first = written.convolution(weights, "conv_first", written.add("Input", [], ""))
    for block in range(config.blocks):
        around = x
        for dense in (1, 2, 3):
            found = [x]
            for layer in range(1, 5):
                seen = written.add("Concat", found, "") if layer > 1 else x
                found.append(written.convolution(weights, f"body.{block}.rdb{dense}.conv{layer}", seen, True))
            y = written.convolution(weights, f"body.{block}.rdb{dense}.conv5", written.add("Concat", found, ""))
            x = written.add("Eltwise", [y, x], residual)
        x = written.add("Eltwise", [x, around], residual)
    x = written.add("BinaryOp", [first, written.convolution(weights, "conv_body", x)], "")
    for level in range(1, config.doublings + 1):
        x = written.add("Interp", [x], "0=1 1=2.000000e+00 2=2.000000e+00")
        x = written.convolution(weights, f"conv_up{level}", x, True)
    written.convolution(weights, "conv_last", written.convolution(weights, "conv_hr", x, True))
