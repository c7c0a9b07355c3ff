"""The peer: a supermask network as the papers' code has it, written fairly in PyTorch.

Each layer holds its random weights, its ternary frozen pattern and its scores as dense float32 tensors (here with the
very weights and frozen pattern of a supermask layer, so that results can be compared), makes a mask by comparing with
a threshold, multiplies the three in each forward, and calls PyTorch's own product. The global threshold sorts all free
scores together.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_kernels import bits
from slt_kernels.nn import SupermaskConv2d, SupermaskLayer


class _Mask(torch.autograd.Function):
    """|score| > threshold where free; straight through, with the sign of the score."""

    @staticmethod
    def forward(ctx, scores: Tensor, state: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(scores, state)
        return torch.where(state == 0, scores.abs() > threshold, state > 0).float()

    @staticmethod
    def backward(ctx, grad: Tensor):
        scores, state = ctx.saved_tensors
        return torch.where(state == 0, torch.where(scores < 0, -grad, grad), 0), None, None


class Materializing(nn.Module):
    """The same function as a supermask layer, from dense tensors."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__()
        self.register_buffer("weight", layer.integer_weight().float() * layer.weight_scale)
        self.register_buffer("state", layer.frozen_state().float())
        dense = torch.zeros(layer.source.rows, layer.source.words, bits.WORD)
        dense[bits.unpack(layer.source.frozen_words()[0])] = layer.scores.detach()
        self.scores = nn.Parameter(layer._as_weight(bits.to_k_order(dense, layer.source.fan)).contiguous())
        self.threshold = torch.tensor(-math.inf)
        self.convolution = (
            (layer.stride, layer.window.padding, layer.dilation, layer.groups)
            if isinstance(layer, SupermaskConv2d)
            else None
        )
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * _Mask.apply(self.scores, self.state, self.threshold)
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, *self.convolution)


def materializing(model: nn.Module) -> nn.Module:
    """Replaces the supermask layers of a model, in place."""
    for name, child in model.named_children():
        if isinstance(child, SupermaskLayer):
            setattr(model, name, Materializing(child))
        else:
            materializing(child)
    return model


@torch.no_grad()
def sorted_global_threshold(model: nn.Module, sparsity: float) -> None:
    """The global threshold as the paper's code finds it: all free scores together, sorted."""
    layers = [m for m in model.modules() if isinstance(m, Materializing)]
    pruned = sum(int((m.state < 0).sum()) for m in layers)
    drop = math.floor(sparsity * sum(m.weight.numel() for m in layers)) - pruned
    scores = torch.cat([m.scores[m.state == 0].abs() for m in layers]).sort().values
    threshold = scores[drop - 1] if drop > 0 else torch.tensor(-math.inf)
    for m in layers:
        m.threshold = threshold
