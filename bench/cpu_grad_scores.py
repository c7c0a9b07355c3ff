"""The gradient of the scores on the CPU backend, float32 "highest", against PyTorch's dense weight gradient.

    python bench/cpu_grad_scores.py --out bench/results/cpu_grad_scores.json

Ours makes digits of its inputs, multiplies, regenerates weights and frozen pattern, and writes the gradient of the free
scores; the peer is the dense product alone: `dy.T @ x`, or `conv2d_weight` in the better memory format.
"""

import torch
from rounds import Case, Entry, bench
from torch.nn.grad import conv2d_weight

from slt_kernels.backends import cpu, reference
from slt_kernels.source import Freeze, Source
from slt_kernels.window import Window

DENSE, FROZEN = Freeze(), Freeze(0.35, 0.35)
SCALE = torch.tensor(0.1)


def scores_of(source: Source) -> torch.Tensor:
    return torch.randn(source.free)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    if not (got - expected).norm() < 1e-6 * expected.norm():
        raise RuntimeError("not the reference's gradient")


def linear(batch: int, freeze: Freeze, weight: str = "signed_constant") -> Case:
    source = Source.of(4096, 4096, weight=weight, freeze=freeze)
    dy, x = torch.randn(batch, 4096), torch.randn(batch, 4096)
    args = dy, x, scores_of(source), SCALE, source
    ours = lambda: cpu.linear_grad_scores(*args)  # noqa: E731
    return Case(ours, [lambda: dy.T @ x], lambda: close(ours(), reference.linear_grad_scores(*args)))


def conv2d(batch: int, freeze: Freeze) -> Case:
    source, window = Source.of(128, 1152, freeze=freeze), Window(3, 3, padding_h=1, padding_w=1)
    dy, x = torch.randn(batch, 128, 32, 32), torch.randn(batch, 128, 32, 32)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (dy, x)]
    peers = [lambda dy=dy, x=x: conv2d_weight(x, (128, 128, 3, 3), dy, padding=1) for dy, x in ((dy, x), last)]
    args = dy, x, scores_of(source), SCALE, source, window
    ours = lambda: cpu.conv2d_grad_scores(*args)  # noqa: E731
    return Case(ours, peers, lambda: close(ours(), reference.conv2d_grad_scores(*args)))


ENTRIES = (
    Entry("grad_scores, batch 256", 1.2, lambda: linear(256, DENSE)),
    Entry("grad_scores, batch 256, 70 % frozen", None, lambda: linear(256, FROZEN)),
    Entry("grad_scores, batch 256, normal weights", None, lambda: linear(256, DENSE, "normal")),
    Entry("grad_scores, batch 16, 70 % frozen", None, lambda: linear(16, FROZEN)),
    Entry("conv 3x3 128 32x32, batch 32, grad_scores", None, lambda: conv2d(32, DENSE)),
    Entry("conv 3x3 128 32x32, batch 32, grad_scores, 70 % frozen", None, lambda: conv2d(32, FROZEN)),
    Entry("conv 3x3 128 32x32, batch 1, grad_scores", None, lambda: conv2d(1, DENSE)),
)

if __name__ == "__main__":
    bench(__doc__, ENTRIES)
