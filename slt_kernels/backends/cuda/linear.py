"""Linear: its forward, by one kernel for few vectors and by another for many."""

from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from . import forward_small, launch, product
from .arguments import floats


def _vectors(x: Tensor) -> product.Images:
    """Vectors as images of one pixel."""
    return product.Images(len(x), (x.shape[1], 1, 1), Window(1, 1), True)


@launch.kernel("linear_forward", when=forward_small.takes)
def linear_forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    forward_small.forward(y, x.detach().contiguous(), mask.contiguous(), scale, floats(bias), source)


@launch.kernel("linear_forward", when=lambda x, mask, scale, bias, source: product.takes(x, _vectors(x), source))
def linear_forward_many(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    product.forward(y, x.detach().contiguous(), mask.contiguous(), scale, floats(bias), source, _vectors(x))
