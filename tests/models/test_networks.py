"""Networks and their blocks against recordings of diffusers and transformers."""

import functools

import numpy as np
import pytest

from tests.golden import networks


@functools.cache
def references(emoji: bool) -> dict[str, np.ndarray]:
    with np.load(networks.EMOJI_RECORDED if emoji else networks.RECORDED) as stored:
        return dict(stored)


def check(network: networks.Network, recorded: networks.Arrays) -> None:
    given = networks.outputs(network)
    assert given.keys() == recorded.keys()
    for name, array in given.items():
        assert networks.relative_error(array, recorded[name]) < networks.TOLERANCE, name


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_network_gives_what_the_reference_gave(name: str) -> None:
    check(networks.NETWORKS[name], networks.stored(references(False), name))


@pytest.mark.parametrize("name", networks.BLOCKS)
def test_a_block_gives_what_the_reference_gave(name: str) -> None:
    recorded = networks.stored(references(False), name)["output"]
    assert networks.relative_error(networks.block_output(networks.BLOCKS[name]), recorded) < networks.TOLERANCE


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_the_embedded_model_gives_what_the_reference_gave(part: str) -> None:
    name = f"emoji_{part}"
    check(networks.emoji_networks()[name], networks.stored(references(True), name))
