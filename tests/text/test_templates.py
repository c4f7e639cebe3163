import collections
import contextlib
import itertools
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdjax.jobs.job import MAX_PROMPT
from sdjax.text import template_grammar
from sdjax.text import wildcards as wildcards_module
from sdjax.text.template_grammar import MAX_DEPTH, TemplateError, has_template, parse_template
from sdjax.text.templates import choose, combinations
from sdjax.text.wildcards import MANY, NO_WILDCARDS, Pattern, Wildcards, count, wildcard_lines
from tests.text.wildcard_folder import wildcards_in

DOCS = Path(__file__).parent.parent.parent / "docs" / "prompts.md"


def files(**lines):
    """Wildcards of so many files; double underscores in a name stand for a slash."""
    named = {name.replace("__", "/"): tuple(found) for name, found in lines.items()}
    return Wildcards(lambda: named, lambda name: named[name], "wild")


def results(text, wildcards=NO_WILDCARDS):
    return list(combinations(parse_template(text), wildcards))


def chosen(text, number=200, wildcards=NO_WILDCARDS):
    return [choose(parse_template(text), wildcards, seed) for seed in range(number)]


# --- Variants ---


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a {red|blue} cat", ["a red cat", "a blue cat"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{very |}big", ["very big", "big"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, a", "b, c", "c, a", "c, b"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{2$$ | $$a|b}", ["a | b", "b | a"]),
        ("{2$$$$a|b}", ["ab", "ba"]),
        ("{1-2$$a|b}", ["a", "b", "a, b", "b, a"]),
        ("{-2$$a|b}", ["a", "b", "a, b", "b, a"]),
        ("{2-$$a|b}", ["a, b", "b, a"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{ 2 $$a|b}", ["a, b", "b, a"]),
        ("{2$$a|a|b}", ["a, b", "b, a"]),
        ("{2$${x|2::y}|b|{x|2::y}}", ["x, b", "y, b", "b, x", "b, y"]),
        ("{a|a}", ["a", "a"]),
        ("{3 ::a|0.5  ::b}", ["a", "b"]),
        (r"{a\::b|[c::5]}", ["a::b", "[c::5]"]),
        ("50%{a|b}", ["50%a", "50%b"]),
        (r"\%{a|b}$", [r"\%a$", r"\%b$"]),
        ("a {\n# 60% of them\n0.6::red\n|\n# 40%\n0.4::blue\n} cat", ["a red cat", "a blue cat"]),
        ("# the subject\na red cat", ["a red cat"]),
        ("a cat # with {a|b\r\nand {a|b} # } x", ["a cat\nand a", "a cat\nand b"]),
        ("  # x\n{a # y\n|\n# z\n}", ["a", ""]),
        (r"C# {a|b} and \#1", ["C# a and #1", "C# b and #1"]),
        ("{2$$a|{b|c}}", ["a, b", "a, c", "b, a", "c, a"]),
        ("{3::a| 0.5::b|c}", ["a", "b", "c"]),
        ("{0::a|b}", ["b"]),
        ("{only}", ["only"]),
        ("{漢|字}", ["漢", "字"]),
        ("", [""]),
    ],
)
def test_a_template_stands_for_these_texts_in_this_order(text, expected):
    assert results(text) == expected
    assert count(parse_template(text)) == len(expected)
    assert set(chosen(text)) == set(expected)


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        "[a|b|c] and [cat:dog:0.5]",
        "(x:1.2), ((y)), [z]",
        r"\(a\) \[b\] \\ \: \|",
        "a AND b:0.5 BREAK c",
        "^__^ and >__< and @__@ @__@",
        "long_hair, _ _, ___, _____, a __ b __ c",
        "costs 5$$, $ and $$$",
        "{[a|b]}",
        "#1 // a /* b */",
    ],
)
def test_what_other_grammars_mean_passes_untouched(text):
    [result] = results(text)
    assert result == text.strip("{}")


def test_a_bar_in_square_brackets_belongs_to_the_prompt_if_they_close_within_the_option():
    assert results("{[a|b] c|d}") == ["[a|b] c", "d"]
    assert results("{[a|{b|c}]|d}") == ["[a|b]", "[a|c]", "d"]
    assert results("{(a|b)|[c|d}") == ["(a", "b)", "[c", "d"]
    assert results(r"{\[a|b\]}") == [r"\[a", r"b\]"]


