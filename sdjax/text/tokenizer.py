"""Prompts to token ids, with an account of what did not fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import CLIPTokenizer


class TokenizerError(ValueError):
    """A tokenizer folder can't be read."""


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
          length: positions of the text encoder.

        Raises:
          TokenizerError: if files are missing or do not parse.
        """
        if not (folder / "tokenizer.json").is_file() and not (
            (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
        ):
            raise TokenizerError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt")
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises bare Exception for files that do not parse
            raise TokenizerError(f"{folder} does not hold a CLIP tokenizer: {error}") from error
        self.length = length
        self.start, self.end, self.padding = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        self.size = len(self._tokenizer)
        # The token of a comma with a space or nothing after it.
        self.comma = self._tokenizer.get_vocab().get(",</w>")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        # Half of a surrogate pair is no character; the tokenizer refuses it.
        readable = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._tokenizer(readable, add_special_tokens=False, verbose=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, in lower case and with single spaces."""
        return self._tokenizer.decode(list(ids)) if ids else ""

    def __call__(self, text: str) -> Tokens:
        """The tokens of one prompt."""
        ids = self.encode(text)
        room = self.length - 2
        padding = [self.padding] * max(0, room - len(ids))
        return Tokens((self.start, *ids[:room], self.end, *padding), len(ids), self.decode(ids[room:]))
