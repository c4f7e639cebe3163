"""Conversion between single files and folders: the way there and back gives the same files, to the last byte."""

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import sdjax
from pipelines.convert import CLIP, convert
from sdjax.checkpoints.contents import content_digest, of_file, of_folder
from sdjax.checkpoints.convert import file_to_file, file_to_folder, folder_to_file
from sdjax.checkpoints.single_file import read_file
from sdjax.checkpoints.streamed import Piece, Target, header_of, in_order, write_tensors
from sdjax.checkpoints.tensors import list_file
from sdjax.models.config import ConfigError
from tests import pickles
from tests.golden import checkpoints

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
FIRST = "model.diffusion_model.input_blocks.0.0.bias"


def hashes(root: Path) -> dict[str, str]:
    """sha256 of every file in a folder."""
    files = [file for file in root.rglob("*") if file.is_file()]
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def without_original(root: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(root).items() if not name.startswith("original/")}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata() or {}


def change(file: Path, change: Callable[[dict[str, np.ndarray]], object], **more: str) -> Path:
    """Writes a file's tensors again, changed."""
    tensors, found = load_file(file), metadata(file)
    change(tensors)
    save_file(tensors, file, {**found, **more})
    return file


@pytest.fixture(scope="module")
def original_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file of Stable Diffusion 1 in half precision, with averages and what training leaves behind."""
    file = tmp_path_factory.mktemp("original") / "toy.safetensors"
    checkpoints.write_toy(file, "sd1", ema=True, dtype=np.float16, author="someone", note="ü \n")
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None]}
    return change(file, lambda tensors: tensors.update(ids))


@pytest.fixture(scope="module")
def folder(original_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That file as a folder."""
    folder = tmp_path_factory.mktemp("converted") / "toy"
    file_to_folder(original_file, folder, CLIP)
    return folder


def there_and_back(file: Path, tmp_path: Path, **options: object) -> Path:
    file_to_folder(file, tmp_path / "folder", CLIP, **options)
    folder_to_file(tmp_path / "folder", tmp_path / "back.safetensors", CLIP)
    return tmp_path / "back.safetensors"


# --- A single file, as a folder and back ---


def test_a_single_file_comes_back_to_the_last_byte(original_file, folder, tmp_path):
    assert folder_to_file(folder, tmp_path / "back.safetensors", CLIP) == []
    assert (tmp_path / "back.safetensors").read_bytes() == original_file.read_bytes()


def test_fused_and_unused_tensors_of_version_2_come_back_too(tmp_path):
    file = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd2_depth")
    more = {
        "depth_model.model.pretrained.bias": np.ones(3, np.float32),
        "cond_stage_model.model.text_projection": np.ones((32, 32), np.float16),
        "cond_stage_model.model.logit_scale": np.ones((), np.float32),
    }
    change(file, lambda tensors: tensors.update(more))
    assert there_and_back(file, tmp_path).read_bytes() == file.read_bytes()
    left_over = load_file(tmp_path / "folder/original/left_over.safetensors")
    assert more.keys() < left_over.keys() and any("resblocks" in name for name in left_over)
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionDepth2ImgPipeline"


def test_what_other_trainings_leave_behind_comes_back_too(tmp_path):
    file = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd1")
    more = {
        "first_stage_model.model_ema.decoderconv_inweight": np.ones(3, np.float32),
        "embedding_manager.string_to_param_dict.*": np.ones((1, 32), np.float32),
        "cond_stage_model.transformer.vision_model.embeddings.class_embedding": np.ones(8, np.float16),
        "cond_stage_model.transformer.visual_projection.weight": np.ones((8, 8), np.float16),
        "cond_stage_model.transformer.text_projection.weight": np.ones((8, 8), np.float16),
        "cond_stage_model.transformer.logit_scale": np.ones((), np.float32),
    }
    change(file, lambda tensors: tensors.update(more))
    assert there_and_back(file, tmp_path).read_bytes() == file.read_bytes()
    assert more.keys() == load_file(tmp_path / "folder/original/left_over.safetensors").keys()


