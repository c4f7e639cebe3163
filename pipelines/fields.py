"""Fields of jobs as files and command lines have them: under the names of other tools too, and with values as text."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.job import (
    FIELDS,
    NEEDS,
    NUMBERED,
    ONLY_WITH,
    PICTURES,
    Job,
    JobError,
    allowed_types,
    check_type,
    near_match,
    quoted,
    require,
    split,
)

# Of unknown columns, that an error names.
_MOST_STRANGE = 5
# Up to here a float holds each whole number.
_EXACT = 2**53

# Names of fields in other tools (A1111's command line and API, diffusers, ComfyUI's nodes).
ALIASES = {
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "num_inference_steps": "steps",
    "sampler_name": "sampler",
    "scheduler": "schedule",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "seed_resize_from_w": "seed_resize_from_width",
    "seed_resize_from_h": "seed_resize_from_height",
    "rng": "noise_source",
    "lora": "loras",
    "hypernetwork": "hypernetworks",
    "hypernet": "hypernetworks",
    "init_image": "image",
    "init_images": "image",
    "input_image": "image",
    "denoising_strength": "strength",
    "denoise": "strength",
    "mask": "mask_image",
    "inpainting_fill": "inpaint_fill",
    "hires_denoising_strength": "hires_strength",
    "control_images": "control_image",
    "controlnet": "controlnets",
    "hr_scale": "hires_scale",
    "hr_upscaler": "hires_upscaler",
    "hr_second_pass_steps": "hires_steps",
}
# A1111's own count of clip skip, in which 1 skips nothing: its setting, and its words in pictures.
_A1111_CLIP_SKIP = ("clip_stop_at_last_layers", "clip skip")
# What stands for fields that are missing while others are looked at.
_PARTNERS: Mapping[str, Any] = {
    "prompt": "any",
    "image": "any",
    "mask_image": "any",
    "control_image": "any",
    "controlnets": "any",
    "only_masked": True,
    "hires_scale": 1.0,
    "upscaler": "any",
    "upscale_by": 1.0,
    "variation_seed": 0,
    "seed_resize_from_width": 1,
    "seed_resize_from_height": 1,
    "classifier_label": 0,
}
# Words of tables for yes and no.
_TRUTHS = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)


def partner_of(name: str, values: Mapping[str, Any]) -> Any:
    """What stands for the field that another wants beside it: as many ControlNets as something is said of."""
    partner = NEEDS[name]
    if partner != "controlnets":
        return _PARTNERS[partner]
    parts = (len(split(str(values[each]))) for each in NEEDS if NEEDS[each] == partner and each in values)
    return "; ".join([_PARTNERS[partner]] * max(1, *parts))


def filled_in(given: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says, and what the run says of the rest; but not what would have nothing to act on in this row.

    So one `strength` for a whole run leaves rows without an `image` as they are.
    """
    whole = {**run, **given}

    def is_idle(name: str) -> bool:
        if name not in ONLY_WITH or name in given:
            return False
        partner = whole.get(NEEDS[name])
        return partner is None or _TRUTHS.get(str(partner).strip().lower()) is False

    while idle := [name for name in whole if is_idle(name)]:
        for name in idle:
            del whole[name]
    if "resize_mode" not in given and not any(name in whole for name in PICTURES):
        whole.pop("resize_mode", None)
    return whole


