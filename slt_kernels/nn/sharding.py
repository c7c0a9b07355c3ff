"""A shard of a layer: some of its rows or words, with their scores and mask bits, in each process of a group."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import bits, ops
from . import sharded_scores
from .freshness import FreshMask


class ShardedLayer(FreshMask):
    """The part of `SupermaskLayer` that cuts a layer into shards and gathers it."""

    @torch.no_grad()
    def shard(
        self, group: dist.ProcessGroup, rows: tuple[int, int] | None = None, words: tuple[int, int] | None = None
    ) -> None:
        """Keeps rows ``[n0, n1)``, or words ``[w0, w1)`` of each, with their scores and mask bits, and drops the rest.

        Thresholds, scale, counts and tickets are those of the whole layer: the processes of ``group`` hold all of its
        shards and make masks together. `scores` is a new parameter, so make the optimizer afterwards. For tensor
        parallelism use the styles in `parallel`.

        Raises:
            ValueError: the layer is sharded already or has no bias per row, or a range is empty or outside it.
        """
        if self.group is not None or sharded_scores.is_dtensor(self.scores):
            raise ValueError("layer: expected one that is not sharded yet")
        if self.bias is not None and len(self.bias) != self.whole.rows:
            raise ValueError(f"layer: expected one with a bias per row, got a {type(self).__name__}")
        fresh = self._is_fresh()
        resolved = self._resolved_words()
        self.source = self.whole.shard(rows, words)
        self.group = group
        shape = bits.words_for(self.source.free) if self.compact else (self.source.rows, self.source.words)
        self.mask_words = self.mask_words.new_empty(shape)
        self._take_words(resolved[self._part])
        self.source_id = torch.tensor(self._identity(self.source), device=self.source_id.device)
        if self.scores is not None:
            self.scores = nn.Parameter(self._part_of_scores(self.scores.detach()), self.scores.requires_grad)
            if fresh:
                self._remember_scores()
        if self.bias is not None:
            self.bias = nn.Parameter(self.part_of_bias(self.bias.detach()).clone(), self.bias.requires_grad)

    @property
    def _part(self) -> tuple[slice, slice]:
        """This shard's words among the whole layer's ``[rows, words]``."""
        row, word = self.source.first_row - self.whole.first_row, self.source.first_word - self.whole.first_word
        return slice(row, row + self.source.rows), slice(word, word + self.source.words)

    def _part_of_scores(self, scores: Tensor) -> Tensor:
        """The scores of this shard's free weights, of the whole layer's."""
        if self.group is None:
            return scores
        free = bits.unpack(self.whole.frozen_words(scores.device)[0])  # [rows, words, 32]
        mine = torch.zeros_like(free)
        mine[self._part] = True
        return scores[mine[free]]

    def whole_bias(self) -> Tensor:
        """The bias of all rows; collective over the `group` of a sharded layer."""
        if self.source.rows == self.whole.rows:
            return self.bias.detach()
        bias = self.bias.new_zeros(self.whole.rows, requires_grad=False)
        bias[self._part[0]] = self.bias.detach()
        dist.all_reduce(bias, group=self.group)
        return bias

    def part_of_bias(self, bias: Tensor) -> Tensor:
        """This shard's rows of the bias of all."""
        return bias[self._part[0]]

    def _resolved_words(self) -> Tensor:
        return ops.expand(self.mask_words, self.source) if self.compact else self.mask_words

    def _take_words(self, resolved: Tensor) -> None:
        free = self.source.frozen_words(resolved.device)[0]
        self.mask_words.copy_(bits.gather(resolved.contiguous(), free) if self.compact else resolved)
