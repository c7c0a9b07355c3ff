// The weight gradient dW = dy^T x, a contraction over the pixels of the output, one block of dW at a time.
//
// A block is some rows by the columns (k) of a few calls, 128 each. Its columns are in bit order, word by word: a row
// of sums has the order of the bits of the mask, so the set bits of a word select its free weights.
#pragma once

#include "cpu/layout/pixels.h"
#include "cpu/layout/position.h"
#include "cpu/machine/parallel.h"
#include "cpu/machine/scratch.h"
#include "cpu/weights/frozen.h"
#include "operations.h"

namespace slt::SLT_ISA {
namespace {

// Where the columns of a call are in x, relative to the first tap of the kernel at a pixel.
struct Columns {
    int64_t h[CALL], w[CALL], channel[CALL];
    bool valid[CALL];             // false for padding and for columns of another shard
    bool together[WORDS_PER_CALL];  // the word's columns are 32 neighbouring channels of one tap
    int64_t first;                // k of the call's first column; negative if that belongs to another shard

    Columns() = default;
    Columns(const GradScores &a, int64_t call, int64_t group) {
        const Frame frame = frame_of(a.source);
        const int64_t channels = a.source.fan / taps_of(a.window);
        first = (call * WORDS_PER_CALL - frame.skipped) * WORD;
        for (int i = 0; i < WORDS_PER_CALL; ++i) {
            const int64_t k0 = first + i * WORD;
            for (int bit = 0; bit < WORD; ++bit) {
                const int64_t k = k0 + k_of_bit(bit), tap = k / channels;
                const int column = i * WORD + bit;
                valid[column] = k >= 0 && k < a.source.fan;
                const TapOffset offset = valid[column] ? tap_offset(a.window, tap) : TapOffset{0, 0};
                h[column] = offset.down;
                w[column] = offset.right;
                channel[column] = valid[column] ? group * channels + k % channels : 0;
            }
            together[i] = k0 >= 0 && k0 + WORD <= a.source.fan && k0 % channels + WORD <= channels;
        }
    }

    bool any(int64_t column, int64_t count) const {
        for (int64_t c = column; c < column + count; ++c)
            if (valid[c]) return true;
        return false;
    }
};

}  // namespace
}  // namespace slt::SLT_ISA
