"""The metadata of images against the table of their columns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

import sdjax
from pipelines.config import RunConfig
from pipelines.sinks.manifest_rows import FileSizes, manifest_row
from pipelines.sources.prompts import parse
from pipelines.sources.rows import Row
from sdjax.jobs.job import FIELDS, Job
from sdjax.jobs.records import (
    ASKED,
    COLUMNS,
    DECIDED,
    FILE_COLUMNS,
    MEASURED,
    PROVENANCE,
    Column,
    job_of,
    to_metadata,
    with_seeds_as_numbers,
    with_seeds_as_text,
)
from sdjax.text.templates import NO_WILDCARDS
from tests.engine.test_adapted_images import INK
from tests.golden import conditioned, upscalers
from tests.jobs.values import OTHER
from tests.results import make

SMALL = {"width": 16, "height": 16, "steps": 1, "sampler": "euler", "seed": 2**64 - 1}
# Settings of XLA and JAX that are not the defaults, and what other packages add: of which there is nothing here.
NOT_HERE = {"settings", "extensions", "device_packages"}
TYPES: Mapping[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


@pytest.fixture(scope="module")
def engine(tiny: sdjax.Model, tmp_path_factory: pytest.TempPathFactory) -> sdjax.Engine:
    folder = tmp_path_factory.mktemp("files")
    for name in ("loras", "upscalers", "controls"):
        (folder / name).mkdir()
    save_file(INK, folder / "loras" / "ink.safetensors")
    upscalers.write(folder / "upscalers" / "larger.safetensors", next(iter(upscalers.CASES.values())).config)
    return sdjax.Engine(
        tiny,
        batch_size=1,
        devices=jax.local_devices()[:1],
        classifier=sdjax.load_classifier("emoji"),
        library=sdjax.Library(
            loras=folder / "loras",
            controlnets=conditioned.write_controls(folder / "controls"),
            upscalers=folder / "upscalers",
            depth_model="emoji",
        ),
        read_image=conditioned.FILES.__getitem__,
        vae_tile=8,
    )


@pytest.fixture(scope="module")
def plain(engine: sdjax.Engine) -> Mapping[str, Any]:
    [result] = make(engine, [Job(prompt="a red apple", **SMALL)])
    return result.metadata


@pytest.fixture(scope="module")
def unusual(engine: sdjax.Engine) -> Mapping[str, Any]:
    """Metadata of an image with much about it, as the planner tells them before it is made."""
    values = {"prompt": "a {red|green} apple", "negative_prompt": "{a|the} cat", "loras": "ink:0.8", **SMALL}
    values |= {"controlnets": "tiny", "control_image": "edges.png", "control_preprocessor": "depth"}
    values |= {"hires_scale": 2, "hires_upscaler": "larger", "upscaler": "larger", "image": "cat.png", "strength": 0.5}
    values |= {"classifier_scale": 1, "classifier_label": 3}
    [asked] = parse(Row("p.jsonl", 1, values, "", None), RunConfig(), "run", NO_WILDCARDS)
    return engine.prepare(asked.job, asked.notes).metadata


def problems(metadata: Mapping[str, Any], columns: Mapping[str, Column]) -> list[str]:
    """The values that are not as the table has them."""
    found = [f"{name} is no column" for name in metadata if name not in columns]
    for name, column in columns.items():
        value = metadata.get(name)
        is_right = isinstance(value, TYPES[column.json]) and isinstance(value, bool) == (column.json == "boolean")
        if not is_right and not (value is None and column.optional):
            found.append(f"{name} = {value!r}: expected {column.json}")
    return found


def test_every_key_of_an_image_is_a_column_of_its_type(plain):
    assert problems(plain, COLUMNS) == []


def test_every_key_of_an_image_with_much_about_it_is_a_column_of_its_type(unusual, plain):
    measured_later = {name: plain[name] for name in ("decoded_again", "image_width", "image_height")}
    assert problems({**unusual, **measured_later}, COLUMNS) == []


def test_every_column_is_in_some_image(plain, unusual):
    assert COLUMNS.keys() - plain.keys() - unusual.keys() == NOT_HERE


def test_every_column_of_a_manifest_is_in_the_tables(plain):
    row = with_seeds_as_numbers(manifest_row(plain["id"], plain, "png", FileSizes(10, 20, 30)))
    assert problems(row, {**COLUMNS, **FILE_COLUMNS}) == []


def test_rows_of_a_manifest_make_an_arrow_table_of_the_stated_types(plain, unusual):
    schema = pa.schema([(column.name, pa.type_for_alias(column.arrow)) for column in COLUMNS.values()])
    table = pa.Table.from_pylist([dict(plain), dict(unusual)], schema)
    assert table.column("seed").to_pylist() == [2**64 - 1] * 2
    for name in plain:
        assert table.column(name)[0].as_py() == plain[name]


def test_columns_say_what_they_are():
    for column in (*COLUMNS.values(), *FILE_COLUMNS.values()):
        assert column.kind in (ASKED, DECIDED, MEASURED, PROVENANCE)
        assert column.doc[0].isupper() and column.doc.endswith(".")
    assert [column.name for column in COLUMNS.values() if column.kind == ASKED] == [
        field.column for field in FIELDS.values()
    ]


def test_a_job_comes_back_from_its_metadata():
    job = dataclasses.replace(Job(**OTHER), image="in.png")
    metadata = to_metadata(job)
    assert metadata["input_image"] == "in.png" and "image" not in metadata
    assert job_of(metadata) == job == job_of(with_seeds_as_text(metadata))


def test_a_job_of_version_0_2_begins_in_the_middle_as_it_did():
    old = {"sdjax": "0.2.0", "prompt": "a", "seed": 3, "sampler": "plms", "input_image": "in.png", "strength": 0.5}
    assert job_of(old) == Job(
        prompt="a", seed=3, sampler="plms", image="in.png", strength=0.5, multistep_start="k_diffusion"
    )


def test_seeds_are_text_where_readers_would_round_them():
    row = with_seeds_as_text({"seed": 2**64 - 1, "variation_seed": None, "steps": 20})
    assert row == {"seed": "18446744073709551615", "variation_seed": None, "steps": 20}
    assert with_seeds_as_numbers(row) == {"seed": 2**64 - 1, "variation_seed": None, "steps": 20}
