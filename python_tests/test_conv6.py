"""Five steps of Conv6 against a second implementation of the paper's method, in float64.

The second implementation materializes everything, as the authors' code does: a dense weight, a ternary freezing
pattern, a score for every weight of each layer, and masks by comparing sorted scores. It takes only random numbers from
the package (weights, pattern, initial scores). The order of the free weights, the thresholds, the straight-through
gradient, the optimizer and the network are its own.
"""

import itertools
import math

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_kernels import EdgePopup, Freeze, convert

LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-4


def conv6(width: int, size: int) -> nn.Sequential:
    """64-64-pool-128-128-pool-256-256-pool-256-256-10 at width 64, without bias and BatchNorm."""
    channels = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(channels)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU(), *([nn.MaxPool2d(2)] if i % 2 else [])]
    flat = 4 * width * (size // 8) ** 2
    linear = [nn.Linear(a, b, bias=False) for a, b in ((flat, 4 * width), (4 * width, 4 * width), (4 * width, 10))]
    return nn.Sequential(*layers, nn.Flatten(), linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])


class Layer:
    """One materialized layer. All tensors have the shape of PyTorch's weight."""

    def __init__(self, weight: Tensor, state: Tensor, scores: Tensor, std: float) -> None:
        """weight: integers; state: -1 pruned, 0 free, 1 locked; scores: of the free weights, in their order."""
        self.weight, self.state, self.std = weight.double(), state, std
        self.fan = weight[0].numel()
        self.order = self._free_in_order()
        self.scores = self._dense(scores)
        self.velocity = torch.zeros_like(self.scores)

    def _free_in_order(self) -> Tensor:
        """Where the free weights are in the flattened weight, by row, word, and bit: fan runs over (kh, kw, c)."""
        flat = torch.arange(self.weight.numel()).view(self.weight.shape)
        matrix = (flat.permute(0, 2, 3, 1) if flat.dim() == 4 else flat).flatten(1)
        row, k = np.divmod(np.arange(matrix.numel()), self.fan)
        bit = np.array([oracle.bit_of(i) for i in range(32)])[k % 32]
        order = matrix.flatten()[torch.from_numpy(np.lexsort((bit, k // 32, row)))]
        return order[self.state.flatten()[order] == 0]

    def _dense(self, values: Tensor) -> Tensor:
        dense = torch.zeros(self.weight.numel(), dtype=torch.float64)
        dense[self.order] = values
        return dense.view(self.weight.shape)

    def compact(self, dense: Tensor) -> Tensor:
        return dense.flatten()[self.order]

    def make_mask(self, threshold: float, scale: str | None) -> None:
        self.mask = torch.where(self.state == 0, self.scores.abs() > threshold, self.state == 1)
        factor = math.sqrt(self.mask.numel() / int(self.mask.sum())) if scale == "dynamic" else 1.0
        self.scale = float(np.float32(math.sqrt(2 / self.fan) / self.std * factor))  # the contract's is a float32

    def effective(self) -> Tensor:
        self.leaf = (self.scale * self.mask * self.weight).requires_grad_()
        return self.leaf

    def step(self) -> None:
        self.grad = self.leaf.grad * self.weight * self.scale * torch.where(self.scores < 0, -1.0, 1.0)
        self.grad[self.state != 0] = 0
        self.velocity = MOMENTUM * self.velocity + self.grad + DECAY * self.scores
        self.scores = self.scores - LR * self.velocity


class Network:
    def __init__(self, layers: list[Layer], sparsity: float, scope: str, scale: str | None) -> None:
        self.layers, self.sparsity, self.scope, self.scale = layers, sparsity, scope, scale
        self.make_masks()

    def make_masks(self) -> None:
        scopes = [self.layers] if self.scope == "global" else [[layer] for layer in self.layers]
        self.thresholds = []
        for scope in scopes:
            total = sum(layer.state.numel() for layer in scope)
            pruned = sum(int((layer.state == -1).sum()) for layer in scope)
            free = [layer.scores[layer.state == 0] for layer in scope]
            threshold = oracle.drop_threshold(free, math.floor(self.sparsity * total) - pruned)
            self.thresholds.append(threshold)
            for layer in scope:
                layer.make_mask(threshold, self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:6]):
            x = F.conv2d(x, layer.effective(), padding=1).relu()
            x = F.max_pool2d(x, 2) if i % 2 else x
        x = x.flatten(1)
        for layer in self.layers[6:8]:
            x = F.linear(x, layer.effective()).relu()
        return F.linear(x, self.layers[8].effective())


def test_it_is_conv6():
    assert sum(p.numel() for p in conv6(64, 32).parameters()) == 2_261_184


@pytest.mark.parametrize(
    "width,size,batch,scope,weight,scale,freeze,sparsity",
    (
        (16, 16, 2, "global", "uniform", None, Freeze(0.3, 0.2), 0.5),
        (8, 16, 4, "local", "signed_constant", "dynamic", Freeze(0.35, 0.35), 0.6),
        (8, 16, 4, "global", "normal", "dynamic", Freeze(), 0.7),
    ),
    ids=("frozen, global", "frozen, local", "dense source"),
)
def test_five_steps(width, size, batch, scope, weight, scale, freeze, sparsity):
    model = convert(conv6(width, size), freeze, None, weight=weight, scale=scale, seed=9)
    supermask = [m for m in model if hasattr(m, "scores")]
    for layer in supermask:
        layer.scores = nn.Parameter(layer.scores.detach().double())
    std = oracle.STD[weight]
    layers = [Layer(m.integer_weight(), m.frozen_state(), m.scores.detach(), std) for m in supermask]
    theirs = Network(layers, sparsity, scope, scale)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    popup = EdgePopup(model, sparsity, scope)
    data = torch.Generator().manual_seed(4)
    for _ in range(5):
        x = torch.randn(batch, 3, size, size, generator=data, dtype=torch.float64)
        target = torch.randint(10, (batch,), generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        popup.step()

        F.cross_entropy(theirs(x), target).backward()
        for layer in layers:
            layer.step()
        theirs.make_masks()

        for ours, layer in zip(supermask, layers, strict=True):
            wanted = layer.compact(layer.grad)
            assert wanted.norm() > 0
            assert (ours.scores.grad - wanted).norm() <= 1e-10 * wanted.norm()
            assert (ours.scores - layer.compact(layer.scores)).norm() <= 1e-10 * ours.scores.norm()
            assert torch.equal(ours.mask(), layer.mask)
            assert ours.weight_scale.item() == layer.scale
        assert thresholds_of(supermask, scope) == pytest.approx(theirs.thresholds, rel=1e-10)


def thresholds_of(layers: list, scope: str) -> list[float]:
    """The thresholds of the current masks: the largest dropped |score|, over all layers or per layer."""
    dropped = []
    for layer in layers:
        kept = oracle_bits(layer.compact_mask(), layer.free)
        dropped.append(layer.scores.detach().abs()[~kept].max().item())
    return [max(dropped)] if scope == "global" else dropped


def oracle_bits(words: Tensor, count: int) -> Tensor:
    """The bits of a compact mask, lowest first."""
    return torch.from_numpy(np.unpackbits(words.numpy().view(np.uint8), count=count, bitorder="little")).bool()
