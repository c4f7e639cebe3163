import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.text.compel import parse
from sdjax.text.compel_grammar import Fragment
from sdjax.text.tags import Tag

PIECES = st.sampled_from(
    ["a", "cat ", " ", "(", ")", "+", "-", "++", ", ", ".", "1.2", '"', "\\(", "=", "(big dog)1.3", ".swap(x)", "\n",
     "\t", '("a", "b c").blend(1, 0.5)', '("a", "b").and()', "withLora(x,1)", ".attend(1.5)", "\x0b", "\ud800", "\0"]
)  # fmt: skip
ANY = st.text(st.characters(), max_size=40) | st.lists(PIECES, max_size=12).map("".join)


def fragments(text):
    """Of a prompt that is one text."""
    (part,) = parse(text).parts
    ((found, share),) = part.sum
    assert (share, part.weight) == (1.0, 1.0)
    return list(found)


@given(text=ANY)
def test_anything_is_read_and_problems_are_at_a_letter_of_it(text):
    parsed = parse(text)
    assert parsed.parts and all(part.sum and all(blended.fragments for blended in part.sum) for part in parsed.parts)
    for letter, message in parsed.problems:
        assert 1 <= letter <= max(1, len(text)) and message


@given(words=st.lists(st.sampled_from(["a", "red", "cat", "castle"]), min_size=1, max_size=6))
def test_a_weight_of_1_changes_nothing(words):
    text = " ".join(words)
    assert fragments(f"({text})1.0") == fragments(f'"{text}"1') == fragments(text) == [Fragment(text, 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a cat,a  dog", [("a cat, a dog", 1.0)]),
        ("cat++ dog", [("cat", 1.1**2), ("dog", 1.0)]),
        ("(a cat)--", [("a cat", 0.9**2)]),
        ("(a (red)+ cat)1.2", [("a", 1.2), ("red", 1.2 * 1.1), ("cat", 1.2)]),
        ('"a cat"1.5', [("a cat", 1.5)]),
        ("cat.attend(1.4)", [("cat", 1.4)]),
        ("(cat)-0.5", [("cat", 0.9), ("0.5", 1.0)]),
        (r"\(cat\)", [("(cat)", 1.0)]),
        ("sci-fi a+b", [("sci-fi a+b", 1.0)]),
        ("cat ++", [("cat ++", 1.0)]),
    ],
)
def test_weights(text, expected):
    assert fragments(text) == [Fragment(*fragment) for fragment in expected]


def test_a_blend_is_a_sum_with_shares():
    (part,) = parse('("a cat", "a dog++").blend(3, 1)').parts
    assert [(blended.fragments, blended.share) for blended in part.sum] == [
        ((Fragment("a cat", 1.0),), 0.75),
        ((Fragment("a", 1.0), Fragment("dog", 1.1**2)), 0.25),
    ]
    (part,) = parse('("a", "b").blend(2, -1, no_normalize)').parts
    assert [blended.share for blended in part.sum] == [2.0, -1.0]


def test_a_conjunction_has_parts_with_weights():
    parts = parse('("a cat", "a dog").and(1, 0.5)').parts
    assert [(part.sum[0].fragments, part.weight) for part in parts] == [
        ((Fragment("a cat", 1.0),), 1.0),
        ((Fragment("a dog", 1.0),), 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "letter", "told"),
    [
        ("a (cat", 3, r"( is never closed; close it with ), or write \( for the sign itself"),
        ("a,b cat)", 8, ") closes nothing"),
        ("hello(world)++", 6, "the ( in 'hello(world)++' is text, not syntax"),
        ('("a", "b").blnd(1, 1)', 11, ".blnd() is no operator; did you mean .blend()?"),
        ('("a", "b").foo(1, 1)', 11, "there are .attend(), .swap(), .blend(), .and(), .add()"),
        ('("a", "b").blend(1)', 1, "there are 2 prompts and 1 weights"),
        ('("a", "b").blend(1, x)', 1, "1, x are not all numbers"),
        ('("a", "b").blend(1, -1)', 1, "sum up to 0"),
        ('("a", "b").blend(1, 1) c', 1, "something follows .blend()"),
        ('("a", "b").and() c', 17, "what follows .and() is left out"),
        ('c ("a", "b").and()', 13, ".and() has to follow the brackets around a whole prompt"),
        ("a cat.swap(dog)", 3, ".swap() needs control of cross-attention"),
        ("a withLora(nice, 500)", 3, "withLora(nice, 500): the weight '500': expected a number from -100 to 100"),
        ("(" * 21 + "a" + ")" * 21, 1, "more than 20 brackets are open at once"),
    ],
)
def test_what_is_wrong_is_told_with_its_letter(text, letter, told):
    ((at, message),) = parse(text).problems
    assert at == letter and told in message


@pytest.mark.parametrize("text", ["{} a cat {}", "a {} cat {}", '("a {} cat", "b {}").and()', '"a {} cat"++ {}'])
def test_loras_are_named_in_order_and_are_no_words(text):
    parsed = parse(text.format("withLora(nice-1, 0.5)", "useLora(other)"))
    expected = [Tag("lora", "nice-1", 0.5, 0.5), Tag("lora", "other", 1.0, 1.0)]
    assert list(parsed.tags) == expected
    plain = parse(" ".join(text.format("", "").split()))
    assert [part.sum for part in parsed.parts] == [part.sum for part in plain.parts]


@pytest.mark.parametrize(
    "text",
    ["(" * 50_000, "(a)" * 2_000, '"' * 5_000, "a " * 10_000, "+" * 50_000, "((a) = " * 500],
    ids=lambda text: text[:6],
)
def test_no_prompt_is_too_long_or_too_deep(text):
    start = time.monotonic()
    parse(text)
    assert time.monotonic() - start < 60  # seconds, of which one or two are needed


@pytest.mark.parametrize(
    "text, letter",
    [("(a cat) 1.2", 8), ("x (a cat)1,2 dogs", 10), ("(a)-1", 4), ("(a)+1.5 b", 4), ("(a)  -.5, b", 4)],
)
def test_a_weight_that_is_text_is_a_problem(text, letter):
    [problem] = [problem for problem in parse(text).problems if "is no weight here" in problem.message]
    assert problem.letter == letter


@pytest.mark.parametrize(
    "text", ["(a)1.2", "(a)0.5 b", "(a)++, 1.5", "(a) 2 dogs", r"\\(a\\) 1.2", '("a", "b").and(1, 2)']
)
def test_weights_and_numbers_that_are_none_are_no_problem(text):
    assert not [problem for problem in parse(text).problems if "is no weight here" in problem.message]


@pytest.mark.parametrize("text", ["\\" * 50_000, "a\\" * 30_000 + "b", "a " * 20_000 + "\\" * 50_000])
def test_backslashes_take_no_time(text):
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 5  # were it quadratic, a minute
