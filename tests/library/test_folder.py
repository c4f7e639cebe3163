"""Files of each kind by name, in folders as users have them."""

import base64
import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sdjax.adapters.embedding import embedding_name
from sdjax.adapters.lora import trainers_name
from sdjax.library.finding import FindingError, plain
from sdjax.library.folder import Folder
from sdjax.library.kinds import KINDS
from tests.adapters.test_lora_files import PAIR
from tests.golden import embeddings
from tests.rights import without_rights

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
VECTORS = np.ones((2, 16), np.float32)


def lora(file: Path, name_inside: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(PAIR, file, None if name_inside is None else {"ss_output_name": name_inside})
    return file


def image(file: Path, name_inside: object = None) -> Path:
    said = {"name": name_inside, "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}}
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(said).encode()).decode())
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def loras(root: Path) -> Folder:
    return Folder(root, KINDS["loras"]._replace(name_inside=trainers_name))


def embeddings_in(root: Path) -> Folder:
    return Folder(root, KINDS["embeddings"]._replace(name_inside=lambda file: embedding_name(file, pickled=True)))


def upscalers(root: Path) -> Folder:
    return Folder(root, KINDS["upscalers"])


def controlnets(root: Path) -> Folder:
    return Folder(root, KINDS["controlnets"])


@pytest.mark.parametrize("name", ["ink", "ink.safetensors", "in/ink", "in/ink.safetensors", r"in\ink", " ink "])
def test_a_file_goes_by_its_name_with_and_without_ending_and_by_its_path(tmp_path, name):
    file = lora(tmp_path / "in" / "ink.safetensors")
    assert loras(tmp_path).find(name) == file


@pytest.mark.parametrize("name", ["UPPER.SAFETENSORS", "UPPER.safetensors"])
def test_an_ending_counts_in_capitals_or_not(tmp_path, name):
    file = lora(tmp_path / "UPPER.SAFETENSORS")
    assert loras(tmp_path).find(name) == file


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("UPPER.SAFETENSORS", "UPPER"),
        ("ink.CKPT", "ink"),
        (f"{DECOMPOSED}.safetensors", COMPOSED),
        (f"{COMPOSED}.safetensors", DECOMPOSED),
        ("ink .safetensors", "ink"),
        ("ink.v1.2.safetensors", "ink.v1.2"),
        ("ink.pt.safetensors", "ink.pt"),
        ("4x.v1.2.safetensors", "4x.v1.2.safetensors"),
        (f"in {DECOMPOSED}/ink.safetensors", f"in {COMPOSED}/ink"),
    ],
)
def test_a_file_is_found_however_its_name_is_written(tmp_path, file, name):
    lora(tmp_path / file)
    assert loras(tmp_path).find(name) == tmp_path / file


@pytest.mark.parametrize("file", ["ink.v1/adapter_model.safetensors", "ink.v1/pytorch_lora_weights.SAFETENSORS"])
def test_a_folder_that_peft_or_diffusers_wrote_goes_by_its_own_name(tmp_path, file):
    lora(tmp_path / "in" / file)
    folder = loras(tmp_path)
    assert set(folder) == {"ink.v1", "in/ink.v1"}
    assert folder.find("ink.v1") == folder.find("in/ink.v1") == tmp_path / "in" / "ink.v1"
    assert folder.find(f"in/{file}") == tmp_path / "in" / file


def test_an_ending_that_is_said_is_heeded(tmp_path):
    for name in ("ink.safetensors", "ink.pt"):
        lora(tmp_path / name)
    folder = loras(tmp_path)
    assert folder.find("ink").name == "ink.safetensors" and folder.find("ink.pt").name == "ink.pt"
    with pytest.raises(FindingError, match=r"there is no lora 'ink.ckpt' in .*; did you mean 'ink'\?"):
        folder.find("ink.ckpt")


def test_a_file_behind_two_links_is_one_file(tmp_path):
    file = lora(tmp_path / "elsewhere" / "ink.safetensors")
    (tmp_path / "loras").mkdir()
    for name in ("a", "b"):
        (tmp_path / "loras" / name).symlink_to("../elsewhere")
    assert loras(tmp_path / "loras").find("ink").resolve() == file


