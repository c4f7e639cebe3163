"""ncnn's texts and numbers, sound and damaged."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdjax.checkpoints.ncnn_file import read_network
from sdjax.checkpoints.tensors import CheckpointError, read_tensor
from sdjax.models.upscaler import CompactConfig
from tests.golden import upscalers

# Input, (Convolution, PReLU) twice, Convolution, PixelShuffle, Interp, BinaryOp, Interp, after a Split.
CONFIG = CompactConfig(convolutions=1, features=16, shuffle=2, scale=1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return upscalers.write_ncnn(tmp_path / "it.param", CONFIG)


def numbers_of(text: Path) -> Path:
    return text.with_suffix(".bin")


@pytest.mark.parametrize("half", [False, True])
def test_layers_and_their_numbers_are_read(half: bool, tmp_path: Path) -> None:
    text = upscalers.write_ncnn(tmp_path / "it.param", CONFIG, half)
    layers = read_network(text, numbers_of(text))
    assert " ".join(layer.kind for layer in layers) == (
        "Input Convolution PReLU Convolution PReLU Convolution PixelShuffle Interp BinaryOp Interp"
    )
    assert [layer.inputs for layer in layers] == [(), (0,), (1,), (2,), (3,), (4,), (5,), (0,), (6, 7), (8,)]
    assert layers[1].options == {
        "outputs": 16, "weight_data_size": 3 * 16 * 9, "activation": 0, "activation_params": ()
    }  # fmt: skip
    assert layers[9].options == {"resize_type": 3, "height_scale": 0.5, "width_scale": 0.5}
    state = upscalers.state(CONFIG)
    found = [tensor for layer in layers for tensor in layer.tensors]
    assert [tensor.shape for tensor in found] == [array.shape for array in ordered(state)]
    for tensor, array in zip(found, ordered(state), strict=True):
        stored = array.astype(np.float16) if half and array.ndim == 4 else array
        np.testing.assert_array_equal(read_tensor(tensor), stored)


def ordered(state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """In the order of the layers."""
    names = ("body.0.weight", "body.0.bias", "body.1.weight", "body.2.weight", "body.2.bias", "body.3.weight")
    return [state[name] for name in (*names, "body.4.weight", "body.4.bias")]


# What is changed in the text (all that a pattern finds), and the error.
CHANGES = {
    "magic": (r"^7767517", "7767516", "does not begin with 7767517"),
    "counts": (r"\A(.*)\n\d+ \d+", r"\1\n11", "two counts"),
    "layers": (r"\A(.*)\n\d+", r"\1\n12", "tells of 12 layers .* and has 11"),
    "results": (r"\A(.*\n\d+) \d+", r"\1 99", "tells of 99 results, its layers make 12"),
    "kind": (r"^PReLU ", "Softmax ", "line 6: a layer 'Softmax' is none of Input"),
    "words": (r"^PReLU .*", "PReLU it", "line 6: there is no layer's kind, name and two counts"),
    "number of inputs": (r"^(PReLU +\w+) 1", r"\1 9", "line 6: 9 inputs and 1 outputs are not all there"),
    "unmade": (r"^(PReLU +\w+ 1 1) \w+", r"\1 other", "line 6: 'other' is given to a layer before"),
    "made twice": (r"^(PReLU +\w+ 1 1 \w+) \w+", r"\1 blob0", "line 6: two layers make 'blob0'"),
    "named twice": (r"^PReLU +\w+", "PReLU Convolution_1", "line 6: two layers are called 'Convolution_1'"),
    "not used": (r"^(BinaryOp +\w+) 2 1 \w+", r"\1 1 1", "not one result, of its last layer"),
    "two inputs": (r"^PReLU +(\w+) 1 1 \w+", r"Input \1 0 1", "line 6: a Input of 0 inputs"),
    "unknown option": (r"^PReLU .*", r"\g<0> 7=1", "line 6: option 7 of PReLU is not known"),
    "option twice": (r"^PReLU .*", r"\g<0> 0=1", "line 6: option 0 is said twice"),
    "no option": (r"^PReLU .*", r"\g<0> slopes", "line 6: 'slopes' is no option"),
    "no number": (r"1=2\.0\S*", "1=wide", "'wide' is no number"),
    "not finite": (r"1=2\.0\S*", "1=1e999", "is no number"),
    "no array": (r"^Convolution .*", r"\g<0> -23310=2,0.5", "line 5: '-23310=2,0.5' is no array"),
    "missing option": (r" 1=3 4=1", " 4=1", r"line 5: option 1 \(kernel_w\) is missing"),
    "kernel": (r" 1=3 ", " 1=5 ", "line 5: kernel_w is 5; implemented is 3"),
    "stride": (r"^Convolution .*", r"\g<0> 3=2", "line 5: stride_w is 2; implemented is 1"),
    "no padding": (r" 4=1 ", " ", "line 5: pad_left is 0; implemented is 1"),
    "quantized": (r"^Convolution .*", r"\g<0> 8=1", "line 5: int8_scale_term is 1"),
    "corners": (r"^Interp .*", r"\g<0> 6=1", "align_corner is 1; implemented is 0"),
    "product": (r"^BinaryOp .*", r"\g<0> 0=2", "operation is 2; implemented is 0"),
    "size": (r"6=432", "6=433", "line 5: 433 numbers are no kernels of 3x3 to 16"),
    "too large": (r"6=432", "6=99999999999", "line 5: weight_data_size is 99999999999, no count"),
    "not whole": (r"^(PReLU .*) 0=16", r"\1 0=16.0", "line 6: slopes is 16.0, no count"),
    "more than there are": (r"6=432", "6=43200", "ends at .* bytes, before the numbers of"),
    "fewer than there are": (r"6=432", "6=288", r"'Convolution_3' \(it\.param, line 7\) begin with"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_a_text_that_is_not_sound_is_refused_by_its_line(case: str, text: Path) -> None:
    pattern, put, message = CHANGES[case]
    changed, count = re.subn(pattern, put, text.read_text(), flags=re.MULTILINE)
    assert count
    text.write_text(changed)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_network(text, numbers_of(text))
    assert text.stem in str(raised.value)


def test_every_byte_of_the_numbers_has_to_belong_to_a_layer(text: Path) -> None:
    numbers = numbers_of(text)
    whole = numbers.read_bytes()
    numbers.write_bytes(whole + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match=rf"has {len(whole) + 4} bytes, of which it.param describes {len(whole)}"):
        read_network(text, numbers)
    numbers.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"ends at {len(whole) - 1} bytes, before the numbers of"):
        read_network(text, numbers)
    numbers.write_bytes((0x0002C056).to_bytes(4, "little") + whole[4:])
    with pytest.raises(CheckpointError, match=r"'Convolution_1' \(it.param, line 5\) begin with 0x0002C056"):
        read_network(text, numbers)
    numbers.unlink()
    with pytest.raises(CheckpointError, match=r"it\.bin can't be read"):
        read_network(text, numbers)


def test_a_text_that_is_none_is_refused(text: Path) -> None:
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="is no text of ncnn"):
        read_network(text, numbers_of(text))
    text.write_bytes(b"7767517\n" + bytes(1 << 23))
    with pytest.raises(CheckpointError, match="has more than 4194304 bytes"):
        read_network(text, numbers_of(text))
    text.unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        read_network(text, numbers_of(text))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: st.DataObject, text: Path) -> None:
    upscalers.write_ncnn(text, CONFIG)
    file = data.draw(st.sampled_from([text, numbers_of(text)]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.sampled_from(b"0123456789=-.,e \n\0\xff"))
        else:
            del content[place : place + data.draw(st.integers(1, 40))]
    file.write_bytes(content)
    try:
        read_network(text, numbers_of(text))
    except CheckpointError as error:
        assert "it." in str(error)
