"""The public names of `slt_kernels.experiments.sweep`."""

from .experiments.sweep import *  # noqa: F403
from .experiments.sweep import __all__ as __all__
