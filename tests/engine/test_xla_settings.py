"""Settings of JAX and XLA that may decide bits change ids; those that are pinned or have no say do not."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion.noise import start_noise, to_seed_words
from sdjax.engine import xla_settings
from sdjax.engine.engine import Engine
from tests import flips
from tests.flips import Flip, Made

ROOT = Path(__file__).parents[2]

DECIDING_FLAGS = (
    "--xla_cpu_enable_fast_math=true",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_prefer_vector_width=128",
    "--xla_cpu_max_isa=SSE4_2",
    "--xla_a_flag_of_which_nobody_thought",
)


def id_of(engine: Engine) -> str:
    return engine.prepare(sdjax.Job(prompt="a red apple", seed=1, steps=2, sampler="euler")).id


def new_id(model: sdjax.Model) -> str:
    return id_of(Engine(model, batch_size=1, devices=jax.devices()[:1]))


def test_nothing_is_written_of_a_plain_run():
    assert xla_settings.in_force({}) == {}


@pytest.mark.parametrize("flag", DECIDING_FLAGS)
def test_flags_of_xla_change_ids(tiny, monkeypatch, flag):
    plain = new_id(tiny)
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flag}")
    assert new_id(tiny) != plain


@pytest.mark.parametrize(
    "flags",
    [
        "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1",
        "--xla_dump_to=/somewhere --xla_dump_hlo_as_text",
        "  ",
    ],
)
def test_flags_that_decide_no_bits_are_left_out(flags):
    assert xla_settings.in_force({"XLA_FLAGS": flags}) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--xla_a=1 --xla_b", {"xla_a": "1", "xla_b": ""}),
        ("--xla_a='x y'\n\t--xla_b=\"2\"", {"xla_a": "x y", "xla_b": "2"}),
        ("--xla_a=1 --xla_a=2", {"xla_a": "1 2"}),
        ("--xla_a='1", {"xla_a": "'1"}),
        ("nowhere.txt", {"nowhere.txt": ""}),
    ],
)
def test_flags_are_read_as_xla_reads_them(text, expected):
    assert xla_settings.in_force({"XLA_FLAGS": text}) == expected


def test_flags_in_a_file_count_as_if_they_were_said(tmp_path):
    (tmp_path / "flags").write_text("--xla_a=1\n--xla_dump_to=x\n--xla_b=2\n")
    assert xla_settings.in_force({"XLA_FLAGS": str(tmp_path / "flags")}) == {"xla_a": "1", "xla_b": "2"}


def test_variables_of_the_libraries_below_count_too():
    deciding = {"LIBTPU_INIT_ARGS": "--xla_jf_x=1", "NVIDIA_TF32_OVERRIDE": "1", "TF_CUDNN_DETERMINISTIC": "1"}
    others = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDNN_LOGINFO_DBG": "1",
        "TF_X": "1",
    }
    assert xla_settings.in_force({**deciding, **others, "CUBLAS_WORKSPACE_CONFIG": ""}) == deciding


def test_every_setting_of_jax_stands_in_one_table():
    listed = [name for names in xla_settings.JAX_WITHOUT_SAY.values() for name in names]
    assert len(listed) == len(set(listed)) and not set(listed) & xla_settings.JAX_DEFAULTS.keys()
    assert jax.config.values.keys() == {*listed, *xla_settings.JAX_DEFAULTS}


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_disable_most_optimizations", True), ("jax_softmax_custom_jvp", True), ("jax_optimization_level", "O1")],
)
def test_settings_of_jax_change_ids(tiny, name, value):
    plain, before = new_id(tiny), jax.config.values[name]
    try:
        jax.config.update(name, value)
        assert new_id(tiny) != plain
    finally:
        jax.config.update(name, before)
    assert new_id(tiny) == plain


def test_a_setting_of_this_thread_alone_changes_ids_too(tiny):
    plain = new_id(tiny)
    with jax.disable_jit():
        assert new_id(tiny) != plain


def test_what_is_in_force_can_be_read_in_the_metadata(tiny, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=true")
    engine = Engine(tiny, batch_size=1, devices=jax.devices()[:1])
    metadata = engine.prepare(sdjax.Job(prompt="", seed=1, steps=1, sampler="euler")).metadata
    assert json.loads(metadata["settings"]) == {"xla_cpu_enable_fast_math": "true"}
    assert {"jax", "jaxlib", "flax", "numpy", "tokenizers", "transformers"} <= metadata.keys()


def test_noise_is_the_same_whatever_generator_is_asked_for(tiny):
    words = jnp.asarray(to_seed_words(7))[None]
    with xla_settings.pinned():
        expected = np.asarray(start_noise(words, (5, 7, 3)))
    plain = new_id(tiny)
    with jax.threefry_partitionable(False), jax.enable_x64(True), jax.default_prng_impl("rbg"):
        assert new_id(tiny) == plain
        with xla_settings.pinned():
            assert np.array_equal(np.asarray(start_noise(words, (5, 7, 3))), expected)


# --- in processes of their own ---


def made(model: Path, many: Sequence[Flip], base: Mapping[str, str], **variables: str) -> list[Made]:
    """What becomes of flips, over two programs side by side."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.flips", str(model)],
            cwd=ROOT, env={**kept, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(min(2, len(many)))
    ]  # fmt: skip
    for number, program in enumerate(programs):
        assert program.stdin
        json.dump({"flips": many[number :: len(programs)], "base": base}, program.stdin)
        program.stdin.close()
    lines = [[Made(*json.loads(line)) for line in program.stdout or ()] for program in programs]
    assert [program.wait() for program in programs] == [0] * len(programs)
    found: list[Made] = [Made()] * len(many)
    for number, each in enumerate(lines):
        found[number :: len(programs)] = each
    return found


@pytest.mark.slow
def test_whatever_setting_changes_bits_changes_ids(tiny_folder, tmp_path):
    plain = dict(zip(("device", "host"), made(tiny_folder, [Flip("none"), Flip("none", jobs="host")], {}), strict=True))
    assert not any(each.error for each in plain.values())
    base = {jobs: each.ids for jobs, each in plain.items()}
    many = flips.listed_flips(str(tmp_path))
    results = dict(zip(many, made(tiny_folder, many, base), strict=True))
    left_out = {name for name in jax.config.values if flips.flipped(name) is None} - flips.without_say()
    assert left_out == set(flips.NOT_FLIPPED)
    for flip, found in results.items():
        told = f"{flip}: {found}"
        assert found.error or found.ids != base["device"] or found.bits == plain["device"].bits, told
        if flip.kind == "jax" and flip.name not in flips.without_say():
            assert found.error or found.ids != base["device"], told
    # Most of them run, so that this says something.
    assert sum(not found.error for found in results.values()) > 0.8 * len(results), results
    processor = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3", "OPENBLAS_CORETYPE": "Prescott"}
    assert made(tiny_folder, [Flip("none", jobs="host")], {}, **processor) == [plain["host"]]
    threefry = [Flip("none"), Flip("none", jobs="host")]
    assert made(tiny_folder, threefry, {}, JAX_THREEFRY_PARTITIONABLE="0") == list(plain.values())
    [slow] = made(tiny_folder, [Flip("none")], base, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert slow.ids != base["device"]
