"""Stores that are not local disks: Beam's filesystems, here in memory."""

import io
import pickle
import re
import time

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

from sdjax.storage import (
    ABANDONED_SECONDS,
    NO_FOLDERS,
    TEMPORARY,
    RemoteStore,
    StorageError,
    delete,
    exists,
    open_store,
    read_jsonl,
    read_whole,
    write_jsonl,
    write_whole,
)
from tests.storage.folders import FOLDERS, remove_leftovers


class ObjectStore(FileSystem):
    """As GCS and S3: no folders, an object is there when its stream is closed."""

    objects = {}  # noqa: RUF012  # shared on purpose: Beam makes a new instance for each call
    names = []  # noqa: RUF012  # of all objects that ever were

    @classmethod
    def scheme(cls):
        return "objects"

    def has_dirs(self):
        return False

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        raise NotImplementedError

    def _list(self, dir_or_prefix):
        for path, (data, changed) in list(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data), changed)

    def create(self, path, mime_type="", compression_type="auto"):
        assert compression_type == "uncompressed"
        objects, names = self.objects, self.names

        class Stream(io.BytesIO):
            def write(self, data):
                if b"refuse" in data:
                    raise BeamIOError("quota")
                return super().write(data)

            def close(self):
                if not self.closed:
                    objects[path] = (self.getvalue(), time.time())
                    names.append(path)
                    late = b"break off" in self.getvalue()
                    super().close()
                    if late:
                        raise BeamIOError("the connection broke off")
                super().close()

        return Stream()

    def open(self, path, mime_type="", compression_type="auto"):
        assert compression_type == "uncompressed"
        if path not in self.objects:
            raise BeamIOError(f"{path} not found")
        return io.BytesIO(self.objects[path][0])

    def rename(self, source_file_names, destination_file_names):
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            self.objects[destination] = self.objects.pop(source)

    def exists(self, path):
        return path in self.objects

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path][0]), self.objects[path][1])

    def delete(self, paths):
        for found in self.match(paths):
            for file in found.metadata_list:
                del self.objects[file.path]

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    def size(self, path):
        raise NotImplementedError

    def last_updated(self, path):
        raise NotImplementedError

    def checksum(self, path):
        raise NotImplementedError


class Folders(ObjectStore):
    """As HDFS: folders, a file is there from its first byte, and nothing is renamed over another."""

    @classmethod
    def scheme(cls):
        return "folders"

    def has_dirs(self):
        return True

    def rename(self, source_file_names, destination_file_names):
        if self.exists(destination_file_names[0]):
            raise BeamIOError("the target is there already")
        super().rename(source_file_names, destination_file_names)


@pytest.fixture(params=["objects", "folders"])
def remote(request):
    ObjectStore.objects.clear()
    ObjectStore.names.clear()
    return f"{request.param}://bucket/out"


def test_files_are_written_replaced_and_read_anywhere(remote):
    for data in (b"first", b"second"):
        write_whole(f"{remote}/x.gz", data)
        assert read_whole(f"{remote}/x.gz") == data
    for rows in ([{"a": 1}], [{"a": 2}, {"b": 3}]):
        write_jsonl(f"{remote}/x.jsonl", iter(rows))
        assert list(read_jsonl(f"{remote}/x.jsonl")) == rows
    assert sorted(ObjectStore.objects) == [f"{remote}/x.gz", f"{remote}/x.jsonl"]


def test_an_object_is_put_whole_and_a_file_in_folders_is_renamed_into_place(remote):
    write_whole(f"{remote}/x", b"1")
    [name] = ObjectStore.names
    assert (name == f"{remote}/x") if remote.startswith("objects") else name.startswith(f"{remote}/{TEMPORARY}")


def test_a_failed_write_is_a_clear_error_and_leaves_nothing_behind_anywhere(remote):
    with pytest.raises(StorageError, match=rf"^{remote}/x: .*quota"):
        write_whole(f"{remote}/x", b"refuse")
    with pytest.raises(StorageError, match=rf"^{remote}/y: .*quota"):
        write_jsonl(f"{remote}/y", [{"a": 1}, {"a": "refuse"}])
    for write, data in ((write_whole, b"break off"), (write_jsonl, [{"a": "break off"}])):
        with pytest.raises(StorageError, match=rf"^{remote}/x: .*the connection broke off"):
            write(f"{remote}/x", data)
    with pytest.raises(ZeroDivisionError):
        write_jsonl(f"{remote}/z", ({"a": 1 // i} for i in (1, 0)))
    assert ObjectStore.objects == {}


@pytest.mark.parametrize("folder", ["a", "a[1]", "a*", "a?b"])
def test_files_are_listed_anywhere_whatever_the_folders_name(remote, folder):
    store = open_store(f"{remote}/{folder}")
    for name in ("images/ab/1", "images/ab/deep/2", "images/other/3", "x"):
        store.put(name, b"123")
    write_whole(f"{remote}/aXb/images/ab/4", b"another output's")
    assert {file.name for file in store.list()} == {"images/ab/1", "images/ab/deep/2", "images/other/3", "x"}
    assert [(file.name, file.size) for file in store.list("images/", FOLDERS["images/"])] == [("images/ab/1", 3)]
    assert store.path("images/ab/1") == f"{remote}/{folder}/images/ab/1"


def test_what_begins_so_is_removed_at_the_end_of_a_context(remote):
    store = open_store(remote)
    for name in (f"{TEMPORARY}run-1", f"{TEMPORARY}run-2", f"{TEMPORARY}other-1"):
        store.put(name, b"1")
    with store.removing(f"{TEMPORARY}run-"):
        assert len(list(store.list("", NO_FOLDERS))) == 3
    assert [file.name for file in store.list()] == [f"{TEMPORARY}other-1"]


def test_a_store_travels_as_its_url(remote):
    store = pickle.loads(pickle.dumps(open_store(f"{remote}/")))
    store.put("a/x", b"1")
    assert store == RemoteStore(f"{remote}/") and read_whole(f"{remote}/a/x") == store.get("a/x") == b"1"
    assert not store.is_link("a/x")


def test_leftovers_without_locks_are_removed_after_a_day(remote):
    old, new = f"{remote}/images/ab/{TEMPORARY}1", f"{remote}/{TEMPORARY}2"
    ObjectStore.objects[old] = (b"", time.time() - ABANDONED_SECONDS - 60)
    ObjectStore.objects[new] = (b"", time.time() - ABANDONED_SECONDS + 60)
    assert remove_leftovers(remote) == (old.removeprefix(f"{remote}/"),)
    assert list(ObjectStore.objects) == [new]


def test_a_missing_remote_file_is_a_clear_error(remote):
    with pytest.raises(StorageError, match=rf"^{remote}/gone: "):
        read_whole(f"{remote}/gone")


def test_a_scheme_that_no_filesystem_knows_is_a_clear_error():
    for use in (read_whole, lambda path: write_whole(path, b""), lambda path: write_jsonl(path, [])):
        with pytest.raises(StorageError, match=re.escape("nowhere://x/y: Unable to get filesystem")):
            use("nowhere://x/y")


def test_a_file_is_there_until_it_is_deleted(remote, tmp_path):
    for path in (f"{remote}/x", str(tmp_path / "x")):
        assert not exists(path)
        write_whole(path, b"1")
        assert exists(path)
        delete(path)
        assert not exists(path)