def test_what_is_stored_stays_as_it_is_also_where_it_is_no_number(tmp_path):
    strange = np.array([0x7FC1, 0xFF81, 0x0001, 0x8000] * 8, np.uint16).view(ml_dtypes.bfloat16)
    file = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd1_inpaint", dtype=ml_dtypes.bfloat16)
    change(file, lambda tensors: tensors.update({FIRST: strange}))
    assert there_and_back(file, tmp_path).read_bytes() == file.read_bytes()
    stored = load_file(tmp_path / "folder" / UNET)["conv_in.bias"]
    assert stored.dtype == ml_dtypes.bfloat16 and (stored.view(np.uint16) == strange.view(np.uint16)).all()
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"


def test_a_header_that_is_not_safetensors_own_comes_back(original_file, tmp_path):
    """Other writers order tensors otherwise, and leave the header unpadded."""
    tensors = list(list_file(original_file).tensors.values())
    targets = [Target(tensor.name, tensor.dtype, tensor.shape, (Piece(tensor),)) for tensor in reversed(tensors)]
    header = json.dumps(json.loads(header_of(targets, {"ü": "\t"})), indent=1).encode()
    write_tensors(tmp_path / "toy.safetensors", targets, header)
    assert (
        there_and_back(tmp_path / "toy.safetensors", tmp_path).read_bytes()
        == (tmp_path / "toy.safetensors").read_bytes()
    )


def test_both_forms_load_as_the_same_model(original_file, folder):
    file_model, folder_model = sdjax.load(original_file), sdjax.load(folder)
    assert file_model.unet.config == folder_model.unet.config and file_model.scheduler == folder_model.scheduler
    assert file_model.tokenizer("a cat") == folder_model.tokenizer("a cat")
    jax.tree.map(np.testing.assert_array_equal, file_model.params, folder_model.params)


def test_the_content_digest_is_the_same_for_both_forms(original_file, folder):
    found = of_file(original_file, list_file(original_file), read_file(original_file, None))
    digest = content_digest(found)
    assert content_digest(of_folder(folder).parameters) == digest
    averages = of_file(original_file, list_file(original_file), read_file(original_file, None), ema=True)
    assert content_digest(averages) != digest


def test_averages_may_take_the_place_of_the_weights(original_file, tmp_path):
    assert there_and_back(original_file, tmp_path, ema=True).read_bytes() == original_file.read_bytes()
    tensors = load_file(original_file)
    unet = load_file(tmp_path / "folder" / UNET)
    np.testing.assert_array_equal(unet["conv_in.bias"], tensors["model_ema.diffusion_modelinput_blocks00bias"])


def test_what_is_not_needed_may_be_left_out(original_file, folder, tmp_path):
    file_to_folder(original_file, tmp_path / "folder", CLIP, prune=True)
    assert hashes(tmp_path / "folder") == without_original(folder)
    folder_to_file(folder, tmp_path / "a.safetensors", CLIP, prune=True)
    file_to_file(original_file, tmp_path / "b.safetensors", prune=True)
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
    assert not any(name.startswith("model_ema.") or "." not in name for name in a)


def test_weights_changed_since_are_told_and_not_mixed_with_what_was_left_over(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "folder")
    change(changed / UNET, lambda tensors: tensors.update({"conv_in.bias": np.ones(32, np.float32)}))
    with pytest.raises(sdjax.CheckpointError, match=rf"header\.json does not describe .*{FIRST} was F16 .*--prune"):
        folder_to_file(changed, tmp_path / "out.safetensors", CLIP)
    assert not list(tmp_path.glob("*out*"))
    folder_to_file(changed, tmp_path / "out.safetensors", CLIP, prune=True)
    assert load_file(tmp_path / "out.safetensors")[FIRST].dtype == np.float32


