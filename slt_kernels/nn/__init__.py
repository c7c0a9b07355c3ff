"""Layers: drop-in replacements of ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding``."""

from .conv2d import SupermaskConv2d
from .embedding import SupermaskEmbedding
from .linear import SupermaskLinear
from .network import drop_scores
from .supermask import SupermaskLayer

__all__ = ["SupermaskConv2d", "SupermaskEmbedding", "SupermaskLayer", "SupermaskLinear", "drop_scores"]
