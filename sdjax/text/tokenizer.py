"""CLIP's tokenizer: prompts to token ids, with what did not fit."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CLIPTokenizer

from sdjax.text.tokenizer_files import TokenizerError, check_files, text_length

__all__ = ["Tokenizer", "TokenizerError", "Tokens"]

# The files of a tokenizer's folder that are read, and that digests of checkpoints are over.
_ENDINGS = (".json", ".txt")
# What a config may say that makes transformers open files. All of it is found in the folder under its usual name.
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
_FILES = ("vocab_file", "merges_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file")
_NOT_NAMED = ("vocab", "merges", "tokenizer_object", "gguf_file", "spm_file")
_MOST_SHOWN = 200


class Tokens(NamedTuple):
    """One prompt, ready for the text encoder.

    ids: start, prompt, end, and padding up to the encoder's length.
    total: how many the whole prompt has, start and end not counted.
    cut: the text of the tokens that did not fit; empty if all did.
    """

    ids: tuple[int, ...]
    total: int
    cut: str


class Tokenizer:
    """CLIP's byte-pair tokenizer as a checkpoint saves it (`vocab.json` and `merges.txt`, or `tokenizer.json`)."""

    def __init__(self, folder: Path, length: int) -> None:
        """Reads a tokenizer folder.

        Args:
          folder: as written by transformers.
          length: positions of the text encoder. Texts have as many tokens, or as the folder's `model_max_length` says.

        Raises:
          TokenizerError: if files are missing, do not parse, or name files that do not lie in the folder; if they say a
            length that the text encoder does not have.
        """
        if not (folder / "tokenizer.json").is_file() and not (
            (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        ):
            raise TokenizerError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")
        read = check_files(folder)
        for name in _CONFIGS:
            _check_config(read.get(name, {}), folder / name)
        self._tokenizer = _read(folder)
        self.length = text_length(read.get(_CONFIGS[0], {}), length, str(folder / "tokenizer_config.json"))
        self.start, self.end, self.padding = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        for kind, token in (("bos_token", self.start), ("eos_token", self.end), ("pad_token", self.padding)):
            if not isinstance(token, int):
                raise TokenizerError(f"{folder}: tokenizer_config.json: no {kind}; expected a token of the vocabulary")
        # Texts are given to the library's own tokenizer in Rust: what it does around that takes as long again. One call
        # in full sets that up: without truncation and padding, and with special tokens as the config says.
        self._tokenizer("", add_special_tokens=False, verbose=False)
        self._backend = self._tokenizer.backend_tokenizer
        vocabulary = self._tokenizer.get_vocab()
        # One more than the greatest number of a token: numbers may be left out.
        self.size = max(vocabulary.values()) + 1
        # The token of a comma with a space or nothing after it.
        self.comma = vocabulary.get(",</w>")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        # Half of a surrogate pair is no character; the tokenizer refuses it.
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._backend.encode(readable, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, in lower case and with single spaces."""
        return self._tokenizer.decode(list(ids)) if ids else ""

    def __call__(self, text: str) -> Tokens:
        """The tokens of one prompt."""
        ids = self.encode(text)
        room = self.length - 2
        padding = [self.padding] * max(0, room - len(ids))
        return Tokens((self.start, *ids[:room], self.end, *padding), len(ids), self.decode(ids[room:]))


def _read(folder: Path) -> Any:
    """The library's tokenizer of a folder's files, where it finds no others."""
    with tempfile.TemporaryDirectory() as name:
        for file in sorted(folder.iterdir()):
            if file.suffix in _ENDINGS and file.is_file():
                (Path(name) / file.name).symlink_to(file.absolute())
        try:
            return CLIPTokenizer.from_pretrained(name, local_files_only=True, **dict.fromkeys(_FILES))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # bare Exception for files that do not parse, a panic of its Rust code for some
            said = str(error).replace(name, str(folder))[: len(str(folder)) + _MOST_SHOWN]
            why = "".join(letter for letter in said if letter.isprintable())
            raise TokenizerError(f"{folder} does not hold a CLIP tokenizer: {why}") from error


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raises `TokenizerError` if a config names files elsewhere than beside it."""
    for key in _NOT_NAMED:
        if isinstance(config.get(key), str):
            _refuse(
                where, key, config[key], "nothing: vocab.json, merges.txt and tokenizer.json of the folder are read"
            )
    if config.get("init_inputs"):
        _refuse(where, "init_inputs", config["init_inputs"], "nothing")
    versions = config.get("fast_tokenizer_files") or []
    for name in versions if isinstance(versions, list) else [versions]:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            _refuse(where, "fast_tokenizer_files", name, "names of files in the folder")
    for key in _FILES if where.name != _CONFIGS[0] else ():
        if config.get(key) is not None:
            _refuse(where, key, config[key], "tokens")


def _refuse(where: Path, key: str, found: Any, expected: str) -> None:
    raise TokenizerError(
        f"{where}: {key} = {repr(found)[:_MOST_SHOWN]}: expected {expected}; a tokenizer is read from its own folder "
        f"alone, so put the file there and take {key} out of the config"
    )