def test_escapes_of_this_notation_are_undone_and_others_are_not():
    assert results(r"\{a\|b\} \__c__") == [r"{a\|b} __c__"]
    assert results(r"{a\|b|\{c\}|\(d\)}") == ["a|b", "{c}", r"\(d\)"]
    assert results(r"\\{a|b}") == [r"\\a", r"\\b"]


def test_a_text_without_braces_and_double_underscores_is_no_template():
    assert not has_template(r"a [b|c] (d_e:1.2) \(f\)")
    assert has_template("{a}") and has_template("a}") and has_template("__a__") and has_template(r"\{")


# --- What can't be read ---


@pytest.mark.parametrize(
    "text, position, expected",
    [
        ("a {b|c", 3, r"never closed; add a }, or write \{"),
        ("{a|{b}", 1, "never closed"),
        ("a} b", 2, r"closes no brace; add a { before it, or write \}"),
        ("a {} b", 3, "nothing stands in the braces"),
        ("{3$$a|b}", 1, "3 are asked for, but there are 2 to choose from"),
        ("{1-3$$a|b}", 1, "3 are asked for, but there are 2"),
        ("{3-$$a|b}", 1, "3 are asked for, but there are 2"),
        ("{3-1$$a|b|c}", 2, "3-1 takes 3 at least and 1 at most"),
        ("{x$$a|b}", 2, "'x' stands before $$; expected how many"),
        ("{$$a|b}", 2, "expected how many"),
        ("{-$$a|b}", 2, "expected how many"),
        ("{9999999999$$a|b}", 2, "expected how many"),
        ("{a|b$$c}", 5, "$$ stands only behind how many are taken"),
        ("{0::a|0.0::b}", 1, "all weights are 0"),
        ("{1234567890::a|b}", 2, "too many digits"),
        ("{!a|b}", 2, "the mark ! after a brace is not supported"),
        ("__~a__", 1, "the mark ~ of a wildcard is not supported"),
        ("x ${hair=red}", 3, "variables"),
        ("${hair}", 1, "variables"),
        ("%{a$$b}", 1, "wrappers such as %{... $$ ...} are not supported"),
        ("%{x {a|b} $$ c}", 1, "wrappers"),
        ("__a/${x}__", 1, "put together"),
        ("a __b c", 3, "these __ open the name of a wildcard that is never closed"),
        ("a __b\nc__", 3, "never closed"),
        ("a b__ c", 4, "these __ close no name"),
        ("{0,5::a|b}", 2, "'0,5::a' has :: in it, which stands behind a weight, a number from 0 on"),
        ("{a|-1::b}", 4, "'-1::b' has :: in it"),
        ("{1e3::a|b}", 2, r"write \:: for the signs"),
        ("{50%::a|b}", 2, "has :: in it"),
        ("{::a|b}", 2, "has :: in it"),
        ("{nan::a|b}", 2, "has :: in it"),
        ("{٣::a|b}", 2, "has :: in it"),
        ("{a::2|b}", 2, "has :: in it"),
        ("{2::a::b|c}", 2, "has :: in it"),
        ("{3$$a|a|b}", 1, "3 are asked for, but there are 2 to choose from"),
        ("{red#60%\n|blue}", 5, "this # follows a letter"),
        ("{red # most |blue}", 1, "this { is never closed"),
        ("__a(b=c)__", 1, "parameters"),
        ("__{a|b}/c__", 1, "put together"),
        ("a ____ b", 3, "a wildcard without a name"),
        ("__../x__", 1, "'../x' is no name of a wildcard"),
        ("__a/../../x__", 1, "is no name of a wildcard"),
        ("__/etc/x__", 1, "is no name of a wildcard"),
        ("__a//b__", 1, "is no name of a wildcard"),
        ("__./a__", 1, "is no name of a wildcard"),
        ("{" * (MAX_DEPTH + 1) + "a" + "}" * (MAX_DEPTH + 1), MAX_DEPTH + 1, "more than 50 deep"),
    ],
)
def test_a_bad_template_is_an_error_that_tells_the_place_and_what_to_do(text, position, expected):
    with pytest.raises(TemplateError, match=re.escape(expected)) as raised:
        parse_template(text)
    assert raised.value.position == position and str(raised.value).startswith(f"letter {position}: ")


