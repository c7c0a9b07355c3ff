"""The Triton backend on a GPU: is it right, and how fast. Under ten minutes; needs torch, triton and this package.

    python bench/gpu_check.py --out FILE.json
    TRITON_INTERPRET=1 python bench/gpu_check.py --smoke        the script itself, without a GPU

First every operation is compared with the reference over odd shapes, dtypes and layouts; then speed (CUDA graphs of
calls whose inputs and weights are rotated, so that none is found in the cache: medians and quartiles of one call), what
autotuning would choose, peak memory, and where `ncu` is there the bytes read from memory. Peers in the same run: cuBLAS
and cuDNN on dense weights, the layer that materializes its mask from scores, and a weight materialized in each call.

Each section is a list of items that processes of their own work through, one after the other; checks, which compile
most, in several processes. What fails is recorded and printed; a process that a failure leaves broken (an illegal
access ends all of a process's work on a GPU) is replaced by one that goes on with the next item. The results are
written after each section, and what there is no time for says so.
"""

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # where the package is not installed

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

from slt_kernels import EdgePopup, SupermaskConv2d, SupermaskLinear, backends, bits
from slt_kernels.backends import reference, triton
from slt_kernels.source import WEIGHTS, Freeze, Source
from slt_kernels.window import Window

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
BF16 = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter's bfloat16 is wrong
FROZEN = Freeze(0.35, 0.35)
L2_BYTES = 128 << 20  # more than any cache: inputs and weights are rotated through as much
RESNET50 = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and size of its 3x3 convolutions
FAR_BYTES = 28 << 30  # of memory, for products of more than 2**31 elements
GRAD_ERROR = 5e-6  # of grad_scores: sums on tensor cores truncate, over 32 columns in float32, over all in 16 bits

Result = dict[str, object]
Item = tuple[Result, Callable[[], Result | None]]  # what it is, and what it measures; raises where it fails


# Checks


def scale() -> Tensor:
    return torch.tensor(0.0371, device=DEVICE)


