"""The weight contract as csrc/contract states it, compiled as it stands, against the reference."""

import ctypes
import itertools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from oracle import known

from slt_kernels import Freeze, Source, bits, philox
from slt_kernels.source import NORMAL_TABLE, WEIGHTS

COMPILER = shlex.split(os.environ.get("CXX", "c++"))
PROGRAM = """
#include "contract/source.h"
using namespace slt;

static Source of(const int64_t *v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]}; }

extern "C" {
void block(const uint32_t *c, const uint32_t *key, uint32_t *out) {
    const Words4 words = philox4x32({{c[0], c[1], c[2], c[3]}}, key[0], key[1]);
    for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}
void word(const int64_t *v, int64_t row, int64_t w, uint32_t *out) {  // sign, free, locked, valid, eight of VALUE
    const Source s = of(v);
    const Frozen frozen = frozen_word(s, row, w);
    const Words8 values = eight_words(s, VALUE, row, w);
    const uint32_t first[4] = {sign_word(s, row, w), frozen.free, frozen.locked, valid_bits(s, w)};
    for (int i = 0; i < 4; ++i) out[i] = first[i];
    for (int i = 0; i < 8; ++i) out[4 + i] = values.word[i];
}
int bit(int k) { return k_of_bit(bit_of_k(k)) == k ? bit_of_k(k) : -1; }
void normal(int8_t *out) {
    constexpr int8_t half[128] = SLT_NORMAL_HALF;
    for (int i = 0; i < 128; ++i) out[i] = half[i];
}
}
"""

SOURCES = {
    "dense": Source.of(3, 129, seed=2**64 - 1, layer=2**32 - 1),
    "frozen": Source.of(5, 45, seed=42, layer=7, freeze=Freeze(0.35, 0.35)),
    "all frozen": Source.of(2, 33, seed=0, freeze=Freeze(0.5, 0.5)),
    "all locked": Source.of(2, 33, seed=0, freeze=Freeze(0, 1)),
    "shard": Source.of(9, 500, seed=2**63, layer=3, freeze=Freeze(0.2)).shard((2, 7), (3, 11)),
}


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"no compiler {COMPILER[0]}")
    library = tmp_path_factory.mktemp("contract") / "contract.so"
    include = Path(__file__).parents[1] / "csrc"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wno-unused-function", "-Werror", "-shared", "-fPIC", f"-I{include}"]
    run = subprocess.run(
        [*COMPILER, *flags, "-xc++", "-", "-o", library], input=PROGRAM, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("case", known("philox4x32_10"), ids=("zeros", "ones", "pi"))
def test_philox_known_answers(header, case):
    as_int = [int(c, 16) if isinstance(c, str) else c for c in (*case["counter"], *case["key"])]
    out = (ctypes.c_uint32 * 4)()
    header.block((ctypes.c_uint32 * 4)(*as_int[:4]), (ctypes.c_uint32 * 2)(*as_int[4:]), out)
    assert [f"{word:08x}" for word in out] == case["out"]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_word(header, source):
    signs, (free, locked), valid = source.signs(), source.frozen_words(), source.padding()
    values = source._eight_words(philox.VALUE, "cpu").view(source.rows, source.words, 8)
    for row, w in itertools.product(range(source.rows), range(source.words)):
        out = (ctypes.c_int32 * 12)()
        header.word((ctypes.c_int64 * 10)(*source), ctypes.c_int64(row), ctypes.c_int64(w), out)
        expected = signs[row, w], free[row, w], locked[row, w], valid[w], *values[row, w]
        assert (*out,) == tuple(map(int, expected))


def test_bit_order_and_the_normal_table(header):
    in_k_order = bits.to_k_order(torch.arange(32).view(1, 1, 32), 32)[0]
    assert [header.bit(k) for k in range(32)] == in_k_order.tolist()
    table = (ctypes.c_int8 * 128)()
    header.normal(table)
    assert (*table,) == NORMAL_TABLE[128:]
    assert WEIGHTS.index("normal") == 2  # `Weight` of contract/source.h
