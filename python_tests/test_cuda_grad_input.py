"""Grad_input of Linear and Conv2d on the CUDA backend: executed in a simulator, against the reference."""

from contextlib import contextmanager
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
from cuda_simulator import simulated, why_not

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference, cuda = backends.on("reference"), backends.on("cuda")
LINEAR = (  # rows, fan, batch: about the edges of steps of 128 rows, tiles of 64 columns and 128 k
    (1, 1, 1),
    (3, 31, 17),
    (17, 33, 63),
    (127, 127, 2),
    (128, 128, 64),
    (129, 129, 3),
    (2, 257, 65),
    (300, 60, 5),
)
KERNELS = [(SIGNED, FLOAT32), (SIGNED, BFLOAT16), (NORMAL, FLOAT32)]
FEW_LINEAR = ((3, 31, 17), (35, 300, 5), (257, 129, 3))
CONVOLUTIONS = cuda_cases.CONVOLUTIONS | {
    "16-rows": (129, 16, 2, 5, 6, Window(3, 2, padding_h=2, padding_w=1, dilation_h=2, stride_w=2)),
    "48-rows": (33, 96, 1, 4, 5, Window(3, 3, padding_h=1, padding_w=1, stride_h=3, stride_w=2, groups=1)),
    "8-rows": (128, 16, 1, 3, 3, Window(2, 2, groups=2, padding_h=1)),  # 16 bytes of 16-bit floats, not of digits
    "1x1": (130, 32, 3, 2, 11, Window(1, 1, groups=2)),
    "a-pixel": (3, 16, 70, 1, 1, Window(3, 3, padding_h=1, padding_w=1)),
}
FEW_CONVOLUTIONS = ("groups-dilation", "2x1-stride", "64-channels", "16-rows", "8-rows")


def check(simulator, dx: torch.Tensor, expected: torch.Tensor) -> None:
    assert simulator.never_written(dx) == 0
    assert simulator.launches[-1]["kernel"].startswith("slt_grad_input")
    assert_same(dx, expected, 2e-3)


def check_linear(simulator, source: Source, dy, mask=None) -> None:
    arguments = dy, random_mask(source) if mask is None else mask, torch.tensor(0.37), source
    check(simulator, cuda.linear_grad_input(*arguments), reference.linear_grad_input(*arguments))


def check_conv2d(simulator, source: Source, window: Window, size: tuple[int, int], dy, mask=None) -> None:
    """The gradient by the kernel for wide groups, however narrow they are."""
    arguments = dy, random_mask(source) if mask is None else mask, torch.tensor(0.37), source, window, list(size)
    dx = backends.registry.make_outputs("conv2d_grad_input", arguments)
    import_module("slt_kernels.backends.cuda.grad_input").conv2d_grad_input(dx, *arguments)
    check(simulator, dx, reference.conv2d_grad_input(*arguments))


