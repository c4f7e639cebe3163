"""Embeddings (textual inversions): vectors that take the place of tokens, in the files of those who train them.

Gal et al. 2022, arXiv:2208.01618. The forms are AUTOMATIC1111's (`string_to_param`, and images with an embedding in
them) and diffusers' (one tensor, under the name of its token).
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from sdjax.adapters.files import AdapterError, open_adapter
from sdjax.checkpoints.tensors import CheckpointError, Params, list_file, read_tensor
from sdjax.families.known_models import by_token_width

# How wide the token embeddings are, and of what model.
_FLOATS = ("F64", "F32", "F16", "BF16")
# A training's longest is far below; a tensor of more rows is none.
_MOST_VECTORS = 1000
# What Pillow, base64, JSON and numpy raise for an image or a text that is none.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError,
    Image.DecompressionBombError,
)  # fmt: skip
# A1111's text chunk.
_CHUNK = "sd-ti-embedding"
_ELSEWHERE = "load it in the web UI that made it, and save it there as .safetensors"
# The token of a concept as diffusers' trainers are given it. Tensors of other forms are called by what they hold, or by
# words that stand in any prompt.
_TOKEN = re.compile(r"<[^<>\s]+>")
# Letters of a name, and of another library's error that are quoted.
_MOST_LETTERS = _SHOWN = 200


class Embedding(NamedTuple):
    """Vectors in the place of tokens.

    name: the file's without its ending.
    digest: sha256 of the file. AUTOMATIC1111 writes the first 12 digits of it into its metadata.
    """

    name: str
    digest: str
    vectors: Float[np.ndarray, "n w"]


def read_embedding(file: Path, pickled: bool = False) -> Embedding:
    """Reads an embedding of any form.

    Args:
      file: .safetensors; .pt, .bin, .ckpt or .pth where `pickled` allows it; or a .png that AUTOMATIC1111 saved
        with the embedding in its text.

    Raises:
      AdapterError: if it is no embedding, or one for a model of another kind.
    """
    if file.suffix.lower() in (".png", ".webp", ".jxl", ".avif"):
        vectors = _of_image(file)
        return Embedding(file.stem, hashlib.sha256(file.read_bytes()).hexdigest(), _checked(vectors, file))
    opened = open_adapter(file, pickled)
    tensors = opened.tensors
    learned = [tensor for name, tensor in tensors.items() if name.startswith("string_to_param")]
    if "clip_g" in tensors:
        raise AdapterError(f"{file} is an embedding for Stable Diffusion XL ({', '.join(tensors)}), not for 1 or 2")
    chosen = learned or list(tensors.values())
    if len(chosen) != 1:
        listed = ", ".join(list(tensors)[:5]) or "none"
        raise AdapterError(
            f"{file} holds {len(chosen)} tensors ({listed}); expected the one of an embedding. Is it of another kind?"
        )
    [tensor] = chosen
    if tensor.dtype not in _FLOATS:
        raise AdapterError(f"{file}: {tensor.name} holds {tensor.dtype}, not one of {', '.join(_FLOATS)}")
    _check_shape(tensor.shape, file)
    try:
        vectors = read_tensor(tensor)
    except (CheckpointError, OSError) as error:
        raise AdapterError(f"{file} can't be read ({error})") from error
    return Embedding(opened.name, opened.digest, _checked(vectors, file))


def embedding_name(file: Path, pickled: bool = False) -> str | None:
    """The name that is written in an embedding's file, by which prompts call it too; None if there is none.

    That is, of an image, the name that A1111 calls it by, and of diffusers' files the token in angle brackets.
    Arguments as of `read_embedding`; of a file that can't be read there is none.
    """
    try:
        if file.suffix.lower() == ".png":
            name = _said_by_image(file).get("name")
            return name if isinstance(name, str) and name.strip() and len(name) <= _MOST_LETTERS else None
        names = list(list_file(file, pickled).tensors)
    except (AdapterError, CheckpointError):
        return None
    return names[0] if len(names) == 1 and _TOKEN.fullmatch(names[0]) else None


def check_width(embedding: Embedding, params: Params) -> None:
    """Raises `AdapterError` if the vectors do not fit a text encoder, of which these are the parameters."""
    expected, width = params["token_embedding"]["embedding"].shape[1], embedding.vectors.shape[1]
    if width != expected:
        raise AdapterError(
            f"embedding {embedding.name!r}: its vectors are {_of_model(width)}; the text encoder's are "
            f"{_of_model(expected)}. Take one that was made for this model"
        )


def _of_model(width: int) -> str:
    model = by_token_width(width)
    return f"{width} numbers wide" + (f", as {model.name}'s" if model else "")


def _check_shape(shape: tuple[int, ...], file: Path) -> None:
    if len(shape) not in (1, 2) or not all(shape) or shape[:-1] > (_MOST_VECTORS,):
        raise AdapterError(f"{file}: its tensor is {shape}; expected (width,), or (vectors, width)")


def _checked(vectors: np.ndarray, file: Path) -> Float[np.ndarray, "n w"]:
    _check_shape(vectors.shape, file)
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.array(vectors, np.float32, ndmin=2)
    if not np.isfinite(found).all():
        raise AdapterError(f"{file}: its vectors have NaN or infinite numbers in them; fetch it again")
    return found


def _of_image(file: Path) -> np.ndarray:
    """What A1111 writes into the text of a PNG: JSON as base64."""
    if file.suffix.lower() != ".png":
        raise AdapterError(f"{file}: an embedding in an image that is no PNG can't be read; {_ELSEWHERE}")
    try:
        [entry] = _said_by_image(file)["string_to_param"].values()
        return np.array(entry["TORCHTENSOR"], np.float64)
    except AdapterError:
        raise
    except _DAMAGE as error:
        raise AdapterError(f"{file}: its text {_CHUNK} is no embedding ({error}); {_ELSEWHERE}") from error


def _said_by_image(file: Path) -> dict[str, Any]:
    """What A1111's text in an image says."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            text = image.info.get(_CHUNK)  # which is written before the pixels; these are not read
        if text is None:
            raise AdapterError(f"{file} has no text {_CHUNK}; if the embedding is in its pixels, {_ELSEWHERE}")
        said = json.loads(base64.b64decode(text))
        if not isinstance(said, dict):
            raise TypeError(f"it holds a {type(said).__name__}")
        return said
    except AdapterError:
        raise
    except _DAMAGE as error:
        raise AdapterError(
            f"{file}: its text {_CHUNK} is no embedding ({str(error)[:_SHOWN]}); {_ELSEWHERE}"
        ) from error
