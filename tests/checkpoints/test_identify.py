"""What files are, by names and shapes as those have who write them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.checkpoints.hashes import hash_file
from sdjax.checkpoints.identify import identify, listed, shortened
from sdjax.checkpoints.stored_tensor import Tensor
from sdjax.checkpoints.tensors import list_file
from tests.golden import adapters, checkpoints

Shapes = dict[str, tuple[int, ...]]


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: Tensor(Path("file"), name, shape, "F16", 0) for name, shape in shapes.items()}


def told(shapes: Shapes) -> tuple[str, str]:
    """The kind and all that is told."""
    identity = identify(tensors(shapes))
    return identity.kind, "; ".join(f"{name}: {value}" for name, value in identity.facts)


# --- Checkpoints and their networks ---


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("sd1", "variant: Stable Diffusion 1, text to image; UNet: 859.52 M"),
        ("sd1_inpaint", "variant: Stable Diffusion 1, inpainting"),
        ("sd2", "variant: Stable Diffusion 2, text to image; UNet: 865.91 M"),
        ("sd2_inpaint", "variant: Stable Diffusion 2, inpainting"),
        ("sd2_depth", "variant: Stable Diffusion 2, depth to image"),
    ],
)
def test_checkpoints_at_full_size(variant, words):
    kind, facts = told(checkpoints.original(variant, "full").shapes)
    assert kind == "checkpoint" and words in facts and "averages (EMA)" in facts


UNET = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
OTHERS: dict[str, tuple[Shapes, str, str]] = {
    "sdxl": ({"conditioner.embedders.1.model.ln_final.bias": (1280,), UNET: (640, 2048), FIRST: (320, 4, 3, 3)},
             "checkpoint", "Stable Diffusion XL: not supported"),
    "sdxl unet": ({UNET: (640, 2048), FIRST: (320, 4, 3, 3)}, "checkpoint", "Stable Diffusion XL: not supported"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)},
            "checkpoint", "Stable Diffusion 3: not supported"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "checkpoint", "Flux: not supported"),
    "unet only": ({UNET: (640, 768), FIRST: (320, 4, 3, 3)}, "checkpoint",
                  "Stable Diffusion 1, text to image; UNet: 0.50 M parameters in 2 tensors; "
                  "VAE: none: the file is not a whole checkpoint; text encoder: none"),
    "diffusers unet": ({"down_blocks.0.resnets.0.time_emb_proj.weight": (320, 1280), "conv_in.weight": (320, 9, 3, 3),
                        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 1024)},
                       "UNet", "Stable Diffusion 2, inpainting, diffusers' names"),
    "vae": ({"first_stage_model.decoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
             "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)},
            "VAE", "decoder, 4 latent channels, the original names"),
    "diffusers vae": ({"encoder.mid_block.resnets.0.conv1.weight": (512, 512, 3, 3),
                       "decoder.conv_in.weight": (512, 16, 3, 3)},
                      "VAE", "encoder and decoder, 16 latent channels, diffusers' names; not that of Stable Diffusion"),
    "clip": ({"text_model.embeddings.token_embedding.weight": (49408, 768),
              "text_model.encoder.layers.0.mlp.fc1.bias": (3072,), "text_model.encoder.layers.1.mlp.fc1.bias": (3072,)},
             "text encoder", "CLIP ViT-L/14 (Stable Diffusion 1), 2 layers, transformers' names"),
    "open clip": ({"transformer.resblocks.0.ln_1.bias": (1024,), "token_embedding.weight": (49408, 1024)},
                  "text encoder", "OpenCLIP ViT-H/14 (Stable Diffusion 2), 1 layers, OpenCLIP's names"),
    "controlnet": ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3),
                    "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)},
                   "ControlNet", "Stable Diffusion 1, the original names"),
    "diffusers controlnet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                              "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
                             "ControlNet", "Stable Diffusion 2, diffusers' names"),
    "t2i adapter": ({"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 192, 3, 3)},
                    "T2I adapter", "192 channels in"),
    "esrgan": ({"params_ema.body.0.rdb1.conv1.weight": (32, 64, 3, 3), "params_ema.body.1.rdb1.conv1.weight": (1,),
                "params_ema.conv_first.weight": (64, 3, 3, 3)}, "upscaler", "RRDBNet (ESRGAN) of 2 blocks, 3 channels"),
    "old esrgan": ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3), "model.0.weight": (64, 3, 3, 3)},
                   "upscaler", "of 1 blocks, 3 channels in"),
    "nothing known": ({"a": (2,), "b": (3, 4)}, "unknown", "tensors: a (2,), b (3, 4)"),
    "nothing": ({}, "unknown", "tensors: none"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_files(name):
    shapes, kind, words = OTHERS[name]
    found, facts = told(shapes)
    assert found == kind and words in facts


# --- Adapters ---

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
ADAPTERS: dict[str, tuple[Shapes, str]] = {
    "kohya": ({f"{KOHYA}.lora_down.weight": (8, 768), f"{KOHYA}.lora_up.weight": (320, 8),
               "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 768),
               "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 8)},
              "variant: LoRA, kohya's names; made for: Stable Diffusion 1; rank: 8; alpha: none in the file; "
              "UNet: 1 modules; text encoder: 1 modules"),
    "locon": ({f"{KOHYA}.lora_down.weight": (8, 1024), "lora_unet_x_conv1.lora_down.weight": (4, 4, 1, 1),
               "lora_unet_x_conv1.lora_mid.weight": (4, 4, 3, 3), "lora_unet_x_conv1.lora_up.weight": (4, 4, 1, 1)},
              "variant: LoRA with Tucker, kohya's names; made for: Stable Diffusion 2; rank: 8 (1 times), 4 (1 times)"),
    "loha": ({f"{KOHYA}.hada_w1_a": (320, 4), f"{KOHYA}.hada_w1_b": (4, 768), f"{KOHYA}.hada_w2_a": (320, 4),
              f"{KOHYA}.hada_w2_b": (4, 768)}, "LoHa, kohya's names; made for: Stable Diffusion 1; rank: 4"),
    "lokr": ({f"{KOHYA}.lokr_w1": (4, 16), f"{KOHYA}.lokr_w2_a": (80, 4), f"{KOHYA}.lokr_w2_b": (4, 64)},
             "LoKr, kohya's names; made for: Stable Diffusion 2; rank: 4"),
    "dora": ({f"{KOHYA}.lora_down.weight": (8, 768), f"{KOHYA}.dora_scale": (1, 768)}, "LoRA with DoRA"),
    "differences": ({f"{KOHYA}.diff": (320, 768), f"{KOHYA}.diff_b": (320,)},
                    "whole differences, kohya's names; made for: Stable Diffusion 1; rank: none (not of low rank)"),
    "peft": ({f"base_model.model.{DOTTED}.to_k.lora_A.weight": (16, 768),
              f"base_model.model.{DOTTED}.to_k.lora_B.weight": (320, 16)},
             "LoRA, peft's names; made for: Stable Diffusion 1; rank: 16"),
    "diffusers": ({f"unet.{DOTTED}.to_k.lora_A.weight": (4, 1024), f"unet.{DOTTED}.to_k.lora_B.weight": (320, 4),
                   "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (4, 1024)},
                  "LoRA, diffusers' names; made for: Stable Diffusion 2; rank: 4; alpha: none in the file; UNet: 1"),
    "old diffusers": ({f"unet.{DOTTED}.processor.to_k_lora.down.weight": (4, 768),
                       f"unet.{DOTTED}.processor.to_k_lora.up.weight": (320, 4)},
                      "LoRA, diffusers' names (before peft); made for: Stable Diffusion 1; rank: 4"),
    "text encoder only": ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)},
                          "made for: Stable Diffusion 1 (by its text encoder)"),
    "xl": ({f"{KOHYA}.lora_down.weight": (8, 2048), "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": (2,)},
           "made for: Stable Diffusion XL: not supported"),
    "flux": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (16, 3072)}, "made for: Flux: not supported"),
    "bundle": ({f"{KOHYA}.lora_down.weight": (8, 768), "bundle_emb.cat.string_to_param.*": (2, 768)},
               "bundled embeddings: cat"),
    "oft": ({f"{KOHYA}.oft_blocks": (4, 8, 8)}, "OFT (not supported)"),
    "more": ({f"{KOHYA}.lora_down.weight": (8, 768), "strange": (1,)}, "other tensors: strange"),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_loras_in_all_forms(name):
    shapes, words = ADAPTERS[name]
    kind, facts = told(shapes)
    assert kind == "LoRA" and words in facts


@pytest.mark.parametrize("case", adapters.CASES)
def test_files_that_other_libraries_wrote(case, tmp_path):
    file = adapters.write(adapters.recorded()[case].files, tmp_path)
    identity = identify(list_file(file, pickled=True).tensors)
    facts = dict(identity.facts)
    assert identity.kind == "LoRA" and "other tensors" not in facts and "other names" not in facts["variant"]
    assert facts["made for"].startswith("text of width 32")
    assert ("UNet" in facts, "text encoder" in facts) == {
        None: (True, True), "unet": (True, False), "text_encoder": (False, True),
    }[adapters.CASES[case].part]  # fmt: skip


def test_alphas_are_read(tmp_path):
    alphas = {f"lora_unet_{n}.alpha": np.array([4, 4, 1][n], np.float16) for n in range(3)}
    downs = {f"lora_unet_{n}.lora_down.weight": np.zeros((8, 3), np.float16) for n in range(3)}
    save_file({**alphas, **downs}, tmp_path / "lora.safetensors")
    facts = dict(identify(list_file(tmp_path / "lora.safetensors").tensors).facts)
    assert facts["alpha"] == "4 (2 times), 1 (1 times)" and facts["rank"] == "8"


INVERSIONS: dict[str, tuple[Shapes, str]] = {
    "a1111": ({"string_to_param.*": (3, 768)}, "vectors: 3 of width 768 (Stable Diffusion 1), as 'string_to_param.*'"),
    "one key": ({"emb_params": (2, 1024)}, "vectors: 2 of width 1024 (Stable Diffusion 2)"),
    "diffusers": ({"<cat>": (768,)}, "vectors: 1 of width 768 (Stable Diffusion 1), as '<cat>'"),
    "xl": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "Stable Diffusion XL's second text encoder: not supported"),
}


@pytest.mark.parametrize("name", INVERSIONS)
def test_textual_inversions(name):
    shapes, words = INVERSIONS[name]
    kind, facts = told(shapes)
    assert kind == "textual inversion" and words in facts


def test_hypernetworks():
    layer = {"linear.0.weight": (1536, 768), "linear.0.bias": (1536,), "linear.1.weight": (1536,),
             "linear.2.weight": (768, 1536)}  # fmt: skip
    kind, facts = told({f"768.{half}.{name}": shape for half in (0, 1) for name, shape in layer.items()})
    assert (kind, facts) == ("hypernetwork", "widths: 768; layers: 768 -> 1536 -> 768 with layer norms (of width 768)")


# --- Lines, and hashes ---


def test_lists_and_texts_are_bounded():
    assert listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert shortened("a\n b" * 100, 5) == "a ba ... (400 characters)"


def test_hashes_are_those_that_others_show(tmp_path):
    """By their definitions: A1111's `modules/hashes.py` and `sd_models.py`, kohya's `addnet_hash_safetensors`."""
    file = tmp_path / "toy.safetensors"
    save_file({"a": np.arange(300_000, dtype=np.float32)}, file, {"format": "pt"})
    hashes = hash_file(file)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert hashes.sha256 == hashlib.sha256(data).hexdigest() and hashes.short == hashes.sha256[:10]
    assert hashes.old == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert hashes.after_header == hashlib.sha256(data[start:]).hexdigest()
    save_file({"a": np.arange(300_000, dtype=np.float32)}, file, {"title": "another"})
    assert hash_file(file).after_header == hashes.after_header and hash_file(file).sha256 != hashes.sha256
    file.with_suffix(".ckpt").write_bytes(b"PK\3\4")
    assert hash_file(file.with_suffix(".ckpt")).after_header == ""
