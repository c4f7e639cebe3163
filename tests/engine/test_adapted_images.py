"""Images with LoRAs, hypernetworks and embeddings: what they are, and that neighbours change no bit of them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.adapters.lora import apply, read_lora
from sdjax.engine.passes import Bucket
from sdjax.engine.planner import LORA_MODES
from tests import pickles
from tests.results import make, same, taken_for_the_first

BATCH = 2
WIDTH = 32  # of the toy's text, and of its UNet's only level


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def lora(seed: int, rank: int, **modules: tuple[int, int]) -> dict[str, np.ndarray]:
    """A file of kohya's: modules and their (outputs, inputs)."""
    tensors = {}
    for place, (module, (outputs, inputs)) in enumerate(modules.items()):
        tensors[f"{module}.lora_up.weight"] = _normal(seed + 2 * place, outputs, rank) / 2
        tensors[f"{module}.lora_down.weight"] = _normal(seed + 2 * place + 1, rank, inputs) / inputs**0.5
        tensors[f"{module}.alpha"] = np.array(rank, np.float32)
    return tensors


BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
INK = lora(1, 2, **{f"{BLOCK}_attn1_to_q": (32, 32), f"{BLOCK}_attn2_to_v": (32, 32)})
CHALK = lora(
    11, 3, **{f"{BLOCK}_attn1_to_out_0": (32, 32), "lora_te_text_model_encoder_layers_0_self_attn_v_proj": (32, 32)}
)
DORA = {**INK, f"{BLOCK}_attn2_to_v.dora_scale": np.abs(_normal(21, 32, 1)) * 4}

# Of a layer that has no bias, and nothing else is changed.
_TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
BIASED = {
    f"{_TO_Q}.lora_A.weight": _normal(22, 2, WIDTH),
    f"{_TO_Q}.lora_B.weight": np.zeros((WIDTH, 2), np.float32),
    f"{_TO_Q}.lora_B.bias": 20 * _normal(23, WIDTH),
}


def hypernetwork(seed: int) -> dict[object, object]:
    """A1111's, of the toy's width."""
    network = {
        "linear.0.weight": _normal(seed, 2 * WIDTH, WIDTH) / WIDTH**0.5,
        "linear.0.bias": _normal(seed + 1, 2 * WIDTH),
        "linear.2.weight": _normal(seed + 2, WIDTH, 2 * WIDTH) / WIDTH**0.5,
        "linear.2.bias": _normal(seed + 3, WIDTH),
    }
    return {WIDTH: (network, network), "activation_func": "relu", "name": "oil", "step": 10}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> sdjax.Library:
    root = tmp_path_factory.mktemp("adapters")
    for folder in ("loras", "hypernetworks", "embeddings"):
        (root / folder).mkdir()
    for name, tensors in (("ink", INK), ("chalk", CHALK), ("dora", DORA), ("biased", BIASED)):
        save_file(tensors, root / "loras" / f"{name}.safetensors")
    pickles.write(root / "hypernetworks" / "oil.pt", hypernetwork(31))
    save_file({"emb_params": _normal(41, 2, WIDTH)}, root / "embeddings" / "castle.safetensors")
    return sdjax.Library(root / "loras", root / "hypernetworks", root / "embeddings", pickled=True)


def job(number: int, prompt: str, **fields: object) -> sdjax.Job:
    return sdjax.Job(
        prompt=prompt, seed=number, steps=2 + number % 2, guidance_scale=2.0 + number, sampler="euler", **fields
    )


JOBS = [
    job(0, "a red apple"),
    job(1, "a red apple <lora:ink:0.8>"),
    job(2, "a cat", loras="ink:0.8"),
    job(3, "a cat <lora:ink:0.8><lora:chalk:1:0.5>"),
    job(4, "a dog <lora:chalk:1>"),
    job(5, "a dog", loras="chalk:0.5:1"),
    job(6, "a cat <hypernet:oil:0.5>"),
    job(7, "a dog <hypernet:oil:1>"),
    job(8, "a castle and a cat"),
    job(9, "a cat", negative_prompt="castle"),
    job(10, "a cat <lora:dora:1>"),
    job(11, "a castle <lora:ink:0.8><hypernet:oil:1>"),
    job(12, "a cat <lora:biased:1>"),
]

# A DoRA, and what is no LoRA, is done in one way only.
BY_MODE = {"merged": JOBS, "batched": [JOBS[1], *JOBS[3:6], *JOBS[10:]]}


