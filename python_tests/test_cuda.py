"""The CUDA backend's kernels, executed in a simulator, against the reference."""

import pytest
import torch
from cuda_simulator import simulated, why_not

from slt_kernels import Freeze, backends
from slt_kernels.source import Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")


@pytest.fixture(params=[80, 90], ids=lambda capability: f"sm_{capability}")
def simulator(request):
    with simulated(request.param) as simulator:
        yield simulator


def test_materialize(simulator):
    source = Source.of(5, 67, seed=3, layer=2, freeze=Freeze(0.25, 0.25))
    mask = backends.on("reference").expand(torch.randint(-(2**31), 2**31, (20,), dtype=torch.int32), source)
    found = backends.on("cuda").materialize(mask, source)
    assert simulator.never_written(found) == 0
    assert torch.equal(found, backends.on("reference").materialize(mask, source))
