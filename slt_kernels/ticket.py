"""The public names of `slt_kernels.tickets`."""

from .tickets import *  # noqa: F403
from .tickets import __all__ as __all__
