"""peft's `adapter_config.json`: the scale (alpha / rank) of an adapter, which is not written beside its matrices.

That is `adapter_config.json` in the same folder or, in files that diffusers writes, a text in the metadata.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import regex

from sdjax.adapters.files import AdapterError, AdapterFile
from sdjax.checkpoints.json_file import parse_json
from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.messages import quoted

_FILE = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
# The kinds whose files are read; what each calls alpha.
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
# A bound of alpha and rank: float32 has no greater numbers.
_MOST = 1e38
# A stranger's pattern: its letters, and the seconds that it may take for a name.
_MOST_LETTERS, _MOST_SECONDS = 300, 0.2
_COUNT = re.compile(r"\{\d{1,2}(,\d{0,2})?\}")
# Options by which more than the matrices counts.
_UNKNOWN_OPTIONS = ("modules_to_save", "layer_replication", "trainable_token_indices", "alora_invocation_tokens")
# Beginnings that change the model's own weights, to which the matrices then belong.
_OTHER_BEGINNINGS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Scales(NamedTuple):
    """How strong each module is, by network; a config under "" is for both.

    text: the config's, which is part of what decides the images; empty if it is in the file itself.
    """

    configs: Mapping[str, Mapping[str, Any]]
    where: str
    text: bytes

    def of(self, part: str, module: str) -> float | None:
        """alpha / rank of a module as peft calls it; None if there is no config for it.

        Raises:
          AdapterError: if the config says no numbers.
        """
        config = self.configs.get(part, self.configs.get(""))
        if config is None:
            return None
        alpha_name = _ALPHAS[config.get("peft_type", "LORA")]
        alpha = self._number(config, alpha_name, "alpha_pattern", module)
        rank = self._number(config, "r", "rank_pattern", module)
        strength = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not 0 < strength < _MOST:
            raise AdapterError(f"{self.where}: {alpha_name} = {alpha} over r = {rank} of {module} is {strength}")
        return strength

    def _number(self, config: Mapping[str, Any], name: str, patterns: str, module: str) -> float:
        listed = config.get(patterns) or {}
        if not isinstance(listed, dict):
            raise AdapterError(f"{self.where}: {patterns} is no object of names")
        fits = (value for key, value in listed.items() if self._fits(key, module))
        value = next(fits, config.get(name))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
            raise AdapterError(f"{self.where}: {name} of {module} is {str(value)[:40]!r}, not a number above 0")
        return float(value)

    def _fits(self, pattern: str, module: str) -> bool:
        """Whether a module is the one named, or ends in it, or in what a regular expression matches."""
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if plain.replace(".", "").replace("_", "").isalnum():
            return module == plain or (module.endswith(f".{plain}") and not pattern.startswith("^"))
        try:
            return _expression(pattern).match(module, timeout=_MOST_SECONDS) is not None
        except TimeoutError:
            raise AdapterError(f"{self.where}: {quoted(pattern)} takes too long for {module}") from None
        except ValueError as error:
            raise AdapterError(
                f"{self.where}: {quoted(pattern)} is no name and no pattern of names ({error})"
            ) from error


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> "regex.Pattern[str]":
    """A pattern as peft matches it with the end of a name (`get_pattern_key`).

    Raises:
      ValueError: if it is none, or counts or nests so that a few letters of it could take all memory.
    """
    counts = re.findall(r"(?<!\\)\{[^}]*\}?", pattern)
    if len(pattern) > _MOST_LETTERS or len(counts) > 2 or not all(map(_COUNT.fullmatch, counts)):
        raise ValueError(f"expected up to {_MOST_LETTERS} letters, and up to two counts below 100")
    if odd := re.search(r"\(\?(?!:|=|!|<=|<!)|\(\*|\[\[", pattern):
        raise ValueError(f"{odd[0]!r} is not read")
    try:
        return regex.compile(rf"(.*\.)?({pattern})$")
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def read_scales(opened: AdapterFile) -> Scales | None:
    """The config that belongs to an adapter's file, or None if it has none.

    Raises:
      AdapterError: if there is one, and it is none of peft's, or asks for what is not done here.
    """
    beside = opened.file.parent / _FILE
    if opened.file.stem == "adapter_model" and beside.is_file():
        where, text = str(beside), _content(beside)
        configs = {"": _parsed(where, text)}
    elif _METADATA in opened.metadata:
        where, text = f"{opened.file}: {_METADATA}", b""
        flat = _parsed(where, opened.metadata[_METADATA].encode())
        parts = {key.partition(".")[0] for key in flat}
        configs = {
            part: {key.removeprefix(f"{part}."): value for key, value in flat.items() if key.startswith(f"{part}.")}
            for part in parts
        }
    else:
        return None
    for config in configs.values():
        if str(config.get("peft_type", "LORA")) not in _ALPHAS:
            raise AdapterError(
                f"{where}: {quoted(config['peft_type'])} is not supported; expected {', '.join(_ALPHAS)}"
            )
        used = [name for name in _UNKNOWN_OPTIONS if config.get(name)]
        if str(config.get("init_lora_weights")).startswith(_OTHER_BEGINNINGS):
            used.append(f"init_lora_weights = {quoted(config['init_lora_weights'])}")
        if used:
            raise AdapterError(f"{where}: {', '.join(used)} is not supported")
    return Scales(configs, where, text)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise AdapterError(f"{file} can't be read ({error})") from error


def _parsed(where: str, text: bytes) -> dict[str, Any]:
    try:
        return parse_json(text, where)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
