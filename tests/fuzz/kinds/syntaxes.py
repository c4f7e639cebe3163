"""Prompts of all four syntaxes, as far as what the text encoder reads."""

import random
import re
from pathlib import Path

from sdjax.jobs.job import MAX_PROMPT
from sdjax.text import readings
from sdjax.text.prompt_tokenizer import FIRST_VECTOR
from sdjax.text.readings import PromptError
from sdjax.text.tokenize_prompt import SYNTAXES, TokenizedPrompt, tokenize_prompt
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import END, clip_vocabulary, cut_down, write_tokenizer
from tests.fuzz.kinds.templates import check_message
from tests.toys import LENGTH, WORDS

SIGNS = (
    *r"()[]<>{}:|\"'+-.,=_~*#/ ab12", "\\", "\\(", "\\)", "(", "(", ")", "[a:b:", "[a|", "|b]", ":0.5]",
    ":1.2)", ": 1.2 )",
    ":1,2)", ":-1)", ":1e9)", ":9999999999)", " AND ", " BREAK ", ":1.2 AND ", "++", "--", ")1.2",
    ") 1.2", ")1,2", ")-1",
    '("', '", "', '").and()', '").blend(1, 2)', '").blend(1,)', ".swap(", ".attend(", 'withLora(a, 1)', "<lora:a:1>",
    "<lora:", "<a:", "<hypernet:b:x>", "< lora :", "embedding:cat", "embedding:", " embedding:no ", "xembedding:cat",
    "<cat-toy>", "<monster-toy>", "cat", "cats", "a photo of", "monster", "漢字", "é", "e\u0301", "\u0301\u0323", "😀",
    "\ud800", "\0", "\x1b[31m", "\u202e", "\n", "\r", "\t", "\u00a0", "\u2028", "\u22121", "\uff1a",
    "1" * 50, "<|endoftext|>",
)  # fmt: skip
EMBEDDINGS = {"cat": 2, "<cat-toy>": 3, "monster": 1, "a photo": 80, "(": 1, "e\u0301": 2, " ": 1, "b:1": 4}
_tokenizers: list[Tokenizer] = []


def warm(folder: Path) -> None:
    """Reads the tokenizers."""
    vocabulary = cut_down(clip_vocabulary(), WORDS)
    for padding in (END, "!"):
        write_tokenizer(folder / padding.strip("<|>"), vocabulary, LENGTH, padding)
        _tokenizers.append(Tokenizer(folder / padding.strip("<|>"), LENGTH))
    case(random.Random(0), folder)


def case(rng: random.Random, folder: Path) -> bool:
    """A prompt and its negative."""
    prompt, negative = text(rng), text(rng) if rng.random() < 0.3 else ""
    steps = rng.choice([1, 2, 20, 1000])
    try:
        found = tokenize_prompt(
            rng.choice(_tokenizers),
            prompt,
            negative,
            syntax=rng.choice(list(SYNTAXES)),
            emphasis=rng.choice(["original", "no_norm", "ignore"]),
            steps=steps,
            embeddings=rng.choice([EMBEDDINGS, {}]),
        )
    except PromptError as error:
        check_message(str(error))
        assert str(error).startswith(("prompt: ", "negative_prompt: ")) and "expected up to" in str(error)
        return True
    check(found, steps, {"prompt": prompt, "negative_prompt": negative})
    return bool(found.problems)


def check(found: TokenizedPrompt, steps: int, texts: dict[str, str]) -> None:
    """Everything is of its size and within its limits, and what is told lies in the prompts."""
    assert len(found.schedule) == steps
    for row in found.schedule:
        assert len(row) == len(found.part_weights) + 1 <= readings.MAX_PARTS + 1
        assert all(0 <= place < len(found.texts) for place in row)
    assert sum(len(reading.ids) for reading in found.readings) <= 3 * readings.MAX_CHUNKS_OF_TEXTS
    for reading in found.readings:
        assert 0 < len(reading.ids) == len(reading.weights) <= readings.MAX_CHUNKS
        assert {len(row) for row in (*reading.ids, *reading.weights, *(reading.mask or ()))} == {LENGTH}
        assert all(index < FIRST_VECTOR + sum(found.vectors) for row in reading.ids for index in row)
    for told in found.problems:
        check_message(told)
        place = re.match(r"(prompt|negative_prompt), letter (\d+): ", told)
        if place:
            assert 1 <= int(place[2]) <= len(texts[place[1]]) + 1, told


def text(rng: random.Random) -> str:
    """A prompt, more or less, of as many letters as a job may have."""
    return _text(rng)[:MAX_PROMPT]


def _text(rng: random.Random) -> str:
    signs = rng.choice([SIGNS, rng.sample(SIGNS, 8), ("a cat", " ", *rng.sample(SIGNS, 3))])
    pieces = [rng.choice(signs) for _ in range(rng.choice([1, 3, 8, 20, 60]))]
    kind = rng.random()
    if kind < 0.2:
        return "".join(pieces[:2]) * rng.choice([10, 40, 1000, 20_000])
    if kind < 0.3:
        depth = rng.choice([3, 21, 300, 10_000])
        opening, closing = rng.choice(
            [("(", ")"), ("[", ":5]"), ("(", ":1.1)"), ("[a|", "]"), ("(", ")0.5"), ('"', '"')]
        )
        return opening * depth + "".join(pieces[:3]) + closing * depth
    if kind < 0.4:
        return rng.choice([" AND ", " BREAK ", "|", '", "', " "]).join(pieces * rng.choice([1, 20, 400]))
    return "".join(pieces)
