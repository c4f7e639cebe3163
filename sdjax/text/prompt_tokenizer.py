"""The tokenizer of prompts, in which the names of embeddings (textual inversions) stand for vectors.

Where a prompt names one is up to its syntax: in the web UI's anywhere, by the tokens of the name; in ComfyUI's behind
`embedding:`; in the others as a word of its own.
"""

import bisect
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sdjax.library.finding import hint
from sdjax.text.tokenizer import Tokenizer

# Ids from this one on are no tokens, but the vectors of the embeddings of a prompt, one after the other.
FIRST_VECTOR = 1 << 30
# A word as diffusers' concepts are called: <monster-toy>. What is within it is no word of its own.
_ANGLED = re.compile(r"<[^\s<>]+>")
# Letters that are brought into one form at once; all marks of such a piece may be sorted, which takes their square.
_PIECE = re.compile("[\0-\u02ff]+[^\0-\u02ff]{0,1024}|[^\0-\u02ff]{1,1024}")
# How files end of which ComfyUI's prompts may say the ending too.
_ENDINGS = ("safetensors", "pt", "bin")


class EmbeddingMatch(NamedTuple):
    """An embedding at some place of a row of tokens, and how many of these are its name."""

    name: str
    length: int


class PromptTokenizer:
    """The text encoder's tokenizer and the embeddings there are; it remembers those that were named.

    embeddings: the ids of each embedding that was named, in the order of first use; all together they are the numbers
      from `FIRST_VECTOR` on.
    left_as_text: words in angle brackets that are left as they are although a name is in them, and that name.
    """

    def __init__(self, tokenizer: Tokenizer, vectors: Mapping[str, int]) -> None:
        """Before anything of a prompt is read.

        Args:
          tokenizer: of the text encoder.
          vectors: the names of the embeddings, and how many vectors each has; of an embedding that is not named, the
            number is never asked for.
        """
        self.tokenizer = tokenizer
        self.embeddings: dict[str, range] = {}
        self.left_as_text: dict[str, str] = {}
        self._vectors = vectors

    @property
    def has_embeddings(self) -> bool:
        """Whether there are any that a prompt can name."""
        return bool(self._vectors)

    def embedding_ids(self, name: str) -> range:
        """The ids of an embedding's vectors."""
        if name not in self.embeddings:
            start = FIRST_VECTOR + sum(map(len, self.embeddings.values()))
            self.embeddings[name] = range(start, start + self._vectors[name])
        return self.embeddings[name]

    # --- AUTOMATIC1111 ---

    def embedding_at(self, tokens: Sequence[int], position: int) -> EmbeddingMatch | None:
        """The embedding whose name's tokens stand at a place; if there are several, the one with the most tokens."""
        for ids, name in self._by_first_token.get(tokens[position], ()):
            if tuple(tokens[position : position + len(ids)]) == ids:
                return EmbeddingMatch(name, len(ids))
        return None

    def split_at_angled(self, text: str) -> Iterator[tuple[str, str | None, bool]]:
        """A text in pieces around words in angle brackets: its embedding if it is one, and whether names may be in it.

        The web UI puts vectors into the middle of `<cat-toy>` if there is a `cat`; here it is the concept of that name,
        or left as it is.
        """
        end = 0
        for found in _ANGLED.finditer(text) if self._vectors else ():
            word = found[0]
            tokens = self.tokenizer.encode(word)
            inner = next((name for at in range(len(tokens)) if (name := self.embedding_at(tokens, at))), None)
            if word not in self._vectors and inner is None:
                continue
            if end < found.start():
                yield text[end : found.start()], None, True
            if word not in self._vectors and inner:
                self.left_as_text[word] = inner.name
            yield word, word if word in self._vectors else None, False
            end = found.end()
        if end < len(text):
            yield text[end:], None, True

    @functools.cached_property
    def _by_first_token(self) -> Mapping[int, Sequence[tuple[tuple[int, ...], str]]]:
        return _by_first_token(self.tokenizer, tuple(self._vectors))

    # --- Names as words of their own ---

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which names are words, in upper or lower case, with no letter or digit beside them.

        diffusers adds names to the tokenizer, which finds them inside other words too. There each of them was asked for
        by its user; here all that a folder holds are known, and an `art` in it is not meant by `artist`.
        """
        names = self._within(text)
        if not names:
            return self.tokenizer.encode(text)
        text = _composed(text)
        angled = [found.span() for found in _ANGLED.finditer(text)]
        ids: list[int] = []
        end = 0
        for found in re.finditer("|".join(map(_pattern, names)), text, re.IGNORECASE):
            place = bisect.bisect_right(angled, (found.start(), len(text))) - 1
            start, stop = angled[place] if place >= 0 else (0, 0)
            if found.end() <= stop and (found.start(), found.end()) != (start, stop):
                self.left_as_text[text[start:stop]] = names[(found.lastindex or 1) - 1]
                continue
            ids += self.tokenizer.encode(text[end : found.start()])
            ids += self.embedding_ids(names[(found.lastindex or 1) - 1])
            end = found.end()
        return ids + self.tokenizer.encode(text[end:])

    def _within(self, text: str) -> list[str]:
        """The names that occur in a text at all, the longest first; of those that are read alike, one as it stands."""
        low = _lower(text)
        names = [name for key, name in _by_lower(tuple(self._vectors)) if key in low]
        return sorted(names, key=lambda name: (-len(_lower(name)), name not in text, name))

    # --- ComfyUI ---

    def comfyui_embedding(self, word: str) -> tuple[str | None, str]:
        """The embedding that `embedding:word` names, and what of the word is behind the name.

        A name may have a file's ending, and commas behind it.
        """
        stripped = word.strip(",")
        for given in dict.fromkeys((word, stripped)):
            stem, _, ending = given.rpartition(".")
            for name in (given, stem) if ending in _ENDINGS else (given,):
                if name in self._vectors:
                    return name, word[word.index(given) + len(given) :]
        return None, word[word.index(stripped) + len(stripped) :]

    def near_names(self, word: str) -> str:
        """What to write instead of a name that is not there."""
        if meant := hint(word.strip(","), self._vectors, 2):
            return meant
        return "; there are none, set library.embeddings" if not self._vectors else "; its file is not in the folder"

    # --- What was read ---

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, in which an embedding has its name, even if only some of its vectors are there."""
        texts: list[str] = []
        tokens: list[int] = []
        last = -1
        for index in ids:
            if index < FIRST_VECTOR:
                tokens.append(index)
            else:
                name, own = next((name, own) for name, own in self.embeddings.items() if index in own)
                if index == own.start or index != last + 1:
                    texts += [self.tokenizer.decode(tokens), name]
                    tokens.clear()
            last = index
        return " ".join(filter(None, [*texts, self.tokenizer.decode(tokens)]))


