"""Linear's forward for few vectors on the CUDA backend, executed in a simulator, against the reference."""

import pytest
import torch
from cuda_cases import FREEZES, SIGNED, random_mask, shards, source_of, special_values, unaligned_mask
from cuda_simulator import simulated, why_not

from slt_kernels import backends
from slt_kernels.source import WEIGHTS, Source

if why_not() is not None:
    pytest.skip(f"no simulation: {why_not()}", allow_module_level=True)

import cuda_faults

from slt_kernels.backends.cuda import forward_small, linear

reference, cuda = backends.on("reference"), backends.on("cuda")
EDGES = ((1, 1), (63, 31), (64, 33), (65, 127), (3, 129), (2, 511), (130, 513), (2, 1029))  # rows, fan
PRECISIONS = ("highest", "high")


@pytest.fixture
def prepared_again():
    forward_small.prepared.cache_clear()
    yield
    forward_small.prepared.cache_clear()


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
@pytest.mark.parametrize("rows, fan", EDGES)
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
        assert not forward_small.takes(x, mask, torch.tensor(1.0), None, source)
        return
    kernel = check(simulator, source, x)["kernel"]
    planes = 16 if precision == "high" else 24
    assert ("bits" in kernel) == (weight == SIGNED and planes * batch <= 64)


@pytest.mark.parametrize("batch", [2, 4])
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
    check(simulator, source, torch.randn(9, 140), random_mask(source, compact=True))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_shards(simulator, batch, weight):
    far = Source.of(2**31 - 1, 8191, seed=3, layer=1, weight=weight)
    crossing = 2**32 // 64 // (8 if weight != SIGNED else 1)  # the index of a call passes 2**32 here
    for source in (*shards(weight), far.shard((crossing - 2, crossing + 2), (0, 256))):
        check(simulator, source, torch.randn(batch, source.fan))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight, batch", [(SIGNED, 1), (SIGNED, 5), ("normal", 2)])
def test_16_bits(simulator, dtype, weight, batch):
    """Two digits of fixed point, as float32 with "high" precision has; the output is rounded once more."""
    torch.set_float32_matmul_precision("high")
    source = source_of(65, 517, weight)
    x, mask, bias = torch.randn(batch, 517).to(dtype), random_mask(source), torch.randn(65, dtype=dtype)
    y, _, _ = launched(simulator, source, x, mask, bias)
    expected = reference.linear_forward(x.float(), mask, torch.tensor(0.37), bias.float(), source)
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weight", [SIGNED, "uniform"])
def test_special_values(simulator, precision, weight):
    torch.set_float32_matmul_precision(precision)
    x = special_values()
    source = source_of(5, 260, weight)
    mask, bias = random_mask(source), torch.randn(5)
    for rows in (x[:1], x[1:2], x[2:4], x[4:6], x[6:8], x):
        y, expected, _ = launched(simulator, source, rows, mask, bias)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))


def test_memory_that_is_not_aligned(simulator):
    source = source_of(5, 256)
    x = torch.randn(2 * 256 + 1)[1:].view(2, 256)
    check(simulator, source, x, unaligned_mask(source))


@pytest.mark.usefixtures("prepared_again")
@pytest.mark.parametrize("weight, batch, rows", [(SIGNED, 1, 70), (SIGNED, 6, 70), ("normal", 3, 130)])
def test_chunks_and_schedules(simulator, monkeypatch, weight, batch, rows):
    """Shared memory for one or two steps at once; in sm_90's clusters, blocks of one to three steps."""
    monkeypatch.setattr(forward_small, "_MOST_SHARED", 50_000)
    source = source_of(rows, 4 * 512 + 130, weight)
    x, mask = torch.randn(batch, source.fan), random_mask(source)
    for seed in range(3):
        if seed:
            simulator.options.update(schedule=seed, quantum=(4, 100)[seed % 2], resident=8)
        check(simulator, source, x, mask)


def test_chunks_of_many_columns(simulator):
    torch.set_float32_matmul_precision("high")
    source = source_of(2, 3 * 512 + 5)
    assert check(simulator, source, torch.randn(64, source.fan))["kernel"].endswith("_128")


@pytest.mark.parametrize("compact", [False, True])
def test_plan(simulator, compact):
    source = source_of(66, 300, freeze=FREEZES["any"])
    mask, scale, bias = random_mask(source, compact), torch.tensor(0.37), torch.randn(66)
    call = linear.plan_linear_forward(mask, scale, bias, source)
    for shape in ((300,), (3, 300), (2, 2, 300), (65, 300), (0, 300)):
        x = torch.randn(shape)
        expected = reference.linear_forward(x.view(-1, 300), mask, scale, bias, source)
        assert torch.equal(call(x), expected.view(*shape[:-1], 66))
    assert sum(launch["kernel"].startswith("slt_forward_small") for launch in simulator.launches) == 3


def cut_by(monkeypatch, tiles: int, cluster: int, steps: int) -> None:
    """Cuts all products so, with two steps of each group in shared memory, of at most 32 columns of digits."""
    parts, block_steps = 4 // tiles, -(-steps // cluster)
    sums_at = 1536 + 2 * parts * 32 * (16 * 32 + 16)
    shape = forward_small.Cut(tiles, cluster, steps, block_steps, 2 * parts, sums_at)
    monkeypatch.setattr(forward_small, "cut", lambda *_: shape)


@pytest.mark.usefixtures("prepared_again")
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 5])
def test_cuts(monkeypatch, tiles, cluster, batch):
    cut_by(monkeypatch, tiles, cluster, steps=9)
    source = source_of(64 * tiles + 3, 9 * 512 - 200)
    with simulated(90) as simulator:
        simulator.options.update(schedule=tiles + cluster, quantum=50, resident=8)
        assert check(simulator, source, torch.randn(batch, source.fan))["cluster"] == cluster


@pytest.mark.all_simulations
@pytest.mark.usefixtures("prepared_again")
def test_faults_are_found(monkeypatch):
    """A kernel without one of its barriers, fences or waits gives findings or another result."""
    cut_by(monkeypatch, tiles=4, cluster=2, steps=6)
    torch.set_float32_matmul_precision("high")
    source = source_of(3, 6 * 512)
    x, mask = torch.randn(1, source.fan), random_mask(source)
    with simulated(90) as simulator:
        kernel = check(simulator, source, x, mask)["kernel"]
        simulator.options.update(limit=1_000_000)
        left = cuda_faults.survivors(
            simulator, "forward_small_bits", kernel, lambda: check(simulator, source, x, mask), schedules=(1,)
        )
    # A block without others has three barriers of its own, which this launch does not reach. Each copy of the loop has
    # its own registers, so that one wait and one fence for two products would do.
    assert sum("bar.sync" in fault for fault in left) == 3
    assert all(any(name in fault for name in ("bar.sync", "wgmma.wait_group", "wgmma.fence")) for fault in left)
    assert len(left) <= 6
