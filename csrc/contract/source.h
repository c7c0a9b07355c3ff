// The weight contract (docs/contract.md) in its plainest form, for host and device compilers: what a layer's weights
// and its frozen pattern are, as a pure function of a seed. Kernels compute the same words many at a time.
#pragma once

#include "contract/philox.h"

namespace slt {

enum Weight : int64_t { SIGNED_CONSTANT, UNIFORM, NORMAL };

// The ten integers of slt_kernels.source.Source, in its order.
struct Source {
    int64_t rows, fan;  // fan < 2^23
    int64_t seed, layer;
    int64_t weight;
    int64_t prune_below, lock_from;  // of bytes, 0 to 256; prune_below <= lock_from
    int64_t first_row, first_word;  // where a shard starts in the whole layer
    int64_t row_calls;              // Philox calls a row of the whole layer
};

constexpr int64_t WORD = 32;          // weights a word
constexpr int64_t WORDS_A_CALL = 4;   // words of one Philox call of signs
constexpr int64_t CALL = 128;         // weights a call of signs

SLT_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SLT_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SLT_HD int64_t greatest(int64_t a, int64_t b) { return a < b ? b : a; }
SLT_HD int64_t words_of(const Source &s) { return ceil_div(s.fan, WORD); }

// Inside a word: bit b of the low half is the even k = 2b, bit 16 + b of the high half the odd k = 2b + 1.
SLT_HD int k_of_bit(int bit) { return bit < 16 ? 2 * bit : 2 * bit - 31; }
SLT_HD int bit_of_k(int k) { return k % 2 == 0 ? k / 2 : 16 + k / 2; }

// The bits of word w of a row that are weights; those past the fan are 0.
SLT_HD uint32_t valid_bits(const Source &s, int64_t w) {
    const int64_t left = s.fan - w * WORD;
    if (left >= WORD) return 0xFFFFFFFF;
    const uint32_t even = (1u << (left + 1) / 2) - 1, odd = (1u << left / 2) - 1;
    return even | odd << 16;
}

// Number of the word in its whole layer: what VALUE and FREEZE spend two calls on.
SLT_HD uint64_t word_index(const Source &s, int64_t row, int64_t w) {
    return uint64_t(s.first_row + row) * uint64_t(s.row_calls * WORDS_A_CALL) + uint64_t(s.first_word + w);
}

// Signs of word w of a row of signed_constant; a set bit is a -1.
SLT_HD uint32_t sign_word(const Source &s, int64_t row, int64_t w) {
    const uint64_t index = word_index(s, row, w);  // a row is a whole number of calls
    return philox_call(s.seed, s.layer, SIGN, index / WORDS_A_CALL).word[index % WORDS_A_CALL];
}

struct Words8 {
    uint32_t word[8];
};

// The two calls that VALUE (32 bytes in k order) and FREEZE (eight bit planes) spend on a word.
SLT_HD Words8 eight_words(const Source &s, Stream stream, int64_t row, int64_t w) {
    const uint64_t q = word_index(s, row, w);
    const Words4 a = philox_call(s.seed, s.layer, stream, 2 * q), b = philox_call(s.seed, s.layer, stream, 2 * q + 1);
    return {{a.word[0], a.word[1], a.word[2], a.word[3], b.word[0], b.word[1], b.word[2], b.word[3]}};
}

// Where the byte that eight bit planes spell (the most significant first) is under a threshold, 0 to 256, bit by bit.
SLT_HD uint32_t below(const Words8 &planes, int64_t threshold) {
    if (threshold == 256) return 0xFFFFFFFF;
    uint32_t result = 0;
    for (int i = 0; i < 8; ++i) {
        const uint32_t zero = ~planes.word[7 - i];
        result = threshold >> i & 1 ? result | zero : result & zero;
    }
    return result;
}

struct Frozen {
    uint32_t free, locked;
};

// The free and the locked weights of a word; padding is 0 in both.
SLT_HD Frozen frozen_word(const Source &s, int64_t row, int64_t w) {
    const uint32_t valid = valid_bits(s, w);
    if (s.prune_below == 0 && s.lock_from == 256) return {valid, 0};
    const Words8 planes = eight_words(s, FREEZE, row, w);
    const uint32_t pruned = below(planes, s.prune_below), unlocked = below(planes, s.lock_from);
    return {unlocked & ~pruned & valid, ~unlocked & valid};
}

// The upper half of the table of NORMAL; T[128 + i] = HALF[i] and T[127 - i] = -HALF[i].
#define SLT_NORMAL_HALF                                                                                                \
    {1,  1,  1,  2,  2,  2,  3,  3,  4,  4,  5,  5,  5,  6,  6,  7,  7,  8,  8,  8,  9,  9,  10, 10, 11, 11,           \
     12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23,           \
     24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 31, 32, 32, 33, 33, 34, 34, 35, 36, 36, 37, 37,           \
     38, 39, 39, 40, 41, 41, 42, 43, 43, 44, 45, 46, 46, 47, 48, 49, 49, 50, 51, 52, 53, 54, 55, 56, 56, 57,           \
     59, 60, 61, 62, 63, 64, 65, 67, 68, 70, 71, 73, 75, 77, 79, 81, 83, 86, 89, 93, 97, 103, 111, 127}

}  // namespace slt
