"""What a program is asked to do: a forward pass of the UNet, images, or one operation as the UNet has it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# The images of parts and of the forward pass: one, with and without its prompt.
BATCH = 2
GUIDANCE_SCALE = 7.5
TIMESTEP = 500
# How many tokens of the prompt the UNet is given.
TOKENS = 77

_COLORS = ("red", "green", "yellow", "blue", "white", "black", "brown", "pink")
_THINGS = ("apple", "car", "flower", "book")

Arrays = tuple[Float[np.ndarray, "..."], ...]


class Work(NamedTuple):
    """What is asked.

    kind: of `SIZES`.
    sizes: its numbers, in that order.
    """

    kind: str
    sizes: tuple[int, ...]

    def size(self, name: str) -> int:
        """The number of this name."""
        return self.sizes[SIZES[self.kind].index(name)]


# The names of the numbers of each kind. Sides are of latents (unet), of images in pixels (image), of feature maps
# (convolution, of 3x3, channels from inputs to outputs).
SIZES = {
    "unet": ("side",),
    "image": ("steps", "side", "batch", "images"),
    "attention": ("tokens", "heads", "width"),
    "convolution": ("side", "inputs", "outputs"),
    "product": ("rows", "inputs", "outputs"),
    "gelu": ("rows", "width"),
}


def label(work: Work) -> str:
    """What is asked, in a few words."""
    sizes = work.sizes
    match work.kind:
        case "unet":
            return f"{BATCH} x {sizes[0]} x {sizes[0]} latents"
        case "image":
            steps, side, batch, _ = sizes
            return f"{side} x {side}, {steps} step{'s' * (steps > 1)}, batch {batch}"
        case "attention":
            return f"{sizes[0]} tokens, {sizes[1]} heads of {sizes[2]}"
        case "convolution":
            return f"{sizes[0]} x {sizes[0]}, {sizes[1]} to {sizes[2]} channels"
        case _:
            return " x ".join(map(str, sizes))


def operations(work: Work) -> int | None:
    """The floating-point operations of a part, a multiplication and its addition being two; None where not counted."""
    match work.kind, work.sizes:
        case "attention", (tokens, heads, width):
            return 4 * BATCH * heads * tokens * tokens * width
        case "convolution", (side, inputs, outputs):
            return 2 * BATCH * side * side * 9 * inputs * outputs
        case "product", (rows, inputs, outputs):
            return 2 * rows * inputs * outputs
    return None


def warm_up(work: Work) -> Work:
    """The least work after which everything is compiled and in memory: of images one batch of one step."""
    if work.kind != "image":
        return work
    _, side, batch, _ = work.sizes
    return Work("image", (1, side, batch, batch))


def part_inputs(work: Work) -> Arrays:
    """The random arrays on which a part works, in the layouts of sdjax: channels last."""
    match work.kind, work.sizes:
        case "attention", (tokens, heads, width):
            return _random((BATCH, tokens, heads, width), (BATCH, tokens, heads, width), (BATCH, tokens, heads, width))
        case "convolution", (side, inputs, outputs):
            return _random((BATCH, side, side, inputs), (3, 3, inputs, outputs))
        case "product", (rows, inputs, outputs):
            return _random((rows, inputs), (inputs, outputs))
        case "gelu", (rows, width):
            return _random((rows, width))
    raise ValueError(f"{work.kind} is no part")


def unet_inputs(work: Work, channels: int, width: int) -> Arrays:
    """Latents (b, h, w, c), timesteps (b,) and texts (b, n, e) for a UNet of these channels and this width of texts."""
    side = work.size("side")
    latents, context = _random((BATCH, side, side, channels), (BATCH, TOKENS, width))
    return latents, np.full(BATCH, TIMESTEP, np.float32), context


def _random(*shapes: tuple[int, ...]) -> Arrays:
    generator = np.random.default_rng(0)
    return tuple(generator.standard_normal(shape, np.float32) for shape in shapes)


def prompts(count: int) -> list[str]:
    """Prompts of images, which the embedded model understands too."""
    return [f"a {_COLORS[index % 8]} {_THINGS[index // 8 % 4]}" for index in range(count)]
