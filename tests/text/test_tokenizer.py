import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdjax.text.tokenizer import Tokenizer, TokenizerError
from sdjax.text.vocabulary import START, clip_vocabulary, cut_down, write_tokenizer
from tests import toys

START_ID, END_ID = 49406, 49407
SMALL = cut_down(clip_vocabulary(), toys.WORDS)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder, clip_vocabulary(), 77)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder):
    return Tokenizer(clip_folder, 77)


@pytest.fixture
def toy_folder(tmp_path):
    write_tokenizer(tmp_path, SMALL, 77)
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        # As openai/clip-vit-large-patch14 gives them.
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo\nof a CAT ", [320, 1125, 539, 320, 2368]),
        ("hello world", [3306, 1002]),
        ("", []),
    ],
)
def test_known_prompts_have_clips_ids(clip, prompt, ids):
    tokens = clip(prompt)
    assert tokens.ids == (START_ID, *ids, *[END_ID] * (76 - len(ids)))
    assert tokens.total == len(ids)
    assert tokens.cut == ""


def test_padding_is_the_end_token_or_what_the_checkpoint_says(tmp_path):
    for padding in ("!", "<|endoftext|>"):
        folder = tmp_path / str(len(padding))
        write_tokenizer(folder, SMALL, 77, padding)
        ids = Tokenizer(folder, 77)("a red apple").ids
        end = SMALL.tokens["<|endoftext|>"]
        assert ids[0] == SMALL.tokens[START] and ids[4] == end
        assert ids[5:] == (SMALL.tokens[padding],) * 72
    assert SMALL.tokens["!"] == 0


def test_a_prompt_of_just_the_length_is_whole(clip):
    tokens = clip(" ".join(["cat"] * 75))
    assert tokens.ids == (START_ID, *[2368] * 75, END_ID)
    assert (tokens.total, tokens.cut) == (75, "")


def test_what_did_not_fit_is_told(clip):
    tokens = clip(" ".join(["cat"] * 75) + " and a small dog")
    assert tokens.ids == (START_ID, *[2368] * 75, END_ID)
    assert tokens.total == 79
    assert tokens.cut.split() == ["and", "a", "small", "dog"]


def test_the_length_is_the_encoders(tmp_path):
    write_tokenizer(tmp_path, clip_vocabulary(), 8)
    tokens = Tokenizer(tmp_path, 8)("one two three four five six seven eight")
    assert len(tokens.ids) == 8 and tokens.total == 8
    assert tokens.cut.split() == ["seven", "eight"]


@given(text=st.text(st.characters(), max_size=200) | st.text(st.characters(categories=["Cs", "Cn", "Co", "Mn"])))
def test_any_text_at_all_gives_the_encoders_number_of_known_ids(clip, text):
    tokens = clip(text)
    assert len(tokens.ids) == 77
    assert tokens.ids[0] == START_ID and END_ID in tokens.ids[1:]
    assert all(0 <= index < clip.size for index in tokens.ids)
    assert (tokens.cut != "") <= (tokens.total > 75)


@pytest.mark.parametrize("text", ["\ud800", "a cat \udfff on a mat", "\udc00\ud800"])
def test_half_a_surrogate_pair_reads_as_a_question_mark(clip, text):
    readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\ufffd", "?")
    assert clip(text) == clip(readable)


def test_a_tokenizer_saved_as_one_json_file_is_the_same(clip, clip_folder, tmp_path):
    CLIPTokenizer.from_pretrained(str(clip_folder)).save_pretrained(str(tmp_path))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").is_file()
    one = Tokenizer(tmp_path, 77)
    assert (one.size, one.start, one.end, one.padding) == (clip.size, clip.start, clip.end, clip.padding)
    for prompt in ("a photo of a cat", "zeppelin, 8k!! (détail) 猫 🐈", "x" * 300, "it's 'quoted' #1 a_b", "\ud83d"):
        assert one(prompt) == clip(prompt)


