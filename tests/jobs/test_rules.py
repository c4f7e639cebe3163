import pytest

from sdjax.jobs.job import Job, JobError, check_fields


@pytest.mark.parametrize(
    "field, value, partner",
    [
        ("control_image", "a.png", "controlnets"), ("control_preprocessor", "canny", "controlnets"),
        ("guess_mode", True, "controlnets"), ("hires_steps", 3, "hires_scale"), ("hires_strength", 0.3, "hires_scale"),
        ("hires_upscaler", "lanczos", "hires_scale"), ("only_masked_padding", 5, "only_masked"),
        ("resize_mode", "crop", "image, control_image or depth_image"),
        ("controlnets", "edges", "control_image or image"),
        ("variation_strength", 0.5, "variation_seed"), ("classifier_scale", 1.0, "classifier_label"),
        ("seed_resize_from_width", 8, "seed_resize_from_height"),
        ("seed_resize_from_height", 8, "seed_resize_from_width"),
        ("upscaler", "lanczos", "upscale_by"), ("upscale_by", 2.0, "upscaler"),
    ],
)  # fmt: skip
def test_a_field_that_would_do_nothing_alone_is_an_error(field, value, partner):
    with pytest.raises(JobError, match=f"^{field} = .*: expected {partner} with it"):
        Job(prompt="a", **{field: value})


def test_a_strength_without_an_image_is_not_that_of_the_second_pass():
    with pytest.raises(JobError, match=r"^strength = 0\.5: expected image with it; hires_strength is that of"):
        Job(prompt="a", strength=0.5, hires_scale=2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"guidance_start": 0.9, "guidance_end": 0.5}, r"guidance_start = 0\.9: expected less than guidance_end, 0\.5"),
        (
            {"controlnets": "a; b; c", "control_image": "a.png; b.png"},
            "control_image = 'a.png; b.png': expected one for all, or one for each of the 3 controlnets",
        ),
        (
            {"controlnets": "a; b; c", "control_preprocessor": "none; none", "control_image": "a.png"},
            "control_preprocessor = 'none; none': expected one for all, or",
        ),
        (
            {"upscaler": "lanczos", "upscale_by": 2.0, "upscaler_steps": 5},
            "upscaler_steps = 5: expected an upscaler with it that is a diffusion model, not lanczos",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_an_error_with_all_others_and_without(fields, message):
    with pytest.raises(JobError, match=message):
        Job(prompt="a", **fields)
    with pytest.raises(JobError, match=message):
        check_fields(fields)


def test_of_fields_that_are_not_known_yet_nothing_is_said():
    for fields in (
        {"strength": 0.5},
        {"upscaler": "lanczos"},
        {"control_image": "a.png; b.png"},
        {"guidance_start": 1.0},
    ):
        assert check_fields(fields) == fields


def test_of_several_problems_the_first_field_is_told():
    with pytest.raises(JobError, match=r"^strength = 0\.5: expected image with it$"):
        Job(prompt="a", upscale_by=2, guess_mode=True, strength=0.5, mask_blur=2)
