"""The CPU kernels without PyTorch: the test program of csrc/cpu/test, here and under an emulator of AArch64."""

import hashlib
import os
import re
import struct
import subprocess

import cpu_program
import pytest
from oracle import known

from slt_kernels import Freeze, Source
from slt_kernels.backends import cpu
from slt_kernels.source import WEIGHTS

CORES = {"cortex-a72": "neon", "neoverse-n1": "neondot", "max": "neoni8mm"}  # and the best instruction set of each


def test_operations_and_known_answers_here(tmp_path):
    """AVX2's dot products and the matrix unit are emulated where the processor has AVX-512's forms of them alone."""
    if not cpu_program.OBJECTS:
        pytest.skip("no objects of a build in build/objects.*")
    native = cpu.instruction_sets()
    emulated = []
    if {"avx2", "avx512bf16"} <= {*native}:
        emulated = [name for name in cpu_program.setup().EMULATED if name not in native]
    sets = sorted([*native, *emulated], key=[*cpu_program.setup().INSTRUCTION_SETS].index)
    program = cpu_program.build_here(tmp_path, emulated)
    counts = re.findall(r"^(\w+): (\d+) checks, 0 failed$", output(program), re.MULTILINE)
    assert [name for name, _ in counts] == sets
    assert len({number for _, number in counts}) == 1
    check_known_answers([program], sets)


def test_operations_and_known_answers_on_arm(tmp_path):
    """Each instruction set runs on a core that has no better one, so an instruction of a better one is an error."""
    if reason := cpu_program.no_arm():
        pytest.skip(reason)
    cores = os.environ.get("SLT_ARM_CORES", " ".join(CORES)).split()
    sets = [CORES[core] for core in cores]
    program = cpu_program.build_for_arm(tmp_path, sets=sets)
    for i, core in enumerate(cores):
        command = cpu_program.emulated(core, program)
        assert re.fullmatch(rf"{sets[i]}: [1-9]\d+ checks, 0 failed\n", output(*command, "best"))
        check_known_answers(command, sets[: i + 1])


def check_known_answers(command: list[object], sets: list[str]) -> None:
    layers = [(case[weight], source_of(case, weight)) for case in known("layers") for weight in WEIGHTS]
    found = answers(command, sets, [(source, 0, ["0"]) for _, source in layers])
    for (answer, source), of_sets in zip(layers, found, strict=True):
        for name, (weights, *_) in of_sets.items():
            assert hashlib.sha256(bytes.fromhex(weights)).hexdigest() == answer["sha256_int8"], (name, source)
    products = known("products")
    cases = [
        (source_of(case, case["weight"]), case["batch"], [hex_of(case["scale"]), *case["x_float32_hex"]])
        for case in products
    ]
    for case, of_sets in zip(products, answers(command, sets, cases), strict=True):
        for name, (_, *results) in of_sets.items():
            assert results == [*case["y_D3_float32_hex"], *case["y_D2_float32_hex"]], (name, case["weight"])


def answers(
    command: list[object], sets: list[str], cases: list[tuple[Source, int, list[str]]]
) -> list[dict[str, list[str]]]:
    """What the program computes of each case, by instruction set: the weights, then the results, in hex.

    Args:
        command: runs the program.
        sets: the instruction sets that it is to have.
        cases: a source, a batch, and the scale and the inputs in hex.
    """
    text = "\n".join(" ".join(map(str, (*source[:7], batch, *numbers))) for source, batch, numbers in cases)
    lines = [line.split() for line in output(*command, "answers", input=text).splitlines()]
    assert [name for name, *_ in lines] == sets * len(cases)
    return [{name: rest for name, *rest in lines[i : i + len(sets)]} for i in range(0, len(lines), len(sets))]


def output(*command: object, **options: object) -> str:
    run = subprocess.run(command, capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def source_of(case: dict, weight: str) -> Source:
    shape, frozen = (case["rows"], case["fan"]), Freeze(case["prune"], case["lock"])
    return Source.of(*shape, seed=int(case["seed"]), layer=case["layer"], weight=weight, freeze=frozen)


def hex_of(number: float) -> str:
    return struct.pack(">f", number).hex()
