"""Original single files: what they are is told, asked for, or refused by name."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import sdjax
from sdjax.checkpoints.single_file import read_file
from sdjax.families.stable_diffusion import extra_channels
from tests import toys
from tests.golden import checkpoints, images, networks

# Reads no tensor: for what is decided by names and shapes.
outline = functools.partial(read_file, dtype=None)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The single file of a variant's toy; not to be changed."""
    folder = tmp_path_factory.mktemp("original")
    return functools.cache(lambda variant: checkpoints.write_toy(folder / f"{variant}.safetensors", variant))


@pytest.fixture
def linked(files: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same file in a folder of its own, where things may be laid beside it."""

    def link(variant: str) -> Path:
        (tmp_path / "model.safetensors").symlink_to(files(variant))
        return tmp_path / "model.safetensors"

    return link


def changed(file: Path, change: Callable[[dict[str, np.ndarray]], Any], to: Path, **metadata: str) -> Path:
    """A copy with other tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, to, metadata=metadata or None)
    return to


def write_yaml(file: Path, variant: str, change: Callable[[dict[str, Any]], Any] = lambda params: None) -> Path:
    """The published config, with the sizes of the toy."""
    config = copy.deepcopy(checkpoints.original(variant, "toy").config)
    change(config["model"]["params"])
    file.write_text(yaml.safe_dump(config))
    return file


# --- What is read ---


@pytest.mark.parametrize("variant", checkpoints.VARIANTS)
def test_parameters_are_those_that_diffusers_reads(variant: str, files: Callable[[str], Path]) -> None:
    recorded = {
        part: {name.removeprefix("text_model."): value for name, value in listed.items()}
        for part, listed in checkpoints.recorded_checksums(variant).items()
    }
    params = read_file(files(variant), prediction_type=checkpoints.PREDICTS.get(variant)).params
    assert checkpoints.checksums(params) == recorded


def test_a_unet_gives_what_the_original_code_gives(files: Callable[[str], Path]) -> None:
    given = checkpoints.outputs(sdjax.load(files("sd2_depth")), ["prediction"])
    with np.load(checkpoints.OUTPUTS) as stored:
        assert networks.relative_error(given["prediction"], stored["sd2_depth/prediction"]) < networks.TOLERANCE


def test_images_are_those_of_diffusers_from_the_same_file(files: Callable[[str], Path]) -> None:
    cases = checkpoints.RECORDED_DRAWINGS
    models = {name: checkpoints.load_toy(files(name), name) for name in {case.variant for case in cases.values()}}
    drawn = checkpoints.drawn(models, cases)
    with np.load(checkpoints.DRAWN) as stored:
        shares = {name: images.share_that_differs(image, stored[name]) for name, image in drawn.items()}
    assert {name: share for name, share in shares.items() if share > images.TOLERATED_SHARE} == {}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_read_as_it_is(dtype: Any, tmp_path: Path) -> None:
    file = checkpoints.write_toy(tmp_path / "model.safetensors", "sd1", dtype=dtype)
    whole = checkpoints.toy_weights("sd1")
    params = read_file(file).params
    kernel = whole["model.diffusion_model.input_blocks.0.0.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(params["unet"]["conv_in"]["kernel"], kernel.transpose(2, 3, 1, 0))
    halves = read_file(file, dtype).params
    assert {leaf.dtype for leaf in jax.tree.leaves(halves["unet"])} == {jnp.dtype(dtype)}
    # The VAE overflows in float16 alone.
    of_vae = np.float32 if dtype == np.float16 else dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(halves["vae"])} == {jnp.dtype(of_vae)}


