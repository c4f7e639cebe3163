"""Problems of prompts: what can't be read as it was probably meant, and where it stands."""

from typing import NamedTuple


class Problem(NamedTuple):
    """Something that can't be read as it was probably meant.

    letter: where, counted from 1.
    message: what is wrong, and what to do.
    """

    letter: int
    message: str


def shortened(text: str, most: int = 20) -> str:
    """A text as a problem quotes it: of at most so many characters."""
    return repr(text if len(text) <= most else text[:most] + "...")
