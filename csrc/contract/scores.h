// Section 5 of the contract (docs/contract.md): initial scores, and which scores keep their weight.
#pragma once

#include "contract/philox.h"

namespace slt {

// The bits of a float32 without its sign, as an integer, are in the order of the magnitudes; a denormal is not 0.
constexpr uint32_t MAGNITUDE = 0x7FFFFFFF, INFINITE = 0x7F800000;  // above INFINITE is NaN

// The initial score of free weight i, for a bound of 1.
SLT_HOST_DEVICE float initial_score(int64_t seed, int64_t layer, uint64_t i) {
    const uint32_t word = philox_call(seed, layer, SCORE, i / 4).word[i % 4];
    return float(2 * int32_t(word >> 8) + 1 - (1 << 24)) * 0x1p-24f;
}

// The magnitudes above a threshold, strictly, as the integers [first, first + count); NaN is not one of them.
struct Kept {
    uint32_t first, count;
};

SLT_HOST_DEVICE Kept kept_above(uint32_t threshold) {
    const uint32_t magnitude = threshold & MAGNITUDE;
    const bool negative = threshold > magnitude && magnitude > 0;  // -0 is 0
    const uint32_t first = magnitude > INFINITE ? INFINITE + 1 : negative ? 0 : magnitude + 1;
    return {first, INFINITE + 1 - first};
}

// Whether a weight is kept, from the bits of its score.
SLT_HOST_DEVICE bool is_kept(const Kept &kept, uint32_t score) { return (score & MAGNITUDE) - kept.first < kept.count; }

}  // namespace slt
