"""SupermaskConv3d, in place of ``nn.Conv3d``: a Conv2d with the depth of its kernel folded into the channels."""

from torch import Tensor, nn

from .. import ops
from .convolution import SupermaskConvolution
from .depth import Depth


class SupermaskConv3d(SupermaskConvolution):
    """``nn.Conv3d`` with a random weight and a learned mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as ``nn.Conv3d``'s, "same" and "valid" padding and all four padding modes included.
        freeze, sparsity, weight, scale, gain, seed, layer, compact, activations: as `SupermaskLinear`'s. ``fan`` is
            ``in_channels / groups * kD * kH * kW``, in the order ``(kh, kw, kd, c)``.

    Input ``[B, in_channels, D, H, W]`` or ``[in_channels, D, H, W]``, output alike. A forward holds ``kD`` copies of
    the input (`depth`), which the backward pass keeps.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    dimensions = 3
    _dense_type = nn.Conv3d

    def forward(self, input: Tensor) -> Tensor:
        self._refresh_mask()
        x = self._padded(input)
        volumes = x.unsqueeze(0) if x.dim() == 4 else x
        depth = Depth(self.kernel_size[0], self.stride[0], self.dilation[0], self.groups)
        outputs = depth.outputs(volumes.shape[2])
        if outputs < 1:
            raise ValueError(
                f"x.shape={list(input.shape)}: its depth, with padding={self.padding}, is smaller than "
                f"kernel_size={self.kernel_size} with dilation={self.dilation}"
            )
        scores = self._scores_to_grade()
        layer = self.mask_words, self.weight_scale, self.bias, self.source, self.window
        y = ops.conv2d(depth.fold(volumes), scores, *layer, self.activations)
        y = y.unflatten(0, (volumes.shape[0], outputs)).transpose(1, 2).contiguous()
        return y.squeeze(0) if x.dim() == 4 else y
