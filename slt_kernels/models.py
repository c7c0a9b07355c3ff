"""The public names of `slt_kernels.experiments.models`."""

from .experiments.models import *  # noqa: F403
from .experiments.models import __all__ as __all__
