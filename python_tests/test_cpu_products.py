"""The CPU backend's products and materialize against the reference, bit for bit, on every instruction set."""

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from computed_once import ComputedOnce
from processes import run_forked
from torch.nn import grad

from slt_kernels import SupermaskLinear, backends
from slt_kernels.backends.arguments import digit_count, is_highest
from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Freeze, Source

cpu, reference = backends.on("cpu"), ComputedOnce(backends.on("reference"))

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SHAPES = ((1, 1), (3, 31), (17, 32), (65, 33), (16, 63), (3, 65), (1, 127), (33, 129), (17, 257), (5, 1031))


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


@pytest.fixture
def keeps_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=("highest", "high"))
def precision(request, keeps_precision):
    torch.set_float32_matmul_precision(request.param)
    return request.param


def test_precision_by_the_settings_of_one_backend():
    """PyTorch's older setting cannot be read after them. Those of the device count: float32 is never refused."""
    mkldnn, cuda, x = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul, torch.zeros(1)
    if not hasattr(mkldnn, "fp32_precision"):
        pytest.skip("PyTorch before 2.9 has no such settings")
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    layer, before = SupermaskLinear(20, 5), (mkldnn.fp32_precision, cuda.fp32_precision)
    try:
        cuda.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        layer(torch.randn(3, 20)).square().sum().backward()
        assert digit_count(x) == 3 and digit_count(x.bfloat16()) == 2
        mkldnn.fp32_precision = "bf16"
        assert digit_count(x) == 2
        assert not is_highest(on_gpu)
        cuda.fp32_precision = "ieee"
        assert is_highest(on_gpu)
    finally:
        mkldnn.fp32_precision, cuda.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("batch", (0, 1, 2, 3, 5, 9, 16, 17, 35))
@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear_forward(isa, precision, rows, fan, batch):
    x, scale, bias = inputs(batch, fan), torch.tensor(0.37), torch.randn(rows)
    for i, source in enumerate(sources(rows, fan, freeze=Freeze(0.25, 0.25))):
        mask, b = random_mask(source, compact=batch == 3), bias if (i + batch) % 2 else None
        y = cpu.linear_forward(x, mask, scale, b, source)
        assert torch.equal(y, reference.linear_forward(x, mask, scale, b, source))


@pytest.mark.parametrize("batch", (0, 1, 2, 3, 4, 5, 7, 11, 14, 17, 35))
@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear_forward_int8(isa, rows, fan, batch):
    x, scale, bias = inputs(batch, fan), torch.tensor(0.37), torch.randn(rows)
    for i, source in enumerate(sources(rows, fan, freeze=Freeze(0.25, 0.25))):
        mask, b = random_mask(source, compact=batch == 3), bias if (i + batch) % 2 else None
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            arguments = x.clamp(-6e4, 6e4).to(dtype), mask, scale, b, source
            assert torch.equal(cpu.linear_forward_int8(*arguments), reference.linear_forward_int8(*arguments))


@pytest.mark.parametrize("batch", (0, 1, 2, 3, 4, 5, 17))
@pytest.mark.parametrize("rows,fan", (*SHAPES, (70, 4100)))
def test_linear_forward_of_stored_signs(isa, precision, rows, fan, batch):
    """Signs that are not the source's show that they are read; and garbage in their padding, that it is not."""
    x, scale, bias = inputs(batch, fan), torch.tensor(0.37), torch.randn(rows)
    source = Source.of(rows, fan, seed=1, freeze=Freeze(0.25, 0.25))
    mask, signs = random_mask(source, compact=batch == 3), random_mask(source)
    for int8 in (False, True):
        arguments = x, mask, signs, scale, bias, source, int8
        assert torch.equal(cpu.linear_forward_stored(*arguments), reference.linear_forward_stored(*arguments))
    y = cpu.linear_forward_stored(x, mask, source.signs(), scale, bias, source, False)
    assert torch.equal(y, cpu.linear_forward(x, mask, scale, bias, source))


