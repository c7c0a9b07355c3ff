"""A search's folder: its checkpoints, its logs, and how it stops and continues.

====================  =========================================================================================
``last.pt``           all that the search needs to continue as if it had never stopped; written at the end of each
                      epoch, every so many steps, and when a signal asks the search to stop
``best.pt``           the model of the epoch with the best validation accuracy so far
``log.csv``           a row an epoch
``tensorboard/``      the same for TensorBoard, where asked for
``lock``              empty; held by the search that runs here, so that a second one is refused
====================  =========================================================================================

Files are written beside their place and renamed: whatever happens, each is whole. A checkpoint is a line of ASCII with
the sha256 of what follows, and then what ``torch.save`` writes.
"""

import csv
import hashlib
import io
import os
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from ..._text import shown
from ...files import read_file, write_atomically
from . import processes

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

VERSION = 1
_LINE = "slt_kernels.checkpoint {}\n"


class Interrupted(Exception):  # noqa: N818 (nothing is wrong: the search can be continued)
    """A search that a signal stopped, after its checkpoint was written."""


@contextmanager
def held(name: str, folder: Path) -> Iterator[None]:
    """Keeps others out of a folder inside a ``with`` block, or until the process ends, however it does.

    Where there are no file locks (Windows, some network file systems), nothing is kept out.

    Args:
        name: of the argument that the folder is, for the error.
        folder: where it is; ``lock`` in it is what is held.

    Raises:
        ValueError: another search holds it, or ``lock`` is no file.
        OSError: ``lock`` cannot be opened: a read-only folder, or a link, which is not followed.
    """
    if fcntl is None:
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(folder / "lock", flags, 0o666), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{folder / 'lock'}: expected a file, not a device or a pipe")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name}={folder}: another search runs there; expected another folder") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):  # closing is not enough: processes forked meanwhile have the file open too
                fcntl.flock(file, fcntl.LOCK_UN)


class Run:
    """The folder of one search; the same search in the same folder continues where it stopped.

    Args:
        folder: made where it is not there.
        description: what is searched, as plain values: a checkpoint of another search is refused.
        save_every: steps between checkpoints inside an epoch; 0 (default) for those at its end alone.
        tensorboard: whether to log there too.

    Raises:
        ValueError: a folder that is a file, or save_every below 0.
        ModuleNotFoundError: TensorBoard is asked for and missing (it comes with the ``tensorboard`` extra).
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], save_every: int = 0, tensorboard: bool = False
    ) -> None:
        if save_every < 0:
            raise ValueError(f"save_every={save_every}: expected at least 0")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"folder={folder}: expected a folder")
        self.folder = folder
        self.description = dict(description)
        self.save_every = save_every
        self.writes = processes.rank() == 0
        self._board = _tensorboard(folder / "tensorboard") if tensorboard and self.writes else None
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)

    def held(self) -> AbstractContextManager[None]:
        """Keeps other searches out of the folder: `held`."""
        return held("folder", self.folder) if self.writes else nullcontext()

    def load(self, name: str = "last") -> dict[str, Any] | None:
        """The checkpoint of that name, on the CPU; None where there is none.

        Its content is what was saved, if this package wrote it; `checkpoint_checks.check` compares it with a search.

        Raises:
            ValueError: a checkpoint of another search (what differs is named), or a file that is none or is altered.
            OSError: a file that cannot be opened.
        """
        path = self.folder / f"{name}.pt"
        if not os.path.lexists(path):
            return None
        damaged = (
            f"{path}: no checkpoint of a search, or a damaged one; delete {self.folder / 'last.pt'}, and the search "
            "starts from the beginning"
        )
        try:
            content = _verified(read_file(path))
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            version = state["version"]
            different = _differences(state["description"], self.description) if version == VERSION else []
        except OSError:
            raise
        except Exception:  # of many types, by how the bytes are damaged
            raise ValueError(damaged) from None
        if version != VERSION:
            raise ValueError(f"{path}: version={shown(version)}: this package reads version {VERSION}")
        if different:
            raise ValueError(
                f"folder={self.folder}: holds another search: {'; '.join(different)}; expected another folder"
            )
        return state

    def save(self, state: Mapping[str, Any], name: str = "last") -> None:
        """Writes a checkpoint, in the first process alone."""
        if self.writes:
            buffer = io.BytesIO()
            torch.save({"version": VERSION, "description": self.description, **state}, buffer)
            content = buffer.getvalue()
            line = _LINE.format(hashlib.sha256(content).hexdigest())
            write_atomically(self.folder / f"{name}.pt", line.encode() + content)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Writes the rows of all epochs so far; the last one is the news."""
        if not self.writes:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.folder / "log.csv", text.getvalue().encode())
        if self._board is not None:
            epoch = rows[-1]["epoch"]
            for name, value in rows[-1].items():
                if name != "epoch":
                    self._board.add_scalar(name, value, epoch)
            self._board.flush()


class StopSignals:
    """Inside a ``with`` block SIGINT and SIGTERM ask for a stop, once; a second one acts as it did before."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _: object) -> None:
        self.received = number
        self.__exit__()

    def agreed(self) -> bool:
        """Whether any of the processes was asked to stop: all of them stop after the same step."""
        return processes.total(self.received)[0] > 0


def _verified(content: bytes) -> bytes:
    """What ``torch.save`` wrote; ValueError where the checksum is of something else."""
    if content.startswith(b"PK"):  # a zip file, as before checkpoints had checksums
        return content
    line, _, rest = content.partition(b"\n")
    if line + b"\n" != _LINE.format(hashlib.sha256(rest).hexdigest()).encode():
        raise ValueError("altered")
    return rest


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str = "") -> list[str]:
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key}={shown(a)} there, {shown(b)} here")
    return found


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError('TensorBoard is an extra: pip install "slt_kernels[tensorboard]"') from None
    return SummaryWriter(str(folder))
