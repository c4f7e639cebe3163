"""The generation parameters of an image as AUTOMATIC1111's web UI writes them (`create_infotext`).

The names of settings are those of the columns of metadata, the names of choices those of a job's fields. The text is
for tools that read it: it can't tell a prompt whose line begins with "Negative prompt:" from a negative prompt, and
U+FFFD stands in it for what text chunks can't hold.
"""

import json
from collections.abc import Mapping
from typing import Any

from sdjax.diffusion.samplers import sampler_row
from sdjax.images.metadata import NO_TEXT
from sdjax.jobs.canonical import split
from sdjax.jobs.job import FIELDS
from sdjax.jobs.records import COLUMNS

# Digits that A1111 shows of a model's digest, and of a ControlNet's.
_HASH_DIGITS, _CONTROL_DIGITS = 10, 8
# Sampler options that A1111 writes where they are not at these values.
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

# Written likewise; of these A1111 has the third.
_ACCELERATIONS = ("deep_cache_interval", "deep_cache_branch", "token_merging_ratio", "gate_step")

Metadata = Mapping[str, Any]


def a1111_text(metadata: Metadata) -> str:
    """The text for an image.

    Args:
      metadata: of an image that the engine made.
    """
    settings = {
        **_always(metadata),
        **_unusual(metadata),
        _label("noise_source"): _choice("noise_source", metadata),
        _label("sdjax"): f"sdjax {metadata['sdjax']}",
    }
    prompt = metadata["prompt"] + _tags("lora", metadata["loras"]) + _tags("hypernet", metadata["hypernetworks"])
    negative = metadata["negative_prompt"]
    line = f"\n{_label('negative_prompt')}: {negative}" if negative else ""
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items())
    return NO_TEXT.sub("\ufffd", f"{prompt}{line}\n{last}".strip())


def _label(column: str) -> str:
    return COLUMNS[column].label


def _choice(field: str, metadata: Metadata) -> Any:
    """The value of a field as A1111 calls it."""
    return FIELDS[field].labels.get(metadata[field], metadata[field])


def _tags(word: str, field: str) -> str:
    """A job's own adapters as A1111 names them, in its prompt."""
    return "".join(f"<{word}:{each}>" for each in split(field))


