"""Configs that can't be: each an error that names the file and the key."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.checkpoints.vae_file import find_vae
from sdjax.models import ConfigError, TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.models.controlnet import ControlNetConfig
from sdjax.models.depth import DepthConfig
from sdjax.models.latent_upscaler import LatentUpscalerConfig
from sdjax.models.t2i_adapter import T2IAdapterConfig
from tests import toys


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (VAEConfig, "norm_num_groups", 0),
        (VAEConfig, "scaling_factor", 0),
        (VAEConfig, "scaling_factor", None),
        (VAEConfig, "scaling_factor", "0.18"),
        (VAEConfig, "scaling_factor", float("nan")),
        (VAEConfig, "latent_channels", -4),
        (VAEConfig, "latent_channels", 4.5),
        (VAEConfig, "force_upcast", "true"),
        (VAEConfig, "act_fn", {"a": 1}),
        (VAEConfig, "block_out_channels", []),
        (TextEncoderConfig, "num_attention_heads", 0),
        (TextEncoderConfig, "hidden_act", ["gelu"]),
        (UNetConfig, "layers_per_block", "2"),
        (UNetConfig, "layers_per_block", True),
        (UNetConfig, "act_fn", {"a": 1}),
        (UNetConfig, "sample_size", "64"),
        (UNetConfig, "cross_attention_dim", [768, 768, 768, 1024]),
        (UNetConfig, "attention_head_dim", [8, 8]),
    ],
)
def test_a_value_that_can_not_be_is_refused(config: type, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key) as raised:
        config.from_json({key: value}, "somewhere/config.json")
    assert str(raised.value).startswith("somewhere/config.json: ")


HUGE = [
    (TextEncoderConfig, "num_hidden_layers", 10**7, "make a network of 10000000 layers; expected 512 at most"),
    (TextEncoderConfig, "max_position_embeddings", 10**6, "expected 3 to 4096"),
    (TextEncoderConfig, "vocab_size", 10**9, "expected 16777216 at most"),
    (TextEncoderConfig, "layer_norm_eps", -1, "not positive"),
    (UNetConfig, "layers_per_block", 10**4, "expected 512 at most"),
    (UNetConfig, "transformer_layers_per_block", 10**4, "expected 512 at most"),
    (UNetConfig, "block_out_channels", [32] * 40, "expected 8 entries at most"),
    (UNetConfig, "block_out_channels", [2**20] * 4, "expected 65536 at most"),
    (UNetConfig, "norm_eps", 10**400, "not of the type float"),
    (UNetConfig, "sample_size", [], "expected one side or two"),
    (UNetConfig, "sample_size", [64, 64, 64], "expected one side or two"),
    (UNetConfig, "sample_size", 0, "expected one side or two"),
    (UNetConfig, "sample_size", 10**9, "from 1 to 65536"),
    (UNetConfig, "num_class_embeds", -1, "not positive"),
    (UNetConfig, "freq_shift", 160, "from 0 to 1"),
    (UNetConfig, "conv_in_kernel", True, "not supported"),
    (UNetConfig, "x" * 10**6, 1, "unknown key"),
    (UNetConfig, "class_embed_type", "x" * 10**6, "class_embed_type"),
    (VAEConfig, "layers_per_block", 10**4, "expected 512 at most"),
    (VAEConfig, "sample_size", [], "expected one side or two"),
    (VAEConfig, "sample_size", [512], "expected one side or two"),
    (ControlNetConfig, "conditioning_embedding_out_channels", [16] * 60, "expected 8 entries at most"),
    (T2IAdapterConfig, "num_res_blocks", 10**7, "num_res_blocks"),
    (T2IAdapterConfig, "downscale_factor", 10**6, "expected 256 at most"),
    (DepthConfig, "num_hidden_layers", 10**4, "expected 512 at most"),
    (DepthConfig, "patch_size", 10**4, "expected 256 at most"),
    (DepthConfig, "reassemble_factors", [1, 1, 1, 1e-300], "reassemble_factors"),
]


@pytest.mark.parametrize(("config", "key", "value", "message"), HUGE)
def test_what_would_take_all_time_or_memory_to_build_is_refused_by_key(config, key, value, message):
    with pytest.raises(ConfigError, match=message) as raised:
        config.from_json({key: value}, "somewhere/config.json")
    said = str(raised.value)
    assert said.startswith("somewhere/config.json: ") and key[:50] in said and len(said) < 1000


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (
            VAEConfig,
            {"_class_name": "AutoencoderTiny", "act_fn": "relu"},
            "'AutoencoderTiny' is not .*TAESD",
        ),
        (VAEConfig, {"_class_name": "AsymmetricAutoencoderKL"}, "'AsymmetricAutoencoderKL' is not supported"),
        (VAEConfig, {"_class_name": "ConsistencyDecoderVAE"}, "a consistency decoder"),
        (UNetConfig, {"_class_name": "UNet3DConditionModel"}, "a UNet of video"),
        (UNetConfig, {"_class_name": "SD3Transformer2DModel"}, "expected UNet2DConditionModel"),
        (UNetConfig, {"_class_name": 5}, "_class_name 5 is not supported"),
        (TextEncoderConfig, {"architectures": ["T5EncoderModel"], "act_fn": "relu"}, "It is T5"),
        (TextEncoderConfig, {"model_type": "t5"}, "model_type 't5' is not supported"),
        (ControlNetConfig, {"_class_name": "ControlNetUnionModel"}, "a ControlNet of many conditions"),
        (T2IAdapterConfig, {"_class_name": "MultiAdapter"}, "name each by itself"),
        (LatentUpscalerConfig, {"_class_name": "UNet2DModel"}, "a UNet without text"),
        (DepthConfig, {"model_type": "depth_anything", "backbone": 1}, "model_type 'depth_anything' is not supported"),
    ],
)
def test_another_class_is_refused_by_its_name(config, data, message):
    with pytest.raises(ConfigError, match=message) as raised:
        config.from_json(data, "somewhere/config.json")
    assert str(raised.value).startswith("somewhere/config.json: ")


def test_former_classes_for_jax_and_clips_with_a_projection_are_the_same_networks():
    assert UNetConfig.from_json({"_class_name": "FlaxUNet2DConditionModel"}) == UNetConfig()
    assert TextEncoderConfig.from_json({"architectures": ["CLIPTextModelWithProjection"]}) == TextEncoderConfig()


def test_heads_need_not_divide_channels_where_there_is_no_attention():
    kinds = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
    kinds |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 3, "norm_num_groups": 8}
    assert UNetConfig.from_json({**kinds, "block_out_channels": [32, 48]}).block_out_channels == (32, 48)
    for refused in ([32, 32], [48, 32]):  # the last has it in the middle block too
        with pytest.raises(ConfigError, match="not multiples of the head counts 3 where there is attention"):
            UNetConfig.from_json({**kinds, "block_out_channels": refused})


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 900 + b"]" * 900, "holds list"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "is nested deeper than 32"),
        (b'{"a":' * 100_000, "is nested deeper than 32"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": 1' + b" " * (1 << 20) + b"}", "has more than 1048576 bytes"),
        (b"\xff{}", "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_json_that_no_config_is_is_refused_by_its_file(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_json(file)
    assert str(raised.value).startswith(str(file)) and len(str(raised.value)) < len(str(file)) + 300


def test_a_folder_in_the_place_of_a_config_is_no_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is no file"):
        read_json(tmp_path / "config.json")


def test_a_config_of_more_layers_than_its_files_have_tensors_is_refused_before_it_is_built(tmp_path):
    folder = toys.write_toy(tmp_path / "toy", toys.TINY)
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 500}))
    with pytest.raises(CheckpointError, match="text_encoder: its config makes a network of 500 layers"):
        sdjax.load(folder)


def test_a_pipeline_whose_vae_is_of_another_class_is_refused_by_the_index(tmp_path):
    folder = toys.write_toy(tmp_path / "toy", toys.TINY)
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vae": ["diffusers", "AutoencoderTiny"]}))
    with pytest.raises(ConfigError, match=r"model_index\.json: vae 'AutoencoderTiny' is not supported"):
        sdjax.load(folder, weights=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoder.layers.0.weight", "is an AutoencoderTiny"),
        ("first_stage_model.encoder.layers.1.conv.0.weight", "is an AutoencoderTiny"),
        ("decoder.condition_encoder.layers.0.weight", "is an AsymmetricAutoencoderKL"),
        ("decoder_unet.embed_time.weight", "is a ConsistencyDecoderVAE"),
        ("quantize.embedding.weight", "is a VQModel"),
    ],
)
def test_a_single_file_of_another_autoencoder_is_told_by_a_name_in_it(tmp_path, name, message):
    file = tmp_path / "vae.safetensors"
    zeros = np.zeros((1, 1), np.float32)
    save_file({name: zeros, "encoder.down_blocks.0.x": zeros, "decoder.x": zeros}, file)
    with pytest.raises(CheckpointError, match=message) as raised:
        find_vae(file)
    assert str(raised.value).startswith(str(file))
