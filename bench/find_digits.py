"""`slt find` on the digits, from three source networks and several seeds: accuracy, ticket size and time.

A seed fixes the random network, the split of the data and the order of the examples. Each run is a separate process,
and verifies its ticket by reloading it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SEEDS = 3
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


def find_all() -> dict[str, list[dict]]:
    """The reports of all seeds, by source network."""
    return {name: [find(options, seed) for seed in range(SEEDS)] for name, options in SOURCES.items()}
