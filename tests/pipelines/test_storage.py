import concurrent.futures
import contextlib
import errno
import fcntl
import io
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.storage import (
    LOCK,
    TEMPORARY,
    Done,
    StorageError,
    delete,
    exists,
    image_path,
    list_done,
    open_binary,
    read_jsonl,
    read_whole,
    remove_leftovers,
    write_jsonl,
    write_whole,
)
from tests.rights import without_rights

ID = "ab" + "0" * 30


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def in_another_process(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


# --- Writing on a local disk ---


def test_a_file_is_written_into_folders_that_are_made_for_it(tmp_path):
    path = tmp_path / "images" / "ab" / "x.png"
    write_whole(str(path), b"picture")
    assert read_whole(str(path)) == b"picture"
    assert files_below(tmp_path) == ["images/ab/x.png"]


def test_a_file_without_a_folder_goes_into_the_present_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_whole("x", b"1")
    assert files_below(tmp_path) == ["x"]


def test_a_file_that_is_there_is_replaced(tmp_path):
    path = str(tmp_path / "x")
    write_whole(path, b"first, and longer")
    write_whole(path, b"second")
    assert read_whole(path) == b"second"
    assert files_below(tmp_path) == ["x"]


def test_others_may_read_what_is_written_as_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(str(tmp_path / "x"), b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_gzip_is_not_undone_nor_done(tmp_path):
    path = str(tmp_path / "x.gz")
    write_whole(path, b"not gzip")
    assert read_whole(path) == b"not gzip"
    with open_binary(path) as stream:
        assert stream.read() == b"not gzip"


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What the kernel does at this limit is what it does on a full disk: it writes a part, and then fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=rf"^{tmp_path}/x: .*no room left: free some"):
            write_whole(str(tmp_path / "x"), b"1" * 1_000_000)
        with pytest.raises(StorageError, match=rf"^{tmp_path}/y: .*no room left"):
            write_jsonl(str(tmp_path / "y"), ({"row": row} for row in range(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_below(tmp_path) == []


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = str(tmp_path / "x.jsonl")
    write_jsonl(path, [{"a": 1}])

    def breaks():
        yield {"a": 2}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(path, breaks())
    assert list(read_jsonl(path)) == [{"a": 1}]
    assert files_below(tmp_path) == ["x.jsonl"]


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/out/images/x: .*choose another output"):
        write_whole(str(tmp_path / "out" / "images" / "x"), b"1")


def test_a_folder_where_the_file_should_be_is_a_clear_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match=rf"^{tmp_path}/x: .*choose another output"):
        write_whole(str(tmp_path / "x"), b"1")
    assert files_below(tmp_path) == []


def test_a_folder_without_permission_is_a_clear_error(tmp_path, monkeypatch):
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone
    for use in (lambda: write_whole("x", b"1"), lambda: storage.only_run(".").__enter__()):
        with without_rights(), pytest.raises(StorageError, match="writing is not allowed there"):
            use()


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="there is no folder that nobody may write to")
def test_a_place_where_nobody_may_write_is_a_clear_error():
    with pytest.raises(StorageError, match=r"^/proc/self/x/y: "):
        write_whole("/proc/self/x/y", b"1")


def test_a_missing_file_is_a_clear_error(tmp_path):
    for read in (read_whole, open_binary, lambda path: list(read_jsonl(path))):
        with pytest.raises(StorageError, match=rf"^{tmp_path}/gone: .*check the path"):
            read(str(tmp_path / "gone"))


# --- JSON lines ---

VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters())
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5))
@settings(deadline=None)
def test_rows_come_back_as_they_were(tmp_path_factory, rows):
    path = str(tmp_path_factory.mktemp("rows") / "x.jsonl")
    write_jsonl(path, iter(rows))
    assert list(read_jsonl(path)) == rows
    assert read_whole(path).count(b"\n") == len(rows)


def test_rows_are_readable_text_in_any_script(tmp_path):
    path = str(tmp_path / "x.jsonl")
    write_jsonl(path, [{"prompt": "漢字\u2028 \ud83d"}])
    assert read_whole(path) == '{"prompt": "漢字\u2028 \\ud83d"}\n'.encode()


def test_what_a_terminal_would_obey_is_an_escape_in_the_file_and_the_same_when_read(tmp_path):
    path = str(tmp_path / "x.jsonl")
    row = {"text": "a\x1b[31m\x9b31m\x7f\u202eb", "\u2066": "\\u202e"}
    write_jsonl(path, [row])
    assert not set("\x1b\x9b\x7f\u202e\u2066") & set(read_whole(path).decode())
    assert list(read_jsonl(path)) == [row]


def test_nan_is_no_json_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(str(tmp_path / "x.jsonl"), [{"a": float("nan")}])
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("line", ['{"a": ', "[1]", "\ufffe", "", "[" * 100_000])
def test_a_line_that_is_no_object_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n", "utf-8")
    with pytest.raises(StorageError, match=rf"^{path}, line 2: "):
        list(read_jsonl(str(path)))


