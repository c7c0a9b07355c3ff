"""Machine code of NVIDIA's processors: its instructions, its loops, and the pipes that execute them."""

import math
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# Of the first part of an instruction's name. A scheduler issues to `alu` and `fma` every second cycle, to `wide` every
# fourth.
_PIPES = {
    "tensor": r"[HIBQD]?G?MMA$|UTC\w*MMA",
    "memory": r"LD|ST|ATOM|RED|UBLK|UTMA|MEMBAR|CCTL|ERRBAR|FENCE|SYNCS|UCGABAR|ARRIVES|CP",
    "uniform": r"U[A-Z0-9]+$|R2UR|REDUX|S2UR|VOTEU",
    "control": (
        r"BRA|BRX|JMP|CALL|RET|EXIT|BAR|BSSY|BSYNC|BREAK|WARPSYNC|WARPGROUP|DEPBAR|NOP|YIELD|NANOSLEEP|ACQBULK|PREEXIT"
        r"|ELECT|C?S2R|KILL|BPT|ENDCOLLECTIVE"
    ),
    "double": r"D(ADD|MUL|FMA|SETP)",
    "xu": r"MUFU|POPC|FLO|[IF]2[IF]|FRND|BREV",
    "fma": r"IMAD|FFMA|FMUL|FADD|HFMA|HADD|HMUL|IDP",
}


def tool(name: str) -> str | None:
    """The path of cuobjdump or nvdisasm, from CUDA or from Triton; None if there is none."""
    spec = find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec and spec.origin else None
    return shutil.which(name) or (str(bundled) if bundled and bundled.exists() else None)


def run(name: str, *arguments: object) -> str:
    """What a tool prints.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = tool(name)
    if path is None:
        raise FileNotFoundError(f"{name} is neither on PATH nor in Triton")
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def functions(code: str) -> dict[str, str]:
    """The code of each function, of what ``cuobjdump -sass`` prints."""
    parts = re.split(r"^\s*Function : (\S+)\s*$", code, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Code(NamedTuple):
    """The code of a function.

    Attributes:
        instructions: without their guards.
        branches: where an instruction branches to, and whether it always does; an exit's is to itself.
        loops: the first and the last instruction of each loop; the last is its branch back.
    """

    instructions: list[str]
    branches: dict[int, tuple[int, bool]]
    loops: list[tuple[int, int]]


def read(code: str) -> Code:
    """Reads the code of a function."""
    instructions: list[str] = []
    guarded: list[bool] = []
    places: dict[str, int] = {}  # of labels and addresses
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label.group(1)] = len(instructions)
        elif found := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(.*?)\s*;", line):
            places[f"0x{int(found.group(1), 16):x}"] = len(instructions)
            instructions.append(re.sub(r"^@!?U?P\w+ +", "", found.group(2)))
            guarded.append(found.group(2).startswith("@"))
    branches = {}
    for i, instruction in enumerate(instructions):
        target = re.match(r"BRA\S*.*?(\.L_x_\d+|0x[0-9a-f]+)\)?$", instruction)
        if target and target.group(1) in places:
            always = not guarded[i] and re.match(r"BRA (`\(|0x|\.L)", instruction) is not None
            branches[i] = places[target.group(1)], always
        elif instruction == "EXIT" and not guarded[i]:
            branches[i] = i, True
    return Code(instructions, branches, [(to, i) for i, (to, _) in branches.items() if to < i])


def instructions_and_loops(code: str) -> tuple[list[str], list[list[str]]]:
    """All instructions of a function without their guards, and those of each of its loops."""
    all_code = read(code)
    return all_code.instructions, [all_code.instructions[first : last + 1] for first, last in all_code.loops]


def shortest_turn(code: Code, wanted: dict[str, int], repeated: int = 1) -> list[str]:
    """The instructions that a warp executes in a turn of a loop: the fewest that have what is wanted.

    Args:
        wanted: how many instructions match each pattern, at least.
        repeated: how often a loop inside the turn runs.

    Returns:
        Those of the innermost loop that has such a turn; none if no loop has one.
    """
    for first, last in sorted(code.loops, key=lambda loop: loop[1] - loop[0]):
        path = _path(code, first, last, wanted)
        if not path:
            continue
        times = dict.fromkeys(path, 1)
        for start, end in code.loops:
            if first <= start and end <= last and (start, end) != (first, last) and start in times:
                times |= {i: times[i] * repeated for i in path if start <= i <= end}
        return [code.instructions[i] for i in path for _ in range(times[i])]
    return []


def _path(code: Code, first: int, last: int, wanted: dict[str, int]) -> list[int]:
    """The shortest path from an instruction to a later one, without branches back, that has what is wanted."""
    most = tuple(wanted.values())
    # For each instruction, by what was found before it: the length of the way, and the step before.
    reached: dict[int, dict[tuple, tuple[int, tuple | None]]] = {first: {(0,) * len(most): (0, None)}}
    for i in range(first, last + 1):
        matches = [re.match(pattern, code.instructions[i]) is not None for pattern in wanted]
        target, always = code.branches.get(i, (i, False))
        following = {target} if always else {i + 1, target}
        for found, (length, _) in reached.get(i, {}).items():
            now = tuple(map(min, most, map(sum, zip(found, matches, strict=True))))
            for j in (j for j in following if i < j <= last):
                if length + 1 < reached.setdefault(j, {}).get(now, (math.inf, None))[0]:
                    reached[j][now] = length + 1, (i, found)
            if i == last and now == most:
                path, step = [], (i, found)
                while step is not None:
                    path.append(step[0])
                    step = reached[step[0]][step[1]][1]
                return path[::-1]
    return []


def is_spill(instruction: str) -> bool:
    """Whether it loads from or stores to a thread's own memory, where registers spill."""
    return bool(re.match(r"(LDL|STL)\b", instruction))


def is_tensor(instruction: str) -> bool:
    return pipe(instruction) == "tensor"


def pipe(instruction: str) -> str:
    """The pipe that executes an instruction; `alu` is what no other takes."""
    return _pipe(instruction.split(maxsplit=1)[0])


@cache  # a kernel has thousands of instructions, but few names
def _pipe(name: str) -> str:
    if name.startswith(("IMAD.WIDE", "IMAD.HI")):
        return "wide"
    head = name.split(".")[0]
    return next((pipe for pipe, pattern in _PIPES.items() if re.match(pattern, head)), "alu")


def by_pipe(instructions: list[str]) -> dict[str, int]:
    """How many instructions each pipe executes."""
    return dict(sorted(Counter(map(pipe, instructions)).items()))
