"""The main job, measured: `slt find` on the digits, from two source networks, over several seeds.

    python bench/find_digits.py --out bench/results/find_digits.json

A seed fixes the random network, the split of the data and the order of the examples. Each run is a process of its own
and verifies its ticket by reloading it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine

SOURCES = {
    "frozen: 60 % pruned, 10 % locked (default)": [],
    "frozen: 35 % pruned, 35 % locked": ["--prune", "0.35", "--lock", "0.35", "--sparsity", "0.5"],
    "dense source: nothing frozen": ["--prune", "0", "--lock", "0"],
}


def find(options: list[str], seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "slt_kernels.cli", "find", "--out", str(Path(folder, "ticket.slt"))]
        command += ["--json", str(report), "--seed", str(seed), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    result = {"machine": machine(), "sources": {}}
    print("| source network | test accuracy, median (min to max) | free bits | ticket | fp32 network | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, options in SOURCES.items():
        runs = [find(options, seed) for seed in range(arguments.seeds)]
        result["sources"][name] = runs
        accuracies = [run["test_accuracy"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        first = runs[0]
        print(
            f"| {name} | {statistics.median(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%}) "
            f"| {first['free_bits']:,} | {first['ticket_bytes']:,} B | {first['fp32_bytes']:,} B | {seconds:.0f} s |"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