# --- What is there ---


def test_a_picture_lies_in_a_folder_of_its_first_two_digits():
    assert image_path("/out", ID, "png") == f"/out/images/ab/{ID}.png"


def test_the_pictures_that_are_there_are_listed_and_nothing_else(tmp_path):
    out = str(tmp_path)
    expected = set()
    for start, extension in (("ab", "png"), ("cd", "webp"), ("ef", "jpg")):
        path = image_path(out, start + "1" * 30, extension)
        write_whole(path, start.encode() * 3)
        expected.add(Done(start + "1" * 30, path, 6))
    for other in (
        "metadata.jsonl",
        f"{ID}.png",
        f"images/cd/{ID}.png",
        f"images/ab/{ID}.gif",
        f"images/ab/{ID}.png.part",
        f"images/ab/{TEMPORARY}{ID}.png",
        "images/ab/cat.png",
    ):
        write_whole(str(tmp_path / other), b"1")
    assert set(list_done(out)) == expected
    assert set(list_done(out + "/")) == {
        done._replace(path=image_path(out + "/", done.id, done.path.split(".")[-1])) for done in expected
    }


def test_nothing_is_listed_where_nothing_is(tmp_path):
    assert list(list_done(str(tmp_path / "gone"))) == []
    assert remove_leftovers(str(tmp_path / "gone")) == []


def test_a_file_in_place_of_the_pictures_is_a_clear_error(tmp_path):
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/images: "):
        list(list_done(str(tmp_path)))


@pytest.fixture
def shut(tmp_path, monkeypatch):
    """Makes folders that can't be listed, in the present one, to which anybody may write."""
    made = []
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone

    def shut(name):
        made.append(tmp_path / name)
        made[-1].mkdir(parents=True)
        made[-1].chmod(0)

    yield shut
    for folder in made:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["lost+found", "of others", "images/lost+found", "images/abc", "steps/others"])
def test_a_folder_that_is_not_ours_is_not_looked_into(shut, tmp_path, name):
    path = image_path(".", ID, "png")
    write_whole(path, b"123")
    (tmp_path / f"{TEMPORARY}1").touch()
    tmp_path.joinpath("images/ab", f"{TEMPORARY}2").touch()
    tmp_path.joinpath(f"{TEMPORARY}1").chmod(0o666)
    tmp_path.joinpath("images/ab").chmod(0o777)
    tmp_path.joinpath("images/ab", f"{TEMPORARY}2").chmod(0o666)
    shut(name)
    with without_rights():
        with pytest.raises(PermissionError):
            os.listdir(name)
        assert list(list_done(".")) == [Done(ID, path, 3)]
        with storage.only_run("."):
            assert sorted(remove_leftovers(".")) == [f"./{TEMPORARY}1", f"./images/ab/{TEMPORARY}2"]


def test_a_folder_of_pictures_that_can_not_be_listed_is_a_clear_error(shut):
    shut("images/ab")
    for use in (lambda: list(list_done(".")), lambda: remove_leftovers(".")):
        with without_rights(), pytest.raises(StorageError, match=r"images/ab: Permission denied"):
            use()


def test_of_the_folders_that_a_user_names_only_what_a_disk_has_lost_is_passed_over(shut, tmp_path):
    (tmp_path / "animals.txt").touch()
    shut("lost+found")
    with without_rights():
        assert list(storage.list_files(".")) == ["./animals.txt"]
    shut("more")
    with without_rights(), pytest.raises(StorageError, match=r"more: Permission denied"):
        list(storage.list_files("."))


# --- One run at a time ---


