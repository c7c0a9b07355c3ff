"""One training step of a CIFAR ResNet-18, against the same network with materialized weights.

    python bench/cpu_training_step.py --out bench/results/cpu_training_step.json

A step is forward, backward, SGD with momentum, and the global threshold with new masks; 32 images of 32 x 32, signed
constant weights, 35 % pruned and 35 % locked, sparsity 0.5. The two networks alternate, so that both see the same
machine; before anything is timed their losses and thresholds are compared.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import machine
from materializing import Materializing, materializing, sorted_global_threshold
from torch import nn

from slt_kernels import EdgePopup, Freeze, convert
from slt_kernels.models import resnet

SPARSITY = 0.5


def step_of(model: nn.Module, threshold: Callable[[], None], images: torch.Tensor, labels: torch.Tensor):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        threshold()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=7)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    model = convert(resnet(18), Freeze(0.35, 0.35), sparsity=None)
    peer = materializing(copy.deepcopy(model))
    popup = EdgePopup(model, SPARSITY)
    sorted_global_threshold(peer, SPARSITY)
    kept = sum(int(m.mask().sum()) for m in popup.layers)
    layers = [m for m in peer.modules() if isinstance(m, Materializing)]
    same = sum(int(torch.where(m.state == 0, m.scores.abs() > m.threshold, m.state > 0).sum()) for m in layers)
    if kept != same:
        raise RuntimeError(f"the two networks differ: {kept} and {same} weights kept")

    ours = step_of(model, popup.step, images, labels)
    theirs = step_of(peer, lambda: sorted_global_threshold(peer, SPARSITY), images, labels)
    a, b = ours(), theirs()
    if abs(a - b) > 1e-3 * abs(b):
        raise RuntimeError(f"the two networks differ: loss {a} and {b}")

    seconds = {"supermask": [], "materializing": []}
    for _ in range(arguments.steps):
        for name, step in (("supermask", ours), ("materializing", theirs)):
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(t / s for s, t in zip(seconds["supermask"], seconds["materializing"], strict=True))
    for name, values in seconds.items():
        print(f"{name:14} median {statistics.median(values):.3f} s  (min {min(values):.3f}, max {max(values):.3f})")
    print(f"ratio, median of pairs: {ratio:.2f}x")
    if arguments.out:
        result = {"machine": machine(), "seconds": seconds, "ratio": ratio, "target": 2.5}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
