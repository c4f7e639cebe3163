"""Canonical forms of fields whose texts have a syntax of their own, or name things that other tools name, too."""

import functools
import re
from collections.abc import Callable, Iterable

from sdjax import extensions
from sdjax.diffusion.samplers import SAMPLERS, names
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.diffusion.timestep_spacing import SPACINGS
from sdjax.images.preprocessors import PREPROCESSORS, PreprocessorError, read_preprocessor
from sdjax.jobs.fields import JobError, not_among, plain_choice
from sdjax.text import controls, tags

# ControlNets of a job: each is in its program.
MAX_CONTROLS = 8
# Ways to enlarge images that need no weights.
PIXEL_UPSCALERS = ("lanczos", "bicubic", "nearest")
# Of a run with an estimator of depth, besides those that need no weights.
DEPTH_PREPROCESSOR = "depth"
# Names of samplers and schedules as other tools spell them; of A1111's samplers also with the schedule, as it had them.
SAMPLER_NAMES = (
    *names.known_sampler_names(),
    *(f"{label} {schedule}" for label in names.A1111_SAMPLERS.values() for schedule in ("Karras", "Exponential")),
)
SCHEDULE_NAMES = (*SCHEDULES, *names.A1111_SCHEDULES.values(), "Automatic")
# Texts whose canonical forms are kept: the rows of a run mostly name the same.
_KEPT = 256


def split(text: str | None) -> tuple[str, ...]:
    """The parts of a text between semicolons, without blanks around them and without empty ones."""
    return tuple(part.strip() for part in (text or "").split(";") if part.strip())


@functools.lru_cache(_KEPT)
def sampler(name: str, text: str) -> str:
    """The sampler that a name of any tool means; one that names a schedule, too, means the same sampler."""
    found = names.sampler_named(text)
    if found is not None:
        return found.sampler
    if names.is_adaptive(text):
        raise JobError(
            f"{name} = {text!r}: an adaptive sampler decides from image to image how many steps it takes, which the "
            "compiled loop can't; dpm_fast is the same solver with fixed steps"
        )
    raise not_among(name, text, (*SAMPLERS, *extensions.names(extensions.SAMPLERS)), names.known_sampler_names())


@functools.lru_cache(_KEPT)
def schedule_of_sampler(text: str) -> str | None:
    """The schedule that a sampler's name tells, too ("DPM++ 2M Karras"); None for most."""
    found = names.sampler_named(text)
    return None if found is None else found.schedule


@functools.lru_cache(_KEPT)
def schedule(name: str, text: str) -> str | None:
    """The schedule that a name of any tool means; None for "Automatic", which is the checkpoint's own."""
    if text in SPACINGS:
        raise JobError(f"{name} = {text!r}: that is how timesteps are laid; say it in timestep_spacing")
    found = names.schedule_named(text)
    if found is None:
        known = (*SCHEDULES, *extensions.names(extensions.SCHEDULES))
        raise not_among(name, text, known, names.A1111_SCHEDULES.values())
    return found or None


def adapters(kind: str) -> Callable[[str, str], str]:
    """The canonical form of a list of adapters of one kind, "lora" or "hypernetwork"."""

    @functools.lru_cache(_KEPT)
    def read(name: str, text: str) -> str:
        try:
            return tags.to_text(tags.read_list(kind, text))
        except tags.TagError as error:
            raise JobError(f"{name}: {error}") from error

    return read


@functools.lru_cache(_KEPT)
def controlnets(name: str, text: str) -> str:
    """The canonical form of a list of ControlNets."""
    try:
        found = controls.read_controls(text)
    except controls.ControlError as error:
        raise JobError(f"{name}: {error}") from error
    if len(found) > MAX_CONTROLS:
        raise JobError(f"{name} = {controls.to_text(found)!r}: expected up to {MAX_CONTROLS} of them")
    return controls.to_text(found)


def paths(name: str, text: str) -> str | None:
    """The canonical form of a list of paths."""
    return "; ".join(split(text)) or None


@functools.lru_cache(_KEPT)
def preprocessors(name: str, text: str) -> str:
    """The canonical form of a list of preprocessors, each with its numbers; none of them is "none"."""
    return "; ".join(_preprocessor(name, part) for part in split(text)) or "none"


def _preprocessor(name: str, text: str) -> str:
    try:
        kind, numbers = read_preprocessor(text)
    except PreprocessorError as error:
        raise JobError(f"{name}: {error}") from error
    if kind not in (*PREPROCESSORS, DEPTH_PREPROCESSOR):
        raise not_among(name, kind, (*PREPROCESSORS, DEPTH_PREPROCESSOR))
    return ":".join([kind, *(f"{number:g}" for number in numbers)])


def upscaler(without_weights: Iterable[str]) -> Callable[[str, str], str]:
    """The canonical name of an upscaler that needs no weights, in any spelling; others are names of files."""
    known = frozenset(without_weights)

    def read(name: str, text: str) -> str:
        plain = re.sub(r"[()]", "", plain_choice(text))
        return plain if plain in known else text

    return read
