"""How latents become pixels: in tiles, and again where half precision was too narrow."""

import dataclasses

import jax
import numpy as np
import pytest

import sdjax
from sdjax.engine import latents
from tests import toys
from tests.results import make, same

BATCH = 2
# Twice as wide as high; with tiles of 16 pixels it is larger than four of them.
JOBS = [
    sdjax.Job(prompt="a cat", seed=seed, steps=2, sampler="euler", guidance_scale=scale, width=64, height=32)
    for seed, scale in enumerate((1.5, 900.0, 3.0, 7.0, 5.0))
]


def engine_of(model: sdjax.Model, devices: int = 4, **options: int) -> sdjax.Engine:
    return sdjax.Engine(model, batch_size=BATCH, devices=jax.local_devices()[:devices], **options)


def test_an_image_in_tiles_depends_on_neither_neighbours_nor_devices_and_is_the_same_but_for_rounding(tiny):
    tiled = engine_of(tiny, vae_tile=16)
    images = make(tiled, JOBS)
    assert same(make(tiled, JOBS[::-1]), images[::-1])
    assert same(make(engine_of(tiny, devices=1, vae_tile=16), JOBS), images)
    whole = make(engine_of(tiny), JOBS)
    for ours, theirs in zip(images, whole, strict=True):
        assert np.abs(ours.image.astype(int) - theirs.image.astype(int)).max() <= 1
        assert ours.metadata["id"] != theirs.metadata["id"]
        assert (ours.metadata["vae_tile"], theirs.metadata.get("vae_tile")) == (16, None)


def test_an_image_of_four_tiles_is_decoded_at_once(tiny):
    small = dataclasses.replace(JOBS[0], width=32)
    prepared = [engine_of(tiny, 1, vae_tile=tile).prepare(small) for tile in (16, 512, 0)]
    assert len({task.id for task in prepared}) == 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_batch_of_many_pixels_is_decoded_in_groups(tiny, monkeypatch, at_once):
    jobs = [dataclasses.replace(job, guidance_scale=1.0, steps=1) for job in JOBS[:3]]
    whole = make(sdjax.Engine(tiny, batch_size=3, devices=jax.local_devices()[:1]), jobs)
    monkeypatch.setattr(latents, "_PIXELS_AT_ONCE", at_once * 64 * 32)
    grouped = make(sdjax.Engine(tiny, batch_size=3, devices=jax.local_devices()[:1]), jobs)
    for ours, theirs in zip(grouped, whole, strict=True):
        assert ours.finite
        assert np.abs(ours.image.astype(int) - theirs.image.astype(int)).max() <= 1


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> sdjax.Model:
    """A model whose VAE works in float16 and can't hold what comes of the strongly guided job."""
    model = sdjax.load(toys.write_toy(tmp_path_factory.mktemp("narrow"), toys.TINY), vae_dtype="float16")
    kernel = model.params["vae"]["decoder"]["conv_in"]["kernel"]
    model.params["vae"]["decoder"]["conv_in"]["kernel"] = (kernel.astype(np.float32) * 20).astype(np.float16)
    return model


def test_what_half_precision_can_not_hold_is_decoded_again_and_said(narrow):
    with jax.numpy_dtype_promotion("standard"):  # Flax' own norms promote
        engine = engine_of(narrow, devices=1)
        images = make(engine, JOBS)
        assert all(result.finite for result in images)
        assert [result.metadata["decoded_again"] for result in images] == [False, True, False, False, False]
        assert images[1].image.std() > 1
        # Its neighbours keep their bits.
        assert same(make(engine, JOBS[2:]), images[2:])
        assert same(make(engine, [JOBS[0], JOBS[1]]), images[:2])
    assert images[0].metadata["vae_dtype"] == "float16"


def test_the_precision_of_the_vae_decides_the_id_where_it_is_not_the_usual_one(tiny, narrow):
    usual = dataclasses.replace(narrow, vae_dtype="float32")
    ids = [engine_of(model, 1).prepare(JOBS[0]).id for model in (tiny, narrow, usual)]
    assert ids[0] == ids[2] != ids[1]
