"""Networks to search in, built dense; `slt_kernels.convert` makes them supermask networks."""

from .convnet import convnet
from .resnet import resnet

MODELS = {"convnet": convnet}  # that `slt find` offers

__all__ = ["MODELS", "convnet", "resnet"]
