"""What a launch of a CUDA kernel costs the host, without a GPU: microseconds of `enqueue`.

    python bench/cuda_launch.py

A library in the place of NVIDIA's driver does nothing. The driver's own work comes on top, and so does PyTorch's
look-up of the current stream. Each figure is the least of many rounds.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from rounds import least_microseconds

from slt_kernels import Source

sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "python_tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=500, help="a round")
    arguments = parser.parse_args()
    import fake_driver

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLT_CUDA_DRIVER"] = os.fspath(fake_driver.build(Path(folder)))
        Path(folder, "materialize.fatbin").write_text("slt_materialize 0\n")
        from slt_kernels.backends.cuda import _cuda, launch

        _cuda.use_kernels(folder)
        launch._stream = lambda index: 4096
        driver = fake_driver.Driver()
        source, device = Source.of(64, 4096, seed=3, layer=2), torch.device("cuda", 0)
        made = launch.Launch(
            file="materialize",
            kernel="slt_materialize",
            arguments="Materialize",
            blocks=32,
            threads=256,
            values={"generator": source, "segment_starts": 0, "call_starts": 0, "compact": False},
            later=["mask", "out"],
        )
        mask, out = torch.empty(64, 128, dtype=torch.int32), torch.empty(64, 4096, dtype=torch.int8)
        launch.enqueue(made, device, mask, out)
        driver.current(0)
        driver.quiet()
        cases = {
            "enqueue, two tensors": lambda: launch.enqueue(made, device, mask, out),
            "enqueue, two addresses": lambda: launch.enqueue(made, device, 4096, 8192),
            "an empty function": lambda: None,
        }
        for name, call in cases.items():
            print(f"{name}: {least_microseconds(call, arguments.calls, arguments.rounds):.2f} us")


if __name__ == "__main__":
    main()
