import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text import grammar
from sdjax.text.grammar import Alternate, Mark, Part, Pass, Prompt, Span, Switch, parse, resolve, to_text, weigh
from tests.golden import prompts

RECORDED = prompts.read("a1111")
PIECES = st.sampled_from(
    ["a", "b", " ", "(", ")", "[", "]", ":", "|", "3", ".5", "0.25", "[a:b:2]", "[c|d]", "(x:1.3)", "\\", "\n", "-",
     "1e2", " AND ", ":1.5", "BREAK", "[a:", ":2]", "AND", "\ud800", "\0", "é"]
)  # fmt: skip
ANY = st.text(st.characters(), max_size=40) | st.lists(PIECES, max_size=14).map("".join)
CASES = [pytest.param(case, id=f"{index}") for index, case in enumerate(RECORDED)]


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


def seen(schedule):
    """What each step, counted from 0, sees of a recorded schedule."""
    return [next(text for end, text in schedule if step <= end) for step in range(prompts.STEPS)]


def ours(part):
    ends = grammar.boundaries(part.pieces, Pass(prompts.STEPS))
    timed = [(end, grammar.resolve(part.pieces, end, Pass(prompts.STEPS))) for end in ends]
    ends = [end for end, _ in timed]
    return [timed[grammar.text_index(ends, step)][1] for step in range(prompts.STEPS)]


@pytest.mark.parametrize("case", CASES)
def test_every_step_sees_what_it_sees_in_the_web_ui(case):
    parts = parse(case["prompt"]).prompt.parts
    for part, recorded in zip(parts, case["parts"], strict=True):
        # More than one where the web UI's own reading changes from start to start.
        assert ours(part) in [seen(schedule) for schedule in recorded["schedules"]]
    assert ours(parse(case["prompt"], negative=True).prompt.parts[0]) in [seen(found) for found in case["negative"]]


# The examples in the web UI's own parser, of 10 steps and 10 of the second pass; and more by its rule.
@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("a [b:.5] c", [(10, "a b c")]),
        ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:3]", [(10, "a b")]),
        ("a [b:13]", [(3, "a "), (10, "a b")]),
        ("a [b:c:10]", [(10, "a c")]),
        ("a [b:c:25]", [(10, "a b")]),
        ("[a:b:1.25][c:d:17]", [(2, "ac"), (7, "bc"), (10, "bd")]),
        ("[a|b]", [(step, "ab"[(step - 1) % 2]) for step in range(1, 11)]),
    ],
)
def test_switches_go_on_in_a_second_pass_as_in_the_web_ui(text, schedule):
    pieces, span = parse(text).prompt.parts[0].pieces, Pass(10, before=10)
    assert [(end, resolve(pieces, end, span)) for end in grammar.boundaries(pieces, span)] == schedule


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_web_uis_to_the_last_bit(case):
    for text, spans in case["spans"].items():
        assert [list(span) for span in weigh(text)] == spans


def test_the_web_uis_reading_is_of_one_kind_where_brackets_are_balanced():
    doubtful = [case["prompt"] for case in RECORDED if any(len(part["schedules"]) > 1 for part in case["parts"])]
    assert all(parse(prompt).problems for prompt in doubtful)


def test_there_are_enough_cases():
    assert len(RECORDED) >= 60


# --- Properties ---


@settings(deadline=None, max_examples=400)
@given(text=ANY, negative=st.booleans())
def test_reading_print_and_reading_again_is_the_identity(text, negative):
    prompt = parse(text, negative=negative).prompt
    assert parse(to_text(prompt), negative=negative).prompt == prompt


@settings(deadline=None, max_examples=400)
@given(text=ANY, negative=st.booleans(), steps=st.integers(1, 30))
def test_anything_is_read_and_problems_are_at_a_letter_of_it(text, negative, steps):
    parsed = parse(text, negative=negative)
    for letter, message in (*parsed.problems, *grammar.step_problems(parsed.switches, Pass(steps))):
        assert 1 <= letter <= max(1, len(text)) and message
    for part in parsed.prompt.parts:
        for step in range(1, steps + 1):
            weigh(resolve(part.pieces, step, Pass(steps)))


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_characters="\\()[]:|"), max_size=60).filter(lambda text: "BREAK" not in text))
def test_a_weight_of_1_changes_nothing(text):
    assert weigh(f"({text}:1)") == weigh(text)
    assert weigh(f"(({text}:1.0): 1.)") == weigh(text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_characters="\\()[]:|"), max_size=60))
