"""The kinds of named files, as a table: what each is called, which files are of it, and what else has a say in one."""

from collections.abc import Mapping
from pathlib import Path

from sdjax.adapters.lora import FILES_IN_FOLDERS
from sdjax.checkpoints.controlnet_file import is_controlnet_folder
from sdjax.library.finding import FolderListing, beside, has_ending
from sdjax.library.folder import Kind

_ADAPTERS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
_TENSORS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_UPSCALERS = (".safetensors", ".pth", ".pt", ".param")
# Images in which A1111 hides embeddings name them so, before the pixels; all others are previews.
_EMBEDDED, _HEAD = b"sd-ti-embedding", 4096


def _is_lora(listing: FolderListing) -> bool:
    return any(file.name.lower() in FILES_IN_FOLDERS for file in listing.files)


def _is_embedding(file: Path) -> bool:
    if not has_ending(file, (".png",)):
        return True
    with file.open("rb") as stream:
        return _EMBEDDED in stream.read(_HEAD)


def _is_pipeline(listing: FolderListing) -> bool:
    return any(file.name == "model_index.json" for file in listing.files)


# By the field of `Library`.
KINDS: Mapping[str, Kind] = {
    "loras": Kind(
        "lora", "library.loras", _ADAPTERS, is_one=_is_lora, beside=lambda file: (file.parent / "adapter_config.json",)
    ),
    "hypernetworks": Kind("hypernetwork", "library.hypernetworks", _ADAPTERS),
    "embeddings": Kind("embedding", "library.embeddings", (*_ADAPTERS, ".png"), accepts=_is_embedding),
    "controlnets": Kind(
        "ControlNet",
        "library.controlnets",
        _TENSORS,
        is_one=lambda listing: is_controlnet_folder(listing.folder),
        beside=lambda file: (file.parent / "config.json",),
    ),
    "upscalers": Kind(
        "upscaler",
        "library.upscalers",
        _UPSCALERS,
        is_one=_is_pipeline,
        beside=lambda file: (beside(file, ".param"), beside(file, ".bin")),
    ),
}
