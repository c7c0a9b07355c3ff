"""Instructions of the CPU kernels on AArch64, counted under qemu: a table of operations and instruction sets.

    python bench/arm_instructions.py

A count is deterministic, where a time is not; it says nothing about a processor's speed. It is of one call on one
thread (the difference of two calls and one), divided by the multiplications, or by the weights where nothing is
multiplied. It depends on the compiler, aarch64-linux-gnu-g++ with the flags of setup.py. Exit 2 without that compiler
or qemu-aarch64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

BENCH = Path(__file__).parent
sys.path.insert(0, str(BENCH.parent / "python_tests"))

import cpu_program  # noqa: E402


def main() -> int:
    if reason := cpu_program.no_arm():
        print(f"instructions on AArch64: not counted, {reason}")
        return 2
    sets = [*cpu_program.setup().ARM_SETS]
    with tempfile.TemporaryDirectory() as folder:
        counter = Path(folder, "counter.so")
        flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
        subprocess.run(["c++", *flags, BENCH / "arm_counter.cpp", "-o", counter], check=True)
        program = cpu_program.build_for_arm(Path(folder), BENCH / "arm_cases.cpp", "-O3")
        command = cpu_program.emulated("max", program, "-plugin", counter, "-d", "plugin")

        def count(case: str, name: str, times: int) -> int:
            run = subprocess.run([*command, case, name, str(times)], capture_output=True, text=True, check=True)
            return int(run.stderr)

        print(f"| instructions | {' | '.join(sets)} |\n| --- |{' --- |' * len(sets)}")
        cases = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for case, divisor in (line.split("\t") for line in cases.splitlines()):
            each = [(count(case, name, 2) - count(case, name, 1)) / int(divisor) for name in sets]
            print(f"| {case} | {' | '.join(f'{n:.2f}' for n in each)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
