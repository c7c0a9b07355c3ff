"""Atomic writes with killed and concurrent writers, and reads that neither block nor follow planted links."""

import errno
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slt_kernels import files
from slt_kernels._text import printable, shown
from slt_kernels.files import read_file, write_atomically

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="these tests fork")

CONTENTS = [bytes([65 + i]) * (300_000 + 7 * i) for i in range(3)]


class Child:
    """Runs a function in a forked process, which is always killed at the end."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __enter__(self):
        self.process = multiprocessing.get_context("fork").Process(target=self.function)
        self.process.start()
        return self.process

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "file"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_writers_and_a_reader(file):
    """No write fails, and every read returns one complete content."""
    write_atomically(file, CONTENTS[0])

    def write(content: bytes) -> None:
        for _ in range(60):
            write_atomically(file, content)

    with Child(lambda: write(CONTENTS[1])) as first, Child(lambda: write(CONTENTS[2])) as second:
        reads = []
        while first.is_alive() or second.is_alive():
            reads.append(read_file(file))
        first.join()
        second.join()
        assert (first.exitcode, second.exitcode) == (0, 0)
    assert set(reads) <= set(CONTENTS) and len(set(reads)) > 1
    assert read_file(file) in CONTENTS[1:]
    assert os.listdir(file.parent) == [file.name]


def test_writers_in_threads(file):
    failures = []

    def write(content: bytes) -> None:
        try:
            for _ in range(20):
                write_atomically(file, content)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in CONTENTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert read_file(file) in CONTENTS
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(file):
    """At any point; the next writer removes its temporary file."""
    write_atomically(file, CONTENTS[0])
    left = 0

    def write() -> None:
        for i in range(10**6):
            write_atomically(file, CONTENTS[i % 3])

    for i in range(25):
        with Child(write) as child:
            time.sleep(0.002 + 0.0007 * i)
            os.kill(child.pid, signal.SIGKILL)
        assert read_file(file) in CONTENTS
        left += len(os.listdir(file.parent)) - 1
    assert left > 0, "no kill was inside a write"
    write_atomically(file, CONTENTS[1])
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_temporary_file_of_a_living_writer_stays(file):
    """A concurrent write keeps it, and the first writer still replaces the file."""
    begun, go_on = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def wait(_: int) -> None:
        begun.set()
        go_on.wait(60)

    def write() -> None:
        os.fsync = wait  # in the child only
        write_atomically(file, b"of the living")

    with Child(write) as child:
        assert begun.wait(60)
        write_atomically(file, b"of another")
        assert file.read_bytes() == b"of another"
        assert len(os.listdir(file.parent)) == 2
        go_on.set()
        child.join(60)
        assert child.exitcode == 0
    assert file.read_bytes() == b"of the living"
    assert os.listdir(file.parent) == [file.name]


def test_a_writer_whose_temporary_was_removed_before_its_lock_takes_another(file, monkeypatch):
    """Another writer removes it between creation and locking."""
    lock, created = files._lock, []

    def clean_first(descriptor: int, wait: bool) -> bool:
        if wait and not created:
            created.append(descriptor)
            files._remove_stale(file.parent)
            assert not os.listdir(file.parent)
        return lock(descriptor, wait)

    monkeypatch.setattr(files, "_lock", clean_first)
    write_atomically(file, b"whole")
    assert created and file.read_bytes() == b"whole"


def test_planted_links_are_not_followed(file, monkeypatch):
    """A link or a file at a guessed temporary name."""
    names = iter(("0" * 16, "1" * 16, "2" * 16))
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    victim = file.with_name("victim")
    victim.write_text("precious")
    (file.parent / f".slt-{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError) as error:
        write_atomically(file, b"new")
    assert error.value.filename == str(file)
    assert victim.read_text() == "precious" and not file.exists()
    os.link(victim, file.parent / f".slt-{'1' * 16}.tmp")
    write_atomically(file, b"new")  # removes the stale name; the file keeps its other name
    assert victim.read_text() == "precious" and file.read_bytes() == b"new"


def test_files_with_other_names_stay(file):
    others = {".slt-0.tmp", ".file.1.tmp", ".slt-" + "g" * 16 + ".tmp", "slt-" + "0" * 16 + ".tmp"}
    for name in others:
        (file.parent / name).write_text("mine")
    (file.parent / (".slt-" + "a" * 16 + ".tmp")).mkdir()
    write_atomically(file, b"new")
    assert {p.name for p in file.parent.iterdir()} == others | {"file", ".slt-" + "a" * 16 + ".tmp"}


@pytest.mark.parametrize("name", ("n" * 255, "ü" * 127, "." + "n" * 254), ids=("letters", "two bytes each", "hidden"))
def test_names_of_255_bytes(name, tmp_path):
    write_atomically(tmp_path / name, b"old")
    write_atomically(tmp_path / name, b"new")
    assert (tmp_path / name).read_bytes() == b"new"
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        write_atomically(tmp_path / (name + "nn"), b"new")


def test_links(file):
    target = file.with_name("target")
    file.symlink_to("between")
    file.with_name("between").symlink_to(target)
    write_atomically(file, b"through two links")
    assert target.read_bytes() == b"through two links" and file.is_symlink()
    target.unlink()
    write_atomically(file, b"of none")
    assert target.read_bytes() == b"of none"
    for name, other in (("a", "b"), ("b", "a")):
        file.with_name(name).symlink_to(other)
    for call in (lambda path: write_atomically(path, b""), read_file):
        with pytest.raises(OSError) as error:
            call(file.with_name("a"))
        assert (error.value.errno, error.value.filename) == (errno.ELOOP, str(file.with_name("a")))


@pytest.mark.parametrize("mode", (0o600, 0o644, 0o666, 0o440, 0o755), ids=oct)
def test_permissions_stay(mode, file):
    file.write_bytes(b"old")
    file.chmod(mode)
    write_atomically(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_permissions_of_a_new_file_are_the_umask_s(file):
    before = os.umask(0o027)
    try:
        write_atomically(file, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(file):
    file.write_bytes(b"old")
    os.chown(file, 4321, 1234)
    write_atomically(file, b"new")
    assert (file.stat().st_uid, file.stat().st_gid) == (4321, 1234)


def test_file_and_folder_reach_the_disk_in_this_order(file, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def record(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(file, b"new")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("number", (errno.EROFS, errno.ENOSPC, errno.EACCES), ids=errno.errorcode.get)
def test_a_failure_names_the_file_and_not_its_temporary(number, file, monkeypatch):
    def fail(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError) as error:
        write_atomically(file, b"new")
    assert (error.value.errno, error.value.filename) == (number, str(file))


@pytest.mark.parametrize("number", (errno.EINVAL, errno.ENOTSUP, errno.EIO), ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_synced(number, file, monkeypatch):
    """The file is written; it is no error if the file system does not sync folders."""
    fsync = os.fsync

    def sync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    if number == errno.EIO:
        with pytest.raises(OSError) as error:
            write_atomically(file, b"new")
        assert (error.value.errno, error.value.filename) == (number, str(file))
    else:
        write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(file.parent) == [file.name]


def test_an_interrupted_lock_leaves_no_temporary_file(file, monkeypatch):
    opened, close = [], os.close

    def interrupted(descriptor: int, wait: bool) -> bool:
        opened.append(descriptor)
        raise KeyboardInterrupt

    def closed(descriptor: int) -> None:
        close(descriptor)
        opened.remove(descriptor)

    monkeypatch.setattr(files, "_lock", interrupted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "close", closed)
        write_atomically(file, b"new")
    assert not opened and os.listdir(file.parent) == []


def test_without_file_locks(file, monkeypatch):
    """As on Windows: writes work, and no temporary file is removed."""
    monkeypatch.setattr(files, "fcntl", None)
    stale = file.with_name(".slt-" + "0" * 16 + ".tmp")
    stale.write_text("")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and stale.exists()


def test_reading_a_pipe_does_not_block(file):
    os.mkfifo(file)
    with pytest.raises(ValueError, match="file: expected a file, not a folder, a device or a pipe"):
        read_file(file)
    for path in (file.parent, "/dev/null"):
        with pytest.raises(ValueError, match="expected a file, not a folder, a device or a pipe"):
            read_file(path)
    with pytest.raises(FileNotFoundError):
        read_file(file.with_name("none"))


# Text


def nested(depth: int, kind: type = list):
    """``depth`` objects in memory that print as ``2 ** depth`` numbers."""
    value = [1]
    for _ in range(depth):
        value = kind([value, value]) if kind is not dict else {"a": value, "b": value}
    return value


class Named(dict):
    """A dict of another name."""


@pytest.mark.parametrize(
    "value",
    (
        nested(60),
        nested(60, tuple),
        nested(60, dict),
        Named(a=nested(60)),
        "x" * 10**6,
        list(range(10**6)),
        10**5000,
        {"a": 10**5000},
        dict.fromkeys(range(1000), "x" * 1000),
    ),
    ids=("lists", "tuples", "dicts", "a subclass", "text", "long", "digits", "digits inside", "wide"),
)
def test_shown_is_short(value):
    started = time.perf_counter()
    assert len(shown(value)) <= 400
    assert time.perf_counter() - started < 5


def test_shown_is_a_repr():
    for value in ("text", 3, -1.5, None, True, ["a", 1], {"a": {"b": (1, 2)}}, "a\nb\x1b[0m\ud800"):
        assert shown(value) == repr(value)


def test_printable():
    assert printable("layer.0 ü") == "layer.0 ü"
    assert printable("\x1b[31m\n\ud800\u202e") == "\\x1b[31m\\n\\ud800\\u202e"
    printable("\ud800").encode()
