"""The jobs of a shard are made in batches; what can't be made is a reject, and its neighbours go on."""

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator

import pytest
from PIL import Image

from pipelines import worker
from pipelines.config import RunConfigError
from pipelines.config.sections import replaced
from pipelines.elements import ManifestRow, PlannedJob, counts
from pipelines.sinks.files import FilesSink
from pipelines.sinks.sink import WriteResult
from pipelines.sources.prompts import Reject
from pipelines.sources.rows import Row
from pipelines.transforms.plan import plan
from pipelines.transforms.sample import batches, sampled
from sdjax.engine.engine import Result
from sdjax.storage import StorageError


def planned(run, line: int = 1, **values) -> PlannedJob:
    jobs = plan(Row("p.jsonl", line, {"prompt": "a cat", **values}, "", None), run)
    assert isinstance(jobs, list)
    return jobs[0]


def test_batches_are_the_same_in_whatever_order_their_jobs_come():
    jobs = [PlannedJob(f"{number:02d}", {}, "k", {}, "", "p", number, cut=False) for number in range(11)]
    expected = list(batches(jobs, 4))
    assert [len(batch) for batch in expected] == [4, 4, 3]
    for seed in range(5):
        mixed = random.Random(seed).sample(jobs, len(jobs))
        assert list(batches([*mixed, mixed[0]], 4)) == expected


def test_each_job_is_an_image_and_its_manifest_row(run, tmp_path):
    jobs = [planned(run, seed=seed) for seed in (1, 2, 3)]
    found = list(sampled("", jobs, run))
    rows = [each for each in found if isinstance(each, ManifestRow)]
    assert {row.id for row in rows} == {job.id for job in jobs}
    assert [each for each in found if each not in rows] == 3 * list(counts(made=1))
    for row in rows:
        assert (tmp_path / row.row["file_name"]).stat().st_size == row.row["file_size"]


@pytest.mark.parametrize("change", ["gone", "another"])
def test_an_input_image_that_has_changed_since_costs_its_own_job_alone(run, tmp_path, change):
    path = tmp_path / "start.png"
    Image.new("RGB", (16, 16), "red").save(path)
    jobs = [planned(run, 1, seed=1), planned(run, 2, image=str(path), strength=0.5, seed=1)]
    path.unlink()
    if change == "another":
        Image.new("RGB", (16, 16), "blue").save(path)
    found = list(sampled("", jobs, run))
    [reject] = [each for each in found if isinstance(each, Reject)]
    assert (reject.source, reject.line, reject.text) == ("p.jsonl", 2, "a cat")
    assert ("start.png" if change == "gone" else "has changed since this was planned") in reject.reason
    assert [each.id for each in found if isinstance(each, ManifestRow)] == [jobs[0].id]
    assert {*counts(made=1), *counts(failed=1)} < set(each for each in found if not isinstance(each, ManifestRow))


@pytest.mark.parametrize("name", ["jaxlib", "batch_size", "model_digest", "classifier_digest"])
def test_a_worker_with_another_identity_than_planned_refuses_and_shows_both(run, name):
    job = planned(run, seed=1)
    values = {**run.identity._asdict(), **dict(run.identity.fingerprint)}
    if name in run.identity._fields:
        other = run.identity._replace(**{name: "others"})
    else:
        pairs = {**dict(run.identity.fingerprint), name: "others"}
        other = run.identity._replace(fingerprint=tuple(pairs.items()))
    both = re.escape(f": {name} = {values[name]!r} (planned: 'others'); all workers")
    with pytest.raises(RunConfigError, match=both):
        list(sampled("", [job], run._replace(identity=other)))


def test_an_image_whose_files_have_changed_since_it_was_planned_fails_alone(run):
    job = planned(run, seed=1)
    other = dataclasses.replace(job.to_job(), steps=3)
    with worker.planner_of(run) as planner:
        assert planner.plan(other, {}).id != job.id
    changed, same = job._replace(job={**job.job, "steps": 3}), planned(run, seed=2)
    found = list(sampled("", [changed, same], run))
    [reject] = [each for each in found if isinstance(each, Reject)]
    assert reject.line == 1 and "has changed since this was planned" in reject.reason
    assert [each.id for each in found if isinstance(each, ManifestRow)] == [same.id]


def test_a_shard_is_one_stream_of_whole_batches_and_the_sink_gets_one_batch_at_a_time(run, monkeypatch):
    """Also where the compiled batch and the batches of the sink do not divide each other."""
    jobs = [planned(run, seed=seed) for seed in range(7)]
    given: list[list[str]] = []
    write = FilesSink.write

    def noted(sink: FilesSink, results: Iterable[Result]) -> Iterator[WriteResult]:
        taken: list[str] = []
        given.append(taken)
        return write(sink, (taken.append(result.metadata["id"]) or result for result in results))

    monkeypatch.setattr(FilesSink, "write", noted)
    config = replaced(run.config, {"run.host_batch": 3})
    found = list(sampled("", jobs, run._replace(config=config)))
    ids = sorted(job.id for job in jobs)
    assert given == [ids[:3], ids[3:6], ids[6:]]
    assert [each.id for each in found if isinstance(each, ManifestRow)] == ids


def test_an_image_that_can_not_be_stored_ends_the_bundle_with_the_reason(run, tmp_path):
    job = planned(run, seed=1)
    (tmp_path / "images").write_text("no folder")
    with pytest.raises(StorageError, match="images"):
        list(sampled("", [job], run))
