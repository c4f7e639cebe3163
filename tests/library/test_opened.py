"""What plans and programs are given of a library's files, and what becomes of files that change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdjax.adapters.files import AdapterError
from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.controlnet_file import find_controlnet, load_control
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.families.stable_diffusion import SD1
from sdjax.jobs.job import JobError
from sdjax.library.depth import load_depth
from sdjax.library.library import Library
from sdjax.library.opened import OpenLibrary, new_store
from sdjax.library.store import Store, bytes_of
from sdjax.library.upscalers import read_diffusion_upscaler
from sdjax.text.controls import Control
from sdjax.text.tags import Tag
from tests import toys
from tests.adapters.test_lora_files import PAIR
from tests.checkpoints.test_depth_file import write_folder as write_depth
from tests.golden import conditioned, sd_upscalers, upscalers

WIDTH = toys.SD1.text_encoder.hidden_size
IMAGE = np.zeros((32, 32, 3), np.uint8)


def opened(library: Library, toy: toys.Toy = toys.TINY, store: Store | None = None) -> OpenLibrary:
    configs = {"text_encoder": toy.text_encoder, "unet": toy.unet, "vae": toy.vae}
    return OpenLibrary(library, SD1, configs, jnp.float32, store)


def lora(file: Path, name_inside: str | None = None, **tensors: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({**PAIR, **tensors}, file, None if name_inside is None else {"ss_output_name": name_inside})
    return file


def negate(file: Path) -> None:
    save_file({name: -values for name, values in load_file(file).items()}, file)


def same(params: Any, others: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), params, others)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind that has parameters."""
    root = tmp_path_factory.mktemp("library")
    sd_upscalers.write(root / "upscalers" / "x4", sd_upscalers.X4_TOY)
    sd_upscalers.write(root / "upscalers" / "x2", sd_upscalers.X2_TOY)
    upscalers.write(root / "upscalers" / "small.safetensors", upscalers.CASES["rrdb_x4"].config)
    conditioned.write_controls(root / "controls")
    write_depth(root / "depth")
    return root


