"""Correctness and speed of the GPU backends on a GPU, in under ten minutes. Needs torch, triton and this package.

    python bench/gpu_check.py --out FILE.json
    TRITON_INTERPRET=1 python bench/gpu_check.py --smoke        tests the script without a GPU

Sections, the most telling first:
    first       one small case of each operation against the reference, on each GPU backend alone
    rates       instructions per clock of the pipes that the CUDA kernels depend on (`gpu_rates.cu`), if there is nvcc
    warm        compiles the kernels that `speed` times
    speed       median and quartiles of one call, from CUDA graphs that rotate inputs and weights, so that L2 is cold:
                what has an aim, convolutions, more sizes, then masks
    checks      every operation against the reference: odd shapes, dtypes, layouts (`gpu_correctness.py`); each on the
                backends in their order, and on Triton alone
    memory      what a layer keeps, and the workspace of each operation
    traffic     bytes read from memory, if `ncu` is installed
    compile     compiles the tiles that `tuned` times
    tuned       the tiles that autotuning chooses

"ours" is the first backend that takes the arguments. Baselines in the same run: Triton alone, cuBLAS and cuDNN on dense
weights, a layer that materializes its mask from scores, a weight materialized in each call, and for masks
``torch.kthvalue`` and a comparison.

One run may not reach the end of the last section. Two runs can share the work and write to one file, with the same
commit, GPU and Triton:

    python bench/gpu_check.py --out FILE.json --only first rates warm speed checks memory traffic
    python bench/gpu_check.py --out FILE.json --only compile tuned

Worker processes run a section's items: one where something is timed, several where compilation dominates. An item that
fails, crashes or times out is recorded and printed, and a new worker takes over: an illegal access would make all later
GPU work of the process fail. Each result is written when it comes: a run that is killed keeps what it has. Items
without time left are marked.
"""

import argparse
import csv
import faulthandler
import gc
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent))  # where the package is not installed

import torch
import torch.nn.functional as F
from gpu_correctness import (
    BF16,
    DEVICE,
    FROZEN,
    GPU_BACKENDS,
    INTERPRETED,
    Item,
    Result,
    autotuning,
    checks,
    first,
    gpu,
    randn,
    random_mask,
    scale,
    synchronize,
)
from machine import machine
from torch import Tensor

from slt_kernels import SupermaskLinear, backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

L2_BYTES = 128 << 20  # more than any L2 cache; inputs and weights are rotated through this much memory
RESNET50 = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and size of its 3x3 convolutions


# The machine


def about(smoke: bool) -> Iterator[Item]:
    def describe() -> Result:
        if not GPU_BACKENDS:
            reasons = "; ".join(f"{name}: {backends.why_unavailable(name)}" for name in ("cuda", "triton"))
            raise RuntimeError(f"no GPU backend can run here: {reasons}")
        return machine()

    yield {}, describe


def rates(smoke: bool) -> Iterator[Item]:
    def measure() -> Result:
        nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
        if INTERPRETED or nvcc is None:
            return {"note": "needs a GPU and nvcc"}
        major, minor = torch.cuda.get_device_capability()
        number = f"{major}{minor}" + "a" * (major == 9)
        here = Path(__file__).parent
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "gpu_rates")
            target = ["-gencode", f"arch=compute_{number},code=sm_{number}", "-o", str(program)]
            subprocess.run(
                [nvcc, "-std=c++20", f"-I{here.parent / 'csrc'}", str(here / "gpu_rates.cu"), *target], check=True
            )
            run = subprocess.run([program], check=True, capture_output=True, text=True)
        return {"per clock and multiprocessor": json.loads(run.stdout)}

    yield {}, measure


# Speed


Runs = dict[str, tuple[int, Callable[[int], object]]]  # the number of copies of the inputs; a call with one of them


def ours_and_triton(count: int, call: Callable[[object, int], object]) -> Runs:
    """A call of the backends in their order, and of Triton alone if it is not the only one."""
    runs = {"ours": (count, partial(call, gpu))}
    return runs | {"triton": (count, partial(call, backends.on("triton")))} if len(GPU_BACKENDS) > 1 else runs