def engine_of(model, library, mode="merged", devices=4, **options) -> sdjax.Engine:
    devices = jax.local_devices()[:devices]
    return sdjax.Engine(model, batch_size=BATCH, devices=devices, library=library, lora_mode=mode, **options)


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Bucket]]:
    """What each engine has compiled so far."""
    return {mode: [] for mode in LORA_MODES}


@pytest.fixture(scope="module")
def engines(tiny, library, compiled) -> dict[str, sdjax.Engine]:
    return {mode: engine_of(tiny, library, mode, 1, on_compile=told.append) for mode, told in compiled.items()}


@pytest.fixture(scope="module")
def images_by_mode(engines) -> dict[str, list[sdjax.Result]]:
    return {mode: make(engine, BY_MODE[mode]) for mode, engine in engines.items()}


@pytest.fixture(scope="module")
def engine(engines) -> sdjax.Engine:
    return engines["merged"]


@pytest.fixture(scope="module")
def images(images_by_mode) -> list[sdjax.Result]:
    return images_by_mode["merged"]


@pytest.mark.parametrize("mode", LORA_MODES)
def test_images_depend_on_neither_order_nor_neighbours_nor_devices(tiny, library, mode, engines, images_by_mode):
    engine, images = engines[mode], images_by_mode[mode]
    assert all(result.finite for result in images)
    jobs = BY_MODE[mode]
    assert same(make(engine, jobs[::-1]), images[::-1])
    assert same(make(engine, jobs[1::3]), images[1::3])
    some = slice(2, None, 4) if mode == "merged" else slice(None, None, 3)
    assert same(make(engine_of(tiny, library, mode, devices=4), jobs[some]), images[some])


@pytest.mark.slow
@pytest.mark.parametrize("mode", LORA_MODES)
def test_no_image_depends_on_the_number_of_devices(tiny, library, mode, images_by_mode):
    assert same(make(engine_of(tiny, library, mode, devices=4), BY_MODE[mode]), images_by_mode[mode])


def test_once_merged_adapters_are_there_no_more_jobs_are_held_than_can_be_worked_on(tiny, library):
    engine = engine_of(tiny, library, devices=1)
    make(engine, JOBS[1:2])
    many = (dataclasses.replace(JOBS[1], seed=seed) for seed in range(100))
    assert taken_for_the_first(engine, many) == 5 * engine.images_per_batch  # as without adapters


def test_each_adapter_changes_its_image(engine, images):
    for index, result in enumerate(images):
        plain = dataclasses.replace(
            JOBS[index], prompt=JOBS[index].prompt.partition("<")[0].replace("castle", "photo"), negative_prompt="",
            loras="",
        )  # fmt: skip
        if plain != JOBS[index]:
            [without] = make(engine, [plain])
            assert np.abs(result.image.astype(int) - without.image.astype(int)).mean() > 0.5


def test_merged_or_beside_the_weights_the_images_are_the_same_but_for_rounding(images_by_mode):
    for merged, batched in zip(images_by_mode["merged"][3:6], images_by_mode["batched"][1:4], strict=True):
        assert (merged.metadata["lora_mode"], batched.metadata["lora_mode"]) == ("merged", "batched")
        assert merged.metadata["id"] != batched.metadata["id"]
        assert np.abs(merged.image.astype(int) - batched.image.astype(int)).max() <= 1


def test_a_merged_image_is_that_of_a_model_with_the_changed_weights(tiny, library, engine, images):
    file = Path(str(library.loras)) / "chalk.safetensors"
    chalk = read_lora(file, {name: tiny.configs[name] for name in tiny.family.adapted_networks})
    changed = dataclasses.replace(tiny, params=jax.tree.map(np.asarray, apply(tiny.params, chalk, 1.0, 0.5)))
    whole = engine._execution.params
    params = jax.device_put({**whole, **changed.params}, jax.tree.leaves(whole)[0].sharding)
    engine._execution.params = engine._execution.with_kernels(params)
    try:
        [expected] = make(engine, [dataclasses.replace(JOBS[5], loras="")])
    finally:
        engine._execution.params = whole
    assert np.abs(images[5].image.astype(int) - expected.image.astype(int)).max() <= 1


def test_metadata_say_what_was_applied(images, library):
    assert images[0].metadata["adapters_applied"] == ""
    assert "lora_mode" not in images[0].metadata
    [ink, chalk] = json.loads(images[3].metadata["adapters_applied"])
    assert (ink["kind"], ink["name"], ink["weight"], ink["text_encoder_weight"]) == ("lora", "ink", 0.8, 0.8)
    assert (chalk["name"], chalk["weight"], chalk["text_encoder_weight"]) == ("chalk", 0.5, 1.0)
    assert len(ink["digest"]) == 64 and ink["digest"] != chalk["digest"]
    [lora, oil, castle] = json.loads(images[11].metadata["adapters_applied"])
    assert [each["kind"] for each in (lora, oil, castle)] == ["lora", "hypernetwork", "embedding"]
    assert (oil["name"], oil["weight"], castle["name"]) == ("oil", 1.0, "castle")


