"""The identity of the engines is read where they are, and left in the output for the process that asks."""

import dataclasses

import pytest

from pipelines import worker
from pipelines.elements import OutputPart
from pipelines.runners import RunnerError
from pipelines.transforms import identity


def test_in_this_process_it_is_that_of_the_engine_which_then_samples(run):
    found = identity.read_identity(run._replace(identity=None), [])
    with worker.engine_of(run) as engine:
        assert found is engine.identity


def test_a_step_leaves_it_in_the_output_whole(run, tmp_path):
    assert list(identity.write_identity(OutputPart(0), run)) == []
    assert identity.written_identity(run) == run.identity
    assert [path.name for path in tmp_path.iterdir()] == [identity.temporary_name(run.name, "identity")]


def test_other_processes_are_asked_by_a_pipeline_of_their_runner(run):
    """Of a runner of Beam's that works elsewhere as far as flags say, though here."""
    found = identity.read_identity(run._replace(identity=None), ["--runner=BundleBasedDirectRunner"])
    assert found == run.identity


def test_an_output_that_workers_did_not_reach_ends_the_run(run):
    with pytest.raises(RunnerError, match="left nothing in the output"):
        identity.written_identity(run)


def test_a_model_that_can_not_be_loaded_ends_the_run_with_its_own_message(run, tmp_path):
    model = dataclasses.replace(run.config.model, name=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        identity.read_identity(run._replace(config=dataclasses.replace(run.config, model=model)), [])
