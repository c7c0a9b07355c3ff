"""Tables of a source that the backends of GPUs keep for the life of the process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph captures the device's current stream."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def kept(make: Callable[[], T], device: torch.device) -> T:
    """The result of ``make``: tensors on a device that are complete, and safe to keep for all streams and graphs.

    The caller's allocations may belong to a graph's memory pool, which reclaims them; for example while
    ``torch.compile(mode="reduce-overhead")`` warms up. A pool takes the allocations of one thread only
    (`torch.cuda.use_mem_pool`), so another thread calls ``make``, and synchronizes once so that no stream reads the
    tensors too early. They are never freed, as a captured graph may read them.

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