NOTATION = st.lists(st.sampled_from([*r"{}|[]$_\/*-~!: 12ab", "$$", "__", "::", "{2$$", "${", "__a__"])).map("".join)


@given(st.one_of(st.text(), NOTATION))
@example("{" * 100_000)
@example("}" * 100_000)
@example("{a|" * 50_000 + "}" * 50_000)
@example("[" * 50_000 + "{a|b}" + "]" * 50_000)
def test_any_text_is_a_template_or_an_error_of_templates(text):
    try:
        template = parse_template(text)
        number = count(template)
        found = list(itertools.islice(combinations(template), 20))
    except TemplateError as error:
        assert str(error)
        return
    assert 1 <= len(found) == min(number, 20)
    if not has_template(text):
        assert found == [text]
    assert isinstance(choose(template, NO_WILDCARDS, 0), str)


@pytest.mark.parametrize(
    "text",
    [
        "{" + " " * 100_000,
        "{1" + " " * 100_000 + "$$",
        "__a " * 30_000,
        "__(" * 30_000,
        "${ " * 30_000,
        "{2$$" * 30_000,
        "{" + "[a|" * 30_000 + "}",
        "{" + "1" * 100_000 + "::a}",
        "{" + "a|" * 50_000 + "b}",
        "\\" * 100_001,
        "__a(" * 30_000,
        "__a{" * 30_000,
        "{a#\n" * 20_000,
        " #" * 50_000 + "\n{",
        "{" + " " * 100_000 + "::a}",
    ],
)
def test_reading_takes_time_in_proportion_to_the_length(text):
    start = time.perf_counter()
    with contextlib.suppress(TemplateError):
        parse_template(text)
    assert time.perf_counter() - start < 10  # it takes about one; were it quadratic, minutes


# --- Choosing ---


def test_a_choice_stays_what_it_was():
    # Recorded: a change gives other prompts to every seed.
    template = parse_template("a {red|green|blue} {2$$ and $$cat|dog|{small |big }bird}")
    assert [choose(template, NO_WILDCARDS, seed) for seed in range(4)] == [
        "a blue cat and dog",
        "a red small bird and cat",
        "a red dog and cat",
        "a green cat and dog",
    ]


def test_the_choice_depends_on_seed_label_and_template_alone():
    template = parse_template("{a|b|c|d|e|f|g|h} {a|b|c|d|e|f|g|h}")
    assert choose(template, NO_WILDCARDS, 5) == choose(parse_template(template.text), NO_WILDCARDS, 5)
    assert len({choose(template, NO_WILDCARDS, seed) for seed in range(100)}) > 40
    by_label = [[choose(template, NO_WILDCARDS, seed, label) for seed in range(8)] for label in ("prompt", "other")]
    assert by_label[0] != by_label[1]
    other = parse_template("x " + template.text)
    assert [choose(other, NO_WILDCARDS, seed)[2:] for seed in range(8)] != by_label[0]


def test_choices_are_as_frequent_as_their_weights():
    found = collections.Counter(chosen("{3::a|b|0.5::c|0::d}", 9000))
    # Three standard deviations of a binomial are at most 135 here.
    for option, weight in {"a": 3, "b": 1, "c": 0.5}.items():
        assert abs(found[option] - 9000 * weight / 4.5) < 140
    assert found["d"] == 0


def test_of_several_each_order_is_as_frequent_and_weights_hold_among_what_is_left():
    found = collections.Counter(chosen("{2$$a|b|c}", 6000))
    assert len(found) == 6 and all(abs(number - 1000) < 100 for number in found.values())
    heavy = collections.Counter(chosen("{2$$2::a|b|c}", 8000))
    # First a with 1/2, then b or c alike; first b or c with 1/4 each, then a with 2/3.
    assert (
        abs(heavy["a, b"] - 2000) < 130 and abs(heavy["b, a"] - 8000 / 6) < 110 and abs(heavy["b, c"] - 8000 / 12) < 80
    )


def test_of_lines_each_order_is_as_frequent():
    found = collections.Counter(chosen("{2$$__a__}", 6000, files(a=["1", "2", "3"])))
    assert len(found) == 6 and all(abs(number - 1000) < 100 for number in found.values())


