"""What a call of a small layer costs: microseconds of ours and of PyTorch's, and their ratio.

    python bench/calls.py

The layers are so small that what is measured is the call: Python, checks, dispatch. Each figure is the median over
rounds that take both layers in turn.
"""

import argparse
import json
import statistics

import torch
from rounds import microseconds
from torch import nn

from slt_kernels import SupermaskConv2d, SupermaskEmbedding, SupermaskLinear

LAYERS = {
    "linear 64 x 64, batch 1": (
        lambda: SupermaskLinear(64, 64),
        lambda: nn.Linear(64, 64),
        lambda: torch.randn(1, 64),
    ),
    "conv2d 8 x 8, 3 x 3, one image of 8 x 8": (
        lambda: SupermaskConv2d(8, 8, 3),
        lambda: nn.Conv2d(8, 8, 3),
        lambda: torch.randn(1, 8, 8, 8),
    ),
    "embedding 64 x 64, 1 row": (
        lambda: SupermaskEmbedding(64, 64),
        lambda: nn.Embedding(64, 64),
        lambda: torch.tensor([3]),
    ),
}


def backward(layer: nn.Module, x: torch.Tensor) -> None:
    """A forward and a backward, of the scores or the weight."""
    layer(x).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--calls", type=int, default=500, help="a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, makers in LAYERS.items():
        *layers, x = (make() for make in makers)
        modes = {
            "inference": (torch.inference_mode, lambda layer, x: layer(x)),
            "forward and backward": (torch.enable_grad, backward),
        }
        for mode, (context, run) in modes.items():
            with context():
                calls = [lambda layer=layer, run=run, x=x: run(layer, x) for layer in layers]
                for call in calls:
                    microseconds(call, 20)
                rounds = [[microseconds(call, arguments.calls) for call in calls] for _ in range(arguments.rounds)]
            ours, dense = (statistics.median(times) for times in zip(*rounds, strict=True))
            found[f"{name}, {mode}"] = {"ours_us": ours, "dense_us": dense, "ratio": ours / dense}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, row in found.items():
            print(f"{name}: {row['ours_us']:.1f} us, dense {row['dense_us']:.1f} us, {row['ratio']:.2f} times")


if __name__ == "__main__":
    main()
