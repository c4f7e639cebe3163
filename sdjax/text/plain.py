"""The plain prompt syntax: every sign is text, and what does not fit into one chunk is cut, as in diffusers."""

from sdjax.text.chunks import make_chunk
from sdjax.text.prompt_editing import Pass
from sdjax.text.prompt_tokenizer import PromptTokenizer
from sdjax.text.readings import Branch, ReadPrompt, WeightedReadings, reading_of


def read_plain(prompt_tokenizer: PromptTokenizer, prompt: str, negative: bool, span: Pass) -> ReadPrompt:
    """Reads a prompt as text."""
    ids = prompt_tokenizer.encode(prompt)
    room = prompt_tokenizer.tokenizer.length - 2
    chunk = make_chunk(prompt_tokenizer.tokenizer, ids[:room], [1.0] * min(len(ids), room))
    text = WeightedReadings(((reading_of([chunk]), 1.0),), len(ids), prompt_tokenizer.decode(ids[room:]))
    return ReadPrompt((Branch((span.steps,), (text,), 1.0),), ())
