"""Allocated memory: of a network between calls, and the peak that one call adds.

    python bench/memory.py "Linear 8192 x 8192" "ours" gradients 8          one row, as JSON

Each row is measured in a new process, as the resident set (Linux). *Held* is the increase by building the network; ours
drops its scores for inference. The high-water mark is reset just before the call. Its increase is split in two:
*returned*, tensors that remain after the call (outputs, gradients, the optimizer's state), and *on the way*, the rest.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import NETWORKS, Network, cast
from peers import METHODS, supermask, training_step
from torch import Tensor, nn

from slt_kernels import drop_scores

BATCH = 8
OURS = ("ours", "ours, 70 % frozen, compact")
FORWARD = (
    *OURS,
    "dense float32",
    "dense bfloat16",
    "int8 dynamic",
    "int4, bfloat16",
    "materialize each call",
    "materializing layer",
    "sort in each forward",
)
STEP = (*OURS, "dense float32", "materializing layer", "sort in each forward")
WARM = Network(
    lambda: nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Flatten(), nn.Linear(128, 128, bias=False)),
    lambda batch: torch.randn(batch, 8, 4, 4),
    lambda model, x: model(x).float().square().mean(),
)


class Row(NamedTuple):
    network: str
    method: str
    phase: str
    batch: int


def rows(quick: bool) -> Iterator[Row]:
    """The measured cases. The first of the full profile have a target: 1/8 of the dense float32 weight on the way."""
    if quick:
        for phase in ("forward", "step"):
            for method in (*OURS, "dense float32", "materializing layer"):
                yield Row("Linear 2048 x 2048", method, phase, BATCH)
        return
    for method in ("ours, 70 % frozen", OURS[1], "dense float32", "materializing layer, 70 % frozen"):
        yield Row("Linear 8192 x 8192", method, "gradients", BATCH)
    for phase, methods in (("forward", FORWARD), ("step", STEP)):
        for method in methods:
            yield Row("Linear 4096 x 4096", method, phase, BATCH)
        for method in methods:
            if METHODS[method].convolves:
                yield Row("Conv2d 3x3, 512 channels, 14 x 14", method, phase, BATCH)
    for network, batch in (("CIFAR ResNet-18", 32), ("ImageNet ResNet-50", 8)):
        for method in STEP[:-1]:
            yield Row(network, method, "forward", 1)
            yield Row(network, method, "step", batch)


def resident(field: str) -> int:
    """A line of this process's memory status, in bytes: VmRSS, or VmHWM, its high-water mark."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def settle() -> None:
    """Returns freed memory to the system, so that later allocations are seen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def call(network: Network, model: nn.Module, x: Tensor, phase: str) -> Callable[[], list[Tensor]]:
    """One call; it returns the tensors that remain after it."""
    if phase == "forward":
        model.eval()
        return torch.no_grad()(lambda: [model(x)])
    trained = [p for p in model.parameters() if p.requires_grad]
    if phase == "gradients":
        x.requires_grad_()

        def gradients() -> list[Tensor]:
            y = model(x)
            y.backward(torch.ones_like(y))
            return [y, x.grad, *(p.grad for p in trained)]

        return gradients
    step = training_step(model, x, network.loss)
    return lambda: [step(), *(p.grad for p in trained)][1:] * 2  # twice: the momentum has the size of the gradients


def measure(network: Network, method: str, phase: str, batch: int) -> dict[str, int]:
    x = cast(network.inputs(batch), METHODS[method].dtype)
    settle()
    empty = resident("VmRSS")
    form = METHODS[method]
    model = form.hold(supermask(network.build(), form.frozen, form.compact))
    if phase == "forward" and form.peer is None:
        drop_scores(model)
    one = call(network, model, x, phase)
    settle()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    returned = sum(t.numel() * t.element_size() for t in one())
    return {"held": before - empty, "returned": returned, "on_the_way": resident("VmHWM") - before - returned}


def in_fresh_process(row: Row) -> dict[str, Any]:
    """A row as a record, in bytes.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    arguments = row.network, row.method, row.phase, str(row.batch)
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1])
    return {**row._asdict(), **json.loads(done.stdout)}


def main() -> None:
    network, method, phase, batch = sys.argv[1:]
    if METHODS[method].convolves:  # warm up: PyTorch's first calls import modules and keep some MB
        measure(WARM, method, phase, 1)
    else:
        measure(NETWORKS["Linear 1024 x 1024"], method, phase, 1)
    print(json.dumps(measure(NETWORKS[network], method, phase, int(batch))))


if __name__ == "__main__":
    main()
