"""A run of the smallest toy, whose transforms are called as the functions that they are."""

from pathlib import Path

import pytest

from pipelines.config import settings
from pipelines.run import Run
from pipelines.transforms.identity import identity_here


@pytest.fixture
def run(tiny_folder: Path, progress_folder: Path, tmp_path: Path) -> Run:
    """Into the test's folder; all such runs share one engine."""
    keys = {"model": str(tiny_folder), "engine.batch_size": 1, "steps": 2, "sampler": "euler", "run.host_batch": 2}
    run = Run(settings.make(keys), str(tmp_path), str(progress_folder), "run", workers=1)
    return run._replace(identity=identity_here(run))
