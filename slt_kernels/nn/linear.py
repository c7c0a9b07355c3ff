"""SupermaskLinear, in place of ``nn.Linear``."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..source import DENSE, MAX_FAN, MAX_ROWS, WEIGHTS, Freeze, Source, integer
from .supermask import SupermaskLayer


class SupermaskLinear(SupermaskLayer):
    """``nn.Linear`` with a random weight and a learned mask.

    Args:
        in_features, out_features, bias, device, dtype: as ``nn.Linear``'s. ``dtype`` is that of the bias: inputs of
            float32, float64, bfloat16 and float16 give outputs of their own dtype.
        freeze: the fractions that the seed prunes and locks. Default ``Freeze(0, 0)``, the dense source network.
        sparsity: the fraction of **all** weights, frozen included, that is **dropped**, for a layer used alone;
            ``freeze.prune <= sparsity <= 1 - freeze.lock``. Default 0.5. None keeps every free weight.
        weight: "signed_constant" (default), "uniform" or "normal".
        scale: the factor on ``gain / sqrt(fan)`` (the Kaiming scale): None for 1; "static" for
            ``1/sqrt(1 - sparsity)`` (Ramanujan et al., 2020); "dynamic" for ``1/sqrt(kept/total)`` of the layer as it
            stands, 0 where nothing is kept.
        gain: of the activation that follows. Default sqrt(2), ReLU's.
        seed: of the network, 64 bits. layer: the layer's number in it, 32 bits: two layers need two numbers.
        compact: hold the mask as one bit per *free* weight, and regenerate the frozen pattern in each product (least
            memory). Default False: one bit per weight (fastest).
        activations: None (default), or "int8": each input vector (of a convolution each sample) is rounded to 255
            levels, and integers are summed exactly, as in `ops.linear`. Fastest, for inference; gradients are those of
            the product of the input that was not rounded.

    Input ``[..., in_features]``, output ``[..., out_features]``.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    takes_int8 = True

    def __init__(
        self,
        in_features: int,
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
        activations: str | None = None,
    ) -> None:
        out_features = integer("out_features", out_features, 1, MAX_ROWS)
        in_features = integer("in_features", in_features, 1, MAX_FAN)
        source = Source.of(out_features, in_features, seed=seed, layer=layer, weight=weight, freeze=freeze)
        super().__init__(source, out_features if bias else 0, freeze, sparsity, scale, gain, compact, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.activations = activations

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.whole.rows, self.whole.fan

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix

    def _dense_module(self, **placement: Any) -> nn.Module:
        return nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, self.bias is not None, **placement)

    def forward(self, input: Tensor) -> Tensor:
        y = self._forward_by_plan(ops.LinearPlan, input)
        return ops.linear(input, self._scores_to_grade(), *self._operands()) if y is None else y

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Source, Tensor | None, str | None]:
        buffers = self._buffers
        bias = self._bias() if self.source.fan == self.whole.fan else None  # else it is added to the sum of all shards
        return buffers["mask_words"], buffers["weight_scale"], bias, self.source, self._signs, self._activations

    @torch.no_grad()
    def store_signs(self, store: bool = True) -> None:
        """Holds the sign words of ``signed_constant``, one more bit per weight, for inference on a CPU.

        The product reads them in place of generating them. Outputs keep their bits. The words are part of no
        ``state_dict`` and no ticket. Copies of the layer have them too; ``train()`` drops them.

        Args:
            store: False drops them.

        Raises:
            ValueError: another weight, a layer on the meta device, or one in training.
        """
        if not store:
            self._signs = None
            return
        if self.training:
            raise ValueError("store_signs: expected a layer in evaluation (`eval()`), since training drops them")
        if reason := self.why_no_signs():
            raise ValueError(f"store_signs: {reason}")
        source, device = self.source, self.mask_words.device
        step = max(1, (1 << 20) // source.words)  # rows at a time, to limit memory
        ends = [(n, min(n + step, source.rows)) for n in range(0, source.rows, step)]
        self._signs = torch.cat([source.shard(rows=rows).signs(device) for rows in ends])

    def why_no_signs(self) -> str | None:
        """Why `store_signs` cannot make them; None if it can."""
        if (weight := WEIGHTS[self.source.weight]) != "signed_constant":
            return f"expected weight='signed_constant', the only one with signs, not {weight!r}"
        return "expected a layer that is not on the meta device" if self.mask_words.is_meta else None

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._repr_options()}"
