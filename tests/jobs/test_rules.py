import pytest

from sdjax.jobs.job import Job, JobError


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