# --- All of them ---

NAMES = ("a", "b__c", "d")
LETTERS = st.text(st.sampled_from("xyz ,()"), max_size=3)


def notation(inner):
    options = st.lists(inner, min_size=1, max_size=3, unique=True).filter(any)
    plain = options.map(lambda found: "{" + "|".join(found) + "}")
    several = options.flatmap(
        lambda found: st.tuples(st.integers(0, len(found)), st.integers(0, len(found))).map(
            lambda ends: f"{{{min(ends)}-{max(ends)}$$;$$" + "|".join(found) + "}"
        )
    )
    return st.lists(st.one_of(inner, plain, several), max_size=3).map("".join)


TEMPLATES = st.recursive(LETTERS, notation, max_leaves=8)
LINES = st.lists(st.one_of(LETTERS, TEMPLATES), min_size=1, max_size=3).filter(lambda lines: any(map(str.strip, lines)))


@given(TEMPLATES, LINES, LINES, st.integers(0, 2**64), st.sampled_from(["{}", "{} __a__", "{{2$$__b/c__|{}x}}"]))
def test_all_are_as_many_as_counted_and_one_chosen_is_among_them(text, lines, others, seed, around):
    wildcards = files(a=[*lines, "__b/c__"], b__c=others)
    template = parse_template(around.format(text))
    number = count(template, wildcards)
    if number > 3000:
        return
    found = list(combinations(template, wildcards))
    assert len(found) == number
    assert choose(template, wildcards, seed) in found
    assert list(combinations(template, wildcards)) == found


def test_combinations_are_made_one_by_one_however_many_there_are():
    template = parse_template("{a|b}" * 5000 + "{20$$" + "|".join("abcdefghijklmnopqrstuvwxyz") + "}")
    assert count(template) == MANY
    start = time.perf_counter()
    found = list(itertools.islice(combinations(template), 3))
    assert len(set(found)) == 3 and time.perf_counter() - start < 10


def test_what_is_wrong_is_told_before_the_first_combination():
    with pytest.raises(TemplateError):
        combinations(parse_template("__a__"), NO_WILDCARDS)


# --- Wildcards ---


def test_a_wildcard_is_a_line_of_its_file():
    wildcards = files(animals=["# of a farm", "cow", "", "  pig\r", "cow", "#goose"])
    assert results("a __animals__.", wildcards) == ["a cow.", "a pig."]
    assert set(chosen("a __animals__.", 50, wildcards)) == {"a cow.", "a pig."}


def test_lines_may_hold_variants_wildcards_and_plain_bars():
    wildcards = files(a=["{x|y} __b__", "[p|q]"], b=["1", "2"])
    assert results("__a__", wildcards) == ["x 1", "x 2", "y 1", "y 2", "[p|q]"]


def test_wildcards_are_found_in_folders_and_by_asterisks():
    wildcards = files(animals__cats=["tabby"], animals__dogs=["pug"], animals__big__cats=["lion"], cars=["van"])
    assert results("__animals/cats__", wildcards) == ["tabby"]
    assert results("__animals/*__", wildcards) == ["tabby", "pug"]
    assert results("__animals/**__", wildcards) == ["lion", "tabby", "pug"]
    assert results("__**/cats__", wildcards) == ["lion", "tabby"]
    assert results("__*__", wildcards) == ["van"]
    assert results("__c*s__", wildcards) == ["van"]


def test_several_lines_of_one_wildcard_are_different_ones():
    assert results("{2$$__a__}", files(a=["1", "2", "2"])) == ["1, 2", "2, 1"]
    with pytest.raises(TemplateError, match="letter 1: 3 are asked for, but there are 2"):
        results("{3$$__a__}", files(a=["1", "2"]))


