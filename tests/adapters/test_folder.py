"""Adapters by name, in folders as users have them."""

import base64
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sdjax.adapters.embedding import embedding_name
from sdjax.adapters.files import AdapterError
from sdjax.adapters.folder import Folder
from sdjax.adapters.library import Adapters, Library
from sdjax.text.tags import Tag
from tests import toys
from tests.adapters.test_lora_files import PAIR
from tests.golden import embeddings

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))
VECTORS = np.ones((2, 16), np.float32)


def lora(file: Path, name_inside: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(PAIR, file, None if name_inside is None else {"ss_output_name": name_inside})
    return file


def picture(file: Path, name_inside: object = None) -> Path:
    said = {"name": name_inside, "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}}
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(said).encode()).decode())
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file


def loras(root: Path) -> Folder:
    return Folder(root, "lora", "lora_folder")


def embeddings_in(root: Path) -> Folder:
    return Folder(root, "embedding", "embedding_folder", lambda file: embedding_name(file, pickled=True))


@pytest.mark.parametrize("name", ["ink", "ink.safetensors", "in/ink", "in/ink.safetensors", r"in\ink", " ink "])
def test_a_file_goes_by_its_name_with_and_without_ending_and_by_its_path(tmp_path, name):
    file = lora(tmp_path / "in" / "ink.safetensors")
    assert loras(tmp_path).file(name) == file


@pytest.mark.parametrize("name", ["UPPER.SAFETENSORS", "UPPER.safetensors"])
def test_an_ending_counts_in_capitals_or_not(tmp_path, name):
    file = lora(tmp_path / "UPPER.SAFETENSORS")
    assert loras(tmp_path).file(name) == file


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
        ("ink/adapter_model.safetensors", "ink"),
        ("ink.v1/adapter_model.SAFETENSORS", "ink.v1"),
    ],
)
def test_a_file_is_found_however_its_name_is_written(tmp_path, file, name):
    lora(tmp_path / file)
    folder = loras(tmp_path)
    assert folder.file(name) == tmp_path / file and name in folder


def test_an_ending_that_is_said_is_heeded(tmp_path):
    for name in ("ink.safetensors", "ink.pt"):
        lora(tmp_path / name)
    folder = loras(tmp_path)
    assert folder.file("ink").name == "ink.safetensors" and folder.file("ink.pt").name == "ink.pt"
    with pytest.raises(AdapterError, match=r"there is no such file in .* \(did you mean 'ink'\?\)"):
        folder.file("ink.ckpt")


def test_a_file_behind_two_links_is_one_file(tmp_path):
    file = lora(tmp_path / "elsewhere" / "ink.safetensors")
    (tmp_path / "loras").mkdir()
    for name in ("a", "b"):
        (tmp_path / "loras" / name).symlink_to("../elsewhere")
    assert loras(tmp_path / "loras").file("ink").resolve() == file


def test_of_names_that_are_compared_alike_the_one_written_so_is_meant(tmp_path):
    for name in (COMPOSED, DECOMPOSED, "ink", "ink "):
        lora(tmp_path / f"{name}.safetensors")
    folder = loras(tmp_path)
    for name in (COMPOSED, DECOMPOSED, "ink"):
        assert folder.file(name).stem == name
    with pytest.raises(AdapterError, match=r"lora ' ink': .* and .* have this name; say the path"):
        folder.file(" ink")


def test_companion_files_of_macos_are_no_adapters(tmp_path):
    lora(tmp_path / "ink.safetensors")
    (tmp_path / "._ink.safetensors").write_bytes(b"\0\5\x16\7")
    assert list(loras(tmp_path)) == ["ink"]


def test_a_picture_goes_by_the_name_inside_it_and_by_its_own(tmp_path):
    file = picture(tmp_path / "victorian-lace-675.PNG", "emb_1.5")
    folder = embeddings_in(tmp_path)
    assert set(folder) == {"victorian-lace-675", "emb_1.5"}
    assert folder.file("emb_1.5") == folder.file("victorian-lace-675") == file


@pytest.mark.parametrize("name", [None, 3, "", " ", "x" * 500])
def test_what_is_no_name_inside_a_picture_is_left_aside(tmp_path, name):
    picture(tmp_path / "lace.png", name)
    assert list(embeddings_in(tmp_path)) == ["lace"]


def test_a_concept_goes_by_the_token_in_its_file(tmp_path):
    (tmp_path / "cat-toy").mkdir()
    save_file({"<monster-toy>": VECTORS}, tmp_path / "monster.safetensors")
    (tmp_path / "cat-toy" / "learned_embeds.bin").write_bytes((embeddings.FILES / "diffusers.bin").read_bytes())
    folder = embeddings_in(tmp_path)
    assert folder.file("<monster-toy>").name == "monster.safetensors"
    assert {"monster", "<monster-toy>"} <= set(folder)
    assert [name for name in folder if folder.file(name).name == "learned_embeds.bin" and name.startswith("<")]


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "style", "string_to_param.*", "<>", "< a>"])
def test_other_names_of_tensors_are_no_tokens(tmp_path, key):
    save_file({key: VECTORS}, tmp_path / "lace.safetensors")
    assert list(embeddings_in(tmp_path)) == ["lace"]


def test_a_name_that_a_file_has_is_never_that_inside_another(tmp_path):
    picture(tmp_path / "a.png", "b")
    picture(tmp_path / "b.png", "c")
    picture(tmp_path / "d.png", "c")
    folder = embeddings_in(tmp_path)
    assert folder.file("b").name == "b.png"
    with pytest.raises(AdapterError, match=r"b\.png and .*d\.png have this name inside"):
        folder.file("c")


def test_a_library_applies_them_all(tmp_path):
    lora(tmp_path / "loras" / "UPPER.SAFETENSORS")
    lora(tmp_path / "loras" / "ink.safetensors", "chalk")
    lora(tmp_path / "loras" / "peft" / "adapter_model.SAFETENSORS")
    (tmp_path / "words").mkdir()
    width = toys.SD1.text_encoder.hidden_size
    save_file({"<toy>": np.ones((2, width), np.float32)}, tmp_path / "words" / "TOY.SAFETENSORS")
    library = Library(loras=tmp_path / "loras", embeddings=tmp_path / "words")
    params = {"text_encoder": {"token_embedding": {"embedding": np.zeros((1, width))}}}
    adapters = Adapters(library, toys.SD1.text_encoder, toys.SD1.unet, params)
    names = ["UPPER", "ink.safetensors", "chalk", "peft"]
    found = adapters.find([Tag("lora", name, 1.0, 1.0) for name in names], ["<toy>", "TOY"])
    assert [each.adapter.name for each in found.loras] == ["UPPER", "ink", "ink", "peft"]
    assert found.embeddings[0].digest == found.embeddings[1].digest
    assert dict(adapters.vectors({})) == {"TOY": 2, "<toy>": 2}
