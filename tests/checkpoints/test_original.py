"""The names in original single files, and what is told from them; the full sizes are in models/test_full_size.py."""

import dataclasses
from pathlib import Path

import pytest

import sdjax
from sdjax.checkpoints import original
from sdjax.checkpoints.tensors import Tensor
from tests.golden import checkpoints

FILE = Path("model.safetensors")


def listed(*names: str, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, Tensor]:
    return {name: Tensor(FILE, name, shape, dtype, 0) for name in names}


def toy(variant: str) -> dict[str, Tensor]:
    shapes = checkpoints.original(variant, "toy").shapes
    return {name: Tensor(FILE, name, shape, "F16", 0) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        (
            "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias",
            "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
        ),
        (
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ),
        ("conditioner.embedders.0.model.ln_final.bias", "cond_stage_model.model.ln_final.bias"),
        ("model.diffusion_model.out.0.bias", "model.diffusion_model.out.0.bias"),
    ],
)
def test_other_names_of_the_same_are_known(name: str, standard: str) -> None:
    assert {key: tensor.name for key, tensor in original.standard_names(listed(name)).items()} == {standard: name}


def test_a_parameter_that_is_there_under_two_names_is_an_error() -> None:
    names = ("cond_stage_model.model.ln_final.bias", "conditioner.embedders.0.model.ln_final.bias")
    with pytest.raises(sdjax.CheckpointError, match="the same parameter, twice"):
        original.standard_names(listed(*names))


@pytest.mark.parametrize(
    "name",
    [
        "betas", "sqrt_one_minus_alphas_cumprod", "model_ema.decay", "first_stage_model.loss.logvar", "scale_factor",
        "cond_stage_model.transformer.text_model.embeddings.position_ids", "depth_model.model.scratch.weight",
        "cond_stage_model.model.logit_scale", "v_pred", "denoiser.sigmas",
        "first_stage_model.model_ema.decoderconv_inweight", "embedding_manager.string_to_param_dict.*",
        "cond_stage_model.transformer.vision_model.embeddings.class_embedding",
        "cond_stage_model.transformer.visual_projection.weight", "cond_stage_model.transformer.logit_scale",
        "cond_stage_model.transformer.text_projection.weight",
    ],
)  # fmt: skip
def test_what_training_leaves_behind_is_known(name: str) -> None:
    assert original.is_extra(name)


def test_layers_of_open_clip_are_extra_only_after_those_used() -> None:
    config = original.infer_open_clip(original.under(toy("sd2"), original.OPEN_CLIP))
    layer = "cond_stage_model.model.transformer.resblocks.{}.ln_1.bias"
    assert not original.is_extra(layer.format(config.num_hidden_layers - 1), config)
    assert original.is_extra(layer.format(config.num_hidden_layers), config)


def test_a_tower_that_has_been_cut_to_the_layers_used_is_used_whole() -> None:
    shapes = {name: (1024, 1024) for name in ("token_embedding.weight", "positional_embedding")}
    for layer in range(23):
        shapes[f"transformer.resblocks.{layer}.mlp.c_fc.weight"] = (4096, 1024)
    cut, whole = original.Shapes("", shapes), {**shapes, "transformer.resblocks.23.ln_1.bias": (1024,)}
    assert original.infer_open_clip(cut).num_hidden_layers == 23
    assert original.infer_open_clip(original.Shapes("", whole)).num_hidden_layers == 23
    assert original.infer_open_clip(original.Shapes("", whole), penultimate=False).num_hidden_layers == 24


def test_heads_are_told_by_the_version_or_said() -> None:
    first, second = (original.under(toy(variant), original.UNET) for variant in ("sd1", "sd2"))
    assert original.infer_unet(first).attention_head_dim == 8
    assert original.infer_unet(second).attention_head_dim == (1, 2)
    assert original.infer_unet(second, original.Heads(width=32)).attention_head_dim == (2, 4)
    assert original.infer_unet(first, original.Heads(number=4)).attention_head_dim == 4


def test_labels_are_recognised() -> None:
    tensors = toy("sd1") | listed("model.diffusion_model.label_emb.weight", shape=(10, 128))
    config = original.infer_unet(original.under(tensors, original.UNET))
    assert config.num_class_embeds == 10
    assert "model.diffusion_model.label_emb.weight" in {source.name for source in original.unet_sources(config)}


def test_attention_of_the_vae_may_be_stored_as_linear_layers() -> None:
    tensors = {name: tensor for name, tensor in toy("sd1").items() if name.startswith(original.VAE)}
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    tensors[name] = tensors[name]._replace(shape=tensors[name].shape[:2])
    config = original.infer_vae(original.under(tensors, original.VAE))
    chosen = original.choose("a file", tensors, {"vae": original.vae_sources(config)}, original.is_extra)
    assert len(chosen["vae"]) == len(tensors)


def test_all_that_is_wrong_with_a_file_is_named() -> None:
    tensors = toy("sd1")
    config = original.infer_unet(original.under(tensors, original.UNET))
    del tensors["model.diffusion_model.out.0.bias"]
    tensors["model.diffusion_model.out.2.bias"] = tensors["model.diffusion_model.out.2.bias"]._replace(shape=(5,))
    tensors["model.diffusion_model.out.0.weight"] = tensors["model.diffusion_model.out.0.weight"]._replace(dtype="I64")
    tensors |= listed("model.diffusion_model.more")
    with pytest.raises(sdjax.CheckpointError) as caught:
        original.choose(
            "a file", tensors, {"unet": original.unet_sources(config)}, lambda name: "model.diff" not in name
        )
    for said in (
        "missing: model.diffusion_model.out.0.bias", "left over: model.diffusion_model.more",
        "model.diffusion_model.out.2.bias is (5,), not (4,)", "model.diffusion_model.out.0.weight holds I64",
    ):  # fmt: skip
        assert said in str(caught.value)


def test_a_file_that_is_cut_off_is_an_error_that_names_a_tensor() -> None:
    tensors = toy("sd1")
    del tensors["model.diffusion_model.middle_block.1.proj_in.weight"]
    with pytest.raises(sdjax.CheckpointError, match=r"middle_block\.1\.proj_in\.weight is missing"):
        original.infer_unet(original.under(tensors, original.UNET))


def test_what_no_network_has_so_many_of_is_an_error() -> None:
    shapes = {f"transformer.resblocks.{layer}.mlp.c_fc.weight": (4, 4) for layer in range(10_000)}
    with pytest.raises(sdjax.CheckpointError, match="counts 10000; expected at most 64"):
        original.infer_open_clip(original.Shapes("", {"token_embedding.weight": (4, 4), **shapes}))
    with pytest.raises(sdjax.CheckpointError, match=r"token_embedding\.weight is \(4,\), which has not 2 axes"):
        original.infer_open_clip(original.Shapes("", {"token_embedding.weight": (4,)}))


def test_averages_have_names_without_dots() -> None:
    config = original.infer_unet(original.under(toy("sd1"), original.UNET))
    names = {source.name for source in original.unet_sources(dataclasses.replace(config), ema=True)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in names
    assert all(original.is_average(name) for name in names)