def test_names_may_hold_underscores_and_inner_spaces():
    wildcards = (
        files(hair_colour=["red"])
        if False
        else Wildcards(lambda: ["north_africa", "hair colour", "été"], lambda name: [name.upper()], "wild")
    )
    assert results("__north_africa__ __hair colour__ ___été___", wildcards) == ["NORTH_AFRICA HAIR COLOUR _ÉTÉ_"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a __animal__", "letter 3: there is no wildcard 'animal' in wild (did you mean __animals__?)"),
        ("__Animals__", "did you mean __animals__?"),
        ("__cats__", "did you mean __big/cats__"),
        ("__zzz__", "there is no wildcard 'zzz' in wild; add a file zzz.txt, or write \\__ for plain underscores"),
        ("__z*__", "no wildcard fits 'z*' in wild"),
        ("__empty__", "there is no line in the wildcard 'empty'; fill it"),
        ("__broken__", "wildcard 'broken', line 2, letter 1: this { is never closed"),
        ("__to_broken__", "wildcard 'broken', line 2, letter 1: this { is never closed"),
        ("__to_nothing__", "wildcard 'to_nothing', line 1, letter 3: there is no wildcard 'nothing'"),
        ("{x|{__to_nothing__|y}}", "wildcard 'to_nothing', line 1, letter 3: there is no wildcard 'nothing'"),
        ("__one__", "wildcards lead back to where they begin: one -> two -> one; break the circle"),
        ("__to_one__", "begin: one -> two -> one;"),
        ("__self__", "begin: self -> self;"),
        ("__star__", "begin: st* -> st*;"),
    ],
)
@pytest.mark.parametrize("do", [count, combinations, lambda template, wildcards: choose(template, wildcards, 0)])
def test_a_wildcard_that_can_not_be_had_is_an_error_even_if_the_seed_might_pass_it_by(text, expected, do):
    wildcards = files(
        animals=["cow"],
        big__cats=["lion"],
        empty=["", "# nothing"],
        broken=["# x", "{a"],
        to_broken=["fine", "{b|__broken__}"],
        to_nothing=["a __nothing__"],
        one=["x", "__two__"],
        two=["{2$$a|__one__}"],
        to_one=["__one__"],
        self=["{2$$__self__}", "a"],
        star=["__st*__"],
    )
    with pytest.raises(TemplateError, match=re.escape(expected)):
        do(parse_template(text), wildcards)


def test_without_a_folder_a_wildcard_is_an_error_that_says_so():
    with pytest.raises(TemplateError, match="no folder of wildcards is given"):
        choose(parse_template("__animals__"), NO_WILDCARDS, 0)


def chain(number, line):
    return files(
        **{f"w{index}": [line.format(f"__w{index + 1}__")] for index in range(number)}, **{f"w{number}": ["end"]}
    )


def test_wildcards_within_wildcards_end_at_a_depth():
    assert results("__w0__", chain(MAX_DEPTH - 1, "a {}")) == ["a " * (MAX_DEPTH - 1) + "end"]
    for line in ("a {}", "{{x|" * 40 + "{}" + "}}" * 40):
        with pytest.raises(TemplateError, match="more than 50 deep"):
            results("__w0__", chain(1000, line))


@pytest.mark.parametrize("line", ["{0}{0}", "{0} {0}", "{{{0}|{0}}} {0}"])
def test_wildcards_that_name_each_other_twice_end_at_a_size(line):
    with pytest.raises(TemplateError, match="more than 1000000 pieces"):
        choose(parse_template("__w0__"), chain(24, line), 0)


def test_a_result_has_an_end():
    assert template_grammar.MAX_LETTERS == MAX_PROMPT
    wildcards = files(a=["x" * 1000])
    assert len(choose(parse_template("__a__" * 100), wildcards, 0)) == MAX_PROMPT
    with pytest.raises(TemplateError, match="100001 letters; expected up to 100000"):
        choose(parse_template("__a__" * 100 + "y"), wildcards, 0)
    with pytest.raises(TemplateError, match="letters; expected up to"):
        list(combinations(parse_template("__a__" * 101), wildcards))


def test_each_file_is_read_once_and_only_if_it_is_needed():
    read = []
    wildcards = Wildcards(lambda: ["a", "b"], lambda name: read.append(name) or ["1", "2"], "wild")
    for seed in range(5):
        choose(parse_template("__a__ __a__ {2$$__a__}"), wildcards, seed)
    assert read == ["a"]


def test_long_wildcards_are_chosen_from_without_a_look_at_all_lines():
    wildcards = files(a=[str(number) for number in range(20_000)])
    template = parse_template("__a__")
    choose(template, wildcards, 0)
    start = time.perf_counter()
    assert len(set(chosen("__a__", 1000, wildcards))) > 900
    assert time.perf_counter() - start < 5


