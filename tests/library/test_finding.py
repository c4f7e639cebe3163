"""What a name means in folders as users have them."""

import unicodedata
from pathlib import Path

import pytest

from sdjax.library.finding import (
    FindingError,
    beside,
    files_under,
    find_path,
    folders_under,
    hint,
    near,
    plain,
    states_of,
)
from tests.rights import without_rights

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def listed(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files_under(root)]


def test_files_behind_links_are_found(tmp_path):
    touch(tmp_path / "elsewhere" / "in" / "a.txt", tmp_path / "here" / "b.txt")
    (tmp_path / "here" / "linked").symlink_to("../elsewhere")
    (tmp_path / "here" / "c.txt").symlink_to("../elsewhere/in/a.txt")
    (tmp_path / "here" / "gone.txt").symlink_to("nowhere")
    assert listed(tmp_path / "here") == ["b.txt", "c.txt", "linked/in/a.txt"]


def test_links_that_lead_around_in_a_circle_end(tmp_path):
    touch(tmp_path / "a.txt", tmp_path / "in" / "b.txt")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "self").symlink_to(".")
    (tmp_path / "twice").symlink_to("in")
    assert listed(tmp_path) == ["a.txt", "in/b.txt", "twice/b.txt"]


def test_folders_that_all_lead_to_each_other_end_soon(tmp_path):
    names = [f"f{index}" for index in range(12)]
    for name in names:
        touch(tmp_path / name / "a.txt")
    for name in names:
        for other in names:
            (tmp_path / name / f"to_{other}").symlink_to(f"../{other}")
    assert {f"{name}/a.txt" for name in names} <= set(listed(tmp_path))
    assert len(listed(tmp_path)) < 200


def test_companion_files_of_macos_are_passed_over(tmp_path):
    touch(
        tmp_path / ".DS_Store",
        tmp_path / "._a.txt",
        tmp_path / "a.txt",
        tmp_path / "__MACOSX" / "b.txt",
        tmp_path / "._in" / "c.txt",
    )
    assert listed(tmp_path) == ["a.txt"]


def test_names_are_compared_without_form_of_accents_and_blanks_at_ends():
    assert plain(DECOMPOSED) == plain(COMPOSED) == COMPOSED
    assert plain(" in / ink ") == "in/ink"
    assert plain("a.b c.d") == "a.b c.d"


def test_folders_that_can_not_be_listed_are_told_and_count_as_empty(tmp_path, monkeypatch):
    touch(tmp_path / "a.txt")
    (tmp_path / "shut").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone
    told: list[str] = []
    with without_rights():
        found = list(folders_under(Path(), lambda folder, error: told.append(f"{folder}: {error.strerror}")))
    assert [listing.files for listing in found] == [[Path("a.txt")]] and told == ["shut: Permission denied"]


def test_states_tell_what_came_went_and_changed(tmp_path):
    touch(tmp_path / "in" / "a.txt")
    before = states_of(tmp_path)
    assert states_of(tmp_path) == before and states_of(tmp_path / "gone") == ()
    (tmp_path / "in" / "a.txt").write_text("b")
    changed = states_of(tmp_path)
    touch(tmp_path / "b.txt")
    assert len({before, changed, states_of(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("a/net.SAFETENSORS", "a/net.safetensors"),
        (f"{DECOMPOSED}/x", f"{COMPOSED}/x"),
        (f"in {COMPOSED}/{COMPOSED}.PTH", f"in {DECOMPOSED}/{DECOMPOSED}.pth"),
        ("a /b", "a/b"),
    ],
)
def test_a_path_is_found_however_it_is_written(tmp_path, monkeypatch, there, asked):
    touch(tmp_path / there)
    assert find_path(tmp_path / asked, "model") == tmp_path / there
    monkeypatch.chdir(tmp_path)
    assert find_path(asked, "model") == Path(there)


def test_a_path_where_nothing_is_is_an_error_that_suggests_what_is_beside_it_or_bundled(tmp_path):
    touch(tmp_path / "dpt-hybrid")
    for asked, meant in ((f"{tmp_path}/dpt-hybrd", f"{tmp_path}/dpt-hybrid"), ("emojy", "emoji")):
        with pytest.raises(FindingError, match=f"no estimator of depth '{asked}': .*; did you mean '{meant}'"):
            find_path(asked, "estimator of depth", ("emoji",))
    for asked in ("x" * 5000, "a\0b", "a/b/c"):
        with pytest.raises(FindingError, match="there is no model"):
            find_path(asked, "model")


def test_near_names_are_found_in_capitals_or_not_and_among_any_number():
    assert near("INK", ["ink", "chalk"]) == ["ink"] and hint("zzz", ["ink"]) == ""
    assert hint("inc", ["ink", "inch"], 2) == "; did you mean 'inch' or 'ink'?"
    assert near("wave 077", [f"wave {number:05}" for number in range(50_000)])[0].startswith("wave 0")


def test_what_lies_beside_a_file_is_found_in_capitals_or_not(tmp_path):
    touch(tmp_path / "NET.PARAM", tmp_path / "NET.BIN")
    assert beside(tmp_path / "NET.PARAM", ".bin") == tmp_path / "NET.BIN"
    assert beside(tmp_path / "NET.PARAM", ".yaml") == tmp_path / "NET.yaml"
