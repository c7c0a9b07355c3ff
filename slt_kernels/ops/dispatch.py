"""Calls an operation: through ``torch.ops.slt_kernels`` where PyTorch has to see it, straight to its kernel otherwise.

A call through ``torch.ops`` costs about 6 microseconds. It is needed where operations are traced, compiled or
intercepted: there PyTorch uses the schema and the fake implementation, both from `operations`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import run
from ..conv_geometry import Window
from ..operations import OUTPUTS, SCHEMAS
from ..source import Source
from . import flops

_library = torch.library.Library("slt_kernels", "DEF")
_TYPES = {"source": Source, "window": Window}
_PLAIN = (Tensor, torch.nn.Parameter)


def operation(name: str) -> Callable[..., Any]:
    """Declares ``torch.ops.slt_kernels.<name>`` from its row in `operations`; returns what calls it.

    It has no autograd formula: a plain ``autograd.Function`` around it costs half of what
    ``torch.library.custom_op`` does for each call.
    """
    _library.define(SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.slt_kernels, name).default
    typed = [(i, _TYPES[a.name]) for i, a in enumerate(op._schema.arguments) if a.name in _TYPES]

    def with_types(arguments: tuple[Any, ...]) -> list[Any]:
        """`Source` and `Window` from the lists of integers that PyTorch passes."""
        arguments = list(arguments)
        for i, type_ in typed:
            arguments[i] = type_(*arguments[i])
        return arguments

    _library.impl(name, lambda *arguments: run(name, *with_types(arguments)), "CompositeExplicitAutograd")
    fake = lambda *arguments: OUTPUTS[name](*with_types(arguments))  # noqa: E731 (register_fake wants a function)
    torch.library.register_fake(f"slt_kernels::{name}", fake, lib=_library)

    def call(*arguments: Any) -> Any:
        tensors = arguments if isinstance(arguments[0], Tensor) else arguments[0]
        if is_plain(*tensors):
            return run(name, *arguments)
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
            flops.register()
        return op(*arguments)

    return call


def is_plain(*arguments: Any) -> bool:
    """Whether nothing traces, compiles or intercepts operations, and all tensors among the arguments hold their values.

    Subclasses, meta tensors, and tensors that are only marked as negated or zero do not.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()  # such as a default device, which kernels must not see
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for x in arguments:
        if isinstance(x, Tensor) and (type(x) not in _PLAIN or x.is_meta or x.is_neg() or x._is_zerotensor()):
            return False
    return True
