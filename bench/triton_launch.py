"""What the Triton backend's operations cost the host, without a GPU: microseconds of Python, and launches.

    python bench/triton_launch.py
    python bench/triton_launch.py --resnet50    launches of a training step on an H200

Kernels are compiled for sm_90, and a launcher that does nothing takes the place of Triton's, on CPU tensors. Triton's
own launcher, the driver, allocations on a GPU and `torch.ops` come on top. Each time is the least mean of many rounds.
With --resnet50 nothing is compiled.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from rounds import least_microseconds
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from slt_kernels import backends
from slt_kernels.backends.registry import run
from slt_kernels.backends.triton import forward, grad_input, grad_scores
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Freeze, Source

# The elements of a ResNet-50's convolutions and last layer.
RESNET50 = (3 * 49 * 64, *[64 * 64, 64 * 64 * 9, 64 * 256] * 3, *[128 * 512, 128 * 128 * 9] * 9, *[256 * 1024] * 32)


class Driver:
    """What Triton asks of a driver, for a device that is not there. It counts launches."""

    def __init__(self) -> None:
        self.utils = self
        self.launches = 0

    def launcher_cls(self, src: object, metadata: object) -> Callable[..., None]:
        def launch(*arguments: object) -> None:
            self.launches += 1

        return launch

    def load_binary(self, *_: object) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def cases() -> dict[str, Callable[[], object]]:
    """Small operations, where the host's time shows."""
    source, scale = Source.of(256, 512, seed=1), torch.tensor(0.1)
    mask, scores = torch.zeros(256, 16, dtype=torch.int32), torch.zeros(256 * 512)
    half, single = torch.zeros(64, 512, dtype=torch.bfloat16), torch.zeros(64, 512)
    dy = torch.zeros(64, 256, dtype=torch.bfloat16)
    every = [torch.zeros(n) for n in RESNET50]
    return {
        "linear_forward bf16": lambda: run("linear_forward", half, mask, scale, None, source),
        "linear_forward fp32": lambda: run("linear_forward", single, mask, scale, None, source),
        "linear_grad_input bf16": lambda: run("linear_grad_input", dy, mask, scale, source),
        "linear_grad_scores bf16": lambda: run("linear_grad_scores", dy, half, scores, scale, source),
        "pack": lambda: run("pack", scores, scale, source, False),
        f"select of {len(every)} tensors": lambda: run("select", every, 1000),
    }


def resnet50_layers() -> Iterator[tuple[int, int, int, int, int]]:
    """Channels, rows, kernel, stride and input size of its 53 convolutions."""
    yield 3, 64, 7, 2, 224
    channels, size = 64, 56
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(count):
            stride = 2 if i == 0 and width > 64 else 1
            yield channels, width, 1, 1, size
            yield width, width, 3, stride, size
            if i == 0:
                yield channels, 4 * width, 1, stride, size
            size //= stride
            yield width, 4 * width, 1, 1, size
            channels = 4 * width


def resnet50_step(batch: int) -> None:
    """The convolutions of a training step in bfloat16, channels-last, with a third of the weights frozen."""
    scale, scores = torch.tensor(0.1), torch.zeros(512 * 512 * 9)
    for index, (channels, rows, kernel, stride, size) in enumerate(resnet50_layers()):
        freeze = Freeze(0.175, 0.175)
        source = Source.of(rows, channels * kernel**2, seed=1, layer=index, freeze=freeze)
        window = Window(kernel, kernel, stride, stride, kernel // 2, kernel // 2)
        x = torch.empty(batch, channels, size, size, dtype=torch.bfloat16, memory_format=torch.channels_last)
        shape = batch, rows, *window.output_size(size, size)
        dy = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
        mask = torch.zeros(rows, source.words, dtype=torch.int32)
        run("conv2d_forward", x, mask, scale, None, source, window)
        if index:  # the images need no gradient
            run("conv2d_grad_input", dy, mask, scale, source, window, [size, size])
        run("conv2d_grad_scores", dy, x, scores[: source.free], scale, source, window)


def print_resnet50(batch: int) -> None:
    from slt_kernels.backends.triton.launch import Launch, Machine

    launches: Counter[str] = Counter()
    Launch.__call__ = lambda self, *tensors: launches.update([self._kernel.__name__])
    for module in (forward, grad_input, grad_scores):
        module.machine = lambda device: Machine(9, 132)
    with backends.use("triton"):
        resnet50_step(batch)
        launches.clear()  # the first use of a source counts its free weights
        resnet50_step(batch)
    print(f"| kernel, of a ResNet-50's convolutions at batch {batch} | launches |\n| --- | --- |")
    for kernel, count in launches.items():
        print(f"| {kernel} | {count} |")
    print(f"| all | {launches.total()} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--calls", type=int, default=50, help="a round")
    parser.add_argument("--resnet50", action="store_true")
    parser.add_argument("--batch", type=int, default=32, help="of --resnet50")
    arguments = parser.parse_args()
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    backends.triton.unavailable, backends.triton.supports = lambda: None, lambda device: True
    if arguments.resnet50:
        print_resnet50(arguments.batch)
        return
    CUDABackend.make_cubin = lambda *_: b"none"
    print("| operation | us | launches |")
    print("| --- | --- | --- |")
    with backends.use("triton"):
        for name, call in cases().items():
            call()
            driver.launches = 0
            call()
            launches = driver.launches
            calls = max(1, arguments.calls // launches)
            print(f"| {name} | {least_microseconds(call, calls, arguments.rounds):.1f} | {launches} |", flush=True)


if __name__ == "__main__":
    main()
