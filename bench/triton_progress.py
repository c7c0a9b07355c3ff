"""Measures of the Triton backend, to compare two of its versions: machine code, host, launches, compilation. No GPU.

    python bench/triton_progress.py --write after      the package that is imported, to bench/triton_progress.json

Of another commit, which had its own list of kernels to compile:

    git worktree add ../before COMMIT
    PYTHONPATH=../before python bench/triton_progress.py --kernels ../before/bench --write before

Kernels are compiled for sm_90. `docs/triton.md` shows both versions (`python bench/render.py`).

Of each kernel the cycles of a scheduler per weight: those of each pipe, and of issue, as `triton_sass` counts them.
Of each operation the microseconds of Python (`triton_launch`). Of a ResNet-50's training step, with its masks, the
launches, and the seconds of a processor that compiling its kernels takes without a cache, by `os.times`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import bounds
import sass
import torch
import triton
from rounds import least_microseconds
from triton_launch import RESNET50, Driver, cases, resnet50_step

from slt_kernels import backends
from slt_kernels.backends.registry import run
from slt_kernels.backends.triton import forward, grad_input, grad_scores
from slt_kernels.source import Freeze, Source

OUT = Path(__file__).with_name("triton_progress.json")
KERNELS = (
    "forward bf16",
    "forward bf16, batch 1 to 16",
    "forward bf16, convolution",
    "forward fp32, 3 digits",
    "grad_input bf16",
    "grad_input bf16, convolution",
)


def cycles() -> dict[str, dict[str, float]]:
    """Per weight, of each pipe in the main loop; of grad_scores, of what is outside its loop."""
    import triton_sass

    def code(name: str) -> tuple[list[str], list[str], int, dict[str, int]]:
        case = triton_sass.CASES[name](triton_sass.MACHINES[90])
        compiled = triton_sass.compile_case(case, 90)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            parts = triton_sass._main_loop(sass.run("nvdisasm", "-c", file.name))
        return *parts, case.weights or 128 * case.constants["BN"], compiled.metadata.num_warps

    found = {}
    for name in (*KERNELS, "grad_scores bf16"):
        everything, loop, weights, warps = code(name)
        pipes = sass.by_pipe(loop)
        if name == "grad_scores bf16":
            name += ", outside the loop"
            pipes = {pipe: number - pipes.get(pipe, 0) for pipe, number in sass.by_pipe(everything).items()}
        times = {pipe: each * pipes.get(pipe, 0) for pipe, each in bounds.PIPES.items()} | {
            "issue": sum(pipes.values())
        }
        found[name] = {pipe: round(number * 32 * warps / weights, 2) for pipe, number in times.items()}
        print(name, found[name], flush=True)
    return found


@contextmanager
def compilations() -> Iterator[dict[str, list[float]]]:
    """Seconds of a processor, in this process and in those that it starts, of each compilation, by kernel. No cache."""
    seconds: dict[str, list[float]] = defaultdict(list)
    start, make_ir = 0.0, triton.compiler.ASTSource.make_ir

    def started(source, *arguments):
        nonlocal start
        start = sum(os.times()[:4])
        return make_ir(source, *arguments)

    def ended(*, src, **_) -> None:
        seconds[src.fn.__name__].append(sum(os.times()[:4]) - start)

    triton.compiler.ASTSource.make_ir = started
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile, triton.knobs.compilation.listener = True, ended
        yield seconds
    triton.compiler.ASTSource.make_ir = make_ir


def masks_step() -> None:
    """The threshold of all scores of a ResNet-50, and the mask of each layer."""
    every = [torch.zeros(size // 128, 128) for size in RESNET50]
    run("select", [scores.flatten() for scores in every], 1000)
    for index, scores in enumerate(every):
        source = Source.of(*scores.shape, seed=1, layer=index, freeze=Freeze(0.175, 0.175))
        run("pack", scores.flatten()[: source.free], torch.tensor(0.1), source, False)


def resnet50(driver: Driver, machine: object) -> dict[str, dict]:
    """The compilations of the first step on a machine, and the launches of the next."""
    own = forward.machine
    for module in (forward, grad_input, grad_scores):
        module.machine = lambda device: machine
    with compilations() as seconds:
        resnet50_step(32)
        masks_step()
    found: dict[str, dict] = {"compiled": {name: [len(times), round(sum(times), 1)] for name, times in seconds.items()}}
    for name, step in (("convolutions", lambda: resnet50_step(32)), ("masks", masks_step)):
        driver.launches = 0
        step()
        found.setdefault("launches", {})[name] = driver.launches
    for module in (forward, grad_input, grad_scores):
        module.machine = own
    print(found, flush=True)
    return found


def host(driver: Driver) -> dict[str, float]:
    """Microseconds of each operation, the least mean of many rounds."""
    found = {}
    for name, call in cases().items():
        call()
        driver.launches = 0
        call()
        found[name] = round(least_microseconds(call, max(1, 50 // driver.launches), 50), 1)
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, default=Path(__file__).parent, help="the folder of triton_sass.py")
    parser.add_argument("--write", choices=("before", "after"), required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.kernels))
    tree = Path(backends.__file__).parents[2]
    commit = subprocess.run(["git", "-C", tree, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    import triton_sass

    driver = Driver()
    triton.runtime.driver.set_active(driver)
    backends.triton.unavailable, backends.triton.supports = lambda: None, lambda device: True
    with backends.use("triton"):
        found = resnet50(driver, triton_sass.MACHINES[90]) | {"host": host(driver)}
    found |= {"commit": commit.stdout.strip(), "triton": triton.__version__, "cycles": cycles()}
    written = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps(written | {arguments.write: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
