import json

import pytest

from sdjax.diffusion.noise import SOURCES
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.jobs.a1111_text import a1111_text
from sdjax.jobs.job import FIELDS
from tests.images.test_encode import METADATA, a1111_reads


def test_the_a1111_text_is_the_one_that_its_users_know():
    assert a1111_text(METADATA) == (
        "a red apple, on a table\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 16x8, "
        "Model hash: 45dee52b12, Model: emoji, RNG: CPU, Version: sdjax 0.1.0"
    )


def test_the_line_of_the_negative_prompt_is_left_out_where_there_is_none():
    assert "Negative" not in a1111_text(METADATA | {"negative_prompt": ""})


def test_threefry_is_named_as_the_source_of_noise_so_that_no_reader_takes_it_for_another():
    assert a1111_reads(a1111_text(METADATA | {"noise_source": "threefry"}))["RNG"] == "threefry"


@pytest.mark.parametrize("scale, shown", [(7.0, "7"), (7.5, "7.5"), (0.0, "0")])
def test_a_whole_guidance_scale_is_shown_without_a_point(scale, shown):
    assert a1111_reads(a1111_text(METADATA | {"guidance_scale": scale}))["CFG scale"] == shown


@pytest.mark.parametrize("model", ["a, b", "C:\\models\\x", "two\nlines", 'say "hi", twice', "plain"])
def test_a1111_reads_a_model_name_with_marks_of_its_own_grammar(model):
    assert a1111_reads(a1111_text(METADATA | {"model": model}))["Model"] == model


def test_what_is_not_as_usual_is_in_the_a1111_text():
    unusual = METADATA | {
        "clip_skip": 1,
        "variation_seed": 5,
        "variation_strength": 0.25,
        "seed_resize_from_width": 8,
        "seed_resize_from_height": 16,
        "eta": 0.5,
        "s_noise": 1.5,
        "noise_source": "philox",
        "emphasis": "no_norm",
        "prompt_template": "a {red|green} apple",
        "deep_cache_interval": 3,
        "deep_cache_branch": 2,
        "token_merging_ratio": 0.5,
        "gate_step": 8,
    }
    read = a1111_reads(a1111_text(unusual))
    expected = {
        "Clip skip": "2",
        "Variation seed": "5",
        "Variation seed strength": "0.25",
        "Seed resize from": "8x16",
        "Eta": "0.5",
        "Sigma noise": "1.5",
        "RNG": "NV",
        "Emphasis": "No norm",
        "Template": "a {red|green} apple",
        "DeepCache interval": "3",
        "DeepCache branch": "2",
        "Token merging ratio": "0.5",
        "T-GATE step": "8",
    }
    assert {key: read[key] for key in expected} == expected
    assert not expected.keys() - {"RNG"} & a1111_reads(a1111_text(METADATA)).keys()


def test_a1111_is_told_the_adapters_in_its_own_words():
    applied = [
        {"kind": "lora", "name": "ink", "short_hash": "0123456789ab"},
        {"kind": "lora", "name": "chalk", "short_hash": "ba9876543210"},
        {"kind": "embedding", "name": "blurred", "short_hash": "aaaabbbbcccc"},
        {"kind": "hypernetwork", "name": "oil", "short_hash": "ddddeeeeffff"},
    ]
    named = METADATA | {
        "prompt": "a red apple <lora:ink:0.8>",
        "loras": "chalk:0.5:1",
        "hypernetworks": "oil:1",
        "adapters_applied": json.dumps(applied),
    }
    read = a1111_reads(a1111_text(named))
    assert read["Prompt"] == "a red apple <lora:ink:0.8><lora:chalk:0.5:1><hypernet:oil:1>"
    assert read["Lora hashes"] == "ink: 0123456789ab, chalk: ba9876543210"
    assert read["TI hashes"] == "blurred: aaaabbbbcccc"


def test_every_sampler_schedule_and_source_of_noise_has_a_name_for_a1111():
    assert FIELDS["sampler"].labels.keys() == SAMPLERS.keys()
    assert FIELDS["schedule"].labels.keys() == SCHEDULES.keys()
    assert FIELDS["noise_source"].labels.keys() == set(SOURCES)