def test_pickled_files_are_converted_only_when_asked_for(tmp_path):
    weights = checkpoints.toy_weights("sd1")
    ckpt = pickles.write(tmp_path / "toy.ckpt", {"state_dict": weights, "global_step": 7})
    with pytest.raises(sdjax.CheckpointError, match="pickled"):
        file_to_folder(ckpt, tmp_path / "folder", CLIP)
    file_to_file(ckpt, tmp_path / "plain.safetensors", pickled=True)
    back = there_and_back(ckpt, tmp_path, pickled=True)
    for file in (back, tmp_path / "plain.safetensors"):
        found = load_file(file)
        assert found.keys() == weights.keys() and all((found[name] == weights[name]).all() for name in found)


def test_a_hypernetwork_has_no_other_form(tmp_path):
    """Its activation and the widths of its layers are no tensors."""
    layers = {"linear.0.weight": np.ones((8, 8), np.float32)}
    file = pickles.write(tmp_path / "h.pt", {768: [layers, layers], "layer_structure": [1, 1]})
    with pytest.raises(sdjax.CheckpointError, match="is a hypernetwork, for which there is no form but"):
        file_to_file(file, tmp_path / "h.safetensors", pickled=True)


def test_a_file_notes_what_its_unet_is_said_to_predict(sd1_folder, tmp_path):
    file = checkpoints.write_toy(tmp_path / "toy.safetensors", "sd1", **{"modelspec.prediction_type": "flow"})
    change(file, lambda tensors: tensors.update(v_pred=np.zeros(0, np.float32), ztsnr=np.zeros(0, np.float32)))
    for said, noted in (("v_prediction", "v"), ("epsilon", "epsilon"), ("sample", "sample")):
        to = tmp_path / f"{said}.safetensors"
        list(convert(str(file), to, prediction_type=said))
        assert metadata(to)["modelspec.prediction_type"] == noted
        assert read_file(to, None).scheduler.prediction_type == said
    file_to_file(tmp_path / "v_prediction.safetensors", tmp_path / "pruned.safetensors", prune=True)
    scheduler = read_file(tmp_path / "pruned.safetensors", None).scheduler
    assert scheduler.prediction_type == "v_prediction" and scheduler.rescale_betas_zero_snr
    folder_to_file(sd1_folder, tmp_path / "carries.safetensors", CLIP)
    file_to_file(tmp_path / "carries.safetensors", tmp_path / "new.safetensors", prediction_type="v_prediction")
    assert read_file(tmp_path / "new.safetensors", None).scheduler.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="to be a single file again, for which --config says nothing"):
        list(convert(str(file), tmp_path / "b.safetensors", config=tmp_path / "v1.yaml"))


def test_a_folder_of_pickled_weights_is_converted_only_when_asked_for(sd1_folder, tmp_path):
    root = shutil.copytree(sd1_folder, tmp_path / "folder")
    give_a_buffer(root)
    weights = {TEXT: "text_encoder/pytorch_model.bin", UNET: "unet/diffusion_pytorch_model.bin"}
    for name, pickled in weights.items():
        tensors = {key: value.astype(np.float32) for key, value in load_file(root / name).items()}
        pickles.write(root / pickled, tensors)
        (root / name).unlink()
    with pytest.raises(sdjax.CheckpointError, match="pickled"):
        folder_to_file(root, tmp_path / "file.safetensors", CLIP)
    assert folder_to_file(root, tmp_path / "file.safetensors", CLIP, pickled=True) == []
    file_to_folder(tmp_path / "file.safetensors", tmp_path / "again", CLIP)
    assert load_file(tmp_path / "again" / TEXT).keys() == list_file(root / weights[TEXT], True).tensors.keys()
    assert sdjax.load(tmp_path / "again").params.keys() == sdjax.load(root, pickled=True).params.keys()


# --- A folder, as a single file and back ---


def shard(root: Path) -> None:
    tensors = load_file(root / UNET)
    names = sorted(tensors)
    shards = {f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for name, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, root / "unet" / name, {"format": "pt"})
    (root / UNET).unlink()
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (root / f"{UNET}.index.json").write_text(json.dumps(index))


