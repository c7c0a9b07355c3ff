"""SupermaskConv2d, in place of ``nn.Conv2d``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from .. import ops
from ..conv_geometry import Window
from ..source import DENSE, MAX_FAN, MAX_ROWS, Freeze, Source, integer
from .supermask import SupermaskLayer

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SupermaskConv2d(SupermaskLayer):
    """``nn.Conv2d`` with a random weight and a learned mask.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as ``nn.Conv2d``'s, "same" and "valid" padding and all four padding modes included.
        freeze, sparsity, weight, scale, gain, seed, layer, compact: as `SupermaskLinear`'s.

    Input ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``, output alike; channels-last inputs give
    channels-last outputs.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
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
        groups = integer("groups", groups, 1, MAX_ROWS)
        in_channels = integer("in_channels", in_channels, 1, MAX_ROWS)
        out_channels = integer("out_channels", out_channels, 1, MAX_ROWS)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}={channels}: expected a multiple of groups={groups}")
        kernel = _integers("kernel_size", kernel_size, 1)
        stride = _integers("stride", stride, 1)
        dilation = _integers("dilation", dilation, 1)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: expected one of {', '.join(_PADDING_MODES)}")
        sides = _padding_sides(padding, kernel, stride, dilation)

        fan = in_channels // groups * kernel[0] * kernel[1]
        source = Source.of(out_channels, fan, seed=seed, layer=layer, weight=weight, freeze=freeze)
        super().__init__(source, bias, freeze, sparsity, scale, gain, compact, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = stride
        self.padding = padding if isinstance(padding, str) else _integers("padding", padding, 0)
        self.dilation = dilation
        self.groups = groups
        self.padding_mode = padding_mode

        left, right, top, bottom = sides
        in_product = padding_mode == "zeros" and left == right and top == bottom
        self._pad_first = None if in_product or not any(sides) else sides  # what the product's own padding cannot do
        self.window = Window(*kernel, *stride, *((top, left) if in_product else (0, 0)), *dilation, groups)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.out_channels, *self.kernel_size, -1).permute(0, 3, 1, 2).contiguous()

    def forward(self, input: Tensor) -> Tensor:
        if self._pad_first is not None and isinstance(input, Tensor):  # the operation refuses anything else
            if input.dim() not in (3, 4):
                raise ValueError(f"x.shape={list(input.shape)}: expected [B, C, H, W] or [C, H, W]")
            input = F.pad(input, self._pad_first, "constant" if self.padding_mode == "zeros" else self.padding_mode)
        y = self._forward_by_plan(ops.Conv2dPlan, input)
        return ops.conv2d(input, self._scores_to_grade(), *self._operands()) if y is None else y

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Source, Window]:
        buffers = self._buffers
        return buffers["mask_words"], buffers["weight_scale"], self._bias(), self.source, self.window

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"]
        parts += [f"bias={self.bias is not None}, padding_mode={self.padding_mode}, {self._repr_options()}"]
        return ", ".join(parts)


def _integers(name: str, value: int | tuple[int, int], low: int) -> tuple[int, int]:
    """For height and width: two, or one for both."""
    try:
        h, w = (integer(name, v, low, MAX_FAN) for v in _pair(value))
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: expected an integer of at least {low}, or two") from None
    return h, w


def _padding_sides(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Padding left, right, top and bottom: the order of ``F.pad``."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding='same' with stride={stride}: expected stride 1")
        (h, w) = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return w // 2, w - w // 2, h // 2, h - h // 2  # an odd one goes to the right and the bottom, as PyTorch's
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: expected 'same', 'valid', an integer of at least 0, or two")
    h, w = _integers("padding", padding, 0)
    return w, w, h, h
