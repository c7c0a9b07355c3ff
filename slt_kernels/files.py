"""Reads regular files, and replaces files atomically."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# Not derived from the file's name, which may already have the maximum length of 255 bytes.
_TEMPORARY = re.compile(r"\.slt-[0-9a-f]{16}\.tmp")
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading; does not block on a pipe.

    Raises:
        ValueError: the path is a folder, a device or a pipe.
        OSError: the file cannot be opened; ``filename`` is the path.
    """
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _COMMON)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise ValueError(f"{path}: expected a file, not a folder, a device or a pipe")


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file, opened once.

    Raises:
        ValueError, OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replaces a file so that at any time, even after a crash, either the old or the new file is complete.

    With several writers of one path, the last one to finish wins. For a link, its target is replaced. An existing
    file's permissions are kept, and its owner if the user may set it. Each writer locks its temporary file; unlocked
    temporary files in the folder are from writers that died, and are removed.

    Args:
        path: the file.
        content: the new content.

    Raises:
        FileNotFoundError, IsADirectoryError, FileExistsError: the path's folder does not exist, or the path is a
            folder, a device or a pipe.
        OSError: the path is a loop of links, or cannot be written; ``filename`` is the path.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, not a folder")
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path}: expected a file, not a device or a pipe")
    try:
        _remove_stale(target.parent)
        with _temporary(target) as (temporary, file):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows does not rename an open file
            temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:  # names the temporary file, which the user does not know
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new, empty, locked file beside the target with its permissions; removed at the end unless renamed."""
    existing = target.stat() if target.exists() else None
    path, descriptor = _create(target.parent, 0o666 if existing is None else 0o600)
    with open(descriptor, "wb") as file:
        try:
            if existing is not None and hasattr(os, "fchmod"):
                with suppress(PermissionError):
                    os.fchown(descriptor, existing.st_uid, existing.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(existing.st_mode))
            yield path, file
        finally:
            path.unlink(missing_ok=True)


def _create(folder: Path, mode: int) -> tuple[Path, int]:
    while True:
        path = folder / f".slt-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _COMMON, mode)
        try:
            _lock(descriptor, wait=True)
            if _is_at(path, descriptor):
                return path, descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)  # another writer removed it before it was locked


def _remove_stale(folder: Path) -> None:
    """Removes temporary files that no process has locked. Without file locks, removes nothing."""
    if fcntl is None:
        return
    with suppress(PermissionError):  # a folder that can be written but not listed
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            path = folder / name
            try:
                descriptor = os.open(path, os.O_RDWR | _NONBLOCK | _NOFOLLOW | _COMMON)
            except OSError:  # already renamed, owned by another user, or not a file
                continue
            try:
                if _lock(descriptor, wait=False) and _is_at(path, descriptor):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Locks the open file; returns whether that succeeded. False without file locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the path is still the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder durable against power failure, if the file system supports it."""
    if os.name == "nt":
        return
    with suppress(PermissionError):  # a folder that can be written but not read
        descriptor = os.open(folder, os.O_RDONLY | _COMMON)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does not support it
                raise
        finally:
            os.close(descriptor)
