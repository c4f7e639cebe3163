"""Prompts that name embeddings, as each syntax reads them."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text.prompt_tokenizer import FIRST_VECTOR, PromptTokenizer
from sdjax.text.tokenize_prompt import SYNTAXES, tokenize_prompt
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import write_tokenizer
from tests import toys
from tests.golden import embeddings, prompts
from tests.text import test_tokenize_prompt
from tests.text.a1111_prompts import ANY
from tests.text.test_tokenize_prompt import reading_of

VECTORS = embeddings.VECTORS
A1111, COMFYUI = embeddings.read("a1111"), embeddings.read("comfyui")


@pytest.fixture(scope="module")
def clip(tokenizers):
    return tokenizers["sd1"]


def of(tokenizer, prompt, negative_prompt="", *, syntax="a1111", known=VECTORS, steps=prompts.STEPS):
    return tokenize_prompt(
        tokenizer, prompt, negative_prompt, syntax=syntax, emphasis="original", steps=steps, embeddings=known
    )


def named(found, index):
    """Whose vector an id is, and which of them."""
    place = index - FIRST_VECTOR
    for name, count in zip(found.embeddings, found.vectors, strict=True):
        if place < count:
            return name, place
        place -= count
    raise AssertionError(f"{index} is no vector")


# --- As the web UI reads ---


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("index", range(len(A1111)))
def test_ids_and_weights_are_the_web_uis(tokenizers, kind, index):
    case = A1111[index]
    found = of(tokenizers[kind], case["prompt"])
    places = dict.fromkeys(place for step in found.schedule for place in step[:-1])
    readings = [found.readings[found.texts[place].mix[0][0]] for place in places]
    expected = [chunks_of(chunks, kind) for chunks in case["chunks"].values()]
    seen = [
        [seen_by_the_web_ui(found, ids, weights) for ids, weights in zip(*reading[:2], strict=True)]
        for reading in readings
    ]
    most = max(map(len, expected))
    assert [chunks[:most] for chunks in seen] == [
        chunks + row[len(chunks) :] for chunks, row in zip(expected, seen, strict=True)
    ]
    assert found.problems == ()


def chunks_of(recorded, kind):
    """Ids, weights, and where vectors begin."""
    return [
        (prompts.spread(ids), prompts.spread(weights), [tuple(fix) for fix in fixes])
        for ids, weights, fixes in zip(recorded[kind], recorded["weights"], recorded["fixes"], strict=True)
    ]


def seen_by_the_web_ui(found, ids, weights):
    """The same of a row of ours; in the web UI a 0 stands where a vector is put in."""
    vectors = {place: named(found, index) for place, index in enumerate(ids) if index >= FIRST_VECTOR}
    for place, (name, row) in vectors.items():
        assert row == 0 or vectors[place - 1] == (name, row - 1)
    fixes = [(place - 1, name) for place, (name, row) in vectors.items() if row == 0]
    return tuple(0 if index >= FIRST_VECTOR else index for index in ids), weights, fixes


def test_an_embedding_behind_a_comma_goes_to_the_next_chunk_with_its_text(clip):
    found = of(clip, "dog " * 68 + "cat, a cat-toy a dog dog dog dog")
    first, second = found.readings[0].ids
    assert first[70:] == (*clip.encode(","), *[clip.end] * 6)
    assert [named(found, index) for index in second[2:5]] == [("cat-toy", row) for row in range(3)]


def test_one_that_fits_in_no_chunk_is_a_problem(clip):
    found = of(clip, "a cat", known={"cat": 76})
    assert "'cat' has 76 vectors, and a chunk has room for 75; take a smaller one" in found.problems[0]
    assert len(found.readings[0].ids) == 3 and found.tokens == 77
    assert of(clip, "embedding:cat", known={"cat": 76}, syntax="comfyui").problems == ()


# --- As ComfyUI reads ---


@pytest.mark.parametrize("index", range(len(COMFYUI)))
def test_ids_and_weights_are_comfyuis(clip, index):
    case = COMFYUI[index]
    found = of(clip, case["prompt"], syntax="comfyui")
    numbers = embeddings.numbered()
    reading = reading_of(found, 0, 0)
    assert [(ids, weights) for ids, weights in zip(*reading[:2], strict=True)] == [
        (tuple(vector_of(found, numbers, number) for number in prompts.spread(ids)), prompts.spread(weights))
        for ids, weights in case["chunks"]
    ]


def vector_of(found, numbers, number):
    """A recorded number as an id of ours: those below 0 are vectors."""
    if number >= 0:
        return number
    starts = dict(zip(found.embeddings, np.cumsum([0, *found.vectors]).tolist(), strict=False))
    [(name, row)] = [vector for vector, own in numbers.items() if own == -number]
    return FIRST_VECTOR + starts[name] + row


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (
            "a embedding:cat-toi, dog",
            "letter 3: there is no embedding 'cat-toi'; did you mean 'cat-toy' or 'cat(toy)'?",
        ),
        ("embedding:zebra", "letter 1: there is no embedding 'zebra'; its file is not in the folder"),
        ("(embedding:zebra:1.2)", "letter 2: there is no embedding 'zebra'; its file is not in the folder"),
        ("a embedding:", "letter 3: embedding: names nothing; put a name directly behind it"),
        ("a, b,embedding:cat", "letter 6: embedding: within a word names nothing; put a space before it"),
        (
            "embedding:cat, dog,embedding:cat",
            "letter 20: embedding: within a word names nothing; put a space before it",
        ),
    ],
)
def test_names_that_are_not_there_are_problems_in_comfyuis_syntax(clip, prompt, problem):
    assert of(clip, prompt, syntax="comfyui").problems == (f"prompt, {problem}",)


def test_without_a_folder_it_is_said_how_to_name_one(clip):
    assert "there are none, set library.embeddings" in of(clip, "embedding:cat", syntax="comfyui", known={}).problems[0]


def test_brackets_around_an_embedding_weigh_as_others(clip):
    found = of(clip, "(embedding:cat)", syntax="comfyui")
    assert found.problems == () and found.readings[0].weights[0][1] == 1.1


# --- As diffusers and Compel encode ---


@pytest.fixture(scope="module")
def toy_encoders(tmp_path_factory):
    """A tokenizer and a text encoder in numpy for each width."""
    made = {}
    for name, toy in embeddings.TOYS.items():
        folder = tmp_path_factory.mktemp(name)
        write_tokenizer(folder, toys._WORDS, toys.LENGTH, toy.padding)
        made[name] = Tokenizer(folder, toys.LENGTH), test_tokenize_prompt.Encoder(toy)
    return made


def encoded(tokenizer, encoder, prompt, syntax):
    """Three numbers of each token's encoding."""
    known = {name: VECTORS[name] for name in embeddings.NEW}
    found = of(tokenizer, prompt, syntax=syntax, known=known)
    width = encoder.toy.text_encoder.hidden_size
    learned = [row for name in found.embeddings for row in embeddings.vectors(name, width)]
    return test_tokenize_prompt.encode(encoder, found, 0, learned) @ prompts.projection(width)


