"""Whole paths: which store a file is in, and what is relative to what."""

import pytest

from sdjax.storage import LocalStore, RemoteStore, beside, join, open_store, store_for


@pytest.mark.parametrize(
    "path",
    [
        "x",
        "/x",
        "a/b/x",
        "a//x",
        "../x",
        "./x",
        "a:b/x",
        "s3://bucket/x",
        "gs://bucket/a/b/x",
        "hdfs://x",
        "s3://bucket",
    ],
)
def test_a_file_is_in_a_store_in_which_it_has_the_same_path(path):
    store, name = store_for(path)
    assert store.path(name) == path
    assert isinstance(store, RemoteStore if "://" in path else LocalStore)


@pytest.mark.parametrize("folder", ["out", "out/", "/out", "s3://bucket/out", "s3://bucket/out/", "s3://bucket"])
def test_a_path_below_a_folder_is_that_of_its_store(folder):
    assert join(folder, "images", "x") == open_store(folder).path("images/x") == f"{folder.rstrip('/')}/images/x"


def test_a_path_may_be_given_from_the_folder_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert beside("prompts/p.txt", "in/x.png") == str(tmp_path / "prompts/in/x.png")
    assert beside("/a/p.txt", "../x.png") == "/x.png"
    assert beside("s3://bucket/a/p.txt", "in/x.png") == "s3://bucket/a/in/x.png"
    for whole in ("/x.png", "gs://bucket/x.png"):
        assert beside("prompts/p.txt", whole) == beside("s3://bucket/p.txt", whole) == whole
