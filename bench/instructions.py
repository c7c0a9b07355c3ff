"""The instruction gate: instructions of three kernels on a fixed small case, counted by callgrind.

    python bench/instructions.py             exit 1 if a kernel needs 10 % more than bench/instructions.json says
    python bench/instructions.py --write     writes new figures, after an intended change

A count is deterministic, where a time is not. It is of one call on one thread, 256 x 512 weights, 70 % frozen, with
the highest instruction set that valgrind runs. The extension is loaded without PyTorch, and must be built in place
(`pip install -e .`). Counts depend on the compiler: the figures name theirs. Exit 2 if callgrind cannot run here.
"""

import argparse
import array
import importlib.util
import json
import re
import sys
from pathlib import Path

from callgrind import ISA, count, run, unavailable

FIGURES = Path(__file__).with_name("instructions.json")
LIMIT = 1.10
ROWS, FAN, BATCH = 256, 512, 16
SOURCE = (ROWS, FAN, 0, 0, 0, 90, 166, 0, 0, (FAN + 127) // 128)  # seed 0, layer 0, signed constant, 90/256 pruned
KERNELS = ("linear_forward", "grad_scores", "pack")


def library() -> Path:
    found = sorted((Path(__file__).parent.parent / "slt_kernels").glob("_cpu.*.so"))
    if not found:
        raise FileNotFoundError("slt_kernels/_cpu.*.so: expected the extension, built in place by `pip install -e .`")
    return found[0]


def compiler() -> str:
    """The compiler of the extension, from the signature in the library."""
    found = re.findall(rb"(?:GCC: \([^)]*\)|clang version) [\d.]+", library().read_bytes())
    return " and ".join(sorted({name.decode() for name in found}))


def count_kernels() -> None:
    """Inside valgrind: calls each kernel once to warm up (dispatch, threads), then counts one call."""
    spec = importlib.util.spec_from_file_location("slt_kernels._cpu", library())
    cpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cpu)
    cpu.use_instruction_set(ISA)

    def floats(count: int, seed: int) -> array.array:
        """Fixed numbers in (-1, 1)."""
        return array.array("f", ((i * 2654435761 + seed) % 2**32 / 2**31 - 1 for i in range(count)))

    def pointer(values: array.array) -> int:
        return values.buffer_info()[0]

    def float32(values: array.array) -> tuple[int, int]:
        return pointer(values), 0  # `Type` of operations.h

    def images(values: array.array, channels: int) -> tuple:
        """A batch of one pixel each, channels-last."""
        return float32(values), (BATCH, channels, 1, 1, 1)

    offsets, locked = array.array("q", bytes(8 * (ROWS + 1))), array.array("q", [0])
    cpu.count_frozen(source=SOURCE, offsets=pointer(offsets), locked=pointer(locked), threads=1)
    free = offsets[-1]
    x, dy, scores = floats(BATCH * FAN, 1), floats(BATCH * ROWS, 2), floats(free, 3)
    y, grads, kept = array.array("f", bytes(4 * BATCH * ROWS)), array.array("f", bytes(4 * free)), array.array("q", [0])
    mask = array.array("I", bytes(4 * ROWS * (FAN // 32)))
    scale, half = array.array("f", [0.1]), 0x3F000000  # a scale is passed by pointer, a threshold by its bits
    one_pixel = (1, 1, 1, 1, 0, 0, 1, 1, 1)
    calls = {
        "pack": lambda: cpu.pack(
            source=SOURCE, scores=pointer(scores), threshold=half, offsets=pointer(offsets), locked=locked[0],
            compact=False, out=pointer(mask), kept=pointer(kept), threads=1,
        ),
        "linear_forward": lambda: cpu.linear_forward(
            source=SOURCE, mask=pointer(mask), signs=0, x=float32(x), batch=BATCH, scale=pointer(scale), bias=0,
            y=float32(y), digits=3, threads=1,
        ),
        "grad_scores": lambda: cpu.grad_scores(
            source=SOURCE, window=one_pixel, dy=images(dy, ROWS), x=images(x, FAN), scores=pointer(scores),
            scale=pointer(scale), offsets=pointer(offsets), out=pointer(grads), digits=3, threads=1,
        ),
    }  # fmt: skip
    for name, call in calls.items():
        call()
        count(name, call)
    if not (any(y) and any(grads) and 0 < kept[0] < ROWS * FAN):
        raise RuntimeError("a kernel computed nothing")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the counts to the committed figures")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        count_kernels()
        return 0
    if reason := unavailable():
        print(f"not counted: {reason}", file=sys.stderr)
        return 2
    counts = run(__file__, "--inside")
    found = {name: counts[name]["Ir"] for name in KERNELS}
    if arguments.write:
        figures = {"instruction_set": ISA, "compiler": compiler(), "instructions": found}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        return 0
    figures = json.loads(FIGURES.read_text())
    return compare(found, figures)


def compare(found: dict[str, int], figures: dict) -> int:
    """Prints each kernel's count beside the committed one. Returns 1 if one is over its limit, otherwise 0."""
    over = False
    for name, committed in figures["instructions"].items():
        change = found[name] / committed - 1
        worse = found[name] > LIMIT * committed
        over |= worse
        print(f"{name:16} {found[name]:>12,} instructions, committed {committed:>12,} ({change:+.1%})", end="")
        print("  OVER" if worse else "")
    if over:
        print(f"committed figures: {figures['compiler']}; these: {compiler()}")
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())
