"""Reading and writing checkpoints: what is whole comes back, what is not is named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.checkpoints.diffusers_folder import read_diffusers_folder
from sdjax.families.stable_diffusion import SD2, extra_channels
from tests import pickles, toys

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PICKLED_INDEX = "unet/diffusion_pytorch_model.bin.index.json"


@pytest.fixture
def folder(sd1_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sd1_folder, tmp_path / "model"))


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def edit_tensors(file: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_what_is_written_is_read_back(sd2_folder: Path) -> None:
    checkpoint = read_diffusers_folder(sd2_folder)
    assert (checkpoint.family, checkpoint.configs) == (SD2, toys.SD2.configs)
    assert checkpoint.scheduler == toys.SD2.scheduler
    jax.tree.map(np.testing.assert_array_equal, dict(checkpoint.params), dict(toys.toy_params(toys.SD2)))


def test_the_digest_is_that_of_the_contents(folder: Path, sd1_folder: Path) -> None:
    assert read_diffusers_folder(folder).digest == read_diffusers_folder(sd1_folder).digest
    edit_tensors(folder / UNET_WEIGHTS, lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"] + 1}))
    assert read_diffusers_folder(folder).digest != read_diffusers_folder(sd1_folder).digest


def test_parameters_are_cast_once_but_a_vae_that_overflows_stays_in_float32(sd1_folder: Path) -> None:
    params = read_diffusers_folder(sd1_folder, dtype=jnp.float16).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params["unet"])} == {jnp.dtype(jnp.float16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params["vae"])} == {jnp.dtype(jnp.float32)}


def test_variants_and_shards_are_found(folder: Path, sd1_folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    tensors = load_file(weights)
    names = sorted(tensors)
    shards = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for shard, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / "unet" / shard)
    weights.unlink()
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    index_file = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps(index))
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_suffix(".fp16.safetensors"))
    jax.tree.map(
        np.testing.assert_array_equal, read_diffusers_folder(folder).params, read_diffusers_folder(sd1_folder).params
    )
    (folder / "unet" / "b.safetensors").unlink()
    with pytest.raises(sdjax.CheckpointError, match=r"b\.safetensors"):
        read_diffusers_folder(folder)


@pytest.mark.parametrize("index_name", ["safetensors.index.fp16.json", "fp16.safetensors.index.json"])
def test_the_only_variant_is_found_in_shards_too(index_name: str, folder: Path, sd1_folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    tensors = load_file(weights)
    stem = weights.name.removesuffix(".safetensors")
    shards = {f"{stem}.fp16-0000{number}-of-00002.safetensors": sorted(tensors)[number - 1 :: 2] for number in (1, 2)}
    for shard, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / "unet" / shard)
    weights.unlink()
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (folder / "unet" / f"{stem}.{index_name}").write_text(json.dumps(index))
    jax.tree.map(
        np.testing.assert_array_equal, read_diffusers_folder(folder).params, read_diffusers_folder(sd1_folder).params
    )


def test_a_folder_without_its_weights_is_checked_but_not_read(folder: Path, sd1_folder: Path) -> None:
    outline, whole = read_diffusers_folder(folder, dtype=None), read_diffusers_folder(sd1_folder)
    assert outline._replace(params=whole.params, digest=whole.digest, tokenizer_folder=whole.tokenizer_folder) == whole
    assert outline.params == {} and outline.digest == ""
    (folder / UNET_WEIGHTS).write_bytes(b"")
    with pytest.raises(sdjax.CheckpointError, match=r"diffusion_pytorch_model\.safetensors"):
        read_diffusers_folder(folder, dtype=None)


def test_a_checkpoint_whose_own_sampler_is_none_of_ours_loads_for_jobs_that_name_one(folder: Path) -> None:
    edit_json(folder / "scheduler/scheduler_config.json", lambda d: d.update(_class_name="SASolverScheduler"))
    model = sdjax.load(folder, weights=False)
    assert model.sampler is None
    with pytest.raises(sdjax.JobError, match="SASolverScheduler, is not among the samplers"):
        model.resolve(sdjax.Job(prompt="a", seed=0))
    assert model.resolve(sdjax.Job(prompt="a", seed=0, sampler="euler")).sampler == "euler"


@pytest.mark.parametrize(
    "config, sampler, filled",
    [
        (
            {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "solver_order": 3},
            "uni_pc",
            {"solver_order": 3},
        ),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "plms", {}),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "pndm", {}),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "use_karras_sigmas": True,
            },
            "dpmpp_2m_sde",
            {"schedule": "karras", "eta": 1.0},
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 1.5},
            "dpmpp_2m",
            {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.5},
        ),
        ({"_class_name": "TCDScheduler", "timestep_spacing": "trailing"}, "tcd", {"eta": 0.3}),
    ],
)
def test_a_checkpoints_own_scheduler_decides_what_a_job_leaves_open(config, sampler, filled, folder):
    edit_json(folder / "scheduler/scheduler_config.json", lambda d: d.update(config))
    job = sdjax.load(folder, weights=False).resolve(sdjax.Job(prompt="a", seed=0))
    assert job.sampler == sampler
    assert {name: getattr(job, name) for name in filled} == filled


@pytest.mark.parametrize(
    "config, error, message",
    [
        ({"solver_type": "bh3"}, sdjax.ConfigError, "solver_type = 'bh3' is not one of midpoint, heun"),
        ({"variance_type": "learned"}, sdjax.ConfigError, "variance_type = 'learned' is not one of fixed_small"),
        ({"use_flow_sigmas": True}, sdjax.ConfigError, "use_flow_sigmas = True is not supported"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, sdjax.ConfigError, "only one of use_karras_sigmas"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, sdjax.JobError, "asks for thresholding"),
        (
            {"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"},
            sdjax.JobError,
            "DPMSolverSinglestepScheduler, is not among the samplers",
        ),
        ({"algorithm_type": "dpmsolver"}, sdjax.ConfigError, "needs final_sigmas_type = sigma_min"),
    ],
)
def test_an_option_of_a_scheduler_that_is_not_supported_is_an_error(config, error, message, folder):
    edit_json(folder / "scheduler/scheduler_config.json", lambda d: d.update(config))
    with pytest.raises(error, match=message):
        sdjax.load(folder, weights=False).resolve(sdjax.Job(prompt="a", seed=0))


def test_the_offset_of_steps_is_that_of_diffusers_pipeline_whatever_the_file_says(folder: Path) -> None:
    edit_json(folder / "scheduler/scheduler_config.json", lambda d: d.update(steps_offset=0))
    assert read_diffusers_folder(folder, dtype=None).scheduler.steps_offset == 1


@pytest.mark.parametrize(
    ("toy", "pipeline", "extra", "classes"),
    [
        (toys.SD1_INPAINT, "StableDiffusionInpaintPipeline", 5, None),
        (toys.SD2_INPAINT, "StableDiffusionInpaintPipeline", 5, None),
        (toys.SD2_DEPTH, "StableDiffusionDepth2ImgPipeline", 1, None),
        (toys.SD1_CLASSES, "StableDiffusionImg2ImgPipeline", 0, 5),
        (toys.SD1_TIMED_CLASSES, "StableDiffusionPipeline", 0, None),
    ],
)
def test_folders_of_other_pipelines_of_the_same_networks_load(
    toy: toys.Toy, pipeline: str, extra: int, classes: int | None, tmp_path: Path
) -> None:
    toys.write_toy(tmp_path, toy)
    edit_json(tmp_path / "model_index.json", lambda d: d.update(_class_name=pipeline))
    model = sdjax.load(tmp_path, weights=False)
    assert (extra_channels(model.unet.config, model.vae.config), model.unet.config.num_class_embeds) == (extra, classes)


def test_inpainting_takes_no_runge_kutta_steps_as_in_diffusers_pipeline_whatever_the_file_says(tmp_path: Path) -> None:
    toys.write_toy(tmp_path, toys.SD1_INPAINT)
    edit_json(tmp_path / "scheduler/scheduler_config.json", lambda d: d.update(skip_prk_steps=False))
    assert read_diffusers_folder(tmp_path, dtype=None).sampler == "plms"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 8}, "in_channels is 8; it is that of InstructPix2Pix"),
        ({"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8},
            "class_embed_type is 'projection'",
        ),
    ],
)
def test_unets_of_other_purposes_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    edit_json(folder / "unet/config.json", lambda d: d.update(change))
    with pytest.raises(sdjax.CheckpointError, match=message):
        read_diffusers_folder(folder)


def test_what_the_unet_predicts_can_be_said_otherwise(sd1_folder: Path, sd1: sdjax.Model) -> None:
    model = sdjax.load(sd1_folder, prediction_type="v_prediction")
    assert model.scheduler.prediction_type == "v_prediction"
    assert model.digest != sd1.digest


def test_an_index_may_not_point_elsewhere(folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    index_file = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}))
    with pytest.raises(sdjax.CheckpointError, match=r"index\.json names '\.\./vae"):
        read_diffusers_folder(folder)


def pickle_weights(folder: Path) -> None:
    """As folders were before safetensors: the UNet in two files."""
    for name, pickled in (("vae/diffusion_pytorch_model", "vae/diffusion_pytorch_model"),
                          ("text_encoder/model", "text_encoder/pytorch_model")):  # fmt: skip
        pickles.write(folder / f"{pickled}.bin", load_file(folder / f"{name}.safetensors"))
        (folder / f"{name}.safetensors").unlink()
    tensors = load_file(folder / UNET_WEIGHTS)
    names = sorted(tensors)
    shards = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for shard, inside in shards.items():
        pickles.write(folder / "unet" / shard, {name: tensors[name] for name in inside})
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / UNET_WEIGHTS).unlink()


def test_pickled_weights_are_read_where_allowed_and_there_are_no_others(
    folder: Path, sd1_folder: Path, sd1: sdjax.Model
) -> None:
    for name in ("vae/diffusion_pytorch_model", "text_encoder/pytorch_model"):
        (folder / f"{name}.bin").write_bytes(b"not looked at")
    assert sdjax.load(folder, pickled=True).digest == sd1.digest
    pickle_weights(folder)
    with pytest.raises(
        sdjax.CheckpointError, match=r"safetensors is missing; there is .*\.bin, .*allow it \(`pickled`"
    ):
        sdjax.load(folder)
    model = sdjax.load(folder, pickled=True)
    jax.tree.map(np.testing.assert_array_equal, model.params, sd1.params)
    other = sdjax.load(sd1_folder, vae=folder, pickled=True)
    jax.tree.map(np.testing.assert_array_equal, other.params["vae"], sd1.params["vae"])
    pickles.write(folder / "vae/diffusion_pytorch_model.bin", {"conv_in.weight": np.ones(2, np.float32)})
    with pytest.raises(sdjax.CheckpointError, match=r"vae: the tensors are not those its config describes"):
        sdjax.load(folder, pickled=True)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.bin", "/etc/passwd.bin", "a.safetensors"])
def test_an_index_of_pickled_weights_may_not_point_elsewhere(name: str, folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(sdjax.CheckpointError, match=r"bin\.index\.json names .* no \.bin file in its own folder"):
        read_diffusers_folder(folder, pickled=True)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing_file": (lambda root: (root / UNET_WEIGHTS).unlink(), r"unet.*safetensors is missing"),
    "missing_config": (lambda root: (root / "vae/config.json").unlink(), r"vae.config\.json is missing"),
    "config_no_json": (lambda root: (root / "vae/config.json").write_text("{"), r"vae.config\.json is not JSON"),
    "truncated": (
        lambda root: (root / UNET_WEIGHTS).write_bytes((root / UNET_WEIGHTS).read_bytes()[:-1000]),
        r"diffusion_pytorch_model\.safetensors",
    ),
    "truncated_in_its_header": (
        lambda root: (root / UNET_WEIGHTS).write_bytes((root / UNET_WEIGHTS).read_bytes()[:100]),
        r"diffusion_pytorch_model\.safetensors",
    ),
    "empty_file": (lambda root: (root / UNET_WEIGHTS).write_bytes(b""), r"diffusion_pytorch_model\.safetensors"),
    "left_over": (
        lambda root: edit_tensors(root / UNET_WEIGHTS, lambda t: t.update({"lora.weight": np.ones(2, np.float32)})),
        r"lora\.weight",
    ),
    "missing_tensor": (
        lambda root: edit_tensors(root / UNET_WEIGHTS, lambda t: t.pop("conv_in.weight")),
        r"conv_in\.weight",
    ),
    "wrong_shape": (
        lambda root: edit_tensors(root / UNET_WEIGHTS, lambda t: t.update({"conv_in.bias": np.ones(3, np.float32)})),
        r"conv_in\.bias",
    ),
    "only_pickled": (
        lambda root: (root / UNET_WEIGHTS).rename(root / "unet/diffusion_pytorch_model.bin"),
        r"pickled weights can run code",
    ),
    "another_pipeline": (
        lambda root: edit_json(root / "model_index.json", lambda d: d.update(_class_name="FluxPipeline")),
        r"'FluxPipeline' is not supported",
    ),
    "an_unknown_part": (
        lambda root: edit_json(root / "model_index.json", lambda d: d.update(refiner=["diffusers", "Refiner"])),
        r"unknown parts refiner",
    ),
    "a_image_of_one_channel": (
        lambda root: edit_json(root / "vae/config.json", lambda d: d.update(out_channels=1)),
        r"the VAE's out_channels is 1, expected 3",
    ),
    "parts_that_do_not_fit": (
        lambda root: edit_json(root / "vae/config.json", lambda d: d.update(latent_channels=8)),
        r"out_channels is 4, expected 8",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_checkpoint_is_refused_with_what_is_wrong_with_it(kind: str, folder: Path) -> None:
    spoil, message = SPOILT[kind]
    spoil(folder)
    with pytest.raises(sdjax.CheckpointError, match=message):
        read_diffusers_folder(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"new_switch": True}, "unknown key 'new_switch'"),
        ("unet/config.json", {"act_fn": "relu"}, "act_fn = 'relu' is not supported"),
        ("unet/config.json", {"down_block_types": ["DownBlock3D"]}, "'DownBlock3D' is not one of"),
        ("unet/config.json", {"norm_num_groups": 5}, "are not multiples of norm_num_groups"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor = 0.1 is not supported"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type = 'flow'"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "use_flow_sigmas = True is not supported"),
    ],
)
def test_a_config_of_what_is_not_implemented_is_refused_by_name(
    file: str, change: dict[str, Any], message: str, folder: Path
) -> None:
    edit_json(folder / file, lambda data: data.update(change))
    with pytest.raises(sdjax.ConfigError, match=message) as caught:
        read_diffusers_folder(folder)
    assert file.rpartition("/")[2] in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "model.safetensors"])
def test_a_model_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(sdjax.CheckpointError, match=name):
        sdjax.load(tmp_path / name)


def test_a_folder_where_a_file_should_be_is_an_error_that_names_it(tmp_path):
    folder = toys.write_toy(tmp_path / "model", toys.TINY)
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.unlink()
    config.mkdir()
    with pytest.raises(ValueError, match=re.escape(str(config))):
        sdjax.load(folder)
