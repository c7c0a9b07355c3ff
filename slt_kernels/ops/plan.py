"""Plans: a layer's forward with its own tensors already checked, for calls without gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends import registry
from ..source import Source
from .autograd import differentiates
from .checks import check_layer
from .dispatch import is_plain

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LinearPlan:
    """A supermask Linear whose mask, scale and bias are checked once.

    Args:
        mask, scale, bias, source: as for `linear`.

    Attributes:
        call: the forward, of an input that `takes` allows; None where the backend prepares none.
    """

    def __init__(self, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
        check_layer(mask, None, mask, scale, bias, source)
        self._made_for = mask, scale, bias, source
        self._key = self._key_now()
        self._device = mask.device
        self.call: Callable[[Tensor], Tensor] | None = registry.plan(
            "linear_forward", mask.device, mask, scale, bias, source
        )

    def _key_now(self) -> tuple[int, ...]:
        mask, scale, bias, _ = self._made_for
        return registry.choices, mask.data_ptr(), scale.data_ptr(), 0 if bias is None else bias.data_ptr()

    def is_of(self, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> bool:
        """Whether it was made for these, where they are now, and for the backend that would run."""
        made_for = self._made_for
        return (
            mask is made_for[0]
            and scale is made_for[1]
            and bias is made_for[2]
            and source is made_for[3]
            and self._key == self._key_now()
        )

    def takes(self, x: Tensor) -> bool:
        """Whether `call` may run: a contiguous input that fits, and nothing that differentiates, traces or casts."""
        return (
            self.call is not None
            and is_plain(x)
            and x.dtype in _DTYPES
            and x.device == self._device
            and x.dim() > 0
            and x.shape[-1] == self._made_for[3].fan
            and x.is_contiguous()
            and not differentiates()
            and not torch.is_autocast_enabled(self._device.type)
        )
