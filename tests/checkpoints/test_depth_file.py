"""Depth estimators from transformers' folders, diffusers' folders and files under the original names."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdjax.checkpoints.depth_file import _UNUSED, DepthProcessor, depth_shapes, depth_sources, find_depth, infer_depth
from sdjax.checkpoints.infer_config import Shapes
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.library.depth import depth_of, load_depth
from sdjax.models import ConfigError
from sdjax.models.depth import DepthConfig
from tests import pickles
from tests.golden import depth
from tests.golden.networks import TOLERANCE, relative_error

CASE = depth.CASES["hybrid"]
SETTINGS = {"do_resize": False, "size": 64, "resample": 2, "feature_extractor_type": "DPTFeatureExtractor"}
# In files and not used: as transformers writes them, though published files leave out the second.
UNUSED = {
    "dpt.layernorm.weight": np.zeros(64, np.float32),
    "neck.fusion_stage.layers.0.residual_layer1.convolution1.bias": np.zeros(48, np.float32),
    "dpt.pooler.dense.bias": np.zeros(64, np.float32),
}


def config_json() -> dict[str, object]:
    """The toy's config as transformers 5 writes it."""
    toy, bit = CASE.config, CASE.config.backbone_config
    assert bit is not None
    names = {*vars(toy)} - {"backbone_config"}
    data = depth.CONFIGS["5"]["hybrid"] | {name: getattr(toy, name) for name in names}
    return data | {"backbone_config": data["backbone_config"] | vars(bit), "backbone_featmap_shape": [1, 128, 4, 4]}