def random_mask(source: Source, compact: bool = False) -> Tensor:
    shape = (bits.words_for(source.count_frozen()[1]),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, device=DEVICE, dtype=torch.int64).to(torch.int32)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    """float32: the very values. 16-bit: within rounding, in relative norm."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{ours.dtype} {ours.shape}"
    if ours.dtype == torch.float32:
        different = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        assert not different.any(), f"{int(different.sum())} of {different.numel()} values differ"
    else:
        close(ours, theirs, 4e-3 if ours.dtype == torch.bfloat16 else 1e-3)


def close(ours: Tensor, theirs: Tensor, error: float) -> float:
    """The error in relative norm, which is at most ``error``."""
    ours, theirs = ours.double(), theirs.double()
    off = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300)) if theirs.numel() else 0.0
    assert off <= error, f"relative error {off:.3g}, expected at most {error:.3g}"
    return off


def check_linear(rows: int, fan: int, batch: int, weight: str, dtype: torch.dtype, precision: str) -> Result:
    torch.set_float32_matmul_precision(precision)
    source = Source.of(rows, fan, seed=2**63 + rows, layer=fan, weight=weight, freeze=FROZEN)
    x, dy = randn(batch, fan, dtype=dtype), randn(batch, rows, dtype=dtype)
    scores, bias = randn(source.count_frozen()[1]), randn(rows)
    for compact in (False, True):
        mask = random_mask(source, compact)
        arguments = (mask, scale(), bias, source)
        same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
        arguments = (mask, scale(), source)
        same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
    arguments = (dy, x, scores, scale(), source)
    ours, theirs = triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments)
    return {"error of grad_scores": close(ours, theirs, GRAD_ERROR if precision == "highest" else 2e-3)}


def check_conv2d(shape: tuple[int, ...], rows: int, window: Window, weight: str, dtype: torch.dtype) -> Result:
    channels = shape[1]
    fan = channels // window.groups * window.kernel_h * window.kernel_w
    source = Source.of(rows, fan, layer=fan, weight=weight, freeze=FROZEN)
    x, dy = randn(*shape, dtype=dtype), randn(shape[0], rows, *window.output_size(*shape[2:]), dtype=dtype)
    for compact in (False, True):
        mask = random_mask(source, compact)
        arguments = (mask, scale(), None, source, window)
        same(triton.conv2d_forward(x, *arguments), reference.conv2d_forward(x, *arguments))
        arguments = (mask, scale(), source, window, list(shape[2:]))
        same(triton.conv2d_grad_input(dy, *arguments), reference.conv2d_grad_input(dy, *arguments))
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    arguments = (dy, x, randn(source.count_frozen()[1]), scale(), source, window)
    ours, theirs = triton.conv2d_grad_scores(*arguments), reference.conv2d_grad_scores(*arguments)
    return {"error of grad_scores": close(ours, theirs, GRAD_ERROR)}


def check_masks(rows: int, fan: int, freeze: Freeze) -> None:
    for weight in WEIGHTS:
        source = Source.of(rows, fan, weight=weight, freeze=freeze)
        scores = randn(source.count_frozen()[1])
        threshold = torch.tensor(0.5, device=DEVICE)
        for compact in (False, True):
            ours, theirs = (b.pack(scores, threshold, source, compact) for b in (triton, reference))
            assert torch.equal(ours[0], theirs[0]) and int(ours[1]) == int(theirs[1])
            mask = random_mask(source, compact)
            assert torch.equal(triton.materialize(mask, source), reference.materialize(mask, source))
        mask = random_mask(source, compact=True)
        assert torch.equal(triton.expand(mask, source), reference.expand(mask, source))


def check_select(*sizes: int) -> None:
    for scores in ([randn(n) for n in sizes], [randn(n).mul(3).round() for n in sizes]):
        scores[0][0] = torch.nan
        for rank in (0, 1, sum(sizes) // 2, sum(sizes) - 1, sum(sizes)):
            assert torch.equal(triton.select(scores, rank), reference.select(scores, rank)), f"rank {rank}"


def check_not_finite() -> None:
    source = Source.of(65, 129)
    mask, x = random_mask(source), randn(5, 129)
    x[1], x[2, 3], x[3, 128], x[4] = 0, torch.nan, -torch.inf, x[4] * 2.0**-130
    arguments = (mask, scale(), None, source)
    same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    dy = randn(3, 65) * torch.tensor([[2.0**-140], [2.0**100], [1.0]], device=DEVICE)
    arguments = (mask, scale(), source)
    same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))


def check_strides_and_repeats() -> None:
    source = Source.of(33, 129)
    mask, wide = random_mask(source), randn(129, 64)
    for x in (wide.T, wide.T[::3], randn(1, 1).expand(7, 129), randn(9, 258)[:, 1::2], randn(0, 129)):
        arguments = (mask, scale(), None, source)
        y = triton.linear_forward(x, *arguments)
        same(y, reference.linear_forward(x, *arguments))
        assert all(torch.equal(y, triton.linear_forward(x, *arguments)) for _ in range(2 if INTERPRETED else 100))


def check_batch_invariance() -> None:
    source = Source.of(40, 700, weight="normal")
    mask, x = random_mask(source), randn(70, 700)
    arguments = (mask, scale(), None, source)
    whole = triton.linear_forward(x, *arguments)
    assert torch.equal(whole, torch.cat([triton.linear_forward(part, *arguments) for part in x.split([1, 16, 53])]))


def check_far_counters() -> None:
    """Counters past 2**32."""
    source = Source.of(2**31 - 1, 129, weight="normal", freeze=FROZEN).shard(rows=(2**31 - 3, 2**31 - 1))
    mask = random_mask(source, compact=True)
    assert torch.equal(triton.materialize(mask, source), reference.materialize(mask, source))


def check_far_elements() -> Result:
    """More than 2**31 elements: of a weight, and of the inputs and outputs of products."""
    free, _ = torch.cuda.mem_get_info()
    if free < FAR_BYTES:
        return {"ok": None, "why": f"{free} bytes of memory are free, and this takes {FAR_BYTES}"}
    source = Source.of(2**17, 2**14 + 128)
    mask = torch.full((source.rows, source.words), -1, dtype=torch.int32, device=DEVICE)
    last = source.shard(rows=(source.rows - 2, source.rows))
    assert torch.equal(triton.materialize(mask, source)[-2:], reference.materialize(mask[-2:], last))
    wide = torch.empty(2**14 + 8, 2**17, dtype=torch.float16, device=DEVICE).normal_()
    one, narrow = scale(), randn(len(wide), 33, dtype=torch.float16)
    many_rows, many_inputs = Source.of(2**17, 33), Source.of(33, 2**17)
    mask = random_mask(many_rows)
    y = triton.linear_forward(narrow, mask, one, None, many_rows)
    same(y[-3:], reference.linear_forward(narrow[-3:], mask, one, None, many_rows))
    del y
    dx = triton.linear_grad_input(wide, mask, one, many_rows)
    same(dx[-3:], reference.linear_grad_input(wide[-3:], mask, one, many_rows))
    mask = random_mask(many_inputs)
    for dtype in (torch.float32, torch.float16):
        x = wide.to(dtype)
        y = triton.linear_forward(x, mask, one, None, many_inputs)
        same(y[-3:], reference.linear_forward(x[-3:], mask, one, None, many_inputs))
    arguments = (randn(many_inputs.free), one, many_inputs)
    ours = triton.linear_grad_scores(narrow, wide, *arguments)
    theirs = torch.zeros_like(ours, dtype=torch.float64)
    for dy, x in zip(narrow.split(2**11), wide.split(2**11), strict=True):  # in float64, four times the memory
        theirs += reference.linear_grad_scores(dy, x, *arguments)
    # 16,392 columns in one sum, which tensor cores truncate: 5e-5 is what is simulated for eight products a step.
    return {"error of grad_scores": close(ours, theirs, 2e-4)}


def training_network() -> tuple[torch.nn.Module, EdgePopup]:
    net = torch.nn.Sequential(
        SupermaskConv2d(3, 16, 3, padding=1, bias=False, freeze=FROZEN, device=DEVICE),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        SupermaskLinear(16 * 64, 10, freeze=FROZEN, layer=1, scale="dynamic", device=DEVICE),
    )
    return net, EdgePopup(net, sparsity=0.5, scope="global")


def check_training_step() -> None:
    results = []
    for name in ("triton", "reference"):
        torch.manual_seed(0)
        with backends.use(name):
            net, popup = training_network()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2 if INTERPRETED else 5):
                optimizer.zero_grad()
                net(randn(4, 3, 8, 8)).square().mean().backward()
                optimizer.step()
                popup.step()
            results.append([net[3].weight_scale, *(p.detach() for p in net.parameters())])
    torch.testing.assert_close(*results)


def step_of(net: torch.nn.Module, popup: EdgePopup, x: Tensor) -> None:
    net.zero_grad(set_to_none=False)
    net(x).square().mean().backward()
    popup.step()


def check_cuda_graph() -> None:
    """Forward, backward, selection and packing captured, and replayed on another stream."""
    net, popup = training_network()
    x = randn(4, 3, 8, 8)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step_of(net, popup, x)
    torch.cuda.synchronize()
    expected = [p.grad.clone() for p in net.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step_of(net, popup, x)
    for p in net.parameters():
        p.grad.fill_(torch.nan)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


def check_nothing_waits() -> None:
    """A training step in which PyTorch refuses to synchronize."""
    net, popup = training_network()
    x = randn(4, 3, 8, 8)
    step_of(net, popup, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_of(net, popup, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_streams() -> None:
    """Sums in parts on two streams at once: each stream counts its own."""
    source = Source.of(256, 8192)
    mask, x = random_mask(source), randn(3, 8192)
    arguments = (mask, scale(), None, source)
    expected = triton.linear_forward(x, *arguments)
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(triton.linear_forward(x, *arguments))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


def check_autotuning() -> Result:
    """What the first call with a new file returns, a later one, and every tile on the way."""
    from slt_kernels.backends.triton import tiles

    source = Source.of(40, 257) if INTERPRETED else Source.of(512, 2048)
    x, dy, one = randn(3, source.fan), randn(3, source.rows), scale()
    with tempfile.TemporaryDirectory() as folder:
        tiles.FILE = str(Path(folder) / "tiles.json")
        try:
            for mask in (random_mask(source), random_mask(source, compact=True)):
                for _ in range(2):
                    arguments = (mask, one, None, source)
                    same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
                    arguments = (mask, one, source)
                    same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
            return {"tiles": json.loads(Path(tiles.FILE).read_text())}
        finally:
            tiles.FILE = None


def check_compiled() -> None:
    """`torch.compile` of a layer, forward and backward."""
    layer = SupermaskLinear(129, 65, freeze=FROZEN, device=DEVICE)
    layer.auto_mask = False
    x = randn(7, 129)
    expected = layer(x)
    expected.square().sum().backward()
    grad, layer.scores.grad = layer.scores.grad, None
    y = torch.compile(layer, fullgraph=True)(x)
    y.square().sum().backward()
    torch.testing.assert_close([y, layer.scores.grad], [expected, grad])


def check_reduce_overhead() -> None:
    """CUDA graphs by `torch.compile`: its warm-up allocates in the graphs' own memory, and is the first use here.

    Weights that are looked up in a table, a compact mask, and sums in parts.
    """
    layer = SupermaskLinear(8192, 256, weight="normal", freeze=FROZEN, compact=True, seed=7, device=DEVICE)
    layer.auto_mask = False
    compiled, x = torch.compile(layer, mode="reduce-overhead"), randn(3, 8192)
    results = []
    for _ in range(4):  # warm-up, capture, replay
        torch.compiler.cudagraph_mark_step_begin()
        layer.scores.grad = None
        y = compiled(x)
        y.square().sum().backward()
        results.append([y.detach().clone(), layer.scores.grad.clone()])
    layer.scores.grad = None
    expected = layer(x)
    expected.square().sum().backward()
    for result in results:
        torch.testing.assert_close(result, [expected.detach(), layer.scores.grad])


def check_other_device() -> None:
    source = Source.of(33, 129)
    mask, x = random_mask(source).to("cuda:1"), randn(3, 129).to("cuda:1")
    arguments = (mask, scale().to("cuda:1"), None, source)
    same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))


def checks(smoke: bool) -> Iterator[Item]:
    shapes = [(1, 1, 1), (3, 31, 17), (17, 32, 3), (1, 33, 129), (3, 63, 16), (65, 65, 3), (131, 127, 64)]
    shapes += [(129, 129, 65), (64, 1031, 1), (257, 2048, 300), (512, 4096, 16), (40, 140000, 3)]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    convolutions = [
        ((2, 5, 5, 7), 6, Window(3, 3, 1, 1, 1, 1)),
        ((2, 6, 5, 5), 6, Window(3, 3, 1, 1, 2, 1, groups=6)),
        ((3, 32, 9, 8), 33, Window(3, 1, 2, 1)),
        ((2, 64, 14, 14), 64, Window(3, 3, 1, 1, 1, 1)),
        ((2, 48, 14, 14), 64, Window(3, 3, 1, 1, 1, 1)),
        ((2, 256, 7, 7), 130, Window(3, 3, 2, 2, 1, 1, groups=2)),
        ((2, 66, 9, 11), 32, Window(2, 3, 1, 1, 1, 0, 2, 1, 2)),
        ((1, 128, 4, 4), 17, Window(1, 1, 2, 2)),
        ((0, 3, 5, 5), 4, Window(3, 3)),
    ]
    freezes = (Freeze(), FROZEN, Freeze(1, 0), Freeze(0, 1), Freeze(0.7, 0))
    if smoke:
        shapes, dtypes, convolutions, freezes = shapes[1:2], dtypes[:2], convolutions[:1], freezes[1:2]
    masks, sizes = ((5, 65), (500, 3)) if smoke else ((131, 1031), (1, 3_000_000, 70_001))

    yield {"name": "training steps"}, check_training_step
    yield {"name": "NaN, infinity, denormals"}, check_not_finite
    yield {"name": "strides, and a hundred runs"}, check_strides_and_repeats
    yield {"name": "any split of the batch"}, check_batch_invariance
    yield {"name": "counters past 2**32"}, check_far_counters
    yield {"name": "autotuning"}, check_autotuning
    yield {"name": "select"}, lambda: check_select(*sizes)
    for freeze in freezes:
        yield {"name": f"masks, {freeze}"}, lambda f=freeze: check_masks(*masks, f)
    if not INTERPRETED:
        yield {"name": "CUDA graph of a training step"}, check_cuda_graph
        yield {"name": "a training step that may not synchronize"}, check_nothing_waits
        yield {"name": "two streams"}, check_streams
        yield {"name": "torch.compile"}, check_compiled
        yield {"name": "torch.compile, reduce-overhead"}, check_reduce_overhead
        yield {"name": "elements past 2**31"}, check_far_elements
        if torch.cuda.device_count() > 1:
            yield {"name": "cuda:1 while cuda:0 is current"}, check_other_device
    products: list[tuple[bool, Item]] = []  # and whether it is of those that are done first
    for rows, fan, batch in shapes:
        for weight in WEIGHTS:
            for dtype, precision in (*((dtype, "highest") for dtype in dtypes), (torch.float32, "high")):
                name = f"Linear {rows} x {fan}, batch {batch}, {weight}, {dtype}, {precision}"
                run = partial(check_linear, rows, fan, batch, weight, dtype, precision)
                products.append((weight == WEIGHTS[0] and precision == "highest", ({"name": name}, run)))
    for shape, rows, window in convolutions:
        for weight in WEIGHTS:
            for dtype in dtypes:
                name = f"Conv2d {shape} to {rows}, {tuple(window)}, {weight}, {dtype}"
                run = partial(check_conv2d, shape, rows, window, weight, dtype)
                products.append((weight == WEIGHTS[0], ({"name": name}, run)))
    random.Random(0).shuffle(products)  # so that a lack of time takes something of all
    for first in (True, False):
        yield from (item for early, item in products if early == first)


# Speed


Runs = dict[str, tuple[int, Callable[[int], object]]]  # how many copies of its inputs, and a call with one of them


def copies(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """As many as do not fit in the cache together, 64 at most."""
    count = min(64, max(2, 1 + L2_BYTES // sum(t.nbytes for t in tensors)))
    return [tensors, *(tuple(t.clone() for t in tensors) for _ in range(count - 1))]


def milliseconds(count: int, call: Callable[[int], object], seconds: float = 0.1) -> Result:
    """Of one call: from a CUDA graph of ``count``, where no launch waits for the host; and as the host issues them."""
    for i in range(2):
        call(i % count)
    synchronize()
    calls = 1 if INTERPRETED else 20
    started = time.perf_counter()
    for i in range(calls):
        call(i % count)
    synchronize()
    eager = 1e3 * (time.perf_counter() - started) / calls
    if INTERPRETED:
        return {"median": eager, "eager": eager}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(i)
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 5 or (time.monotonic() - started < seconds and len(times) < 200):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / count)
    low, median, high = statistics.quantiles(times, n=4)
    quartiles = [round(low, 5), round(high, 5)]
    return {"median": round(median, 5), "quartiles": quartiles, "replays": len(times), "eager": round(eager, 5)}


def synchronize() -> None:
    if not INTERPRETED:
        torch.cuda.synchronize()


def linear_case(size: int, batch: int, dtype: torch.dtype, operation: str, compact: bool) -> Runs:
    source = Source.of(size, size, freeze=FROZEN if compact else Freeze())
    mask, one = random_mask(source, compact), scale()
    weight = (triton.materialize(mask, source) * one).to(dtype)
    x = randn(batch, size, dtype=dtype)
    ours, dense = copies(mask, x), copies(weight, x)

    def masked(i: int) -> Tensor:
        return triton.materialize(ours[i][0], source).to(dtype)

    if operation == "forward":
        scores = torch.randn_like(weight)
        return {
            "ours": (len(ours), lambda i: triton.linear_forward(ours[i][1], ours[i][0], one, None, source)),
            "dense": (len(dense), lambda i: F.linear(dense[i][1], dense[i][0])),
            "materializing layer": (len(dense), lambda i: F.linear(x, dense[i][0] * (scores.abs() > 0.5))),
            "materialize, then dense": (len(ours), lambda i: F.linear(ours[i][1], masked(i)) * one),
        }
    if operation == "grad_input":
        return {
            "ours": (len(ours), lambda i: triton.linear_grad_input(ours[i][1], ours[i][0], one, source)),
            "dense": (len(dense), lambda i: dense[i][1] @ dense[i][0]),
            "materialize, then dense": (len(ours), lambda i: (ours[i][1] @ masked(i)) * one),
        }
    dy, scores = x.roll(1, 0), randn(source.free)
    return {
        "ours": (len(dense), lambda i: triton.linear_grad_scores(dy, dense[i][1], scores, one, source)),
        "dense": (len(dense), lambda i: dy.T @ dense[i][1]),
    }


def conv2d_case(channels: int, size: int, batch: int, dtype: torch.dtype, operation: str) -> Runs:
    torch.backends.cudnn.benchmark = True
    window = Window(3, 3, padding_h=1, padding_w=1)
    source = Source.of(channels, 9 * channels)
    mask, one = random_mask(source), scale()
    x = randn(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def kernel(mask: Tensor) -> Tensor:
        return triton.materialize(mask, source).to(dtype).view(channels, 3, 3, channels).permute(0, 3, 1, 2)

    ours, dense = copies(mask, x), copies(kernel(mask) * one.to(dtype), x)
    if operation == "forward":
        return {
            "ours": (len(ours), lambda i: triton.conv2d_forward(ours[i][1], ours[i][0], one, None, source, window)),
            "dense": (len(dense), lambda i: F.conv2d(dense[i][1], dense[i][0], padding=1)),
            "materialize, then dense": (
                len(ours),
                lambda i: F.conv2d(ours[i][1], kernel(ours[i][0]), padding=1) * one.to(dtype),
            ),
        }
    if operation == "grad_input":
        return {
            "ours": (
                len(ours),
                lambda i: triton.conv2d_grad_input(ours[i][1], ours[i][0], one, source, window, [size, size]),
            ),
            "dense": (
                len(dense),
                lambda i: torch.nn.grad.conv2d_input(x.shape, dense[i][0], dense[i][1], padding=1),
            ),
        }
    dy, scores = x.roll(1, 0), randn(source.free)
    return {
        "ours": (len(dense), lambda i: triton.conv2d_grad_scores(dy, dense[i][1], scores, one, source, window)),
        "dense": (len(dense), lambda i: torch.nn.grad.conv2d_weight(dense[i][1], dense[i][0].shape, dy, padding=1)),
    }


def cases(smoke: bool) -> Iterator[tuple[Result, Callable[[], Runs]]]:
    """The cases of the project's aims first, then all others."""
    if smoke:
        linear = [(128, 2, BF16, op, op == "forward") for op in ("forward", "grad_input", "grad_scores")]
        convolutions = [(32, 3, 1, BF16, op) for op in ("forward", "grad_input", "grad_scores")]
    else:
        linear = [(8192, batch, BF16, "forward", False) for batch in (1, 16, 256, 4096, 4, 64, 1024, 8192)]
        linear[4:4] = [(8192, 4096, BF16, op, False) for op in ("grad_input", "grad_scores")]
        linear[4:4] = [(8192, 1024, torch.float32, "forward", False), (8192, 1, BF16, "forward", True)]
        linear += [(4096, batch, BF16, "forward", False) for batch in (1, 4, 16, 64, 256, 1024, 8192)]
        linear += [(8192, 16, torch.float32, "forward", False), (8192, 4096, BF16, "forward", True)]
        convolutions = [(c, size, batch, BF16, "forward") for batch in (64, 1) for c, size in RESNET50]
        convolutions += [(c, size, 64, BF16, op) for op in ("grad_input", "grad_scores") for c, size in RESNET50[:2]]
    for size, batch, dtype, operation, compact in linear:
        what = {"layer": "Linear", "size": size, "batch": batch, "dtype": str(dtype)}
        what |= {"operation": operation, "mask": "compact" if compact else "resolved"}
        yield what, lambda a=(size, batch, dtype, operation, compact): linear_case(*a)
    for channels, size, batch, dtype, operation in convolutions:
        what = {"layer": "Conv2d 3x3", "channels": channels, "size": size, "batch": batch, "dtype": str(dtype)}
        what |= {"operation": operation, "mask": "resolved"}
        yield what, lambda a=(channels, size, batch, dtype, operation): conv2d_case(*a)


