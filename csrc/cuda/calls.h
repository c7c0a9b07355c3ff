// Philox calls of one stream on a device. Of a counter only the index changes from call to call, so the second product
// of the first round and the first of the second are the same for a whole layer: 18 products instead of 20. The round
// keys are a kernel's parameters, which instructions read at no cost.
#pragma once

#include "contract/philox.h"
#include "contract/source.h"

namespace slt {

// What the calls of a stream share.
struct Calls {
    uint32_t key[2 * PHILOX_ROUNDS];  // of round r: 2 r and 2 r + 1
    uint32_t second_word_0;           // into the first word after round 2, beside a product
    uint32_t second_word_2;           // into the third
    uint32_t third_word_3;            // the fourth word after round 2
};

struct WideProduct {
    uint32_t high, low;
};

SLT_HOST_DEVICE WideProduct wide_product(uint32_t a, uint32_t b) {
    const uint64_t product = uint64_t(a) * b;
    return {uint32_t(product >> 32), uint32_t(product)};
}

SLT_HOST_DEVICE Calls calls_of(int64_t seed, int64_t layer, Stream stream) {
    Calls calls{};
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
        calls.key[2 * round] = k0;
        calls.key[2 * round + 1] = k1;
        k0 += PHILOX_KEY_STEP_0;
        k1 += PHILOX_KEY_STEP_1;
    }
    const WideProduct b = wide_product(PHILOX_MULTIPLIER_1, uint32_t(stream));
    const WideProduct a = wide_product(PHILOX_MULTIPLIER_0, b.high ^ uint32_t(layer) ^ calls.key[0]);
    calls.second_word_0 = b.low ^ calls.key[2];
    calls.second_word_2 = a.high ^ calls.key[3];
    calls.third_word_3 = a.low;
    return calls;
}

// The words of call(stream, index).
SLT_HOST_DEVICE Words4 call_words(const Calls &calls, uint64_t index) {
    const WideProduct a = wide_product(PHILOX_MULTIPLIER_0, uint32_t(index));
    const WideProduct b = wide_product(PHILOX_MULTIPLIER_1, a.high ^ uint32_t(index >> 32) ^ calls.key[1]);
    uint32_t c[4] = {b.high ^ calls.second_word_0, b.low, a.low ^ calls.second_word_2, calls.third_word_3};
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int round = 2; round < PHILOX_ROUNDS; ++round) {
        const WideProduct a = wide_product(PHILOX_MULTIPLIER_0, c[0]), b = wide_product(PHILOX_MULTIPLIER_1, c[2]);
        c[0] = b.high ^ c[1] ^ calls.key[2 * round];
        c[1] = b.low;
        c[2] = a.high ^ c[3] ^ calls.key[2 * round + 1];
        c[3] = a.low;
    }
    return {{c[0], c[1], c[2], c[3]}};
}

}  // namespace slt
