// Words of a source on a device: the frozen pattern, the bits of a mask, and the values of weights.
//
// What freezes a source is a template argument, the number of FREEZE's bit planes that decide: 0 where nothing is
// frozen (no call), 4 where both thresholds are multiples of 16 (one call per word), 8 otherwise (two); or ANY, where
// the size of the code matters more: threads branch together by the generator's number.
#pragma once

#include "cuda/generator.h"

namespace slt::cuda {

constexpr int ANY = -1;

// The free and the locked weights of the word with that index (q of the contract), of those in `valid`.
template <int PLANES>
SLT_HOST_DEVICE FrozenWord frozen_word(const Generator &g, uint64_t index, uint32_t valid) {
    const int decide = PLANES == ANY ? g.planes : PLANES;
    if (decide == 0) return {valid, 0};
    const Words4 first = call_words(g.freeze, 2 * index);
    uint32_t planes[8] = {first.word[0], first.word[1], first.word[2], first.word[3]};
    if (decide == 8) {
        const Words4 second = call_words(g.freeze, 2 * index + 1);
        for (int i = 0; i < 4; ++i) planes[4 + i] = second.word[i];
    }
    constexpr int COMPARED = PLANES == 4 ? 4 : 8;  // where four decide, the others may be anything
    const uint32_t pruned = below<COMPARED>(planes, g.prune), unlocked = below<COMPARED>(planes, g.lock);
    return {unlocked & ~pruned & valid, ~unlocked & valid};
}

SLT_HOST_DEVICE uint32_t chosen(uint32_t mask, uint32_t yes, uint32_t no) { return (mask & yes) | (~mask & no); }

// The lowest bits of `bits`, in order, at the set bits of `at`: x86's pdep, in about 50 instructions without a branch.
//
// Halves, then quarters, and so on: the upper half of a field takes the bits that the lower half leaves, so it moves up
// by the number of clear bits of `at` in the lower half. Bits that are moved too far or left over stand where `at` is
// clear in the end. (Moving each bit up by the clear bits below it takes a parallel prefix per power of two, and 80
// instructions; a loop over set bits diverges.)
SLT_HOST_DEVICE uint32_t deposit(uint32_t bits, uint32_t at) {
    const uint32_t clear = ~at, twos = clear - (clear >> 1 & 0x55555555);
    const uint32_t fours = (twos & 0x33333333) + (twos >> 2 & 0x33333333);
    const uint32_t eights = fours + (fours >> 4) & 0x0F0F0F0F;  // clear bits of each byte
    const uint32_t sixteens = (eights & 0xFF) + (eights >> 8 & 0xFF);
    uint32_t x = chosen(0xFFFF0000, bits << sixteens, bits);
    const uint32_t low = x << (eights & 0xFF), high = x << (eights >> 16 & 0xFF);
    x = chosen(0xFF00FF00, chosen(0xFF000000, high, low), x);
    uint32_t moved = chosen((fours & 0x01010101) * 0xFF, x << 1, x);
    moved = chosen((fours >> 1 & 0x01010101) * 0xFF, moved << 2, moved);
    moved = chosen((fours >> 2 & 0x01010101) * 0xFF, x << 4, moved);  // four clear bits: the others are not set
    x = chosen(0xF0F0F0F0, moved, x);
    moved = chosen((twos & 0x11111111) * 0xF, x << 1, x);
    moved = chosen((twos >> 1 & 0x11111111) * 0xF, x << 2, moved);  // two clear bits
    x = chosen(0xCCCCCCCC, moved, x);
    x = chosen((clear & 0x55555555) << 1, x << 1, x);
    return x & at;
}

// Four weights of a word, k = 4 j to 4 j + 3, as the lowest bits of four bytes.
SLT_HOST_DEVICE uint32_t four_bits(uint32_t word, int j) {
    const uint32_t w = word >> 2 * j;  // even k at bits 0 and 1, odd ones at 16 and 17
    return (w & 1) | (w >> 8 & 0x100) | (w << 15 & 0x10000) | (w << 7 & 0x1000000);
}

#ifdef __CUDACC__

// `deposit` where the bits of `at` are the lowest ones of both halves: nothing is frozen.
__device__ __forceinline__ uint32_t deposit_halves(uint32_t bits, uint32_t at) {
    return chosen(0xFFFF, bits, bits >> __popc(at & 0xFFFF) << 16) & at;
}

// A lane and its word. Four neighbouring lanes have the words of one call.
struct Place {
    uint32_t row, call;
    int32_t word;  // of the row; outside the row where the call has words that the source has not
};

// The place of a thread, where threads go through the words of all calls, row by row. `first`: the block's first call.
// Threads past the last call have a row past the last, and no word.
__device__ __forceinline__ Place place_of(const Generator &g, uint32_t first) {
    const uint32_t call_number = first + threadIdx.x / WORDS_PER_CALL;
    const int i = threadIdx.x % WORDS_PER_CALL;
    const uint32_t row = call_number / g.by_calls, call = call_number - row * g.calls;
    return {row, call, row < g.rows ? int32_t(WORDS_PER_CALL * call) + i - g.skipped : -1};
}

// The number of free weights in the lower of a call's four lanes. All lanes of the warp take part.
__device__ __forceinline__ int free_before(int count) {
    const int i = threadIdx.x % WORDS_PER_CALL;
    int sum = count;
    const int one = __shfl_up_sync(0xFFFFFFFF, sum, 1, WORDS_PER_CALL);
    sum += i >= 1 ? one : 0;
    const int two = __shfl_up_sync(0xFFFFFFFF, sum, 2, WORDS_PER_CALL);
    sum += i >= 2 ? two : 0;
    return sum - count;
}

// The number of free weights before a call, of the whole source. `segment_starts` [rows, segments] and `call_starts`
// [rows, calls], counted from the call's segment, are of count_free.cu. A row of the source.
template <int PLANES>
__device__ __forceinline__ int64_t free_start(const Generator &g, const int64_t *segment_starts,
                                              const uint16_t *call_starts, uint32_t row, uint32_t call) {
    if ((PLANES == ANY ? g.planes : PLANES) == 0) {
        const int32_t k = int32_t(CALL * call) - int32_t(WORD) * g.skipped;
        return row * g.source.fan + (k < 0 ? 0 : k);
    }
    return segment_starts[uint64_t(row) * g.segments + call / SEGMENT] + call_starts[uint64_t(row) * g.calls + call];
}

// `count` bits of a compact mask from bit `start` on, and anything above them. Words with none of them are not read:
// the mask may end there.
__device__ __forceinline__ uint32_t mask_bits(const uint32_t *mask, int64_t start, int count) {
    const uint32_t *at = mask + start / WORD;
    const int shift = int(start % WORD);
    const uint32_t low = count > 0 ? at[0] : 0, high = shift + count > WORD ? at[1] : 0;
    return __funnelshift_r(low, high, shift);
}

// The word of a place in a resolved mask; 0 for no word.
__device__ __forceinline__ uint32_t resolved_word(const Generator &g, const uint32_t *mask, const Place &at) {
    const uint32_t valid = valid_word(g, at.word);
    return valid ? mask[uint64_t(at.row) * g.words + at.word] & valid : 0;
}

// The same of a compact mask. All lanes of the warp take part, each call's beside each other.
template <int PLANES>
__device__ __forceinline__ uint32_t compact_word(const Generator &g, const uint32_t *mask,
                                                 const int64_t *segment_starts, const uint16_t *call_starts,
                                                 const Place &at) {
    const uint64_t index = WORDS_PER_CALL * call_index(g, at.row, at.call) + threadIdx.x % WORDS_PER_CALL;
    const FrozenWord frozen = frozen_word<PLANES>(g, index, valid_word(g, at.word));
    const int count = __popc(frozen.free), before = free_before(count);
    if (count == 0) return frozen.locked;
    const int64_t start = free_start<PLANES>(g, segment_starts, call_starts, at.row, at.call) + before;
    const uint32_t bits = mask_bits(mask, start, count);
    return (PLANES == 0 ? deposit_halves(bits, frozen.free) : deposit(bits, frozen.free)) | frozen.locked;
}

static __device__ const int8_t NORMAL_HALF[128] = SLT_NORMAL_HALF;

// The table of NORMAL, in shared memory.
struct NormalTable {
    int8_t value[256];