@pytest.mark.parametrize("batch", (0, 1, 3, 17, 35))
@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear_grad_input(isa, precision, rows, fan, batch):
    dy, scale = inputs(batch, rows), torch.tensor(0.37)
    for source in sources(rows, fan):
        mask = random_mask(source, compact=batch == 3)
        dx = cpu.linear_grad_input(dy, mask, scale, source)
        assert torch.equal(dx, reference.linear_grad_input(dy, mask, scale, source))


@pytest.mark.parametrize(
    "rows,fan,batch",
    # Tables take sixteen vectors at a time, where there are 256 outputs.
    ((150, 700, 37), (40, 530, 5), (35, 9000, 131), (8250, 40, 131), (300, 200, 12), (300, 200, 13), (300, 200, 24)),
)
def test_linear_of_many(isa, rows, fan, batch):
    """Outputs and vectors enough for tables of sums, and sums in several parts."""
    x, dy, scale, bias = inputs(batch, fan), inputs(batch, rows), torch.tensor(0.37), torch.randn(rows)
    for source in sources(rows, fan):
        mask = random_mask(source)
        y = cpu.linear_forward(x, mask, scale, bias, source)
        assert torch.equal(y, reference.linear_forward(x, mask, scale, bias, source))
        dx = cpu.linear_grad_input(dy, mask, scale, source)
        assert torch.equal(dx, reference.linear_grad_input(dy, mask, scale, source))
        arguments = x, mask, scale, bias, source
        assert torch.equal(cpu.linear_forward_int8(*arguments), reference.linear_forward_int8(*arguments))


def test_largest_sums(isa):
    """Every product is the largest there is, and all of one sign."""
    source = Source.of(40, 1024, seed=1, layer=1)
    mask = torch.full((source.rows, source.words), -1, dtype=torch.int32)
    x = reference.materialize(mask, source)[:1].float().expand(20, -1).contiguous()
    y = cpu.linear_forward(x, mask, torch.tensor(1.0), None, source)
    assert torch.equal(y, reference.linear_forward(x, mask, torch.tensor(1.0), None, source))
    assert (y[:, 0] == source.fan).all()