def _plain_number(value: Any) -> Any:
    """7 rather than 7.0, as A1111 shows it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


# --- Settings, in A1111's order ---


def _always(metadata: Metadata) -> dict[str, Any]:
    return {
        **_numbers(metadata, "steps"),
        _label("sampler"): _choice("sampler", metadata),
        _label("schedule"): _choice("schedule", metadata),
        **_numbers(metadata, "guidance_scale", "seed"),
        _label("width"): f"{metadata['width']}x{metadata['height']}",
        _label("model_digest"): (metadata["model_file_digest"] or metadata["model_digest"])[:_HASH_DIGITS],
        _label("model"): metadata["model"],
    }


def _numbers(metadata: Metadata, *columns: str) -> dict[str, Any]:
    return {_label(column): _plain_number(metadata[column]) for column in columns}


def _unusual(metadata: Metadata) -> dict[str, Any]:
    """What A1111 writes only where it is not as usual."""
    return {
        **_begin(metadata),
        **_masks(metadata),
        **_second_pass(metadata),
        **_controls(metadata),
        **_upscaler(metadata),
        **_variation(metadata),
        **_sampler_options(metadata),
        **_accelerations(metadata),
        **_emphasis(metadata),
        **_adapters(metadata),
        **_templates(metadata),
    }


def _begin(metadata: Metadata) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if metadata["clip_skip"]:
        settings[_label("clip_skip")] = metadata["clip_skip"] + 1
    if metadata["strength"] is not None:
        settings |= _numbers(metadata, "strength")
    return settings


def _masks(metadata: Metadata) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if metadata["invert_mask"]:
        settings[_label("invert_mask")] = "Inpaint not masked"
    if metadata["mask_blur"]:
        settings |= _numbers(metadata, "mask_blur")
    if metadata["only_masked"]:
        settings[_label("only_masked")] = "Only masked"
        settings |= _numbers(metadata, "only_masked_padding")
    if metadata["inpaint_fill"] in FIELDS["inpaint_fill"].labels:
        settings[_label("inpaint_fill")] = _choice("inpaint_fill", metadata)
    return settings


def _second_pass(metadata: Metadata) -> dict[str, Any]:
    if not metadata["hires_scale"]:
        return {}
    settings = _numbers(metadata, "hires_strength", "hires_scale")
    if metadata["hires_steps"]:
        settings |= _numbers(metadata, "hires_steps")
    return {**settings, _label("hires_upscaler"): _choice("hires_upscaler", metadata)}


def _controls(metadata: Metadata) -> dict[str, Any]:
    """As the extension sd-webui-controlnet writes them."""
    if not metadata["controlnets"]:
        return {}
    settings: dict[str, Any] = {}
    named, made = metadata["controlnets"].split("; "), metadata["control_preprocessor"].split("; ")
    mode = "My prompt is more important" if metadata["guess_mode"] else "Balanced"
    for index, (control, digest) in enumerate(zip(named, metadata["control_digests"].split("; "), strict=True)):
        module = made[index if len(made) == len(named) else 0]
        name, *numbers = control.split(":")  # what is left out is as usual
        weight, start, end = numbers + ["1", "0", "1"][len(numbers) :]
        settings[f"{_label('controlnets')} {index}"] = (
            f"Module: {module}, Model: {name} [{digest[:_CONTROL_DIGITS]}], Weight: {weight}, "
            f"Guidance Start: {start}, Guidance End: {end}, Control Mode: {mode}"
        )
    return settings


def _upscaler(metadata: Metadata) -> dict[str, Any]:
    if not metadata["upscaler"]:
        return {}
    factor = _numbers(metadata, "upscale_by") if metadata["upscale_by"] else {}
    return {**factor, _label("upscaler"): _choice("upscaler", metadata)}


def _variation(metadata: Metadata) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if metadata["variation_strength"]:
        settings |= _numbers(metadata, "variation_seed", "variation_strength")
    if metadata["seed_resize_from_width"]:
        size = f"{metadata['seed_resize_from_width']}x{metadata['seed_resize_from_height']}"
        settings[_label("seed_resize_from_width")] = size
    return settings


def _sampler_options(metadata: Metadata) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if metadata["eta"] is not None and metadata["eta"] != sampler_row(metadata["sampler"]).eta:
        settings |= _numbers(metadata, "eta")
    for name in _CHURN:
        if metadata[name] != FIELDS[name].default:
            settings |= _numbers(metadata, name)
    return settings


def _accelerations(metadata: Metadata) -> dict[str, Any]:
    # Metadata of versions before 0.5 have none of them.
    names = [name for name in _ACCELERATIONS if metadata.get(name, FIELDS[name].default) != FIELDS[name].default]
    return _numbers(metadata, *names)


def _emphasis(metadata: Metadata) -> dict[str, Any]:
    usual = metadata["emphasis"] == FIELDS["emphasis"].default or metadata["prompt_syntax"] != "a1111"
    return {} if usual else {_label("emphasis"): FIELDS["emphasis"].labels[metadata["emphasis"]]}


def _adapters(metadata: Metadata) -> dict[str, Any]:
    applied = json.loads(metadata["adapters_applied"] or "[]")
    settings: dict[str, Any] = {}
    for label, kind in ((_label("adapters_applied"), "lora"), ("TI hashes", "embedding")):
        hashes = [f"{each['name']}: {each['short_hash']}" for each in applied if each["kind"] == kind]
        if hashes:
            settings[label] = ", ".join(hashes)
    return settings


def _templates(metadata: Metadata) -> dict[str, Any]:
    columns = ("prompt_template", "negative_prompt_template")
    return {_label(column): metadata[column] for column in columns if metadata.get(column)}
