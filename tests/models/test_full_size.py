"""The published sizes of Stable Diffusion, by name and shape alone: nothing is allocated."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from sdjax.checkpoints import infer_config, original_names
from sdjax.checkpoints.name_table import file_names, shape_in_file
from sdjax.checkpoints.tensors import Tensor
from sdjax.families.stable_diffusion import SD1
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from tests import toys
from tests.golden import checkpoints, full_size

_CONFIGS = {"text_encoder": TextEncoderConfig, "unet": UNetConfig, "vae": VAEConfig}


def config_of(name: str, part: str) -> Any:
    """A published config."""
    file = full_size.CONFIGS / name / part / "config.json"
    return _CONFIGS[part].from_json(json.loads(file.read_text()), str(file))


def described(name: str, part: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of files, as sdjax has them."""
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(toys.param_shapes(config_of(name, part))):
        path = tuple(key.key for key in keys)
        # transformers' class keeps no prefix; files have it.
        found[file_names(path, SD1.networks[part].table)[0].removeprefix("text_model.")] = shape_in_file(
            path, leaf.shape
        )
    return found


@pytest.mark.parametrize("name", full_size.NAMES)
@pytest.mark.parametrize("part", _CONFIGS)
def test_names_and_shapes_are_those_of_the_reference(name: str, part: str) -> None:
    recorded = {key.removeprefix("text_model."): shape for key, shape in full_size.recorded(name, part).items()}
    assert described(name, part) == recorded


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.52), ("sd21", 865.91)])
def test_the_unet_has_as_many_parameters_as_published(name: str, millions: float) -> None:
    assert round(sum(map(math.prod, described(name, "unet").values())) / 1e6, 2) == millions


# --- Original single files ---


def stored(variant: str) -> dict[str, Tensor]:
    """What lies in a file that the original code writes."""
    shapes = checkpoints.original(variant, "full").shapes
    return {name: Tensor(Path("model.ckpt"), name, shape, "F32", 0) for name, shape in shapes.items()}


def inferred(variant: str) -> dict[str, Any]:
    """The configs of the networks in it."""
    tensors = stored(variant)
    clip = infer_config.under(tensors, original_names.CLIP)
    return {
        "text_encoder": infer_config.infer_clip(clip)
        if clip.shapes
        else infer_config.infer_open_clip(infer_config.under(tensors, original_names.OPEN_CLIP)),
        "unet": infer_config.infer_unet(infer_config.under(tensors, original_names.UNET)),
        "vae": infer_config.infer_vae(infer_config.under(tensors, original_names.VAE)),
    }


@pytest.mark.parametrize(("variant", "name"), [("sd1", "sd15"), ("sd2", "sd21")])
@pytest.mark.parametrize("part", _CONFIGS)
def test_the_configs_told_from_an_original_file_are_the_published_ones(variant: str, name: str, part: str) -> None:
    told, published = inferred(variant)[part], config_of(name, part)
    # What names and shapes can't tell: for which size it was trained.
    unknown = {"sample_size", "upcast_attention"} & {field.name for field in dataclasses.fields(published)}
    assert dataclasses.replace(told, **{name: getattr(published, name) for name in unknown}) == published


@pytest.mark.parametrize("variant", checkpoints.VARIANTS)
def test_original_names_and_shapes_map_one_to_one(variant: str) -> None:
    shapes, configs = checkpoints.original(variant, "full").shapes, inferred(variant)
    averages = original_names.unet_sources(configs["unet"], ema=True)
    sources = [source for part, config in configs.items() for source in original_names.sources(config)] + averages
    assert {source.name: shapes.get(source.name) for source in sources} == {s.name: s.shape for s in sources}
    left = shapes.keys() - {source.name for source in sources}
    assert {name for name in left if not original_names.is_extra(name, configs["text_encoder"])} == set()
    # Each row of a tensor is used once: fused projections are three parameters.
    rows: dict[str, list[tuple[int, int]]] = {}
    for source in sources:
        rows.setdefault(source.name, []).append(source.rows or (0, source.shape[0]))
    for name, parts in rows.items():
        ends = [0, *(end for _, end in sorted(parts))]
        assert [start for start, _ in sorted(parts)] == ends[:-1]
        assert ends[-1] == shapes[name][0]
    # One parameter of ours each.
    paths = [(part, source.path) for part, config in configs.items() for source in original_names.sources(config)]
    assert len(set(paths)) == len(paths) == sum(len(described_leaves(config)) for config in configs.values())


def described_leaves(config: Any) -> list[Any]:
    return jax.tree.leaves(toys.param_shapes(config))
