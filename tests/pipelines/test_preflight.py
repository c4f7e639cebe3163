"""What is found out before anything is made."""

import pytest

from pipelines.config import RunConfigError
from pipelines.config.sections import paths
from pipelines.config.settings import make
from pipelines.preflight import check_model, check_output, with_whole_paths
from pipelines.sinks import open_output, open_sink
from pipelines.sinks.output import write_summary
from sdjax.storage import StorageError


def test_paths_are_found_from_any_folder_and_names_on_a_hub_stay(tmp_path, monkeypatch):
    (tmp_path / "loras").mkdir()
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    config = make({"model": "org/name", "library.loras": "loras", "library.embeddings": "emoji", "model.vae": "gone"})
    assert paths(with_whole_paths(config)) == {
        "model.name": "org/name",
        "model.vae": "gone",
        "library.loras": str(tmp_path / "loras"),
        "library.embeddings": str(tmp_path / "emoji"),  # bundled is a model of this name, but no embeddings
    }


@pytest.mark.parametrize(
    "values, message",
    [
        ({"width": 9}, "width = 9: expected a multiple of 2"),
        ({"library.wildcards": "gone"}, "library.wildcards = gone: there is no such folder"),
    ],
)
def test_what_no_row_could_have_is_told_at_once(tiny_folder, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunConfigError, match=message):
        check_model(make({"model": str(tiny_folder), **values}))


def test_what_rows_may_complete_is_left_to_them(tiny_folder):
    config = make({"model": str(tiny_folder), "strength": 0.5, "eta": 0.5})
    assert check_model(config) == config


def test_an_output_keeps_to_the_format_of_its_images(tmp_path):
    folder = tmp_path / "images" / "ab"
    folder.mkdir(parents=True)
    (folder / f"{'ab' * 16}.png").write_bytes(b"x")
    sink = open_sink(str(tmp_path))
    check_output(sink, make({}))
    with pytest.raises(RunConfigError, match="made by a run in another format than webp"):
        check_output(sink, make({"output.format": "webp"}))


def test_an_output_keeps_to_the_sink_that_wrote_it(tmp_path):
    sink = open_sink(str(tmp_path))
    write_summary(sink.store, {}, {"output": {"sink": "sqlite"}})
    with pytest.raises(RunConfigError, match=r"was written by the sink sqlite: set output.sink to it"):
        check_output(sink, make({}))
    with pytest.raises(StorageError, match="was written by the sink 'sqlite'; installed are files"):
        open_output(str(tmp_path))


def test_a_summary_that_can_t_be_read_stops_no_run(tmp_path):
    (tmp_path / "summary.json").write_text("{", "utf-8")
    check_output(open_sink(str(tmp_path)), make({}))
