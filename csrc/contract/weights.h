// Sections 3 and 4 of the contract (docs/contract.md): a layer's weights and its frozen pattern, one word at a time.
// Kernels compute the same words many at a time.
#pragma once

#include "contract/philox.h"
#include "contract/source.h"

namespace slt {

// Signs of word w of a row of signed_constant; a set bit is a -1.
SLT_HOST_DEVICE uint32_t sign_word(const Source &s, int64_t row, int64_t w) {
    const uint64_t index = word_index(s, row, w);  // a row is a whole number of calls
    return philox_call(s.seed, s.layer, SIGN, index / WORDS_PER_CALL).word[index % WORDS_PER_CALL];
}

struct Words8 {
    uint32_t word[8];
};

// The two calls of VALUE (32 bytes in the order of k) or FREEZE (eight bit planes) of a word.
SLT_HOST_DEVICE Words8 eight_words(const Source &s, Stream stream, int64_t row, int64_t w) {
    const uint64_t q = word_index(s, row, w);
    const Words4 a = philox_call(s.seed, s.layer, stream, 2 * q), b = philox_call(s.seed, s.layer, stream, 2 * q + 1);
    return {{a.word[0], a.word[1], a.word[2], a.word[3], b.word[0], b.word[1], b.word[2], b.word[3]}};
}

// The upper half of the table T of NORMAL: T[128 + i] = HALF[i], T[127 - i] = -HALF[i].
#define SLT_NORMAL_HALF \
    {1,  1,  1,  2,  2,  2,  3,  3,  4,  4,  5,  5,  5,  6,  6,  7,  7,  8,  8,  8,  9,  9,   10,  10, 11, 11, \
     12, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21,  22,  22, 23, 23, \
     24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 31, 32, 32, 33, 33, 34, 34, 35,  36,  36, 37, 37, \
     38, 39, 39, 40, 41, 41, 42, 43, 43, 44, 45, 46, 46, 47, 48, 49, 49, 50, 51, 52, 53, 54,  55,  56, 56, 57, \
     59, 60, 61, 62, 63, 64, 65, 67, 68, 70, 71, 73, 75, 77, 79, 81, 83, 86, 89, 93, 97, 103, 111, 127}

// v of a byte of VALUE.
SLT_HOST_DEVICE int value_of_byte(int64_t weight, int u) {
    if (weight == UNIFORM) return 2 * (u >> 1) - 127;
    constexpr int8_t half[128] = SLT_NORMAL_HALF;
    return u < 128 ? -half[127 - u] : half[u - 128];
}

// v of weight k of a row.
SLT_HOST_DEVICE int weight_value(const Source &s, int64_t row, int64_t k) {
    const int in_word = int(k % WORD);
    if (s.weight == SIGNED_CONSTANT) return 1 - 2 * int(sign_word(s, row, k / WORD) >> bit_of_k(in_word) & 1);
    const Words8 bytes = eight_words(s, VALUE, row, k / WORD);
    return value_of_byte(s.weight, int(bytes.word[in_word / 4] >> in_word % 4 * 8 & 0xFF));
}

// A threshold of bytes, 0 to 256, for bit planes: its bits, the most significant first, each as a word of zeros or
// ones. 256, which is above every byte, has ones everywhere.
struct Threshold {
    uint32_t plane[8];
    uint32_t always;
};

SLT_HOST_DEVICE Threshold threshold_of(int64_t value) {
    Threshold t{{}, value == 256 ? 0xFFFFFFFF : 0};
    for (int i = 0; i < 8; ++i) t.plane[i] = value >> (7 - i) & 1 ? 0xFFFFFFFF : t.always;
    return t;
}

// How many of the eight planes, the most significant first, decide whether a byte is below a threshold.
SLT_HOST_DEVICE int planes_of(int64_t threshold) { return threshold % 16 == 0 ? 4 : 8; }

// The bits at which the byte of bit planes, the most significant first, is below a threshold that the first `PLANES`
// decide. A plane costs one operation of three inputs.
template <int PLANES>
SLT_HOST_DEVICE uint32_t below(const uint32_t *planes, const Threshold &threshold) {
    uint32_t result = threshold.always;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int i = PLANES - 1; i >= 0; --i) {
        const uint32_t zero = ~planes[i];
        result = (result & zero) | (threshold.plane[i] & (result | zero));
    }
    return result;
}

SLT_HOST_DEVICE bool nothing_frozen(const Source &s) { return s.prune_below == 0 && s.lock_from == 256; }

struct FrozenWord {
    uint32_t free, locked;
};

// The free and the locked weights of a word; padding is 0 in both.
SLT_HOST_DEVICE FrozenWord frozen_word(const Source &s, int64_t row, int64_t w) {
    const uint32_t valid = valid_bits(s, w);
    if (nothing_frozen(s)) return {valid, 0};
    const Words8 planes = eight_words(s, FREEZE, row, w);
    const uint32_t pruned = below<8>(planes.word, threshold_of(s.prune_below));
    const uint32_t unlocked = below<8>(planes.word, threshold_of(s.lock_from));
    return {unlocked & ~pruned & valid, ~unlocked & valid};
}

}  // namespace slt
