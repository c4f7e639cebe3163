import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.jobs.job import FIELDS, Job, JobError, allowed_types, derived_seed, image_id, repeated
from sdjax.jobs.text_values import job_from_text

FINGERPRINT = {"batch_size": 4, "device_kind": "cpu", "dtype": "float32", "jaxlib": "0", "sdjax": "0"}
# A value of each field that is not its default.
OTHER = {
    "prompt": "a pear",
    "negative_prompt": "blurry",
    "prompt_syntax": "compel",
    "emphasis": "no_norm",
    "prompt_problems": "accept",
    "clip_skip": 1,
    "seed": 7,
    "noise_source": "torch",
    "variation_seed": 3,
    "variation_strength": 0.5,
    "seed_resize_from_width": 32,
    "seed_resize_from_height": 32,
    "width": 64,
    "height": 64,
    "steps": 21,
    "sampler": "euler",
    "schedule": "karras",
    "timestep_spacing": "trailing",
    "eta": 0.5,
    "s_churn": 1.0,
    "s_tmin": 0.1,
    "s_tmax": 10.0,
    "s_noise": 1.1,
    "solver_order": 3,
    "multistep_start": "k_diffusion",
    "guidance_scale": 3.0,
    "guidance_rescale": 0.7,
    "guidance_start": 0.1,
    "guidance_end": 0.9,
    "dynamic_thresholding_ratio": 0.99,
    "sample_max_value": 2.0,
    "loras": "ink:0.8",
    "hypernetworks": "oil:1",
    "image": "a.png",
    "strength": 0.5,
    "resize_mode": "crop",
    "mask_image": "b.png",
    "mask_blur": 4.0,
    "invert_mask": True,
    "binarize_mask": True,
    "inpaint_fill": "noise",
    "only_masked": True,
    "only_masked_padding": 8,
    "keep_unmasked": True,
    "depth_image": "c.png",
    "controlnets": "edges:0.5",
    "control_image": "d.png",
    "control_preprocessor": "canny",
    "guess_mode": True,
    "hires_scale": 2.0,
    "hires_upscaler": "latent_bicubic",
    "hires_steps": 9,
    "hires_strength": 0.5,
    "upscaler": "x4",
    "upscale_by": 2.0,
    "upscaler_steps": 5,
    "upscaler_guidance_scale": 3.0,
    "upscaler_noise_level": 30,
    "class_label": 2,
    "classifier_scale": 1.0,
    "classifier_label": 4,
    "preview_every": 5,
}
# What one field wants of another.
TOGETHER = {
    "variation_strength": {"variation_seed": 3},
    "seed_resize_from_width": {"seed_resize_from_height": 64},
    "seed_resize_from_height": {"seed_resize_from_width": 64},
    "classifier_scale": {"classifier_label": 5},
    "strength": {"image": "e.png"},
    "mask_image": {"image": "e.png"},
    **{
        name: {"image": "e.png", "mask_image": "f.png"}
        for name in ("mask_blur", "invert_mask", "inpaint_fill", "only_masked", "keep_unmasked", "binarize_mask")
    },
    "only_masked_padding": {"image": "e.png", "mask_image": "f.png", "only_masked": True},
    "resize_mode": {"image": "e.png"},
    "controlnets": {"control_image": "e.png"},
    **{
        name: {"image": "e.png", "controlnets": "edges"}
        for name in ("control_image", "control_preprocessor", "guess_mode")
    },
    **{name: {"hires_scale": 1.5} for name in ("hires_upscaler", "hires_steps", "hires_strength")},
    **{
        name: {"upscaler": "4x"}
        for name in ("upscale_by", "upscaler_steps", "upscaler_guidance_scale", "upscaler_noise_level")
    },
}


def test_a_job_is_known_by_one_text_of_what_it_says():
    assert Job(prompt="漢字", seed=1, steps=20).to_json() == '{"prompt":"漢字","seed":1}'
    whole = {**OTHER, "prompt": "", "sampler": "Euler"}
    assert json.loads(Job(**whole).to_json()) == {**OTHER, "prompt": ""}


def test_an_id_stays_what_it_was():
    # Recorded: a change makes every picture of every earlier run anew.
    assert image_id(Job(prompt="a red apple", seed=1), "abc", FINGERPRINT) == "6fb7b302d74d8f27ad145fca65410ce6"


def test_everything_that_decides_the_bits_is_in_the_id():
    assert OTHER.keys() == FIELDS.keys()
    job = Job(prompt="an apple", seed=1)
    ids = {image_id(job, "abc", FINGERPRINT), image_id(job, "abd", FINGERPRINT)}
    others = [dataclasses.replace(job, **{name: value, **TOGETHER.get(name, {})}) for name, value in OTHER.items()]
    ids |= {image_id(other, "abc", FINGERPRINT) for other in others}
    ids |= {image_id(job, "abc", {**FINGERPRINT, name: "other"}) for name in FINGERPRINT}
    assert len(ids) == 2 + len(OTHER) + len(FINGERPRINT)
    assert all(len(identity) == 32 and int(identity, 16) >= 0 for identity in ids)