def test_of_names_that_are_compared_alike_the_one_written_so_is_meant(tmp_path):
    for name in (COMPOSED, DECOMPOSED, "ink", "ink "):
        lora(tmp_path / f"{name}.safetensors")
    folder = loras(tmp_path)
    for name in (COMPOSED, DECOMPOSED, "ink"):
        assert folder.find(name).stem == name
    with pytest.raises(FindingError, match=r"there are 2 of lora ' ink': .* and .*; name one by its path from there"):
        folder.find(" ink")


def test_companion_files_of_macos_are_no_adapters(tmp_path):
    lora(tmp_path / "ink.safetensors")
    (tmp_path / "._ink.safetensors").write_bytes(b"\0\5\x16\7")
    assert list(loras(tmp_path)) == ["ink"]


def test_an_image_goes_by_the_name_inside_it_and_by_its_own(tmp_path):
    file = image(tmp_path / "victorian-lace-675.PNG", "emb_1.5")
    folder = embeddings_in(tmp_path)
    assert set(folder) == {"victorian-lace-675", "emb_1.5"}
    assert folder.find("emb_1.5") == folder.find("victorian-lace-675") == file


@pytest.mark.parametrize("name", [None, 3, "", " ", "x" * 500])
def test_what_is_no_name_inside_an_image_is_left_aside(tmp_path, name):
    image(tmp_path / "lace.png", name)
    assert list(embeddings_in(tmp_path)) == ["lace"]


def test_a_concept_goes_by_the_token_in_its_file(tmp_path):
    (tmp_path / "cat-toy").mkdir()
    save_file({"<monster-toy>": VECTORS}, tmp_path / "monster.safetensors")
    (tmp_path / "cat-toy" / "learned_embeds.bin").write_bytes((embeddings.FILES / "diffusers.bin").read_bytes())
    folder = embeddings_in(tmp_path)
    assert folder.find("<monster-toy>").name == "monster.safetensors"
    assert {"monster", "<monster-toy>"} <= set(folder)
    assert [name for name in folder if folder.find(name).name == "learned_embeds.bin" and name.startswith("<")]


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "style", "string_to_param.*", "<>", "< a>"])
def test_other_names_of_tensors_are_no_tokens(tmp_path, key):
    save_file({key: VECTORS}, tmp_path / "lace.safetensors")
    assert list(embeddings_in(tmp_path)) == ["lace"]


def test_a_name_that_a_file_has_is_never_that_inside_another(tmp_path):
    image(tmp_path / "a.png", "b")
    image(tmp_path / "b.png", "c")
    image(tmp_path / "d.png", "c")
    folder = embeddings_in(tmp_path)
    assert folder.find("b").name == "b.png"
    with pytest.raises(FindingError, match=r"b\.png and .*d\.png; this name is written in them"):
        folder.find("c")


def test_a_path_goes_before_a_name_and_several_of_a_name_are_told(tmp_path):
    for file in ("ink.safetensors", "old/ink.safetensors", "a/chalk.safetensors", "b/chalk.safetensors"):
        lora(tmp_path / file)
    folder = loras(tmp_path)
    assert folder.find("ink") == tmp_path / "ink.safetensors"
    assert folder.find("old/ink") == tmp_path / "old" / "ink.safetensors"
    with pytest.raises(FindingError, match=r"there are 2 of lora 'chalk': .*a/chalk.* and .*b/chalk"):
        folder.find("chalk")


def test_what_is_called_so_letter_by_letter_goes_first_and_then_the_ending_that_is_preferred(tmp_path):
    touch(*(tmp_path / name for name in ("a.pth", "a .safetensors", "b.pth", "b.SAFETENSORS", "c.pth.param", "c.pth")))
    folder = upscalers(tmp_path)
    assert [folder.find(name).name for name in ("a", "b", "c", "c.pth")] == ["a.pth", "b.SAFETENSORS", "c.pth", "c.pth"]


