"""What the program makes of prompts, against another evaluation of the same readings."""

import jax
import numpy as np
import pytest

from sdjax import conditions
from sdjax.diffusion.samplers import Options, config_for, fill_in, table_of
from sdjax.diffusion.schedule import SchedulerConfig
from sdjax.text.conditioning import condition
from tests import toys
from tests.text import test_conditioning as by_numpy

STEPS = 6
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


def evaluated(encoder, read, text):
    """A text by numpy, with A1111's restoring of each weighted chunk's mean."""
    if not read.normalise:
        return by_numpy.encode(encoder, read, text)
    [(index, _)] = read.texts[text].mix
    reading = read.readings[index]
    chunks = []
    for ids, weights in zip(reading.ids, reading.weights, strict=True):
        states = encoder(ids, [True] * len(ids))
        weighted = states * np.array(weights)[:, None]
        chunks.append(weighted * (states.mean() / weighted.mean()))
    return np.concatenate(chunks)


@pytest.mark.parametrize("prompt, negative, syntax, emphasis", CASES)
def test_each_step_and_branch_sees_its_text(prompt, negative, syntax, emphasis, sd1, table):
    read = condition(sd1.tokenizer, prompt, negative, syntax=syntax, emphasis=emphasis, steps=STEPS)
    branches = tuple(range(len(read.part_weights) + 1))
    image = conditions.used(read, branches, guided=True)
    arrays = conditions.arrays([image], [table], [0], rows=8)
    arrays = jax.tree.map(jax.numpy.asarray, arrays)
    contexts = conditions.encode(sd1.text_encoder, sd1.params["text_encoder"], arrays)
    encoder = by_numpy.Encoder(toys.SD1)
    for step in range(STEPS):
        states, mask = conditions.seen_by(contexts, arrays.text_of[step])
        for branch in branches:
            expected = evaluated(encoder, read, read.schedule[step][branch])
            found = np.asarray(states[branch]) if mask is None else np.asarray(states[branch])[np.asarray(mask[branch])]
            np.testing.assert_allclose(found, expected.reshape(found.shape), atol=2e-5, rtol=1e-4)


def test_weights_of_1_give_the_same_bits_as_none(sd1, table):
    def states(prompt):
        read = condition(sd1.tokenizer, prompt, "", syntax="a1111", emphasis="original", steps=STEPS)
        arrays = conditions.arrays([conditions.used(read, (0, 1), guided=True)], [table], [0], rows=8)
        arrays = jax.tree.map(jax.numpy.asarray, arrays)
        return np.asarray(conditions.encode(sd1.text_encoder, sd1.params["text_encoder"], arrays).states)

    np.testing.assert_array_equal(states("a (red:1.0) (cat:1)"), states("a red cat"))


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_leaves_out_the_last_layers_before_the_final_norm(skip, sd1):
    ids = jax.numpy.asarray([sd1.tokenizer("a red cat").ids] * 2)
    apply = jax.jit(lambda ids, skips: sd1.text_encoder.apply({"params": sd1.params["text_encoder"]}, ids, None, skips))
    mixed = apply(ids, jax.numpy.asarray([skip, 0]))
    whole = sd1.text_encoder.apply({"params": sd1.params["text_encoder"]}, ids)
    norm = sd1.params["text_encoder"]["final_layer_norm"]
    state = np.asarray(whole.hidden_states[-1 - skip][0])
    centred = state - state.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + sd1.text_encoder.config.layer_norm_eps)
    expected = expected * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    np.testing.assert_allclose(mixed.last_hidden_state[0], expected, atol=2e-5)
    np.testing.assert_allclose(mixed.last_hidden_state[1], whole.last_hidden_state[1], atol=1e-6)