def speed(smoke: bool) -> Iterator[Item]:
    def measure(make: Callable[[], Runs]) -> Result:
        times = {name: milliseconds(*run) for name, run in make().items()}
        ours = times["ours"]["median"]
        ratios = {f"{name} / ours": round(t["median"] / ours, 3) for name, t in times.items() if name != "ours"}
        return {**ratios, "milliseconds": times}

    for what, make in cases(smoke):
        yield what, lambda make=make: measure(make)


def tuned(smoke: bool) -> Iterator[Item]:
    """What autotuning chooses, and what that gains over the rule."""

    def measure(make: Callable[[], Runs]) -> Result:
        from slt_kernels.backends.triton import tiles

        run = make()["ours"]
        rule = milliseconds(*run)["median"]
        with tempfile.TemporaryDirectory() as folder:
            tiles.FILE = str(Path(folder) / "tiles.json")
            try:
                best = milliseconds(*run)["median"]
                chosen = json.loads(Path(tiles.FILE).read_text())
            finally:
                tiles.FILE = None
        return {"rule / tuned": round(rule / best, 3), "rule": rule, "tuned": best, "tiles": chosen}

    for what, make in list(cases(smoke))[: 1 if smoke else None]:
        yield what, lambda make=make: measure(make)


# Memory


