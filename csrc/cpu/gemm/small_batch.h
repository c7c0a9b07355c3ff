// The product of a few vectors. Making the weights takes most of the time, so they are used as they are made, without a
// panel. Sums over all k stay in registers.
//
// With AMX the weights of two groups pass through 4 KB of L1 into tile registers. A tile of sums is 16 digits of
// vectors (all digits of 5 vectors, for example) by 16 outputs; there are registers for six tiles of sums. Per 2048
// weights: 188 vector instructions to make them (at least 94 cycles on two ports), 2 x 16 cycles of tile products, and
// 32 stores. With AVX-512 VNNI the weights go from the generator's registers into dot products: 32 for each digit of x.
#pragma once

#include <utility>

#include "cpu/gemm/gemm.h"

#if defined(__AVX512VNNI__)

namespace slt::SLT_ISA {
namespace {

#if defined(SLT_AMX)

constexpr int FEW_DIGITS = 48;

// The number of digits that are read for `digits` of them; AMX reads no more.
constexpr int digits_read(int digits) { return digits; }

// Sums T += digits of x (register 6) times weights (register 7).
template <int T>
SLT_INLINE void add_product() {
    if constexpr (T == 0) _tile_dpbssd(0, 6, 7);
    if constexpr (T == 1) _tile_dpbssd(1, 6, 7);
    if constexpr (T == 2) _tile_dpbssd(2, 6, 7);
    if constexpr (T == 3) _tile_dpbssd(3, 6, 7);
    if constexpr (T == 4) _tile_dpbssd(4, 6, 7);
    if constexpr (T == 5) _tile_dpbssd(5, 6, 7);
}

SLT_INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
}

template <int T>
SLT_INLINE void store_sums(int32_t *to) {
    if constexpr (T == 0) _tile_stored(0, to, BLOCK * 4);
    if constexpr (T == 1) _tile_stored(1, to, BLOCK * 4);
    if constexpr (T == 2) _tile_stored(2, to, BLOCK * 4);
    if constexpr (T == 3) _tile_stored(3, to, BLOCK * 4);
    if constexpr (T == 4) _tile_stored(4, to, BLOCK * 4);
    if constexpr (T == 5) _tile_stored(5, to, BLOCK * 4);
}

// TALL tiles of digits by two groups of outputs for each P, from `row` on, over `count` calls; digit r of x is row r of
// `sums`. The last tile of digits may share rows with the one before. The two groups alternate: the last tile of digits
// serves both, and consecutive products have different registers of sums.
template <Origin ORIGIN, int TALL, int... P>
void few_tiles(const Weights &weights, int64_t row, int64_t first, int64_t count, const Digit *x, int64_t pitch,
               int digits, int32_t *sums /* [digits][BLOCK] */, std::integer_sequence<int, P...>) {
    constexpr int TILE = 16 * LANES;  // words
    alignas(64) uint32_t quads[2 * QUADS * LANES];
    const int first_digit[3] = {0, TALL == 2 ? digits - 16 : 16, digits - 16};
    const auto multiply = [&](auto pair, int64_t call) {
        constexpr int p = decltype(pair)::value, a = 2 * p * TALL, b = a + TALL;  // sums of the two groups
        if (call % CALLS_PER_LINE == 0)
            weights.prefetch<ORIGIN, 2 * LANES>(row + 2 * p * LANES, call + 2 * CALLS_PER_LINE);
        weights.write_pair<ORIGIN>(row + 2 * p * LANES, call, quads);
        tile_memory();
        for (int s = 0; s < 2; ++s) {
            const Digit *at = x + call * CALL + s * 64;
            const auto load_digits = [&](int tile) { _tile_loadd(6, at + first_digit[tile] * pitch, pitch); };
            _tile_loadd(7, quads + s * TILE, 64);
            load_digits(0);
            add_product<a>();
            if constexpr (TALL > 1) {
                load_digits(1);
                add_product<a + 1>();
            }
            if constexpr (TALL > 2) {
                load_digits(2);
                add_product<a + 2>();
            }
            _tile_loadd(7, quads + (2 + s) * TILE, 64);
            add_product<b + TALL - 1>();
            if constexpr (TALL > 1) {
                load_digits(TALL - 2);
                add_product<b + TALL - 2>();
            }
            if constexpr (TALL > 2) {
                load_digits(0);
                add_product<b>();
            }
        }
    };
    const auto store_group = [&](auto group) {
        constexpr int g = decltype(group)::value;
        store_sums<TALL * g>(sums + g * LANES);
        if constexpr (TALL > 1) store_sums<TALL * g + 1>(sums + first_digit[1] * BLOCK + g * LANES);
        if constexpr (TALL > 2) store_sums<TALL * g + 2>(sums + first_digit[2] * BLOCK + g * LANES);
    };
    for (int line = 0; line < 2; ++line)
        (weights.prefetch<ORIGIN, 2 * LANES>(row + 2 * P * LANES, first + line * CALLS_PER_LINE), ...);
    zero_sums();
    for (int64_t call = first; call < first + count; ++call) (multiply(std::integral_constant<int, P>(), call), ...);
    ((store_group(std::integral_constant<int, 2 * P>()), store_group(std::integral_constant<int, 2 * P + 1>())), ...);
}

template <Origin ORIGIN, int TALL, int PAIRS>
void few_pairs(Workspace &tiles, const Weights &weights, int64_t row, int64_t first, int64_t count, const Digit *x,
               int64_t pitch, int digits, int32_t *sums) {
    tiles.configure(TALL == 1 ? digits : 16, 1 << 7);
    for (int g = 0; g < GROUPS; g += 2 * PAIRS)
        few_tiles<ORIGIN, TALL>(weights, row + g * LANES, first, count, x, pitch, digits, sums + g * LANES,
                                std::make_integer_sequence<int, PAIRS>());
}

template <Origin ORIGIN>
void few_sums(Workspace &tiles, const Weights &weights, int64_t row, int64_t first, int64_t count, const Digit *x,
              int64_t pitch, int digits, int32_t *sums) {
    if (digits <= 16) return few_pairs<ORIGIN, 1, 3>(tiles, weights, row, first, count, x, pitch, digits, sums);
    if (digits <= 32) return few_pairs<ORIGIN, 2, 1>(tiles, weights, row, first, count, x, pitch, digits, sums);
    few_pairs<ORIGIN, 3, 1>(tiles, weights, row, first, count, x, pitch, digits, sums);
}

#else

constexpr int FEW_DIGITS = 16;

// Digits that are multiplied where there are `digits`: those after the last may be anything.
constexpr int digits_read(int digits) {
    return digits == 15 ? 15 : digits > 12 ? 16 : digits == 5 || digits == 7 || digits == 11 ? digits + 1 : digits;
}

// The digits of x by one group of outputs. A dot product has a latency of 5 cycles: one digit takes turns among four
// registers of sums, two to four digits between two each.
template <Origin ORIGIN, int ROWS>
void few_registers(const Weights &weights, int64_t row, int64_t first, int64_t count, const Digit *x, int64_t pitch,
                   int32_t *sums) {
    constexpr int TURNS = ROWS == 1 ? 4 : ROWS > 4 ? 1 : 2;
    S32 sums_so_far[ROWS][TURNS] = {};
    const auto multiply = [&, pitch](const Digit *at, const U32 quads[8]) {
        S32 sum[ROWS][TURNS];  // a copy: gcc would store sums_so_far after each product
        memcpy(sum, sums_so_far, sizeof sum);
        SLT_UNROLL for (int s = 0; s < 8; ++s)
            SLT_UNROLL for (int r = 0; r < ROWS; ++r)
                dot(sum[r][s % TURNS], quads[s], broadcast(at + r * pitch + 4 * s));
        memcpy(sums_so_far, sum, sizeof sum);
    };
    int64_t call = first;
    for (; call + 1 < first + count; call += 2) {
        if (const int64_t ahead = call + 2 * CALLS_PER_LINE; (call - first) % CALLS_PER_LINE == 0)
            ahead < first + count ? weights.prefetch<ORIGIN, LANES>(row, ahead)
                                  : weights.prefetch<ORIGIN, LANES>(row + LANES, ahead - count);
        weights.each<ORIGIN>({{row, call}, {row, call + 1}}, [&](int p, int w, const U32 quads[8]) {
            multiply(x + (call + p) * CALL + w * WORD, quads);
        });
    }
    if (call < first + count)
        weights.each<ORIGIN>({{row, call}}, [&](int, int w, const U32 quads[8]) {
            multiply(x + call * CALL + w * WORD, quads);
        });
    SLT_UNROLL for (int r = 0; r < ROWS; ++r) {
        S32 sum = sums_so_far[r][0];
        SLT_UNROLL for (int t = 1; t < TURNS; ++t) sum += sums_so_far[r][t];
        store(sums + r * BLOCK, sum);
    }
}

template <Origin ORIGIN>
void few_sums(Workspace &, const Weights &weights, int64_t row, int64_t first, int64_t count, const Digit *x,
              int64_t pitch, int digits, int32_t *sums) {
    digits = digits_read(digits);
    for (int g = 0; g < GROUPS; ++g, row += LANES, sums += LANES) {
        if (digits == 1) few_registers<ORIGIN, 1>(weights, row, first, count, x, pitch, sums);
        if (digits == 2) few_registers<ORIGIN, 2>(weights, row, first, count, x, pitch, sums);
        if (digits == 3) few_registers<ORIGIN, 3>(weights, row, first, count, x, pitch, sums);
        if (digits == 4) few_registers<ORIGIN, 4>(weights, row, first, count, x, pitch, sums);
        if (digits == 6) few_registers<ORIGIN, 6>(weights, row, first, count, x, pitch, sums);
        if (digits == 8) few_registers<ORIGIN, 8>(weights, row, first, count, x, pitch, sums);
        if (digits == 9) few_registers<ORIGIN, 9>(weights, row, first, count, x, pitch, sums);
        if (digits == 10) few_registers<ORIGIN, 10>(weights, row, first, count, x, pitch, sums);
        if (digits == 12) few_registers<ORIGIN, 12>(weights, row, first, count, x, pitch, sums);
        if (digits == 15) few_registers<ORIGIN, 15>(weights, row, first, count, x, pitch, sums);
        if (digits == 16) few_registers<ORIGIN, 16>(weights, row, first, count, x, pitch, sums);
    }
}

#endif

// `vectors` of at most FEW_DIGITS digits in all, their planes `pitch` apart, by a block of outputs from `row` on.
template <int DIGITS>
void multiply_few(Workspace &tiles, const Weights &weights, int64_t row, const Digit *x, int64_t pitch, int64_t vectors,
                  Output out) {
    constexpr int64_t most = LONGEST / QUADS;
    const int64_t calls = weights.frame.calls;
    alignas(64) int32_t sums[FEW_DIGITS * BLOCK];
    alignas(64) int64_t totals[FEW_DIGITS * BLOCK];
    if (calls > most) out.sums = totals;
    for (int64_t first = 0; first < calls; first += most) {
        const int64_t count = least(calls - first, most);
        const int digits = int(vectors * DIGITS);
        weights.with_origin([&](auto origin) {
            if constexpr (SIGNED_BYTES || origin != Origin::STORED_SIGNS)  // otherwise stored_signs.h
                few_sums<origin>(tiles, weights, row, first, count, x, pitch, digits, sums);
        });
        out.first = first == 0;
        out.last = first + count == calls;
        for (int64_t v = 0; v < vectors; ++v) finish<DIGITS>(sums + v * DIGITS * BLOCK, v, out);
    }
}

}  // namespace
}  // namespace slt::SLT_ISA

#endif