def copies(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Enough copies to exceed the cache, at most 64."""
    count = min(64, max(2, 1 + L2_BYTES // sum(t.nbytes for t in tensors)))
    return [tensors, *(tuple(t.clone() for t in tensors) for _ in range(count - 1))]


def milliseconds(count: int, call: Callable[[int], object], seconds: float = 0.1) -> Result:
    """The time of one call: in a CUDA graph of many calls, without launch overhead; and issued eagerly.

    All methods have about the same number of calls in a graph, as starting a graph takes time too.
    """
    for i in range(2):
        call(i % count)
    synchronize()
    issued = 1 if INTERPRETED else 20
    started = time.perf_counter()
    for i in range(issued):
        call(i % count)
    synchronize()
    eager = 1e3 * (time.perf_counter() - started) / issued
    if INTERPRETED:
        return {"median": eager, "eager": eager}
    calls = count * -(-32 // count)  # at least 32, and each copy equally often
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i % count)
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 3 or (time.monotonic() - started < seconds and len(times) < 200):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / calls)
    low, median, high = statistics.quantiles(times, n=4)
    quartiles = [round(low, 5), round(high, 5)]
    return {"median": round(median, 5), "quartiles": quartiles, "replays": len(times), "eager": round(eager, 5)}


def linear_case(size: int, batch: int, dtype: torch.dtype, operation: str, compact: bool) -> Runs:
    source = Source.of(size, size, freeze=FROZEN if compact else Freeze())
    mask, one = random_mask(source, compact), scale()
    weight = (gpu.materialize(mask, source) * one).to(dtype)
    x = randn(batch, size, dtype=dtype)
    ours, dense = copies(mask, x), copies(weight, x)

    def masked(i: int) -> Tensor:
        return gpu.materialize(ours[i][0], source).to(dtype)

    if operation == "forward":
        scores = torch.randn_like(weight)
        return {
            **ours_and_triton(len(ours), lambda on, i: on.linear_forward(ours[i][1], ours[i][0], one, None, source)),
            "dense": (len(dense), lambda i: F.linear(dense[i][1], dense[i][0])),
            "materializing layer": (len(dense), lambda i: F.linear(x, dense[i][0] * (scores.abs() > 0.5))),
            "materialize, then dense": (len(ours), lambda i: F.linear(ours[i][1], masked(i)) * one),
        }
    if operation == "grad_input":
        return {
            **ours_and_triton(len(ours), lambda on, i: on.linear_grad_input(ours[i][1], ours[i][0], one, source)),
            "dense": (len(dense), lambda i: dense[i][1] @ dense[i][0]),
            "materialize, then dense": (len(ours), lambda i: (ours[i][1] @ masked(i)) * one),
        }
    pairs, scores = copies(torch.randn_like(x), x), randn(source.free)
    return {
        **ours_and_triton(len(pairs), lambda on, i: on.linear_grad_scores(*pairs[i], scores, one, source)),
        "dense": (len(pairs), lambda i: pairs[i][0].T @ pairs[i][1]),
    }


def conv2d_case(channels: int, size: int, batch: int, dtype: torch.dtype, operation: str) -> Runs:
    torch.backends.cudnn.benchmark = True
    window = Window(3, 3, padding_h=1, padding_w=1)
    source = Source.of(channels, 9 * channels)
    geometry, mask, one = (source, window), random_mask(source), scale()
    x = randn(batch, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def kernel(mask: Tensor) -> Tensor:
        return gpu.materialize(mask, source).to(dtype).view(channels, 3, 3, channels).permute(0, 3, 1, 2)

    ours, dense = copies(mask, x), copies(kernel(mask) * one.to(dtype), x)
    if operation == "forward":
        return {
            **ours_and_triton(len(ours), lambda on, i: on.conv2d_forward(ours[i][1], ours[i][0], one, None, *geometry)),
            "dense": (len(dense), lambda i: F.conv2d(dense[i][1], dense[i][0], padding=1)),
            "materialize, then dense": (
                len(ours),
                lambda i: F.conv2d(ours[i][1], kernel(ours[i][0]), padding=1) * one.to(dtype),
            ),
        }

    def backward(dy: Tensor, x: Tensor, weight: Tensor, *wanted: bool) -> tuple[Tensor | None, ...]:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    if operation == "grad_input":
        image = [size, size]
        return {
            **ours_and_triton(
                len(ours), lambda on, i: on.conv2d_grad_input(ours[i][1], ours[i][0], one, *geometry, image)
            ),
            "dense": (len(dense), lambda i: backward(dense[i][1], x, dense[i][0], True, False)),
        }
    pairs, scores = copies(torch.randn_like(x), x), randn(source.free)  # both channels-last, like x
    return {
        **ours_and_triton(len(pairs), lambda on, i: on.conv2d_grad_scores(*pairs[i], scores, one, *geometry)),
        "dense": (len(pairs), lambda i: backward(*pairs[i], dense[0][0], False, True)),
    }


def masks_case(rows: int, fan: int, operation: str) -> Runs:
    source = Source.of(rows, fan)
    scores, rank, threshold = copies(randn(source.free)), source.free // 2, torch.tensor(0.5, device=DEVICE)
    if operation == "select":
        return {
            **ours_and_triton(len(scores), lambda on, i: on.select([*scores[i]], rank)),
            "kthvalue": (len(scores), lambda i: scores[i][0].abs().kthvalue(rank)),
        }
    return {
        **ours_and_triton(len(scores), lambda on, i: on.pack(scores[i][0], threshold, source, False)),
        "comparison": (len(scores), lambda i: scores[i][0].abs() > threshold),
    }


Case = tuple[Result, Callable[[], Runs]]


def products(smoke: bool) -> Iterator[Case]:
    """The cases with performance aims, then convolutions, then more sizes."""
    if smoke:
        aims = [(128, 2, BF16, op, op == "forward") for op in ("forward", "grad_input", "grad_scores")]
        convolutions = [(32, 3, 1, BF16, op) for op in ("forward", "grad_input", "grad_scores")]
        sizes = []
    else:
        aims = [(8192, batch, BF16, "forward", False) for batch in (1, 16, 256, 4096)]
        aims += [(8192, 1024, torch.float32, "forward", False), (8192, 1, BF16, "forward", True)]
        aims += [(8192, 4096, BF16, op, False) for op in ("grad_input", "grad_scores")]
        convolutions = [(c, size, batch, BF16, "forward") for batch in (64, 1) for c, size in RESNET50]
        convolutions[4:4] = [
            (c, size, 64, BF16, op) for op in ("grad_input", "grad_scores") for c, size in RESNET50[:2]
        ]
        sizes = [(8192, batch, BF16, "forward", False) for batch in (4, 64, 1024, 8192)]
        sizes += [(4096, batch, BF16, "forward", False) for batch in (1, 4, 16, 64, 256, 1024, 8192)]
        sizes += [(8192, 16, torch.float32, "forward", False), (8192, 4096, BF16, "forward", True)]
    yield from map(_linear, aims)
    yield from map(_convolution, convolutions)
    yield from map(_linear, sizes)


def _linear(case: tuple) -> Case:
    size, batch, dtype, operation, compact = case
    what = {"layer": "Linear", "size": size, "batch": batch, "dtype": str(dtype), "operation": operation}
    return {**what, "mask": "compact" if compact else "resolved"}, lambda: linear_case(*case)


def _convolution(case: tuple) -> Case:
    channels, size, batch, dtype, operation = case
    what = {"layer": "Conv2d 3x3", "channels": channels, "size": size, "batch": batch, "dtype": str(dtype)}
    return {**what, "operation": operation, "mask": "resolved"}, lambda: conv2d_case(*case)


def masks(smoke: bool) -> Iterator[Case]:
    rows, fan = (3, 129) if smoke else (4980, 5120)  # the weights of a ResNet-50
    for operation in ("select", "pack"):
        yield {"operation": operation, "scores": rows * fan}, partial(masks_case, rows, fan, operation)


def timed(smoke: bool) -> Iterator[Case]:
    yield from products(smoke)
    yield from masks(smoke)


def warm(smoke: bool) -> Iterator[Item]:
    """Compiles the kernels that `speed` times, in many processes at once, into Triton's cache."""

    def compile_all(make: Callable[[], Runs]) -> None:
        runs = make()
        for name in ("ours", "triton") if len(GPU_BACKENDS) > 1 else ("ours",):
            _, call = runs[name]
            call(0)

    for what, make in timed(smoke):
        yield what, lambda make=make: compile_all(make)


def speed(smoke: bool) -> Iterator[Item]:
    def measure(make: Callable[[], Runs]) -> Result:
        times = {name: milliseconds(*run) for name, run in make().items()}
        ours = times["ours"]["median"]
        ratios = {f"{name} / ours": round(t["median"] / ours, 3) for name, t in times.items() if name != "ours"}
        return {**ratios, "milliseconds": times}

    for what, make in timed(smoke):
        yield what, lambda make=make: measure(make)


# Autotuning


def _on_triton(runs: Runs) -> tuple[int, Callable[[int], object]]:
    return runs.get("triton", runs["ours"])


def compile_tiles(smoke: bool) -> Iterator[Item]:
    """Compiles every tile that `tuned` times, in many processes at once, into Triton's cache."""

    def compile_all(make: Callable[[], Runs]) -> None:
        _, call = _on_triton(make())
        with autotuning():  # its timings are discarded: other processes use the GPU
            call(0)

    for what, make in list(products(smoke))[: 1 if smoke else None]:
        yield what, lambda make=make: compile_all(make)


def tuned(smoke: bool) -> Iterator[Item]:
    """The tiles that autotuning chooses, and their gain over the rule."""

    def measure(make: Callable[[], Runs]) -> Result:
        run = _on_triton(make())
        rule = milliseconds(*run)["median"]
        with autotuning() as file:
            best = milliseconds(*run)["median"]
            chosen = json.loads(file.read_text())
        return {"rule / tuned": round(rule / best, 3), "rule": rule, "tuned": best, "tiles": chosen}

    for what, make in list(products(smoke))[: 1 if smoke else None]:
        yield what, lambda make=make: measure(make)


# Memory


def memory(smoke: bool) -> Iterator[Item]:
    """The memory that a layer keeps besides its scores, and the temporary memory of a step and of each operation."""

    def measure(size: int, batch: int, compact: bool) -> Result:
        if INTERPRETED:
            return {"note": "needs a GPU"}
        gc.collect()  # so that no earlier item's memory is freed during the measurement
        start = torch.cuda.memory_allocated()
        layer = SupermaskLinear(size, size, bias=False, freeze=FROZEN, compact=compact, device=DEVICE)
        layer.auto_mask = False
        x, dy = randn(batch, size, dtype=BF16).requires_grad_(), randn(batch, size, dtype=BF16)

        def step() -> tuple[Tensor | None, ...]:
            x.grad = layer.scores.grad = None
            y = layer(x)
            y.backward(dy)
            return y, x.grad, layer.scores.grad

        step()  # the first step allocates what is kept for each source
        x.grad = layer.scores.grad = None
        kept = torch.cuda.memory_allocated() - start - sum(t.nbytes for t in (x, dy, layer.scores))
        mask, one, source = layer.mask_words, layer.weight_scale, layer.source
        rows, scores = x.detach(), layer.scores.detach()
        workspaces = {
            "forward": workspace(lambda: gpu.linear_forward(rows, mask, one, None, source)),
            "grad_input": workspace(lambda: gpu.linear_grad_input(dy, mask, one, source)),
            "grad_scores": workspace(lambda: gpu.linear_grad_scores(dy, rows, scores, one, source)),
            "forward and backward": workspace(step),
        }
        share = (kept + max(workspaces.values())) / (size * size * BF16.itemsize)
        return {"kept": kept, "workspaces": workspaces, "of a dense weight": round(share, 4)}

    for batch in (4,) if smoke else (64, 256, 4096):
        for compact in (False, True):
            what = {"size": 128 if smoke else 8192, "batch": batch, "mask": "compact" if compact else "resolved"}
            yield what, lambda a=(what["size"], batch, compact): measure(*a)


def workspace(call: Callable[[], object]) -> int:
    """The peak memory of a call above the memory in use after it, which includes its results."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del results  # kept alive until here
    return taken


# Bytes read from memory


def traffic(smoke: bool) -> Iterator[Item]:
    """Bytes read by one forward of batch 1, from hardware counters."""

    def measure(form: str) -> Result:
        ncu = shutil.which("ncu")
        if INTERPRETED or ncu is None:
            return {"note": "needs a GPU and ncu"}
        command = [ncu, "--clock-control", "none", "--cache-control", "all", "--csv", "--print-units", "base"]
        command += ["--metrics", "dram__bytes_read.sum", "--kernel-name", "regex:forward"]
        command += [sys.executable, __file__, "--one-forward", form]
        run = subprocess.run(command, capture_output=True, text=True)
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
        gpu.linear_forward(x, mask, scale(), None, source)
    synchronize()


# Processes


class Section(NamedTuple):
    items: Callable[[bool], Iterator[Item]]
    share: float  # of the total time
    limit: float  # seconds for an item, including compilation
    parallel: bool = False


SECTIONS = {
    "machine": Section(about, 0, 60),
    "first": Section(first, 0.06, 100, parallel=True),
    "rates": Section(rates, 0.03, 100),
    "warm": Section(warm, 0.07, 100, parallel=True),
    "speed": Section(speed, 0.26, 45),
    "checks": Section(checks, 0.33, 120, parallel=True),
    "memory": Section(memory, 0.05, 45),
    "traffic": Section(traffic, 0.06, 100),
    "compile": Section(compile_tiles, 0.06, 150, parallel=True),
    "tuned": Section(tuned, 0.08, 60),
}
LONGEST = 540  # seconds that a run may take
START_SECONDS = 90  # for a worker to import PyTorch and Triton, while others do too
SPARE = 20  # seconds for this process's own imports, and for workers that do not exit at once


def attempt(run: Callable[[], Result | None]) -> Result:
    """An item's measurements, or the reason for its failure."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    started = time.monotonic()
    try:
        measured = run() or {}
        synchronize()
        return {"ok": True, **measured, "seconds": round(time.monotonic() - started, 2)}
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {str(error)[:500]} ({Path(line.filename).name}:{line.lineno})"
        return {"ok": False, "why": why}


def work(section: str, smoke: bool) -> None:
    """Runs the items whose numbers are read from stdin, one per line, and prints a line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout carries only results; other prints go to stderr
    runs = [run for _, run in SECTIONS[section].items(smoke)]
    print("{}", file=answers, flush=True)  # ready
    for line in sys.stdin:
        faulthandler.dump_traceback_later(0.9 * SECTIONS[section].limit)  # reports where a hanging item is
        result = attempt(runs[int(line)])
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(result), file=answers, flush=True)


class Worker:
    """A process that runs `work`, and can be killed at any time."""

    def __init__(self, command: list[str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,  # so that its children can be killed with it
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},  # there is a worker for each core
            )
        except OSError:
            self.errors.close()
            raise

    def ask(self, number: int, until: float) -> Result:
        with suppress(BrokenPipeError):  # the process has exited; `answer` reports it
            self.process.stdin.write(b"%d\n" % number)
        return self.answer(until)

    def answer(self, until: float) -> Result:
        """The worker's next line.

        Raises:
            TimeoutError: no line by ``until``.
            RuntimeError: the process exited, or the line is not JSON.
        """
        said, out = b"", self.process.stdout.fileno()
        while not said.endswith(b"\n"):
            if not select.select([out], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError
            more = os.read(out, 1 << 16)
            if not more:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)  # it may be exiting by itself
                self.kill()
                cut = f" in the middle of {said[-100:]}" if said else ""
                raise RuntimeError(f"the process ended with {self.process.returncode}{cut}: {self.last_words()}")
            said += more
        try:
            return json.loads(said)
        except ValueError:
            raise RuntimeError(f"expected a line of JSON, and it said {said[-300:]}") from None

    def last_words(self) -> str:
        """The end of its output, read without moving the file position."""
        errors = self.errors.fileno()
        return os.pread(errors, 1000, max(0, os.fstat(errors).st_size - 1000)).decode(errors="replace")

    def end(self) -> None:
        self.kill()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process blocked in a driver survives SIGKILL
            self.process.wait(SPARE / 4)


def supervise(
    command: list[str],
    items: list[Result],
    processes: int,
    limit: float,
    deadline: float,
    came: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Runs the items on ``processes`` workers, and returns their results.

    An item ends at its time limit or at the deadline. A failed item's worker is replaced.

    Args:
        came: called with each result when it comes, by one thread at a time.
    """
    one_at_a_time = threading.Lock()
    idle: list[Worker | None] = [None] * processes  # None: not started

    def do(number: int) -> Result:
        began = time.monotonic()
        if began >= deadline:
            return {**items[number], "ok": None, "why": "no time left"}
        worker = idle.pop()
        try:
            if worker is None:
                worker = Worker(command)
                worker.answer(min(began + START_SECONDS, deadline))
            result = worker.ask(number, min(time.monotonic() + limit, deadline))
        except TimeoutError:
            seconds = time.monotonic() - began
            late = time.monotonic() >= deadline
            why = "no time left" if late else "no answer"
            result = {"ok": None if late else False, "why": f"{why} after {seconds:.1f} s: {worker.last_words()}"}
        except Exception as error:
            result = {"ok": False, "why": f"{type(error).__name__}: {error}"}
        if not result["ok"] and worker is not None:  # it may hang, or its CUDA context be broken
            worker.end()
            worker = None
        idle.append(worker)
        result = {**items[number], **result}
        with one_at_a_time:
            _print(result)
            came(result)
        return result

    try:
        with ThreadPoolExecutor(processes) as pool:
            return list(pool.map(do, range(len(items))))
    finally:
        for worker in filter(None, idle):
            worker.end()


def _print(result: Result) -> None:
    if result["ok"] is False:
        print("FAILED", json.dumps(result), flush=True)
    elif "name" not in result:
        print(json.dumps({k: v for k, v in result.items() if k not in ("ok", "milliseconds", "tiles")}), flush=True)


def worker_command(section: str, smoke: bool) -> list[str]:
    return [sys.executable, __file__, "--work", section, *(["--smoke"] if smoke else [])]


def run_section(name: str, smoke: bool, deadline: float, came: Callable[[Result], None]) -> list[Result]:
    section = SECTIONS[name]
    items = [what for what, _ in section.items(smoke)]
    cores = min(32, len(os.sched_getaffinity(0)))  # each takes half a gigabyte of GPU memory
    processes = cores if section.parallel and not INTERPRETED else 1
    results = supervise(worker_command(name, smoke), items, processes, section.limit, deadline, came)
    print(f"{name}: {sum(r['ok'] is True for r in results)} of {len(results)} passed", flush=True)
    return results


# The report


def same_of_all(report: Result) -> tuple[object, ...]:
    """What all sections in a file must share: the commit, the GPU with the backends, the size of the cases."""
    backends_here = [report["machine"]["backends"].get(name) for name in ("cuda", "triton")]
    return report["machine"]["commit"], *backends_here, report["smoke"]


def write(report: Result, file: Path) -> None:
    """Replaces the file atomically."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file, new or of an earlier run")
    parser.add_argument("--smoke", action="store_true", help="a few small cases, to test the script itself")
    parser.add_argument("--seconds", type=float, default=LONGEST, help="time limit for everything; at most the default")
    sections = [name for name in SECTIONS if name != "machine"]
    parser.add_argument("--only", choices=sections, nargs="+", default=sections, help="sections")
    parser.add_argument("--commit", default="unknown", help="the commit, if git does not say")
    for option in ("--work", "--one-forward"):  # for the processes that this one starts
        parser.add_argument(option, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one_forward:
        one_forward(options.one_forward)
        return 0
    if options.work:
        work(options.work, options.smoke)
        return 0

    if not SPARE < options.seconds <= LONGEST:
        parser.error(f"--seconds {options.seconds:g}: expected more than {SPARE} and at most {LONGEST}")
    watchdog = threading.Timer(options.seconds, os._exit, [3])  # should a worker's end take long
    watchdog.daemon = True
    watchdog.start()
    try:
        return check(parser, options, time.monotonic() + options.seconds - SPARE)
    finally:
        watchdog.cancel()


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, deadline: float) -> int:
    """Runs the chosen sections until the deadline, and writes their results."""
    earlier, before = {}, None
    if options.out:
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(options.out.parent, os.W_OK):
                raise PermissionError(f"{options.out.parent} cannot be written to")
            if options.out.exists():
                earlier = json.loads(options.out.read_text())
                before = same_of_all(earlier)
        except (OSError, ValueError, LookupError, TypeError) as error:
            parser.error(f"--out {options.out}: expected a new file, or one from an earlier run: {error!r}")

    [here] = run_section("machine", options.smoke, deadline, lambda result: None)
    if not here["ok"]:
        print(here["why"], file=sys.stderr)
        return 2
    here["commit"] = here["commit"] or options.commit
    report = {"machine": here, "smoke": options.smoke, "seconds": {}}
    if before == same_of_all(report):
        report = earlier
    elif earlier:
        print(f"{options.out} is from another commit, GPU or backend, and will be replaced", flush=True)

    chosen = [name for name in SECTIONS if name in options.only]
    left = sum(SECTIONS[name].share for name in chosen)
    for name in chosen:
        began, share = time.monotonic(), SECTIONS[name].share
        report[name] = []

        def keep(result: Result, name: str = name) -> None:
            report[name].append(result)
            if options.out:
                write(report, options.out)

        try:
            report[name] = run_section(name, options.smoke, began + (deadline - began) * share / left, keep)
        except Exception:
            report[name] = [{"ok": False, "why": traceback.format_exc()}]
            print(f"{name}: {report[name][0]['why']}", file=sys.stderr)
        left -= share
        report["seconds"][name] = round(time.monotonic() - began, 1)
        if options.out:
            write(report, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
