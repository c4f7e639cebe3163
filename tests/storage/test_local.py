"""A local disk: files are whole or not there, runs keep out of each other's way, and nothing is left behind."""

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sdjax import storage
from sdjax.storage import (
    ABANDONED_SECONDS,
    LOCK,
    NO_FOLDERS,
    TEMPORARY,
    LocalStore,
    StorageError,
    delete,
    open_binary,
    read_jsonl,
    read_whole,
    write_jsonl,
    write_whole,
)
from tests.rights import without_rights
from tests.storage.folders import FOLDERS, files_below, remove_leftovers


def in_another_process(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


# --- Writing on a local disk ---


def test_a_file_is_written_into_folders_that_are_made_for_it(tmp_path):
    path = tmp_path / "images" / "ab" / "x.png"
    write_whole(str(path), b"image")
    assert read_whole(str(path)) == b"image"
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
    for use in (lambda: write_whole("x", b"1"), lambda: LocalStore(".").exclusive(print).__enter__()):
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


def test_a_store_travels_as_its_url(tmp_path):
    store = pickle.loads(pickle.dumps(LocalStore(str(tmp_path))))
    store.put("a/x", b"1")
    assert store == LocalStore(str(tmp_path)) and store.get("a/x") == read_whole(store.path("a/x")) == b"1"


def test_deleting_what_is_not_there_is_an_error_unless_it_may_be_missing(tmp_path):
    with pytest.raises(StorageError, match=rf"^{tmp_path}/x: "):
        delete(str(tmp_path / "x"))
    delete(str(tmp_path / "x"), missing_ok=True)


# --- Listing ---


def test_a_store_lists_the_files_whose_names_begin_so_at_any_depth_or_in_some_folders(tmp_path):
    for name in ("a", "b/ab/1", "b/ab/deep/2", "b/other/3", "b/4", "bc"):
        write_whole(str(tmp_path / name), b"123")
    store = LocalStore(str(tmp_path))
    assert {file.name for file in store.list()} == {"a", "b/ab/1", "b/ab/deep/2", "b/other/3", "b/4", "bc"}
    assert {file.name for file in store.list("b/")} == {"b/ab/1", "b/ab/deep/2", "b/other/3", "b/4"}
    assert {file.name for file in store.list("b/", FOLDERS["images/"])} == {"b/ab/1", "b/4"}
    assert [(file.name, file.size) for file in store.list("b", NO_FOLDERS)] == [("bc", 3)]
    assert list(store.list("gone/")) == list(LocalStore(str(tmp_path / "gone")).list()) == []


def test_links_are_files_of_a_folder_that_a_user_names_but_not_of_one_that_a_run_has_written(tmp_path):
    write_whole(str(tmp_path / "file"), b"1")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    store = LocalStore(str(tmp_path))
    assert sorted(file.name for file in store.list()) == ["file", "link"]
    assert [file.name for file in store.list("", NO_FOLDERS)] == ["file"]
    assert store.is_link("link") and not store.is_link("file")


def test_of_the_folders_that_a_user_names_only_what_a_disk_has_lost_is_passed_over(shut, tmp_path):
    (tmp_path / "animals.txt").touch()
    shut("lost+found")
    with without_rights():
        assert list(storage.list_files(".")) == ["./animals.txt"]
    shut("more")
    with without_rights(), pytest.raises(StorageError, match=r"more: Permission denied"):
        list(storage.list_files("."))


def test_what_begins_so_is_removed_at_the_end_of_a_context_however_that_comes(tmp_path):
    store = LocalStore(str(tmp_path))
    for name in (f"{TEMPORARY}run-1", f"{TEMPORARY}run-2", f"{TEMPORARY}other-1", f"images/{TEMPORARY}run-1"):
        store.put(name, b"1")
    with pytest.raises(ZeroDivisionError), store.removing(f"{TEMPORARY}run-"):
        raise ZeroDivisionError
    assert files_below(tmp_path) == [f"{TEMPORARY}other-1", f"images/{TEMPORARY}run-1"]


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
    with LocalStore(out).exclusive(print):
        write_whole(str(waiting), b"{}")
        reason = rf"^{out}: another run is writing there, which holds {LOCK}: wait"
        with pytest.raises(StorageError, match=reason), LocalStore(out).exclusive(print):
            pass
        assert files_below(tmp_path) == [LOCK, waiting.name]
    with LocalStore(out).exclusive(print):
        assert remove_leftovers(out) == (waiting.name,)
    assert files_below(tmp_path) == []


def test_the_lock_of_a_killed_run_keeps_nobody_out(tmp_path):
    (tmp_path / LOCK).touch()
    with LocalStore(str(tmp_path)).exclusive(print):
        assert files_below(tmp_path) == [LOCK]
    assert files_below(tmp_path) == []


def test_of_runs_that_follow_one_another_closely_never_two_are_at_work(tmp_path):
    at_work = threading.Lock()

    def run(_):
        done = 0
        while done < 200:
            with contextlib.suppress(StorageError), LocalStore(str(tmp_path)).exclusive(print):
                assert at_work.acquire(blocking=False)
                at_work.release()
                done += 1
        return done

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [200] * 3
    assert files_below(tmp_path) == []


def test_on_a_disk_without_locks_that_is_said_and_nothing_that_may_be_in_use_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails_for(lambda mode: True, errno.ENOLCK))
    new, old = tmp_path / f"{TEMPORARY}1", tmp_path / f"{TEMPORARY}2"
    for path in (new, old):
        path.touch()
    os.utime(old, (0, time.time() - ABANDONED_SECONDS - 60))
    notes = []
    with LocalStore(str(tmp_path)).exclusive(notes.append):
        assert remove_leftovers(tmp_path) == (old.name,)
        write_whole(str(tmp_path / "x"), b"1")
    [note] = notes
    assert note.startswith(f"{tmp_path} is on a disk without locks") and note.endswith("start one at a time")
    assert files_below(tmp_path) == [new.name, "x"]


# --- Leftovers of killed runs ---

WRITE_AND_WAIT = """
    import sys
    from sdjax.storage import write_jsonl

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
        assert remove_leftovers(out) == (left,)
    assert files_below(out) == []


def test_what_a_run_is_writing_just_now_is_left_alone_and_gets_done(tmp_path):
    out = tmp_path / "out"
    with writing(out / "x.jsonl", tmp_path) as (process, go):
        assert remove_leftovers(out) == ()
        go.write(b"\n")
        assert process.wait() == 0
    assert files_below(out) == ["x.jsonl"]


def test_two_processes_that_write_and_clean_up_at_the_same_time_lose_nothing(tmp_path):
    code = """
        import sys
        from sdjax.storage import NO_FOLDERS, LocalStore

        store = LocalStore(sys.argv[1])
        for number in range(200):
            store.put(f"{sys.argv[2]}{number}", b"1")
            store.remove_leftovers({"": NO_FOLDERS})
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
    assert remove_leftovers(tmp_path) == ()
    (tmp_path / f"{TEMPORARY}link").unlink()
    assert files_below(tmp_path) == before


def test_a_file_locked_by_this_process_itself_counts_as_being_written(tmp_path):
    path = tmp_path / f"{TEMPORARY}1"
    with open(path, "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert remove_leftovers(tmp_path) == ()
    assert remove_leftovers(tmp_path) == (path.name,)
