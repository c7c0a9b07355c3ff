"""The masked integer weight."""

from torch import Tensor

from ... import bits
from ...source import Source
from .expand import expand
from .oracle import oracle


@oracle
def materialize(mask: Tensor, source: Source) -> Tensor:
    resolved = mask if mask.dim() == 2 else expand(mask, source)
    kept = bits.to_k_order(bits.unpack(resolved), source.fan)
    return source.integer_weight(mask.device) * kept
