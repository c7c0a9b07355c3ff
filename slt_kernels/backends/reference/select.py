"""The threshold: an order statistic of magnitudes."""

import torch
from torch import Tensor

from ... import bits
from .oracle import oracle


@oracle
def select(scores: list[Tensor], rank: int) -> Tensor:
    """The rank-th smallest |score|; -inf for rank < 1, inf from the number of scores on. NaN counts as the largest."""
    dtype, device = scores[0].dtype, scores[0].device
    magnitudes = torch.cat([bits.magnitudes(s).flatten() for s in scores])  # integers, in the order of the floats
    if rank < 1 or rank >= len(magnitudes):
        return torch.tensor(float("-inf" if rank < 1 else "inf"), dtype=dtype, device=device)
    return magnitudes.sort().values[rank - 1].view(dtype)
