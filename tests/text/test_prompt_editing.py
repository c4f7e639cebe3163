import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text.a1111 import parse
from sdjax.text.prompt_editing import Pass, boundaries, resolve, step_problems, text_index
from tests.golden import prompts
from tests.text.a1111_prompts import ANY, CASES, seen


def ours(part):
    ends = boundaries(part.pieces, Pass(prompts.STEPS))
    timed = [(end, resolve(part.pieces, end, Pass(prompts.STEPS))) for end in ends]
    ends = [end for end, _ in timed]
    return [timed[text_index(ends, step)][1] for step in range(prompts.STEPS)]


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
    assert [(end, resolve(pieces, end, span)) for end in boundaries(pieces, span)] == schedule


@settings(deadline=None, max_examples=100)
@given(text=ANY, steps=st.integers(1, 12), before=st.none() | st.integers(0, 12))
def test_between_two_boundaries_the_text_does_not_change(text, steps, before):
    pieces = parse(text, negative=True).prompt.parts[0].pieces
    ends = boundaries(pieces, Pass(steps, before))
    assert ends == sorted(set(ends)) and ends[-1] == steps
    for step in range(1, steps + 1):
        end = min(end for end in ends if end >= step)
        assert resolve(pieces, step, Pass(steps, before)) == resolve(pieces, end, Pass(steps, before))


def test_the_web_ui_counts_steps_from_0_and_switches_a_step_late():
    ends = [3, 10]
    assert [text_index(ends, step) for step in range(10)] == [0] * 4 + [1] * 6


def step_messages(text, steps, before=None, *, followed=False):
    span = Pass(steps, before, followed)
    return [(letter, message) for letter, message in step_problems(parse(text).switches, span)]


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