CONVOLUTIONS = {  # batch, groups, channels and rows of a group, (h, w), and Window's arguments
    "1x1": (2, 1, 5, 7, (4, 3), {"kernel": (1, 1)}),
    "3x3": (3, 1, 32, 65, (5, 6), {"kernel": (3, 3), "padding": (1, 1)}),
    "3x3-wide": (1, 1, 128, 16, (9, 8), {"kernel": (3, 3), "padding": (1, 1)}),
    "odd-channels": (2, 1, 33, 3, (7, 5), {"kernel": (3, 3), "padding": (1, 1)}),
    "stem": (3, 1, 3, 17, (8, 9), {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)}),
    "tall-stem": (2, 1, 3, 17, (30, 31), {"kernel": (3, 7), "stride": (1, 3), "padding": (4, 1), "dilation": (2, 1)}),
    "grey": (40, 1, 1, 9, (8, 7), {"kernel": (5, 4)}),
    "stride": (2, 1, 16, 5, (9, 10), {"kernel": (3, 3), "stride": (2, 3), "padding": (1, 0)}),
    "stride-1x1": (2, 1, 16, 20, (7, 7), {"kernel": (1, 1), "stride": (2, 2)}),
    "dilation": (1, 1, 4, 6, (11, 9), {"kernel": (3, 2), "padding": (2, 1), "dilation": (2, 3)}),
    "both": (1, 1, 4, 6, (9, 9), {"kernel": (3, 2), "padding": (2, 1), "dilation": (2, 3), "stride": (3, 2)}),
    "groups": (2, 3, 8, 5, (6, 6), {"kernel": (3, 3), "padding": (1, 1)}),
    "depthwise": (2, 9, 1, 1, (6, 5), {"kernel": (3, 3), "padding": (1, 1), "stride": (2, 2)}),
    "one-pixel": (5, 1, 40, 33, (1, 1), {"kernel": (3, 3), "padding": (1, 1)}),
    "empty-batch": (0, 1, 4, 4, (5, 5), {"kernel": (3, 3)}),
    # Whole tiles of channels: AMX reads these in place.
    "tiles": (3, 1, 64, 64, (5, 6), {"kernel": (3, 3), "padding": (1, 1)}),
    "tiles-1x1": (3, 1, 64, 128, (4, 5), {"kernel": (1, 1)}),
    "tiles-groups": (2, 2, 64, 128, (6, 17), {"kernel": (3, 3), "padding": (1, 1)}),
    "tiles-valid": (2, 1, 64, 64, (8, 9), {"kernel": (5, 3)}),
    "tiles-padding": (2, 1, 64, 64, (8, 9), {"kernel": (3, 2), "padding": (3, 2)}),
    "tiles-dilation": (1, 1, 64, 64, (19, 21), {"kernel": (3, 2), "padding": (2, 1), "dilation": (2, 3)}),
    "tiles-stride": (2, 1, 64, 64, (9, 10), {"kernel": (3, 3), "padding": (1, 1), "stride": (2, 2)}),
    "tiles-few-pixels": (4, 1, 64, 64, (2, 1), {"kernel": (3, 3), "padding": (1, 1)}),
    "tiles-of-16-bits": (2, 1, 32, 96, (13, 29), {"kernel": (3, 3), "padding": (1, 1)}),
    "tiles-of-16-bits-1x1": (2, 1, 96, 40, (7, 9), {"kernel": (1, 1)}),
    "no-taps": (2, 1, 64, 64, (9, 10), {"kernel": (1, 1), "stride": (2, 3)}),
    "many-outputs": (2, 1, 40, 140, (7, 9), {"kernel": (3, 3), "padding": (1, 1)}),
    "very-many-outputs": (1, 1, 32, 1024, (3, 61), {"kernel": (3, 3), "padding": (1, 1)}),
    # Weights too many for a direct convolution.
    "stem-many-outputs": (3, 1, 3, 140, (8, 9), {"kernel": (7, 7), "stride": (2, 2), "padding": (3, 3)}),
    "stride-many-outputs": (2, 1, 16, 130, (9, 10), {"kernel": (3, 3), "stride": (2, 3), "padding": (1, 0)}),
    "dilation-many-outputs": (1, 1, 60, 60, (11, 9), {"kernel": (3, 2), "padding": (2, 1), "dilation": (2, 3)}),
    "groups-odd-channels": (2, 2, 33, 70, (7, 5), {"kernel": (3, 3), "padding": (1, 1)}),
    "deep": (3, 1, 1100, 34, (4, 3), {"kernel": (3, 3), "padding": (1, 1)}),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    """Batch, window, images' shapes, and a source of each kind."""
    batch, groups, channels, rows, size, geometry = CONVOLUTIONS[request.param]
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | geometry
    window = Window(*(n for name in ("kernel", "stride", "padding", "dilation") for n in geometry[name]), groups)
    x_shape = (batch, groups * channels, *size)
    y_shape = (batch, groups * rows, *window.output_size(*size))
    layer = sources(groups * rows, channels * geometry["kernel"][0] * geometry["kernel"][1], freeze=Freeze(0.2, 0.2))
    return window, x_shape, y_shape, layer


def same_format(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) and a.is_contiguous() == b.is_contiguous()


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_conv2d_forward(isa, precision, convolution, memory_format):
    window, x_shape, y_shape, layer = convolution
    x, scale, bias = inputs(*x_shape).to(memory_format=memory_format), torch.tensor(0.37), torch.randn(y_shape[1])
    for i, source in enumerate(layer):
        mask, b = random_mask(source, compact=i == 0), bias if i else None
        y = cpu.conv2d_forward(x, mask, scale, b, source, window)
        assert same_format(y, reference.conv2d_forward(x, mask, scale, b, source, window))


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_conv2d_forward_int8(isa, convolution, memory_format):
    window, x_shape, y_shape, layer = convolution
    x, scale, bias = inputs(*x_shape).to(memory_format=memory_format), torch.tensor(0.37), torch.randn(y_shape[1])
    for i, (source, dtype) in enumerate(zip(layer, (torch.float32, torch.bfloat16, torch.float32), strict=True)):
        arguments = x.to(dtype), random_mask(source, compact=i == 0), scale, bias if i else None, source, window
        assert same_format(cpu.conv2d_forward_int8(*arguments), reference.conv2d_forward_int8(*arguments))


