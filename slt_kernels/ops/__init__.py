"""The operations, one file each: schema, fake implementation, autograd, dispatch to a backend."""

from .conv2d import conv2d
from .embedding import embedding
from .expand import expand
from .linear import linear
from .materialize import materialize
from .pack import pack
from .select import select

__all__ = ["conv2d", "embedding", "expand", "linear", "materialize", "pack", "select"]
