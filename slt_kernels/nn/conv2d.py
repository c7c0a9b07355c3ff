"""SupermaskConv2d, in place of ``nn.Conv2d``."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..conv_geometry import Window, as_channels_last, channels_last
from ..source import Source
from .convolution import SupermaskConvolution


class SupermaskConv2d(SupermaskConvolution):
    """``nn.Conv2d`` with a random weight and a learned mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as ``nn.Conv2d``'s, "same" and "valid" padding and all four padding modes included.
        freeze, sparsity, weight, scale, gain, seed, layer, compact, activations: as `SupermaskLinear`'s.

    Input ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``, output alike. As ``nn.Conv2d``'s, outputs of batches
    are channels-last if the input is, or the weight (`channels_last`).

    Attributes:
        channels_last: the memory format of the weight, as ``.to(memory_format=torch.channels_last)`` leaves it.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    dimensions = 2
    _dense_type = nn.Conv2d
    channels_last = False

    def _in_form(self) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        form = {"dtype": self.dtype, "device": self.mask_words.device, "memory_format": memory_format}
        return torch.empty((1, 2, 2, 2), **form)

    def _take_form(self, weight: Tensor) -> None:
        super()._take_form(weight)
        self.channels_last = channels_last(weight)

    def _dense_module(self, **placement: Any) -> nn.Module:
        dense = super()._dense_module(**placement)
        return dense.to(memory_format=torch.channels_last) if self.channels_last else dense

    def forward(self, input: Tensor) -> Tensor:
        if self._pad_first is not None:  # else the operation checks the input
            input = self._padded(input)
        if self.channels_last and isinstance(input, Tensor) and input.dim() == 4:
            input = as_channels_last(input)
        y = self._forward_by_plan(ops.Conv2dPlan, input)
        return ops.conv2d(input, self._scores_to_grade(), *self._operands()) if y is None else y

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Source, Window, str | None]:
        buffers = self._buffers
        layer = buffers["mask_words"], buffers["weight_scale"], self._bias(), self.source, self.window
        return *layer, self._activations
