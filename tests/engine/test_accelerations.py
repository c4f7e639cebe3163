"""Accelerated images against recordings of DeepCache, tomesd and tgate; and that neighbours change no bit of them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import sdjax
from sdjax.engine.accelerations import deep_evaluations
from sdjax.engine.sample_plan import accelerations_of
from sdjax.jobs.job import JobError
from sdjax.jobs.records import job_of
from tests import toys
from tests.golden import accelerations, conditioned, images
from tests.results import make, same

# Compared in every run; all are compared live (`make parity`).
QUICK = ("token_merging_of_another_shape", "deep_cache_and_gate")


def test_images_are_those_of_the_packages(tmp_path):
    model = sdjax.load(toys.write_toy(tmp_path, accelerations.TOYS["sd1"]))
    with np.load(accelerations.RECORDED) as stored:
        recorded = {name: stored[f"sd1/{name}"] for name in accelerations.CASES}
    assert len({image.tobytes() for image in recorded.values()}) == len(recorded)
    for name, image in accelerations.drawn(model, QUICK).items():
        assert images.share_that_differs(image, recorded[name]) <= images.TOLERATED_SHARE, name


# --- Bits ---


def job(number: int, **fields: object) -> sdjax.Job:
    """Of other steps and samplers, some of them with two evaluations to a step."""
    given = {"sampler": ("euler", "heun", "euler_ancestral")[number % 3], "steps": 5 + number % 2, **fields}
    given = {"prompt": "a red apple", "guidance_scale": 2.0 + number % 3, **given}
    return sdjax.Job(seed=number, width=32, height=32, **given)


ALL = {"deep_cache_interval": 2, "token_merging_ratio": 0.25, "gate_step": 3, "sampler": "heun"}
JOBS = [
    *(job(number, deep_cache_interval=2) for number in range(3)),
    job(3, deep_cache_interval=3),
    *(job(number, token_merging_ratio=0.5) for number in range(4, 7)),
    *(job(number, gate_step=2) for number in (6, 8, 9)),  # each takes one evaluation to a step
    job(10, **ALL, prompt="a red cat AND the dog :0.5", guidance_start=0.2),
    job(11),
    job(12, deep_cache_interval=2, controlnets="tiny:0.7", control_image="edges.png"),
    job(13, deep_cache_interval=2, image="cat.png", mask_image="mask.png", strength=0.8),
]
HIRES = job(14, deep_cache_interval=2, gate_step=4, hires_scale=1.5, hires_strength=0.4)


def engine_of(model: sdjax.Model, folder: Path, devices: int) -> sdjax.Engine:
    library = sdjax.Library(controlnets=conditioned.write_controls(folder))
    local, read = jax.local_devices()[:devices], conditioned.FILES.__getitem__
    return sdjax.Engine(model, batch_size=2, devices=local, library=library, read_image=read)


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory) -> sdjax.Engine:
    return engine_of(tiny, tmp_path_factory.mktemp("controls"), 1)


def test_images_depend_on_neither_order_nor_neighbours_nor_devices(tiny, engine, tmp_path):
    results = make(engine, JOBS)
    assert all(result.finite for result in results)
    assert same(make(engine, JOBS[::-1]), results[::-1])
    for number in (1, 4, 10):
        assert same(make(engine, [JOBS[number]]), [results[number]])
    assert same(make(engine_of(tiny, tmp_path, 4), [JOBS[10]]), [results[10]])  # all of them


@pytest.mark.slow
def test_no_accelerated_image_depends_on_the_number_of_devices(tiny, engine, tmp_path):
    jobs = [*JOBS, HIRES]
    assert same(make(engine_of(tiny, tmp_path, 4), jobs), make(engine, jobs))


# --- What is an image's own ---


@pytest.mark.parametrize(
    "fields",
    [
        {"deep_cache_interval": 2}, {"deep_cache_interval": 3}, {"deep_cache_interval": 2, "deep_cache_branch": 1},
        {"token_merging_ratio": 0.3}, {"gate_step": 3},
    ],
)  # fmt: skip
def test_an_acceleration_is_in_the_id_and_comes_back_from_the_metadata(engine, fields):
    plain, accelerated = engine.prepare(job(0)), engine.prepare(job(0, **fields))
    assert plain.id != accelerated.id and plain.batch_key != accelerated.batch_key
    assert {name: accelerated.metadata[name] for name in fields} == fields
    assert job_of(accelerated.metadata) == accelerated.job


def test_those_that_change_nothing_are_in_no_id(engine):
    none = {"deep_cache_interval": 1, "token_merging_ratio": 0.0, "gate_step": None}
    assert engine.prepare(job(0, **none)).id == engine.prepare(job(0)).id


def test_the_interval_and_the_gate_compile_no_program_of_their_own(engine):
    buckets = {engine.prepare(job(0, deep_cache_interval=each, gate_step=each)).first.bucket for each in (2, 3, 4)}
    assert len(buckets) == 1


def test_a_second_pass_that_ends_before_the_gate_has_none(engine):
    first, second = engine.prepare(HIRES).samples
    assert (first.key.gate, second.key.gate) == (4, None)
    assert second.bucket.accelerations == first.bucket.accelerations._replace(gated=False)


def test_a_gate_counts_steps_whatever_evaluations_they_take(engine):
    gates = {
        sampler: engine.prepare(job(0, sampler=sampler, gate_step=3)).first.key.gate for sampler in ("euler", "heun")
    }
    assert gates == {"euler": 3, "heun": 6}


# --- In which evaluations all is computed ---


@pytest.mark.parametrize(
    "interval, guided, gate, computed",
    [
        (3, None, None, [0, 3, 6, 9]),
        (1, None, None, list(range(10))),
        (20, None, None, [0]),
        (4, (2, 8), None, [0, 2, 4, 8]),
        (3, None, 5, [0, 3, 4, 5, 8]),
        (2, None, 1, [0, 1, 3, 5, 7, 9]),
    ],
)
def test_the_whole_unet_is_computed_at_intervals_and_where_a_branch_or_its_text_changes(
    interval, guided, gate, computed
):
    assert np.flatnonzero(deep_evaluations(10, interval, guided, gate)).tolist() == computed


# --- What can't be ---


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"deep_cache_interval": 2, "deep_cache_branch": 2},
         r"deep_cache_branch = 2: this UNet has 2 skip connections; expected a number from 0 to 1"),
        ({"deep_cache_branch": 1}, r"deep_cache_branch = 1: expected deep_cache_interval with it"),
        ({"token_merging_ratio": 0.8}, r"token_merging_ratio = 0\.8: expected a number from 0.0 to 0\.75"),
        ({"token_merging_ratio": 0.5, "height": 2},
         r"token_merging_ratio = 0\.5: at 32x2 pixels the UNet's attention has 16x1 tokens; expected 2 or more"),
        ({"gate_step": 5}, r"gate_step = 5: of 5 steps none comes behind it"),
        ({"gate_step": 2, "guidance_scale": 1.0}, r"gate_step = 2: expected guidance, which it ends; guidance_scale ="),
        ({"gate_step": 2, "guidance_start": 0.5}, r"gate_step = 2: with guidance_start = 0\.5 no step before it is"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_an_error_that_names_the_field(engine, fields, message):
    with pytest.raises(JobError, match=message):
        engine.prepare(dataclasses.replace(job(0), **fields))


def test_a_unet_of_another_structure_can_not_be_accelerated(tiny, engine):
    other = dataclasses.replace(tiny, networks={**tiny.networks, "unet": tiny.vae})
    with pytest.raises(JobError, match=r"gate_step = 3: the UNet of Stable Diffusion 1 can't do it"):
        accelerations_of(engine.prepare(job(0, gate_step=3)).job, other)
