"""Live comparison with diffusers and transformers on CPU torch."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import transformers

import sdjax
from tests import toys
from tests.golden import images, networks

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.reference", reason="needs torch: make parity", exc_type=ImportError)


def worst(network: networks.Network) -> dict[str, float]:
    """The relative error of each output."""
    given, wanted = networks.outputs(network), reference.outputs(network)
    assert given.keys() == wanted.keys()
    return {name: networks.relative_error(array, wanted[name]) for name, array in given.items()}


def check_network(name: str, network: networks.Network) -> None:
    errors = worst(network)
    print(f"\n{name}: " + ", ".join(f"{output} {error:.1e}" for output, error in errors.items()))
    assert max(errors.values()) < networks.TOLERANCE


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks(name: str) -> None:
    check_network(name, networks.NETWORKS[name])


@pytest.mark.parametrize("name", networks.BLOCKS)
def test_blocks(name: str) -> None:
    block = networks.BLOCKS[name]
    assert networks.relative_error(networks.block_output(block), reference.block_output(block)) < networks.TOLERANCE


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_networks_of_the_embedded_model(part: str) -> None:
    check_network(f"emoji {part}", networks.emoji_networks()[f"emoji_{part}"])


def check_images(model: sdjax.Model, folder: Path, cases: dict[str, images.Image]) -> None:
    drawer = reference.Drawer(folder)
    drawn = images.drawn(model, cases)
    shares = {name: images.share_that_differs(drawn[name], drawer.draw(case)) for name, case in cases.items()}
    print(
        "\n" + "\n".join(f"{name}: {share:.4%} of the values differ by more than 1" for name, share in shares.items())
    )
    assert {name: share for name, share in shares.items() if share > images.TOLERATED_SHARE} == {}


def all_cases(name: str) -> dict[str, images.Image]:
    return {**images.RECORDED[name], **images.LIVE[name]}


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_images_of_toys(name: str, request: pytest.FixtureRequest) -> None:
    check_images(request.getfixturevalue(name), request.getfixturevalue(f"{name}_folder"), all_cases(name))


def test_images_of_the_embedded_model() -> None:
    check_images(sdjax.load("emoji"), sdjax.model.path_of("emoji"), all_cases("emoji"))


def test_recordings_are_what_the_reference_gives_now(sd1_folder: Path) -> None:
    with np.load(images.recorded_file("sd1")) as stored:
        drawn = reference.Drawer(sd1_folder).draw(images.RECORDED["sd1"]["ddim-20"])
        assert images.share_that_differs(drawn, stored["ddim-20"]) <= images.TOLERATED_SHARE


# --- Folders that diffusers itself writes ---


@functools.cache
def _case() -> images.Image:
    return images.RECORDED["sd1"]["dpmpp_2m-20"]


@pytest.mark.parametrize(
    "options",
    [{}, {"variant": "fp16"}, {"max_shard_size": "40KB"}, {"variant": "fp16", "max_shard_size": "40KB"}],
    ids=["plain", "variant", "sharded", "sharded_variant"],
)
def test_folders_written_by_diffusers_load(options: dict[str, str], sd1_folder: Path, tmp_path: Path) -> None:
    drawer = reference.Drawer(sd1_folder)
    drawer.pipeline.save_pretrained(tmp_path, **options)
    model = sdjax.load(tmp_path, variant=options.get("variant"))
    original = sdjax.load(sd1_folder)
    # diffusers writes its defaults as well.
    assert model.scheduler == dataclasses.replace(original.scheduler, timestep_spacing="leading")
    assert model.unet.config == dataclasses.replace(original.unet.config, sample_size=model.unet.config.sample_size)
    for part, params in original.params.items():
        for (keys, leaf), other in zip(_leaves(params), _leaves(model.params[part]), strict=True):
            assert keys == other[0]
            np.testing.assert_array_equal(leaf, other[1])
    assert model.tokenizer("a red apple, on the sea") == original.tokenizer("a red apple, on the sea")


def _leaves(params: object) -> list[tuple[object, np.ndarray]]:
    import jax

    return [(keys, np.asarray(leaf)) for keys, leaf in jax.tree.leaves_with_path(params)]


@pytest.mark.parametrize("toy", [toys.SD1, toys.SD2], ids=["sd1", "sd2"])
def test_diffusers_opens_what_sdjax_writes_without_a_warning_of_keys(
    toy: toys.Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Tests are run with transformers silenced.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    try:
        reference.Drawer(toys.write_toy(tmp_path, toy))
    finally:
        transformers.logging.disable_propagation()
        transformers.logging.set_verbosity(verbosity)
    assert not [record for record in caplog.records if "not used" in record.message or "newly" in record.message]
