"""How an operation is declared: its schema, its fake implementation, and dispatch to a backend."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import backend_for
from ..bits import words_for
from ..source import Source
from ..window import Window

_library = torch.library.Library("slt_kernels", "DEF")
_TYPES = {"source": Source, "window": Window}


def operation(schema: str) -> Callable[[Callable], torch._ops.OpOverload]:
    """Declares ``torch.ops.slt_kernels.<name>``; the decorated function is its fake implementation.

    The operation calls the function of its name in the backend of its first tensor, with ``source`` and ``window``
    as `Source` and `Window`. Operations have no autograd formula of their own: a plain ``autograd.Function`` around
    them costs half of what ``torch.library.custom_op`` does a call.
    """

    def declare(fake: Callable) -> torch._ops.OpOverload:
        name = schema.partition("(")[0]
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(torch.ops.slt_kernels, name).default
        typed = [(i, _TYPES[a.name]) for i, a in enumerate(op._schema.arguments) if a.name in _TYPES]

        def dispatch(*args):
            first = args[0] if isinstance(args[0], Tensor) else args[0][0]
            args = list(args)
            for i, type_ in typed:
                args[i] = type_(*args[i])
            return getattr(backend_for(first.device), name)(*args)

        _library.impl(name, dispatch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"slt_kernels::{name}", fake, lib=_library)
        return op

    return declare


class _NoSecondDerivative(torch.autograd.Function):
    """Hands on ``grads``, which come of ``tensors``: to differentiate one by the other raises."""

    @staticmethod
    def forward(ctx, grads, *tensors):
        return tuple(None if g is None else g.detach() for g in grads)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("a supermask layer has no second derivative")


def once_differentiable(backward: Callable) -> Callable:
    """A ``backward(ctx, dy, *saved_tensors)`` whose gradients raise where they are differentiated in turn.

    PyTorch's own decorator cuts them off from what they come of: where zeros are taken for what cannot be reached, as
    by ``torch.autograd.functional.hessian``, a second derivative would be zero, silently.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint unpacks them once only
        with torch.no_grad():
            grads = backward(ctx, dy, *saved)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # the latter but with create_graph=True
            return grads
        return _NoSecondDerivative.apply(grads, dy, *(t for t in saved if t is not None))

    return wrapper


def differentiates() -> bool:
    """Whether gradients may be asked for, in backward mode or in forward mode (which the operations refuse)."""
    return torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_source(value: object) -> None:
    """Raises TypeError unless it is a source."""
    if not isinstance(value, Source):
        raise TypeError(f"source: expected a Source, got {type(value).__name__}")


def check_floating(name: str, dtype: torch.dtype) -> None:
    """Raises TypeError unless it is one of the dtypes that products take."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{name}={dtype}: expected float32, float64, bfloat16 or float16")


def check_layer(
    x: Tensor, scores: Tensor | None, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source
) -> None:
    """Raises TypeError or ValueError unless the tensors of one layer fit each other, their source, and the input."""
    check_source(source)
    check_tensor("scale", scale)
    free = None
    if scores is not None:
        check_tensor("scores", scores)
        free = scores.numel() if torch.compiler.is_compiling() else source.free  # a graph cannot count
        if scores.shape != (free,) or scores.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"scores: expected float32 or float64 [{free}], got {scores.dtype} {list(scores.shape)}")
    check_mask(mask, source, free)
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise ValueError(f"scale: expected one float32 element, got {scale.dtype} {list(scale.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        check_floating("bias.dtype", bias.dtype)
        if bias.shape != (source.rows,):
            raise ValueError(f"bias.shape={list(bias.shape)}: expected [{source.rows}]")
    for name, tensor in (("scores", scores), ("mask", mask), ("scale", scale), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}.device={tensor.device}: expected {x.device}, where the input is")


def check_mask(mask: Tensor, source: Source, free: int | None = None) -> None:
    """Raises TypeError or ValueError unless it is resolved words of that source, or compact ones of its free weights.

    These are counted where ``free`` does not say how many; not while a graph is compiled, which cannot count.
    """
    check_tensor("mask", mask)
    if free is None and mask.dim() == 1 and not torch.compiler.is_compiling():
        free = source.free
    compact = mask.dim() == 1 and (free is None or len(mask) == words_for(free))
    resolved = mask.dim() == 2 and mask.shape == (source.rows, source.words)
    if mask.dtype != torch.int32 or not (resolved or compact):
        raise ValueError(
            f"mask: expected int32 [{source.rows}, {source.words}] (resolved) or [ceil(free / 32)] (compact, "
            f"free={free}), got {mask.dtype} {list(mask.shape)}"
        )
    if not mask.is_contiguous():
        raise ValueError("mask: expected contiguous words")


def check_window(window: Window, source: Source) -> None:
    """Raises TypeError or ValueError unless it is a window, and one that a kernel of that source can have."""
    if not isinstance(window, Window):
        raise TypeError(f"window: expected a Window, got {type(window).__name__}")
    kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups = window
    if min(kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups) < 1 or min(padding_h, padding_w) < 0:
        raise ValueError(f"window={window}: expected positive sizes, and padding of at least 0")
    if source.fan % (kernel_h * kernel_w) or source.rows % groups:
        raise ValueError(
            f"window={window}: expected kernel_h * kernel_w to divide fan={source.fan}, and groups rows={source.rows}"
        )


def autocast(x: Tensor) -> Tensor:
    """``x`` as ``F.linear`` would take it under autocast: in the lower precision, unless it is float64."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x