def give_older_names(root: Path) -> None:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            for new, former in old.items():
                if new in name:
                    tensors[name.replace(new, former)] = tensors.pop(name)

    change(root / VAE, rename)


def give_a_buffer(root: Path) -> None:
    ids = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    change(root / TEXT, lambda tensors: tensors.update(ids))


def give_a_safety_checker(root: Path) -> None:
    (root / "safety_checker").mkdir()
    (root / "safety_checker/config.json").write_text("{}")
    save_file({"concepts": np.ones((3, 2), np.float16)}, root / "safety_checker/model.safetensors")


@pytest.mark.parametrize("kind", ["as it is written now", "as others write it"])
def test_a_folder_comes_back_to_the_last_byte(kind, sd1_folder, tmp_path):
    root = shutil.copytree(sd1_folder, tmp_path / "toy")
    if kind == "as others write it":
        for spoil in (shard, give_older_names, give_a_buffer, give_a_safety_checker):
            spoil(root)
    assert folder_to_file(root, tmp_path / "toy.safetensors", CLIP) == []
    file_to_folder(tmp_path / "toy.safetensors", tmp_path / "back", CLIP)
    assert hashes(tmp_path / "back") == hashes(root)


def test_a_folder_of_version_2_comes_back_and_says_what_its_unet_predicts(sd2_folder, tmp_path):
    file = tmp_path / "toy.safetensors"
    folder_to_file(sd2_folder, file, CLIP)
    assert metadata(file)["modelspec.prediction_type"] == "v"
    assert load_file(file)["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"].shape == (96, 32)
    file_to_folder(file, tmp_path / "back", CLIP)
    assert hashes(tmp_path / "back") == hashes(sd2_folder)


def test_of_several_variants_one_goes_along_and_the_others_are_told(sd1_folder, tmp_path):
    root = shutil.copytree(sd1_folder, tmp_path / "toy")
    for name in (UNET, VAE, TEXT):
        half = {name: tensor.astype(np.float16) for name, tensor in load_file(root / name).items()}
        save_file(half, (root / name).with_suffix(".fp16.safetensors"), {"format": "pt"})
        (root / name).with_suffix(".bin").write_bytes(b"")
    left_out = folder_to_file(root, tmp_path / "toy.safetensors", CLIP, variant="fp16")
    assert left_out == sorted([UNET, VAE, TEXT, *(name.replace(".safetensors", ".bin") for name in (UNET, VAE, TEXT))])
    assert {tensor.dtype for tensor in load_file(tmp_path / "toy.safetensors").values()} == {np.dtype(np.float16)}
    file_to_folder(tmp_path / "toy.safetensors", tmp_path / "back", CLIP)
    wanted = {name: digest for name, digest in hashes(root).items() if name not in left_out}
    assert hashes(tmp_path / "back") == wanted


def test_clips_own_vocabulary_does_not_go_along_and_another_does(folder, sd1_folder, tmp_path):
    vocabulary = {"sdjax:tokenizer/vocab.json", "sdjax:tokenizer/merges.txt"}
    folder_to_file(folder, tmp_path / "clip.safetensors", CLIP, prune=True)
    assert not vocabulary & metadata(tmp_path / "clip.safetensors").keys()
    file_to_folder(tmp_path / "clip.safetensors", tmp_path / "back", CLIP)
    assert hashes(tmp_path / "back") == without_original(folder)
    folder_to_file(sd1_folder, tmp_path / "own.safetensors", CLIP)
    assert vocabulary < metadata(tmp_path / "own.safetensors").keys()


def test_a_file_made_of_a_folder_loads_as_the_folder_does(sd1_folder, tmp_path):
    folder_to_file(sd1_folder, tmp_path / "toy.safetensors", CLIP)
    ours, theirs = sdjax.load(tmp_path / "toy.safetensors"), sdjax.load(sd1_folder)
    assert (ours.unet.config, ours.vae.config) == (theirs.unet.config, theirs.vae.config)
    assert ours.scheduler == theirs.scheduler
    assert ours.tokenizer("the castle") == theirs.tokenizer("the castle")


