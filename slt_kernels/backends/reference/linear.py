"""Linear, as PyTorch would compute it with the materialized weight."""

from torch import Tensor

from ...source import Source
from .fixed_point import integer_sums, runs, with_bias
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
def linear_grad_input(dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    sums = integer_sums(lambda vectors, rows: vectors[:, rows] @ weight[rows], dy, scale, runs(source.rows))
    return sums.to(dy.dtype)


@oracle
def linear_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    return grad_scores(wide(dy).T @ wide(x), x.dtype, scores, scale, source)
