"""The names in original single files; the full sizes are in models/test_full_size.py."""

import dataclasses

import pytest

import sdjax
from sdjax.checkpoints import infer_config, original_names
from tests.checkpoints.original_tensors import listed, toy


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
    assert {key: tensor.name for key, tensor in original_names.standard_names(listed(name)).items()} == {standard: name}


def test_a_parameter_that_is_there_under_two_names_is_an_error() -> None:
    names = ("cond_stage_model.model.ln_final.bias", "conditioner.embedders.0.model.ln_final.bias")
    with pytest.raises(sdjax.CheckpointError, match="the same parameter, twice"):
        original_names.standard_names(listed(*names))


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
    assert original_names.is_extra(name)


def test_layers_of_open_clip_are_extra_only_after_those_used() -> None:
    config = infer_config.infer_open_clip(infer_config.under(toy("sd2"), original_names.OPEN_CLIP))
    layer = "cond_stage_model.model.transformer.resblocks.{}.ln_1.bias"
    assert not original_names.is_extra(layer.format(config.num_hidden_layers - 1), config)
    assert original_names.is_extra(layer.format(config.num_hidden_layers), config)


def test_attention_of_the_vae_may_be_stored_as_linear_layers() -> None:
    tensors = {name: tensor for name, tensor in toy("sd1").items() if name.startswith(original_names.VAE)}
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    tensors[name] = tensors[name]._replace(shape=tensors[name].shape[:2])
    config = infer_config.infer_vae(infer_config.under(tensors, original_names.VAE))
    chosen = original_names.choose(
        "a file", tensors, {"vae": original_names.vae_sources(config)}, original_names.is_extra
    )
    assert len(chosen["vae"]) == len(tensors)


def test_all_that_is_wrong_with_a_file_is_named() -> None:
    tensors = toy("sd1")
    config = infer_config.infer_unet(infer_config.under(tensors, original_names.UNET))
    del tensors["model.diffusion_model.out.0.bias"]
    tensors["model.diffusion_model.out.2.bias"] = tensors["model.diffusion_model.out.2.bias"]._replace(shape=(5,))
    tensors["model.diffusion_model.out.0.weight"] = tensors["model.diffusion_model.out.0.weight"]._replace(dtype="I64")
    tensors |= listed("model.diffusion_model.more")
    with pytest.raises(sdjax.CheckpointError) as caught:
        original_names.choose(
            "a file", tensors, {"unet": original_names.unet_sources(config)}, lambda name: "model.diff" not in name
        )
    for said in (
        "missing: model.diffusion_model.out.0.bias", "left over: model.diffusion_model.more",
        "model.diffusion_model.out.2.bias is (5,), not (4,)", "model.diffusion_model.out.0.weight holds I64",
    ):  # fmt: skip
        assert said in str(caught.value)


def test_averages_have_names_without_dots() -> None:
    config = infer_config.infer_unet(infer_config.under(toy("sd1"), original_names.UNET))
    names = {source.name for source in original_names.unet_sources(dataclasses.replace(config), ema=True)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in names
    assert all(original_names.is_average(name) for name in names)
