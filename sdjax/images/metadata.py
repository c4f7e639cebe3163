"""What a picture says of itself, as text: no pixels and no file formats here.

Two forms of the same dict go into every picture. The JSON is complete and is what sdjax reads back; it is
pure ASCII, so that any container holds it and even half of a surrogate pair comes back as it was. The text in
the words of AUTOMATIC1111's web UI is for the tools that read those: it can't tell a prompt whose line begins
with "Negative prompt:" from a negative prompt, and U+FFFD stands in it for what text chunks can't hold.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.sax import saxutils

from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.samplers.names import A1111_SAMPLERS, A1111_SCHEDULES

# https://cv.iptc.org/newscodes/digitalsourcetype: made by a model, by prompting.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# Without an entry of RNG readers take the seed for one of the GPU's generator.
A1111_RNGS = {"torch": "CPU", "philox": "NV", "threefry": "threefry"}
# The digits of a model's digest that A1111 shows.
_HASH_DIGITS = 10
# Likewise of a ControlNet's.
_CONTROL_DIGITS = 8

# EXIF 2.32, section 4.6.5: the first 8 bytes of a UserComment name its character code.
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"

# NUL ends a text chunk in many readers, and a lone surrogate is no character of UTF-8.
NO_TEXT = re.compile("[\0\ud800-\udfff]")
_XMP_START, _XMP_END = b"<sdjax:metadata>", b"</sdjax:metadata>"
# Letters of a text that are read and written at most. A row of a prompt file has 4 MB; of JSON, a few bytes of a
# stranger's make a list, which takes thirty times the memory.
MAX_TEXT = 1 << 24
# How deep values may lie in each other; ours are flat.
_MOST_DEEP = 4
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:sdjax="urn:sdjax:metadata#">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>{more}
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


# Our names of its upscalers.
A1111_UPSCALERS: Mapping[str, str] = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}


# A1111's "fill" is another filling than any of ours, and its "original" is not written.
_MASKED_CONTENT = {"noise": "latent noise", "blank": "latent nothing"}


def to_json(metadata: Mapping[str, Any]) -> str:
    """The complete metadata: ASCII, keys sorted.

    Raises:
      ValueError: for NaN or infinity, which JSON has no words for, or more than `MAX_TEXT` letters.
    """
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} letters of metadata, more than {MAX_TEXT}; shorten the prompts")
    return text


def from_json(text: str) -> dict[str, Any]:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: if it is no JSON object, too long, or its values lie too deep in each other.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text)} letters, more than {MAX_TEXT}")
    try:
        metadata = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"it is a {type(metadata).__name__}, not an object")
    if not _is_flat(metadata, _MOST_DEEP):
        raise ValueError("it is nested too deep")
    return metadata


def _is_flat(value: Any, depth: int) -> bool:
    """Whether values lie at most so deep in each other."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_flat(each, depth - 1) for each in inner)


def a1111_text(metadata: Mapping[str, Any]) -> str:
    """The generation parameters as AUTOMATIC1111's web UI writes them (`create_infotext`).

    Args:
      metadata: of a picture made by the engine.
    """
    settings = {
        "Steps": metadata["steps"],
        "Sampler": A1111_SAMPLERS[metadata["sampler"]],
        "Schedule type": A1111_SCHEDULES[metadata["schedule"]],
        "CFG scale": _plain_number(metadata["guidance_scale"]),
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Model hash": (metadata["model_file_digest"] or metadata["model_digest"])[:_HASH_DIGITS],
        "Model": metadata["model"],
        **_unusual(metadata),
        "RNG": A1111_RNGS[metadata["noise_source"]],
        "Version": f"sdjax {metadata['sdjax']}",
    }
    prompt = metadata["prompt"] + _tags("lora", metadata["loras"]) + _tags("hypernet", metadata["hypernetworks"])
    negative = f"\nNegative prompt: {metadata['negative_prompt']}" if metadata["negative_prompt"] else ""
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items())
    return NO_TEXT.sub("\ufffd", f"{prompt}{negative}\n{last}".strip())


def _of_masks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if metadata["invert_mask"]:
        settings["Mask mode"] = "Inpaint not masked"
    if metadata["mask_blur"]:
        settings["Mask blur"] = _plain_number(metadata["mask_blur"])
    if metadata["only_masked"]:
        settings |= {"Inpaint area": "Only masked", "Masked area padding": metadata["only_masked_padding"]}
    if metadata["inpaint_fill"] in _MASKED_CONTENT:
        settings["Masked content"] = _MASKED_CONTENT[metadata["inpaint_fill"]]
    return settings


def _of_controls(metadata: Mapping[str, Any]) -> dict[str, Any]:
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
        settings[f"ControlNet {index}"] = (
            f"Module: {module}, Model: {name} [{digest[:_CONTROL_DIGITS]}], Weight: {weight}, "
            f"Guidance Start: {start}, Guidance End: {end}, Control Mode: {mode}"
        )
    return settings


