"""Linear's forward for few vectors on the CUDA backend, executed in a simulator, against the reference."""

import pytest
import torch
from cuda_simulator import simulated, why_not

from slt_kernels import backends
from slt_kernels.source import WEIGHTS, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference = backends.on("reference")


@pytest.fixture(params=[80, 90], ids=lambda capability: f"sm_{capability}")
def simulator(request):
    with simulated(request.param) as simulator:
        yield simulator


@pytest.fixture(params=["highest", "high"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def random_mask(source: Source) -> torch.Tensor:
    """A resolved mask with garbage in its padding."""
    return torch.randint(-(2**31), 2**31, (source.rows, source.words), dtype=torch.int64).to(torch.int32)


def check(simulator, source: Source, x: torch.Tensor, kernels: str = "slt_forward_small", bias: bool = False) -> None:
    """The float32 product of one launch of those kernels is the reference's to the bit."""
    mask, scale = random_mask(source), torch.tensor(0.37)
    added = torch.randn(source.rows) if bias else None
    before = len(simulator.launches)
    y = backends.on("cuda").linear_forward(x, mask, scale, added, source)
    (launched,) = simulator.launches[before:]
    assert launched["kernel"].startswith(kernels)
    assert simulator.never_written(y) == 0
    assert torch.equal(y.view(torch.int32), reference.linear_forward(x, mask, scale, added, source).view(torch.int32))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rows, fan", [(1, 1), (63, 31), (64, 33), (65, 129), (3, 511), (130, 513), (2, 1029)])
def test_edges_of_tiles(simulator, weight, rows, fan):
    source = Source.of(rows, fan, seed=2**63 + rows, layer=2**32 - fan, weight=weight)
    check(simulator, source, torch.randn(1 + fan % 2, fan), bias=fan % 4 == 1)
