import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sdjax.adapters.embedding import check_width, read_embedding
from sdjax.adapters.files import AdapterError
from tests.golden import embeddings

SEVERAL, ONE = embeddings.vectors("cat-toy", 8), embeddings.vectors("cat", 8)


# --- Files of every form ---


@pytest.mark.parametrize(
    ("file", "vectors"),
    [
        ("a1111.pt", SEVERAL),
        ("original.pt", SEVERAL),
        ("diffusers.bin", ONE),
        ("older.bin", ONE.astype(np.float16)),
    ],
)
def test_pickled_forms(file, vectors):
    found = read_embedding(embeddings.FILES / file, pickled=True)
    assert found.name == file.partition(".")[0] and len(found.digest) == 64
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float32))


@pytest.mark.parametrize("key", ["emb_params", "<cat>", "clip_l", "string_to_param.*"])
@pytest.mark.parametrize("vectors", [SEVERAL, ONE, ONE[0], SEVERAL.astype(np.float16), SEVERAL.astype(np.float64)])
def test_safetensors_with_one_tensor_of_any_name(tmp_path, key, vectors):
    save_file({key: vectors}, tmp_path / "my cat.safetensors")
    found = read_embedding(tmp_path / "my cat.safetensors")
    assert found.name == "my cat" and found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, np.atleast_2d(vectors).astype(np.float32))


def image(file, text=None):
    info = PngInfo()
    if text is not None:
        info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (4, 4)).save(file, pnginfo=info)
    return file


def as_text(value):
    return base64.b64encode(json.dumps(value).encode()).decode()


def test_an_image_of_the_web_ui(tmp_path):
    told = {"name": "other", "step": 3, "string_to_token": {"*": 265}}
    data = told | {"string_to_param": {"*": {"TORCHTENSOR": SEVERAL.astype(float).tolist()}}}
    found = read_embedding(image(tmp_path / "toy.png", as_text(data)))
    assert found.name == "toy"
    np.testing.assert_array_equal(found.vectors, SEVERAL)


# --- What is no embedding ---


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            {"clip_l": ONE, "clip_g": SEVERAL},
            "is an embedding for Stable Diffusion XL (clip_g, clip_l), not for 1 or 2",
        ),
        ({"a": ONE, "b": ONE}, "holds 2 tensors (a, b); expected the one of an embedding"),
        ({}, "holds 0 tensors (none)"),
        ({"a": np.zeros((2, 3, 4), np.float32)}, "its tensor is (2, 3, 4); expected (width,), or (vectors, width)"),
        ({"a": np.zeros((0, 8), np.float32)}, "its tensor is (0, 8)"),
        ({"a": np.zeros((5000, 8), np.float32)}, "its tensor is (5000, 8)"),
        ({"a": np.zeros(8, np.int32)}, "a holds I32, not one of F64, F32, F16, BF16"),
        ({"a": np.full(8, np.nan, np.float32)}, "its vectors have NaN or infinite numbers"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, tensors, told):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=re.escape(told)) as raised:
        read_embedding(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(raised.value)


def test_pickled_files_are_read_only_where_that_is_allowed(tmp_path):
    with pytest.raises(AdapterError, match="pickled"):
        read_embedding(embeddings.FILES / "a1111.pt")
    with pytest.raises(AdapterError, match=r"none\.safetensors"):
        read_embedding(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "has no text sd-ti-embedding; if the embedding is in its pixels, load it in the web UI"),
        ("%%%", "its text sd-ti-embedding is no embedding"),
        (as_text([]), "its text sd-ti-embedding is no embedding"),
        (as_text({"string_to_param": {}}), "its text sd-ti-embedding is no embedding"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}), "its text sd-ti-embedding is no"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": {"a": 1}}}}), "its text sd-ti-embedding is no"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": 5}}}), "its tensor is ()"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [10**400]}}}), "its text sd-ti-embedding is no"),
        (as_text({"string_to_param": {"*": {"TORCHTENSOR": [1e300]}}}), "NaN or infinite"),
        (base64.b64encode(b"[" * 100_000).decode(), "its text sd-ti-embedding is no embedding"),
    ],
)
def test_images_without_an_embedding_that_can_be_read_are_refused(tmp_path, text, told):
    with pytest.raises(AdapterError, match=re.escape(told)) as raised:
        read_embedding(image(tmp_path / "x.png", text))
    assert "x.png" in str(raised.value)


def test_other_images_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    (tmp_path / "x.webp").write_bytes(b"no image")
    with pytest.raises(AdapterError, match=r"x\.png"):
        read_embedding(tmp_path / "x.png")
    with pytest.raises(AdapterError, match=r"x\.webp: an embedding in an image that is no PNG"):
        read_embedding(tmp_path / "x.webp")
    with pytest.raises(AdapterError, match=r"none\.png"):
        read_embedding(tmp_path / "none.png")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_an_error_and_nothing_else(tmp_path_factory, data):
    file = data.draw(st.sampled_from(sorted(embeddings.FILES.iterdir())))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.mktemp("damaged") / file.name
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        found = read_embedding(damaged, pickled=True)
    except AdapterError as error:
        assert file.name in str(error)
    else:
        assert found.vectors.ndim == 2 and np.isfinite(found.vectors).all()


# --- Which model it is for ---


def test_the_width_is_the_text_encoders(tmp_path):
    params = {"token_embedding": {"embedding": np.zeros((3, 768), np.float32)}}
    save_file({"a": np.zeros((2, 1024), np.float32)}, tmp_path / "wide.safetensors")
    save_file({"a": np.zeros((2, 768), np.float32)}, tmp_path / "fits.safetensors")
    with pytest.raises(AdapterError) as raised:
        check_width(read_embedding(tmp_path / "wide.safetensors"), params)
    assert str(raised.value) == (
        "embedding 'wide': its vectors are 1024 numbers wide, as Stable Diffusion 2's; the text encoder's are 768 "
        "numbers wide, as Stable Diffusion 1's. Take one that was made for this model"
    )
    check_width(read_embedding(tmp_path / "fits.safetensors"), params)