@pytest.mark.parametrize("kernel", (150, 230))
def test_conv2d_of_whole_images(isa, kernel):
    """Kernels so large that a position alone is most of a thread's scratch, or all of it."""
    source, window = Source.of(33, 3 * kernel * kernel, seed=1, layer=1), Window(kernel, kernel)
    x, mask, scale = torch.randn(1, 3, kernel, kernel + 10), random_mask(source), torch.tensor(0.37)
    y = cpu.conv2d_forward(x, mask, scale, None, source, window)
    assert torch.equal(y, reference.conv2d_forward(x, mask, scale, None, source, window))


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_conv2d_grad_input(isa, precision, convolution, memory_format):
    window, x_shape, y_shape, layer = convolution
    dy, scale = inputs(*y_shape).to(memory_format=memory_format), torch.tensor(0.37)
    for i, source in enumerate(layer):
        mask = random_mask(source, compact=i == 0)
        dx = cpu.conv2d_grad_input(dy, mask, scale, source, window, list(x_shape[2:]))
        assert same_format(dx, reference.conv2d_grad_input(dy, mask, scale, source, window, list(x_shape[2:])))


LARGE_KERNELS = {  # larger than dy, so that most taps read beyond its edge: batch, channels, rows, (h, w), window
    "one-pixel": (1, 1, 2, (33, 32), Window(33, 32)),
    "one-pixel-of-many": (17, 3, 5, (7, 6), Window(7, 6)),
    "few-pixels": (2, 3, 37, (20, 19), Window(17, 18)),
    "padding": (1, 1, 3, (10, 9), Window(13, 12, padding_h=3, padding_w=4)),
    "stride": (1, 2, 70, (30, 31), Window(27, 25, stride_h=2, stride_w=3, padding_h=1, padding_w=2)),
    "dilation": (2, 2, 5, (31, 25), Window(6, 5, stride_w=2, dilation_h=5, dilation_w=6)),
    "wide": (1, 45, 33, (3, 29), Window(3, 29, padding_h=1)),
    "groups": (16, 64, 64, (5, 4), Window(5, 4, groups=2)),
    "no-taps": (1, 2, 5, (1, 1), Window(2, 2, padding_h=1, padding_w=1, dilation_h=2, dilation_w=2)),
    "no-taps-depthwise": (1, 1, 1, (1, 1), Window(2, 2, 1, 1, 1, 1, 2, 2, groups=20)),
}