@pytest.fixture
def library(files: Path, tmp_path: Path) -> Library:
    """A copy of them."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return Library(controlnets=tmp_path / "controls", upscalers=tmp_path / "upscalers", depth_model=tmp_path / "depth")


# --- Plans and parameters ---


def test_adapters_go_by_every_name_that_they_have(tmp_path):
    lora(tmp_path / "loras" / "UPPER.SAFETENSORS")
    lora(tmp_path / "loras" / "ink.safetensors", "chalk")
    lora(tmp_path / "loras" / "peft" / "adapter_model.SAFETENSORS")
    (tmp_path / "words").mkdir()
    save_file({"<toy>": np.ones((2, WIDTH), np.float32)}, tmp_path / "words" / "TOY.SAFETENSORS")
    found = opened(Library(loras=tmp_path / "loras", embeddings=tmp_path / "words"), toys.SD1)
    names = ["UPPER", "ink.safetensors", "chalk", "peft", "peft/adapter_model"]
    adapters = found.adapters([Tag("lora", name, 1.0, 1.0) for name in names], ["<toy>", "TOY"])
    assert [each.adapter.name for each in adapters.loras] == ["UPPER", "ink", "ink", "peft", "peft"]
    assert adapters.embeddings[0].digest == adapters.embeddings[1].digest
    assert dict(found.vector_counts({})) == {"TOY": 2, "<toy>": 2}


def test_a_plan_needs_no_parameters_of_a_controlnet_and_its_digest_is_that_of_what_runs(library):
    store = new_store()
    found = opened(library, store=store)
    [planned] = found.controlnets([Control("tiny")])
    params = found.controlnet_params(planned)
    expected, digest = load_control(find_controlnet(Path(str(library.controlnets)) / "tiny"), jnp.float32)
    assert same(params, expected) and planned.digest == digest
    assert (planned.name, planned.path.name) == ("tiny", "tiny")
    before = opened(library, store=(small := new_store()))
    before.controlnets([Control("tiny")])
    assert small.size < bytes_of(params) / 4 < store.size


def test_a_plan_needs_no_parameters_of_an_upscaler_and_knows_its_kind_and_scale(library):
    found = opened(library, store=(store := new_store()))
    planned = {name: found.upscaler(name) for name in ("small", "x4", "x2")}
    assert {name: (file.kind, file.scale) for name, file in planned.items()} == {
        "small": ("network", 4), "x4": ("diffusion", 4), "x2": ("diffusion", 2)
    }  # fmt: skip
    for name in ("x4", "x2"):
        config = planned[name].config
        assert isinstance(config, Checkpoint) and not config.params
    of_plans = store.size
    params = {name: found.upscaler_params(file) for name, file in planned.items()}
    assert of_plans < bytes_of(params) / 4 < store.size
    root = Path(str(library.upscalers))
    network = read_upscaler(root / "small.safetensors")
    assert same(params["small"], network.params) and planned["small"].digest == network.digest
    for name in ("x4", "x2"):
        whole = read_diffusion_upscaler(root / name, np.float32)
        assert same(params[name], whole.params) and planned[name].digest == whole.digest


def test_a_plan_needs_no_parameters_of_an_estimator_of_depth(library):
    found = opened(library, store=(store := new_store()))
    planned, whole = found.depth_model(), load_depth(str(library.depth_model))
    assert planned is not None and planned.digest == whole.digest
    of_plans = store.size
    assert same(found.depth_params(planned), whole.params) and store.size > 2 * of_plans
    assert np.isfinite(found.estimate_depth(IMAGE)).all()


def test_without_an_estimator_of_depth_none_is_estimated():
    assert opened(Library()).depth_model() is None
    with pytest.raises(JobError, match=r"depth is to be estimated: set library\.depth_model"):
        opened(Library()).estimate_depth(IMAGE)


def test_names_of_the_bundled_model_stand_for_its_parts():
    found = opened(Library(controlnets="emoji", depth_model="emoji", classifier="emoji"))
    found.check()
    assert found.depth_model() is not None
    with pytest.raises(JobError, match=r"no ControlNet 'edgs' in .*emoji.controlnets"):
        found.controlnet("edgs")


# --- Files that change ---


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path):
    file = lora(tmp_path / "ink.safetensors")
    found = opened(Library(loras=tmp_path), toys.SD1)
    first = found.lora("ink")
    assert found.lora("ink.safetensors") is first
    negate(file)
    assert found.lora("ink").digest != first.digest


def test_a_file_that_can_not_be_read_is_told_without_reading_it_again_until_it_changes(tmp_path):
    good, file = lora(tmp_path / "good" / "ink.safetensors"), tmp_path / "loras" / "ink.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x" * good.stat().st_size)
    status = file.stat()
    found = opened(Library(loras=tmp_path / "loras"), toys.SD1)
    for _ in range(2):
        with pytest.raises(AdapterError, match=r"ink\.safetensors can't be read as safetensors"):
            found.lora("ink")
        # Of the same size and time, which is not looked into.
        shutil.copyfile(good, file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert found.lora("ink").name == "ink"


def test_a_store_goes_on_where_a_library_is_listed_again_and_what_was_not_allowed_may_be_now(tmp_path):
    lora(tmp_path / "ink.safetensors")
    torch_file = tmp_path / "old.pt"
    torch_file.write_bytes(b"PK\3\4 no archive either")
    store = new_store()
    before = opened(Library(loras=tmp_path), toys.SD1, store)
    with pytest.raises(AdapterError, match="allow it"):
        before.lora("old")
    lora(tmp_path / "new.safetensors")
    with pytest.raises(AdapterError, match="there is no lora 'new'"):
        before.lora("new")
    ink = before.lora("ink")
    now = opened(Library(loras=tmp_path), toys.SD1, store)
    assert now.lora("ink") is ink and now.lora("new").name == "new"
    with pytest.raises(AdapterError) as error:
        opened(Library(loras=tmp_path, pickled=True), toys.SD1, store).lora("old")
    assert "allow it" not in str(error.value)


@pytest.mark.parametrize(
    ("plan", "params", "file", "error"),
    [
        (
            lambda found: found.controlnet("tiny"),
            OpenLibrary.controlnet_params,
            "controls/tiny/diffusion_pytorch_model.safetensors",
            "controlnets: tiny",
        ),
        (
            lambda found: found.upscaler("small"),
            OpenLibrary.upscaler_params,
            "upscalers/small.safetensors",
            "upscaler = 'small'",
        ),
        (lambda found: found.depth_model(), OpenLibrary.depth_params, "depth/model.safetensors", "depth_model"),
    ],
    ids=["ControlNet", "upscaler", "depth"],
)
def test_what_was_planned_with_another_file_is_not_run(
    library, tmp_path, plan: Callable[..., Any], params: Callable[..., Any], file, error
):
    found = opened(library)
    planned = plan(found)
    negate(tmp_path / file)
    with pytest.raises(JobError, match=f"{error}: its file has changed since the run began"):
        params(found, planned)
    assert plan(found).digest != planned.digest
    params(found, plan(found))
    (tmp_path / file).unlink()
    with pytest.raises(JobError, match=f"{error}: .*is missing"):
        params(found, planned)


# --- Errors ---


def test_what_is_not_there_is_told_alike_for_all_kinds(library, tmp_path):
    (tmp_path / "loras").mkdir()
    lora(tmp_path / "loras" / "ink.safetensors")
    found = opened(library._replace(loras=tmp_path / "loras"))
    for look, told in (
        (lambda: found.lora("inc"), f"there is no lora 'inc' in {tmp_path}/loras; did you mean 'ink'?"),
        (
            lambda: found.controlnet("tinny"),
            f"controlnets: there is no ControlNet 'tinny' in {tmp_path}/controls; did you mean 'tiny'?",
        ),
        (
            lambda: found.upscaler("smal", "hires_upscaler"),
            f"hires_upscaler: there is no upscaler 'smal' in {tmp_path}/upscalers; did you mean 'small'?",
        ),
        (
            lambda: found.hypernetwork("oil"),
            "there is no hypernetwork 'oil': no folder of such files is given; set library.hypernetworks",
        ),
    ):
        with pytest.raises((AdapterError, JobError)) as error:
            look()
        assert str(error.value) == told


def test_a_check_names_what_is_not_there_and_reads_no_weights(library, tmp_path):
    found = opened(library)
    found.check(["tiny"], ["small", "x4"])
    with pytest.raises(CheckpointError, match="there is no ControlNet 'gone'"):
        found.check(["gone"])
    with pytest.raises(CheckpointError, match="there is no upscaler 'gone'"):
        found.check([], ["gone"])
    with pytest.raises(CheckpointError, match=r"there is no estimator of depth '.*dept': .*; did you mean '.*depth'"):
        opened(library._replace(depth_model=tmp_path / "dept")).check()
    with pytest.raises(CheckpointError, match=r"there is no classifier 'emojy': .*; did you mean 'emoji'"):
        opened(library._replace(classifier="emojy")).check()
    for field in ("loras", "controlnets"):
        with pytest.raises(CheckpointError, match=f"library.{field} = nowhere: there is no such folder"):
            opened(Library(**{field: "nowhere"}))