def test_a_folder_that_diffusers_wrote_is_one_upscaler_or_controlnet_and_its_files_are_parts_of_it(tmp_path):
    touch(tmp_path / "x4" / "model_index.json", tmp_path / "x4" / "unet" / "diffusion_pytorch_model.safetensors")
    assert list(upscalers(tmp_path)) == ["x4"] and upscalers(tmp_path).find("x4") == tmp_path / "x4"
    nets = tmp_path / "nets"
    for name in ("canny", "whole/controlnet", "whole/unet"):
        touch(nets / name / "config.json", nets / name / "diffusion_pytorch_model.safetensors")
    touch(nets / "whole" / "model_index.json", nets / "pose" / "pose.pth")
    folder = controlnets(nets)
    assert set(folder) == {"canny", "whole", "controlnet", "whole/controlnet", "pose", "pose/pose"}
    assert folder.find("whole") == nets / "whole" and folder.find("pose") == nets / "pose" / "pose.pth"
    # A variant of the weights can be named.
    assert folder.find("canny/diffusion_pytorch_model").name == "diffusion_pytorch_model.safetensors"


def test_a_folder_that_is_not_whole_is_found_so_that_its_reader_can_say_what_is_missing(tmp_path):
    touch(tmp_path / "canny" / "config.json")
    assert list(controlnets(tmp_path)) == [] and controlnets(tmp_path).find("canny") == tmp_path / "canny"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_says_the_same_of_a_name_that_is_not_there(tmp_path, kind):
    touch(tmp_path / f"Watercolour{kind.endings[0].upper()}")
    folder = Folder(tmp_path, kind)
    with pytest.raises(FindingError) as error:
        folder.find("watercolor")
    assert str(error.value) == f"there is no {kind.name} 'watercolor' in {tmp_path}; did you mean 'Watercolour'?"
    for name in ("", ".", "..", "/", "../x", str(tmp_path), "x" * 100_000):
        with pytest.raises(FindingError, match=f"there is no {kind.name} ") as error:
            folder.find(name)
        assert len(str(error.value)) < 500 + len(str(tmp_path))
    with pytest.raises(FindingError, match=f"no folder of such files is given; set {kind.setting}"):
        Folder(None, kind).find("ink")
    with pytest.raises(FindingError, match=f"{kind.setting} = .*nowhere: there is no such folder on this machine"):
        Folder(tmp_path / "nowhere", kind)


def test_names_that_are_allowed_besides_are_suggested_too(tmp_path):
    with pytest.raises(FindingError, match="did you mean 'lanczos'"):
        upscalers(tmp_path).find("lanczos3", ("lanczos", "bicubic"))


def test_a_folder_that_can_not_be_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone
    with without_rights():
        folder = upscalers(Path())
        with pytest.raises(FindingError, match=r"no upscaler 'shut/a' in \.; .* be listed: shut \(Permission denied"):
            folder.find("shut/a")
        with pytest.raises(FindingError, match=r"library.upscalers = shut: it can't be listed \(Permission denied\)"):
            upscalers(Path("shut"))


def test_what_has_a_say_in_a_file_is_in_its_states(tmp_path):
    touch(tmp_path / "net.param", tmp_path / "net.bin", tmp_path / "other.pth")
    before = KINDS["upscalers"].states(tmp_path / "net.param")
    (tmp_path / "other.pth").write_bytes(b"other")
    assert KINDS["upscalers"].states(tmp_path / "net.param") == before
    (tmp_path / "net.bin").write_bytes(b"other")
    assert KINDS["upscalers"].states(tmp_path / "net.param") != before


# --- Properties ---

PARTS = st.text("aB.é ", min_size=1, max_size=4).filter(lambda part: part.strip(" .") and not part.startswith("._"))
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@st.composite
def trees(draw: st.DrawFn) -> list[str]:
    """Paths of files with endings, none of them in a file."""
    paths = draw(st.lists(st.tuples(PATHS, st.sampled_from([".pth", ".PT", ".safetensors"])), min_size=1, max_size=6))
    files = list(dict.fromkeys(path + ending for path, ending in paths))
    return [file for file in files if not any(other.startswith(f"{file}/") for other in files)]


@given(files=trees(), form=st.sampled_from(["NFC", "NFD"]))
def test_each_file_is_found_by_its_path_in_either_form_and_each_name_finds_a_file_or_several(files, form):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        touch(*(root / file for file in files))
        folder = upscalers(root)
        for file in files:
            assert folder.find(file) == root / file
            try:
                found = folder.find(unicodedata.normalize(form, file))
            except FindingError as error:
                assert "there are" in str(error)
            else:
                assert plain(found.relative_to(root).as_posix()) == plain(file)
        for known in folder:
            try:
                assert folder.find(known).is_file()
            except FindingError as error:
                assert "there are" in str(error)
