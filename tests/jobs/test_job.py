"""A job with other values of some fields is the job that is made of all of them."""

import dataclasses
from typing import Any

import pytest

import sdjax
from sdjax.jobs.job import changed
from tests.jobs.values import OTHER, TOGETHER


@pytest.mark.parametrize("name", OTHER)
def test_each_field_can_be_changed(name):
    job = sdjax.Job(prompt="a pear", seed=3, sampler="euler", schedule="karras")
    values = {name: OTHER[name], **TOGETHER.get(name, {})}
    found = changed(job, **values)
    assert found == dataclasses.replace(job, **values) and vars(found).keys() == vars(job).keys()
    assert changed(found, **{field: getattr(job, field) for field in values}) == job


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"width": 0},
        {"sampler": "Euler Karras"},
        {"strength": 0.5},
        {"guidance_start": 0.9, "guidance_end": 0.1},
    ],
)
def test_what_a_job_can_not_be_it_can_not_become(values):
    fields: dict[str, Any] = {"prompt": "a", "seed": 1, "schedule": "exponential"}
    messages = []
    for make in (lambda: sdjax.Job(**fields, **values), lambda: changed(sdjax.Job(**fields), **values)):
        with pytest.raises(sdjax.JobError) as error:
            make()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
