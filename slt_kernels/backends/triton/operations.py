"""The operations of this backend, gathered: importing this module imports triton."""

from .embedding import embedding_forward, embedding_grad_scores
from .expanding import expand
from .forward import conv2d_forward, linear_forward
from .grad_input import conv2d_grad_input, linear_grad_input
from .grad_scores import conv2d_grad_scores, linear_grad_scores
from .materializing import materialize
from .packing import pack
from .selecting import select

__all__ = [
    "conv2d_forward",
    "conv2d_grad_input",
    "conv2d_grad_scores",
    "embedding_forward",
    "embedding_grad_scores",
    "expand",
    "linear_forward",
    "linear_grad_input",
    "linear_grad_scores",
    "materialize",
    "pack",
    "select",
]
