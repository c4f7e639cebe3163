"""What a name means in folders as users have them."""

import unicodedata
from pathlib import Path

import pytest

from sdjax.checkpoints.find_file import find_file
from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.library.finding import beside, files_under, hint, near, plain
from tests.rights import without_rights

ENDINGS = (".safetensors", ".pth", ".param")
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
    touch(tmp_path / "._a.txt", tmp_path / "a.txt", tmp_path / "__MACOSX" / "b.txt", tmp_path / "._in" / "c.txt")
    assert listed(tmp_path) == ["a.txt"]


def test_names_are_compared_without_form_of_accents_and_blanks_at_ends():
    assert plain(DECOMPOSED) == plain(COMPOSED) == COMPOSED
    assert plain(" in / ink ") == "in/ink"
    assert plain("a.b c.d") == "a.b c.d"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("UPPER.PTH", "UPPER"),
        ("UPPER.SAFETENSORS", "UPPER"),
        ("UPPER.PTH", "UPPER.PTH"),
        ("UPPER.PTH", "UPPER.pth"),
        ("net.PARAM", "net"),
        (f"{DECOMPOSED}.pth", COMPOSED),
        (f"{COMPOSED}.pth", DECOMPOSED),
        (f"in {DECOMPOSED}/ink.pth", f"in {COMPOSED}/ink"),
        ("ink .pth", "ink"),
        ("4x.v1.2.pth", "4x.v1.2"),
        ("4x.v1.2.pth", "4x.v1.2.pth"),
    ],
)
def test_one_name_finds_a_file_however_it_is_written(tmp_path, file, name):
    touch(tmp_path / file)
    assert find_file(tmp_path, name, ENDINGS, "upscaler", "upscaler_folder") == tmp_path / file


def test_what_is_called_so_letter_by_letter_goes_first_and_then_the_ending_that_is_preferred(tmp_path):
    touch(*(tmp_path / name for name in ("a.pth", "a .safetensors", "b.pth", "b.SAFETENSORS", "c.pth.param", "c.pth")))
    found = [find_file(tmp_path, name, ENDINGS, "upscaler", "x").name for name in ("a", "b", "c", "c.pth")]
    assert found == ["a.pth", "b.SAFETENSORS", "c.pth", "c.pth"]


def test_a_companion_file_is_never_meant(tmp_path):
    touch(tmp_path / "._net.pth")
    with pytest.raises(CheckpointError, match="there is no such file"):
        find_file(tmp_path, "._net", ENDINGS, "upscaler", "upscaler_folder")


def test_near_names_are_found_in_capitals_or_not_and_long_ones_are_cut(tmp_path):
    touch(tmp_path / "Watercolour.PTH")
    with pytest.raises(CheckpointError, match=r"upscaler 'watercolor': .* \(did you mean 'Watercolour'\?\)"):
        find_file(tmp_path, "watercolor", ENDINGS, "upscaler", "upscaler_folder")
    with pytest.raises(CheckpointError) as error:
        find_file(tmp_path, "x" * 100_000, ENDINGS, "upscaler", "upscaler_folder")
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    assert near("INK", ["ink", "chalk"]) == ["ink"] and hint("zzz", ["ink"]) == ""


def test_a_folder_that_cannot_be_listed_is_an_error_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone
    with without_rights(), pytest.raises(CheckpointError, match="Permission denied"):
        find_file(Path(), "shut/a", ENDINGS, "upscaler", "upscaler_folder")


def test_what_lies_beside_a_file_is_found_in_capitals_or_not(tmp_path):
    touch(tmp_path / "NET.PARAM", tmp_path / "NET.BIN")
    assert beside(tmp_path / "NET.PARAM", ".bin") == tmp_path / "NET.BIN"
    assert beside(tmp_path / "NET.PARAM", ".yaml") == tmp_path / "NET.yaml"
