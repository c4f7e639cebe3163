"""The data set of the embedded model: scenes made of Noto emoji, with captions.

A scene is drawn from a random generator alone, so that the n-th scene of a seed is always the same. An
emoji stands on a background of one colour, small or large, in the middle, left or right; or two stand side by
side. What a caption does not say is left to chance, so that it is the seed that decides it afterwards.
"""

import dataclasses
import importlib.resources
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

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

# Side lengths in pixels (least, most) of an emoji in a scene.
_SIDES = {"": (44, 54), "small": (24, 30), "large": (57, 62), "pair": (27, 30), "aside": (27, 31)}
# Centres (x) of an emoji that stands aside.
_CENTRES = {"left": 16.0, "right": 48.0}


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
    """One transparent picture per concept, cut to a square around what is drawn.

    Args:
      font: Noto Color Emoji with bitmaps (`NotoColorEmoji.ttf`).

    Raises:
      FileNotFoundError: if the font is not there.
      ValueError: if the font has no picture for a concept.
    """
    if not font.is_file():
        raise FileNotFoundError(
            f"{font} is not there; it comes with Debian's package fonts-noto-color-emoji, "
            "or name another copy of NotoColorEmoji.ttf with --font."
        )
    face = ImageFont.truetype(str(font), _FONT_SIZE)
    pictures = []
    for concept in concepts():
        sheet = Image.new("RGBA", (_SHEET, _SHEET))
        centre = (_SHEET // 2, _SHEET // 2)
        ImageDraw.Draw(sheet).text(centre, chr(concept.codepoint), font=face, embedded_color=True, anchor="mm")
        box = sheet.getbbox()
        if box is None:
            raise ValueError(f"{font} has no picture for U+{concept.codepoint:04X} ({concept.name})")
        side = max(box[2] - box[0], box[3] - box[1])
        left = (box[0] + box[2] - side) // 2
        top = (box[1] + box[3] - side) // 2
        pictures.append(sheet.crop((left, top, left + side, top + side)))
    return tuple(pictures)


def draw_scene(rng: np.random.Generator, count: int) -> Scene:
    """Draws what is in a scene from `count` concepts: one in five has two of them."""
    color = "white" if rng.random() < 0.15 else str(rng.choice(list(COLORS)))
    first = int(rng.integers(count))
    if rng.random() < 0.2:
        second = int(rng.integers(count - 1))
        return Scene((first, second + (second >= first)), color)
    size = str(rng.choice(["", "small", "large"], p=[0.64, 0.18, 0.18]))
    side = str(rng.choice(["", "left", "right"], p=[0.7, 0.15, 0.15])) if size != "large" else ""
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


def _place(
    canvas: Image.Image, rng: np.random.Generator, sprite: Image.Image, sides: tuple[int, int], centre: float
) -> None:
    """Pastes the sprite, turned and moved a little, with its middle about (centre, SIZE / 2)."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    angle = float(np.clip(rng.normal(0.0, 4.0), -10.0, 10.0))
    turned = sprite.rotate(angle, Image.Resampling.BICUBIC)
    turned = turned.resize((side, side), Image.Resampling.LANCZOS)
    room = max(0.0, (SIZE - side) / 2)
    across = min(room, 2.5) * float(rng.uniform(-1, 1))
    down = min(room, 4.0) * float(rng.uniform(-1, 1))
    left = round(min(max(centre + across - side / 2, 0), SIZE - side))
    top = round(SIZE / 2 + down - side / 2)
    canvas.alpha_composite(turned, (left, top))


def render(rng: np.random.Generator, scene: Scene, pictures: tuple[Image.Image, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """The scene as pixels; place, angle, exact size and shade are drawn from `rng`."""
    shade = np.clip(np.array(COLORS[scene.color]) + rng.integers(-6, 7, 3), 0, 255)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*map(int, shade), 255))
    if len(scene.concepts) == 2:
        for index, centre in zip(scene.concepts, _CENTRES.values(), strict=True):
            _place(canvas, rng, pictures[index], _SIDES["pair"], centre)
    elif scene.side:
        sides = _SIDES["small"] if scene.size == "small" else _SIDES["aside"]
        _place(canvas, rng, pictures[scene.concepts[0]], sides, _CENTRES[scene.side])
    else:
        _place(canvas, rng, pictures[scene.concepts[0]], _SIDES[scene.size], SIZE / 2)
    return np.asarray(canvas.convert("RGB"))


def examples(
    seed: int, pictures: tuple[Image.Image, ...], start: int = 0
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], str, Scene]]:
    """The endless data set of a seed, from its `start`-th scene on: (pixels, caption, scene)."""
    names = tuple(concept.name for concept in concepts())
    index = start
    while True:
        rng = np.random.default_rng([seed, index])
        scene = draw_scene(rng, len(names))
        text = caption(rng, scene, names)
        yield render(rng, scene, pictures), text, scene
        index += 1
