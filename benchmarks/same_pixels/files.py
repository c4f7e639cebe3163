"""The files that the jobs name: toy checkpoints, adapters, upscalers, input images and wildcards.

All weights come from numpy's frozen `RandomState` or from files that the tests have recorded, so any revision writes
the same ones. They are written once, by the revision that this file belongs to, and both revisions read them.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

import numpy as np
from safetensors.numpy import save_file

from sdjax.models.t2i_adapter import T2IAdapterConfig
from tests import pickles, toys
from tests.golden import conditioned, controlnet, sd_upscalers, upscalers

RECORDED_LORAS = Path(conditioned.__file__).with_name("adapters_lora.npz")
# Of the text encoders of all toys, and of what their UNets read.
TEXT_WIDTH = 32
MODELS = {
    "sd1": toys.SD1,
    "sd2": toys.SD2,
    "turbo": toys.SD_TURBO,
    "classes": toys.SD1_CLASSES,
    "timed-classes": toys.SD1_TIMED_CLASSES,
    "tiny": toys.TINY,
    "tiny-inpaint": conditioned.MODELS["tiny_inpaint"].toy,
    "tiny-depth": conditioned.MODELS["tiny_depth"].toy,
}
WILDCARDS = {"animals.txt": "cat\ndog\n# no animal\nred dog\n", "places/high.txt": "castle\n{blue|green} castle\n"}


def write_files(folder: Path) -> None:
    """Writes all of them, unless this code has done so."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    finished = folder / "written-by"
    if finished.is_file() and finished.read_text() == code:
        return
    finished.unlink(missing_ok=True)
    for kind, write in _WRITERS.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        write(folder / kind)
    finished.write_text(code)


def files_digest(folder: Path, names: Iterable[PurePath]) -> str:
    """The sha256 of the names and contents of the files in some of the folders."""
    digest = hashlib.sha256()
    for file in sorted({path for name in names for path in (folder / name).rglob("*") if path.is_file()}):
        digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(_content(file)).digest())
    return digest.hexdigest()


def _content(file: Path) -> bytes:
    """The bytes of a file, of a zip archive (torch's pickles) those of its members, which have no date."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def _write_models(folder: Path) -> None:
    for name, toy in MODELS.items():
        toys.write_toy(folder / name, toy)


def _write_images(folder: Path) -> None:
    for name, data in conditioned.FILES.items():
        (folder / name).write_bytes(data)
    wide = np.concatenate([conditioned.image("cat"), conditioned.image("pose")[:, :16]], axis=1)
    (folder / "wide.png").write_bytes(conditioned.png(wide))


def _write_controlnets(folder: Path) -> None:
    conditioned.write_controls(folder)
    (folder / "t2i").mkdir(exist_ok=True)
    config = T2IAdapterConfig(channels=toys.TINY.unet.block_out_channels, downscale_factor=2)
    controlnet.write_folder(folder / "t2i", controlnet.Control(config, 21))


def _write_loras(folder: Path) -> None:
    """Those that LyCORIS, peft and diffusers wrote for the toys of SD1 and SD2, each in a folder of its case's name.

    A file by itself is named after its case, so that a row can name it.
    """
    with np.load(RECORDED_LORAS) as recorded:
        files = {key: recorded[key].tobytes() for key in recorded.files if "/file/" in key}
    for key, content in files.items():
        case, _, name = key.split("/")
        case = case.replace(",", "").replace(" ", "-")
        with_config = name.startswith("adapter_")
        target = folder / case / name if with_config else folder / f"{case}{Path(name).suffix}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    for number, name in enumerate(("ink", "chalk")):
        save_file(_tiny_lora(10 * number, rank=2 + number), folder / f"{name}.safetensors")


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _tiny_lora(seed: int, rank: int) -> dict[str, np.ndarray]:
    """Of plain low rank, under kohya's names, for the smallest toy."""
    block = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
    modules = (f"{block}_attn1_to_q", f"{block}_attn2_to_v", "lora_te_text_model_encoder_layers_0_self_attn_v_proj")
    tensors = {}
    for place, module in enumerate(modules):
        tensors[f"{module}.lora_up.weight"] = _normal(seed + 2 * place, TEXT_WIDTH, rank) / 2
        tensors[f"{module}.lora_down.weight"] = _normal(seed + 2 * place + 1, rank, TEXT_WIDTH) / TEXT_WIDTH**0.5
        tensors[f"{module}.alpha"] = np.array(rank, np.float32)
    return tensors


def _write_embeddings(folder: Path) -> None:
    save_file({"emb_params": _normal(41, 3, TEXT_WIDTH)}, folder / "mosaic.safetensors")
    vectors = {"string_to_token": {"*": 265}, "string_to_param": {"*": _normal(42, 1, TEXT_WIDTH)}, "name": "etching"}
    pickles.write(folder / "etching.pt", vectors)


def _write_hypernetworks(folder: Path) -> None:
    for number, (name, activation) in enumerate({"oil": "relu", "gouache": "swish"}.items()):
        seed = 30 + 10 * number
        network = {
            "linear.0.weight": _normal(seed, 2 * TEXT_WIDTH, TEXT_WIDTH) / TEXT_WIDTH**0.5,
            "linear.0.bias": _normal(seed + 1, 2 * TEXT_WIDTH),
            "linear.2.weight": _normal(seed + 2, TEXT_WIDTH, 2 * TEXT_WIDTH) / TEXT_WIDTH**0.5,
            "linear.2.bias": _normal(seed + 3, TEXT_WIDTH),
        }
        content = {TEXT_WIDTH: (network, network), "activation_func": activation, "name": name, "step": 10}
        pickles.write(folder / f"{name}.pt", content)


def _write_upscalers(folder: Path) -> None:
    upscalers.write(folder / "esrgan.safetensors", upscalers.CASES["rrdb_x2_unshuffled"].config)
    upscalers.write(folder / "compact.safetensors", upscalers.CASES["compact_x2"].config)
    upscalers.write_ncnn(folder / "ncnn.param", upscalers.CASES["rrdb_x4"].config)
    sd_upscalers.write(folder / "x4", sd_upscalers.X4_TOY)
    sd_upscalers.write(folder / "x2", sd_upscalers.X2_TOY)


def _write_wildcards(folder: Path) -> None:
    for name, text in WILDCARDS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")


_WRITERS: dict[str, Callable[[Path], None]] = {
    "models": _write_models,
    "images": _write_images,
    "controlnets": _write_controlnets,
    "loras": _write_loras,
    "embeddings": _write_embeddings,
    "hypernetworks": _write_hypernetworks,
    "upscalers": _write_upscalers,
    "wildcards": _write_wildcards,
}
