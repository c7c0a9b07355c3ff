"""Linear's forward for few vectors on the CUDA backend, executed in a simulator, against the reference."""

import pytest
import torch
from cuda_simulator import simulated, why_not

from slt_kernels import backends, bits
from slt_kernels.source import WEIGHTS, Freeze, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference, cuda = backends.on("reference"), backends.on("cuda")
FREEZES = {"nothing": Freeze(), "sixteenths": Freeze(0.25, 0.3125), "any": Freeze(0.35, 0.35)}
SIGNED = WEIGHTS[0]
PRECISIONS = ("highest", "high")


@pytest.fixture(params=[80, 90], ids=lambda capability: f"sm_{capability}")
def simulator(request):
    with simulated(request.param) as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def restored_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def source_of(rows: int, fan: int, weight: str = SIGNED, freeze: Freeze = Freeze()) -> Source:
    return Source.of(rows, fan, seed=2**63 + 5 * rows, layer=2**32 - fan, weight=weight, freeze=freeze)


def random_mask(source: Source, compact: bool = False) -> torch.Tensor:
    """A mask with garbage in its padding."""
    shape = (bits.words_for(source.free),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def launched(simulator, source: Source, x, mask=None, bias=None) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The product, the reference's, and the launch of its kernel."""
    mask = random_mask(source) if mask is None else mask
    arguments = x, mask, torch.tensor(0.37), bias, source
    y = cuda.linear_forward(*arguments)
    launch = simulator.launches[-1]
    assert launch["kernel"].startswith("slt_forward_small")
    assert simulator.never_written(y) == 0
    return y, reference.linear_forward(*arguments), launch


def check(simulator, source: Source, x, mask=None, bias=None) -> dict:
    """float32: the bits of the reference."""
    y, expected, launch = launched(simulator, source, x, mask, bias)
    assert torch.equal(y.view(torch.int32), expected.view(torch.int32))
    return launch


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rows, fan", [(1, 1), (63, 31), (64, 33), (65, 127), (3, 129), (2, 511), (130, 513), (2, 1029)])
def test_edges_of_tiles(simulator, weight, rows, fan):
    check(simulator, source_of(rows, fan, weight), torch.randn(1 + fan % 2, fan), bias=torch.randn(rows))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weight", WEIGHTS[:2])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64])
def test_batches(simulator, precision, weight, batch):
    torch.set_float32_matmul_precision(precision)
    source, x = source_of(3, 140, weight), torch.randn(batch, 140)
    columns = batch * (2 if precision == "high" else 4)
    if columns > 128:
        mask = random_mask(source)
        assert not backends.cuda.forward_small.takes(x, mask, torch.tensor(1.0), None, source)
        return
    kernel = check(simulator, source, x)["kernel"]
    planes = 16 if precision == "high" else 24
    assert ("bits" in kernel) == (weight == SIGNED and planes * batch <= 64)


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compact_masks(simulator, batch, weight, freeze, precision):
    torch.set_float32_matmul_precision(precision)
    source = source_of(66, 300, weight, FREEZES[freeze])
    for part in (source, source.shard((64, 66), (5, 9)), source.shard((1, 2), (3, 10))):
        mask = random_mask(part, compact=True)
        assert check(simulator, part, torch.randn(batch, part.fan), mask)["kernel"].endswith("_compact")


def test_compact_mask_of_a_larger_batch(simulator):
    source = source_of(3, 140, freeze=FREEZES["any"])
    check(simulator, source, torch.randn(17, 140), random_mask(source, compact=True))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_shards(simulator, batch, weight):
    whole = source_of(80, 900, weight)
    far = Source.of(2**31 - 1, 8191, seed=3, layer=1, weight=weight)  # the index of a call is past 2**32
    crossing = 2**32 // 64 // (8 if weight != SIGNED else 1)
    for source in (
        whole.shard((70, 80), (1, 9)),
        whole.shard((5, 6), (4, 12)),
        whole.shard((0, 3), (7, 29)),
        far.shard((2**31 - 3, 2**31 - 1), (1, 9)),
        far.shard((crossing - 2, crossing + 2), (0, 256)),
    ):
        check(simulator, source, torch.randn(batch, source.fan))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight, batch", [(SIGNED, 1), (SIGNED, 5), ("normal", 2)])
def test_16_bits(simulator, dtype, weight, batch):
    """Two digits of fixed point: an error of 2**-17 of the largest element, beside the rounding of the output."""
    source = source_of(65, 517, weight)
    x, bias = torch.randn(batch, 517).to(dtype), torch.randn(65, dtype=dtype)
    y, _, launch = launched(simulator, source, x, bias=bias)
    assert y.dtype == dtype
    torch.set_float32_matmul_precision("high")
    mask = random_mask(source)
    y, _, _ = launched(simulator, source, x, mask, bias)
    exact = reference.linear_forward(x.float(), mask, torch.tensor(0.37), bias.float(), source)
    assert torch.equal(y, exact.to(dtype))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weight", [SIGNED, "uniform"])
def test_special_values(simulator, precision, weight):
    torch.set_float32_matmul_precision(precision)
    x = torch.randn(9, 260)
    x[0] = 0
    x[1, 17] = torch.nan
    x[2, 259] = -torch.inf
    x[3] *= 2.0**-140  # denormal
    x[4] = torch.finfo(torch.float32).max * x[4].sign()
    x[5] = 1 - 2.0**-24  # rounds above L, so that the exponent is raised
    x[6] = torch.tensor([-0.0, 2.0**-149]).repeat(130)
    x[7, 1:] *= 2.0**-20
    source = source_of(5, 260, weight)
    mask, bias = random_mask(source), torch.randn(5)
    for rows in (x[:1], x[1:2], x[2:4], x[4:6], x[6:8], x):
        y, expected, _ = launched(simulator, source, rows, mask, bias)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))


