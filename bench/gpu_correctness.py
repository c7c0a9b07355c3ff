"""The correctness checks of `gpu_check.py`: operations against the reference, training, streams and graphs.

`first` and `checks` yield each check's description and a function that raises if it fails. Checks that need a device
are left out under Triton's interpreter.
"""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_kernels import EdgePopup, SupermaskConv2d, SupermaskLinear, backends, bits
from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Freeze, Source

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
BF16 = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter's bfloat16 is wrong
FROZEN = Freeze(0.35, 0.35)
FAR_BYTES = 28 << 30  # of memory, needed by products of more than 2**31 elements
GRAD_ERROR = 5e-6  # of grad_scores: tensor cores truncate sums, of 32 columns in float32, of all in 16 bits

GPU_BACKENDS = tuple(name for name in ("cuda", "triton") if backends.why_unavailable(name) is None)
gpu, reference = backends.on(*GPU_BACKENDS), backends.on("reference")  # the first one that takes the arguments

Result = dict[str, object]
Item = tuple[Result, Callable[[], Result | None]]  # a description; a function that measures, or raises on failure


# Inputs and comparisons


def both(operation: str, *arguments: object) -> tuple[Any, Any]:
    """The outputs of the GPU backends and of the reference."""
    return getattr(gpu, operation)(*arguments), getattr(reference, operation)(*arguments)


def scale() -> Tensor:
    return torch.tensor(0.0371, device=DEVICE)


