"""The CPU backend's products and materialize against the reference, bit for bit, on every instruction set."""

import pytest
import torch

from slt_kernels.backends import cpu, reference
from slt_kernels.source import WEIGHTS, Freeze, Source

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SHAPES = ((1, 1), (3, 31), (17, 32), (65, 33), (16, 63), (3, 65), (1, 127), (33, 129), (17, 257), (5, 1031))


@pytest.fixture(params=cpu.instruction_sets() if cpu.unavailable() is None else ())
def isa(request):
    with cpu.use_instruction_set(request.param):
        yield request.param


def random_mask(source: Source, compact: bool = False) -> torch.Tensor:
    """Garbage in the padding included."""
    shape = ((source.count_frozen()[1] + 31) // 32,) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def sources(rows: int, fan: int, **kwargs) -> list[Source]:
    return [Source.of(rows, fan, seed=2**63 + rows, layer=fan, weight=w, **kwargs) for w in WEIGHTS]


@pytest.mark.parametrize("rows,fan", SHAPES)
def test_materialize(isa, rows, fan):
    for source in sources(rows, fan, freeze=Freeze(0.35, 0.35)):
        for compact in (False, True):
            mask = random_mask(source, compact)
            assert torch.equal(cpu.materialize(mask, source), reference.materialize(mask, source))


def test_materialize_shard(isa):
    for source in sources(40, 1031):
        for rows, words in (((3, 40), (1, 33)), ((0, 17), (6, 9)), ((39, 40), (32, 33))):
            shard = source.shard(rows, words)
            mask = random_mask(shard)
            assert torch.equal(cpu.materialize(mask, shard), reference.materialize(mask, shard))


def inputs(*shape: int) -> torch.Tensor:
    """Rows of very different sizes; one is zero, one nearly overflows its fixed point."""
    x = torch.randn(shape)
    x *= 10.0 ** torch.randint(-20, 20, (shape[0], *[1] * (len(shape) - 1)))
    if shape[0] > 2:
        x[1] = 0
        x[2].flatten()[0] = 2 * x[2].abs().max().log2().ceil().exp2() * (1 - 2**-24)
    return x


@pytest.fixture(params=("highest", "high"))
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("batch", (0, 1, 3, 17, 35))
@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear_forward(isa, precision, rows, fan, batch):
    x, scale, bias = inputs(batch, fan), torch.tensor(0.37), torch.randn(rows)
    for source in sources(rows, fan, freeze=Freeze(0.25, 0.25)):
        mask = random_mask(source, compact=batch == 3)
        for b in (bias, None):
            y = cpu.linear_forward(x, mask, scale, b, source)
            assert torch.equal(y, reference.linear_forward(x, mask, scale, b, source))


@pytest.mark.parametrize("batch", (0, 1, 3, 17, 35))
@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear_grad_input(isa, precision, rows, fan, batch):
    dy, scale = inputs(batch, rows), torch.tensor(0.37)
    for source in sources(rows, fan):
        mask = random_mask(source, compact=batch == 3)
        dx = cpu.linear_grad_input(dy, mask, scale, source)
        assert torch.equal(dx, reference.linear_grad_input(dy, mask, scale, source))
