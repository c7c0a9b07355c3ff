"""What the autograd functions of the operations share."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _NoSecondDerivative(torch.autograd.Function):
    """Identity on ``grads``; raises if they are differentiated again by ``tensors``."""

    @staticmethod
    def forward(ctx, grads, *tensors):
        return tuple(None if g is None else g.detach() for g in grads)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("a supermask layer has no second derivative")


def once_differentiable(backward: Callable) -> Callable:
    """Wraps ``backward(ctx, dy, *saved_tensors)`` so that its gradients raise if they are differentiated again.

    PyTorch's own decorator returns gradients whose graph does not reach the inputs.
    ``torch.autograd.functional.hessian`` takes unreachable inputs for zeros, so a second derivative would be zero
    without an error.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint unpacks them once only
        if not torch.compiler.is_compiling() and any(map(_is_freed, saved)):
            raise RuntimeError(
                "scores: their memory was freed before the backward; expected FSDP to gather them, which it does not "
                "do for a module whose output is a view that was changed in place: use an operation that is not in "
                "place"
            )
        with torch.no_grad():
            grads = backward(ctx, dy, *saved)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # grad is enabled with create_graph=True only
            return grads
        return _NoSecondDerivative.apply(grads, dy, *(t for t in saved if t is not None))

    return wrapper


def _is_freed(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def differentiates() -> bool:
    """Whether gradients may be asked for, in backward mode or in forward mode (which the operations refuse)."""
    return torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0


def reshaped(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``y.view(shape)`` that is no view to autograd, as outputs of PyTorch's layers are none.

    A change in place would otherwise drop the hook by which FSDP2 gathers the scores again for the backward.
    """
    return torch.ops.aten._unsafe_view(y, shape)


def without_height(y: Tensor) -> Tensor:
    """Images [..., 1, W] as [..., W], `reshaped`."""
    if torch.jit.is_tracing():  # which would keep a shape, the batch included
        return y.squeeze(-2)
    return reshaped(y, (*y.shape[:-2], y.shape[-1]))


def autocast(x: Tensor) -> Tensor:
    """``x`` as ``F.linear`` would take it under autocast: in the lower precision, unless it is float64."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x
