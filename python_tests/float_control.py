"""Every operation on numbers that a processor may flush to zero. Run with and without flushing.

As a script: turns the mode on before the first product, whose threads inherit it, and prints what differs from the
results in a file.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

cpu = backends.on("cpu")


def numbers(*shape: int) -> Tensor:
    """float32 [n, ...] of all magnitudes. Rows have normal numbers, denormals, both, or powers of two between."""
    exponents = torch.tensor([[127, 127], [0, 0], [0, 3], [1, 1], [0, 127]])[torch.arange(shape[0]) % 5]
    low, high = (exponents[:, i].view(-1, *[1] * (len(shape) - 1)) for i in (0, 1))
    exponent = low + (torch.rand(shape) * (high - low + 1)).long()
    bits = torch.randint(1 << 23, shape) | exponent << 23 | torch.randint(2, shape) << 31
    return bits.to(torch.int32).view(torch.float32)


def scores(count: int) -> Tensor:
    """Includes denormals, which decide thresholds and signs."""
    return numbers(5, -(-count // 5)).flatten()[torch.randperm(5 * -(-count // 5))[:count]].contiguous()


def results(name: str) -> Iterator[tuple[str, Tensor]]:
    """Results of a backend, by name. Exactly those of the contract, except names that begin with "grad_scores"."""
    backend = backends.on(name)
    torch.manual_seed(0)
    tiny = torch.tensor([3 << 19], dtype=torch.int32).view(torch.float32)  # a denormal scale
    for weight in ("signed_constant", "normal"):
        source = Source.of(35, 9 * 32, seed=3, weight=weight, freeze=Freeze(0.2, 0.1))
        mask = torch.randint(-(2**31), 2**31, (source.rows, source.words)).int()
        s, window, bias = scores(source.free), Window(3, 3, padding_h=1, padding_w=1), numbers(5, 7).flatten()
        for batch, scales in ((5, (torch.tensor([0.37]), tiny)), (20, (torch.tensor([2.0**-20]),))):
            x, dy = numbers(batch, source.fan), numbers(batch, source.rows)
            for scale in scales:
                yield "linear_forward", backend.linear_forward(x, mask, scale, bias, source)
                yield "linear_grad_input", backend.linear_grad_input(dy, mask, scale, source)
                yield "grad_scores", backend.linear_grad_scores(dy, x, s, scale, source)
        for dtype in (torch.float16, torch.bfloat16):
            y = backend.linear_forward(x.to(dtype), mask, torch.tensor([0.37]), None, source)
            yield "grad_scores of 16 bits", y  # not exact either
        x, dy = numbers(6, 32, 3, 4), numbers(6, 35, 3, 4)
        scale = torch.tensor([0.37])
        yield "conv2d_forward", backend.conv2d_forward(x, mask, scale, bias, source, window)
        yield "conv2d_grad_input", backend.conv2d_grad_input(dy, mask, scale, source, window, [3, 4])
        yield "grad_scores of conv2d", backend.conv2d_grad_scores(dy, x, s, scale, source, window)
        index = torch.randint(source.rows, (40,))
        yield "embedding_forward", backend.embedding_forward(index, mask, tiny, source, torch.float32)
        yield "grad_scores of embedding", backend.embedding_grad_scores(numbers(40, 288), index, s, scale, source)
        for rank in (1, len(s) // 4, len(s) // 2):
            threshold = backend.select([s], rank)
            yield "select", threshold
            for compact in (False, True):
                yield from (("pack", t) for t in backend.pack(s, threshold, source, compact))


def all_results() -> dict[str, list[tuple[str, Tensor]]]:
    names = {name: cpu.use_instruction_set(name) for name in cpu.instruction_sets()} | {"reference": nullcontext()}
    all_of = {}
    for name, context in names.items():
        with context:
            all_of[name] = list(results("reference" if name == "reference" else "cpu"))
    return all_of


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


if __name__ == "__main__":
    expected = torch.load(sys.argv[1])
    torch.set_num_threads(2)
    assert torch.set_flush_denormal(True)
    for name, found in all_results().items():
        print(
            name, sorted({what for (what, a), (_, b) in zip(found, expected[name], strict=True) if not same_bits(a, b)})
        )
    # The thread's own mode is as it was.
    assert torch.tensor([1 << 22], dtype=torch.int32).view(torch.float32).mul(1).view(torch.int32).item() == 0
