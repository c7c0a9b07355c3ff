"""What `SupermaskConv1d`, `SupermaskConv2d` and `SupermaskConv3d` share: ``nn.ConvNd``'s arguments."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conv_geometry import Window
from ..ops.checks import check_tensor
from ..source import DENSE, MAX_FAN, MAX_ROWS, Freeze, Source, integer
from .supermask import SupermaskLayer

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_AXES = ("D", "H", "W")  # names of the spatial dimensions, in messages
_SEVERAL = {1: "one in a tuple", 2: "two", 3: "three"}  # one per dimension, in messages


class WithGeometry(SupermaskLayer):
    """A layer whose geometry may change after it is made, except what its weights depend on."""

    changeable: ClassVar[tuple[str, ...]]  # arguments of `_geometry`, besides the kernel and the groups

    def _geometry(self, kernel: tuple[int, ...], groups: int, **changeable: Any) -> dict[str, Any]:
        """The attributes that follow from those arguments.

        Raises:
            ValueError: one is outside its range.
        """
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.changeable and "window" in self.__dict__:
            arguments = {n: getattr(self, n) for n in self.changeable} | {name: value}
            self.__dict__.update(self._geometry(self.kernel_size, self.groups, **arguments))
        else:
            super().__setattr__(name, value)


class SupermaskConvolution(WithGeometry):
    """Base of the convolutions of one, two and three dimensions, which all run as Conv2d.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as PyTorch's, "same" and "valid" padding and all four padding modes included. A size is an integer, or one
            per dimension.
        freeze, sparsity, weight, scale, gain, seed, layer, compact, activations: as `SupermaskLinear`'s.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    takes_int8 = True
    dimensions: ClassVar[int]
    changeable = ("stride", "padding", "dilation", "padding_mode")
    _dense_type: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
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
        activations: str | None = None,
    ) -> None:
        in_channels, out_channels, groups = check_channels(in_channels, out_channels, groups)
        kernel = one_per_dimension("kernel_size", kernel_size, 1, self.dimensions)
        geometry = self._geometry(kernel, groups, stride, padding, dilation, padding_mode)
        fan = in_channels // groups * math.prod(kernel)
        source = Source.of(out_channels, fan, seed=seed, layer=layer, weight=weight, freeze=freeze)
        super().__init__(source, out_channels if bias else 0, freeze, sparsity, scale, gain, compact, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.groups = groups
        self.__dict__.update(geometry)
        self.activations = activations

    def _geometry(
        self,
        kernel: tuple[int, ...],
        groups: int,
        stride: int | tuple[int, ...],
        padding: int | tuple[int, ...] | str,
        dilation: int | tuple[int, ...],
        padding_mode: str,
    ) -> dict[str, Any]:
        stride = one_per_dimension("stride", stride, 1, self.dimensions)
        dilation = one_per_dimension("dilation", dilation, 1, self.dimensions)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: expected one of {', '.join(_PADDING_MODES)}")
        sides = _padding_sides(padding, kernel, stride, dilation)
        product = [(0, 0)] * self.dimensions  # what the product itself pads: height and width with zeros, symmetrically
        if padding_mode == "zeros" and all(before == after for before, after in sides):
            product[-2:] = sides[-2:]
        first = [(a - c, b - d) for (a, b), (c, d) in zip(sides, product, strict=True)]
        flat = tuple(side for pair in reversed(first) for side in pair)  # the order of F.pad: the last dimension first
        if not isinstance(padding, str):
            padding = one_per_dimension("padding", padding, 0, self.dimensions)
        return {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "padding_mode": padding_mode,
            "window": window_of(kernel, stride, [before for before, _ in product], dilation, groups),
            "_pad_first": flat if any(flat) else None,
        }

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return as_kernel(matrix, self.kernel_size)

    @property
    def arguments(self) -> dict[str, Any]:
        """The geometry."""
        padding: str | list[int] = self.padding if isinstance(self.padding, str) else list(self.padding)
        around = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if padding == "valid":
            padding = [0] * self.dimensions
        elif padding == "same" and not any(n % 2 for n in around):  # as numbers, because "same" may equal 1
            padding = [n // 2 for n in around]
        return {
            "stride": list(self.stride),
            "padding": padding,
            "dilation": list(self.dilation),
            "groups": self.groups,
            "padding_mode": self.padding_mode,
            **self.outer_arguments,
        }

    def _dense_module(self, **placement: Any) -> nn.Module:
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return nn.utils.skip_init(
            self._dense_type,
            self.in_channels,
            self.out_channels,
            *geometry,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            **placement,
        )

    def _padded(self, input: Tensor) -> Tensor:
        """The checked input, with the padding that the product cannot do."""
        check_spatial_input(input, self.in_channels, self.dimensions)
        if self._pad_first is None:
            return input
        return F.pad(input, self._pad_first, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"]
        parts += [f"bias={self.bias is not None}, padding_mode={self.padding_mode}, {self._repr_options()}"]
        return ", ".join(parts)


def check_channels(in_channels: int, out_channels: int, groups: int) -> tuple[int, int, int]:
    """The three as integers; ValueError unless ``groups`` divides both numbers of channels."""
    groups = integer("groups", groups, 1, MAX_ROWS)
    in_channels = integer("in_channels", in_channels, 1, MAX_ROWS)
    out_channels = integer("out_channels", out_channels, 1, MAX_ROWS)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(f"{name}={channels}: expected a multiple of groups={groups}")
    return in_channels, out_channels, groups


def one_per_dimension(name: str, value: int | tuple[int, ...], low: int, dimensions: int) -> tuple[int, ...]:
    """An integer for each dimension from one integer, or from one per dimension.

    Raises:
        ValueError: another number of them, or one below ``low``.
    """
    try:
        values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,) * dimensions
        if len(values) != dimensions:
            raise ValueError
        return tuple(integer(name, v, low, MAX_FAN) for v in values)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r}: expected an integer of at least {low}, or {_SEVERAL[dimensions]}"
        ) from None


