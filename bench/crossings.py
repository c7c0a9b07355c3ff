"""Whether a second thread pays in small products: each operation on one thread and on two, for growing sizes.

    python bench/crossings.py
    python bench/crossings.py --operation linear conv2d --divide-all

Prints microseconds, medians over rounds that take both in turn, and their ratio. An operation too small for two threads
takes one by itself (csrc/cpu/useful_threads.h), so no ratio should be far below 1; with --divide-all it takes two. Both
threads are awake; on a busy machine a second thread costs up to milliseconds more.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from rounds import microseconds

from slt_kernels import _cpu
from slt_kernels.backends.registry import run
from slt_kernels.conv_geometry import Window
from slt_kernels.source import DENSE, Freeze, Source

ROUNDS, MICROSECONDS = 25, 500
Call = Callable[[], object]


def both(call: Call) -> tuple[float, float]:
    """Microseconds on one thread and on two."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for threads in found:
        torch.set_num_threads(threads)
        microseconds(call, 3)
    count = max(1, int(MICROSECONDS / microseconds(call, 1)))
    for _ in range(ROUNDS):
        for threads, times in found.items():
            torch.set_num_threads(threads)
            call()
            times.append(microseconds(call, count))
    one, two = (statistics.median(times) for times in found.values())
    return one, two


def cases() -> Iterator[tuple[str, str, Call]]:
    """Operation, size and call. Of the weights 70 % are frozen in masks and gradients of scores, and none elsewhere."""
    scale, frozen = torch.ones(()), Freeze(prune=0.35, lock=0.35)

    def made(rows: int, fan: int, freeze: Freeze = DENSE) -> tuple[Source, torch.Tensor, torch.Tensor]:
        source = Source.of(rows, fan, freeze=freeze)
        scores = torch.randn(source.free)
        return source, scores, run("pack", scores, torch.zeros(()), source, False)[0]

    for width, batch in ((64, 1), (128, 1), (256, 1), (512, 1), (64, 64), (128, 64), (256, 64)):
        source, _, mask = made(width, width)
        some, scores, _ = made(width, width, frozen)
        x, dy = torch.randn(batch, width), torch.randn(batch, width)
        size = f"{width} x {width}, batch {batch}"
        yield "linear_forward", size, lambda x=x, m=mask, s=source: run("linear_forward", x, m, scale, None, s)
        yield "linear_grad_input", size, lambda dy=dy, m=mask, s=source: run("linear_grad_input", dy, m, scale, s)
        yield (
            "linear_grad_scores",
            size,
            lambda x=x, dy=dy, w=scores, s=some: run("linear_grad_scores", dy, x, w, scale, s),
        )
    for channels, pixels in ((8, 8), (16, 8), (16, 16), (32, 16), (64, 16)):
        window = Window(3, 3, padding_h=1, padding_w=1)
        source, _, mask = made(channels, channels * 9)
        some, scores, _ = made(channels, channels * 9, frozen)
        x, dy = torch.randn(2, 1, channels, pixels, pixels)
        size = f"{channels} channels, {pixels} x {pixels}"
        hw = (pixels, pixels)
        yield (
            "conv2d_forward",
            size,
            lambda x=x, m=mask, s=source, w=window: run("conv2d_forward", x, m, scale, None, s, w),
        )
        yield (
            "conv2d_grad_input",
            size,
            lambda dy=dy, m=mask, s=source, w=window, hw=hw: run("conv2d_grad_input", dy, m, scale, s, w, hw),
        )
        yield (
            "conv2d_grad_scores",
            size,
            lambda x=x, dy=dy, v=scores, s=some, w=window: run("conv2d_grad_scores", dy, x, v, scale, s, w),
        )
    for width in (64, 128, 256, 512):
        some, scores, _ = made(width, width, frozen)
        compact = run("pack", scores, torch.zeros(()), some, True)[0]
        size = f"{width} x {width}"
        yield "select", size, lambda v=scores: run("select", [v], v.numel() // 2)
        for name, form in (("pack, resolved", False), ("pack, compact", True)):
            yield name, size, lambda v=scores, s=some, c=form: run("pack", v, torch.zeros(()), s, c)
        yield "expand", size, lambda m=compact, s=some: run("expand", m, s)
    for count in (4, 16, 64, 256):
        source, _, mask = made(1024, 128)
        some, scores, _ = made(1024, 128, frozen)
        index = torch.randperm(1024)[:count]
        dy = torch.randn(count, 128)
        size = f"{count} rows of 128"
        yield (
            "embedding_forward",
            size,
            lambda i=index, m=mask, s=source: run("embedding_forward", i, m, scale, s, torch.float32),
        )
        yield (
            "embedding_grad_scores",
            size,
            lambda i=index, dy=dy, v=scores, s=some: run("embedding_grad_scores", dy, i, v, scale, s),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operation", nargs="*", default=[], help="those whose names contain this (default: all)")
    parser.add_argument("--divide-all", action="store_true", help="use both threads in the smallest products too")
    arguments = parser.parse_args()
    if arguments.divide_all:
        _cpu.divide_work_from(0)
    for name, size, call in cases():
        if not arguments.operation or any(part in name for part in arguments.operation):
            one, two = both(call)
            print(f"{name:22} {size:26} {one:8.1f} {two:8.1f} {one / two:6.2f}", flush=True)


if __name__ == "__main__":
    main()
