"""How functions that return an operation's outputs become kernels that write them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import registry

Oracle = Callable[..., Tensor | tuple[Tensor, ...]]


def oracle(function: Oracle) -> Oracle:
    """Registers a function of an operation's arguments, named as the operation; returns it as it is."""

    @registry.kernel(function.__name__, backend=registry.REFERENCE)
    def write(outputs: Tensor | tuple[Tensor, ...], *arguments: Any) -> None:
        values = function(*arguments)
        if isinstance(outputs, Tensor):
            outputs, values = (outputs,), (values,)
        for output, value in zip(outputs, values, strict=True):
            if output.dtype != value.dtype or output.shape != value.shape:
                raise TypeError(f"{function.__name__}: {value.dtype} {value.shape} for {output.dtype} {output.shape}")
            output.copy_(value)

    return function
