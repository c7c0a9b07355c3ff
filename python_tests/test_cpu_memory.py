"""What kernels allocate: it does not grow with a batch, and an error frees it."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer keeps memory"),
]

BEFORE = """
import resource, torch
from slt_kernels import backends
from slt_kernels.source import Source
from slt_kernels.conv_geometry import Window

cpu = backends.on("cpu")
torch.set_num_threads(2)
scale = torch.tensor(0.5)

def ones(source):
    return torch.full((source.rows, source.words), -1, dtype=torch.int32)
"""

# (shape of x), source, window: many samples of few numbers, whose copies are padded to whole words.
PEAKS = """
def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) << 10

def extra(operation, *arguments):
    few = (a[:9] if torch.is_tensor(a) and a.dim() and len(a) == samples else a for a in arguments)
    operation(*few)  # starts threads, and counts free weights
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is in memory now
    before = status("VmRSS")
    out = operation(*arguments)
    return (status("VmHWM") - before - out.numel() * out.element_size()) >> 20

samples, scores = 500_000, lambda source: torch.randn(source.total)
source, window = Source.of(4, 3, seed=1, layer=1), Window(1, 1)
x, dy = torch.randn(samples, 3), torch.randn(samples, 4)
print(extra(cpu.linear_forward, x, ones(source), scale, None, source))
print(extra(cpu.linear_grad_input, dy, ones(source), scale, source))
print(extra(cpu.linear_grad_scores, dy, x, scores(source), scale, source))
for memory_format in (torch.contiguous_format, torch.channels_last):
    samples, source, window = 700_000, Source.of(1, 2, seed=1, layer=1), Window(2, 1, stride_h=3)
    x, dy = torch.randn(samples, 1, 2, 1).to(memory_format=memory_format), torch.randn(samples, 1, 1, 1)
    print(extra(cpu.conv2d_forward, x, ones(source), scale, None, source, window))
    print(extra(cpu.conv2d_grad_input, dy, ones(source), scale, source, window, [2, 1]))
    print(extra(cpu.conv2d_grad_scores, dy, x, scores(source), scale, source, window))
"""


def run(script: str, **environment: str) -> str:
    command = [sys.executable, "-c", BEFORE + script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scratch_of_a_large_batch_is_bounded():
    """Inputs and outputs are 14 MB and less; megabytes beside them, operation by operation."""
    peaks = [int(line) for line in run(PEAKS).split()]
    assert len(peaks) == 9
    assert max(peaks) < 50, peaks


def test_an_error_frees_what_was_allocated():
    """However far a kernel gets before memory runs out, on its own thread or another."""
    script = """
import ctypes

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo

def allocated():
    info = mallinfo()
    return info.uordblks + info.hblkhd

def size():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

source, window = Source.of(1024, 4096, seed=1, layer=1), Window(1, 1)
x, dy, mask, scores = torch.randn(256, 4096), torch.randn(256, 1024), ones(source), torch.randn(source.total)
images, grads = x.view(64, 4096, 2, 2), dy.view(64, 1024, 2, 2)
operations = (
    lambda: cpu.linear_forward(x, mask, scale, None, source),
    lambda: cpu.linear_grad_input(dy, mask, scale, source),
    lambda: cpu.linear_grad_scores(dy, x, scores, scale, source),
    lambda: cpu.conv2d_forward(images, mask, scale, None, source, window),
    lambda: cpu.conv2d_grad_input(grads, mask, scale, source, window, [2, 2]),
    lambda: cpu.conv2d_grad_scores(grads, images, scores, scale, source, window),
)
errors = 0
for operation in operations:
    operation()
    before = allocated()
    for extra in range(0, 8 << 20, 1 << 18):
        resource.setrlimit(resource.RLIMIT_AS, (size() + extra, resource.RLIM_INFINITY))
        try:
            operation()
        except MemoryError:
            errors += 1
        except RuntimeError:  # no room for the result
            pass
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(allocated() - before)
print(errors)
"""
    # Large blocks are the system's at once, and no thread has address space in reserve.
    *leaks, errors = run(script, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1").splitlines()
    assert int(errors) >= 12, errors
    assert max(map(int, leaks)) < 1 << 19, leaks
