"""The graph isomorphism network (Xu et al., 2019), for node classification."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GIN(nn.Module):
    """Layers of mean aggregation, one linear map, BatchNorm, and ReLU.

    Layer ``l`` computes ``h_l = relu(norm(W_l ((1 + eps) h_{l-1} + mean of h_{l-1} over the neighbours)))`` with
    ``eps = 0``; the last layer has ``classes`` features. The output is ``(V h_{L-1} + h_L) / 2``, V linear.

    Args:
        features: input features of a node.
        classes: outputs of a node.
        width: features of the hidden layers. Default 386.
        depth: layers L, at least 2. Default 4.
        bias: of the linear maps. Default False.
        norm: whether there is BatchNorm. Default True.
        affine: learn a scale and a bias in each BatchNorm. Default False.
        dropout: probability with which a feature is dropped after each ReLU. Default 0.

    Input: node features float32 ``[N, features]``, and the neighbours' mean as a sparse matrix float32 ``[N, N]``, row
    ``i`` of which holds ``1/degree(i)`` at the neighbours of ``i``. Output ``[N, classes]``.

    Raises:
        ValueError: a depth below 2; a dropout outside [0, 1).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        width: int = 386,
        depth: int = 4,
        bias: bool = False,
        norm: bool = True,
        affine: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth={depth}: expected at least 2")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: expected a probability in [0, 1)")
        sizes = (features, *[width] * (depth - 1), classes)
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o, affine=affine) if norm else nn.Identity() for o in sizes[1:])
        self.head = nn.Linear(width, classes, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, neighbours_mean: Tensor) -> Tensor:
        h = features
        for layer, norm in zip(self.layers, self.norms, strict=True):
            before = h
            h = self.dropout(F.relu(norm(layer(h + _product(neighbours_mean, h)))))
        return (self.head(before) + h) / 2


def _product(sparse: Tensor, h: Tensor) -> Tensor:
    """Product in the matrix's precision, under autocast too: sparse products support few dtypes."""
    with torch.autocast(h.device.type, enabled=False):
        return torch.sparse.mm(sparse, h.to(sparse.dtype))
