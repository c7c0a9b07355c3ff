"""The contract as csrc/contract states it, for the host against the reference, and compiled for a device."""

import ctypes
import itertools
import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cpu_program import setup
from oracle import fixed_point, known, rounded

from slt_kernels import Freeze, Source, bits, philox
from slt_kernels.conv_geometry import Window
from slt_kernels.source import NORMAL_TABLE, WEIGHTS

COMPILER = shlex.split(os.environ.get("CXX", "c++"))
CSRC = Path(__file__).parents[1] / "csrc"
PROGRAM = """
#include "contract/fixed_point.h"
#include "contract/frame.h"
#include "contract/weights.h"
#include "contract/window.h"
using namespace slt;

static Source of(const int64_t *v) { return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9]}; }

extern "C" {
void block(const uint32_t *c, const uint32_t *key, uint32_t *out) {
    const Words4 words = philox4x32({{c[0], c[1], c[2], c[3]}}, key[0], key[1]);
    for (int i = 0; i < 4; ++i) out[i] = words.word[i];
}
void word(const int64_t *v, int64_t row, int64_t w, uint32_t *out) {  // sign, free, locked, valid, eight of VALUE
    const Source s = of(v);
    const FrozenWord frozen = frozen_word(s, row, w);
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
void weights(const int64_t *v, int64_t row, int8_t *out) {
    const Source s = of(v);
    for (int64_t k = 0; k < s.fan; ++k) out[k] = int8_t(weight_value(s, row, k));
}
void frame(const int64_t *v, int64_t *out) {
    const Frame f = frame_of(of(v));
    out[0] = f.first_call, out[1] = f.skipped, out[2] = f.calls, out[3] = f.k;
}
float score(int64_t seed, int64_t layer, int64_t i) { return initial_score(seed, layer, uint64_t(i)); }
bool kept(uint32_t threshold, uint32_t score) { return is_kept(kept_above(threshold), score); }
double fixed(uint32_t largest, int digits, const float *x, int64_t count, int32_t *out) {  // returns the power
    const FixedPoint f = fixed_point(largest, digits);
    for (int64_t i = 0; i < count; ++i) out[i] = fixed_integer(f, x[i]);
    return f.power;
}
void digits(int count, uint32_t x, int8_t *out) {
    const uint32_t bytes = count == 3 ? balanced_digits<3>(x) : balanced_digits<2>(x);
    for (int i = 0; i < count; ++i) out[i] = int8_t(bytes >> 8 * i);
}
float rounded(int64_t sum, double power, float scale) { return rounded_sum(sum, power, scale); }
void tap(const int64_t *v, int64_t t, int64_t *out) {
    const TapOffset o = tap_offset({v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]}, t);
    out[0] = o.down, out[1] = o.right;
}
}
"""

DEVICE_PROGRAM = """
#include "contract/fixed_point.h"
#include "contract/frame.h"
#include "contract/weights.h"
#include "contract/window.h"
using namespace slt;

__global__ void every_function(Source s, Window w, float *out) {
    const FixedPoint f = fixed_point(7, 3);
    *out = weight_value(s, 1, 2) + frozen_word(s, 1, 2).free + frame_of(s).k + initial_score(s.seed, s.layer, 3) +
           is_kept(kept_above(3), 5) + fixed_integer(f, *out) + balanced_digits<3>(5u) + balanced_digits<2>(5u) +
           rounded_sum(int64_t(5), f.power, 3.0f) + tap_offset(w, 1).down + k_of_bit(3);
}
"""