def test_the_same_number_written_otherwise_is_the_same_job():
    assert Job(prompt="a", guidance_scale=7).to_json() == Job(prompt="a", guidance_scale=7.0).to_json()
    assert Job(prompt="a", guidance_scale=-0.0).to_json() == Job(prompt="a", guidance_scale=0.0).to_json()


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
        ("variation_strength", 0.5, "a variation_seed with it"),
        ("classifier_scale", 1.0, "a classifier_label with it"),
    ],
)
def test_an_impossible_value_is_an_error_that_names_it_and_what_is_possible(field, value, expected):
    with pytest.raises(JobError) as raised:
        Job(**{"prompt": "a", field: value})
    assert str(raised.value).startswith(f"{field} = {value!r}: expected ") and expected in str(raised.value)


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


def test_samplers_go_by_the_names_of_three_vocabularies():
    for name in ("dpmpp_2m", "DPM++ 2M", "dpm++ 2m", "DPMSolverMultistepScheduler", "k_dpmpp_2m", "DPMSolverMultistep"):
        assert Job(prompt="a", sampler=name).sampler == "dpmpp_2m"
    karras = Job(prompt="a", sampler="DPM++ 2M SDE Karras")
    assert (karras.sampler, karras.schedule) == ("dpmpp_2m_sde", "karras")
    assert Job(prompt="a", schedule="SGM Uniform").schedule == "sgm_uniform"
    assert Job(prompt="a", schedule="normal").schedule == "uniform"
    assert Job(prompt="a", schedule="Automatic").schedule is None
    with pytest.raises(JobError, match="names another schedule"):
        Job(prompt="a", sampler="DPM++ 2M Karras", schedule="simple")


def test_choices_forgive_how_they_are_spelled():
    job = Job(prompt="a", prompt_syntax="A1111", emphasis="No norm", noise_source="NV", timestep_spacing="K-Diffusion")
    assert (job.prompt_syntax, job.emphasis, job.noise_source) == ("a1111", "no_norm", "philox")
    assert job.timestep_spacing == "k_diffusion"


def test_an_empty_prompt_is_one_if_it_is_said():
    assert job_from_text({"prompt": ""}) == Job(prompt="")


def test_a_spacing_in_the_place_of_a_schedule_is_told():
    with pytest.raises(JobError, match=r"schedule = 'trailing': that is how timesteps are laid; say it in timestep_sp"):
        Job(prompt="a", schedule="trailing")


@pytest.mark.parametrize("name", ["dpm_adaptive", "DPM adaptive"])
def test_why_there_is_no_adaptive_sampler_is_told(name):
    with pytest.raises(JobError, match="decides from picture to picture"):
        Job(prompt="a", sampler=name)


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


def test_a_seed_not_given_is_derived_from_the_run_the_row_and_the_repeat():
    row = Job(prompt="a cat")
    job = Job(prompt="a cat", steps=7)
    seeds = [each.seed for each in repeated(job, row, 3, 0)]
    assert seeds == [derived_seed(0, row, repeat) for repeat in range(3)]
    assert len({*seeds, derived_seed(1, row, 0), derived_seed(0, Job(prompt="a dog"), 0)}) == 5
    assert [each.seed for each in repeated(row, row, 2, 0)] == seeds[:2]


def test_a_seed_given_counts_up_over_the_repeats():
    job = Job(prompt="a", seed=5)
    assert [each.seed for each in repeated(job, job, 3, 9)] == [5, 6, 7]


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


@given(st.text(max_size=50), st.integers(0, 2**64 - 1), st.integers(1, 1000), st.floats(0, 1000))
@settings(deadline=None, max_examples=50)
def test_two_jobs_have_one_id_only_if_they_are_the_same(prompt, seed, steps, guidance_scale):
    job = Job(prompt=prompt, seed=seed, steps=steps, guidance_scale=guidance_scale)
    other = dataclasses.replace(job, prompt=prompt + " ")
    assert image_id(job, "abc", FINGERPRINT) == image_id(dataclasses.replace(job), "abc", FINGERPRINT)
    assert image_id(job, "abc", FINGERPRINT) != image_id(other, "abc", FINGERPRINT)


@pytest.mark.parametrize(
    "field, value, partner",
    [
        ("control_image", "a.png", "controlnets"), ("control_preprocessor", "canny", "controlnets"),
        ("guess_mode", True, "controlnets"), ("hires_steps", 3, "hires_scale"), ("hires_strength", 0.3, "hires_scale"),
        ("hires_upscaler", "lanczos", "hires_scale"), ("only_masked_padding", 5, "only_masked"),
        ("resize_mode", "crop", "a picture"), ("upscaler", "lanczos", "upscale_by"), ("upscale_by", 2.0, "upscaler"),
    ],
)  # fmt: skip
def test_a_field_that_would_do_nothing_alone_is_an_error(field, value, partner):
    with pytest.raises(JobError, match=f"^{field} = .*: expected {partner} with it"):
        Job(prompt="a", **{field: value})


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


def test_so_many_controlnets_are_too_many():
    with pytest.raises(JobError, match="up to 8 of them"):
        Job(prompt="a", image="a.png", controlnets="; ".join(["edges"] * 9))


@pytest.mark.parametrize("name", [name for name in FIELDS if float in allowed_types(name)])
def test_a_number_beyond_any_float_is_an_error_that_names_the_field(name):
    with pytest.raises(JobError, match=f"{name} = 1000.*: far too large"):
        Job(prompt="a", **{name: 10**400})
