"""What the program makes of prompts, against another evaluation of the same readings."""

import jax
import numpy as np
import pytest

from sdjax.diffusion.samplers import Options, config_for, fill_in, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.engine import prompt_arrays
from sdjax.families.family import Networks
from sdjax.text.tokenize_prompt import tokenize_prompt
from tests import toys
from tests.text import test_tokenize_prompt as by_numpy

STEPS = 6


def encode(model, tokens):
    """The texts of prompts by a model's text encoder."""

    def encoded(params, tokens):
        networks = Networks(model.networks, params)
        return prompt_arrays.encode(model.family, networks, tokens, model.tokenizer.end)

    return jax.jit(encoded)(model.params, tokens)


CASES = [
    ("a red cat", "", "a1111", "original"),
    ("a (red:1.4) [cat], AND the dog :0.5", "(blue:0.3)", "a1111", "original"),
    ("a (red:1.4) cat", "blue", "a1111", "no_norm"),
    ("[a cat:the dog:0.5] [red|blue]", "", "a1111", "original"),
    ("an apple " * 40, "blue", "a1111", "original"),
    ("a red BREAK (cat:2.0)", "", "a1111", "original"),
    ("a red++ cat-- on a castle", "blue+", "compel", "original"),
    ('("a cat", "the dog").blend(0.7, 0.3)', "", "compel", "original"),
    ("a (red:1.4) cat", "(blue)", "comfyui", "original"),
    ("a (red:1.4) cat " * 20, "", "plain", "original"),
]


@pytest.fixture(scope="module")
def table():
    config = config_for(SchedulerConfig(), "euler", own=False)
    return table_of(config, "euler", "uniform", "linspace", STEPS, fill_in(config, "euler", Options()))


def evaluated(encoder, read, text, vectors=()):
    """A text by numpy, with A1111's restoring of each weighted chunk's mean."""
    if not read.normalise:
        return by_numpy.encode(encoder, read, text, vectors)
    [(index, _)] = read.texts[text].mix
    reading = read.readings[index]
    chunks = []
    for ids, weights in zip(reading.ids, reading.weights, strict=True):
        states = encoder(ids, [True] * len(ids), vectors)
        weighted = states * np.array(weights)[:, None]
        chunks.append(weighted * (states.mean() / weighted.mean()))
    return np.concatenate(chunks)


@pytest.mark.parametrize("prompt, negative, syntax, emphasis", CASES)
def test_each_step_and_branch_sees_its_text(prompt, negative, syntax, emphasis, sd1, table):
    read = tokenize_prompt(sd1.tokenizer, prompt, negative, syntax=syntax, emphasis=emphasis, steps=STEPS)
    branches = tuple(range(len(read.part_weights) + 1))
    image = prompt_arrays.select(read, branches, guided=True)
    arrays = prompt_arrays.arrays([image], [table], [0], rows=8)
    arrays = jax.tree.map(jax.numpy.asarray, arrays)
    texts = encode(sd1, arrays.tokens)
    encoder = by_numpy.Encoder(toys.SD1)
    for step in range(STEPS):
        states, mask, _ = prompt_arrays.by_branch(texts, arrays.text_of[step])
        for branch in branches:
            expected = evaluated(encoder, read, read.schedule[step][branch])
            found = np.asarray(states[branch]) if mask is None else np.asarray(states[branch])[np.asarray(mask[branch])]
            np.testing.assert_allclose(found, expected.reshape(found.shape), atol=2e-5, rtol=1e-4)


# --- Embeddings ---

NAMES = {"cat": 1, "style": 3, "bad hands": 2}


def vectors_of(name, width=32):
    return np.random.RandomState(len(name)).standard_normal((NAMES[name], width)).astype(np.float32)


def read_with(model, prompt, negative="", syntax="a1111", known=NAMES):
    return tokenize_prompt(
        model.tokenizer, prompt, negative, syntax=syntax, emphasis="original", steps=STEPS, embeddings=known
    )


def arrays_of(images, tables):
    vectors = [[vectors_of(name) for name in image.embeddings] for image in images]
    return jax.tree.map(jax.numpy.asarray, prompt_arrays.arrays(images, tables, [0] * len(images), 8, vectors))


@pytest.mark.parametrize(
    ("prompt", "negative", "syntax"),
    [
        ("a (style:1.3) [red|cat] " + "red " * 72 + "style", "bad hands", "a1111"),
        ("a style++ (cat)0.4", "", "compel"),
        ("a (embedding:style:0.5)", "embedding:cat", "comfyui"),
    ],
)
def test_vectors_stand_in_the_place_of_tokens(prompt, negative, syntax, sd1, table):
    read = read_with(sd1, prompt, negative, syntax)
    branches = tuple(range(len(read.part_weights) + 1))
    image = prompt_arrays.select(read, branches, guided=True)
    assert image.embeddings == read.embeddings
    arrays = arrays_of([image], [table])
    texts = encode(sd1, arrays.tokens)
    learned = np.concatenate([vectors_of(name) for name in read.embeddings])
    encoder = by_numpy.Encoder(toys.SD1)
    for step in range(STEPS):
        states, mask, _ = prompt_arrays.by_branch(texts, arrays.text_of[step])
        for branch in branches:
            expected = evaluated(encoder, read, read.schedule[step][branch], learned)
            found = np.asarray(states[branch]) if mask is None else np.asarray(states[branch])[np.asarray(mask[branch])]
            np.testing.assert_allclose(found, expected.reshape(found.shape), atol=2e-5, rtol=1e-4)