def convolution(name: str, weight: str = SIGNED) -> tuple[Source, Window, tuple[int, int], tuple[int, ...]]:
    """The source, the window, the size of the images of dx, and the shape of dy."""
    channels, rows, images, height, width, window = CONVOLUTIONS[name]
    source = source_of(rows, channels // window.groups * window.kernel_h * window.kernel_w, weight)
    return source, window, (height, width), (images, rows, *window.output_size(height, width))


@pytest.mark.parametrize("shape, weight, dtype", kinds(LINEAR, FEW_LINEAR))
def test_linear(simulator, shape, weight, dtype):
    rows, fan, batch = shape
    check_linear(simulator, source_of(rows, fan, weight), torch.randn(batch, rows, dtype=dtype))


@pytest.mark.parametrize("name, weight, dtype", kinds(CONVOLUTIONS, FEW_CONVOLUTIONS))
def test_conv2d(simulator, name, weight, dtype):
    source, window, size, shape = convolution(name, weight)
    dy = torch.randn(shape, dtype=dtype)
    check_conv2d(simulator, source, window, size, dy)
    check_conv2d(simulator, source, window, size, dy.contiguous(memory_format=torch.channels_last))


def test_compact_masks(simulator):
    source = source_of(5, 40, freeze=Freeze(0.25, 0.3125))
    check_linear(simulator, source, torch.randn(3, 5), random_mask(source, compact=True))


@pytest.mark.parametrize("weight", [SIGNED, NORMAL])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_two_digits(simulator, weight, dtype):
    torch.set_float32_matmul_precision("high")
    check_linear(simulator, source_of(200, 130, weight), torch.randn(66, 200, dtype=dtype))


@pytest.mark.parametrize("weight, dtype", [(SIGNED, FLOAT32), (SIGNED, FLOAT16), (NORMAL, FLOAT32)])
def test_shards(simulator, weight, dtype):
    for source in shards(weight):
        check_linear(simulator, source, torch.randn(3, source.rows, dtype=dtype))
    source = source_of(80, 900, weight).shard((0, 3), (7, 13))  # taps of 48 channels
    check_conv2d(simulator, source, Window(2, 2), (3, 3), torch.randn(1, 3, 2, 2, dtype=dtype))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_special_values(simulator, precision):
    torch.set_float32_matmul_precision(precision)
    dy = special_values()
    check_linear(simulator, source_of(260, 5), dy)
    check_conv2d(simulator, source_of(5, 12), Window(2, 2), (5, 14), dy.view(9, 5, 4, 13))


def test_memory_that_is_not_aligned(simulator):
    source = source_of(5, 256)
    mask = unaligned_mask(source)
    for dtype in (FLOAT32, BFLOAT16):
        check_linear(simulator, source, torch.randn(5 * 7 + 1, dtype=dtype)[1:].view(5, 7).T, mask)


def test_what_no_kernel_takes(simulator):
    source = source_of(3, 33)
    for dy in (torch.randn(2, 3, dtype=torch.float64), torch.empty(0, 3)):
        arguments = dy, random_mask(source), torch.tensor(0.37), source
        assert torch.equal(cuda.linear_grad_input(*arguments), reference.linear_grad_input(*arguments))
    arguments = torch.randn(0, 3, 1, 1), random_mask(source_of(3, 27)), torch.tensor(1.0), source_of(3, 27)
    assert cuda.conv2d_grad_input(*arguments, Window(3, 3), [3, 3]).shape == (0, 3, 3, 3)
    assert simulator.launches == []


@pytest.fixture
def prepared(monkeypatch):
    """Prepares launches with other limits."""
    module = import_module("slt_kernels.backends.cuda.grad_input")

    @contextmanager
    def limits(**changed):
        with monkeypatch.context() as patch:
            for name, value in changed.items():
                patch.setattr(module, name, value)
            module.prepared.cache_clear()
            yield
        module.prepared.cache_clear()

    return limits


@pytest.mark.parametrize("weight, dtype", KERNELS)
def test_parts(simulator, prepared, weight, dtype):
    """The summands are cut where there are few tiles, and so that sums of 32 bits hold a part."""
    source, dy = source_of(600, 20, weight), torch.randn(2, 600, dtype=dtype)
    for least, summands in ((1, 2**17), (8, 256)):
        with prepared(_LEAST_STEPS=least, SUMMANDS=summands):
            check_linear(simulator, source, dy)
        parts = 3 if least == 1 or dtype == FLOAT32 else 1
        assert ("add" in simulator.launches[-1]["kernel"]) == (parts > 1)


@pytest.fixture
def device(simulator, monkeypatch):
    """Replaces properties of the device."""
    module, machine = backends.cuda.launch, backends.cuda.launch.machine(torch.device("cpu"))
    yield lambda **changed: monkeypatch.setattr(module, "machine", lambda device: machine._replace(**changed))


@pytest.mark.parametrize("weight, dtype", KERNELS)
def test_devices_of_one_multiprocessor(simulator, device, weight, dtype):
    """They have wide tiles, and on sm_90a a block several. Devices of capability 8.6 have less shared memory."""
    device(processors=1, **({"shared": 99 * 1024} if simulator.arch == "sm_80" else {}))
    check_linear(simulator, source_of(400, 130, weight), torch.randn(66, 400, dtype=dtype))
    source, window, size, shape = convolution("64-channels", weight)
    check_conv2d(simulator, source, window, size, torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("weight, dtype", KERNELS)
def test_schedules(simulator, device, weight, dtype):
    """More steps than stages, of which there may be few, in random orders."""
    source, window = source_of(70, 9 * 6, weight), Window(3, 3)
    mask, dy, images = random_mask(source), torch.randn(3, 500, dtype=dtype), torch.randn(1, 70, 1, 2, dtype=dtype)
    linear = source_of(500, 130, weight)
    for seed, shared in ((1, 99 if simulator.arch == "sm_80" else 120), (2, 227)):
        device(processors=seed, shared=shared * 1024)
        simulator.options.update(schedule=seed, quantum=(100, 4)[seed % 2], resident=2)
        check_linear(simulator, linear, dy)
        check_conv2d(simulator, source, window, (3, 4), images, mask)


def faults_left(simulator, check) -> list[str]:
    """The faults of the kernel that ``check`` launches which it lets pass."""
    from cuda_faults import survivors

    check()
    launch = next(each for each in reversed(simulator.launches) if "_add_" not in each["kernel"])
    left = survivors(simulator, launch["file"], launch["kernel"], check, schedules=(1,))
    # The simulator runs lanes of a warp together that a GPU may run apart.
    return [fault for fault in left if not fault.startswith("barrier of a warp")]


@pytest.mark.all_simulations
def test_faults_are_found(monkeypatch):
    """Each barrier and wait of sm_80 is needed, whether there are two stages or three: without it, a test fails."""
    with simulated(80) as simulator:
        source, dy = source_of(400, 3), torch.randn(1, 400)

        def check():
            simulator.options.update(schedule=1, quantum=20, resident=1)
            for shared in (130 * 1024, 227 * 1024):
                machine = backends.cuda.launch.Machine(80, 1, shared)
                monkeypatch.setattr(backends.cuda.launch, "machine", lambda device, found=machine: found)
                check_linear(simulator, source, dy)

        assert faults_left(simulator, check) == []


@pytest.mark.all_simulations
def test_faults_of_the_ring_are_found(monkeypatch, prepared):
    """The same of sm_90a, where a block has several tiles, and either dx or parts of it to store."""
    with simulated(90) as simulator:
        image, window, dy = source_of(240, 2 * 129), Window(1, 2), torch.randn(1, 240, 5, 8)
        linear, vectors = source_of(520, 129), torch.randn(3, 520)
        machine = backends.cuda.launch.Machine(90, 1, 227 * 1024)
        monkeypatch.setattr(backends.cuda.launch, "machine", lambda device: machine)

        def check():
            simulator.options.update(schedule=0)
            check_conv2d(simulator, image, window, (5, 9), dy)
            with prepared(SUMMANDS=384):
                simulator.options.update(schedule=1, quantum=20, resident=1)
                check_linear(simulator, linear, vectors)

        # Producers complete the last stage with summands only once the one after it, for the output, is empty.
        (fault,) = faults_left(simulator, check)
        assert fault.startswith("wait always done")
