// Sections 2 and 6 of the contract (docs/contract.md): a layer's rows, words and Philox calls, or those of a shard.
#pragma once

#include <cstdint>

#include "contract/host_device.h"

namespace slt {

enum Weight : int64_t { SIGNED_CONSTANT, UNIFORM, NORMAL };

// The ten integers of Python's `Source`, in its order.
struct Source {
    int64_t rows, fan;  // fan < 2^23
    int64_t seed, layer;
    int64_t weight;
    int64_t prune_below, lock_from;  // thresholds of bytes, 0 to 256; prune_below <= lock_from
    int64_t first_row, first_word;   // where a shard starts in the whole layer
    int64_t row_calls;               // Philox calls per row of the whole layer
};

constexpr int64_t WORD = 32;           // weights per word
constexpr int64_t WORDS_PER_CALL = 4;  // words of signs per Philox call
constexpr int64_t CALL = 128;          // signs per Philox call

SLT_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SLT_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SLT_HOST_DEVICE int64_t greatest(int64_t a, int64_t b) { return a < b ? b : a; }
SLT_HOST_DEVICE int64_t words_of(const Source &s) { return ceil_div(s.fan, WORD); }

// Inside a word: bit b of the low half is the even k = 2b, bit 16 + b of the high half the odd k = 2b + 1.
SLT_HOST_DEVICE int k_of_bit(int bit) { return bit < 16 ? 2 * bit : 2 * bit - 31; }
SLT_HOST_DEVICE int bit_of_k(int k) { return k % 2 == 0 ? k / 2 : 16 + k / 2; }

// The bits of word w of a row that are weights; the bits of padding are 0.
SLT_HOST_DEVICE uint32_t valid_bits(const Source &s, int64_t w) {
    const int64_t left = s.fan - w * WORD;
    if (left >= WORD) return 0xFFFFFFFF;
    const uint32_t even = (1u << (left + 1) / 2) - 1, odd = (1u << left / 2) - 1;
    return even | odd << 16;
}

// The number of the word in the whole layer: q of the contract.
SLT_HOST_DEVICE uint64_t word_index(const Source &s, int64_t row, int64_t w) {
    return uint64_t(s.first_row + row) * uint64_t(s.row_calls * WORDS_PER_CALL) + uint64_t(s.first_word + w);
}

}  // namespace slt
