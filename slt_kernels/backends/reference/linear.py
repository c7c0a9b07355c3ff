"""Linear, as PyTorch would compute it with the materialized weight."""

import torch
from torch import Tensor

from ... import bits
from ...source import Source
from .fixed_point import int8_sums, integer_sums, runs, with_bias
from .grad_scores import grad_scores
from .materialize import materialize
from .numbers import wide
from .oracle import oracle


@oracle
def linear_forward(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    sums = integer_sums(lambda vectors, _: vectors @ weight.T, x, scale)
    return with_bias(sums, bias).to(x.dtype)


@oracle
def linear_forward_int8(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    return with_bias(int8_sums(lambda vectors: vectors @ weight.T, x, scale), bias).to(x.dtype)


@oracle
def linear_forward_stored(
    x: Tensor, mask: Tensor, signs: Tensor, scale: Tensor, bias: Tensor | None, source: Source, int8: bool
) -> Tensor:
    negative = bits.to_k_order(bits.unpack(signs), source.fan)
    weight = materialize(mask, source).abs().double() * torch.where(negative, -1, 1)
    if int8:
        sums = int8_sums(lambda vectors: vectors @ weight.T, x, scale)
    else:
        sums = integer_sums(lambda vectors, _: vectors @ weight.T, x, scale)
    return with_bias(sums, bias).to(x.dtype)


@oracle
def linear_grad_input(dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    sums = integer_sums(lambda vectors, rows: vectors[:, rows] @ weight[rows], dy, scale, runs(source.rows))
    return sums.to(dy.dtype)


@oracle
def linear_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    return grad_scores(wide(dy).T @ wide(x), x.dtype, scores, scale, source)
