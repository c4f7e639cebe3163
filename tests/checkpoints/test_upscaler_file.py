"""Upscalers from the files in which they are published."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.checkpoints.tensors import CheckpointError
from sdjax.checkpoints.upscaler_file import UpscalerNetwork, read_upscaler
from sdjax.models import ConfigError
from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig
from tests import pickles
from tests.golden import upscalers

Arrays = dict[str, np.ndarray]

RRDB = RRDBNetConfig(blocks=2, features=6, growth=4)
COMPACT = CompactConfig(convolutions=2, features=6, shuffle=2, scale=2)


def read_state(file: Path, state: Arrays) -> UpscalerNetwork:
    save_file(state, file)
    return read_upscaler(file)


def renamed(config: RRDBNetConfig, name: Callable[[str, RRDBNetConfig], str]) -> Arrays:
    return {name(each, config): array for each, array in upscalers.state(config).items()}


def check_params(upscaler: UpscalerNetwork, config: UpscalerConfig) -> None:
    """The parameters are those of the state, convolutions as HWIO, those of all blocks along the first axis."""
    assert upscaler.config == config
    state = upscalers.state(config)
    leaves = {}
    for keys, leaf in jax.tree.leaves_with_path(upscaler.params):
        *modules, last = (key.key for key in keys)
        end = "bias" if last == "bias" else "weight"
        if modules[0] == "body":
            for block, values in enumerate(leaf):
                leaves[".".join(["body", str(block), *modules[1:], end])] = values
        else:
            leaves[".".join([re.sub(r"^body_", "body.", modules[0]), end])] = leaf
    assert leaves.keys() == state.keys()
    for name, leaf in leaves.items():
        expected = state[name].transpose(2, 3, 1, 0) if state[name].ndim == 4 else state[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


@pytest.mark.parametrize(
    ("form", "doublings"),
    [
        (lambda name, _: name, 2),
        (upscalers.in_esrgan, 2),
        (upscalers.in_old_esrgan, 1),
        (upscalers.in_old_esrgan, 2),
        (upscalers.in_old_esrgan, 3),
    ],
)
def test_esrgan_is_read_under_the_names_of_all_times(
    form: Callable[[str, RRDBNetConfig], str], doublings: int, tmp_path: Path
) -> None:
    config = RRDBNetConfig(2, 6, 4, doublings)
    upscaler = read_state(tmp_path / "it.safetensors", renamed(config, form))
    check_params(upscaler, config)
    assert upscaler.scale == 2**doublings


def test_the_oldest_names_are_places_in_a_list() -> None:
    names = set(renamed(RRDBNetConfig(23, 6, 4), upscalers.in_old_esrgan))
    written = {"model.0", "model.1.sub.0.RDB1.conv1.0", "model.1.sub.22.RDB3.conv5.0", "model.1.sub.23", "model.3",
               "model.6", "model.8", "model.10"}  # fmt: skip
    assert {f"{name}.weight" for name in written} <= names


@pytest.mark.parametrize(
    "config",
    [RRDB, RRDBNetConfig(1, 6, 4, 2, 2), COMPACT, CompactConfig(0, 6, 4, 4)],
    ids=["rrdb", "rrdb unshuffled by 2", "compact", "compact of two convolutions"],
)
def test_a_pickled_file_is_read_where_that_is_allowed(config: UpscalerConfig, tmp_path: Path) -> None:
    file = pickles.write(tmp_path / "it.pth", {"params": upscalers.state(config)})
    check_params(read_upscaler(file, pickled=True), config)
    with pytest.raises(CheckpointError, match=r"it\.pth is a pickled file"):
        read_upscaler(file)


@pytest.mark.parametrize("averages_first", [True, False])
def test_averages_are_taken_where_there_are_some(averages_first: bool, tmp_path: Path) -> None:
    state = upscalers.state(COMPACT)
    others = {name: array + 1 for name, array in state.items()}
    parts = {"params_ema": state, "params": others}
    file = pickles.write(tmp_path / "it.pth", parts if averages_first else dict(reversed(parts.items())))
    check_params(read_upscaler(file, pickled=True), COMPACT)


@pytest.mark.parametrize("config", [RRDB, RRDBNetConfig(1, 6, 4, 1), COMPACT, CompactConfig(2, 6, 4, 3)])
def test_ncnns_files_are_read(config: UpscalerConfig, tmp_path: Path) -> None:
    check_params(read_upscaler(upscalers.write_ncnn(tmp_path / "it.param", config)), config)


def test_ncnns_files_are_read_by_the_name_of_the_second_too(tmp_path: Path) -> None:
    check_params(read_upscaler(upscalers.write_ncnn(tmp_path / "it.param", COMPACT).with_suffix(".bin")), COMPACT)


def test_ncnns_half_precision_is_read(tmp_path: Path) -> None:
    upscaler = read_upscaler(upscalers.write_ncnn(tmp_path / "it.param", COMPACT, half=True))
    kernel = upscalers.state(COMPACT)["body.0.weight"].astype(np.float16).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(upscaler.params["body_0"]["kernel"], kernel.astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_have_the_dtype_that_is_asked_for(dtype: jnp.dtype, tmp_path: Path) -> None:
    upscaler = read_upscaler(upscalers.write(tmp_path / "it.safetensors", RRDB), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(upscaler.params)} == {jnp.dtype(dtype)}


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    file = upscalers.write(tmp_path / "it.safetensors", RRDB)
    assert read_upscaler(file).digest == hashlib.sha256(file.read_bytes()).hexdigest()
    text = upscalers.write_ncnn(tmp_path / "it.param", CompactConfig(2, 6, 4, 4))
    first = read_upscaler(text).digest
    assert read_upscaler(text.with_suffix(".bin")).digest == first
    # The numbers are the same, what is done with them is not.
    upscalers.write_ncnn(text, CompactConfig(2, 6, 4, 2))
    assert read_upscaler(text).digest != first


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda state: {each: array for each, array in state.items() if each != name}


def replaced(name: str, *shape: int, dtype: type = np.float32) -> Callable[[Arrays], Arrays]:
    return lambda state: state | {name: np.zeros(shape, dtype)}


# By what is done to a state, and what is said then.
UNSOUND = {
    "missing": (RRDB, without("body.1.rdb2.conv3.bias"), "missing: body.1.rdb2.conv3.bias"),
    "missing first": (RRDB, without("conv_first.weight"), "conv_first.weight is missing"),
    "left over": (RRDB, replaced("body.0.rdb1.conv1x1.weight", 6, 6, 1, 1), "left over: body.0.rdb1.conv1x1.weight"),
    "misshapen": (RRDB, replaced("conv_hr.weight", 6, 7, 3, 3), r"conv_hr.weight is \(6, 7, 3, 3\), not \(6, 6"),
    "whole numbers": (RRDB, replaced("conv_hr.bias", 6, dtype=np.int32), "conv_hr.bias holds I32"),
    "grey": (RRDB, replaced("conv_first.weight", 6, 1, 3, 3), "conv_first has 1 channels of pixels"),
    "no kernel": (RRDB, replaced("conv_first.weight", 6, 3), r"conv_first.weight is \(6, 3\)"),
    "empty": (RRDB, replaced("body.0.rdb1.conv1.weight", 0, 0, 3, 3), "features = 0 is not positive"),
    "no activations": (COMPACT, without("body.1.weight"), "missing: body.1.weight"),
    "two channels": (COMPACT, replaced("body.6.weight", 2, 6, 3, 3), "body.6 has 2 channels"),
    "no square": (COMPACT, replaced("body.6.weight", 15, 6, 3, 3), "body.6 has 15 channels"),
    "something else": (RRDB, lambda _: {"emb_params": np.zeros((2, 768), np.float32)}, "of kind 'textual inversion'"),
    "nothing": (RRDB, lambda _: {}, "holds no upscaler"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSOUND)
def test_what_is_no_upscaler_or_not_whole_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, change, message = UNSOUND[case]
    with pytest.raises((CheckpointError, ConfigError), match=rf"it\.safetensors.*{message}"):
        read_state(tmp_path / "it.safetensors", change(upscalers.state(config)))


# What is changed in ncnn's text, and where.
CHANGES = {
    "another share of a residual": (RRDB, r"-23301=2,2.000000e-01", "-23301=2,3.000000e-01", "found Eltwise"),
    "another slope": (RRDB, r"-23310=1,2.000000e-01", "-23310=1,1.000000e-01", "found Convolution"),
    "no activation": (RRDB, r" 9=2 -23310=1,2.000000e-01", "", "found Convolution"),
    "smooth": (RRDB, r"0=1 1=2.0", "0=2 1=2.0", "found Interp"),
    "another order": (RRDB, r"^(Concat +\w+ \d+ 1) (\w+) (\w+)", r"\1 \3 \2", "found Concat"),
    "another sum": (COMPACT, r"^(BinaryOp +\w+ 2 1 \w+) \w+", r"\1 blob0_split1", ""),
    "another factor": (COMPACT, r"^(PixelShuffle .*) 0=2", r"\1 0=4", "found PixelShuffle"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_layers_that_are_not_just_those_of_the_network_are_refused_by_line(case: str, tmp_path: Path) -> None:
    config, pattern, put, message = CHANGES[case]
    text = upscalers.write_ncnn(tmp_path / "it.param", config)
    changed, count = re.subn(pattern, put, text.read_text(), flags=re.MULTILINE)
    assert count
    text.write_text(changed)
    with pytest.raises(CheckpointError, match=rf"it\.param.*{message}"):
        read_upscaler(text)


def test_the_text_of_another_network_is_refused(tmp_path: Path) -> None:
    text = upscalers.write_ncnn(tmp_path / "it.param", RRDB)
    text.write_text("7767517\n1 1\nInput it 0 1 blob0\n")
    text.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="describes no upscaler"):
        read_upscaler(text)
