"""What is measured: cases of work, by which programs, how often, and in which order."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.work import Work

EMBEDDED = Path(__file__).parents[2] / "sdjax" / "assets" / "emoji"


class Case(NamedTuple):
    """Work that is done by several programs in turns.

    title: of its table.
    baseline: the program with which the others are compared.
    peers: the others.
    works: done one after the other.
    small: what is done in their place where seconds are all there is, with the embedded model; empty if nothing is.
    rounds: how often each is measured.
    minutes: that it takes on two cores, all in all.
    embedded: whether the model is the embedded one; else it is Stable Diffusion 1.5 with random weights.
    from_start: whether each round has a process of its own, measured from its start on.
    in_pairs: whether the baseline runs before each run of another program; else once a round.
    """

    title: str
    baseline: str
    peers: tuple[str, ...]
    works: tuple[Work, ...]
    small: tuple[Work, ...]
    rounds: int
    minutes: float
    embedded: bool = False
    from_start: bool = False
    in_pairs: bool = True


def _works(kind: str, *sizes: tuple[int, ...]) -> tuple[Work, ...]:
    return tuple(Work(kind, each) for each in sizes)


_ON_TORCH = ("channels_last", "compiled")
_OPENVINO = ("openvino", "openvino_bf16")
_ALL = (*_ON_TORCH, *_OPENVINO, "sdcpp", "sdjax")
_ATTENTION = ((4096, 8, 40), (4096, 5, 64), (1024, 8, 80))
_CONVOLUTIONS = (
    (64, 320, 320),
    (64, 640, 320),
    (32, 640, 640),
    (16, 1280, 1280),
    (16, 2560, 1280),
    (8, 1280, 1280),
)
# At 64x64: projections of attention, the feed-forward in and out; likewise at 32x32 and 16x16.
_PRODUCTS = (
    (8192, 320, 320),
    (8192, 320, 2560),
    (8192, 1280, 320),
    (2048, 640, 5120),
    (2048, 2560, 640),
    (512, 1280, 10240),
    (512, 5120, 1280),
)
_SMALL_IMAGE = _works("image", (2, 64, 1, 1))

CASES: Mapping[str, Case] = {
    "attention": Case(
        "Self-attention, batch 2", "torch", ("sdjax",), _works("attention", *_ATTENTION),
        _works("attention", (64, 2, 8)), rounds=9, minutes=1,
    ),
    "convolution": Case(
        "3x3 convolutions, batch 2", "torch", ("sdjax",), _works("convolution", *_CONVOLUTIONS),
        _works("convolution", (8, 32, 32)), rounds=9, minutes=1,
    ),
    "product": Case(
        "Matrix products of the transformer", "torch", ("sdjax",), _works("product", *_PRODUCTS),
        _works("product", (16, 32, 64)), rounds=9, minutes=1,
    ),
    "gelu": Case(
        "Exact GELU", "torch", ("sdjax",), _works("gelu", (16384, 1280)),
        _works("gelu", (16, 32)), rounds=9, minutes=0.5,
    ),
    "unet": Case(
        "Forward pass of the UNet", "diffusers", (*_ON_TORCH, *_OPENVINO, "sdjax"), _works("unet", (64,)),
        _works("unet", (8,)), rounds=5, minutes=10,
    ),
    "image": Case(
        "An image with guidance", "diffusers", _ALL, _works("image", (20, 512, 1, 1)),
        (), rounds=1, minutes=25, in_pairs=False,
    ),
    "start": Case(
        "From the start of the process to an image of one step, caches warm", "diffusers", _ALL,
        _works("image", (1, 512, 1, 1)), (), rounds=3, minutes=12, from_start=True, in_pairs=False,
    ),
    "embedded": Case(
        "Images of the embedded model, with guidance", "diffusers", ("channels_last", "sdjax"),
        _works("image", (20, 64, 4, 64), (20, 64, 16, 64)), _SMALL_IMAGE, rounds=5, minutes=4, embedded=True,
    ),
    "embedded_start": Case(
        "From the start of the process to an image of the embedded model, caches warm", "diffusers", ("sdjax",),
        _works("image", (20, 64, 1, 1)), _SMALL_IMAGE, rounds=5, minutes=2, embedded=True, from_start=True,
        in_pairs=False,
    ),
}  # fmt: skip


def turns(baseline: str, peers: Sequence[str], rounds: int, in_pairs: bool) -> Iterator[str]:
    """Programs in the order in which they run: the baseline always before those that are compared with that run.

    In pairs each program has all its rounds before the next one begins, so that two processes are alive at most.
    """
    if in_pairs:
        for peer in peers:
            yield from (baseline, peer) * rounds
    else:
        yield from (baseline, *peers) * rounds
