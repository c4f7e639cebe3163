"""The adapters that a prompt names: `<lora:name:weight>` and `<hypernet:name:weight>`, and the same without brackets.

The notation is that of AUTOMATIC1111's web UI (`modules/extra_networks.py`, `extensions-builtin/Lora`): after the name
the weight in the text encoder, and in the UNet if it is another; or both by name, `te=0.5:unet=1`.
"""

import bisect
import difflib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from sdjax.messages import quoted

# Kinds of adapters, and what the web UI calls them in prompts.
KINDS = {"lora": "lora", "lyco": "lora", "hypernet": "hypernetwork"}
# Beyond such weights no adapter means anything.
MAX_WEIGHT = 100.0

# Anything so written is taken out of a prompt by the web UI.
_TAG = re.compile(r"<(\w+):([^>]+)>")
# What was probably meant to be one.
_LIKE = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:")
_FIELD = {"lora": "loras", "hypernetwork": "hypernetworks"}


class TagError(ValueError):
    """An adapter is named in a way that can't be read."""


class Tag(NamedTuple):
    """An adapter and how strongly it acts.

    kind: a value of `KINDS`.
    weight: in the UNet.
    text_weight: in what reads text; of a hypernetwork, which acts in the UNet alone, the same as `weight`.
    """

    kind: str
    name: str
    weight: float
    text_weight: float


class Cut(NamedTuple):
    """A prompt without its tags.

    letters: where tags stand in the prompt, counted from 1.
    problems: (letter; what is wrong with the tag there).
    removed: (place in `text`, letters taken out up to there) of each.
    """

    text: str
    tags: tuple[Tag, ...]
    letters: tuple[int, ...]
    problems: tuple[tuple[int, str], ...]
    removed: tuple[tuple[int, int], ...]

    def letter(self, letter: int) -> int:
        """Where a letter of `text` stands in the prompt; both counted from 1."""
        place = bisect.bisect_right(self.removed, (letter - 1, math.inf))
        return letter + (self.removed[place - 1][1] if place else 0)


def uncut(prompt: str) -> Cut:
    """A prompt whose tags are text."""
    return Cut(prompt, (), (), (), ())


def look_alikes(text: str) -> tuple[int, ...]:
    """The letters, counted from 1, at which a text has what looks like a tag."""
    return tuple(found.start() + 1 for found in _LIKE.finditer(text))


def cut(prompt: str) -> Cut:
    """Takes the tags out of a prompt.

    A tag that can't be read is taken out too, as in the web UI, and is a problem.
    """
    kept: list[str] = []
    tags: list[Tag] = []
    problems: list[tuple[int, str]] = []
    letters: list[int] = []
    removed: list[tuple[int, int]] = []
    end = length = 0
    # Behind the last > none ends; looking for it from each < would take long.
    for found in _TAG.finditer(prompt, 0, prompt.rfind(">") + 1):
        kept.append(prompt[end : found.start()])
        length += found.start() - end
        end = found.end()
        letters.append(found.start() + 1)
        removed.append((length, end - length))
        try:
            tags.append(_tag(found[1], found[2]))
        except TagError as error:
            problems.append((found.start() + 1, f"{found[0][:60]!r}: {error}"))
    kept.append(prompt[end:])
    return Cut("".join(kept), tuple(tags), tuple(letters), tuple(problems), tuple(removed))


def read_list(kind: str, text: str) -> tuple[Tag, ...]:
    """Adapters of one kind as a field of a job names them: `name:weight; name:0.5:1`, or as tags.

    Raises:
      TagError: if it can't be read.
    """
    if not text:
        return ()
    found = cut(text)
    if found.problems:
        raise TagError(found.problems[0][1])
    if found.tags and found.text.strip(" ;"):
        raise TagError(f"{found.text.strip()[:60]!r} stands beside tags; expected either tags or name:weight; ...")
    tags = found.tags or tuple(_read(kind, each) for each in text.split(";") if each.strip())
    for tag in tags:
        if tag.kind != kind:
            raise TagError(f"{quoted(tag.name)} is a {tag.kind}; name it in {_FIELD[tag.kind]}")
    return tags


def to_text(tags: Sequence[Tag]) -> str:
    """The form of `read_list` in which equal adapters are written alike."""
    return "; ".join(":".join([tag.name, *_weights(tag)]) for tag in tags)


def _weights(tag: Tag) -> list[str]:
    values = [tag.text_weight] + ([tag.weight] if tag.weight != tag.text_weight else [])
    return [f"{int(value) if value.is_integer() else value}" for value in values]


def _tag(word: str, text: str) -> Tag:
    if word not in KINDS:
        near = difflib.get_close_matches(word, KINDS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise TagError(f"no kind of adapter is called {quoted(word)}{hint}; known: {', '.join(KINDS)}")
    return _read(KINDS[word], text)


def _read(kind: str, text: str) -> Tag:
    positional: list[str] = []
    named: dict[str, str] = {}
    for item in text.split(":"):
        name, equals, value = item.partition("=")
        if equals:
            named[name.strip()] = value
        else:
            positional.append(item.strip())
    if not positional or not positional[0]:
        raise TagError("no name; expected name:weight")
    if strange := named.keys() - ({"te", "unet"} if kind == "lora" else set()):
        raise TagError(f"{quoted(sorted(strange)[0])} is not supported; expected a name and weights")
    most = 3 if kind == "lora" else 2
    if len(positional) > most:
        raise TagError(
            f"{quoted(positional[most])} is too much; expected a name and {most - 1} weight{'s'[: most - 2]}"
        )
    text_weight = _number(named.get("te", positional[1] if len(positional) > 1 else "1"))
    weight = text_weight
    if "unet" in named or len(positional) > 2:
        weight = _number(named["unet"] if "unet" in named else positional[2])
    return Tag(kind, positional[0], weight, text_weight)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= MAX_WEIGHT:
        raise TagError(f"the weight {quoted(text.strip())}: expected a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return number + 0.0
