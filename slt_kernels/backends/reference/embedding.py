"""Embedding, as PyTorch would compute it with the materialized weight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...source import Source
from .grad_scores import grad_scores
from .materialize import materialize
from .numbers import narrow, wide
from .oracle import oracle


@oracle
def embedding_forward(index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype) -> Tensor:
    weight = F.embedding(index, materialize(mask, source).double())
    y = torch.where(weight == 0, 0, weight * wide(scale))  # +0 where a weight is dropped, whatever the scale's sign
    return y if dtype == torch.float64 else narrow(y).to(dtype)


@oracle
def embedding_grad_scores(dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    grad = dy.new_zeros(source.rows, source.fan, dtype=torch.float64)
    grad.index_put_((index.long(),), wide(dy), accumulate=True)
    return grad_scores(grad, dy.dtype, scores, scale, source)
