"""Autotuning: the fastest of a few tiles, timed once and kept in a file.

Without the environment variable ``SLT_AUTOTUNE`` a rule in each product's file names the tile. Where it names a file,
the rule's tile and a few others are timed once for each device, kind of layer and power of two of columns, and the file
keeps the fastest.
"""

import fcntl
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter

import torch
import triton

from ..tables import capturing
from .tiles import Tile

FILE = os.environ.get("SLT_AUTOTUNE") or None


def choose(
    key: Callable[..., tuple],
    kind: tuple,
    columns: int,
    device: torch.device,
    tiles: list[Tile],
    run: Callable[[Tile], None],
) -> Tile:
    """The tile to ``run`` with: the first, or with ``SLT_AUTOTUNE`` the fastest for ``key(*kind)`` on this device.

    Every run writes the whole result, so timing has no side effect. While a CUDA graph is captured nothing is timed,
    and an unknown key takes the first tile.
    """
    if columns >= 2**31 - 2**20:  # the last split of a sum over columns may end 2**20 past them
        raise ValueError(f"{columns} rows of x, or output pixels: expected fewer than 2**31 - 2**20; split the batch")
    if FILE is None:
        return tiles[0]
    known = _known(FILE)
    name = device.type if device.type == "cpu" else torch.cuda.get_device_name(device)
    entry = f"{name}, Triton {triton.__version__}: {' '.join(map(str, key(*kind)))} {triton.next_power_of_2(columns)}"
    if entry not in known and not capturing(device):
        times = {tile: _milliseconds(lambda tile=tile: run(tile), device) for tile in dict.fromkeys(tiles)}
        best = min(times, key=times.get)
        if times[best] == float("inf"):  # the caller's run raises the error
            return tiles[0]
        known[entry] = best
        _keep(FILE, entry, best)
    return known.get(entry, tiles[0])


@cache
def _known(file: str) -> dict[str, Tile]:
    """The tiles in a file, by entry."""
    if not os.path.exists(file):
        return {}
    try:
        return {entry: Tile(*numbers) for entry, numbers in json.loads(Path(file).read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"SLT_AUTOTUNE={file}: expected a file written by an earlier run ({error})") from error


def _keep(file: str, entry: str, tile: Tile) -> None:
    """Adds an entry to the file, keeping those of other processes; the file is replaced atomically."""
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        _known.cache_clear()
        known = _known(file)
        known[entry] = tile
        part = f"{file}.{os.getpid()}"
        Path(part).write_text(json.dumps(known, indent=1) + "\n")
        os.replace(part, file)


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """The median of a few runs; infinite if the tile does not compile or does not run on this device."""
    try:
        if device.type == "cuda":
            with torch.cuda.device(device):
                return triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median")
        started = perf_counter()
        run()
        return 1e3 * (perf_counter() - started)
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, RuntimeError):
        return float("inf")
