"""SupermaskConv2d, in place of ``nn.Conv2d``."""

from torch import Tensor, nn

from .. import ops
from ..conv_geometry import Window
from ..source import Source
from .convolution import SupermaskConvolution


class SupermaskConv2d(SupermaskConvolution):
    """``nn.Conv2d`` with a random weight and a learned mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as ``nn.Conv2d``'s, "same" and "valid" padding and all four padding modes included.
        freeze, sparsity, weight, scale, gain, seed, layer, compact, activations: as `SupermaskLinear`'s.

    Input ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``, output alike; channels-last inputs give
    channels-last outputs.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    dimensions = 2
    _dense_type = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        if self._pad_first is not None:  # else the operation checks the input
            input = self._padded(input)
        y = self._forward_by_plan(ops.Conv2dPlan, input)
        return ops.conv2d(input, self._scores_to_grade(), *self._operands()) if y is None else y

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Source, Window, str | None]:
        buffers = self._buffers
        layer = buffers["mask_words"], buffers["weight_scale"], self._bias(), self.source, self.window
        return *layer, self._activations
