"""The peers: other implementations of the same layers, each by its best documented path.

A peer is made from a supermask layer and computes that layer's function, so that results can be compared. Tensors that
it keeps between calls are made once, outside of the timing.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_kernels import EdgePopup, Freeze, bits, convert
from slt_kernels.nn import SupermaskConv2d, SupermaskLayer

SPARSITY = 0.5
FROZEN = Freeze(0.35, 0.35)


class _Product(nn.Module):
    """PyTorch's product, with a weight of a supermask layer's shape."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__()
        self.bias = layer.bias
        self.convolution = (
            (layer.stride, layer.window.padding, layer.dilation, layer.groups)
            if isinstance(layer, SupermaskConv2d)
            else None
        )

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, *self.convolution)


class Dense(_Product):
    """The effective weight as a dense parameter, as in a trained network."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__(layer)
        self.weight = nn.Parameter(layer.dense_weight().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


class _Mask(torch.autograd.Function):
    """|score| > threshold where free. The gradient is straight-through, with the sign of the score."""

    @staticmethod
    def forward(ctx, scores: Tensor, state: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(scores, state)
        return torch.where(state == 0, scores.abs() > threshold, state > 0).float()

    @staticmethod
    def backward(ctx, grad: Tensor):
        scores, state = ctx.saved_tensors
        return torch.where(state == 0, torch.where(scores < 0, -grad, grad), 0), None, None


class Materializing(_Product):
    """The paper's code: weights, ternary frozen pattern and scores are dense float32, multiplied in each forward.

    The mask compares the scores with a threshold, which `sorted_global_threshold` sets.
    """

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__(layer)
        self.register_buffer("weight", (layer.integer_weight().float() * layer.weight_scale).contiguous())
        self.register_buffer("state", layer.frozen_state().float().contiguous())
        self.scores = nn.Parameter(dense_scores(layer))
        self.threshold = torch.tensor(-math.inf)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight * _Mask.apply(self.scores, self.state, self.threshold))


class _SortedMask(torch.autograd.Function):
    """The largest |score|, by sorting all. The gradient is straight-through."""

    @staticmethod
    def forward(ctx, magnitudes: Tensor, drop: int) -> Tensor:
        mask = magnitudes.clone(memory_format=torch.contiguous_format)  # of others, `flatten` would be a copy
        _, order = magnitudes.flatten().sort()
        flat = mask.flatten()
        flat[order[:drop]] = 0
        flat[order[drop:]] = 1
        return mask

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


class Sorting(_Product):
    """hidden-networks' layer: nothing frozen, and each forward sorts the scores."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__(layer)
        if layer.free != layer.total:
            raise ValueError(f"layer={layer}: expected nothing frozen")
        self.register_buffer("weight", (layer.integer_weight().float() * layer.weight_scale).contiguous())
        self.scores = nn.Parameter(dense_scores(layer))

    def forward(self, x: Tensor) -> Tensor:
        drop = math.floor(SPARSITY * self.weight.numel())
        return self.product(x, self.weight * _SortedMask.apply(self.scores.abs(), drop))


class MaterializeEachCall(_Product):
    """Our seed and mask without our kernels: each call makes the dense weight. Inference only."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__(layer)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.layer.dense_weight().to(x.dtype))


class Int8Dynamic(nn.Module):
    """PyTorch's int8 weights, with inputs quantized in each call. Linear only, inference only."""

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__()
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        linear.weight = nn.Parameter(layer.dense_weight())
        linear.bias = layer.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of torchao, whose CPU path is this one's
            self.linear = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Int4(nn.Module):
    """PyTorch's 4-bit weights, with a bfloat16 scale per 64 weights, times bfloat16 inputs: torchao's kernel for CPUs.

    Linear only, fan a multiple of 64, inference only. (torchao 0.18 has no low-bit product for x86; GemLite's are for
    GPUs.)
    """

    GROUP = 64

    def __init__(self, layer: SupermaskLayer) -> None:
        super().__init__()
        groups = layer.dense_weight().unflatten(1, (-1, self.GROUP))
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 7
        digits = (groups / scale).round().add(8).to(torch.int32).flatten(1)
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack_for_cpu(digits, 1))
        scale = scale.squeeze(-1).T
        self.register_buffer("scales", torch.stack((scale, torch.zeros_like(scale)), -1).contiguous().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.GROUP, self.scales)
        return y.unflatten(0, x.shape[:-1])


