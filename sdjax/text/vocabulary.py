"""CLIP's byte-pair vocabulary, whole or cut down to what a set of words needs.

The rules are those of OpenAI's CLIP (`simple_tokenizer.py`): 256 byte symbols, the same at the end of a word,
48,894 merges, and two special tokens.
"""

import gzip
import importlib.resources
import itertools
import json
import tempfile
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from sdjax.text.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
# What Stable Diffusion 2 fills up prompts with: token 0. Version 1 does so with the end token.
PADDING_2 = "!"
_WORD_END = "</w>"
# The merges that CLIP uses of the file's 262,144 lines: 49,152 symbols less 256 bytes and the two specials.
_MERGES_USED = 49152 - 256 - 2


class Vocabulary(NamedTuple):
    """What `vocab.json` and `merges.txt` hold."""

    tokens: dict[str, int]
    merges: tuple[tuple[str, str], ...]


def _byte_symbols() -> list[str]:
    """A printable character for each byte, in the order in which CLIP numbers them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _from_merges(merges: Iterable[tuple[str, str]]) -> Vocabulary:
    merges = tuple(merges)
    letters = _byte_symbols()
    symbols = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, merges), START, END]
    return Vocabulary({symbol: index for index, symbol in enumerate(symbols)}, merges)


def clip_vocabulary() -> Vocabulary:
    """CLIP's whole vocabulary of 49,408 tokens."""
    packed = importlib.resources.files("sdjax.assets").joinpath("clip/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + _MERGES_USED]
    return _from_merges((left, right) for left, right in (line.split() for line in lines))


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The merges which byte-pair encoding applies to an ASCII word."""
    symbols = [*word[:-1], word[-1] + _WORD_END]
    used: set[tuple[str, str]] = set()
    while len(symbols) > 1:
        pair = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        used.add(pair)
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == pair:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return used


def cut_down(vocabulary: Vocabulary, words: Iterable[str]) -> Vocabulary:
    """The smallest vocabulary that splits these (lower-case ASCII) words just as the whole one does.

    Other words still have tokens: they are split further, down to bytes at worst.
    """
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
    used: set[tuple[str, str]] = set()
    for word in sorted(set(words)):
        used |= _merges_of(word, ranks)
    return _from_merges(pair for pair in vocabulary.merges if pair in used)


def write_tokenizer(folder: Path, vocabulary: Vocabulary, max_length: int, padding: str = END) -> None:
    """Writes a tokenizer folder as transformers does, padded with the end token as SD1's (SD2's has "!")."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = json.dumps(vocabulary.tokens, ensure_ascii=False)
    folder.joinpath("vocab.json").write_text(tokens + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary.merges)]
    folder.joinpath("merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": padding,
    }
    folder.joinpath("tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def clip_tokenizer(length: int, padding: str, others: Mapping[str, str] = types.MappingProxyType({})) -> Tokenizer:
    """CLIP's tokenizer, for checkpoints that bring no folder of their own.

    Args:
      length: positions of the text encoder.
      padding: the token that fills up prompts.
      others: files by name that are in the folder instead; if there is a vocabulary among them, it is not CLIP's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not {"vocab.json", "tokenizer.json"} & others.keys():
            write_tokenizer(folder, clip_vocabulary(), length, padding)
        for file, text in others.items():
            (folder / file).write_text(text, "utf-8")
        return Tokenizer(folder, length)
