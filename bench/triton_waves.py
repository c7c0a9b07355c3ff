"""Accesses of shared memory by grad_scores in float32 on Hopper, counted by a simulator of PTX. Needs ptxsim, no GPU.

    python bench/triton_waves.py

For one tile of weights: the accesses of a warp, each as many waves as its bank conflicts make of it, and the waves
that would do without conflicts. *Row by row* is how other GPUs read the operands, and *quarters* the order of
`slt_kernels/backends/triton/tf32.py`.
"""

import torch
import triton
from ptxsim.triton_driver import SimDriver, install

from slt_kernels import backends
from slt_kernels.backends.triton import grad_scores, launch
from slt_kernels.source import Source

FAN, COLUMNS = 128, 256


def waves(simulator: SimDriver, rows: int, precision: str) -> tuple[int, int]:
    """Of one launch: as executed, and without conflicts."""
    torch.set_float32_matmul_precision(precision)
    source = Source.of(rows, FAN, seed=1)
    tensors = (torch.zeros(COLUMNS, rows), torch.zeros(COLUMNS, FAN), torch.zeros(source.free))
    simulator.log.clear()
    with backends.use("triton"):
        backends.registry.run("linear_grad_scores", *tensors, torch.ones(()), source)
    (found,) = (entry["result"] for entry in simulator.log if entry["kernel"] == "grad_scores_kernel")
    return found.shared_waves


def main() -> None:
    simulator = install(90)
    simulator.options["profile"] = True
    backends.triton.unavailable, backends.triton.supports = lambda: None, lambda device: True
    grad_scores.machine = lambda device: launch.Machine(9, 1)  # one part: the launch has an epilogue
    in_quarters = grad_scores.transposed
    print(f"{FAN} weights of each row, {COLUMNS} columns, Triton {triton.__version__}\n")
    print("| rows | precision | order | waves | without conflicts |")
    print("| ---: | --- | --- | ---: | ---: |")
    for rows in (128, 64):
        for precision in ("highest", "high"):
            for order, chosen in (("row by row", lambda *_: False), ("quarters", in_quarters)):
                grad_scores.transposed = chosen
                grad_scores._launch.cache_clear()
                counted, best = waves(simulator, rows, precision)
                print(f"| {rows} | {precision} | {order} | {counted} | {best} |", flush=True)


if __name__ == "__main__":
    main()
