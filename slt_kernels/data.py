"""The public names of `slt_kernels.experiments.data`."""

from .experiments.data import *  # noqa: F403
from .experiments.data import __all__ as __all__
