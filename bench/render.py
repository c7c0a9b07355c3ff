"""Writes the tables of README.md and of the documents, every report, and plots, from the committed results.

    python bench/render.py            # after `slt bench full` has written bench/results/
    python bench/render.py --check    # exit 1 if a document's table differs from the results

A table stands between `<!-- name -->` and `<!-- end -->`. It shows the full profile on the machine MACHINE, unless
its function says otherwise. The plots of sweeps are drawn again too.
"""

import argparse
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import bounds
import report

from slt_kernels import sweep
from slt_kernels.experiments.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
SWEEPS = sorted(path.parent for path in ROOT.glob("docs/sweep_*/sweep.csv"))
DOCUMENTS = (
    "README.md",
    "docs/cuda.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/tickets.md",
    "docs/triton.md",
)
MACHINE = "intel-xeon-amx-2threads"
PLAIN = "amd-epyc-avx512bf16-2threads"  # without a matrix unit
LOWER = "amd-epyc-avx2-2threads"  # the same, restricted to AVX2
TERNARY = "amd-epyc-avx512bf16-2threads-ternary"  # the group of that name on the machine PLAIN
README_CASES = (
    "forward float32 highest, batch 1",
    "forward float32 highest, batch 16",
    "forward float32 highest, batch 256",
    "forward bfloat16, batch 1",
    "forward bfloat16, batch 256",
    "forward compact mask, batch 1",
    "grad_input, batch 256",
    "grad_scores, batch 256, 70 % frozen",
    "conv 3x3 128 32x32, batch 32",
    "conv 3x3 128 32x32 channels-last bfloat16, batch 32",
    "materializing layer, forward, batch 1",
    "a training step of CIFAR ResNet-18, batch 32, against materializing",
)


def measured(render: Callable[[report.Result], str]) -> Callable[[report.Result], str]:
    """A table, and the machine of its measurement."""
    return lambda result: f"{render(result)}\n\n{report.on(result)}"


def ticket_size(_: report.Result) -> str:
    sizes = json.loads((RESULTS / "ticket_size.json").read_text())
    dense = sizes["tickets"]["dense"]
    rows = []
    for source, t in sizes["tickets"].items():
        smaller = f"{dense['plain_mask_bytes'] / t['plain_mask_bytes']:.2f}x"
        columns = ("plain_mask_bytes", "plain_bytes", "entropy_bytes", "compressed_mask_bytes", "compressed_bytes")
        learned, *others = (f"{t[key] / 1e6:.3f} MB" for key in columns)
        rows.append([source, f"{t['kept'] / t['weights']:.0%}", learned, smaller, *others])
    head = ["source network", "kept", "learned bits", "smaller", "file", "entropy", "coded", "compressed file"]
    commit = sizes["machine"]["commit"]
    return f"{report.table(head, rows)}\n\nCounted at commit {commit}. Command: `python bench/ticket_size.py`."


def in_bits(folder: Path) -> bool:
    """Whether a sweep is of text."""
    base = json.loads((folder / "experiment.json").read_text())["experiment"]
    return MODELS[base["model"]["name"]].kind == "text"


def swept(folder: Path, _: report.Result) -> str:
    return sweep.table(sweep.read(folder), in_bits(folder))


def cuda_code(_: report.Result) -> str:
    """The budget of the CUDA kernels on sm_90a, which is what they have or more."""
    (version, budget), *_ = json.loads((ROOT / "bench/cuda_budget.json").read_text()).items()
    pipes = ("tensor", "alu", "fma", "wide", "uniform", "memory", "control")
    rows = [
        [
            name.removeprefix("slt_"),
            *(str(b.get(key, "")) for key in ("registers", "spills", "instructions", "per_weight")),
        ]
        + [str(b["pipes"].get(pipe, 0)) for pipe in pipes]
        for name, b in budget["sm_90a"].items()
    ]
    head = ["kernel", "registers", "spills", "instructions", "per weight", *pipes]
    return f"{report.table(head, rows)}\n\nsm_90a, nvcc {version}. Command: `python bench/cuda_sass.py --write`."


def triton_code(_: report.Result) -> str:
    """The budget of the Triton kernels on sm_90, which is what they have or more, of the newest Triton in it."""
    (version, budget), *_ = json.loads((ROOT / "bench/triton_budget.json").read_text()).items()
    columns = ("programs", "spills", "spills_in_loop", "from_registers", "waits", "per_weight", "cycles")
    rows = [[name, *(str(b.get(column, "")) for column in columns)] for name, b in budget["sm_90"].items()]
    head = ["kernel", *(column.replace("_", " ") for column in columns)]
    return f"{report.table(head, rows)}\n\nsm_90, Triton {version}. Command: `python bench/triton_sass.py --write`."