def write_folder(folder: Path, settings_in: Path | None = None) -> Path:
    """The toy as transformers writes it; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json()))
    settings_in = settings_in or folder
    settings_in.mkdir(exist_ok=True)
    (settings_in / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    save_file(depth.state(depth.params_of(CASE)) | UNUSED, folder / "model.safetensors")
    return folder


def of_transformers(root: Path) -> Path:
    return write_folder(root)


def of_diffusers(root: Path) -> Path:
    write_folder(root / "depth_estimator", root / "feature_extractor")
    return root


def of_diffusers_alone(root: Path) -> Path:
    return of_diffusers(root) / "depth_estimator"


def pickled(root: Path) -> Path:
    weights = write_folder(root) / "model.safetensors"
    pickles.write(root / "pytorch_model.bin", load_file(weights))
    weights.unlink()
    return root


@pytest.mark.parametrize("written", [of_transformers, of_diffusers, of_diffusers_alone, pickled])
def test_a_folder_loads_with_its_settings(written: Callable[[Path], Path], tmp_path: Path) -> None:
    path = written(tmp_path / "toy")
    if written is pickled:
        with pytest.raises(CheckpointError, match="pickled"):
            load_depth(path)
    model = load_depth(path, pickled=written is pickled)
    assert model.config == CASE.config
    assert model.processor == DepthProcessor(do_resize=False, size=(64, 64), resample=2)
    jax.tree.map(np.testing.assert_array_equal, model.params, depth.params_of(CASE))


def test_the_digest_is_that_of_all_that_decides(tmp_path: Path) -> None:
    folder = of_diffusers(tmp_path)
    digests = [load_depth(folder).digest]
    settings_file = folder / "feature_extractor" / "preprocessor_config.json"
    settings_file.write_text(json.dumps(SETTINGS | {"resample": 3}))
    digests.append(load_depth(folder).digest)
    (folder / "model_index.json").write_text("{}")
    assert load_depth(folder).digest == digests[1]
    weights = folder / "depth_estimator" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"head.head.4.bias": tensors["head.head.4.bias"] + 1}, weights)
    digests.append(load_depth(folder).digest)
    assert len(set(digests)) == 3


def test_a_folder_without_settings_has_the_published_ones(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    assert find_depth(folder).processor == DepthProcessor()


def test_settings_of_all_versions_of_transformers_are_read() -> None:
    found = [DepthProcessor.from_json(written["processor"]) for written in depth.CONFIGS.values()]
    assert found == [DepthProcessor(resample=2), DepthProcessor(), DepthProcessor()]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"shortest_edge": 384}),
        ("size", [384, 384, 3]),
        ("size", 0),
        ("size", "384"),
        ("resample", 6),
        ("image_std", [0.5, 0, 0.5]),
        ("image_mean", 0.5),
        ("do_pad", True),
        ("crop_pct", 0.9),
    ],
)
def test_settings_that_are_not_implemented_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        DepthProcessor.from_json({key: value})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("neck.convs.2.weight", None, "missing: neck.convs.2.weight"),
        ("auxiliary_head.head.0.weight", np.zeros(3, np.float32), "left over: auxiliary_head.head.0.weight"),
        (
            "dpt.embeddings.cls_token",
            np.zeros((1, 2, 64), np.float32),
            r"wrong: dpt.embeddings.cls_token is \(1, 2, 64\)",
        ),
        ("head.head.4.bias", np.zeros(1, np.int32), "wrong: head.head.4.bias holds I32"),
    ],
)
def test_tensors_that_are_not_the_configs_are_named(
    name: str, change: np.ndarray | None, words: str, tmp_path: Path
) -> None:
    file = write_folder(tmp_path) / "model.safetensors"
    tensors = {key: value for key, value in load_file(file).items() if key != name}
    save_file(tensors | ({} if change is None else {name: change}), file)
    with pytest.raises(CheckpointError, match=words):
        find_depth(tmp_path)


# --- The original names ---

ORIGINALS = pytest.mark.parametrize("name", depth.ORIGINALS)


def write_original(file: Path, name: str, start: str = "") -> Path:
    """A toy of the original code; under another start as a part of a whole checkpoint."""
    tensors = {start + key: each for key, each in depth.original_weights(depth.shapes(name)).items()}
    if start:
        tensors["model.diffusion_model.time_embed.0.bias"] = np.zeros(8, np.float32)
    if file.suffix == ".pt":
        return pickles.write(file, tensors)
    save_file(tensors, file)
    return file


@ORIGINALS
@pytest.mark.parametrize(("start", "suffix"), [("", ".pt"), ("depth_model.model.", ".safetensors")])
def test_an_original_file_gives_what_the_original_code_gave(name: str, start: str, suffix: str, tmp_path: Path) -> None:
    file = write_original(tmp_path / f"model{suffix}", name, start)
    model = load_depth(file, pickled=suffix == ".pt")
    assert model.processor == DepthProcessor()
    model = model._replace(processor=DepthProcessor(do_resize=False))
    with np.load(depth.RECORDED) as recorded:
        for height, width in depth.ORIGINALS[name]:
            found = depth_of(model, depth.image(height, width))
            assert relative_error(found, recorded[f"{name}/{height}x{width}"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "of_transformers"), [("original_hybrid_midas", "hybrid"), ("original_large", "large")]
)
def test_original_names_and_shapes_map_one_to_one(name: str, of_transformers: str) -> None:
    shapes = depth.shapes(name)
    config = infer_depth(Shapes("", shapes))
    published = DepthConfig.from_json(depth.CONFIGS["5"][of_transformers])
    differing = {key for key in vars(config) if getattr(config, key) != getattr(published, key)}
    assert differing == {"layer_norm_eps"}
    assert depth_shapes(config) == depth_shapes(published)
    rows: dict[str, list[tuple[int, int]]] = {}
    for source in depth_sources(config):
        assert shapes[source.name] == source.shape
        rows.setdefault(source.name, []).append(source.rows or (0, source.shape[0]))
    # All rows of all tensors, each once.
    for key, parts in rows.items():
        ends = [end for _, end in sorted(parts)]
        assert [start for start, _ in sorted(parts)] == [0, *ends[:-1]] and ends[-1] == shapes[key][0]
    left = shapes.keys() - rows.keys()
    assert len(left) == 8 and all(_UNUSED.fullmatch(key) for key in left)


def test_an_original_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    whole = load_file(write_original(tmp_path / "whole.safetensors", "original_plain"))
    for name, words in (
        ("scratch.layer2_rn.weight", "scratch.layer2_rn.weight is missing"),
        ("pretrained.model.blocks.3.mlp.fc1.bias", "missing: pretrained.model.blocks.3.mlp.fc1.bias"),
        ("pretrained.model.cls_token", "holds no depth estimator"),
    ):
        file = tmp_path / "part.safetensors"
        save_file({key: value for key, value in whole.items() if key != name}, file)
        with pytest.raises(CheckpointError, match=re.escape(words)) as raised:
            find_depth(file)
        assert str(file) in str(raised.value)
    save_file(whole | {"pretrained.extra": np.zeros(1, np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"left over: pretrained\.extra"):
        find_depth(file)
