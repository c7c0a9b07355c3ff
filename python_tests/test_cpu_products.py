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
