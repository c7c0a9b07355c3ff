"""Linear: its forward, by one kernel for few vectors and by another for many."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from .. import exact_products, registry
from ..arguments import digit_count, floats
from . import forward_small, launch, product
from .arguments import aligned, padded
from .free_starts import starts_for

exact_products.register("cuda")


def _vectors(x: Tensor) -> product.Images:
    """Vectors as images of one pixel."""
    return product.Images(len(x), (x.shape[1], 1, 1), Window(1, 1), True)


@launch.kernel("linear_forward", when=forward_small.takes)
def linear_forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    forward_small.forward(y, x.detach().contiguous(), mask.contiguous(), scale, floats(bias), source)


@launch.kernel("linear_forward", when=lambda x, mask, scale, bias, source: product.takes(x, _vectors(x), source))
def linear_forward_many(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    product.forward(y, x.detach().contiguous(), mask.contiguous(), scale, floats(bias), source, _vectors(x))


@registry.planner("linear_forward", backend="cuda")
def plan_linear_forward(
    mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source
) -> Callable[[Tensor], Tensor] | None:
    if bias is not None and not (bias.dtype == torch.float32 and bias.is_contiguous()):
        return None  # it is converted in each call
    device, machine, compact = mask.device, launch.machine(mask.device), mask.dim() == 1
    words, starts = aligned(mask.contiguous()), starts_for(mask, source)
    if words is not mask:
        return None  # a copy would not change as the mask does
    rows, fan, added = source.rows, source.fan, 0 if bias is None else bias
    launches: dict[tuple, launch.Launch] = {}  # of the few batches that `forward_small` takes

    def call(x: Tensor) -> Tensor:
        batch = x.numel() // fan
        key = x.dtype, batch, digit_count(x)
        run = launches.get(key) or (batch and forward_small.prepared(source, *key, compact, machine))
        if not run:  # another kernel's
            y = registry.run("linear_forward", x.view(-1, fan), mask, scale, bias, source)
            return y.view(*x.shape[:-1], rows)
        launches[key] = run
        y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=device)
        launch.enqueue(run, device, *starts, words, aligned(padded(x, 4)), scale, added, y)
        return y

    return call
