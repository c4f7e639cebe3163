"""What `sdjax inspect` tells of models and files of weights."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import sdjax
from pipelines.convert import convert
from pipelines.inspect import describe
from tests import pickles
from tests.golden import checkpoints

FIRST = "model.diffusion_model.input_blocks.0.0.bias"


def told(name: Path | str, **options: bool) -> dict[str, str]:
    """All lines, those of one name together."""
    lines: dict[str, list[str]] = {}
    for line, value in describe(str(name), **options):
        lines.setdefault(line, []).append(value)
    return {line: "\n".join(values) for line, values in lines.items()}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    tags = {"ss_network_dim": "8", "modelspec.title": "Toy", "ss_tag_frequency": "x " * 200, "mine": "1"}
    return checkpoints.write_toy(file, "sd1", ema=True, dtype=np.float16, **tags)


def test_a_checkpoint_is_told_with_its_hashes_and_metadata(toy):
    lines = told(toy)
    sha256 = hashlib.sha256(toy.read_bytes()).hexdigest()
    assert lines["kind"] == "checkpoint" and lines["file"] == f"{toy}, {toy.stat().st_size:,} bytes"
    assert lines["model"] == "Stable Diffusion 1 of another size, predicts epsilon"
    assert lines["predicts"] == "epsilon, as in all models of its structure"
    assert lines["precision"].startswith("F16 (") and "parameters in" in lines["averages (EMA)"]
    assert lines["sha256"] == sha256 and lines["model hash"].startswith(f"{sha256[:10]} (A1111")
    assert "modelspec.title: Toy\nss_network_dim: 8\nss_tag_frequency: x x" in lines["metadata"]
    assert lines["metadata"].endswith("(400 characters)") and lines["other metadata"] == "mine"
    assert "problem" not in lines


def test_what_is_missing_or_not_known_is_named(toy, tmp_path):
    tensors = load_file(toy)
    tensors["strange"] = tensors.pop(FIRST)
    save_file(tensors, tmp_path / "toy.safetensors")
    assert f"missing: {FIRST}; left over: strange" in told(tmp_path / "toy.safetensors")["problem"]


def test_both_forms_of_a_checkpoint_have_the_same_content(toy, tmp_path):
    written = dict(convert(str(toy), tmp_path / "folder"))
    lines = told(tmp_path / "folder")
    assert written == {"written": str(tmp_path / "folder")}
    assert lines["content"] == told(toy)["content"]
    assert lines["pipeline"] == "StableDiffusionPipeline" and lines["scheduler"] == "PNDMScheduler, predicts epsilon"
    assert lines["variant"] == "Stable Diffusion 1 of another size, predicts epsilon"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "folder/unet").iterdir()}
    name = "diffusion_pytorch_model.safetensors"
    assert f"{files[name]} unet/{name}" in lines["sha256"]


def test_whether_the_prediction_is_known_is_told(tmp_path):
    file = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd2_v")
    assert told(file)["predicts"].startswith("to be said: ") and "content" in told(file)
    checkpoints.write_toy(file, "sd2_v", **{"modelspec.prediction_type": "v"})
    assert told(file)["predicts"] == "v_prediction, by its metadata"


def test_a_folder_of_one_network_and_other_files_are_told(sd1_folder, tmp_path):
    lines = told(sd1_folder / "vae")
    assert lines["kind"] == "VAE" and "diffusion_pytorch_model.safetensors" in lines["sha256"]
    save_file({"lora_unet_a.lora_down.weight": np.ones((4, 8), np.float32)}, tmp_path / "lora.safetensors")
    assert told(tmp_path / "lora.safetensors")["kind"] == "LoRA"
    save_file({"control_model.input_hint_block.0.bias": np.ones(4, np.float32)}, tmp_path / "net.safetensors")
    assert told(tmp_path / "net.safetensors")["kind"] == "ControlNet"


def test_pickled_files_are_told_of_when_asked_for(tmp_path):
    file = pickles.write(tmp_path / "cat.pt", {"string_to_param": {"*": np.ones((2, 768), np.float32)}, "name": "cat"})
    with pytest.raises(sdjax.CheckpointError, match="pickled"):
        told(file)
    lines = told(file, pickled=True)
    assert lines["kind"] == "textual inversion" and "2 of width 768" in lines["vectors"]
    assert "without header" not in lines


def test_what_is_not_there_or_damaged_is_an_error(toy, tmp_path):
    with pytest.raises(sdjax.CheckpointError, match="there is no model"):
        told(tmp_path / "none")
    (tmp_path / "cut.safetensors").write_bytes(toy.read_bytes()[:-1])
    with pytest.raises(sdjax.CheckpointError, match=r"cut\.safetensors"):
        told(tmp_path / "cut.safetensors")


# --- Conversion, as the command line asks for it ---


def test_conversion_tells_what_it_left_out_and_refuses_options_that_say_nothing(toy, sd1_folder, tmp_path):
    root = shutil.copytree(sd1_folder, tmp_path / "toy")
    (root / "unet/diffusion_pytorch_model.bin").touch()
    lines = list(convert(str(root), tmp_path / "out.safetensors"))
    assert lines == [
        ("written", str(tmp_path / "out.safetensors")),
        ("left out", "unet/diffusion_pytorch_model.bin"),
    ]
    assert "sdjax:unet/config.json" not in told(tmp_path / "out.safetensors").get("other metadata", "")
    assert "unet/config.json" in told(tmp_path / "out.safetensors")["carries"]
    with pytest.raises(ValueError, match="is a folder, for which --ema says nothing"):
        list(convert(str(sd1_folder), tmp_path / "a.safetensors", ema=True))
    with pytest.raises(ValueError, match="is a single file, for which --variant says nothing"):
        list(convert(str(toy), tmp_path / "a", variant="fp16"))


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".CKPT", ".Pth"])
def test_endings_count_in_capitals_or_not(tmp_path, ending):
    file = tmp_path / f"UPPER{ending}"
    save_file({"lora_unet_x.lora_down.weight": np.ones((2, 3)), "lora_unet_x.lora_up.weight": np.ones((4, 2))}, file)
    lines = told(file)
    assert lines["kind"].startswith("LoRA") and lines["file"].startswith(str(file))


def test_an_image_is_told_of_whatever_its_ending_and_its_metadata(tmp_path):
    whole = io.BytesIO()
    Image.new("RGB", (4, 4)).save(whole, "WEBP", exif=b"Exif\0\0nonsense", xmp=b"<sdjax:metadata>{</sdjax:metadata>")
    file = tmp_path / "UPPER.PNG"
    file.write_bytes(whole.getvalue())
    lines = told(file)
    assert lines["image"] == "4x4 RGB WEBP"
    assert lines["sdjax"].startswith("its metadata of sdjax can't be read: ")
    assert lines["parameters"].startswith("its EXIF data are damaged")
    Image.new("RGB", (4, 4)).save(file, "PNG")
    assert told(file)["sdjax"] == "no metadata of sdjax in it: made by something else, or stripped"
