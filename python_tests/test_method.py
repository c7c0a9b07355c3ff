"""Edge-Popup on Conv6, step by step, against a plain implementation of the paper's method with dense weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import bit_of
from torch import Tensor, nn

from slt_kernels import EdgePopup, Freeze, models, ops


def in_order(layer: nn.Module) -> Tensor:
    """Of each weight, in PyTorch's shape, its place among all weights in the order in which scores are counted."""
    rows, fan = layer.source.rows, layer.source.fan
    place = torch.empty(fan, dtype=torch.long)
    place[sorted(range(fan), key=lambda k: (k // 32, bit_of(k)))] = torch.arange(fan)
    places = torch.arange(rows).unsqueeze(1) * fan + place
    if len(layer.weight_shape) == 2:
        return places
    out, channels, height, width = layer.weight_shape
    return places.view(out, height, width, channels).permute(0, 3, 1, 2)


class Plain:
    """Dense weights, dense masks, a score for each weight, thresholds by sorting.

    It is given a network's weights, frozen pattern and initial scores, and nothing else of it but the layers' kind.
    """

    def __init__(self, network: nn.Module, sparsity: float, scope: str, dynamic: bool) -> None:
        self.network, self.sparsity, self.scope, self.dynamic = network, sparsity, scope, dynamic
        self.layers = [m for m in network if hasattr(m, "scores")]
        self.weights = [m.integer_weight().double() for m in self.layers]
        self.states = [m.frozen_state() for m in self.layers]
        self.places = [in_order(m) for m in self.layers]
        self.scores = []
        for layer, state, place in zip(self.layers, self.states, self.places, strict=True):
            scores, free = torch.zeros(state.shape, dtype=torch.float64), state == 0
            scores[free] = layer.scores.detach()[place[free].argsort().argsort()]
            self.scores.append(scores.requires_grad_())
        self.step()

    def step(self) -> None:
        """Thresholds and masks from the scores."""
        groups = [range(len(self.layers))] if self.scope == "global" else [[i] for i in range(len(self.layers))]
        self.thresholds, self.masks = [], []
        for group in groups:
            drop = math.floor(self.sparsity * sum(self.states[i].numel() for i in group))
            drop -= sum(int((self.states[i] == -1).sum()) for i in group)
            free = torch.cat([self.scores[i].detach().abs()[self.states[i] == 0] for i in group]).sort().values
            self.thresholds.append(free[drop - 1] if drop > 0 else torch.tensor(-math.inf))
            for i in group:
                kept = (self.states[i] == 0) & (self.scores[i].detach().abs() > self.thresholds[-1])
                self.masks.append(kept | (self.states[i] == 1))

    def __call__(self, x: Tensor) -> Tensor:
        at = 0
        for module in self.network:
            if not hasattr(module, "scores"):
                x = module(x)
                continue
            mask, scores, v = self.masks[at], self.scores[at], self.weights[at]
            scale = math.sqrt(2 / v[0].numel()) / math.sqrt((128**2 - 1) / 3)
            if self.dynamic:
                scale /= math.sqrt(mask.double().mean())
            through = torch.where(self.states[at] == 0, scores.abs(), 0)
            weight = torch.tensor(scale).float().double() * v * (mask + through - through.detach())
            x = F.conv2d(x, weight, padding=1) if v.dim() == 4 else F.linear(x, weight)
            at += 1
        return x

    def gradients(self) -> list[Tensor]:
        """Of the free weights' scores, in the order of the package's."""
        free = [state == 0 for state in self.states]
        return [s.grad[f][p[f].argsort()] for s, f, p in zip(self.scores, free, self.places, strict=True)]


@pytest.mark.parametrize("scope,dynamic", (("global", False), ("local", True)))
def test_five_steps_of_conv6(scope, dynamic):
    spread = "erk" if scope == "global" else "uniform"
    source = {"freeze": Freeze(0.25, 0.25), "sparsity": None, "weight": "uniform", "spread": spread, "seed": 5}
    network = models.build(
        "conv6", width=64 if scope == "global" else 16, supermask=source | {"scale": "dynamic" if dynamic else None}
    )
    layers = [m for m in network if hasattr(m, "scores")]
    assert sum(layer.total for layer in layers) == (2_261_184 if scope == "global" else 142_128)
    for layer in layers:
        layer.scores = nn.Parameter(layer.scores.detach().double())
    popup = EdgePopup(network, 0.5, scope)
    plain = Plain(network, 0.5, scope, dynamic)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    ours = torch.optim.SGD(network.parameters(), **settings)
    theirs = torch.optim.SGD(plain.scores, **settings)
    for _ in range(5):
        x, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(10, (4,))
        for optimizer, model in ((ours, network), (theirs, plain)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
        for layer, expected in zip(layers, plain.gradients(), strict=True):
            assert (layer.scores.grad - expected).norm() <= 1e-10 * expected.norm()
        for optimizer, masks in ((ours, popup), (theirs, plain)):
            optimizer.step()
            masks.step()
        groups = [layers] if scope == "global" else [[layer] for layer in layers]
        drop = [
            math.floor(0.5 * sum(layer.total for layer in group)) - sum(layer.pruned for layer in group)
            for group in groups
        ]
        thresholds = [ops.select([m.scores for m in group], d) for group, d in zip(groups, drop, strict=True)]
        assert torch.stack(thresholds).numpy() == pytest.approx(torch.stack(plain.thresholds).numpy(), rel=1e-10)
        for layer, mask in zip(layers, plain.masks, strict=True):
            assert torch.equal(layer.mask(), mask)
