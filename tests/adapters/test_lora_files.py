"""What LoRA files may be called within, and what is refused, with its reason."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.adapters import lora_names
from sdjax.adapters.files import AdapterError
from sdjax.adapters.lora import Lora, apply, read_lora
from sdjax.adapters.lora_changes import Difference, LowRank
from sdjax.models import UNetConfig
from tests import toys
from tests.golden import full_size
from tests.models.test_full_size import config_of

TOY = toys.SD1
NETWORKS = {"unet": TOY.unet, "text_encoder": TOY.text_encoder}
TO_Q = ("unet", "down_blocks_0", "attentions_0", "transformer_blocks_0", "attn1", "to_q")
CONV = ("unet", "down_blocks_0", "resnets_0", "conv1")
Q_PROJ = ("text_encoder", "layers_1", "self_attn", "q_proj")
FC1 = ("text_encoder", "layers_1", "mlp", "fc1")

Tensors = Mapping[str, np.ndarray]


def _normal(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype(dtype)


def pair(down: str, up: str, width: int = 16) -> dict[str, np.ndarray]:
    """A LoRA of rank 2 of a linear layer of 16 or more."""
    return {down: _normal(2, width), up: _normal(width, 2)}


KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = pair(f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight")


def read(tmp_path: Path, tensors: Tensors, metadata: dict[str, str] | None = None, unet: UNetConfig = TOY.unet) -> Lora:
    save_file({name: np.asarray(value) for name, value in tensors.items()}, tmp_path / "it.safetensors", metadata)
    return read_lora(tmp_path / "it.safetensors", {**NETWORKS, "unet": unet})


# --- Names ---


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (KOHYA, TO_Q),
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", TO_Q),
        ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", TO_Q),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", TO_Q),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q", TO_Q),
        ("base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", TO_Q),
        ("unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", TO_Q),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q", TO_Q),
        ("lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_attn2_to_out_0",
         ("unet", "up_blocks_2", "attentions_1", "transformer_blocks_0", "attn2", "to_out_0")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out",
         ("unet", "mid_block", "attentions_0", "transformer_blocks_0", "attn2", "to_out_0")),
        ("lora_unet_down_blocks_0_resnets_0_conv1", CONV),
        ("lora_unet_input_blocks_1_0_in_layers_2", CONV),
        ("lora_unet_input_blocks_1_0_emb_layers_1", ("unet", "down_blocks_0", "resnets_0", "time_emb_proj")),
        ("lora_unet_input_blocks_2_0_op", ("unet", "down_blocks_0", "downsamplers_0", "conv")),
        ("lora_unet_output_blocks_1_1_conv", ("unet", "up_blocks_0", "upsamplers_0", "conv")),
        ("lora_unet_middle_block_1_proj_in", ("unet", "mid_block", "attentions_0", "proj_in")),
        ("lora_unet_time_embed_0", ("unet", "time_embedding", "linear_1")),
        ("lora_unet_conv_in", ("unet", "conv_in")),
        ("lora_te_text_model_encoder_layers_1_self_attn_q_proj", Q_PROJ),
        ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj", Q_PROJ),
        ("lora_te_encoder_layers_1_self_attn_q_proj", Q_PROJ),
        ("text_encoder.text_model.encoder.layers.1.self_attn.q_proj", Q_PROJ),
        ("text_encoder.text_model.encoder.layers.1.self_attn.to_q", Q_PROJ),
        ("base_model.model.text_model.encoder.layers.1.self_attn.q_proj", Q_PROJ),
        ("lora_te_text_model_encoder_layers_1_mlp_fc1", FC1),
        ("lora_te_model_transformer_resblocks_1_mlp_c_fc", FC1),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj", Q_PROJ),
        ("clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj", Q_PROJ),
        ("text_encoders.clip_h.transformer.text_model.encoder.layers.1.mlp.fc1", FC1),
        ("clip_h.transformer.text_model.encoder.layers.1.mlp.fc1", FC1),
        ("lora_unet_text_model_encoder_layers_1_mlp_fc1", None),
        ("lora_unet_", None),
        ("", None),
    ],
)  # fmt: skip
def test_modules_by_the_names_that_trainers_give_them(module: str, path: tuple[str, ...] | None) -> None:
    assert lora_names.modules_of(tuple(NETWORKS.items())).find(module) == path


def test_every_module_of_stable_diffusion_2_is_found_under_diffusers_name() -> None:
    modules = lora_names.modules_of(tuple((name, config_of("sd21", name)) for name in ("unet", "text_encoder")))
    for part, start in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        names = {name.rpartition(".")[0] for name in full_size.recorded("sd21", part)}
        found = {modules.find(start + name.replace(".", "_")) for name in names}
        assert None not in found
        assert found == {path for path in modules.shapes if path[0] == part}
        assert len(found) == len(names)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.weight", "lora_up.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
    ],
)
def test_ends_of_names(down: str, up: str, tmp_path: Path) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = read(tmp_path, pair(f"{module}.{down}", f"{module}.{up}"))
    [(path, change)] = lora.changes.items()
    assert path == (*TO_Q, "kernel")
    assert isinstance(change, LowRank)
    np.testing.assert_array_equal(change.product.up, _normal(16, 2).T)


# --- What a file says besides ---


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1), (np.float32(3), 1.5), (np.array([1], np.int64), 0.5)])
def test_alpha_over_rank_scales(alpha: np.ndarray | None, scale: float, tmp_path: Path) -> None:
    more = {} if alpha is None else {f"{KOHYA}.alpha": np.asarray(alpha)}
    [change] = read(tmp_path, {**PAIR, **more}).changes.values()
    assert isinstance(change, LowRank)
    np.testing.assert_allclose(change.product.up, scale * _normal(16, 2).T, rtol=1e-6)


@pytest.mark.parametrize("form", ["lora_linear_layer", "lora"])
def test_alpha_stands_beside_the_matrices_or_beside_the_module(form: str, tmp_path: Path) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q." + form
    tensors = pair(f"{module}.down.weight", f"{module}.up.weight")
    [change] = read(tmp_path, {**tensors, f"{module}.alpha": np.float32(3)}).changes.values()
    [expected] = read(tmp_path, {**PAIR, f"{KOHYA}.alpha": np.float32(3)}).changes.values()
    assert isinstance(change, LowRank) and isinstance(expected, LowRank)
    np.testing.assert_array_equal(change.product.up, expected.product.up)


def test_a_projection_of_the_text_that_no_image_needs_is_left_out(tmp_path: Path) -> None:
    module = "text_encoders.clip_l.transformer.text_projection"
    tensors = {**PAIR, **pair(f"{module}.lora_down.weight", f"{module}.lora_up.weight", 8)}
    assert read(tmp_path, tensors).changes.keys() == read(tmp_path, PAIR).changes.keys()


def test_each_module_has_a_rank_of_its_own(tmp_path: Path) -> None:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    more = {f"{conv}.lora_down.weight": _normal(5, 16, 3, 3), f"{conv}.lora_up.weight": _normal(16, 5, 1, 1)}
    changes = read(tmp_path, {**PAIR, **more}).changes
    shapes = {path: change.product.down.shape for path, change in changes.items() if isinstance(change, LowRank)}
    assert shapes == {(*TO_Q, "kernel"): (16, 2), (*CONV, "kernel"): (3, 3, 16, 5)}


def test_linear_layers_and_1x1_convolutions_are_the_same(tmp_path: Path) -> None:
    conv = {name: value[..., None, None] for name, value in PAIR.items()}
    [given], [wanted] = (read(tmp_path, each).changes.values() for each in (conv, PAIR))
    np.testing.assert_array_equal(given.product.down, wanted.product.down)


def test_a_scalar_of_former_lycoris_scales(tmp_path: Path) -> None:
    [change] = read(tmp_path, {**PAIR, f"{KOHYA}.scalar": np.float32(0.5)}).changes.values()
    np.testing.assert_allclose(change.product.up, 0.5 * _normal(16, 2).T)


def test_names_and_hashes(tmp_path: Path) -> None:
    lora = read(tmp_path, PAIR, {"ss_output_name": "a thing"})
    content = (tmp_path / "it.safetensors").read_bytes()
    assert (lora.name, lora.alias) == ("it", "a thing")
    assert lora.digest == hashlib.sha256(content).hexdigest()
    # A1111 leaves the header out, so that a changed title is no other adapter.
    assert lora.short_hash == read(tmp_path, PAIR, {"title": "other"}).short_hash
    header = int.from_bytes(content[:8], "little")
    assert lora.short_hash == hashlib.sha256(content[8 + header :]).hexdigest()[:12]


@pytest.mark.parametrize("form", ["emb_params", "string_to_param.*"])
def test_embeddings_bundled_with_it(form: str, tmp_path: Path) -> None:
    lora = read(tmp_path, {**PAIR, f"bundle_emb.thing.{form}": _normal(3, 32, dtype="float16")})
    assert lora.embeddings.keys() == {"thing"}
    np.testing.assert_array_equal(lora.embeddings["thing"], _normal(3, 32, dtype="float16").astype(np.float32))


def test_inputs_that_other_models_have_besides_get_nothing(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_conv_in.lora_down.weight": _normal(2, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": _normal(16, 2, 1, 1),
    }
    inpainting = UNetConfig(**{**vars(TOY.unet), "in_channels": 9})
    [change] = read(tmp_path, tensors, unet=inpainting).changes.values()
    assert change.product.down.shape == (3, 3, 9, 2)
    assert not change.product.down[:, :, 4:].any()
    [change] = read(tmp_path, {"lora_unet_conv_in.diff": _normal(16, 4, 3, 3)}, unet=inpainting).changes.values()
    assert isinstance(change, Difference)
    assert change.values.shape == (3, 3, 9, 16)


# --- peft's config ---


def peft_folder(folder: Path, **config: object) -> Path:
    module = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(pair(f"{module}.lora_A.weight", f"{module}.lora_B.weight"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    return folder


def test_a_folder_of_peft_is_read_with_its_config(tmp_path: Path) -> None:
    lora = read_lora(peft_folder(tmp_path), NETWORKS)
    [change] = lora.changes.values()
    assert lora.name == tmp_path.name
    np.testing.assert_allclose(change.product.up, 1.5 * _normal(16, 2).T, rtol=1e-6)
    other = read_lora(peft_folder(tmp_path, lora_alpha=4), NETWORKS)
    assert other.digest != lora.digest


def peft_finds(patterns: list[str], module: str) -> str | None:
    """peft's `get_pattern_key`."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