@functools.lru_cache(maxsize=8)
def _by_first_token(
    tokenizer: Tokenizer, names: tuple[str, ...]
) -> Mapping[int, Sequence[tuple[tuple[int, ...], str]]]:
    """The tokens of names, by the first of them, the longest first."""
    found: dict[int, list[tuple[tuple[int, ...], str]]] = {}
    for name in sorted(names):
        ids = tuple(tokenizer.encode(name))
        if ids:
            found.setdefault(ids[0], []).append((ids, name))
    return {first: sorted(rows, key=lambda row: -len(row[0])) for first, rows in found.items()}


@functools.lru_cache(maxsize=8)
def _by_lower(names: tuple[str, ...]) -> Sequence[tuple[str, str]]:
    return [(_lower(name), name) for name in names if name.strip()]


def _lower(text: str) -> str:
    """A text in which all that the tokenizer reads alike is alike."""
    return " ".join(_composed(text).lower().split())


def _composed(text: str) -> str:
    """The text in Unicode's composed form, in time that goes with its length however many marks a letter has."""
    return "".join(unicodedata.normalize("NFC", piece) for piece in _PIECE.findall(text))


def _pattern(name: str) -> str:
    """A group that matches a name, with any spaces in it, where it stands alone."""
    name = _composed(name).strip()
    words = r"\s+".join(map(re.escape, name.split()))
    return ("(?<![^\\W_])" if name[0].isalnum() else "") + f"({words})" + ("(?![^\\W_])" if name[-1].isalnum() else "")
