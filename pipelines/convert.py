"""A checkpoint in another form, as the command line asks for it."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.checkpoints import convert as forms
from sdjax.model import place_of
from sdjax.text import vocabulary
from sdjax.text.tokenizer_files import check_files

_LENGTH = 77


def convert(
    source: str,
    target: Path,
    *,
    config: Path | None = None,
    prediction_type: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    ema: bool = False,
    pickled: bool = False,
    prune: bool = False,
) -> Iterator[tuple[str, str]]:
    """Converts, and then tells what was written, as (name, value) lines.

    Args:
      source: a single file, a diffusers folder, a bundled model, or a name on a hub.
      target: a name that ends in .safetensors for a single file, another for a folder; nothing may be there yet.
      config, prediction_type, ema: of a single file, as for `sdjax.load`. Of a single file that is to be one again,
        `prediction_type` is noted in it, and `config` is only for what is needed (`prune`).
      variant: of a folder, for example "fp16".
      revision: on a hub.
      pickled: allows pickled files; of a folder, where it has no others.
      prune: leave out what is not needed for images.

    Raises:
      CheckpointError, ConfigError: if the source can't be read.
      ValueError: for an option that says nothing of such a source.
    """
    place = place_of(source, revision, variant, pickled)
    to_file = target.suffix.lower() == ".safetensors"
    if place.path.is_dir():
        _refuse(source, "a folder", config=config, prediction_type=prediction_type, ema=ema)
        left_out = forms.folder_to_file(place.path, target, CLIP, variant, prune, pickled)
    else:
        _refuse(source, "a single file", variant=variant)
        options: dict[str, Any] = {
            "config": config,
            "prediction_type": prediction_type,
            "pickled": pickled,
            "prune": prune,
        }
        left_out = []
        if to_file:
            _refuse(source, "to be a single file again", ema=ema, config=None if prune else config)
            forms.file_to_file(place.path, target, **options)
        else:
            forms.file_to_folder(place.path, target, CLIP, ema=ema, **options)
    yield "written", str(target)
    if place.commit:
        yield "from commit", place.commit
    for name in left_out:
        yield "left out", name


def _refuse(source: str, what: str, **options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise ValueError(f"{source} is {what}, for which {', '.join(given)} says nothing: leave it out")


@functools.cache
def _clip() -> vocabulary.Vocabulary:
    return vocabulary.clip_vocabulary()


def _write_clip(folder: Path, is_open_clip: bool) -> None:
    padding = vocabulary.PADDING_2 if is_open_clip else vocabulary.END
    vocabulary.write_tokenizer(folder, _clip(), _LENGTH, padding)


def _is_clips(folder: Path) -> bool:
    """Whether all that a tokenizer's folder holds is CLIP's vocabulary, and all of it."""
    clip = _clip()
    check_files(folder)
    try:
        found = []
        if (folder / "vocab.json").is_file():
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
            pairs = tuple(tuple(line.split()) for line in lines if line and not line.startswith("#version"))
            found.append((json.loads((folder / "vocab.json").read_bytes()), pairs))
        if (folder / "tokenizer.json").is_file():
            whole = json.loads((folder / "tokenizer.json").read_bytes())
            merges = whole["model"]["merges"]
            pairs = tuple(tuple(pair.split() if isinstance(pair, str) else pair) for pair in merges)
            added = {token["content"]: token["id"] for token in whole["added_tokens"]}
            found.append(({**whole["model"]["vocab"], **added}, pairs))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # then it is not known, and goes along as it is
    return bool(found) and all(each == (clip.tokens, clip.merges) for each in found)


CLIP = forms.ClipTokenizer(_write_clip, _is_clips)