def memory(smoke: bool) -> Iterator[Item]:
    """Peak of a forward and a backward, above what was there before and the gradients that are there after."""

    def measure(size: int, batch: int, compact: bool) -> Result:
        layer = SupermaskLinear(size, size, bias=False, freeze=FROZEN, compact=compact, device=DEVICE)
        layer.auto_mask = False
        x = randn(batch, size, dtype=BF16).requires_grad_()
        layer(x).sum().backward()  # what is kept for each source is there from the first time on
        x.grad = layer.scores.grad = None
        if INTERPRETED:
            return {"note": "not on a GPU"}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(x).sum().backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        known = layer.scores.grad.nbytes + x.grad.nbytes + 2 * batch * size * x.element_size()
        dense = size * size * x.element_size()
        above = {"above them": peak - known, "of a dense weight": round((peak - known) / dense, 4)}
        return {"peak": peak, "gradients and activations": known, **above}

    for batch in (4,) if smoke else (64, 4096):
        for compact in (False, True):
            what = {"size": 128 if smoke else 8192, "batch": batch, "mask": "compact" if compact else "resolved"}
            yield what, lambda a=(what["size"], batch, compact): measure(*a)


# Bytes read from memory


def traffic(smoke: bool) -> Iterator[Item]:
    """By one forward of batch 1, as the hardware counts them."""

    def measure(form: str) -> Result:
        ncu = shutil.which("ncu")
        if INTERPRETED or ncu is None:
            return {"note": "needs a GPU and ncu"}
        command = [ncu, "--clock-control", "none", "--cache-control", "all", "--csv", "--print-units", "base"]
        command += ["--metrics", "dram__bytes_read.sum", "--kernel-name", "forward_kernel"]
        command += [sys.executable, __file__, "--one-forward", form]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100)
        rows = list(csv.DictReader(line for line in run.stdout.splitlines() if line.startswith('"')))
        values = [float(row["Metric Value"].replace(",", "")) for row in rows]
        if not values:
            raise RuntimeError(f"ncu counted nothing: {(run.stdout + run.stderr)[-300:]}")
        return {"bytes": values[-1], "bits a weight": round(8 * values[-1] / 8192**2, 4)}

    for form in ("resolved", "compact"):
        yield {"mask": form}, lambda form=form: measure(form)


