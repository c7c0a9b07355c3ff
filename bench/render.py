"""Writes the tables of README.md, docs/performance.md and docs/results.md from the committed results.

    python bench/render.py            # after the benches have written bench/results/*.json
    python bench/render.py --check    # exit 1 where a document differs from what the results say

A table stands between `<!-- name -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from slt_kernels import sweep

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/performance.md", "docs/results.md", "docs/tickets.md")


def result(name: str) -> dict:
    return json.loads((ROOT / "bench/results" / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def on(machine: dict) -> str:
    return (
        f"Measured on {machine['cpu']}, {machine['threads']} threads, PyTorch {machine['torch']}, "
        f"commit {machine['commit']}."
    )


def find_digits() -> str:
    found = result("find_digits")
    rows = []
    for source, runs in found["sources"].items():
        accuracies = [run["test_accuracy"] for run in runs]
        spread = f"{statistics.median(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})"
        run, seconds = runs[0], statistics.median(run["seconds"] for run in runs)
        sizes = [
            f"{run['free_bits']:,}",
            f"{run['ticket_bytes']:,} B",
            f"{run['fp32_bytes'] / run['ticket_bytes']:.0f}x",
        ]
        rows.append([source, spread, *sizes, f"{seconds:.0f} s"])
    seeds = len(next(iter(found["sources"].values())))
    head = ["source network", f"test accuracy, {seeds} seeds", "free bits", "ticket", "smaller than fp32", "time"]
    return f"{table(head, rows)}\n\n{on(found['machine'])} Command: `python bench/find_digits.py`."


def cpu_cases(only: tuple[str, ...] | None = None) -> str:
    rows = []
    for name in ("cpu_products", "cpu_grad_scores", "cpu_masks"):
        for case in result(name)["cases"]:
            if only is None or case["name"] in only:
                target = f"{case['target']:g}x" if case.get("target") else ""
                times = [f"{case['ours_ms']:.3g} ms", f"{case['peer_ms']:.3g} ms", f"{case['ratio']:.3g}x"]
                rows.append([case["name"], *times, *([target] if only is None else [])])
    step = result("cpu_training_step")
    ours, peer = (1e3 * statistics.median(step["seconds"][k]) for k in ("supermask", "materializing"))
    times = [f"{ours:.3g} ms", f"{peer:.3g} ms", f"{step['ratio']:.3g}x"]
    name = "a training step of CIFAR ResNet-18, batch 32, against materializing"
    rows.append([name, *times, *([f"{step['target']:g}x"] if only is None else [])])
    return table(["case", "ours", "peer", "ratio", *(["target"] if only is None else [])], rows)


README_CASES = (
    "forward float32 highest, batch 1",
    "forward float32 highest, batch 16",
    "forward float32 highest, batch 256",
    "forward bfloat16, batch 1",
    "forward bfloat16, batch 256",
    "grad_input, batch 256",
    "grad_scores, batch 256, 70 % frozen",
    "conv 3x3 128 32x32, batch 32",
    "materializing layer, forward, batch 1",
)


def cpu() -> str:
    products = result("cpu_products")
    command = "`python bench/cpu_products.py` and the other `bench/cpu_*.py`"
    return f"{cpu_cases(README_CASES)}\n\n{on(products['machine'])} Command: {command}."


def cpu_all() -> str:
    return f"{cpu_cases()}\n\n{on(result('cpu_products')['machine'])}"


def cpu_memory() -> str:
    memory = result("cpu_memory")
    rows = [
        [case, f"{extra / 1e6:.1f} MB", f"{extra / memory['dense_weight_bytes']:.3f}"]
        for case, extra in memory["extra_bytes"].items()
    ]
    return f"{table(['method', 'peak memory on the way', 'of the dense fp32 weight'], rows)}\n\n{on(memory['machine'])}"


def cpu_generator() -> str:
    return "```\n" + (ROOT / "bench/results/cpu_generator.txt").read_text() + "```"


def ticket_size() -> str:
    sizes = result("ticket_size")
    dense = sizes["tickets"]["dense"]
    rows = []
    for source, t in sizes["tickets"].items():
        smaller = f"{dense['plain_mask_bytes'] / t['plain_mask_bytes']:.2f}x"
        columns = ("plain_mask_bytes", "plain_bytes", "entropy_bytes", "compressed_mask_bytes", "compressed_bytes")
        learned, *others = (f"{t[key] / 1e6:.3f} MB" for key in columns)
        rows.append([source, f"{t['kept'] / t['weights']:.0%}", learned, smaller, *others])
    head = ["source network", "kept", "learned bits", "smaller", "file", "entropy", "coded", "compressed file"]
    return f"{table(head, rows)}\n\n{on(sizes['machine'])} Command: `python bench/ticket_size.py`."


def sweep_digits() -> str:
    return sweep.table(sweep.read(ROOT / "docs/sweep_digits"))


TABLES = {
    "find_digits": find_digits,
    "cpu": cpu,
    "cpu_all": cpu_all,
    "cpu_generator": cpu_generator,
    "cpu_memory": cpu_memory,
    "ticket_size": ticket_size,
    "sweep_digits": sweep_digits,
}


def render(text: str) -> str:
    """The document with each of its tables made anew."""

    def fresh(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fresh, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [name for name in DOCUMENTS if render((ROOT / name).read_text()) != (ROOT / name).read_text()]
    for name in stale:
        print(f"{name}: {'differs from the results' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(render((ROOT / name).read_text()))
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
