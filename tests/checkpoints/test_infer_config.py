"""Configs inferred from names and shapes; the full sizes are in models/test_full_size.py."""

import pytest

import sdjax
from sdjax.checkpoints import infer_config, original_names
from tests.checkpoints.original_tensors import listed, toy


def test_a_tower_that_has_been_cut_to_the_layers_used_is_used_whole() -> None:
    shapes = {name: (1024, 1024) for name in ("token_embedding.weight", "positional_embedding")}
    for layer in range(23):
        shapes[f"transformer.resblocks.{layer}.mlp.c_fc.weight"] = (4096, 1024)
    cut, whole = infer_config.Shapes("", shapes), {**shapes, "transformer.resblocks.23.ln_1.bias": (1024,)}
    assert infer_config.infer_open_clip(cut).num_hidden_layers == 23
    assert infer_config.infer_open_clip(infer_config.Shapes("", whole)).num_hidden_layers == 23
    assert infer_config.infer_open_clip(infer_config.Shapes("", whole), penultimate=False).num_hidden_layers == 24


def test_heads_are_told_by_the_version_or_said() -> None:
    first, second = (infer_config.under(toy(variant), original_names.UNET) for variant in ("sd1", "sd2"))
    assert infer_config.infer_unet(first).attention_head_dim == 8
    assert infer_config.infer_unet(second).attention_head_dim == (1, 2)
    assert infer_config.infer_unet(second, infer_config.Heads(width=32)).attention_head_dim == (2, 4)
    assert infer_config.infer_unet(first, infer_config.Heads(number=4)).attention_head_dim == 4


def test_labels_are_recognised() -> None:
    tensors = toy("sd1") | listed("model.diffusion_model.label_emb.weight", shape=(10, 128))
    config = infer_config.infer_unet(infer_config.under(tensors, original_names.UNET))
    assert config.num_class_embeds == 10
    assert "model.diffusion_model.label_emb.weight" in {source.name for source in original_names.unet_sources(config)}


def test_a_file_that_is_cut_off_is_an_error_that_names_a_tensor() -> None:
    tensors = toy("sd1")
    del tensors["model.diffusion_model.middle_block.1.proj_in.weight"]
    with pytest.raises(sdjax.CheckpointError, match=r"middle_block\.1\.proj_in\.weight is missing"):
        infer_config.infer_unet(infer_config.under(tensors, original_names.UNET))


def test_what_no_network_has_so_many_of_is_an_error() -> None:
    shapes = {f"transformer.resblocks.{layer}.mlp.c_fc.weight": (4, 4) for layer in range(10_000)}
    with pytest.raises(sdjax.CheckpointError, match="counts 10000; expected at most 64"):
        infer_config.infer_open_clip(infer_config.Shapes("", {"token_embedding.weight": (4, 4), **shapes}))
    with pytest.raises(sdjax.CheckpointError, match=r"token_embedding\.weight is \(4,\), which has not 2 axes"):
        infer_config.infer_open_clip(infer_config.Shapes("", {"token_embedding.weight": (4,)}))
