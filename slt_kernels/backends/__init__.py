"""Backends: the same few functions over tensors, each written for one kind of machine.

A backend is a module (or any object) with these functions, and nothing else that callers use. ``source`` is a
`Source`, ``window`` a `Window`; ``mask`` is int32, resolved ``[rows, words]`` or compact ``[ceil(free / 32)]`` (its
number of dimensions tells which); ``scale`` is one float32 element. Each function allocates and returns its result.

========================  ====================================================================================
``unavailable()``         None, or why this backend cannot run here
``describe()``            what it runs on, in a few words, for ``slt doctor``
``supports(device)``      whether it takes tensors of that ``torch.device``; ValueError where the environment asks for
                          what it does not have
``linear_forward``        ``(x [B, fan], mask, scale, bias | None, source) -> y [B, rows]``
``linear_grad_input``     ``(dy [B, rows], mask, scale, source) -> dx [B, fan]``
``linear_grad_scores``    ``(dy, x, scores [free], scale, source) -> dscores [free]``
``conv2d_forward``        ``(x [B, C, H, W], mask, scale, bias | None, source, window) -> y [B, rows, H', W']``
``conv2d_grad_input``     ``(dy, mask, scale, source, window, size (H, W)) -> dx [B, C, H, W]``
``conv2d_grad_scores``    ``(dy, x, scores, scale, source, window) -> dscores [free]``
``embedding_forward``     ``(index [N], mask, scale, source, dtype) -> y [N, fan]`` of that dtype
``embedding_grad_scores`` ``(dy [N, fan], index, scores, scale, source) -> dscores [free]``
``select``                ``(scores: list, rank) -> threshold``, a scalar of the scores' dtype
``pack``                  ``(scores, threshold, source, compact: bool) -> (mask, kept)``, kept int64
``expand``                ``(compact mask, source) -> resolved mask``
``materialize``           ``(mask, source) -> int8 [rows, fan]``, the masked integer weight
========================  ====================================================================================

What they compute is stated by `reference`, the oracle of all others: their float32 forward and grad_input, and all
of select, pack, expand and materialize, are its very bits. Convolutions return channels-last results for inputs
that are channels-last and not contiguous (`window.channels_last`). Masks may hold garbage past the last weight.

The fastest backend that runs here and takes a tensor's device is used; ``SLT_BACKEND=name`` in the environment, or
`use`, forces one for the whole process. A new backend is a new module: `register` it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from . import cpu, reference, triton

_backends: dict[str, ModuleType] = {}  # in order of preference
_forced: str | None = os.environ.get("SLT_BACKEND") or None


def register(name: str, backend: ModuleType) -> None:
    """Adds a backend, preferred to those already there."""
    global _backends
    _backends = {name: backend, **{k: v for k, v in _backends.items() if k != name}}


def names() -> list[str]:
    """All backends, the preferred ones first, whether or not they run here."""
    return list(_backends)


def why_unavailable(name: str) -> str | None:
    """Why the backend cannot run here; None if it can.

    Raises:
        ValueError: no backend has that name.
    """
    if name not in _backends:
        raise ValueError(f"backend={name!r}: expected one of {', '.join(_backends)}")
    return _backends[name].unavailable()


def available() -> list[str]:
    """The backends that run here, the preferred ones first."""
    return [name for name in _backends if why_unavailable(name) is None]


def describe(name: str) -> str:
    """What the backend runs on here, or why it cannot."""
    reason = why_unavailable(name)
    return _backends[name].describe() if reason is None else f"not available: {reason}"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Forces a backend inside a ``with`` block, for every thread (autograd runs backward passes on its own).

    Raises:
        ValueError: no backend has that name.
        RuntimeError: it cannot run here; the message says why.
    """
    global _forced
    _check(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _check(name: str) -> None:
    reason = why_unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")


def name_for(device: torch.device) -> str:
    """The backend that an operation on tensors of that device runs on.

    Raises:
        ValueError: ``SLT_BACKEND`` names no backend.
        RuntimeError: the forced backend cannot run here, or not on that device.
    """
    if _forced is not None:
        _check(_forced)
        if not _backends[_forced].supports(device):
            raise RuntimeError(f"backend {_forced!r} does not take tensors on {device}")
        return _forced
    return next(n for n, b in _backends.items() if b.unavailable() is None and b.supports(device))


def backend_for(device: torch.device) -> ModuleType:
    """The backend's functions: see `name_for`."""
    return _backends[name_for(device)]


register("reference", reference)
register("triton", triton)
register("cpu", cpu)