def random_mask(source: Source, compact: bool = False) -> Tensor:
    shape = (bits.words_for(source.free),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, device=DEVICE, dtype=torch.int64).to(torch.int32)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    """Asserts equal values in float32, and a small error in relative norm in 16 bits."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{ours.dtype} {ours.shape}"
    if ours.dtype == torch.float32:
        different = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        assert not different.any(), f"{int(different.sum())} of {different.numel()} values differ"
    else:
        close(ours, theirs, 4e-3 if ours.dtype == torch.bfloat16 else 1e-3)


def same_where_finite(ours: Tensor, theirs: Tensor) -> None:
    """`same` for the output of `spoil`. In 16 bits only finite samples are compared, as 0 * NaN is unspecified."""
    samples = slice(None) if ours.dtype == torch.float32 else [0, 1, 4]
    same(ours[samples], theirs[samples])


def spoil(x: Tensor) -> Tensor:
    """Changes six samples except the first: zeros, NaN, infinity, denormals, large values."""
    x[1], x[2, 0], x[3].view(-1)[-1], x[4], x[5] = 0, torch.nan, -torch.inf, x[4] * 2.0**-130, x[5] * 2.0**100
    return x


def synchronize() -> None:
    if not INTERPRETED:
        torch.cuda.synchronize()


@contextmanager
def autotuning() -> Iterator[Path]:
    """Turns on autotuning, with a new file."""
    from slt_kernels.backends.triton import autotuning as settings  # imports Triton

    with tempfile.TemporaryDirectory() as folder:
        settings.FILE = str(Path(folder) / "tiles.json")
        try:
            yield Path(settings.FILE)
        finally:
            settings.FILE = None


def close(ours: Tensor, theirs: Tensor, error: float) -> float:
    """Asserts that the error in relative norm is at most ``error``, and returns it."""
    ours, theirs = ours.double(), theirs.double()
    off = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300)) if theirs.numel() else 0.0
    assert off <= error, f"relative error {off:.3g}, expected at most {error:.3g}"
    return off


# Operations


def check_linear(rows: int, fan: int, batch: int, weight: str, dtype: torch.dtype, precision: str) -> Result:
    torch.set_float32_matmul_precision(precision)
    source = Source.of(rows, fan, seed=2**63 + rows, layer=fan, weight=weight, freeze=FROZEN)
    x, dy = randn(batch, fan, dtype=dtype), randn(batch, rows, dtype=dtype)
    scores, bias = randn(source.free), randn(rows)
    for compact in (False, True):
        mask = random_mask(source, compact)
        arguments = (mask, scale(), bias, source)
        same(*both("linear_forward", x, *arguments))
        arguments = (mask, scale(), source)
        same(*both("linear_grad_input", dy, *arguments))
    arguments = (dy, x, scores, scale(), source)
    ours, theirs = both("linear_grad_scores", *arguments)
    return {"error of grad_scores": close(ours, theirs, GRAD_ERROR if precision == "highest" else 2e-3)}


def check_conv2d(shape: tuple[int, ...], rows: int, window: Window, weight: str, dtype: torch.dtype) -> Result:
    channels = shape[1]
    fan = channels // window.groups * window.kernel_h * window.kernel_w
    source = Source.of(rows, fan, layer=fan, weight=weight, freeze=FROZEN)
    x, dy = randn(*shape, dtype=dtype), randn(shape[0], rows, *window.output_size(*shape[2:]), dtype=dtype)
    for compact in (False, True):
        mask = random_mask(source, compact)
        arguments = (mask, scale(), None, source, window)
        same(*both("conv2d_forward", x, *arguments))
        arguments = (mask, scale(), source, window, list(shape[2:]))
        same(*both("conv2d_grad_input", dy, *arguments))
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    arguments = (dy, x, randn(source.free), scale(), source, window)
    ours, theirs = both("conv2d_grad_scores", *arguments)
    return {"error of grad_scores": close(ours, theirs, GRAD_ERROR)}


def check_masks(rows: int, fan: int, freeze: Freeze) -> None:
    for weight in WEIGHTS:
        source = Source.of(rows, fan, weight=weight, freeze=freeze)
        scores = randn(source.free)
        threshold = torch.tensor(0.5, device=DEVICE)
        for compact in (False, True):
            ours, theirs = both("pack", scores, threshold, source, compact)
            assert torch.equal(ours[0], theirs[0]) and int(ours[1]) == int(theirs[1])
            mask = random_mask(source, compact)
            assert torch.equal(*both("materialize", mask, source))
        mask = random_mask(source, compact=True)
        assert torch.equal(*both("expand", mask, source))


def check_select(*sizes: int) -> None:
    for scores in ([randn(n) for n in sizes], [randn(n).mul(3).round() for n in sizes]):
        scores[0][0] = torch.nan
        for rank in (0, 1, sum(sizes) // 2, sum(sizes) - 1, sum(sizes)):
            assert torch.equal(*both("select", scores, rank)), f"rank {rank}"


def check_embedding(rows: int, fan: int, weight: str, dtype: torch.dtype) -> Result:
    """Some rows are looked up often, others never. An index outside the rows gives NaN, and no gradient."""
    source = Source.of(rows, fan, layer=fan, weight=weight, freeze=FROZEN)
    index = torch.randint(rows, (3 * rows + 5,), device=DEVICE) // 2
    nowhere = torch.tensor([-1, rows, 2**32, 2**40], device=DEVICE)
    for compact in (False, True):
        mask = random_mask(source, compact)
        for some in (index, index[:0]):
            arguments = (some, mask, scale(), source, dtype)
            same(*both("embedding_forward", *arguments))
        assert gpu.embedding_forward(nowhere, mask, scale(), source, dtype).isnan().all()
    dy, arguments = randn(len(index), fan, dtype=dtype), (randn(source.free), scale(), source)
    ours = gpu.embedding_grad_scores(dy, index, *arguments)
    more = torch.cat([dy, randn(len(nowhere), fan, dtype=dtype)]), torch.cat([index, nowhere])
    assert torch.equal(ours, gpu.embedding_grad_scores(*more, *arguments))
    return {"error of grad_scores": close(ours, reference.embedding_grad_scores(dy, index, *arguments), GRAD_ERROR)}


def check_not_finite(rows: int, fan: int, dtype: torch.dtype) -> None:
    """NaN and infinity stay in their sample. Past 8192 values a separate kernel computes the largest magnitude."""
    source = Source.of(rows, fan)
    mask = random_mask(source)
    x, dy = spoil(randn(6, fan)).to(dtype), spoil(randn(6, rows)).to(dtype)
    arguments = (mask, scale(), None, source)
    same_where_finite(*both("linear_forward", x, *arguments))
    arguments = (mask, scale(), source)
    same_where_finite(*both("linear_grad_input", dy, *arguments))


def check_conv2d_not_finite(dtype: torch.dtype) -> None:
    source, window = Source.of(33, 9 * 32), Window(3, 3, 1, 1, 1, 1)
    mask = random_mask(source)
    x, dy = spoil(randn(6, 32, 5, 7)).to(dtype), spoil(randn(6, 33, 5, 7)).to(dtype)
    arguments = (mask, scale(), None, source, window)
    same_where_finite(*both("conv2d_forward", x, *arguments))
    arguments = (mask, scale(), source, window, [5, 7])
    same_where_finite(*both("conv2d_grad_input", dy, *arguments))


def check_strides_and_repeats() -> None:
    source = Source.of(33, 129)
    mask, wide = random_mask(source), randn(129, 64)
    for x in (wide.T, wide.T[::3], randn(1, 1).expand(7, 129), randn(9, 258)[:, 1::2], randn(0, 129)):
        arguments = (mask, scale(), None, source)
        y = gpu.linear_forward(x, *arguments)
        same(y, reference.linear_forward(x, *arguments))
        assert all(torch.equal(y, gpu.linear_forward(x, *arguments)) for _ in range(2 if INTERPRETED else 100))


def check_batch_invariance() -> None:
    source = Source.of(40, 700, weight="normal")
    mask, x = random_mask(source), randn(70, 700)
    arguments = (mask, scale(), None, source)
    whole = gpu.linear_forward(x, *arguments)
    assert torch.equal(whole, torch.cat([gpu.linear_forward(part, *arguments) for part in x.split([1, 16, 53])]))


def check_far_counters() -> None:
    """Counters past 2**32."""
    source = Source.of(2**31 - 1, 129, weight="normal", freeze=FROZEN).shard(rows=(2**31 - 3, 2**31 - 1))
    mask = random_mask(source, compact=True)
    assert torch.equal(*both("materialize", mask, source))


def check_far_elements() -> Result:
    """More than 2**31 elements in a weight, and in the inputs and outputs of products."""
    free, _ = torch.cuda.mem_get_info()
    if free < FAR_BYTES:
        return {"ok": None, "why": f"{free} bytes of memory are free, and this takes {FAR_BYTES}"}
    source = Source.of(2**17, 2**14 + 128)
    mask = torch.full((source.rows, source.words), -1, dtype=torch.int32, device=DEVICE)
    last = source.shard(rows=(source.rows - 2, source.rows))
    assert torch.equal(gpu.materialize(mask, source)[-2:], reference.materialize(mask[-2:], last))
    wide = torch.empty(2**14 + 8, 2**17, dtype=torch.float16, device=DEVICE).normal_()
    one, narrow = scale(), randn(len(wide), 33, dtype=torch.float16)
    many_rows, many_inputs = Source.of(2**17, 33), Source.of(33, 2**17)
    mask = random_mask(many_rows)
    y = gpu.linear_forward(narrow, mask, one, None, many_rows)
    same(y[-3:], reference.linear_forward(narrow[-3:], mask, one, None, many_rows))
    del y
    dx = gpu.linear_grad_input(wide, mask, one, many_rows)
    same(dx[-3:], reference.linear_grad_input(wide[-3:], mask, one, many_rows))
    mask = random_mask(many_inputs)
    for dtype in (torch.float32, torch.float16):
        x = wide.to(dtype)
        y = gpu.linear_forward(x, mask, one, None, many_inputs)
        same(y[-3:], reference.linear_forward(x[-3:], mask, one, None, many_inputs))
    arguments = (randn(many_inputs.free), one, many_inputs)
    ours = gpu.linear_grad_scores(narrow, wide, *arguments)
    theirs = torch.zeros_like(ours, dtype=torch.float64)
    for dy, x in zip(
        narrow.split(2**11), wide.split(2**11), strict=True
    ):  # in slices, as float64 takes four times the memory
        theirs += reference.linear_grad_scores(dy, x, *arguments)
    # One sum of 16,392 columns, truncated by tensor cores: a simulation of eight products per step gives 5e-5.
    return {"error of grad_scores": close(ours, theirs, 2e-4)}


# Training


def small_network() -> tuple[torch.nn.Module, Tensor]:
    """A network and its input."""
    net = torch.nn.Sequential(
        SupermaskConv2d(3, 16, 3, padding=1, bias=False, freeze=FROZEN, device=DEVICE),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        SupermaskLinear(16 * 64, 10, freeze=FROZEN, layer=1, scale="dynamic", device=DEVICE),
    )
    return net, randn(4, 3, 8, 8)


def wide_batch() -> tuple[torch.nn.Module, Tensor]:
    """Few weights and many columns: every grad_scores splits its sum."""
    net = torch.nn.Sequential(
        SupermaskConv2d(5, 33, 3, padding=1, freeze=FROZEN, device=DEVICE),
        torch.nn.Flatten(),
        SupermaskLinear(33 * 4, 65, freeze=FROZEN, layer=1, device=DEVICE),
    )
    return net, randn(4096, 5, 2, 2)


def train(net: torch.nn.Module, popup: EdgePopup, x: Tensor) -> None:
    """One step on the device: gradients, new scores, thresholds and masks."""
    net.zero_grad(set_to_none=False)
    net(x).square().mean().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    popup.step()


def state(net: torch.nn.Module) -> list[Tensor]:
    return [*net.buffers(), *(t for p in net.parameters() for t in (p.detach(), p.grad))]


def check_training_step() -> None:
    results = []
    for name in (*GPU_BACKENDS, "reference"):
        torch.manual_seed(0)
        with backends.use(name):
            net, _ = small_network()
            popup = EdgePopup(net, sparsity=0.5)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2 if INTERPRETED else 5):
                optimizer.zero_grad()
                net(randn(4, 3, 8, 8)).square().mean().backward()
                optimizer.step()
                popup.step()
            results.append([net[3].weight_scale, *(p.detach() for p in net.parameters())])
    for ours in results[:-1]:
        torch.testing.assert_close(ours, results[-1])


def check_cuda_graph(make: Callable[[], tuple[torch.nn.Module, Tensor]]) -> None:
    """Six eager steps, and three eager with three replayed ones, give the same scores, masks and gradients."""
    torch.manual_seed(0)
    expected, x = make()
    popup = EdgePopup(expected, sparsity=0.5)
    for _ in range(6):
        train(expected, popup, x)

    torch.manual_seed(0)
    net, x = make()
    popup = EdgePopup(net, sparsity=0.5)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(net, popup, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(net, popup, x)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(state(net), state(expected), rtol=0, atol=0)


def check_no_synchronization() -> None:
    """A training step in which PyTorch raises on synchronization."""
    net, x = small_network()
    popup = EdgePopup(net, sparsity=0.5)
    train(net, popup, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(net, popup, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Streams, tiles, compilers, devices


def check_streams() -> None:
    """Split sums on two streams at once: each stream has its own counts."""
    source = Source.of(256, 8192)
    mask, x = random_mask(source), randn(3, 8192)
    arguments = (mask, scale(), None, source)
    expected = gpu.linear_forward(x, *arguments)
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(gpu.linear_forward(x, *arguments))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


def check_autotuning() -> Result:
    """The results of the first call, which times all tiles, and of a later one."""
    source = Source.of(40, 257) if INTERPRETED else Source.of(512, 2048)
    x, dy, one = randn(3, source.fan), randn(3, source.rows), scale()
    with autotuning() as file:
        for mask in (random_mask(source), random_mask(source, compact=True)):
            for _ in range(2):
                arguments = (mask, one, None, source)
                same(*both("linear_forward", x, *arguments))
                arguments = (mask, one, source)
                same(*both("linear_grad_input", dy, *arguments))
        return {"tiles": json.loads(file.read_text())}


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
    """CUDA graphs by `torch.compile`. The first use is its warm-up, which allocates in the graphs' memory pool.

    The layer has weights from a table, a compact mask and a split sum.
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


