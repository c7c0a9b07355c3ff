"""Direct convolutions of the CPU backend: depthwise ones and those of few channels, on every instruction set."""

import itertools

import pytest
import torch
from cpu_convolutions import FORMATS, SCALE, check_bits, check_rounding, cpu, reference

from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Freeze, Source

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

GEOMETRIES = {  # batch, groups, channels and rows of a group, (h, w), and Window's arguments
    "3x3": (3, 37, 1, 1, (9, 21), {"padding_h": 1, "padding_w": 1}),
    "7x7": (1, 17, 1, 1, (7, 7), {"kernel_h": 7, "kernel_w": 7, "padding_h": 3, "padding_w": 3}),
    "7x7-wide": (1, 17, 1, 1, (5, 20), {"kernel_h": 7, "kernel_w": 7, "padding_h": 3, "padding_w": 3}),
    "7x7-tiny": (2, 18, 1, 1, (2, 2), {"kernel_h": 7, "kernel_w": 7, "padding_h": 3, "padding_w": 3}),
    "registers": (2, 3, 1, 1, (7, 45), {"padding_h": 1, "padding_w": 1}),
    "run": (2, 1, 5, 7, (6, 23), {"kernel_h": 1, "kernel_w": 1}),
    "multiplier": (2, 5, 1, 3, (12, 18), {"padding_h": 1, "padding_w": 1}),
    "stride": (2, 19, 1, 1, (9, 20), {"padding_h": 1, "padding_w": 1, "stride_h": 2, "stride_w": 2}),
    "stride-dilation": (2, 4, 1, 2, (19, 17), {"kernel_w": 2, "padding_w": 4, "dilation_w": 3, "stride_w": 3}),
    "large-stride": (1, 18, 1, 1, (17, 13), {"stride_h": 5, "stride_w": 2}),
    "unread-pixels": (2, 3, 1, 1, (9, 10), {"kernel_h": 1, "kernel_w": 1, "stride_h": 2, "stride_w": 3}),
    "mostly-padding": (1, 3, 1, 1, (2, 3), {"padding_h": 40, "padding_w": 70, "dilation_h": 30, "dilation_w": 50}),
    "tall": (1, 2, 1, 1, (700, 40), {"padding_h": 1, "padding_w": 1}),
    "wide": (1, 1, 1, 2, (3, 5000), {"padding_h": 1, "padding_w": 1}),
    "few-channels": (2, 2, 4, 5, (11, 15), {"padding_h": 1, "padding_w": 1}),
    "one-channel": (2, 1, 1, 21, (10, 13), {"padding_h": 1, "padding_w": 2, "stride_w": 2}),
    "outputs": (2, 1, 3, 40, (11, 13), {"padding_h": 1, "padding_w": 1, "stride_h": 2, "stride_w": 2}),
    "outputs-of-groups": (2, 2, 5, 24, (9, 11), {"padding_h": 1, "padding_w": 1}),
    "stem": (2, 1, 3, 6, (17, 23), {"kernel_h": 5, "kernel_w": 7, "padding_w": 3, "stride_h": 2, "stride_w": 2}),
}


def make(name: str, weight: str = "signed_constant", freeze: Freeze = Freeze(0.2, 0.2)) -> tuple:  # noqa: B008
    """Source, mask, window, x and dy."""
    batch, groups, channels, rows, size, geometry = GEOMETRIES[name]
    window = Window(**{"kernel_h": 3, "kernel_w": 3} | geometry, groups=groups)
    fan = channels * window.kernel_h * window.kernel_w
    source = Source.of(groups * rows, fan, seed=5, layer=3, weight=weight, freeze=freeze)
    mask = torch.randint(-(2**31), 2**31, (source.rows, source.words), dtype=torch.int64).to(torch.int32)
    x = torch.randn(batch, groups * channels, *size) * 10.0 ** torch.randint(-20, 20, (batch, 1, 1, 1))
    return source, mask, window, x, torch.randn(batch, source.rows, *window.output_size(*size))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_float32_has_the_bits_of_the_reference(isa, poisoned, name):
    for weight in WEIGHTS:
        check_bits(*make(name, weight))


