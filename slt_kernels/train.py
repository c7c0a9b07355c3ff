"""The public names of `slt_kernels.experiments.train`."""

from .experiments.train import *  # noqa: F403
from .experiments.train import __all__ as __all__
