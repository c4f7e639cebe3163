import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.text.tags import Tag, TagError, cut, read_list, to_text


def lora(name, weight=1.0, text_encoder_weight=None):
    return Tag("lora", name, weight, weight if text_encoder_weight is None else text_encoder_weight)


# As `extra_networks.parse_prompt` and `extra_networks_lora.py` of the web UI read them.
@pytest.mark.parametrize(
    "prompt, text, tags",
    [
        ("a cat", "a cat", ()),
        ("a <lora:ink:0.8> cat", "a  cat", (lora("ink", 0.8),)),
        ("<lora:ink>a", "a", (lora("ink"),)),
        ("a<lyco:ink:0.5>", "a", (lora("ink", 0.5),)),
        ("a<lora:ink:0.5:1>", "a", (lora("ink", 1.0, 0.5),)),
        ("a<lora:ink:unet=0.5>", "a", (lora("ink", 0.5, 1.0),)),
        ("a<lora:ink:te=0.2:unet=0.5>", "a", (lora("ink", 0.5, 0.2),)),
        ("a<lora:ink:te=0.2>", "a", (lora("ink", 0.2),)),
        ("a<lora:my ink (v2):-1>", "a", (lora("my ink (v2)", -1.0),)),
        ("(a:1.2)<hypernet:oil:0.6>", "(a:1.2)", (Tag("hypernetwork", "oil", 0.6, 0.6),)),
        ("<lora:a:1><lora:a:0.5>", "", (lora("a"), lora("a", 0.5))),
        ("1 < 2: <b>", "1 < 2: <b>", ()),
    ],
)
def test_tags_are_read_as_the_web_ui_reads_them(prompt, text, tags):
    found = cut(prompt)
    assert (found.text, found.tags, found.problems) == (text, tags, ())


@pytest.mark.parametrize(
    "prompt, letter, message",
    [
        ("a <lroa:ink:1>", 3, "no kind of adapter is called 'lroa' (did you mean 'lora'?)"),
        ("<lora::1>", 1, "no name"),
        ("<lora:ink:much>", 1, "the weight 'much': expected a number from -100 to 100"),
        ("<lora:ink:nan>", 1, "the weight 'nan'"),
        ("<lora:ink:1:1:8>", 1, "'8' is too much; expected a name and 2 weights"),
        ("<lora:ink:dyn=8>", 1, "'dyn' is not supported"),
        ("<hypernet:oil:1:1>", 1, "'1' is too much; expected a name and 1 weight"),
    ],
)
def test_a_tag_that_can_not_be_read_is_a_problem_at_its_letter(prompt, letter, message):
    [(found, told)] = cut(prompt).problems
    assert found == letter and message in told
    assert "<" not in cut(prompt).text


@given(st.lists(st.one_of(st.text("ab(<>:", max_size=4), st.sampled_from(["<lora:x:1>", "<foo:y>"])), max_size=6))
def test_each_letter_that_is_left_knows_where_it_stood(pieces):
    prompt = "".join(pieces)
    found = cut(prompt)
    for number, letter in enumerate(found.text, 1):
        assert prompt[found.letter(number) - 1] == letter
    places = [found.letter(number) for number in range(1, len(found.text) + 1)]
    assert places == sorted(set(places))
    assert all(prompt[letter - 1] == "<" for letter in found.letters)


@pytest.mark.parametrize(
    "text, tags",
    [
        ("", ()),
        ("ink", (lora("ink"),)),
        ("ink:0.80; chalk : 0.5:1;", (lora("ink", 0.8), lora("chalk", 1.0, 0.5))),
        ("<lora:ink:0.8> <lora:chalk:2>", (lora("ink", 0.8), lora("chalk", 2.0))),
    ],
)
def test_a_field_lists_adapters_and_has_one_form(text, tags):
    assert read_list("lora", text) == tags
    assert read_list("lora", to_text(tags)) == tags
    assert cut("".join(f"<lora:{each}>" for each in to_text(tags).split("; ") if each)).tags == tags
    assert to_text(read_list("lora", to_text(tags))) == to_text(tags)


@pytest.mark.parametrize(
    "text, message",
    [
        ("ink:x", "the weight 'x'"),
        ("ink; <lora:chalk:1>", "'ink;' stands beside tags"),
        ("<hypernet:oil:1>", "'oil' is a hypernetwork; name it in hypernetworks"),
    ],
)
def test_a_field_that_can_not_be_read_is_an_error(text, message):
    with pytest.raises(TagError, match=message):
        read_list("lora", text)


@pytest.mark.parametrize("text", ["<a:" * 33_333, "<a:b " * 20_000 + "<c:d>", "<" * 100_000, "<a" * 50_000 + ">"])
def test_tags_that_never_end_take_no_time(text):
    start = time.process_time()
    cut(text)
    assert time.process_time() - start < 2
