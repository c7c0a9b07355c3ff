"""File sizes of tickets of an untrained ResNet-50 for ImageNet, from four source networks, as in the paper.

    python bench/ticket_size.py --out bench/results/ticket_size.json

Scores come from the seed, masks from one global threshold. Each file is written, read into another network, and the
masks are compared. A file holds the learned bits, BatchNorm's statistics as float32, and an index.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from machine import machine
from torch import nn

from slt_kernels import EdgePopup, Freeze, convert, load_ticket, save_ticket
from slt_kernels.models import resnet
from slt_kernels.nn import SupermaskLayer

SOURCES = {  # and the fraction of all weights that the ticket drops
    "dense": (Freeze(), 0.7),
    "70 % pruned": (Freeze(0.7), 0.85),
    "70 % frozen: 35 % pruned, 35 % locked": (Freeze(0.35, 0.35), 0.5),
    "70 % frozen: 60 % pruned, 10 % locked": (Freeze(0.6, 0.1), 0.7),
}


def network(freeze: Freeze) -> nn.Module:
    return convert(resnet(50, classes=1000, imagenet=True), freeze, None, scale="dynamic")


def layers(model: nn.Module) -> list[SupermaskLayer]:
    return [m for m in model.modules() if isinstance(m, SupermaskLayer)]


def entropy_bits(model: nn.Module) -> float:
    """Entropy of the learned bits, given each layer's fraction of ones."""
    total = 0.0
    for layer in layers(model):
        ones = int(layer.mask().sum()) - layer.locked
        total -= sum(n * math.log2(n / layer.free) for n in (ones, layer.free - ones) if n)
    return total


def ticket(freeze: Freeze, sparsity: float) -> dict[str, float]:
    """Bytes of the plain and the compressed ticket, and of their parts."""
    model = network(freeze)
    EdgePopup(model, sparsity)
    statistics = sum(b.numel() * b.element_size() for m in model.modules() if not hasattr(m, "scores")
                     for b in m.buffers(recurse=False))  # fmt: skip
    record = {"weights": sum(m.total for m in layers(model)), "sparsity": sparsity, "statistics_bytes": statistics}
    with tempfile.TemporaryDirectory() as folder:
        for name, compress in (("plain", False), ("compressed", True)):
            path = Path(folder, f"{name}.slt")
            info = save_ticket(model, path, compress=compress)
            with torch.device("meta"):
                other = network(freeze)
            other.to_empty(device="cpu")
            load_ticket(path, other)
            for ours, theirs in zip(layers(model), layers(other), strict=True):
                assert torch.equal(ours.mask_words, theirs.mask_words)
            record[f"{name}_bytes"] = path.stat().st_size
            record[f"{name}_mask_bytes"] = info.mask_bytes
    return record | {"free": info.free_bits, "kept": info.kept, "entropy_bytes": entropy_bits(model) / 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {"machine": machine(), "tickets": {}}
    for name, (freeze, sparsity) in SOURCES.items():
        record = result["tickets"][name] = ticket(freeze, sparsity)
        print(f"{name}: " + ", ".join(f"{key} {value:,.10g}" for key, value in record.items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
