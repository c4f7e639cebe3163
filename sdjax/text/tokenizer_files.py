"""A tokenizer's folder before transformers reads it: JSON in bounds, of CLIP's kind, and how long its texts may be.

The library behind it stops the process' thread in places where a file is not what it expects, so what can do that is
refused here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.messages import quoted

# Far above CLIP's, which are said behind.
MOST_BYTES = 1 << 26  # 2.2 MB
MOST_NESTING = 32  # 6
MOST_TOKEN_ID = 1 << 24  # 49,407
# What transformers writes for a length that is not known is larger than this.
_UNKNOWN_LENGTH = 10**20
# Start, one token, end.
_LEAST_LENGTH = 3
_CONFIG, _WHOLE = "tokenizer_config.json", "tokenizer.json"
_OBJECTS = (_WHOLE, "vocab.json", _CONFIG, "special_tokens_map.json", "added_tokens.json")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


class TokenizerError(ValueError):
    """A tokenizer folder can't be read."""


def check_files(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Looks through a tokenizer's files.

    Returns:
      The objects in them by the files' names.

    Raises:
      TokenizerError: for what is no JSON object, too large, nested too deep or no CLIP tokenizer; it names the file and
        the key.
    """
    read = {name: _read(folder / name) for name in _OBJECTS if (folder / name).exists()}
    merges = folder / "merges.txt"
    if merges.exists() and not (merges.is_file() and merges.stat().st_size <= MOST_BYTES):
        raise TokenizerError(f"{merges} is no file, or has more than {MOST_BYTES} bytes")
    for name in ("vocab.json", "added_tokens.json"):
        _check_ids(read.get(name, {}), str(folder / name))
    _check_config(read.get(_CONFIG, {}), str(folder / _CONFIG))
    if _WHOLE in read:
        _check_whole(read[_WHOLE], str(folder / _WHOLE))
    return read


def text_length(config: Mapping[str, Any], positions: int, where: str) -> int:
    """How many tokens a text has with start, end and padding: `model_max_length`, as in diffusers.

    Args:
      config: a `tokenizer_config.json`. If it says no length, it is the text encoder's.
      positions: of the text encoder.
      where: names the tokenizer in errors.

    Raises:
      TokenizerError: for a length that the text encoder does not have, or none.
    """
    said = config.get("model_max_length")
    if said is None or (isinstance(said, int | float) and said >= _UNKNOWN_LENGTH):
        return positions
    if type(said) is not int or said < _LEAST_LENGTH or said > positions:
        raise TokenizerError(
            f"{where}: model_max_length = {quoted(said)}: expected a whole number from {_LEAST_LENGTH} to {positions}, "
            "the text encoder's max_position_embeddings"
        )
    return said


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise TokenizerError(f"{file} is no file")
    with file.open("rb") as opened:
        text = opened.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise TokenizerError(f"{file} has more than {MOST_BYTES} bytes")
    if _depth(text) > MOST_NESTING:
        raise TokenizerError(f"{file} is nested deeper than {MOST_NESTING}")
    try:
        data = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise _not_clip(file, f"is not JSON: {quoted(str(error))}") from error
    if not isinstance(data, dict):
        raise _not_clip(file, f"holds {type(data).__name__}, not an object")
    return data


def _not_clip(file: Path, problem: str) -> TokenizerError:
    return TokenizerError(f"{file.parent} does not hold a CLIP tokenizer: {file.name} {problem}")


# Possessive, and to the end of the text where a string is not closed: in time that goes with the length.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def _depth(text: bytes) -> int:
    depth = most = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if (sign := found[0]) in (b"[", b"{"):
            depth += 1
            most = max(most, depth)
        elif sign in (b"]", b"}"):
            depth -= 1
    return most


def _check_ids(vocabulary: Any, where: str) -> None:
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"{where}: the vocabulary is {quoted(vocabulary)}, expected tokens and their numbers")
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index <= MOST_TOKEN_ID:
            raise TokenizerError(
                f"{where}: the token {quoted(token)} has the number {quoted(index)}; expected 0 to {MOST_TOKEN_ID}"
            )


def _check_config(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("tokenizer_class")
    if kind is not None and kind not in _CLASSES:
        raise TokenizerError(f"{where}: tokenizer_class {quoted(kind)} is not supported; expected {_CLASSES[0]}")
    for name in _SPECIAL:
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if name in config and content is not None and not isinstance(content, str):
            raise TokenizerError(f"{where}: {name} = {quoted(token)}: expected a token")
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise TokenizerError(f"{where}: added_tokens_decoder = {quoted(added)}: expected tokens by their numbers")
    for index, token in added.items():
        _check_added(index, token, where, "added_tokens_decoder")


def _check_added(index: Any, token: Any, where: str, key: str) -> None:
    digits = str(index)
    known = digits.isascii() and digits.isdigit() and len(digits) <= len(str(MOST_TOKEN_ID))
    if not known or int(digits) > MOST_TOKEN_ID:
        raise TokenizerError(f"{where}: {key}: {quoted(index)} is no number of a token, 0 to {MOST_TOKEN_ID}")
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise TokenizerError(f"{where}: {key}: the token {index} is {quoted(token)}; expected an object with content")


def _check_whole(data: Mapping[str, Any], where: str) -> None:
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = quoted(model.get("type")) if isinstance(model, dict) else quoted(model)
        raise TokenizerError(f"{where} does not hold a CLIP tokenizer: its model is {kind}; expected BPE")
    _check_ids(model.get("vocab"), where)
    merges = model.get("merges")
    if not isinstance(merges, list) or not all(map(_is_merge, merges)):
        raise TokenizerError(f"{where}: model.merges: expected a list of pairs of symbols")
    if (found := _precompiled(data.get("normalizer"))) is not None:
        raise TokenizerError(
            f"{where}: normalizer is of the type {found}, with a precompiled_charsmap: SentencePiece's, and not CLIP's"
        )
    added = data.get("added_tokens", [])
    if not isinstance(added, list):
        raise TokenizerError(f"{where}: added_tokens = {quoted(added)}: expected a list")
    for token in added:
        _check_added(token.get("id") if isinstance(token, dict) else None, token, where, "added_tokens")


def _is_merge(merge: Any) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part for part in parts)


def _precompiled(normalizer: Any) -> str | None:
    """The type of a normalizer that has a table of SentencePiece, itself or in a sequence."""
    pending = [normalizer]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += each
        elif isinstance(each, dict):
            if each.get("type") == "Precompiled" or "precompiled_charsmap" in each:
                return "Precompiled"
            pending += each.values()
    return None