@pytest.mark.parametrize("name", ("run", "few-channels", "one-channel", "outputs", "outputs-of-groups", "stem"))
def test_fewer_digits_have_the_bits_of_the_reference(isa, poisoned, name):
    torch.set_float32_matmul_precision("high")
    for weight in WEIGHTS:
        source, mask, window, x, dy = make(name, weight)
        check_bits(source, mask, window, x, dy)
        y = reference.conv2d_forward_int8(x, mask, SCALE, None, source, window)
        for memory_format in FORMATS:
            got = cpu.conv2d_forward_int8(x.to(memory_format=memory_format), mask, SCALE, None, source, window)
            assert torch.equal(got, y)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bits_are_within_their_rounding(isa, poisoned, name, dtype):
    *layer, x, dy = make(name)
    check_rounding(*layer, torch.randn_like(x).to(dtype), dy.to(dtype))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_grad_scores(isa, poisoned, name):
    for weight, memory_format in zip(WEIGHTS, (*FORMATS, torch.contiguous_format), strict=True):
        source, _, window, x, dy = make(name, weight, Freeze(0.35, 0.35))
        x = torch.randn_like(x)
        scores = torch.randn(source.free)
        args = scores, SCALE, source, window
        expected = reference.conv2d_grad_scores(dy.double(), x.double(), *args)
        x, dy = x.to(memory_format=memory_format), dy.to(memory_format=memory_format)
        got = cpu.conv2d_grad_scores(dy, x, *args)
        few = 20 if len(expected) < 200 else 1  # a few sums may all happen to be small
        assert (got.double() - expected).norm() <= few * 5e-7 * expected.norm()


def test_grad_scores_of_long_rows_are_as_exact_as_of_short_ones(isa):
    """Sums in float32 end within a row."""
    source, window = Source.of(16, 3, seed=1, layer=1), Window(1, 3, padding_w=1, groups=16)
    dy, x = torch.randn(2, 1, 16, 1, 16_384)
    args = torch.randn(source.free), SCALE, source, window
    expected = reference.conv2d_grad_scores(dy.double(), x.double(), *args)
    for memory_format in FORMATS:
        got = cpu.conv2d_grad_scores(dy.to(memory_format=memory_format), x.to(memory_format=memory_format), *args)
        assert (got.double() - expected).norm() <= 3e-7 * expected.norm()


def test_the_number_of_threads_does_not_matter(isa):
    for name, memory_format in itertools.product(("3x3", "tall", "few-channels"), FORMATS):
        source, mask, window, x, dy = make(name)
        x, dy = x.to(memory_format=memory_format), dy.to(memory_format=memory_format)
        scores, results = torch.randn(source.free), []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                (
                    cpu.conv2d_forward(x, mask, SCALE, None, source, window),
                    cpu.conv2d_grad_input(dy, mask, SCALE, source, window, list(x.shape[2:])),
                    cpu.conv2d_grad_scores(dy, x, scores, SCALE, source, window),
                )
            )
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_largest_sums_are_exact(isa):
    """More terms than an int32 holds the sum of, each the largest there is and of one sign."""
    source, window = Source.of(2, 300, seed=1, layer=1), Window(1, 1)
    mask = torch.full((source.rows, source.words), -1, dtype=torch.int32)
    signs = reference.materialize(mask, source)[:1].float()
    x = (signs * (8355711 / 2**22)).view(1, 300, 1, 1).expand(1, 300, 6, 6).contiguous()  # L of the contract
    y = cpu.conv2d_forward(x, mask, torch.tensor(1.0), None, source, window)
    assert torch.equal(y, reference.conv2d_forward(x, mask, torch.tensor(1.0), None, source, window))
    assert (y[:, 0] == torch.tensor(300 * 8355711.0) / 2**22).all()


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_a_bad_sample_spoils_only_itself(isa, bad):
    for memory_format in FORMATS:
        source, mask, window, x, _ = make("3x3")
        x = x.to(memory_format=memory_format)
        expected = cpu.conv2d_forward(x, mask, SCALE, None, source, window)
        x[1, 3, 4, 5] = bad
        y = cpu.conv2d_forward(x, mask, SCALE, None, source, window)
        assert y[1].isnan().all()
        assert torch.equal(y[0], expected[0]) and torch.equal(y[2], expected[2])


def test_nan_that_no_tap_reads_does_not_reach_grad_scores(isa):
    """Without padding, tap 0 does not read the last column."""
    source, window = Source.of(3, 9, seed=1, layer=1), Window(3, 3, groups=3)
    x, dy, scores = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 6, 7), torch.randn(source.free)
    for memory_format in FORMATS:
        images = x.clone(memory_format=memory_format), dy.to(memory_format=memory_format)
        images[0][:, 0, :, 8] = float("nan")
        grads = cpu.conv2d_grad_scores(images[1], images[0], scores, SCALE, source, window)
        reads = torch.tensor([k % 3 == 2 for k in range(9)])
        order = sorted(range(9), key=lambda k: (k % 2, k))  # of the bits of a word
        assert torch.equal(grads[:9].isnan(), reads[order])
        assert grads[9:].isfinite().all()
