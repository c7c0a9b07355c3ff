"""Networks to search in, built dense; `slt_kernels.convert` makes them supermask networks."""

from .convnet import convnet

MODELS = {"convnet": convnet}

__all__ = ["MODELS", "convnet"]
