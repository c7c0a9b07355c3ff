"""The scores' gradient of Linear and Conv2d on the CUDA backend, executed in a simulator, against the reference."""

from importlib import import_module

import cuda_cases
import pytest
import torch
from cuda_cases import FREEZES
from cuda_simulator import simulated, why_not

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Freeze, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference, cuda = backends.on("reference"), backends.on("cuda")
FROZEN = FREEZES["any"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERROR = 1e-6  # products of 16-bit numbers are exact in float32


def source_of(rows: int, fan: int, weight: str = WEIGHTS[0], freeze: Freeze = FROZEN) -> Source:
    return cuda_cases.source_of(rows, fan, weight, freeze)


def scores_of(source: Source) -> torch.Tensor:
    scores = torch.randn(source.free)
    scores[::7] = 0.0
    scores[1::7] = -0.0
    return scores


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return float((ours.double() - theirs.double()).norm() / max(theirs.double().norm(), 1e-30))


def check(simulator, dy, x, source: Source, window: Window | None = None, error: float = ERROR) -> list[dict]:
    """Compares the gradient with the reference's; the launches of its kernels."""
    before = len(simulator.launches)
    operation = "conv2d_grad_scores" if window else "linear_grad_scores"
    arguments = (dy, x, scores_of(source), torch.tensor(0.37), source, *([window] if window else []))
    found = getattr(cuda, operation)(*arguments)
    launches = [launch for launch in simulator.launches[before:] if "grad_scores" in launch["kernel"]]
    assert launches
    assert simulator.never_written(found) == 0
    assert relative(found, getattr(reference, operation)(*arguments)) <= error
    return launches


def linear(source: Source, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(columns, source.rows).to(dtype), torch.randn(columns, source.fan).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, fan, columns", [(1, 1, 1), (31, 33, 3), (127, 129, 33), (129, 128, 65), (17, 127, 130), (128, 257, 63)]
)
def test_edges_of_tiles(simulator, dtype, rows, fan, columns):
    source = source_of(rows, fan)
    check(simulator, *linear(source, columns, dtype), source)


def test_bands_of_rows(simulator):
    source = source_of(2100, 130)
    check(simulator, *linear(source, 3, torch.bfloat16), source)


@pytest.mark.parametrize("rows, columns", [(129, 65), (256, 64), (257, 130), (511, 321), (700, 600)])
def test_tiles_of_256_rows(monkeypatch, rows, columns):
    """They are of sm_90 alone, where they compute little more than is used."""
    module = import_module("slt_kernels.backends.cuda.grad_scores")
    monkeypatch.setattr(module, "_TALL_COLUMNS", 1)
    module._launches.cache_clear()
    with simulated(90) as simulator:
        for schedule, dtype in ((0, torch.bfloat16), (rows, torch.float16)):
            simulator.options.update(schedule=schedule, quantum=30, resident=2)
            source = source_of(rows, 129 if rows < 600 else 40, WEIGHTS[schedule % 3])
            launch = check(simulator, *linear(source, columns, dtype), source)[0]
            assert launch["kernel"].endswith("_256") == (rows != 257)
        window = Window(2, 1, padding_h=1)
        source = source_of(rows, 32)
        x, dy = torch.randn(2, 16, 6, 7).to(dtype), torch.randn(2, rows, 7, 7).to(dtype)
        check(simulator, dy, x, source, window)
    module._launches.cache_clear()


def test_few_columns_have_tiles_of_128_rows():
    """So that one block writes gradients while another multiplies."""
    module, source = import_module("slt_kernels.backends.cuda.grad_scores"), source_of(256, 128)
    for columns in (1023, 1024):
        launches, _ = module._launches(
            source,
            torch.bfloat16,
            True,
            module.Shape(columns, 256, 128),
            backends.cuda.launch.Machine(90, 1, 227 * 1024),
        )
        assert launches[0].describe(*[0] * 9)["kernel"].endswith("_256") == (columns == 1024)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("freeze", FREEZES)
def test_weights_and_frozen_patterns(simulator, dtype, weight, freeze):
    source = source_of(131, 300, weight, FREEZES[freeze])
    for part in (source, source.shard((129, 131), (5, 9)), source.shard((1, 2), (3, 10)), source.shard((0, 9), (4, 6))):
        check(simulator, *linear(part, 5, dtype), part)


@pytest.mark.parametrize("freeze", [Freeze(1, 0), Freeze(0, 1)], ids=["pruned", "locked"])
def test_nothing_is_free(simulator, freeze):
    source = source_of(3, 40, freeze=freeze)
    check(simulator, *linear(source, 5, torch.float32), source)


@pytest.mark.parametrize("weight", WEIGHTS[:2])
def test_counters_past_32_bits(simulator, weight):
    far = Source.of(2**31 - 1, 8191, seed=3, layer=1, weight=weight)  # nothing frozen: no table of starts is made
    crossing = 2**32 // 64 // (8 if weight != WEIGHTS[0] else 1)
    for source in (far.shard((2**31 - 3, 2**31 - 1), (1, 9)), far.shard((crossing - 2, crossing + 2), (0, 256))):
        check(simulator, *linear(source, 2, torch.float32), source)


# Channels, rows, images, height, width, window.
CONVOLUTIONS = {
    "3x3": (5, 6, 2, 3, 4, Window(3, 3, padding_h=1, padding_w=1)),
    "2x1-stride": (32, 5, 1, 7, 6, Window(2, 1, stride_h=2)),
    "depthwise": (2, 2, 1, 2, 3, Window(2, 3, padding_h=1, padding_w=2, groups=2)),
    "depthwise-5x5": (33, 66, 2, 9, 7, Window(5, 5, 2, 1, 2, 0, 1, 1, 33)),
    "one-channel": (1, 40, 3, 9, 9, Window(3, 3)),
    "two-calls": (1, 3, 2, 13, 13, Window(12, 12, padding_h=1)),
    "1x1-stride": (128, 4, 3, 4, 5, Window(1, 1, 2, 2)),
    "1x1": (13, 4, 3, 4, 5, Window(1, 1)),
    "1x1-groups": (48, 22, 2, 4, 5, Window(1, 1, groups=2)),
    "1x1-groups-of-odd-channels": (26, 6, 2, 4, 5, Window(1, 1, groups=2)),
    "groups-dilation": (66, 4, 1, 6, 5, Window(2, 1, padding_h=1, dilation_h=2, groups=2)),
    "17-rows-per-group": (4, 34, 1, 3, 2, Window(2, 1, groups=2)),
    "rows-of-two-tiles-per-group": (16, 252, 1, 3, 2, Window(2, 1, groups=2)),
    "64-channels": (64, 3, 1, 2, 2, Window(1, 3, padding_w=1)),
    "stride-padding": (24, 9, 2, 7, 6, Window(3, 2, 2, 3, 1, 1, 1, 2)),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(simulator, dtype, name):
    channels, rows, images, height, width, window = CONVOLUTIONS[name]
    weight = WEIGHTS[len(name) % 3]
    source = source_of(rows, channels // window.groups * window.kernel_h * window.kernel_w, weight)
    x = torch.randn(images, channels, height, width).to(dtype)
    dy = torch.randn(images, rows, *window.output_size(height, width)).to(dtype)
    check(simulator, dy, x, source, window)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    check(simulator, dy, x, source, window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_the_columns(simulator, dtype):
    """Their sums are added by a second kernel."""
    source = source_of(37, 200, WEIGHTS[1])
    launches = check(simulator, *linear(source, 700, dtype), source)
    assert [launch["kernel"] for launch in launches][1:] == ["slt_grad_scores_parts_add"]
    window = Window(2, 2, groups=2)
    source = source_of(10, 24 * 4)
    x, dy = torch.randn(5, 48, 13, 14).to(dtype), torch.randn(5, 10, 12, 13).to(dtype)
    assert len(check(simulator, dy, x, source, window)) == 2


def test_split():
    """Every part has columns, the partial sums are within the workspace, and few columns are not split."""
    module = backends.cuda.grad_scores
    machine = backends.cuda.launch.Machine(90, 132, 0)
    for columns in (1, 64, 65, 1000, 4096, 10**6):
        for tiles in (1, 3, 100, 300):
            parts, size = module.split(columns, 64, tiles, 128, 2, 1, machine)
            assert size % 64 == 0 and (parts - 1) * size < columns <= parts * size
            assert parts == 1 or 4 * 128 * 128 * parts * tiles <= 2**24
            assert parts == 1 or columns >= 1000
            parts, size = module.split_depthwise(columns, tiles, machine)
            assert (parts - 1) * size < columns <= parts * size
    assert module.split(4096, 64, 4096, 128, 2, 1, machine)[0] == 1
    assert module.split(200_704, 64, 5, 128, 2, 1, machine)[0] > 30


def test_high_precision(simulator):
    torch.set_float32_matmul_precision("high")
    source = source_of(131, 140)
    [launch] = check(simulator, *linear(source, 70, torch.float32), source, error=6e-4)
    assert "tf32" in launch["kernel"]
    window = Window(3, 3)
    source = source_of(5, 27)
    check(simulator, torch.randn(2, 5, 3, 3), torch.randn(2, 3, 5, 5), source, window, error=6e-4)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_special_values(simulator, precision):
    """A NaN or an infinity in a row of dy^T or of x^T makes that row or column not finite, and nothing else."""
    torch.set_float32_matmul_precision(precision)
    source = source_of(6, 40, freeze=Freeze())
    dy, x = linear(source, 9, torch.float32)
    dy[3, 1], dy[4, 2] = torch.nan, torch.inf
    dy[5, 3] = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)  # the NaN that a GPU computes
    x[2, 7] = -torch.inf
    dy[:, 4] *= 2.0**-140
    found = cuda.linear_grad_scores(dy, x, torch.ones(source.free), torch.tensor(1.0), source).view(6, 40)
    bad = torch.zeros(6, 40, dtype=torch.bool)
    bad[1:4] = True
    bit_order = [*range(0, 32, 2), *range(1, 32, 2)]
    bad[:, bit_order.index(7)] = True
    assert torch.equal(~found.isfinite(), bad)


def test_mixed_types_and_memory(simulator):
    source = source_of(5, 43)
    dy, x = torch.randn(9, 5), torch.randn(9, 43).bfloat16()
    check(simulator, dy, x, source)
    check(simulator, torch.randn(5, 9).T, torch.randn(19, 43)[1::2], source)
    source = source_of(8, 48)
    dy, x = torch.randn(9 * 8 + 1)[1:].view(9, 8), torch.randn(9 * 48 + 1)[1:].view(9, 48)
    check(simulator, dy, x, source)


def test_what_others_compute():
    source = source_of(5, 43)
    scores, scale = torch.randn(source.free), torch.tensor(1.0)
    takes = backends.cuda.grad_scores._takes
    dy, x = torch.randn(2, 5), torch.randn(2, 43)
    assert takes(dy, x, scores, scale, source)
    assert not takes(dy.double(), x.double(), scores, scale, source)
    assert not takes(dy, x, scores.double(), scale, source)
    assert not takes(dy[:0], x[:0], scores, scale, source)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_schedules(simulator, seed):
    simulator.options.update(schedule=seed, quantum=(4, 50, 300)[seed - 1], resident=2)
    source = source_of(20, 130)
    for dtype in DTYPES[:2]:
        check(simulator, *linear(source, 330, dtype), source)
    window = Window(3, 3, padding_h=1, padding_w=1)
    for channels in (1, 3, 8):
        source = source_of(6, 9 * channels, WEIGHTS[2])
        check(simulator, torch.randn(2, 6, 9, 9).bfloat16(), torch.randn(2, channels, 9, 9).bfloat16(), source, window)


@pytest.mark.all_simulations
@pytest.mark.parametrize("weight", WEIGHTS[1:])
def test_faults_are_found(weight):
    """Each barrier of the last step, and of what adds parts before it, is needed: without it, a test fails."""
    from cuda_faults import survivors

    with simulated(80) as simulator:
        source = source_of(9, 130, weight)
        dy, x = linear(source, 700, torch.bfloat16)
        left = survivors(
            simulator, "grad_scores_parts", "slt_grad_scores_parts_add", lambda: check(simulator, dy, x, source)
        )
        # The table of `normal` is all that the first barrier of the last step orders.
        assert len(left) == (weight != "normal") and all("grad_scores_epilogue.h" in fault for fault in left)
