"""Machine code of the CUDA kernels as the package was built with them, and its statistics. Needs cuobjdump, but no GPU.

    python bench/cuda_sass.py                     reports every kernel on sm_80, sm_90a and sm_120
    python bench/cuda_sass.py --check             fails if a kernel exceeds its budget, bench/cuda_budget.json
    python bench/cuda_sass.py --write             tightens the budget to the results
    python bench/cuda_sass.py --arch 90a --only "slt_forward_small_bits*"
    python bench/cuda_sass.py --bounds            bounds for an H200, computed from the code of both GPU backends
    python bench/cuda_sass.py --bounds --write    writes them to bench/cuda_bounds.json, which docs/cuda.md shows

Columns:
    registers      per thread
    spills         local loads and stores of registers
    instructions   of the whole kernel
    per weight     instructions of a thread in the main loop / weights of a step; where each thread makes its weights.
                   Of grad_scores, instructions / gradients of the loop that writes those of signed weights, where
                   all are free
    tensor, alu, ...   instructions of the main loop by the pipe that executes them, or of a kernel without one
"""

import argparse
import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import bounds
import sass

KERNELS = Path(__file__).parent.parent / "slt_kernels/_cuda_kernels"
BUDGET = Path(__file__).with_name("cuda_budget.json")
BOUNDS = Path(__file__).with_name("cuda_bounds.json")
ARCHITECTURES = ("80", "90a", "120")
CALL = 18  # wide products of a Philox call
_PIPES = ("tensor", "alu", "fma", "wide", "xu", "double", "uniform", "memory", "control")
_COLUMNS = ("registers", "spills", "instructions", "per_weight")


def built() -> dict:
    """What the kernels were built of.

    Raises:
        FileNotFoundError: there are none.
    """
    about = json.loads((KERNELS / "kernels.json").read_text())
    if "why_none" in about:
        raise FileNotFoundError(about["why_none"])
    return about


def code_of(path: Path, architecture: str) -> dict[str, str]:
    """The code of each kernel of a fatbin."""
    return sass.functions(sass.run("cuobjdump", "-sass", "-arch", f"sm_{architecture}", path))


def measure(architecture: str) -> dict[str, dict]:
    """The statistics of each kernel."""
    results = {}
    for path in sorted(KERNELS.glob("*.fatbin")):
        code = code_of(path, architecture)
        usage = sass.run("cuobjdump", "-res-usage", "-arch", f"sm_{architecture}", path)
        registers = dict(re.findall(r"Function (\S+):\s+REG:(\d+)", usage))
        for name, text in code.items():
            results[name] = {"registers": int(registers[name]), **_statistics(name, text)}
    return results


def _statistics(name: str, code: str) -> dict:
    instructions, loops = sass.instructions_and_loops(code)
    result = {"spills": sum(map(sass.is_spill, instructions)), "instructions": len(instructions)}
    counted = instructions
    if tensor_loops := [loop for loop in loops if any(map(sass.is_tensor, loop))]:
        counted = min(tensor_loops, key=len)
        pipes = sass.by_pipe(counted)
        if name.startswith(
            "slt_forward_small"
        ):  # a step is two calls of signs, or four of bytes; loops may be unrolled
            steps = 1 if name.endswith("compact") else round(pipes["wide"] / CALL / (4 if "bytes" in name else 2))
            result["per_weight"] = round(len(counted) / steps / (64 if "bytes" in name else 256), 2)
    if name.startswith("slt_grad_scores") and tensor_loops:
        stores = [(len(loop), sum(instruction.startswith("STG") for instruction in loop)) for loop in loops]
        result["per_weight"] = round(min(length / count for length, count in stores if count), 2)
    return result | {"pipes": sass.by_pipe(counted)}


def over_budget(result: dict, limits: dict | None) -> list[str]:
    """What exceeds the budget: spills, registers, and the instructions of each pipe."""
    if limits is None:
        return ["is not in the budget"]
    numbers, allowed = _flat(result), _flat(limits)
    return [
        f"{key} {value}, budget {allowed.get(key, 0)}" for key, value in numbers.items() if value > allowed.get(key, 0)
    ]


def tightened(limits: dict | None, result: dict) -> dict:
    """A kernel's budget, tightened to the result. It never loosens: delete an entry to measure it anew."""
    if limits is None:
        return result
    pipes = {pipe: min(n, limits["pipes"].get(pipe, 0)) for pipe, n in result["pipes"].items()}
    numbers = {key: min(value, limits.get(key, value)) for key, value in result.items() if key != "pipes"}
    return numbers | {"pipes": pipes}


def _flat(result: dict) -> dict[str, float]:
    return {key: value for key, value in result.items() if key != "pipes"} | result["pipes"]


def report_bounds(version: str, write: bool) -> None:
    """Prints the bounds of each case on sm_90a; writes them if asked."""
    import triton
    from cuda_bounds import cases, row

    codes: dict[str, str] = {}
    for path in sorted(KERNELS.glob("*.fatbin")):
        codes |= code_of(path, "90a")
    rows = []
    for case in cases():
        rows.append(row(case, codes))
        print(" | ".join(bounds.shown(rows[-1])), flush=True)
    if write:
        versions = {"nvcc": version, "triton": triton.__version__}
        BOUNDS.write_text(json.dumps(versions | {"cases": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--only", nargs="+", default=["*"], help="names of kernels, or patterns of the shell's kind")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--bounds", action="store_true", help="needs triton, too")
    arguments = parser.parse_args()
    version = ".".join(built()["nvcc"].split(".")[:2])  # each compiler version has its own budget
    if arguments.bounds:
        report_bounds(version, arguments.write)
        return
    budgets = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if arguments.check and version not in budgets:
        print(f"no budget for nvcc {version}: nothing is checked")
        arguments.check = False
    failures = []
    for architecture in arguments.arch:
        print(f"\nsm_{architecture}, nvcc {version}")
        print(f"| {' | '.join(('kernel', *_COLUMNS, *_PIPES))} |".replace("_", " "))
        print("| --- " * (1 + len(_COLUMNS) + len(_PIPES)) + "|")
        budget = budgets.setdefault(version, {}).setdefault(f"sm_{architecture}", {})
        for name, result in measure(architecture).items():
            if not any(fnmatch(name, pattern) for pattern in arguments.only):
                continue
            numbers = _flat(result)
            print(f"| {name} | {' | '.join(str(numbers.get(key, '')) for key in (*_COLUMNS, *_PIPES))} |")
            if arguments.check:
                failures += [f"sm_{architecture}, {name}: {text}" for text in over_budget(result, budget.get(name))]
            if arguments.write:
                budget[name] = tightened(budget.get(name), result)
    if arguments.write:
        BUDGET.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n")
    if failures:
        sys.exit("over budget:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
