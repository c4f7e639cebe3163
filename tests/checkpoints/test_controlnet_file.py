"""ControlNets and T2I adapters from folders and files of all their forms."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdjax.checkpoints import name_table
from sdjax.checkpoints.controlnet_file import (
    CONTROLNET,
    T2I_ADAPTER,
    as_original,
    control_shapes,
    controlnet_sources,
    find_controlnet,
    infer_adapter,
    infer_controlnet,
    load_control,
)
from sdjax.checkpoints.infer_config import Shapes, under
from sdjax.checkpoints.tensors import CheckpointError, Tensor, write_params
from sdjax.models import ConfigError, UNetConfig
from sdjax.models.controlnet import ControlNetConfig
from sdjax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from tests import pickles
from tests.golden import controlnet, full_size, networks
from tests.golden.networks import Arrays

START = "control_model."
TOY_CONFIGS = {
    "sd1": ControlNetConfig(
        UNetConfig(
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            cross_attention_dim=32,
        )
    ),
    "sd2": ControlNetConfig(
        UNetConfig(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(64, 128),
            cross_attention_dim=32,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
        )
    ),
}
ADAPTER_CONFIGS = {
    "full": T2IAdapterConfig(channels=(32, 64, 64)),
    "light": T2IAdapterConfig(in_channels=1, channels=(32, 64), num_res_blocks=3, adapter_type="light_adapter"),
}
LIGHT = controlnet.LIVE_CASES["light_adapter"].controls[0]
SMALL = controlnet.CASES["sd1"].controls[0]


def saved(file: Path, state: Arrays) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)
        return file
    return pickles.write(file, {"state_dict": state, "epoch": 3})


# --- Original files ---


def prefixed(state: Arrays, folder: Path) -> Path:
    return saved(folder / "control.safetensors", {START + name: value for name, value in state.items()})


def bare(state: Arrays, folder: Path) -> Path:
    return saved(folder / "control.safetensors", state)


def pickled(state: Arrays, folder: Path) -> Path:
    return saved(folder / "control.pth", {START + name: value for name, value in state.items()})


def with_its_model(state: Arrays, folder: Path) -> Path:
    model = [f"{name}.weight" for name in ("model.diffusion_model.out.2", "first_stage_model.x", "cond_stage_model.y")]
    beside = dict.fromkeys([*model, "betas", "model_ema.decay"], np.zeros(1, np.float32))
    return saved(folder / "control.safetensors", beside | {START + name: value for name, value in state.items()})


def of_diffusers(state: Arrays, folder: Path) -> Path:
    """Under diffusers' names, and no config beside."""
    found = find_controlnet(bare(state, folder))
    write_params(load_control(found, np.float32)[0], CONTROLNET, folder / "diffusers.safetensors", np.float32)
    return folder / "diffusers.safetensors"


@pytest.mark.parametrize("form", [prefixed, bare, pickled, with_its_model, of_diffusers])
@pytest.mark.parametrize("name", controlnet.ORIGINAL_CONTROLNETS)
def test_a_controlnet_of_any_form_is_what_diffusers_reads(
    name: str, form: Callable[[Arrays, Path], Path], tmp_path: Path
) -> None:
    file = form(controlnet.original_toy(name), tmp_path)
    found = find_controlnet(file, pickled=True)
    assert found.config == TOY_CONFIGS[name]
    params, digest = load_control(found, np.float32)
    assert controlnet.checksums(params) == controlnet.recorded_names()["read"][name]
    assert digest == found.digest()
    assert (form is with_its_model) == bool(found.notes)


@pytest.mark.parametrize("name", controlnet.ORIGINAL_ADAPTERS)
@pytest.mark.parametrize("start", ["", "adapter."])
def test_an_original_adapter_gives_what_the_original_code_gave(name: str, start: str, tmp_path: Path) -> None:
    state = {start + key: value for key, value in controlnet.original_toy(name).items()}
    found = find_controlnet(saved(tmp_path / "adapter.safetensors", state))
    assert found.config == ADAPTER_CONFIGS[name]
    hint = controlnet.original_inputs()["hint"][..., : found.config.in_channels]
    with np.load(controlnet.RECORDED) as stored, jax.default_matmul_precision("highest"):
        variables = {"params": load_control(found, np.float32)[0]}
        features = controlnet.compiled(T2IAdapter(found.config))(variables, hint)
        for index, feature in enumerate(features):
            wanted = stored[f"original_{name}/{index}"]
            assert networks.relative_error(np.asarray(feature)[..., ::8], wanted) < networks.TOLERANCE


