"""The published sizes of Stable Diffusion, by name and shape alone: nothing is allocated."""

import json
import math

import jax
import pytest

from sdjax.checkpoints.diffusers_folder import PARTS, param_shapes
from sdjax.checkpoints.names import file_names, shape_in_file
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from tests.golden import full_size

_CONFIGS = {"text_encoder": TextEncoderConfig, "unet": UNetConfig, "vae": VAEConfig}


def described(name: str, part: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of files, as sdjax has them."""
    file = full_size.CONFIGS / name / part / "config.json"
    shapes = param_shapes(_CONFIGS[part].from_json(json.loads(file.read_text()), str(file)))
    found = {}
    for keys, leaf in jax.tree.leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        # transformers' class keeps no prefix; files have it.
        found[file_names(path, PARTS[part].table)[0].removeprefix("text_model.")] = shape_in_file(path, leaf.shape)
    return found


@pytest.mark.parametrize("name", full_size.NAMES)
@pytest.mark.parametrize("part", _CONFIGS)
def test_names_and_shapes_are_those_of_the_reference(name: str, part: str) -> None:
    recorded = {key.removeprefix("text_model."): shape for key, shape in full_size.recorded(name, part).items()}
    assert described(name, part) == recorded


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.52), ("sd21", 865.91)])
def test_the_unet_has_as_many_parameters_as_published(name: str, millions: float) -> None:
    assert round(sum(map(math.prod, described(name, "unet").values())) / 1e6, 2) == millions