def dense_scores(layer: SupermaskLayer) -> Tensor:
    """The scores at their weights, 0 where frozen, in the weight's shape."""
    dense = torch.zeros(layer.source.rows, layer.source.words, bits.WORD)
    dense[bits.unpack(layer.source.frozen_words()[0])] = layer.scores.detach()
    return layer._as_weight(bits.to_k_order(dense, layer.source.fan)).contiguous()


class Method(NamedTuple):
    """A form of a network: ours, or a peer in place of each supermask layer."""

    peer: Callable[[SupermaskLayer], nn.Module] | None = None
    frozen: bool = False
    compact: bool = False
    dtype: torch.dtype = torch.float32
    trains: bool = True
    convolves: bool = True
    error: float = 1e-5  # of its output against the dense float32 network's, in relative norm

    def hold(self, model: nn.Module) -> nn.Module:
        """A network of supermask layers (see `supermask`) in this form; the given one is not changed."""
        if self.peer is None:
            return model if self.dtype == torch.float32 else copy.deepcopy(model).to(self.dtype)
        held = replaced(model, self.peer)
        if self.peer is Materializing:
            sorted_global_threshold(held)
        return held.to(self.dtype)


METHODS = {
    "ours": Method(),
    "ours, 70 % frozen, compact": Method(frozen=True, compact=True),
    "ours, bfloat16": Method(dtype=torch.bfloat16, error=2e-2),
    "dense float32": Method(Dense),
    "dense bfloat16": Method(Dense, dtype=torch.bfloat16, error=2e-2),
    "int8 dynamic": Method(Int8Dynamic, trains=False, convolves=False, error=0.1),
    "int4, bfloat16": Method(Int4, dtype=torch.bfloat16, trains=False, convolves=False, error=2e-2),
    "materialize each call": Method(MaterializeEachCall, trains=False),
    "materializing layer": Method(Materializing),
    "sort in each forward": Method(Sorting),
    "ours, 70 % frozen": Method(frozen=True),
    "materializing layer, 70 % frozen": Method(Materializing, frozen=True),
}


def supermask(model: nn.Module, frozen: bool, compact: bool) -> nn.Module:
    """Replaces a model's dense layers, except embeddings, with supermask layers, in place."""
    tables = [name for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    freeze = FROZEN if frozen else Freeze()
    model = convert(model, freeze, SPARSITY, compact=compact, exclude=tables)
    EdgePopup(model, SPARSITY)
    return model


def replaced(model: nn.Module, peer: Callable[[SupermaskLayer], nn.Module]) -> nn.Module:
    """A copy of the model with a peer in place of each supermask layer."""
    layers = [m for m in model.modules() if isinstance(m, SupermaskLayer)]
    return copy.deepcopy(model, {id(m): peer(m) for m in layers})


@torch.no_grad()
def sorted_global_threshold(model: nn.Module, sparsity: float = SPARSITY) -> None:
    """The global threshold as in the paper's code: all free scores in one tensor, sorted."""
    layers = [m for m in model.modules() if isinstance(m, Materializing)]
    pruned = sum(int((m.state < 0).sum()) for m in layers)
    drop = math.floor(sparsity * sum(m.weight.numel() for m in layers)) - pruned
    scores = torch.cat([m.scores[m.state == 0].abs() for m in layers]).sort().values
    threshold = scores[drop - 1] if drop > 0 else torch.tensor(-math.inf)
    for m in layers:
        m.threshold = threshold


def training_step(model: nn.Module, x: Tensor, loss: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], float]:
    """Forward, backward, SGD with momentum, and new masks if there are masks. Returns the loss."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    popup = None
    if any(isinstance(m, SupermaskLayer) for m in model.modules()):
        popup = EdgePopup(model, SPARSITY)
    sorts = any(isinstance(m, Materializing) for m in model.modules())

    def step() -> float:
        value = loss(model, x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if popup is not None:
            popup.step()
        if sorts:
            sorted_global_threshold(model)
        return value.item()

    return step
