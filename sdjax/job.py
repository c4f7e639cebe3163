"""What one image is asked to be."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.diffusion.noise import MAX_SEED, SOURCES
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.schedule import SCHEDULES

MAX_STEPS = 1000
MAX_SIDE = 8192
MAX_GUIDANCE = 1000.0
# Letters of a prompt: far beyond any that a text encoder reads, little enough to keep in memory by the million.
MAX_PROMPT = 100_000


# Of derived seeds: so many that no two of a large run fall together, within the whole numbers of any JSON reader. torch
# sees the low 32 bits of a seed alone.
_SEED_BYTES = 6


# Up to here a float holds each whole number.
_EXACT = 2**53


class JobError(ValueError):
    """A row asks for what can't be; the message names the field, what was found and what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a row of a prompt file can ask for, under diffusers' names where it has them.

    Attributes:
      prompt: what is to be seen.
      negative_prompt: what is not.
      seed: 0 to 2^64 - 1; None derives one from the run's seed, the row's content and its repeat number.
      steps: of the sampler, 1 to 1000.
      guidance_scale: of classifier-free guidance; 0 is unconditional, 1 conditional alone.
      width: pixels, a multiple of the VAE's factor; None is the model's own size.
      height: likewise.
      sampler: a key of `SAMPLERS`; None is the checkpoint's own.
      schedule: a key of `SCHEDULES`; None is the checkpoint's own.
      noise_source: "threefry", or "torch" for the numbers of torch's CPU generator.

    Raises:
      JobError: for a value out of its range.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int | None = None
    steps: int = 20
    guidance_scale: float = 7.5
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    noise_source: str = "threefry"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name in ("prompt", "negative_prompt"):
            _require(
                len(getattr(self, name)) <= MAX_PROMPT,
                name,
                f"{len(getattr(self, name))} letters",
                f"up to {MAX_PROMPT}",
            )
        _within("seed", self.seed, 0, MAX_SEED)
        _within("steps", self.steps, 1, MAX_STEPS)
        _within("width", self.width, 1, MAX_SIDE)
        _within("height", self.height, 1, MAX_SIDE)
        _within("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        # 7 and 7.0 are the same job, and so are 0 and -0.
        object.__setattr__(self, "guidance_scale", float(self.guidance_scale) + 0.0)
        _one_of("sampler", self.sampler, SAMPLERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("noise_source", self.noise_source, SOURCES)

    def to_json(self) -> str:
        """The canonical form: all fields, sorted, without spaces."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


FIELDS: Mapping[str, Any] = typing.get_type_hints(Job)


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise JobError(f"{name} = {found!r}: expected {expected}")


def _allowed(name: str) -> tuple[type, ...]:
    """The types of a field."""
    return typing.get_args(FIELDS[name]) or (FIELDS[name],)


def _check_type(name: str, value: Any) -> None:
    allowed = _allowed(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = (float in allowed and number) or (isinstance(value, allowed) and not isinstance(value, bool))
    kinds = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
    _require(fits, name, value, f"a value of type {kinds}")


def _within(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None:  # NaN is not within anything
        _require(least <= value <= most, name, value, f"a number from {least} to {most}")


def _one_of(name: str, value: str | None, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        near = difflib.get_close_matches(value.lower(), list(known), 1, 0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise JobError(f"{name} = {value!r}: expected one of {', '.join(known)}{hint}")


def unknown_fields(names: Iterable[str]) -> str | None:
    """Says which names are no fields of a job, with near matches; None if all are."""
    strange = [name for name in names if name not in FIELDS]
    if not strange:
        return None
    hints = []
    for name in strange:
        near = difflib.get_close_matches(str(name).lower(), FIELDS, 1, 0.5)
        hints.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"unknown column {', '.join(hints)}; known: {', '.join(FIELDS)}"


def job_from_text(row: Mapping[str, Any]) -> Job:
    """Makes a job from a row of a file, whose values may be text; an empty text is a value not given.

    Raises:
      JobError: for an unknown column, a missing prompt, or a value that can't be read or is out of range.
    """
    problem = unknown_fields(row)
    if problem:
        raise JobError(problem)
    values: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        values[name] = field_from_text(name, value) if isinstance(value, str) else _integral(name, value)
        _check_type(name, values[name])
    if "prompt" not in values:
        raise JobError("there is no prompt in this row; fill in the column 'prompt'")
    return Job(**values)


def field_from_text(name: str, text: str) -> Any:
    """The value of a field that is written as text; raises `JobError` if it can't be read."""
    allowed = _allowed(name)
    if str in allowed:
        return text
    kind = int if int in allowed else float
    try:
        return kind(text.strip())
    except ValueError:
        fraction = None
        with contextlib.suppress(ValueError):
            fraction = float(text)
        if fraction is not None and fraction.is_integer():
            return _integral(name, fraction)
        raise JobError(f"{name} = {text!r}: expected a value of type {kind.__name__}") from None


def _integral(name: str, value: Any) -> Any:
    """2.0 as 2 where a whole number belongs: tables with a gap in a column hold its numbers so."""
    if int not in _allowed(name) or not isinstance(value, float) or not value.is_integer():
        return value
    _require(abs(value) <= _EXACT, name, value, f"a whole number without a point: above {_EXACT} digits are lost")
    return int(value)


def derived_seed(run_seed: int, row: Job, repeat: int) -> int:
    """The seed of a row that names none: from the run's seed, what the row itself asks, and its repeat number."""
    text = f"{run_seed}\n{row.to_json()}\n{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_SEED_BYTES])


def repeated(job: Job, row: Job, repeats: int, run_seed: int) -> tuple[Job, ...]:
    """The job `repeats` times, each with its seed: one after the other from the job's own, or derived.

    Args:
      job: what is to be made.
      row: the same without what the run's configuration adds, which has no say in derived seeds: so runs of one file
        with other settings begin from the same noise.
      repeats: at least 1.
      run_seed: of the derived seeds.

    Raises:
      JobError: if the last seed would be too large.
    """
    if job.seed is None:
        return tuple(dataclasses.replace(job, seed=derived_seed(run_seed, row, repeat)) for repeat in range(repeats))
    return tuple(dataclasses.replace(job, seed=job.seed + repeat) for repeat in range(repeats))


def image_id(job: Job, model_digest: str, fingerprint: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that stand for all that decides an image's bits."""
    decided = json.dumps([json.loads(job.to_json()), model_digest, dict(fingerprint)], sort_keys=True)
    return hashlib.sha256(decided.encode()).hexdigest()[:32]
