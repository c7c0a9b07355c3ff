"""The depth of a three-dimensional convolution, folded into batch and channels of a Conv2d, and its adjoint.

An output at depth ``d`` is a Conv2d of the ``kernel`` slices that it covers, stacked as channels: the channel of the
Conv2d is ``(group, kd, c)``. This takes ``kernel`` times the memory of the input, and no weight is materialized.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Depth(NamedTuple):
    """One dimension of a convolution: its kernel size, stride and dilation; and the convolution's groups."""

    kernel: int
    stride: int
    dilation: int
    groups: int

    def outputs(self, depth: int) -> int:
        """Number of outputs for inputs of that depth, padding included; less than 1 if the kernel does not fit."""
        return (depth - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def _slices(self, outputs: int) -> list[slice]:
        """For each place of the kernel, the inputs that meet it."""
        reach = self.stride * (outputs - 1) + 1
        return [slice(at, at + reach, self.stride) for at in range(0, self.dilation * self.kernel, self.dilation)]

    def fold(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` to ``[B * outputs, kernel * C, H, W]``."""
        by_depth = x.transpose(1, 2).unflatten(2, (self.groups, -1))  # [B, D, groups, c, H, W]
        slices = [by_depth[:, part] for part in self._slices(self.outputs(x.shape[2]))]
        return torch.stack(slices, 3).flatten(0, 1).flatten(1, 3)

    def unfold(self, x: Tensor, batch: int, outputs: int, before: int, depth: int) -> Tensor:
        """The adjoint of `fold`: ``[batch * outputs, kernel * C, H, W]`` to ``[batch, C, depth, H, W]``.

        Args:
            x: a slice for each output and place of the kernel; those that meet are added, in float32 at least.
            batch, outputs: how many of each.
            before: first depth that is returned; those before it are padding.
            depth: number of depths that are returned.
        """
        x = x.unflatten(0, (batch, outputs)).unflatten(2, (self.groups, self.kernel, -1))
        covered = self.stride * (outputs - 1) + self.dilation * (self.kernel - 1) + 1
        shape = (batch, max(covered, before + depth), self.groups, *x.shape[4:])
        sums = x.new_zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32))
        for k, part in enumerate(self._slices(outputs)):
            sums[:, part] += x[:, :, :, k]
        return sums[:, before : before + depth].flatten(2, 3).transpose(1, 2).to(x.dtype).contiguous()