def with_partners(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields, and what stands for others that they want beside them: to look at some of a job before all are known."""
    whole = {"prompt": _PARTNERS["prompt"], **values}
    for name, partner in NEEDS.items():
        if whole.get(name) is not None and whole.get(partner) is None:
            whole[partner] = partner_of(name, whole)
    return whole


def field_named(name: str) -> str:
    """The field that a column or key means, by the names of other tools too; the name itself if none."""
    if _is_a1111_clip_skip(name):
        return str(name)  # another count: see `with_fields_named`
    plain = str(name).strip().lower().replace(" ", "_") if name not in FIELDS else name
    return plain if plain in FIELDS else ALIASES.get(plain, name)


def with_fields_named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row under the names of our fields.

    Raises:
      JobError: if two columns mean one field.
    """
    named: dict[str, Any] = {}
    for name, value in row.items():
        field = field_named(name)
        if _is_a1111_clip_skip(name):
            field, value = "clip_skip", _from_a1111_clip_skip(value)
        if field in named:
            raise JobError(f"{quoted(name)} and another column both mean {field}; keep one")
        named[field] = value
    return named


def _is_a1111_clip_skip(name: Any) -> bool:
    return str(name).strip().lower() in _A1111_CLIP_SKIP


def _from_a1111_clip_skip(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_from_a1111_clip_skip(each) for each in value]
    if isinstance(value, str) and re.search(r",|\.\.", value):
        raise JobError(
            f"clip_stop_at_last_layers = {quoted(value)}: give several values in clip_skip, each less by one"
        )
    if value is None or (isinstance(value, str) and not value.strip()):
        return value
    try:
        layers = int(value)
    except (TypeError, ValueError):
        layers = 0
    require(layers >= 1, _A1111_CLIP_SKIP[0], value, "a whole number from 1 (nothing left out) to 12")
    return layers - 1


def unknown_fields(columns: Iterable[str]) -> str | None:
    """Says which names are no fields of a job, with near matches; None if all are."""
    known = (*FIELDS, *ALIASES, *_A1111_CLIP_SKIP)
    strange = (name for name in columns if field_named(name) not in FIELDS and not _is_a1111_clip_skip(name))
    hints = [f"{quoted(name)}{near_match(str(name), known)}" for name in itertools.islice(strange, _MOST_STRANGE)]
    if not hints:
        return None
    more = sum(1 for _ in strange)
    others = f" and {more} more" if more else ""
    return f"unknown column {', '.join(hints)}{others}; known: {', '.join(FIELDS)}"


def job_from_text(row: Mapping[str, Any]) -> Job:
    """Makes a job from a row of a file, whose values may be text; an empty text is a value not given.

    An empty prompt is one, where it is said: callers leave out what is blank in a table.

    Raises:
      JobError: for an unknown column, a missing prompt, or a value that can't be read or is out of range.
    """
    problem = unknown_fields(row)
    if problem:
        raise JobError(problem)
    values: dict[str, Any] = {}
    for name, value in with_fields_named(row).items():
        if value is None or (isinstance(value, str) and not value.strip() and (name, value) != ("prompt", "")):
            continue
        values[name] = field_from_text(name, value) if isinstance(value, str) else _integral(name, value)
        check_type(name, values[name])
    if "prompt" not in values:
        raise JobError("there is no prompt in this row; fill in the column 'prompt'")
    return Job(**values)


def is_number(name: str) -> bool:
    """Whether a field, by any of its names, is a number."""
    field = field_named(name)
    return field in FIELDS and not {str, bool} & set(allowed_types(field))


def field_from_text(name: str, text: str) -> Any:
    """The value of a field that is written as text; raises `JobError` if it can't be read."""
    allowed = allowed_types(name)
    if str in allowed:
        return text
    if bool in allowed:
        return truth_from_text(name, text)
    kind = int if int in allowed else float
    try:
        return kind(text.strip())
    except ValueError:
        fraction = None
        with contextlib.suppress(ValueError):
            fraction = float(text)
        if fraction is not None and fraction.is_integer():
            return _integral(name, fraction)
        raise JobError(f"{name} = {quoted(text)}: expected a value of type {kind.__name__}") from None


def truth_from_text(name: str, text: str) -> bool:
    """True or false in one of the words of tables; raises `JobError` for another."""
    said = _TRUTHS.get(text.strip().lower())
    require(said is not None, name, text, "true or false")
    return bool(said)


def _integral(name: str, value: Any) -> Any:
    """2.0 as 2 where a whole number belongs, as tables with gaps hold it; a choice by its number."""
    if bool in allowed_types(name) and value in (0, 1):
        return bool(value)
    if name in NUMBERED and isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return str(int(value))
    if int not in allowed_types(name) or not isinstance(value, float) or not value.is_integer():
        return value
    require(abs(value) <= _EXACT, name, value, f"a whole number without a point: above {_EXACT} digits are lost")
    return int(value)
