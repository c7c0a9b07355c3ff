"""SupermaskBilinear, in place of ``nn.Bilinear``: a Linear of the outer products of its inputs."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.checks import check_tensor
from ..source import DENSE, MAX_FAN, MAX_ROWS, Freeze, Source, integer
from .supermask import SupermaskLayer


class SupermaskBilinear(SupermaskLayer):
    """``nn.Bilinear`` with a random weight and a learned mask: ``y_o = x1^T W_o x2 + b_o``.

    Args:
        in1_features, in2_features, out_features, bias, device, dtype: as ``nn.Bilinear``'s.
        freeze, sparsity, weight, scale, gain, seed, layer, compact: as `SupermaskLinear`'s. ``fan`` is
            ``in1_features * in2_features``, in this order. (``nn.Bilinear``'s weight and bias start as for a fan of
            ``in1_features``.)

    Inputs ``[..., in1_features]`` and ``[..., in2_features]``, output ``[..., out_features]``. A forward holds the
    outer products, ``in1_features * in2_features`` numbers per sample, which the backward pass keeps.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
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
        in1_features = integer("in1_features", in1_features, 1, MAX_FAN)
        in2_features = integer("in2_features", in2_features, 1, MAX_FAN)
        out_features = integer("out_features", out_features, 1, MAX_ROWS)
        fan = in1_features * in2_features
        source = Source.of(out_features, fan, seed=seed, layer=layer, weight=weight, freeze=freeze)
        biases = out_features if bias else 0
        super().__init__(source, biases, freeze, sparsity, scale, gain, compact, device, dtype)
        self.in1_features = in1_features
        self.in2_features = in2_features
        self.out_features = out_features

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in1_features, self.in2_features

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.weight_shape)

    def _dense_module(self, **placement: Any) -> nn.Module:
        sizes = (self.in1_features, self.in2_features, self.out_features)
        return nn.utils.skip_init(nn.Bilinear, *sizes, self.bias is not None, **placement)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        check_tensor("input1", input1)
        check_tensor("input2", input2)
        self._refresh_mask()
        expected = (*input1.shape[:-1], self.in1_features), (*input1.shape[:-1], self.in2_features)
        if input1.dim() == 0 or (input1.shape, input2.shape) != expected:
            raise ValueError(
                f"input1.shape={list(input1.shape)}, input2.shape={list(input2.shape)}: expected "
                f"[..., {self.in1_features}] and [..., {self.in2_features}], otherwise equal"
            )
        products = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)
        layer = self.mask_words, self.weight_scale, self.bias, self.source
        return ops.linear(products, self._scores_to_grade(), *layer)

    def extra_repr(self) -> str:
        sizes = f"{self.in1_features}, {self.in2_features}, {self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {self._repr_options()}"