def test_fused_projections_are_taken_apart(files: Callable[[str], Path]) -> None:
    params = read_file(files("sd2"), prediction_type="epsilon").params["text_encoder"]
    fused = checkpoints.toy_weights("sd2")["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    attention = params["layers_1"]["self_attn"]
    parts = [attention[name]["kernel"].T for name in ("q_proj", "k_proj", "v_proj")]
    np.testing.assert_array_equal(np.concatenate(parts), fused)


def test_averages_are_taken_where_asked_for(tmp_path: Path, files: Callable[[str], Path]) -> None:
    file = checkpoints.write_toy(tmp_path / "model.safetensors", "sd1", ema=True)
    weights = checkpoints.toy_weights("sd1", ema=True)
    plain, averaged = read_file(file), read_file(file, ema=True)
    for checkpoint, name in (
        (plain, "model.diffusion_model.out.2.bias"), (averaged, "model_ema.diffusion_modelout2bias"),
    ):  # fmt: skip
        np.testing.assert_array_equal(checkpoint.params["unet"]["conv_out"]["bias"], weights[name])
    assert plain.digest != averaged.digest
    with pytest.raises(sdjax.CheckpointError, match="no averages"):
        outline(files("sd1"), ema=True)


# --- What it is ---


@pytest.mark.parametrize(
    ("variant", "name", "extra", "sampler", "size"),
    [
        ("sd1", "Stable Diffusion 1 of another size, predicts epsilon", 0, "plms", 64),
        ("sd1_inpaint", "Stable Diffusion 1 of another size, inpainting, predicts epsilon", 5, "plms", 64),
        ("sd2", "Stable Diffusion 2 of another size, predicts epsilon", 0, "plms", 64),
        ("sd2_v", "Stable Diffusion 2 of another size, predicts v_prediction", 0, "ddim", 96),
        ("sd2_inpaint", "Stable Diffusion 2 of another size, inpainting, predicts epsilon", 5, "plms", 64),
        ("sd2_depth", "Stable Diffusion 2 of another size, depth to image, predicts epsilon", 1, "plms", 64),
    ],
)
def test_variants_are_told_apart(
    variant: str, name: str, extra: int, sampler: str, size: int, files: Callable[[str], Path]
) -> None:
    model = checkpoints.load_toy(files(variant), variant, weights=False)
    assert (model.variant_name, extra_channels(model.unet.config, model.vae.config), model.sampler) == (
        name,
        extra,
        sampler,
    )
    assert model.unet.config.sample_size == size
    assert model.tokenizer("a").ids[-1] == (49407 if variant.startswith("sd1") else 0)
    assert (model.name, model.revision, model.vae_dtype) == (variant, None, "float32")
    published = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "set_alpha_to_one": False,
    }  # fmt: skip
    assert {key: getattr(model.scheduler, key) for key in published} == published


def test_the_user_is_asked_what_a_unet_of_version_2_predicts(files: Callable[[str], Path]) -> None:
    with pytest.raises(sdjax.CheckpointError) as caught:
        outline(files("sd2"))
    for said in ("prediction_type", "'v_prediction' for 2.0 and 2.1 at 768", "'epsilon' for the base", "sd2.yaml"):
        assert said in str(caught.value)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_answer_is_a_flag_or_metadata_or_a_config_beside(
    prediction: str, linked: Callable[[str], Path], tmp_path: Path
) -> None:
    file = linked("sd2")
    assert outline(file, prediction_type=prediction).scheduler.prediction_type == prediction
    said = {"modelspec.prediction_type": prediction.removesuffix("_prediction")}
    noted = changed(file, lambda tensors: None, tmp_path / "noted.safetensors", **said)
    assert outline(noted).scheduler.prediction_type == prediction
    write_yaml(tmp_path / "model.yaml", "sd2_v" if prediction == "v_prediction" else "sd2")
    assert outline(file).scheduler.prediction_type == prediction


@pytest.mark.parametrize(
    ("words", "prediction"),
    [("V-Prediction", "v_prediction"), ("vpred", "v_prediction"), ("v_pred", "v_prediction"), ("EPS", "epsilon"),
     ("Epsilon ", "epsilon"), ("sample", "sample")],
)  # fmt: skip
def test_metadata_say_it_in_several_spellings(
    words: str, prediction: str, files: Callable[[str], Path], tmp_path: Path
) -> None:
    said = {"modelspec.prediction_type": words}
    file = changed(files("sd1"), lambda tensors: None, tmp_path / "model.safetensors", **said)
    assert outline(file).scheduler.prediction_type == prediction


