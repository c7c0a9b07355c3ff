"""SupermaskEmbeddingBag, in place of ``nn.EmbeddingBag``: a `SupermaskEmbedding` whose rows are reduced by bag."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_tensor
from .composite import CompositeLayer
from .embedding import SupermaskEmbedding
from .generated_weight import GeneratedWeight

_MODES = ("sum", "mean", "max")


class SupermaskEmbeddingBag(CompositeLayer):
    """``nn.EmbeddingBag`` with a random weight and a learned mask; only the rows that are looked up are generated.

    Its supermask layer is ``embedding``, a `SupermaskEmbedding`.

    Args:
        num_embeddings, embedding_dim, scale_grad_by_freq, mode, include_last_offset, padding_idx, device, dtype: as
            ``nn.EmbeddingBag``'s.
        max_norm, sparse: only ``nn.EmbeddingBag``'s defaults, as for `SupermaskEmbedding`.
        norm_type: has no effect, as in ``nn.EmbeddingBag`` without ``max_norm``.
        **options: ``std``, ``freeze``, ``sparsity``, ``weight``, ``scale``, ``seed``, ``layer`` and ``compact``, as
            `SupermaskEmbedding`'s.

    Input int64 or int32, bags ``[B, N]``, or ``[N]`` with ``offsets`` ``[B]``; output ``[B, embedding_dim]``.
    ``per_sample_weights`` have a gradient. A forward holds the ``N`` rows, which PyTorch's kernel for CPUs does not.

    Raises:
        ValueError, TypeError: an argument outside its range; the message names it.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(_MODES)}")
        if mode == "max" and scale_grad_by_freq:
            raise ValueError("scale_grad_by_freq=True: expected False with mode='max', as for nn.EmbeddingBag")
        extras = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        self.embedding = SupermaskEmbedding(num_embeddings, embedding_dim, *extras, device, dtype, **options)
        self.embedding.outer_arguments = {"mode": mode, "include_last_offset": int(include_last_offset)}
        self.mode = mode
        self.include_last_offset = include_last_offset

    @property
    def num_embeddings(self) -> int:
        return self.embedding.num_embeddings

    @property
    def embedding_dim(self) -> int:
        return self.embedding.embedding_dim

    @property
    def padding_idx(self) -> int | None:
        return self.embedding.padding_idx

    @property
    def weight(self) -> GeneratedWeight:
        return self.embedding.weight

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        check_tensor("input", input)
        rows = F.pad(self.embedding(input.reshape(-1)), (0, 0, 0, 1))  # and one that stands for padding
        index = torch.arange(input.numel(), dtype=input.dtype, device=input.device).view(input.shape)
        padding = None
        if self.padding_idx is not None:
            padding = len(rows) - 1
            index = torch.where(input == self.padding_idx, padding, index)
        return F.embedding_bag(
            index,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def to_dense(self) -> nn.Module:
        """``nn.EmbeddingBag`` with a copy of the weight."""
        table = self.embedding.to_dense()
        dense = nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            scale_grad_by_freq=table.scale_grad_by_freq,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            _weight=table.weight.detach(),
        )
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return f"mode={self.mode}, include_last_offset={self.include_last_offset}"