def one_forward(form: str) -> None:
    source = Source.of(8192, 8192, freeze=FROZEN if form == "compact" else Freeze())
    mask, x = random_mask(source, form == "compact"), randn(1, 8192, dtype=BF16)
    for _ in range(2):
        triton.linear_forward(x, mask, scale(), None, source)
    synchronize()


# Processes

SECTIONS = {"checks": checks, "speed": speed, "tuned": tuned, "memory": memory, "traffic": traffic}
ENDS = {"checks": 0.55, "speed": 0.82, "tuned": 0.91, "memory": 0.95, "traffic": 1.0}  # of the time, at the latest


def attempt(item: Item) -> Result:
    """What an item is and measures, or why it failed."""
    what, run = item
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    started = time.monotonic()
    try:
        measured = run() or {}
        synchronize()
        return {**what, "ok": True, **measured, "seconds": round(time.monotonic() - started, 2)}
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {str(error)[:500]} ({Path(line.filename).name}:{line.lineno})"
        return {**what, "ok": False, "why": why}


def work(section: str, smoke: bool, first: int, step: int) -> None:
    """The items of a section from ``first`` on, every ``step``-th, in this process, which says where it is."""
    items = list(SECTIONS[section](smoke))
    for i in range(first, len(items), step):
        _say({"begins": i})
        _say({"item": i, "result": attempt(items[i])})
        try:
            synchronize()
        except Exception as error:
            print(f"this process can use the GPU no longer: {error}", file=sys.stderr, flush=True)
            os._exit(1)


