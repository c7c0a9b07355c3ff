"""Linear: its forward for few vectors."""

from torch import Tensor

from ...source import Source
from . import forward_small, launch
from .arguments import floats


@launch.kernel("linear_forward", when=forward_small.takes)
def linear_forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    forward_small.forward(y, x.detach().contiguous(), mask.contiguous(), scale, floats(bias), source)