@pytest.mark.parametrize("toy", embeddings.TOYS)
@pytest.mark.parametrize(
    ("syntax", "kind", "index"),
    [("plain", "diffusers", index) for index in range(len(embeddings.DIFFUSERS))]
    + [("compel", "compel", index) for index in range(len(embeddings.COMPEL))],
)
def test_encodings_are_those_of_diffusers_and_compel(toy_encoders, toy, syntax, kind, index):
    prompt = (embeddings.DIFFUSERS if kind == "diffusers" else embeddings.COMPEL)[index]
    with np.load(embeddings.ENCODED) as recorded:
        expected = recorded[f"{kind}/{toy}/{index}"]
    np.testing.assert_allclose(encoded(*toy_encoders[toy], prompt, syntax), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("syntax", ["plain", "compel"])
def test_a_name_is_a_word_of_its_own_in_any_case(clip, syntax):
    known = {"art": 1, "Big Cat": 2}
    found = of(clip, "artist, startle", syntax=syntax, known=known)
    assert found.embeddings == () and found == of(clip, "artist, startle", syntax=syntax, known={})
    found = of(clip, "ART, big\n  cat x", syntax=syntax, known=known)
    assert found.embeddings == ("art", "Big Cat") and found.vectors == (1, 2) and found.tokens == 5


def test_of_names_that_differ_in_case_the_one_that_is_written_is_taken(clip):
    for name in ("Cat", "cat"):
        assert of(clip, f"a {name}", syntax="plain", known={"Cat": 1, "cat": 1}).embeddings == (name,)


@pytest.mark.parametrize("syntax", ["plain", "compel"])
def test_what_is_cut_has_the_names_of_embeddings(clip, syntax):
    found = of(clip, "dog " * 74 + "cat-toy cat-toy red cat", "cat", syntax=syntax)
    assert found.cut == "cat-toy cat-toy red cat" and found.tokens == 74 + 3 + 3 + 1 + 1
    assert (found.negative_tokens, found.negative_cut) == (1, "")


# --- All syntaxes ---

# How each names an embedding.
NAMING = {"a1111": "{}", "compel": "{}", "comfyui": "embedding:{}", "plain": "{}"}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_ids_follow_the_order_of_first_use_and_nothing_else(clip, syntax):
    prompt, negative = ("a {} dog {} {}".format(*[NAMING[syntax].format(name)] * 2, NAMING[syntax].format("cat-toy"))
                        for name in ("bad_hands-v5", "cat"))  # fmt: skip
    found = of(clip, prompt, negative, syntax=syntax)
    assert found.embeddings == ("bad_hands-v5", "cat-toy", "cat") and found.vectors == (8, 3, 1)
    assert reading_of(found, 0, 0).ids[0][2:10] == tuple(range(FIRST_VECTOR, FIRST_VECTOR + 8))
    used = {"cat": 1, "bad_hands-v5": 8, "cat-toy": 3}
    assert of(clip, prompt, negative, syntax=syntax, known=used) == found
    assert of(clip, prompt, negative, syntax=syntax, known={f"zzz{n}": 5 for n in range(200)} | used) == found
    assert (found.tokens, found.negative_tokens) == (2 + 8 + 8 + 3, 2 + 1 + 1 + 3)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_only_embeddings_that_are_named_are_looked_into(clip, syntax):
    class Counts(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    asked = []
    of(clip, NAMING[syntax].format("cat") + " dog", "<style>", syntax=syntax, known=Counts(VECTORS))
    assert set(asked) == ({"cat", "<style>"} if syntax != "comfyui" else {"cat"})


@settings(deadline=None, max_examples=60)
@given(text=ANY, negative=ANY, syntax=st.sampled_from(sorted(SYNTAXES)))
def test_embeddings_that_are_not_named_change_nothing(clip, text, negative, syntax):
    unlikely = {"qqzzxxqq": 3, "wwvvkkww": 1}
    assert of(clip, text, negative, syntax=syntax, known=unlikely) == of(clip, text, negative, syntax=syntax, known={})


PIECES = st.sampled_from(
    ["a", "red", ",", "cat", "cat-toy", "big cat", "Detail2", "wide", "embedding:wide", "embedding:cat,", "(cat:1.2)",
     "(embedding:bad_hands-v5)", "[cat:wide:0.5]", "BREAK", "AND", "cat++", "<style>", "full"]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(PIECES, max_size=40), syntax=st.sampled_from(sorted(SYNTAXES)))
def test_every_vector_that_is_read_has_an_embedding_and_none_is_divided(clip, pieces, syntax):
    found = of(clip, " ".join(pieces), "cat", syntax=syntax)
    rows = [row for reading in found.readings for row in reading.ids]
    assert all(len(row) == clip.length for row in rows)
    for row in rows:
        vectors = [named(found, index) for index in row if index >= FIRST_VECTOR]
        if syntax == "a1111":
            starts = [place for place, (_, number) in enumerate(vectors) if number == 0]
            assert bool(starts) == bool(vectors)
            for start, end in zip(starts, [*starts[1:], len(vectors)], strict=False):
                name = vectors[start][0]
                assert vectors[start:end] == [(name, number) for number in range(VECTORS[name])]


def test_ids_are_shown_as_text_and_names(clip):
    tokenizer = PromptTokenizer(clip, VECTORS)
    ids = tokenizer.encode("a cat-toy cat-toy dog")
    assert tokenizer.decode(ids) == "a cat-toy cat-toy dog"
    assert tokenizer.decode(ids[2:-2]) == "cat-toy cat-toy"
    assert tokenizer.decode([]) == ""


# --- Concepts of diffusers ---


@pytest.mark.parametrize("syntax", ["a1111", "compel", "plain"])
@pytest.mark.parametrize("prompt", ["a <monster-toy>", "(<monster-toy>:1.2)", "x,<monster-toy>, <monster-toy>!"])
def test_a_word_in_angle_brackets_is_never_replaced_in_part(clip, syntax, prompt):
    left = of(clip, prompt, syntax=syntax, known={"monster": 2})
    assert left.embeddings == ()
    assert ["'<monster-toy>' is read as it stands" in told for told in left.problems] == [True]
    found = of(clip, prompt, syntax=syntax, known={"monster": 2, "<monster-toy>": 3})
    assert found.embeddings == ("<monster-toy>",) and not found.problems
    if prompt == "a <monster-toy>":
        assert left.readings == of(clip, prompt, syntax=syntax, known={}).readings and found.tokens == 1 + 3


def test_names_beside_angle_brackets_are_words(clip):
    for syntax in ("a1111", "plain"):
        found = of(clip, "2 < monster > 1 and <other> monster", syntax=syntax, known={"monster": 1})
        assert found.embeddings == ("monster",) and not found.problems
        assert found.tokens == of(clip, "2 < cat > 1 and <other> cat", syntax=syntax, known={}).tokens


def test_marks_upon_marks_take_no_time(clip):
    start = time.process_time()
    of(clip, "\u0301\u0323" * 50_000, syntax="plain", known={"cat": 1})
    assert time.process_time() - start < 5
