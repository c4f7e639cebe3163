"""How errors quote values and names that users wrote: bounded, printable, and with a near match."""

import difflib
from collections.abc import Iterable

# The most characters of a value that are quoted, and of a name for which near matches are looked for.
_MOST_LETTERS, _LONGEST_NAME = 300, 100


def quoted(value: object) -> str:
    """A value for an error's text: its repr, of at most a few hundred characters."""
    if isinstance(value, str | bytes):  # so that no long text is written twice
        value = value[: _MOST_LETTERS + 1]
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} of hundreds of levels"
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def printable(text: str) -> str:
    """A text in which control characters are written as escapes."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def near_match(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ " (did you mean 'steps'?)", or nothing if none of what is known is near."""
    if len(word) > _LONGEST_NAME:
        return ""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, cutoff)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""