def _say(message: Result) -> None:
    print(f"@{json.dumps(message)}", flush=True)


def supervise(command: Callable[[int], list[str]], first: int, count: int, step: int, deadline: float) -> list[Result]:
    """Runs ``command(first)``, a process that `work`s, until its items are done; where one dies, another goes on.

    Returns the items' results by number; those that had no time are not among them.
    """
    results: dict[int, Result] = {}
    while first < count and time.monotonic() < deadline:
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command(first), stdout=subprocess.PIPE, stderr=errors, text=True)
            end = threading.Timer(deadline - time.monotonic(), process.kill)
            end.start()
            begun = None
            for line in process.stdout:
                if not line.startswith("@"):
                    continue
                message = json.loads(line[1:])
                begun = message.get("begins", begun)
                if "result" in message:
                    results[message["item"]] = message["result"]
                    _report(message["result"])
            process.wait()
            end.cancel()
            if process.returncode == 0 or time.monotonic() >= deadline:
                break
            errors.seek(0)
            why = f"the process ended with {process.returncode}: {errors.read()[-500:]}"
        if begun is None:  # it cannot even begin; nor would the next
            results[first] = {"ok": False, "why": why}
            _report(results[first])
            break
        if begun not in results:
            results[begun] = {"ok": False, "why": why}
            _report(results[begun])
        first = begun + step
    return results


