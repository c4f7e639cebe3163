"""Where named files are: folders, paths, and names of what is bundled."""

from pathlib import Path

import pytest

from sdjax.assets import bundled
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.library.library import Library, find_place


def test_a_bundled_name_stands_for_the_parts_of_that_model_and_any_other_for_a_path():
    emoji = Library(controlnets="emoji", depth_model="emoji", classifier="emoji", upscalers="emoji")
    assert emoji.place("controlnets") == bundled("emoji", "controlnets")
    assert emoji.place("depth_model") == bundled("emoji")
    assert emoji.place("classifier") == bundled("emoji", "noise_classifier") == find_place("emoji", "classifier", "x")
    assert (emoji.place("upscalers"), emoji.place("loras")) == ("emoji", None)


def test_the_states_of_a_library_are_others_where_a_file_came_went_or_changed(tmp_path: Path):
    for name in ("loras/in/ink.pt", "depth/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("a")
    library = Library(loras=tmp_path / "loras", depth_model=tmp_path / "depth")
    before = library.states()
    assert library.states() == before
    (tmp_path / "depth" / "config.json").write_text("bc")
    changed = library.states()
    (tmp_path / "loras" / "in" / "ink.pt").unlink()
    assert len({before, changed, library.states()}) == 3


def test_what_is_at_no_path_and_not_bundled_is_an_error_that_suggests_a_name():
    with pytest.raises(CheckpointError, match=r"no classifier 'emojy': .*neither bundled.*; did you mean 'emoji'"):
        find_place("emojy", "classifier", "classifier")