def test_what_has_no_weight_is_not_applied_but_has_to_be_there(engine):
    task = engine.prepare(job(1, "a cat <lora:ink:0><hypernet:oil:0>"))
    assert task.metadata["adapters_applied"] == "" and "lora_mode" not in task.metadata
    with pytest.raises(sdjax.AdapterError, match=r"lora 'inc'.*did you mean 'ink'"):
        engine.prepare(job(1, "a cat <lora:inc:0>"))


def test_a_lora_is_known_by_the_name_that_its_trainer_gave_it_too(tiny, tmp_path):
    save_file(INK, tmp_path / "v1.safetensors", metadata={"ss_output_name": "fine ink"})
    save_file(CHALK, tmp_path / "v2.safetensors")
    engine = engine_of(tiny, sdjax.Library(tmp_path), devices=1)
    ids = {engine.prepare(job(1, "a", loras=f"{name}:1")).batch_key for name in ("v1", "fine ink")}
    assert len(ids) == 1


def test_safetensors_go_before_a_pickle_of_the_same_name_and_folders_of_peft_go_by_their_own(tiny, tmp_path):
    save_file(INK, tmp_path / "ink.safetensors")
    (tmp_path / "ink.pt").write_bytes(b"the same, pickled")
    (tmp_path / "style").mkdir()
    save_file(CHALK, tmp_path / "style" / "adapter_model.safetensors")
    engine = engine_of(tiny, sdjax.Library(tmp_path), devices=1)
    task = engine.prepare(job(1, "a", loras="ink:1; style:1"))
    assert [each["name"] for each in json.loads(task.metadata["adapters_applied"])] == ["ink", "style"]


def test_another_content_under_the_same_name_is_another_id(tiny, library, tmp_path):
    save_file(INK, tmp_path / "first.safetensors")
    save_file(CHALK, tmp_path / "second.safetensors")
    engine = engine_of(tiny, sdjax.Library(tmp_path), devices=1)
    before = engine.prepare(job(1, "a cat", loras="first:1")).id
    save_file(CHALK, tmp_path / "first.safetensors")
    assert engine_of(tiny, sdjax.Library(tmp_path), devices=1).prepare(job(1, "a cat", loras="first:1")).id != before


def test_other_adapters_and_weights_do_not_compile_another_program(engines, images_by_mode, compiled):
    before = {mode: list(buckets) for mode, buckets in compiled.items()}
    for engine in engines.values():
        make(engine, [job(1, "a cat <lora:ink:1>"), job(3, "a dog <lora:ink:0.3>"), job(5, "a dog", loras="ink:-1")])
    assert compiled == before
    # Merged, LoRAs of any layers and rank are one program; one that brings a bias is another of the same bucket.
    assert [(len(before[mode]), len(set(before[mode]))) for mode in ("merged", "batched")] == [(5, 4), (5, 4)]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt": "a <lora:chark:1>"}, "there is no lora 'chark' in .*; did you mean 'chalk'"),
        ({"prompt": "a", "hypernetworks": "water"}, "there is no hypernetwork 'water' in "),
        ({"prompt": "a <hypernet:oil:x>"}, "the weight 'x': expected a number"),
        ({"prompt": "a", "negative_prompt": "<lora:ink:1>"}, "in a negative prompt an adapter is read as text"),
    ],
)
def test_adapters_that_can_not_be_had_are_errors(engine, fields, message):
    with pytest.raises(ValueError, match=message):
        engine.prepare(sdjax.Job(seed=1, steps=2, sampler="euler", **fields))


def test_without_folders_there_are_no_adapters(tiny):
    engine = engine_of(tiny, sdjax.Library(), devices=1)
    with pytest.raises(sdjax.AdapterError, match=r"'ink': no folder of such files is given; set library\.loras"):
        engine.prepare(job(1, "a <lora:ink:1>"))
    with pytest.raises(sdjax.CheckpointError, match=r"library\.loras = nowhere: there is no such folder"):
        engine_of(tiny, sdjax.Library(loras="nowhere"), devices=1)
    assert engine.prepare(job(8, "a castle and a cat")).metadata["adapters_applied"] == ""