def _unusual(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What A1111 writes only where it is not as usual."""
    settings: dict[str, Any] = {}
    if metadata["clip_skip"]:
        settings["Clip skip"] = metadata["clip_skip"] + 1
    if metadata["strength"] is not None:
        settings["Denoising strength"] = _plain_number(metadata["strength"])
    settings |= _of_masks(metadata)
    if metadata["hires_scale"]:
        settings["Denoising strength"] = _plain_number(metadata["hires_strength"])
        settings["Hires upscale"] = _plain_number(metadata["hires_scale"])
        if metadata["hires_steps"]:
            settings["Hires steps"] = metadata["hires_steps"]
        settings["Hires upscaler"] = A1111_UPSCALERS.get(metadata["hires_upscaler"], metadata["hires_upscaler"])
    settings |= _of_controls(metadata)
    if metadata["upscaler"]:
        if metadata["upscale_by"]:
            settings["Postprocess upscale by"] = _plain_number(metadata["upscale_by"])
        settings["Postprocess upscaler"] = A1111_UPSCALERS.get(metadata["upscaler"], metadata["upscaler"])
    if metadata["variation_strength"]:
        settings["Variation seed"] = metadata["variation_seed"]
        settings["Variation seed strength"] = _plain_number(metadata["variation_strength"])
    if metadata["seed_resize_from_width"]:
        size = f"{metadata['seed_resize_from_width']}x{metadata['seed_resize_from_height']}"
        settings["Seed resize from"] = size
    if metadata["eta"] is not None and metadata["eta"] != SAMPLERS[metadata["sampler"]].eta:
        settings["Eta"] = _plain_number(metadata["eta"])
    for key, name, usual in (
        ("Sigma churn", "s_churn", 0.0),
        ("Sigma tmin", "s_tmin", 0.0),
        ("Sigma tmax", "s_tmax", None),
        ("Sigma noise", "s_noise", 1.0),
    ):
        if metadata[name] != usual:
            settings[key] = _plain_number(metadata[name])
    if metadata["emphasis"] != "original" and metadata["prompt_syntax"] == "a1111":
        settings["Emphasis"] = {"no_norm": "No norm", "ignore": "Ignore"}[metadata["emphasis"]]
    applied = json.loads(metadata["adapters_applied"] or "[]")
    for key, kind in (("Lora hashes", "lora"), ("TI hashes", "embedding")):
        hashes = [f"{each['name']}: {each['short_hash']}" for each in applied if each["kind"] == kind]
        if hashes:
            settings[key] = ", ".join(hashes)
    if metadata.get("prompt_template"):
        settings["Template"] = metadata["prompt_template"]
    if metadata.get("negative_prompt_template"):
        settings["Negative Template"] = metadata["negative_prompt_template"]
    return settings


def _tags(word: str, field: str) -> str:
    """A job's own adapters as A1111 names them, in its prompt."""
    return "".join(f"<{word}:{each.strip()}>" for each in field.split(";") if each.strip())


def _plain_number(value: float) -> int | float:
    """7 rather than 7.0, as A1111 shows it."""
    return int(value) if float(value).is_integer() else value


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def xmp_packet(metadata_json: str = "") -> bytes:
    """The label of IPTC's `DigitalSourceType`, and the metadata where a format has no place for it."""
    inside = f"\n<sdjax:metadata>{saxutils.escape(metadata_json)}</sdjax:metadata>" if metadata_json else ""
    return _XMP.format(source_type=SOURCE_TYPE, more=inside).encode()


def json_in_xmp(packet: bytes) -> str | None:
    """The metadata in a packet of `xmp_packet`; None if there is none.

    Found by its element's name and not by an XML parser, which a stranger's packet could keep busy for ever.
    """
    start = packet.find(_XMP_START)
    end = packet.find(_XMP_END, start)
    if start < 0 or end < 0:
        return None
    return saxutils.unescape(packet[start + len(_XMP_START) : end].decode("utf-8", "replace"))


def user_comment(text: str) -> bytes:
    """The value of EXIF's UserComment, big-endian as A1111 (by piexif) writes it."""
    return _UNICODE + text.encode("utf-16-be")


def text_of_user_comment(value: bytes) -> str:
    """The text of a UserComment by any tool: these disagree on the byte order of UNICODE."""
    code, rest = value[: len(_UNICODE)], value[len(_UNICODE) :]
    if code == _UNICODE:
        # Generation parameters are mostly ASCII, of which one byte of two is 0.
        order = "be" if rest[::2].count(0) >= rest[1::2].count(0) else "le"
        return rest.decode(f"utf-16-{order}", "replace").strip("\ufeff")
    return (rest if code == _ASCII else value).decode("utf-8", "replace").strip("\0")
