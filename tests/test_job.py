import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.job import FIELDS, Job, JobError, derived_seed, image_id, job_from_text, repeated

FINGERPRINT = {"batch_size": 4, "device_kind": "cpu", "dtype": "float32", "jaxlib": "0", "sdjax": "0"}
# A value of each field that is not its default.
OTHER = {
    "prompt": "a pear",
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 21,
    "guidance_scale": 3.0,
    "width": 64,
    "height": 64,
    "sampler": "euler",
    "schedule": "karras",
    "noise_source": "torch",
}


def test_a_job_is_known_by_one_text():
    assert Job(prompt="漢字", seed=1).to_json() == (
        '{"guidance_scale":7.5,"height":null,"negative_prompt":"","noise_source":"threefry","prompt":"漢字",'
        '"sampler":null,"schedule":null,"seed":1,"steps":20,"width":null}'
    )


def test_an_id_stays_what_it_was():
    # Recorded: a change makes every picture of every earlier run anew.
    assert image_id(Job(prompt="a red apple", seed=1), "abc", FINGERPRINT) == "f8591d9c4f852b773f92df2abfae635d"


def test_everything_that_decides_the_bits_is_in_the_id():
    assert OTHER.keys() == FIELDS.keys()
    job = Job(prompt="an apple", seed=1)
    ids = {image_id(job, "abc", FINGERPRINT), image_id(job, "abd", FINGERPRINT)}
    ids |= {image_id(dataclasses.replace(job, **{name: value}), "abc", FINGERPRINT) for name, value in OTHER.items()}
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
        ("seed", -1, "a number from 0 to 18446744073709551615"),
        ("seed", 2**64, "a number from 0 to 18446744073709551615"),
        ("width", 0, "a number from 1 to 8192"),
        ("height", 8200, "a number from 1 to 8192"),
        ("sampler", "eular", "did you mean 'euler'?"),
        ("sampler", "Euler", "did you mean 'euler'?"),
        ("schedule", "karas", "did you mean 'karras'?"),
        ("noise_source", "cuda", "one of threefry, torch"),
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
