"""Prompts in AUTOMATIC1111's grammar: the recorded ones, and any at all."""

import pytest
from hypothesis import strategies as st

from tests.golden import prompts

RECORDED = prompts.read("a1111")
PIECES = st.sampled_from(
    ["a", "b", " ", "(", ")", "[", "]", ":", "|", "3", ".5", "0.25", "[a:b:2]", "[c|d]", "(x:1.3)", "\\", "\n", "-",
     "1e2", " AND ", ":1.5", "BREAK", "[a:", ":2]", "AND", "\ud800", "\0", "é"]
)  # fmt: skip
ANY = st.text(st.characters(), max_size=40) | st.lists(PIECES, max_size=14).map("".join)
CASES = [pytest.param(case, id=f"{index}") for index, case in enumerate(RECORDED)]


def seen(schedule):
    """What each step, counted from 0, sees of a recorded schedule."""
    return [next(text for end, text in schedule if step <= end) for step in range(prompts.STEPS)]
