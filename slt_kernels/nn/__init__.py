"""Layers: drop-in replacements of ``nn.Linear`` and ``nn.Conv2d``."""

from .conv2d import SupermaskConv2d
from .linear import SupermaskLinear
from .supermask import SupermaskLayer

__all__ = ["SupermaskConv2d", "SupermaskLayer", "SupermaskLinear"]
