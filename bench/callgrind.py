"""Counts of single calls under `valgrind --tool=callgrind`: instructions, and misses of its simulated caches.

The parent calls `run` with a script; the script, inside valgrind, counts each call with `count`. Only counted calls are
simulated in full, so that importing PyTorch takes seconds.
"""

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ISA = "avx2"  # the highest one that valgrind 3.19 runs
LINE = 64
# A last level of 1 MB is smaller than the dense weights of the cases, as a real one is smaller than a network.
CACHES = {"I1": f"32768,8,{LINE}", "D1": f"32768,8,{LINE}", "LL": f"1048576,16,{LINE}"}

_SWITCHES = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""


def unavailable() -> str | None:
    """Why callgrind cannot run here; None if it can."""
    for tool in ("valgrind", "cc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        return None if _switches(Path(folder)) else "valgrind's header callgrind.h is not installed"


def _switches(folder: Path) -> Path | None:
    source, library = folder / "switches.c", folder / "switches.so"
    source.write_text(_SWITCHES)
    command = ["cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library)]
    return library if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


def run(script: str | Path, *arguments: str, caches: bool = False) -> dict[str, dict[str, int]]:
    """Runs a Python script under callgrind, on one thread. Returns the counts of each marked call, by name.

    Counts are callgrind's events: "Ir" instructions, and with ``caches`` "DLmr" and "DLmw", the data reads and writes
    that miss the last level.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = _switches(Path(folder))
        counts = Path(folder, "counts")
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counts}", "--cache-sim=no"]
        if caches:
            options[-1:] = ["--cache-sim=yes", *(f"--{level}={size}" for level, size in CACHES.items())]
        environment = os.environ | {
            "SLT_CPU_ISA": ISA,
            "SLT_CALLGRIND_SWITCHES": str(library),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        command = ["valgrind", *options, sys.executable, str(script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"valgrind: {done.stderr[-2000:]}")
        files = sorted(Path(folder).glob("counts.*"), key=lambda file: int(file.suffix[1:]))
        return dict(_read(file) for file in files)


def _read(file: Path) -> tuple[str, dict[str, int]]:
    text = file.read_text()
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)[1]
    events = re.search(r"^events: (.*)$", text, re.MULTILINE)[1].split()
    totals = re.search(r"^(?:summary|totals): (.*)$", text, re.MULTILINE)[1].split()
    return name, dict(zip(events, map(int, totals), strict=False))


def count(name: str, call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> None:
    """Inside valgrind: counts one call. ``before`` runs first: it changes the caches, and is not counted."""
    switches = ctypes.CDLL(os.environ["SLT_CALLGRIND_SWITCHES"])
    gc.disable()  # a collection during a call would be counted
    switches.start()
    before()
    switches.zero()
    call()
    switches.dump(name.encode())
    switches.stop()
