"""A row is planned as a whole or is a reject, and what is planned is enough to make it elsewhere."""

import pytest

from pipelines.elements import PlannedJob, PromptFile, counts
from pipelines.sources.prompts import Reject
from pipelines.sources.rows import Row
from pipelines.transforms import plan


def row(**values) -> Row:
    return Row("p.jsonl", 3, values, "the text", None)


def test_a_row_gives_a_job_for_each_image_and_counts(run):
    *jobs, rows, wanted = plan.outcome_of(row(prompt="a cat", seed=[1, 2]), run)
    assert [rows, wanted] == list(counts(rows=1, wanted=2))
    assert all(isinstance(job, PlannedJob) and (job.source, job.line) == ("p.jsonl", 3) for job in jobs)
    assert [job.job["seed"] for job in jobs] == [1, 2] and jobs[0].id != jobs[1].id
    assert jobs[0].batch_key == jobs[1].batch_key and len(jobs[0].batch_key) == 16


def test_jobs_that_can_not_share_a_batch_have_other_keys(run):
    [small], [large] = (plan.plan(row(prompt="a cat", width=width), run) for width in (16, 32))
    assert small.batch_key != large.batch_key


def test_a_job_that_is_planned_again_has_the_same_id(run):
    [job] = plan.plan(row(prompt="a cat", steps=5), run)
    again = plan.plan(row(**job.to_job().__dict__), run)
    assert isinstance(again, list) and again[0].id == job.id


@pytest.mark.parametrize(
    "values, reason",
    [({"prompt": "a", "steps": -1}, "steps = -1"), ({"prompt": "a", "width": 33}, "width = 33: expected a multiple")],
)
def test_a_row_that_can_not_be_is_a_reject(values, reason, run):
    reject, *others = plan.outcome_of(row(**values), run)
    assert isinstance(reject, Reject) and reject[:3] == ("p.jsonl", 3, "the text") and reason in reject.reason
    assert others == list(counts(rows=1, rejected_rows=1))


def test_a_prompt_too_long_for_the_text_encoder_is_counted(run):
    *_, cut = plan.outcome_of(row(prompt="dog " * 100, prompt_syntax="plain"), run)
    assert cut == ("cut_prompts", 1)


def test_a_file_that_is_gone_is_a_row_that_says_so(run, tmp_path):
    [gone] = plan.read("", [PromptFile(str(tmp_path / "gone.txt"))], run)
    assert (gone.line, gone.values) == (0, None) and "gone.txt" in gone.problem
    assert [*plan.outcome_of(gone, run)][1:] == list(counts(broken_files=1))


def test_rows_and_files_have_short_keys_of_their_own():
    keys = [plan.key_of(Row("p.txt", line, None, "", None)) for line in (1, 2)]
    keys += [plan.key_of(PromptFile(path)) for path in ("p.txt", "\udcff.txt")]
    assert len(set(keys)) == 4 and {len(key) for key in keys} == {16}