def test_wildcards_of_a_local_folder(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cats.txt").write_bytes(b"\xef\xbb\xbftabby\r\npersan \xc3\xa9l\xc3\xa9gant\r\n")
    (tmp_path / "colour.txt").write_text("red")
    (tmp_path / "notes.md").write_text("no")
    wildcards = wildcards_in(tmp_path)
    assert wildcards.names == ("animals/cats", "colour")
    assert results("__colour__ __animals/cats__", wildcards) == ["red tabby", "red persan élégant"]
    with pytest.raises(TemplateError, match=re.escape(f"in {tmp_path}; add a file notes.txt")):
        results("__notes__", wildcards)


def test_the_line_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9\nth\xe9\n")
    with pytest.raises(TemplateError, match=r"a\.txt, line 2: not UTF-8"):
        results("__a__", wildcards_in(tmp_path))


def test_lines_end_where_text_files_end_them():
    assert wildcard_lines("a\u2028b\x0bc\nd\r\n".encode(), "x") == ("a\u2028b\x0bc", "d\r", "")


ODD_NAMES = ["artists (modern)", "hats, red", "a[bc]", "a?", "colors/base", "what's new!", "50% (x) & y"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_wildcard_is_found_under_any_name_and_one_that_is_not_there_is_an_error(name):
    wildcards = Wildcards(lambda: ODD_NAMES, lambda name: [name.upper()], "wild")
    assert results(f"x __{name}__ y", wildcards) == [f"x {name.upper()} y"]
    with pytest.raises(TemplateError, match="no wildcard"):
        results(f"x __{name}__ y", files(other=["a"]))


def test_names_are_written_with_slashes_either_way():
    assert results(r"__a\b__ __a\\b__", files(a__b=["x"])) == ["x x"]
    with pytest.raises(TemplateError, match="is no name of a wildcard"):
        parse_template(r"__a\..\b__")


@pytest.mark.parametrize(
    "pattern, fitting",
    [
        ("*", "ab ac b"),
        ("a?", "ab ac"),
        ("a[bc]", "ab ac"),
        ("a[!b]", "ac"),
        ("?", "b"),
        ("**", "ab ac b d/ab d/e/ab"),
        ("**/ab", "ab d/ab d/e/ab"),
        ("**/*b", "ab b d/ab d/e/ab"),
        ("d/*", "d/ab"),
        ("d/**", "d/ab d/e/ab"),
        ("d/**/ab", "d/ab d/e/ab"),
        ("d**b", "d/ab d/e/ab"),
        ("*/*/a?", "d/e/ab"),
        ("**/**/***ab", "ab d/ab d/e/ab"),
        ("[ab", ""),
        ("d?ab", ""),
    ],
)
def test_a_pattern_fits_these_names(pattern, fitting):
    names = ["ab", "ac", "b", "d/ab", "d/e/ab"]
    assert [name for name in names if Pattern(pattern).fits(name)] == fitting.split()


@pytest.mark.parametrize("pattern", ["*a" * 1000 + "b", "**a" * 1000 + "b", "**/" * 1000 + "b", "**/a*" * 500 + "b"])
def test_no_pattern_takes_long(pattern):
    start = time.process_time()
    assert not Pattern(pattern).fits("a" * 4000)
    assert time.process_time() - start < 2


def test_files_of_other_kinds_are_not_left_out_in_silence(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/x.txt", "a/y.YAML", "a/z.json", "B.TXT", "a/._x.txt", "a/notes.md"):
        (tmp_path / name).write_text(name)
    wildcards = wildcards_in(tmp_path)
    assert wildcards.names == ("B", "a/x") and results("__a/x__ __B__", wildcards) == ["a/x.txt B.TXT"]
    with pytest.raises(TemplateError, match=r"'a/\*' fits a/y.YAML and a/z.json too, and only text files are read"):
        results("__a/*__", wildcards)
    with pytest.raises(TemplateError, match=r"a/y.YAML can't be read; write its lines into a file y.txt"):
        results("__y__", wildcards)
    with pytest.raises(TemplateError, match=r"no wildcard 'cats'.*; of a/y.YAML and a/z.json nothing is read"):
        results("__cats__", wildcards)
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "B.txt").write_text("")
    with pytest.raises(TemplateError, match=r"B\.TXT and B\.txt have one name; rename one of them"):
        results("__b__", wildcards_in(tmp_path))


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "gems.txt").write_text("ruby")
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "shared").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "wild" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "wild" / "none").symlink_to(tmp_path / "gone")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "wild")
    (tmp_path / "wild" / "self").symlink_to(tmp_path / "wild" / "self")
    (tmp_path / "linked").symlink_to(tmp_path / "wild")
    wildcards = wildcards_in(tmp_path / "linked")
    assert wildcards.names == ("more/gems", "shared/gems")
    assert results("__shared/gems__", wildcards) == ["ruby"]