    // The threads of a block fill it, before a barrier; for other weights it is not used.
    __device__ __forceinline__ void fill(const Generator &g) {
        if (g.source.weight != NORMAL) return;
        for (int u = threadIdx.x; u < 256; u += blockDim.x)
            value[u] = u < 128 ? -NORMAL_HALF[127 - u] : NORMAL_HALF[u - 128];
    }
};

// Four bytes of VALUE as four weights.
__device__ __forceinline__ uint32_t four_values(int64_t weight, uint32_t bytes, const NormalTable &table) {
    if (weight == UNIFORM) return (bytes ^ 0x80808080) | 0x01010101;
    uint32_t values = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) values |= uint32_t(uint8_t(table.value[bytes >> 8 * i & 0xFF])) << 8 * i;
    return values;
}

// The weights of word i of a call as int8 in the order of k; 0 at the bits that are not in `keep`.
__device__ __forceinline__ Words8 kept_values(const Generator &g, uint64_t call, int i, uint32_t keep,
                                              const NormalTable &table) {
    Words8 values{};
    if (g.source.weight == SIGNED_CONSTANT) {
        const Words4 signs = call_words(g.weight, call);
        const uint32_t sign =
            i < 2 ? (i == 0 ? signs.word[0] : signs.word[1]) : (i == 2 ? signs.word[2] : signs.word[3]);
#pragma unroll
        for (int j = 0; j < 8; ++j) values.word[j] = four_bits(keep, j) | four_bits(keep & sign, j) * 0xFE;
    } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Words4 bytes = call_words(g.weight, 2 * (WORDS_PER_CALL * call + i) + half);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                values.word[4 * half + j] =
                    four_values(g.source.weight, bytes.word[j], table) & four_bits(keep, 4 * half + j) * 0xFF;
        }
    }
    return values;
}

#endif

}  // namespace slt::cuda