def fails_for(refused, error):
    """`flock` as some disks have it: it fails for some files."""

    def flock(descriptor, operation, original=fcntl.flock):
        if refused(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        original(descriptor, operation)

    return flock


def test_a_second_run_is_refused_with_the_reason_also_where_folders_can_not_be_locked(tmp_path, monkeypatch):
    out = str(tmp_path)
    monkeypatch.setattr(fcntl, "flock", fails_for(stat.S_ISDIR, errno.EBADF))
    waiting = tmp_path / f"{TEMPORARY}run-ab"  # a part of the manifest, which waits for the others
    with storage.only_run(out):
        write_whole(str(waiting), b"{}")
        reason = rf"^{out}: another run is writing there, which holds {LOCK}: wait"
        with pytest.raises(StorageError, match=reason), storage.only_run(out):
            pass
        assert files_below(tmp_path) == [LOCK, waiting.name]
    with storage.only_run(out):
        assert remove_leftovers(out) == [str(waiting)]
    assert files_below(tmp_path) == []


def test_the_lock_of_a_killed_run_keeps_nobody_out(tmp_path):
    (tmp_path / LOCK).touch()
    with storage.only_run(str(tmp_path)):
        assert files_below(tmp_path) == [LOCK]
    assert files_below(tmp_path) == []


def test_of_runs_that_follow_one_another_closely_never_two_are_at_work(tmp_path):
    at_work = threading.Lock()

    def run(_):
        done = 0
        while done < 200:
            with contextlib.suppress(StorageError), storage.only_run(str(tmp_path)):
                assert at_work.acquire(blocking=False)
                at_work.release()
                done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [200] * 3
    assert files_below(tmp_path) == []


def test_on_a_disk_without_locks_that_is_said_and_nothing_that_may_be_in_use_is_deleted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", fails_for(lambda mode: True, errno.ENOLCK))
    new, old = tmp_path / f"{TEMPORARY}1", tmp_path / f"{TEMPORARY}2"
    for path in (new, old):
        path.touch()
    os.utime(old, (0, time.time() - storage.ABANDONED_SECONDS - 60))
    with storage.only_run(str(tmp_path)):
        assert remove_leftovers(str(tmp_path)) == [str(old)]
        write_whole(str(tmp_path / "x"), b"1")
    told = capsys.readouterr().err
    assert f"{tmp_path} is on a disk without locks" in told and "start one at a time" in told
    assert files_below(tmp_path) == [new.name, "x"]


# --- Leftovers of killed runs ---

WRITE_AND_WAIT = """
    import sys
    from pipelines.storage import write_jsonl

    def rows():
        yield {"a": 1}
        print("writing", flush=True)
        sys.stdin.readline()

    sys.stdin = open(sys.argv[2])
    write_jsonl(sys.argv[1], rows())
"""


@contextlib.contextmanager
def writing(path, tmp_path):
    """A process in the middle of writing a file, which goes on when the pipe is written to."""
    pipe = tmp_path / "go"
    os.mkfifo(pipe)
    # Open both ways, so that neither side waits for the other.
    with open(os.open(pipe, os.O_RDWR), "wb", 0) as go:
        process = in_another_process(WRITE_AND_WAIT, path, pipe)
        try:
            assert process.stdout.readline() == "writing\n"
            yield process, go
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    out = tmp_path / "out"
    with writing(out / "images" / "x.jsonl", tmp_path) as (process, _):
        [left] = files_below(out)
        assert left.startswith(f"images/{TEMPORARY}")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert remove_leftovers(str(out)) == [str(out / left)]
    assert files_below(out) == []


def test_what_a_run_is_writing_just_now_is_left_alone_and_gets_done(tmp_path):
    out = tmp_path / "out"
    with writing(out / "x.jsonl", tmp_path) as (process, go):
        assert remove_leftovers(str(out)) == []
        go.write(b"\n")
        assert process.wait() == 0
    assert files_below(out) == ["x.jsonl"]


def test_two_processes_that_write_and_clean_up_at_the_same_time_lose_nothing(tmp_path):
    code = """
        import sys
        from pipelines.storage import remove_leftovers, write_whole

        for number in range(200):
            write_whole(f"{sys.argv[1]}/{sys.argv[2]}{number}", b"1")
            remove_leftovers(sys.argv[1])
    """
    processes = [in_another_process(code, tmp_path, name) for name in "ab"]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(files_below(tmp_path)) == 400


def test_other_files_are_never_removed(tmp_path):
    for name in ("x.png", ".hidden", f"x{TEMPORARY}", "sdjax-tmp-1"):
        write_whole(str(tmp_path / name), b"1")
    before = files_below(tmp_path)
    (tmp_path / f"{TEMPORARY}link").symlink_to(tmp_path / "x.png")
    assert remove_leftovers(str(tmp_path)) == []
    (tmp_path / f"{TEMPORARY}link").unlink()
    assert files_below(tmp_path) == before


def test_a_file_locked_by_this_process_itself_counts_as_being_written(tmp_path):
    path = tmp_path / f"{TEMPORARY}1"
    with open(path, "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert remove_leftovers(str(tmp_path)) == []
    assert remove_leftovers(str(tmp_path)) == [str(path)]


# --- Beyond local disks: Beam's filesystems, here in memory ---


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
def test_pictures_are_listed_anywhere_whatever_the_folders_name(remote, folder):
    out = f"{remote}/{folder}"
    path = image_path(out, ID, "png")
    assert path == f"{out}/images/ab/{ID}.png"
    write_whole(path, b"123")
    write_whole(f"{remote}/aXb/images/ab/{ID}.png", b"another output's")
    assert list(list_done(out)) == [Done(ID, path, 3)]


def test_leftovers_without_locks_are_removed_after_a_day(remote):
    old, new = f"{remote}/images/ab/{TEMPORARY}1", f"{remote}/{TEMPORARY}2"
    ObjectStore.objects[old] = (b"", time.time() - storage.ABANDONED_SECONDS - 60)
    ObjectStore.objects[new] = (b"", time.time() - storage.ABANDONED_SECONDS + 60)
    assert remove_leftovers(remote) == [old]
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


def test_deleting_what_is_not_there_is_an_error_unless_it_may_be_missing(tmp_path):
    with pytest.raises(StorageError, match=rf"^{tmp_path}/x: "):
        delete(str(tmp_path / "x"))
    delete(str(tmp_path / "x"), missing_ok=True)
