"""SupermaskEmbedding, in place of ``nn.Embedding``."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..source import DENSE, MAX_FAN, MAX_ROWS, Freeze, Source, integer, positive
from .supermask import SupermaskLayer


class SupermaskEmbedding(SupermaskLayer):
    """``nn.Embedding`` with a random weight and a learned mask; only the rows that are looked up are generated.

    Args:
        num_embeddings, embedding_dim, padding_idx, scale_grad_by_freq, device, dtype: as ``nn.Embedding``'s. The row
            of ``padding_idx`` reads as zeros and has no gradient. ``dtype`` is that of the output, and follows
            ``.to(dtype)``.
        max_norm, sparse: only ``nn.Embedding``'s defaults. A random weight is never renormalized, and the scores'
            gradient is dense.
        norm_type: has no effect, as in ``nn.Embedding`` without ``max_norm``.
        std: standard deviation of a weight before mask and ``scale``. Default 1, ``nn.Embedding``'s.
        freeze, sparsity, weight, scale, seed, layer, compact: as `SupermaskLinear`'s.

    Input int64 or int32 of any shape ``[*]``, output ``[*, embedding_dim]``. Initial scores have the standard
    deviation ``sqrt(2 / embedding_dim)`` for any ``std``: a global threshold ranks them beside the scores of other
    layers, which start on the same scale.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        std: float = 1.0,
        freeze: Freeze = DENSE,
        sparsity: float | None = 0.5,
        weight: str = "signed_constant",
        scale: str | None = None,
        seed: int = 0,
        layer: int = 0,
        compact: bool = False,
    ) -> None:
        num_embeddings = integer("num_embeddings", num_embeddings, 1, MAX_ROWS)
        embedding_dim = integer("embedding_dim", embedding_dim, 1, MAX_FAN)
        source = Source.of(num_embeddings, embedding_dim, seed=seed, layer=layer, weight=weight, freeze=freeze)
        check_defaults(max_norm, sparse)
        padding_idx = padding_row(padding_idx, num_embeddings)
        std = positive("std", std)
        super().__init__(source, 0, freeze, sparsity, scale, std * math.sqrt(embedding_dim), compact, device, dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.scale_grad_by_freq = scale_grad_by_freq

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.whole.rows, self.whole.fan

    @property
    def score_gain(self) -> float:
        """Sqrt(2): scores start on the Kaiming scale, whatever the ``std`` of the weights."""
        return math.sqrt(2)

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix

    @property
    def arguments(self) -> dict[str, Any]:
        return {"padding_idx": self.padding_idx, **self.outer_arguments}

    def _dense_module(self, **placement: Any) -> nn.Module:
        options = {"padding_idx": self.padding_idx, "scale_grad_by_freq": self.scale_grad_by_freq}
        return nn.utils.skip_init(nn.Embedding, self.num_embeddings, self.embedding_dim, **options, **placement)

    def _dense_weight(self, dtype: torch.dtype) -> Tensor:
        """``scale * mask * v``, and 0 for the row of ``padding_idx``."""
        return self._without_padding(super()._dense_weight(dtype))

    def learned_weight(self) -> Tensor:
        return self._without_padding(super().learned_weight())

    def _without_padding(self, weight: Tensor) -> Tensor:
        if self.padding_idx is None:
            return weight
        row = torch.arange(len(weight), device=weight.device) + self.source.first_row
        return weight.masked_fill((row == self.padding_idx).unsqueeze(1), 0)

    def forward(self, input: Tensor) -> Tensor:
        zero = None if self.padding_idx is None else input == self.padding_idx
        if self.source.rows < self.whole.rows:  # a shard: rows of the others read as zeros
            local = input - self.source.first_row
            elsewhere = (local < 0) | (local >= self.source.rows)
            input, zero = local.masked_fill(elsewhere, 0), elsewhere if zero is None else zero | elsewhere
        y = self._forward_by_plan(ops.EmbeddingPlan, input)
        if y is None:
            y = ops.embedding(input, self._scores_to_grade(), *self._operands(), self.scale_grad_by_freq)
        return y if zero is None else y.masked_fill(zero.unsqueeze(-1), 0)

    def _operands(self) -> tuple[Tensor, Tensor, Source, torch.dtype]:
        buffers = self._buffers
        return buffers["mask_words"], buffers["weight_scale"], self.source, self.dtype

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._repr_options()}"


def check_defaults(max_norm: float | None, sparse: bool) -> None:
    """Raises ValueError unless they are ``nn.Embedding``'s defaults."""
    if max_norm is not None:
        raise ValueError(f"max_norm={max_norm}: expected None, since a random weight is never renormalized")
    if sparse:
        raise ValueError("sparse=True: expected False, since the gradient is of scores, not of rows of a weight")


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """``padding_idx`` counted from 0; ValueError unless it is None or a row."""
    return None if padding_idx is None else integer("padding_idx", padding_idx, -rows, rows - 1) % rows
