import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import END, START, clip_vocabulary, cut_down, write_tokenizer
from sdjax.training.scenes import COLORS, concepts

# The words of the embedded model's captions: usual ones, and rare ones of many tokens.
WORDS = sorted({word for concept in concepts() for word in re.findall("[a-z]+", concept.name)} | set(COLORS))
KNOWN = [word for word in WORDS if word.isalpha()]


@pytest.fixture(scope="module")
def clip():
    return clip_vocabulary()


@pytest.fixture(scope="module")
def splits(clip, tmp_path_factory):
    """(vocabulary, tokenizer) of CLIP and of what KNOWN needs of it."""
    both = []
    for name, vocabulary in (("whole", clip), ("cut", cut_down(clip, KNOWN))):
        folder = tmp_path_factory.mktemp(name)
        write_tokenizer(folder, vocabulary, 77)
        both.append((vocabulary, Tokenizer(folder, 77)))
    return both


def symbols(vocabulary, tokenizer, text):
    names = {index: symbol for symbol, index in vocabulary.tokens.items()}
    tokens = tokenizer(text)
    return [names[index] for index in tokens.ids[1 : 1 + tokens.total]]


def test_clips_vocabulary_is_whole(clip):
    assert len(clip.tokens) == 49408 and len(clip.merges) == 48894
    assert sorted(clip.tokens.values()) == list(range(49408))
    assert (clip.tokens[START], clip.tokens[END]) == (49406, 49407)
    # Published ids of OpenAI's tokenizer.
    assert [clip.tokens[token] for token in ("!", "a</w>", "cat</w>", "photo</w>")] == [0, 320, 2368, 1125]


def test_every_symbol_but_bytes_and_specials_is_made_by_a_merge(clip):
    made = {left + right for left, right in clip.merges}
    assert len(set(clip.tokens) - made) == 256 + 256 + 2


def test_a_cut_vocabulary_is_a_small_part_in_the_same_order(clip):
    small = cut_down(clip, KNOWN)
    assert len(small.tokens) < len(clip.tokens) / 20
    assert set(small.tokens) <= set(clip.tokens)
    ranks = {pair: rank for rank, pair in enumerate(clip.merges)}
    order = [ranks[pair] for pair in small.merges]
    assert order == sorted(order)
    assert small == cut_down(clip, reversed(KNOWN * 2))


def test_no_words_need_no_merges(clip):
    assert cut_down(clip, []).merges == () and len(cut_down(clip, []).tokens) == 514


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(KNOWN), min_size=1, max_size=10))
def test_a_cut_vocabulary_splits_its_words_as_the_whole_one_does(splits, words):
    (whole, cut) = splits
    assert symbols(*cut, " ".join(words)) == symbols(*whole, " ".join(words))


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12))
def test_a_cut_vocabulary_splits_other_words_further_and_loses_nothing(splits, text):
    whole, cut = (symbols(vocabulary, tokenizer, text) for vocabulary, tokenizer in splits)
    assert "".join(cut) == "".join(whole)
    assert len(cut) >= len(whole)