def check_other_device() -> Result | None:
    if torch.cuda.device_count() < 2:
        return {"ok": None, "why": "needs two GPUs"}
    source = Source.of(33, 129)
    mask, x = random_mask(source).to("cuda:1"), randn(3, 129).to("cuda:1")
    arguments = (mask, scale().to("cuda:1"), None, source)
    same(*both("linear_forward", x, *arguments))
    return None


# All of them


def alone(name: str, run: Callable[[], Result | None]) -> Result | None:
    """A check with one GPU backend alone."""
    global gpu
    before, gpu = gpu, backends.on(name)
    try:
        return run()
    finally:
        gpu = before


def first(smoke: bool) -> Iterator[Item]:
    """One small case of each operation, on each GPU backend alone."""
    window = Window(3, 3, padding_h=1, padding_w=1)
    cases: dict[str, Callable[[], Result | None]] = {}
    for dtype in (BF16,) if smoke else (BF16, torch.float32):
        cases[f"Linear, {dtype}"] = partial(check_linear, 64, 256, 17, WEIGHTS[0], dtype, "highest")
        cases[f"Conv2d, {dtype}"] = partial(check_conv2d, (2, 32, 5, 7), 33, window, WEIGHTS[0], dtype)
        cases[f"Embedding, {dtype}"] = partial(check_embedding, 65, 257, WEIGHTS[0], dtype)
    cases["masks"] = partial(check_masks, 5, 65, FROZEN)
    cases["select"] = partial(check_select, 5, 65)
    for name, run in cases.items():
        for backend in GPU_BACKENDS:
            yield {"name": name, "backend": backend}, partial(alone, backend, run)


