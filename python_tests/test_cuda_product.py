"""Forward of Linear for many vectors, and of Conv2d, on the CUDA backend: executed in a simulator."""

from importlib import import_module

import cuda_cases
import pytest
import torch
from cuda_cases import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    NORMAL,
    SIGNED,
    assert_same,
    kinds,
    random_mask,
    shards,
    source_of,
    special_values,
    unaligned_mask,
)
from cuda_simulator import Simulator, simulated, why_not

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference, cuda = backends.on("reference"), backends.on("cuda")
LINEAR = (  # rows, fan, batch: about the edges of tiles of 128 rows, 64 to 256 columns and 128 k
    (1, 1, 1),
    (3, 31, 65),
    (127, 33, 63),
    (128, 127, 64),
    (129, 128, 2),
    (2, 129, 127),
    (35, 300, 129),
    (4, 1029, 3),
    (257, 60, 17),
)
FEW_LINEAR = ((3, 31, 65), (35, 300, 129), (129, 264, 2))
CONVOLUTIONS = cuda_cases.CONVOLUTIONS | {
    "1x1": (48, 130, 3, 4, 11, Window(1, 1)),
    "1x1-groups": (64, 6, 2, 3, 3, Window(1, 1, groups=2)),
    "48-channels": (48, 3, 5, 6, 5, Window(3, 3, padding_h=2, padding_w=1, dilation_h=2, stride_w=2)),
    "8-channels": (8, 3, 5, 6, 5, Window(3, 2, padding_w=1)),  # 16 bytes of 16-bit floats, not of digits
    "31-taps": (16, 2, 1, 1, 33, Window(1, 31)),  # more than a word has bits for, so value by value
    "128-channels": (128, 3, 2, 4, 3, Window(3, 3, padding_h=1, padding_w=1)),  # a step is one run of each column
    "a-pixel": (16, 3, 70, 1, 1, Window(3, 3, padding_h=1, padding_w=1)),
}


def check(simulator: Simulator, y: torch.Tensor, expected: torch.Tensor) -> None:
    assert simulator.never_written(y) == 0
    assert simulator.launches[-1]["kernel"].startswith("slt_product")
    assert_same(y, expected, 1e-3)


def check_linear(simulator, source: Source, x, mask=None, bias=None) -> None:
    """The product by the kernel for many vectors, whatever their number."""
    arguments = x, random_mask(source) if mask is None else mask, torch.tensor(0.37), bias, source
    y = simulator.unwritten(x.new_empty(len(x), source.rows))
    import_module("slt_kernels.backends.cuda.linear").linear_forward_many(y, *arguments)
    check(simulator, y, reference.linear_forward(*arguments))


def check_conv2d(simulator, source: Source, window: Window, x, bias=None) -> None:
    """The convolution by the kernel for wide groups, however narrow they are."""
    arguments = x, random_mask(source), torch.tensor(0.37), bias, source, window
    y = backends.registry.make_outputs("conv2d_forward", arguments)
    import_module("slt_kernels.backends.cuda.conv2d").conv2d_forward(y, *arguments)
    check(simulator, y, reference.conv2d_forward(*arguments))


