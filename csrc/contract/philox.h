// Section 1 of the contract (docs/contract.md): Philox4x32-10, the counter-based generator of every random bit of a
// network (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
#pragma once

#include <cstdint>

#include "contract/host_device.h"

namespace slt {

enum Stream : uint32_t { SIGN, FREEZE, VALUE, SCORE };

constexpr uint32_t PHILOX_MULTIPLIER_0 = 0xD2511F53, PHILOX_MULTIPLIER_1 = 0xCD9E8D57;
constexpr uint32_t PHILOX_KEY_STEP_0 = 0x9E3779B9, PHILOX_KEY_STEP_1 = 0xBB67AE85;
constexpr int PHILOX_ROUNDS = 10;

struct Words4 {
    uint32_t word[4];
};

SLT_HOST_DEVICE Words4 philox4x32(Words4 counter, uint32_t k0, uint32_t k1) {
    uint32_t *c = counter.word;
    for (int round = 0; round < PHILOX_ROUNDS; ++round) {
        const uint64_t a = uint64_t(PHILOX_MULTIPLIER_0) * c[0];
        const uint64_t b = uint64_t(PHILOX_MULTIPLIER_1) * c[2];
        c[0] = uint32_t(b >> 32) ^ c[1] ^ k0;
        c[1] = uint32_t(b);
        c[2] = uint32_t(a >> 32) ^ c[3] ^ k1;
        c[3] = uint32_t(a);
        k0 += PHILOX_KEY_STEP_0;
        k1 += PHILOX_KEY_STEP_1;
    }
    return counter;
}

// call(stream, index) of the contract: four words.
SLT_HOST_DEVICE Words4 philox_call(int64_t seed, int64_t layer, Stream stream, uint64_t index) {
    return philox4x32({{uint32_t(index), uint32_t(layer), uint32_t(stream), uint32_t(index >> 32)}},
                      uint32_t(seed), uint32_t(uint64_t(seed) >> 32));
}

}  // namespace slt