def check_spatial_input(x: Tensor, channels: int, dimensions: int) -> None:
    """Raises TypeError or ValueError unless it is ``[B, channels, ...]`` or ``[channels, ...]``."""
    check_tensor("x", x)
    if x.dim() not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        axes = ", ".join(_AXES[-dimensions:])
        raise ValueError(f"x.shape={list(x.shape)}: expected [B, {channels}, {axes}] or [{channels}, {axes}]")


def window_of(kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Window:
    """The window over height and width of sizes given per dimension; a missing height is 1, padding 0."""

    def last_two(values: Any, missing: int) -> tuple[int, int]:
        return (missing, values[0]) if len(values) == 1 else tuple(values[-2:])

    return Window(*last_two(kernel, 1), *last_two(stride, 1), *last_two(padding, 0), *last_two(dilation, 1), groups)


def as_kernel(matrix: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """``[rows, fan]`` to ``[rows, channels, *kernel]``.

    The order of ``fan`` is ``(kh, kw, c)``, with a depth ``(kh, kw, kd, c)``: the channel is the fastest, and a depth
    is folded into it.
    """
    if len(kernel) < 3:
        return matrix.view(len(matrix), *kernel, -1).movedim(-1, 1).contiguous()
    depth, height, width = kernel
    return matrix.view(len(matrix), height, width, depth, -1).permute(0, 4, 3, 1, 2).contiguous()


def _padding_sides(padding: Any, kernel: Any, stride: Any, dilation: Any) -> list[tuple[int, int]]:
    """Padding before and after, for each dimension."""
    dimensions = len(kernel)
    if padding == "valid":
        return [(0, 0)] * dimensions
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding='same' with stride={stride}: expected stride 1")
        around = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(n // 2, n - n // 2) for n in around]  # an odd one goes after, as PyTorch's
    if isinstance(padding, str):
        raise ValueError(
            f"padding={padding!r}: expected 'same', 'valid', an integer of at least 0, or {_SEVERAL[dimensions]}"
        )
    return [(n, n) for n in one_per_dimension("padding", padding, 0, dimensions)]
