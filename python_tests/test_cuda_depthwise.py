"""Conv2d with few channels and rows per group, and its grad_input, on the CUDA backend: executed in a simulator."""

from importlib import import_module

import pytest
import torch
from cuda_cases import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FREEZES,
    NORMAL,
    SIGNED,
    UNIFORM,
    assert_same,
    kinds,
    random_mask,
    source_of,
    special_values,
)
from cuda_simulator import simulated, why_not

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")

reference, cuda = backends.on("reference"), backends.on("cuda")
CASES = {  # channels, rows, images, height, width, window
    "3x3": (37, 37, 2, 9, 7, Window(3, 3, padding_h=1, padding_w=1, groups=37)),
    "3x3-stride": (5, 5, 1, 12, 9, Window(3, 3, 2, 2, 1, 1, groups=5)),
    "5x3-stride-dilation": (3, 3, 2, 23, 8, Window(5, 3, 2, 3, 4, 2, 3, 2, 3)),
    "dilation-4": (2, 2, 1, 18, 6, Window(3, 2, 2, 1, 3, 2, 4, 1, 2)),
    "9x1": (4, 4, 1, 10, 3, Window(9, 1, padding_h=4, groups=4)),
    "12x12": (3, 3, 1, 13, 13, Window(12, 12, padding_h=1, groups=3)),
    "multiplier": (3, 15, 2, 5, 6, Window(3, 2, padding_w=1, groups=3)),
    "channels-2-rows-4": (6, 12, 1, 7, 5, Window(2, 3, 1, 2, 1, 1, groups=3)),
    "padding-past-the-window": (2, 2, 1, 3, 2, Window(2, 2, padding_h=3, padding_w=2, groups=2)),
    "1x1-stride": (4, 8, 1, 5, 5, Window(1, 1, 3, 2, groups=4)),
    "one-channel": (1, 3, 2, 6, 6, Window(3, 3)),
}
FEW = ("3x3", "5x3-stride-dilation", "channels-2-rows-4")


def convolution(name: str, weight: str = SIGNED, **options) -> tuple[Source, Window, tuple, tuple]:
    """The source, the window, and the shapes of x and y."""
    channels, rows, images, height, width, window = CASES[name]
    source = source_of(rows, channels // window.groups * window.kernel_h * window.kernel_w, weight, **options)
    return source, window, (images, channels, height, width), (images, rows, *window.output_size(height, width))


def check(simulator, operation: str, *arguments) -> None:
    found = getattr(cuda, operation)(*arguments)
    assert simulator.launches[-1]["kernel"].startswith("slt_depthwise")
    assert simulator.never_written(found) == 0
    assert_same(found, getattr(reference, operation)(*arguments), 2e-3)


def check_both(simulator, source: Source, window: Window, x, dy, mask=None, bias=None) -> None:
    """The forward and grad_input."""
    mask, scale = random_mask(source) if mask is None else mask, torch.tensor(0.37)
    check(simulator, "conv2d_forward", x, mask, scale, bias, source, window)
    check(simulator, "conv2d_grad_input", dy, mask, scale, source, window, list(x.shape[2:]))


@pytest.mark.parametrize("name, weight, dtype", kinds(CASES, FEW))
def test_conv2d(simulator, name, weight, dtype):
    source, window, shape, out_shape = convolution(name, weight)
    x, dy = torch.randn(shape, dtype=dtype), torch.randn(out_shape, dtype=dtype)
    check_both(simulator, source, window, x, dy, bias=torch.randn(source.rows))
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    check_both(simulator, source, window, x, dy)


@pytest.mark.parametrize("weight", [SIGNED, UNIFORM])
def test_two_digits(simulator, weight):
    torch.set_float32_matmul_precision("high")
    source, window, shape, out_shape = convolution("3x3", weight)
    check_both(simulator, source, window, torch.randn(shape), torch.randn(out_shape))


def test_the_type_of_sums(simulator):
    """int32 where it holds them; sums of the largest weights and inputs are exact."""
    for weight, precision, name in (
        (NORMAL, "highest", "int64"),
        (NORMAL, "high", "int32"),
        (SIGNED, "highest", "int32"),
    ):
        torch.set_float32_matmul_precision(precision)
        source, window, shape, out_shape = convolution("12x12", weight)
        x = torch.ones(shape)
        dy = torch.ones(out_shape)
        check_both(simulator, source, window, x, dy, torch.full((source.rows, source.words), -1, dtype=torch.int32))
        assert simulator.launches[-1]["kernel"] == f"slt_depthwise_{name}"


@pytest.mark.parametrize("freeze", FREEZES)
def test_compact_masks(simulator, freeze):
    source, window, shape, out_shape = convolution("channels-2-rows-4", freeze=FREEZES[freeze])
    mask = random_mask(source, compact=True)
    check_both(simulator, source, window, torch.randn(shape), torch.randn(out_shape), mask)


@pytest.mark.parametrize("weight", [SIGNED, NORMAL])
def test_shards(simulator, weight):
    """Rows of a layer, and words of its rows that begin inside a call."""
    window = Window(4, 8, padding_h=2, padding_w=1, groups=3)
    for part in (((70, 73), (0, 3)), ((5, 8), (7, 10)), ((6, 9), (2, 5))):
        source = source_of(80, 900, weight).shard(*part)
        x = torch.randn(1, 9, 5, 9)
        check_both(simulator, source, window, x, torch.randn(1, 3, *window.output_size(5, 9)))


def test_special_values(simulator):
    """A sample that is not finite is NaN, and no other."""
    x = special_values().view(9, 5, 4, 13)
    window = Window(2, 2, groups=5)
    check_both(simulator, source_of(5, 4), window, x, x[:, :, :3, :12].contiguous(), bias=torch.randn(5))
    x = torch.randn(2, 3, 60, 50)  # several pieces per image
    x[0, 2, 59, 49] = 1e6
    check_both(simulator, source_of(3, 4), Window(2, 2, groups=3), x, torch.randn(2, 3, 59, 49))


def test_memory_formats_and_offsets(simulator):
    source, window, shape, _ = convolution("3x3")
    mask, scale = random_mask(source), torch.tensor(0.37)
    for dtype in (FLOAT32, BFLOAT16):
        whole = torch.randn(2 * shape[0], *shape[1:], dtype=dtype)
        for x in (whole[::2], whole[1:][: shape[0]], whole[: shape[0]].transpose(2, 3)):
            check(simulator, "conv2d_forward", x, mask, scale, None, source, window)


@pytest.fixture
def device(simulator, monkeypatch):
    """Replaces properties of the device."""
    module, machine = backends.cuda.launch, backends.cuda.launch.machine(torch.device("cpu"))
    yield lambda **changed: monkeypatch.setattr(module, "machine", lambda device: machine._replace(**changed))


def test_tiles_fit_in_shared_memory(simulator, device):
    """They become smaller until they do, and a window that leaves room for none is another kernel's."""
    source, window, shape, out_shape = convolution("3x3")
    for shared in (16 * 1024, 6 * 1024):
        device(shared=shared)
        for form in (torch.contiguous_format, torch.channels_last):
            x, dy = (torch.randn(s).contiguous(memory_format=form) for s in (shape, out_shape))
            check_both(simulator, source, window, x, dy)
            assert simulator.launches[-1]["shared"] <= shared
    module = import_module("slt_kernels.backends.cuda.depthwise")
    device(shared=512)
    assert not module.takes(x, source, module.forward_of(x, window))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16])
