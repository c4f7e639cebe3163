import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.text.a1111 import Part, Prompt, parse, to_text
from sdjax.text.emphasis import weigh
from sdjax.text.prompt_editing import Alternate, Mark, Pass, Switch, resolve, step_problems
from tests.text.a1111_prompts import ANY, CASES, RECORDED


def messages(text, *, negative=False):
    return [(letter, message) for letter, message in parse(text, negative=negative).problems]


def problem(text):
    ((letter, message),) = messages(text)
    return letter, message


# --- As the web UI reads ---


@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_web_uis(case):
    prompt = parse(case["prompt"]).prompt
    assert [part.weight for part in prompt.parts] == [part["weight"] for part in case["parts"]]


def test_the_web_uis_reading_is_of_one_kind_where_brackets_are_balanced():
    doubtful = [case["prompt"] for case in RECORDED if any(len(part["schedules"]) > 1 for part in case["parts"])]
    assert all(parse(prompt).problems for prompt in doubtful)


def test_there_are_enough_cases():
    assert len(RECORDED) >= 60


# --- Properties ---


@given(text=ANY, negative=st.booleans())
def test_reading_print_and_reading_again_is_the_identity(text, negative):
    prompt = parse(text, negative=negative).prompt
    assert parse(to_text(prompt), negative=negative).prompt == prompt


@given(text=ANY, negative=st.booleans(), steps=st.integers(1, 30))
def test_anything_is_read_and_problems_are_at_a_letter_of_it(text, negative, steps):
    parsed = parse(text, negative=negative)
    for letter, message in (*parsed.problems, *step_problems(parsed.switches, Pass(steps))):
        assert 1 <= letter <= max(1, len(text)) and message
    for part in parsed.prompt.parts:
        for step in range(1, steps + 1):
            weigh(resolve(part.pieces, step, Pass(steps)))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000 + "a" + ")" * 50_000,
        "[a:" * 3_000 + ":3]" * 3_000,
        "[a|" * 3_000 + "b]" * 3_000,
        "(a " * 5_000,
        "[(a" * 3_000 + "]" * 3_000,
        " " * 100_000 + "BREAK" + " " * 100_000,
        "a:" * 50_000,
        "a AND " * 5_000,
        "\\" * 100_001,
        ":" + " " * 100_000 + "1",
    ],
    ids=lambda text: repr(text[:6]),
)
def test_no_prompt_is_too_long_or_too_deep(text):
    start = time.monotonic()
    parsed = parse(text)
    assert parse(to_text(parsed.prompt)).prompt == parsed.prompt
    for part in parsed.prompt.parts[:3]:
        weigh(resolve(part.pieces, 3, Pass(20)))
    assert time.monotonic() - start < 30  # seconds, of which one or two are needed


# --- What a prompt is made of ---


def test_a_prompt_is_a_row_of_pieces():
    assert parse("a [b:c:3]d :1.5 AND [e|f]").prompt == Prompt(
        (
            Part(("a ", Switch(3), "b", Mark.NEXT, "c", Mark.END, "d"), 1.5),
            Part((" ", Alternate(2), "e", Mark.NEXT, "f", Mark.END), 1.0),
        ),
        False,
    )


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a [b: 3 ]", "a [:b:3]"),
        ("[a:b:+.50]", "[a:b:0.5]"),
        ("[a:b:1e1]", "[a:b:10]"),
        ("[a:b:1.e-7]", "[a:b:0.0000001]"),
        ("a  :  1.20  AND b", "a:1.2 AND b"),
        ("a:2:1", "a:2:1.0"),
        ("(a:1.20) [b]", "(a:1.20) [b]"),
    ],
)
def test_prompts_are_printed_shortly(text, printed):
    assert to_text(parse(text).prompt) == printed


# --- What is told ---


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "(a:1.2) [b] ((c))",
        "[a:b:5] [c|d] [[e]:.3]",
        r"\(a\) \[b\] :\)",
        "a AND b :1.2",
        "a | b",
        "a BREAK b",
    ],
)
def test_well_formed_prompts_have_no_problems(text):
    assert messages(text) == []


@pytest.mark.parametrize(
    ("text", "letter", "told"),
    [
        ("a (cat", 3, r"( is never closed; close it with ), or write \( for the sign itself"),
        ("a [cat", 3, r"[ is never closed; close it with ], or write \[ for the sign itself"),
        ("a cat)", 6, r") closes nothing; open it with (, or write \) for the sign itself"),
        ("cat]", 4, "] closes nothing"),
        ("(a [b) c", 4, "[ is never closed"),
        ("a AND (b", 7, "( is never closed"),
        ("(cat:big)", 5, "the weight 'big' is no number; write a number like 1.2"),
        ("(cat:1,3)", 5, "the weight '1,3' is no number; write 1.3"),
        ("(cat:1.2.3)", 5, "is no number"),
        ("[a:b]", 1, "this [ ] does not switch: 'b' is no step; write a number like 5, or a fraction like 0.5"),
        ("x [a:b:c:5]", 3, "it has too many :"),
        ("[a|b:5]", 1, "it has both : and |"),
        ("[(a:b:1.2):c:5]", 1, "a bracket in it is not well formed"),
        ("[a:b:5] c|d", 1, r"the | at letter 10, which is not between options, takes it away; write \| there"),
        ("[a:b:5] c\\", 1, "a \\ at the end of a line"),
        ("a AND ", 3, "an AND has nothing beside it"),
        (" AND b", 2, "an AND has nothing beside it"),
        ("a AND AND b", 3, "an AND has nothing beside it"),
        ("(a BREAK b)", 4, "a BREAK in weighted brackets is a word"),
        (f"a:{'9' * 400}", 402, "no finite number"),
    ],
)
def test_what_is_wrong_is_told_with_its_letter(text, letter, told):
    at, message = problem(text)
    assert at == letter and told in message


@pytest.mark.parametrize("weight", ["1,2", " -0,5", "- 1", "\u22121.5", ",5"])
def test_a_weight_of_a_part_that_is_no_number_is_a_problem(weight):
    [problem] = parse(f"a cat :{weight} AND a dog").problems
    assert problem.letter == 7 and "is no number and is read as text" in problem.message
    assert parse("a cat : 1.2 AND a dog:-1").problems == ()


@pytest.mark.parametrize("text", ["(a:1,2)", "(a: 1, 2)", "(a:- 1)", "(a:1.2x)", "(a:\u22121)"])
def test_other_weights_are_problems(text):
    [problem] = parse(text).problems
    assert problem.letter == 3 and "is no number" in problem.message
