import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.text.a1111 import parse
from sdjax.text.emphasis import Span, weigh
from tests.text.a1111_prompts import CASES


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_web_uis_to_the_last_bit(case):
    for text, spans in case["spans"].items():
        assert [list(span) for span in weigh(text)] == spans


@given(text=st.text(st.characters(exclude_characters="\\()[]:|"), max_size=60).filter(lambda text: "BREAK" not in text))
def test_a_weight_of_1_changes_nothing(text):
    assert weigh(f"({text}:1)") == weigh(text)
    assert weigh(f"(({text}:1.0): 1.)") == weigh(text)


@given(text=st.text(st.characters(exclude_characters="\\()[]:|"), max_size=60))
def test_escaped_signs_are_letters(text):
    escaped = f"\\({text}\\) \\[{text}\\] \\\\"
    if "BREAK" not in text and "AND" not in text:
        assert weigh(escaped) == (Span(f"({text}) [{text}] \\", 1.0),)
        assert parse(escaped).problems == ()


@pytest.mark.parametrize(
    "text, weight", [("(a: 1.2)", 1.2), ("(a:1.2 )", 1.2), ("(a:-1)", -1), ("(a: -.5 )", -0.5), ("(a:+2)", 2)]
)
def test_weights_may_have_blanks_and_signs(text, weight):
    assert parse(text).problems == () and weigh(text) == (Span("a", weight),)