# --- What is refused ---


def test_nothing_is_overwritten_and_nothing_half_written_is_left(original_file, folder, tmp_path):
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises(sdjax.CheckpointError, match="is there already and is not overwritten"):
        folder_to_file(folder, tmp_path / "there.safetensors", CLIP)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(sdjax.CheckpointError, match="is there already and is not overwritten"):
        file_to_folder(original_file, tmp_path / "full", CLIP)
    broken = tmp_path / "broken.safetensors"
    shutil.copy(original_file, broken)
    change(broken, lambda tensors: tensors.pop(FIRST))
    with pytest.raises(sdjax.CheckpointError, match=FIRST):
        file_to_folder(broken, tmp_path / "out", CLIP)
    with pytest.raises(sdjax.CheckpointError, match=r"give a name that ends in \.safetensors"):
        folder_to_file(folder, tmp_path / "out", CLIP)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "full", "there.safetensors"]


@pytest.mark.parametrize(
    "path",
    ["../x.json", "unet/../../x.json", "/x.json", "a/b/c.json", "x.py", "unet/.json", "original/header.json", ""],
)
def test_metadata_can_not_have_files_written_elsewhere(path, sd1_folder, tmp_path):
    file = tmp_path / "toy.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, file, {f"sdjax:{path}": "{}"})
    with pytest.raises(sdjax.CheckpointError, match="no file of a diffusers folder"):
        file_to_folder(file, tmp_path / "out", CLIP)


def test_metadata_that_do_not_fit_the_tensors_are_told(sd1_folder, tmp_path):
    root = shutil.copytree(sd1_folder, tmp_path / "toy")
    give_a_buffer(root)
    file = tmp_path / "toy.safetensors"
    folder_to_file(root, file, CLIP)
    change(file, lambda tensors: tensors.update({name: t.astype(np.float16) for name, t in tensors.items()}))
    with pytest.raises(sdjax.CheckpointError, match=r"say of text_encoder/model\.safetensors .*--prune"):
        file_to_folder(file, tmp_path / "out", CLIP)
    file_to_folder(file, tmp_path / "out", CLIP, prune=True)
    change(file, lambda _: None, **{"sdjax:unet/config.json": "{"})
    with pytest.raises((sdjax.CheckpointError, ConfigError), match=r"config\.json"):
        file_to_folder(file, tmp_path / "out2", CLIP)


def test_three_projections_of_different_kinds_are_no_single_tensor(sd2_folder, tmp_path):
    root = shutil.copytree(sd2_folder, tmp_path / "toy")
    name = "text_model.encoder.layers.0.self_attn.q_proj.bias"
    change(root / TEXT, lambda tensors: tensors.update({name: tensors[name].astype(np.float16)}))
    with pytest.raises(sdjax.CheckpointError, match=r"q_proj\.bias \(F16\), .* must be of one kind"):
        folder_to_file(root, tmp_path / "toy.safetensors", CLIP)


# --- The writer ---


def test_files_are_those_that_safetensors_writes(tmp_path):
    kinds = (np.float16, np.float32, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16, np.float64, np.int32)
    tensors = {f"{'zyxü'[n % 4]}.{n}": np.ones((n, 2), kind) for n, kind in enumerate(kinds)}
    tensors["scalar"] = np.ones((), np.float32)
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    found = list_file(tmp_path / "theirs.safetensors").tensors.values()
    targets = in_order([Target(tensor.name, tensor.dtype, tensor.shape, (Piece(tensor),)) for tensor in found])
    write_tensors(tmp_path / "ours.safetensors", targets, header_of(targets, {"format": "pt"}))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_memory_does_not_grow_with_what_is_copied(tmp_path):
    save_file({"a": np.zeros((1 << 24,), np.float32)}, tmp_path / "a.safetensors")
    tracemalloc.start()
    file_to_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 25 < (tmp_path / "b.safetensors").stat().st_size
