"""A process plans without weights, devices or its engine, and plans what the engine plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdjax
from pipelines import worker
from pipelines.config import settings
from pipelines.run import Run
from pipelines.transforms.identity import identity_here
from sdjax.engine.fingerprint import EngineIdentity

# Of each kind of file that planning needs.
ROWS = (
    {"prompt": "a red apple"},
    {"prompt": "the cat", "image": "cat.png", "strength": 0.5, "width": 32, "height": 32},
    {"prompt": "the cat", "classifier_scale": 2.0, "classifier_label": 1},
    {"prompt": "the cat", "controlnets": "canny", "control_image": "cat.png", "control_preprocessor": "depth"},
    {"prompt": "the cat", "hires_scale": 2.0, "upscaler": "lanczos", "upscale_by": 2},
)
# Plans in a process in which JAX has no device.
SCRIPT = """
import json, sys
import jax, sdjax
from pipelines import worker
from pipelines.config import settings
from pipelines.run import Run
from sdjax.engine.fingerprint import EngineIdentity
keys, identity, progress, jobs = json.loads(sys.stdin.read())
run = Run(settings.make(keys), progress, progress, "run", 1, EngineIdentity.from_json(identity))
with worker.planner_of(run) as planner:
    tasks = [planner.plan(sdjax.Job(**job)) for job in jobs]
print(json.dumps([[task.id, task.metadata] for task in tasks]))
try:
    jax.devices()
except RuntimeError:
    print("without devices")
"""


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    library = {f"library.{name}": "emoji" for name in ("controlnets", "depth_model", "classifier")}
    return {"model": "emoji", "engine.batch_size": 1, **library}


@pytest.fixture(scope="module")
def run(keys, tmp_path_factory) -> Run:
    folder = str(tmp_path_factory.mktemp("run"))
    run = Run(settings.make(keys), folder, folder, "run", 1)
    return run._replace(identity=identity_here(run))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> list[dict[str, object]]:
    """One for each row."""
    path = tmp_path_factory.mktemp("images") / "cat.png"
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(path)
    fields = ("image", "control_image")
    return [
        {"seed": seed, **row, **{name: str(path) for name in fields if name in row}} for seed, row in enumerate(ROWS)
    ]


def test_plans_are_those_of_the_engine_and_do_not_wait_for_it(run, jobs):
    with worker.engine_of(run) as engine, worker.planner_of(run) as planner:
        for job in (sdjax.Job(**values) for values in jobs):
            plan, own = planner.plan(job), engine.prepare(job)
            assert (plan.id, plan.metadata, plan.batch_key) == (own.id, own.metadata, own.batch_key)


def test_planner_and_engine_of_a_process_share_one_library_and_the_planner_has_no_weights(run):
    with worker.engine_of(run) as engine, worker.planner_of(run) as planner:
        assert planner.library is engine.planner.library
        assert planner.model.params == {} and planner.model.digest == engine.model.digest


def test_a_process_without_devices_plans_the_same(run, keys, jobs, tmp_path):
    given = json.dumps([keys, run.identity.to_json(), str(tmp_path), jobs])
    environment = {**os.environ, "JAX_PLATFORMS": "nothing", "PYTHONPATH": str(Path(worker.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=given, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, devices = done.stdout.splitlines()
    assert devices == "without devices"
    with worker.planner_of(run) as planner:
        expected = [planner.plan(sdjax.Job(**job)) for job in jobs]
    assert json.loads(found) == [[task.id, dict(task.metadata)] for task in expected]


def test_plans_belong_to_the_identity_that_is_given(run, jobs):
    other = run._replace(identity=run.identity._replace(model_digest="0" * 64, fingerprint=(("jax", "0"),)))
    assert isinstance(other.identity, EngineIdentity)
    with worker.planner_of(other) as planner:
        plan = planner.plan(sdjax.Job(**jobs[0]))
    with worker.planner_of(run) as planner:
        assert planner.plan(sdjax.Job(**jobs[0])).id != plan.id
    assert (plan.metadata["model_digest"], plan.metadata["jax"]) == ("0" * 64, "0")