SOURCES = {
    "dense": Source.of(3, 129, seed=2**64 - 1, layer=2**32 - 1),
    "frozen": Source.of(5, 45, seed=42, layer=7, freeze=Freeze(0.35, 0.35)),
    "all frozen": Source.of(2, 33, seed=0, freeze=Freeze(0.5, 0.5)),
    "all locked": Source.of(2, 33, seed=0, freeze=Freeze(0, 1)),
    "uniform": Source.of(3, 70, seed=5, layer=2, weight="uniform"),
    "normal": Source.of(3, 70, seed=6, layer=2, weight="normal", freeze=Freeze(0.1)),
    "shard": Source.of(9, 500, seed=2**63, layer=3, freeze=Freeze(0.2)).shard((2, 7), (3, 11)),
}


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"no compiler {COMPILER[0]}")
    library = tmp_path_factory.mktemp("contract") / "contract.so"
    flags = [
        "-std=c++20",
        "-O1",
        "-ffp-contract=off",
        "-Wall",
        "-Wno-unused-function",
        "-Werror",
        "-shared",
        "-fPIC",
        f"-I{CSRC}",
    ]
    run = subprocess.run(
        [*COMPILER, *flags, "-xc++", "-", "-o", library], input=PROGRAM, text=True, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.score.restype = loaded.rounded.restype = ctypes.c_float
    loaded.score.argtypes = [ctypes.c_int64] * 3
    loaded.kept.restype, loaded.kept.argtypes = ctypes.c_bool, [ctypes.c_uint32] * 2
    loaded.fixed.restype = ctypes.c_double
    loaded.rounded.argtypes = [ctypes.c_int64, ctypes.c_double, ctypes.c_float]
    return loaded


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


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_weight_and_the_frame(header, source):
    out, frame = (ctypes.c_int8 * source.fan)(), (ctypes.c_int64 * 4)()
    for row, expected in enumerate(source.integer_weight().tolist()):
        header.weights((ctypes.c_int64 * 10)(*source), ctypes.c_int64(row), out)
        assert list(out) == expected
    header.frame((ctypes.c_int64 * 10)(*source), frame)
    first, skipped, calls, k = frame
    assert 4 * first + skipped == source.first_word and skipped < 4
    assert 4 * (calls - 1) < skipped + source.words <= 4 * calls and k == 128 * calls


def test_scores(header):
    source = Source.of(3, 40, seed=2**63 + 5, layer=9)
    signed = (source.seed + 2**63) % 2**64 - 2**63
    expected = source.initial_scores(21, 1.0).tolist()
    assert [header.score(signed, source.layer, i) for i in range(21)] == expected


def test_which_scores_are_kept(header):
    numbers = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 0.5, -0.5, 3e38, math.inf, -math.inf, math.nan, -math.nan])
    pattern = [value & 0xFFFFFFFF for value in numbers.view(torch.int32).tolist()]
    for (i, threshold), (j, score) in itertools.product(enumerate(pattern), enumerate(pattern)):
        expected = abs(numbers[j].item()) > numbers[i].item()
        assert header.kept(threshold, score) == expected, (numbers[i], numbers[j])


@pytest.mark.parametrize("digits", (2, 3))
def test_fixed_point(header, digits):
    generator = torch.Generator().manual_seed(0)
    largest = 127 * (256**digits - 1) // 255
    edges = [
        2.0**p * (largest + d) / 2 ** (8 * digits - 1) for p in (-140, -3, 0, 120) for d in (-0.5, 0, 0.25, 0.5, 1)
    ]
    vectors = [torch.randn(9, generator=generator) * 2.0**p for p in (-150, -140, -126, -20, 0, 20, 126)]
    vectors += [torch.tensor([0.5, -1, 1 / 3]) * edge for edge in edges] + [torch.zeros(3)]
    for x in vectors:
        integers, exponent = fixed_point(x.numpy(), digits)
        m = int(x.abs().max().view(torch.int32))
        out = (ctypes.c_int32 * len(x))()
        power = header.fixed(
            ctypes.c_uint32(m), digits, (ctypes.c_float * len(x))(*x.tolist()), ctypes.c_int64(len(x)), out
        )
        assert list(out) == integers
        assert m == 0 or power == 2.0**exponent
        for integer in integers:
            parts = (ctypes.c_int8 * digits)()
            header.digits(digits, ctypes.c_uint32(integer & 0xFFFFFFFF), parts)
            assert sum(part * 256**i for i, part in enumerate(parts)) == integer
            total = 12345 * integer + 1
            assert header.rounded(total, 2.0**exponent, 0.3) == rounded(total, exponent, 0.3)
    power = header.fixed(ctypes.c_uint32(0x7F800000), digits, (ctypes.c_float * 1)(3e38), ctypes.c_int64(1), out)
    assert math.isnan(power) and out[0] == 0


def test_taps(header):
    window = Window(2, 3, dilation_h=4, dilation_w=5)
    out = (ctypes.c_int64 * 2)()
    for t in range(6):
        header.tap((ctypes.c_int64 * 9)(*window), ctypes.c_int64(t), out)
        assert list(out) == [t // 3 * 4, t % 3 * 5]


def test_a_device_compiles_it(tmp_path):
    try:
        nvcc = setup().find_nvcc().path
    except LookupError as error:
        pytest.skip(str(error))
    program = tmp_path / "contract.cu"
    program.write_text(DEVICE_PROGRAM)
    command = [
        nvcc,
        "-std=c++20",
        "-arch=sm_80",
        f"-I{CSRC}",
        "-Werror=all-warnings",
        "-c",
        program,
        "-o",
        tmp_path / "contract.o",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