@pytest.mark.parametrize("kernel", LARGE_KERNELS)
def test_conv2d_grad_input_of_large_kernels(isa, kernel):
    batch, channels, rows, size, window = LARGE_KERNELS[kernel]
    dy = inputs(batch, window.groups * rows, *window.output_size(*size))
    for source in sources(window.groups * rows, channels * window.kernel_h * window.kernel_w):
        mask, scale = random_mask(source), torch.tensor(0.37)
        dx = cpu.conv2d_grad_input(dy, mask, scale, source, window, list(size))
        assert torch.equal(dx, reference.conv2d_grad_input(dy, mask, scale, source, window, list(size)))


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer needs all addresses")
def test_no_memory():
    """An error, not the end of the process."""
    script = """
import resource, torch
from slt_kernels import backends
cpu = backends.on("cpu")
from slt_kernels.source import Source
source = Source.of(1, 4096, seed=1, layer=1)
x, mask = torch.zeros(1, 4096).expand(8192, -1).contiguous(), torch.zeros(1, 128, dtype=torch.int32)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), size + (8 << 20)))
try:
    cpu.linear_forward(x, mask, torch.tensor(1.0), None, source)
except MemoryError:
    print("MemoryError")
"""
    run = run_forked(script)
    assert run.stdout == "MemoryError\n", run.stderr


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer needs all addresses")
def test_no_memory_in_a_thread():
    """However little there is, an error or the result: what each thread allocates may be what is missing."""
    script = """
import resource, torch
from slt_kernels import backends
cpu = backends.on("cpu")
from slt_kernels.source import Source
torch.set_num_threads(2)
source = Source.of(4096, 4096, seed=1, layer=1)
x, mask = torch.randn(32, 4096), torch.zeros(4096, 128, dtype=torch.int32)
expected = cpu.linear_grad_input(x, mask, torch.tensor(1.0), source)
outcomes = set()
for extra in range(0, 16 << 20, 256 << 10):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
    try:
        outcomes.add(torch.equal(cpu.linear_grad_input(x, mask, torch.tensor(1.0), source), expected))
    except (MemoryError, RuntimeError):  # of the kernel, or of the result's tensor
        outcomes.add("none left")
print(sorted(map(str, outcomes)))
"""
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.stdout == "['True', 'none left']\n", run.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of this process's threads")
def test_a_small_product_starts_no_thread():
    code = """
import os, torch
from slt_kernels import backends
from slt_kernels.source import Source
cpu = backends.on("cpu")
torch.set_num_threads(2)
for rows in (64, 1024):
    source, mask = Source.of(rows, 512), torch.zeros(rows, 16, dtype=torch.int32)
    before = len(os.listdir("/proc/self/task"))
    cpu.linear_forward(torch.randn(16, 512), mask, torch.tensor(1.0), None, source)
    print(len(os.listdir("/proc/self/task")) - before)
"""
    done = run_forked(code, os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.stdout == "0\n1\n", done.stderr


def test_more_samples_than_at_once():
    """Digits of 4.3 MB a sample: one thread makes four of them at a time."""
    threads, window, scale = torch.get_num_threads(), Window(1, 1), torch.tensor(0.37)
    images = inputs(5, 64, 150, 150)
    torch.set_num_threads(1)
    try:
        source = Source.of(8, 64, seed=1, layer=1)
        mask = random_mask(source)
        y = cpu.conv2d_forward(images, mask, scale, None, source, window)
        assert torch.equal(y, reference.conv2d_forward(images, mask, scale, None, source, window))
        source = Source.of(64, 8, seed=1, layer=1)
        mask = random_mask(source)
        dx = cpu.conv2d_grad_input(images, mask, scale, source, window, [150, 150])
        assert torch.equal(dx, reference.conv2d_grad_input(images, mask, scale, source, window, [150, 150]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("batch", (1, 2, 17))
def test_sums_in_parts(isa, precision, batch):
    """More k than one panel holds, or than an int32 sum does."""
    scale, bias = torch.tensor(0.37), torch.randn(17)
    for source in sources(17, 8500) + sources(17, 66000):
        mask, x = random_mask(source), inputs(batch, source.fan).sign() * 1e30
        arguments = x, mask, scale, bias, source
        assert torch.equal(cpu.linear_forward(*arguments), reference.linear_forward(*arguments))
        assert torch.equal(cpu.linear_forward_int8(*arguments), reference.linear_forward_int8(*arguments))
        if source.weight == 0:
            y = cpu.linear_forward_stored(x, mask, source.signs(), scale, bias, source, False)
            assert torch.equal(y, reference.linear_forward(*arguments))
    for source in sources(4200, 33) + sources(4200, 257):
        mask, dy = random_mask(source), inputs(batch, 4200)
        assert torch.equal(
            cpu.linear_grad_input(dy, mask, scale, source), reference.linear_grad_input(dy, mask, scale, source)
        )


def test_the_sum_of_very_many_integers():
    """Of one sign and nearly the largest: more than an int32 of each lane holds."""
    source, x = Source.of(1, 2**20 - 1), torch.full((1, 2**20 - 1, 1, 1), 1.99999)
    mask = random_mask(source)
    expected = reference.conv2d_forward(x, mask, torch.tensor(1.0), None, source, Window(1, 1))
    for name in ("scalar", cpu.instruction_set()):
        with cpu.use_instruction_set(name):
            assert torch.equal(cpu.conv2d_forward(x, mask, torch.tensor(1.0), None, source, Window(1, 1)), expected)


def test_shard(isa):
    whole = Source.of(40, 1031, seed=3)
    shard = whole.shard((3, 40), (6, 31))
    mask, scale, x, dy = random_mask(shard), torch.tensor(2.0), inputs(9, shard.fan), inputs(9, 37)
    for few in (x, x[:2]):
        arguments = few, mask, scale, None, shard
        assert torch.equal(cpu.linear_forward_int8(*arguments), reference.linear_forward_int8(*arguments))
        arguments = few, mask, random_mask(shard), scale, None, shard, True
        assert torch.equal(cpu.linear_forward_stored(*arguments), reference.linear_forward_stored(*arguments))
    assert torch.equal(
        cpu.linear_forward(x, mask, scale, None, shard), reference.linear_forward(x, mask, scale, None, shard)
    )
    assert torch.equal(
        cpu.linear_grad_input(dy, mask, scale, shard), reference.linear_grad_input(dy, mask, scale, shard)
    )


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_what_is_not_finite_stays_in_its_row(isa, bad):
    source = Source.of(33, 129)
    mask, scale, x = random_mask(source), torch.tensor(0.37), inputs(7, 129)
    expected = cpu.linear_forward(x, mask, scale, None, source)
    x[3, 128] = bad
    y = cpu.linear_forward(x, mask, scale, None, source)
    assert y[3].isnan().all()
    y[3] = expected[3]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("weight,fan", [("signed_constant", n) for n in (256, 257, 65536, 65537)] + [("uniform", 512)])
def test_the_largest_sums(isa, precision, weight, fan):
    """Every product positive and of the largest integer: what int32 holds, exactly, and just does not."""
    source = Source.of(1, fan, weight=weight)
    mask, scale = torch.full((1, source.words), -1, dtype=torch.int32), torch.tensor(1.0)
    x = source.integer_weight().sign().float() * 0.9999999
    assert torch.equal(
        cpu.linear_forward(x, mask, scale, None, source), reference.linear_forward(x, mask, scale, None, source)
    )
    columns = Source.of(fan, 1, weight=weight)
    mask, dy = torch.ones(fan, 1, dtype=torch.int32), columns.integer_weight().sign().float().T * 0.9999999
    assert torch.equal(
        cpu.linear_grad_input(dy, mask, scale, columns), reference.linear_grad_input(dy, mask, scale, columns)
    )


def test_every_side_of_a_padded_image(isa):
    """Even kernels, and strides that skip the last pixels: taps reach further past one side than past the other."""
    scale, compared = torch.tensor(0.5), 0
    for kernel, padding, stride, width in itertools.product((2, 3), (0, 1, 2), (1, 2), (4, 5, 7)):
        source = Source.of(5, 3 * kernel * kernel, seed=kernel, weight=WEIGHTS[padding])
        window = Window(kernel, kernel, stride, stride, padding, padding)
        mask = torch.full((source.rows, source.words), -1, dtype=torch.int32)
        x = torch.randn(2, 3, width, width)
        expected = reference.conv2d_forward(x, mask, scale, None, source, window)
        dy = torch.randn_like(expected)
        assert torch.equal(cpu.conv2d_forward(x, mask, scale, None, source, window), expected)
        arguments = dy, mask, scale, source, window, [width, width]
        assert torch.equal(cpu.conv2d_grad_input(*arguments), reference.conv2d_grad_input(*arguments))
        compared += 1
    assert compared == 36


SIXTEEN_BITS = torch.bfloat16, torch.float16


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("scale", (1, 0.37, 2.0**-13, 2.0**-120, 2.0**12, 2.0**120))
def test_every_number_of_16_bits_is_read_and_rounded(isa, dtype, scale):
    """A row of one element has a fixed point to itself, and 16 bits of it are more than the number has."""
    source = Source.of(1, 1, seed=3)
    mask, numbers = torch.tensor([[1]], dtype=torch.int32), torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    y = cpu.linear_forward(numbers[:, None], mask, torch.tensor(float(scale)), None, source).squeeze(1)
    expected = (numbers.float() * scale * source.integer_weight().item()).to(dtype)
    expected[~numbers.isfinite()] = float("nan")
    assert y.dtype == dtype
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[~y.isnan()], expected[~y.isnan()])


@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.skipif("amx" not in cpu.instruction_sets(), reason="no matrix unit; elsewhere bfloat16 is fixed point")
def test_bfloat16_convolutions(convolution, memory_format):
    """Exact products, float32 sums, rounded once; a sample's result depends on no other."""
    window, x_shape, y_shape, layer = convolution
    x, dy = (torch.randn(s).to(torch.bfloat16, memory_format=memory_format) for s in (x_shape, y_shape))
    scale, bias = torch.tensor(0.37), torch.randn(y_shape[1])
    geometry = [[getattr(window, f"{n}_{side}") for side in "hw"] for n in ("stride", "padding", "dilation")]

    def forward(x, weight, bias):
        return F.conv2d(x, weight, bias, *geometry, window.groups)

    def grad_input(dy, weight):
        return grad.conv2d_input(x_shape, weight, dy, *geometry, window.groups) if x_shape[0] else torch.empty(x_shape)

    def check(result, exact, magnitude, terms):
        assert result.dtype == torch.bfloat16
        assert ((result - exact).abs() <= 2**-8 * exact.abs() + terms * 2**-24 * magnitude).all()

    for source in layer:
        mask = random_mask(source)
        weight = scale * cpu.materialize(mask, source).double()
        weight = weight.unflatten(1, (window.kernel_h, window.kernel_w, -1)).permute(0, 3, 1, 2)
        y = cpu.conv2d_forward(x, mask, scale, bias, source, window)
        magnitude = forward(x.double().abs(), weight.abs(), bias.double().abs())
        check(y, forward(x.double(), weight, bias.double()), magnitude, source.fan + 2)
        assert torch.equal(y[1:2], cpu.conv2d_forward(x[1:2], mask, scale, bias, source, window))
        dx = cpu.conv2d_grad_input(dy, mask, scale, source, window, list(x_shape[2:]))
        terms = source.rows * window.kernel_h * window.kernel_w + 2
        check(dx, grad_input(dy.double(), weight), grad_input(dy.double().abs(), weight.abs()), terms)
        assert torch.equal(dx[1:2], cpu.conv2d_grad_input(dy[1:2], mask, scale, source, window, list(x_shape[2:])))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_16_bits_are_two_bytes_of_fixed_point(isa, dtype, keeps_precision):
    """What the numbers are as float32 under "high", rounded once. A matrix unit takes bfloat16 images as they are."""
    source, window = Source.of(65, 257, weight="normal"), Window(3, 3, 2, 1, padding_h=1, padding_w=2)
    mask, scale, bias = random_mask(source), torch.tensor(0.01), torch.randn(65)
    filters = Source.of(85, 9 * 40, weight="normal")  # more weights than direct convolutions take
    filter_mask = random_mask(filters)
    x, dy = (torch.randn(19, n).to(dtype) for n in (257, 65))
    images, d_images = torch.randn(3, 40, 9, 33).to(dtype), torch.randn(3, 85, 5, 35).to(dtype)
    forward, grad_input = (filter_mask, scale, None, filters, window), (filter_mask, scale, filters, window, [9, 33])
    calls = [(cpu.linear_forward, x, (mask, scale, bias, source)), (cpu.linear_grad_input, dy, (mask, scale, source))]
    for order in () if isa == "amx" and dtype == torch.bfloat16 else (torch.contiguous_format, torch.channels_last):
        calls.append((cpu.conv2d_forward, images.to(memory_format=order), forward))
        calls.append((cpu.conv2d_grad_input, d_images.to(memory_format=order), grad_input))
    torch.set_float32_matmul_precision("high")
    for product, first, others in calls:
        result = product(first, *others)
        assert result.dtype == dtype
        assert torch.equal(result, product(first.float(), *others).to(dtype))


def test_inputs_need_not_be_contiguous(isa):
    source = Source.of(33, 129)
    mask, scale = random_mask(source), torch.tensor(0.37)
    x = inputs(129, 7).T
    assert torch.equal(
        cpu.linear_forward(x, mask, scale, None, source), reference.linear_forward(x, mask, scale, None, source)
    )
    dy = torch.ones(()).expand(7, 33)
    assert torch.equal(
        cpu.linear_grad_input(dy, mask, scale, source), reference.linear_grad_input(dy, mask, scale, source)
    )


def test_any_number_of_threads_gives_the_same_bits(isa):
    source, window = Source.of(70, 9 * 40), Window(3, 3, padding_h=1, padding_w=1)
    mask, scale, x, images = random_mask(source), torch.tensor(0.37), inputs(300, 360), inputs(3, 40, 9, 9)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = cpu.linear_forward(x, mask, scale, None, source)
        images_y = cpu.conv2d_forward(images, mask, scale, None, source, window)
        dx = cpu.conv2d_grad_input(images_y, mask, scale, source, window, [9, 9])
        narrow = cpu.conv2d_forward(images.bfloat16(), mask, scale, None, source, window)
        results.append((y, cpu.linear_grad_input(y, mask, scale, source), images_y, dx, narrow))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_after_fork():
    """A data loader's child can run kernels, though its parent had threads."""
    source = Source.of(300, 129)
    mask, scale, x = random_mask(source), torch.tensor(0.37), inputs(7, 129)
    expected = cpu.linear_forward(x, mask, scale, None, source)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cpu.linear_forward(x, mask, scale, None, source), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def integers_whose_sum_rounds_twice(v: torch.Tensor) -> torch.Tensor:
    """Integers X of 24 bits for weights v [n] whose exact sum of products a float64 on the way to float32 gets wrong.

    The sum is 1 more than what lies in the middle of two float32 numbers, the lower of which is even: a float64, which
    the sum has too many bits for, makes it the middle, and that goes to the even one.
    """
    largest = 127 * (256**3 - 1) // 255
    x = v.sign().long() * largest
    total = int((x * v).sum())
    step = 2 ** (total.bit_length() - 24)  # of float32 numbers there
    surplus = total - (total // (2 * step) * 2 * step + step // 2 + 1)
    if surplus < 0:
        surplus += 2 * step
    single = int((v.abs() == 1).nonzero()[0])
    for i in (v.abs() == 127).nonzero()[:100, 0].tolist():
        less = min(surplus // 127, largest)
        x[i] -= int(v[i].sign()) * less
        surplus -= 127 * less
    x[single] -= int(v[single]) * surplus
    assert x.abs().max() == largest
    return x


def test_a_sum_of_very_many_rows_is_rounded_once(monkeypatch):
    source, scale = Source.of(17_500_000, 1, weight="uniform", seed=1), torch.tensor(1.0)
    mask = torch.ones(source.rows, 1, dtype=torch.int32)
    weight = cpu.materialize(mask, source)
    x = integers_whose_sum_rounds_twice(weight.flatten())
    total = int((x * weight.flatten()).sum())
    assert total > 2**53 and float(torch.tensor(total).double().float()) != float(torch.tensor(total).float())
    expected = float(torch.tensor(total).float())
    from slt_kernels.backends.reference import linear

    monkeypatch.setattr(linear, "materialize", lambda mask, source: weight)  # its own takes gigabytes
    for backend in (cpu, reference):
        dx = backend.linear_grad_input(x.float()[None], mask, scale, source)
        assert dx.item() == expected, backend.names
