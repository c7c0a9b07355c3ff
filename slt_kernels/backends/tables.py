"""Tables that the backends of GPUs keep: of a device for the life of the process, of the sources used last."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Generic, TypeVar

import torch

from ..source import Source

T = TypeVar("T")


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph captures the device's current stream."""
    if device.type != "cuda":
        return False
    if device.index in (None, torch.cuda.current_device()):
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def made_to_last(make: Callable[[], T], device: torch.device) -> T:
    """Calls ``make`` so that its tensors are complete and outlive every stream and graph.

    The caller's allocations may belong to a graph's memory pool, which reclaims them; for example while
    ``torch.compile(mode="reduce-overhead")`` warms up. A pool takes the allocations of one thread only
    (`torch.cuda.use_mem_pool`), so another thread calls ``make``, and synchronizes once so that no stream reads the
    tensors too early.

    Raises:
        RuntimeError: a CUDA graph is being captured, which forbids both.
    """
    if device.type != "cuda":
        return make()
    if capturing(device):
        raise RuntimeError(f"first use on {device} during CUDA graph capture: run the same calls once before it")

    def complete() -> T:
        with torch.cuda.device(device):
            made = make()
            torch.cuda.current_stream().synchronize()
            return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(complete).result()


class SourceTables(Generic[T]):
    """``make(source, device)``, kept for the sources used last. What a captured graph reads is never freed."""

    def __init__(self, make: Callable[[Source, torch.device], T], most: int = 4096) -> None:
        """``most`` tables are kept, besides those of graphs."""
        self._make, self._most, self._lock = make, most, RLock()
        self._tables: OrderedDict[tuple[Source, torch.device], T] = OrderedDict()  # the one used last is last
        self._captured: dict[tuple[Source, torch.device], T] = {}

    def __call__(self, source: Source, device: torch.device) -> T:
        """The table of a source on a device.

        Raises:
            RuntimeError: the source is not among those used last, and a CUDA graph is being captured.
        """
        key = source, device
        with self._lock:
            if key in self._captured:
                return self._captured[key]
            if key not in self._tables:
                self._tables[key] = made_to_last(lambda: self._make(source, device), device)
                while len(self._tables) > self._most:
                    _synchronize(next(iter(self._tables))[1])  # kernels in any stream may still read the oldest
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            if not capturing(device):
                return self._tables[key]
            self._captured[key] = self._tables.pop(key)
            return self._captured[key]

    def clear(self) -> None:
        """Frees all except those that captured graphs read."""
        with self._lock:
            for device in {device for _, device in self._tables}:
                _synchronize(device)
            self._tables.clear()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
