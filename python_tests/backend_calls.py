"""Calls of one backend's kernels, as functions that return their outputs: ``cpu.linear_forward(x, ...)``."""

from typing import Any

import torch

from slt_kernels import backends
from slt_kernels.operations import OUTPUTS


class Calls:
    """The operations of a backend; what its kernels do not take, the reference's do.

    Outputs hold garbage before a kernel writes them: NaN, or all bits set.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, operation: str) -> Any:
        if operation not in OUTPUTS:
            raise AttributeError(operation)

        def call(*arguments: Any) -> Any:
            for name in (self.name, "reference"):
                for function, when in backends.registry.kernels(name, operation):
                    if when is None or when(*arguments):
                        outputs = OUTPUTS[operation](*arguments)
                        for t in (outputs,) if isinstance(outputs, torch.Tensor) else outputs:
                            t.fill_(torch.nan if t.is_floating_point() else -1)
                        function(outputs, *arguments)
                        return outputs
            raise NotImplementedError(operation)

        return call


cpu, reference, triton = map(Calls, ("cpu", "reference", "triton"))
