// The frozen pattern of a few rows at a time, and the bits of free weights deposited in the words of their rows. With
// AVX-512 the pattern costs 0.6 instructions per weight (two calls of Philox for 512 weights of 16 rows), and a deposit
// one pdep for 32 weights.
#pragma once

#include "cpu/weights/generate.h"

namespace slt::SLT_ISA {
namespace {

// Rows per piece of work: a multiple of 2 * LANES, enough to be worth a thread (20 to 100 us).
SLT_INLINE int64_t rows_per_piece(const Source &s) { return 2 * LANES * ceil_div(1 << 16, LANES * s.fan); }

// Moves the low bits of `bits`, in order, to the set bits of `at`.
SLT_INLINE uint32_t deposit(uint32_t bits, uint32_t at) {
#if defined(__BMI2__)
    return _pdep_u32(bits, at);
#else
    uint32_t word = 0;
    for (; at; at &= at - 1, bits >>= 1)
        if (bits & 1) word |= at & -at;
    return word;
#endif
}

#if !defined(__BMI2__)
// The same in each lane: each bit moves left by the number of zeros of `at` on its right, one binary digit of that
// number per step (Warren, "Hacker's Delight", section 7-5).
SLT_INLINE U32 deposit(U32 bits, U32 at) {
    constexpr int STEPS = 5;
    U32 moves[STEPS], left = at, zeros = ~at << 1;
    SLT_UNROLL for (int i = 0; i < STEPS; ++i) {
        U32 odd = zeros;  // whether the number of zeros is odd
        SLT_UNROLL for (int j = 0; j < STEPS; ++j) odd ^= odd << (1 << j);
        moves[i] = odd & left;
        left = (left ^ moves[i]) | moves[i] >> (1 << i);
        zeros &= ~odd;
    }
    SLT_UNROLL for (int i = STEPS - 1; i >= 0; --i) bits = where(moves[i], bits << (1 << i), bits);
    return bits & at;
}
#endif

// The free and the locked weights of LANES rows.
class Pattern {
  public:
    explicit Pattern(const Source &s) : source(s), frame(frame_of(s)), frozen(s) {}

    // One word of the rows from `row` on, padding cleared. Lanes past the source's rows hold the pattern of rows that
    // the source does not have. `between(i)` is called once for each i < Generator::BETWEEN.
    template <class Between = Nothing>
    SLT_INLINE void operator()(int64_t row, int64_t word, U32 &free, U32 &locked, const Between &between = {}) const {
        const U32 valid = splat(valid_bits(source, word));
        if (nothing_frozen(source)) {
            for (int i = 0; i < Generator::BETWEEN; ++i) between(i);
            free = valid;
            locked = splat(0);
        } else {
            frozen(word_index(source, row, frame, frame.skipped + word), free, locked, between);
            free &= valid;
            locked &= valid;
        }
    }

    // Whether `two` may be called.
    bool one_call() const { return !nothing_frozen(source) && frozen.one_call(); }

    // The same word of these rows and of the next LANES, whose generators run side by side.
    template <class Between>
    SLT_INLINE void two(int64_t row, int64_t word, U32 (&free)[2], U32 (&locked)[2], const Between &between) const {
        const int64_t in_frame = frame.skipped + word;
        const U32 valid = splat(valid_bits(source, word));
        const Index first = word_index(source, row, frame, in_frame);
        const Index second = word_index(source, row + LANES, frame, in_frame);
        frozen.by_one_call({first, second}, free, locked, between);
        SLT_UNROLL for (int i = 0; i < 2; ++i) {
            free[i] &= valid;
            locked[i] &= valid;
        }
    }

  private:
    const Source &source;
    const Frame frame;
    const FrozenWords frozen;
};

// The pattern of up to WORDS words, to be read row by row: 8 KB with 16 lanes.
struct PatternTile {
    static constexpr int WORDS = 64;
    alignas(64) uint32_t free[WORDS][LANES], locked[WORDS][LANES];

    SLT_INLINE void fill(const Pattern &pattern, int64_t row, int64_t word, int count) {
        for (int i = 0; i < count; ++i) {
            U32 f, l;
            pattern(row, word + i, f, l);
            store(free[i], f);
            store(locked[i], l);
        }
    }
};

// Writes resolved words of rows [row0, row0 + rows) to `out` [rows][words]; returns the number of set bits. `bits(i)`
// returns the bits of free weights i, i + 1, ... of the layer, the first lowest; bits past the last free weight of the
// word are ignored.
template <class Bits>
SLT_INLINE int64_t resolve_rows(const Source &s, const int64_t *offsets, int64_t row0, int64_t rows, uint32_t *out,
                                const Bits &bits) {
    const int64_t words = words_of(s);
    const Pattern pattern(s);
    PatternTile tile;
    int64_t kept = 0;
    for (int64_t n = 0; n < rows; n += LANES) {
        const int lanes = int(least(rows - n, LANES));
        int64_t next[LANES];  // next free weight of each row
        for (int l = 0; l < lanes; ++l) next[l] = offsets[row0 + n + l];
        for (int64_t w = 0; w < words; w += PatternTile::WORDS) {
            const int count = int(least(words - w, PatternTile::WORDS));
            tile.fill(pattern, row0 + n, w, count);
#if !defined(__BMI2__)
            for (int i = 0; i < count; ++i) {
                const U32 free = load<U32>(tile.free[i]);
                U32 word = {};
                for (int l = 0; l < lanes; ++l) {
                    word[l] = bits(next[l]);
                    next[l] += __builtin_popcount(free[l]);
                }
                const bool in_place = nothing_frozen(s) && valid_bits(s, w + i) == ~0u;
                word = (in_place ? word : deposit(word, free)) | load<U32>(tile.locked[i]);
                for (int l = 0; l < lanes; ++l) {
                    out[(n + l) * words + w + i] = word[l];
                    kept += __builtin_popcount(word[l]);
                }
            }
            continue;
#endif
            for (int l = 0; l < lanes; ++l) {
                uint32_t *at = out + (n + l) * words + w;
                for (int i = 0; i < count; ++i) {
                    const uint32_t free = tile.free[i][l];
                    at[i] = deposit(bits(next[l]), free) | tile.locked[i][l];
                    next[l] += __builtin_popcount(free);
                    kept += __builtin_popcount(at[i]);
                }
            }
        }
    }
    return kept;
}

// Bits i to i + 31 of a compact mask of `free` bits, the first lowest; bits past the last are arbitrary.
SLT_INLINE uint32_t compact_bits(const uint32_t *compact, int64_t free, int64_t i) {
    const int64_t word = i / WORD, last = ceil_div(free, WORD) - 1;
    if (word > last) return 0;
    return uint32_t((compact[word] | uint64_t(compact[least(word + 1, last)]) << 32) >> i % WORD);
}

}  // namespace
}  // namespace slt::SLT_ISA
