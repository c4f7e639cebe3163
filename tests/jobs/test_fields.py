from pathlib import Path

import pytest

from sdjax.jobs.fields import REQUIRED
from sdjax.jobs.job import FIELDS, Job, JobError, check
from tests.jobs.values import OTHER


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("steps", 0, "a number from 1 to 1000"),
        ("steps", -5, "a number from 1 to 1000"),
        ("steps", 1001, "a number from 1 to 1000"),
        ("guidance_scale", float("nan"), "a number from 0.0 to 1000.0"),
        ("guidance_scale", -1.0, "a number from 0.0 to 1000.0"),
        ("seed", -2, "a number from -1 to 18446744073709551615"),
        ("seed", 2**64, "a number from -1 to 18446744073709551615"),
        ("width", 0, "a number from 1 to 8192"),
        ("height", 8200, "a number from 1 to 8192"),
        ("sampler", "eular", "did you mean 'euler'?"),
        ("sampler", "Eular a", "did you mean 'Euler a'?"),
        ("sampler", "EulerDiscretScheduler", "did you mean 'EulerDiscreteScheduler'?"),
        ("schedule", "karas", "did you mean 'karras'?"),
        ("schedule", "align steps", "did you mean 'Align Your Steps'?"),
        ("noise_source", "gpus", "one of threefry, torch, philox"),
        ("timestep_spacing", "leding", "did you mean 'leading'?"),
        ("prompt_syntax", "a111", "did you mean 'a1111'?"),
        ("clip_skip", 12, "a number from 0 to 11"),
    ],
)
def test_an_impossible_value_is_an_error_that_names_it_and_what_is_possible(field, value, expected):
    with pytest.raises(JobError) as raised:
        Job(**{"prompt": "a", field: value})
    assert str(raised.value).startswith(f"{field} = {value!r}: expected ") and expected in str(raised.value)


def test_choices_forgive_how_they_are_spelled():
    job = Job(prompt="a", prompt_syntax="A1111", emphasis="No norm", noise_source="NV", timestep_spacing="K-Diffusion")
    assert (job.prompt_syntax, job.emphasis, job.noise_source) == ("a1111", "no_norm", "philox")
    assert job.timestep_spacing == "k_diffusion"


def test_what_another_tool_calls_a_choice_is_taken():
    job = Job(prompt="a", image=Path("a.png"), resize_mode="Crop and resize", upscaler="Lanczos", upscale_by=2)
    assert (job.image, job.resize_mode, job.upscaler) == ("a.png", "crop", "lanczos")
    hires = Job(prompt="a", hires_scale=2, hires_upscaler="Latent (bicubic antialiased)")
    assert hires.hires_upscaler == "latent_bicubic_antialiased"
    masked = Job(prompt="a", image="a.png", mask_image="b.png", inpaint_fill="latent nothing")
    assert masked.inpaint_fill == "blank"


def test_blank_paths_are_none_and_pixels_are_told_where_to_go():
    assert Job(prompt="a", image="  ", control_image=" ; ") == Job(prompt="a")
    with pytest.raises(JobError, match="image is a bytes: expected a path"):
        Job(prompt="a", image=b"x" * 10_000)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.kind is float])
def test_a_number_beyond_any_float_is_an_error_that_names_the_field(name):
    with pytest.raises(JobError, match=f"{name} = 1000.*: far too large"):
        Job(prompt="a", **{name: 10**400})


@pytest.mark.parametrize("name", OTHER)
def test_each_field_is_checked_alone_whatever_others_it_needs(name):
    assert check(name, OTHER[name]) == OTHER[name]
    field = FIELDS[name]
    assert field.default is REQUIRED or check(name, field.default) == field.default


@pytest.mark.parametrize(
    "name, value, canonical",
    [
        ("sampler", "DPM++ 2M Karras", "dpmpp_2m"),
        ("control_image", "a.png;b.png ; ", "a.png; b.png"),
        ("control_preprocessor", "Canny:50:150;colour-grid", "canny:50:150; colour_grid"),
        ("control_preprocessor", " ", "none"),
        ("mask_blur", 4, 4.0),
        ("inpaint_fill", "2", "noise"),
        ("upscaler", "Lanczos", "lanczos"),
        ("upscaler", "Lanczos.pth", "Lanczos.pth"),
    ],
)
def test_the_canonical_form_of_a_value_needs_no_other_field(name, value, canonical):
    assert check(name, value) == canonical


def test_every_row_is_about_fields_that_there_are():
    names = [name for field in FIELDS.values() for name in (field.name, *field.aliases, *field.aliases_from_one)]
    assert len(names) == len(set(names)), "a name means two fields"
    for field in FIELDS.values():
        assert set(field.needs) <= FIELDS.keys() and (field.needs or not field.idle)
        assert {*field.spellings.values(), *field.labels} <= {*field.choices, *(field.labels if field.read else ())}