def test_escaped_signs_are_letters(text):
    escaped = f"\\({text}\\) \\[{text}\\] \\\\"
    if "BREAK" not in text and "AND" not in text:
        assert weigh(escaped) == (Span(f"({text}) [{text}] \\", 1.0),)
        assert messages(escaped) == []


@settings(deadline=None, max_examples=100)
@given(text=ANY, steps=st.integers(1, 12), before=st.none() | st.integers(0, 12))
def test_between_two_boundaries_the_text_does_not_change(text, steps, before):
    pieces = parse(text, negative=True).prompt.parts[0].pieces
    ends = grammar.boundaries(pieces, Pass(steps, before))
    assert ends == sorted(set(ends)) and ends[-1] == steps
    for step in range(1, steps + 1):
        end = min(end for end in ends if end >= step)
        assert resolve(pieces, step, Pass(steps, before)) == resolve(pieces, end, Pass(steps, before))


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


def test_the_web_ui_counts_steps_from_0_and_switches_a_step_late():
    ends = [3, 10]
    assert [grammar.text_index(ends, step) for step in range(10)] == [0] * 4 + [1] * 6


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


def step_messages(text, steps, before=None, *, followed=False):
    span = Pass(steps, before, followed)
    return [(letter, message) for letter, message in grammar.step_problems(parse(text).switches, span)]


@pytest.mark.parametrize("text", ["[a:b:5]", "[a:b:18]", "[a:b:0.9]", "[a:b:1]"])
def test_switches_of_which_both_sides_are_seen_are_no_problem(text):
    assert step_messages(text, 20) == []


@pytest.mark.parametrize(
    ("text", "letter", "told"),
    [
        ("x [a:b:0]", 3, "this switch, 0 of 20 steps, is over before the first step: its first text is never seen"),
        ("[a:b:0.01]", 1, "this switch, 0.01 of 20 steps, is over before the first step"),
        ("[a:b:-3]", 1, "is over before the first step"),
        (
            "a AND [a:b:25]",
            7,
            "this switch, 25 of 20 steps, comes after the last step: its second text is never seen; 18 is",
        ),
        ("[a:b:20]", 1, "comes after the last step"),
        ("[a:b:1.0]", 1, "comes after the last step"),
        ("[a:b:1.5]", 1, "comes after the last step"),
        ("[a:b:1e99]", 1, "comes after the last step"),
    ],
)
def test_switches_that_never_come_are_told(text, letter, told):
    ((at, message),) = step_messages(text, 20)
    assert at == letter and told in message


@pytest.mark.parametrize("weight", ["1,2", " -0,5", "- 1", "\u22121.5", ",5"])
def test_a_weight_of_a_part_that_is_no_number_is_a_problem(weight):
    [problem] = parse(f"a cat :{weight} AND a dog").problems
    assert problem.letter == 7 and "is no number and is read as text" in problem.message
    assert parse("a cat : 1.2 AND a dog:-1").problems == ()


@pytest.mark.parametrize(
    "text, weight", [("(a: 1.2)", 1.2), ("(a:1.2 )", 1.2), ("(a:-1)", -1), ("(a: -.5 )", -0.5), ("(a:+2)", 2)]
)
def test_weights_may_have_blanks_and_signs(text, weight):
    assert parse(text).problems == () and grammar.weigh(text) == (grammar.Span("a", weight),)


@pytest.mark.parametrize("text", ["(a:1,2)", "(a: 1, 2)", "(a:- 1)", "(a:1.2x)", "(a:\u22121)"])
def test_other_weights_are_problems(text):
    [problem] = parse(text).problems
    assert problem.letter == 3 and "is no number" in problem.message


def test_a_switch_may_come_in_either_pass():
    assert step_messages("[a:b:0.5] [c:d:20] [e:f:1.0] [g:h:1.5] [i:k:25]", 20, followed=True) == []
    assert step_messages("[a:b:0.5] [c:d:20] [e:f:1.0] [g:h:1.5] [i:k:25]", 10, 20) == []


def test_a_switch_that_comes_in_neither_pass_is_told_once():
    assert step_messages("[a:b:2.0] [c:d:0]", 20, followed=True) == [
        (11, "this switch, 0 of 20 steps, is over before the first step: its first text is never seen")
    ]
    assert step_messages("[a:b:2.0] [c:d:0]", 10, 20) == [
        (
            1,
            "this switch, 2.0 of 20 steps and 10 of the second pass, comes after the last step: its second text is "
            "never seen; 28 is the last step to give",
        )
    ]
