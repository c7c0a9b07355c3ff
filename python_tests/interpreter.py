"""Imports Triton, and the Triton backend's kernels, without a GPU as interpreted functions.

Triton decides that at its import and where a kernel is defined, so `conftest` imports this file first. Afterwards the
environment is as before: the other tests and their processes have no Triton backend.
"""

from importlib.util import find_spec

import pytest
import torch

INSTALLED = find_spec("triton") is not None
INTERPRETED = INSTALLED and not torch.cuda.is_available()

if INTERPRETED:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        from slt_kernels.backends import registry

        registry.kernels("triton", "select")  # imports all of them
