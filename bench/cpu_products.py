"""The products of the CPU backend against PyTorch's on dense weights, and against the materializing layer.

    python bench/cpu_products.py [--out products.json] [--only PATTERN] [--isa avx512vnni]

Every case is first compared with the reference backend. Ours starts from floats: making digits of them is in its time,
and so is expanding a compact mask. Rounds alternate between ours and the peers, so that what disturbs one disturbs
the others; ratios are medians of the rounds' ratios, against the faster of the peers where there are several.
`cpu ratio` compares processor time (all threads) instead, which other work on the machine hardly touches.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

from slt_kernels.backends import cpu, reference
from slt_kernels.source import Freeze, Source
from slt_kernels.window import Window

SIZE = 4096
SCALE = torch.tensor(1 / 64)
FROZEN = Freeze(0.35, 0.35)


def mask_of(source: Source, compact: bool = False) -> Tensor:
    shape = ((source.count_frozen()[1] + 31) // 32,) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def dense(mask: Tensor, source: Source) -> Tensor:
    return cpu.materialize(mask, source).float() * SCALE


Case = tuple[Callable, list[Callable], Callable]  # ours, the peers, the reference


def linear(batch: int, weight="signed_constant", dtype=torch.float32, compact=False, conv=False, precision="highest"):
    source = Source.of(SIZE, SIZE, weight=weight, freeze=FROZEN if compact else Freeze())
    mask, x = mask_of(source, compact), torch.randn(batch, SIZE).to(dtype)
    w = dense(mask, source).to(dtype)
    if conv:
        image, kernel = x.view(batch, SIZE, 1, 1), w.view(SIZE, SIZE, 1, 1)
        image = image.contiguous(memory_format=torch.channels_last)
        peer = lambda: F.conv2d(image, kernel)  # noqa: E731
    else:
        peer = lambda: F.linear(x, w)  # noqa: E731
    args = x, mask, SCALE, None, source
    return lambda: cpu.linear_forward(*args), [peer], lambda: reference.linear_forward(*args)


def materializing(batch: int) -> Case:
    source = Source.of(SIZE, SIZE)
    scores = torch.randn(SIZE, SIZE)
    threshold = torch.tensor(0.5)
    w, x = cpu.materialize(mask_of(source) | -1, source).float() * SCALE, torch.randn(batch, SIZE)
    mask = cpu.pack(torch.randn(SIZE * SIZE), threshold, source, False)[0]
    args = x, mask, SCALE, None, source

    def peer() -> Tensor:  # the paper's code finds its threshold by sorting, in every forward
        flat = scores.abs().flatten()
        limit = flat.sort().values[flat.numel() // 2]
        return F.linear(x, w * (scores.abs() > limit))

    return lambda: cpu.linear_forward(*args), [peer], lambda: reference.linear_forward(*args)


def grad_input(batch: int) -> Case:
    source = Source.of(SIZE, SIZE)
    mask, dy = mask_of(source), torch.randn(batch, SIZE)
    w = dense(mask, source)
    args = dy, mask, SCALE, source
    return lambda: cpu.linear_grad_input(*args), [lambda: dy @ w], lambda: reference.linear_grad_input(*args)


def conv2d(batch: int, last: bool, backward: bool = False) -> Case:
    source, window = Source.of(128, 1152), Window(3, 3, padding_h=1, padding_w=1)
    mask, x = mask_of(source), torch.randn(batch, 128, 32, 32)
    kernel = reference._to_kernel(dense(mask, source), window).contiguous()
    both = torch.contiguous_format, torch.channels_last
    formats = [[t.contiguous(memory_format=f) for t in (x, kernel)] for f in both]
    x = formats[last][0]
    if backward:
        args = x, mask, SCALE, source, window, [32, 32]
        peers = [lambda a=a, k=k: torch.nn.grad.conv2d_input(x.shape, k, a, padding=1) for a, k in formats]
        return lambda: cpu.conv2d_grad_input(*args), peers, lambda: reference.conv2d_grad_input(*args)
    args = x, mask, SCALE, None, source, window
    peers = [lambda a=a, k=k: F.conv2d(a, k, padding=1) for a, k in formats]
    return lambda: cpu.conv2d_forward(*args), peers, lambda: reference.conv2d_forward(*args)


def cases() -> Iterator[tuple[str, float | None, str, Callable[[], Case]]]:
    """Name, the ratio that the project asks for, float32 precision, and how to make it."""
    for batch, least in ((1, 10), (4, 15), (16, 5), (64, 3.5), (256, 3), (1024, 2.8)):
        yield f"forward float32 highest, batch {batch}", least, "highest", lambda b=batch: linear(b)
    for batch in (256, 1024):
        yield f"forward against a 1x1 convolution, batch {batch}", 1.15, "highest", lambda b=batch: linear(b, conv=True)
    for batch, least in ((1, 5), (16, 2), (64, 1.2), (256, 1)):
        yield f"forward bfloat16, batch {batch}", least, "highest", lambda b=batch: linear(b, dtype=torch.bfloat16)
    yield "forward float32 high, batch 256", 4.5, "high", lambda: linear(256)
    for batch, least in ((1, 4), (64, 3)):
        yield f"forward compact, batch {batch}", least, "highest", lambda b=batch: linear(b, compact=True)
    for weight in ("uniform", "normal"):
        for batch, least in ((1, 4), (256, 2.5)):
            yield f"forward {weight}, batch {batch}", least, "highest", lambda b=batch, w=weight: linear(b, w)
    yield "grad_input, batch 256", 2.5, "highest", lambda: grad_input(256)
    for last in (False, True):
        for batch in (1, 32):
            name = f"conv 3x3 128 32x32{' channels-last' if last else ''}, batch {batch}"
            yield name, 1.2, "highest", lambda b=batch, f=last: conv2d(b, f)
            yield f"{name}, grad_input", None, "highest", lambda b=batch, f=last: conv2d(b, f, backward=True)
    yield "materializing layer, forward, batch 1", 300, "highest", lambda: materializing(1)


def timed(call: Callable) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(case: Case, seconds: float) -> dict[str, float]:
    ours, peers, oracle = case
    got, expected = ours(), oracle()
    if got.dtype == torch.float32:
        assert torch.equal(got, expected), "not the reference's bits"
    else:
        assert (got.float() - expected.float()).norm() < 4e-3 * expected.float().norm()
    for call in (*peers, ours):
        call()
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 5 or (time.perf_counter() < end and len(rounds) < 200):
        rounds.append([timed(call) for call in (ours, *peers)])
    columns = [[statistics.median(t[i] for t in column) for i in range(2)] for column in zip(*rounds, strict=True)]
    best = 1 + min(range(len(peers)), key=lambda i: columns[1 + i][0])
    ratios = statistics.quantiles((r[best][0] / r[0][0] for r in rounds), n=4)
    return {
        "ours_ms": 1e3 * columns[0][0],
        "peer_ms": 1e3 * columns[best][0],
        "ratio_quartiles": ratios,
        "ratio": ratios[1],
        "cpu_ratio": columns[best][1] / columns[0][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--only", default="", help="cases whose name matches this regular expression")
    parser.add_argument("--isa", default=cpu.instruction_set(), help="force an instruction set")
    parser.add_argument("--seconds", type=float, default=2, help="for each case")
    args = parser.parse_args()
    print(f"{args.isa}, {torch.get_num_threads()} threads")
    print(f"{'case':50} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'cpu':>7} {'asked':>6}")
    results = []
    for name, least, precision, make in cases():
        if not re.search(args.only, name):
            continue
        torch.set_float32_matmul_precision(precision)
        with cpu.use_instruction_set(args.isa):
            r = {"case": name, "asked": least, **measure(make(), args.seconds)}
        results.append(r)
        asked = "" if least is None else f"{least:g}x"
        times = f"{r['ours_ms']:9.3f} {r['peer_ms']:9.3f} {r['ratio']:6.2f}x {r['cpu_ratio']:6.2f}x"
        print(f"{name:50} {times} {asked:>6}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({**machine(), "instruction_set": args.isa, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
