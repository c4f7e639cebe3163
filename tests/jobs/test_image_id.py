import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.jobs.image_id import canonical_json, image_id
from sdjax.jobs.job import FIELDS, Job
from sdjax.jobs.seeds import derived_seed
from tests.jobs.values import FINGERPRINT, OTHER, TOGETHER


def test_a_job_is_known_by_one_text_of_what_it_says():
    assert canonical_json(vars(Job(prompt="漢字", seed=1, steps=20))) == '{"prompt":"漢字","seed":1}'
    whole = {**OTHER, "prompt": "", "sampler": "Euler"}
    assert json.loads(canonical_json(vars(Job(**whole)))) == {**OTHER, "prompt": ""}


# Recorded before there was a table of fields: a change makes every image of every earlier run again, and gives other
# seeds to rows that name none.
RECORDED = [
    (
        {"prompt": "a red apple", "seed": 1},
        '{"prompt":"a red apple","seed":1}',
        "6fb7b302d74d8f27ad145fca65410ce6", 19479988200598,
    ),
    (
        {"prompt": "漢字", "seed": 2**64 - 1, "steps": 30, "guidance_scale": 7, "width": 512, "height": 640,
         "clip_skip": 1},
        '{"clip_skip":1,"guidance_scale":7.0,"height":640,"prompt":"漢字","seed":18446744073709551615,"steps":30,'
        '"width":512}',
        "85d8a0dc2d8c79322882edaca0cef9e2", 122169827064010,
    ),
    (
        {"prompt": "a", "seed": 3, "sampler": "DPM++ 2M SDE Karras", "timestep_spacing": "k-diffusion", "eta": 0.5,
         "s_noise": 1.1, "noise_source": "NV"},
        '{"eta":0.5,"noise_source":"philox","prompt":"a","s_noise":1.1,"sampler":"dpmpp_2m_sde","schedule":"karras",'
        '"seed":3,"timestep_spacing":"k_diffusion"}',
        "a82f79d1e9e5af520fb082387e202f62", 31394814200935,
    ),
    (
        {"prompt": "a", "seed": 4, "variation_seed": 5, "variation_strength": 0.25, "seed_resize_from_width": 64,
         "seed_resize_from_height": 32},
        '{"prompt":"a","seed":4,"seed_resize_from_height":32,"seed_resize_from_width":64,"variation_seed":5,'
        '"variation_strength":0.25}',
        "e4fded2255c10ca7696c2b1b175932da", 115140084185984,
    ),
    (
        {"prompt": "a", "seed": 5, "loras": " chalk:0.5:1;ink ", "hypernetworks": "<hypernet:oil:0.50>"},
        '{"hypernetworks":"oil:0.5","loras":"chalk:0.5:1; ink:1","prompt":"a","seed":5}',
        "5064b0e733295e9aba5596735821072a", 181593010390435,
    ),
    (
        {"prompt": "a", "seed": 6, "image": " a.png", "strength": 1, "mask_image": "b.png",
         "inpaint_fill": "Latent noise", "only_masked": True, "only_masked_padding": 8,
         "resize_mode": "Crop and resize"},
        '{"image":"a.png","inpaint_fill":"noise","mask_image":"b.png","only_masked":true,"only_masked_padding":8,'
        '"prompt":"a","resize_mode":"crop","seed":6,"strength":1.0}',
        "e6feb8eeffcd91fa86284f5ded26fd0d", 28206701569285,
    ),
    (
        {"prompt": "a", "seed": 7, "controlnets": "edges:0.5;near:1.0:0:0.5", "control_image": "c.png;d.png",
         "control_preprocessor": "Canny:50:150", "guess_mode": True},
        '{"control_image":"c.png; d.png","control_preprocessor":"canny:50:150","controlnets":"edges:0.5; near:1:0:0.5",'
        '"guess_mode":true,"prompt":"a","seed":7}',
        "ad849b496294b1f5b36a690d5bd071b9", 68375946007441,
    ),
    (
        {"prompt": "a", "seed": 8, "hires_scale": 2, "hires_upscaler": "Latent (bicubic antialiased)", "hires_steps": 9,
         "upscaler": "Lanczos", "upscale_by": 2},
        '{"hires_scale":2.0,"hires_steps":9,"hires_upscaler":"latent_bicubic_antialiased","prompt":"a","seed":8,'
        '"upscale_by":2.0,"upscaler":"lanczos"}',
        "24faf1bf7f78384ba745cc78d9cb3684", 162401571437328,
    ),
    (
        {"prompt": "a", "seed": 9, "guidance_rescale": 0.7, "guidance_start": 0.1, "guidance_end": 0.9,
         "classifier_scale": -0.0, "dynamic_thresholding_ratio": 0.99, "preview_every": 5},
        '{"dynamic_thresholding_ratio":0.99,"guidance_end":0.9,"guidance_rescale":0.7,"guidance_start":0.1,'
        '"preview_every":5,"prompt":"a","seed":9}',
        "5d41de5327fdac5a90c6d4fc37c35a37", 208987249131085,
    ),
]  # fmt: skip


@pytest.mark.parametrize("row, text, identity, seed", RECORDED)
def test_forms_ids_and_derived_seeds_stay_what_they_were(row, text, identity, seed):
    job = Job(**row)
    assert canonical_json(vars(job)) == text
    assert image_id(job, "abc", FINGERPRINT) == identity
    assert derived_seed(3, vars(job), 1) == seed


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
    for one, other in ((7, 7.0), (-0.0, 0.0)):
        jobs = Job(prompt="a", guidance_scale=one), Job(prompt="a", guidance_scale=other)
        assert len({canonical_json(vars(job)) for job in jobs}) == 1


@given(st.text(max_size=50), st.integers(0, 2**64 - 1), st.integers(1, 1000), st.floats(0, 1000))
@settings(deadline=None, max_examples=50)
def test_two_jobs_have_one_id_only_if_they_are_the_same(prompt, seed, steps, guidance_scale):
    job = Job(prompt=prompt, seed=seed, steps=steps, guidance_scale=guidance_scale)
    other = dataclasses.replace(job, prompt=prompt + " ")
    assert image_id(job, "abc", FINGERPRINT) == image_id(dataclasses.replace(job), "abc", FINGERPRINT)
    assert image_id(job, "abc", FINGERPRINT) != image_id(other, "abc", FINGERPRINT)
