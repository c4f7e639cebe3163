import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import sdjax
from sdjax.api import _engine
from sdjax.assets import bundled
from sdjax.jobs.input_images import read_file
from sdjax.library.kinds import KINDS

APPLE = Path(__file__).parent / "golden" / "apple.png"
JOB = sdjax.Job(prompt="a red apple", seed=1, steps=2, guidance_scale=7.5, sampler="euler", noise_source="torch")


@pytest.fixture(scope="module")
def results(tiny):
    """Three jobs, of which two are the same."""
    return sdjax.generate(tiny, [JOB, dataclasses.replace(JOB, seed=2), JOB], batch_size=1, devices=jax.devices()[:1])


def test_results_come_in_the_order_of_the_jobs(results):
    assert [result.metadata["seed"] for result in results] == [1, 2, 1]
    assert np.array_equal(results[0].image, results[2].image)
    assert not np.array_equal(results[0].image, results[1].image)
    assert results[0].image.shape == (16, 16, 3) and results[0].image.dtype == np.uint8


def test_no_jobs_give_no_results(tiny):
    assert sdjax.generate(tiny, []) == []


def test_a_job_that_can_not_be_done_is_named_before_anything_is_made(tiny):
    with pytest.raises(sdjax.JobError, match=r"^job 1: width = 33: expected a multiple of 2"):
        sdjax.generate(tiny, [JOB, dataclasses.replace(JOB, width=33)])
    with pytest.raises(sdjax.JobError, match=r"^job 0: the job has no seed"):
        sdjax.generate(tiny, [dataclasses.replace(JOB, seed=None)])


def test_a_model_that_is_not_there_is_an_error_that_says_what_is(tmp_path):
    with pytest.raises(sdjax.CheckpointError, match=r"there is no model 'emojy'.*bundled \(emoji\) nor a folder"):
        sdjax.load("emojy")


def test_a_kind_of_number_that_no_model_has_is_an_error(tiny_folder):
    for dtype in ("int8", "float33"):
        with pytest.raises(ValueError, match=f"dtype = '{dtype}': expected one of float32, bfloat16, float16"):
            sdjax.load(tiny_folder, dtype=dtype)


def test_the_next_call_uses_what_the_last_has_compiled(tiny, results, monkeypatch):
    def call() -> np.ndarray:
        return sdjax.generate(tiny, [JOB], batch_size=1, devices=jax.devices()[:1])[0].image

    first = call()
    monkeypatch.setattr("sdjax.api.Engine", None)
    monkeypatch.setattr("jax.jit", None)
    assert np.array_equal(call(), first) and np.array_equal(first, results[0].image)


def test_files_that_came_or_changed_since_the_last_call_are_seen_and_the_engine_stays(
    tiny, results, tmp_path, monkeypatch
):
    monkeypatch.setattr("sdjax.api.Engine", None)
    for kind in KINDS:
        (tmp_path / kind).mkdir()

    def reason(**named: str) -> str:
        job = dataclasses.replace(JOB, **named)
        library = sdjax.Library(**{kind: tmp_path / kind for kind in KINDS}, pickled=True)
        with pytest.raises((sdjax.AdapterError, sdjax.JobError)) as error:
            sdjax.generate(tiny, [job], batch_size=1, devices=jax.devices()[:1], library=library)
        return str(error.value)

    for named, file in (
        ({"loras": "ink:1"}, "loras/ink.safetensors"),
        ({"hypernetworks": "ink:1"}, "hypernetworks/ink.pt"),
        ({"controlnets": "ink", "image": str(APPLE)}, "controlnets/ink.safetensors"),
        ({"upscaler": "ink"}, "upscalers/ink.safetensors"),
    ):
        assert "there is no" in reason(**named)
        (tmp_path / file).write_bytes(b"no tensors")
        first = reason(**named)
        (tmp_path / file).write_bytes(b"PK\3\4 no archive either")
        assert "there is no" not in first and reason(**named) != first
        (tmp_path / file).unlink()
        assert "there is no" in reason(**named)


def test_another_classifier_in_the_library_is_another_engine(tiny, tmp_path):
    folder = tmp_path / "guide"
    shutil.copytree(bundled("emoji", "noise_classifier"), folder)

    def engine(**given: object) -> sdjax.Engine:
        return _engine(tiny, 1, tuple(jax.devices()[:1]), given.get("classifier"), library, read_file)

    library = sdjax.Library(classifier=folder)
    first = engine()
    assert first.classifier.digest == sdjax.load_classifier("emoji").digest and engine() is first
    labels = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("\n".join(["another", *labels[1:]]))
    second = engine()
    assert second.classifier.labels[0] == "another"
    own = sdjax.load_classifier("emoji")
    assert engine(classifier=own).classifier is own