# --- Folders that are not whole ---


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt", ""])
def test_a_folder_without_a_tokenizer_is_told_by_name(toy_folder, missing):
    if missing:
        (toy_folder / missing).unlink()
    folder = toy_folder if missing else toy_folder / "nowhere"
    with pytest.raises(TokenizerError, match=r"has neither tokenizer\.json nor vocab\.json with merges\.txt") as raised:
        Tokenizer(folder, 77)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", "{}"),
        ("merges.txt", "one two three\nx"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_a_damaged_tokenizer_is_an_error_that_names_its_folder(toy_folder, name, content):
    (toy_folder / name).write_text(content, "utf-8")
    with pytest.raises(TokenizerError, match="does not hold a CLIP tokenizer") as raised:
        Tokenizer(toy_folder, 77)
    assert str(toy_folder) in str(raised.value)


def say(folder: Path, file: str = "tokenizer_config.json", **more: object) -> None:
    """Adds to a config in a tokenizer's folder."""
    config = json.loads((folder / file).read_text("utf-8")) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**config, **more}), "utf-8")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["vocab", "merges", "fast_tokenizer_files", "init_inputs"])
def test_files_elsewhere_are_not_read(toy_folder, tmp_path_factory, file, key):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_tokenizer(elsewhere, cut_down(clip_vocabulary(), ["zeppelin"]), 77)
    name = str(elsewhere / {"vocab": "vocab.json", "merges": "merges.txt"}.get(key, "tokenizer.4.0.json"))
    say(toy_folder, file, **{key: [name] if key in ("fast_tokenizer_files", "init_inputs") else name})
    with pytest.raises(TokenizerError, match=f"{file}: {key} = .*a tokenizer is read from its own folder alone"):
        Tokenizer(toy_folder, 77)


def test_a_config_may_name_files_that_nobody_reads(toy_folder):
    """As those of real checkpoints do: paths of the machine where they were saved."""
    plain = Tokenizer(toy_folder, 77)("a red apple")
    say(
        toy_folder, special_tokens_map_file="./special_tokens_map.json", name_or_path="openai/clip", auto_map={"a": "b"}
    )
    say(toy_folder, tokenizer_file="/home/someone/tokenizer.json", vocab_file="../vocab.json", merges_file=None)
    say(toy_folder, fast_tokenizer_files=["tokenizer.json"])
    assert Tokenizer(toy_folder, 77)("a red apple") == plain


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.model", "chat_template.jinja", "vocab.json.bak"])
def test_files_that_no_digest_is_over_are_not_read(toy_folder, name):
    plain = Tokenizer(toy_folder, 77)("a red apple")
    (toy_folder / name).write_text("{{ nothing", "utf-8")
    assert Tokenizer(toy_folder, 77)("a red apple") == plain


def test_what_is_written_is_what_transformers_reads(toy_folder):
    assert json.loads((toy_folder / "vocab.json").read_text("utf-8")) == SMALL.tokens
    assert (toy_folder / "merges.txt").read_text("utf-8").splitlines()[1:] == [" ".join(pair) for pair in SMALL.merges]
    assert Tokenizer(toy_folder, 77).size == len(SMALL.tokens)


# --- How long texts may be ---


