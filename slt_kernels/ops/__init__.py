"""The operations as functions of tensors, one file each: checks, autograd, dispatch to a kernel."""

from .autograd import differentiates
from .checks import check_activations
from .conv2d import conv2d
from .conv_transpose2d import conv_transpose2d
from .dispatch import is_plain
from .embedding import embedding
from .expand import expand
from .linear import linear
from .materialize import dense_weight, materialize
from .pack import pack
from .plan import Conv2dPlan, EmbeddingPlan, LinearPlan, Plan
from .select import select

__all__ = [
    "Conv2dPlan",
    "EmbeddingPlan",
    "LinearPlan",
    "Plan",
    "check_activations",
    "conv2d",
    "conv_transpose2d",
    "dense_weight",
    "differentiates",
    "embedding",
    "expand",
    "is_plain",
    "linear",
    "materialize",
    "pack",
    "select",
]
