"""SupermaskConvTranspose1d, 2d and 3d, in place of ``nn.ConvTranspose1d``, ``2d`` and ``3d``."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.autograd import without_height
from ..source import DENSE, Freeze, Source
from .convolution import WithGeometry, as_kernel, check_channels, check_spatial_input, one_per_dimension, window_of
from .depth import Depth


class SupermaskConvTranspose(WithGeometry):
    """Base of the transposed convolutions of one, two and three dimensions.

    A transposed convolution is the gradient of a convolution by its input, and it has that convolution's source: a row
    is an **input** channel of this layer, and ``fan = out_channels / groups * prod(kernel_size)``. The weight's shape
    is PyTorch's, ``[in_channels, out_channels / groups, *kernel_size]``, and ``fan`` is also what PyTorch's
    initialization counts as fan_in. So ``gain / sqrt(fan)`` does not keep the variance of the activations:
    an output is a sum of ``in_channels / groups`` times the places of the kernel that meet there.

    The gradient of the scores is that convolution's, with this layer's input in the place of the output's gradient
    (`ops.conv_transpose2d`). The bias has ``out_channels`` elements, so it is no bias of the rows.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, device, dtype:
            as PyTorch's. A size is an integer, or one per dimension.
        padding_mode: only "zeros", as for PyTorch's.
        freeze, sparsity, weight, scale, gain, seed, layer, compact: as `SupermaskLinear`'s.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    dimensions: ClassVar[int]
    changeable = ("stride", "padding", "output_padding", "dilation", "padding_mode")
    _dense_type: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        freeze: Freeze = DENSE,
        sparsity: float | None = 0.5,
        weight: str = "signed_constant",
        scale: str | None = None,
        gain: float = math.sqrt(2),
        seed: int = 0,
        layer: int = 0,
        compact: bool = False,
    ) -> None:
        in_channels, out_channels, groups = check_channels(in_channels, out_channels, groups)
        kernel = one_per_dimension("kernel_size", kernel_size, 1, self.dimensions)
        geometry = self._geometry(kernel, groups, stride, padding, output_padding, dilation, padding_mode)
        fan = out_channels // groups * math.prod(kernel)
        source = Source.of(in_channels, fan, seed=seed, layer=layer, weight=weight, freeze=freeze)
        outputs = out_channels if bias else 0
        super().__init__(source, outputs, freeze, sparsity, scale, gain, compact, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.groups = groups
        self.__dict__.update(geometry)

    def _geometry(
        self,
        kernel: tuple[int, ...],
        groups: int,
        stride: int | tuple[int, ...],
        padding: int | tuple[int, ...],
        output_padding: int | tuple[int, ...],
        dilation: int | tuple[int, ...],
        padding_mode: str,
    ) -> dict[str, Any]:
        stride = one_per_dimension("stride", stride, 1, self.dimensions)
        padding = one_per_dimension("padding", padding, 0, self.dimensions)
        output_padding = one_per_dimension("output_padding", output_padding, 0, self.dimensions)
        dilation = one_per_dimension("dilation", dilation, 1, self.dimensions)
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode={padding_mode!r}: expected 'zeros', as PyTorch's transposed convolutions")
        if any(extra >= max(s, d) for extra, s, d in zip(output_padding, stride, dilation, strict=True)):
            raise ValueError(
                f"output_padding={output_padding}: expected less than stride={stride} or dilation={dilation}"
            )
        return {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
            "padding_mode": padding_mode,
            "window": window_of(kernel, stride, padding, dilation, groups),
        }

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.in_channels, self.out_channels // self.groups, *self.kernel_size

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return as_kernel(matrix, self.kernel_size)

    @property
    def arguments(self) -> dict[str, Any]:
        """The geometry."""
        sizes = {name: list(getattr(self, name)) for name in ("stride", "padding", "output_padding", "dilation")}
        return {**sizes, "groups": self.groups, **self.outer_arguments}

    def _dense_module(self, **placement: Any) -> nn.Module:
        geometry = (self.kernel_size, self.stride, self.padding, self.output_padding, self.groups)
        bias = self.bias is not None
        channels = (self.in_channels, self.out_channels)
        return nn.utils.skip_init(self._dense_type, *channels, *geometry, bias, self.dilation, **placement)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output, of ``output_size`` where it is given.

        Args:
            input: ``[B, in_channels, *sizes]`` or ``[in_channels, *sizes]``.
            output_size: sizes of the output, with or without batch and channels, in place of ``output_padding``. With a
                stride, several sizes have this input.

        Raises:
            TypeError, ValueError: an input of another shape, or an ``output_size`` that it cannot give.
        """
        self._refresh_mask()
        check_spatial_input(input, self.in_channels, self.dimensions)
        extra = self._output_padding(input, output_size)
        # At or above the stride an output padding reaches places that a longer input, of zeros, would have.
        longer = [e // s for e, s in zip(extra, self.stride, strict=True)]
        if any(longer):
            input = F.pad(input, tuple(n for size in reversed(longer) for n in (0, size)))
        y = self._product(input, tuple(e % s for e, s in zip(extra, self.stride, strict=True)))
        if self.bias is None:
            return y
        return (y + self.bias.view(-1, *[1] * self.dimensions)).to(y.dtype)

    def _product(self, x: Tensor, extra: tuple[int, ...]) -> Tensor:
        """The output without bias, for an output padding below the stride."""
        layer = self._scores_to_grade(), self.mask_words, self.weight_scale, self.source, self.window
        if self.dimensions == 1:
            y = ops.conv_transpose2d(x.unsqueeze(-2), *layer, (0, *extra))
            y = y.contiguous()  # of a transposed input it is channels-last
            return without_height(y)
        if self.dimensions == 2:
            return ops.conv_transpose2d(x, *layer, extra)
        volumes = x.unsqueeze(0) if x.dim() == 4 else x
        depth = Depth(self.kernel_size[0], self.stride[0], self.dilation[0], self.groups)
        inputs = volumes.shape[2]
        size = self.stride[0] * (inputs - 1) + self.dilation[0] * (self.kernel_size[0] - 1) + 1
        size += extra[0] - 2 * self.padding[0]
        if inputs < 1 or size < 1:
            raise ValueError(f"x.shape={list(x.shape)}: with padding={self.padding} the output has a depth of {size}")
        slices = ops.conv_transpose2d(volumes.transpose(1, 2).flatten(0, 1), *layer, extra[1:])
        y = depth.unfold(slices, volumes.shape[0], inputs, self.padding[0], size)
        return y.squeeze(0) if x.dim() == 4 else y

    def _output_padding(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[int, ...]:
        if output_size is None:
            return self.output_padding
        sizes, wanted = x.shape[-self.dimensions :], tuple(output_size)[-self.dimensions :]
        geometry = zip(sizes, self.stride, self.padding, self.dilation, self.kernel_size, strict=True)
        least = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, s, p, d, k in geometry]
        extra = tuple(w - n for w, n in zip(wanted, least, strict=False))
        fits = all(0 <= e < s for e, s in zip(extra, self.stride, strict=False))
        if len(output_size) not in {self.dimensions, x.dim()} or not fits:
            ranges = ", ".join(f"{n} to {n + s - 1}" for n, s in zip(least, self.stride, strict=True))
            raise ValueError(f"output_size={list(output_size)}: expected sizes in {ranges}")
        return extra

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}, output_padding={self.output_padding}, dilation={self.dilation}"]
        parts += [f"groups={self.groups}, bias={self.bias is not None}, {self._repr_options()}"]
        return ", ".join(parts)


class SupermaskConvTranspose1d(SupermaskConvTranspose):
    """``nn.ConvTranspose1d`` with a random weight and a learned mask: see `SupermaskConvTranspose`.

    Input ``[B, in_channels, W]`` or ``[in_channels, W]``, output alike. The order of ``fan`` is ``(k, c)``.
    """

    dimensions = 1
    _dense_type = nn.ConvTranspose1d


class SupermaskConvTranspose2d(SupermaskConvTranspose):
    """``nn.ConvTranspose2d`` with a random weight and a learned mask: see `SupermaskConvTranspose`.

    Input ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``, output alike. The order of ``fan`` is ``(kh, kw, c)``.
    """

    dimensions = 2
    _dense_type = nn.ConvTranspose2d


class SupermaskConvTranspose3d(SupermaskConvTranspose):
    """``nn.ConvTranspose3d`` with a random weight and a learned mask: see `SupermaskConvTranspose`.

    Input ``[B, in_channels, D, H, W]`` or ``[in_channels, D, H, W]``, output alike. The order of ``fan`` is
    ``(kh, kw, kd, c)``. A forward holds ``kD`` products, which are added along the depth (`depth`).
    """

    dimensions = 3
    _dense_type = nn.ConvTranspose3d
