"""Original single files read live by diffusers, and the original code's own networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdjax
from tests.golden import checkpoints, images, networks

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.checkpoint_reference", reason="needs torch: make parity", exc_type=ImportError
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return {name: checkpoints.write_toy(folder / f"{name}.safetensors", name) for name in checkpoints.VARIANTS}


@pytest.fixture(scope="module")
def models(files: dict[str, Path]) -> dict[str, sdjax.Model]:
    return {name: checkpoints.load_toy(file, name) for name, file in files.items()}


@pytest.fixture(scope="module")
def pipelines(
    files: dict[str, Path], models: dict[str, sdjax.Model], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("configs")
    return {name: reference.pipeline(file, models[name], folder / name) for name, file in files.items()}


@pytest.mark.parametrize("variant", checkpoints.VARIANTS)
def test_diffusers_reads_the_same_parameters(
    variant: str, models: dict[str, sdjax.Model], pipelines: dict[str, Any]
) -> None:
    theirs = {
        part: {name.removeprefix("text_model."): value for name, value in listed.items()}
        for part, listed in reference.checksums(pipelines[variant]).items()
    }
    assert checkpoints.checksums(models[variant].params) == theirs


@pytest.mark.parametrize("variant", checkpoints.VARIANTS)
def test_the_networks_give_what_the_original_code_gives(variant: str, models: dict[str, sdjax.Model]) -> None:
    # The other networks are of the same structure in all variants of a version.
    wanted = ("prediction", "mean", "decoded", "text") if variant in ("sd1", "sd2") else ("prediction",)
    given = checkpoints.outputs(models[variant], wanted)
    with np.load(checkpoints.OUTPUTS) as stored:
        errors = {name: networks.relative_error(array, stored[f"{variant}/{name}"]) for name, array in given.items()}
    print(f"\n{variant}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    assert max(errors.values()) < networks.TOLERANCE


def test_diffusers_draws_the_same_images(models: dict[str, sdjax.Model], pipelines: dict[str, Any]) -> None:
    cases = {**checkpoints.RECORDED_DRAWINGS, **checkpoints.LIVE_DRAWINGS}
    ours, theirs = checkpoints.drawn(models, cases), reference.drawn(pipelines, cases)
    shares = {name: images.share_that_differs(ours[name], theirs[name]) for name in cases}
    print("\n" + "\n".join(f"{name}: {share:.4%} differ by more than 1" for name, share in shares.items()))
    assert {name: share for name, share in shares.items() if share > images.TOLERATED_SHARE} == {}


def test_recordings_are_what_diffusers_gives_now(pipelines: dict[str, Any]) -> None:
    drawn = reference.drawn(pipelines, checkpoints.RECORDED_DRAWINGS)
    with np.load(checkpoints.DRAWN) as stored:
        for name, image in drawn.items():
            assert images.share_that_differs(image, stored[name]) <= images.TOLERATED_SHARE
    assert reference.checksums(pipelines["sd1"]) == checkpoints.recorded_checksums("sd1")


def test_a_file_that_torch_pickled_is_the_same(models: dict[str, sdjax.Model], tmp_path: Path) -> None:
    import torch

    state = {name: torch.from_numpy(values) for name, values in checkpoints.toy_weights("sd1").items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save({"state_dict": state, "global_step": 7, "epoch": 1}, tmp_path / "model.ckpt")
    with pytest.raises(sdjax.CheckpointError, match="pickled"):
        sdjax.load(tmp_path / "model.ckpt")
    params = sdjax.load(tmp_path / "model.ckpt", pickled=True).params
    assert checkpoints.checksums(params) == checkpoints.checksums(models["sd1"].params)
