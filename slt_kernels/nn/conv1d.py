"""SupermaskConv1d, in place of ``nn.Conv1d``: a Conv2d of height 1."""

from torch import Tensor, nn

from .. import ops
from ..ops.autograd import without_height
from .convolution import SupermaskConvolution


class SupermaskConv1d(SupermaskConvolution):
    """``nn.Conv1d`` with a random weight and a learned mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as ``nn.Conv1d``'s, "same" and "valid" padding and all four padding modes included.
        freeze, sparsity, weight, scale, gain, seed, layer, compact, activations: as `SupermaskLinear`'s. ``fan`` is
            ``in_channels / groups * kernel_size``, in the order ``(k, c)``.

    Input ``[B, in_channels, W]`` or ``[in_channels, W]``, output alike.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    dimensions = 1
    _dense_type = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        self._refresh_mask()
        x = self._padded(input).unsqueeze(-2)
        layer = self.mask_words, self.weight_scale, self.bias, self.source, self.window
        y = ops.conv2d(x, self._scores_to_grade(), *layer, self.activations)
        y = y.contiguous()  # of a transposed input it is channels-last
        return without_height(y)
