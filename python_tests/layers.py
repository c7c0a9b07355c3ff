"""Small layers for tests of products, in the package and in the oracle."""

from dataclasses import dataclass
from functools import cached_property

import oracle
import torch
from torch import Tensor

from slt_kernels import Freeze, Source, Window, ops


@dataclass(frozen=True)
class Case:
    """A layer with scores and a threshold, for both implementations."""

    rows: int
    fan: int
    weight: str = "signed_constant"
    prune: float = 0.3
    lock: float = 0.2
    seed: int = 2**63 + 11
    scale: float = 0.125
    threshold: float = 0.4

    @property
    def spec(self) -> oracle.Layer:
        return oracle.Layer(self.rows, self.fan, self.seed, 5, self.weight, self.prune, self.lock)

    @property
    def source(self) -> Source:
        freeze = Freeze(self.prune, self.lock)
        return Source.of(self.rows, self.fan, seed=self.seed, layer=5, weight=self.weight, freeze=freeze)

    @cached_property
    def scores(self) -> Tensor:
        """float64 in (-1, 1). If there are several, one is 0."""
        count = len(self.spec.free_positions())
        scores = torch.rand(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
        scores[count // 2 : count // 2 + 1] = 0
        return scores

    @cached_property
    def dense(self) -> oracle.Materialized:
        return self.dense_with(self.scores)

    def dense_with(self, scores: Tensor) -> oracle.Materialized:
        half = oracle.known("normal_table")["positive_half"]
        table = (*(-v for v in reversed(half)), *half)
        return oracle.Materialized(self.spec, scores, self.scale, table)

    @cached_property
    def kept(self) -> Tensor:
        """bool [rows, fan]."""
        return self.dense.mask(self.threshold)

    @cached_property
    def integer(self) -> Tensor:
        """mask * v, float64 [rows, fan]."""
        return self.dense.v * self.kept

    def mask(self, compact: bool = False) -> Tensor:
        if compact:
            return oracle.sequence_words((self.scores.abs() > self.threshold).numpy())
        return oracle.words_of(self.kept.numpy())

    def scale_tensor(self) -> Tensor:
        return torch.tensor(self.scale)

    def linear(self, x: Tensor, bias: Tensor | None = None, scores: Tensor | None = None, compact=False) -> Tensor:
        scores = self.scores.float() if scores is None else scores
        return ops.linear(x, scores, self.mask(compact), self.scale_tensor(), bias, self.source)

    def conv2d(
        self, x: Tensor, window: Window, bias: Tensor | None = None, scores: Tensor | None = None, compact=False
    ) -> Tensor:
        scores = self.scores.float() if scores is None else scores
        return ops.conv2d(x, scores, self.mask(compact), self.scale_tensor(), bias, self.source, window)


def kernel(matrix: Tensor, window: Window) -> Tensor:
    """[rows, fan] to the shape for F.conv2d. fan is in the order (kh, kw, c), the channel fastest."""
    kh, kw = window.kernel
    return matrix.reshape(len(matrix), kh, kw, matrix.shape[1] // (kh * kw)).permute(0, 3, 1, 2)


def geometry(window: Window) -> dict:
    names = ("stride", "padding", "dilation", "groups")
    return {name: getattr(window, name) for name in names}


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """The error in relative norm; 0 if both are 0."""
    assert ours.shape == truth.shape
    difference = (ours.detach().double() - truth.detach().double()).norm().item()
    return difference and difference / max(truth.detach().double().norm().item(), 1e-300)
