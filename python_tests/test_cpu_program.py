"""The CPU kernels without PyTorch: the test program of csrc/cpu/test, here and under an emulator of AArch64."""

import hashlib
import re
import shutil
import struct
import subprocess
from pathlib import Path

import cpu_program
import pytest
from oracle import known

from slt_kernels import Freeze, Source
from slt_kernels.backends import cpu
from slt_kernels.source import WEIGHTS

ARM_COMPILER, EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"

# A core of each instruction set: its best one, which is what it runs.
CORES = {"cortex-a72": "neon", "neoverse-n1": "neondot", "max": "neoni8mm"}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> list[object]:
    """The command that runs the program on this processor."""
    if not cpu_program.OBJECTS:
        pytest.skip("no objects of a build in build/objects.*")
    return [cpu_program.build_here(tmp_path_factory.mktemp("here"))]


@pytest.fixture(scope="module")
def program_for_arm(tmp_path_factory) -> Path:
    if missing := [tool for tool in (ARM_COMPILER, EMULATOR) if not shutil.which(tool)]:
        pytest.skip(f"no {' and no '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    return cpu_program.build_for_arm(ARM_COMPILER, tmp_path_factory.mktemp("arm"))


def on(core: str, program: Path) -> list[object]:
    """The command that runs the program on an emulated core."""
    return [EMULATOR, "-cpu", core, "-L", ARM_LIBRARIES, program]


def output(command: list[object], **options: object) -> str:
    run = subprocess.run(command, capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def answers(command: list[object], *cases: tuple[Source, int, list[str]]) -> list[tuple[str, bytes, list[str]]]:
    """Per case (a source, a batch, its scale and numbers in hex) and instruction set: name, weights and results."""
    text = "\n".join(" ".join(map(str, (*s[:7], batch, *numbers))) for s, batch, numbers in cases)
    lines = [line.split() for line in output([*command, "answers"], input=text).splitlines()]
    return [(name, bytes.fromhex(weights), results) for name, weights, *results in lines]


def source_of(case: dict, weight: str) -> Source:
    frozen = Freeze(case["prune"], case["lock"])
    return Source.of(
        case["rows"], case["fan"], seed=int(case["seed"]), layer=case["layer"], weight=weight, freeze=frozen
    )


def check_known_answers(command: list[object], sets: int) -> None:
    layers = [(case[weight], source_of(case, weight)) for case in known("layers") for weight in WEIGHTS]
    found = answers(command, *((source, 0, ["0"]) for _, source in layers))
    assert len(found) == len(layers) * sets
    for i, (name, weights, _) in enumerate(found):
        assert hashlib.sha256(weights).hexdigest() == layers[i // sets][0]["sha256_int8"], (name, layers[i // sets])
    products = known("products")
    cases = [
        (source_of(case, case["weight"]), case["batch"], [hex_of(case["scale"]), *case["x_float32_hex"]])
        for case in products
    ]
    found = answers(command, *cases)
    assert len(found) == len(products) * sets
    for i, (name, _, results) in enumerate(found):
        case = products[i // sets]
        assert results == [*case["y_D3_float32_hex"], *case["y_D2_float32_hex"]], (name, case["weight"])


def hex_of(number: float) -> str:
    return struct.pack(">f", number).hex()


def test_operations_here(here):
    counts = re.findall(r"^(\w+): (\d+) checks, 0 failed$", output(here), re.MULTILINE)
    assert [name for name, _ in counts] == cpu.instruction_sets()
    assert len({number for _, number in counts}) == 1


def test_known_answers_here(here):
    check_known_answers(here, len(cpu.instruction_sets()))


@pytest.mark.parametrize("core", CORES)
def test_operations_on_arm(program_for_arm, core):
    assert re.fullmatch(rf"{CORES[core]}: \d+ checks, 0 failed\n", output([*on(core, program_for_arm), "best"]))


@pytest.mark.parametrize("core", CORES)
def test_known_answers_on_arm(program_for_arm, core):
    check_known_answers(on(core, program_for_arm), list(CORES).index(core) + 1)
