"""Machine code of NVIDIA's processors: its instructions, its loops, and the pipes that execute them."""

import re
import shutil
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

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


def instructions_and_loops(code: str) -> tuple[list[str], list[list[str]]]:
    """All instructions of a function without their guards, and those of each of its loops."""
    instructions: list[str] = []
    places: dict[str, int] = {}  # of labels and addresses
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label.group(1)] = len(instructions)
        elif found := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(.*?)\s*;", line):
            places[f"0x{int(found.group(1), 16):x}"] = len(instructions)
            instructions.append(re.sub(r"^@!?U?P\w+ +", "", found.group(2)))
    loops = []
    for i, instruction in enumerate(instructions):
        target = re.match(r"BRA\S*.*?(\.L_x_\d+|0x[0-9a-f]+)\)?$", instruction)
        if target and places.get(target.group(1), i + 1) < i:
            loops.append(instructions[places[target.group(1)] : i + 1])
    return instructions, loops


def is_spill(instruction: str) -> bool:
    """Whether it loads from or stores to a thread's own memory, where registers spill."""
    return bool(re.match(r"(LDL|STL)\b", instruction))


def is_tensor(instruction: str) -> bool:
    return pipe(instruction) == "tensor"


def pipe(instruction: str) -> str:
    """The pipe that executes an instruction; `alu` is what no other takes."""
    name = instruction.split()[0]
    if name.startswith(("IMAD.WIDE", "IMAD.HI")):
        return "wide"
    head = name.split(".")[0]
    return next((pipe for pipe, pattern in _PIPES.items() if re.match(pattern, head)), "alu")


def by_pipe(instructions: list[str]) -> dict[str, int]:
    """How many instructions each pipe executes."""
    return dict(sorted(Counter(map(pipe, instructions)).items()))
