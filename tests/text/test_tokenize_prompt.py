import contextlib
import math
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.text.prompt_tokenizer import FIRST_VECTOR
from sdjax.text.readings import PromptError
from sdjax.text.tokenize_prompt import SYNTAXES, tokenize_prompt
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import write_tokenizer
from tests import toys
from tests.golden import prompts
from tests.text.a1111_prompts import ANY, seen

A1111, COMFYUI, COMPEL = map(prompts.read, ("a1111", "comfyui", "compel"))
WORDS = " ".join(f"cat{index}" for index in range(30))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tokenizer of 30 tokens a chunk, as the embedded model has."""
    folder = tmp_path_factory.mktemp("small")
    write_tokenizer(folder, toys._WORDS, 32)
    return Tokenizer(folder, 32)


def of(tokenizer, prompt, negative_prompt="", *, syntax="a1111", emphasis="original", steps=10):
    return tokenize_prompt(tokenizer, prompt, negative_prompt, syntax=syntax, emphasis=emphasis, steps=steps)


def reading_of(found, step, branch):
    """The one reading of a text that is one."""
    ((reading, share),) = found.texts[found.schedule[step][branch]].mix
    assert share == 1
    return found.readings[reading]


# --- As the web UI reads ---


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("index", range(len(A1111)))
def test_ids_and_weights_are_the_web_uis(tokenizers, kind, index):
    case, tokenizer = A1111[index], tokenizers[kind]
    found = of(tokenizer, case["prompt"], case["prompt"], steps=prompts.STEPS)
    assert found.part_weights == tuple(part["weight"] for part in case["parts"])
    branches = [*(part["schedules"] for part in case["parts"]), case["negative"]]
    for branch, schedules in enumerate(branches):
        readings = [reading_of(found, step, branch) for step in range(prompts.STEPS)]
        assert any(readings == expected(case, schedule, kind, tokenizer) for schedule in schedules)


def expected(case, schedule, kind, tokenizer):
    """The recorded readings of all steps: texts of one part have as many chunks as the longest."""
    most = max(len(case["chunks"][text][kind]) for _, text in schedule)
    empty = (tokenizer.start, tokenizer.end, *[tokenizer.padding] * 75)
    readings = []
    for text in seen(schedule):
        chunks = case["chunks"][text]
        missing = most - len(chunks[kind])
        ids = (*map(prompts.spread, chunks[kind]), *[empty] * missing)
        readings.append((ids, (*map(prompts.spread, chunks["weights"]), *[(1.0,) * 77] * missing), None))
    return readings


# --- As ComfyUI reads ---


@pytest.mark.parametrize("index", range(len(COMFYUI)))
def test_ids_and_weights_are_comfyuis(tokenizers, index):
    case = COMFYUI[index]
    found = of(tokenizers["sd1"], case["prompt"], syntax="comfyui")
    reading = reading_of(found, 0, 0)
    assert reading.ids == tuple(prompts.spread(ids) for ids, _ in case["chunks"])
    assert reading.weights == tuple(prompts.spread(weights) for _, weights in case["chunks"])


def test_a_comfyui_span_of_few_tokens_is_not_divided(small):
    found = of(small, "a " * 28 + "(red green blue:1.2)", syntax="comfyui")
    first, second = reading_of(found, 0, 0).weights
    assert set(first) == {1.0} and second[1:4] == (1.2,) * 3


# --- As Compel encodes ---


class Encoder:
    """CLIP's text encoder in numpy, with a mask, and with vectors of embeddings."""

    def __init__(self, toy):
        self.toy = toy
        # The first that is drawn of a toy.
        self.params = toys.random_params(toys.param_shapes(toy.text_encoder), np.random.RandomState(toy.seed))

    def __call__(self, ids, mask, vectors=()):
        p, cfg = self.params, self.toy.text_encoder
        tokens = p["token_embedding"]["embedding"]
        x = np.array([tokens[index] if index < FIRST_VECTOR else vectors[index - FIRST_VECTOR] for index in ids])
        x = (x + p["position_embedding"]["embedding"][: len(ids)]).astype(np.float64)
        allowed = np.tril(np.ones((len(ids), len(ids)), bool)) & np.array(mask)[None]
        for index in range(cfg.num_hidden_layers):
            layer = p[f"layers_{index}"]
            y = norm(x, layer["layer_norm1"], cfg.layer_norm_eps)
            q, k, v = (
                dense(y, layer["self_attn"][name]).reshape(len(ids), cfg.num_attention_heads, -1).swapaxes(0, 1)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            scores = np.where(allowed, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            y = (scores / scores.sum(-1, keepdims=True)) @ v
            x = x + dense(y.swapaxes(0, 1).reshape(x.shape), layer["self_attn"]["out_proj"])
            y = dense(norm(x, layer["layer_norm2"], cfg.layer_norm_eps), layer["mlp"]["fc1"])
            y = y / (1 + np.exp(-1.702 * y)) if cfg.hidden_act == "quick_gelu" else y * (1 + erf(y / np.sqrt(2))) / 2
            x = x + dense(y, layer["mlp"]["fc2"])
        return norm(x, p["final_layer_norm"], cfg.layer_norm_eps)


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def norm(x, params, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * params["scale"] + params["bias"]


erf = np.vectorize(math.erf)


def encode(encoder, found, text, vectors=()):
    """A text of a tokenized prompt, as the program that draws encodes it: (tokens, width)."""

    def chunks(index):
        reading = found.readings[index]
        masks = reading.mask or [[True] * len(row) for row in reading.ids]
        return np.concatenate([encoder(ids, mask, vectors) for ids, mask in zip(reading.ids, masks, strict=True)])

    base = chunks(found.empty) if found.around_empty else 0.0
    total = 0.0
    for index, share in found.texts[text].mix:
        weights = np.concatenate(found.readings[index].weights)[:, None]
        total = total + share * (base + weights * (chunks(index) - base))
    return total


@pytest.fixture(scope="module")
def toy_encoders(tmp_path_factory):
    made = {}
    for name, toy in (("sd1", toys.SD1), ("sd2", toys.SD2)):
        folder = tmp_path_factory.mktemp(name)
        write_tokenizer(folder, toys._WORDS, toys.LENGTH, toy.padding)
        made[name] = Tokenizer(folder, toys.LENGTH), Encoder(toy)
    return made


@pytest.mark.parametrize("index", range(len(COMPEL)))
def test_embeddings_are_compels(toy_encoders, index):
    case = COMPEL[index]
    tokenizer, encoder = toy_encoders[case["toy"]]
    found = of(tokenizer, case["prompt"], syntax="compel")
    ours = encode(encoder, found, found.schedule[0][0]) @ prompts.projection(encoder.toy.text_encoder.hidden_size)
    np.testing.assert_allclose(ours, case["embeddings"], rtol=0, atol=1e-5)


def test_compels_shorter_text_is_filled_up_with_empty_chunks(small):
    found = of(small, '("a cat", "a dog").and()', "red", syntax="compel")
    assert [text.chunks for text in found.texts] == [2, 2]
    assert (found.chunks, found.negative_chunks) == (2, 2)
    assert reading_of(found, 0, 1).ids[1] == (small.start, small.end, *[small.padding] * 30)


def test_compel_masks_what_weighs_less_than_1(small):
    found = of(small, "a (red)0.5 cat", syntax="compel")
    (base, one), (masked, other) = found.texts[0].mix
    assert one == pytest.approx(0.5) and other == pytest.approx(0.5)
    assert found.readings[base].mask is None
    assert found.readings[masked].mask == ((True, True, False, *[True] * 29),)
    assert found.readings[base].ids == found.readings[masked].ids


# --- Plain ---


def test_plain_is_one_chunk_and_what_is_cut_is_told(small):
    found = of(small, "a " * 30 + "red (cat:1.2)", "a dog", syntax="plain")
    assert len(found.readings[0].ids) == 1 and set(found.readings[0].weights[0]) == {1.0}
    assert found.tokens > 30 and found.cut == "red ( cat : 1 . 2 )" and found.problems == ()
    assert (found.negative_tokens, found.negative_chunks, found.negative_cut) == (2, 1, "")
    assert reading_of(found, 0, 0).ids[0] == small("a " * 30 + "red (cat:1.2)").ids


@settings(deadline=None, max_examples=100)
@given(text=ANY)
def test_plain_gives_the_tokenizers_ids(small, text):
    assert of(small, text, syntax="plain").readings[0].ids == (small(text).ids,)


# --- The plan ---


def test_the_schedule_has_a_text_for_each_step_and_branch(small):
    found = of(small, "a [cat:dog:4] :0.5 AND red", "[a|the]", steps=8)
    assert found.part_weights == (0.5, 1.0)
    assert [row[0] for row in found.schedule] == [0] * 5 + [found.schedule[-1][0]] * 3
    assert len({row[1] for row in found.schedule}) == 1
    assert [row[2] == found.schedule[0][2] for row in found.schedule] == [
        True,
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    assert len(found.texts) == 5 and len(found.readings) == 5
    assert (found.tokens, found.chunks, found.negative_tokens) == (3, 1, 1)


def test_texts_and_readings_are_in_the_order_of_first_use_and_all_different(small):
    found = of(small, "[a|b|c] AND [c|a]", "a", steps=9)
    used = [text for row in found.schedule for text in row]
    assert list(dict.fromkeys(used)) == list(range(len(found.texts))) and len(found.texts) == 3
    assert [text.mix for text in found.texts] == [((index, 1.0),) for index in range(3)]


def test_rows_of_a_long_schedule_are_shared(small):
    found = of(small, "a cat", "a dog", steps=1000)
    assert len(found.schedule) == 1000 and len(set(map(id, found.schedule))) == 1
    found = of(small, "[a|b] cat", "a dog", steps=1000)
    assert len(set(map(id, found.schedule))) == 2


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_empty_prompt_is_one_chunk(small, syntax):
    found = of(small, "", "", syntax=syntax)
    assert found.readings == ((((small.start, small.end, *[small.padding] * 30),), ((1.0,) * 32,), None),)
    assert (found.tokens, found.chunks, found.cut) == (0, 1, "")
    assert (found.negative_tokens, found.negative_chunks, found.negative_cut) == (0, 1, "")
    assert set(found.schedule) == {(0, 0)} and found.texts == ((((0, 1.0),), 1),)
    assert not found.around_empty and found.empty is None and not found.normalise


def test_what_weights_act_around_is_said(small):
    weighted = {"a1111": "(cat:1.2)", "comfyui": "(cat:1.2)", "compel": "cat++", "plain": "cat++"}
    for syntax, prompt in weighted.items():
        found = of(small, prompt, syntax=syntax)
        assert found.normalise == (syntax == "a1111")
        assert found.around_empty == (found.empty is not None) == (syntax in ("comfyui", "compel"))
        if found.empty is not None:
            assert found.readings[found.empty] == of(small, "").readings[0]
    assert not of(small, "(cat:1.2)", emphasis="no_norm").normalise


def test_the_reading_of_nothing_has_as_many_chunks_as_the_others(small):
    found = of(small, "(cat:1.2) " + WORDS, syntax="comfyui")
    assert found.empty is not None and len(found.readings[found.empty].ids) == len(found.readings[0].ids) > 1


def test_ignored_emphasis_is_read_and_does_nothing(small):
    found = of(small, "a (cat:1.5) [dog]", emphasis="ignore")
    assert found.readings[0] == of(small, "a cat dog").readings[0] and not found.normalise


def test_problems_name_the_prompt_and_the_letter(small):
    problems = of(small, "a (cat", "[a:b:99]").problems
    assert [re.sub(":.*", "", problem) for problem in problems] == ["prompt, letter 3", "negative_prompt, letter 1"]
    problems = of(small, ")" * 50).problems
    assert len(problems) == 11 and problems[-1] == "prompt: and 40 more like these"


def test_compels_adapters_are_named_in_the_prompt(small):
    found = of(small, "a withLora(nice, 0.5) cat", "red", syntax="compel")
    assert [tag.name for tag in found.tags] == ["nice"] and found.problems == ()
    (problem,) = of(small, "a cat", "red withLora(nice)", syntax="compel").problems
    assert problem.startswith("negative_prompt, letter 9: an adapter acts on the whole image; name it in the prompt")


def test_and_is_a_word_in_a_negative_prompt(small):
    found = of(small, "", "a AND b :2")
    assert len(found.schedule[0]) == 2 and found.part_weights == (1.0,)


@settings(deadline=None, max_examples=60)
@given(text=ANY, negative=ANY, syntax=st.sampled_from(sorted(SYNTAXES)), steps=st.integers(1, 6))
def test_any_prompt_has_a_plan(small, text, negative, syntax, steps):
    found = of(small, text, negative, syntax=syntax, steps=steps)
    assert len(found.schedule) == steps
    assert {len(row) for row in found.schedule} == {len(found.part_weights) + 1}
    used = {index for text in found.texts for index, _ in text.mix} | ({found.empty} - {None})
    assert used == set(range(len(found.readings)))
    for reading in found.readings:
        rows = [*reading.ids, *reading.weights, *(reading.mask or ())]
        assert {len(row) for row in rows} == {small.length}
    for text_found in found.texts:
        assert {len(found.readings[index].ids) for index, _ in text_found.mix} == {text_found.chunks}


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.sampled_from(["a", "red", "cat", ",", "castle"]), min_size=1, max_size=50),
    syntax=st.sampled_from(sorted(SYNTAXES)),
)
def test_a_weight_of_1_changes_nothing(small, words, syntax):
    text = " ".join(words)
    weighted = {"a1111": f"({text}:1)", "comfyui": f"({text}:1.0)", "compel": f"({text})1.0", "plain": text}[syntax]
    assert of(small, weighted, syntax=syntax) == of(small, text, syntax=syntax)


@pytest.mark.parametrize(
    "prompt, syntax, letter",
    [
        ("a cat < lora:ink:1>", "a1111", 7),
        ("a <lora:ink:1> (cat:1.1) <lora:chalk", "a1111", 26),
        ("a cat <lora:ink:1>", "comfyui", 7),
        ("a cat <hypernet:oil:1>", "compel", 7),
    ],
)
def test_what_looks_like_an_adapter_and_is_read_as_text_is_a_problem(small, prompt, syntax, letter):
    told = of(small, prompt, syntax=syntax).problems
    assert any(each.startswith(f"prompt, letter {letter}: ") and "read as text" in each for each in told)
    assert of(small, prompt, syntax="plain").problems == ()


# --- Limits ---


def many(operator, number):
    return '("' + '", "'.join(f"{index}" for index in range(number)) + f'").{operator}()'


def many_of(sign, number):
    return sign.join(["a cat"] * number)


@pytest.mark.parametrize(
    "syntax, fitting, beyond, told",
    [
        ("a1111", many_of(" AND ", 32), many_of(" AND ", 33), "what AND joins: 33 parts; expected up to 32"),
        ("a1111", many_of(" BREAK ", 64), many_of(" BREAK ", 65), "a text: 65 chunks of 75 tokens; expected up to 64"),
        ("a1111", "cat " * 4800, "cat " * 4801, "a text: 65 chunks"),
        ("a1111", "[a|b]" * 333, "[a|b]" * 334, "step switches and alternations: 1002 brackets"),
        ("a1111", "[" * 200 + "a:b:5]" * 200, "[" * 400 + "a:b:5]" * 400, "1200 brackets, bars and colons"),
        (
            "a1111",
            "cat " * 4000 + "[" + "|".join("abcdefghijklmnopqr") + "]",
            "cat " * 4000 + "[" + "|".join("abcdefghijklmnopqrstuvwxyz") + "]",
            "texts in all its steps together: 1404 chunks; expected up to 1024",
        ),
        (
            "a1111",
            "x",
            " " * 50_000 + "[" + "|".join("abcdefghijklmnopqrstuvwxyz") + "]",
            "letters; expected up to 1000000",
        ),
        ("comfyui", "cat " * 4800, "cat " * 4801, "a text: 65 chunks"),
        ("compel", many("and", 64), many("and", 65), "what .and() joins: 65 prompts; expected up to 64"),
        ("compel", many("blend", 1024), many("blend", 1025), "1025 chunks; expected up to 1024"),
        ("compel", "x", '("' + '(a)0.5 (b)0.6 (c)0.7 (d)0.8", "' * 30 + 'x").and()', "encoded apart: "),
        ("plain", "cat " * 25_000, None, ""),
    ],
)
@pytest.mark.parametrize("side", ["prompt", "negative_prompt"])
def test_a_prompt_that_asks_for_too_much_is_an_error_that_names_the_limit(
    tokenizers, syntax, fitting, beyond, told, side
):
    def read(text):
        texts = {"prompt": "", "negative_prompt": "", side: text}
        return tokenize_prompt(tokenizers["sd1"], **texts, syntax=syntax, emphasis="original", steps=30)

    if side == "prompt":
        read(fitting)
    if beyond is None or (side == "negative_prompt" and "AND" in beyond):
        return
    with pytest.raises(PromptError, match=f"^{side}: .*") as raised:
        read(beyond)
    assert told in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize("prompt", ["embedding:x " * 8000, "embedding: " * 9000, "aembedding:b " * 7000])
def test_embeddings_that_are_not_there_take_no_time(tokenizers, prompt):
    start = time.process_time()
    with contextlib.suppress(PromptError):
        tokenize_prompt(tokenizers["sd1"], prompt, "", syntax="comfyui", emphasis="original", steps=2)
    assert time.process_time() - start < 5
