"""Plans: a layer's forward with its own tensors already checked, for calls without gradients."""

from collections.abc import Callable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ..backends import registry
from ..conv_geometry import Window
from ..source import Source
from .autograd import differentiates
from .checks import check_activations, check_images, check_layer, check_signs, check_window
from .dispatch import is_plain

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_address = Tensor.data_ptr


class Plan:
    """A forward operation of a supermask layer whose mask, scale and bias are checked once.

    Args:
        layer: the tensors and settings that the layer's function takes after the input and the scores.
        operation: its name in `operations`.
        arguments: all arguments of the operation except the first.

    Attributes:
        call: the forward, of an input that `takes` allows; None where the backend prepares none.
    """

    def __init__(self, layer: tuple, operation: str, *arguments: Any) -> None:
        self._operands = layer
        self._tensors = [t for t in layer if isinstance(t, Tensor)]
        self._key = registry.choices, *map(_address, self._tensors)
        self._device = self._tensors[0].device
        self.call: Callable[[Tensor], Tensor] | None = registry.plan(operation, self._device, *arguments)

    def is_of(self, *operands: Any) -> bool:
        """Whether it was made for these, where they are now, and for the backend that would run."""
        key = registry.choices, *map(_address, self._tensors)
        return all(map(is_, operands, self._operands)) and key == self._key

    def takes(self, x: Tensor) -> bool:
        """Whether `call` may run: a dense input that fits, and nothing that differentiates, traces or casts."""
        return (
            self.call is not None
            and is_plain(x)
            and isinstance(x, Tensor)
            and x.device == self._device
            and not differentiates()
            and self._fits(x)
        )

    def _fits(self, x: Tensor) -> bool:
        raise NotImplementedError

    def _is_floating(self, x: Tensor) -> bool:
        return x.dtype in _DTYPES and not torch.is_autocast_enabled(self._device.type)


class LinearPlan(Plan):
    """`Plan` of `linear`."""

    def __init__(
        self,
        mask: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        source: Source,
        signs: Tensor | None = None,
        activations: str | None = None,
    ) -> None:
        check_layer(mask, None, mask, scale, bias, source)
        check_activations(activations)
        layer = mask, scale, bias, source, signs, activations
        if signs is not None:
            check_signs(signs, mask, source)
            int8 = activations is not None
            super().__init__(layer, "linear_forward_stored", mask, signs, scale, bias, source, int8)
        else:
            operation = "linear_forward" if activations is None else "linear_forward_int8"
            super().__init__(layer, operation, mask, scale, bias, source)
        self._source = source

    def _fits(self, x: Tensor) -> bool:
        return self._is_floating(x) and x.dim() > 0 and x.shape[-1] == self._source.fan and x.is_contiguous()


class Conv2dPlan(Plan):
    """`Plan` of `conv2d`, for batches of images."""

    def __init__(
        self,
        mask: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        source: Source,
        window: Window,
        activations: str | None = None,
    ) -> None:
        check_layer(mask, None, mask, scale, bias, source)
        check_activations(activations)
        check_window(window, source)
        operation = "conv2d_forward" if activations is None else "conv2d_forward_int8"
        layer = mask, scale, bias, source, window, activations
        super().__init__(layer, operation, mask, scale, bias, source, window)
        self._source = source
        self._window = window
        self._shape: torch.Size | None = None  # the last that was checked

    def _fits(self, x: Tensor) -> bool:
        if not self._is_floating(x) or x.dim() != 4:
            return False
        if x.shape != self._shape:
            check_images(x, self._source, self._window)
            self._shape = x.shape
        return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


class EmbeddingPlan(Plan):
    """`Plan` of `embedding`, for an int64 index."""

    def __init__(self, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype) -> None:
        check_layer(mask, None, mask, scale, None, source)
        super().__init__((mask, scale, source, dtype), "embedding_forward", mask, scale, source, dtype)

    def _fits(self, x: Tensor) -> bool:
        return x.dtype == torch.int64 and x.is_contiguous()
