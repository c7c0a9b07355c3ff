"""Modules without a weight of their own: they use that of a supermask layer elsewhere in the model."""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import ops
from ..source import Source, positive
from .composite import CompositeLayer
from .embedding import SupermaskEmbedding, padding_row
from .generated_weight import GeneratedWeight
from .linear import SupermaskLinear

Owner: TypeAlias = SupermaskEmbedding | SupermaskLinear


class _Tied(CompositeLayer):
    """Base: uses the weight of its owner, and is no second place of the owner's parameters."""

    factor = 1.0  # this module's weight over the owner's

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        if not isinstance(owner, Owner):
            raise TypeError(f"owner: expected a SupermaskEmbedding or a SupermaskLinear, got {type(owner).__name__}")
        self._owner = (owner,)  # in a tuple, so that it is no submodule: a state_dict has its tensors once

    def _record(self, name: str, value: int | str | None) -> None:
        """Adds to the owner's arguments, which a ticket holds, what this module's outputs depend on."""
        others = self.owner.outer_arguments
        recorded = others.get(name, [])
        if value not in recorded:  # the same module may be made again
            self.owner.outer_arguments = {**others, name: [*recorded, value]}

    @property
    def owner(self) -> Owner:
        """The layer that has the scores and the mask."""
        return self._owner[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.owner.weight_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.owner.dtype

    @property
    def mask_words(self) -> Tensor:
        return self.owner.mask_words

    @property
    def weight(self) -> GeneratedWeight:
        """The weight, read-only, for code that asks for it: see `GeneratedWeight`."""
        return GeneratedWeight(self)

    def dense_weight(self) -> Tensor:
        """Float32, the weight's shape: the owner's weight times `factor`."""
        return self._dense_weight(torch.float32)

    def _dense_weight(self, dtype: torch.dtype) -> Tensor:
        _, mask, scale, source = self._layer()
        return ops.materialize(mask, source) * scale.to(dtype)

    def learned_weight(self) -> Tensor:
        """As `dense_weight`, with a gradient for the owner's scores."""
        return ops.dense_weight(*self._layer())

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """PyTorch's own layer with a copy of this weight, which is no longer shared."""
        dense = self._dense_module(device=self.mask_words.device, dtype=self.dtype)
        dense.weight.copy_(self._dense_weight(torch.promote_types(self.dtype, torch.float32)))
        return dense.train(self.training)

    def _dense_module(self, **placement: Any) -> nn.Module:
        """PyTorch's own layer, with its weight uninitialized."""
        raise NotImplementedError

    def _layer(self) -> tuple[Tensor | None, Tensor, Tensor, Source]:
        """Scores, mask, scale and source as the operations take them."""
        owner = self.owner
        if owner.group is not None:
            raise RuntimeError(f"{type(self).__name__}: its owner is sharded over processes; expected a whole layer")
        owner._refresh_mask()
        scale = owner.weight_scale if self.factor == 1 else owner.weight_scale * self.factor
        return owner._scores_to_grade(), owner.mask_words, scale, owner.source


class TiedEmbedding(_Tied):
    """``nn.Embedding`` with the random weight and the mask of another layer.

    Args:
        owner: a `SupermaskEmbedding` or a `SupermaskLinear`; a row of its weight is one embedding.
        padding_idx: the row that reads as zeros and has no gradient; None (default) for no such row.
        scale_grad_by_freq: as ``nn.Embedding``'s, for the look-ups of this module. Default False.

    Raises:
        TypeError, ValueError: an owner of another type; a ``padding_idx`` that is no row of its weight.
    """

    def __init__(self, owner: Owner, padding_idx: int | None = None, scale_grad_by_freq: bool = False) -> None:
        super().__init__(owner)
        self.num_embeddings, self.embedding_dim = owner.weight_shape
        self.padding_idx = padding_row(padding_idx, self.num_embeddings)
        self.scale_grad_by_freq = scale_grad_by_freq
        self._record("tied_padding_idx", self.padding_idx)

    def _dense_weight(self, dtype: torch.dtype) -> Tensor:
        return self._without_padding(super()._dense_weight(dtype), self._all_rows())

    def learned_weight(self) -> Tensor:
        return self._without_padding(super().learned_weight(), self._all_rows())

    def _all_rows(self) -> Tensor:
        return torch.arange(self.num_embeddings, device=self.mask_words.device)

    def _dense_module(self, **placement: Any) -> nn.Module:
        options = {"padding_idx": self.padding_idx, "scale_grad_by_freq": self.scale_grad_by_freq}
        return nn.utils.skip_init(nn.Embedding, self.num_embeddings, self.embedding_dim, **options, **placement)

    def forward(self, input: Tensor) -> Tensor:
        rows = ops.embedding(input, *self._layer(), self.dtype, self.scale_grad_by_freq)
        return self._without_padding(rows, input)

    def _without_padding(self, rows: Tensor, index: Tensor) -> Tensor:
        if self.padding_idx is None:
            return rows
        return rows.masked_fill((index == self.padding_idx).unsqueeze(-1), 0)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class TiedLinear(_Tied):
    """``nn.Linear`` with the random weight and the mask of another layer: the head of a language model, for example.

    Its weights have the size of a `SupermaskLinear`'s, ``gain / sqrt(in_features)``, also where the owner is an
    embedding, whose weights have its ``std``. So logits start as they do without tying.

    Args:
        owner: a `SupermaskEmbedding` or a `SupermaskLinear` with the weight ``[out_features, in_features]``.
        bias: parameter ``[out_features]``, or None (default).
        gain: as `SupermaskLinear`'s. Default sqrt(2).

    Raises:
        TypeError, ValueError: an owner of another type; a gain that is not positive.
    """

    def __init__(self, owner: Owner, bias: nn.Parameter | None = None, gain: float = math.sqrt(2)) -> None:
        super().__init__(owner)
        self.out_features, self.in_features = owner.weight_shape
        self.factor = positive("gain", gain) / owner.gain  # the owner's weights have owner.gain / sqrt(in_features)
        self.bias = bias
        self._record("tied_gain", str(float(gain)))

    def _dense_module(self, **placement: Any) -> nn.Module:
        dense = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, False, **placement)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return dense

    def forward(self, input: Tensor) -> Tensor:
        scores, mask, scale, source = self._layer()
        return ops.linear(input, scores, mask, scale, self.bias, source)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
