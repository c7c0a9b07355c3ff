"""Peak memory of forward and backward of one 8192 x 8192 layer at batch 8, above what a caller sees.

    python bench/cpu_memory.py --out bench/results/cpu_memory.json

Measured in a fresh process for each case, as the resident set's high-water mark (Linux), reset just before the pass.
Taken off: what was there before it (the layer, its scores, the input) and what it hands back (the output, and the
gradients of the input and of the scores). What is left is what the method needs on the way; the target is 1/8 of the
dense float32 weight.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import machine
from materializing import Materializing

from slt_kernels import Freeze, SupermaskLinear

SIZE, BATCH = 8192, 8
DENSE_BYTES = 4 * SIZE * SIZE
CASES = {
    "supermask, resolved mask": {"compact": False},
    "supermask, compact mask": {"compact": True},
    "materializing": {"compact": False},
    "dense": None,
}


def resident(field: str) -> int:
    """A line of this process's memory status, in bytes: VmRSS, or VmHWM, its high-water mark."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def method(case: str, size: int) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """A layer of that size as a function, and what of it is trained."""
    options = CASES[case]
    if options is None:
        weight = torch.randn(size, size, requires_grad=True)
        return (lambda x: F.linear(x, weight)), weight
    layer = SupermaskLinear(size, size, bias=False, freeze=Freeze(0.35, 0.35), **options)
    if case == "materializing":
        layer = Materializing(layer)
    return layer, layer.scores


def extra_bytes(case: str) -> int:
    forward, _ = method(case, 512)
    y = forward(torch.randn(BATCH, 512, requires_grad=True))
    y.backward(torch.ones_like(y))  # PyTorch imports 15 MB of modules for the first gradient that it is given
    x = torch.randn(BATCH, SIZE, requires_grad=True)
    forward, trained = method(case, SIZE)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve what comes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    y = forward(x)
    y.backward(torch.ones_like(y))
    given = sum(t.numel() * t.element_size() for t in (y, x.grad, trained.grad))
    return resident("VmHWM") - before - given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=CASES, help="measure one case, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(extra_bytes(arguments.case))
        return
    result = {"machine": machine(), "dense_weight_bytes": DENSE_BYTES, "target": 1 / 8, "extra_bytes": {}}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result["extra_bytes"][case] = extra
        print(f"{case:26} {extra / 1e6:8.1f} MB   {extra / DENSE_BYTES:.3f} of the dense float32 weight")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
