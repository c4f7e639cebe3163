import json

import jsonschema
import pytest

from sdjax.diffusion.samplers import SAMPLERS
from sdjax.jobs.job import FIELDS, Job, JobError
from sdjax.jobs.schema import field_table, json_schema
from sdjax.jobs.text_values import job_from_text
from tests.jobs.values import OTHER, TOGETHER

SCHEMA = json_schema({"sweep": ("product", "zip")})
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def is_valid(row):
    return VALIDATOR.is_valid(json.loads(json.dumps(row)))


def test_it_is_a_schema_of_the_draft_that_it_names():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert jsonschema.validators.validator_for(SCHEMA) is jsonschema.Draft202012Validator


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_each_field_is_valid_and_one_of_another_type_is_not(name):
    row = {"prompt": "a", **TOGETHER.get(name, {}), name: OTHER[name]}
    assert is_valid(row) and job_from_text(row)
    assert not is_valid({**row, name: {"a": 1}})
    assert SCHEMA["properties"][name]["description"] == FIELDS[name].doc


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "seed": 2**64 - 1, "steps": 5.0},
        {"prompt": "", "seed": None, "width": None},
        {"prompt": "a", "cfg_scale": 4, "num_inference_steps": 7, "subseed": 3, "rng": "NV", "clip skip": 2},
        {"prompt": "a", "init_image": "a.png", "denoising_strength": 0.5, "mask": "b.png", "inpainting_fill": 2},
        {"prompt": "a", "controlnet": "edges", "init_image": "a.png"},
        {"prompt": "a", "image": "a.png", "resize_mode": "just_resize", "invert_mask": False, "mask_image": "b.png"},
        {"prompt": "a", "sampler": "DPM++ 2M Karras"},
        {"prompt": "a", "sampler": "EulerDiscreteScheduler", "schedule": "SGM Uniform", "emphasis": "No norm"},
        {"prompt": ["a cat", "a dog"], "guidance_scale": [4, 9.5], "sweep": "zip"},
        {"prompt": "a", "seed": "1..100", "sampler": ["euler", "ddim"], "steps": "4, 7..9"},
        {"prompt": "a", "sampler": "euler, ddim"},
        {"prompt": "a", "upscaler": "x4.pth", "upscaler_steps": 5},
    ],
)
def test_rows_that_are_read_are_valid(row):
    assert is_valid(row)


@pytest.mark.parametrize(
    "row",
    [
        {"seed": 1},
        {"prompt": None},
        {"prompt": "a", "stesp": 5},
        {"prompt": "a", "steps": 0},
        {"prompt": "a", "steps": 1001},
        {"prompt": "a", "steps": 2.5},
        {"prompt": "a", "steps": "many"},
        {"prompt": "a", "seed": -2},
        {"prompt": "a", "seed": 2**64},
        {"prompt": "a", "seed": True},
        {"prompt": "a", "guidance_scale": -1},
        {"prompt": "a", "sampler": "eular"},
        {"prompt": "a", "schedule": "trailing"},
        {"prompt": "a", "prompt_syntax": "a111"},
        {"prompt": "a", "clip_stop_at_last_layers": 0},
        {"prompt": "a", "steps": []},
        {"prompt": "a", "steps": [5, 0]},
        {"prompt": "a", "strength": 0.5},
        {"prompt": "a", "denoise": 0.5},
        {"prompt": "a", "image": "a.png", "mask_blur": 4},
        {"prompt": "a", "controlnets": "edges"},
        {"prompt": "a", "upscale_by": 2},
        {"prompt": "a", "classifier_scale": 2},
        {"prompt": "a" * 100_001},
        {"prompt": "a", "sweep": "both"},
    ],
)
def test_rows_that_are_rejected_are_invalid(row):
    assert not is_valid(row)


def test_a_row_that_is_valid_is_read_or_breaks_a_rule_about_several_fields():
    for name, field in FIELDS.items():
        if field.within is None:
            continue
        for value in (*field.within, field.within[0] - 1, field.within[1] + 1):
            row = {"prompt": "a", **TOGETHER.get(name, {}), name: value}
            try:
                Job(**row)
            except JobError as error:
                assert not is_valid(row) or f"{name} = " not in str(error) or "less than" in str(error)
            else:
                assert is_valid(row)


def test_the_table_has_what_each_field_can_be_and_its_default():
    rows = {row.name: row for row in field_table()}
    assert rows.keys() == FIELDS.keys()
    assert rows["seed"].values == "-1 to 2^64 - 1" and rows["steps"].default == "20"
    assert rows["noise_source"].values == "`threefry`, `torch`, `philox`"
    assert rows["strength"].doc.endswith("It needs `image`. Also read as `denoising_strength` or `denoise`.")
    assert set(SAMPLERS) <= set(FIELDS["sampler"].known)