def convolution(name: str, weight: str = SIGNED) -> tuple[Source, Window, tuple[int, ...]]:
    """The source, the window, and the shape of the images."""
    channels, rows, *shape, window = CONVOLUTIONS[name]
    source = source_of(rows, channels // window.groups * window.kernel_h * window.kernel_w, weight)
    return source, window, (shape[0], channels, *shape[1:])


@pytest.mark.parametrize("shape, weight, dtype", kinds(LINEAR, FEW_LINEAR))
def test_linear(simulator, shape, weight, dtype):
    rows, fan, batch = shape
    bias = torch.randn(rows, dtype=dtype) if fan % 2 else None
    check_linear(simulator, source_of(rows, fan, weight), torch.randn(batch, fan, dtype=dtype), bias=bias)


@pytest.mark.parametrize(
    "name, weight, dtype", kinds(CONVOLUTIONS, ("groups-dilation", "8-channels", "48-channels", "128-channels"))
)
def test_conv2d(simulator, name, weight, dtype):
    source, window, shape = convolution(name, weight)
    x, bias = torch.randn(shape, dtype=dtype), torch.randn(source.rows)
    check_conv2d(simulator, source, window, x, bias)
    check_conv2d(simulator, source, window, x.contiguous(memory_format=torch.channels_last))


COMPACT = (  # weights, dtype, precision, batch, whether a tile of 256 columns fills the device
    (SIGNED, FLOAT32, "highest", 65, False),
    (SIGNED, FLOAT32, "high", 130, False),
    (SIGNED, BFLOAT16, "highest", 66, False),
    (SIGNED, FLOAT16, "highest", 66, True),
)


@pytest.mark.parametrize("weight, dtype, precision, batch, wide", COMPACT)
@pytest.mark.parametrize("freeze", cuda_cases.FREEZES)
def test_producers_make_compact_masks(simulator, monkeypatch, weight, dtype, precision, batch, wide, freeze):
    torch.set_float32_matmul_precision(precision)
    monkeypatch.setattr(import_module("slt_kernels.backends.cuda.product"), "fills", lambda *_: wide)
    source = source_of(67, 300, weight, cuda_cases.FREEZES[freeze]).shard((1, 67), (1, 9))
    check_linear(simulator, source, torch.randn(batch, source.fan, dtype=dtype), random_mask(source, compact=True))
    assert simulator.launches[-1]["kernel"].endswith("_compact")


def test_compact_masks_are_expanded_where_many_tiles_use_a_weight(simulator):
    source = source_of(65, 40, freeze=Freeze(0.25, 0.3125))
    for batch, compact in ((192, True), (400, False)):
        check_linear(simulator, source, torch.randn(batch, 40), random_mask(source, compact=True))
        assert simulator.launches[-1]["kernel"].endswith("_compact") == compact


FEW_ROWS = ((SIGNED, FLOAT32, "highest"), (SIGNED, FLOAT32, "high"), (SIGNED, BFLOAT16, "highest"))


@pytest.mark.parametrize("weight, dtype, precision", FEW_ROWS)
def test_tiles_of_64_rows(simulator, weight, dtype, precision):
    """Two groups of 33 rows; the last tile of columns has one."""
    torch.set_float32_matmul_precision(precision)
    source, window = source_of(66, 3 * 16, weight), Window(1, 3, padding_w=1, groups=2)
    check_conv2d(simulator, source, window, torch.randn(1, 32, 1, 257, dtype=dtype), bias=torch.randn(66))
    assert simulator.launches[-1]["kernel"].endswith("_64_rows")


def test_the_operation_chooses_by_batch(simulator):
    source = source_of(5, 40, freeze=Freeze(0.25, 0.3125))
    for batch, name in ((64, "slt_forward_small"), (65, "slt_product")):
        for compact in (False, True):
            arguments = (
                torch.randn(batch, 40).bfloat16(),
                random_mask(source, compact),
                torch.tensor(0.37),
                None,
                source,
            )
            y = cuda.linear_forward(*arguments)
            assert simulator.launches[-1]["kernel"].startswith(name)
            assert simulator.never_written(y) == 0
            expected = reference.linear_forward(*arguments)
            assert (y - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("weight", [SIGNED, NORMAL])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_two_digits(simulator, weight, dtype):
    torch.set_float32_matmul_precision("high")
    check_linear(simulator, source_of(5, 200, weight), torch.randn(70, 200, dtype=dtype))


@pytest.mark.parametrize("weight, dtype", [(SIGNED, FLOAT32), (SIGNED, FLOAT16), (NORMAL, FLOAT32)])
def test_shards(simulator, weight, dtype):
    for source in shards(weight):
        check_linear(simulator, source, torch.randn(3, source.fan, dtype=dtype))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_special_values(simulator, precision):
    torch.set_float32_matmul_precision(precision)
    x = special_values()
    check_linear(simulator, source_of(5, 260), x, bias=torch.randn(5))
    window = Window(2, 2)
    check_conv2d(simulator, source_of(5, 20), window, x.view(9, 5, 4, 13))


def test_long_vectors_are_converted_in_pieces(simulator):
    for length in (8192, 8193, 16385):
        x = torch.randn(2, length)
        x[0, length - 1] = 5000
        check_linear(simulator, source_of(3, length), x)
    source, window, _ = convolution("48-channels")
    check_conv2d(simulator, source, window, torch.randn(2, 48, 15, 14))


def test_memory_that_is_not_aligned(simulator):
    source = source_of(5, 256)
    mask = unaligned_mask(source)
    for dtype in (FLOAT32, BFLOAT16):
        check_linear(simulator, source, torch.randn(2 * 256 + 1, dtype=dtype)[1:].view(2, 256), mask)


@pytest.mark.parametrize("weight, dtype", [(SIGNED, FLOAT32), (SIGNED, BFLOAT16), (NORMAL, FLOAT32)])
def test_parts_of_k(simulator, monkeypatch, weight, dtype):
    """k is cut where there are few tiles, and so that sums of 32 bits hold a part."""
    module = import_module("slt_kernels.backends.cuda.product")
    for least, summands in ((1, 2**17), (8, 256)):
        monkeypatch.setattr(module, "_LEAST_CALLS", least)
        monkeypatch.setattr(module, "SUMMANDS", summands)
        module.prepared.cache_clear()
        check_linear(simulator, source_of(3, 600, weight), torch.randn(2, 600, dtype=dtype), bias=torch.randn(3))
        parts = 5 if least == 1 else 3 if dtype == FLOAT32 else 1
        assert ("add" in simulator.launches[-1]["kernel"]) == (parts > 1)
    module.prepared.cache_clear()


KERNELS = [
    (SIGNED, FLOAT32, "highest", False),
    (SIGNED, FLOAT32, "high", False),
    (NORMAL, FLOAT32, "highest", False),
    (SIGNED, BFLOAT16, "highest", False),
    (SIGNED, BFLOAT16, "highest", True),
]


@pytest.mark.parametrize("weight, dtype, precision, wide", KERNELS)
def test_schedules(simulator, monkeypatch, weight, dtype, precision, wide):
    """Several tiles for each block, and more steps than stages, of which there are as few as may be."""
    torch.set_float32_matmul_precision(precision)
    module = import_module("slt_kernels.backends.cuda.product")
    monkeypatch.setattr(module, "fills", lambda *_: wide)
    monkeypatch.setattr(module, "_MOST_STAGES", 3 if simulator.arch == "sm_90a" else 2)
    machine = backends.cuda.launch.machine(torch.device("cpu"))._replace(processors=2)
    monkeypatch.setattr(backends.cuda.launch, "machine", lambda device: machine)
    module.prepared.cache_clear()
    source, x = source_of(130, 700, weight), torch.randn(130, 700, dtype=dtype)
    mask = random_mask(source)
    for seed in range(2):
        simulator.options.update(schedule=seed, quantum=(100, 4)[seed % 2], resident=2)
        check_linear(simulator, source, x, mask)
    module.prepared.cache_clear()


@pytest.mark.all_simulations
@pytest.mark.parametrize("weight, dtype", [(SIGNED, FLOAT32), (NORMAL, FLOAT32), (SIGNED, BFLOAT16)])
def test_faults_are_found(simulator, monkeypatch, weight, dtype):
    """Each barrier, fence, wait and arrival is needed, where a block has several tiles and more steps than stages."""
    from cuda_faults import survivors

    module = import_module("slt_kernels.backends.cuda.product")
    monkeypatch.setattr(module, "fills", lambda *_: False)
    monkeypatch.setattr(module, "_MOST_STAGES", 3 if simulator.arch == "sm_90a" else 2)
    machine = backends.cuda.launch.machine(torch.device("cpu"))._replace(processors=1)
    monkeypatch.setattr(backends.cuda.launch, "machine", lambda device: machine)
    module.prepared.cache_clear()
    window, images = Window(3, 3), torch.randn(1, 32, 13, 15, dtype=dtype)
    whole, narrow = source_of(67, 9 * 32, weight), source_of(67, 9 * 15, weight)

    def check_both() -> None:
        check_conv2d(simulator, whole, window, images)
        check_conv2d(simulator, narrow, window, images[:, :15])  # value by value, with a table of the columns

    check_both()
    launch = simulator.launches[-1]
    simulator.options.update(limit=3_000_000)
    left = survivors(simulator, launch["file"], launch["kernel"], check_both, schedules=(1,))
    # The simulator runs lanes of a warp together that a GPU may run apart.
    left = [fault for fault in left if not fault.startswith("barrier of a warp")]
    # On sm_80 the ring's barriers do what the block's does, and the simulator lets a block end with arrivals left over.
    assert len(left) == 2 * (simulator.arch == "sm_80"), left
    module.prepared.cache_clear()


@pytest.mark.parametrize("weight, dtype", [(SIGNED, FLOAT32), (SIGNED, BFLOAT16)])
def test_without_warpgroup_products(weight, dtype):
    """Architectures after sm_90 have its barriers, and products of a warp."""
    with simulated(80) as simulator:
        simulator.arch = "sm_90"
        for schedule in range(2):
            simulator.options.update(schedule=schedule, quantum=10)
            check_linear(simulator, source_of(70, 700, weight), torch.randn(70, 700, dtype=dtype))
