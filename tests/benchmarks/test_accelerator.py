"""The benchmark of accelerators looks at the engine's programs, which compile for TPUs without one."""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator, compiled_text
from benchmarks.accelerator import PROGRAMS, Case, chip_of, model_named, table
from sdjax.models import flash_attention


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """Flax's own norms promote bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_the_loop_gives_latents() -> None:
    workload = PROGRAMS["loop"](model_named("sd15", "bfloat16"), 2)
    latents, previews = jax.eval_shape(workload.program.function, workload.params, workload.inputs)
    assert (latents.shape, latents.dtype) == ((2, 64, 64, 4), jnp.float32)
    assert previews.noisy.shape == (0, 2, 64, 64, 4)


def test_the_decoder_gives_images() -> None:
    workload = PROGRAMS["decode"](model_named("sd15", "bfloat16"), 1)
    images, finite = jax.eval_shape(workload.program.function, workload.params, workload.inputs)
    assert (images.shape, images.dtype, finite.shape) == ((1, 512, 512, 3), jnp.uint8, (1,))


def test_nothing_of_a_model_is_in_memory_and_all_of_it_is_bfloat16() -> None:
    leaves = jax.tree.leaves(model_named("sd15", "bfloat16").params)
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_a_device_of_unknown_peaks_is_named() -> None:
    assert chip_of("TPU v5 lite") == accelerator.Chip(819, 197)
    with pytest.raises(LookupError, match="TPU v99: its peaks are not in CHIPS"):
        chip_of("TPU v99")


def test_the_table_has_the_columns_that_there_are() -> None:
    row = {**Case("unet", "sd15", 8)._asdict(), "device": "v5e:2x2", "tflop": 6.3, "largest": []}
    assert table([row]).splitlines()[0] == "| program | model | batch | device | tflop |"
    assert table([row]).splitlines()[2] == "| unet | sd15 | 8 | v5e:2x2 | 6.30 |"


@pytest.mark.slow
def test_with_a_device_the_programs_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "CHIPS", {"cpu": accelerator.Chip(1, 1)})
    monkeypatch.setattr(accelerator, "ROUNDS", 2)
    rows = accelerator.measured([Case(program, "emoji", 1) for program in PROGRAMS], "float32")
    assert [row["program"] for row in rows] == list(PROGRAMS)
    assert all(row["ms"] > 0 and row["images_s"] > 0 and row["flop_use"] > 0 for row in rows)


@pytest.mark.accelerator
@pytest.mark.parametrize("topology", accelerator.TOPOLOGIES)
@pytest.mark.parametrize(
    ("tokens", "keys", "heads", "width"),
    [(4096, 4096, 8, 40), (9216, 9216, 5, 64), (1024, 1024, 8, 80), (256, 256, 8, 160), (4096, 4096, 1, 512),
     (1500, 300, 2, 64)],
)  # fmt: skip
def test_splash_attention_compiles_and_its_traffic_is_that_of_the_formula(
    topology: str, tokens: int, keys: int, heads: int, width: int
) -> None:
    pytest.importorskip("libtpu", reason="needs libtpu: make accelerator")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    query, key = (
        jax.ShapeDtypeStruct((2, length, heads, width), jnp.bfloat16, sharding=SingleDeviceSharding(chip))
        for length in (tokens, keys)
    )
    [kernel] = compiled_text.kernels(jax.jit(flash_attention.splash).lower(query, key, key).compile().as_text())
    filled, filled_keys = flash_attention.padded_length(tokens), flash_attention.padded_length(keys)
    assert (kernel.query, kernel.keys) == ((2 * heads, filled, width), filled_keys)
    lanes = -(-width // 128) * 128
    once = 2 * heads * 2 * (filled * (width + lanes) + 2 * filled_keys * width)
    assert kernel.traffic >= once
    assert kernel.traffic == once or kernel.block_kv < filled_keys


@pytest.mark.accelerator
@pytest.mark.parametrize("topology", accelerator.TOPOLOGIES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_compile_for_tpus_and_move_nothing_between_these_and_their_hosts(
    program: str, topology: str
) -> None:
    pytest.importorskip("libtpu", reason="needs libtpu: make accelerator")
    found = accelerator.counted(Case(program, "emoji", 4), "bfloat16", topology, None)
    assert found["roofline_ms"] >= found["arithmetic_ms"] > 0
