"""What a model, a file of weights, an image or this machine is, as (name, value) lines."""

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from pipelines.compilation_cache import cache_folder
from sdjax.checkpoints.contents import content_digest, of_file, of_folder
from sdjax.checkpoints.diffusers_folder import read_diffusers_folder
from sdjax.checkpoints.folder_metadata import folder_texts, is_folder_key
from sdjax.checkpoints.hashes import hash_file
from sdjax.checkpoints.identify import identify, listed, millions, precision, shortened
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.single_file import read_file
from sdjax.checkpoints.tensors import CheckpointError, Listing, list_file, list_tensors
from sdjax.images.decode import ImageError
from sdjax.images.encode import describe_image, read_metadata, read_parameters
from sdjax.library.finding import beside, has_ending
from sdjax.model import place_of
from sdjax.models.config import ConfigError
from sdjax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "transformers", "safetensors", "apache-beam")
# Files that hold tensors, by the ends of their names.
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# Metadata that say what a file is or how it was made: of the model specification, and of kohya's trainer.
_LISTED = (
    r"modelspec\..*|sshs_.*|ss_(base_model_version|sd_model_name|v2|clip_skip|output_name|network_(module|dim|alpha|args)"
    r"|num_train_images|steps|max_train_steps|epoch|resolution|training_comment|tag_frequency)"
)


def environment() -> Iterator[tuple[str, str]]:
    """Versions and devices."""
    yield "sdjax", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
    for device in jax.local_devices():
        yield "device", f"{device.id}: {device.device_kind} ({device.platform})"
    yield "compiled programs", str(cache_folder())


def describe(name: str, pickled: bool = False) -> Iterator[tuple[str, str]]:
    """What a model, a file of weights or an image is; weights are hashed, not loaded.

    Args:
      name: an image; a file of tensors of whatever kind; a diffusers folder, whole or of one network; a bundled model;
        a name on a hub.
      pickled: allows pickled files.

    Raises:
      CheckpointError: if there is nothing of that name, or it is damaged.
      ConfigError: if a folder's config asks for what is not implemented.
      ImageError: for a damaged image.
    """
    place = place_of(name, None, None, pickled)
    if place.commit:
        yield "commit", place.commit
    if place.path.is_dir():
        yield from _folder(place.path, pickled)
    elif has_ending(place.path, _WEIGHTS):
        yield from _file(place.path, pickled)
    else:
        yield from _image(place.path)


# --- Files of tensors ---


def _file(path: Path, pickled: bool) -> Iterator[tuple[str, str]]:
    listing = list_file(path, pickled)
    identity = identify(listing.tensors)
    yield "file", f"{path}, {_size(path)}"
    yield "kind", identity.kind + ("" if identity.supported else ": sdjax has no use for such files")
    yield from identity.facts
    yield "precision", precision(listing.tensors.values()) or "no tensors"
    if identity.kind == "checkpoint" and identity.supported:
        yield from _checkpoint(path, listing, pickled)
    hashes = hash_file(path)
    yield "sha256", hashes.sha256
    yield "model hash", f"{hashes.short} (A1111: of checkpoints), {hashes.old} (its former one)"
    if hashes.after_header:
        yield "without header", f"{hashes.after_header}, {hashes.adapter} (A1111: of LoRAs; AutoV3)"
    yield from _metadata(path, listing)


def _checkpoint(path: Path, listing: Listing, pickled: bool) -> Iterator[tuple[str, str]]:
    """What loading it would find: whether all is there, and what its UNet predicts."""
    try:
        # Which of the two it is does not matter for the tensors, and need not be known for them.
        outline = read_file(path, None, prediction_type="epsilon", pickled=pickled)
        found = of_file(path, listing, outline)
    except (CheckpointError, ConfigError) as error:
        yield "problem", str(error)
        return
    try:
        outline = read_file(path, None, pickled=pickled)
        predicts = outline.scheduler.prediction_type
        yield "model", outline.family.variant_name(outline.configs, predicts)
        yield "predicts", f"{predicts}, {_by(path, listing)}"
    except CheckpointError as error:
        yield "predicts", f"to be said: {error}"
    yield "content", content_digest(found)


def _by(path: Path, listing: Listing) -> str:
    """What says what the UNet predicts."""
    found = [file.name for ending in (".yaml", ".yml") if (file := beside(path, ending)).is_file()]
    if found:
        return f"by {found[0]} beside it"
    if "modelspec.prediction_type" in listing.metadata:
        return "by its metadata"
    return "by its marker v_pred" if "v_pred" in listing.tensors else "as in all models of its structure"


def _metadata(path: Path, listing: Listing) -> Iterator[tuple[str, str]]:
    metadata = listing.metadata
    modelspec = [key for key in sorted(metadata) if re.fullmatch(_LISTED, key)]
    for key in modelspec:
        yield "metadata", f"{key}: {shortened(metadata[key])}"
    texts = folder_texts(metadata, path)
    if texts:
        yield "carries", f"of the folder that it was made of: {listed(texts)}"
    others = [key for key in metadata if key not in modelspec and not is_folder_key(key)]
    if others:
        yield "other metadata", listed(others)


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


# --- Folders ---


def _folder(root: Path, pickled: bool) -> Iterator[tuple[str, str]]:
    if not (root / "model_index.json").is_file() and (root / "config.json").is_file():
        yield from _network(root)
        return
    outline = read_diffusers_folder(root, dtype=None, pickled=pickled)
    folder = of_folder(root, pickled=pickled)
    yield "model", str(root)
    yield "pipeline", str(read_json(root / "model_index.json").get("_class_name"))
    yield "variant", outline.family.variant_name(outline.configs, outline.scheduler.prediction_type)
    yield "scheduler", f"{outline.scheduler_class}, predicts {outline.scheduler.prediction_type}"
    for part in folder.configs:
        tensors = [each.piece.tensor for each in folder.parameters if each.part == part]
        yield part, f"{millions(tensors)}: {precision(tensors)}"
    for files in folder.files.values():
        for file in files:
            yield "sha256", f"{hash_file(file).sha256} {file.relative_to(root).as_posix()}, {_size(file)}"
    yield "content", content_digest(folder.parameters)


def _network(root: Path) -> Iterator[tuple[str, str]]:
    """A folder of one network, as VAEs are published."""
    config = read_json(root / "config.json")
    files = sorted(root.glob("*.safetensors"))
    identity = identify(list_tensors(files[:1]))
    yield "network", f"{config.get('_class_name') or config.get('architectures')} in {root}"
    yield "kind", identity.kind + ("" if identity.supported else ": sdjax has no use for such folders")
    yield from identity.facts
    for file in files:
        yield "sha256", f"{hash_file(file).sha256} {file.name}, {_size(file)}"


# --- Images ---


def _image(path: Path) -> Iterator[tuple[str, str]]:
    if has_ending(path, (".json",)):
        raise CheckpointError(f"{path} is no image; a model is a diffusers folder, give the folder")
    yield "image", describe_image(path, str(path))
    try:
        metadata = read_metadata(path, str(path))
    except ImageError as error:
        yield "sdjax", str(error).removeprefix(f"{path}: ")
        yield from _parameters(path)
        return
    for name, value in metadata.items():
        yield name, str(value)


def _parameters(path: Path) -> Iterator[tuple[str, str]]:
    """What another generator says of its image."""
    try:
        text = read_parameters(path, str(path))
    except ImageError as error:
        yield "parameters", str(error).removeprefix(f"{path}: ")
        return
    for line in (text or "").splitlines():
        yield "parameters", line