def checks(smoke: bool) -> Iterator[Item]:
    """Each check of the backends in their order; where there are several, then of Triton alone."""
    for what, run in _checks(smoke):
        yield what, run
        if len(GPU_BACKENDS) > 1:
            yield {**what, "backend": "triton"}, partial(alone, "triton", run)


def _checks(smoke: bool) -> Iterator[Item]:
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
    embeddings = [(1, 1), (3, 33), (131, 257), (5000, 1030)]
    not_finite = [(65, 129), (65, 8300), (8300, 65)]
    freezes = (Freeze(), FROZEN, Freeze(1, 0), Freeze(0, 1), Freeze(0.7, 0))
    if smoke:
        shapes, dtypes, convolutions, freezes = shapes[1:2], dtypes[:2], convolutions[:1], freezes[1:2]
        embeddings, not_finite = embeddings[1:2], not_finite[:1]
    masks, sizes = ((5, 65), (500, 3)) if smoke else ((131, 1031), (1, 3_000_000, 70_001))

    yield {"name": "training steps"}, check_training_step
    yield {"name": "strides, and a hundred runs"}, check_strides_and_repeats
    yield {"name": "any split of the batch"}, check_batch_invariance
    yield {"name": "counters past 2**32"}, check_far_counters
    yield {"name": "autotuning"}, check_autotuning
    yield {"name": "select"}, lambda: check_select(*sizes)
    for freeze in freezes:
        yield {"name": f"masks, {freeze}"}, lambda f=freeze: check_masks(*masks, f)
    for dtype in dtypes:
        for rows, fan in not_finite:
            name = f"NaN, infinity, denormals: Linear {rows} x {fan}, {dtype}"
            yield {"name": name}, partial(check_not_finite, rows, fan, dtype)
        yield {"name": f"NaN, infinity, denormals: Conv2d, {dtype}"}, partial(check_conv2d_not_finite, dtype)
    if not INTERPRETED:
        yield {"name": "CUDA graph of training steps"}, partial(check_cuda_graph, small_network)
        yield {"name": "CUDA graph of training steps, grad_scores split"}, partial(check_cuda_graph, wide_batch)
        yield {"name": "a training step without synchronization"}, check_no_synchronization
        yield {"name": "two streams"}, check_streams
        yield {"name": "torch.compile"}, check_compiled
        yield {"name": "torch.compile, reduce-overhead"}, check_reduce_overhead
        yield {"name": "elements past 2**31"}, check_far_elements
        yield {"name": "cuda:1 while cuda:0 is current"}, check_other_device
    products: list[tuple[bool, Item]] = []  # whether it comes first; the item
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
    for rows, fan in embeddings:
        for weight in WEIGHTS:
            for dtype in dtypes:
                name = f"Embedding {rows} x {fan}, {weight}, {dtype}"
                run = partial(check_embedding, rows, fan, weight, dtype)
                products.append((weight == WEIGHTS[0], ({"name": name}, run)))
    random.Random(0).shuffle(products)  # so that a time limit drops some of each kind
    for first in (True, False):
        yield from (item for early, item in products if early == first)
