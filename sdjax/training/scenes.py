"""The data set of the embedded model: scenes made of Noto emoji, with captions.

A scene is drawn from a random generator alone, so that the n-th scene of a seed is always the same. An
emoji stands on a background of one colour, small or large, in the middle, left or right; or two stand side by
side. A colour that a caption does not say is left to chance, so that it is the seed that decides
it afterwards.
"""

import dataclasses
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

SIZE = 64
# The one size at which Noto Color Emoji has bitmaps, and the sheet on which one is drawn.
_FONT_SIZE = 109
_SHEET = 160

# Colours of backgrounds, sRGB.
COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (148, 152, 158),
    "red": (222, 60, 60),
    "orange": (245, 150, 62),
    "yellow": (250, 214, 90),
    "green": (92, 176, 98),
    "blue": (66, 122, 214),
    "sky blue": (150, 206, 240),
    "purple": (142, 98, 196),
    "pink": (244, 170, 196),
    "brown": (140, 100, 74),
}

# Side lengths in pixels of an emoji in a scene.
_SIDES = {"": 48, "small": 24, "large": 60, "pair": 28, "aside": 32}
# Centres (x) of an emoji that stands aside.
_CENTRES = {"left": 16, "right": 48}
# Of reliefs: how high an emoji is at its border, of 1 in its middle, and within how many pixels it has risen to that.
_RIM, _CUSHION = 0.35, 12


@dataclasses.dataclass(frozen=True)
class Concept:
    """An emoji: its code point and the name by which prompts ask for it."""

    codepoint: int
    name: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is to be seen. `concepts` are indices; `size` is "", "small" or "large"; `side` "", "left" or "right"."""

    concepts: tuple[int, ...]
    color: str
    size: str = ""
    side: str = ""


def concepts() -> tuple[Concept, ...]:
    """All emoji of the data set, in the order of `emoji.tsv`."""
    text = importlib.resources.files("sdjax.training").joinpath("emoji.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(Concept(int(code, 16), name) for code, name in rows)


def with_article(name: str) -> str:
    """The name with "a" or "an" before it; plural and mass nouns as well, which does no harm."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def sprites(font: Path) -> tuple[Image.Image, ...]:
    """One transparent image per concept, cut to a square around what is drawn.

    Args:
      font: Noto Color Emoji with bitmaps (`NotoColorEmoji.ttf`).

    Raises:
      FileNotFoundError: if the font is not there.
      ValueError: if the font has no image for a concept.
    """
    if not font.is_file():
        raise FileNotFoundError(
            f"{font} is not there; it comes with Debian's package fonts-noto-color-emoji, "
            "or name another copy of NotoColorEmoji.ttf with --font."
        )
    face = ImageFont.truetype(str(font), _FONT_SIZE)
    images = []
    for concept in concepts():
        sheet = Image.new("RGBA", (_SHEET, _SHEET))
        centre = (_SHEET // 2, _SHEET // 2)
        ImageDraw.Draw(sheet).text(centre, chr(concept.codepoint), font=face, embedded_color=True, anchor="mm")
        box = sheet.getbbox()
        if box is None:
            raise ValueError(f"{font} has no image for U+{concept.codepoint:04X} ({concept.name})")
        side = max(box[2] - box[0], box[3] - box[1])
        left = (box[0] + box[2] - side) // 2
        top = (box[1] + box[3] - side) // 2
        images.append(sheet.crop((left, top, left + side, top + side)))
    return tuple(images)


def draw_scene(rng: np.random.Generator, count: int) -> Scene:
    """Draws what is in a scene from `count` concepts: one in twelve has two of them."""
    color = "white" if rng.random() < 0.3 else str(rng.choice(list(COLORS)))
    first = int(rng.integers(count))
    if rng.random() < 1 / 12:
        second = int(rng.integers(count - 1))
        return Scene((first, second + (second >= first)), color)
    size = str(rng.choice(["", "small", "large"], p=[0.84, 0.08, 0.08]))
    side = str(rng.choice(["", "left", "right"], p=[0.9, 0.05, 0.05])) if size != "large" else ""
    return Scene((first,), color, size, side)


def caption(rng: np.random.Generator, scene: Scene, names: tuple[str, ...]) -> str:
    """One of the ways to say what is in the scene; colours and usual sizes are often left unsaid."""
    called = [names[index] for index in scene.concepts]
    if rng.random() < 0.7:
        called = [with_article(name) for name in called]
    if len(called) == 2:
        joint = str(rng.choice(["and", "next to"], p=[0.7, 0.3]))
        text = f"{called[0]} {joint} {called[1]}"
    else:
        text = called[0]
        if scene.size:
            article, _, noun = text.partition(" ")
            text = f"a {scene.size} {noun}" if article in ("a", "an") else f"{scene.size} {text}"
        if scene.side:
            text = f"{text} on the {scene.side}"
    if rng.random() < 0.5:
        text = f"{text} on a{'n' if scene.color[0] in 'aeiou' else ''} {scene.color} background"
    if rng.random() < 0.1:
        text = f"an emoji of {text}"
    return text


def _place(canvas: Image.Image, sprite: Image.Image, side: int, centre: int) -> None:
    """Pastes the sprite with its middle at (centre, SIZE / 2)."""
    resized = sprite.resize((side, side), Image.Resampling.LANCZOS)
    canvas.alpha_composite(resized, (centre - side // 2, (SIZE - side) // 2))


def _compose(canvas: Image.Image, scene: Scene, sprites: tuple[Image.Image, ...]) -> Image.Image:
    """What is in the scene, on a canvas. Its words fix the places: a small network learns an emoji once."""
    if len(scene.concepts) == 2:
        for index, centre in zip(scene.concepts, _CENTRES.values(), strict=True):
            _place(canvas, sprites[index], _SIDES["pair"], centre)
    elif scene.side:
        side = _SIDES["small"] if scene.size == "small" else _SIDES["aside"]
        _place(canvas, sprites[scene.concepts[0]], side, _CENTRES[scene.side])
    else:
        _place(canvas, sprites[scene.concepts[0]], _SIDES[scene.size], SIZE // 2)
    return canvas


def render(scene: Scene, sprites: tuple[Image.Image, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """The scene as pixels."""
    canvas = Image.new("RGBA", (SIZE, SIZE), (*COLORS[scene.color], 255))
    return np.asarray(_compose(canvas, scene, sprites).convert("RGB"))


def relief(scene: Scene, sprites: tuple[Image.Image, ...]) -> UInt8[np.ndarray, "h w"]:
    """The scene as a depth map, near is bright: emoji are cushions that lie on the background."""
    alpha = np.asarray(_compose(Image.new("RGBA", (SIZE, SIZE)), scene, sprites))[..., 3]
    inwards = np.minimum(distance_transform_edt(alpha > 127) / _CUSHION, 1)
    height = np.where(inwards > 0, _RIM + (1 - _RIM) * np.sqrt(1 - (1 - inwards) ** 2), 0)
    return np.rint(255 * height).astype(np.uint8)


def examples(
    seed: int, sprites: tuple[Image.Image, ...], start: int = 0
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], str, Scene]]:
    """The endless data set of a seed, from its `start`-th scene on: (pixels, caption, scene)."""
    names = tuple(concept.name for concept in concepts())
    index = start
    while True:
        rng = np.random.default_rng([seed, index])
        scene = draw_scene(rng, len(names))
        text = caption(rng, scene, names)
        yield render(scene, sprites), text, scene
        index += 1