def _report(result: Result) -> None:
    if result["ok"] is False:
        print("FAILED", json.dumps(result), flush=True)
    elif "name" not in result:
        print(json.dumps({k: v for k, v in result.items() if k not in ("ok", "milliseconds", "tiles")}), flush=True)


def run_section(section: str, smoke: bool, processes: int, deadline: float) -> list[Result]:
    items = list(SECTIONS[section](smoke))

    def command(first: int) -> list[str]:
        options = ["--section", section, "--first", str(first), "--step", str(processes)]
        return [sys.executable, __file__, *options, *(["--smoke"] if smoke else [])]

    with ThreadPoolExecutor(processes) as pool:
        parts = pool.map(lambda i: supervise(command, i, len(items), processes, deadline), range(processes))
        found = {i: result for part in parts for i, result in part.items()}
    left = {"ok": None, "why": "no time left"}
    results = [{**what, **found.get(i, left)} for i, (what, _) in enumerate(items)]
    print(f"{section}: {sum(r['ok'] is True for r in results)} of {len(results)} done and right", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few small cases: does the script run to its end?")
    parser.add_argument("--seconds", type=float, default=540, help="everything has ended after as many")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="sections")
    for option in ("--section", "--first", "--step", "--one-forward"):  # of the processes that this one starts
        parser.add_argument(option, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_forward:
        one_forward(arguments.one_forward)
        return 0
    if arguments.section:
        work(arguments.section, arguments.smoke, int(arguments.first), int(arguments.step))
        return 0
    if reason := triton.unavailable():
        print(f"the Triton backend cannot run here: {reason}", file=sys.stderr)
        return 2
    start = time.monotonic()
    report: Result = {"interpreted": INTERPRETED, "torch": torch.__version__, "triton": triton.describe()}
    try:
        report["machine"] = machine()
    except Exception as error:
        report["machine"] = f"{type(error).__name__}: {error}"
    for section in arguments.only:
        cores = min(32, len(os.sched_getaffinity(0)))  # each takes half a gigabyte of the GPU's memory
        processes = cores if section == "checks" and not INTERPRETED else 1
        try:
            end = start + ENDS[section] * arguments.seconds
            report[section] = run_section(section, arguments.smoke, processes, end)
        except Exception:
            report[section] = {"ok": False, "why": traceback.format_exc()}
        report["seconds"] = round(time.monotonic() - start, 1)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
