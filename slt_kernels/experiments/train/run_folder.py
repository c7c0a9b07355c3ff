"""The folder of a search: checkpoints, logs, and a lock; and the signals that stop a search.

====================  =========================================================================================
``last.pt``           the complete state of the search; written at the end of each epoch, every ``save_every`` steps,
                      and when a signal stops the search
``epoch_N.pt``        the same at the end of every ``keep_every``-th epoch N; kept
``best.pt``           the model of the epoch with the best validation accuracy so far
``log.csv``           one row per epoch
``tensorboard/``      the same for TensorBoard; optional
``lock``              empty; locked by the running search, so that a second one is refused
``last.TOKEN/``, ...  of a sharded search: the sharded tensors of ``last.pt``, ...; see `sharded_state`
====================  =========================================================================================

Files are replaced atomically. A checkpoint is a line of ASCII with the sha256 of the rest, followed by the bytes of
``torch.save``.
"""

import csv
import hashlib
import io
import os
import re
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
from . import processes, sharded_state

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

VERSION = 1
FILES = re.compile(r"(last|best|epoch_\d+)(\.pt|\.[0-9a-f]{8})|log\.csv|tensorboard|lock")
"""Names of the files and folders of a search."""
_LINE = "slt_kernels.checkpoint {}\n"


class Interrupted(Exception):  # noqa: N818 (not an error: the search can be resumed)
    """A signal stopped the search after its checkpoint was written."""


@contextmanager
def held(name: str, folder: Path) -> Iterator[None]:
    """Locks a folder inside a ``with`` block; the system also releases the lock when the process ends.

    Without file locks (Windows, some network file systems) this does nothing.

    Args:
        name: name of the argument that holds the folder, for the error.
        folder: the folder; the file ``lock`` in it is locked.

    Raises:
        ValueError: another search has the lock, or ``lock`` is not a file.
        OSError: ``lock`` cannot be opened, as in a read-only folder, or is a link, which is not followed.
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
            raise ValueError(f"{name}={folder}: another search is running there; expected another folder") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):  # closing is not enough: forked processes hold the file open too
                fcntl.flock(file, fcntl.LOCK_UN)


class Run:
    """The folder of one search. The same search in the same folder continues where it stopped.

    Args:
        folder: the folder; created if it does not exist.
        description: the search as plain values. A checkpoint with another description is refused.
        save_every: steps between checkpoints inside an epoch. Default 0: only at the end of an epoch.
        tensorboard: also log for TensorBoard.
        keep_every: epochs between checkpoints that are kept. Default 0: none. To continue from one, copy it to
            ``last.pt``.
        sharded: the search is sharded over processes, and so are its checkpoints. Every process must call `load` and
            `save`. Default False.

    Raises:
        ValueError: a folder that is a file, or save_every or keep_every below 0.
        ModuleNotFoundError: ``tensorboard`` without its package (the ``tensorboard`` extra).
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        save_every: int = 0,
        tensorboard: bool = False,
        keep_every: int = 0,
        sharded: bool = False,
    ) -> None:
        for name, value in (("save_every", save_every), ("keep_every", keep_every)):
            if value < 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"folder={folder}: expected a folder")
        self.folder = folder
        self.description = dict(description)
        self.save_every = save_every
        self.keep_every = keep_every
        self.sharded = sharded
        self.writes = processes.rank() == 0
        self._board = _tensorboard(folder / "tensorboard") if tensorboard and self.writes else None
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)

    def held(self) -> AbstractContextManager[None]:
        """Locks the folder against other searches; see the function `held`."""
        return held("folder", self.folder) if self.writes else nullcontext()

    def load(self, name: str = "last", device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The checkpoint of that name, on the CPU; None if there is none.

        `checkpoint_checks.check` compares its content with a search.

        Args:
            name: of the checkpoint.
            device: for the tensors of a sharded one that are sharded.

        Raises:
            ValueError: a checkpoint of another search (the differences are named), another file, or an altered one; a
                sharded one of a search that is not, or the reverse.
            OSError: the file cannot be opened.
        """
        path = self.folder / f"{name}.pt"
        if not os.path.lexists(path):
            return None
        damaged = (
            f"{path}: not a checkpoint of a search, or damaged; delete {self.folder / 'last.pt'} to start the search "
            "from the beginning"
        )
        try:
            content = _verified(read_file(path))
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            version = state["version"]
            different = _differences(state["description"], self.description) if version == VERSION else []
        except OSError:
            raise
        except Exception:  # damaged bytes raise many types
            raise ValueError(damaged) from None
        if version != VERSION:
            raise ValueError(f"{path}: version={shown(version)}: this package reads version {VERSION}")
        if different:
            raise ValueError(
                f"folder={self.folder}: holds another search: {'; '.join(different)}; expected another folder"
            )
        if ("sharded" in state) != self.sharded:
            kinds = ("without shard", "with shard='fsdp2'")
            raise ValueError(
                f"folder={self.folder}: holds a search {kinds['sharded' in state]}, and this is one "
                f"{kinds[self.sharded]}, which cannot read its checkpoints; expected another folder"
            )
        if self.sharded:
            try:
                state = sharded_state.read(state, self.folder, torch.device(device))
            except Exception:
                raise ValueError(damaged) from None
        return state

    def save(self, state: Mapping[str, Any], name: str = "last") -> None:
        """Writes a checkpoint, in process 0 only; the sharded tensors of a sharded one in all processes."""
        if self.sharded:
            state = sharded_state.write(state, self.folder, name)
        if self.writes:
            buffer = io.BytesIO()
            torch.save({"version": VERSION, "description": self.description, **state}, buffer)
            content = buffer.getvalue()
            line = _LINE.format(hashlib.sha256(content).hexdigest())
            write_atomically(self.folder / f"{name}.pt", line.encode() + content)
            if self.sharded:
                sharded_state.remove_others(state, self.folder, name)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Writes ``log.csv`` with the rows of all epochs, and the last row for TensorBoard."""
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
    """Inside a ``with`` block the first SIGINT or SIGTERM requests a stop; a second one acts as before."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
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
        """Whether any process received a signal, so that all stop after the same step."""
        return processes.total(self.received)[0] > 0


def _verified(content: bytes) -> bytes:
    """The bytes of ``torch.save``; ValueError if the checksum differs."""
    if content.startswith(b"PK"):  # a zip file: checkpoints of older versions have no checksum
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