def test_metadata_that_say_something_unknown_are_an_error_unless_it_is_said(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    said = {"modelspec.prediction_type": "flow"}
    file = changed(files("sd1"), lambda tensors: None, tmp_path / "model.safetensors", **said)
    with pytest.raises(sdjax.CheckpointError, match=r"modelspec\.prediction_type is 'flow', which is not known"):
        outline(file)
    assert outline(file, prediction_type="epsilon").scheduler.prediction_type == "epsilon"


def test_a_marker_says_that_a_fine_tune_of_version_1_predicts_v(files: Callable[[str], Path], tmp_path: Path) -> None:
    markers = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    checkpoint = outline(changed(files("sd1"), lambda tensors: tensors.update(markers), tmp_path / "v.safetensors"))
    assert (checkpoint.scheduler.prediction_type, checkpoint.sampler) == ("v_prediction", "ddim")
    assert checkpoint.scheduler.rescale_betas_zero_snr
    assert checkpoint.configs["unet"].sample_size == 64


def test_answers_that_differ_are_an_error_unless_the_flag_decides(files: Callable[[str], Path], tmp_path: Path) -> None:
    said = {"modelspec.prediction_type": "v"}
    file = changed(files("sd2"), lambda tensors: None, tmp_path / "model.safetensors", **said)
    write_yaml(tmp_path / "model.yaml", "sd2")
    with pytest.raises(sdjax.CheckpointError, match=r"epsilon by model\.yaml, v_prediction by the file's modelspec"):
        outline(file)
    assert outline(file, prediction_type="epsilon").scheduler.prediction_type == "epsilon"


# --- Configs ---


def test_a_config_beside_says_heads_betas_scale_and_layers(linked: Callable[[str], Path], tmp_path: Path) -> None:
    def change(params: dict[str, Any]) -> None:
        params.update(linear_start=0.001, linear_end=0.02, timesteps=500, scale_factor=0.2)
        params["unet_config"]["params"]["num_head_channels"] = 32
        params["cond_stage_config"]["params"]["layer"] = "last"

    write_yaml(tmp_path / "model.yaml", "sd2", change)
    checkpoint = outline(linked("sd2"))
    scheduler = checkpoint.scheduler
    assert (scheduler.beta_start, scheduler.beta_end, scheduler.num_train_timesteps) == (0.001, 0.02, 500)
    assert checkpoint.configs["unet"].attention_head_dim == (2, 4)
    assert checkpoint.configs["text_encoder"].num_hidden_layers == checkpoints.TOY_TEXT_LAYERS + 1
    assert checkpoint.configs["vae"].scaling_factor == 0.2


def test_a_folder_of_configs_is_taken_as_it_is(files: Callable[[str], Path], tmp_path: Path) -> None:
    model = checkpoints.load_toy(files("sd2_v"), "sd2_v", weights=False)
    folder = checkpoints.write_configs_of(tmp_path / "configs", model)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    data = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**data, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}))
    checkpoint = outline(files("sd2"), config=folder)
    assert (checkpoint.configs["unet"], checkpoint.configs["vae"]) == (model.unet.config, model.vae.config)
    assert (checkpoint.sampler, checkpoint.scheduler.timestep_spacing) == ("euler", "trailing")
    assert checkpoint.tokenizer_folder == folder / "tokenizer"
    with pytest.raises(
        sdjax.CheckpointError, match=r"with the configs in .*configs: the tensors are not those.*left over: "
    ):
        outline(files("sd1"), config=folder)
    with pytest.raises(sdjax.CheckpointError, match="no such folder"):
        outline(files("sd2"), config=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(surprise=1), "unknown key 'surprise'"),
        (lambda p: p.update(beta_schedule="cosine"), "beta_schedule = 'cosine' is not supported"),
        (lambda p: p.update(parameterization="w"), "parameterization = 'w'"),
        (lambda p: p.update(linear_start="low"), "linear_start = 'low', expected a number"),
        (lambda p: p.update(linear_end=float("nan")), "linear_end = nan, expected a number"),
        (lambda p: p.update(scale_factor=10**400), "a number of 401 letters, '10+\\.\\.\\.;"),
        (lambda p: p.update(timesteps=float("inf")), "timesteps = inf, expected a number"),
        (lambda p: p.update(timesteps=float("nan")), "timesteps = nan, expected a number"),
        (lambda p: p.update(timesteps=10_000_000), "timesteps = 10000000, expected a whole number from 1 to 100000"),
        (lambda p: p.update(timesteps=0), "timesteps = 0, expected a whole number"),
        (lambda p: p.update(timesteps=999.5), "timesteps = 999.5, expected a whole number"),
        (lambda p: p["unet_config"]["params"].update(in_channels=9), "in_channels is 9, but .* 4"),
        (lambda p: p["unet_config"]["params"].update(num_heads="8"), "num_heads, num_head_channels = '8'"),
        (lambda p: p["unet_config"].update(target="a.DiT"), r"unet_config is a 'DiT', expected UNetModel"),
        (lambda p: p["first_stage_config"]["params"]["ddconfig"].update(ch=128), r"ddconfig\.ch is 128, but .* 32"),
        (
            lambda p: p.update(cond_stage_config={"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}),
            "text encoder is 'FrozenCLIPEmbedder'",
        ),
        (lambda p: p.clear(), "'unet_config' is missing"),
    ],
)
def test_a_config_of_another_model_or_of_what_is_not_known_is_an_error(
    change: Callable[[dict[str, Any]], Any], message: str, linked: Callable[[str], Path], tmp_path: Path
) -> None:
    write_yaml(tmp_path / "model.yaml", "sd2", change)
    with pytest.raises(sdjax.CheckpointError, match=f"model.yaml.*: .*{message}"):
        outline(linked("sd2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds list"),
        ("model: {target: sgm.models.diffusion.DiffusionEngine, params: {}}", "the model is a DiffusionEngine"),
        ("a: b: c", "is not YAML"),
        (
            f"model: {{target: a.LatentDiffusion, params: {{surprise: 0x{'f' * 5000}}}}}",
            r"model.yaml is not YAML .*line 1: a number of 5002 letters",
        ),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        (" " * (1 << 20) + "a", "more than 65536 bytes"),
        ("[" * 400, "is not YAML"),
    ],
)
def test_what_is_no_config_at_all_is_an_error(
    text: str, message: str, linked: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(sdjax.CheckpointError, match=message):
        outline(linked("sd2"))


def test_carried_texts_that_lie_in_each_other_are_an_error(files: Callable[[str], Path], tmp_path: Path) -> None:
    texts = {f"sdjax:{path}": "{}" for path in ("unet/config.json", "a.json", "a.json/b.json")}
    file = changed(files("sd1"), lambda tensors: None, tmp_path / "model.safetensors", **texts)
    with pytest.raises(sdjax.CheckpointError, match=r"model\.safetensors: .*'a\.json' both as a file and as a folder"):
        outline(file)


# --- Digests ---


def test_the_digest_is_the_files_own_unless_something_is_said_otherwise(
    linked: Callable[[str], Path], tmp_path: Path
) -> None:
    file = linked("sd1")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    plain = read_file(file)
    assert (plain.digest, plain.file_digest) == (sha256, sha256)
    config = write_yaml(tmp_path / "model.yaml", "sd1")
    said = [read_file(file), read_file(file, prediction_type="v_prediction"), read_file(file, config=config)]
    assert {checkpoint.file_digest for checkpoint in said} == {sha256}
    assert said[0].digest == said[2].digest
    assert len({plain.digest, said[0].digest, said[1].digest}) == 3
    assert sdjax.load(file, weights=False).digest == ""


# --- What is refused ---


def without(start: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(start)]:
            del tensors[name]

    return change


def with_input(channels: int) -> Callable[[dict[str, np.ndarray]], None]:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    return lambda tensors: tensors.update({name: np.zeros((32, channels, 3, 3), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("first_stage_model."), "holds no VAE .*: give one as vae"),
        (without("cond_stage_model."), "holds no text encoder .*: it is not a whole checkpoint"),
        (
            without("model.diffusion_model.out.2.weight"),
            r"model\.safetensors: model\.diffusion_model\.out\.2\.weight is m",
        ),
        (
            lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, 0, 3, 3), np.float32)}),
            r"model\.safetensors: in_channels = 0 is not positive",
        ),
        (without("model.diffusion_model.out.2.bias"), r"missing: model\.diffusion_model\.out\.2\.bias"),
        (lambda t: t.update({"surprise.weight": np.zeros(1, np.float32)}), r"left over: surprise\.weight"),
        (
            lambda t: t.update({"model_ema.surprise": np.zeros(1, np.float32)}),
            r"left over: model_ema\.surprise",
        ),
        (with_input(8), "in_channels is 8; it is that of InstructPix2Pix"),
        (with_input(7), "in_channels is 7; it is that of upscaler"),
        (with_input(6), "in_channels is 6. Expected one of 4, 9, 5"),
        (without("model."), "no checkpoint .*: found VAE"),
        (
            lambda t: t.update({"conditioner.embedders.1.model.ln_final.bias": np.zeros(1, np.float32)}),
            "Stable Diffusion XL",
        ),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_by_name(
    change: Callable[[dict[str, np.ndarray]], None], message: str, files: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises((sdjax.CheckpointError, sdjax.ConfigError), match=message):
        outline(changed(files("sd1"), change, tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "LoRA"),
        ({"control_model.input_hint_block.0.weight": (4, 3, 3, 3)}, "ControlNet"),
        ({"emb_params": (2, 768)}, "textual inversion"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "Flux"),
        ({"surprise": (1,)}, "unknown"),
    ],
)
def test_files_of_other_kinds_are_refused_by_name(
    tensors: Mapping[str, tuple[int, ...]], kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, file)
    with pytest.raises(sdjax.CheckpointError, match=f"no checkpoint of Stable Diffusion 1 or 2: found .*{kind}"):
        sdjax.load(file)


def test_arguments_that_say_nothing_of_a_model_are_errors(sd1_folder: Path, files: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="config and ema are not for it"):
        sdjax.load(sd1_folder, ema=True)
    with pytest.raises(ValueError, match=r"variant = 'fp16': .*sd1\.safetensors is a single file"):
        sdjax.load(files("sd1"), variant="fp16")
    with pytest.raises(ValueError, match="not on a hub"):
        sdjax.load(sd1_folder, revision="main")
    with pytest.raises(ValueError, match="prediction_type = 'v': expected one of epsilon"):
        sdjax.load(files("sd2"), prediction_type="v")
    with pytest.raises(ValueError, match="vae_dtype = 'int8'"):
        sdjax.load(sd1_folder, vae_dtype="int8")


def test_a_toy_of_the_other_kind_is_what_the_folder_says(tmp_path: Path) -> None:
    model = sdjax.load(toys.write_toy(tmp_path, toys.SD_TURBO), weights=False)
    assert (model.sampler, model.scheduler.timestep_spacing) == ("euler", "trailing")
