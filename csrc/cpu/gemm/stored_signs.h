// The product of a few vectors with stored signs: the words of the mask and of the signs go from memory to dot
// products, without a generator and without a transposition.
//
// A register is a strip: 16 consecutive words of one row. A lane is a word, and a quad of it is four of its weights.
// The digits of x lie likewise (`Strips`): quad 0 of the 16 words, then quad 1, to quad 7. The lanes of a sum are added
// at the end of a row. Per 512 weights: 2 loads, 19 instructions for their bytes, and 8 dot products per digit of x.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/machine/scratch.h"

#if defined(__AVX512VNNI__) && !defined(SLT_AMX)

namespace slt::SLT_ISA {
namespace {

constexpr int STORED_DIGITS = 16;           // more are faster with a panel
constexpr int MOST_TOGETHER = 6;            // digits whose sums fit the registers
constexpr int64_t PREFETCHED = 1024;        // words ahead, in each of the two matrices
constexpr int64_t STRIPS_BYTES = 24 << 10;  // of x for all rows of a block before the next: they stay in L1

// Calls run with the least number of digits, not below `digits`, for which there is a kernel.
template <class Run>
void with_digits(int64_t digits, const Run &run) {
    if (digits == 1) return run(std::integral_constant<int, 1>());
    if (digits == 2) return run(std::integral_constant<int, 2>());
    if (digits == 3) return run(std::integral_constant<int, 3>());
    if (digits == 4) return run(std::integral_constant<int, 4>());
    run(std::integral_constant<int, MOST_TOGETHER>());
}

// The digits of vectors in parts of up to MOST_TOGETHER, each [strip][quad][digit][LANES] of four bytes.
class Strips {
  public:
    const int64_t digits, count;

    // `x`: planes of `words` ordered words, `pitch` apart.
    Strips(const Digit *x, int64_t pitch, int64_t digits, int64_t words)
        : digits(digits), count(ceil_div(words, LANES)),
          quads(ceil_div(digits, MOST_TOGETHER) * MOST_TOGETHER * count * QUADS_PER_WORD * LANES) {
        for (int64_t first = 0; first < digits; first += MOST_TOGETHER)
            with_digits(digits - first, [&](auto together) {
                for (int64_t at = 0; at < count; ++at)
                    for (int d = 0; d < together; ++d) {
                        S32 of_strip[LANES];
                        for (int i = 0; i < LANES; ++i) {
                            const int64_t w = at * LANES + i;
                            const bool exists = w < words && first + d < digits;
                            of_strip[i] = exists ? load<S32>(x + (first + d) * pitch + w * WORD) : S32{};
                        }
                        transpose(of_strip);  // now quads; those of the next word are not used
                        for (int q = 0; q < QUADS_PER_WORD; ++q)
                            store(part(first) + ((at * QUADS_PER_WORD + q) * together + d) * LANES, of_strip[q]);
                    }
            });
    }

    uint32_t *part(int64_t first) const { return quads + first * count * QUADS_PER_WORD * LANES; }

  private:
    const Scratch<uint32_t> quads;
};

// Adds the sums of DIGITS digits over strips [first, end) to those of the rows [row, row + BLOCK) of a layer.
template <int DIGITS>
__attribute__((noinline)) void add_strips(const Source &s, const uint32_t *mask, const uint32_t *signs, int64_t row,
                                          const uint32_t *x, int64_t first, int64_t end,
                                          int32_t *sums /* [DIGITS][BLOCK] */) {
    // Two rows share loads of x. One digit alternates between two sums: a dot product has a latency of 5 cycles.
    constexpr int ROWS = 2, TURNS = DIGITS == 1 ? 2 : 1;
    const int64_t words = words_of(s);
    for (int group = 0; group < BLOCK && row + group < s.rows; group += ROWS) {
        int64_t start[ROWS];
        SLT_UNROLL for (int r = 0; r < ROWS; ++r) start[r] = least(row + group + r, s.rows - 1) * words;
        S32 sum[ROWS][DIGITS][TURNS] = {};
        for (int64_t strip = first; strip < end; ++strip) {
            const __mmask16 exist = __mmask16(0xFFFF >> (LANES - least(words - strip * LANES, LANES)));
            U32 even[ROWS], odd[ROWS];
            SLT_UNROLL for (int r = 0; r < ROWS; ++r) {
                const auto load_strip = [&](const uint32_t *from) {
                    from += start[r] + strip * LANES;
                    __builtin_prefetch(from + PREFETCHED);
                    return (U32)_mm512_maskz_loadu_epi32(exist, from);
                };
                sign_codes(load_strip(mask), load_strip(signs), even[r], odd[r]);
            }
            const uint32_t *quad = x + strip * QUADS_PER_WORD * DIGITS * LANES;
            SLT_UNROLL for (int q = 0; q < QUADS_PER_WORD; ++q, quad += DIGITS * LANES) {
                U32 weights[ROWS];
                // Not `field`: on Zen 4 a product of bit matrices takes the place of a dot product, and these do not.
                SLT_UNROLL for (int r = 0; r < ROWS; ++r)
                    weights[r] = (q % 2 ? odd[r] : even[r]) >> (q / 2 * 2) & 0x03030303;
                SLT_UNROLL for (int d = 0; d < DIGITS; ++d) {
                    const S32 digits = load<S32>(quad + d * LANES);
                    SLT_UNROLL for (int r = 0; r < ROWS; ++r) dot(sum[r][d][q % TURNS], weights[r], digits);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int d = 0; d < DIGITS; ++d)
                sums[d * BLOCK + group + r] +=
                    _mm512_reduce_add_epi32((__m512i)(TURNS == 1 ? sum[r][d][0] : sum[r][d][0] + sum[r][d][TURNS - 1]));
    }
}

// `vectors` by a block of outputs from `row` on.
template <int DIGITS>
void multiply_stored(const Source &s, const uint32_t *mask, const uint32_t *signs, int64_t row, const Strips &x,
                     int64_t vectors, const Output &out) {
    // The sum over a whole row fits an int32: it is at most 2 * 128 * 2^23 - 2 * 128.
    alignas(64) int32_t sums[(STORED_DIGITS + MOST_TOGETHER) * BLOCK] = {};
    for (int64_t d = 0; d < x.digits; d += MOST_TOGETHER)
        with_digits(x.digits - d, [&](auto count) {
            constexpr int64_t step = STRIPS_BYTES / (count * QUADS_PER_WORD * int64_t(sizeof(U32)));
            for (int64_t strip = 0; strip < x.count; strip += step)
                add_strips<count>(s, mask, signs, row, x.part(d), strip, least(strip + step, x.count),
                                  sums + d * BLOCK);
        });
    for (int64_t v = 0; v < vectors; ++v) finish<DIGITS>(sums + v * DIGITS * BLOCK, v, out);
}

}  // namespace
}  // namespace slt::SLT_ISA

#endif