def test_only_what_an_image_reads_is_used_of_its_embeddings(sd1, table):
    read = read_with(sd1, "a cat", "style cat bad hands")
    assert read.embeddings == ("cat", "style", "bad hands") and read.vectors == (1, 3, 2)
    prompt, negative, both = (
        prompt_arrays.select(read, branches, guided=len(branches) > 1) for branches in ((0,), (1,), (0, 1))
    )
    assert prompt.embeddings == ("cat",) and prompt.shape.vectors == 1
    assert negative.embeddings == both.embeddings == read.embeddings and both.shape.vectors == 6
    read = read_with(sd1, "style", "cat")
    negative = prompt_arrays.select(read, (1,), guided=False)
    assert negative.embeddings == ("cat",) and negative.shape.vectors == 4
    np.testing.assert_array_equal(arrays_of([negative], [table]).tokens.vectors[0, 3:], vectors_of("cat"))


def test_a_prompt_that_names_none_has_the_program_and_the_arrays_of_before(sd1, table):
    images = [
        prompt_arrays.select(read_with(sd1, "a red apple", "blue", known=known), (0, 1), guided=True)
        for known in ({}, NAMES)
    ]
    assert images[0] == images[1] and images[0].shape.vectors == 0
    assert prompt_arrays.arrays(images[:1], [table], [0], 8, [[]]).tokens.vectors is None


def test_images_of_a_batch_have_vectors_of_their_own(sd1, table):
    reads = [read_with(sd1, prompt) for prompt in ("a red style", "bad hands cat", "cat bad hands")]
    images = [prompt_arrays.select(read, (0,), guided=False) for read in reads]
    assert len({image.shape for image in images}) == 1
    together, turned = (
        np.asarray(encode(sd1, arrays_of(order, [table] * 3).tokens).context) for order in (images, images[::-1])
    )
    np.testing.assert_array_equal(together, turned[::-1])
    assert np.abs(together[1] - together[2]).max() > 0.1


def test_ids_beyond_all_vectors_are_safe(sd1):
    size = sd1.networks["text_encoder"].config.vocab_size
    ids = jax.numpy.asarray([[size - 1, size, size + 1, size + 7, 2**31 - 1] + [0] * 72], np.int32)
    vectors = jax.numpy.asarray(vectors_of("bad hands")[None])
    apply = jax.jit(lambda *inputs: sd1.networks["text_encoder"].apply({"params": sd1.params["text_encoder"]}, *inputs))
    states = apply(ids, None, None, vectors).hidden_states[0][0]
    position = np.asarray(sd1.params["text_encoder"]["position_embedding"]["embedding"])
    expected = vectors_of("bad hands")[[0, 1, 1, 1]] + position[1:5]
    np.testing.assert_allclose(states[1:5], expected, atol=1e-6)
    assert np.isfinite(states).all()


# --- Weights and layers ---


def test_weights_of_1_give_the_same_bits_as_none(sd1, table):
    def states(prompt):
        read = tokenize_prompt(sd1.tokenizer, prompt, "", syntax="a1111", emphasis="original", steps=STEPS)
        arrays = prompt_arrays.arrays([prompt_arrays.select(read, (0, 1), guided=True)], [table], [0], rows=8)
        arrays = jax.tree.map(jax.numpy.asarray, arrays)
        return np.asarray(encode(sd1, arrays.tokens).context)

    np.testing.assert_array_equal(states("a (red:1.0) (cat:1)"), states("a red cat"))


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_leaves_out_the_last_layers_before_the_final_norm(skip, sd1):
    ids = jax.numpy.asarray([sd1.tokenizer("a red cat").ids] * 2)
    encoder, params = sd1.networks["text_encoder"], {"params": sd1.params["text_encoder"]}
    apply = jax.jit(lambda ids, skips: encoder.apply(params, ids, None, skips))
    mixed = apply(ids, jax.numpy.asarray([skip, 0]))
    whole = encoder.apply(params, ids)
    norm = sd1.params["text_encoder"]["final_layer_norm"]
    state = np.asarray(whole.hidden_states[-1 - skip][0])
    centred = state - state.mean(-1, keepdims=True)
    expected = centred / np.sqrt(
        (centred**2).mean(-1, keepdims=True) + sd1.networks["text_encoder"].config.layer_norm_eps
    )
    expected = expected * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    np.testing.assert_allclose(mixed.last_hidden_state[0], expected, atol=2e-5)
    np.testing.assert_allclose(mixed.last_hidden_state[1], whole.last_hidden_state[1], atol=1e-6)
