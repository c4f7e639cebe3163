"""`engine.batch_size=auto`: found out once for an output, and kept there."""

import json

import pytest

from pipelines.sinks.output import BATCH_SIZE
from sdjax.storage import StorageError, read_jsonl

SIZE = {"width": 16, "height": 16}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    return path


def batch_sizes(out) -> set[int]:
    """What the rows, the summary and the file that keeps it say."""
    rows = {row["batch_size"] for row in read_jsonl(str(out / "metadata.jsonl"))}
    summary = json.loads((out / "summary.json").read_text())["config"]["engine"]["batch_size"]
    return {*rows, summary, json.loads((out / BATCH_SIZE).read_text())["batch_size"]}


@pytest.mark.parametrize("flags", [[], ["--runner=BundleBasedDirectRunner"]])
def test_it_is_found_out_once_and_a_later_run_takes_the_same(run_here, prompts, tmp_path, capsys, flags):
    out = tmp_path / "out"
    assert run_here(prompts, out, flags, batch_size="auto", **SIZE).made == 2
    [found] = batch_sizes(out)
    assert found >= 1 and f"engine.batch_size = {found}" in capsys.readouterr().err
    prompts.write_text("a cat\na dog\na fox\n")
    again = run_here(prompts, out, flags, batch_size="auto", **SIZE)
    assert (again.made, again.there) == (1, 2) and batch_sizes(out) == {found}
    assert f"engine.batch_size = {found}, as before" in capsys.readouterr().err


def test_an_output_keeps_to_its_own_whatever_memory_there_is(run_here, prompts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / BATCH_SIZE).write_text('{"batch_size": 3}')
    run_here(prompts, out, batch_size="auto", **SIZE)
    assert batch_sizes(out) == {3}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"batch_size": 0}', '{"batch_size": true}', '{"batch_size": "4"}'])
def test_a_file_that_says_no_batch_size_is_an_error_that_says_what_to_do(run_here, prompts, tmp_path, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / BATCH_SIZE).write_text(text)
    with pytest.raises(StorageError, match=r"batch_size.json is not what generate writes.*or set engine.batch_size"):
        run_here(prompts, out, batch_size="auto", **SIZE)