def test_a_net_called_shuffle_pools(tmp_path: Path) -> None:
    state = controlnet.original_toy("sd1")
    plain = find_controlnet(bare(state, tmp_path))
    file = plain.where.rename(tmp_path / "control_v11e_sd15_Shuffle.safetensors")
    found = find_controlnet(file)
    assert found.config == dataclasses.replace(TOY_CONFIGS["sd1"], global_pool_conditions=True)
    assert "pooled" in found.notes[0]
    # It draws otherwise, so it is another network.
    plain = find_controlnet(file.rename(tmp_path / "control.safetensors"))
    assert found._replace(where=plain.where, decisive=plain.decisive).digest() != plain.digest()


# --- Folders ---


@pytest.mark.parametrize("control", [SMALL, LIGHT], ids=["controlnet", "adapter"])
def test_folders_are_read(control: controlnet.Control, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline" / ("controlnet" if control is SMALL else "adapter")
    folder.mkdir(parents=True)
    controlnet.write_folder(folder, control)
    weights = folder / "diffusion_pytorch_model.safetensors"
    digests = set()
    for path in (folder, folder.parent, weights):
        found = find_controlnet(path)
        params, digest = load_control(found, np.float32)
        digests.add(digest)
        assert found.config == control.config and found.notes == () and digest == found.digest()
        controlnet.assert_same(params, control.params())
    assert len(digests) == 1
    half = weights.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert find_controlnet(folder).decisive == find_controlnet(folder, "fp16").decisive
    pickles.write(folder / "diffusion_pytorch_model.bin", load_file(half))
    half.unlink()
    with pytest.raises(CheckpointError, match="pickled weights can run code"):
        find_controlnet(folder)
    controlnet.assert_same(load_control(find_controlnet(folder, "fp16", True), np.float32)[0], control.params())


def test_a_config_decides_and_has_a_say_in_the_digest(tmp_path: Path) -> None:
    file = controlnet.write_folder(tmp_path, SMALL) / "config.json"
    before = find_controlnet(tmp_path).digest()
    file.write_text(json.dumps({**json.loads(file.read_text()), "global_pool_conditions": True}))
    found = find_controlnet(tmp_path)
    assert found.config == dataclasses.replace(SMALL.config, global_pool_conditions=True)
    assert found.digest() != before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "SD3ControlNetModel"}, "'SD3ControlNetModel' is not supported; expected one of ControlNetM"),
        ({"addition_embed_type": "text_time"}, "for Stable Diffusion XL: not supported"),
        ({"layers_per_block": 2}, r"missing: .*controlnet_down_blocks\.4\.weight"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "left over: controlnet_cond_embedding.blocks.2.*wrong"),
        ({"strange": 1}, "unknown key 'strange'"),
    ],
)
def test_a_folder_of_something_else_is_refused(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    file = controlnet.write_folder(tmp_path, SMALL) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises((CheckpointError, ConfigError), match=reason) as raised:
        find_controlnet(tmp_path)
    assert str(tmp_path) in str(raised.value)


# --- What is refused ---


def without(state: Arrays, name: str) -> Arrays:
    return {key: value for key, value in state.items() if key != name}


@functools.cache
def toy(name: str) -> Arrays:
    return controlnet.original_toy(name)


ONE = np.zeros((1, 1), np.float32)
REFUSED: dict[str, tuple[Callable[[], Arrays], str]] = {
    "control_lora": (lambda: {"lora_controlnet": ONE, **toy("sd1")}, "is a Control-LoRA.*: not supported"),
    "difference": (lambda: {"difference": ONE, **toy("sd1")}, "is a difference to the weights"),
    "xl": (lambda: {f"{START}label_emb.0.0.weight": ONE, f"{START}input_hint_block.0.weight": ONE}, "Diffusion XL"),
    "xl_by_diffusers": (lambda: {"add_embedding.linear_1.weight": ONE}, "Stable Diffusion XL: not supported"),
    "sd3": (lambda: {"transformer_blocks.0.x.weight": ONE, "controlnet_blocks.0.weight": ONE}, "diffusion transformer"),
    "ip_adapter": (lambda: {"image_proj.norm.weight": ONE}, "is an IP-Adapter"),
    "unet": (lambda: {"input_blocks.1.0.emb_layers.1.weight": ONE}, "no ControlNet and no T2I adapter: it is a UNet"),
    "missing": (lambda: without(toy("sd1"), "zero_convs.3.0.bias"), r"missing: zero_convs\.3\.0\.bias"),
    "half": (lambda: without(toy("sd1"), "middle_block.1.proj_in.weight"), "proj_in.weight is missing: the file is n"),
    "left_over": (lambda: {**toy("sd2"), "zero_convs.9.0.bias": ONE}, r"left over: zero_convs\.9\.0\.bias"),
    "wrong": (lambda: {**toy("sd2"), "zero_convs.2.0.bias": ONE}, r"wrong: zero_convs\.2\.0\.bias is \(1, 1\), not"),
    "integers": (
        lambda: {**toy("sd2"), "middle_block_out.0.bias": np.zeros(128, np.int32)},
        "middle_block_out.0.bias holds I32",
    ),
    "adapter_that_downsamples_by_convolution": (
        lambda: {**toy("full"), "body.2.down_opt.op.weight": ONE},
        r"left over: body\.1\.resnets\.0\.down_opt\.op\.weight",
    ),
    "adapter_of_xl": (
        lambda: {**toy("full"), "conv_in.weight": np.zeros((32, 768, 3, 3), np.float32)},
        "T2I adapter for Stable Diffusion XL: not supported",
    ),
    "adapter_of_other_squares": (
        lambda: {**toy("full"), "conv_in.weight": np.zeros((32, 48, 3, 3), np.float32)},
        "48 channels, not those of 8 x 8 pixels: put its config.json beside it",
    ),
    "adapter_twice": (lambda: {**toy("full"), "adapter.conv_in.weight": ONE}, "two names mean the same parameter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    state, reason = REFUSED[case]
    file = saved(tmp_path / "file.safetensors", state())
    with pytest.raises(CheckpointError, match=reason) as raised:
        find_controlnet(file)
    assert str(file) in str(raised.value)


def test_pickled_files_are_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pickled file, which can hold code"):
        find_controlnet(pickled(toy("sd1"), tmp_path))
    with pytest.raises(CheckpointError, match="is missing"):
        find_controlnet(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        find_controlnet(tmp_path)


# --- The published sizes, by name and shape alone ---


def published(name: str) -> ControlNetConfig:
    """The config of a ControlNet for a published UNet."""
    fields = json.loads((full_size.CONFIGS / name / "unet" / "config.json").read_text())
    return ControlNetConfig.from_json({key: fields[key] for key in controlnet.OF_A_UNET if key in fields})


def without_upcast(config: ControlNetConfig) -> ControlNetConfig:
    """What names and shapes can tell of it."""
    return dataclasses.replace(config, unet=dataclasses.replace(config.unet, upcast_attention=False))


@pytest.mark.parametrize(("name", "original"), [("sd15", "sd1"), ("sd21", "sd2")])
def test_names_and_shapes_are_those_of_diffusers_and_of_the_original_code(name: str, original: str) -> None:
    config = published(name)
    by_diffusers = controlnet.shapes_of(controlnet.recorded_names()["diffusers"][name])
    described = {}
    for keys, leaf in jax.tree.leaves_with_path(control_shapes(config)):
        path = tuple(key.key for key in keys)
        described[name_table.file_names(path, CONTROLNET)[0]] = name_table.shape_in_file(path, leaf.shape)
    assert described == by_diffusers
    by_original = controlnet.shapes_of(controlnet.recorded_names()["original"]["full"][original])
    sources = controlnet_sources(config, "")
    assert {source.name: source.shape for source in sources} == by_original
    assert len({source.path for source in sources}) == len(sources) == len(by_original)
    assert infer_controlnet(Shapes("", by_original)) == without_upcast(config)
    assert infer_controlnet(as_original(Shapes("", by_diffusers))) == without_upcast(config)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("full", T2IAdapterConfig()),
        ("light", T2IAdapterConfig(channels=(320, 640, 1280), num_res_blocks=4, adapter_type="light_adapter")),
    ],
)
def test_the_configs_of_adapters_are_told(name: str, config: T2IAdapterConfig, tmp_path: Path) -> None:
    from sdjax.checkpoints.controlnet_file import _renamed_adapter

    shapes = controlnet.shapes_of(controlnet.recorded_names()["original"]["full"][name])
    tensors = {key: Tensor(tmp_path, key, shape, "F32", 0) for key, shape in shapes.items()}
    renamed = under(_renamed_adapter(tensors), "")
    assert infer_adapter(renamed) == config
    described = {}
    for keys, leaf in jax.tree.leaves_with_path(control_shapes(config)):
        path = tuple(key.key for key in keys)
        described[name_table.file_names(path, T2I_ADAPTER)[1]] = name_table.shape_in_file(path, leaf.shape)
    assert described == renamed.shapes
