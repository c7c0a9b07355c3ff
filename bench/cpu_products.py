"""The products of the CPU backend against PyTorch's on dense weights, and against the materializing layer.

    python bench/cpu_products.py --out bench/results/cpu_products.json [--only PATTERN]

4096 x 4096, signed constant and a resolved mask unless a case says otherwise. Every case is first compared with the
reference backend, bit for bit where the inputs are float32. Ours starts from floats: making digits of them is in its
time, and so is expanding a compact mask. `SLT_CPU_ISA` forces an instruction set.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from materializing import Materializing
from rounds import Case, Entry, bench
from torch import Tensor

from slt_kernels import SupermaskLinear
from slt_kernels.backends import cpu, reference
from slt_kernels.bits import words_for
from slt_kernels.source import Freeze, Source
from slt_kernels.window import Window

SIZE = 4096
SCALE = torch.tensor(1 / 64)
FROZEN = Freeze(0.35, 0.35)


def mask_of(source: Source, compact: bool = False) -> Tensor:
    shape = (words_for(source.free),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def dense(mask: Tensor, source: Source) -> Tensor:
    return cpu.materialize(mask, source).float() * SCALE


def case(operation: str, args: tuple, peers: list[Callable[[], Tensor]]) -> Case:
    """An operation of the CPU backend with those arguments, against its peers, checked by the reference."""

    def ours() -> Tensor:
        return getattr(cpu, operation)(*args)

    def check() -> None:
        got, expected = ours(), getattr(reference, operation)(*args)
        same = torch.equal(got, expected)
        if got.dtype != torch.float32:
            same = (got.float() - expected.float()).norm() < 4e-3 * expected.float().norm()
        if not same:
            raise RuntimeError(f"{operation}: not the reference's result")

    return Case(ours, peers, check)


def linear(batch: int, weight="signed_constant", dtype=torch.float32, compact=False, precision="highest") -> Case:
    torch.set_float32_matmul_precision(precision)
    source = Source.of(SIZE, SIZE, weight=weight, freeze=FROZEN if compact else Freeze())
    mask, x = mask_of(source, compact), torch.randn(batch, SIZE).to(dtype)
    w = dense(mask, source).to(dtype)
    return case("linear_forward", (x, mask, SCALE, None, source), [lambda: F.linear(x, w)])


def against_convolution(batch: int) -> Case:
    """The dense product as a 1x1 convolution over an image of `batch` pixels: oneDNN's, in its better format."""
    source = Source.of(SIZE, SIZE)
    mask, x = mask_of(source), torch.randn(batch, SIZE)
    kernel = dense(mask, source).view(SIZE, SIZE, 1, 1)
    pixels = x.view(1, batch, 1, SIZE).permute(0, 3, 1, 2)  # channels-last
    images = [pixels, pixels.contiguous(), x.view(batch, SIZE, 1, 1)]
    peers = [lambda image=image: F.conv2d(image, kernel) for image in images]
    return case("linear_forward", (x, mask, SCALE, None, source), peers)


def materializing(batch: int) -> Case:
    layer = SupermaskLinear(SIZE, SIZE, bias=False)
    peer, x = Materializing(layer), torch.randn(batch, SIZE)
    peer.threshold = layer.scores.detach().abs().median()
    args = x, layer.mask_words, layer.weight_scale, None, layer.source
    return case("linear_forward", args, [torch.no_grad()(lambda: peer(x))])


def grad_input(batch: int) -> Case:
    source = Source.of(SIZE, SIZE)
    mask, dy = mask_of(source), torch.randn(batch, SIZE)
    w = dense(mask, source)
    return case("linear_grad_input", (dy, mask, SCALE, source), [lambda: dy @ w])


def conv2d(batch: int, last: bool, backward: bool = False) -> Case:
    """Ours in one memory format, the peer in the better of the two."""
    source, window = Source.of(128, 1152), Window(3, 3, padding_h=1, padding_w=1)
    mask, x = mask_of(source), torch.randn(batch, 128, 32, 32)
    kernel = dense(mask, source).view(128, 3, 3, 128).permute(0, 3, 1, 2)
    formats = (torch.contiguous_format, torch.channels_last)
    pairs = [(x.contiguous(memory_format=f), kernel.contiguous(memory_format=f)) for f in formats]
    x = pairs[last][0]
    if backward:
        peers = [lambda a=a, k=k: torch.nn.grad.conv2d_input(x.shape, k, a, padding=1) for a, k in pairs]
        return case("conv2d_grad_input", (x, mask, SCALE, source, window, [32, 32]), peers)
    peers = [lambda a=a, k=k: F.conv2d(a, k, padding=1) for a, k in pairs]
    return case("conv2d_forward", (x, mask, SCALE, None, source, window), peers)


def entries() -> Iterator[Entry]:
    for batch, target in ((1, 10), (4, 15), (16, 5), (64, 3.5), (256, 3), (1024, 2.8)):
        yield Entry(f"forward float32 highest, batch {batch}", target, lambda b=batch: linear(b))
    for batch in (256, 1024):
        name = f"forward float32 highest, batch {batch}, against a 1x1 convolution"
        yield Entry(name, 1.15, lambda b=batch: against_convolution(b))
    for batch, target in ((1, 5), (16, 2), (64, 1.2), (256, 1)):
        yield Entry(f"forward bfloat16, batch {batch}", target, lambda b=batch: linear(b, dtype=torch.bfloat16))
    yield Entry("forward float32 high, batch 256", 4.5, lambda: linear(256, precision="high"))
    torch.set_float32_matmul_precision("highest")
    for batch, target in ((1, 4), (64, 3)):
        yield Entry(f"forward compact mask, batch {batch}", target, lambda b=batch: linear(b, compact=True))
    for weight in ("uniform", "normal"):
        for batch, target in ((1, 4), (256, 2.5)):
            yield Entry(f"forward {weight} weights, batch {batch}", target, lambda b=batch, w=weight: linear(b, w))
    yield Entry("grad_input, batch 256", 2.5, lambda: grad_input(256))
    for last in (False, True):
        for batch in (1, 32):
            name = f"conv 3x3 128 32x32{' channels-last' if last else ''}, batch {batch}"
            yield Entry(name, 1.2, lambda b=batch, f=last: conv2d(b, f))
            yield Entry(f"{name}, grad_input", None, lambda b=batch, f=last: conv2d(b, f, backward=True))
    yield Entry("materializing layer, forward, batch 1", 300, lambda: materializing(1))


if __name__ == "__main__":
    bench(__doc__, entries())