def triton_progress(_: report.Result) -> str:
    """Measures of the Triton backend at two commits."""
    versions = json.loads((ROOT / "bench/triton_progress.json").read_text())
    before, after = versions["before"], versions["after"]

    def row(what: str, value: Callable[[dict], object]) -> list[str]:
        return [what, *(str(value(version)) for version in (before, after))]

    def cycles(kernel: str) -> Callable[[dict], str]:
        return lambda version: " / ".join(map(str, version["cycles"][kernel].values()))

    def compiled(kernel: str) -> Callable[[dict], str]:
        return lambda version: "{} kernels, {} s".format(*version["compiled"].get(kernel, (0, 0)))

    def all_compiled(version: dict) -> str:
        count, seconds = (sum(each) for each in zip(*version["compiled"].values(), strict=True))
        return f"{count} kernels, {seconds:.1f} s"

    kernels = sorted({*before["compiled"], *after["compiled"]})
    rows = [
        *(
            row(f"{kernel}: cycles per weight, of {' / '.join(found)}", cycles(kernel))
            for kernel, found in after["cycles"].items()
        ),
        *(
            row(f"{name}: microseconds of Python", lambda version, name=name: version["host"][name])
            for name in after["host"]
        ),
        *(
            row(f"ResNet-50's {part}: launches per step", lambda version, part=part: version["launches"][part])
            for part in after["launches"]
        ),
        *(row(f"ResNet-50: compiling {kernel}", compiled(kernel)) for kernel in kernels),
        row("ResNet-50: compiling all", all_compiled),
    ]
    head = ["", f"before ({before['commit']})", f"after ({after['commit']})"]
    command = "Command: `python bench/triton_progress.py --write after`."
    return f"{report.table(head, rows)}\n\nsm_90, Triton {after['triton']}. {command}"


def cuda_bounds(_: report.Result) -> str:
    """What the machine code of both GPU backends allows on an H200, relative to dense products."""
    counted = json.loads((ROOT / "bench/cuda_bounds.json").read_text())
    rows = [bounds.shown(row) for row in counted["cases"]]
    versions = f"nvcc {counted['nvcc']} and Triton {counted['triton']}"
    made = f"**Not measured**: computed from the code of {versions} for sm_90."
    command = "Command: `python bench/cuda_sass.py --bounds --write`."
    return f"{report.table(list(bounds.HEAD), rows)}\n\n{made} {command}"


def h200(_: report.Result) -> str:
    """The constants of the bounds."""
    return report.table(["what", "value", "from"], [list(row) for row in bounds.CONSTANTS])


def read(name: str) -> report.Result:
    return json.loads((RESULTS / name / "result.json").read_text())


def plain(render: Callable[[report.Result], str]) -> Callable[[report.Result], str]:
    """A table of the machine without a matrix unit."""
    return lambda _: render(read(f"{PLAIN}-full"))


def lower(_: report.Result) -> str:
    """Our and PyTorch's kernels restricted to AVX2. The targets are for other processors, so they are left out."""
    result = read(f"{LOWER}-quick")
    names = tuple(case["name"] for case in result["cases"])
    return measured(functools.partial(report.targets, only=names))(result)


def ternary(_: report.Result) -> str:
    """Against engines for ternary weights, from a run of its own."""
    return measured(report.ternary)(read(TERNARY))


def cpu(result: report.Result) -> str:
    """Some cases on both machines: ours, the fastest peer, and the median of the rounds' ratios."""
    results = result, read(f"{PLAIN}-full")
    rows = [[name] for name in README_CASES]
    for on in results:
        cases = {case["name"]: case for case in report.in_groups(on, "targets")}
        for row in rows:
            case = cases[row[0]]
            ours = next(iter(case["methods"].values()))["median_ms"]
            peer = report.milliseconds(case["methods"][case["peer"]]["median_ms"])
            row += [report.milliseconds(ours), peer, f"{case['ratio']:.3g}x"]
    head = ["case", *(f"{machine}: {what}" for machine in ("Xeon", "EPYC") for what in ("ours", "peer", "ratio"))]
    return "\n\n".join([report.table(head, rows), *map(report.on, results)])


TABLES = {
    "allocated": report.allocated,
    "avx2": lower,
    "batch": report.by_method("batch"),
    "bounds": report.bounds,
    "billion": report.by_case("billion"),
    "ceilings": report.ceilings,
    "convolution": report.by_method("convolution"),
    "counted": report.counted,
    "cpu": cpu,
    "cuda_bounds": cuda_bounds,
    "cuda_code": cuda_code,
    "find_digits": measured(report.find),
    "generator": report.generator,
    "h200": h200,
    "tiles": report.tiles,
    "gradients": report.gradients,
    "held": measured(report.held),
    "materializing": report.by_method("materializing"),
    "plain": plain(measured(report.targets)),
    "plain_bounds": plain(report.bounds),
    "plain_generator": plain(report.generator),
    "plain_networks": plain(report.by_method("network")),
    "moved": report.moved,
    "networks": report.by_method("network"),
    "on": report.on,
    "size": report.by_case("size"),
    "sizes": report.sizes,
    "targets": report.targets,
    "ternary": ternary,
    "threads": report.by_case("threads"),
    "ticket_size": ticket_size,
    "training_step": report.by_method("training step"),
    "triton_code": triton_code,
    "triton_progress": triton_progress,
} | {folder.name: functools.partial(swept, folder) for folder in SWEEPS}


def render(text: str, result: report.Result) -> str:
    """The document with its tables rendered again."""

    def fresh(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](result)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fresh, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    result = read(f"{MACHINE}-full")
    stale = [name for name in DOCUMENTS if render((ROOT / name).read_text(), result) != (ROOT / name).read_text()]
    for name in stale:
        print(f"{name}: {'differs from the results' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(render((ROOT / name).read_text(), result))
    if not check:
        for file in sorted(RESULTS.glob("*/result.json")):
            report.write(json.loads(file.read_text()), file.parent)
        for folder in SWEEPS:
            sweep.plot(sweep.read(folder), folder, in_bits(folder))
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
