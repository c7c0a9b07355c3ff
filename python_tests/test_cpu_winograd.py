"""3x3 convolutions by Winograd's method, on every instruction set: those that lack it must have the same bits."""

import pytest
import torch
from cpu_convolutions import FORMATS, SCALE, check_bits, check_rounding, cpu, reference

from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

GEOMETRIES = {  # batch, groups, channels and rows of a group, (h, w), padding of each dimension
    "whole-tiles": (2, 1, 32, 48, (16, 20), (1, 1)),
    "half-tiles": (3, 1, 17, 33, (13, 15), (1, 1)),
    "no-padding": (2, 1, 24, 20, (15, 18), (0, 0)),
    "wide-padding": (8, 1, 18, 19, (5, 6), (2, 2)),
    "uneven-padding": (2, 1, 16, 40, (14, 13), (0, 2)),
    "groups": (1, 3, 16, 32, (17, 16), (1, 1)),
    "five-lane-groups": (2, 1, 20, 72, (12, 14), (1, 1)),
    "small-images": (17, 1, 40, 36, (4, 3), (1, 1)),
    "one-pixel": (70, 1, 20, 20, (1, 1), (1, 1)),
    "one-row": (3, 1, 20, 20, (1, 50), (1, 1)),
    "weights-in-two-blocks": (16, 1, 1024, 144, (4, 4), (1, 1)),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple:
    """Source, mask, window, x and dy. The samples of x differ in magnitude."""
    batch, groups, channels, rows, size, (padding_h, padding_w) = GEOMETRIES[name]
    window = Window(3, 3, padding_h=padding_h, padding_w=padding_w, groups=groups)
    source = Source.of(groups * rows, channels * 9, seed=5, layer=3, freeze=Freeze(0.2, 0.2))
    mask = torch.randint(-(2**31), 2**31, (source.rows, source.words), dtype=torch.int64).to(torch.int32)
    x = torch.randn(batch, groups * channels, *size)
    if dtype == torch.float32:
        x *= 10.0 ** torch.randint(-20, 20, (batch, 1, 1, 1))
    return source, mask, window, x.to(dtype), torch.randn(batch, source.rows, *window.output_size(*size)).to(dtype)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("precision", ("highest", "high"))
def test_float32_has_the_bits_of_the_reference(isa, poisoned, precision, name):
    torch.set_float32_matmul_precision(precision)
    check_bits(*make(name))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bits_are_within_their_rounding(isa, poisoned, name, dtype):
    check_rounding(*make(name, dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_largest_sums_are_exact(isa, dtype):
    """Every product has the largest integer and the same sign, over as many inputs as the method takes."""
    channels, window = 2048, Window(3, 3, padding_h=1, padding_w=1)
    source = Source.of(17, channels * 9, seed=1, layer=1)
    mask = torch.full((source.rows, source.words), -1, dtype=torch.int32)
    signs = reference.materialize(mask, source)[0].float().view(3, 3, channels)
    x = torch.ones(8, channels, 6, 6) * (8355711 / 2**22 if dtype == torch.float32 else 1.0)  # L of the contract
    x[:, :, 1:4, 1:4] *= signs.permute(2, 0, 1)
    x = x.to(dtype)
    y = cpu.conv2d_forward(x, mask, torch.tensor(1.0), None, source, window)
    assert torch.equal(y, reference.conv2d_forward(x, mask, torch.tensor(1.0), None, source, window))
    assert (y[:, 0, 2, 2] == x[0, 0].abs().max() * 9 * channels).all()


def test_the_number_of_threads_does_not_matter(isa):
    for name in ("half-tiles", "groups"):
        for dtype in (torch.float32, torch.bfloat16):
            source, mask, window, x, dy = make(name, dtype)
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                results.append(
                    (
                        cpu.conv2d_forward(x, mask, SCALE, None, source, window),
                        cpu.conv2d_grad_input(dy, mask, SCALE, source, window, list(x.shape[2:])),
                    )
                )
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_bad_sample_spoils_only_itself(isa, dtype, bad):
    source, mask, window, x, _ = make("half-tiles", dtype)
    for memory_format in FORMATS:
        x = x.to(memory_format=memory_format, copy=True)
        expected = cpu.conv2d_forward(x, mask, SCALE, None, source, window)
        x[1, 3, 4, 5] = bad
        y = cpu.conv2d_forward(x, mask, SCALE, None, source, window)
        assert y[1].isnan().all() if dtype == torch.float32 else not y[1].isfinite().all()
        assert torch.equal(y[0], expected[0]) and torch.equal(y[2], expected[2])
        x[1, 3, 4, 5] = 0
