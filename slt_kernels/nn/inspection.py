"""Access to a layer's frozen pattern, mask and weights. All of it materializes; a sharded layer gives its shard."""

import torch
from torch import Tensor

from .. import bits, ops
from ..source import WEIGHTS
from .generated_weight import GeneratedWeight
from .sharding import ShardedLayer


class InspectedLayer(ShardedLayer):
    """The part of `SupermaskLayer` that materializes its weights, for tests and for other code."""

    def frozen_state(self) -> Tensor:
        """Int8, the weight's shape: -1 pruned, 0 free, +1 locked."""
        return self._as_weight(self.source.frozen_state(self.mask_words.device))

    def integer_weight(self) -> Tensor:
        """Int8, the weight's shape: the random weight without mask and scale."""
        return self._as_weight(self.source.integer_weight(self.mask_words.device))

    def mask(self) -> Tensor:
        """Bool, the weight's shape: the weights that are kept, locked ones included."""
        self._refresh_mask()
        return self._as_weight(bits.to_k_order(bits.unpack(self._resolved_words()), self.source.fan))

    def wrong_frozen_bits(self) -> int:
        """How many bits of the mask differ from the seed's at frozen weights; other than 0, no mask was written there.

        A compact mask has no bits of frozen weights.
        """
        mask, source = self.mask_words, self.source
        if mask.dim() == 1 or source.free == source.total:
            return 0
        none = mask.new_zeros(bits.words_for(source.free))
        locked, unpruned = (ops.expand(learned, source) for learned in (none, ~none))
        wrong = (locked & ~mask) | (mask & ~unpruned & source.padding(mask.device))
        return int(bits.popcount(wrong)) if wrong.any() else 0

    def dense_weight(self) -> Tensor:
        """Float32, the weight's shape: the effective weight ``scale * mask * v``."""
        return self._dense_weight(torch.float32)

    def _dense_weight(self, dtype: torch.dtype) -> Tensor:
        self._refresh_mask()
        return self._as_weight(ops.materialize(self.mask_words, self.source)) * self.weight_scale.to(dtype)

    def learned_weight(self) -> Tensor:
        """As `dense_weight`, with a gradient for the scores, for code that multiplies by a weight itself."""
        self._refresh_mask()
        matrix = ops.dense_weight(self._scores_to_grade(), self.mask_words, self.weight_scale, self.source)
        return self._as_weight(matrix)

    @property
    def weight(self) -> GeneratedWeight:
        """The weight, read-only, for code that asks for it: see `GeneratedWeight`."""
        return GeneratedWeight(self)

    def _repr_options(self) -> str:
        parts = [f"prune={self.freeze.prune:.4g}, lock={self.freeze.lock:.4g}, sparsity={self.sparsity}"]
        parts += [f"weight={WEIGHTS[self.source.weight]}, scale={self.scale}"]
        parts += [f"seed={self.source.seed & (2**64 - 1)}, layer={self.source.layer}, free={self.free}"]
        return ", ".join(parts)
