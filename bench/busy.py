"""`slt find` beside other programs: its time alone, and while as many processes as there are cores compute.

    python bench/busy.py --out bench/results/busy.json

OpenMP's threads wait for each other at the end of each parallel region, by default in a loop that reads memory. Where
other programs have the cores, a thread so spends its share of them on waiting. The settings compared are those of GNU's
libgomp, which PyTorch for Linux brings. They count only if they are set before PyTorch is imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import machine

SETTINGS = {  # environment variables
    "as it is": {},
    "waits in a loop for a short time": {"GOMP_SPINCOUNT": "10000"},
    "does not wait in a loop": {"OMP_WAIT_POLICY": "passive"},
}


@contextmanager
def others(count: int) -> Iterator[None]:
    """Processes that compute for as long as the context lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(setting: dict[str, str]) -> float:
    """What one search takes, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "slt_kernels", "find", "--out", str(Path(folder, "ticket.slt"))]
        started = time.monotonic()
        subprocess.run(command, env=os.environ | setting, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is reported (default: 3)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    times: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside others": []} for name in SETTINGS}
    for _ in range(arguments.rounds):  # in turn, so that a slower machine is slower for all
        for name, setting in SETTINGS.items():
            times[name]["alone"].append(seconds(setting))
            with others(os.cpu_count() or 1):
                times[name]["beside others"].append(seconds(setting))
    medians = {
        name: {case: sorted(found)[len(found) // 2] for case, found in cases.items()} for name, cases in times.items()
    }
    for name, cases in medians.items():
        print(f"{name}: alone {cases['alone']:.1f} s, beside others {cases['beside others']:.1f} s")
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine(), "seconds": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
