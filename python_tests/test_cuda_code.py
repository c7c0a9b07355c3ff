"""The machine code of the CUDA kernels that are built here, held to its budget."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
KERNELS = Path(__file__).parent.parent / "slt_kernels/_cuda_kernels"


@pytest.fixture(scope="module")
def sass():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("sass")
    sys.path.remove(str(BENCH))


def test_machine_code_is_within_its_budget(sass):
    if sass.tool("cuobjdump") is None:
        pytest.skip("no cuobjdump")
    if not list(KERNELS.glob("*.fatbin")):
        pytest.skip("no kernels are built")
    about = json.loads((KERNELS / "kernels.json").read_text())
    budget = json.loads((BENCH / "cuda_budget.json").read_text())
    if ".".join(about["nvcc"].split(".")[:2]) not in budget:
        pytest.skip(f"no budget for nvcc {about['nvcc']}")
    architectures = [a for a in ("80", "90a", "120") if a in about["architectures"]]
    command = [sys.executable, "cuda_sass.py", "--check", "--arch", *architectures]
    run = subprocess.run(command, cwd=BENCH, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]


CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;        /* 0x1 */
        /*0010*/              @!P0 IMAD.WIDE.U32 R2, R3, R4, RZ ;  /* 0x1 */
        /*0020*/                   STL [R1], R2 ;                  /* 0x1 */
        /*0030*/                   LOP3.LUT R5, R2, R3, R4, 0x96, !PT ; /* 0x1 */
        /*0040*/                   BMMA.168256.AND.POPC R8, R4.ROW, R2.COL, R8 ; /* 0x1 */
        /*0050*/               @P1 BRA 0x30 ;                      /* 0x1 */
        /*0060*/                   EXIT ;                          /* 0x1 */
        /*0070*/                   BRA 0x70 ;                      /* 0x1 */
"""


def test_reading_code(sass):
    instructions, loops = sass.instructions_and_loops(CODE)
    assert [sass.pipe(i) for i in instructions] == [
        *("memory", "wide", "memory", "alu", "tensor", "control", "control", "control")
    ]
    assert loops == [instructions[3:6]]
    assert sum(map(sass.is_spill, instructions)) == 1
    assert sass.by_pipe(loops[0]) == {"alu": 1, "control": 1, "tensor": 1}


LOOP = """
        /*0000*/                   IMAD R1, R2, R3, R4 ;
        /*0010*/              @!P0 BRA 0x50 ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0030*/                   LOP3.LUT R5, R2, R3, R4, 0x96, !PT ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/                   LDS R5, [R1] ;
        /*0060*/               @P2 BRA 0x50 ;
        /*0070*/                   IMAD.WIDE.U32 R2, R3, R4, RZ ;
        /*0080*/               @P1 BRA 0x0 ;
        /*0090*/                   EXIT ;
"""


def test_a_turn_of_a_loop_is_its_shortest_path_with_what_is_wanted(sass):
    code = sass.read(LOOP)
    copies, reads = sass.shortest_turn(code, {"LDGSTS": 1}), sass.shortest_turn(code, {"LDS": 1, "IMAD": 2}, 3)
    assert [i.split()[0] for i in copies] == [
        "IMAD",
        "BRA",
        "LDGSTS.E.BYPASS.128",
        "LOP3.LUT",
        "BRA",
        "IMAD.WIDE.U32",
        "BRA",
    ]
    assert sum("LDS R5" in i for i in reads) == 3 and len(reads) == 2 + 3 * 2 + 2
    assert sass.shortest_turn(code, {"LDGSTS": 1, "LDS": 1}) == []


def test_bounds(sass):
    """Of 132 x 4 warps: the busiest pipe, tensor products of a warp's share, and the ratio to the dense product."""
    import bounds

    code = ["HGMMA.64x256x16.F32.BF16 R24, R1, gdesc[UR4], R24", *["IMAD.WIDE.U32 R2, R3, R4, RZ"] * 5, *["NOP"] * 7]
    loop = bounds.loop_of([*code, "IMMA.16832.S8.S8 R8, R4.ROW, R2.COL, R8"])
    assert loop.products == {"bf16": 64 * 256 * 16 / 4, "int8": 16 * 8 * 32}
    alone = bounds.loop_of(code)
    found = bounds.bound([(alone, 132 * 4)], moved=4.3e3, dense=1e-6)
    assert (found.pipe, found.cycles) == ("wide", 20)
    assert found.tensor == pytest.approx(2 * 132 * 64 * 256 * 16 / 790e12)
    assert found.ratio == pytest.approx(1e-6 / found.tensor)
    assert bounds.bound([(alone, 132 * 4)], moved=4.3e6, dense=1e-6).ratio == pytest.approx(1)
    assert bounds.bound([(alone, 132 * 4e3)], moved=0, dense=1e-6).pipe == "wide"


@pytest.mark.parametrize("operation, file", [("forward", "product_floats"), ("grad_input", "grad_input_floats")])
def test_the_bounds_find_the_loops_of_the_kernels(sass, operation, file):
    """Of the warps that multiply, which do all products of the tiles, and of half as many that only produce."""
    if sass.tool("cuobjdump") is None or not (KERNELS / f"{file}.fatbin").exists():
        pytest.skip("no cuobjdump, or no kernels are built")
    if "90a" not in json.loads((KERNELS / "kernels.json").read_text())["architectures"]:
        pytest.skip("no kernels are built for sm_90a")
    pytest.importorskip("triton")
    import cuda_bounds
    from cuda_sass import code_of

    codes = code_of(KERNELS / f"{file}.fatbin", "90a")
    (multiply, turns), (produce, others) = cuda_bounds.ours(cuda_bounds.Case(operation, "bfloat16", 4096), codes)
    assert turns * multiply.products["bf16"] == cuda_bounds.SIZE**2 * 4096
    assert others == turns / 2 and not produce.products and produce.pipes["wide"] >= 18


def test_a_budget_only_tightens(sass):
    from cuda_sass import over_budget, tightened

    result = {"registers": 40, "spills": 0, "instructions": 100, "pipes": {"alu": 50, "wide": 18}}
    assert over_budget(result, None) == ["is not in the budget"]
    assert over_budget(result, result) == []
    better = {"registers": 41, "spills": 0, "instructions": 90, "pipes": {"alu": 49, "fma": 1}}
    assert over_budget(better, result) == ["registers 41, budget 40", "fma 1, budget 0"]
    held = tightened(result, better)
    assert held["registers"] == 40 and held["instructions"] == 90 and held["pipes"] == {"alu": 49, "fma": 0}
