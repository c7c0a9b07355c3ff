"""File sizes of untrained networks: tickets of a dense and of a frozen source."""

import tempfile
from pathlib import Path
from typing import Any

from peers import FROZEN, SPARSITY

from slt_kernels import Freeze, convert, save_ticket
from slt_kernels.models import resnet

NETWORKS = {
    "CIFAR ResNet-18": lambda: resnet(18),
    "ImageNet ResNet-18": lambda: resnet(18, classes=1000, imagenet=True),
    "ImageNet ResNet-34": lambda: resnet(34, classes=1000, imagenet=True),
    "ImageNet ResNet-50": lambda: resnet(50, classes=1000, imagenet=True),
    "ImageNet Wide ResNet-50-2": lambda: resnet(50, classes=1000, imagenet=True, bottleneck_width=2),
}
QUICK = ("CIFAR ResNet-18",)


def sizes(quick: bool) -> list[dict[str, Any]]:
    return [size(name) for name in (QUICK if quick else NETWORKS)]


def size(name: str) -> dict[str, Any]:
    """A network's number of weights, and its bytes in fp32, in int8 and as tickets."""
    model = NETWORKS[name]()
    weights = sum(p.numel() for p in model.parameters())
    others = sum(b.numel() * b.element_size() for b in model.buffers())
    record = {"network": name, "weights": weights, "fp32": 4 * weights + others, "int8": weights + others}
    for source, freeze in (("dense", Freeze()), ("frozen", FROZEN)):
        converted = convert(NETWORKS[name](), freeze, SPARSITY)
        with tempfile.TemporaryDirectory() as folder:
            record[f"ticket_{source}"] = save_ticket(converted, Path(folder, "net.slt")).size
    return record