def test_several_images_per_block(simulator, device, dtype):
    """In random orders of threads: what one image leaves in shared memory is not read for the next."""
    device(processors=1, shared=16 * 1024)
    source = source_of(2, 6)
    window = Window(3, 2, groups=2)
    x, dy = torch.randn(70, 2, 4, 3, dtype=dtype), torch.randn(70, 2, 2, 2, dtype=dtype)
    for seed in range(2):
        simulator.options.update(schedule=seed, quantum=(100, 7)[seed], resident=2)
        check_both(simulator, source, window, x, dy)
        assert simulator.launches[-1]["blocks"] < 70


def test_what_it_takes(simulator):
    """Narrow groups, in types and sizes that it has."""
    module = import_module("slt_kernels.backends.cuda.depthwise")

    def taken(channels, rows, groups, kernel, **options):
        window, x = Window(kernel, kernel, groups=groups), torch.randn(1, channels, 40, 40, **options)
        return module.takes(x, source_of(rows, channels // groups * kernel**2), module.forward_of(x, window))

    assert taken(64, 64, 64, 3) and taken(64, 64, 64, 7) and taken(8, 32, 8, 5) and taken(64, 64, 16, 3)
    assert not taken(64, 64, 1, 3)
    assert not taken(64, 64, 4, 1)  # 16 rows and 16 channels: a tensor core takes less
    assert not taken(64, 64, 2, 1)
    assert not taken(4, 4, 4, 3, dtype=torch.float64)
    assert not module.takes(
        torch.empty(0, 4, 9, 9), source_of(4, 9), module.forward_of(torch.empty(0, 4, 9, 9), Window(3, 3, groups=4))
    )


@pytest.mark.all_simulations
@pytest.mark.parametrize("capability, dtype", [(80, FLOAT32), (90, BFLOAT16)])
def test_faults_are_found(monkeypatch, capability, dtype):
    """Each barrier of the kernel is needed: without it, a test fails."""
    from cuda_faults import survivors

    with simulated(capability) as simulator:
        machine = backends.cuda.launch.Machine(capability, 1, 16 * 1024)
        monkeypatch.setattr(backends.cuda.launch, "machine", lambda device: machine)
        source, window = source_of(2, 6, NORMAL), Window(3, 2, groups=2)
        x = torch.randn(70, 2, 4, 3, dtype=dtype)
        arguments = x, random_mask(source), torch.tensor(0.37), None, source, window

        def run() -> None:
            check(simulator, "conv2d_forward", *arguments)

        name = "int64" if dtype == FLOAT32 else "bfloat16"
        assert survivors(simulator, "depthwise", f"slt_depthwise_{name}", run) == []
