import pytest

from sdjax.jobs.job import Job, JobError
from sdjax.jobs.text_values import filled_in, job_from_text, value_from_text


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "a", "steps": "nan"}, "steps = 'nan': expected a value of type int"),
        ({"prompt": "a", "steps": "2.5"}, "steps = '2.5': expected a value of type int"),
        ({"prompt": "a", "steps": float("nan")}, "steps = nan: expected a value of type int"),
        ({"prompt": "a", "guidance_scale": "high"}, "guidance_scale = 'high': expected a value of type float"),
        ({"prompt": ["a"]}, "prompt = ['a']: expected a value of type str"),
        ({"prompt": "a", "seed": True}, "seed = True: expected a value of type int"),
        ({"prompt": "a", "sede": "1"}, "unknown column 'sede' (did you mean 'seed'?)"),
        ({"prompt": " "}, "there is no prompt in this row"),
        ({"seed": "1"}, "there is no prompt in this row"),
    ],
)
def test_a_row_that_makes_no_job_is_an_error_that_says_why(row, expected):
    with pytest.raises(JobError) as raised:
        job_from_text(row)
    assert expected in str(raised.value)


def test_an_empty_prompt_is_one_if_it_is_said():
    assert job_from_text({"prompt": ""}) == Job(prompt="")


def test_names_of_fields_in_other_tools_are_read():
    row = {
        "prompt": "a",
        "cfg_scale": "4",
        "Sampler Name": "Euler a",
        "num_inference_steps": 7,
        "subseed": 3,
        "RNG": "NV",
    }
    assert job_from_text(row) == Job(
        prompt="a", guidance_scale=4.0, sampler="euler_ancestral", steps=7, variation_seed=3, noise_source="philox"
    )
    with pytest.raises(JobError, match="both mean guidance_scale"):
        job_from_text({"prompt": "a", "cfg_scale": 4, "guidance_scale": 4})


def test_clip_skip_is_recorded_as_diffusers_counts_it():
    assert job_from_text({"prompt": "a", "Clip skip": 2}) == job_from_text({"prompt": "a", "clip_skip": 1})
    assert job_from_text({"prompt": "a", "Clip_Skip": 2}) == Job(prompt="a", clip_skip=2)
    assert job_from_text({"prompt": "a", "CLIP_stop_at_last_layers": "2"}) == Job(prompt="a", clip_skip=1)
    with pytest.raises(JobError, match=r"clip_stop_at_last_layers = 0: expected a whole number from 1"):
        job_from_text({"prompt": "a", "clip_stop_at_last_layers": 0})


def test_text_and_typed_values_make_the_same_job():
    text = {"prompt": "a", "seed": " 3 ", "steps": "5", "guidance_scale": "2", "width": "", "sampler": "ddim"}
    typed = {"prompt": "a", "seed": 3, "steps": 5, "guidance_scale": 2, "width": None, "sampler": "ddim"}
    assert job_from_text(text) == job_from_text(typed)


@pytest.mark.parametrize("value", [7.0, "7.0", "7"])
def test_a_whole_number_written_with_a_point_is_one(value):
    assert job_from_text({"prompt": "a", "steps": value, "seed": value}) == Job(prompt="a", steps=7, seed=7)


@pytest.mark.parametrize("value", [2.0**60, "9007199254740994.0"])
def test_a_seed_that_has_lost_digits_is_refused(value):
    with pytest.raises(JobError, match="digits are lost"):
        job_from_text({"prompt": "a", "seed": value})


@pytest.mark.parametrize("value", [7.5, "7.5", "1e", "nan", "inf", float("inf"), float("nan")])
def test_a_number_that_is_not_whole_is_refused_where_one_must_be(value):
    with pytest.raises(JobError, match="steps"):
        job_from_text({"prompt": "a", "steps": value})


def test_what_a_run_sets_is_left_out_of_rows_in_which_it_would_do_nothing():
    run = {"strength": 0.5, "resize_mode": "crop", "mask_blur": 2.0, "hires_steps": 9, "steps": 5}
    assert filled_in({"prompt": "a"}, run) == {"prompt": "a", "steps": 5}
    assert filled_in({"image": "a.png"}, run) == {"image": "a.png", "strength": 0.5, "resize_mode": "crop", "steps": 5}
    assert filled_in({"depth_image": "a.png"}, {"resize_mode": "crop"}) == {
        "depth_image": "a.png",
        "resize_mode": "crop",
    }
    assert filled_in({"strength": 0.5}, {}) == {"strength": 0.5}, "a row's own value is not"


def test_a_truth_that_is_false_counts_as_not_there():
    run = {"only_masked_padding": 8}
    masked = {"image": "a.png", "mask_image": "b.png"}
    assert "only_masked_padding" not in filled_in({**masked, "only_masked": "no"}, run)
    assert "only_masked_padding" in filled_in({**masked, "only_masked": "yes"}, run)


@pytest.mark.parametrize(
    "name, value, expected",
    [("steps", "7", 7), ("steps", " ", 20), ("sampler", "Euler a", "euler_ancestral"), ("resize_mode", 1, "crop"),
     ("guess_mode", "yes", True), ("prompt", "", ""), ("control_image", "a;b", "a; b")],
)  # fmt: skip
def test_one_value_is_read_without_the_others(name, value, expected):
    assert value_from_text(name, value) == expected