def test_comments_end_lines_of_wildcards_too():
    assert results("__a__", files(a=["red # as a rose", "{x|y} # z", r"\#1", "C# {a#|b}"])) == [
        "red", "x", "y", "#1", "C# a#", "C# b",
    ]  # fmt: skip


def test_files_that_would_fill_the_memory_are_errors(monkeypatch, tmp_path):
    with pytest.raises(TemplateError, match=f"has more than {wildcards_module.MAX_FILE_BYTES} bytes"):
        wildcard_lines(b"a" * (wildcards_module.MAX_FILE_BYTES + 1), "big.txt")
    with pytest.raises(TemplateError, match="line 1, has 100001 letters; expected up to 100000"):
        results("__a__", files(a=["x" * 100_001]))
    monkeypatch.setattr(wildcards_module, "MAX_LINES", 3)
    with pytest.raises(TemplateError, match="wildcard 'b', line 2: all wildcards together have more than 3 lines"):
        results("__a__ __b__", files(a=["1", "2"], b=["1", "2"]))
    monkeypatch.setattr(wildcards_module, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(TemplateError, match="more than 2 files; take a folder of wildcards alone"):
        results("__a__", wildcards_in(tmp_path))


def test_a_file_that_can_not_be_read_is_an_error_of_its_template(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    wildcards = wildcards_in(tmp_path)
    assert wildcards.names == ("a",)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(TemplateError, match=r"a\.txt can't be read"):
        results("__a__", wildcards)


def test_many_of_many_are_drawn_in_no_time():
    template = parse_template("{10000$$,$$" + "|".join(f"{index % 7}::{index}" for index in range(12_000)) + "}")
    start = time.process_time()
    assert len(set(choose(template, NO_WILDCARDS, 0).split(","))) == 10_000
    assert time.process_time() - start < 5


# --- The documentation ---


def test_what_the_documentation_shows_is_so():
    part = DOCS.read_text("utf-8").split("<!-- templates -->")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|$", part.replace(r"\|", "¦"), re.MULTILINE)
    shown = {template.replace("¦", "|"): re.findall("`(.*?)`", gives.replace("¦", "|")) for template, gives in rows}
    assert len(shown) > 8
    wildcards = files(animals__cats=["tabby", "Siamese"], animals__dogs=["pug"])
    for template, gives in shown.items():
        assert results(template, wildcards)[: len(gives)] == gives, template


@pytest.mark.parametrize(
    "text, words", [("{a|b}" + "x" * 10**6, "1000005 letters"), ("{a|b}" * 10_000, "30000 pieces")]
)
def test_a_template_beyond_all_measure_is_an_error_at_once(text, words):
    with pytest.raises(TemplateError, match=words):
        parse_template(text)


@pytest.mark.parametrize("asked", ["caf\u00e9", "cafe\u0301", "caf\u00e9.txt", "caf\u00e9.TXT", "sub/cafe\u0301"])
@pytest.mark.parametrize("stored", ["caf\u00e9", "cafe\u0301"])
def test_a_wildcard_is_found_in_either_unicode_form_and_with_its_ending(tmp_path, asked, stored):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / f"{stored}.txt").write_text("red\n")
    assert choose(parse_template(f"a __{asked}__"), wildcards_in(tmp_path), 1, "prompt") == "a red"


def test_companion_files_of_macos_are_no_wildcards(tmp_path):
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "fruit.txt").write_text("nothing\n")
    (tmp_path / "._fruit.txt").write_text("nothing\n")
    (tmp_path / "fruit.txt").write_text("apple\n")
    assert wildcards_in(tmp_path).names == ("fruit",)