@pytest.mark.parametrize(
    "patterns",
    [
        [r".*attn1\.to_[qk]"],
        [r"attn1.to_q"],
        [r"to_(k|q)"],
        [r"to_"],
        [r"^to_q"],
        [r"to_v", r".*\.to_q", r"to_q"],
        [r"down_blocks\.\d+\..*"],
        [r"transformer_blocks\.0\.attn[12]\.to_q"],
        [r"blocks\.0\.attn1\.to_q"],
        [r"(?:(?!attn2).)*to_q"],
    ],
)
def test_patterns_of_ranks_and_alphas_are_those_of_peft(patterns: list[str], tmp_path: Path) -> None:
    found = peft_finds(patterns, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    values = {pattern: index + 5 for index, pattern in enumerate(patterns)}
    rank, alpha = (2, 3) if found is None else (values[found], 3 * values[found])
    config = {"rank_pattern": values, "alpha_pattern": {key: 3 * value for key, value in values.items()}}
    [change] = read_lora(peft_folder(tmp_path, **config), NETWORKS).changes.values()
    np.testing.assert_allclose(change.product.up, alpha / rank * _normal(16, 2).T, rtol=1e-6)


def test_a_pattern_that_takes_too_long_to_match_is_no_hang(tmp_path: Path) -> None:
    start = time.process_time()
    patterns = {"(?:a|b|_|.)*" * 20 + "!": 1, "(.*.*.*.*)*!": 1, r"(\w+\.?)+!": 1}
    with contextlib.suppress(AdapterError):
        read_lora(peft_folder(tmp_path, rank_pattern=patterns), NETWORKS)
    assert time.process_time() - start < 2


def test_a_layer_without_a_bias_gets_that_of_its_lora(tmp_path: Path) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = pair(f"{module}.lora_A.weight", f"{module}.lora_B.weight") | {f"{module}.lora_B.bias": _normal(16)}
    lora = read(tmp_path, {**tensors, f"{module}.alpha": np.float32(3)})
    np.testing.assert_allclose(lora.changes[*TO_Q, "bias"].values, 1.5 * _normal(16), rtol=1e-6)
    params = {"unet": {}, "text_encoder": {}}
    layer = params["unet"]
    for part in TO_Q[1:]:
        layer = layer.setdefault(part, {})
    layer["kernel"] = np.zeros((16, 16), np.float32)
    changed = apply(params, lora, 0.5)["unet"]
    for part in TO_Q[1:]:
        changed = changed[part]
    np.testing.assert_allclose(changed["bias"], 0.75 * _normal(16), rtol=1e-6)
    with pytest.raises(AdapterError, match=r"lora_B\.bias is \(15,\), but \(16,\) is expected"):
        read(tmp_path, {**tensors, f"{module}.lora_B.bias": _normal(15)})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3' is not supported; expected LORA, LOHA, LOKR"),
        ({"lora_alpha": "much"}, "lora_alpha of .*to_q is 'much', not a number above 0"),
        ({"r": 0}, "r of .*to_q is '0', not a number above 0"),
        ({"alpha_pattern": {"(?R)": 1}}, r"'\(\?R\)' is no name and no pattern of names \('\(\?' is not read\)"),
        ({"rank_pattern": {"[": 1}}, "'\\[' is no name and no pattern of names"),
        (
            {"rank_pattern": {"((a{9999}){9999}){9999}": 1}},
            "expected up to 300 letters, and up to two counts below 100",
        ),
        ({"rank_pattern": {"(" * 5000: 1}}, "expected up to 300 letters"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object of names"),
        ({"lora_alpha": 10**400}, "not a number above 0"),
        ({"peft_type": ["LORA"]}, "is not supported; expected LORA"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' is not supported"),
    ],
)
def test_configs_of_peft_that_are_refused(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=reason):
        read_lora(peft_folder(tmp_path, **config), NETWORKS)


def test_a_config_that_is_not_json(tmp_path: Path) -> None:
    (peft_folder(tmp_path) / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config.json is not JSON"):
        read_lora(tmp_path, NETWORKS)


# --- What is refused ---

_TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no LoRA"),
        ({"conv_in.weight": _normal(2, 2)}, "conv_in.weight is nothing that files of LoRA have"),
        ({**PAIR, f"{KOHYA}.odd": _normal(1)}, "odd is nothing that files of LoRA have"),
        ({f"{KOHYA}.alpha": np.float32(1)}, "alpha is there without the matrices"),
        ({f"{KOHYA}.dora_scale": _normal(16, 1)}, "dora_scale is there without the matrices"),
        ({f"{KOHYA}.lora_down.weight": _normal(2, 16)}, "LoRA needs up, but it has .*lora_down.weight"),
        ({f"{KOHYA}.hada_w1_a": _normal(16, 2)}, "LoHa needs hada_w1_b, but it has"),
        ({f"{KOHYA}.lokr_w1": _normal(4, 4)}, "LoKr needs lokr_w2 or lokr_w2_a and lokr_w2_b"),
        ({f"{KOHYA}.lokr_w1": _normal(4, 4), f"{KOHYA}.lokr_w1_a": _normal(4, 4), f"{KOHYA}.lokr_w2": _normal(4, 4)},
         "LoKr needs lokr_w1 or lokr_w1_a and lokr_w1_b, but it has"),
        ({f"{KOHYA}.lokr_w1": _normal(3, 3), f"{KOHYA}.lokr_w2": _normal(4, 4)}, r"not multiples of \(3, 3\)"),
        ({**PAIR, f"{KOHYA}.hada_w1_a": _normal(16, 2)}, "is LoRA and LoHa at once"),
        ({**PAIR, f"{KOHYA}.diff": _normal(16, 16)}, "diff is beside another change of the same kernel"),
        ({**PAIR, f"{KOHYA}.diff_b": _normal(16)}, "diff_b is for a bias, which .*to_q doesn't have"),
        ({**PAIR, f"{KOHYA}.lora_mid.weight": _normal(2, 2, 3, 3)}, "but only convolutions have such"),
        ({**PAIR, f"{KOHYA}.alpha": _normal(2)}, r"alpha is F32 \(2,\), not one number"),
        ({**PAIR, f"{KOHYA}.alpha": np.float32(np.nan)}, "alpha is nan"),
        ({**PAIR, f"{KOHYA}.lora_up.weight": _normal(32, 2)}, r"\(32, 2\), but \(16, 2\) is expected .*is \(16, 16\)"),
        ({**PAIR, f"{KOHYA}.lora_up.weight": np.ones((16, 2), np.int32)}, "holds I32, not one of F64"),
        ({**PAIR, f"{KOHYA}.dora_scale": _normal(8, 1)}, "dora_scale is"),
        ({**PAIR, **pair("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "up")},
         "are the same, twice"),
        (pair("lora_unet_down_blocks_7_resnets_0_conv1.lora_down.weight", f"{KOHYA}.lora_up.weight"),
         "for modules which this model doesn't have: lora_unet_down_blocks_7"),
        (pair(f"{_TO_K}.lora_down.weight", f"{_TO_K}.lora_up.weight", 1024),
         r"whose text is 32 wide \(the file's 1024 as in Stable Diffusion 2\)"),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "x"), "is for Stable Diffusion XL"),
        (pair("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", "x"),
         "is for Stable Diffusion XL"),
        (pair("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "x"), "is for Stable Diffusion XL"),
        (pair("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "x"), "is for Flux or Stable Diffusion 3"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "x"), "is for Flux"),
        ({f"{KOHYA}.on_input": np.ones(1, np.int64), f"{KOHYA}.weight": _normal(16)}, "holds IA3"),
        (pair(f"{KOHYA}.a1.weight", f"{KOHYA}.a2.weight"), "holds GLoRA"),
        ({f"{KOHYA}.oft_blocks": _normal(4, 4, 4)}, "holds OFT or BOFT"),
        ({f"{KOHYA}.lambda_layer": _normal(1, 4)}, "holds T-LoRA"),
        ({**PAIR, "bundle_emb.thing.clip_g": _normal(1, 32)}, "is no embedding for Stable Diffusion 1 or 2"),
        ({**PAIR, "bundle_emb.thing.emb_params": _normal(1, 768)}, "not vectors of the model's width, 32"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tensors: Tensors, reason: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=reason) as raised:
        read(tmp_path, tensors)
    assert "it.safetensors" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"absent\.safetensors is missing"):
        read_lora(tmp_path / "absent.safetensors", NETWORKS)


def test_a_pickled_file_has_to_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "it.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(AdapterError, match="pickled"):
        read_lora(tmp_path / "it.pt", NETWORKS)