def says(folder, **keys):
    """The folder, with keys of its config."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **keys}), "utf-8")
    return folder


@pytest.mark.parametrize("said", [40, 77, 3])
def test_texts_have_as_many_tokens_as_the_tokenizers_config_says(toy_folder, said):
    tokenizer = Tokenizer(says(toy_folder, model_max_length=said), 77)
    tokens = tokenizer("cat " * 76)
    assert tokenizer.length == len(tokens.ids) == said
    assert tokens.cut.split() == ["cat"] * (76 - (said - 2))


def test_an_encoder_of_more_positions_reads_as_many_tokens_as_the_tokenizers_config_says(toy_folder):
    assert Tokenizer(toy_folder, 248).length == 77


@pytest.mark.parametrize("said", [None, 10**30, 1e30, 1000000000000000019884624838656])
def test_a_config_that_says_no_length_leaves_it_to_the_encoder(toy_folder, said):
    assert Tokenizer(says(toy_folder, model_max_length=said), 77).length == 77


@pytest.mark.parametrize("said", [120, 78, 2, 0, -1, 77.0, "77", True, [77], 10**19])
def test_a_length_that_the_encoder_does_not_have_is_an_error_that_names_the_file_and_the_key(toy_folder, said):
    message = r"tokenizer_config\.json: model_max_length = .*: expected a whole number from 3 to 77"
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(says(toy_folder, model_max_length=said), 77)


# --- Files that transformers or its Rust code would stumble over ---


@pytest.fixture
def whole(toy_folder):
    """A tokenizer.json, and the function that writes it changed."""
    CLIPTokenizer.from_pretrained(str(toy_folder)).save_pretrained(str(toy_folder))
    file = toy_folder / "tokenizer.json"

    def write(change):
        data = json.loads(file.read_text("utf-8"))
        change(data)
        file.write_text(json.dumps(data), "utf-8")
        return toy_folder

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAQ=="}),
            "normalizer is of the type Precompiled",
        ),
        (
            lambda d: d.update(
                normalizer={"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "*"}]}
            ),
            "normalizer is of the type Precompiled",
        ),
        (lambda d: d.update(model={"type": "Unigram", "vocab": []}), "its model is 'Unigram'; expected BPE"),
        (lambda d: d.update(model=[]), r"its model is \[\]; expected BPE"),
        (lambda d: d["model"].update(vocab=[["a", 1]]), "the vocabulary is"),
        (lambda d: d["model"]["vocab"].update(cat=-1), "the token 'cat' has the number -1"),
        (lambda d: d["model"]["vocab"].update(cat=2**40), "the token 'cat' has the number 1099511627776"),
        (lambda d: d["model"]["vocab"].update(cat=True), "the token 'cat' has the number True"),
        (lambda d: d["model"].update(merges=["one two three"]), r"model\.merges: expected a list of pairs"),
        (lambda d: d.update(added_tokens=[{"id": 10**9, "content": "x"}]), "added_tokens: 1000000000 is no number"),
        (lambda d: d.update(added_tokens=["x"]), "added_tokens: None is no number"),
        (lambda d: d.update(post_processor={"type": "Nonsense"}), "does not hold a CLIP tokenizer"),
    ],
)
def test_a_tokenizer_json_that_is_none_of_clips_is_an_error_that_names_it(whole, change, message, capfd):
    folder = whole(change)
    with pytest.raises(TokenizerError, match=message) as raised:
        Tokenizer(folder, 77)
    assert str(folder) in str(raised.value) and len(str(raised.value)) < 1000
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, "tokenizer_class 'T5Tokenizer' is not supported"),
        ({"bos_token": 5}, "bos_token = 5: expected a token"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "added_tokens_decoder: '-1' is no number of a token"),
        ({"added_tokens_decoder": {"999999999": {"content": "x"}}}, "'999999999' is no number of a token"),
        ({"added_tokens_decoder": {"1": "x"}}, "the token 1 is 'x'; expected an object"),
        ({"added_tokens_decoder": [1]}, "expected tokens by their numbers"),
    ],
)
def test_a_tokenizers_config_that_can_not_be_is_an_error_that_names_the_key(toy_folder, keys, message):
    with pytest.raises(TokenizerError, match=message) as raised:
        Tokenizer(says(toy_folder, **keys), 77)
    assert str(toy_folder / "tokenizer_config.json") in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_nesting_without_end_is_an_error_that_names_the_file(toy_folder, name):
    (toy_folder / name).write_text('{"a":' * 900 + "1" + "}" * 900, "utf-8")
    with pytest.raises(TokenizerError, match=rf"{name} is nested deeper than 32"):
        Tokenizer(toy_folder, 77)


def test_a_tokenizer_without_a_token_to_pad_with_is_an_error(toy_folder):
    say(toy_folder, pad_token=None)
    with pytest.raises(TokenizerError, match="no pad_token; expected a token of the vocabulary"):
        Tokenizer(toy_folder, 77)


@pytest.mark.parametrize(
    "text", ['"' + '\\\\"' * 50_000, '"' * 200_001, '{"a": "' + "b" * 10**6, "[" * 1000, '"' + "\\\\" * 100_001]
)
def test_text_that_is_no_json_is_refused_in_time_that_goes_with_its_length(toy_folder, text):
    (toy_folder / "vocab.json").write_text(text)
    start = time.process_time()
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        Tokenizer(toy_folder, 77)
    assert time.process_time() - start < 2
