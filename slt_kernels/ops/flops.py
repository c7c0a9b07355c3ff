"""FLOP counts of the operations, for ``torch.utils.flop_counter.FlopCounterMode``.

They are the dense layer's: a multiplication and an addition per weight and vector, of dropped weights too, in the
forward pass and in each of the two gradients. Generating weights does not count, nor does a bias, as in PyTorch. (For
the gradient of a grouped convolution's weight PyTorch counts all channels; here those of the group count.)
"""

import math
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def _product(vectors: int, source: Any) -> int:
    rows, fan = source[:2]
    return 2 * vectors * rows * fan


def _linear_forward(x: Any, mask: Any, scale: Any, bias: Any, source: Any, **_: Any) -> int:
    return _product(x[0], source)


def _linear_forward_stored(
    x: Any, mask: Any, signs: Any, scale: Any, bias: Any, source: Any, *_: Any, **__: Any
) -> int:
    return _product(x[0], source)


def _linear_grad_input(dy: Any, mask: Any, scale: Any, source: Any, **_: Any) -> int:
    return _product(dy[0], source)


def _linear_grad_scores(dy: Any, x: Any, scores: Any, scale: Any, source: Any, **_: Any) -> int:
    return _product(dy[0], source)


def _positions(images: Any) -> int:
    """Of images ``[batch, channels, H, W]``."""
    return images[0] * math.prod(images[2:])


def _conv2d_forward(x: Any, mask: Any, scale: Any, bias: Any, source: Any, window: Any, *, out_shape: Any) -> int:
    return _product(_positions(out_shape), source)


def _conv2d_grad_input(dy: Any, mask: Any, scale: Any, source: Any, window: Any, size: Any, **_: Any) -> int:
    return _product(_positions(dy), source)


def _conv2d_grad_scores(dy: Any, x: Any, scores: Any, scale: Any, source: Any, window: Any, **_: Any) -> int:
    return _product(_positions(dy), source)


_FORMULAS = {
    "linear_forward": _linear_forward,
    "linear_forward_int8": _linear_forward,
    "linear_forward_stored": _linear_forward_stored,
    "linear_grad_input": _linear_grad_input,
    "linear_grad_scores": _linear_grad_scores,
    "conv2d_forward": _conv2d_forward,
    "conv2d_forward_int8": _conv2d_forward,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_scores": _conv2d_grad_scores,
}
"""Of all products. Embeddings and masks have none."""


def register() -> None:
    """Registers the counts, also with counters that run now, where anything counts FLOPs.

    It is called when a mode intercepts an operation, because PyTorch's counter imports Triton, and takes a copy of the
    registered counts when it is made.
    """
    counting = sys.modules.get("torch.utils.flop_counter")
    if counting is None:
        return
    modes = _get_current_dispatch_mode_stack()
    registries = [getattr(getattr(mode, "counter", mode), "flop_registry", None) for mode in modes]
    for name, formula in _FORMULAS.items():
        operation = getattr(torch.ops.slt_kernels, name)
        if operation not in counting.flop_registry:
            counting.register_flop_formula(operation)(formula)
        for registry in registries:
            if registry is not None:
                registry.setdefault(operation, counting.flop_registry[operation])