def test_memory_that_is_not_aligned(simulator):
    source = source_of(5, 256)
    mask = torch.cat([torch.zeros(1, dtype=torch.int32), random_mask(source).flatten()])[1:].view(5, 8)
    x = torch.randn(2 * 256 + 1)[1:].view(2, 256)
    check(simulator, source, x, mask)


@pytest.mark.parametrize("weight, batch, rows", [(SIGNED, 1, 70), (SIGNED, 6, 70), ("normal", 3, 130)])
def test_chunks_and_schedules(simulator, monkeypatch, weight, batch, rows):
    """Shared memory for one or two steps at once; in sm_90's clusters, blocks of one to three steps."""
    monkeypatch.setattr(backends.cuda.forward_small, "_CHUNK_BYTES", 40_000)
    backends.cuda.forward_small.prepared.cache_clear()
    source = source_of(rows, 4 * 512 + 130, weight)
    x, mask = torch.randn(batch, source.fan), random_mask(source)
    for seed in range(3):
        if seed:
            simulator.options.update(schedule=seed, quantum=(4, 100)[seed % 2], resident=8)
        check(simulator, source, x, mask)
    backends.cuda.forward_small.prepared.cache_clear()


@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 5])
def test_cuts(monkeypatch, tiles, cluster, batch):
    module = backends.cuda.forward_small
    module.prepared.cache_clear()
    steps = 9
    block_steps = -(-steps // cluster)
    parts = 4 // tiles
    shape = module.Cut(tiles, cluster, steps, block_steps, parts)
    monkeypatch.setattr(module, "cut", lambda *_: shape)
    source = source_of(64 * tiles + 3, steps * 512 - 200)
    with simulated(90) as simulator:
        simulator.options.update(schedule=tiles + cluster, quantum=50, resident=8)
        launch = check(simulator, source, torch.randn(batch, source.fan))
        assert launch["cluster"] == cluster
    module.prepared.cache_clear()
