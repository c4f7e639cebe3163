"""The metadata of an image: its columns in one table, a job as metadata, and the job of metadata."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdjax.jobs.fields import Field
from sdjax.jobs.job import FIELDS, Job

ASKED, DECIDED, MEASURED, PROVENANCE = "asked", "decided", "measured", "provenance"

# Each of the kinds that JSON has, as Arrow names its own; whole numbers beyond 2^63 are "uint64".
_ARROW = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
_JSON: Mapping[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_DIGITS = re.compile("[0-9]{1,20}")
# What version 0.2 did where later versions ask.
_OF_0_2: Mapping[str, Any] = {"multistep_start": "k_diffusion"}


class Column(NamedTuple):
    """A column of the metadata, as they are in images, in `metadata.jsonl` and in tables.

    name: the key.
    json: the type of its values in JSON: "string", "integer", "number" or "boolean".
    kind: "asked" for fields of the job with defaults filled in; "decided" for what decides the image's bits besides;
      "measured" for what was found when it was made; "provenance" for where it comes from.
    doc: what it says, in full sentences.
    optional: whether it may be null or missing.
    arrow: the type of its values in Arrow, by its alias.
    label: its name in the text that A1111 writes into images; "" where that has none.
    """

    name: str
    json: str
    kind: str
    doc: str
    optional: bool = False
    arrow: str = ""
    label: str = ""


def _of_field(field: Field) -> Column:
    json = _JSON[field.kind]
    arrow = "uint64" if json == "integer" and field.within and field.within[1] > 2**63 else _ARROW[json]
    return Column(field.column, json, ASKED, field.doc, field.optional, arrow, field.label)


def _column(
    name: str, kind: str, doc: str, *, json: str = "string", optional: bool = False, label: str = ""
) -> tuple[str, Column]:
    return name, Column(name, json, kind, doc, optional, _ARROW[json], label)


# fmt: off
_OTHERS = (
    _column("id", DECIDED, "The hash of all that decides the image's bits, in 32 hexadecimal digits."),

    _column("model_digest", DECIDED, "The sha256 of the model's files and how they were loaded.", label="Model hash"),
    _column("sdjax", DECIDED, "The version of sdjax.", label="Version"),
    *(
        _column(name, DECIDED, f"The version of {name}.")
        for name in ("jax", "jaxlib", "flax", "numpy", "tokenizers", "transformers")
    ),
    _column("pillow", DECIDED, "The version of Pillow, where it read or resized an image.", optional=True),
    _column("device_kind", DECIDED, "The kind of the devices; of CPUs with their instruction set."),
    _column("batch_size", DECIDED, "The images per device for which programs are compiled.", json="integer"),
    _column("dtype", DECIDED, "The floating-point type of the networks' arithmetic."),
    _column("vae_dtype", DECIDED, "The same of the VAE's."),
    _column("vae_tile", DECIDED, "The side of the VAE's tiles in pixels.", json="integer", optional=True),
    _column("device_packages", DECIDED, "Packages with an accelerator's compiler and kernels, and their versions.",
            optional=True),
    _column("settings", DECIDED, "Settings of XLA and JAX that are not the defaults, as JSON.", optional=True),
    _column("lora_mode", DECIDED, "Whether LoRAs were merged into the weights or ran beside them.", optional=True),
    _column("extensions", DECIDED, "What other packages add that acted: group, name, distribution, version and sha256.",
        optional=True),
    _column("adapters_applied", DECIDED, "Kind, name, sha256 and weights of the adapters that acted, as JSON.",
        label="Lora hashes"),
    _column("classifier_digest", DECIDED, "The digest of the classifier that guided.", optional=True),
    _column("control_digests", DECIDED, "The sha256 of each ControlNet.", optional=True),
    _column("depth_digest", DECIDED, "The sha256 of the estimator of depth.", optional=True),
    _column("hires_upscaler_digest", DECIDED, "The sha256 of the upscaler between the two passes.", optional=True),
    _column("upscaler_digest", DECIDED, "The sha256 of the upscaler of the finished image.", optional=True),
    _column("pictures", DECIDED, "The sha256 of each input image, and what was done to read them, as JSON."),

    _column("steps_taken", MEASURED, "The steps of the first pass, by `strength` of `steps`.", json="integer"),
    _column("evaluations", MEASURED, "How often the UNet was asked, in both passes together.", json="integer"),
    *(
        column
        for name, text in (("prompt", "prompt"), ("negative_prompt", "negative prompt"))
        for column in (
            _column(f"{name}_tokens", MEASURED, f"The tokens of the {text}.", json="integer"),
            _column(f"{name}_chunks", MEASURED, f"The chunks into which the {text} was cut.", json="integer"),
            _column(f"{name}_cut", MEASURED, f"The text of the {text} that the text encoder did not read."),
        )
    ),
    _column("problems_found", MEASURED, "What in the prompts could not be read as it was probably meant."),
    _column("decoded_again", MEASURED, "Whether the VAE worked in float32 after NaN at first.", json="boolean"),
    _column("image_width", MEASURED, "The width of the finished image in pixels.", json="integer"),
    _column("image_height", MEASURED, "The height of the finished image in pixels.", json="integer"),

    _column("model", PROVENANCE, "The model's name.", label="Model"),
    _column("model_kind", PROVENANCE, "What the model is, for people to read."),
    _column("model_file_digest", PROVENANCE, "The sha256 of a model's single file; empty for a folder."),
    _column("model_revision", PROVENANCE, "The commit from which the model was fetched; empty if it was not."),
    _column("vae_revision", PROVENANCE, "The commit from which another VAE was fetched; empty if none was."),
    _column("prompt_template", PROVENANCE, "The template that gave the prompt.", optional=True, label="Template"),
    _column("negative_prompt_template", PROVENANCE, "The template that gave the negative prompt.", optional=True,
        label="Negative Template"),
    _column("template_mode", PROVENANCE, "Whether templates gave one text by the seed or all texts.", optional=True),
)
# fmt: on

# Columns of an image's metadata by name.
COLUMNS: Mapping[str, Column] = {field.column: _of_field(field) for field in FIELDS.values()} | dict(_OTHERS)

# Columns of `metadata.jsonl` besides: of the files of an image.
FILE_COLUMNS: Mapping[str, Column] = dict(
    (
        _column("file_name", PROVENANCE, "The path of the image from the output's folder."),
        _column("file_size", MEASURED, "Bytes of the image's file.", json="integer"),
        _column("steps_size", MEASURED, "Bytes of the strip of previews; 0 without one.", json="integer"),
        _column("animation_size", MEASURED, "Bytes of the animation of previews; 0 without one.", json="integer"),
    )
)

# Columns whose whole numbers go beyond those that every reader of JSON holds: their digits are text in
# `metadata.jsonl`.
_AS_TEXT = tuple(column.name for column in COLUMNS.values() if column.arrow == "uint64")


def to_metadata(job: Job) -> dict[str, Any]:
    """The fields of a job as metadata have them."""
    return {field.column: getattr(job, name) for name, field in FIELDS.items()}


def job_of(metadata: Mapping[str, Any]) -> Job:
    """The job of an image's metadata or of its row, also of version 0.2, which had fewer fields.

    Raises:
      JobError: if it is none.
    """
    metadata = with_seeds_as_numbers(metadata)
    if str(metadata.get("sdjax")).startswith("0.2."):
        metadata = {**_OF_0_2, **metadata}
    return Job(**{name: metadata[field.column] for name, field in FIELDS.items() if field.column in metadata})


def column_of(name: str) -> str:
    """What metadata call a field of a job; the name of another column is its own."""
    return FIELDS[name].column if name in FIELDS else name


def with_seeds_as_text(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as `metadata.jsonl` has them, in which no reader rounds a seed."""
    seeds = {name: str(metadata[name]) for name in _AS_TEXT if type(metadata.get(name)) is int}
    return {**metadata, **seeds}


def with_seeds_as_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of images, from a row of `metadata.jsonl`; earlier versions have numbers there already."""
    texts = {name: row[name] for name in _AS_TEXT if isinstance(row.get(name), str)}
    return {**row, **{name: int(text) for name, text in texts.items() if _DIGITS.fullmatch(text)}}
