// AMX's instructions as functions, to test the kernels of `amx` on a processor without a matrix unit: setup.py's
// `EMULATED` includes this before their source.
//
// What the processor would refuse ends the program: registers that are not configured, or whose sizes do not fit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>

namespace emulated_amx {
namespace {

constexpr int REGISTERS = 8, ROWS = 16, BYTES = 64;

struct Register {
    int rows, bytes;  // configured; a row has so many bytes
    alignas(64) uint8_t at[ROWS][BYTES];
};

thread_local Register registers[REGISTERS];
thread_local bool configured = false;

[[maybe_unused]] void expect(bool fine, const char *what) {
    if (fine) return;
    std::fprintf(stderr, "AMX: %s\n", what);
    std::abort();
}

[[maybe_unused]] void load_configuration(const void *from) {
    const uint8_t *bytes = static_cast<const uint8_t *>(from);
    expect(bytes[0] <= 1, "palette");
    configured = bytes[0] == 1;
    for (int i = 0; i < REGISTERS; ++i) {
        Register &r = registers[i] = {};
        uint16_t row;
        std::memcpy(&row, bytes + 16 + 2 * i, 2);
        r.bytes = row;
        r.rows = bytes[48 + i];
        expect(r.bytes <= BYTES && r.rows <= ROWS, "configuration");
    }
}

[[maybe_unused]] void release() {
    configured = false;
    for (Register &r : registers) r = {};
}

[[maybe_unused]] Register &use(int i) {
    expect(configured && registers[i].rows && registers[i].bytes, "a register that is not configured");
    return registers[i];
}

[[maybe_unused]] void clear(Register &r) { std::memset(r.at, 0, sizeof r.at); }

[[maybe_unused]] void zero(int i) { clear(use(i)); }

[[maybe_unused]] void load(int i, const void *from, int64_t stride) {
    Register &r = use(i);
    clear(r);
    for (int row = 0; row < r.rows; ++row)
        std::memcpy(r.at[row], static_cast<const char *>(from) + row * stride, size_t(r.bytes));
}

[[maybe_unused]] void store(int i, void *to, int64_t stride) {
    const Register &r = use(i);
    for (int row = 0; row < r.rows; ++row)
        std::memcpy(static_cast<char *>(to) + row * stride, r.at[row], size_t(r.bytes));
}

// sum [m][n] += product of row m of a and of column n of b, whose elements are in fours of bytes.
template <class Sum, class Add>
void multiply(int sum_register, int a_register, int b_register, Add add) {
    Register &sum = use(sum_register);
    const Register &a = use(a_register), &b = use(b_register);
    expect(sum_register != a_register && sum_register != b_register && a_register != b_register, "a register twice");
    expect(sum.rows == a.rows && sum.bytes == b.bytes && a.bytes == 4 * b.rows, "sizes that do not fit");
    for (int m = 0; m < sum.rows; ++m) {
        Sum row[ROWS] = {};
        std::memcpy(row, sum.at[m], size_t(sum.bytes));
        add(row, a.at[m], b.at, b.rows, sum.bytes / 4);
        std::memcpy(sum.at[m], row, size_t(sum.bytes));
    }
    for (int m = sum.rows; m < ROWS; ++m) std::memset(sum.at[m], 0, BYTES);
}

[[maybe_unused]] void multiply_int8(int sum, int a, int b) {
    multiply<int32_t>(sum, a, b, [](int32_t *row, const uint8_t *x, const uint8_t (*y)[BYTES], int k, int n) {
        for (int i = 0; i < k; ++i)
            for (int j = 0; j < n; ++j)
                for (int e = 0; e < 4; ++e)
                    row[j] = int32_t(uint32_t(row[j]) + uint32_t(int8_t(x[4 * i + e]) * int8_t(y[i][4 * j + e])));
    });
}

// Products and sums flush denormal numbers to zero.
[[maybe_unused]] float flushed(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }

[[maybe_unused]] float bfloat16(const uint8_t *at) {
    const uint32_t bits = uint32_t(at[1]) << 24 | uint32_t(at[0]) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return flushed(v);
}

// Even and odd elements are summed apart.
[[maybe_unused]] void multiply_bfloat16(int sum, int a, int b) {
    multiply<float>(sum, a, b, [](float *row, const uint8_t *x, const uint8_t (*y)[BYTES], int k, int n) {
        for (int j = 0; j < n; ++j) {
            float sums[2] = {};
            for (int i = 0; i < k; ++i)
                for (int e = 0; e < 2; ++e)
                    sums[e] = flushed(std::fma(bfloat16(x + 4 * i + 2 * e), bfloat16(y[i] + 4 * j + 2 * e), sums[e]));
            row[j] = flushed(flushed(row[j]) + flushed(sums[0] + sums[1]));
        }
    });
}

}  // namespace
}  // namespace emulated_amx

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_amx::load_configuration
#define _tile_release emulated_amx::release
#define _tile_loadd emulated_amx::load
#define _tile_stored emulated_amx::store
#define _tile_zero emulated_amx::zero
#define _tile_dpbssd emulated_amx::multiply_int8
#define _tile_dpbf16ps emulated_amx::multiply_bfloat16
