"""The Triton backend on a GPU: is it right, and how fast. Under ten minutes; needs torch, triton and this package.

    python bench/gpu_check.py --out FILE.json
    TRITON_INTERPRET=1 python bench/gpu_check.py --smoke        the script itself, without a GPU

First every operation is compared with the reference over odd shapes, dtypes and layouts; then speed (medians of CUDA
events, inputs rotated so that none is found in the cache), peak memory, and where `ncu` is there the bytes read from
memory. Peers in the same run: cuBLAS and cuDNN on dense weights, the layer that materializes its mask from scores, and
a weight materialized in each call. A check that fails is recorded and printed, and the run goes on.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

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
FROZEN = Freeze(0.35, 0.35)
L2_BYTES = 128 << 20  # more than any cache: inputs are rotated through as much
RESNET50 = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and size of its 3x3 convolutions

Check = tuple[str, Callable[[], None]]


# Correctness


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


def close(ours: Tensor, theirs: Tensor, error: float) -> None:
    ours, theirs = ours.double(), theirs.double()
    off = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-300)) if theirs.numel() else 0.0
    assert off <= error, f"relative error {off:.3g}, expected at most {error:.3g}"


def check_linear(rows: int, fan: int, batch: int, weight: str, dtype: torch.dtype, precision: str = "highest") -> None:
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
    close(ours, theirs, 2e-6 if precision == "highest" else 2e-3)
    torch.set_float32_matmul_precision("highest")


def check_conv2d(shape: tuple[int, ...], rows: int, window: Window, weight: str, dtype: torch.dtype) -> None:
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
    close(triton.conv2d_grad_scores(*arguments), reference.conv2d_grad_scores(*arguments), 2e-6)


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


def check_far_offsets() -> None:
    """Counters past 2**32, and elements past 2**31."""
    source = Source.of(2**31 - 1, 129, weight="normal", freeze=FROZEN).shard(rows=(2**31 - 3, 2**31 - 1))
    mask = random_mask(source, compact=True)
    assert torch.equal(triton.materialize(mask, source), reference.materialize(mask, source))
    if not INTERPRETED:
        source = Source.of(2**17, 2**14 + 128)
        mask = torch.full((source.rows, source.words), -1, dtype=torch.int32, device=DEVICE)
        last = source.shard(rows=(source.rows - 2, source.rows))
        assert torch.equal(triton.materialize(mask, source)[-2:], reference.materialize(mask[-2:], last))


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


def check_cuda_graph() -> None:
    """Forward, backward, selection and packing captured: none of them waits for the host."""
    net, popup = training_network()
    x = randn(4, 3, 8, 8)

    def step() -> None:
        net.zero_grad(set_to_none=False)
        net(x).square().mean().backward()
        popup.step()

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    expected = [p.grad.clone() for p in net.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


def check_other_device() -> None:
    source = Source.of(33, 129)
    mask, x = random_mask(source).to("cuda:1"), randn(3, 129).to("cuda:1")
    arguments = (mask, scale().to("cuda:1"), None, source)
    same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))


def checks(smoke: bool) -> Iterator[Check]:
    shapes = [(1, 1, 1), (3, 31, 17), (17, 32, 3), (1, 33, 129), (3, 63, 16), (65, 65, 3), (131, 127, 64)]
    shapes += [(129, 129, 65), (64, 1031, 1), (257, 2048, 300), (512, 4096, 16), (40, 140000, 3)]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if smoke:
        shapes, dtypes = shapes[:3], dtypes[:2]
    for rows, fan, batch in shapes:
        for weight in WEIGHTS:
            for dtype in dtypes:
                name = f"Linear {rows} x {fan}, batch {batch}, {weight}, {dtype}"
                yield name, lambda a=(rows, fan, batch, weight, dtype): check_linear(*a)
            name = f"Linear {rows} x {fan}, batch {batch}, {weight}, two digits"
            yield name, lambda a=(rows, fan, batch, weight, torch.float32, "high"): check_linear(*a)
    convolutions = [
        ((2, 4, 5, 7), 6, Window(3, 3, 1, 1, 1, 1)),
        ((2, 6, 5, 5), 6, Window(3, 3, 1, 1, 2, 1, groups=6)),
        ((3, 32, 9, 8), 33, Window(3, 1, 2, 1)),
        ((2, 64, 14, 14), 64, Window(3, 3, 1, 1, 1, 1)),
        ((2, 256, 7, 7), 130, Window(3, 3, 2, 2, 1, 1, groups=2)),
        ((2, 64, 9, 11), 32, Window(2, 3, 1, 1, 1, 0, 2, 1, 2)),
        ((1, 128, 4, 4), 17, Window(1, 1, 2, 2)),
        ((0, 3, 5, 5), 4, Window(3, 3)),
    ]
    for shape, rows, window in convolutions[:2] if smoke else convolutions:
        for weight in WEIGHTS:
            for dtype in dtypes[:1] if smoke else dtypes:
                name = f"Conv2d {shape} to {rows}, {tuple(window)}, {weight}, {dtype}"
                yield name, lambda a=(shape, rows, window, weight, dtype): check_conv2d(*a)
    for freeze in (Freeze(), FROZEN, Freeze(1, 0), Freeze(0, 1), Freeze(0.7, 0)):
        yield f"masks, {freeze}", lambda f=freeze: check_masks(*((5, 65) if smoke else (131, 1031)), f)
    yield "select", lambda: check_select(5000, 3) if smoke else check_select(1, 3_000_000, 70_001)
    yield "NaN, infinity, denormals", check_not_finite
    yield "strides, and a hundred runs", check_strides_and_repeats
    yield "any split of the batch", check_batch_invariance
    yield "far offsets", check_far_offsets
    yield "training steps", check_training_step
    if not INTERPRETED:
        yield "CUDA graph of a training step", check_cuda_graph
        if torch.cuda.device_count() > 1:
            yield "cuda:1 while cuda:0 is current", check_other_device


def run_checks(smoke: bool, deadline: float) -> list[dict]:
    results = []
    for name, check in checks(smoke):
        if time.monotonic() > deadline:
            results.append({"name": name, "ok": None, "why": "no time left"})
            continue
        start = time.monotonic()
        torch.manual_seed(0)
        try:
            check()
            results.append({"name": name, "ok": True, "seconds": round(time.monotonic() - start, 2)})
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {str(error)[:500]} ({Path(line.filename).name}:{line.lineno})"
            results.append({"name": name, "ok": False, "why": why})
            print(f"FAILED {name}: {why}", flush=True)
    passed = sum(r["ok"] is True for r in results)
    print(f"{passed} of {len(results)} checks passed", flush=True)
    return results


# Speed


def milliseconds(run: Callable[[Tensor], object], x: Tensor, seconds: float = 0.15) -> dict[str, float]:
    """Median and quartiles of one call, over inputs that are not in the cache."""
    copies = [x.clone() for _ in range(max(1, min(64, L2_BYTES // max(1, x.nbytes))))]
    for i in range(3):
        run(copies[i % len(copies)])
    times: list[float] = []
    start = time.monotonic()
    while len(times) < 5 or (time.monotonic() - start < seconds and len(times) < 200):
        times.append(_one_call(run, copies[len(times) % len(copies)]))
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": round(median, 5), "quartiles": [round(low, 5), round(high, 5)], "calls": len(times)}


def _one_call(run: Callable[[Tensor], object], x: Tensor) -> float:
    if INTERPRETED:
        start = time.perf_counter()
        run(x)
        return 1e3 * (time.perf_counter() - start)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    run(x)
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


Runs = dict[str, Callable[[Tensor], object]]


def linear_case(size: int, batch: int, dtype: torch.dtype, operation: str, compact: bool) -> tuple[Tensor, Runs]:
    source = Source.of(size, size, freeze=FROZEN if compact else Freeze())
    mask, one = random_mask(source, compact), scale()
    x, dy = randn(batch, size, dtype=dtype), randn(batch, size, dtype=dtype)
    dense = (triton.materialize(mask, source) * one).to(dtype)
    if operation == "forward":
        scores = torch.randn_like(dense)
        return x, {
            "ours": lambda x: triton.linear_forward(x, mask, one, None, source),
            "dense": lambda x: F.linear(x, dense),
            "materializing layer": lambda x: F.linear(x, dense * (scores.abs() > 0.5)),
            "materialize, then dense": lambda x: F.linear(x, triton.materialize(mask, source).to(dtype)) * one,
        }
    if operation == "grad_input":
        return dy, {
            "ours": lambda dy: triton.linear_grad_input(dy, mask, one, source),
            "dense": lambda dy: dy @ dense,
        }
    scores = randn(source.count_frozen()[1])
    return dy, {
        "ours": lambda dy: triton.linear_grad_scores(dy, x, scores, one, source),
        "dense": lambda dy: dy.T @ x,
    }


def conv2d_case(channels: int, size: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Runs]:
    window = Window(3, 3, padding_h=1, padding_w=1)
    source = Source.of(channels, 9 * channels)
    mask, one = random_mask(source), scale()
    x = randn(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    dense = (triton.materialize(mask, source) * one).to(dtype).view(channels, 3, 3, channels).permute(0, 3, 1, 2)
    return x, {
        "ours": lambda x: triton.conv2d_forward(x, mask, one, None, source, window),
        "dense": lambda x: F.conv2d(x, dense, padding=1),
    }


def cases(smoke: bool) -> Iterator[tuple[dict, Callable[[], tuple[Tensor, Runs]]]]:
    bf16, fp32 = (torch.float16, torch.float32) if INTERPRETED else (torch.bfloat16, torch.float32)
    sizes, batches = ((256,), (1, 4)) if smoke else ((8192, 4096), (1, 4, 16, 64, 256, 1024, 8192))
    linear = [(size, batch, bf16, "forward", False) for size in sizes for batch in batches]
    linear += [(sizes[0], batches[-2], fp32, "forward", False), (sizes[0], 1, bf16, "forward", True)]
    linear += [(sizes[0], 4 if smoke else 4096, bf16, op, False) for op in ("grad_input", "grad_scores")]
    for size, batch, dtype, operation, compact in linear:
        what = {"layer": "Linear", "size": size, "batch": batch, "dtype": str(dtype)}
        what |= {"operation": operation, "mask": "compact" if compact else "resolved"}
        yield what, lambda a=(size, batch, dtype, operation, compact): linear_case(*a)
    for channels, size in ((32, 4),) if smoke else RESNET50:
        for batch in (1,) if smoke else (1, 64):
            what = {"layer": "Conv2d 3x3", "channels": channels, "size": size, "batch": batch, "dtype": str(bf16)}
            yield what | {"operation": "forward"}, lambda a=(channels, size, batch, bf16): conv2d_case(*a)


def run_speed(smoke: bool, deadline: float) -> list[dict]:
    results = []
    torch.backends.cuda.matmul.allow_tf32 = False
    for what, make in cases(smoke):
        if time.monotonic() > deadline:
            results.append({**what, "error": "no time left"})
            continue
        try:
            x, runs = make()
            result = {**what, "milliseconds": {name: milliseconds(run, x) for name, run in runs.items()}}
            ours = result["milliseconds"]["ours"]["median"]
            result["dense / ours"] = round(result["milliseconds"]["dense"]["median"] / ours, 3)
            print(
                " ".join(map(str, what.values())), "ours", ours, "ms, dense / ours", result["dense / ours"], flush=True
            )
        except Exception as error:
            result = {**what, "error": f"{type(error).__name__}: {str(error)[:500]}"}
            print(f"FAILED {what}: {result['error']}", flush=True)
        results.append(result)
    return results


# Memory


def run_memory(smoke: bool) -> dict:
    """Peak of a forward and a backward, above what was there before and the gradients that are there after."""
    size, batch = (256, 4) if smoke else (8192, 64)
    layer = SupermaskLinear(size, size, bias=False, freeze=FROZEN, device=DEVICE)
    layer.auto_mask = False
    x = randn(batch, size, dtype=torch.float16 if INTERPRETED else torch.bfloat16).requires_grad_()
    with backends.use("triton"):
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
    return {"peak": peak, "of gradients and activations": known, "above them": peak - known, "dense weight": dense}


def run_traffic() -> dict:
    """Bytes read from memory by one forward of batch 1, as the hardware counts them."""
    ncu = shutil.which("ncu")
    if INTERPRETED or ncu is None:
        return {"note": "needs a GPU and ncu"}
    results = {}
    for form in ("resolved", "compact"):
        command = [ncu, "--clock-control", "none", "--cache-control", "all", "--csv", "--metrics"]
        command += ["dram__bytes_read.sum", "--print-units", "base", "--kernel-name", "forward_kernel"]
        command += [sys.executable, __file__, "--one-forward", form]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=90)
            values = [
                line.split('","')[-1].strip('"') for line in run.stdout.splitlines() if "dram__bytes_read" in line
            ]
            results[form] = {"bits a weight": 8 * float(values[-1].replace(",", "")) / 8192**2}
        except Exception as error:
            results[form] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return results


def one_forward(form: str) -> None:
    x, runs = linear_case(8192, 1, torch.bfloat16, "forward", form == "compact")
    for _ in range(2):
        runs["ours"](x)
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few small cases: does the script run to its end?")
    parser.add_argument("--seconds", type=float, default=540, help="start nothing new after as many")
    parser.add_argument("--one-forward", choices=("resolved", "compact"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if reason := triton.unavailable():
        print(f"the Triton backend cannot run here: {reason}", file=sys.stderr)
        return 2
    if arguments.one_forward:
        one_forward(arguments.one_forward)
        return 0
    start = time.monotonic()
    report = {"machine": machine(), "triton": triton.describe(), "interpreted": INTERPRETED}
    for section, run in (
        ("checks", lambda: run_checks(arguments.smoke, start + 0.5 * arguments.seconds)),
        ("speed", lambda: run_speed(arguments.smoke, start + 0.8 * arguments.seconds)),
        ("memory", lambda: run_memory(arguments.smoke)),
        ("traffic", run_traffic),
    ):
        try:
            report[section] = run()
        except Exception as error:
            report[section] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        report["seconds"] = round(time.monotonic() - start, 1)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("memory", "traffic", "seconds")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
